"""``rnn-edge train lm``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rnn_edge.errors import InvalidValueError
from rnn_edge_export.cli import workstation
from rnn_edge_export.cli.options import recipe_options
from rnn_edge_export.cli.train import embeddings as vector_options
from rnn_edge_export.cli.train import session
from rnn_edge_export.recipe import LanguageModelRecipe, flag_name
from rnn_edge_export.recipe_sections import LanguageModelSection, StreamSection

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("lm")
@recipe_options(LanguageModelSection, StreamSection)
def language_model(
    corpus: Annotated[
        list[Path],
        typer.Argument(help="Text files to learn from, or patterns like 'texts/*.txt'.", metavar="CORPUS..."),
    ],
    output: session.Output,
    valid: Annotated[
        list[Path] | None, typer.Option(help="Validation text; may be repeated. Else the last part of the corpus.")
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="Text that the best weights are scored on at the end; may be repeated.")
    ] = None,
    encoding: session.Encoding = "utf-8",
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Pretrained vectors to begin with: GloVe, word2vec or fastText's .vec, gzipped or not."),
    ] = None,
    embeddings_encoding: vector_options.Encoding = None,
    recipe: session.RecipeFile = None,
    init_from: session.InitFrom = None,
    resume: session.Resume = False,
    force: session.Force = False,
    device: session.Device = "auto",
    threads: session.Threads = None,
    tensorboard: session.TensorBoard = False,
    dropout: Annotated[float | None, typer.Option(help="Sets --layer-dropout and --output-dropout.")] = None,
    **overrides: Any,
) -> None:
    """Train a language model of characters, bytes, words or subwords.

    Text is tokenised once, by all processors, into files that are kept in the cache folder and mapped into memory.
    """
    for name in ("layer_dropout", "output_dropout"):
        overrides[name] = dropout if overrides[name] is None else overrides[name]
    for name, files, share in (("valid", valid, "validation_fraction"), ("test", test, "test_fraction")):
        if files and overrides[share] is not None:
            exclude = f"--{name} and {flag_name(share)} exclude each other"
            raise InvalidValueError(exclude, "give files, or a share of the corpus")
    plan = session.plan_run(
        LanguageModelRecipe(),
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
    vector_options.check_files(
        plan, {"--embeddings": embeddings}, embeddings_encoding, resume=resume, init_from=init_from
    )
    again = ["rnn-edge", "train", "lm", *map(str, corpus), "-o", str(output), "--resume"]
    again += [word for path in valid or () for word in ("--valid", str(path))]
    again += [word for path in test or () for word in ("--test", str(path))]
    with workstation():
        from rnn_edge import render
        from rnn_edge_export.distributed import join_world, leave_world
        from rnn_edge_export.initial import initial_folder, load_initial
        from rnn_edge_export.language_model.data import Texts, load_corpus
        from rnn_edge_export.language_model.task import LanguageModelTask
        from rnn_edge_export.run import TOKENIZER, load_tokenizer, start_run
        from rnn_edge_export.training import Trainer

        world = join_world()
        with world.lead_first():  # which tokenises what the others then map
            if not resume and world.leads:
                start_run(output, force=force)
            texts = Texts.survey(corpus, valid or (), test or (), encoding)
            initial = load_initial(init_from) if init_from else None
            plan = session.claim_data(
                plan,
                texts.hashes,
                texts.corpus.paths,
                resume=resume,
                initial_sha256=initial.sha256 if initial else "",
            )
            origin = initial_folder(init_from) if init_from else output if resume else None
            known = load_tokenizer(origin / TOKENIZER) if origin else None
            data = load_corpus(texts, plan.training, tokenizer=known, bar=render.progress)
            plan, vectors = vector_options.load(
                plan,
                {"input": (embeddings, data.tokenizer)},
                embeddings_encoding,
                there=origin is not None,
                quiet=not world.leads,
            )
        task = LanguageModelTask(plan, data, world, vectors.get("input"))
        code = session.train(
            lambda: Trainer(task, output, device, resume=resume, world=world, initial=initial),
            threads=threads,
            tensorboard=tensorboard,
            resume_command=again + session.common_options(encoding, device, threads, tensorboard=tensorboard),
            lower="--batch-size, --sequence-length or --hidden",
        )
        leave_world(world)
    if code:
        raise typer.Exit(code)
