"""``rnn-edge train translation``."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rnn_edge.errors import InvalidValueError
from rnn_edge_export.cli import workstation
from rnn_edge_export.cli.options import recipe_options
from rnn_edge_export.cli.train import embeddings as vector_options
from rnn_edge_export.cli.train import session
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.recipe_sections import PairSection, TranslationSection

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("translation")
@recipe_options(TranslationSection, PairSection)
def translation(
    pairs: Annotated[
        list[Path],
        typer.Argument(help="One TSV file (source, tab, target), or a source and a target file.", metavar="PAIRS..."),
    ],
    output: session.Output,
    valid: Annotated[
        list[Path] | None,
        typer.Option(help="Validation pairs: one TSV file, or given twice, source then target; else drawn."),
    ] = None,
    encoding: session.Encoding = "utf-8",
    source_embeddings: Annotated[
        Path | None,
        typer.Option(help="Pretrained vectors of the source: GloVe, word2vec or fastText's .vec, gzipped or not."),
    ] = None,
    target_embeddings: Annotated[Path | None, typer.Option(help="The same of the target.")] = None,
    embeddings_encoding: vector_options.Encoding = None,
    recipe: session.RecipeFile = None,
    init_from: session.InitFrom = None,
    resume: session.Resume = False,
    force: session.Force = False,
    device: session.Device = "auto",
    threads: session.Threads = None,
    tensorboard: session.TensorBoard = False,
    dropout: Annotated[
        float | None, typer.Option(help="Sets --input-dropout, --layer-dropout and --output-dropout.")
    ] = None,
    **overrides: Any,
) -> None:
    """Train a translator on sentence pairs."""
    for what, files in (("PAIRS", pairs), ("--valid", valid or ())):
        if len(files) > 2:
            raise InvalidValueError(f"{what} names {len(files)} files", "give one TSV file, or two aligned files")
    for name in ("input_dropout", "layer_dropout", "output_dropout"):
        overrides[name] = dropout if overrides[name] is None else overrides[name]
    plan = session.plan_run(
        TranslationRecipe(),
        output,
        recipe=recipe,
        init_from=init_from,
        resume=resume,
        force=force,
        device=device,
        threads=threads,
        tensorboard=tensorboard,
        overrides=overrides,
    )
    given = {"--source-embeddings": source_embeddings, "--target-embeddings": target_embeddings}
    vector_options.check_files(plan, given, embeddings_encoding, resume=resume, init_from=init_from)
    shared = plan.training.tokenizer == "subword" and plan.model.share_embeddings
    two = source_embeddings and target_embeddings and source_embeddings.resolve() != target_embeddings.resolve()
    if shared and two:
        raise InvalidValueError(
            "source and target share one embedding, which cannot begin with two files of vectors",
            "give one of the two, use --tokenizer word, or --no-share-embeddings",
        )
    again = ["rnn-edge", "train", "translation", *map(str, pairs), "-o", str(output), "--resume"]
    again += [word for path in valid or () for word in ("--valid", str(path))]
    with workstation():
        from rnn_edge_export.initial import initial_folder, load_initial
        from rnn_edge_export.run import start_run
        from rnn_edge_export.training import Trainer
        from rnn_edge_export.translation.data import load_pairs
        from rnn_edge_export.translation.task import TranslationTask, run_tokenizers

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InvalidValueError("a translator trains in one process", "start it without torchrun")
        if not resume:
            start_run(output, force=force)
        initial = load_initial(init_from) if init_from else None
        origin = initial_folder(init_from) if init_from else output if resume else None
        known = run_tokenizers(origin) if origin else None
        data = load_pairs(pairs, valid or [], plan.training, encoding, known)
        typer.echo(f"training on {data.filtered}", err=True)
        if data.leaked:
            typer.echo(f"note: {data.leaked:,} validation pairs have a side that training has too", err=True)
        hashes = {"sha256": data.sha256, "valid_sha256": data.valid_sha256}
        plan = session.claim_data(
            plan,
            hashes,
            pairs,
            resume=resume,
            initial_sha256=initial.sha256 if initial else "",
        )
        plan = replace(plan, data=replace(plan.data, longest=data.longest))
        vector_files: vector_options.Files = {
            "source": (source_embeddings, data.source_tokenizer),
            "target": (target_embeddings, data.target_tokenizer),
        }
        if shared:
            vector_files = {"both": (source_embeddings or target_embeddings, data.target_tokenizer)}
        plan, vectors = vector_options.load(plan, vector_files, embeddings_encoding, there=origin is not None)
        code = session.train(
            lambda: Trainer(TranslationTask(plan, data, vectors), output, device, resume=resume, initial=initial),
            threads=threads,
            tensorboard=tensorboard,
            resume_command=again + session.common_options(encoding, device, threads, tensorboard=tensorboard),
            lower="--batch-tokens, --hidden or --vocabulary-size",
        )
    if code:
        raise typer.Exit(code)
