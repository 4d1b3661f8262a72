"""Measuring: rounds, figures, the memory limit, and the works of both tasks."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest

from rnn_edge import bench, machine, workloads
from rnn_edge.bench import Bench, Figure, Subject, Work, weights_read
from rnn_edge.errors import BundleError
from rnn_edge.language_model import LanguageModel
from rnn_edge.memory import stream_bytes
from rnn_edge.translator import Translator
from rnn_edge.workloads import Lengths, language_model_works, translator_works
from tests.device.tiny import GRU, copy_bundle


@pytest.fixture
def subject(lstm: LanguageModel) -> Subject:
    return Subject("tiny", lstm.bundle, "cpu", 1)


def work(subject: Subject, values: list[float], test: str = "prompt", use_median: bool = False) -> Work:
    """Gives these values one after another, and twice each as a second figure."""
    left = iter(values)

    def run() -> tuple[float, ...]:
        value = next(left)
        return value, 2 * value

    figures = (Figure(test, "tokens/s", "counted"), Figure("double", "ms", "doubled"))
    return Work(subject, 2, 7, figures, run, use_median)


def nothing(done: int, total: int) -> None:
    pass


def test_the_first_round_warms_up_and_is_not_counted(subject: Subject) -> None:
    measured = Bench([work(subject, [1000, 1, 2, 6]), work(subject, [1000, 1, 2, 6], use_median=True)])
    seen: list[tuple[int, int]] = []
    measured.run(3, lambda done, total: seen.append((done, total)))
    mean, double, median, _ = measured.results()
    assert seen == [(done, 8) for done in range(1, 9)]
    assert (mean.value, mean.values) == (3, (1, 2, 6))
    assert mean.deviation == pytest.approx(stdev([1, 2, 6]))
    assert (double.value, double.test, double.unit, double.method) == (6, "double", "ms", "doubled")
    assert median.value == 2
    size = subject.bundle.manifest.files["step.onnx"].size
    assert (mean.bundle, mean.precision, mean.bytes, mean.device) == ("tiny", "fp32", size, "cpu")
    assert (mean.threads, mean.batch, mean.test, mean.tokens) == (1, 2, "prompt", 7)


def test_works_take_turns(subject: Subject) -> None:
    order = []

    def named(name: str) -> Work:
        def run() -> tuple[float, ...]:
            order.append(name)
            return (1.0,)

        return Work(subject, 1, 0, (Figure(name, "s", ""),), run)

    Bench([named("a"), named("b")]).run(2, nothing)
    assert "".join(order) == "ababab"


def test_one_repetition_has_no_deviation(subject: Subject) -> None:
    measured = Bench([work(subject, [5, 4])])
    measured.run(1, nothing)
    assert next(measured.results()).deviation == 0


def test_what_was_complete_before_an_interrupt(subject: Subject) -> None:
    def interrupted() -> Iterator[float]:
        yield from (1000, 3)
        raise KeyboardInterrupt

    slow = interrupted()
    stops = Work(subject, 1, 0, (Figure("stops", "s", ""),), lambda: (next(slow),))
    measured = Bench([work(subject, [1000, 1, 2, 6]), stops])
    with pytest.raises(KeyboardInterrupt):
        measured.run(3, nothing)
    assert [(result.test, result.values) for result in measured.results()] == [
        ("prompt", (1, 2)),
        ("double", (2, 4)),
        ("stops", (3,)),
    ]
    early = Bench([work(subject, [])])
    with pytest.raises(StopIteration):
        early.run(1, nothing)
    assert list(early.results()) == []


# --- the limit


def limit(subject: Subject, batch: int = 1) -> list[bench.Result]:
    """The results of a step of 2 ms."""
    measured = Bench([Work(subject, batch, 9, (Figure("step", "tokens/s", ""),), lambda: (500.0,))])
    measured.run(1, nothing)
    return list(measured.results())


def test_the_share_of_the_limit(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_read(subject.bundle, "cpu")
    monkeypatch.setattr(bench, "read_bandwidth", lambda size: 500 * size * 4)
    _, share = limit(subject)
    assert (share.test, share.value, share.unit, share.batch) == ("of limit", 25, "%", 1)
    assert share.method.startswith("estimate: ")
    assert f"is {weights / 1e6:,.2f} MB" in share.method


def test_a_probe_that_the_step_outruns_has_failed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read_bandwidth", lambda size: 500 * size / 1.5)
    _, share = limit(subject)
    assert (share.value, share.values) == (None, ())
    assert "the probe failed: by it the step would have 150 %" in share.method


def test_the_limit_is_that_of_one_stream_on_one_cpu_thread(subject: Subject) -> None:
    assert len(limit(subject, batch=2)) == 1
    assert len(limit(replace(subject, threads=2))) == 1
    assert len(limit(replace(subject, device="cuda"))) == 1


def test_weights_that_a_step_reads(tmp_path: Path, lstm: LanguageModel, translator: Translator) -> None:
    manifest = lstm.manifest
    size = manifest.files["step.onnx"].size
    assert not manifest.architecture.tied
    assert weights_read(lstm.bundle, "cpu") == size - (70 - 1) * 16 * 4
    tied = replace(manifest, architecture=replace(manifest.architecture, tied=True))
    assert weights_read(replace(lstm.bundle, manifest=tied), "cpu") == size
    half = replace(lstm.bundle, manifest=replace(tied, precision="fp16"))
    assert weights_read(half, "cpu") == 2 * size
    assert weights_read(half, "cuda") == size
    assert weights_read(translator.bundle, "cpu") <= translator.manifest.files["decoder.onnx"].size


def test_bandwidth_is_measured_at_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PROBE_SECONDS", 0.001)
    assert machine.read_bandwidth(100_000) > 1e7
    assert machine.read_bandwidth(1) > 0
    tracemalloc.start()
    machine.read_bandwidth(3_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 3_000_000 <= peak < 4_000_000


# --- memory


@pytest.mark.parametrize("count", [1, 30])
def test_the_estimate_holds_the_buffers(lstm: LanguageModel, translator: Translator, count: int) -> None:
    state = sum(tensor.nbytes for tensor in lstm.graph.stepper().state().tensors.values())
    assert stream_bytes(lstm.manifest, 0) > 2 * state + lstm.graph.stepper().feed([1]).nbytes
    encoded = translator.graphs.encode([[5] * count])
    memory = sum(array.nbytes for array in encoded.memory.values())
    assert stream_bytes(translator.manifest, count) > 2 * memory


def test_facts_of_the_machine(tmp_path: Path) -> None:
    found = machine.describe()
    assert found.cpu
    assert found.cores >= 1
    assert found.os
    assert found.versions["numpy"] == np.__version__
    assert list(found.versions) == ["python", "rnn-edge", "numpy", "onnxruntime"]
    before = machine.peak_memory()
    assert before > 10e6
    held = np.ones(before // 8, np.int64)  # as much again
    assert machine.peak_memory() > before
    assert held[0] == 1
    available = machine.available_memory()
    assert available is None or available > 1e6


def test_facts_that_the_system_keeps_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   12 kB\nodd:\n", encoding="utf-8")
    assert machine._kilobytes(tmp_path / "meminfo", "MemAvailable") == 12 * 1024
    assert machine._kilobytes(tmp_path / "meminfo", "odd") is None
    assert machine._kilobytes(tmp_path / "absent", "MemAvailable") is None
    monkeypatch.setattr(machine, "_field", lambda path, name: "")
    found = machine.available_memory()
    assert found is None or found > 1e6
    assert machine.peak_memory() > 10e6
    assert machine.describe_cpu()


# --- what models do


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "_process", lambda line, path: (0.5, 40.0))


def figures(works: list[Work]) -> list[tuple[str, int, int, str]]:
    return [(figure.test, one.tokens, one.batch, figure.unit) for one in works for figure in one.figures]


def test_works_of_a_language_model(subject: Subject, lstm: LanguageModel, no_process: None) -> None:
    works = list(language_model_works(subject, lstm, Lengths((3,), (5, 6), (1, 4))))
    rate = "tokens/s"
    assert figures(works) == [
        *(
            (test, tokens, batch, rate)
            for batch in (1, 4)
            for test, tokens in (("prompt", 3), ("generate", 5), ("step", 5), ("generate", 6), ("step", 6))
        ),
        ("first token", 3, 1, "ms"),
        ("cold start", 0, 1, "s"),
        ("memory", 0, 1, "MB"),
    ]
    for one in works:
        values = one.run()
        assert len(values) == len(one.figures)
        assert all(0 < value < 1e9 for value in values)


def test_a_batch_makes_the_tokens_it_counts(
    subject: Subject, lstm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 14.0] * 9)
    monkeypatch.setattr(workloads, "perf_counter", lambda: next(clock))
    for batch in (1, 8):
        prompt, generate, step, *_ = language_model_works(subject, lstm, Lengths((12,), (20,), (batch,)))
        assert [one.run() for one in (prompt, generate, step)] == [(3.0 * batch,), (5.0 * batch,), (5.0 * batch,)]


def test_works_of_a_translator(translator: Translator, no_process: None) -> None:
    subject = Subject("tiny", translator.bundle, "cpu", 1)
    works = list(translator_works(subject, translator, Lengths((4,), (5,), (1, 3))))
    rate = "tokens/s"
    speeds = (("encode", 4, rate), ("translate", 4, rate), ("translate", 4, "sentences/s"), ("step", 5, rate))
    assert figures(works) == [
        *((test, tokens, batch, unit) for batch in (1, 3) for test, tokens, unit in speeds),
        ("first token", 4, 1, "ms"),
        ("cold start", 0, 1, "s"),
        ("memory", 0, 1, "MB"),
    ]
    for one in works:
        assert all(0 < value < 1e9 for value in one.run())


def test_given_sentences_are_translated(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = ["The keeper sees a boat.", "Marta paints the lighthouse."]
    subject = Subject("tiny", translator.bundle, "cpu", 1)
    encode, translate, *_, process = translator_works(subject, translator, Lengths((9,), (5,), (2,)), sentences)
    clock = iter([10.0, 12.0] * 2)
    monkeypatch.setattr(workloads, "perf_counter", lambda: next(clock))
    assert encode.run() == (sum(map(len, translator.sources(sentences))) / 2,)
    found = translator.translate_sentences(sentences, translator.options(beam=1))
    assert translate.run() == (sum(len(item.candidates[0].pieces) for item in found) / 2, 1)
    assert (encode.tokens, process.tokens) == (0, 0)
    assert "2 sentences of the file" in encode.figures[0].method


@pytest.mark.parametrize("name", ["translator", "words"])
def test_random_sentences_are_of_words_that_the_model_knows(name: str, request: pytest.FixtureRequest) -> None:
    found: Translator = request.getfixturevalue(name)
    source = found.manifest.source
    assert source is not None
    sentences = workloads._sentences(found, 6, 20)
    assert len(set(sentences)) == 20
    for sentence, ids in zip(sentences, found.sources(sentences), strict=True):
        assert sentence.replace(" ", "").isalnum()
        assert source.unknown not in ids
        assert 1 < len(ids) <= 13


def test_sources_are_no_longer_than_those_of_the_training(translator: Translator, no_process: None) -> None:
    source = translator.manifest.source
    assert source is not None
    subject = Subject("tiny", translator.bundle, "cpu", 1)
    works = translator_works(subject, translator, Lengths((500, 600), (5,), (1,)))
    assert [one.tokens for one in works if one.figures[0].test == "encode"] == [source.longest]


@pytest.mark.parametrize("task", ["lstm", "translator"])
def test_a_process_of_its_own(task: str, request: pytest.FixtureRequest) -> None:
    model: Any = request.getfixturevalue(task)
    works = translator_works if task == "translator" else language_model_works
    *_, process = works(Subject("tiny", model.bundle, "cpu", 1), model, Lengths((3,), (3,), (1,)))
    assert process.use_median
    seconds, megabytes = process.run()
    assert 0.02 < seconds < 60
    assert 15 < megabytes < 500


def test_a_process_that_fails(tmp_path: Path) -> None:
    model = LanguageModel.load(copy_bundle(GRU, tmp_path / "mine"), device="cpu")
    *_, process = language_model_works(Subject("mine", model.bundle, "cpu", 1), model, Lengths((3,), (3,), (1,)))
    (tmp_path / "mine" / "step.onnx").unlink()
    with pytest.raises(BundleError, match=r"fails in a process of its own: error: .*step\.onnx is missing"):
        process.run()
