"""The tests of ``test_cuda`` where there is no GPU: what is sent to its memory, and read from there."""

from collections.abc import Iterator
from typing import Any

import onnxruntime
import pytest

from rnn_edge import buffers, providers
from rnn_edge.buffers import Buffer
from rnn_edge.errors import BundleError, DeviceError
from rnn_edge.language_model import LanguageModel
from rnn_edge.providers import open_session
from tests.device.pretended_cuda import pretend_cuda
from tests.device.test_cuda import *  # noqa: F403  # all of them
from tests.device.test_cuda import SETTINGS
from tests.device.tiny import LSTM

del pytestmark  # noqa: F821  # which asks for a GPU


@pytest.fixture(autouse=True, scope="module")
def pretended() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        pretend_cuda(patch)
        yield


def texts(**settings: Any) -> list[str]:
    """Of a model of its own, whose buffers nobody has used."""
    model = LanguageModel.load(LSTM, device="cuda")
    one = "".join(event.text for event in model.generate("Ma", max_tokens=20, seed=1, **settings))
    many = model.generate_batch(["a", "The", "I"] * 3, batch_size=4, max_tokens=9, seed=1, **settings)
    return [one, *(found.text for found in many.texts())]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_large_buffers_go_slot_by_slot(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = texts(**settings)
    monkeypatch.setattr(buffers, "_TOGETHER", 0)
    assert texts(**settings) == expected


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.8}, {"top_k": 5}], ids=str)
@pytest.mark.parametrize("forgotten", ["send", "read"])
def test_what_is_forgotten_shows(forgotten: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = texts(**settings)
    assert texts(**settings) == expected
    if forgotten == "send":
        monkeypatch.setattr(Buffer, "send", lambda _: None)
        with pytest.raises(BundleError, match="was changed and not sent"):
            texts(**settings)
    else:
        monkeypatch.setattr(Buffer, "read", lambda self: self.array)
        monkeypatch.setattr(Buffer, "fetch", lambda self: self.array)
        with pytest.raises((BundleError, AssertionError), match=r"not read before|assert"):
            assert texts(**settings) == expected


def test_a_runtime_that_falls_back_by_itself_prints_into_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ONNX Runtime did when its provider could not start: lines on stdout, and a session on the CPU."""

    def falls_back(content: bytes, options: onnxruntime.SessionOptions, **_: Any) -> onnxruntime.InferenceSession:
        print("EP Error: CUDA failure 100")
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(providers._import_runtime(), "InferenceSession", falls_back)
    assert open_session((LSTM / "step.onnx").read_bytes(), "step", device="auto").get_inputs()
    with pytest.raises(DeviceError, match="could not start CUDA and fell back"):
        open_session((LSTM / "step.onnx").read_bytes(), "step", device="cuda")
    assert capsys.readouterr().out == ""
