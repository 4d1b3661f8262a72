"""``rnn-edge evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnn_edge.cli.options import DeviceOption, ThreadsOption
from rnn_edge.errors import DataError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rnn_edge.bundle import Bundle
    from rnn_edge.evaluation import Loss

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_TOKENIZERS = ("13a", "none", "intl", "char", "zh")


@app.command()
def evaluate(
    bundle: Annotated[
        str,
        typer.Argument(help="Name or folder of a bundle, or folder of a language model's run.", metavar="BUNDLE"),
    ],
    data: Annotated[
        list[Path],
        typer.Argument(
            help="A text for a language model; pairs for a translator: a TSV file, or a source and a target file.",
            metavar="DATA...",
        ),
    ],
    beam: Annotated[
        int | None, typer.Option("-b", "--beam", help="Beams; 1 is greedy. [default: the bundle's]")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="α of Wu et al. (2016); 0 is off. [default: the bundle's]")
    ] = None,
    coverage_penalty: Annotated[float, typer.Option(help="β of Wu et al. (2016); 0 is off.")] = 0.0,
    max_ratio: Annotated[float, typer.Option(help="At most so many times the source's tokens, and ten.")] = 1.5,
    tokenize: Annotated[
        str,
        typer.Option(help="How sacreBLEU tokenises; none for text that is tokenised.", metavar="|".join(_TOKENIZERS)),
    ] = "13a",
    block: Annotated[int, typer.Option(help="Tokens of a language model's cold blocks.")] = 256,
    unknown: Annotated[
        str, typer.Option(help="What to do with characters a language model has never seen.", metavar="skip|error")
    ] = "error",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the translations, one a line.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sentences at once.")] = 32,
    encoding: Annotated[str, typer.Option(help="Encoding of the data.")] = "utf-8",
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Let a run learn from the text on its way (Krause et al. 2018).")
    ] = False,
    dynamic_lr: Annotated[
        float | None, typer.Option(help="η. [default: 0.005 a token of the window, with statistics 5e-05]")
    ] = None,
    dynamic_decay: Annotated[
        float | None, typer.Option(help="λ, back to the trained weights. [default: 0.001, with statistics 0.002]")
    ] = None,
    dynamic_window: Annotated[
        int | None, typer.Option(help="Tokens that are learnt from at once. [default: 20, of words or subwords 5]")
    ] = None,
    dynamic_statistics: Annotated[
        Path | None, typer.Option(help="Training text, for the RMS rule: its gradients scale the steps.")
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One score a line.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output file.")] = False,
) -> None:
    """Score a model on data.

    A translator: sacreBLEU and chrF with their signatures, sentences/s, and the loss of the references. A language
    model: nats, bits and perplexity per token, with the state carried and from cold blocks, and tokens/s.

    A run is measured in PyTorch, and may be measured by dynamic evaluation.
    """
    from rnn_edge.bundle import open_bundle
    from rnn_edge.files import check_output, write_text

    if tokenize not in _TOKENIZERS:
        raise InvalidValueError(f"--tokenize {tokenize} is unknown", f"use one of {', '.join(_TOKENIZERS)}")
    if block < 1:
        raise InvalidValueError(f"block is {block}", "use at least 1")
    if output:
        check_output(output, force=force, folder=False)
    learning = {
        "learning_rate": dynamic_lr,
        "decay": dynamic_decay,
        "window": dynamic_window,
        "statistics": dynamic_statistics,
    }
    if not dynamic and any(value is not None for value in learning.values()):
        raise InvalidValueError("--dynamic-… says how to learn from the text", "add --dynamic, or leave it out")
    if _is_run(bundle):
        if output:
            raise InvalidValueError("--output is for translations, and this is a run", "leave it out")
        rows = _run(bundle, data, block, unknown, encoding, device, threads, learning if dynamic else None)
        _show(rows, as_json=as_json)
        return
    found = open_bundle(bundle)
    if dynamic:
        raise InvalidValueError(
            f"{bundle} is a bundle, and only a run has gradients to learn by", "give the run that it was exported from"
        )
    if found.manifest.task == "translation":
        options = {
            "beam": beam,
            "length_penalty": length_penalty,
            "coverage_penalty": coverage_penalty,
            "maximum_ratio": max_ratio,
            "batch_size": batch_size,
        }
        given = {name: value for name, value in options.items() if value is not None}
        rows, translations = _translator(found, data, given, tokenize, encoding, device, threads)
        if output:
            write_text(output, "".join(line + "\n" for line in translations))
    else:
        if output:
            raise InvalidValueError("--output is for translations, and this is a language model", "leave it out")
        rows = _language_model(found, data, block, unknown, encoding, device, threads)
    _show(rows, as_json=as_json)


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    import json

    from rnn_edge import render

    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        table = [(row["name"], f"{row['value']:.4f}", row["unit"], row["method"]) for row in rows]
        render.show_table(("measure", "value", "unit", "how"), table)


def _is_run(name: str) -> bool:
    """Whether this is the folder of a training run rather than of a bundle, or a bundle's name."""
    from rnn_edge.manifest import MANIFEST_NAME

    return (Path(name) / "recipe.toml").is_file() and not (Path(name) / MANIFEST_NAME).is_file()


def _run(
    run: str,
    data: list[Path],
    block: int,
    unknown: Any,
    encoding: str,
    device: str,
    threads: Any,
    learning: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    import importlib

    from rnn_edge import render

    _check_one_text(data)
    # By name, as commands of the workstation are: this side imports nothing of it.
    workstation = importlib.import_module("rnn_edge_export.cli").workstation
    with workstation():
        evaluation = importlib.import_module("rnn_edge_export.language_model.evaluation")
        found, lacking, skipped = evaluation.evaluate_run(
            Path(run),
            data[0],
            encoding=encoding,
            unknown=unknown,
            block=block,
            device=device,
            threads=threads,
            dynamic=evaluation.Dynamic(**learning) if learning is not None else None,
            bar=render.progress,
        )
    return _losses(found, lacking, skipped)


def _translator(
    bundle: "Bundle",
    data: list[Path],
    given: dict[str, Any],
    tokenize: str,
    encoding: str,
    device: Any,
    threads: Any,
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    from dataclasses import replace

    from rnn_edge import render
    from rnn_edge.evaluation import evaluate_translator
    from rnn_edge.text_files import read_pairs
    from rnn_edge.translation import TranslationOptions
    from rnn_edge.translator import Translator

    if len(data) > 2:
        raise InvalidValueError(f"DATA names {len(data)} files", "give one TSV file, or a source and a target file")
    streams = given.get("batch_size", TranslationOptions.batch_size)
    translator = Translator.load(bundle.path, device=device, threads=threads, streams=streams)
    options = replace(translator.defaults, **given)
    pairs, _ = read_pairs(data, encoding)
    if not pairs:
        raise DataError(f"{data[0]} has no pairs", "give some")
    with render.progress("translating") as progress:
        found = evaluate_translator(translator, pairs, options, tokenize, progress)
    search = f"beam {options.beam}" if options.beam > 1 else "greedy"
    rows = [_row(score.name, score.value, "", f"{search}, {score.signature}") for score in found.scores]
    reference, count = found.reference, len(pairs)
    rows += [
        _row("loss", reference.nats, "nats per token", reference.method),
        _row("perplexity", reference.perplexity, "", reference.method),
        _row("speed", count / found.seconds, "sentences/s", f"{search}, batches of {options.batch_size}"),
        _row("speed", found.words / found.seconds, "words/s", f"{search}, words of the translations"),
    ]
    return rows, found.translations


def _language_model(
    bundle: "Bundle", data: list[Path], block: int, unknown: Any, encoding: str, device: Any, threads: Any
) -> list[dict[str, Any]]:
    from rnn_edge import render
    from rnn_edge.evaluation import carried_loss, characters_of, cold_block_loss
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.text_files import read_text

    _check_one_text(data)
    model = LanguageModel.load(bundle.path, device=device, threads=threads)
    text = read_text(data[0], encoding)[0]
    ids = model.tokenizer.encode(text, unknown=unknown)
    if len(ids) < 2:
        raise DataError(f"{data[0]} has {len(ids)} tokens", "give at least two")
    found = []
    covered, characters = characters_of(model.tokenizer, text, ids, unknown)
    with render.progress("state carried") as progress:
        found.append(carried_loss(model, ids, characters, progress))
    if len(ids) > block:
        with render.progress("cold blocks") as progress:
            found.append(cold_block_loss(model, ids, characters, block, progress))
    unknown_id = model.manifest.special_ids.unknown
    lacking = 0.0 if unknown_id is None else ids.count(unknown_id) / len(ids)
    return _losses(found, lacking, 1 - covered / len(text))


def _check_one_text(data: list[Path]) -> None:
    if len(data) > 1:
        raise InvalidValueError(f"DATA names {len(data)} files", "a language model reads one text")


def _losses(found: "Sequence[Loss]", lacking: float, skipped: float) -> list[dict[str, Any]]:
    rows = []
    if skipped:
        rows.append(_row("skipped", 100 * skipped, "% of characters", "what the vocabulary lacks"))
    if lacking:  # the characters that they hide cost nothing, and cheat the figures below
        rows.append(_row("unknown", 100 * lacking, "% of tokens", "words that the vocabulary lacks"))
    for loss in found:
        rows += [
            _row("loss", loss.nats, "nats per token", loss.method),
            _row("loss", loss.bits, "bits per token", loss.method),
            _row("loss", loss.bits_per_character, "bits per character", loss.method),
            _row("perplexity", loss.perplexity, "", loss.method),
            _row("speed", loss.tokens / loss.seconds, "tokens/s", loss.method),
        ]
    return rows


def _row(name: str, value: float, unit: str, method: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "method": method}
