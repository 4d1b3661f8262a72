// The hidden state as a picture: a row for each unit, a column for each token read.

import { element, oncePerFrame } from "./dom.js";

const COLUMN = 4; // CSS pixels of a token
const HEIGHT = 168;

/** A card with `add(columns, width)`, `clear()`, `arrange()`, and `mark(position)`. */
export function unitsCard({ onselect }) {
  const canvas = element("canvas", { tabIndex: 0, className: "units-canvas", ariaLabel: "Hidden state: units from top to bottom, tokens from left to right. Arrow keys move." });
  canvas.setAttribute("role", "application");
  const name = element("output", { className: "unit-name" });
  const button = (text, label, step) => element("button", { type: "button", className: "small", ariaLabel: label, title: label, onclick: () => move(step) }, text);
  const off = element("button", { type: "button", className: "small", onclick: () => choose(null), title: "Take the colours off the text" }, "clear");
  const card = element(
    "section",
    { className: "card units" },
    element("header", {}, element("h2", {}, "Hidden state"), element("div", { className: "unit-choice" }, name, button("↑", "Unit above", -1), button("↓", "Unit below", 1), off)),
    canvas,
    element("p", { className: "hint" }, "One row a unit, slow ones at the top; one column a token. Choose a row, and the text takes its colours."),
  );
  const scratch = document.createElement("canvas");
  let columns = []; // Int8Array [width] of each position
  let order = [];
  let unit = null;
  let position = null;
  let first = 0;

  const redraw = oncePerFrame(() => {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [wide, high] = [Math.max(1, Math.round(canvas.clientWidth * ratio)), Math.round(HEIGHT * ratio)];
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, wide, high);
    if (!columns.length) return;
    const room = Math.floor(canvas.clientWidth / COLUMN);
    first = Math.max(0, columns.length - room);
    if (position !== null && position < first) first = Math.max(0, position - (room >> 1));
    const shown = columns.slice(first, first + room);
    const units = order.length;
    [scratch.width, scratch.height] = [shown.length, units];
    const pixels = new ImageData(shown.length, units);
    const { low, high: top, base } = palette();
    shown.forEach((column, x) => {
      for (let y = 0; y < units; y++) {
        const value = column[order[y]] / 127;
        const end = value < 0 ? low : top;
        const weight = Math.abs(value) ** 0.8;
        const at = (y * shown.length + x) * 4;
        for (let channel = 0; channel < 3; channel++) pixels.data[at + channel] = base[channel] + (end[channel] - base[channel]) * weight;
        pixels.data[at + 3] = 255;
      }
    });
    scratch.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(scratch, 0, 0, shown.length * COLUMN * ratio, high);
    const ink = getComputedStyle(canvas).color;
    context.strokeStyle = ink;
    context.lineWidth = ratio;
    if (unit !== null) {
      const y = ((order.indexOf(unit) + 0.5) / units) * high;
      context.strokeRect(-4, y - 2.5 * ratio, wide + 8, 5 * ratio);
    }
    if (position !== null && position >= first && position < first + shown.length) {
      context.strokeRect((position - first) * COLUMN * ratio, -4, COLUMN * ratio, high + 8);
    }
  });

  function choose(next, at = position) {
    unit = next;
    position = at;
    name.textContent = unit === null ? "no unit chosen" : `unit ${unit}`;
    off.hidden = unit === null;
    redraw();
  }

  function tell() {
    onselect(position);
  }

  function move(step) {
    if (!order.length) return;
    const place = unit === null ? (step > 0 ? 0 : order.length - 1) : order.indexOf(unit) + step;
    choose(order[(place + order.length) % order.length]);
    tell();
  }

  off.addEventListener("click", tell);

  function point(event) {
    if (!columns.length) return;
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * order.length);
    const column = first + Math.floor((event.clientX - box.left) / COLUMN);
    choose(order[Math.max(0, Math.min(order.length - 1, row))], Math.max(0, Math.min(columns.length - 1, column)));
    tell();
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    point(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && point(event));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -16, PageDown: 16 }[event.key];
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") {
      choose(null, null);
      tell();
    } else if (step) move(step);
    else if (along && columns.length) {
      choose(unit, Math.max(0, Math.min(columns.length - 1, (position ?? columns.length - 1) + along)));
      tell();
    } else return;
    event.preventDefault();
  });
  new ResizeObserver(redraw).observe(canvas);

  card.clear = () => {
    columns = [];
    choose(unit, null);
  };
  card.add = (values, width) => {
    if (order.length !== width) order = Array.from({ length: width }, (_, place) => place);
    for (let at = 0; at < values.length; at += width) columns.push(values.subarray(at, at + width));
    redraw();
  };
  /** Slow units above fast ones, by how much of a unit's value is still there one token later. */
  card.arrange = () => {
    if (columns.length < 8) return;
    const slowness = order.map((_, place) => {
      let [mean, square, product] = [0, 0, 0];
      for (const column of columns) mean += column[place] / columns.length;
      for (let at = 1; at < columns.length; at++) {
        const [before, now] = [columns[at - 1][place] - mean, columns[at][place] - mean];
        square += now * now;
        product += before * now;
      }
      return square > 0 ? product / square : 1;
    });
    order = order.map((_, place) => place).sort((left, right) => slowness[right] - slowness[left]);
    redraw();
  };
  /** Mark a position; the unit stays. */
  card.mark = (at) => choose(unit, at);
  card.value = (at) => (unit === null || !columns[at] ? null : columns[at][unit] / 127);
  card.redraw = redraw;
  choose(null, null);
  return card;
}

/** Ends and middle of the colour scale as the style sheet has them. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => {
    const text = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  };
  return { low: read("--low"), high: read("--high"), base: read("--sheet") };
}
