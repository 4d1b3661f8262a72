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

MAXIMUM_BEAM = 64
_ROLES = {"language-model": ("step",), "translation": ("encoder", "decoder")}

Task = Literal["language-model", "translation"]
Precision = Literal["fp32", "fp16", "int8", "int4"]  # of the weights in the file
Lowering = Literal["operator", "cell"]
Cell = Literal["lstm", "gru", "rnn"]
TokenizerKind = Literal["character", "byte", "subword", "word"]
AttentionKind = Literal["dot", "general", "bahdanau"]


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
    kind: TokenizerKind
    vocabulary_size: int


@dataclass(frozen=True)
class SpecialIds:
    """Token ids with a role; null where the vocabulary has none."""

    start: int | None = None
    end: int | None = None
    unknown: int | None = None


@dataclass(frozen=True)
class EncoderArchitecture:
    """The encoder of a translator: ``hidden`` is the width of each direction.

    Attention is ``own`` where a module of its author's computes it.
    """

    hidden: int
    layers: int
    attention: Literal["dot", "general", "bahdanau", "own"]
    input_feeding: bool
    directions: int = 2


@dataclass(frozen=True)
class Architecture:
    """The network that the graphs compute. Of a translator, the decoder with its ``encoder``."""

    cell: Cell
    embedding: int
    hidden: int
    layers: int
    tied: bool
    parameters: int
    encoder: EncoderArchitecture | None = None


@dataclass(frozen=True)
class MemoryTensor:
    """What the encoder leaves to every step of the decoder: float32 [batch, source_length, width]."""

    name: str
    width: int


@dataclass(frozen=True)
class SourceSpec:
    """The side that is translated from: its tokenizer, its end token, and the longest source of the training data.

    Both sides may name one tokenizer file.
    """

    tokenizer: TokenizerSpec
    end: int
    longest: int
    unknown: int | None = None
    language: str = ""


@dataclass(frozen=True)
class DecodingDefaults:
    """What ``translate`` uses where the caller says nothing."""

    beam: int = 1
    length_penalty: float = 1.0


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
class GoldenTranslation:
    """A source and the greedy translation of the exporting machine, as ``GoldenTranscript`` records a text.

    ``source`` has the end token; ``text`` is what it is the encoding of, empty where it is random ids.
    """

    text: str
    source: tuple[int, ...]
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
    """Everything about a bundle.

    ``graphs`` maps a role to a file name of ``files``: ``step`` for a language model; ``encoder`` and ``decoder`` for a
    translator, which also has ``source``, ``memory``, ``decoding`` and ``golden_translations``.
    """

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
    source: SourceSpec | None = None
    memory: tuple[MemoryTensor, ...] = ()
    decoding: DecodingDefaults = DecodingDefaults()
    golden_translations: tuple[GoldenTranslation, ...] = ()

    @property
    def digest(self) -> str:
        """Identity of the weights: the SHA-256 over the hashes of all graphs, by role."""
        parts = (f"{role}:{self.files[name].sha256}" for role, name in sorted(self.graphs.items()))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def tokenizers(self) -> dict[str, TokenizerSpec]:
        """Tokenizers by their place in the manifest."""
        found = {"tokenizer": self.tokenizer}
        return found | ({"source.tokenizer": self.source.tokenizer} if self.source else {})

    def to_json(self) -> str:
        """Indented JSON with every list of numbers on one line. What translators alone have is left out of others."""
        content = encode(self)
        if self.task != "translation":
            for table in (content, content["architecture"], content["special_ids"]):
                for name, blank in _BLANKS.items():
                    if name in table and table[name] == blank:
                        del table[name]
        elif content["architecture"]["encoder"]["directions"] == EncoderArchitecture.directions:
            del content["architecture"]["encoder"]["directions"]
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
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
        files = [(f"{place}.file", spec.file) for place, spec in self.tokenizers.items()]
        for place, name in [*files, *_places("graphs", self.graphs)]:
            if not _FILE_NAME.fullmatch(name):
                raise SchemaError(f"{place} names {name!r}, which is not a plain file name inside the bundle")
            if name not in self.files:
                raise SchemaError(f"{place} names {name}, which files does not list")
        if any(not re.fullmatch(r"[a-z_]{1,32}", role) for role in self.graphs):
            raise SchemaError("graphs has a role that is not a plain word")
        for role in _ROLES[self.task]:
            if role not in self.graphs:
                raise SchemaError(f"graphs.{role} is missing")
        if not self.state:
            raise SchemaError("state lists no pairs")
        names = [name for pair in self.state for name in (pair.input, pair.output)]
        names += [tensor.name for tensor in self.memory]
        if len(set(names)) != len(names):
            raise SchemaError("state and memory name a tensor twice")
        widths = [pair.width for pair in self.state] + [tensor.width for tensor in self.memory]
        if min(widths) < 1:
            raise SchemaError("state or memory has a width below 1")
        for place, spec in self.tokenizers.items():
            if spec.vocabulary_size < 1:
                raise SchemaError(f"{place}.vocabulary_size is below 1")
        size = self.tokenizer.vocabulary_size
        for role, token in encode(self.special_ids).items():
            if token is not None and not 0 <= token < size:
                raise SchemaError(f"special_ids.{role} is {token}, outside the vocabulary of {size}")
        if self.task == "translation":
            self._check_translation()
        goldens: dict[str, GoldenTranscript | GoldenTranslation] = {
            **{f"golden[{index}]": golden for index, golden in enumerate(self.golden)},
            **{f"golden_translations[{index}]": golden for index, golden in enumerate(self.golden_translations)},
        }
        for place, golden in goldens.items():
            if not 0 < len(golden.tokens) == len(golden.best) == len(golden.margins):
                raise SchemaError(f"{place} has no tokens, or lists of different lengths")
            if any(not 0 <= token < size for token in (*golden.tokens, *golden.best)):
                raise SchemaError(f"{place} has a token outside the vocabulary of {size}")

    def _check_translation(self) -> None:
        if self.source is None or self.architecture.encoder is None or not self.memory:
            raise SchemaError("a translation model needs source, memory and architecture.encoder")
        if self.special_ids.start is None or self.special_ids.end is None:
            raise SchemaError("special_ids needs start and end")
        size = self.source.tokenizer.vocabulary_size
        for role, token in (("end", self.source.end), ("unknown", self.source.unknown)):
            if token is not None and not 0 <= token < size:
                raise SchemaError(f"source.{role} is {token}, outside the vocabulary of {size}")
        if self.source.longest < 1:
            raise SchemaError("source.longest is below 1")
        if not 1 <= self.decoding.beam <= MAXIMUM_BEAM or not 0 <= self.decoding.length_penalty <= 10:
            raise SchemaError("decoding is out of range")
        for index, golden in enumerate(self.golden_translations):
            if not golden.source or any(not 0 <= token < size for token in golden.source):
                raise SchemaError(f"golden_translations[{index}].source is empty or outside the vocabulary of {size}")


# Fields that other models than translators lack, with what they hold there.
_BLANKS: dict[str, object] = {
    "source": None,
    "memory": [],
    "decoding": encode(DecodingDefaults()),
    "golden_translations": [],
    **dict.fromkeys(("encoder", "end", "unknown")),
}


def _places(where: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{where}.{key}", name) for key, name in names.items()]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
