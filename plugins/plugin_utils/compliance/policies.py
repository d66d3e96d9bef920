# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Rules and waivers: read, checked and tuned before any host is judged.

A rule that is not understood must not be left out in silence, so whatever is odd stops the run, with file and line.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.yaml import SafeLoader
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.expressions import (
    Compiled,
    ExpressionError,
    compile_expression,
    plain,
)

SEVERITIES = ("critical", "high", "medium", "low")
ROOTS = (
    *("schema", "observed_at", "os", "gpus", "driver", "environments", "runtime", "files", "health", "foreign", "urls"),
    *("unknown", "wanted_environments", "plan", "proof", "required_level", "host", "groups", "now", "params", "item"),
)
"""Every key of the document that rules see. Another one is a misspelling, and would be an error on every host."""
LONGEST_WAIVER = 90
"""Days."""
WARN_BEFORE = 14
"""Days before a waiver ends, from which on the report says so."""

_MAX_FILE = 1024 * 1024
_MAX_NESTING = 20
_MAX_TEXT = 2000
_ID = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_TEXTS = ("title", "rationale", "remedy", "source")
_EXPRESSIONS = ("expect", "applies", "possible", "for_each", "name_of")
_KEYS = ("id", "severity", *_TEXTS, *_EXPRESSIONS, "params", "evidence")
_MANDATORY = ("id", "title", "severity", "expect", "evidence", "rationale", "remedy")
_TUNABLE = ("enabled", "severity", "params")
_WAIVER_KEYS = ("rule", "hosts", "owner", "reason", "ticket", "expires")


class PolicyError(Exception):
    """A rule, its tuning or a waiver cannot be used."""

    def __init__(self, file: str, line: int | None, message: str) -> None:
        super().__init__(file, line, message)
        self.file, self.line, self.message = file, line, message

    def __str__(self) -> str:
        return f"{self.file}{f', line {self.line}' if self.line else ''}: {self.message.rstrip('.')}."


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is expected of hosts."""

    id: str
    title: str
    severity: str
    expect: Compiled
    evidence: Mapping[str, Compiled]
    rationale: str
    remedy: str
    applies: Compiled | None = None
    possible: Compiled | None = None
    for_each: Compiled | None = None
    name_of: Compiled | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""
    file: str = ""
    line: int = 0


@dataclasses.dataclass(frozen=True)
class Waiver:
    """An exception for a time."""

    rule: str
    hosts: str
    owner: str
    reason: str
    ticket: str
    expires: datetime.date
    days_left: int
    """Negative: it has expired."""
    matched: frozenset[str] = frozenset()
    """Names of the hosts that it is for."""
    problem: str = ""
    """Why it is an orphan; empty: it is none."""

    @property
    def active(self) -> bool:
        """Whether it waives what its rule finds on its hosts."""
        return not self.problem and self.days_left >= 0


# ---- files ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A value of a file, and the lines of it and of its keys."""

    value: Any
    line: int
    parts: Mapping[str, _Entry] = dataclasses.field(default_factory=dict)


def load(paths: Iterable[Path], tuning: Any, where: str) -> list[Rule]:
    """Return the rules of files (or folders: their *.yml), tuned as the variable ``where`` of the inventory says; raises PolicyError."""
    rules: dict[str, Rule] = {}
    for path in _files(paths):
        for entry in _items(path):
            rule = _rule(entry, str(path))
            other = rules.setdefault(rule.id, rule)
            if other is not rule:
                raise PolicyError(
                    str(path), rule.line, f"the id {rule.id} is that of another rule ({other.file}, line {other.line})"
                )
    return _tuned(rules, tuning, where)


def _files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.yml")) if path.is_dir() else [path]
        if not found:
            raise PolicyError(str(path), None, "the folder holds no *.yml")
        files += found
    return files


def _items(path: Path) -> Sequence[_Entry]:
    """The rules of a file, as they are written there."""
    file = str(path)
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MAX_FILE + 1)
    except OSError as error:
        raise PolicyError(file, None, f"it cannot be read: {error.strerror}") from None
    if len(content) > _MAX_FILE:
        raise PolicyError(file, None, f"it is larger than {_MAX_FILE // 1024} KiB")
    try:
        text = content.decode("utf-8")
        _check_events(text, file)
        node = yaml.compose(text, Loader=SafeLoader)
    except UnicodeDecodeError as error:
        raise PolicyError(file, content.count(b"\n", 0, error.start) + 1, "it is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise PolicyError(file, mark.line + 1 if mark else None, f"no YAML: {reason}") from None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise PolicyError(file, 1, "a file of rules is a list (- id: ...) with at least one")
    return [_entry(item, file) for item in node.value]


def _check_events(text: str, file: str) -> None:
    """Refuse what makes a short file a large document, or says that a value is something other than what it looks like."""
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise PolicyError(file, line, "anchors and aliases (& and *) are not allowed")
        if getattr(event, "tag", None):
            raise PolicyError(file, line, f"tags are not allowed ({event.tag})")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_NESTING:
            raise PolicyError(file, line, f"it is nested deeper than {_MAX_NESTING} levels")


def _entry(node: yaml.Node, file: str) -> _Entry:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        parts: dict[str, _Entry] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node, file) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise PolicyError(file, key_node.start_mark.line + 1, "a key is no text")
            if key in parts:
                raise PolicyError(file, key_node.start_mark.line + 1, f"the key {key} is there twice")
            parts[key] = dataclasses.replace(_entry(value_node, file), line=key_node.start_mark.line + 1)
        return _Entry({key: part.value for key, part in parts.items()}, line, parts)
    if isinstance(node, yaml.SequenceNode):
        return _Entry([_entry(item, file).value for item in node.value], line)
    return _Entry(_scalar(node, file), line)


def _scalar(node: yaml.Node, file: str) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = getattr(error, "problem", None) or error
        raise PolicyError(file, node.start_mark.line + 1, f"a value cannot be read: {reason}") from None


# ---- rules ----------------------------------------------------------------------------------------------------------


def _rule(entry: _Entry, file: str) -> Rule:
    parts = entry.parts
    if not isinstance(entry.value, dict):
        raise PolicyError(file, entry.line, "a rule is a mapping (id: ..., title: ...)")
    name = entry.value.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        line = parts["id"].line if "id" in parts else entry.line
        raise PolicyError(
            file, line, "a rule has an id of lower case words with a dot between them, such as driver.floor"
        )

    def wrong(key: str, message: str) -> PolicyError:
        return PolicyError(file, parts[key].line if key in parts else entry.line, f"{name}: {message}")

    for key in parts:
        if key not in _KEYS:
            raise wrong(key, f"a rule has no {key}{_meant(key, _KEYS)}")
    for key in _MANDATORY:
        if key not in parts:
            raise wrong(key, f"it has no {key}")
    texts = {key: _text(parts[key].value) for key in _TEXTS if key in parts}
    for key, text in texts.items():
        if not text:
            raise wrong(key, f"{key} is a text of at most {_MAX_TEXT} characters, and not empty")
    if entry.value["severity"] not in SEVERITIES:
        raise wrong("severity", f"severity is one of {', '.join(SEVERITIES)}")
    params = _params(parts["params"].value) if "params" in parts else {}
    if params is None:
        raise wrong("params", "params holds numbers, texts, true or false, or lists of them, by lower case names")

    def compiled(text: Any, key: str, line: int) -> Compiled:
        try:
            if not isinstance(text, str):
                raise ExpressionError("an expression is a text")
            expression = compile_expression(text)
            _check_names(expression, params or {}, "for_each" in parts and key != "for_each")
        except ExpressionError as error:
            raise PolicyError(file, line, f"{name}: {key}: {error}") from None
        return expression

    expressions = {key: compiled(parts[key].value, key, parts[key].line) for key in _EXPRESSIONS if key in parts}
    evidence = parts["evidence"]
    if not evidence.parts:
        raise wrong("evidence", "evidence names at least one value to show (loaded: driver.loaded_version)")
    shown = {key: compiled(part.value, f"evidence {key}", part.line) for key, part in evidence.parts.items()}
    reads = {path[0] for path in expressions["expect"].reads}
    if not reads - {"params", "now"}:
        raise wrong("expect", "expect does not depend on what was observed")
    if "for_each" in expressions and "item" not in reads:
        raise wrong("expect", "expect does not depend on the item of for_each")
    if "name_of" in expressions and "for_each" not in expressions:
        raise wrong("name_of", "name_of is for rules with for_each")
    return Rule(
        id=name,
        severity=entry.value["severity"],
        evidence=shown,
        params=params,
        file=file,
        line=entry.line,
        **{**texts, **expressions},  # type: ignore[arg-type]
    )


def _check_names(expression: Compiled, params: Mapping[str, Any], has_item: bool) -> None:
    for root, *rest in expression.reads:
        if root not in ROOTS:
            raise ExpressionError(f"the document of a host has no {root}{_meant(root, ROOTS)}")
        if root == "item" and not has_item:
            raise ExpressionError("there is an item only with for_each")
        if root == "params" and (not rest or rest[0] not in params):
            raise ExpressionError(
                f"the rule has no parameter {'.'.join(rest) or 'named here'}{_meant(''.join(rest), params)}"
            )


def _meant(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _text(value: Any) -> str:
    """A text as one paragraph; empty where it is none."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return text if len(text) <= _MAX_TEXT and text.isprintable() else ""


def _params(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    names = all(isinstance(key, str) and _KEY.fullmatch(key) for key in value)
    return dict(value) if names and all(_kind(each) for each in value.values()) else None


def _kind(value: Any) -> str:
    """What a parameter is: another value of it has to be the same. Empty: nothing that a parameter can be."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number" if abs(value) < 1e15 else ""
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        kinds = sorted(set(map(_kind, value)))
        return (
            f"a list, each of which is {kinds[0]}"
            if len(kinds) == 1 and kinds[0] and not kinds[0].startswith("a list")
            else ""
        )
    return ""


def _tuned(rules: dict[str, Rule], tuning: Any, where: str) -> list[Rule]:
    if not isinstance(tuning, Mapping):
        raise PolicyError(where, None, "it is a mapping from the ids of rules to what is changed of them")
    disabled = set()
    for name, wanted in tuning.items():
        rule = rules.get(name) if isinstance(name, str) else None
        if rule is None:
            raise PolicyError(where, None, f"there is no rule {name}{_meant(str(name), rules)}")
        if not isinstance(wanted, Mapping) or not wanted:
            raise PolicyError(where, None, f"{name}: it has {', '.join(_TUNABLE)}")
        for key in wanted:
            if key not in _TUNABLE:
                raise PolicyError(where, None, f"{name}: {key} cannot be changed, only {', '.join(_TUNABLE)}")
        enabled, severity = wanted.get("enabled", True), wanted.get("severity", rule.severity)
        if not isinstance(enabled, bool):
            raise PolicyError(where, None, f"{name}: enabled is true or false, without quotes")
        if severity not in SEVERITIES:
            raise PolicyError(where, None, f"{name}: severity is one of {', '.join(SEVERITIES)}")
        params = {**rule.params, **_tuned_params(rule, wanted.get("params", {}), where)}
        rules[rule.id] = dataclasses.replace(rule, severity=str(severity), params=params)
        if not enabled:
            disabled.add(rule.id)
    return [rule for rule in rules.values() if rule.id not in disabled]


def _tuned_params(rule: Rule, wanted: Any, where: str) -> dict[str, Any]:
    if not isinstance(wanted, Mapping):
        raise PolicyError(where, None, f"{rule.id}: params is a mapping")
    for key, value in wanted.items():
        if key not in rule.params:
            raise PolicyError(where, None, f"{rule.id}: it has no parameter {key}{_meant(str(key), rule.params)}")
        kind, found = _kind(rule.params[key]), _kind(value)
        # An empty list of the inventory's, or instead of an empty list, is a list of whatever the other holds.
        lists = isinstance(rule.params[key], list) and isinstance(value, list) and not (rule.params[key] and value)
        if not lists and (not found or kind != found):
            raise PolicyError(
                where, None, f"{rule.id}: the parameter {key} is {kind or 'a list'}, as {rule.params[key]!r} is"
            )
    tuned: dict[str, Any] = plain(dict(wanted))
    return tuned


# ---- waivers --------------------------------------------------------------------------------------------------------


def load_waivers(
    items: Any,
    rules: Iterable[Rule],
    hosts: Iterable[str],
    groups: Mapping[str, Iterable[str]],
    today: datetime.date,
    where: str = "gpu_compliance_waivers",
) -> list[Waiver]:
    """Return the inventory's waivers for these hosts; raises PolicyError for what is none. Orphans are among them, with their problem."""
    if not isinstance(items, (list, tuple)):
        raise PolicyError(where, None, f"it is a list of waivers: {', '.join(_WAIVER_KEYS)}")
    known, names = {rule.id for rule in rules}, set(hosts)
    return [
        _waiver(item, f"{where}, number {number}", known, names, groups, today) for number, item in enumerate(items, 1)
    ]


def _waiver(
    item: Any, where: str, rules: set[str], hosts: set[str], groups: Mapping[str, Iterable[str]], today: datetime.date
) -> Waiver:
    if not isinstance(item, Mapping):
        raise PolicyError(where, None, f"a waiver is a mapping of {', '.join(_WAIVER_KEYS)}")
    for key in item:
        if key not in _WAIVER_KEYS:
            raise PolicyError(where, None, f"a waiver has no {key}{_meant(str(key), _WAIVER_KEYS)}")
    texts = {key: _text(item.get(key)) for key in _WAIVER_KEYS if key != "expires"}
    for key, text in texts.items():
        if not text:
            raise PolicyError(where, None, f"{key} is a text, and not empty")
    expires = _date(item.get("expires"))
    if expires is None:
        raise PolicyError(where, None, "expires is a day, such as 2026-12-31")
    left = (expires - today).days
    if left > LONGEST_WAIVER:
        latest = today + datetime.timedelta(days=LONGEST_WAIVER)
        raise PolicyError(
            where, None, f"expires is {expires}, more than {LONGEST_WAIVER} days ahead; the latest is {latest}"
        )
    pattern = texts["hosts"]
    matched = (
        set(groups[pattern]) & hosts
        if pattern in groups
        else {name for name in hosts if fnmatch.fnmatchcase(name, pattern)}
    )
    problem = ""
    if texts["rule"] not in rules:
        problem = f"there is no rule {texts['rule']}, or it is disabled{_meant(texts['rule'], rules)}"
    elif not matched:
        problem = f"no host of this run is named or matched by {pattern}"
    return Waiver(**texts, expires=expires, days_left=left, matched=frozenset(matched), problem=problem)


def _date(value: Any) -> datetime.date | None:
    if isinstance(value, datetime.datetime):
        return None  # the day of a time depends on where one is
    if isinstance(value, datetime.date):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            return None
    return None
