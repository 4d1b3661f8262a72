"""A recipe describes a training run completely.

Each field is a TOML key, and where it has a help a flag of ``rnn-edge train``; the command finds out the others itself.
"""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rnn_edge.errors import InvalidValueError, RunError
from rnn_edge.manifest import Task
from rnn_edge.schema import SchemaError, decode, encode
from rnn_edge_export.recipe_sections import (
    DataRecipe,
    LanguageModelSection,
    ModelSection,
    OptimisationSection,
    PairSection,
    StreamSection,
    TranslationSection,
)

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete training run. Its subclasses fix the task."""

    task: Task
    title: str = ""
    data: DataRecipe = DataRecipe()
    model: ModelSection
    training: OptimisationSection

    def to_toml(self) -> str:
        """TOML with every field written out."""
        import tomli_w  # part of the export extra; reading needs only the standard library

        return tomli_w.dumps(encode(self))

    @classmethod
    def from_toml(cls: type[R], path: Path) -> R:
        """Read and check a recipe for this task.

        Raises:
            RunError: not TOML, of another task, an unknown key or a value of the wrong type.
            InvalidValueError: a value out of its range.
        """
        recipe = read_recipe(path, cls)
        if not isinstance(recipe, cls):
            raise RunError(f"recipe {path} is for {recipe.task}", f"use rnn-edge train {_COMMANDS[recipe.task]}")
        return recipe

    def override(self: R, values: dict[str, Any]) -> R:
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
            section.check()


@dataclass(frozen=True, kw_only=True)
class LanguageModelRecipe(Recipe):
    """A language model from one text."""

    task: Literal["language-model"] = "language-model"
    model: LanguageModelSection = LanguageModelSection()
    training: StreamSection = StreamSection()


@dataclass(frozen=True, kw_only=True)
class TranslationRecipe(Recipe):
    """A translator from sentence pairs."""

    task: Literal["translation"] = "translation"
    model: TranslationSection = TranslationSection()
    training: PairSection = PairSection()


_COMMANDS: dict[str, str] = {"language-model": "lm", "translation": "translation"}
_RECIPES: dict[str, type[Recipe]] = {"language-model": LanguageModelRecipe, "translation": TranslationRecipe}


def read_recipe(path: Path, default: type[Recipe] = LanguageModelRecipe) -> Recipe:
    """Read and check a recipe of any task; without the key ``task`` it is a ``default``.

    Raises:
        RunError: not TOML, an unknown key or a value of the wrong type.
        InvalidValueError: a value out of its range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if "task" in content and content["task"] not in tuple(_RECIPES):  # a table or a list has no hash
            raise SchemaError(f"task is {content['task']!r}, not one of {', '.join(_RECIPES)}")
        kind = _RECIPES[content["task"]] if "task" in content else default
        recipe = decode(kind, content, strict=True)
    except OSError as error:
        raise RunError(f"cannot read the recipe {path}: {error.strerror}", "check the path") from error
    except (SchemaError, ValueError) as error:
        raise RunError(f"recipe {path}: {error}", "correct the recipe") from error
    try:
        recipe.check()
    except InvalidValueError as error:  # whose flags are keys here
        raise InvalidValueError(f"recipe {path}: {error.message}", error.hint) from error
    return recipe


def flag_name(name: str) -> str:
    """``batch_size`` → ``--batch-size``."""
    return "--" + name.replace("_", "-")
