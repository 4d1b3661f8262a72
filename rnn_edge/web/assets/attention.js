// Attention drawn between words: curves from each source word to each target word, the stronger the darker.

import { words, wordAttention } from "./alignment.js";
import { element, oncePerFrame } from "./dom.js";

const FAINTEST = 0.04; // weights below are not drawn

/** The picture of one sentence, with `update(pieces, attention)`; `onpick(token)` is told the first token of a word. */
export function attentionPicture(sourcePieces, onpick) {
  const lines = element("svg", { class: "attention-lines", "aria-hidden": "true" });
  const [above, below] = [element("div", { className: "words source-words" }), element("div", { className: "words target-words" })];
  const picture = element("div", { className: "attention", role: "group", ariaLabel: "Where it looked: arrow keys move from word to word", onkeydown: move }, above, lines, below);
  const sources = words(sourcePieces);
  const chips = sources.map(({ text }, index) => chip(text, "source", index));
  above.append(...chips);
  let targets = [];
  let weights = [];
  let picked = null; // {side, index}: stays lit
  let lit = null;
  let stop = null; // the one word that Tab reaches; arrow keys reach the others

  function chip(text, side, index) {
    return element("button", {
      type: "button",
      className: "word",
      tabIndex: -1,
      onpointerenter: () => light({ side, index }),
      onpointerleave: () => light(picked),
      onfocus: ({ currentTarget }) => (reach(currentTarget), light({ side, index })),
      onblur: () => light(picked),
      onclick: () => {
        picked = picked?.side === side && picked.index === index ? null : { side, index };
        light(picked);
      },
    }, text);
  }

  function reach(item) {
    if (stop) stop.tabIndex = -1;
    stop = item;
    if (stop) stop.tabIndex = 0;
  }

  function isSideways() {
    return getComputedStyle(picture).flexDirection === "row";
  }

  function move(event) {
    const word = event.target;
    const [own, other] = word.parentNode === above ? [above, below] : [below, above];
    const at = [...own.children].indexOf(word);
    const ways = isSideways() ? ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"] : ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
    const way = ways.indexOf(event.key);
    if (at < 0 || way < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = way < 2 ? own.children[at + (way ? 1 : -1)] : (way === 2) === (other === above) ? other.children[Math.min(at, other.children.length - 1)] : null;
    next?.focus();
    event.preventDefault();
  }

  function light(which) {
    if (which?.side === "target" && which !== lit) onpick(targets[which.index]?.tokens[0]);
    lit = which;
    picture.classList.toggle("is-lit", Boolean(which));
    const strength = (source, target) => (which?.side === "source" ? source === which.index : target === which?.index);
    for (const path of lines.children) path.classList.toggle("is-lit", Boolean(which) && strength(path.source, path.target));
    [...above.children].forEach((item, index) => {
      const weight = which?.side === "target" ? (weights[which.index]?.[index] ?? 0) : which?.side === "source" && which.index === index ? 1 : 0;
      item.style.setProperty("--weight", weight.toFixed(3));
    });
    [...below.children].forEach((item, index) => {
      const weight = which?.side === "source" ? (weights[index]?.[which.index] ?? 0) : which?.side === "target" && which.index === index ? 1 : 0;
      item.style.setProperty("--weight", weight.toFixed(3));
    });
  }

  const draw = oncePerFrame(() => {
    const frame = lines.getBoundingClientRect();
    const sideways = isSideways();
    const centre = (item, far) => {
      const box = item.getBoundingClientRect();
      return sideways ? [far ? frame.width : 0, box.top + box.height / 2 - frame.top] : [box.left + box.width / 2 - frame.left, far ? frame.height : 0];
    };
    lines.setAttribute("viewBox", `0 0 ${frame.width || 1} ${frame.height || 1}`);
    const paths = [];
    weights.forEach((row, target) =>
      row.forEach((weight, source) => {
        if (weight < FAINTEST || !below.children[target]) return;
        const [[x0, y0], [x1, y1]] = [centre(above.children[source], false), centre(below.children[target], true)];
        const middle = sideways ? frame.width / 2 : frame.height / 2;
        const d = sideways ? `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}` : `M${x0} ${y0}C${x0} ${middle} ${x1} ${middle} ${x1} ${y1}`;
        const path = element("path", { d, "stroke-width": (0.6 + 3.4 * weight).toFixed(2), "stroke-opacity": (0.12 + 0.88 * weight).toFixed(3) });
        Object.assign(path, { source, target });
        paths.push(path);
      }),
    );
    lines.replaceChildren(...paths);
    light(lit);
  });
  new ResizeObserver(draw).observe(picture);

  picture.update = (pieces, attention) => {
    targets = words(pieces);
    weights = wordAttention(attention, sources, targets);
    targets.forEach(({ text }, index) => {
      const item = below.children[index] ?? below.appendChild(chip("", "target", index));
      if (item.textContent !== text) item.textContent = text;
    });
    while (below.children.length > targets.length) below.lastChild.remove();
    if (!picture.contains(stop)) reach(above.firstElementChild);
    draw();
  };
  return picture;
}
