"""Which device and how many threads: measured once, remembered, and never a reason to fail."""

import json
from pathlib import Path

import pytest

import rnn_edge
from rnn_edge import placement
from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.errors import DeviceError
from rnn_edge.language_model import LanguageModel
from rnn_edge.placement import Placement, candidates, fastest, place, step_seconds
from tests.device.tiny import LSTM, TRANSLATOR

ONE, TWO, FOUR, EIGHT = (Placement("cpu", count) for count in (1, 2, 4, 8))
GPU = Placement("cuda", 1)


@pytest.fixture
def bundle() -> Bundle:
    return read_bundle(LSTM)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNN_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    return tmp_path / "cache" / "placements.json"


class Probe:
    """Answers with given times and counts what was measured."""

    def __init__(self, times: dict[Placement, float]) -> None:
        self.times, self.calls, self.streams = times, list[Placement](), set[int]()

    def __call__(self, bundle: Bundle, choice: Placement, batch: int) -> float:
        self.calls.append(choice)
        self.streams.add(batch)
        if choice not in self.times:
            raise DeviceError("does not open", "")
        return self.times[choice]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({ONE: 10, TWO: 6, FOUR: 4}, FOUR),
        ({ONE: 10, TWO: 9.5, FOUR: 9.4}, ONE),  # not clearly faster
        ({ONE: 10, TWO: 8, FOUR: 8.5}, TWO),
        ({ONE: 10, TWO: 12, FOUR: 11}, ONE),
        ({ONE: 10, TWO: 6, FOUR: 4, GPU: 3}, GPU),
        ({ONE: 10, TWO: 6, FOUR: 4, GPU: 5}, FOUR),
        ({ONE: 10, TWO: 6, FOUR: 4}, FOUR),  # and a GPU that does not open
    ],
)
def test_the_fastest_wins_if_it_is_clearly_so(
    bundle: Bundle, times: dict[Placement, float], expected: Placement
) -> None:
    assert fastest(bundle, [ONE, TWO, FOUR, GPU], 1, Probe(times)) == expected


def test_more_threads_are_not_tried_once_it_gets_much_slower(bundle: Bundle) -> None:
    probe = Probe({ONE: 10, TWO: 30, FOUR: 1, EIGHT: 1, GPU: 20})
    assert fastest(bundle, [ONE, TWO, FOUR, EIGHT, GPU], 1, probe) == ONE
    assert probe.calls == [ONE, TWO, GPU]


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
def test_candidates_start_with_one_thread_and_stay_within_the_cores(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    found = [choice.threads for choice in candidates("cpu", "auto")]
    assert found == [count for count in (1, 2, 4, 8) if count <= cores]


def test_a_gpu_is_a_candidate_of_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "cuda_available", lambda: True)
    assert candidates("auto", None) == [ONE, GPU]
    assert candidates("auto", 2) == [TWO, GPU]
    assert candidates("cpu", None) == [ONE]
    assert candidates("cuda", "auto") == [GPU]


def test_what_is_given_is_taken_without_measuring(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "step_seconds", lambda *_: pytest.fail("measured"))
    assert place(bundle, "cpu", 3) == Placement("cpu", 3)
    assert place(bundle, "auto", None) == Placement("auto", 1)
    assert not cache.exists()


def test_measured_once_and_remembered(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe({ONE: 10, TWO: 5, FOUR: 9})
    monkeypatch.setattr(placement, "step_seconds", probe)
    assert place(bundle, "cpu", "auto") == TWO
    measured = len(probe.calls)
    assert place(bundle, "cpu", "auto") == TWO
    assert len(probe.calls) == measured
    rnn_edge.load(str(LSTM), device="cpu", threads="auto", streams=32)  # another question
    assert len(probe.calls) == 2 * measured
    assert probe.streams == {1, 32}
    monkeypatch.setattr(placement, "describe_cpu", lambda: "another machine's")
    place(bundle, "cpu", "auto")
    assert len(probe.calls) == 3 * measured
    assert len(json.loads(cache.read_text())) == 3


def test_a_gpu_that_is_there_today(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured with it counts for it alone, and one that did not open is tried again."""
    gpus = ["", "driver 1", "one GPU"]
    times: dict[Placement, float] = {ONE: 10, GPU: 2}
    probe = Probe(times)
    monkeypatch.setattr(placement, "cuda_available", lambda: True)
    monkeypatch.setattr(placement, "describe_gpus", lambda: gpus)
    monkeypatch.setattr(placement, "step_seconds", probe)
    for _ in range(2):
        assert place(bundle, "auto", None) == Placement("auto", 1)  # and the CPU if it is gone when the session opens
    assert probe.calls == [ONE, GPU]
    gpus[2] = "another GPU"
    del times[GPU]
    for _ in range(2):
        assert place(bundle, "auto", None) == ONE
    assert probe.calls == [ONE, GPU] * 3
    gpus.clear()  # no driver at all: no reason to try again
    for _ in range(2):
        assert place(bundle, "auto", None) == ONE
    assert probe.calls == [ONE, GPU] * 4


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '{"a": 1}',
        '{"a": {"device": "tpu", "threads": 1}}',
        '{"a": {"device": "cpu"}}',
        "[" * 9999,
    ],
)
def test_a_damaged_memory_is_measured_again_and_mended(
    content: str, bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "step_seconds", Probe({ONE: 10, TWO: 5, FOUR: 9}))
    cache.parent.mkdir()
    cache.write_text(content)
    assert place(bundle, "cpu", "auto") == TWO
    assert [entry["threads"] for entry in json.loads(cache.read_text()).values()] == [2]


def test_an_entry_with_more_threads_than_cores_is_not_believed(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "step_seconds", Probe({ONE: 10, TWO: 5, FOUR: 9}))
    place(bundle, "cpu", "auto")
    cache.write_text(cache.read_text().replace('"threads": 2', '"threads": 999'))
    assert place(bundle, "cpu", "auto") == TWO


def test_a_probe_has_no_more_streams_than_it_needs(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe({ONE: 10, TWO: 5, FOUR: 9})
    monkeypatch.setattr(placement, "step_seconds", probe)
    for streams in (10**9, 256, 0, 1):
        place(bundle, "cpu", "auto", streams)
    assert probe.streams == {1, 256}
    assert len(json.loads(cache.read_text())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "step_seconds", Probe({ONE: 10, TWO: 5, FOUR: 9}))
    cache.parent.parent.joinpath("cache").write_text("a file where the folder should be")
    assert place(bundle, "cpu", "auto") == TWO


def test_what_is_remembered_is_bounded(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "step_seconds", Probe({ONE: 10, TWO: 5, FOUR: 9}))
    cache.parent.mkdir()
    cache.write_text(json.dumps({str(index): {"device": "cpu", "threads": 1} for index in range(500)}))
    place(bundle, "cpu", "auto")
    kept = json.loads(cache.read_text())
    assert len(kept) == 256
    assert list(kept.values())[-1] == {"device": "cpu", "threads": 2}


@pytest.mark.parametrize("folder", [LSTM, TRANSLATOR])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_probe_steps_the_real_graph(folder: Path, batch: int) -> None:
    assert 0 < step_seconds(read_bundle(folder), ONE, batch) < 1


def test_loading_with_auto_generates_the_same_text(cache: Path) -> None:
    model = LanguageModel.load(LSTM, device="cpu", threads="auto")
    assert model.graph.threads in (1, 2, 4)
    assert cache.is_file()
    again = LanguageModel.load(LSTM, device="cpu")
    texts = ["".join(event.text for event in item.generate("a", seed=1, max_tokens=20)) for item in (model, again)]
    assert texts[0] == texts[1]
