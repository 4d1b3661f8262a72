"""``rnn-edge import`` of checkpoints of PyTorch's word_language_model example."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rnn_edge.language_model import LanguageModel
from rnn_edge_export import vocabulary_tokenizer
from rnn_edge_export.foreign.word_language_model import read_dictionary
from tests.export.conftest import Cli, CliError, names
from tests.export.foreign.conftest import randomise, runtime_logits

TRAIN, VALID, TEST = "the lamp hums .\nthe moth\n", "a lamp <unk>\n", "the rain\n\n"
WORDS = ["the", "lamp", "hums", ".", "<eos>", "moth", "a", "<unk>", "rain"]
V = len(WORDS)


class RNNModel(nn.Module):
    """The example's model: its names, its equations, its order of axes."""

    def __init__(self, kind: str, tied: bool = False) -> None:
        super().__init__()
        width = 6
        self.encoder = nn.Embedding(V, width if tied else 5)
        if kind in ("LSTM", "GRU"):
            self.rnn: nn.RNNBase = getattr(nn, kind)(self.encoder.embedding_dim, width, 2, dropout=0.2)
        else:
            nonlinearity = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[kind]
            self.rnn = nn.RNN(self.encoder.embedding_dim, width, 2, nonlinearity=nonlinearity, dropout=0.2)
        self.decoder = nn.Linear(width, V)
        randomise(self)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.rnn(self.encoder(tokens))[0])
        return logits


def save(model: nn.Module, path: Path) -> Path:
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("LSTM", []),
        ("GRU", ["--cell", "gru"]),
        ("RNN_TANH", ["--cell", "rnn-tanh"]),
        ("RNN_RELU", ["--cell", "rnn-relu"]),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_the_example_does(
    tmp_path: Path, corpus: Path, cli: Cli, kind: str, flags: list[str], tied: bool
) -> None:
    source = RNNModel(kind, tied).eval()
    save(source, tmp_path / "model.safetensors")
    answer = cli("import", tmp_path / "model.safetensors", "-o", tmp_path / "b", "--corpus", corpus, *flags)
    assert answer.code == 0, answer.err
    assert "verified against PyTorch; try: rnn-edge generate" in answer.err
    model = LanguageModel.load(tmp_path / "b", device="cpu")
    ids = np.random.default_rng(1).integers(0, V, 50).tolist()
    with torch.no_grad():
        expected = source(torch.tensor(ids).unsqueeze(1))[:, 0].numpy()
    np.testing.assert_allclose(runtime_logits(model, ids), expected, atol=1e-4)
    assert (model.manifest.architecture.tied, model.manifest.lowering == "cell") == (tied, kind == "RNN_RELU")
    assert model.tokenizer.encode("the lamp rain fell\n") == [0, 1, 8, 7, 4]
    assert (model.manifest.special_ids.start, model.manifest.special_ids.unknown) == (4, 7)


def test_the_dictionary_is_the_example_s(tmp_path: Path, corpus: Path) -> None:
    assert read_dictionary([corpus]) == WORDS
    assert read_dictionary([corpus / "train.txt", corpus / "valid.txt", corpus / "test.txt"]) == WORDS
    (tmp_path / "own.txt").write_bytes(b"\r\na b\x0cc\r\na")
    assert read_dictionary([tmp_path / "own.txt"]) == ["<eos>", "a", "b", "c"]


def test_a_vocabulary_file_serves_as_well(tmp_path: Path, cli: Cli) -> None:
    source = save(RNNModel("LSTM"), tmp_path / "m.safetensors")
    (tmp_path / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    flags = ("--vocabulary", tmp_path / "words.txt", "--title", "Words", "--name", "words")
    assert cli("import", source, "-o", tmp_path / "b", *flags).code == 0
    model = LanguageModel.load(tmp_path / "b", device="cpu")
    assert model.tokenizer.encode("a moth\n") == [6, 5, 4]
    assert model.manifest.name == "words"
    assert "sha256 = " in model.manifest.provenance.recipe
    assert "Words" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_a_whole_tokenizer_says_itself_what_a_line_end_is(tmp_path: Path, cli: Cli, cli_error: CliError) -> None:
    source, whole = save(RNNModel("LSTM"), tmp_path / "m.safetensors"), tmp_path / "tokenizer.json"
    whole.write_bytes(vocabulary_tokenizer(WORDS, line_end="<eos>").content)
    call = ("import", source, "-o", tmp_path / "b", "--vocabulary", whole)
    assert cli(*call).code == 0
    assert LanguageModel.load(tmp_path / "b", device="cpu").manifest.special_ids.start == 4
    assert "is a whole tokenizer" in cli_error(*call, "--force", "--line-end", "moth", code=2)[0]
    assert "is a whole tokenizer" in cli_error(*call, "--force", "--lowercase", code=2)[0]


Change = Callable[[dict[str, Tensor]], object]

BROKEN: dict[str, tuple[Change, str]] = {
    "missing": (lambda d: d.pop("rnn.bias_hh_l1"), "lacks rnn.bias_hh_l1"),
    "a layer missing": (lambda d: d.update({"rnn.weight_ih_l3": torch.ones(1)}), "lacks rnn.weight_ih_l2, rnn"),
    "extra": (lambda d: d.update({"pos.pe": torch.ones(1)}), "also has pos.pe"),
    "projected": (lambda d: d.update({"rnn.weight_hr_l0": torch.ones(1)}), "also has rnn.weight_hr_l0"),
    "none": (lambda d: d.clear(), "lacks encoder.weight"),
    "shape": (
        lambda d: d.update({"rnn.weight_hh_l1": torch.ones(24, 5)}),
        "rnn.weight_hh_l1 is [24, 5], not [24, 6]",
    ),
    "decoder": (lambda d: d.update({"decoder.weight": torch.ones(V, 5)}), f"decoder.weight is [{V}, 5], not [{V}, 6]"),
    "bias": (lambda d: d.update({"decoder.bias": torch.ones(3)}), f"decoder.bias is [3], not [{V}]"),
    "gates": (lambda d: d.update({"rnn.weight_hh_l0": torch.ones(12, 6)}), "no cell has 2 gates"),
    "no matrix": (lambda d: d.update({"encoder.weight": torch.ones(3)}), "encoder.weight is [3], no matrix"),
    "empty": (lambda d: d.update({"encoder.weight": torch.ones(0, 5)}), "encoder.weight is [0, 5], no matrix"),
    "integers": (
        lambda d: d.update({"decoder.bias": torch.ones(V, dtype=torch.int8)}),
        "decoder.bias is torch.int8, no floating point",
    ),
    "not finite": (lambda d: d["decoder.bias"].fill_(torch.nan), "decoder.bias holds values"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_checkpoints_that_are_not_the_example_s(tmp_path: Path, corpus: Path, cli_error: CliError, name: str) -> None:
    change, reason = BROKEN[name]
    tensors = load_file(save(RNNModel("LSTM"), tmp_path / "m.safetensors"))
    change(tensors)
    save_file(tensors, tmp_path / "m.safetensors")
    error, _ = cli_error("import", tmp_path / "m.safetensors", "-o", tmp_path / "b", "--corpus", corpus)
    assert reason in error
    assert names(tmp_path) == ["corpus", "m.safetensors"]


def test_flags_that_do_not_fit(tmp_path: Path, corpus: Path, cli_error: CliError) -> None:
    plain, lstm = (save(RNNModel(kind), tmp_path / f"{kind}.safetensors") for kind in ("RNN_TANH", "LSTM"))
    call = ("-o", tmp_path / "b", "--corpus", corpus)
    error, hint = cli_error("import", plain, *call, code=2)
    assert "do not tell tanh from ReLU" in error
    assert "--cell rnn-tanh" in hint
    assert "those of LSTM" in cli_error("import", lstm, *call, "--cell", "gru", code=2)[0]
    assert "--cell elman is unknown" in cli_error("import", lstm, *call, "--cell", "elman", code=2)[0]
    assert "--lowering fused" in cli_error("import", lstm, *call, "--lowering", "fused", code=2)[0]
    assert "no such token" in cli_error("import", lstm, *call, "--line-end", "</s>", code=2)[0]
    assert "holds no vocabulary" in cli_error("import", lstm, "-o", tmp_path / "b", code=2)[0]
    both = cli_error("import", lstm, *call, "--vocabulary", corpus / "train.txt", code=2)
    assert "either --vocabulary or" in both[1]
    flags = ("--corpus", corpus / "train.txt", "--corpus", corpus / "valid.txt")
    assert f"8 tokens, the embedding {V}" in cli_error("import", lstm, "-o", tmp_path / "b", *flags, code=2)[0]
    assert "missing.txt" in cli_error("import", lstm, "-o", tmp_path / "b", "--corpus", tmp_path / "missing.txt")[0]
    assert "b" not in names(tmp_path)


def test_an_existing_bundle_is_kept_unless_forced(tmp_path: Path, corpus: Path, cli: Cli, cli_error: CliError) -> None:
    source = save(RNNModel("GRU"), tmp_path / "m.safetensors")
    call = ("import", source, "-o", tmp_path / "b", "--corpus", corpus)
    assert cli(*call).code == 0
    assert "exists already" in cli_error(*call)[0]
    assert cli(*call, "--force").code == 0
    assert "not a bundle" in cli_error("import", source, "-o", corpus, "--corpus", corpus, "--force")[0]


class _Canary:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch", "torch, legacy", "pickle", "a zip"])
def test_pickles_are_never_opened(tmp_path: Path, corpus: Path, cli_error: CliError, form: str) -> None:
    canary, path = tmp_path / "ran", tmp_path / "model.pt"
    content = {"encoder.weight": _Canary(canary)}
    if form.startswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    elif form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("anything/data.pkl", pickle.dumps(content))
    error, hint = cli_error("import", path, "-o", tmp_path / "b", "--corpus", corpus)
    assert "is a pickle" in error
    assert not canary.exists()
    assert names(tmp_path) == ["corpus", "model.pt"]
    assert "torch.load('model.pt', weights_only=True)" in hint


def test_the_line_that_converts_a_pickle_works(
    tmp_path: Path, corpus: Path, cli: Cli, cli_error: CliError, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(RNNModel("LSTM", tied=True).state_dict(), tmp_path / "model.pt")
    _, hint = cli_error("import", tmp_path / "model.pt", "-o", tmp_path / "b", "--corpus", corpus)
    monkeypatch.chdir(tmp_path)
    exec(hint.split('python -c "')[1].split('"')[0], {})
    assert cli("import", tmp_path / "model.safetensors", "-o", tmp_path / "b", "--corpus", corpus).code == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 40) + b"{" + b" " * 60,
        struct.pack("<Q", 2) + b"{}",
        b"PK\x03\x04 no archive",
        b"\x89HDF\r\n\x1a\n no tree",
        json.dumps({"a": 1}).encode(),
    ],
)
def test_files_of_no_known_or_a_broken_format(
    tmp_path: Path, corpus: Path, cli_error: CliError, content: bytes
) -> None:
    (tmp_path / "m").write_bytes(content)
    cli_error(
        "import", tmp_path / "m", "-o", tmp_path / "b", "--corpus", corpus, code=2 if content[1:4] == b"HDF" else 1
    )
    assert names(tmp_path) == ["corpus", "m"]


def test_paths_that_are_no_file(tmp_path: Path, corpus: Path, cli_error: CliError) -> None:
    assert "is a folder" in cli_error("import", corpus, "-o", tmp_path / "b", "--corpus", corpus)[0]
    assert "cannot read" in cli_error("import", tmp_path / "none", "-o", tmp_path / "b", "--corpus", corpus)[0]
