"""``rnn-edge bench``."""

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from rnn_edge.cli.input import read_input
from rnn_edge.cli.options import DeviceOption
from rnn_edge.errors import DataError, InvalidValueError

if TYPE_CHECKING:
    from rnn_edge.bench import Work
    from rnn_edge.bundle import Bundle
    from rnn_edge.workloads import Lengths

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_FORMATS = ("table", "json", "csv", "md")
_LONGEST = 1_000_000  # tokens or repetitions


@app.command()
def bench(
    bundles: Annotated[
        list[str], typer.Argument(help="Names or folders of bundles, to be compared.", metavar="BUNDLE...")
    ],
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            "-p", "--prompt-tokens", help="Lengths of prompts, or of sources. [default: 64]", metavar="<int,...>"
        ),
    ] = None,
    tokens: Annotated[
        str, typer.Option("-n", "--tokens", help="Tokens generated, or steps.", metavar="<int,...>")
    ] = "256",
    batch: Annotated[
        str, typer.Option("-b", "--batch", help="Streams, or sentences, at once.", metavar="<int,...>")
    ] = "1",
    threads: Annotated[str, typer.Option("-t", "--threads", help="CPU threads.", metavar="<int,...>")] = "1",
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Sentences to translate, one a line, instead of random words.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Each bundle in these too, made for the occasion; needs what exporting needs.",
            metavar="fp32|fp16|int8|int4,...",
        ),
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="How often, after one to warm up.")] = 5,
    device: DeviceOption = "auto",
    output_format: Annotated[str, typer.Option("--format", metavar="|".join(_FORMATS), help="Form of the figures.")] = (
        "table"
    ),
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Measure the speed of bundles.

    Every combination of the lists: mean ± standard deviation of prompt and generation speed and of the step alone, time
    to first token, start of a process, memory, and how near a step comes to what reading the weights takes. Bundles
    take turns, so that they can be compared. Ctrl-C shows what is complete.
    """
    from rnn_edge import render
    from rnn_edge.bench import Bench
    from rnn_edge.bundle import open_bundle
    from rnn_edge.cli.figures import show
    from rnn_edge.machine import describe
    from rnn_edge.memory import check_batch
    from rnn_edge.providers import check_threads
    from rnn_edge.workloads import Lengths

    if output_format not in _FORMATS:
        raise InvalidValueError(f"--format {output_format} is unknown", f"use one of {', '.join(_FORMATS)}")
    if not 1 <= repetitions <= _LONGEST:
        raise InvalidValueError(f"repetitions is {repetitions}", f"use 1 to {_LONGEST}")
    lengths = Lengths(
        _numbers("prompt-tokens", "64" if prompt_tokens is None else prompt_tokens, _LONGEST),
        _numbers("tokens", tokens, _LONGEST),
        _numbers("batch", batch),
    )
    counts = _numbers("threads", threads)
    for count in counts:
        check_threads(count)
    found = [open_bundle(name) for name in dict.fromkeys(bundles)]
    tasks = {bundle.manifest.task for bundle in found}
    if file and "translation" not in tasks:
        raise InvalidValueError("--file is for translators, and there is none", "leave it out")
    if file and prompt_tokens is not None and "language-model" not in tasks:
        raise InvalidValueError("--file and --prompt-tokens exclude each other", "give one of the two")
    lines = [line.strip() for line in read_input(None, file, str(file)).split("\n")] if file else []
    sentences = [line for line in lines if line]
    if file and not sentences:
        raise DataError(f"{file} has no sentences", "give one a line")
    for bundle in found:
        source = bundle.manifest.source
        check_batch(bundle.manifest, max(lengths.batches), min(max(lengths.prompts), source.longest) if source else 0)
    names = [bundle.path.name for bundle in found]
    works: list[Work] = []
    with tempfile.TemporaryDirectory(prefix="rnn-edge-") as scratch:
        with render.progress("loading", quiet=quiet) as progress:
            for index, bundle in enumerate(found):
                name = names[index] if names.count(names[index]) == 1 else str(bundle.path)
                for variant in _variants(bundle, precision, Path(scratch) / str(index)):
                    for count in counts:
                        works += _works(variant, name, device, count, lengths, sentences)
                progress(index + 1, len(found))
        bench = Bench(works)
        try:
            with render.progress("measuring", quiet=quiet) as progress:
                bench.run(repetitions, progress)
        finally:
            results = list(bench.results())
            if results:
                show(describe(), results, output_format)


def _variants(bundle: "Bundle", precisions: str | None, folder: Path) -> "list[Bundle]":
    """The bundle in each of the precisions, itself where it has one of them.

    Raises:
        BundleError: it is rounded already.
        InvalidValueError: a precision that there is not.
        MissingDependencyError: the workstation side is not installed.
    """
    from rnn_edge.manifest import Precision

    if precisions is None:
        return [bundle]
    # By name, as commands of the workstation are: this side imports nothing of it.
    workstation = importlib.import_module("rnn_edge_export.cli").workstation
    found = []
    for name in dict.fromkeys(part.strip() for part in precisions.split(",")):
        if name not in get_args(Precision):
            raise InvalidValueError(f"--precision {name} is unknown", f"use {', '.join(get_args(Precision))}")
        if name == bundle.manifest.precision:
            found.append(bundle)
            continue
        with workstation():
            quantise = importlib.import_module("rnn_edge_export.quantisation.quantise")
            found.append(quantise.write_unmeasured(bundle, folder / name, name))
    return found


def _works(
    bundle: "Bundle", name: str, device: Any, threads: int, lengths: "Lengths", sentences: list[str]
) -> "Iterator[Work]":
    from rnn_edge.bench import Subject
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.translator import Translator
    from rnn_edge.workloads import language_model_works, translator_works

    if bundle.manifest.task == "translation":
        translator = Translator.load(bundle.path, device=device, threads=threads)
        subject = Subject(name, bundle, translator.graphs.device, threads)
        # Long lines are cut in parts, as when they are translated.
        parts = [part for line in sentences for part in translator.plan(line, translator.defaults)[0].sentences]
        yield from translator_works(subject, translator, lengths, parts)
    else:
        model = LanguageModel.load(bundle.path, device=device, threads=threads)
        subject = Subject(name, bundle, model.graph.device, threads)
        yield from language_model_works(subject, model, lengths)


def _numbers(name: str, text: str, at_most: int | None = None) -> tuple[int, ...]:
    """The numbers of a comma list, each once.

    Raises:
        InvalidValueError: one is no number, or out of its range.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts):
        raise InvalidValueError(f"--{name} is {text!r}", "use whole numbers with commas between them, like 1,32")
    numbers = dict.fromkeys(map(int, parts))
    for number in numbers:
        if number < 1 or (at_most and number > at_most):
            raise InvalidValueError(f"{name} is {number}", f"use 1 to {at_most}" if at_most else "use at least 1")
    return tuple(numbers)
