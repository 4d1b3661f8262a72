// Small tools for building the page. Text goes in as text nodes: nothing of a model is ever read as markup.

/** An element with properties, listeners (`onclick`) and children; `null` children are left out. */
export function element(tag, properties = {}, ...children) {
  const svg = ["svg", "path", "g", "circle", "rect", "line", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !svg && !["list", "role"].includes(name)) made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** How a token is shown where white space would not be seen. */
export function visible(text) {
  if (text === "") return "∅";
  return text.replace(/ {4,}/g, (spaces) => `␣×${spaces.length}`).replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\x00-\x1f]/g, "␀");
}

export function percent(share) {
  if (share >= 0.9995) return "100 %";
  return share >= 0.1 ? `${(share * 100).toFixed(0)} %` : share >= 0.001 ? `${(share * 100).toFixed(1)} %` : "< 0.1 %";
}

/** At most once a frame, and not again before `gap` milliseconds, whatever was asked in between. */
export function oncePerFrame(draw, gap = 0) {
  let asked = false;
  let last = -Infinity;
  const frame = () =>
    requestAnimationFrame((now) => {
      asked = false;
      last = now;
      draw();
    });
  return () => {
    if (asked) return;
    asked = true;
    const wait = last + gap - performance.now();
    if (wait > 0) setTimeout(frame, wait);
    else frame();
  };
}

/** A knob: a labelled slider or number with its value beside it. */
export function knob({ name, label, title, kind = "range", min, max, step, value, show = String }) {
  const output = kind === "range" ? element("output", {}, show(Number(value))) : null;
  const input = element("input", { type: kind, id: `knob-${name}`, name, min, max, step, value, inputMode: kind === "text" ? "numeric" : "", autocomplete: "off", spellcheck: false });
  if (output) input.addEventListener("input", () => (output.textContent = show(Number(input.value))));
  const made = element("div", { className: `knob knob-${kind}`, title }, element("label", { htmlFor: input.id }, label), input, output);
  made.input = input;
  made.set = (next) => {
    input.value = next;
    input.dispatchEvent(new Event("input"));
  };
  return made;
}
