"""What the benchmarks share: interleaved timing, ratios pair by pair, Markdown tables, random-weight bundles.

Machines are noisy, so every claim is a ratio: contenders run one after the other in rounds (A B A B …), each round
gives one ratio, and the median of these counts. Only the standard library is imported here: see ``startup.py``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle
    from rnn_edge.manifest import Cell, Lowering

CELLS: tuple[Cell, ...] = ("lstm", "gru", "rnn")
LOWERINGS: tuple[Lowering, ...] = ("operator", "cell")
EMBEDDING = 128
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # 96, about what an English corpus has


def interleave(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, units: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Call all contenders once a round → seconds per unit of each call; a call does ``units`` units of work."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(warm_up + rounds):
        for name, work in contenders.items():
            started = perf_counter()
            work()
            if index >= warm_up:
                seconds[name].append((perf_counter() - started) / units)
    return seconds


def ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The median over rounds of ours / peer: what slows the machine for a moment slows both of a round."""
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def microseconds(seconds: Sequence[float]) -> str:
    """Median (fastest)."""
    return f"{statistics.median(seconds) * 1e6:,.1f} ({min(seconds) * 1e6:,.1f})"


def verdict(passed: bool) -> str:
    """The word in the last column."""
    return "pass" if passed else "MISS"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads well in a terminal too."""
    cells = [list(headings), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine(*packages: str) -> str:
    """Processor, cores, load and versions: what a figure is worth nothing without."""
    versions = [f"{package} {_version(package)}" for package in ("rnn-edge", "numpy", *packages)]
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    parts = [_processor(), f"{os.cpu_count()} cores", load, platform.system(), f"Python {platform.python_version()}"]
    return ", ".join([*parts, *versions])


def network_size(text: str) -> tuple[int, int]:
    """``512x2`` → width 512, 2 layers; for argparse."""
    try:
        hidden, layers = (int(part) for part in text.split("x"))
    except ValueError:
        hidden = layers = 0
    if hidden < 1 or layers < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxLAYERS, like 512x2")
    return hidden, layers


def random_bundle(folder: Path, cell: Cell, hidden: int, layers: int, lowering: Lowering) -> Bundle:
    """A bundle like the exporter's in every way but training: speed does not depend on the weights' values."""
    import torch

    from rnn_edge.tokenizer import character_tokenizer
    from rnn_edge_export.language_model.export import LanguageModelSource
    from rnn_edge_export.language_model.modules import RecurrentLanguageModel
    from rnn_edge_export.onnx_export import export_bundle
    from rnn_edge_export.recipe import LanguageModelRecipe
    from rnn_edge_export.recipe_sections import LanguageModelSection

    torch.manual_seed(0)
    section = LanguageModelSection(cell=cell, embedding=EMBEDDING, hidden=hidden, layers=layers)
    tokenizer = character_tokenizer(CHARACTERS)
    model = RecurrentLanguageModel(section, tokenizer.vocabulary_size)
    name = f"{cell}-{hidden}x{layers}-{lowering}"
    source = LanguageModelSource(model, tokenizer, LanguageModelRecipe(model=section))
    return export_bundle(source, folder / name, name=name, lowering=lowering)[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
