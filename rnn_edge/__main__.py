"""The entry point. Nothing is imported outside the guard, so that Ctrl-C is quiet from the first moment."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from rnn_edge.cli import run

        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
