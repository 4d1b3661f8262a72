"""The sessions of a bundle's graphs, checked against its manifest."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rnn_edge.errors import BundleError
from rnn_edge.fusion import fuse
from rnn_edge.onnx_file import summarise
from rnn_edge.providers import Device, fuses_products, open_session, session_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxruntime import InferenceSession

    from rnn_edge.bundle import Bundle
    from rnn_edge.manifest import Manifest

MANY = 16  # streams, from which on passes over memory count for more than weights
FLOAT, INTEGER = "tensor(float)", "tensor(int64)"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its type, rank, and last axis where that is fixed."""

    type: str
    rank: int
    width: int | None = None


class GraphSessions:
    """One of a bundle's graphs as sessions: on the CPU, many streams have one of their own, with other kernels."""

    def __init__(
        self,
        bundle: Bundle,
        role: str,
        inputs: Mapping[str, Port],
        outputs: Mapping[str, Port],
        *,
        device: Device,
        threads: int | None,
        extension: bytes = b"",
    ) -> None:
        """Open that for few. ``extension`` are nodes behind the graph's bytes, which belong to no bundle.

        Inputs, outputs and metadata must be what the manifest says.

        Raises:
            BundleError: other bytes than the manifest says, external data, or other inputs and outputs.
            DeviceError: CUDA is asked for and not available.
        """
        self._bundle, self._role, self._ports = bundle, role, {"input": inputs, "output": outputs}
        self._threads, self._extension = threads, extension
        self.where = str(bundle.path / bundle.manifest.graphs[role])
        self.few = self._open(device)
        self.device = session_device(self.few)
        self._many: InferenceSession | None = None

    def of(self, batch: int) -> InferenceSession:
        """The session for so many streams.

        If the bundle was replaced since it was opened, many go on with the kernels of few: the numbers are the same.
        """
        if batch < MANY:
            return self.few
        if self._many is None:
            self._many = self.few
            if self._fuses:
                with suppress(BundleError):
                    self._many = self._open(self.device, many=True)
        return self._many

    def _open(self, device: Device, *, many: bool = False) -> InferenceSession:
        """``many`` rewrites the graph for many streams (``fusion``)."""
        content, where = self._bundle.graph(self._role), self.where
        summary = summarise(content, where)
        if summary.external_data:
            raise BundleError(f"{where} keeps tensors in other files", "export the bundle again, in one file")
        integers = "MatMulInteger" in summary.operators
        session = open_session(
            (fuse(content, where) if many else content) + self._extension,
            where,
            device=device,
            threads=self._threads,
            integers=integers,
            capture=bool(self._extension),
        )
        # Four bits are made for one stream: a second session would take memory for little.
        self._fuses = integers and "com.microsoft::MatMulNBits" not in summary.operators
        self._fuses &= fuses_products(session_device(session))
        self._check(session)
        return session

    def _check(self, session: InferenceSession) -> None:
        """Raises BundleError where a graph is not what the manifest says."""
        manifest, where, mend = self._bundle.manifest, self.where, "export the bundle again"
        for kind, expected in self._ports.items():
            nodes = session.get_inputs() if kind == "input" else session.get_outputs()
            found = {node.name: (node.type, len(node.shape)) for node in nodes}
            wanted = {name: (port.type, port.rank) for name, port in expected.items()}
            if found != wanted:
                differing = sorted(set(found.items()) ^ set(wanted.items()))
                raise BundleError(f"{where}: {kind} {differing[0][0]} is not what the manifest says", mend)
            for node in nodes:
                width = expected[node.name].width
                if width is not None and node.shape[-1] != width:
                    raise BundleError(f"{where}: {node.name} is {node.shape[-1]} wide, the manifest says {width}", mend)
        metadata = session.get_modelmeta().custom_metadata_map
        for key, value in graph_metadata(manifest).items():
            if metadata.get(key) != value:
                raise BundleError(
                    f"{where}: its metadata say {key} = {metadata.get(key)!r}, the manifest {value!r}", mend
                )


def graph_metadata(manifest: Manifest) -> dict[str, str]:
    """What the ONNX file says about itself; the manifest is authoritative and the two must agree."""
    return {
        "rnn_edge.format_version": str(manifest.format_version),
        "rnn_edge.name": manifest.name,
        "rnn_edge.task": manifest.task,
        "rnn_edge.precision": manifest.precision,
        "rnn_edge.lowering": manifest.lowering,
        "rnn_edge.cell": manifest.architecture.cell,
        "rnn_edge.state": ",".join(f"{pair.input}->{pair.output}" for pair in manifest.state),
    }
