// The hidden state as a picture: a row for each unit, a column for each token read.

import { element, oncePerFrame } from "./dom.js";

const CELL = 4; // CSS pixels of a token and of a unit
const ROWS = 48; // units that are in view
const KEYS = { ArrowUp: -1, ArrowDown: 1, PageUp: -ROWS, PageDown: ROWS };

/**
 * A card with `add(columns, width)`, which `draw()` shows, `clear()`, `arrange()`, `mark(position)` and
 * `value(position)`, which is that of the chosen unit or null. `onselect(position)` is told when a unit or a position is
 * chosen here.
 */
export function unitsCard({ onselect }) {
  const canvas = element("canvas", { tabIndex: 0, className: "units-canvas", role: "application", ariaLabel: "Hidden state: a row for each unit, a column for each token. Arrow keys move, Escape clears." });
  const name = element("output", { className: "unit-name" });
  const button = (text, label, step) => element("button", { type: "button", className: "small", ariaLabel: label, title: label, onclick: () => move(step) }, text);
  const off = element("button", { type: "button", className: "small", title: "Take the colours off the text", onclick: () => pick(null, null) }, "clear");
  const scroll = element("input", { type: "range", min: 0, max: 0, value: 0, ariaLabel: "Units in view, from slow to fast", oninput: () => (top = Number(scroll.value), redraw()) });
  const card = element(
    "section",
    { className: "card units" },
    element("header", {}, element("h2", {}, "Hidden state"), element("div", { className: "unit-choice" }, name, button("↑", "Unit above", -1), button("↓", "Unit below", 1), off)),
    canvas,
    element("div", { className: "unit-scroll" }, element("span", {}, "slow units"), scroll, element("span", {}, "fast")),
    element("p", { className: "hint" }, "A row is a unit, a column a token. Touch a row, and the text takes its colours: what does it watch?"),
  );
  const scratch = document.createElement("canvas");
  let columns = []; // Int8Array [width] of each position
  let order = []; // units, the slowest first
  let arranged = 0; // columns that the order was found from
  let unit = null;
  let position = null;
  let [first, top] = [0, 0]; // column and row in the corner

  const redraw = oncePerFrame(draw);

  function draw() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const rows = Math.min(ROWS, order.length);
    const [wide, high] = [Math.max(1, Math.round(canvas.clientWidth * ratio)), Math.round(ROWS * CELL * ratio)];
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, wide, high);
    if (!columns.length) return;
    const room = Math.ceil(canvas.clientWidth / CELL);
    first = Math.max(0, columns.length - Math.floor(canvas.clientWidth / CELL));
    if (position !== null && position < first) first = Math.max(0, position - (room >> 1));
    const shown = columns.slice(first, first + room);
    [scratch.width, scratch.height] = [shown.length, rows];
    scratch.getContext("2d").putImageData(picture(shown, order.slice(top, top + rows)), 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(scratch, 0, 0, shown.length * CELL * ratio, rows * CELL * ratio);
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 1.5 * ratio;
    const row = order.indexOf(unit) - top;
    if (unit !== null && row >= 0 && row < rows) context.strokeRect(-4, row * CELL * ratio, wide + 8, CELL * ratio);
    const column = position === null ? -1 : position - first;
    if (column >= 0 && column < shown.length) context.strokeRect(column * CELL * ratio, -4, CELL * ratio, high + 8);
  }

  function choose(next, at) {
    unit = next;
    position = at;
    name.textContent = unit === null ? "" : `unit ${unit}`;
    off.hidden = unit === null && position === null;
    const row = order.indexOf(unit);
    if (unit !== null && (row < top || row >= top + ROWS)) {
      top = Math.max(0, Math.min(order.length - ROWS, row - (ROWS >> 1)));
      scroll.value = top;
    }
    redraw();
  }

  function pick(next, at) {
    choose(next, at);
    onselect(at);
  }

  function move(step) {
    if (!order.length) return;
    const row = unit === null ? top : order.indexOf(unit) + step;
    pick(order[Math.max(0, Math.min(order.length - 1, row))], position);
  }

  function point(event) {
    if (!columns.length) return;
    const box = canvas.getBoundingClientRect();
    const row = top + Math.floor((event.clientY - box.top) / CELL);
    const column = first + Math.floor((event.clientX - box.left) / CELL);
    pick(order[Math.max(top, Math.min(order.length - 1, row))], Math.max(0, Math.min(columns.length - 1, column)));
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    point(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && point(event));
  canvas.addEventListener("keydown", (event) => {
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") pick(null, null);
    else if (KEYS[event.key]) move(KEYS[event.key]);
    else if (along && columns.length) pick(unit, Math.max(0, Math.min(columns.length - 1, (position ?? columns.length - 1) + along)));
    else return;
    event.preventDefault();
  });
  new ResizeObserver(redraw).observe(canvas);

  /** Slow units above fast ones, by how much of a unit's value is still there one token later. */
  card.arrange = () => {
    if (columns.length < 8) return;
    arranged = columns.length;
    const slowness = order.map((_, place) => {
      let [mean, square, product] = [0, 0, 0];
      for (const column of columns) mean += column[place] / columns.length;
      for (let at = 1; at < columns.length; at++) {
        const [before, now] = [columns[at - 1][place] - mean, columns[at][place] - mean];
        square += now * now;
        product += before * now;
      }
      // A unit that hardly moves watches nothing here.
      return square / columns.length > 40 ? product / square : -1;
    });
    order = order.map((_, place) => place).sort((left, right) => slowness[right] - slowness[left]);
    redraw();
  };
  card.clear = () => {
    columns = [];
    arranged = 0;
    choose(unit, null);
  };
  card.add = (values, width) => {
    if (order.length !== width) {
      order = Array.from({ length: width }, (_, place) => place);
      scroll.max = Math.max(0, width - ROWS);
      scroll.parentNode.hidden = width <= ROWS;
    }
    for (let at = 0; at < values.length; at += width) columns.push(values.subarray(at, at + width));
    if (columns.length >= 64 && !arranged) card.arrange();
  };
  card.draw = draw;
  card.mark = (at) => choose(unit, at);
  card.value = (at) => (unit === null || !columns[at] ? null : columns[at][unit] / 127);
  card.redraw = redraw;
  choose(null, null);
  return card;
}

/** Values as colours, from the style sheet's low over its base to its high. */
function picture(columns, units) {
  const style = getComputedStyle(document.documentElement);
  const [low, high, base] = ["--low", "--high", "--field"].map((name) => {
    const text = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  });
  const pixels = new ImageData(columns.length, units.length);
  columns.forEach((column, x) => {
    units.forEach((unit, y) => {
      const value = column[unit] / 127;
      const end = value < 0 ? low : high;
      const weight = Math.abs(value);
      const at = (y * columns.length + x) * 4;
      for (let channel = 0; channel < 3; channel++) pixels.data[at + channel] = base[channel] + (end[channel] - base[channel]) * weight;
      pixels.data[at + 3] = 255;
    });
  });
  return pixels;
}
