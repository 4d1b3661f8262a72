"""One network in all peers: files made, results compared with PyTorch, then steps timed in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peers import environments, reference
from benchmarks.peers.network import TOLERANCE, Network, Shape, SkippedError, relative_error, save, token_rows
from benchmarks.peers.process import PeerError, Process
from benchmarks.peers.registry import Converter, Peer

CHECKED_STEPS = 20
_CONVERSION_FACTOR = 5  # conversions, compilations: so many times the limit of other answers


@dataclass
class Result:
    """What was found about one peer on one network; ``seconds`` per step of each round, by mode."""

    peer: Peer
    shape: Shape
    relative_error: float
    largest_difference: float
    load_seconds: float
    seconds: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Absence:
    """A peer that is not among the results, and why; ``failed`` where it should have been."""

    peer: Peer
    shape: Shape
    reason: str
    failed: bool


@dataclass(frozen=True)
class Settings:
    """How to measure: ``chunk`` is about how long a peer runs in one round, ``limit`` the longest wait, in seconds."""

    environments: Path
    work: Path
    rounds: int
    chunk: float
    limit: float
    say: Callable[[str], None]


@dataclass
class Contender:
    """A peer that is loaded and computes what it should."""

    process: Process
    result: Result
    steps: int = 0


class Bench:
    """Runs networks one after another; files and versions are kept between them."""

    def __init__(self, peers: Sequence[Peer], settings: Settings) -> None:
        self._peers = peers
        self._settings = settings
        self._converted: dict[tuple[Converter, Shape], Exception | None] = {}
        self.results: list[Result] = []
        self.absences: list[Absence] = []
        self.versions: dict[str, str] = {}

    def run(self, shape: Shape, modes: Sequence[str]) -> None:
        """Measure all peers on one network."""
        network = reference.random_network(shape)
        weights = self._settings.work / f"{shape.cell}-{shape.hidden}x{shape.layers}.npz"
        if not weights.exists():
            save(weights, network)
        with contextlib.ExitStack() as stack:
            contenders = list(self._start(network, weights, stack))
            self._time(contenders, modes)

    def _start(self, network: Network, weights: Path, stack: contextlib.ExitStack) -> Iterable[Contender]:
        shape = network.shape
        tokens = token_rows(network.vocabulary, shape.batch, CHECKED_STEPS)
        expected = reference.logits(network, tokens)
        for peer in self._peers:
            self._settings.say(f"{_title(shape)}: {peer.name}")
            try:
                place = self._files(peer, shape, weights)
                process = self._process(peer.environment, peer.slow_start)
                stack.callback(process.end)
                given = {"shape": shape.to_json(), "weights": str(weights), "folder": str(place)}
                ready = process.ask(
                    "prepare", module=peer.module, variant=peer.variant, packages=list(peer.packages), **given
                )
                found = np.array(process.ask("check", tokens=tokens.tolist()), np.float32)
                off = relative_error(found, expected)
                if off > TOLERANCE[peer.precision]:
                    raise PeerError(f"its logits are off by {off:.2g}, more than {peer.precision} explains")
            except (SkippedError, PeerError) as error:
                self.absences.append(Absence(peer, shape, str(error), isinstance(error, PeerError)))
                continue
            self.versions |= ready["versions"]
            largest = float(np.abs(found - expected).max())
            yield Contender(process, Result(peer, shape, off, largest, ready["seconds"]))

    def _files(self, peer: Peer, shape: Shape, weights: Path) -> Path:
        """The folder that has what the peer loads, converted where nobody did so before."""
        converter = peer.converter
        owner = converter.module if converter else peer.module
        place = self._settings.work / owner / weights.stem
        place.mkdir(parents=True, exist_ok=True)
        if converter is None:
            return place
        key = converter, shape
        done = place / f"{converter.variant}-{shape.batch}.done"  # of an earlier run with the same folder
        if key not in self._converted:
            self._converted[key] = None
        if self._converted[key] is None and not done.exists():
            given = {"shape": shape.to_json(), "weights": str(weights), "folder": str(place)}
            try:
                with self._process(converter.environment, slow=True) as process:
                    process.ask("convert", module=converter.module, variant=converter.variant, **given)
                done.touch()
            except (SkippedError, PeerError) as error:
                self._converted[key] = error
        failure = self._converted[key]
        if failure:
            raise failure
        return place

    def _process(self, environment: str, slow: bool) -> Process:
        python = environments.python(self._settings.environments, environment)
        if python is None:
            raise SkippedError(f"not installed; --install {environment} does it")
        return Process(python, self._settings.limit * (_CONVERSION_FACTOR if slow else 1))

    def _time(self, contenders: list[Contender], modes: Sequence[str]) -> None:
        """Rounds in which all peers run one after another in each mode: what slows the machine slows all alike."""
        if not contenders:
            return
        self._settings.say(f"{_title(contenders[0].result.shape)}: timing")
        self._each(contenders, self._prepare)
        for turn in range(-1, self._settings.rounds):  # the first one is to warm up
            for mode in modes:
                self._each(contenders, partial(self._run, mode=mode, keep=turn >= 0))
        self.results += [contender.result for contender in contenders]

    def _each(self, contenders: list[Contender], work: Callable[[Contender], None]) -> None:
        """Leave out those that fail."""
        for contender in list(contenders):
            try:
                work(contender)
            except (SkippedError, PeerError) as error:
                result = contender.result
                self.absences.append(Absence(result.peer, result.shape, str(error), failed=True))
                contenders.remove(contender)

    def _prepare(self, contender: Contender) -> None:
        """Find how many steps fill a turn."""
        ask = contender.process.ask
        ask("run", mode="step", steps=5)
        contender.steps = min(20_000, max(5, round(10 * self._settings.chunk / ask("run", mode="step", steps=10))))

    def _run(self, contender: Contender, *, mode: str, keep: bool) -> None:
        seconds = contender.process.ask("run", mode=mode, steps=contender.steps) / contender.steps
        if keep:
            contender.result.seconds.setdefault(mode, []).append(seconds)


def _title(shape: Shape) -> str:
    return f"{shape.cell} {shape.hidden}x{shape.layers}, batch {shape.batch}"
