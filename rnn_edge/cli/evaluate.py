"""``rnn-edge evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnn_edge.cli.options import DeviceOption, ThreadsOption
from rnn_edge.errors import DataError, InvalidValueError

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_TOKENIZERS = ("13a", "none", "intl", "char", "zh")


@app.command()
def evaluate(
    bundle: Annotated[str, typer.Argument(help="Name or folder of a bundle.", metavar="BUNDLE")],
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
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One score a line.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output file.")] = False,
) -> None:
    """Score a model on data.

    A translator: sacreBLEU and chrF with their signatures, sentences/s, and the loss of the references. A language
    model: nats, bits and perplexity per token, with the state carried and from cold blocks, and tokens/s.
    """
    import json

    from rnn_edge import render
    from rnn_edge.bundle import open_bundle
    from rnn_edge.files import check_output, write_text

    if tokenize not in _TOKENIZERS:
        raise InvalidValueError(f"--tokenize {tokenize} is unknown", f"use one of {', '.join(_TOKENIZERS)}")
    if block < 1:
        raise InvalidValueError(f"block is {block}", "use at least 1")
    if output:
        check_output(output, force=force, folder=False)
    found = open_bundle(bundle)
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
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        table = [(row["name"], f"{row['value']:.4f}", row["unit"], row["method"]) for row in rows]
        render.show_table(("measure", "value", "unit", "how"), table)


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
    from rnn_edge.translator import Translator

    if len(data) > 2:
        raise InvalidValueError(f"DATA names {len(data)} files", "give one TSV file, or a source and a target file")
    translator = Translator.load(bundle.path, device=device, threads=threads)
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
    from rnn_edge.evaluation import carried_loss, cold_block_loss
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.text_files import read_text

    if len(data) > 1:
        raise InvalidValueError(f"DATA names {len(data)} files", "a language model reads one text")
    model = LanguageModel.load(bundle.path, device=device, threads=threads)
    text = read_text(data[0], encoding)[0]
    ids = model.tokenizer.encode(text, unknown=unknown)
    if len(ids) < 2:
        raise DataError(f"{data[0]} has {len(ids)} tokens", "give at least two")
    found = []
    with render.progress("state carried") as progress:
        found.append(carried_loss(model, ids, text, progress))
    if len(ids) > block:
        with render.progress("cold blocks") as progress:
            found.append(cold_block_loss(model, ids, text, block, progress))
    rows = []
    unknown_id = model.manifest.special_ids.unknown
    lacking = 0 if unknown_id is None else ids.count(unknown_id)
    if lacking:  # the characters that they hide cost nothing, and cheat the figures below
        rows.append(_row("unknown", 100 * lacking / len(ids), "% of tokens", "words that the vocabulary lacks"))
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
