"""``rnn-edge import``."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from rnn_edge.errors import InvalidValueError
from rnn_edge_export.cli import known_lowering, workstation

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("import")
def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="Checkpoint: .safetensors, .keras or .h5.", metavar="SOURCE")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle.", show_default=False)],
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="Tokens in the order of their ids: a text file with one a line, a JSON list, a JSON table of tokens "
            "and ids, or a tokenizer.json.",
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            help="word_language_model: the text its dictionary comes from, in order; or the folder of train.txt, "
            "valid.txt and test.txt. May be repeated.",
            show_default=False,
        ),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(help="word_language_model: what its RNN is.", metavar="lstm|gru|rnn-tanh|rnn-relu"),
    ] = None,
    line_end: Annotated[
        str | None,
        typer.Option(help="Token that stands for a line end. [default: <eos> of word_language_model, else none]"),
    ] = None,
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Lowercase texts first, as Keras did in training.")
    ] = False,
    lowering: Annotated[
        str | None,
        typer.Option(
            help="How a cell becomes ONNX. [default: operator, or cell where that is needed]", metavar="operator|cell"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; else that of its folder.")] = None,
    title: Annotated[str, typer.Option(help="What the model is, for its card.", show_default=False)] = "",
    notes: Annotated[Path | None, typer.Option(help="Markdown to add to the model card.")] = None,
    encoding: Annotated[str, typer.Option(help="Of the vocabulary or corpus.")] = "utf-8",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Import a language model trained elsewhere as a verified bundle.

    Reads the state dict of PyTorch's word_language_model example as safetensors, and Keras files of Embedding, then
    LSTM, GRU or SimpleRNN layers, then Dense. Nothing is unpickled, and nothing is written unless the graph computes
    what the source's own equations compute.
    """
    if (vocabulary is None) == (not corpus):
        raise InvalidValueError(
            "a checkpoint holds no vocabulary", "give either --vocabulary or, of word_language_model, --corpus"
        )
    wanted = None if lowering is None else known_lowering(lowering)
    with workstation():
        from rnn_edge.files import check_output
        from rnn_edge.manifest import SpecialIds
        from rnn_edge.render import show_checks
        from rnn_edge.text_files import read_text
        from rnn_edge_export.foreign.formats import recognise
        from rnn_edge_export.foreign.language_model import export_network
        from rnn_edge_export.foreign.origin import Origin
        from rnn_edge_export.foreign.vocabulary import read_vocabulary, unknown_id, vocabulary_tokenizer
        from rnn_edge_export.foreign.word_language_model import LINE_END, read_checkpoint, read_dictionary
        from rnn_edge_export.onnx_export import check_replaceable

        check_replaceable(output, force=force)
        check_output(output, force=force, folder=True)
        remarks = [read_text(notes, "utf-8")[0].strip()] if notes else []
        kind = recognise(source)
        if kind == "safetensors":
            network, usual = read_checkpoint(source, cell), LINE_END
        else:
            from rnn_edge_export.foreign.keras import read_keras

            if corpus or cell:
                raise InvalidValueError(
                    "--corpus and --cell are for word_language_model", "give the vocabulary with --vocabulary"
                )
            network, found = read_keras(source, kind)
            remarks, usual = [*remarks, *found], "\n"
        if vocabulary:
            tokenizer = read_vocabulary(vocabulary, encoding, line_end=line_end, usual=usual, lowercase=lowercase)
        else:
            words = read_dictionary(corpus or [], encoding)
            tokenizer = vocabulary_tokenizer(words, line_end=line_end or usual, lowercase=lowercase)
        if line_end and tokenizer.line_end is None:
            raise InvalidValueError(
                f"--line-end {line_end}: the vocabulary has no such token", "name one of its tokens"
            )
        bundle, checks = export_network(
            network,
            tokenizer,
            SpecialIds(start=tokenizer.line_end, unknown=unknown_id(tokenizer)),
            output,
            name=name,
            lowering=wanted,
            origin=Origin(title, "\n\n".join(remarks), checkpoint_sha256=_sha256(source)),
            force=force,
        )
        show_checks([(check.name, f"{check.difference:.1e}", f"{check.tolerance:.0e}") for check in checks])
    typer.echo(
        f"{output}: {bundle.size / 1e6:.1f} MB, verified against {network.source.split()[0]}; "
        f"try: rnn-edge generate {output}",
        err=True,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
