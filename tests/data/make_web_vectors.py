"""Writes web/vectors.json: noise, choices and whole texts as this side makes them, for the other ones to make alike.

Run it as ``python -m tests.data.make_web_vectors`` from the repository.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rnn_edge.language_model import LanguageModel
from rnn_edge.noise import gumbel_noise
from rnn_edge.sampling import Sampler, SamplingOptions
from rnn_edge.text_stream import StopFilter
from rnn_edge.tokenizer import StreamDecoder
from rnn_edge.translation import TranslationOptions
from rnn_edge.translator import Translator

ROOT = Path(__file__).parent.parent.parent
VECTORS = Path(__file__).parent / "web" / "vectors.json"
SIZE = 97
CHOICES: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "min_p": 0.1},
    {"temperature": 1.1, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.9, "repeat_penalty": 1.4, "repeat_window": 7},
    {"temperature": 0.0, "repeat_penalty": 1.2},
    {"temperature": 1.0, "top_p": 0.5, "repeat_penalty": 0.7, "repeat_window": 3},
]
TEXTS: list[tuple[str, str, dict[str, Any]]] = [
    ("tests/data/lstm", "The ", {"seed": 1, "max_tokens": 200}),
    ("tests/data/lstm", "", {"seed": 2**63 + 11, "max_tokens": 60, "temperature": 1.2, "top_k": 12}),
    ("tests/data/lstm", "a", {"seed": 5, "max_tokens": 120, "temperature": 0.9, "top_p": 0.9, "repeat_penalty": 1.3}),
    ("tests/data/gru", "The ", {"seed": 3, "max_tokens": 200, "min_p": 0.05}),
    ("tests/data/gru", "of", {"max_tokens": 100, "seed": 0, "temperature": 0.0}),
    ("models/shakespeare", "ROMEO:", {"seed": 7, "max_tokens": 200}),
    ("models/shakespeare", "", {"seed": 8, "max_tokens": 100, "top_p": 0.9, "repeat_penalty": 1.1, "stop": "\n\n"}),
    ("models/sherlock", "“My dear Watson,", {"seed": 9, "max_tokens": 60}),
]
TRANSLATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("tests/data/translator", "The red cat sees a house.", {}),
    ("tests/data/translator", "The red cat sees a house.", {"beam": 3}),
    ("tests/data/translator-word", "the red zebra sees a house", {}),
    ("models/en-fr", "Where is the house?", {}),
    ("models/en-fr", "She bought three old books, and he sold a house near the sea.", {"beam": 5}),
    ("models/en-fr", "It’s  raining — take “this” umbrella!", {}),
    ("models/en-fr", "Good morning.", {"seed": 4, "temperature": 1.0, "top_k": 20}),
]


def make() -> dict[str, Any]:
    """All vectors."""
    return {
        "noise": [
            _noise(*item)
            for item in ((0, 0, 0, 9), (1, 0, 7, 65), (2**40 + 3, 2, 2**33 + 1, 6), (2**64 - 1, 2**32 - 1, 3, 5))
        ],
        "choices": [_choices(options) for options in CHOICES],
        "decoding": [_decoding(text.encode(), cuts) for text, cuts in (("a€b😀c", 1), ("é\ufeffz", 2))]
        + [_decoding(b"\xf0\x9f\x98A\xe2\x82\xff\xc3", 1), _decoding(b"\x80\xc0\xaf\xed\xa0\x80", 1)],
        "stops": [
            _stops(*item)
            for item in ((["ab", "cd"], ["xa", "by"]), (["aab"], ["a", "a", "a", "b"]), (["\n\n"], ["a\n", "b\n"]))
        ],
        "texts": [_text(*item) for item in TEXTS],
        "translations": [_translation(*item) for item in TRANSLATIONS],
    }


def _noise(seed: int, stream: int, step: int, size: int) -> dict[str, Any]:
    rows = gumbel_noise(seed, stream, step, 2, size)
    return {"seed": str(seed), "stream": stream, "step": step, "size": size, "values": rows.ravel().tolist()}


def _choices(options: dict[str, Any]) -> dict[str, Any]:
    """Rows of logits with ties, each chosen from in turn."""
    logits = (np.random.default_rng(1).normal(0, 3, (24, SIZE)) * 8).round().astype(np.float32) / np.float32(8)
    sampler = Sampler(SamplingOptions(**options), SIZE, seed=12345, step=2, recent=[1, 2, 3, 2], barred=5)
    return {
        "options": options,
        "logits": (logits * 8).astype(int).tolist(),
        "ids": [sampler.choose(row) for row in logits],
    }


def _decoding(content: bytes, size: int) -> dict[str, Any]:
    decoder = StreamDecoder.__new__(StreamDecoder)
    import codecs

    decoder._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces = [content[first : first + size] for first in range(0, len(content), size)]
    return {"pieces": [list(piece) for piece in pieces], "texts": [*map(decoder.push_bytes, pieces), decoder.flush()]}


def _stops(stops: list[str], pieces: list[str]) -> dict[str, Any]:
    stop = StopFilter(stops)
    return {
        "stops": stops,
        "pieces": pieces,
        "found": [list(stop.push(piece)) for piece in pieces],
        "rest": stop.flush(),
    }


def _text(bundle: str, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    events = list(LanguageModel.load(ROOT / bundle, device="cpu").generate(prompt, **options))
    ids = [event.token for event in events if event.token is not None]
    given = {**options, "seed": str(options["seed"])}
    return {
        "bundle": bundle,
        "prompt": prompt,
        "options": given,
        "ids": ids,
        "text": "".join(event.text for event in events),
    }


def _translation(bundle: str, text: str, options: dict[str, Any]) -> dict[str, Any]:
    translator = Translator.load(ROOT / bundle, device="cpu")
    sampling = {name: options[name] for name in ("temperature", "top_k") if name in options}
    asked = translator.options(
        beam=options.get("beam"), seed=options.get("seed"), sampling=SamplingOptions(**sampling) if sampling else None
    )
    assert isinstance(asked, TranslationOptions)
    found = translator.translate(text, asked)
    ids = [list(translator.sources([sentence.source])[0]) for sentence in found.sentences]
    return {"bundle": bundle, "source": text, "options": options, "source_ids": ids, "text": found.text}


if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(
        json.dumps(make(), ensure_ascii=False, separators=(",", ":")).replace('],"', '],\n"') + "\n", encoding="utf-8"
    )
