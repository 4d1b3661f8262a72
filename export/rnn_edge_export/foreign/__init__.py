"""Models trained elsewhere: a user's own PyTorch modules, and checkpoints of other programs, as bundles."""
