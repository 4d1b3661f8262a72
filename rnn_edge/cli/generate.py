"""``rnn-edge generate``."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from rnn_edge.cli.input import cancel_on_interrupt, read_input
from rnn_edge.cli.options import DeviceOption, ThreadsOption
from rnn_edge.errors import InvalidValueError

if TYPE_CHECKING:
    from rnn_edge.text_stream import TextKeywords

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def generate(
    bundle: Annotated[str, typer.Argument(help="Name, folder or archive of a bundle.", metavar="BUNDLE")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="File with the text to continue.")] = None,
    samples: Annotated[int, typer.Option("-N", "--samples", help="So many texts from the one prompt.")] = 1,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="File with a prompt on each line, - for standard input; a line each comes out."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts in one step, for --samples and --input.")] = 32,
    max_tokens: Annotated[int, typer.Option("-n", "--max-tokens", help="Tokens at most; -1 until Ctrl-C.")] = 400,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", help="Same seed, same text. [default: drawn, and shown at the end]")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. [default: the bundle's]")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep the K likeliest tokens; 0 keeps all. [default: the bundle's]")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the fewest likeliest tokens that reach this sum of probabilities.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens at least this fraction as likely as the likeliest.")
    ] = None,
    repeat_penalty: Annotated[float, typer.Option(help="Weaken recent tokens; 1 is off.")] = 1.0,
    repeat_window: Annotated[int, typer.Option(help="How many tokens are recent.")] = 64,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    unknown: Annotated[
        str, typer.Option(help="What to do with characters that the model has never seen.", metavar="skip|error")
    ] = "error",
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    save_state: Annotated[Path | None, typer.Option(help="Write the state at the end, to go on later.")] = None,
    load_state: Annotated[Path | None, typer.Option(help="Go on from a saved state, with its seed.")] = None,
    display_prompt: Annotated[
        bool | None,
        typer.Option(
            "--display-prompt/--no-display-prompt",
            help="Show the prompt before the text. [default: yes, but not with --input]",
        ),
    ] = None,
    json_lines: Annotated[
        bool,
        typer.Option(
            "--json", help="One event a line, with log probabilities, without the prompt; with --input one text a line."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No closing summary.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing state file.")] = False,
) -> None:
    """Stream text from a language model.

    The prompt comes from -p, -f, or standard input when it is piped. Without one the text starts from the start token
    that the bundle names (a line break, for character models), or from a random token where it names none.

    With --samples the prompt is read once, and its continuations come one after another; in a pipe a line with a form
    feed stands between two. Sample 1 is the text that one run with this seed gives.

    With --input as many lines come out as go in, in their order; an empty line is an empty prompt. On both sides a
    line break is written \\n, a carriage return \\r and a backslash \\\\; prompts may have \\t. --json gives objects
    with index, prompt, text, finish_reason and tokens.
    """
    from rnn_edge import render
    from rnn_edge.files import check_output
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.state import load_state as read_state
    from rnn_edge.state import save_state as write_state

    if prompt is not None and file is not None:
        raise InvalidValueError("--prompt and --file exclude each other", "give one of the two")
    single = samples == 1 and input_file is None
    for given, name in ((prompt is not None, "--prompt"), (file is not None, "--file"), (samples != 1, "--samples")):
        if input_file and given:
            raise InvalidValueError(f"--input and {name} exclude each other", "give one of the two")
    if samples < 1:
        raise InvalidValueError(f"samples is {samples}", "use at least 1")
    if batch_size < 1:
        raise InvalidValueError(f"batch-size is {batch_size}", "use at least 1")
    if save_state and not single:
        raise InvalidValueError(
            "--save-state has room for one text, and several are asked for", "leave one of them out"
        )
    if max_tokens == -1 and not stop and not single and (input_file or not json_lines):
        raise InvalidValueError(
            "max-tokens is -1: texts without an end cannot be shown one after another",
            "give a number, or a --stop text; --samples with --json shows them side by side",
        )
    text = "" if input_file else read_input(prompt, file, "the prompt")
    if save_state:
        check_output(save_state, force=force, folder=False)
    started = perf_counter()
    streams = batch_size if input_file else min(samples, batch_size)
    model = LanguageModel.load(bundle, device=device, threads=threads, streams=streams)  # type: ignore[arg-type]  # checked there
    loaded = perf_counter() - started
    state = read_state(load_state, model.manifest) if load_state else None
    keywords: TextKeywords = {
        "max_tokens": max_tokens,
        "seed": seed,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_window": repeat_window,
        "stop": stop or (),
        "unknown": unknown,  # type: ignore[typeddict-item]  # checked there
        "log_probabilities": json_lines and not input_file,
    }
    if not single:
        from rnn_edge.cli import batches

        place = model.graph.place
        if input_file:
            prompts = batches.Prompts(input_file)
            batch = model.generate_batch(prompts, batch_size=batch_size, state=state, **keywords)
            code = batches.show_lines(
                batch, prompts, loaded, place, display_prompt=bool(display_prompt), json_lines=json_lines, quiet=quiet
            )
        else:
            batch = model.generate_samples(text, samples, batch_size=batch_size, state=state, **keywords)
            if json_lines:
                code = batches.show_events(batch, loaded, place, quiet=quiet)
            else:
                shown = "" if display_prompt is False else text
                code = batches.show_samples(batch, shown, samples, loaded, place, quiet=quiet)
        if code:
            raise typer.Exit(code)
        return
    generation = model.generate(text, state=state, **keywords)
    out = render.StreamWriter()
    if display_prompt is not False and not json_lines:
        out.write(text)
    end = None
    try:
        with cancel_on_interrupt(generation.cancel):
            for event in generation:
                out.write(render.event_line(event) if json_lines else event.text)
                end = event
        out.close()
    except BrokenPipeError:
        if save_state:  # nobody reads on, but the text can go on
            write_state(save_state, generation.state(), model.manifest)
        raise
    assert end is not None
    assert end.timings is not None
    if save_state:
        write_state(save_state, generation.state(), model.manifest)
    if not quiet:
        render.note(render.summary(end.timings, loaded, model.graph.place, generation.seed))
    if end.finish_reason == "interrupt":
        raise typer.Exit(130)
