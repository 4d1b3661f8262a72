"""One step of a language model beside every runtime that a user might pick instead, in turns and on the same weights.

    python -m benchmarks.peers --install
    python -m benchmarks.peers
    python -m benchmarks.peers --sizes 512x2 --cells lstm --peers rnn-edge LiteRT --rounds 40

Token → embedding 128 → L × LSTM or GRU → 96 logits, one thread, the state fed back. Every peer runs in a process of its
own, most in a virtual environment of their own, which --install makes. First each one feeds 20 tokens, and its logits
are compared with PyTorch's in fp32; one that is further off than its precision explains is left out. Then rounds: each
peer runs for --chunk seconds, one after the other, in each mode.

- step: the bare step, with logits in NumPy's reach;
- greedy, sampled (temperature 0.8): a text from end to end. rnn-edge runs LanguageModel.generate with all its events;
  peers run their step, our sampler, and look the character up. At batch 1 only.

Prints a table for each network with median (fastest) µs, and the ratio to rnn-edge at the same precision, round by
round: above 1, ours is faster. Then summaries, what was left out and why, machine and versions.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.common import machine, network_size
from benchmarks.peers import environments, report
from benchmarks.peers.measure import Bench, Settings
from benchmarks.peers.network import TOLERANCE, Shape
from benchmarks.peers.registry import PEERS, Peer

SIZES = [(128, 1), (256, 2), (512, 2), (1024, 2)]
MODES = ("step", "greedy", "sampled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", nargs="*", metavar="NAME", help="make the environments (all, or these), then end")
    parser.add_argument("--environments", type=Path, default=environments.default_folder(), metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="list peers and their environments, then end")
    parser.add_argument("--peers", nargs="+", metavar="TEXT", help="only peers whose name has one of these in it")
    parser.add_argument("--without", nargs="+", default=[], metavar="TEXT", help="none whose name has one of these")
    parser.add_argument("--cells", nargs="+", choices=("lstm", "gru"), default=("lstm", "gru"))
    parser.add_argument("--sizes", nargs="+", type=network_size, default=SIZES, metavar="WIDTHxLAYERS")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--against", choices=TOLERANCE, help="compare all with this precision of ours, not their own")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--chunk", type=float, default=0.05, help="seconds of one peer in one round and mode")
    parser.add_argument("--limit", type=float, default=60, help="seconds to wait for an answer; conversions get more")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep there what is converted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds there too")
    options = parser.parse_args()

    if options.install is not None:
        failures = environments.install(options.environments, environments.known(options.install))
        raise SystemExit("\n".join(failures) or None)
    peers = chosen(options.peers, options.without)
    if options.list:
        for peer in peers:
            ready = environments.python(options.environments, peer.environment)
            print(f"{peer.name}: environment {peer.environment}{'' if ready else ', not installed'}")
        return

    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        settings = Settings(options.environments, work.resolve(), options.rounds, options.chunk, options.limit, say)
        bench = Bench(peers, settings)
        before = machine()
        for cell in options.cells:
            for hidden, layers in options.sizes:
                for batch in options.batches:
                    # Texts of many streams at once are not every peer's to write.
                    modes = tuple(options.modes) if batch == 1 else ("step",)
                    bench.run(Shape(cell, hidden, layers, batch), modes)
    versions = ", ".join(f"{name} {found}" for name, found in sorted(bench.versions.items()) if name != "numpy")
    description = f"{before}, {versions}"
    if options.json:
        content = {"machine": description, **report.as_json(bench.results, bench.absences)}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"1 thread, {options.rounds} rounds of {options.chunk:g} s\n{description}\n")
    if bench.results:
        print(report.networks(bench.results, options.against), end="\n\n")
    measured = {(mode, result.shape.batch) for result in bench.results for mode in result.seconds}
    for mode, batch in sorted(measured, key=lambda item: (item[1], MODES.index(item[0]))):
        print(report.summary(bench.results, mode, batch), end="\n\n")
    print(report.absences(bench.absences))
    if any(item.failed for item in bench.absences):
        raise SystemExit(1)


def chosen(wanted: list[str] | None, unwanted: list[str]) -> list[Peer]:
    """Peers by parts of their names, in whatever case."""

    def named(peer: Peer, parts: list[str]) -> bool:
        return any(part.lower() in peer.name.lower() for part in parts)

    peers = [peer for peer in PEERS if (wanted is None or named(peer, wanted)) and not named(peer, unwanted)]
    if not peers:
        raise SystemExit("no peer is called so; --list names all")
    return peers


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
