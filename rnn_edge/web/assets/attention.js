// Attention drawn between words: curves from each source word to each target word, the stronger the darker.

import { words, wordAttention } from "./alignment.js";
import { element, oncePerFrame } from "./dom.js";

const FAINTEST = 0.04; // weights below are not drawn

/** The picture of one sentence, with `update(pieces, attention)`; `onpick(token)` is told the first token of a word. */
export function attentionPicture(sourcePieces, onpick) {
  const lines = element("svg", { class: "attention-lines", "aria-hidden": "true" });
  const [above, below] = [element("div", { className: "words source-words" }), element("div", { className: "words target-words" })];
  const picture = element("div", { className: "attention" }, above, lines, below);
  const sources = words(sourcePieces);
  const chips = sources.map(({ text }, index) => chip(text, "source", index));
  above.append(...chips);
  let targets = [];
  let weights = [];
  let picked = null; // {side, index}: stays lit
  let lit = null;

  function chip(text, side, index) {
    return element("button", {
      type: "button",
      className: "word",
      onpointerenter: () => light({ side, index }),
      onpointerleave: () => light(picked),
      onfocus: () => light({ side, index }),
      onblur: () => light(picked),
      onclick: () => {
        picked = picked?.side === side && picked.index === index ? null : { side, index };
        light(picked);
      },
    }, text);
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
    const sideways = getComputedStyle(picture).flexDirection === "row";
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
    draw();
  };
  return picture;
}
