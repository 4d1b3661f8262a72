"""``rnn-edge translate``."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from rnn_edge.cli.input import cancel_on_interrupt, count_lines, line_chunks, read_input, typed_lines
from rnn_edge.cli.options import DeviceOption, ThreadsOption
from rnn_edge.errors import InvalidValueError

if TYPE_CHECKING:
    from rnn_edge.cli.translations import LineWriter, Show
    from rnn_edge.translation import TranslationOptions
    from rnn_edge.translator import Translator

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_PICTURE = re.compile(r".+\.(svgz?|png|jpe?g|gif|pdf|webp|bmp|tiff?)", re.IGNORECASE)  # some of which are refused


class _Command(TyperCommand):
    """``--attention`` may have a file after it, which options of this library cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rewritten: list[str] = []
        for argument in args:
            if rewritten and rewritten[-1] == "--attention" and _PICTURE.fullmatch(argument):
                rewritten[-1] = f"--attention-file={argument}"
            else:
                rewritten.append(re.sub("^--attention=", "--attention-file=", argument))
        return super().parse_args(ctx, rewritten)


@app.command(cls=_Command)
def translate(
    bundle: Annotated[str, typer.Argument(help="Name, folder or archive of a bundle.", metavar="BUNDLE")],
    text: Annotated[str | None, typer.Argument(help="Text to translate; else standard input.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="File to translate, line by line.")] = None,
    beam: Annotated[
        int | None, typer.Option("-b", "--beam", help="Beams; 1 is greedy. [default: the bundle's]")
    ] = None,
    n_best: Annotated[int, typer.Option("-n", "--n-best", help="Show so many translations, with scores.")] = 1,
    length_penalty: Annotated[
        float | None, typer.Option(help="α of Wu et al. (2016); 0 is off. [default: the bundle's]")
    ] = None,
    coverage_penalty: Annotated[float, typer.Option(help="β of Wu et al. (2016); 0 is off.")] = 0.0,
    max_ratio: Annotated[float, typer.Option(help="At most so many times the source's tokens, and ten.")] = 1.5,
    prefix: Annotated[str, typer.Option(help="How the translation of each sentence starts.")] = "",
    replace_unknown: Annotated[
        bool, typer.Option("--replace-unknown", help="Put the source word where the vocabulary lacks the target's.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Draw tokens at this temperature, without a beam.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the K likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the fewest that reach this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw among those this fraction as likely as the first.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help="Draw with recent tokens weakened; 1 is off.")] = None,
    repeat_window: Annotated[int | None, typer.Option(help="How many tokens are recent.")] = None,
    seed: Annotated[int | None, typer.Option("-s", "--seed", help="Same seed, same draws.")] = None,
    unwrap: Annotated[bool, typer.Option("--unwrap", help="Join the lines of a paragraph before translating.")] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Draw the attention; with FILE.svg or FILE.png after it, as a picture.")
    ] = False,
    attention_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    alignments: Annotated[bool, typer.Option("--alignments", help="Pharaoh pairs after a tab: 0-0 1-2.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One event a line, with attention and scores.")] = False,
    batch_size: Annotated[int, typer.Option(help="Sentences at once, for files and pipes.")] = 32,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no closing summary.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
) -> None:
    """Translate text.

    A text given here streams word by word. A file, or piped input, is translated line by line in batches: as many lines
    come out as go in, in their order.
    """
    from rnn_edge.cli.translations import LineWriter, Show
    from rnn_edge.sampling import SamplingOptions
    from rnn_edge.translator import Translator

    if text is not None and file is not None:
        raise InvalidValueError("a text and --file exclude each other", "give one of the two")
    if attention_file:
        from rnn_edge.heatmap import check_picture_path

        check_picture_path(attention_file, force=force)
    drawn = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_window": repeat_window,
    }
    given: dict[str, Any] = {name: value for name, value in drawn.items() if value is not None}
    sampling = SamplingOptions(**{"temperature": 1.0, **given}) if given else None
    overrides = {
        "beam": 1 if beam is None and sampling else beam,
        "length_penalty": length_penalty,
        "coverage_penalty": coverage_penalty,
        "maximum_ratio": max_ratio,
        "prefix": prefix,
        "replace_unknown": replace_unknown,
        "sampling": sampling,
        "seed": seed,
        "unwrap": unwrap,
        "batch_size": batch_size,
        "n_best": n_best,
        "log_probabilities": json_lines,
    }
    started = perf_counter()
    waiting = text is None and file is None and sys.stdin is not None and sys.stdin.isatty()
    streamed = waiting or text is not None or attention or attention_file is not None
    streams = 1 if streamed else batch_size
    translator = Translator.load(bundle, device=device, threads=threads, streams=streams)  # type: ignore[arg-type]  # checked there
    loaded = perf_counter() - started
    options = translator.options(**overrides)
    if streamed:
        show = Show(
            lists=n_best > 1,
            alignments=alignments,
            json_lines=json_lines,
            attention=attention,
            picture=attention_file,
            force=force,
        )
        texts = typed_lines() if waiting else iter([read_input(text, file, "the text")])
        code = _stream(translator, texts, options, show, loaded, quiet=quiet)
    else:
        writer = LineWriter(lists=n_best > 1, alignments=alignments, json_lines=json_lines)
        # Lines of one paragraph can only be joined when all of them are there.
        chunks = iter([[read_input(None, file, "the text")]]) if unwrap else line_chunks(file, 16 * options.batch_size)
        code = _lines(translator, chunks, file, options, writer, quiet=quiet)
    if code:
        raise typer.Exit(code)


def _stream(
    translator: "Translator",
    texts: Iterator[str],
    options: "TranslationOptions",
    show: "Show",
    loaded: float,
    *,
    quiet: bool,
) -> int:
    """Each text as it is translated; the exit code."""
    from rnn_edge import render

    sentences = 0
    for text in texts:
        stream = translator.stream(text, options, sentences)
        if stream.cut:
            _warn_of_cut(translator, stream.cut)
        with cancel_on_interrupt(stream.cancel):
            for event in stream:
                show.event(event)
        show.end_text()
        sentences += event.sentence  # the last event counts them
        assert event.timings is not None
        if not quiet:
            seed = stream.seed if options.sampling else None
            render.note(render.translation_summary(event.timings, loaded, translator.graphs.decoder.place, seed))
        if event.finish_reason == "interrupt":
            return 130
    return 0


def _lines(
    translator: "Translator",
    chunks: Iterator[list[str]],
    file: Path | None,
    options: "TranslationOptions",
    writer: "LineWriter",
    *,
    quiet: bool,
) -> int:
    """Line in, line out; the exit code."""
    from rnn_edge import render

    started = perf_counter()
    lines = sentences = words = cut = 0
    quietly = quiet or sys.stdout.isatty()
    total = 0 if quietly else count_lines(file)
    with render.progress("translating", quiet=quietly) as progress:
        for chunk in chunks:
            for translation, source in zip(translator.translate(chunk, options, sentences), chunk, strict=True):
                writer.line(translation, source)
                sentences += len(translation.sentences)
                words += len(translation.text.split())
                cut += translation.cut
            writer.flush()
            lines += len(chunk)
            progress(lines, total and max(total, lines))
    seconds = perf_counter() - started
    if cut:
        _warn_of_cut(translator, cut)
    if not quiet:
        render.note(
            f"{render.counted(lines, 'line')}, {render.counted(sentences, 'sentence')} in {seconds:.1f} s "
            f"on {translator.graphs.decoder.place}: "
            f"{sentences / seconds:,.1f} sentences/s, {words / seconds:,.0f} words/s"
        )
    return 0


def _warn_of_cut(translator: "Translator", cut: int) -> None:
    from rnn_edge import render

    source = translator.manifest.source
    assert source is not None
    what = "1 sentence is" if cut == 1 else f"{cut:,} sentences are"
    render.note(
        f"warning: {what} longer than any the model was trained on ({source.longest} tokens), and translated in parts"
    )
