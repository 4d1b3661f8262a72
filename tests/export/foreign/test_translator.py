"""Translators of a user's own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.errors import InvalidValueError, ParityError, UnknownTokenError
from rnn_edge.manifest import Lowering
from rnn_edge.translator import Translator
from rnn_edge.verification import verify
from rnn_edge_export import Encoder, Origin, export_translator, vocabulary_tokenizer
from rnn_edge_export.foreign.layers import LayerWeights
from rnn_edge_export.foreign.modules import layer_weights
from rnn_edge_export.quantisation.quantise import write_unmeasured
from tests.export.conftest import names
from tests.export.foreign.conftest import randomise
from tests.export.foreign.translators import (
    END,
    START,
    WORDS,
    Additive,
    BahdanauDecoder,
    Dot,
    FeedingBridge,
    FeedingDecoder,
    General,
    LuongDecoder,
    SumBridge,
    TopBridge,
    V,
)


class Parts(NamedTuple):
    """The three that make a translator."""

    encoder: Encoder
    attention: nn.Module
    decoder: nn.Module


def embed(width: int = 5) -> nn.Embedding:
    return nn.Embedding(V, width)


def combinations() -> dict[str, tuple[Parts, Lowering]]:
    bidirectional: dict[str, Any] = {"bidirectional": True}
    return {
        "gru, general": (
            Parts(
                Encoder(embed(), nn.GRU(5, 4, 2, batch_first=True, dropout=0.2, **bidirectional), TopBridge(4, 6, 2)),
                General(6, 8),
                LuongDecoder(nn.GRU(5, 6, 2, dropout=0.2), 6, 8, tied=True),
            ),
            "operator",
        ),
        "lstm, additive, batch first": (
            Parts(
                Encoder(embed(), nn.LSTM(5, 4, bias=False, **bidirectional), TopBridge(4, 6, 2, lstm=True)),
                Additive(6, 8),
                LuongDecoder(nn.LSTM(5, 6, 2, batch_first=True), 6, 8),
            ),
            "operator",
        ),
        "one direction, no bridge": (
            Parts(Encoder(embed(), nn.LSTM(5, 6, 2)), Dot(), LuongDecoder(nn.LSTM(5, 6, 2), 6, 6)),
            "operator",
        ),
        "directions added": (
            Parts(
                Encoder(embed(), nn.GRU(5, 6, 2, **bidirectional), SumBridge()),
                Dot(),
                LuongDecoder(nn.GRU(5, 6, 2), 6, 6),
            ),
            "operator",
        ),
        "attention first, relu encoder": (
            Parts(Encoder(embed(), nn.RNN(5, 6, nonlinearity="relu")), Additive(6, 6), BahdanauDecoder(6, 6)),
            "operator",
        ),
        "input feeding": (
            Parts(Encoder(embed(), nn.GRU(5, 6), FeedingBridge()), Additive(6, 6), FeedingDecoder(6, 6)),
            "operator",
        ),
        "relu decoder": (
            Parts(Encoder(embed(), nn.RNN(5, 6)), Dot(), LuongDecoder(nn.RNN(5, 6, nonlinearity="relu"), 6, 6)),
            "cell",
        ),
    }


NAMES = list(combinations())


def parts(name: str) -> Parts:
    found = combinations()[name][0]
    randomise(found.encoder.embedding, found.encoder.rnn, found.attention, found.decoder)
    return found


def export(found: Parts, folder: Path, **options: Any) -> Translator:
    export_translator(*found, WORDS, WORDS, folder, start="<s>", end="</s>", **options)
    return Translator.load(folder, device="cpu")


@torch.no_grad()
def greedy(found: Parts, source: list[int], steps: int) -> list[int]:
    """The user's own modules, one sentence, nothing of ours but the softmax of the attention."""
    encoder, attention, decoder = found
    for module in (encoder.rnn, attention, decoder):
        module.eval()
    outputs, final = encoder.rnn(encoder.embedding(torch.tensor(source)).unsqueeze(0 if encoder.rnn.batch_first else 1))
    outputs = outputs if encoder.rnn.batch_first else outputs.transpose(0, 1)
    memory, state = encoder.bridge(outputs, final) if encoder.bridge else (outputs, final)
    keys = attention.keys(memory) if hasattr(attention, "keys") else memory  # type: ignore[operator]

    def attend(query: Tensor) -> Tensor:
        weights = attention(query, keys).softmax(dim=1)
        return torch.einsum("bs,bsm->bm", weights, memory)

    tokens = [START]
    while len(tokens) <= steps and tokens[-1] != END:
        logits, state = decoder(torch.tensor(tokens[-1:]), state, attend)
        tokens.append(int(logits.argmax()))
    return tokens[1:]


@pytest.mark.parametrize("name", NAMES)
def test_translators_of_many_kinds(name: str, tmp_path: Path) -> None:
    """Parity over batches of sentences and 32 steps is part of every export."""
    found, lowering = parts(name), combinations()[name][1]
    model = export(found, tmp_path / "b")
    assert model.manifest.lowering == lowering
    assert all(finding.passed for finding in verify(model.bundle, device="cpu"))
    for text in ("w1 w2 w3", "w19", "w4 w4 w4 w8 w2 w7 w7 w0"):
        source = model.source_tokenizer.encode(text)
        options = model.options(maximum_ratio=2.0)
        limit = model.limits([[*source, END]], options)[0]
        expected = [token for token in greedy(found, [*source, END], limit) if token != END]
        assert model.translate(text, options).text == model.tokenizer.decode(expected).strip()
    beam = model.translate("w1 w2 w3", model.options(beam=4, n_best=4)).sentences[0].candidates
    assert [item.score for item in beam] == sorted((item.score for item in beam), reverse=True)


@pytest.mark.parametrize("name", ["gru, general", "lstm, additive, batch first"])
def test_the_cell_lowering(name: str, tmp_path: Path) -> None:
    model = export(parts(name), tmp_path / "b", lowering="cell")
    assert b"Sigmoid" in model.bundle.graph("decoder")


def test_a_projected_decoder(tmp_path: Path) -> None:
    class Bridge(nn.Module):
        def forward(self, outputs: Tensor, final: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            return outputs, (final, torch.cat([final, final], dim=2))

    found = Parts(Encoder(embed(), nn.GRU(5, 4, 2), Bridge()), Dot(), LuongDecoder(nn.LSTM(5, 8, 2, proj_size=4), 4, 4))
    randomise(found.encoder.rnn, found.decoder)
    model = export(found, tmp_path / "b")
    assert [(pair.input, pair.width) for pair in model.manifest.state] == [
        ("s0_0", 4),
        ("s0_1", 4),
        ("s1_0", 8),
        ("s1_1", 8),
    ]


def test_what_the_bundle_says(tmp_path: Path) -> None:
    found = parts("gru, general")
    origin = Origin(title="Words to words", notes="By hand.")
    model = export(found, tmp_path / "b", name="words", origin=origin, longest=7, source_language="en")
    manifest = model.manifest
    assert manifest.source is not None
    encoder = manifest.architecture.encoder
    assert encoder is not None
    assert (encoder.hidden, encoder.layers, encoder.directions, encoder.attention) == (4, 2, 2, "own")
    assert (manifest.name, manifest.architecture.tied, manifest.architecture.layers) == ("words", True, 2)
    assert (manifest.source.longest, manifest.source.language, manifest.source.end) == (7, "en", END)
    assert (manifest.special_ids.start, manifest.special_ids.end, manifest.special_ids.unknown) == (START, END, 1)
    counted = {
        id(item): item.numel()
        for part in (found.encoder.embedding, found.encoder.rnn, found.attention, found.decoder)
        for item in part.parameters()
    }
    assert found.encoder.bridge is not None
    bridge = sum(item.numel() for item in found.encoder.bridge.parameters())
    assert manifest.architecture.parameters == sum(counted.values()) + bridge
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert "bidirectional GRU encoder 2 × 2 × 4, decoder GRU 2 × 6, own attention" in card
    assert len(model.translate("w1 w2 w3 w4 w5 w6 w7 w8 w9").sentences[0].text.split()) > 0


def test_the_end_is_no_text(tmp_path: Path) -> None:
    found = parts("gru, general")
    output = cast(nn.Linear, found.decoder.output)
    with torch.no_grad():
        output.bias[END] = 50
    model = export(found, tmp_path / "b")
    events = list(model.stream("w1 w2"))
    assert [event.token for event in events if event.token is not None] == [END]
    assert "".join(event.text for event in events) == model.translate("w1 w2").text == ""


def test_one_vocabulary_for_both_sides_and_one_for_each(tmp_path: Path) -> None:
    shared = vocabulary_tokenizer(WORDS)
    found = parts("one direction, no bridge")
    export_translator(*found, shared, shared, tmp_path / "shared", start="<s>", end="</s>")
    export_translator(*found, shared, WORDS[::-1], tmp_path / "two", start="<s>", end="</s>", source_end="w3")
    assert "source_tokenizer.json" not in names(tmp_path / "shared")
    assert "source_tokenizer.json" in names(tmp_path / "two")
    two = Translator.load(tmp_path / "two", device="cpu")
    assert two.manifest.special_ids.end == V - 1 - END
    assert two.manifest.source is not None
    assert two.manifest.source.end == WORDS.index("w3")


def test_words_that_no_vocabulary_has(tmp_path: Path) -> None:
    """Without a token for others our own sentences cannot be encoded; random ones prove as much."""
    words = [word.replace("<unk>", "wx") for word in WORDS]
    found = parts("one direction, no bridge")
    bundle = export_translator(*found, words, words, tmp_path / "b", start="<s>", end="</s>")
    assert all(finding.passed for finding in verify(bundle, device="cpu"))
    with pytest.raises(UnknownTokenError, match="never seen 'house'"):
        Translator.load(tmp_path / "b", device="cpu").translate("house w1")


@pytest.mark.parametrize("name", ["gru, general", "relu decoder", "directions added"])
def test_eight_bits_keep_to_what_is_proven(name: str, tmp_path: Path) -> None:
    rows = {
        "gru, general": (
            Parts(
                Encoder(embed(16), nn.GRU(16, 32, bidirectional=True), TopBridge(32, 64, 1)),
                General(64, 64),
                LuongDecoder(nn.GRU(16, 64), 64, 64, 16),
            ),
            True,
        ),
        "relu decoder": (
            Parts(
                Encoder(embed(16), nn.RNN(16, 64)), Dot(), LuongDecoder(nn.RNN(16, 64, nonlinearity="relu"), 64, 64, 16)
            ),
            False,
        ),
        "directions added": (  # neither memory nor first state stay within 1
            Parts(
                Encoder(embed(16), nn.GRU(16, 64, bidirectional=True), Tripled()),
                Dot(),
                LuongDecoder(nn.GRU(16, 64), 64, 64, 16),
            ),
            False,
        ),
    }
    found, rounded = rows[name]
    model = export(found, tmp_path / "fp32", lowering="cell")
    small = write_unmeasured(model.bundle, tmp_path / "int8", "int8")
    graphs = [EncoderDecoderGraphs(item, device="cpu") for item in (model.bundle, small)]
    assert (b"MatMulInteger" in small.graph("decoder")) == rounded  # the one product that reads the state
    sources = [[5, 7, 9, END], [8, END]]
    steppers = [graph.stepper(graph.encode(sources)) for graph in graphs]
    for token in range(4, 12):
        exact, other = (stepper.step(token).copy() for stepper in steppers)
        assert np.abs(exact - other).max() < 0.1 * max(1, np.abs(exact).max())


class Tripled(nn.Module):
    """A first state outside of what a GRU ever makes."""

    def forward(self, outputs: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
        ahead, behind = outputs.chunk(2, dim=2)
        return 3 * ahead + 3 * behind, 3 * final[0:1]


class Silent(LuongDecoder):
    def forward(self, token: Tensor, state: Any, attend: Any) -> Any:
        return super().forward(token, state, lambda query: query)


class Forgetful(LuongDecoder):
    def forward(self, token: Tensor, state: Any, attend: Any) -> Any:
        y, _ = self.rnn(self.embedding(token).unsqueeze(0))
        return self.output(self.combine(torch.cat([y[0], attend(y[0])], dim=1))), state


class Branching(LuongDecoder):
    def forward(self, token: Tensor, state: Any, attend: Any) -> Any:
        if bool((token == 3).any()):
            state = torch.zeros_like(state)
        return super().forward(token, state, attend)


class Shrinking(LuongDecoder):
    def forward(self, token: Tensor, state: Any, attend: Any) -> Any:
        logits, state = super().forward(token, state, attend)
        return logits, state[:1]


class Short(Dot):
    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        return super().forward(query, keys)[:, :1]


def plain(**changes: Any) -> Parts:
    found = Parts(Encoder(embed(), nn.GRU(5, 6, 2)), Dot(), LuongDecoder(nn.GRU(5, 6, 2), 6, 6))
    return found._replace(**changes)


class Stateless(nn.Module):
    def forward(self, outputs: Tensor, final: Tensor) -> tuple[Tensor, str]:
        return outputs, "none"


def decoder(kind: type[LuongDecoder]) -> LuongDecoder:
    return kind(nn.GRU(5, 6, 2), 6, 6)


REFUSED: dict[str, tuple[Parts, str]] = {
    "attention never asked": (plain(decoder=decoder(Silent)), "never asks the attention"),
    "state not handed on": (plain(decoder=decoder(Forgetful)), "without a state, which so forgets"),
    "branches": (plain(decoder=decoder(Branching)), "cannot become a graph"),
    "another state": (plain(decoder=decoder(Shrinking)), "turns a state of shapes"),
    "other scores": (plain(attention=Short()), r"scores of shape \[2, 1\], not \[2, 3\]"),
    "widths": (plain(decoder=LuongDecoder(nn.GRU(5, 7, 2), 7, 6)), "do not run together"),
    "no state": (plain(encoder=Encoder(embed(), nn.GRU(5, 6, 2), Stateless())), "first state is no tensor"),
    "bidirectional decoder": (
        plain(decoder=LuongDecoder(nn.GRU(5, 6, 2, bidirectional=True), 12, 6)),
        "decoder has a bidirectional module",
    ),
    "no recurrent decoder": (plain(decoder=nn.Linear(5, V)), "decoder has no recurrent module"),
    "encoder of another kind": (plain(encoder=Encoder(embed(), cast(Any, nn.Linear(5, 6)))), "rnn is nn.Linear, not"),
    "projected encoder": (
        plain(encoder=Encoder(embed(), nn.LSTM(5, 8, 2, proj_size=6), TopBridge(6, 6, 2))),
        "has a projection, which no operator over a sequence has",
    ),
    "another vocabulary": (plain(encoder=Encoder(nn.Embedding(9, 5), nn.GRU(5, 6, 2))), "embedding 9"),
    "another output": (plain(decoder=nn.Sequential(decoder(LuongDecoder))), "do not run together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str, tmp_path: Path) -> None:
    found, reason = REFUSED[name]
    with pytest.raises(InvalidValueError, match=reason) as caught:
        export(found, tmp_path / "b")
    assert caught.value.hint
    assert names(tmp_path) == []


def test_tokens_that_the_vocabularies_lack(tmp_path: Path) -> None:
    given: tuple[tuple[dict[str, Any], str], ...] = (
        ({"start": "<go>", "end": "</s>"}, "start is '<go>'"),
        ({"start": "<s>", "end": "<stop>"}, "is '<stop>', which the vocabulary lacks"),
        ({"start": "<s>", "end": "</s>", "source_end": "<stop>"}, "source_end is '<stop>'"),
        ({"start": "<s>", "end": "</s>", "longest": 0}, "longest is 0"),
    )
    for options, reason in given:
        with pytest.raises(InvalidValueError, match=reason):
            export_translator(*plain(), WORDS, WORDS, tmp_path / "b", **options)
    with pytest.raises(InvalidValueError, match=rf"logits of shape \[2, {V}\], not \[2, 2"):
        export_translator(*plain(), WORDS, [*WORDS, "more"], tmp_path / "b", start="<s>", end="</s>")
    assert names(tmp_path) == []


def test_a_wrong_graph_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(module: nn.Module, layer: int = 0, *, backward: bool = False) -> LayerWeights:
        return layer_weights(module, layer, backward=not backward and bool(getattr(module, "bidirectional", False)))

    monkeypatch.setattr("rnn_edge_export.foreign.encoder_decoder.layer_weights", swapped)
    with pytest.raises(ParityError, match="encoder: memory: differs by"):
        export(parts("gru, general"), tmp_path / "b")
    assert names(tmp_path) == []
