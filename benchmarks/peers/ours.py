"""rnn-edge: the network exported as a bundle, run by its own ``Stepper`` and ``LanguageModel.generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import CHARACTERS
from benchmarks.peers.network import Array, Network, SkippedError, Step, Tokens
from rnn_edge.bundle import read_bundle
from rnn_edge.language_model import LanguageModel
from rnn_edge.state import zero_state

if TYPE_CHECKING:
    from rnn_edge_export.language_model.export import LanguageModelSource


def convert(network: Network, folder: str, variant: str) -> None:
    """Write the bundle of this precision; one does for all batches."""
    from rnn_edge_export.onnx_export import export_bundle
    from rnn_edge_export.quantisation.quantise import PRECISIONS, Material, quantise

    unrounded, target = Path(folder) / "fp32", Path(folder) / variant
    if not unrounded.exists():
        export_bundle(language_model_source(network), unrounded, name="peer-fp32")
    if target.exists():
        return
    precision = next((known for known in PRECISIONS if known == variant), None)
    if precision is None:
        raise SkippedError(f"the exporter does not know {variant}")
    # Forced and on a short text: what rounding does to random weights says nothing about quality.
    material = Material("all characters", text=CHARACTERS * 8)
    quantise(read_bundle(unrounded), target, precision, name=f"peer-{variant}", material=material, force=True)


def load(network: Network, folder: str, variant: str) -> Step:
    """Open the bundle."""
    return Ours(LanguageModel.load(Path(folder) / variant, device="cpu", threads=1), network.shape.batch)


class Ours:
    """Steps like every peer, and has its own way to generate."""

    def __init__(self, model: LanguageModel, batch: int) -> None:
        self._model = model
        self._stepper = model.graph.stepper(batch)
        self._zero = zero_state(model.manifest, batch)

    def reset(self) -> None:
        self._stepper.load(self._zero)

    def step(self, tokens: Tokens | int) -> Array:
        return self._stepper.step(tokens)

    def generate(self, tokens: int, temperature: float) -> None:
        """End to end: the set-up of a generation, steps, choices, decoding and an event for each token."""
        for _ in self._model.generate("A", max_tokens=tokens, seed=1, temperature=temperature):
            pass


def language_model_source(network: Network) -> LanguageModelSource:
    import torch

    from rnn_edge.tokenizer import character_tokenizer
    from rnn_edge_export.language_model.export import LanguageModelSource
    from rnn_edge_export.language_model.modules import RecurrentLanguageModel
    from rnn_edge_export.recipe import LanguageModelRecipe
    from rnn_edge_export.recipe_sections import LanguageModelSection

    shape = network.shape
    section = LanguageModelSection(
        cell=shape.cell,
        embedding=network.embedding.shape[1],
        hidden=shape.hidden,
        layers=shape.layers,
    )
    arrays = {"embedding.weight": network.embedding, "output.weight": network.output, "output.bias": network.bias}
    names = {"weight_ih_l0": "w", "weight_hh_l0": "u", "bias_ih_l0": "b", "bias_hh_l0": "d"}
    for index, layer in enumerate(network.layers):
        arrays |= {f"layers.{index}.{name}": getattr(layer, ours) for name, ours in names.items()}
    model = RecurrentLanguageModel(section, network.vocabulary)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    tokenizer = character_tokenizer(CHARACTERS)
    return LanguageModelSource(model.requires_grad_(False).eval(), tokenizer, LanguageModelRecipe(model=section))
