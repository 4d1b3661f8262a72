"""Flags made from the fields of a recipe, so that each has one name, one default, one help text and one range."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from rnn_edge_export.recipe import flag_name


def recipe_options(*sections: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a flag for each field of ``sections`` that has a help to a command that takes them as ``**overrides``.

    Every flag's default is None, "as in the recipe"; its help shows the recipe's own default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        flags = [_flag(item, kind) for section in sections for item, kind in _fields(section)]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in [*own, *flags]}
        return command

    return decorate


def _fields(section: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(section)
    return [(item, hints[item.name]) for item in dataclasses.fields(section) if "help" in item.metadata]


def _flag(item: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    names = flag_name(item.name)
    if kind is bool:
        names += f"/--no-{names[2:]}"
    default = ("on" if item.default else "off") if kind is bool else item.default
    option = typer.Option(
        names,
        help=f"{item.metadata['help']} [default: {default}]",
        metavar="|".join(choices) if choices else None,
        show_default=False,
        rich_help_panel=None,
    )
    value: Any = str if choices else kind
    annotation = Annotated[value | None, option]  # known only at run time
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
