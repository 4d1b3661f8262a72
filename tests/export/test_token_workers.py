"""Processes that tokenise: however the calling program was started, and whatever becomes of it or of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rnn_edge.errors import RnnEdgeError, UnknownTokenError
from rnn_edge.tokenizer import Tokenizer, character_tokenizer
from rnn_edge_export.language_model import token_workers
from rnn_edge_export.language_model.token_workers import encode_chunks

_ABC = character_tokenizer("abc")
_KIND = np.dtype("<u2")
# Its tokenizer is larger than what a pipe holds. Nothing guards it from being imported.
_PROGRAM = """
import sys, time
import numpy as np
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.language_model.token_workers import encode_chunks
tokenizer = character_tokenizer("".join(map(chr, range(0x100, 0x4000))))
assert len(tokenizer.content) > 2**17
chunks = ["\\u0100\\u0101", "\\u0102", "\\u0103"] * 3
for ids, length in encode_chunks(tokenizer, chunks, np.dtype("<u2"), 2):
    print(np.frombuffer(ids, "<u2").tolist(), length, flush=True)
    time.sleep(float(sys.argv[1]))
"""
_EXPECTED = "[0, 1] 2\n[2] 1\n[3] 1\n" * 3


def _start(*arguments: str, given: str | None = None) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    if given is not None:
        assert process.stdin
        process.stdin.write(given)
        process.stdin.close()
        process.stdin = None
    return process


def test_the_program_may_have_no_guard(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(_PROGRAM, encoding="utf-8")
    with _start(str(path), "0") as process:
        assert process.communicate(timeout=60)[0] == _EXPECTED


def test_the_program_may_come_from_standard_input() -> None:
    with _start("-", "0", given=_PROGRAM) as process:
        assert process.communicate(timeout=60)[0] == _EXPECTED


def test_where_no_process_starts_this_one_tokenises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_workers, "_PROGRAM", "raise SystemExit(1)  # {path} {module}")
    assert _encoded(["ab", "c"]) == [([0, 1], 2), ([2], 1)]
    monkeypatch.setattr("sys.executable", "missing")
    assert _encoded(["ab", "c"]) == [([0, 1], 2), ([2], 1)]


def test_what_fails_there_is_named_here() -> None:
    with pytest.raises(UnknownTokenError, match="'z'"):
        _encoded(["ab", "cz", "a"])


def test_a_killed_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks() -> Iterator[str]:
        yield from ["a", "b"]
        for process in started:
            process.kill()
            process.wait()
        yield "c"

    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr("subprocess.Popen", start)
    with pytest.raises(RnnEdgeError, match="a process that tokenises was killed"):
        list(encode_chunks(_ABC, chunks(), _KIND, 1))
    assert len(started) == 1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_they_end_with_the_program() -> None:
    process = _start("-c", _PROGRAM, "60")
    assert process.stdout
    assert process.stdout.readline() == "[0, 1] 2\n"
    workers = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 20
    while any(_lives(worker) for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _encoded(chunks: list[str], tokenizer: Tokenizer = _ABC) -> list[tuple[list[int], int]]:
    return [(np.frombuffer(ids, _KIND).tolist(), length) for ids, length in encode_chunks(tokenizer, chunks, _KIND, 2)]
