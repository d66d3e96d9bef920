# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Break what is healthy, in every place and in every way, and see what stays green.

A verdict is independent of a place where no value there changes it. Where one does, none that is missing, null, of another type or
hostile may leave the verdict green: that is a false green.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Path = tuple[Any, ...]
Verdicts = Callable[[Any], Mapping[str, str]]
"""From what was broken to the verdicts by their names."""

GONE = object()
"""The key, or the element of the list, is not there."""
_HOSTILE = (
    "",
    " ",
    "<script>alert(1)</script>",
    "\x1b[2J\x1b[31mready",
    "{{ 7 * 7 }}",
    "null",
    "true",
    "\u202edevorppa",
    "A" * 5000,
)
_OTHERS: tuple[Any, ...] = (0, -1, 1.5, True, False, [], [None], {}, {"a": None}, float("nan"))


@dataclasses.dataclass(frozen=True)
class FalseGreen:
    """What stayed green, and what had been broken."""

    verdict: str
    path: Path
    value: Any


def paths(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every place of a document but its top, with what is there."""
    if path:
        yield path, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from paths(each, (*path, key))


def broken_values(value: Any) -> Iterator[Any]:
    """What must not be taken for an answer where ``value`` was one: a null is one where the healthy host has it."""
    if value is not None:
        yield None
    if isinstance(value, list):
        yield from ([None], ["<script>"], [[]])
    for other in _OTHERS:
        if _kind(other) != _kind(value):
            yield other
    for text in _HOSTILE:
        if text != value:
            yield text


def _kind(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def replaced(document: Any, path: Path, value: Any) -> Any:
    """A copy of the document that differs in one place, if it still has that place."""
    key, rest = path[0], path[1:]
    if isinstance(document, dict):
        if key not in document:
            return document
        copy: Any = dict(document)
    elif isinstance(document, list) and isinstance(key, int) and key < len(document):
        copy = list(document)
    else:
        return document
    if rest:
        copy[key] = replaced(document[key], rest, value)
    elif value is GONE:
        del copy[key]
    else:
        copy[key] = value
    return copy


def broken(document: Any) -> dict[Path, list[Any]]:
    """Every way to break a document in one place, by the place.

    A list with fewer elements, and one of texts or numbers with another one, is another answer and no broken one.
    """
    found: dict[Path, list[Any]] = {}
    for path, value in paths(document):
        in_list = isinstance(path[-1], int)
        if not in_list or isinstance(value, (dict, list)):
            found[path] = [*([] if in_list else [GONE]), *broken_values(value)]
    return found


def false_greens(document: Any, green: str, verdicts: Verdicts, ways: Mapping[Path, list[Any]]) -> list[FalseGreen]:
    """Every verdict that is green though what it depends on is broken."""
    healthy = verdicts(document)
    found = []
    for path, values in ways.items():
        results = [(value, verdicts(replaced(document, path, value))) for value in values]
        for name, status in healthy.items():
            if status != green or all(result[name] == green for _value, result in results):
                continue
            found += [FalseGreen(name, path, value) for value, result in results if result[name] == green]
    return found
