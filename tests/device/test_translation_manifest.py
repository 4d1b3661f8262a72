"""The manifest of a translator: round trip, what it adds to a language model's, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.errors import BundleError
from rnn_edge.manifest import DecodingDefaults, Manifest
from tests.device.test_manifest import JSON_VALUES, places
from tests.device.tiny import LSTM, TRANSLATOR, WORDS

CONTENT = (TRANSLATOR / "manifest.json").read_bytes()
Change = Callable[[dict[str, Any]], object]


def changed(change: Change, content: bytes = CONTENT) -> bytes:
    value = json.loads(content)
    change(value)
    return json.dumps(value).encode()


def refusal(change: Change) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(changed(change), "there/manifest.json")
    assert "there/manifest.json" in caught.value.message
    assert "again" in caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("bundle", [TRANSLATOR, WORDS], ids=lambda path: path.name)
def test_round_trip_is_byte_for_byte(bundle: Path) -> None:
    content = (bundle / "manifest.json").read_bytes()
    assert Manifest.from_json(content, "x").to_json().encode() == content


def test_what_it_says() -> None:
    manifest = Manifest.from_json(CONTENT, "x")
    assert manifest.task == "translation"
    assert manifest.graphs == {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    assert [(pair.input, pair.output, pair.width) for pair in manifest.state] == [
        ("h0", "h0_next", 24),
        ("c0", "c0_next", 24),
        ("h1", "h1_next", 24),
        ("c1", "c1_next", 24),
    ]
    assert [(item.name, item.width) for item in manifest.memory] == [("memory", 24), ("keys", 24)]
    assert manifest.architecture.encoder is not None
    assert (manifest.architecture.encoder.attention, manifest.architecture.encoder.hidden) == ("general", 12)
    assert manifest.source is not None
    assert manifest.source.tokenizer == manifest.tokenizer  # one vocabulary for both sides
    assert manifest.source.language == "en"
    assert manifest.decoding == DecodingDefaults(beam=1, length_penalty=1.0)
    assert len(manifest.golden_translations) == 7
    assert set(manifest.files) == {"README.md", "decoder.onnx", "encoder.onnx", "tokenizer.json"}


def test_a_vocabulary_for_each_side() -> None:
    manifest = Manifest.from_json((WORDS / "manifest.json").read_bytes(), "x")
    assert {place: spec.file for place, spec in manifest.tokenizers.items()} == {
        "tokenizer": "tokenizer.json",
        "source.tokenizer": "source_tokenizer.json",
    }
    assert manifest.source is not None
    assert (manifest.source.unknown, manifest.special_ids.unknown) == (0, 0)


def test_a_language_model_s_has_none_of_it() -> None:
    content = (LSTM / "manifest.json").read_bytes()
    manifest = Manifest.from_json(content, "x")
    assert (manifest.source, manifest.memory, manifest.golden_translations) == (None, (), ())
    assert set(json.loads(CONTENT)) - set(json.loads(content)) == {
        "source",
        "memory",
        "decoding",
        "golden_translations",
    }


def test_digest_follows_both_graphs_and_nothing_else() -> None:
    def other(name: str) -> str:
        content = changed(lambda value: value["files"][name].update(sha256="0" * 64))
        return Manifest.from_json(content, "x").digest

    digest = Manifest.from_json(CONTENT, "x").digest
    assert other("tokenizer.json") == other("README.md") == digest
    assert len({digest, other("encoder.onnx"), other("decoder.onnx")}) == 3


@pytest.mark.parametrize("name", ["source", "memory"])
def test_what_a_translator_cannot_do_without(name: str) -> None:
    message = "a translation model needs source, memory and architecture.encoder"
    assert message in refusal(lambda value: value.pop(name))
    assert message in refusal(lambda value: value["architecture"].pop("encoder"))


def test_what_has_a_default() -> None:
    def spare(value: dict[str, Any]) -> None:
        del value["decoding"], value["golden_translations"], value["source"]["language"], value["source"]["unknown"]

    manifest = Manifest.from_json(changed(spare), "x")
    assert manifest.decoding == DecodingDefaults()
    assert manifest.golden_translations == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value["graphs"].pop("encoder"), "graphs.encoder is missing"),
        (lambda value: value["graphs"].pop("decoder"), "graphs.decoder is missing"),
        (lambda value: value["graphs"].update(decoder="x.onnx"), "graphs.decoder names x.onnx, which files does not"),
        (lambda value: value.update(task="language-model"), "graphs.step is missing"),
        (
            lambda value: value["source"]["tokenizer"].update(file="../x"),
            "source.tokenizer.file names '../x', which is not a plain file name inside the bundle",
        ),
        (
            lambda value: value["source"]["tokenizer"].update(file="x.json"),
            "source.tokenizer.file names x.json, which files does not list",
        ),
        (
            lambda value: value["source"]["tokenizer"].update(vocabulary_size=0),
            "source.tokenizer.vocabulary_size is below 1",
        ),
        (lambda value: value["source"].update(end=300), "source.end is 300, outside the vocabulary of 300"),
        (lambda value: value["source"].update(end=-1), "source.end is -1, outside the vocabulary of 300"),
        (lambda value: value["source"].update(end=None), "source.end is null"),
        (lambda value: value["source"].update(unknown=300), "source.unknown is 300, outside"),
        (lambda value: value["source"].update(longest=0), "source.longest is below 1"),
        (lambda value: value["special_ids"].update(start=None), "special_ids needs start and end"),
        (lambda value: value["special_ids"].pop("end"), "special_ids needs start and end"),
        (lambda value: value["special_ids"].update(end=300), "special_ids.end is 300, outside"),
        (lambda value: value["memory"][0].update(width=0), "state or memory has a width below 1"),
        (lambda value: value["memory"][1].update(name="memory"), "state and memory name a tensor twice"),
        (lambda value: value["memory"][0].update(name="c0_next"), "state and memory name a tensor twice"),
        (lambda value: value["decoding"].update(beam=0), "decoding is out of range"),
        (lambda value: value["decoding"].update(beam=65), "decoding is out of range"),
        (lambda value: value["decoding"].update(length_penalty=-0.1), "decoding is out of range"),
        (lambda value: value["decoding"].update(length_penalty=10.5), "decoding is out of range"),
        (
            lambda value: value["architecture"]["encoder"].update(attention="self"),
            "architecture.encoder.attention is 'self', not one of dot, general, bahdanau",
        ),
        (lambda value: value["golden_translations"][0].update(source=[]), "golden_translations[0].source is empty"),
        (
            lambda value: value["golden_translations"][6]["source"].append(300),
            "golden_translations[6].source is empty or outside the vocabulary of 300",
        ),
        (lambda value: value["golden_translations"][1]["margins"].pop(), "golden_translations[1] has no tokens"),
        (
            lambda value: value["golden_translations"][2]["best"].__setitem__(0, 300),
            "golden_translations[2] has a token outside the vocabulary of 300",
        ),
    ],
)
def test_wrong_values(change: Change, message: str) -> None:
    assert message in refusal(change)


@given(place=st.sampled_from(places(json.loads(CONTENT))), replacement=JSON_VALUES)
def test_any_replacement_is_read_or_refused_cleanly(place: tuple[Any, ...], replacement: Any) -> None:
    whole: dict[str, Any] = {"root": json.loads(CONTENT)}
    target: Any = whole
    path = ("root", *place)
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = replacement
    try:
        manifest = Manifest.from_json(json.dumps(whole["root"]).encode(), "x")
    except BundleError:
        return
    assert Manifest.from_json(manifest.to_json().encode(), "x") == manifest
