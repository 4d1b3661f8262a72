"""Training a translator: what is learned, resumed, validated, selected and scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from torch import Tensor

from rnn_edge.errors import RunError
from rnn_edge.evaluation import Score, bleu
from rnn_edge.text_files import Pair
from rnn_edge_export.checkpoint import Best, Progress, load_checkpoint
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.run import load_run
from rnn_edge_export.training_events import FinishedEvent, StepEvent, TrainingEvent, ValidationEvent
from rnn_edge_export.translation import task as task_module
from rnn_edge_export.translation.batches import IGNORE, Batch
from rnn_edge_export.translation.export import load_source
from rnn_edge_export.translation.task import reference_loss, run_tokenizers, translate_greedily
from tests.export.translation.conftest import DROPOUTS, PLAIN, Kind

if TYPE_CHECKING:
    from tests.export.translation.conftest import MakeSource, MakeTrainer, TranslationTrainer

_ALL_RANDOM = replace(PLAIN, **DROPOUTS)


def _lines(run: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: line[key] for key in line.keys() - {"tokens_per_second", "seconds_left"}} for line in lines]


def _tensors(run: Path) -> dict[str, Tensor]:
    last, _ = load_checkpoint(run / "last.safetensors", Progress)
    best, _ = load_checkpoint(run / "best.safetensors", Best)
    return {**last, **{f"best {name}": tensor for name, tensor in best.items()}}


def _assert_same_run(run: Path, other: Path) -> None:
    assert _lines(run) == _lines(other)
    mine, others = _tensors(run), _tensors(other)
    assert mine.keys() == others.keys()
    assert [name for name in mine if not torch.equal(mine[name], others[name])] == []


def _validations(events: list[TrainingEvent]) -> list[ValidationEvent]:
    return [event for event in events if isinstance(event, ValidationEvent)]


@pytest.mark.parametrize(("cell", "tokenizer"), [("lstm", "word"), ("gru", "subword")])
def test_numbers_are_learned(
    make_trainer: MakeTrainer, numbers: list[Pair], cell: Literal["lstm", "gru"], tokenizer: Kind
) -> None:
    trainer = make_trainer(
        model=replace(PLAIN, cell=cell, embedding=16, layers=1, encoder_hidden=16, hidden=32),
        tokenizer=tokenizer,
        vocabulary_size=300,
        batch_tokens=256,
        epochs=16.0,
        validation_interval=1000,
        learning_rate=0.02,
        average_decay=0.9,
    )
    events = list(trainer.run())
    losses = [event.loss for event in events if isinstance(event, StepEvent)]
    assert losses[0] > 1.3  # nearly log 5 = 1.6 for words at first
    assert losses[-1] < 0.1
    finished = events[-1]
    assert isinstance(finished, FinishedEvent)
    loss, score = finished.scores
    assert (loss.name, score.name) == ("loss", "BLEU")
    assert loss.value < 0.1  # of pairs that were held out
    assert score.value > 90
    held = [source for source, _ in trainer.task.corpus.valid]
    right = dict(numbers)
    found = translate_greedily(trainer.state.average, held, trainer.task._tokenizers)
    assert sum(text == right[source] for source, text in zip(held, found, strict=True)) > 0.8 * len(held)


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[TranslationTrainer, int], None]:
    """Interrupt a trainer, as Ctrl-C does, in a step of a run."""

    def plan(trainer: TranslationTrainer, step: int) -> None:
        train = trainer._step

        def watched(batches: Sequence[Batch]) -> tuple[Tensor, Tensor, float]:
            trainer.interrupted = trainer.state.progress.step == step
            return train(batches)

        monkeypatch.setattr(trainer, "_step", watched)

    return plan


@pytest.mark.parametrize("tokenizer", ["subword", "word"])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(
    make_trainer: MakeTrainer, interrupt_after: Callable[[TranslationTrainer, int], None], tokenizer: Kind
) -> None:
    changes: dict[str, Any] = {
        "model": _ALL_RANDOM,
        "tokenizer": tokenizer,
        "vocabulary_size": 300,
        "bpe_dropout": 0.2,
        "label_smoothing": 0.1,
        "batch_tokens": 300,
        "epochs": 1.6 if tokenizer == "subword" else 3.1,
        "validation_interval": 10,
    }
    whole = make_trainer("whole", **changes)
    events = list(whole.run())
    assert 30 < whole.total_steps < 40
    assert whole.state.progress.epoch >= 1  # the border of an epoch is crossed
    assert [event.step for event in _validations(events)] == [10, 20, 30, whole.total_steps]
    for stops in ((1,), (20,), (13, 14, 27)):
        run = "-".join(map(str, stops))
        for index, stop in enumerate(stops):
            part = make_trainer(run, resume=index > 0, **changes)
            interrupt_after(part, stop)
            *_, last, finished = part.run()
            assert isinstance(finished, FinishedEvent)
            assert (finished.reason, finished.step) == ("interrupt", stop)
            assert isinstance(last, ValidationEvent)
            assert not last.recorded
            assert "finished" not in {line["kind"] for line in _lines(part.directory)}
        resumed = make_trainer(run, resume=True, **changes)
        assert resumed.state.progress.step == stops[-1]
        list(resumed.run())
        _assert_same_run(resumed.directory, whole.directory)


def test_the_seed_decides_everything(make_trainer: MakeTrainer) -> None:
    runs = []
    for seed in (3, 3, 4):
        trainer = make_trainer(model=_ALL_RANDOM, seed=seed, epochs=0.5)
        list(trainer.run())
        runs.append(_lines(trainer.directory))
    one, same, other = runs
    assert one == same
    assert one != other


def test_validating_does_not_disturb_training(make_trainer: MakeTrainer) -> None:
    often = make_trainer(model=_ALL_RANDOM, epochs=0.5, validation_interval=2)
    assert len(_validations(list(often.run()))) > 10
    seldom = make_trainer(model=_ALL_RANDOM, epochs=0.5, validation_interval=100)
    assert len(_validations(list(seldom.run()))) == 1
    for mine, other in zip(often.state.model.parameters(), seldom.state.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@torch.no_grad()
def test_the_loss_by_hand(make_trainer: MakeTrainer, smoothing: float) -> None:
    trainer = make_trainer(label_smoothing=smoothing, tokenizer="subword", vocabulary_size=300)
    batch = next(batch for batch in trainer.task.batches(0, 0) if (batch.targets == IGNORE).any())
    logits = trainer.state.model(batch.source, batch.lengths, batch.inputs).double()
    size = logits.shape[2]
    losses = []
    for step, column in (batch.targets != IGNORE).nonzero().tolist():
        expected = torch.full((size,), smoothing / size, dtype=torch.float64)
        expected[batch.targets[step, column]] += 1 - smoothing
        own = logits[step, column].log_softmax(dim=0)
        losses.append((-(expected * own).sum().item(), -own[batch.targets[step, column]].item()))
    found = trainer.task.loss(trainer.state.model, batch, torch.device("cpu"))
    smoothed, plain = (sum(values) / len(losses) for values in zip(*losses, strict=True))
    assert found.objective.item() == pytest.approx(smoothed, abs=1e-6)
    assert found.loss.item() == pytest.approx(plain, abs=1e-6)  # what is shown beside that of the validation
    assert found.tokens == batch.source.numel() + batch.targets.numel()


@torch.no_grad()
def test_the_reference_loss_by_hand(make_source: MakeSource, pairs: list[Pair]) -> None:
    """Sentence by sentence, without batches or padding, over more than one batch."""
    for kind in ("subword", "word"):
        source = make_source(kind, std=0.2)
        model, (encoder, decoder) = source.model, source.tokenizers
        start, end, last = (decoder.id_of("<s>"), decoder.id_of("</s>"), encoder.id_of("</s>"))
        total, count = 0.0, 0
        for text, reference in pairs[:110]:
            ids = [*encoder.encode(text), last]
            memory, state = model.encode(torch.tensor([ids]).t(), torch.tensor([len(ids)]))
            for token, following in zip(
                [start, *decoder.encode(reference)], [*decoder.encode(reference), end], strict=True
            ):
                logits, _, state = model.decode(torch.tensor([[token]]), state, memory)
                total -= logits[0, 0].double().log_softmax(dim=0)[following].item()
                count += 1
        assert reference_loss(model, pairs[:110], source.tokenizers) == pytest.approx(total / count, abs=1e-5)


def test_greedy_translations_do_not_depend_on_their_company(make_source: MakeSource, pairs: list[Pair]) -> None:
    """Of a model that never ends on its own, so that each sentence runs to its own limit."""
    source = make_source()
    end = source.tokenizers[1].id_of("</s>")
    source.model.output.bias[end] = -100
    sentences = [text for text, _ in pairs[:130]]  # more than one batch
    together = translate_greedily(source.model, sentences, source.tokenizers)
    for text, found in zip(sentences[::13], together[::13], strict=True):
        assert translate_greedily(source.model, [text], source.tokenizers) == [found]
    assert len(set(together)) > 50


def test_a_validation_has_bleu_and_samples(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(epochs=2.0, validation_interval=10)
    events = _validations(list(trainer.run()))
    valid = trainer.task.corpus.valid
    assert len(valid) == 20
    shown = []
    for event in events:
        assert event.bleu is not None
        assert 0 <= event.bleu <= 100
        lines = event.sample.splitlines()
        assert len(lines) == 3
        shown.append([line.split(" → ")[0] for line in lines])
        assert set(shown[-1]) <= {source for source, _ in valid}
    assert shown[0] != shown[1]  # other ones each time
    # The last is of the averaged weights as they are now.
    sources, references = [source for source, _ in valid], [target for _, target in valid]
    translations = translate_greedily(trainer.state.average, sources, trainer.task._tokenizers)
    assert events[-1].bleu == bleu(translations, references).value
    for line in events[-1].sample.splitlines():
        source, _, translation = line.partition(" → ")
        assert translations[sources.index(source)] == translation
    found = trainer.task.evaluate(trainer.state.average, events[-1].step)
    assert found.loss == events[-1].loss == reference_loss(trainer.state.average, valid, trainer.task._tokenizers)
    assert found.sample == events[-1].sample
    records = [line for line in _lines(trainer.directory) if line["kind"] == "validation"]
    assert [record["bleu"] for record in records] == [event.bleu for event in events]


def test_only_so_many_pairs_are_translated_while_training(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "_VALIDATION_PAIRS", 7)
    trainer = make_trainer(epochs=0.2)
    *_, validation, finished = trainer.run()
    valid = trainer.task.corpus.valid
    assert isinstance(validation, ValidationEvent)
    assert isinstance(finished, FinishedEvent)
    model = load_source_of(trainer.directory)
    assert validation.loss == reference_loss(model.model, valid[:7], model.tokenizers)
    assert finished.scores[0].value == reference_loss(model.model, valid, model.tokenizers)  # all of them at the end


def load_source_of(run: Path) -> Any:
    """A run's best weights, as an export takes them."""
    content = load_run(run)
    assert isinstance(content.recipe, TranslationRecipe)
    return load_source(run, content, content.recipe)


def _script(monkeypatch: pytest.MonkeyPatch, figures: list[tuple[float, float]]) -> None:
    """Validations find these losses and BLEUs, one after another, and the last of them ever after."""
    rest = iter(figures)
    current = [figures[-1]]

    def loss(*_: object) -> float:
        current[0] = next(rest, current[0])
        return current[0][0]

    monkeypatch.setattr(task_module, "reference_loss", loss)
    monkeypatch.setattr(task_module, "bleu", lambda *_: Score("BLEU", current[0][1], "scripted"))
    monkeypatch.setattr(task_module, "translate_greedily", lambda _, sentences, __: list(sentences))


_FIGURES = [(3.0, 10.0), (2.0, 5.0), (2.5, 12.0), (2.4, 12.0), (2.4, 12.0)]


@pytest.mark.parametrize(
    ("select_by", "best"),
    [("bleu", [True, False, True, True, False]), ("loss", [True, True, False, False, False])],  # ties go to the loss
)
def test_the_best_weights_are_best_at_what_is_asked_for(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, select_by: str, best: list[bool]
) -> None:
    _script(monkeypatch, _FIGURES)
    trainer = make_trainer(select_by=select_by, validation_interval=2, epochs=0.5)
    *events, finished = trainer.run()
    found = _validations(events)
    assert [(event.loss, event.bleu, event.best) for event in found[:5]] == [
        (*figures, mark) for figures, mark in zip(_FIGURES, best, strict=True)
    ]
    chosen = max(index for index, mark in enumerate(best) if mark)
    assert isinstance(finished, FinishedEvent)
    assert finished.best_step == found[chosen].step == 2 * chosen + 2
    kept = load_checkpoint(trainer.directory / "best.safetensors", Best)[1]
    assert kept == Best(finished.best_step, *_FIGURES[chosen], trainer.parameters)


def test_patience(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(monkeypatch, [(3.0, 10.0), (2.0, 9.0), (1.0, 11.0), (1.0, 11.0), (0.9, 10.9), (0.8, 99.0)])
    trainer = make_trainer(validation_interval=1, patience=2)
    *events, finished = trainer.run()
    assert isinstance(finished, FinishedEvent)
    assert (finished.reason, finished.step, finished.best_step) == ("early-stop", 5, 3)
    assert [event.best for event in _validations(events)] == [True, False, True, False, False]
    before = _lines(trainer.directory)
    again = make_trainer(trainer.directory.name, resume=True, validation_interval=1, patience=2)
    assert [type(event) for event in again.run()] == [FinishedEvent]
    assert [line["kind"] for line in before].count("finished") == 1


def test_the_scores_are_those_of_the_best_weights(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(epochs=0.5, validation_interval=10, select_by="loss", average_decay=0.0)
    events = []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, ValidationEvent) and event.step == 10:
            for parameter in trainer.state.model.parameters():
                parameter.data.mul_(20)  # from here on it is worse
    finished = events[-1]
    assert isinstance(finished, FinishedEvent)
    assert finished.best_step == 10 < trainer.total_steps
    best = load_source_of(trainer.directory)
    assert best.recipe == trainer.recipe
    assert best.metrics == finished.scores
    valid = trainer.task.corpus.valid
    expected = bleu(translate_greedily(best.model, [pair[0] for pair in valid], best.tokenizers), [p[1] for p in valid])
    loss, score = finished.scores
    assert loss.value == reference_loss(best.model, valid, best.tokenizers)
    assert loss.value == min(event.loss for event in _validations(events))
    assert loss.unit == "nats per token"
    assert score.value == expected.value
    assert score.method.startswith("greedy, PyTorch, ")
    assert "tok:13a" in score.method
    assert {metric.split for metric in finished.scores} == {"20 pairs of numbers.tsv, drawn with seed 1"}


@pytest.mark.parametrize("tokenizer", ["subword", "word"])
def test_a_run_has_its_tokenizers(make_trainer: MakeTrainer, tokenizer: Kind) -> None:
    trainer = make_trainer(tokenizer=tokenizer, vocabulary_size=300)
    corpus = trainer.task.corpus
    source, target = run_tokenizers(trainer.directory)
    assert (source is target) == (tokenizer == "subword")
    assert (source.content, target.content) == (corpus.source_tokenizer.content, corpus.target_tokenizer.content)
    assert (trainer.directory / "source_tokenizer.json").exists() == (tokenizer == "word")
    described = " ".join(trainer.task.describe())
    size = source.vocabulary_size
    assert f"vocabulary {size}" in described
    assert f"{len(corpus.train)} training pairs, {trainer.task.steps_per_epoch} batches" in described


def test_vocabularies_of_equal_size_share_nothing(make_trainer: MakeTrainer) -> None:
    """Words of one language are not those of the other; a joint vocabulary is one."""
    words, subwords = make_trainer(), make_trainer(tokenizer="subword", vocabulary_size=300)
    assert len({tokenizer.vocabulary_size for tokenizer in words.task._tokenizers}) == 1
    assert words.state.model.source_embedding is not words.state.model.target_embedding
    assert subwords.state.model.source_embedding is subwords.state.model.target_embedding


def test_a_tokenizer_of_a_run_that_was_replaced_is_not_used(make_trainer: MakeTrainer) -> None:
    make_trainer("run", tokenizer="word")
    directory = make_trainer("run", tokenizer="subword", vocabulary_size=300).directory
    source, target = run_tokenizers(directory)
    assert source is target
    (directory / "source_tokenizer.json").unlink()
    make_trainer("run", tokenizer="word")
    (directory / "source_tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"cannot read .*source_tokenizer\.json"):
        run_tokenizers(directory)


def test_bf16_keeps_weights_in_fp32(make_trainer: MakeTrainer) -> None:
    losses = []
    for precision in ("bf16", "fp32"):
        trainer = make_trainer(model=replace(PLAIN, input_feeding=True), precision=precision, epochs=0.5)
        losses.append([line["loss"] for line in _lines_of(trainer)])
        assert {parameter.dtype for parameter in trainer.state.model.parameters()} == {torch.float32}
    assert losses[0] == pytest.approx(losses[1], abs=0.1)
    assert losses[0] != losses[1]


def _lines_of(trainer: TranslationTrainer) -> Iterator[dict[str, Any]]:
    list(trainer.run())
    return (line for line in _lines(trainer.directory) if line["kind"] == "train")
