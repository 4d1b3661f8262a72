"""``rnn-edge train``."""

import typer

from rnn_edge_export.cli.train import language_model, translation

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)
app.add_typer(language_model.app)
app.add_typer(translation.app)


@app.callback()
def _train() -> None:
    """Train a model from text; resumable."""
