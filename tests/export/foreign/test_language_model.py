"""Language models of a user's own modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rnn_edge.errors import InvalidValueError, ParityError
from rnn_edge.language_model import LanguageModel
from rnn_edge.manifest import Lowering, Metric
from rnn_edge.tokenizer import Tokenizer, character_tokenizer
from rnn_edge.verification import verify
from rnn_edge_export import Origin, export_language_model
from rnn_edge_export.foreign.layers import LayerWeights, lower_weights
from rnn_edge_export.quantisation.quantise import write_unmeasured
from tests.export.conftest import names
from tests.export.foreign.conftest import LETTERS, randomise, runtime_logits

V = len(LETTERS)


def parts(rnn: nn.Module, width: int, **options: Any) -> tuple[nn.Embedding, nn.Linear]:
    embedding, output = nn.Embedding(V, 5, **options), nn.Linear(width, V)
    randomise(embedding, rnn, output)
    return embedding, output


GRID: dict[str, tuple[nn.Module | list[nn.Module], int, Lowering]] = {
    "lstm, two layers, dropout": (nn.LSTM(5, 8, 2, dropout=0.5), 8, "operator"),
    "lstm, batch first, no bias": (nn.LSTM(5, 8, 2, batch_first=True, bias=False), 8, "operator"),
    "lstm, projected": (nn.LSTM(5, 8, 2, proj_size=3), 3, "cell"),
    "lstm, projected, no bias": (nn.LSTM(5, 8, proj_size=3, bias=False, batch_first=True), 3, "cell"),
    "gru, three layers": (nn.GRU(5, 8, 3), 8, "operator"),
    "gru, no bias": (nn.GRU(5, 8, bias=False), 8, "operator"),
    "rnn": (nn.RNN(5, 8, 2), 8, "operator"),
    "rnn, relu": (nn.RNN(5, 8, 2, nonlinearity="relu", batch_first=True), 8, "cell"),
    "unequal widths": ([nn.GRU(5, 9), nn.Dropout(), nn.GRU(9, 4, 2, batch_first=True), nn.GRU(4, 6)], 6, "operator"),
    "a module list": (nn.ModuleList([nn.LSTM(5, 9, proj_size=2), nn.LSTM(2, 3)]), 3, "cell"),
    "a sequence": (nn.Sequential(nn.RNN(5, 3), nn.RNN(3, 8)), 8, "operator"),
    "lstm cells": ([nn.LSTMCell(5, 8), nn.LSTMCell(8, 3, bias=False)], 3, "operator"),
    "gru cell": (nn.GRUCell(5, 8), 8, "operator"),
    "rnn cell, relu": (nn.RNNCell(5, 8, nonlinearity="relu"), 8, "cell"),
}


@pytest.mark.parametrize("name", GRID)
def test_whatever_can_run_step_by_step(name: str, tmp_path: Path) -> None:
    """Parity with the modules themselves over 256 steps is part of every export: what is there has passed."""
    rnn, width, lowering = GRID[name]
    stack = nn.ModuleList(rnn) if isinstance(rnn, list) else rnn
    embedding, output = parts(stack, width)
    bundle = export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert bundle.manifest.lowering == lowering
    assert all(finding.passed for finding in verify(bundle, device="cpu"))
    if lowering == "operator":
        other = export_language_model(embedding, rnn, output, LETTERS, tmp_path / "c", lowering="cell")
        assert "MatMul" in str(other.graph("step"))
    else:
        with pytest.raises(InvalidValueError, match="which the operator lowering lacks"):
            export_language_model(embedding, rnn, output, LETTERS, tmp_path / "c", lowering="operator")
        assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("options", [{"batch_first": True}, {"num_layers": 3, "dropout": 0.5}, {"proj_size": 4}])
def test_greedy_texts_are_those_of_the_modules(options: dict[str, Any], tmp_path: Path) -> None:
    rnn = nn.LSTM(5, 24, **options)
    embedding, output = parts(rnn, options.get("proj_size", 24))
    export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    model = LanguageModel.load(tmp_path / "b", device="cpu")
    events = list(model.generate("abba", max_tokens=100, temperature=0))
    ids = [event.token for event in events if event.token is not None]
    text, state = [LETTERS.index(letter) for letter in "abba"], None
    rnn.eval()
    with torch.no_grad():
        fed, expected = text, []
        for _ in range(100):
            tokens = torch.tensor([fed])
            x = embedding(tokens if rnn.batch_first else tokens.t())
            y, state = rnn(x, state)
            expected.append(int(output(y[:, -1] if rnn.batch_first else y[-1]).argmax()))
            fed = expected[-1:]
    assert ids == expected


def test_what_the_embedding_does(tmp_path: Path) -> None:
    """``max_norm`` scales rows when they are looked up; ``padding_idx`` matters in training alone."""
    rnn = nn.GRU(5, 8)
    embedding, output = parts(rnn, 8, max_norm=0.5, norm_type=1.0, padding_idx=2)
    weights = embedding.weight.detach().clone()
    assert (weights.norm(p=1, dim=1) > 0.5).all()
    export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert embedding.weight.equal(weights)
    ids = list(range(V))
    with torch.no_grad():
        expected = output(rnn(embedding(torch.tensor(ids)).unsqueeze(1))[0])[:, 0].numpy()
    found = runtime_logits(LanguageModel.load(tmp_path / "b", device="cpu"), ids)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    output.weight = nn.Parameter(torch.zeros(V, 5))
    embedding.weight = output.weight
    with pytest.raises(InvalidValueError, match="max_norm and is tied"):
        export_language_model(embedding, nn.GRU(5, 5), output, LETTERS, tmp_path / "c")


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_widened_or_narrowed(kind: torch.dtype, tmp_path: Path) -> None:
    rnn = nn.LSTM(5, 8)
    embedding, output = parts(rnn, 8)
    for module in (embedding, rnn, output):
        module.to(kind).train()
    bundle = export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert (rnn.weight_ih_l0.dtype, rnn.training) == (kind, True)  # the user's own are left alone
    assert bundle.manifest.precision == "fp32"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_modules_on_a_gpu(tmp_path: Path) -> None:
    rnn = nn.LSTM(5, 8, 2)
    embedding, output = parts(rnn, 8)
    for module in (embedding, rnn, output):
        module.cuda()
    export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert rnn.weight_ih_l0.is_cuda


def test_what_the_bundle_says(tmp_path: Path) -> None:
    rnn = nn.LSTM(6, 6, 2, bias=False)
    embedding, output = nn.Embedding(V, 6), nn.Linear(6, V, bias=False)
    output.weight = embedding.weight
    origin = Origin(
        title="A tiny model",
        notes="Trained on a whim.",
        metrics=(Metric("loss", 1.5, "nats", "letters", "test", "by hand"),),
        data_title="letters",
        data_licence="none",
    )
    bundle = export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b", name="tiny", end="j", origin=origin)
    manifest = bundle.manifest
    assert (manifest.name, manifest.architecture.tied, manifest.architecture.layers) == ("tiny", True, 2)
    assert manifest.architecture.parameters == 6 * V + 2 * 2 * 4 * 36
    assert [pair.input for pair in manifest.state] == ["h0", "c0", "h1", "c1"]
    assert (manifest.special_ids.start, manifest.special_ids.end) == (0, V - 1)
    assert manifest.tokenizer.kind == "character"
    assert (manifest.metrics[0].value, manifest.provenance.data_licence) == (1.5, "none")
    assert "LSTM(6, 6, num_layers=2, bias=False)" in manifest.provenance.recipe
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert "A tiny model" in card
    assert "Trained on a whim." in card
    assert "SHA-256 of the data | not recorded" in card


def test_weights_that_only_look_tied(tmp_path: Path) -> None:
    rnn = nn.RNN(6, 6)
    embedding, output = nn.Embedding(V, 6), nn.Linear(6, V)
    output.weight = nn.Parameter(embedding.weight.detach().clone())
    bundle = export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert bundle.manifest.architecture.tied is False


class _Scaled(nn.Embedding):
    """An embedding that does more than look up."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(tokens)


def test_a_module_with_a_forward_of_its_own_fails_parity(tmp_path: Path) -> None:
    rnn = nn.GRU(5, 8)
    _, output = parts(rnn, 8)
    with pytest.raises(ParityError, match="logits after 1 step"):
        export_language_model(_Scaled(V, 5), rnn, output, LETTERS, tmp_path / "b")
    assert names(tmp_path) == []


def _lstm(**options: Any) -> nn.LSTM:
    return nn.LSTM(5, 8, **options)


REFUSED: dict[str, tuple[Any, Any, Any, str]] = {
    "bidirectional": (nn.Embedding(V, 5), _lstm(bidirectional=True), nn.Linear(16, V), "needs the end of a text"),
    "no recurrent module": (nn.Embedding(V, 5), nn.Linear(5, 8), nn.Linear(8, V), "nn.Linear is no recurrent module"),
    "nothing": (nn.Embedding(V, 5), [nn.Dropout()], nn.Linear(8, V), "no recurrent module"),
    "mixed": (nn.Embedding(V, 5), [_lstm(), nn.GRU(8, 8)], nn.Linear(8, V), "mix lstm and gru"),
    "out of order": (nn.Embedding(V, 5), [_lstm(), nn.LSTM(9, 8)], nn.Linear(8, V), "module 1 reads 9 values"),
    "embedding too wide": (
        nn.Embedding(V, 6),
        _lstm(),
        nn.Linear(8, V),
        "is 6 wide, the first layer reads 5",
    ),
    "output too wide": (nn.Embedding(V, 5), _lstm(), nn.Linear(9, V), "gives 8 values, the output layer reads 9"),
    "output of another size": (nn.Embedding(V, 5), _lstm(), nn.Linear(8, V + 1), f"has {V} rows.* gives {V + 1}"),
    "another vocabulary": (nn.Embedding(9, 5), _lstm(), nn.Linear(8, 9), f"vocabulary has {V} tokens, the embedding 9"),
    "no embedding": (nn.EmbeddingBag(V, 5), _lstm(), nn.Linear(8, V), "embedding is nn.EmbeddingBag, not nn.Embedding"),
    "no output layer": (nn.Embedding(V, 5), _lstm(), nn.Sequential(nn.Linear(8, V)), "output is nn.Sequential"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str, tmp_path: Path) -> None:
    embedding, rnn, output, reason = REFUSED[name]
    with pytest.raises(InvalidValueError, match=reason) as caught:
        export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert caught.value.hint
    assert names(tmp_path) == []


def test_other_values_that_are_refused(tmp_path: Path) -> None:
    rnn = nn.GRU(5, 8)
    embedding, output = parts(rnn, 8)
    given: Iterable[tuple[dict[str, Any], str]] = (
        ({"lowering": "fused"}, "lowering 'fused' is unknown"),
        ({"start": "<s>"}, "start is '<s>', which the vocabulary lacks"),
        ({"end": "z"}, "end is 'z'"),
    )
    for options, reason in given:
        with pytest.raises(InvalidValueError, match=reason):
            export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b", **options)
    dict(rnn.named_parameters())["weight_hh_l0"].data[3, 2] = torch.inf
    with pytest.raises(InvalidValueError, match=r"rnn\.0\.weight_hh_l0 holds values that are not finite"):
        export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert names(tmp_path) == []


def test_a_state_that_grows_without_end_stops_the_export(tmp_path: Path) -> None:
    rnn = nn.RNN(5, 8, nonlinearity="relu")
    embedding, output = parts(rnn, 8)
    dict(rnn.named_parameters())["weight_hh_l0"].data.fill_(2.0)
    with pytest.raises(ParityError, match=r"own logits are not finite after \d+ steps"):
        export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")


def test_every_form_of_a_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Encoder

    content = character_tokenizer("".join(LETTERS)).content
    (tmp_path / "tokenizer.json").write_bytes(content)
    rnn = nn.GRU(5, 8)
    embedding, output = parts(rnn, 8)
    forms: list[Any] = [
        Tokenizer(content),
        Encoder.from_str(content.decode()),
        content,
        tmp_path / "tokenizer.json",
        str(tmp_path / "tokenizer.json"),
        LETTERS,
        {letter: index for index, letter in enumerate(LETTERS)},
    ]
    for form in forms:
        bundle = export_language_model(embedding, rnn, output, form, tmp_path / "b", force=True)
        assert LanguageModel.load(bundle.path, device="cpu").tokenizer.encode("\nab") == [0, 2, 3]


@pytest.mark.parametrize(("name", "rounded"), [("relu", False), ("projected", False), ("gru", True), ("lstm", True)])
def test_eight_bits_never_clip_a_state_without_bound(name: str, rounded: bool, tmp_path: Path) -> None:
    """What has a bound is rounded; what has none is not, however its tensors are called."""
    read = (
        16 if rounded else -(-4096 // V)
    )  # a table so large is rounded: a bundle in which nothing is would be refused
    rnn = {
        "relu": nn.RNN(read, 64, nonlinearity="relu"),
        "projected": nn.LSTM(read, 64, proj_size=48),
        "gru": nn.GRU(16, 64),
        "lstm": nn.LSTM(16, 64),
    }[name]
    width = 48 if name == "projected" else 64
    embedding, output = nn.Embedding(V, read), nn.Linear(width, V)
    randomise(embedding, rnn, output)
    if not rounded:
        embedding.weight.data = torch.randint(-127, 128, (V, read)) / 127
        embedding.weight.data[:, 0] = 1
    for item, parameter in rnn.named_parameters():
        if not rounded and item.startswith("weight_hh"):
            parameter.data *= 0.1  # so that nothing runs away
        if item.startswith("weight_hr"):
            parameter.data *= 4
    bundle = export_language_model(embedding, rnn, output, LETTERS, tmp_path / "fp32", lowering="cell")
    small = write_unmeasured(bundle, tmp_path / "int8", "int8")
    assert ("MatMulInteger" in str(small.graph("step"))) == rounded
    ids = np.random.default_rng(1).integers(0, V, 40).tolist()
    models = [LanguageModel.load(item.path, device="cpu") for item in (bundle, small)]
    exact, found = (runtime_logits(model, ids) for model in models)
    if not rounded:
        largest = max(np.abs(tensor).max() for tensor in states(models[0], ids) if tensor.shape[1] == width)
        assert largest > 1.5  # beyond what a range by name would hold
    assert np.abs(found - exact).max() < (0.5 if rounded else 1e-4) * np.abs(exact).max()


def states(model: LanguageModel, ids: list[int]) -> list[np.ndarray]:
    stepper = model.graph.stepper()
    found = []
    for token in ids:
        stepper.step(token)
        found.append(stepper.state().tensors["h0"])
    return found


def test_the_step_is_compared_with_the_modules_and_not_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn = nn.LSTM(5, 8, 2, proj_size=3)
    embedding, output = parts(rnn, 3)

    def wrong(weights: LayerWeights, lowering: Lowering) -> nn.Module:
        i, f, g, o = weights.input.chunk(4)
        return lower_weights(replace(weights, input=torch.cat([f, i, g, o])), lowering)

    monkeypatch.setattr("rnn_edge_export.foreign.language_model.lower_weights", wrong)
    with pytest.raises(ParityError, match="differs by"):
        export_language_model(embedding, rnn, output, LETTERS, tmp_path / "b")
    assert names(tmp_path) == []
