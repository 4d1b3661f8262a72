"""``rnn-edge import`` of Keras files."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from rnn_edge.errors import DataError
from rnn_edge.language_model import LanguageModel
from rnn_edge_export.foreign.formats import recognise
from rnn_edge_export.foreign.keras import read_keras
from rnn_edge_export.foreign.language_model import Network
from tests.device.tiny import DATA
from tests.export.conftest import Cli, CliError, names
from tests.export.foreign.conftest import runtime_logits
from tests.export.foreign.keras_files import (
    VOCABULARY,
    V,
    Weights,
    dense,
    distributed,
    embedding,
    layer,
    random_weights,
    recurrent,
    sequential,
    write_archive,
    write_legacy,
)

REAL = DATA / "keras"
ANSWERS = json.loads((REAL / "answers.json").read_text(encoding="utf-8"))


def unpack(name: str, folder: Path) -> Path:
    """A file that Keras wrote."""
    path = folder / name
    path.write_bytes(gzip.decompress((REAL / f"{name}.gz").read_bytes()))
    return path


def read(path: Path) -> tuple[Network, list[str]]:
    return read_keras(path, recognise(path))


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(VOCABULARY), encoding="utf-8")
    return path


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("name", ["sequential", "functional", "plain"])
def test_files_of_keras_answer_as_keras_does(
    name: str, suffix: str, tmp_path: Path, vocabulary: Path, cli: Cli
) -> None:
    source = unpack(f"{name}.{suffix}", tmp_path)
    answer = cli("import", source, "-o", tmp_path / "b", "--vocabulary", vocabulary)
    assert answer.code == 0, answer.err
    assert "verified against Keras; try" in answer.err
    model = LanguageModel.load(tmp_path / "b", device="cpu")
    found = runtime_logits(model, ANSWERS["tokens"])
    expected = np.array(ANSWERS[name])
    np.testing.assert_allclose(found if name == "functional" else softmax(found), expected, atol=1e-5)
    assert model.manifest.lowering == "cell"  # each of the three has something that only cells express
    assert model.tokenizer.encode("ab c\n") == [2, 3, 6, 5, 4]
    assert "Keras 3.15.1" in model.manifest.provenance.recipe
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert ("Padding (id 0) was masked in Keras" in card) == (name == "functional")


def layout(file: h5py.File | h5py.Group) -> set[tuple[str, tuple[int, ...]]]:
    found = set()

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found.add((name, item.shape))

    file.visititems(visit)
    return found


def test_the_files_of_these_tests_are_laid_out_as_those_of_keras(tmp_path: Path) -> None:
    """The sequential model of ``make_keras.py``, written here."""
    model = sequential(
        embedding(),
        recurrent("LSTM", "below"),
        layer("Dropout", "drop", {"rate": 0.2}),
        recurrent("LSTM", "lstm", 3, use_bias=False),
        distributed(dense()),
    )
    own = write_archive(tmp_path / "own.keras", model, random_weights(model))
    real = unpack("sequential.keras", tmp_path)
    shapes = []
    for path in (own, real):
        with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            shapes.append({item for item in layout(file) if "seed_generator" not in item[0]})
    assert shapes[0] == shapes[1]
    with h5py.File(unpack("sequential.h5", tmp_path)) as file:
        weights = file["model_weights"]
        assert [name.rsplit("/", 1)[1] for name in weights["below"].attrs["weight_names"]] == [
            "kernel",
            "recurrent_kernel",
            "bias",
        ]
        assert json.loads(file.attrs["model_config"])["class_name"] == "Sequential"


STACKS: dict[str, list[dict[str, Any]]] = {
    "lstm": [recurrent("LSTM", "a"), recurrent("LSTM", "b", 3)],
    "lstm, no bias": [recurrent("LSTM", "a", use_bias=False, stateful=True)],
    "lstm, hard": [recurrent("LSTM", "a", recurrent_activation="hard_sigmoid")],
    "gru": [recurrent("GRU", "z"), recurrent("GRU", "a", 3, return_sequences=False)],
    "gru, reset before": [recurrent("GRU", "a", reset_after=False), recurrent("GRU", "b", 3)],
    "gru, reset before, no bias": [recurrent("GRU", "a", reset_after=False, use_bias=False)],
    "gru, no bias": [recurrent("GRU", "a", use_bias=False)],
    "gru, hard": [recurrent("GRU", "a", recurrent_activation="hard_sigmoid")],
    "gru, hard, reset before": [recurrent("GRU", "a", recurrent_activation="hard_sigmoid", reset_after=False)],
    "rnn": [recurrent("SimpleRNN", "a"), recurrent("SimpleRNN", "b", 3, use_bias=False)],
    "rnn, relu": [recurrent("SimpleRNN", "a", activation="relu")],
}


def model_of(stack: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return sequential(embedding(), *stack, dense(**changes))


@pytest.mark.parametrize("version", ["3.8.0", "2.15.0"])
@pytest.mark.parametrize("name", STACKS)
def test_every_cell_passes_parity(name: str, version: str, tmp_path: Path, vocabulary: Path, cli: Cli) -> None:
    """256 steps from random states against Keras's own equations in NumPy are part of every import."""
    model = model_of(STACKS[name], use_bias=name != "rnn")
    weights = random_weights(model)
    archive = version[0] == "3"
    write = write_archive if archive else write_legacy
    source = write(tmp_path / ("m.keras" if archive else "m.h5"), model, weights, version)
    answer = cli("import", source, "-o", tmp_path / "b", "--vocabulary", vocabulary)
    assert answer.code == 0, answer.err
    manifest = LanguageModel.load(tmp_path / "b", device="cpu").manifest
    expected = sum(array.size for arrays in weights.values() for array in arrays.values())
    assert manifest.architecture.parameters == expected


def test_hard_sigmoids_are_those_of_their_version(tmp_path: Path) -> None:
    model = model_of(STACKS["lstm, hard"])
    weights = random_weights(model)
    slopes = [
        read(write_archive(tmp_path / "m.keras", model, weights, version))[0].layers[0].hard_slope
        for version in ("2.13.1", "3.0.5", "4.1", "")
    ]
    assert slopes == [0.2, 1 / 6, 1 / 6, 0.2]


def functional(*layers: dict[str, Any], old: bool) -> dict[str, Any]:
    """The layers one after the other, in another order in the file."""
    entries, before = [], None
    for item in layers:
        name = item["config"]["name"]
        history = [before, 0, 0]
        inbound: list[Any] = []
        if before:
            tensor = {"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": history}}
            inbound = [[[*history, {}]]] if old else [{"args": [tensor], "kwargs": {"training": False}}]
        entries.append(item | {"name": name, "inbound_nodes": inbound})
        before = name
    return {"class_name": "Functional", "config": {"name": "model", "layers": entries[:1] + entries[:0:-1]}}


@pytest.mark.parametrize("old", [True, False])
def test_functional_models_are_read_along_their_chain(old: bool, tmp_path: Path) -> None:
    stack = [layer("InputLayer", "in", {}), embedding(), recurrent("LSTM", "a"), recurrent("LSTM", "b", 3), dense()]
    weights = random_weights(sequential(*stack))
    network, _ = read(write_legacy(tmp_path / "m.h5", functional(*stack, old=old), weights))
    assert [layer.hidden for layer in network.layers] == [5, 3]
    branched = functional(*stack, old=old)
    for entry in branched["config"]["layers"]:
        if entry["name"] == "out":
            entry["inbound_nodes"] = [[["b", 0, 0, {}], ["a", 0, 0, {}]]]
    with pytest.raises(DataError, match="no chain"):
        read(write_legacy(tmp_path / "m.h5", branched, weights))
    for entry in branched["config"]["layers"]:
        if entry["name"] == "out":
            entry["inbound_nodes"] = [[["out", 0, 0, {}]]]
    with pytest.raises(DataError, match="no chain"):
        read(write_legacy(tmp_path / "m.h5", branched, weights))


def test_the_oldest_sequential_files(tmp_path: Path) -> None:
    model = model_of(STACKS["gru, reset before"])
    weights = random_weights(model)
    model["config"] = model["config"]["layers"]
    del model["config"][1]["config"]["reset_after"]
    network, _ = read(write_legacy(tmp_path / "m.h5", model, weights, "2.1.6"))
    assert [layer.reset_before for layer in network.layers] == [True, False]


ACTIVATION = layer("Activation", "last", {"activation": "softmax"})
LSTM = [recurrent("LSTM", "a")]
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "bidirectional": (sequential(embedding(), layer("Bidirectional", "both", {}), dense()), "both is a Bidirectional"),
    "lambda": (sequential(embedding(), layer("Lambda", "code", {}), dense()), "code is a Lambda layer: it holds code"),
    "masking": (sequential(embedding(), layer("Masking", "mask", {}), *LSTM, dense()), "mask is a Masking layer"),
    "cudnn": (sequential(embedding(), layer("CuDNNGRU", "fast", {}), dense()), "fast is a CuDNNGRU layer"),
    "another layer": (
        sequential(embedding(), layer("Conv1D", "c", {}), *LSTM, dense()),
        "has the layers Embedding, C",
    ),
    "no embedding": (sequential(*LSTM, dense()), "has the layers LSTM, Dense"),
    "no recurrent layer": (sequential(embedding(), dense()), "has the layers Embedding, Dense"),
    "two outputs": (sequential(embedding(), *LSTM, dense(), dense(name="more")), "has the layers"),
    "none": (sequential(), "has the layers none"),
    "mixed": (sequential(embedding(), *LSTM, recurrent("GRU", "g"), dense()), "mixes LSTM and GRU"),
    "last step only": (
        sequential(embedding(), recurrent("LSTM", "a", return_sequences=False), recurrent("LSTM", "b"), dense()),
        "a gives its last step alone",
    ),
    "backwards": (sequential(embedding(), recurrent("LSTM", "a", go_backwards=True), dense()), "a has go_backwards"),
    "states": (sequential(embedding(), recurrent("LSTM", "a", return_state=True), dense()), "a has return_state"),
    "activation": (
        sequential(embedding(), recurrent("LSTM", "a", activation="elu"), dense()),
        "activation of a is 'elu'",
    ),
    "gates": (
        sequential(embedding(), recurrent("GRU", "a", recurrent_activation="relu"), dense()),
        "recurrent_activation of a is 'relu'",
    ),
    "output": (sequential(embedding(), *LSTM, dense(activation="sigmoid")), "activation of out is 'sigmoid'"),
    "own activation": (
        sequential(embedding(), recurrent("LSTM", "a", activation={"class_name": "Mine"}), dense()),
        "activation of a is {'class_name': 'Mine'}",
    ),
    "last activation": (
        sequential(embedding(), *LSTM, dense(activation=None), layer("Activation", "act", {"activation": "relu"})),
        "activation of act is 'relu'",
    ),
    "own layer": (
        sequential(embedding(), recurrent("LSTM", "a") | {"registered_name": "Mine>LSTM"}, dense()),
        "a is a layer of its author's own, Mine>LSTM",
    ),
    "sizes": (sequential(embedding(), recurrent("LSTM", "a", units=0), dense()), "units of a is 0, no size"),
    "huge": (sequential(embedding(input_dim=2**40), *LSTM, dense()), "input_dim of emb is"),
    "no number": (sequential(embedding(output_dim="4"), *LSTM, dense()), "output_dim of emb is '4'"),
    "another vocabulary": (sequential(embedding(), *LSTM, dense(units=9)), "out gives 9 values, the embedding has 7"),
    "twice": (sequential(embedding(), *LSTM, *LSTM, dense()), "two layers of one name"),
    "subclassed": ({"class_name": "MyModel", "config": {"layers": []}}, "holds a MyModel model"),
    "no layers": ({"class_name": "Sequential", "config": {"layers": 3}}, "has no list of layers"),
    "nameless": ({"class_name": "Sequential", "config": {"layers": [{"class_name": "LSTM"}]}}, "without class, name"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused_say_why(name: str, tmp_path: Path) -> None:
    model, reason = MODELS[name]
    weights = random_weights(model_of(LSTM, **({"units": 9} if name == "another vocabulary" else {})))
    with pytest.raises(DataError) as caught:
        read(write_legacy(tmp_path / "m.h5", model, weights))
    assert reason in caught.value.message
    assert caught.value.hint


def test_a_softmax_of_its_own_is_left_out(tmp_path: Path) -> None:
    model = sequential(embedding(), *LSTM, dense(activation=None), ACTIVATION)
    network, _ = read(write_archive(tmp_path / "m.keras", model, random_weights(model)))
    assert network.vocabulary_size == V


Change = Callable[[Weights], object]
WEIGHTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda w: w["a"].pop("recurrent_kernel"), "of a it lacks"),
    "no layer": (lambda w: w.pop("out"), "of out it lacks"),
    "extra": (lambda w: w["emb"].update(more=np.ones(2, np.float32)), "of emb it also has"),
    "a layer more": (lambda w: w.update(a2=w["a"]), "weights of no layer"),
    "shape": (lambda w: w["a"].update(kernel=np.ones((4, 19), np.float32)), "kernel of a is [4, 19], not [4, 20]"),
    "bias": (lambda w: w["a"].update(bias=np.ones((2, 20), np.float32)), "bias of a is [2, 20], not [20]"),
    "integers": (lambda w: w["out"].update(bias=np.ones(V, np.int64)), "bias of out is stored as int64"),
    "not finite": (lambda w: w["out"]["bias"].fill(np.nan), "bias of out holds values that are not finite"),
}


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fit(name: str, archive: bool, tmp_path: Path) -> None:
    change, reason = WEIGHTS[name]
    model = model_of(LSTM)
    weights = random_weights(model)
    change(weights)
    written = sequential(*model["config"]["layers"], *([recurrent("LSTM", "a2")] if "a2" in weights else []))
    path = (write_archive if archive else write_legacy)(tmp_path / "m", written, weights)
    if "a2" in weights:
        rewrite_config(path, model)
    with pytest.raises(DataError) as caught:
        read(path)
    assert reason in caught.value.message


def rewrite_config(path: Path, model: dict[str, Any]) -> None:
    if path.read_bytes()[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (members | {"config.json": json.dumps(model).encode()}).items():
                archive.writestr(name, content)
    else:
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = json.dumps(model)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    model = model_of(LSTM)
    return write_legacy(tmp_path / "m.h5", model, random_weights(model))


KERNEL = "model_weights/a/a/cell/kernel:0"


def _replace(make: Callable[[h5py.File, Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            content = file[KERNEL][()]
            with h5py.File(path.with_name("other.h5"), "w") as other:
                other["kernel"] = content
            path.with_name("raw").write_bytes(content.tobytes())
            del file[KERNEL]
            make(file, path)

    return change


def _link(link: object) -> Callable[[Path], None]:
    return _replace(lambda file, _: file.__setitem__(KERNEL, link))


def _virtual(file: h5py.File, path: Path) -> None:
    virtual = h5py.VirtualLayout(shape=(4, 20), dtype=np.float32)
    virtual[:] = h5py.VirtualSource(path.with_name("other.h5"), "kernel", shape=(4, 20))
    file.create_virtual_dataset(KERNEL, virtual)


def _external(file: h5py.File, path: Path) -> None:
    file.create_dataset(KERNEL, (4, 20), np.float32, external=[(str(path.with_name("raw")), 0, 320)])


HOSTILE: dict[str, Callable[[Path], None]] = {
    "external link": _link(h5py.ExternalLink("other.h5", "kernel")),
    "soft link": _link(h5py.SoftLink("/model_weights/a/a/cell/recurrent_kernel:0")),
    "virtual": _replace(_virtual),
    "external storage": _replace(_external),
    "compressed": _replace(
        lambda file, _: file.create_dataset(KERNEL, (4, 20), np.float32, compression="gzip") and None
    ),
    "never written": _replace(lambda file, _: file.create_dataset(KERNEL, (4, 20), np.float32) and None),
    "a group": _replace(lambda file, _: file.create_group(KERNEL) and None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_arrays_that_are_not_plainly_in_the_file(name: str, good: Path) -> None:
    assert read(good)
    HOSTILE[name](good)
    with pytest.raises(DataError, match=r"is a link to elsewhere|not stored whole inside the file|is no array"):
        read(good)


def test_a_linked_group_is_not_followed(good: Path) -> None:
    with h5py.File(good, "a") as file:
        file.move("model_weights/a", "elsewhere")
        file["model_weights/a"] = h5py.SoftLink("/elsewhere")
    with pytest.raises(DataError, match="model_weights/a is a link to elsewhere"):
        read(good)


def test_files_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    model = sequential(embedding(input_dim=2**24, output_dim=2**20), *LSTM, dense(units=2**24))
    weights = random_weights(model_of(LSTM))
    path = write_legacy(tmp_path / "m.h5", model, weights)
    with h5py.File(path, "a") as file:
        del file["model_weights/emb/emb/cell/embeddings:0"]
        file.create_dataset("model_weights/emb/emb/cell/embeddings:0", (2**24, 2**20), np.float32)  # 64 TB
    with pytest.raises(DataError, match="embeddings of emb is not stored whole"):
        read(path)


def test_cut_and_garbled_files(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    for size in range(8, len(content), max(1, len(content) // 40)):
        good.write_bytes(content[:size])
        with pytest.raises(DataError):
            read(good)
    random = np.random.default_rng(2)
    for _ in range(60):
        garbled = bytearray(content)
        for place in random.integers(8, len(content), 40):
            garbled[place] = int(random.integers(0, 256))
        good.write_bytes(garbled)
        try:
            network, _ = read(good)
        except DataError:
            continue
        assert network.embedding.isfinite().all()  # what was hit says nothing of the model
    archive = write_archive(tmp_path / "m.keras", model_of(LSTM), random_weights(model_of(LSTM)))
    content = archive.read_bytes()
    for size in range(4, len(content), max(1, len(content) // 20)):
        archive.write_bytes(content[:size])
        with pytest.raises(DataError):
            read(archive)


def test_archives_that_unpack_without_end(tmp_path: Path) -> None:
    for name in ("config.json", "model.weights.h5"):
        path = tmp_path / f"{name}.keras"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in ("metadata.json", "config.json", "model.weights.h5"):
                archive.writestr(member, b" " * 2**25 if member == name else b"{}")
        with pytest.raises(DataError, match="more than is plausible"):
            read(path)


@pytest.mark.parametrize("config", ["{", "3", "[" * 100_000, ""])
def test_configurations_that_are_none(config: str, good: Path) -> None:
    with h5py.File(good, "a") as file:
        del file.attrs["model_config"]
        if len(config) < 1000:
            file.attrs["model_config"] = config
        else:
            archive = good.with_name("m.keras")
            with zipfile.ZipFile(archive, "w") as members:
                for name in ("metadata.json", "config.json", "model.weights.h5"):
                    members.writestr(name, config)
            good = archive
    with pytest.raises(DataError):
        read(good)


def test_weights_without_a_model(good: Path) -> None:
    with h5py.File(good, "a") as file:
        del file.attrs["model_config"]
    with pytest.raises(DataError, match="holds weights alone") as caught:
        read(good)
    assert "model.save" in caught.value.hint


def test_the_command_refuses_what_does_not_fit(
    good: Path, tmp_path: Path, vocabulary: Path, cli_error: CliError
) -> None:
    call = ("import", good, "-o", tmp_path / "b")
    assert "word_language_model" in cli_error(*call, "--corpus", vocabulary, code=2)[0]
    assert "word_language_model" in cli_error(*call, "--vocabulary", vocabulary, "--cell", "lstm", code=2)[0]
    vocabulary.write_text(json.dumps(VOCABULARY[:-1]), encoding="utf-8")
    assert "6 tokens, the embedding 7" in cli_error(*call, "--vocabulary", vocabulary, code=2)[0]
    assert names(tmp_path) == ["m.h5", "vocabulary.json"]


def test_the_reference_is_not_the_step(tmp_path: Path) -> None:
    """The two come from the same arrays by different ways: gates in another order must differ."""
    network, _ = read(write_legacy(tmp_path / "m.h5", model_of(STACKS["gru"]), random_weights(model_of(STACKS["gru"]))))
    r, z, _ = network.layers[0].recurrent.chunk(3)
    assert not torch.equal(r, z)
    kernel = network.reference._layers[0].recurrent  # type: ignore[attr-defined]
    np.testing.assert_array_equal(kernel[:, :5], z.T.numpy())  # Keras has z first
    np.testing.assert_array_equal(kernel[:, 5:10], r.T.numpy())
