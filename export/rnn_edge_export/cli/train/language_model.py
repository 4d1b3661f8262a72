"""``rnn-edge train lm``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rnn_edge_export.cli import workstation
from rnn_edge_export.cli.options import recipe_options
from rnn_edge_export.cli.train import session
from rnn_edge_export.recipe import LanguageModelRecipe, LanguageModelSection, StreamSection

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("lm")
@recipe_options(LanguageModelSection, StreamSection)
def language_model(
    corpus: Annotated[Path, typer.Argument(help="Text file to learn from.", metavar="CORPUS")],
    output: session.Output,
    valid: Annotated[Path | None, typer.Option(help="Validation text; else the last part of the corpus.")] = None,
    encoding: session.Encoding = "utf-8",
    recipe: session.RecipeFile = None,
    resume: session.Resume = False,
    force: session.Force = False,
    device: session.Device = "auto",
    threads: session.Threads = None,
    dropout: Annotated[float | None, typer.Option(help="Sets --layer-dropout and --output-dropout.")] = None,
    **overrides: Any,
) -> None:
    """Train a character language model."""
    for name in ("layer_dropout", "output_dropout"):
        overrides[name] = dropout if overrides[name] is None else overrides[name]
    plan = session.plan_run(
        LanguageModelRecipe(),
        output,
        recipe=recipe,
        resume=resume,
        force=force,
        device=device,
        threads=threads,
        overrides=overrides,
    )
    again = ["rnn-edge", "train", "lm", str(corpus), "-o", str(output), "--resume"]
    again += ["--valid", str(valid)] if valid else []
    with workstation():
        from rnn_edge_export.language_model.data import load_corpus
        from rnn_edge_export.language_model.task import LanguageModelTask
        from rnn_edge_export.run import start_run
        from rnn_edge_export.training import Trainer

        if not resume:
            start_run(output, force=force)
        data = load_corpus(corpus, valid, plan.training, encoding)
        names = (str(corpus), "the validation text")
        plan = session.claim_data(plan, (data.sha256, data.valid_sha256), names, resume=resume)
        session.train(
            lambda: Trainer(LanguageModelTask(plan, data), output, device, resume=resume),
            threads=threads,
            resume_command=again + session.common_options(encoding, device, threads),
            lower="--batch-size, --sequence-length or --hidden",
        )
