"""Sessions: what depends on the processor."""

from pathlib import Path

import pytest

from rnn_edge import providers


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", True),
        ("x86_64", "fpu avx2 avx_vnni", True),
        ("AMD64", "fpu amx_int8", True),
        ("x86_64", "fpu sse4_1 avx2 avx512f", False),
        ("x86_64", None, False),  # a system that does not say: slower, and right
        ("aarch64", None, True),
    ],
)
def test_saturating_kernels_are_known_by_the_processor(
    machine: str, flags: str | None, *, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(providers, "_PROCESSOR", file)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert providers._adds_products_exactly() == exact


def test_a_graph_that_memory_does_not_hold() -> None:
    """As the runtime says it, whose exception is of no type of its own."""
    text = "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 89600000"
    found = providers.run_failure("encoder.onnx", RuntimeError(text))
    assert found.message == "encoder.onnx: memory does not hold what it computes"
    assert found.hint == "use a smaller batch, or free memory"
    assert providers.run_failure("step.onnx", RuntimeError("other")).hint == "export the bundle again"
