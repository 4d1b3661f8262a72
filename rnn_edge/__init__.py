"""rnn-edge: stream text and translations from small recurrent networks through ONNX Runtime, without PyTorch.

``LanguageModel.load("shakespeare").generate("ROMEO:")`` yields events; ``Translator.load("en-fr").translate("Hello.")``
translates. Names are imported when they are used, so that importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnn_edge.batch_generation import BatchGeneration, GeneratedText
    from rnn_edge.bundle import Bundle, list_bundles, open_bundle
    from rnn_edge.errors import RnnEdgeError
    from rnn_edge.events import Event, Timings
    from rnn_edge.generation import Generation
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.placement import Threads
    from rnn_edge.providers import Device
    from rnn_edge.sampling import SamplingOptions
    from rnn_edge.state import State, load_state, save_state
    from rnn_edge.stepper import StepGraph, Stepper
    from rnn_edge.tokenizer import StreamDecoder, Tokenizer
    from rnn_edge.translation import Translation, TranslationEvent, TranslationOptions
    from rnn_edge.translator import Translator

_HOMES = {
    "BatchGeneration": "batch_generation",
    "Bundle": "bundle",
    "Event": "events",
    "GeneratedText": "batch_generation",
    "Generation": "generation",
    "LanguageModel": "language_model",
    "RnnEdgeError": "errors",
    "SamplingOptions": "sampling",
    "State": "state",
    "StepGraph": "stepper",
    "Stepper": "stepper",
    "StreamDecoder": "tokenizer",
    "Timings": "events",
    "Tokenizer": "tokenizer",
    "Translation": "translation",
    "TranslationEvent": "translation",
    "TranslationOptions": "translation",
    "Translator": "translator",
    "list_bundles": "bundle",
    "load_state": "state",
    "open_bundle": "bundle",
    "save_state": "state",
}

__all__ = [
    "BatchGeneration",
    "Bundle",
    "Event",
    "GeneratedText",
    "Generation",
    "LanguageModel",
    "RnnEdgeError",
    "SamplingOptions",
    "State",
    "StepGraph",
    "Stepper",
    "StreamDecoder",
    "Timings",
    "Tokenizer",
    "Translation",
    "TranslationEvent",
    "TranslationOptions",
    "Translator",
    "list_bundles",
    "load",
    "load_state",
    "open_bundle",
    "save_state",
]


def load(
    name_or_path: str, *, device: "Device" = "auto", threads: "Threads" = None, streams: int = 1
) -> "LanguageModel | Translator":
    """Load whatever model a bundle holds."""
    from rnn_edge.bundle import open_bundle
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.translator import Translator

    bundle = open_bundle(name_or_path)
    kind = Translator if bundle.manifest.task == "translation" else LanguageModel
    return kind.load(bundle.path, device=device, threads=threads, streams=streams)


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rnn_edge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rnn_edge.{_HOMES[name]}"), name)
