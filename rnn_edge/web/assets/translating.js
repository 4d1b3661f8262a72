// The page of a translator: text in, its translation, and for each sentence the attention between the words.

import { attentionPicture } from "./attention.js";
import { element, knob, oncePerFrame } from "./dom.js";
import { thinkingPanel } from "./thinking.js";

/** Build the page into `main`. `send` posts to the worker. Returns what handles the worker's messages. */
export function translating(main, { manifest, labels }, send, { link, fail }) {
  const source = element("textarea", { id: "source", rows: 4, spellcheck: false, placeholder: "Text to translate", lang: manifest.source.language || null });
  const button = element("button", { type: "submit", className: "primary" }, "Translate");
  const rate = element("span", { className: "rate" });
  const text = element("div", { className: "text translation", id: "text", tabIndex: 0, role: "region" });
  text.setAttribute("aria-label", "The translation");
  const pictures = element("div", { className: "pictures" });
  const off = (value) => (value === 0 ? "off" : value.toFixed(2));
  const knobs = {
    beam: knob({ name: "beam", label: "Beam", title: "How many translations are followed at once; 1 takes the likeliest token each time", min: 1, max: 10, step: 1, value: manifest.decoding?.beam ?? 1 }),
    lengthPenalty: knob({ name: "length-penalty", label: "Length penalty", title: "α of Wu et al. (2016), for a beam", min: 0, max: 2, step: 0.1, value: manifest.decoding?.length_penalty ?? 1, show: (value) => value.toFixed(1) }),
    temperature: knob({ name: "temperature", label: "Temperature", title: "Draw tokens instead of taking the likeliest; without a beam", min: 0, max: 2, step: 0.05, value: 0, show: off }),
    seed: knob({ name: "seed", label: "Seed", title: "For drawn translations: the same seed gives the same", kind: "text", value: "1" }),
  };
  const thinking = thinkingPanel(labels, { title: "What could stand here" });
  const form = element(
    "form",
    { className: "card prompt", onsubmit: (event) => (event.preventDefault(), running ? send({ kind: "stop" }) : start()) },
    element("label", { htmlFor: "source" }, "Text"),
    source,
    element("div", { className: "actions" }, button, rate),
  );
  main.append(
    element("div", { className: "column wide" }, form, element("section", { className: "card paper" }, text), element("section", { className: "card looked" }, element("h2", {}, "Where it looked"), pictures)),
    element("div", { className: "column narrow" }, thinking, element("section", { className: "card knobs" }, element("h2", {}, "Knobs"), ...Object.values(knobs))),
  );

  let run = 0;
  let running = false;
  let sentences = []; // {picture, pieces, attention, about}
  let total = { count: 0, seconds: 0 };
  let written = "";
  const show = oncePerFrame(() => {
    text.textContent = written;
    for (const sentence of sentences) {
      if (sentence.fresh) sentence.picture.update(sentence.pieces, sentence.attention);
      sentence.fresh = false;
    }
    if (total.seconds > 0) rate.textContent = `${total.count} tokens · ${Math.round(total.count / total.seconds).toLocaleString()} tokens/s`;
  });

  function describe(sentence, token) {
    const about = sentence.about[token];
    if (!about) return;
    const before = new TextDecoder().decode(Uint8Array.from(sentence.pieces.slice(0, token).flatMap((piece) => [...piece])));
    thinking.show({ before, ...about });
  }

  function start() {
    fail(null);
    running = true;
    button.textContent = "Stop";
    button.classList.add("is-running");
    const value = (name) => Number(knobs[name].input.value);
    const options = { beam: value("beam"), lengthPenalty: value("lengthPenalty"), seed: knobs.seed.input.value.trim() };
    if (value("temperature") > 0) options.temperature = value("temperature");
    link({ prompt: source.value, seed: options.seed });
    send({ kind: "translate", run: ++run, text: source.value, options });
  }

  function finish() {
    running = false;
    button.textContent = "Translate";
    button.classList.remove("is-running");
  }

  source.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  return {
    begin() {
      sentences = [];
      written = "";
      total = { count: 0, seconds: 0 };
      pictures.replaceChildren();
      thinking.show(null);
    },
    event({ event, count, seconds }) {
      total = { count, seconds };
      if (event.gap !== undefined) written += event.gap;
      else if (event.source) {
        const sentence = { pieces: [], attention: [], about: [], before: written, fresh: false };
        sentence.picture = attentionPicture(event.pieces, (token) => describe(sentence, token));
        pictures.append(sentence.picture);
        sentences.push(sentence);
      } else if (event.result) {
        const sentence = sentences.at(-1);
        Object.assign(sentence, { pieces: event.result.pieces, attention: event.result.attention, fresh: true });
        written = sentence.before + event.result.text;
      } else {
        const sentence = sentences.at(-1);
        sentence.pieces.push(event.piece);
        sentence.attention.push(event.attention);
        sentence.about.push({ ids: event.ids, probabilities: event.probabilities });
        sentence.fresh = true;
        written += event.text;
        describe(sentence, sentence.about.length - 1);
      }
      show();
    },
    done: finish,
    error: finish,
    isCurrent: (message) => message.run === undefined || message.run === run,
    restore({ prompt, seed }) {
      if (prompt !== undefined) source.value = prompt;
      if (seed !== undefined) knobs.seed.set(seed);
    },
    start,
    redraw: show,
  };
}
