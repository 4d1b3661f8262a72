"""Weights in half the bytes: storage, since the graph still computes in fp32."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rnn_edge.errors import ParityError

_HALF_FROM = 256  # values; smaller tensors are not worth a node


def store_half(graph: onnx.GraphProto) -> None:
    """Round large weights to half precision (IEEE binary16), each with a Cast that the runtime computes once.

    Raises:
        ParityError: a weight is too large for it.
    """
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _HALF_FROM:
            continue
        name = tensor.name
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise ParityError(f"{name} has values that half precision cannot hold", "leave it in fp32")
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
