"""``rnn-edge export``."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnn_edge.errors import InvalidValueError
from rnn_edge_export.cli import workstation
from rnn_edge_export.cli.quantize import (
    BlockOption,
    DataOption,
    IncreaseOption,
    known_precision,
    quantise_to,
    read_material,
)

if TYPE_CHECKING:
    from rnn_edge_export.language_model.export import LanguageModelSource
    from rnn_edge_export.translation.export import TranslationSource

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.", metavar="RUN")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle.", show_default=False)],
    lowering: Annotated[str, typer.Option(help="How a cell becomes ONNX.", metavar="operator|cell")] = "operator",
    precision: Annotated[
        str,
        typer.Option(help="Of the weights; others than fp32 as rnn-edge quantize.", metavar="fp32|fp16|int8|int4"),
    ] = "fp32",
    data: DataOption = None,
    max_loss_increase: IncreaseOption = None,
    block_size: BlockOption = 32,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; else that of its folder.")] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown to add to the model card.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle, and take one that loses too much.")
    ] = False,
) -> None:
    """Export a run as a verified bundle.

    Writes stepwise ONNX graphs with explicit state, tokenizer, model card and manifest. Nothing is written unless the
    graphs compute what PyTorch computes.
    """
    if lowering not in ("operator", "cell"):
        raise InvalidValueError(f"--lowering {lowering} is unknown", "use operator or cell")
    with workstation():
        from rnn_edge.bundle import read_bundle
        from rnn_edge.files import check_output
        from rnn_edge.render import show_checks
        from rnn_edge.text_files import read_text
        from rnn_edge_export.onnx_export import check_replaceable, export_bundle
        from rnn_edge_export.quantisation.quantise import check_block_size, check_material

        if precision != "fp32":
            known_precision(precision)
            check_block_size(block_size)
        elif data or max_loss_increase is not None:
            raise InvalidValueError(
                "--data and --max-loss-increase are for other precisions than fp32", "leave them out"
            )
        source = _load(run)
        if notes:
            source = replace(source, notes=read_text(notes, "utf-8")[0])
        name = name or output.resolve().name
        material = read_material(source.recipe.task, data, "utf-8")
        if precision != "fp32":  # before the work rather than after it
            check_material(source.recipe.task, material)
        check_replaceable(output, force=force)
        check_output(output, force=force, folder=True)
        with tempfile.TemporaryDirectory(prefix="rnn-edge-") as scratch:
            place = output if precision == "fp32" else Path(scratch) / "fp32"
            bundle, checks = export_bundle(
                source,
                place,
                name=name,
                lowering=lowering,  # type: ignore[arg-type]  # checked above
                force=force,
            )
            show_checks([(check.name, f"{check.difference:.1e}", f"{check.tolerance:.0e}") for check in checks])
            if precision != "fp32":
                quantise_to(
                    bundle,
                    output,
                    known_precision(precision),
                    name,
                    material,
                    max_loss_increase,
                    block_size,
                    force=force,
                )
                bundle = read_bundle(output)
    command = "translate" if bundle.manifest.task == "translation" else "generate"
    typer.echo(
        f"{output}: {bundle.size / 1e6:.1f} MB, verified against PyTorch; try: rnn-edge {command} {output}", err=True
    )


def _load(run: Path) -> "LanguageModelSource | TranslationSource":
    from rnn_edge_export.recipe import LanguageModelRecipe, TranslationRecipe
    from rnn_edge_export.run import load_run

    content = load_run(run)
    if isinstance(content.recipe, TranslationRecipe):
        from rnn_edge_export.translation.export import load_source as load_translation

        return load_translation(run, content, content.recipe)
    from rnn_edge_export.language_model.export import load_source

    assert isinstance(content.recipe, LanguageModelRecipe)
    return load_source(run, content, content.recipe)
