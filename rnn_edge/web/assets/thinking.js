// What the network is thinking: the likeliest tokens at one position, as bars.

import { element, percent, visible } from "./dom.js";

/** A panel with `show(position)`; a position is `{before, ids, probabilities, chosen}`, the last entry the one that came. */
export function thinkingPanel(labels, { title, count = 10 }) {
  const rows = Array.from({ length: count + 1 }, () => {
    const [name, bar, share] = [element("span", { className: "bar-name" }), element("span", { className: "bar-fill" }), element("span", { className: "bar-share" })];
    const row = element("li", { className: "bar" }, name, element("span", { className: "bar-track" }, bar), share);
    return { row, name, bar, share };
  });
  const context = element("p", { className: "thinking-context" });
  const note = element("p", { className: "thinking-note" });
  const list = element("ol", { className: "bars", ariaLabel: "Likeliest next tokens" }, ...rows.map(({ row }) => row));
  const panel = element("section", { className: "card thinking" }, element("h2", {}, title), context, list, note);

  panel.show = (position) => {
    const { before = "", ids, probabilities, chosen = true } = position ?? {};
    panel.classList.toggle("is-empty", !ids);
    context.replaceChildren(element("span", { className: "context-text" }, before.replace(/\s*\n\s*/g, " ⏎ ").slice(-34)), element("span", { className: "context-caret" }));
    const last = ids ? ids.length - 1 : 0;
    const next = ids && chosen ? ids[last] : -1;
    const inside = ids ? ids.indexOf(next) : -1;
    rows.forEach(({ row, name, bar, share }, place) => {
      const extra = place === count;
      const at = extra ? last : place;
      const id = ids ? ids[at] : -1;
      const hidden = !ids || id < 0 || (extra && (next < 0 || inside < last)) || (!extra && place >= last);
      row.classList.toggle("is-hidden", hidden);
      if (hidden) return;
      const value = probabilities[at];
      name.textContent = visible(labels[id]);
      bar.style.setProperty("--share", value.toFixed(4));
      share.textContent = percent(value);
      row.classList.toggle("is-chosen", id === next);
    });
    note.textContent = !ids
      ? "Press Write. Then point at any letter, or move through the text with the arrow keys."
      : next < 0
        ? "What may come next."
        : `${visible(labels[next])} came, at ${Math.max(0, -Math.log2(probabilities[last])).toFixed(1)} bits of surprise.`;
  };
  panel.show(null);
  return panel;
}
