"""Our own ES modules put into one script, for a page that is one file: blobs cannot import their neighbours.

It knows the few forms in which these modules import and export, and refuses others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.-]+)";\n', re.MULTILINE)
_REEXPORT = re.compile(r'^export \{([^}]*)\} from "\./([\w.-]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function\*?|class|const|let)) (\w+)", re.MULTILINE)
_OTHER = re.compile(r"^(?:import|export)\b.*$|\bimport\.meta\b", re.MULTILINE)


def in_one(entry: str, sources: Mapping[str, str]) -> str:
    """The module ``entry`` and all that it imports as one script: each a function that is called once, in order.

    Raises:
        ValueError: a module imports or exports in a form that is not known here, itself, or what is not there.
    """
    order: list[str] = []
    _visit(entry, sources, order, ())
    parts = [f"{_name(name)} = (() => {{\n{_body(name, sources[name])}}})();\n" for name in order]
    return '"use strict";\n' + "".join(f"const {part}" for part in parts)


def _visit(name: str, sources: Mapping[str, str], order: list[str], path: tuple[str, ...]) -> None:
    if name in path:
        raise ValueError(f"{' imports '.join((*path, name))}: a circle")
    if name in order:
        return
    if name not in sources:
        raise ValueError(f"{path[-1] if path else 'the page'} imports {name}, which is not there")
    for pattern in (_IMPORT, _REEXPORT):
        for match in pattern.finditer(sources[name]):
            _visit(match[2], sources, order, (*path, name))
    order.append(name)


def _body(name: str, source: str) -> str:
    exported = [match[2] for match in _EXPORT.finditer(source)]

    def passed_on(match: re.Match[str]) -> str:
        exported.extend(f"{item}: {_name(match[2])}.{item}" for item in _names(match[1]))
        return ""

    source = _IMPORT.sub(lambda match: f"const {{ {', '.join(_names(match[1]))} }} = {_name(match[2])};\n", source)
    source = _EXPORT.sub(r"\1 \2", _REEXPORT.sub(passed_on, source))
    if other := _OTHER.search(source):
        raise ValueError(f"{name}: {other[0]!r} is a form that is not known here")
    return f"{source}return {{ {', '.join(exported)} }};\n"


def _names(text: str) -> list[str]:
    names = [item.strip() for item in text.split(",") if item.strip()]
    if any(not re.fullmatch(r"\w+", item) for item in names):
        raise ValueError(f"{{{text}}} renames what it imports")
    return names


def _name(module: str) -> str:
    return "module_" + re.sub(r"\W", "_", PurePosixPath(module).stem)
