"""Write docs/cli.md from --help. A test compares the two."""

from pathlib import Path

from rnn_edge.cli import help_pages

HEAD = "# Command reference\n\nMade by `make docs` from `--help`; do not edit.\n"


def page() -> str:
    """The whole reference in Markdown."""
    sections = (f"## {title}\n\n```text\n{text.rstrip()}\n```\n" for title, text in help_pages())
    return HEAD + "\n" + "\n".join(sections)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page(), encoding="utf-8")
