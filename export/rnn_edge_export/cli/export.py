"""``rnn-edge export``."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnn_edge.errors import InvalidValueError
from rnn_edge_export.cli import known_lowering, workstation
from rnn_edge_export.cli.quantize import (
    BlockOption,
    DataOption,
    IncreaseOption,
    known_precision,
    quantise_to,
    read_material,
)

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle
    from rnn_edge_export.language_model.export import LanguageModelSource
    from rnn_edge_export.parity import Check
    from rnn_edge_export.translation.export import TranslationSource

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="Folder of a training run; with --format ort a bundle too.", metavar="RUN")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle.", show_default=False)],
    lowering: Annotated[str, typer.Option(help="How a cell becomes ONNX.", metavar="operator|cell")] = "operator",
    precision: Annotated[
        str,
        typer.Option(help="Of the weights; others than fp32 as rnn-edge quantize.", metavar="fp32|fp16|int8|int4"),
    ] = "fp32",
    data: DataOption = None,
    max_loss_increase: IncreaseOption = None,
    block_size: BlockOption = 128,
    format: Annotated[  # noqa: A002
        str,
        typer.Option(help="ort adds the graphs for reduced builds of ONNX Runtime, as on phones.", metavar="onnx|ort"),
    ] = "onnx",
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
    wanted = known_lowering(lowering)
    if format not in ("onnx", "ort"):
        raise InvalidValueError(f"--format {format} is unknown", "use onnx or ort")
    with workstation():
        from rnn_edge.bundle import read_bundle
        from rnn_edge.files import check_output
        from rnn_edge.text_files import read_text
        from rnn_edge_export.mobile import check_precision
        from rnn_edge_export.onnx_export import check_replaceable, export_bundle
        from rnn_edge_export.quantisation.quantise import check_block_size, check_material

        if format == "ort" and (path := _find_bundle(run)):
            if precision != "fp32" or lowering != "operator" or data or max_loss_increase is not None or name or notes:
                raise InvalidValueError(f"{run} is a bundle already", "give no other option than --force with it")
            bundle = _add_mobile(read_bundle(path), output, force=force)
            typer.echo(f"{output}: {bundle.size / 1e6:.1f} MB, {run} with graphs for phones", err=True)
            return
        if precision != "fp32":
            chosen = known_precision(precision, "fp32")
            check_block_size(block_size)
            if format == "ort":
                check_precision(chosen)
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
            whole = output if format == "onnx" else Path(scratch) / "onnx"
            bundle, checks = export_bundle(
                source,
                whole if precision == "fp32" else Path(scratch) / "fp32",
                name=name,
                lowering=wanted,
                force=force,
            )
            _show(checks)
            if precision != "fp32":
                quantise_to(
                    bundle,
                    whole,
                    known_precision(precision),
                    name,
                    material,
                    max_loss_increase,
                    block_size,
                    force=force,
                )
                bundle = read_bundle(whole)
            if format == "ort":
                bundle = _add_mobile(bundle, output, force=force)
    command = "translate" if bundle.manifest.task == "translation" else "generate"
    typer.echo(
        f"{output}: {bundle.size / 1e6:.1f} MB, verified against PyTorch; try: rnn-edge {command} {output}", err=True
    )


def _find_bundle(run: Path) -> Path | None:
    """The bundle that ``run`` is, or names."""
    from rnn_edge.bundle import find_bundles
    from rnn_edge.manifest import MANIFEST_NAME

    if run.exists():
        return run if (run / MANIFEST_NAME).is_file() else None
    return next((path for path in find_bundles() if path.name == str(run)), None)


def _add_mobile(bundle: "Bundle", output: Path, *, force: bool) -> "Bundle":
    from rnn_edge_export.mobile import add_mobile_graphs

    bundle, checks = add_mobile_graphs(bundle, output, force=force)
    _show(checks)
    return bundle


def _show(checks: "list[Check]") -> None:
    from rnn_edge.render import show_checks

    show_checks([(check.name, f"{check.difference:.1e}", f"{check.tolerance:.0e}") for check in checks])


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
