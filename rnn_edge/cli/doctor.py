"""``rnn-edge doctor``."""

from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="One fact a line.")] = False) -> None:
    """Say what this machine has, and what stands in the way.

    Python and packages, processor features, ONNX Runtime with its providers, CUDA, memory, terminal and bundles. Exit
    code 1 if something should be mended.
    """
    import json
    from dataclasses import asdict

    from rnn_edge import render
    from rnn_edge.doctor import examine

    facts = list(examine())
    if as_json:
        for fact in facts:
            typer.echo(json.dumps(asdict(fact), ensure_ascii=False))
    else:
        previous = ""
        rows = []
        for fact in facts:
            rows.append((fact.group if fact.group != previous else "", fact.name, fact.value))
            previous = fact.group
        render.show_table(("", "what", "found"), rows)
        for fact in facts:
            if fact.mend:
                render.note(f"{fact.group}, {fact.name}: {fact.mend}")
    if any(fact.mend for fact in facts):
        raise typer.Exit(1)
