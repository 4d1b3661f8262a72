"""Memory while the corpus grows ten times: tokenising and training in whole processes.

    python -m benchmarks.corpora TEXT --megabytes 20

Copies of TEXT make one corpus of so many megabytes and one ten times as large. ``rnn-edge train lm`` tokenises each and
trains a few steps; meanwhile the memory of the process and its children is sampled: what is their own (anonymous), and
what they map from files, which the system takes back when it needs it. Prints a table of peaks with pass or MISS for
the target: own memory grows by at most a tenth. Both sizes are such that several processes tokenise. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

from benchmarks.common import machine, table, verdict

TARGET = 1.1
_INTERVAL = 0.02  # seconds between two looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--megabytes", type=int, default=20, help="of the smaller corpus")
    parser.add_argument("--tokenizer", nargs="+", default=("character", "subword"))
    options = parser.parse_args()
    content = options.text.read_bytes()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for tokenizer in options.tokenizer:
            peaks = []
            for size in (options.megabytes, 10 * options.megabytes):
                corpus = place / "corpus.txt"
                with corpus.open("wb") as file:
                    for _ in range(max(1, size * 10**6 // len(content))):
                        file.write(content)
                own, mapped, seconds = peak(place, corpus, tokenizer)
                peaks.append(own)
                figures = (f"{corpus.stat().st_size / 1e6:.0f} MB", f"{own / 1e6:.0f} MB", f"{mapped / 1e6:.0f} MB")
                rows.append((tokenizer, *figures, f"{seconds:.0f} s", "", ""))
            grown = peaks[1] / peaks[0]
            rows[-1] = (*rows[-1][:5], f"{grown:.2f}", verdict(grown <= TARGET))
    print(machine("torch", "tokenizers"), end="\n\n")
    print(table(("tokenizer", "corpus", "own memory", "mapped", "time", f"growth ≤ {TARGET}", "result"), rows))


def peak(folder: Path, corpus: Path, tokenizer: str) -> tuple[int, int, float]:
    """Peak bytes of their own and mapped ones of a run and its children together, and its seconds."""
    # About twenty steps, whatever the corpus; the network is small, so that data are what counts.
    steps = 20 * 8 * 64 / corpus.stat().st_size
    flags = ["--hidden", "64", "--embedding", "32", "--batch-size", "8", "--sequence-length", "64", "--threads", "1"]
    flags += ["--vocabulary-size", "2000", "--epochs", f"{max(steps, 0.001)}", "--device", "cpu", "--force"]
    # Validated is a part of the same size, whatever the corpus: the time of the scores is none of this.
    flags += ["--validation-fraction", f"{100_000 / corpus.stat().st_size:.6f}"]
    command = [sys.executable, "-m", "rnn_edge", "train", "lm", str(corpus), "-o", str(folder / "run")]
    environment = os.environ | {"RNN_EDGE_CACHE": str(folder / "cache")}
    started, largest = perf_counter(), [0, 0]
    process = subprocess.Popen([*command, "--tokenizer", tokenizer, *flags], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        found = [memory(pid) for pid in family(process.pid)]
        largest = [max(old, sum(part)) for old, part in zip(largest, zip(*found, strict=True), strict=True)]
        sleep(_INTERVAL)
    if process.returncode:
        raise SystemExit(f"training failed with exit code {process.returncode}")
    return largest[0], largest[1], perf_counter() - started


def family(pid: int) -> list[int]:
    """A process and those below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        children = []
    return [pid, *(below for child in children for below in family(int(child)))]


def memory(pid: int) -> tuple[int, int]:
    """Anonymous and file-backed bytes that are resident; zeros of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    own, mapped = (int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


if __name__ == "__main__":
    main()
