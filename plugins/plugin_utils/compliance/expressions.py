# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. JMESPath, in which nothing that is unknown can pass.

The grammar is JMESPath's and jmespath parses it. Its evaluation is replaced: JMESPath makes null of whatever is missing or of the wrong
type, and of null an empty list, false or "not equal", so that a rule passes on a host that was hardly observed. Here that is an error:

- a key that is missing, a field of anything but an object, an index beyond the end (`defined(x)` is how a rule asks);
- a projection, filter or flattening of anything but a list (`*`: an object), and one that yields a null;
- `==` and `!=` of null with anything but the literal null, and of two different types;
- `<`, `<=`, `>`, `>=` of anything but numbers; `!`, `&&`, `||` and the condition of a filter with anything but true and false;
- an argument of the wrong type.

An expression is compiled once, to functions of Python, and evaluated for each host on plain JSON types (`plain`).
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

MAX_LENGTH = 4096
"""Bytes of an expression."""
MAX_DEPTH = 40
"""Levels of an expression."""
_MAX_ELEMENTS = 100_000
"""Of a list that an expression makes."""
_MAX_MATCHED = 512
"""Characters of a text that is matched with a regular expression: what a host says must not keep the controller busy."""
_CLOCK_TOLERANCE = datetime.timedelta(minutes=5)
"""What the clocks of a host and of the controller may differ before a time counts as one of the future."""

_VERSION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,9})(?:\+[A-Za-z0-9.]{1,64})?")
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|\+00:00)")
# (a+)+ takes time that doubles with each character.
_NESTED_REPEAT = re.compile(r"[+*}][^()]*\)[+*{]")

_Node = dict[str, Any]
_Run = Callable[[Any, Any], Any]
"""Of the current node and the whole document."""


class ExpressionError(ValueError):
    """A text cannot be used as an expression; the message says why."""


class EvaluationError(Exception):
    """An expression has no value on this document; the message says which part of it met what."""


class Missing(EvaluationError):
    """Because something is not there, or null where an object or a list is needed."""


class _Unfit(Exception):
    """An argument that a function cannot take; the message begins after the text of the call."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """An expression that can be evaluated."""

    text: str
    reads: frozenset[tuple[str, ...]]
    """What it reads from the document's top, the first two names of each path."""
    run: _Run = dataclasses.field(repr=False, compare=False)

    def evaluate(self, document: Any) -> Any:
        """Return the value, of plain JSON types; raises EvaluationError."""
        try:
            return self.run(document, document)
        except EvaluationError:
            raise
        except Exception as error:
            raise EvaluationError(f"{_short(self.text)}: {type(error).__name__}: {_short(str(error))}") from error


@functools.lru_cache(maxsize=2048)
def compile_expression(text: str) -> Compiled:
    """Return the expression of a text; raises ExpressionError where it could not mean what it says."""
    from jmespath.parser import Parser  # Ansible does not bring it, and only who compiles needs it

    if not isinstance(text, str) or not text.strip():
        raise ExpressionError("the expression is empty")
    if len(text.encode("utf-8", "replace")) > MAX_LENGTH:
        raise ExpressionError(f"the expression is longer than {MAX_LENGTH} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            node = Parser().parse(text).parsed
    except PendingDeprecationWarning:
        raise ExpressionError(
            "what stands in backticks is no JSON; text is written in single quotes: 'nvidia'"
        ) from None
    except RecursionError:
        raise ExpressionError(f"the expression is deeper than {MAX_DEPTH} levels") from None
    except Exception as error:  # the parser raises IndexError for some of what is cut short
        reason = getattr(error, "msg", "") or (str(error).splitlines() or [""])[0] or type(error).__name__
        position = getattr(error, "lex_position", None)
        at = f" at character {position + 1}" if isinstance(position, int) else ""
        hint = "numbers, true, false and null stand in backticks, text in single quotes"
        raise ExpressionError(f"no JMESPath expression{at}: {reason} ({hint})") from None
    _check_depth(node)
    compiler = _Compiler()
    run = compiler.compile(node, True)
    return Compiled(text, frozenset(compiler.reads), run)


def _check_depth(node: _Node) -> None:
    """Without recursion: a && b && c... can be as deep as it is long."""
    waiting = [(node, 1)]
    while waiting:
        current, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ExpressionError(f"the expression is deeper than {MAX_DEPTH} levels")
        waiting += [(child, depth + 1) for child in current["children"] if isinstance(child, dict)]


def plain(value: Any) -> Any:
    """Return a copy of plain JSON types, without what no report could hold; raises ValueError where that is not possible."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:  # NaN, infinity; or a reference to itself, which this refuses too
        text = json.dumps(_finite(value, 0), ensure_ascii=False, allow_nan=False, default=str)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"it is no JSON document: {error}") from None
    return json.loads(text.encode("utf-8", "replace"))


def _finite(value: Any, depth: int) -> Any:
    """Numbers that JSON has not become text, which no comparison takes for a number."""
    if depth > 100:
        raise ValueError("it is too deep, or contains itself")
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item, depth + 1) for item in value]
    return value


# ---- values ---------------------------------------------------------------------------------------------------------

_KINDS = {type(None): "null", bool: "boolean", int: "number", str: "text", list: "list", dict: "object"}


def _kind(value: Any) -> str:
    kind = _KINDS.get(type(value))
    if kind is None and isinstance(value, float) and math.isfinite(value):
        return "number"
    return kind or f"a value of the type {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."


def _said(value: Any) -> str:
    """What a value is, for people; a text of a host's only as ASCII."""
    kind = _kind(value)
    if kind == "list":
        return f"a list of {len(value)}"
    if kind in ("null", "boolean", "number", "text"):
        said = json.dumps(value[:80] if kind == "text" else value)
        return said if len(said) <= 60 else said[:57] + "..."
    return "an object" if kind == "object" else kind


def _missing_in(value: Any) -> bool:
    """Whether a null is in a list or an object."""
    if isinstance(value, dict):
        return any(map(_missing_in, value.values()))
    if isinstance(value, list):
        return any(map(_missing_in, value))
    return value is None


def _equal(left: Any, right: Any) -> bool:
    """Compare two values that are known, and of one type."""
    kind, other = _kind(left), _kind(right)
    if kind != other or kind not in _COMPARED:
        raise _Unfit(f"{_said(left)} and {_said(right)} cannot be compared")
    if kind == "list":
        kinds = set(map(_kind, left)) | set(map(_kind, right))
        if len(kinds) > 1 or not kinds <= _COMPARED:
            raise _Unfit(f"lists of {' and '.join(sorted(kinds))} cannot be compared")
        return len(left) == len(right) and all(map(_equal, left, right))
    if kind == "object":
        if _missing_in(left) or _missing_in(right):
            raise _Unfit("objects that hold null cannot be compared")
        return [_equal(left[key], right[key]) for key in left if key in right] == [True] * max(len(left), len(right))
    return bool(left == right)


_COMPARED = {"boolean", "number", "text", "list", "object"}


# ---- functions ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _version(text: str) -> tuple[int, ...]:
    found = _VERSION.fullmatch(text)
    if not found:
        raise _Unfit(f"{_said(text)} is no version (numbers with dots between them)")
    numbers = [int(part) for part in found[1].split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


def _ver(left: str, sign: str, right: str) -> bool:
    return _OPERATORS[sign](_version(left), _version(right))


@functools.lru_cache(maxsize=4096)
def _time(text: str) -> datetime.datetime:
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise _Unfit(f"{_said(text)} is no time (2026-11-23T12:00:00Z)") from None


def _age_hours(text: str, now: Any) -> float:
    if not isinstance(now, str):
        raise _Unfit("the document has no `now`")
    age = _time(now) - _time(text)
    if age < -_CLOCK_TOLERANCE:
        raise _Unfit(f"{_said(text)} is in the future: it is {now} now")
    return max(age.total_seconds(), 0) / 3600


def _booleans(values: list[Any]) -> list[Any]:
    for value in values:
        if value is not True and value is not False:
            raise _Unfit(f"{_said(value)} is in the list, which is neither true nor false")
    return values


def _of(kinds: Iterable[str], values: list[Any], least: int = 0) -> list[Any]:
    """A list whose elements are of one type."""
    found = sorted(set(map(_kind, values)))
    if len(found) > 1 or not set(found) <= set(kinds):
        raise _Unfit(f"the list holds {' and '.join(found)}, not {' or '.join(kinds)} alone")
    if len(values) < least:
        raise _Unfit("the list is empty")
    return values


def _contains(where: Any, what: Any) -> bool:
    if isinstance(where, str):
        if not isinstance(what, str):
            raise _Unfit(f"{_said(what)} cannot be in a text")
        return what in where
    kind = _kind(what)
    if kind not in ("text", "number", "boolean"):
        raise _Unfit(f"{_said(what)} cannot be looked for")
    return what in _of((kind,), where)


@functools.lru_cache(maxsize=512)
def _regex(text: str) -> re.Pattern[str]:
    if len(text) > _MAX_MATCHED:
        raise _Unfit(f"the regular expression is longer than {_MAX_MATCHED} characters")
    if _NESTED_REPEAT.search(text):
        raise _Unfit("the regular expression repeats what repeats: a hostile text could keep it busy for ever")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise _Unfit(f"no regular expression: {error}") from None


def _matches(text: str, regex: str) -> bool:
    if len(text) > _MAX_MATCHED:
        raise _Unfit(f"the text is longer than {_MAX_MATCHED} characters")
    return _regex(regex).fullmatch(text) is not None


def _to_number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not _NUMBER.fullmatch(value):
        raise _Unfit(f"{_said(value)} is no number")
    return float(value) if "." in value else int(value)


NOT_APPLICABLE = "not_applicable"
"""What an observation holds in the place of a value that a card does not have."""


def _applicable(value: Any) -> bool:
    if value is None:
        raise _Unfit("it is not known")
    return bool(value != NOT_APPLICABLE)


@dataclasses.dataclass(frozen=True)
class Function:
    """What expressions may call."""

    usage: str
    does: str
    takes: tuple[tuple[str, ...], ...]
    """The types of each argument."""
    call: Callable[..., Any] | None
    """None: the compiler knows it."""


_TEXT, _LIST, _OBJECT, _AMOUNT = ("text",), ("list",), ("object",), ("number",)
_ORDERED = ("number", "text")

FUNCTIONS: dict[str, Function] = {
    function.usage.partition("(")[0]: function
    for function in (
        Function("abs(number)", "without its sign", (_AMOUNT,), abs),
        Function(
            "age_hours(time)",
            "hours from an ISO 8601 UTC time to now; a time more than 5 minutes in the future is an error",
            (_TEXT,),
            None,
        ),
        Function(
            "all(list)",
            "true where the list is not empty and every element is true",
            (_LIST,),
            lambda v: bool(_booleans(v)) and all(v),
        ),
        Function("any(list)", "true where an element is true", (_LIST,), lambda v: any(_booleans(v))),
        Function(
            "applicable(x)",
            "false where the GPU says that it has no such thing; an error where x is missing or null",
            (("boolean", "list", "null", "number", "object", "text"),),
            _applicable,
        ),
        Function("avg(list)", "the mean of numbers", (_LIST,), lambda v: sum(_of(_AMOUNT, v, 1)) / len(v)),
        Function("ceil(number)", "rounded up", (_AMOUNT,), math.ceil),
        Function(
            "contains(list or text, x)",
            "whether x is an element of a list, all of x's type, or a part of a text",
            (("list", "text"), ("text", "number", "boolean")),
            _contains,
        ),
        Function("defined(x)", "false where x is missing or null, or part of what is", ((),), None),
        Function("ends_with(text, text)", "whether the first ends with the second", (_TEXT, _TEXT), str.endswith),
        Function("floor(number)", "rounded down", (_AMOUNT,), math.floor),
        Function(
            "join(text, list)",
            "the texts of a list with the first between them",
            (_TEXT, _LIST),
            lambda t, v: t.join(_of(_TEXT, v)),
        ),
        Function("keys(object)", "its names, sorted", (_OBJECT,), sorted),
        Function("length(list)", "number of elements", (_LIST,), len),
        Function(
            "map(&expression, list)", "the expression's value for each element; none may be null", ((), _LIST), None
        ),
        Function(
            "matches(text, regex)", "whether the regular expression matches the whole text", (_TEXT, _TEXT), _matches
        ),
        Function("max(list)", "the greatest of numbers, or of texts", (_LIST,), lambda v: max(_of(_ORDERED, v, 1))),
        Function("min(list)", "the least of numbers, or of texts", (_LIST,), lambda v: min(_of(_ORDERED, v, 1))),
        Function("sort(list)", "numbers, or texts, in order", (_LIST,), lambda v: sorted(_of(_ORDERED, v))),
        Function("starts_with(text, text)", "whether the first begins with the second", (_TEXT, _TEXT), str.startswith),
        Function("sum(list)", "of numbers", (_LIST,), lambda v: sum(_of(_AMOUNT, v))),
        Function("to_number(text or number)", "the number that a text says", (_ORDERED,), _to_number),
        Function("values(object)", "its values, which may be null", (_OBJECT,), lambda v: list(v.values())),
        Function(
            "ver(text, operator, text)",
            "compares versions by their numbers; the operator is '<', '<=', '==', '!=', '>=' or '>'; what follows a + does not count",
            (_TEXT, _TEXT, _TEXT),
            _ver,
        ),
    )
}
"""Every function there is. JMESPath's others are left out because they make something of nothing: not_null, to_string, type, merge..."""


# ---- compiler -------------------------------------------------------------------------------------------------------

_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_WORDS = ("true", "false", "null")


def _constant(node: _Node) -> bool:
    """Whether the value is the same for every document."""
    if node["type"] in ("field", "current", "identity"):
        return False
    return all(_constant(child) for child in node["children"] if isinstance(child, dict))


def _written(node: _Node) -> str:
    """An expression's text again, for messages."""
    return _short(_source(node))


def _source(node: _Node) -> str:
    kind, children = node["type"], node["children"]
    parts = [_source(child) if isinstance(child, dict) else "" if child is None else str(child) for child in children]
    if kind == "field":
        return str(node["value"])
    if kind == "literal":
        return f"'{node['value']}'" if isinstance(node["value"], str) else f"`{json.dumps(node['value'])}`"
    if kind == "comparator":
        return f"{parts[0]} {_SIGNS[node['value']]} {parts[1]}"
    if kind == "function_expression":
        return f"{node['value']}({', '.join(parts)})"
    if kind == "index":
        return f"[{node['value']}]"
    if kind == "key_val_pair":
        return f"{node['value']}: {parts[0]}"
    if kind in ("projection", "value_projection", "filter_projection"):
        base = children[0]["type"]
        star = (
            f"[?{parts[2]}]"
            if kind[0] == "f"
            else ".*"
            if kind[0] == "v"
            else ""
            if base in ("flatten", "index_expression")
            else "[*]"
        )
        rest = parts[1] if not parts[1] or parts[1].startswith("[") else f".{parts[1]}"
        return f"{parts[0]}{star}{rest}".lstrip(".")
    return {
        "current": lambda: "@",
        "identity": lambda: "",
        "expref": lambda: f"&{parts[0]}",
        "flatten": lambda: f"{parts[0]}[]",
        "slice": lambda: f"[{':'.join(parts)}]",
        "index_expression": lambda: "".join(parts),
        "multi_select_list": lambda: f"[{', '.join(parts)}]",
        "multi_select_dict": lambda: f"{{{', '.join(parts)}}}",
        "or_expression": lambda: f"({parts[0]} || {parts[1]})",
        "and_expression": lambda: f"({parts[0]} && {parts[1]})",
        "not_expression": lambda: f"!({parts[0]})",
        "pipe": lambda: " | ".join(parts),
        "subexpression": lambda: ".".join(parts),
    }[kind]()


def _no_field(whole: str, names: tuple[str, ...], value: Any) -> EvaluationError:
    """Why a path ends before its end."""
    for index, name in enumerate(names):
        if isinstance(value, dict) and name in value:
            value = value[name]
            continue
        before = ".".join(names[:index]) or "the value before it"
        if isinstance(value, dict):
            return Missing(f"{whole}: there is no `{'.'.join(names[: index + 1])}`")
        error = Missing if value is None else EvaluationError
        return error(f"{whole}: {before} is {_said(value)}, not an object")
    return EvaluationError(f"{whole}: it could not be read")


class _Compiler:
    """From jmespath's syntax tree to functions."""

    def __init__(self) -> None:
        self.reads: set[tuple[str, ...]] = set()

    def compile(self, node: _Node, top: bool) -> _Run:
        """``top``: whether the current node is the whole document, as far as one can tell from the text."""
        method: Callable[[_Node, bool], _Run] = getattr(self, f"_{node['type']}")
        return method(node, top)

    # -- what is read

    def _literal(self, node: _Node, top: bool) -> _Run:
        value = node["value"]
        if _kind(value) not in (*_COMPARED, "null"):  # NaN, which Python's JSON knows
            raise ExpressionError(f"{value} is no number")
        return lambda _value, _document: value

    def _current(self, node: _Node, top: bool) -> _Run:
        return lambda value, _document: value

    _identity = _current

    def _field(self, node: _Node, top: bool) -> _Run:
        return self._path([node], top)

    def _path(self, fields: list[_Node], top: bool) -> _Run:
        names = tuple(field["value"] for field in fields)
        whole = _short(".".join(names))
        for name in names:
            if name in _WORDS:
                raise ExpressionError(f"`{name}` stands in backticks: without them it is the name of a key")
        if top:
            self.reads.add(names[:2])
        if len(names) == 1:
            (only,) = names

            def field(value: Any, _document: Any) -> Any:
                try:
                    return value[only]
                except (KeyError, TypeError, IndexError):
                    raise _no_field(whole, names, value) from None

            return field

        def path(value: Any, _document: Any) -> Any:
            found = value
            try:
                for name in names:
                    found = found[name]
            except (KeyError, TypeError, IndexError):
                raise _no_field(whole, names, value) from None
            return found

        return path

    def _subexpression(self, node: _Node, top: bool) -> _Run:
        children = node["children"]
        if children[0]["type"] == "not_expression":
            raise ExpressionError("`!` binds closer than a dot: write !(a.b), where !a.b would be (!a).b")
        fields = next((index for index, child in enumerate(children) if child["type"] != "field"), len(children))
        steps = [self._path(children[:fields], top)] if fields else []
        for index, child in enumerate(children[fields:], fields):
            step = self.compile(child, top and index == 0)
            if child["type"] in ("multi_select_list", "multi_select_dict", "function_expression"):
                step = self._not_of_null(step, _written(child))
            steps.append(step)
        return self._chain(steps)

    def _not_of_null(self, step: _Run, text: str) -> _Run:
        def run(value: Any, document: Any) -> Any:
            if value is None:
                raise Missing(f"{text}: what stands before it is null")
            return step(value, document)

        return run

    @staticmethod
    def _chain(steps: list[_Run]) -> _Run:
        if len(steps) == 1:
            return steps[0]

        def chain(value: Any, document: Any) -> Any:
            for step in steps:
                value = step(value, document)
            return value

        return chain

    def _pipe(self, node: _Node, top: bool) -> _Run:
        return self._chain([self.compile(child, top and not index) for index, child in enumerate(node["children"])])

    _index_expression = _pipe

    def _index(self, node: _Node, top: bool) -> _Run:
        number = node["value"]

        def index(value: Any, _document: Any) -> Any:
            try:
                return _list(value, f"[{number}]")[number]
            except IndexError:
                raise Missing(f"[{number}]: the list has {len(value)} elements") from None

        return index

    def _slice(self, node: _Node, top: bool) -> _Run:
        bounds, text = slice(*node["children"]), _written(node)
        if bounds.step == 0:
            raise ExpressionError("a slice cannot have the step 0")
        return lambda value, _document: _list(value, text)[bounds]

    def _multi_select_list(self, node: _Node, top: bool) -> _Run:
        children = [self.compile(child, top) for child in node["children"]]
        return lambda value, document: [child(value, document) for child in children]

    def _multi_select_dict(self, node: _Node, top: bool) -> _Run:
        children = {child["value"]: self.compile(child["children"][0], top) for child in node["children"]}
        return lambda value, document: {key: child(value, document) for key, child in children.items()}

    # -- projections

    def _projection(self, node: _Node, top: bool) -> _Run:
        base, text = self._base(node, top)
        return self._projected(node, lambda value, document: _list(base(value, document), text))

    def _value_projection(self, node: _Node, top: bool) -> _Run:
        base, text = self._base(node, top)

        def values(value: Any, document: Any) -> Any:
            found = base(value, document)
            if isinstance(found, dict):
                return found.values()
            error = Missing if found is None else EvaluationError
            raise error(f"{text}: {_said(found)} stands before the *, not an object")

        return self._projected(node, values)

    def _filter_projection(self, node: _Node, top: bool) -> _Run:
        base, text = self._base(node, top)
        condition = self._boolean(node["children"][2], False, text)
        return self._projected(
            node,
            lambda value, document: [
                element for element in _list(base(value, document), text) if condition(element, document)
            ],
        )

    def _base(self, node: _Node, top: bool) -> tuple[_Run, str]:
        if node["children"][0]["type"] == "not_expression":
            raise ExpressionError("`!` binds closer than a projection: write !(...)")
        return self.compile(node["children"][0], top), _written(node)

    def _projected(self, node: _Node, base: Callable[[Any, Any], Iterable[Any]]) -> _Run:
        """What stands behind a projection, for each element: JMESPath drops what is null of it, and with it what is not known."""
        child, text = node["children"][1], _written(node)
        step = None if child["type"] == "identity" else self.compile(child, False)

        def projected(value: Any, document: Any) -> list[Any]:
            elements = base(value, document)
            return _known(elements if step is None else [step(element, document) for element in elements], text)

        return projected

    def _flatten(self, node: _Node, top: bool) -> _Run:
        base, text = self._base(node, top)

        def flatten(value: Any, document: Any) -> list[Any]:
            merged: list[Any] = []
            for element in _list(base(value, document), text):
                merged.extend(element) if isinstance(element, list) else merged.append(element)
                if len(merged) > _MAX_ELEMENTS:
                    raise EvaluationError(f"{text}: the list has more than {_MAX_ELEMENTS} elements")
            return merged

        return flatten

    # -- conditions

    def _boolean(self, node: _Node, top: bool, whole: str) -> _Run:
        if _constant(node):
            raise ExpressionError(f"{whole}: {_written(node)} is the same for every host")
        run, text = self.compile(node, top), _written(node)

        def boolean(value: Any, document: Any) -> bool:
            found = run(value, document)
            if found is True or found is False:
                return bool(found)
            raise EvaluationError(f"{whole}: {text} is {_said(found)}, neither true nor false")

        return boolean

    def _not_expression(self, node: _Node, top: bool) -> _Run:
        asked = node["children"][0]
        if asked["type"] == "function_expression" and asked["value"] == "defined":
            raise ExpressionError(f"{_written(node)} is true where nothing was observed: write x == `null`")
        operand = self._boolean(node["children"][0], top, _written(node))
        return lambda value, document: not operand(value, document)

    def _and_expression(self, node: _Node, top: bool) -> _Run:
        left, right = (self._boolean(child, top, _written(node)) for child in node["children"])
        return lambda value, document: left(value, document) and right(value, document)

    def _or_expression(self, node: _Node, top: bool) -> _Run:
        left, right = (self._boolean(child, top, _written(node)) for child in node["children"])
        return lambda value, document: left(value, document) or right(value, document)

    def _comparator(self, node: _Node, top: bool) -> _Run:
        text, sign = _written(node), _SIGNS[node["value"]]
        nodes = node["children"]
        if _constant(node):
            raise ExpressionError(f"{text} is the same for every host")
        left, right = (self.compile(child, top) for child in nodes)
        literals = [child["value"] for child in nodes if child["type"] == "literal"]
        if sign not in ("==", "!="):
            for literal in literals:
                if _kind(literal) != "number":
                    raise ExpressionError(f"{text}: {sign} compares numbers alone (versions: ver(a, '{sign}', b))")
            return self._order(text, _OPERATORS[sign], left, right)
        wanted = sign == "=="
        if None in literals:
            known = left if nodes[1]["type"] == "literal" else right
            return lambda value, document: (known(value, document) is None) is wanted

        def compare(value: Any, document: Any) -> bool:
            one, other = left(value, document), right(value, document)
            kind = type(one)
            if kind is type(other) and (kind is str or kind is bool or kind is int):
                return (one == other) is wanted
            try:
                return _equal(one, other) is wanted
            except _Unfit as error:
                raise EvaluationError(f"{text}: {error}") from None

        return compare

    @staticmethod
    def _order(text: str, order: Callable[[Any, Any], bool], left: _Run, right: _Run) -> _Run:
        def compare(value: Any, document: Any) -> bool:
            one, other = left(value, document), right(value, document)
            if _kind(one) == "number" == _kind(other):
                return order(one, other)
            raise EvaluationError(f"{text}: {_said(one)} and {_said(other)} are not both numbers")

        return compare

    # -- functions

    def _expref(self, node: _Node, top: bool) -> _Run:
        raise ExpressionError(f"{_written(node)}: `&` stands only in map(&expression, list)")

    def _function_expression(self, node: _Node, top: bool) -> _Run:
        name, arguments, text = node["value"], node["children"], _written(node)
        function = FUNCTIONS.get(name)
        if function is None:
            raise ExpressionError(f"there is no function {name}; there are {', '.join(FUNCTIONS)}")
        if len(arguments) != len(function.takes):
            raise ExpressionError(f"{text}: it takes {len(function.takes)} arguments, as in {function.usage}")
        if _constant(node):
            raise ExpressionError(f"{text} is the same for every host")
        if name == "map":
            return self._map(node, top)
        self._lint(name, arguments, text)
        children = [self.compile(child, top) for child in arguments]
        if name == "defined":
            return self._defined(children[0])
        call = function.call
        if call is None:  # age_hours
            children.append(lambda _value, document: document.get("now"))
            call = _age_hours
        return self._call(text, call, function.takes, children)

    @staticmethod
    def _lint(name: str, arguments: list[_Node], text: str) -> None:
        """Refuse what could only fail on every host."""
        if name == "ver" and arguments[1].get("value") not in _OPERATORS:
            raise ExpressionError(f"{text}: the second argument is one of {', '.join(map(repr, _OPERATORS))}")
        try:
            for argument in arguments:
                if argument["type"] == "literal" and name == "ver" and argument is not arguments[1]:
                    _version(str(argument["value"]))
                if argument["type"] == "literal" and name == "matches" and argument is arguments[1]:
                    _regex(str(argument["value"]))
        except _Unfit as error:
            raise ExpressionError(f"{text}: {error}") from None

    @staticmethod
    def _call(text: str, call: Callable[..., Any], takes: tuple[tuple[str, ...], ...], children: list[_Run]) -> _Run:
        def run(value: Any, document: Any) -> Any:
            arguments = [child(value, document) for child in children]
            for kinds, argument in zip(takes, arguments):
                if _kind(argument) not in kinds:
                    raise EvaluationError(f"{text}: {_said(argument)} is no {' or '.join(kinds)}")
            try:
                return call(*arguments)
            except (_Unfit, ArithmeticError) as error:
                raise EvaluationError(f"{text}: {error}") from None

        return run

    @staticmethod
    def _defined(child: _Run) -> _Run:
        def defined(value: Any, document: Any) -> bool:
            try:
                return child(value, document) is not None
            except Missing:
                return False

        return defined

    def _map(self, node: _Node, top: bool) -> _Run:
        reference, elements = node["children"]
        text = _written(node)
        if reference["type"] != "expref":
            raise ExpressionError(f"{text}: the first argument begins with &, as in map(&name, gpus)")
        step = self.compile(reference["children"][0], False)
        base = self.compile(elements, top)
        return lambda value, document: _known(
            [step(element, document) for element in _list(base(value, document), text)], text
        )


def _list(value: Any, text: str) -> list[Any]:
    if isinstance(value, list):
        return value
    error = Missing if value is None else EvaluationError
    raise error(f"{text}: {_said(value)} stands where a list has to be")


def _known(values: Iterable[Any], text: str) -> list[Any]:
    found = list(values)
    if None in found:
        raise EvaluationError(f"{text}: element {_first_null(found)} is null")
    return found


def _first_null(values: list[Any]) -> int:
    return next(index for index, value in enumerate(values) if value is None)
