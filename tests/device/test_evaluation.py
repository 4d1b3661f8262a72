"""Losses, BLEU and chrF, against loops and sums by hand."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest

from rnn_edge.errors import MissingDependencyError
from rnn_edge.evaluation import Loss, bleu, carried_loss, chrf, cold_block_loss, evaluate_translator
from rnn_edge.language_model import LanguageModel
from rnn_edge.translation import TranslationOptions
from rnn_edge.translator import Translator
from tests.device.tiny import DATA

TEXT = (DATA / "corpus.txt").read_text(encoding="utf-8")[1000:1400]
PAIRS = [
    ("The keeper sees a boat.", "Le gardien voit un bateau."),
    ("Marta paints the lighthouse.", "Marta peint le bateau."),
    ("She sells the old house. Yes?", "Elle vend la maison."),
    ("Tobias", ""),
]


def ignore(done: int, total: int) -> None:
    pass


def losses(model: LanguageModel, ids: list[int]) -> list[float]:
    """Of each token but the first, fed from a zero state."""
    stepper, found = model.graph.stepper(), []
    for token, following in pairwise(ids):
        logits = stepper.step(token)[0].astype(np.float64)
        found.append(float(np.log(np.exp(logits).sum()) - logits[following]))
    return found


# --- language models


def test_loss_with_the_state_carried(lstm: LanguageModel) -> None:
    ids = lstm.tokenizer.encode(TEXT)
    calls: list[tuple[int, int]] = []
    found = carried_loss(lstm, ids, 500, lambda done, total: calls.append((done, total)))
    assert found.nats == pytest.approx(np.mean(losses(lstm, ids)), rel=1e-5)
    assert (found.tokens, found.characters) == (399, 500)
    assert found.method == "state carried from a zero start"
    assert calls == [(0, 399)]
    assert 0 < found.seconds < 60


@pytest.mark.parametrize("block", [1, 7, 64, 399])
def test_loss_of_cold_blocks(gru: LanguageModel, block: int) -> None:
    ids = gru.tokenizer.encode(TEXT)
    calls: list[tuple[int, int]] = []
    found = cold_block_loss(gru, ids, 400, block, lambda done, total: calls.append((done, total)))
    blocks = 399 // block
    # Each block begins anew; the token after its last one is its last target.
    parts = [losses(gru, ids[index * block : (index + 1) * block + 1]) for index in range(blocks)]
    assert found.nats == pytest.approx(np.mean(np.concatenate(parts)), rel=1e-5)
    assert found.tokens == blocks * block
    assert found.characters == round(400 * blocks * block / 399)
    assert found.method == f"consecutive blocks of {block} from a zero state"
    assert calls[-1] == (blocks * block, blocks * block)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_the_state_is_worth_something(lstm: LanguageModel) -> None:
    ids = lstm.tokenizer.encode(TEXT)
    assert carried_loss(lstm, ids, 399, ignore).nats < cold_block_loss(lstm, ids, 399, 4, ignore).nats


def test_units() -> None:
    loss = Loss("by hand", math.log(8), tokens=50, characters=200, seconds=1.0)
    assert loss.bits == pytest.approx(3)
    assert loss.perplexity == pytest.approx(8)
    assert loss.bits_per_character == pytest.approx(0.75)
    assert math.isfinite(Loss("by hand", 1e6, 1, 1, 1.0).perplexity)


# --- scores of translations


def test_bleu_by_hand() -> None:
    score = bleu(["the cat sat on the mat"], ["the cat sat on a mat"])
    assert score.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-3)
    assert score.name == "BLEU"
    assert score.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    # A short translation pays e^(1 - 5/4) for its brevity.
    assert bleu(["a b c d"], ["a b c d e"]).value == pytest.approx(100 * math.exp(1 - 5 / 4), abs=1e-3)
    assert bleu(["The cat is here"], ["The cat is here"]).value == pytest.approx(100)
    assert bleu(["the cat is here"], ["The Cat Is Here"]).value < 10  # cased


def test_bleu_of_text_that_is_tokenised(caplog: pytest.LogCaptureFixture) -> None:
    tokenised = [f"it 's number {number} of 200 , he said ." for number in range(200)]
    joined = [line.replace(" 's", "'s").replace(" ,", ",").replace(" .", ".") for line in tokenised]
    assert bleu(tokenised, joined, "none").value < 60
    assert bleu(tokenised, tokenised, "none").value == pytest.approx(100)
    assert bleu(tokenised, tokenised, "none").signature.split("|")[3] == "tok:none"
    assert bleu(tokenised, tokenised).value == pytest.approx(100)
    assert caplog.records == []  # no advice to tokenise less


def test_chrf() -> None:
    assert chrf(["Le gardien"], ["Le gardien"]).value == pytest.approx(100)
    assert chrf(["abc"], ["xyz"]).value == 0
    part = chrf(["Le gardien voit"], ["Le gardien vend"])
    assert 40 < part.value < 100
    assert part.name == "chrF"
    assert "nc:6|nw:0" in part.signature


@pytest.mark.parametrize("options", [TranslationOptions(batch_size=2), TranslationOptions(beam=3)], ids=["1", "3"])
def test_evaluation_of_a_translator(translator: Translator, options: TranslationOptions) -> None:
    calls: list[tuple[int, int]] = []
    found = evaluate_translator(translator, PAIRS, options, "13a", lambda done, total: calls.append((done, total)))
    # A line is a sentence here, whatever stands in it: it is not split.
    expected = [item.text for item in translator.translate_sentences([source for source, _ in PAIRS], options)]
    references = [target for _, target in PAIRS]
    assert list(found.translations) == expected
    assert found.scores == (bleu(expected, references), chrf(expected, references))
    scored = translator.score(PAIRS)
    tokens = sum(count for _, count in scored)
    assert found.reference.nats == pytest.approx(-sum(value for value, _ in scored) / tokens, rel=1e-5)
    assert (found.reference.tokens, found.reference.characters) == (tokens, sum(map(len, references)))
    assert found.words == sum(len(line.split()) for line in expected)
    assert found.seconds > 0
    assert calls == [(4, 4)]


def test_more_pairs_than_go_through_at_once(translator: Translator) -> None:
    calls: list[int] = []
    options = TranslationOptions(maximum_ratio=0)
    found = evaluate_translator(translator, PAIRS[:2] * 300, options, "none", lambda done, _: calls.append(done))
    assert calls == [512, 600]
    assert len(set(found.translations[::2])) == len(set(found.translations[1::2])) == 1


def test_sacrebleu_is_missed_before_the_work(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    calls: list[int] = []
    with pytest.raises(MissingDependencyError) as caught:
        evaluate_translator(translator, PAIRS, TranslationOptions(), "13a", lambda done, _: calls.append(done))
    assert caught.value.message == "sacrebleu is not installed; scoring translations needs it"
    assert caught.value.hint == "run: pip install 'rnn-edge[evaluate]'"
    assert calls == []
