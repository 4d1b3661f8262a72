"""``python -m rnn_edge`` is ``rnn-edge``."""

from rnn_edge.cli import main

main()
