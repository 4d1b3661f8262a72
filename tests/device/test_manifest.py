"""The manifest: round trip, and everything that is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.errors import BundleError
from rnn_edge.manifest import Manifest
from tests.device.tiny import GRU, LSTM

CONTENT = (LSTM / "manifest.json").read_bytes()


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(CONTENT)
    change(value)
    return json.dumps(value).encode()


def refusal(content: bytes) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(content, "there/manifest.json")
    assert "there/manifest.json" in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("bundle", [LSTM, GRU], ids=lambda path: path.name)
def test_round_trip_is_byte_for_byte(bundle: Any) -> None:
    content = (bundle / "manifest.json").read_bytes()
    manifest = Manifest.from_json(content, "x")
    assert manifest.to_json().encode() == content


def test_what_it_says() -> None:
    manifest = Manifest.from_json(CONTENT, "x")
    assert manifest.architecture.cell == "lstm"
    assert manifest.graphs == {"step": "step.onnx"}
    assert [(pair.input, pair.output, pair.width) for pair in manifest.state] == [
        ("h0", "h0_next", 32),
        ("c0", "c0_next", 32),
        ("h1", "h1_next", 32),
        ("c1", "c1_next", 32),
    ]
    assert set(manifest.files) == {"README.md", "step.onnx", "tokenizer.json"}


def test_digest_follows_the_graphs_and_nothing_else() -> None:
    def card(value: dict[str, Any]) -> None:
        value["files"]["README.md"]["sha256"] = "0" * 64

    def graph(value: dict[str, Any]) -> None:
        value["files"]["step.onnx"]["sha256"] = "0" * 64

    digest = Manifest.from_json(CONTENT, "x").digest
    assert Manifest.from_json(changed(card), "x").digest == digest
    assert Manifest.from_json(changed(graph), "x").digest != digest


@pytest.mark.parametrize("content", [b"", b"{", b"PK\x03\x04", b"\xff\xfe", b"[" * 100_000, b'{"format_version": NaN}'])
def test_not_json(content: bytes) -> None:
    assert "is not JSON" in refusal(content).message


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"text"'])
def test_json_but_no_table(content: bytes) -> None:
    assert "not a table" in refusal(content).message


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_unknown_version(version: object) -> None:
    error = refusal(changed(lambda value: value.update(format_version=version)))
    assert f"format version {version!r}" in error.message
    assert "reads version 1" in error.message
    assert "update rnn-edge" in error.hint


@pytest.mark.parametrize("name", sorted(set(json.loads(CONTENT)) - {"format_version", "files"}))
def test_missing_field(name: str) -> None:
    assert f"{name} is missing" in refusal(changed(lambda value: value.pop(name))).message


def test_without_version_it_is_of_no_known_version() -> None:
    assert "format version None" in refusal(changed(lambda value: value.pop("format_version"))).message


OUTSIDE = [
    "../x",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "a\\b",
    "C:x",
    "a\x00b",
    "step.onnx\n",
    "é",
    "x" * 200,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_file_names_outside_the_folder(name: str) -> None:
    def tokenizer(value: dict[str, Any]) -> None:
        value["tokenizer"]["file"] = name

    def graph(value: dict[str, Any]) -> None:
        value["graphs"]["step"] = name

    def files(value: dict[str, Any]) -> None:
        value["files"][name] = value["files"]["step.onnx"]

    for change in (tokenizer, graph, files):
        message = refusal(changed(change)).message
        assert repr(name) in message
        assert "not a plain file name inside the bundle" in message


def test_names_that_are_not_listed() -> None:
    assert (
        "graphs.step names other.onnx, which files does not list"
        in refusal(changed(lambda value: value["graphs"].update(step="other.onnx"))).message
    )
    assert "which files does not list" in refusal(changed(lambda value: value.pop("files"))).message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value["graphs"].clear(), "graphs.step is missing"),
        (lambda value: value["state"].clear(), "state lists no pairs"),
        (lambda value: value["state"].append(value["state"][0]), "state and memory name a tensor twice"),
        (lambda value: value["state"][0].update(output="h0"), "state and memory name a tensor twice"),
        (lambda value: value["state"][0].update(width=0), "state or memory has a width below 1"),
        (lambda value: value["state"][0].update(dtype="float64"), "state[0].dtype is 'float64'"),
        (lambda value: value["tokenizer"].update(vocabulary_size=0), "vocabulary_size is below 1"),
        (lambda value: value["special_ids"].update(start=70), "special_ids.start is 70, outside the vocabulary of 70"),
        (lambda value: value["special_ids"].update(start=-1), "special_ids.start is -1"),
        (lambda value: value["golden"][0]["best"].pop(), "golden[0] has no tokens, or lists of different lengths"),
        (lambda value: value["golden"][0].update(tokens=[], best=[], margins=[]), "golden[0] has no tokens"),
        (lambda value: value["provenance"].update(recipe="\ud800"), "provenance.recipe has half a character"),
        (lambda value: value["golden"][1]["tokens"].__setitem__(0, 70), "golden[1] has a token outside"),
        (lambda value: value["files"]["step.onnx"].update(size=-1), "files.step.onnx.size is negative"),
        (lambda value: value["files"]["step.onnx"].update(sha256="00"), "not a SHA-256"),
        (lambda value: value["files"]["step.onnx"].update(sha256="A" * 64), "not a SHA-256"),
        (lambda value: value["sampling"].update(temperature=10**400), "sampling.temperature"),
        (lambda value: value.update(task="chess"), "task is 'chess', not one of language-model"),
    ],
)
def test_wrong_values(change: Callable[[dict[str, Any]], object], message: str) -> None:
    assert message in refusal(changed(change)).message


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_does_not_have(constant: str) -> None:
    content = CONTENT.replace(b'"temperature": 0.8', f'"temperature": {constant}'.encode())
    assert content != CONTENT
    assert f"{constant} is not a JSON number" in refusal(content).message


def test_a_newer_writer_may_add_fields() -> None:
    def add(value: dict[str, Any]) -> None:
        value["mood"] = "good"
        value["architecture"]["mood"] = "good"

    assert Manifest.from_json(changed(add), "x") == Manifest.from_json(CONTENT, "x")


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [here, *(place for key, child in children for place in places(child, (*here, key)))]


PLACES = places(json.loads(CONTENT))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(place=st.sampled_from(PLACES), replacement=JSON_VALUES)
def test_any_replacement_is_read_or_refused_cleanly(place: tuple[Any, ...], replacement: Any) -> None:
    whole: dict[str, Any] = {"root": json.loads(CONTENT)}
    target: Any = whole
    path = ("root", *place)
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = replacement
    content = json.dumps(whole["root"]).encode()
    try:
        manifest = Manifest.from_json(content, "x")
    except BundleError:
        return
    assert Manifest.from_json(manifest.to_json().encode(), "x") == manifest


@given(st.binary())
def test_any_bytes_are_refused_cleanly(content: bytes) -> None:
    refusal(content)
