"""``rnn-edge quantize``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnn_edge.errors import InvalidValueError
from rnn_edge_export.cli import workstation

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle
    from rnn_edge.manifest import Precision, Task
    from rnn_edge_export.quantisation.quantise import Material

app = typer.Typer(rich_markup_mode=None, add_completion=False)

DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="Measure on this: a text for a language model; pairs for a translator: a TSV file, or twice for a source "
        "and a target file. [default: text that the model itself writes]",
        show_default=False,
    ),
]
IncreaseOption = Annotated[
    float | None,
    typer.Option("--max-loss-increase", help="In per cent. [default: 0.5, int4 1]", min=0, show_default=False),
]
BlockOption = Annotated[
    int, typer.Option(help="Weights that share a scale in int4, at most.", metavar="16|32|64|128|256")
]


@app.command()
def quantize(
    bundle: Annotated[str, typer.Argument(help="Name or folder of a bundle in fp32.", metavar="BUNDLE")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new bundle.", show_default=False)],
    precision: Annotated[
        str, typer.Option(help="Of the weights; fp16 is for CUDA, and storage on a CPU.", metavar="int8|int4|fp16")
    ] = "int8",
    data: DataOption = None,
    max_loss_increase: IncreaseOption = None,
    block_size: BlockOption = 128,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; else that of its folder.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the data.")] = "utf-8",
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle, and take one that loses too much.")
    ] = False,
) -> None:
    """Write a bundle again with weights of fewer bits.

    Shows what it costs against the original: the loss on at least 100,000 tokens where there are so many, with a 95 %
    interval, how often both choose the same token, and the size and speed of both. Nothing is written where the loss
    may rise too much.
    """
    with workstation():
        from rnn_edge.bundle import open_bundle
        from rnn_edge.render import note

        found = open_bundle(bundle)
        quantise_to(
            found,
            output,
            known_precision(precision),
            name or output.resolve().name,
            read_material(found.manifest.task, data, encoding),
            max_loss_increase,
            block_size,
            force=force,
        )
        note(f"wrote {output}")


def known_precision(precision: str, *besides: str) -> "Precision":
    """Raises InvalidValueError for one that nothing can be rounded to; ``besides`` can be given, too."""
    from rnn_edge_export.quantisation.quantise import PRECISIONS

    for known in PRECISIONS:
        if known == precision:
            return known
    raise InvalidValueError(f"--precision {precision} is unknown", f"use {', '.join((*besides, *PRECISIONS))}")


def quantise_to(
    bundle: "Bundle",
    output: Path,
    precision: "Precision",
    name: str,
    material: "Material",
    max_loss_increase: float | None,
    block_size: int,
    *,
    force: bool,
) -> None:
    """Quantise, and show what it costs."""
    from rnn_edge import render
    from rnn_edge_export.quantisation.gate import WANTED_TOKENS, step_seconds
    from rnn_edge_export.quantisation.quantise import quantise

    with render.progress("comparing with the original") as progress:
        rounded, found = quantise(
            bundle,
            output,
            precision,
            name=name,
            material=material,
            maximum_increase=None if max_loss_increase is None else max_loss_increase / 100,
            block_size=block_size,
            force=force,
            progress=progress,
        )
    half = 100 * found.half_width
    times = step_seconds(bundle, rounded)
    original = bundle.manifest.precision
    render.show_table(
        ("measure", original, precision, ""),
        [
            ("loss", f"{found.loss:.4f}", f"{found.rounded_loss:.4f}", "nats per token"),
            ("loss increase", "", f"{round(100 * found.increase, 4) + 0.0:+.4f} %", f"± {half:.4f} % (95 %)"),
            ("top-1 agreement", "", f"{100 * found.top1_agreement:.2f} %", ""),
            ("KL divergence", "", f"{found.divergence:.6f}", "nats per token"),
            ("largest logit difference", "", f"{found.largest_difference:.3f}", ""),
            ("size", f"{bundle.size / 1e6:.2f}", f"{rounded.size / 1e6:.2f}", "MB"),
            ("step", f"{times[0] * 1e6:.0f}", f"{times[1] * 1e6:.0f}", "µs, one stream, one thread"),
        ],
    )
    few = "" if found.tokens >= WANTED_TOKENS else f"; few: {WANTED_TOKENS:,} make a narrower interval"
    skipped = f"; {found.skipped:,} of its characters are not in the vocabulary" if found.skipped else ""
    render.note(f"measured on {found.tokens:,} tokens of {found.data}{skipped}{few}")
    if precision == "fp16":
        render.note("a CPU computes with fp16 weights in fp32: they halve the file, and are faster on CUDA only")


def read_material(task: "Task", data: list[Path] | None, encoding: str) -> "Material":
    """What the rounded model is measured on, from the files given."""
    from rnn_edge.text_files import read_pairs, read_text
    from rnn_edge_export.quantisation.quantise import Material

    if not data:
        return Material()
    names = " and ".join(path.name for path in data)
    if task == "translation":
        if len(data) > 2:
            raise InvalidValueError(f"--data names {len(data)} files", "give a TSV file, or a source and a target file")
        return Material(names, pairs=read_pairs(data, encoding)[0])
    if len(data) > 1:
        raise InvalidValueError(f"--data names {len(data)} files", "a language model reads one text")
    return Material(names, text=read_text(data[0], encoding)[0])
