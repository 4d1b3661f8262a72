"""``rnn-edge generate``."""

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from rnn_edge.cli.input import cancel_on_interrupt, read_input
from rnn_edge.errors import InvalidValueError

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def generate(
    bundle: Annotated[str, typer.Argument(help="Name or folder of a bundle.", metavar="BUNDLE")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="File with the text to continue.")] = None,
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
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="CPU threads. [default: 1]")] = None,
    device: Annotated[str, typer.Option(help="Where to run.", metavar="auto|cpu|cuda")] = "auto",
    save_state: Annotated[Path | None, typer.Option(help="Write the state at the end, to go on later.")] = None,
    load_state: Annotated[Path | None, typer.Option(help="Go on from a saved state, with its seed.")] = None,
    display_prompt: Annotated[
        bool, typer.Option("--display-prompt/--no-display-prompt", help="Show the prompt before the text.")
    ] = True,
    json_lines: Annotated[
        bool, typer.Option("--json", help="One event a line, with log probabilities, without the prompt.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No closing summary.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing state file.")] = False,
) -> None:
    """Stream text from a language model.

    The prompt comes from -p, -f, or standard input when it is piped. Without one the text starts from the start token
    that the bundle names (a line break, for character models), or from a random token where it names none.
    """
    from rnn_edge import render
    from rnn_edge.files import check_output
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.state import load_state as read_state
    from rnn_edge.state import save_state as write_state

    if prompt is not None and file is not None:
        raise InvalidValueError("--prompt and --file exclude each other", "give one of the two")
    text = read_input(prompt, file, "the prompt")
    if save_state:
        check_output(save_state, force=force, folder=False)
    started = perf_counter()
    model = LanguageModel.load(bundle, device=device, threads=threads)  # type: ignore[arg-type]  # checked there
    loaded = perf_counter() - started
    generation = model.generate(
        text,
        max_tokens=max_tokens,
        seed=seed,
        state=read_state(load_state, model.manifest) if load_state else None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        repeat_window=repeat_window,
        stop=stop or (),
        unknown=unknown,  # type: ignore[arg-type]  # checked there
        log_probabilities=json_lines,
    )
    out = render.StreamWriter()
    if display_prompt and not json_lines:
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
        render.note(render.summary(end.timings, loaded, model.graph.device, generation.seed))
    if end.finish_reason == "interrupt":
        raise typer.Exit(130)
