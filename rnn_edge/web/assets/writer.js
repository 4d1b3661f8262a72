// The page of a language model: a prompt, the text as it streams, its knobs, and what the network thinks.

import { element, knob, oncePerFrame } from "./dom.js";
import { thinkingPanel } from "./thinking.js";
import { unitsCard } from "./units.js";

const GAP = 50; // milliseconds from one drawing of new text to the next: drawing takes time from the network
const LEVELS = 7; // of colour on either side of zero

/** Build the page into `main`. `send` posts to the worker. Returns what handles the worker's messages. */
export function writer(main, { manifest, labels }, send, { link, fail }) {
  const { sampling } = manifest;
  const prompt = element("textarea", { id: "prompt", rows: 2, spellcheck: false, placeholder: "How the text begins", autocapitalize: "off" });
  const button = element("button", { type: "submit", className: "primary" }, "Write");
  const rate = element("span", { className: "rate" });
  const text = element("div", { className: "text", tabIndex: 0, id: "text" });
  text.setAttribute("role", "textbox");
  text.setAttribute("aria-readonly", "true");
  text.setAttribute("aria-multiline", "true");
  text.setAttribute("aria-label", "The text. Arrow keys move through it and show what could have stood there.");
  const two = (value) => value.toFixed(2);
  const knobs = {
    temperature: knob({ name: "temperature", label: "Temperature", title: "0 always takes the likeliest; higher is more daring", min: 0, max: 2, step: 0.05, value: sampling.temperature, show: two }),
    seed: knob({ name: "seed", label: "Seed", title: "The same seed gives the same text", kind: "text", value: "1" }),
    maxTokens: knob({ name: "max-tokens", label: "Length", title: "Tokens at most", kind: "number", min: 1, max: 20000, step: 1, value: 800 }),
    topK: knob({ name: "top-k", label: "Top-k", title: "Keep the K likeliest; 0 keeps all", kind: "number", min: 0, max: labels.length, step: 1, value: sampling.top_k }),
    topP: knob({ name: "top-p", label: "Top-p", title: "Keep the fewest likeliest that together reach this share", min: 0.05, max: 1, step: 0.05, value: sampling.top_p, show: (value) => (value === 1 ? "off" : two(value)) }),
    minP: knob({ name: "min-p", label: "Min-p", title: "Keep what is at least this fraction as likely as the likeliest", min: 0, max: 0.5, step: 0.01, value: sampling.min_p, show: (value) => (value === 0 ? "off" : two(value)) }),
    repeatPenalty: knob({ name: "repeat-penalty", label: "Repeat penalty", title: "Weaken what came lately", min: 1, max: 2, step: 0.05, value: 1, show: (value) => (value === 1 ? "off" : two(value)) }),
    repeatWindow: knob({ name: "repeat-window", label: "Repeat window", title: "How many tokens are recent", kind: "number", min: 0, max: 1000000, step: 1, value: 64 }),
  };
  const dice = element("button", { type: "button", className: "small", title: "Another seed, and write", ariaLabel: "Another seed, and write", onclick: roll }, "roll");
  knobs.seed.append(dice);
  const pace = element("select", { id: "pace" }, ...[["0", "as fast as it goes"], ["60", "60 tokens a second"], ["12", "12 tokens a second"]].map(([value, name]) => element("option", { value }, name)));
  const command = element("code", { className: "command" });
  const copy = element("button", { type: "button", className: "small", onclick: copyCommand }, "copy");
  const thinking = thinkingPanel(labels, { title: "What could stand here" });
  const units = unitsCard({ onselect: select });
  const form = element(
    "form",
    { className: "card prompt", onsubmit: (event) => (event.preventDefault(), running ? send({ kind: "stop" }) : start()) },
    element("label", { htmlFor: "prompt" }, "Prompt"),
    prompt,
    element("div", { className: "actions" }, button, rate),
  );
  const settings = element(
    "section",
    { className: "card knobs" },
    element("h2", {}, "Knobs"),
    ...Object.values(knobs).slice(0, 3),
    element("div", { className: "knob" }, element("label", { htmlFor: "pace" }, "Pace"), pace),
    ...Object.values(knobs).slice(3),
  );
  const same = element("section", { className: "card same" }, element("h2", {}, "The same text in a terminal"), element("div", { className: "command-line" }, command, copy));
  main.append(
    element("div", { className: "column wide" }, form, element("section", { className: "card paper" }, text), units, same),
    element("div", { className: "column narrow" }, thinking, settings),
  );

  let run = 0;
  let running = false;
  let tokens = []; // {text, span, ids, probabilities} of each position; ids are what could have stood there
  let waiting = []; // chunks that are not shown yet
  let rows = 0; // positions that have been read
  let selected = null;
  let total = { count: 0, seconds: 0 };

  const show = oncePerFrame(() => {
    const pinned = text.scrollHeight - text.scrollTop - text.clientHeight < 48;
    const added = document.createDocumentFragment();
    for (const chunk of waiting) take(chunk, added);
    waiting = [];
    text.append(added);
    if (pinned) text.scrollTop = text.scrollHeight;
    text.classList.toggle("is-scrolled", text.scrollTop > 4);
    if (total.seconds > 0) rate.textContent = `${total.count.toLocaleString()} tokens · ${Math.round(total.count / total.seconds).toLocaleString()} tokens/s`;
    if (selected === null) describe(tokens.length - 1);
    units.draw();
  }, GAP);

  function add(token, where) {
    token.span = element("span", { className: token.prompt ? "token is-prompt" : "token" }, token.text);
    token.span.position = tokens.length;
    tokens.push(token);
    where.append(token.span);
  }

  function take({ fed, texts, ids, probabilities, units: values, width }, where) {
    const each = fed.length ? ids.length / fed.length : 0;
    fed.forEach((_, row) => {
      const about = { ids: ids.subarray(row * each, (row + 1) * each), probabilities: probabilities.subarray(row * each, (row + 1) * each) };
      rows++;
      if (rows < tokens.length) Object.assign(tokens[rows], about);
      else add({ text: texts[row], ...about }, where);
    });
    if (!fed.length && texts.length) tokens.at(-1)?.span.append(texts.join(""));
    if (fed.length) units.add(values, width);
    if (units.value(0) !== null) colour(rows - fed.length);
  }

  /** The text takes the colours of the chosen unit. */
  function colour(from = 0) {
    for (let at = from; at < tokens.length; at++) {
      const value = units.value(at);
      const level = value === null ? 0 : Math.round(value * LEVELS);
      const { classList } = tokens[at].span;
      for (const name of [...classList]) if (/^[hl]\d$/.test(name)) classList.remove(name);
      if (level) classList.add(`${level > 0 ? "h" : "l"}${Math.abs(level)}`);
    }
  }

  function describe(position) {
    const token = tokens[position];
    if (!token) return thinking.show(null);
    const before = tokens.slice(Math.max(0, position - 40), position).map((item) => item.text).join("");
    thinking.show(token.ids ? { before, ids: token.ids, probabilities: token.probabilities } : { before: "" });
  }

  function select(position) {
    if (selected !== null) tokens[selected]?.span.classList.remove("is-selected");
    selected = position !== null && tokens[position] ? position : null;
    if (selected !== null) {
      const { span } = tokens[selected];
      span.classList.add("is-selected");
      const [box, seen] = [span.getBoundingClientRect(), text.getBoundingClientRect()];
      if (box.top < seen.top || box.bottom > seen.bottom) text.scrollTop += box.top - seen.top - seen.height / 2;
    }
    colour();
    describe(selected ?? tokens.length - 1);
  }

  function options() {
    const values = { prompt: prompt.value };
    for (const [name, { input }] of Object.entries(knobs)) values[name] = name === "seed" ? input.value.trim() : Number(input.value);
    return values;
  }

  function start() {
    fail(null);
    const given = options();
    running = true;
    button.textContent = "Stop";
    button.classList.add("is-running");
    link({ prompt: given.prompt, seed: given.seed });
    // A browser would break lines behind the hyphens of a flag.
    const pieces = shell(manifest, given).map(([flag, value]) => [element("span", {}, flag), ` ${value} `]);
    command.replaceChildren("rnn-edge ", ...pieces.flat());
    send({ kind: "generate", run: ++run, options: given, pace: Number(pace.value) });
  }

  function roll() {
    knobs.seed.set(String(crypto.getRandomValues(new Uint32Array(1))[0]));
    start();
  }

  function finish() {
    running = false;
    button.textContent = "Write";
    button.classList.remove("is-running");
  }

  async function copyCommand() {
    await navigator.clipboard?.writeText(command.textContent.trim()).catch(() => {});
    copy.textContent = "copied";
    setTimeout(() => (copy.textContent = "copy"), 1200);
  }

  text.addEventListener("scroll", () => text.classList.toggle("is-scrolled", text.scrollTop > 4), { passive: true });
  text.addEventListener("pointerover", (event) => {
    if (selected === null && event.target.position !== undefined && !running) describe(event.target.position);
  });
  text.addEventListener("pointerleave", () => describe(selected ?? tokens.length - 1));
  text.addEventListener("click", (event) => {
    if (event.target.position === undefined || String(getSelection())) return;
    const position = event.target.position === selected ? null : event.target.position;
    units.mark(position);
    select(position);
  });
  text.addEventListener("keydown", (event) => {
    const last = tokens.length - 1;
    const at = selected ?? last;
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: line(at, -1), ArrowDown: line(at, 1), Home: 0, End: last, Escape: null }[event.key];
    if (next === undefined || last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const position = next === null ? null : Math.max(0, Math.min(last, next));
    units.mark(position);
    select(position);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  /** The position nearest above or below. */
  function line(at, step) {
    const box = tokens[at]?.span.getBoundingClientRect();
    if (!box) return at;
    let [best, nearest] = [at, Infinity];
    for (let other = at; other >= 0 && other < tokens.length; other += step) {
      const place = tokens[other].span.getBoundingClientRect();
      const lines = Math.abs(place.top - box.top);
      if (lines < 4 || !tokens[other].text.trim()) continue;
      const distance = lines * 1000 + Math.abs(place.left - box.left);
      if (distance < nearest) [best, nearest] = [other, distance];
      else if (lines * 1000 > nearest) break;
    }
    return best;
  }

  return {
    begin({ prompt: read }) {
      tokens = [];
      waiting = [];
      rows = 0;
      total = { count: 0, seconds: 0 };
      selected = null;
      text.replaceChildren();
      units.clear();
      if (!read.length) add({ text: "", prompt: true }, text); // the start token, which is no text
      for (const { text: piece } of read) add({ text: piece, prompt: true }, text);
    },
    chunk(chunk) {
      total = { count: chunk.count, seconds: chunk.seconds };
      waiting.push(chunk);
      show();
    },
    done() {
      finish();
      requestAnimationFrame(() => requestAnimationFrame(() => units.arrange()));
    },
    error: finish,
    isCurrent: (message) => message.run === undefined || message.run === run,
    restore({ prompt: before, seed }) {
      if (before !== undefined) prompt.value = before;
      if (seed !== undefined) knobs.seed.set(seed);
    },
    start,
    redraw: units.redraw,
  };
}

/** The command that gives the same text, flag by flag; what the command does by itself is left out. */
function shell({ name, sampling }, options) {
  const quote = (value) => (/^[\w.,:/-]+$/.test(value) ? value : `'${value.replace(/'/g, "'\\''")}'`);
  const parts = [["generate", quote(name)]];
  if (options.prompt) parts.push(["--prompt", quote(options.prompt)]);
  parts.push(["--seed", quote(String(options.seed))], ["--temperature", options.temperature], ["--max-tokens", options.maxTokens]);
  if (options.topK !== sampling.top_k) parts.push(["--top-k", options.topK]);
  if (options.topP !== sampling.top_p) parts.push(["--top-p", options.topP]);
  if (options.minP !== sampling.min_p) parts.push(["--min-p", options.minP]);
  if (options.repeatPenalty !== 1) parts.push(["--repeat-penalty", options.repeatPenalty], ["--repeat-window", options.repeatWindow]);
  return parts;
}
