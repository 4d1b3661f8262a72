"""The benchmark beside other runtimes: what decides whether a peer is right, and what becomes of one that fails."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import by_hand, reference, report
from benchmarks.peers.__main__ import chosen
from benchmarks.peers.network import TOLERANCE, Array, Network, Shape, load, relative_error, save, token_rows
from benchmarks.peers.process import PeerError, Process
from benchmarks.peers.registry import ENVIRONMENTS, PEERS

LSTM, GRU = Shape("lstm", 64, 2, 3), Shape("gru", 64, 2, 3)
PACKAGE = Path(by_hand.__file__).parent


def by_hand_logits(network: Network, *, forgetful: bool = False) -> Array:
    step = by_hand.load(network, "", "fp32")
    rows = []
    for tokens in token_rows(network.vocabulary, network.shape.batch, 20):
        rows.append(step.step(tokens))
        if forgetful:
            step.reset()
    return np.stack(rows)


@pytest.mark.parametrize("shape", [LSTM, GRU], ids=lambda shape: shape.cell)
def test_a_right_step_passes_and_one_that_forgets_its_state_is_beyond_all_precisions(shape: Shape) -> None:
    network = reference.random_network(shape)
    expected = reference.logits(network, token_rows(network.vocabulary, shape.batch, 20))
    assert relative_error(by_hand_logits(network), expected) < TOLERANCE["fp32"]
    assert relative_error(by_hand_logits(network, forgetful=True), expected) > max(TOLERANCE.values())
    assert relative_error(np.full_like(expected, np.nan), expected) == float("inf")


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    network = reference.random_network(GRU)
    save(tmp_path / "weights.npz", network)
    again = load(tmp_path / "weights.npz", GRU)
    assert np.array_equal(by_hand_logits(again), by_hand_logits(network))


def worker(folder: Path, script: str) -> Path:
    """Something to run in place of Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    with (
        Process(worker(tmp_path, "exec sleep 60"), limit=0.2) as process,
        pytest.raises(PeerError, match=r"no answer to check in 0\.2 s"),
    ):
        process.ask("check")


def test_a_worker_that_crashes_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        Process(worker(tmp_path, "echo no such instruction >&2; exit 3"), limit=10) as process,
        pytest.raises(PeerError, match="exit code 3 in check: no such instruction"),
    ):
        process.ask("check")


def test_every_peer_has_its_module_and_every_environment_its_requirements() -> None:
    modules = {peer.module for peer in PEERS} | {peer.converter.module for peer in PEERS if peer.converter}
    assert all((PACKAGE / f"{module}.py").is_file() for module in modules)
    assert sorted(file.stem for file in (PACKAGE / "requirements").glob("*.txt")) == ENVIRONMENTS


def test_a_peer_is_compared_with_the_nearest_of_ours_that_has_no_fewer_bits() -> None:
    assert report.counterpart("int8", {"fp32", "int8", "int4"}) == "int8"
    assert report.counterpart("int4", {"fp32", "int8"}) == "int8"
    assert report.counterpart("fp32", {"int8", "int4"}) == "int8"
    assert report.counterpart("fp32", ()) is None


def test_peers_are_chosen_by_parts_of_their_names() -> None:
    assert [peer.name for peer in chosen(["litert"], ["INT4"])] == ["LiteRT int8"]
    with pytest.raises(SystemExit, match=re.escape("--list names all")):
        chosen(["no such runtime"], [])
