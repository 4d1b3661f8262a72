"""What the tests of the page share: its runtime, sites of bundles, a server, Node and a browser, or a reason."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rnn_edge.bundle import open_bundle
from rnn_edge.errors import RnnEdgeError
from rnn_edge.web.runtime import runtime_files
from rnn_edge.web.site import make_site, model_files
from tests.device.conftest import Cli as Cli
from tests.device.conftest import cli as cli
from tests.web.chromium import program
from tests.web.server import served

ROOT = Path(__file__).parent.parent.parent
BUNDLES = [f"tests/data/{name}" for name in ("lstm", "gru", "translator", "translator-word")]
BUNDLES += [f"models/{name}" for name in ("shakespeare", "sherlock", "en-fr")]

Serve = Callable[[Path], str]


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's runtime: $RNN_EDGE_WEB_RUNTIME, or fetched once into the user's cache for tests."""
    if given := os.environ.get("RNN_EDGE_WEB_RUNTIME"):
        return Path(given)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNN_EDGE_CACHE", str(base / "rnn-edge-tests"))
        try:
            found = runtime_files()
        except RnnEdgeError as error:
            pytest.skip(f"the page's runtime is not to be had: {error.message}")
    folder = tmp_path_factory.mktemp("runtime")
    for name, content in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def sites(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The site of a bundle, by its path in the repository; made once, so do not write into it."""
    base = tmp_path_factory.mktemp("sites")

    @functools.cache
    def make(bundle: str) -> Path:
        site = base / Path(bundle).name
        make_site(open_bundle(ROOT / bundle), site, runtime=runtime, note=lambda _: None)
        return site

    return make


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundles as a page has them, each by its path in the repository."""
    base = tmp_path_factory.mktemp("models")
    for bundle in BUNDLES:
        folder = base / bundle
        folder.mkdir(parents=True)
        for name, content in model_files(open_bundle(ROOT / bundle)).items():
            (folder / name).write_bytes(content)
    return base


@pytest.fixture(scope="session")
def node() -> str:
    """Node's path."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


@pytest.fixture(scope="session")
def browser() -> str:
    """The browser's path."""
    found = program()
    if found is None:
        pytest.skip("no Chromium is installed; name one with $CHROMIUM")
    return found


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a folder on a loopback port → its address."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(served(folder))
