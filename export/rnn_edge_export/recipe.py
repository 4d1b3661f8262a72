"""A recipe describes a training run completely. Each field is a TOML key and a flag of ``rnn-edge train``."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rnn_edge.errors import InvalidValueError, RunError
from rnn_edge.manifest import Cell
from rnn_edge.schema import SchemaError, decode, encode

T = TypeVar("T")


def option(default: T, help: str, *, minimum: float | None = None, below: float | None = None) -> T:  # noqa: A002
    """A field that is also a flag: its help, and the range ``minimum <= value < below``."""
    return field(default=default, metadata={"help": help, "minimum": minimum, "below": below})


def probability(default: float, help: str) -> float:  # noqa: A002
    """A field in [0, 1)."""
    return option(default, help, minimum=0.0, below=1.0)


@dataclass(frozen=True)
class DataRecipe:
    """The corpus by title, public source, licence and hash. Its path is an argument, never part of a recipe.

    ``valid_sha256`` is the hash of the validation file, empty where the last part of the corpus serves.
    """

    title: str = ""
    source: str = ""
    licence: str = ""
    sha256: str = ""
    valid_sha256: str = ""


@dataclass(frozen=True)
class ModelRecipe:
    """Embedding → stacked recurrent layers → output layer."""

    cell: Cell = option("lstm", "Recurrent cell: lstm, gru or rnn (tanh).")
    embedding: int = option(128, "Width of the embedding.", minimum=1)
    hidden: int = option(256, "Width of each recurrent layer.", minimum=1)
    layers: int = option(2, "Number of recurrent layers.", minimum=1)
    tie_weights: bool = option(False, "Use the embedding as output layer (needs embedding = hidden).")
    input_dropout: float = probability(0.0, "Dropout on the embedded input.")
    layer_dropout: float = probability(0.2, "Dropout between recurrent layers.")
    output_dropout: float = probability(0.2, "Dropout before the output layer.")
    locked_dropout: bool = option(True, "One dropout mask for all steps of a window (Gal & Ghahramani 2016).")
    weight_drop: float = probability(0.0, "DropConnect on the recurrent matrices (Merity et al. 2017).")


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimisation by truncated back-propagation through time."""

    epochs: float = option(20.0, "Passes over the training text.", minimum=0.001)
    batch_size: int = option(64, "Parallel streams of text.", minimum=1)
    sequence_length: int = option(128, "Steps that gradients flow back through.", minimum=1)
    learning_rate: float = option(0.002, "Peak learning rate of AdamW.", minimum=1e-8)
    final_learning_rate: float = option(0.02, "Learning rate at the end, as a share of the peak.", minimum=0.0)
    warmup_steps: int = option(100, "Steps of linear warm-up before the cosine.", minimum=0)
    weight_decay: float = option(0.01, "Decoupled weight decay.", minimum=0.0)
    clip_norm: float = option(1.0, "Largest norm of the gradient.", minimum=1e-8)
    average_decay: float = probability(0.998, "Decay of the averaged (EMA) weights; 0 turns averaging off.")
    reset_probability: float = probability(0.0, "Chance that a stream starts a window from a zero state.")
    validation_interval: int = option(250, "Steps between validations.", minimum=1)
    patience: int = option(0, "Stop after so many validations without a better loss; 0 never stops.", minimum=0)
    validation_fraction: float = probability(0.1, "Last part of the corpus kept for validation without --valid.")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "Arithmetic: auto takes bf16 where the hardware has matrix units for it."
    )
    seed: int = option(1, "Seed of everything random in training.", minimum=0, below=2**63)


@dataclass(frozen=True)
class Recipe:
    """A complete training run."""

    title: str = ""
    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    training: TrainingRecipe = TrainingRecipe()

    def to_toml(self) -> str:
        """TOML with every field written out."""
        import tomli_w  # part of the export extra; reading needs only the standard library

        return tomli_w.dumps(encode(self))

    @classmethod
    def from_toml(cls, path: Path) -> "Recipe":
        """Read and check a recipe.

        Raises:
            RunError: not TOML, an unknown key or a value of the wrong type.
            InvalidValueError: a value out of its range.
        """
        try:
            recipe = decode(cls, tomllib.loads(path.read_text(encoding="utf-8")), strict=True)
        except OSError as error:
            raise RunError(f"cannot read the recipe {path}: {error.strerror}", "check the path") from error
        except (SchemaError, ValueError) as error:
            raise RunError(f"recipe {path}: {error}", "correct the recipe") from error
        recipe.check()
        return recipe

    def override(self, values: dict[str, Any]) -> "Recipe":
        """A copy in which model and training fields of these names have these values; None leaves a field alone."""
        given = {name: value for name, value in values.items() if value is not None}
        sections: dict[str, Any] = {}
        for section in ("model", "training"):
            old = getattr(self, section)
            names = {item.name for item in dataclasses.fields(old)}
            sections[section] = dataclasses.replace(old, **{n: v for n, v in given.items() if n in names})
        recipe = dataclasses.replace(self, **sections)
        recipe.check()
        return recipe

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            InvalidValueError: a value is out of its range, or two exclude each other.
        """
        for section in (self.model, self.training):
            hints = get_type_hints(type(section))
            for item in dataclasses.fields(section):
                value, minimum, below = getattr(section, item.name), *map(item.metadata.get, ("minimum", "below"))
                flag = flag_name(item.name)
                choices = get_args(hints[item.name]) if get_origin(hints[item.name]) is Literal else ()
                if choices and value not in choices:
                    raise InvalidValueError(f"{flag} is {value!r}", f"use one of {', '.join(choices)}")
                # Written so that NaN fails too.
                if minimum is not None and not value >= minimum:
                    raise InvalidValueError(f"{flag} is {value}", f"use at least {minimum:g}")
                if below is not None and not value < below:
                    raise InvalidValueError(f"{flag} is {value}", f"use a value below {below:g}")
                if isinstance(value, float) and value == float("inf"):
                    raise InvalidValueError(f"{flag} is infinite", "use a finite value")
        if self.model.tie_weights and self.model.embedding != self.model.hidden:
            raise InvalidValueError(
                f"tied weights need equal widths, not --embedding {self.model.embedding} "
                f"and --hidden {self.model.hidden}",
                "make the two equal, or leave --tie-weights out",
            )


def flag_name(name: str) -> str:
    """``batch_size`` → ``--batch-size``."""
    return "--" + name.replace("_", "-")
