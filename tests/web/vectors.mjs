// Checks the vectors of tests/data/web in JavaScript, under Node or in a page. Returns a list of what differs.

const CAMEL = { max_tokens: "maxTokens", top_k: "topK", top_p: "topP", min_p: "minP", repeat_penalty: "repeatPenalty", repeat_window: "repeatWindow" };

function camel(options) {
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [CAMEL[name] ?? name, value]));
}

/** `load(name)` imports a module of the engine. */
export async function checkRules(vectors, load) {
  const wrong = [];
  const differs = (name, found, expected) => {
    if (JSON.stringify(found) !== JSON.stringify(expected)) wrong.push(`${name}: ${JSON.stringify(found)} is not ${JSON.stringify(expected)}`.slice(0, 400));
  };
  const { gumbelNoise, parseSeed } = await load("noise.js");
  for (const { seed, stream, step, size, values } of vectors.noise) {
    const found = gumbelNoise(new Float32Array(2 * size), { seed: parseSeed(seed), stream, step, steps: 2, size });
    differs(`noise of seed ${seed}`, Array.from(found), Array.from(Float32Array.from(values)));
  }
  const { Sampler, samplingOptions } = await load("sampling.js");
  for (const { options, logits, ids } of vectors.choices) {
    const sampler = new Sampler(samplingOptions(camel(options)), logits[0].length, { seed: 12345n, step: 2, recent: [1, 2, 3, 2], barred: 5 });
    const found = logits.map((row) => sampler.choose(Float32Array.from(row, (value) => value / 8)));
    differs(`choices with ${JSON.stringify(options)}`, found, ids);
  }
  const { StopFilter, StreamDecoder } = await load("text.js");
  for (const { pieces, texts } of vectors.decoding) {
    const decoder = new StreamDecoder();
    const found = pieces.map((piece) => decoder.push(Uint8Array.from(piece)));
    differs("decoded text", [...found, decoder.flush()].join(""), texts.join(""));
  }
  for (const { stops, pieces, found, rest } of vectors.stops) {
    const filter = new StopFilter(stops);
    differs(`stops ${JSON.stringify(stops)}`, [pieces.map((piece) => filter.push(piece)), filter.flush()], [found, rest]);
  }
  return wrong;
}

/** `read(bundle)` gives the reader of a bundle, `runtime` is what `open` takes beside it. */
export async function checkTexts(vectors, load, read, runtime) {
  const wrong = [];
  const { open } = await load("engine.js");
  const models = new Map();
  const model = async (bundle) => {
    if (!models.has(bundle)) models.set(bundle, await open(read(bundle), { ...runtime, where: bundle }));
    return models.get(bundle);
  };
  for (const { bundle, prompt, options, ids, text } of vectors.texts) {
    const found = { ids: [], text: "" };
    for await (const { tokens, texts } of (await model(bundle)).generate({ ...camel(options), prompt })) {
      found.ids.push(...tokens);
      found.text += texts.join("");
    }
    const first = ids.findIndex((id, place) => id !== found.ids[place]);
    if (first >= 0 || found.ids.length !== ids.length) wrong.push(`${bundle}, ${JSON.stringify(prompt)}: another id at step ${first}`);
    if (found.text !== text) wrong.push(`${bundle}: ${JSON.stringify(found.text)} is not ${JSON.stringify(text)}`);
  }
  for (const { bundle, source, options, source_ids: sourceIds, text } of vectors.translations) {
    const translator = await model(bundle);
    const ids = translator.source(source);
    if (JSON.stringify([ids]) !== JSON.stringify(sourceIds)) wrong.push(`${bundle}: ${JSON.stringify(source)} has the ids ${ids}, not ${sourceIds}`);
    let found = "";
    for await (const { gap = "", result } of translator.translate(source, camel(options))) found += gap + (result?.text ?? "");
    if (found !== text) wrong.push(`${bundle}: ${JSON.stringify(found)} is not ${JSON.stringify(text)}`);
  }
  return wrong;
}
