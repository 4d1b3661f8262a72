"""The contract between exporter and runtime: what a bundle holds. Standard library only."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from rnn_edge.errors import BundleError
from rnn_edge.schema import SchemaError, decode, encode

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
# A folder holds plain file names: no separators, no drive letters, nothing hidden, nothing above it.
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")

Task = Literal["language-model"]
Precision = Literal["fp32"]
Lowering = Literal["operator", "cell"]
Cell = Literal["lstm", "gru", "rnn"]


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class StatePair:
    """A tensor that is carried: graph output ``output`` of one step is input ``input`` of the next.

    ``width`` is the last axis of its shape ``[batch, width]``.
    """

    input: str
    output: str
    width: int
    dtype: Literal["float32"]


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer's file and what a reader wants to know before opening it."""

    file: str
    kind: Literal["character"]
    vocabulary_size: int


@dataclass(frozen=True)
class SpecialIds:
    """Token ids with a role; null where the vocabulary has none."""

    start: int | None = None


@dataclass(frozen=True)
class Architecture:
    """The network that the graphs compute."""

    cell: Cell
    embedding: int
    hidden: int
    layers: int
    tied: bool
    parameters: int


@dataclass(frozen=True)
class SamplingDefaults:
    """What ``generate`` uses where the caller says nothing."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True)
class GoldenTranscript:
    """Tokens fed from a zero state, and what the exporting machine answered at each step.

    ``best[t]`` is the id with the largest logit after ``tokens[t]``; ``margins[t]`` its distance to the second.
    A device may answer another id only where ``margins[t] < tolerance``.
    """

    kind: Literal["greedy", "text"]
    tokens: tuple[int, ...]
    best: tuple[int, ...]
    margins: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True)
class Metric:
    """A measured figure with everything needed to measure it again."""

    name: str
    value: float
    unit: str
    data: str
    split: str
    method: str


@dataclass(frozen=True)
class Provenance:
    """Where the model comes from: the recipe as TOML, and the corpus by title, source, licence and hash."""

    recipe: str
    data_title: str
    data_source: str
    data_licence: str
    data_sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle. ``graphs`` maps a role (``step``) to a file name of ``files``."""

    format_version: int
    name: str
    task: Task
    precision: Precision
    lowering: Lowering
    architecture: Architecture
    graphs: dict[str, str]
    state: tuple[StatePair, ...]
    tokenizer: TokenizerSpec
    special_ids: SpecialIds
    sampling: SamplingDefaults
    golden: tuple[GoldenTranscript, ...]
    metrics: tuple[Metric, ...]
    provenance: Provenance
    versions: dict[str, str]
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identity of the weights: the SHA-256 over the hashes of all graphs, by role."""
        parts = (f"{role}:{self.files[name].sha256}" for role, name in sorted(self.graphs.items()))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to_json(self) -> str:
        """Indented JSON with every list of numbers on one line."""
        text = json.dumps(encode(self), indent=2, ensure_ascii=False, allow_nan=False)
        # Only lists of numbers span lines without a quote or brace in them; strings hold no raw newlines.
        return re.sub(r"\[\n[\s\d.,eE+-]*\]", lambda match: " ".join(match[0].split()), text) + "\n"

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "Manifest":
        """Parse and check a manifest. ``where`` names it in errors.

        Raises:
            BundleError: not JSON, another format version, a field missing or wrong, a file outside the folder.
        """
        try:
            value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not JSON: {error}", "export the bundle again or copy it again") from error
        version = value.get("format_version") if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and version != FORMAT_VERSION:
            raise BundleError(
                f"{where} has format version {version!r}; this rnn-edge reads version {FORMAT_VERSION}",
                "update rnn-edge here, or export the bundle with a version that matches",
            )
        try:
            manifest = decode(cls, value, strict=False)
            manifest._check()
        except SchemaError as error:
            raise BundleError(f"{where}: {error}", "export the bundle again or copy it again") from error
        return manifest

    def _check(self) -> None:
        for name, entry in self.files.items():
            if not _FILE_NAME.fullmatch(name):
                raise SchemaError(f"files names {name!r}, which is not a plain file name inside the bundle")
            if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
                raise SchemaError(f"files.{name}.sha256 is not a SHA-256 in hexadecimal")
            if entry.size < 0:
                raise SchemaError(f"files.{name}.size is negative")
        for place, name in [("tokenizer.file", self.tokenizer.file), *_places("graphs", self.graphs)]:
            if not _FILE_NAME.fullmatch(name):
                raise SchemaError(f"{place} names {name!r}, which is not a plain file name inside the bundle")
            if name not in self.files:
                raise SchemaError(f"{place} names {name}, which files does not list")
        if any(not re.fullmatch(r"[a-z_]{1,32}", role) for role in self.graphs):
            raise SchemaError("graphs has a role that is not a plain word")
        if "step" not in self.graphs:
            raise SchemaError("graphs.step is missing")
        if not self.state:
            raise SchemaError("state lists no pairs")
        names = [name for pair in self.state for name in (pair.input, pair.output)]
        if len(set(names)) != len(names):
            raise SchemaError("state names a tensor twice")
        if any(pair.width < 1 for pair in self.state):
            raise SchemaError("state has a width below 1")
        size = self.tokenizer.vocabulary_size
        if size < 1:
            raise SchemaError("tokenizer.vocabulary_size is below 1")
        for role, token in encode(self.special_ids).items():
            if token is not None and not 0 <= token < size:
                raise SchemaError(f"special_ids.{role} is {token}, outside the vocabulary of {size}")
        for index, golden in enumerate(self.golden):
            if not len(golden.tokens) == len(golden.best) == len(golden.margins):
                raise SchemaError(f"golden[{index}] has lists of different lengths")
            if any(not 0 <= token < size for token in (*golden.tokens, *golden.best)):
                raise SchemaError(f"golden[{index}] has a token outside the vocabulary of {size}")


def _places(where: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{where}.{key}", name) for key, name in names.items()]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
