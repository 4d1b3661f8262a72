"""The workstation side: training in PyTorch and export to ONNX. Its commands are attached to ``rnn-edge``.

Models of your own become bundles with ``export_language_model`` and ``export_translator``. Names are imported when they
are used: commands import this package before they know whether PyTorch is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnn_edge_export.foreign.encoder_decoder import Encoder
    from rnn_edge_export.foreign.language_model import export_language_model
    from rnn_edge_export.foreign.origin import Origin
    from rnn_edge_export.foreign.translator import export_translator
    from rnn_edge_export.foreign.vocabulary import vocabulary_tokenizer

_HOMES = {
    "Encoder": "foreign.encoder_decoder",
    "Origin": "foreign.origin",
    "export_language_model": "foreign.language_model",
    "export_translator": "foreign.translator",
    "vocabulary_tokenizer": "foreign.vocabulary",
}

__all__ = ["Encoder", "Origin", "export_language_model", "export_translator", "vocabulary_tokenizer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rnn_edge_export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rnn_edge_export.{_HOMES[name]}"), name)
