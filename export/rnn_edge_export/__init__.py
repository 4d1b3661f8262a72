"""The workstation side: training in PyTorch and export to ONNX. Its commands are attached to ``rnn-edge``."""
