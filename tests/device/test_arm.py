"""A 64-bit Arm device, emulated: what deploy copies to it offline proves itself there, and writes the same text.

    RNN_EDGE_ARM_TEST=1 python -m pytest tests/device/test_arm.py

as root on Debian, with debootstrap and qemu-user-static. It wants to be asked for, since it downloads some 120 MB and
takes minutes. A chroot is needed: ONNX Runtime reads the processor's tables below /sys, and those of this machine make
it crash under emulation.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnn_edge.bundle import read_bundle
from rnn_edge.deploy import agent
from rnn_edge.deploy.payload import Packages, Payload
from rnn_edge.deploy.wheels import download, platform_tags
from tests.device.program import rnn_edge
from tests.device.tiny import GRU, LSTM, TRANSLATOR

ROOT = Path(__file__).parent.parent.parent
SHAKESPEARE, EN_FR = (ROOT / "models" / name for name in ("shakespeare", "en-fr"))
_EMULATOR = "qemu-aarch64-static"


def _obstacle() -> str:
    if not os.environ.get("RNN_EDGE_ARM_TEST"):
        return "asked for by RNN_EDGE_ARM_TEST=1: it downloads 120 MB and takes minutes"
    if os.geteuid() != 0:
        return "a chroot needs root"
    missing = [name for name in ("debootstrap", "dpkg", "chroot", _EMULATOR) if not shutil.which(name)]
    return f"missing: {', '.join(missing)} (apt install debootstrap qemu-user-static)" if missing else ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_obstacle()), reason=_obstacle())]


class Device:
    """A Debian for aarch64 in a folder. Only single processes run there, since what they start is not emulated."""

    def __init__(self, root: Path) -> None:
        self.root = root
        packages = ["--arch=arm64", "--foreign", "--variant=minbase", "--include=python3"]
        subprocess.run(["debootstrap", *packages, "bookworm", str(root)], check=True, stdout=subprocess.DEVNULL)
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
        shutil.copy(shutil.which(_EMULATOR) or "", root / _EMULATOR)

    def python(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run Python there; Cortex-A76 is the processor of a Raspberry Pi 5."""
        emulated = ["chroot", str(self.root), f"/{_EMULATOR}", "-cpu", "cortex-a76", "/usr/bin/python3"]
        environment = {"PYTHONPATH": "/packages", "HOME": "/root", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
        return subprocess.run(
            [*emulated, *arguments], input=stdin, capture_output=True, text=True, check=False, env=environment
        )

    def rnn_edge(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.python("-m", "rnn_edge", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("arm")
    yield Device(folder / "root")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def facts(bare: Device) -> dict[str, Any]:
    """What the agent says there."""
    request = json.dumps({"do": "look"})
    done = bare.python("-c", Path(agent.__file__).read_text(encoding="utf-8"), stdin=f"{request}\n")
    hello, reply = done.stdout.splitlines()
    assert hello == agent.HELLO, done.stderr
    found: dict[str, Any] = json.loads(reply)["ok"]
    return found


@pytest.fixture(scope="module")
def device(bare: Device, facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Device:
    """With the wheels that ``deploy --offline`` copies, and bundles."""
    payload = Payload.of(read_bundle(LSTM), tmp_path_factory.mktemp("wheel"))
    packages = Packages.of(payload, facts)
    wheels = download(packages.requirements, facts["machine"], facts["libc"], facts["python"])
    names = {wheel.name.split("-")[0].replace("_", "-").lower() for wheel in wheels}
    assert names == {line.split("==")[0].replace(".", "-") for line in packages.requirements}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--only-binary", ":all:"]
    pip += ["--implementation", "cp", "--python-version", facts["python"], "--target", str(bare.root / "packages")]
    for tag in platform_tags(facts["machine"], facts["libc"]):
        pip += ["--platform", tag]
    subprocess.run([*pip, *map(str, wheels), str(payload.wheel[2])], check=True, stdin=subprocess.DEVNULL)
    for bundle in (LSTM, GRU, TRANSLATOR, SHAKESPEARE, EN_FR):
        shutil.copytree(bundle, bare.root / bundle.name)
    return bare


def test_the_agent_knows_where_it_is(facts: dict[str, Any]) -> None:
    assert (facts["system"], facts["machine"], facts["libc"]) == ("Linux", "aarch64", ["glibc", "2.36"])
    assert facts["python"].startswith("3.11.")


def test_the_packages_are_those_of_the_device(device: Device) -> None:
    for library in (device.root / "packages").rglob("*.so"):
        assert library.read_bytes()[18:20] == b"\xb7\x00", library  # EM_AARCH64


@pytest.mark.parametrize("bundle", [LSTM, GRU, TRANSLATOR, SHAKESPEARE, EN_FR], ids=lambda path: path.name)
def test_bundles_prove_themselves(device: Device, bundle: Path) -> None:
    findings = [json.loads(line) for line in device.rnn_edge("verify", bundle.name, "--json").stdout.splitlines()]
    assert len(findings) >= 8
    assert all(finding["passed"] for finding in findings)
    assert sum(finding["explained"] for finding in findings) == 0


@pytest.mark.parametrize("bundle", [LSTM, GRU, SHAKESPEARE], ids=lambda path: path.name)
def test_the_text_is_the_same_there_and_here(device: Device, bundle: Path) -> None:
    options = ["-n", "200", "--seed", "7", "--temperature", "0.8", "--device", "cpu", "-q"]
    here = rnn_edge("generate", str(bundle), *options)
    assert here.returncode == 0
    assert len(here.stdout) > 100
    assert device.rnn_edge("generate", bundle.name, *options).stdout == here.stdout


def test_the_translation_is_the_same_there_and_here(device: Device) -> None:
    arguments = ["Where is the house? I had washed it yesterday.", "--beam", "5", "--device", "cpu", "-q"]
    here = rnn_edge("translate", str(EN_FR), *arguments)
    assert device.rnn_edge("translate", EN_FR.name, *arguments).stdout == here.stdout != ""
