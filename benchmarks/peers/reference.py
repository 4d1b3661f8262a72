"""The weights that all peers get, and what PyTorch computes with them in fp32. Runs in the main process."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.common import CHARACTERS, EMBEDDING
from benchmarks.peers.network import Array, Layer, Network, Shape, Tokens
from benchmarks.peers.torch_step import ModuleStep, module_example
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.recipe_sections import LanguageModelSection


def random_network(shape: Shape) -> Network:
    """The first weights of a training run, the same every time."""
    torch.manual_seed(0)
    section = LanguageModelSection(cell=shape.cell, embedding=EMBEDDING, hidden=shape.hidden, layers=shape.layers)
    model = RecurrentLanguageModel(section, len(CHARACTERS))
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    parts = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layers = [Layer(*(arrays[f"layers.{index}.{part}"] for part in parts)) for index in range(shape.layers)]
    return Network(shape, arrays["embedding.weight"], layers, arrays["output.weight"], arrays["output.bias"])


@torch.inference_mode()
def logits(network: Network, tokens: Tokens) -> Array:
    """Tokens [steps, B] from a zero state → logits [steps, B, V]."""
    module = ModuleStep(network).eval()
    _, *state = module_example(network)
    rows = []
    for row in tokens:
        found, *state = module(torch.from_numpy(row), *state)
        rows.append(found.numpy())
    return np.stack(rows)
