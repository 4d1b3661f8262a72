"""A GPU that is none, so that machines without one find what only shows on one: memory that lies apart.

Sessions "on CUDA" compute on the CPU, but on copies of the arrays, and what they should not be able to get away with is
made to show: what a graph has written is garbage on the host until it is read from the device, an input that was
changed on the host and not sent is an error, and so are a captured run that is replayed with other addresses or writes
what it reads, and a read before runs that did not wait are done. Of runs with one number the first executes three
times. What it cannot show: streams and their order.
"""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime

from rnn_edge import providers

if TYPE_CHECKING:
    import pytest
    from numpy.typing import NDArray

_CUDA, _HURRY = "CUDAExecutionProvider", "disable_synchronize_execution_providers"
_VALUES = onnxruntime.OrtValue


class _Value:
    """An OrtValue on the device."""

    all: ClassVar[weakref.WeakSet[_Value]] = weakref.WeakSet()
    underway: ClassVar[set[int]] = set()  # sessions of which a run was not waited for

    def __init__(self, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self.all.add(self)
        self.host, self.device = array, array.copy()
        self.real = _VALUES.ortvalue_from_numpy(self.device)
        self.spoilt = b""  # what the host had when a graph had written here

    def data_ptr(self) -> int:
        address: int = self.real.data_ptr()
        return address

    def update_inplace(self, array: NDArray[Any]) -> None:
        assert not self.underway, "sent while a run is underway"
        self.device[...] = array

    def numpy(self) -> NDArray[Any]:
        assert not self.underway, "read while a run is underway"
        return self.device.copy()

    def check(self, name: str) -> None:
        """As an input."""
        if self.host.tobytes() not in (self.device.tobytes(), self.spoilt):
            raise RuntimeError(f"{name} was changed and not sent")
        if self.device.dtype == np.float32 and np.isnan(self.device).any():
            raise RuntimeError(f"{name} was sent and not read before")

    def spoil(self) -> None:
        """As an output."""
        self.host[...] = np.nan if self.host.dtype == np.float32 else 1
        self.spoilt = self.host.tobytes()


def _owner(address: int) -> _Value:
    """Whose memory this is."""
    found = [value for value in _Value.all if 0 <= address - value.data_ptr() < value.device.nbytes]
    assert len(found) == 1, "an address that is not on the device"
    return found[0]


class _Binding:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.real = session.io_binding()
        self.inputs: dict[str, _Value] = {}
        self.outputs: dict[str, Any] = {}  # those on the CPU are the runtime's own
        self.addresses: dict[str, int] = {}

    def bind_input(self, name: str, device: str, number: int, *place: Any) -> None:
        assert device == "cuda"
        self.real.bind_input(name, "cpu", number, *place)
        self.addresses[name] = place[-1]
        self.inputs[name] = _owner(place[-1])

    def bind_output(self, name: str, device: str, number: int, *place: Any) -> None:
        assert device == "cuda"
        self.real.bind_output(name, "cpu", number, *place)
        self.addresses[name] = place[-1]
        self.outputs[name] = _owner(place[-1])

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        assert isinstance(value, _Value), f"{name} is not on the device"
        self.real.bind_ortvalue_input(name, value.real)
        self.inputs[name] = value
        self.addresses[name] = value.data_ptr()

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.real.bind_ortvalue_output(name, value.real if isinstance(value, _Value) else value)
        self.outputs[name] = value
        self.addresses[name] = value.data_ptr()


class _Session:
    def __init__(self, content: bytes, options: onnxruntime.SessionOptions, *, capture: bool) -> None:
        if capture and b"MatMulInteger" in content:  # CUDA has it for other types alone
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        self._real = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._captures = capture
        self._captured: dict[str, dict[str, int]] = {}  # addresses by the number of the graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return [_CUDA, "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {_CUDA: {"enable_cuda_graph": "1" if self._captures else "0"}}

    def io_binding(self) -> _Binding:
        return _Binding(self._real)

    def run_with_iobinding(self, binding: _Binding, options: onnxruntime.RunOptions | None = None) -> None:
        assert _Value.underway <= {id(self)}, "a run of another session is underway"
        for name, value in binding.inputs.items():
            value.check(name)
        _Value.underway.discard(id(self))
        if options is not None and self._captures and options.get_run_config_entry(_HURRY) == "1":
            _Value.underway.add(id(self))
        for _ in range(self._executions(binding, options)):
            self._real.run_with_iobinding(binding.real)
        for value in binding.outputs.values():
            if isinstance(value, _Value):
                value.spoil()

    def _executions(self, binding: _Binding, options: onnxruntime.RunOptions | None) -> int:
        if not self._captures:
            return 1
        assert options is not None, "a session that captures has to be told what"
        number = options.get_run_config_entry("gpu_graph_id")
        if number == "-1":
            return 1
        addresses = binding.addresses
        read = {addresses[name] for name in binding.inputs}
        for name, value in binding.outputs.items():
            assert isinstance(value, _Value), f"{name} of a captured run is not on the device"
            assert addresses[name] not in read, f"a captured run reads and writes {name}"
        first = number not in self._captured
        assert self._captured.setdefault(number, addresses) == addresses, f"graph {number} has other addresses"
        return 3 if first else 1


class _Values:
    """OrtValue, as far as ``Buffer`` knows it."""

    @staticmethod
    def ortvalue_from_numpy(array: NDArray[Any], device: str, number: int) -> Any:
        return _Value(array) if device == "cuda" else _VALUES.ortvalue_from_numpy(array, device, number)


def _session(content: bytes, options: onnxruntime.SessionOptions, *, providers: list[Any], **rest: Any) -> Any:
    if providers[0] == "CPUExecutionProvider":
        return onnxruntime.InferenceSession(content, options, providers=providers, **rest)
    return _Session(content, options, capture=providers[0][1]["enable_cuda_graph"] == "1")


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on ``providers`` finds a GPU, and buffers have memory there."""
    runtime = SimpleNamespace(
        get_available_providers=lambda: [_CUDA, "CPUExecutionProvider"],
        preload_dlls=lambda: None,
        set_default_logger_severity=onnxruntime.set_default_logger_severity,
        SessionOptions=onnxruntime.SessionOptions,
        RunOptions=onnxruntime.RunOptions,
        InferenceSession=_session,
    )
    monkeypatch.setattr(providers, "_import_runtime", lambda: runtime)
    monkeypatch.setattr(onnxruntime, "OrtValue", _Values)
