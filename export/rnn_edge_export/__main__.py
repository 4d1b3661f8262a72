"""``torchrun --nproc-per-node N -m rnn_edge_export train lm …``: the same command line in every process."""

from rnn_edge.__main__ import main

if __name__ == "__main__":
    main()
