"""Flags that name files of pretrained vectors, and what they make of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rnn_edge import render
from rnn_edge.errors import InvalidValueError
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe import Recipe
from rnn_edge_export.recipe_sections import Of

if TYPE_CHECKING:
    from rnn_edge_export.pretrained import PretrainedVectors

R = TypeVar("R", bound=Recipe)
Files = Mapping[Of, tuple[Path | None, Tokenizer]]  # with the vocabulary that they are for

# Options of training commands.
Encoding = Annotated[
    str | None,
    typer.Option("--embeddings-encoding", help="Encoding of the words in files of vectors. [default: utf-8]"),
]

_FLAGS: dict[Of, tuple[str, ...]] = {
    "input": ("--embeddings",),
    "source": ("--source-embeddings",),
    "target": ("--target-embeddings",),
    "both": ("--source-embeddings", "--target-embeddings"),
}


def check_files(
    plan: Recipe, files: Mapping[str, Path | None], encoding: str | None, *, resume: bool, init_from: Path | None
) -> None:
    """Files by their flags, before anything is read.

    Raises:
        InvalidValueError: files are given where none are taken, or none where the plan needs them.
        DataError: a file cannot be read.
    """
    from rnn_edge_export.vector_files import check_file

    given = [flag for flag, path in files.items() if path]
    if resume or init_from:
        given += ["--embeddings-encoding"] * (encoding is not None)
        why = "--resume goes on as the run began" if resume else "--init-from brings its embeddings along"
        if given:
            raise InvalidValueError(f"{why} and takes no {', '.join(given)}", "leave it out")
        return
    for named in plan.data.vectors:
        if not set(_FLAGS[named.of]).intersection(given):
            raise InvalidValueError(
                f"the recipe begins with the vectors of {named.name}, which are not given",
                f"name the file with {_FLAGS[named.of][0]}, or take [[data.vectors]] out of the recipe",
            )
    if not given and (plan.model.freeze_embeddings or encoding is not None):
        what = "--freeze-embeddings" if plan.model.freeze_embeddings else "--embeddings-encoding"
        raise InvalidValueError(
            f"{what} needs pretrained vectors", f"name a file with {' or '.join(files)}, or leave it out"
        )
    for path in files.values():
        if path:
            check_file(path)


def load(
    plan: R, files: Files, encoding: str | None, *, there: bool, quiet: bool = False
) -> tuple[R, dict[Of, PretrainedVectors]]:
    """Read the vectors of the tokens, say how many were found, and put files and widths into the plan.

    Where embeddings are ``there``, in the checkpoint of a run that is resumed or started from, the plan has all this.

    Raises:
        RnnEdgeError: a file cannot be used.
    """
    from rnn_edge_export.pretrained import claim_vectors, load_vectors

    found: dict[Of, PretrainedVectors] = {}
    if there:
        return plan, found
    known = {named.of: named for named in plan.data.vectors}
    for of, (path, tokenizer) in files.items():
        if path is None:
            continue
        with render.progress("reading vectors", quiet=quiet) as progress:
            found[of] = load_vectors(path, tokenizer, encoding or "utf-8", progress)
        if not quiet:
            typer.echo(str(found[of]), err=True)
            if of in known and known[of].sha256 != found[of].sha256:
                typer.echo(f"note: {path} is not the file that the recipe names ({known[of].name})", err=True)
    return claim_vectors(plan, found), found
