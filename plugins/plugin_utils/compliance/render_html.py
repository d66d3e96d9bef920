# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The canonical document as one self-contained page.

What hosts say is data: it reaches the page as JSON in an element that no browser runs, and the page's script makes text nodes of it. The
page's policy allows that one script and that one style sheet, by hash, and nothing else, not even strings where markup is expected.

A page of 1000 hosts has to open at once: every text is kept once, a host's verdicts are one letter a rule, and evidence is there only for
what is not passed. Where that is still too much, texts are cut, and the page says so.
"""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials

TEMPLATE = Path(__file__).with_name("report.html").read_text(encoding="utf-8")

OUTCOMES = ("not_ready", "unknown", "unreachable", "not_asked", "ready")
"""The most urgent first; the page counts on this order."""
SEVERITIES = ("critical", "high", "medium", "low")
STATUSES = {"passed": "p", "failed": "f", "error": "e", "not_run": "r", "not_applicable": "n", "waived": "w"}
NOT_JUDGED = "-"
"""The letter of a rule of which a host has no result."""
WAIVER_STATES = ("expired", "orphaned", "active", "unneeded")

_LIMITS = ((4000, 40), (400, 10), (80, 1), (40, 0))
"""Characters of a text and elements of a finding, tried until the page is small enough."""
_BUDGET = 4_000_000
"""Bytes of data for each 1000 hosts that have been begun."""
_NAME_LENGTH = 120
_RUNS = 400
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
# They reorder or hide what stands around them, or mean something to a terminal that the text is copied to. A lone surrogate cannot be
# written as UTF-8.
_ODD = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"
    "\\ud800-\\udfff\\U000e0000-\\U000e007f]"
)


def html(document: dict[str, Any]) -> str:
    """Return the page; whatever is missing or of another type is shown as not known, never as ready or passed."""
    document = _mapping(document)
    hosts = _list(document.get("hosts"))
    budget = _BUDGET * (1 + max(len(hosts) - 1, 0) // 1000)
    for characters, elements in _LIMITS:
        page = _Page(document, characters, elements)
        data = json.dumps(page.data, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
        if len(data.encode()) <= budget:
            break
    parts = {"policy": _POLICY, "data": data, "summary": page.summary()}
    return re.sub(r"\{\{(policy|data|summary)\}\}", lambda part: parts[part[1]], TEMPLATE)


def _hash(tag: str) -> str:
    """What a policy calls the one element of the template with that tag; ``<script type=...>`` is data."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", TEMPLATE, re.DOTALL)
    digest = hashlib.sha256(found[1].encode() if found else b"").digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_POLICY = (
    f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class _Page:
    """The data of one page, with texts of at most so many characters and findings of at most so many elements."""

    def __init__(self, document: dict[str, Any], characters: int, elements: int) -> None:
        self._characters, self._elements, self._cut = characters, elements, False
        self._texts: dict[str, int] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._details: dict[str, int] = {}
        self._rows: list[tuple[str, str, str]] = []
        self._names: set[str] = set()
        rules = [_mapping(rule) for rule in _list(document.get("rules"))]
        self._ids = [_plain(rule.get("id")) for rule in rules]
        self._severities = [_severity(rule) for rule in rules]
        self._columns = {rule_id: column for column, rule_id in enumerate(self._ids)}
        self.data = {
            "generated_at": self._text(document.get("generated_at")),
            "collection": self._text(document.get("collection")),
            "fail_on": self._text(document.get("fail_on")),
            "rules": [self._rule(rule) for rule in rules],
            "hosts": [self._host(_mapping(host)) for host in _list(document.get("hosts"))],
            "waivers": [self._waiver(_mapping(waiver)) for waiver in _list(document.get("waivers"))],
            "history": [self._run(_mapping(run)) for run in _list(document.get("history"))[-_RUNS:]],
            "errors": [self._text(item) for item in _list(document.get("errors"))],
            "notes": [self._text(item) for item in _list(document.get("notes"))],
        }
        self.data |= {"texts": list(self._texts), "details": [json.loads(item) for item in self._details]}
        self.data["cut"] = self._cut

    def summary(self) -> str:
        """Rows of the table that is shown where scripts are off."""
        order = {outcome: place for place, outcome in enumerate(OUTCOMES)}
        return "\n".join(
            f"<tr><th scope=row>{markup.escape(name)}<td>{outcome.replace('_', ' ')}<td>{markup.escape(reason)}"
            for outcome, name, reason in sorted(self._rows, key=lambda row: (order[row[0]], row[1]))
        )

    def _text(self, value: Any, length: int = 0) -> int:
        """The number of a text; equal texts have one."""
        text = _plain(value)
        number = self._numbers.get((text, length))
        if number is None:
            number = self._texts.setdefault(self._shown(text, length), len(self._texts))
            self._numbers[text, length] = number
        return number

    def _shown(self, value: Any, length: int = 0) -> str:
        length = length or self._characters
        text = hide_credentials(_ODD.sub(_visible, _plain(value)))
        if len(text) <= length:
            return text
        self._cut = True
        return f"{text[:length]}\N{HORIZONTAL ELLIPSIS} ({len(text)} characters)"

    def _rule(self, rule: Mapping[str, Any]) -> list[Any]:
        texts = [self._text(rule.get(key)) for key in ("id", "title", "rationale", "remedy", "source")]
        params = [number for item in _mapping(rule.get("params")).items() for number in map(self._text, item)]
        return [*texts, _severity(rule), params]

    def _host(self, host: Mapping[str, Any]) -> list[Any]:
        outcome = host.get("outcome")
        outcome = outcome if isinstance(outcome, str) and outcome in OUTCOMES else "unknown"
        results = {_plain(rule): _mapping(result) for rule, result in _mapping(host.get("results")).items()}
        statuses = [_letter(results[rule]) if rule in results else NOT_JUDGED for rule in self._ids]
        # A document that contradicts itself is none to trust.
        if outcome == "ready" and any(
            s in "fer" + NOT_JUDGED and n < 2 for s, n in zip(statuses, self._severities, strict=True)
        ):
            outcome = "not_ready"
        findings: list[int] = []
        for column, (rule, status) in enumerate(zip(self._ids, statuses, strict=True)):
            if status not in "pn" + NOT_JUDGED:
                findings += column, self._text(results[rule].get("since")), self._detail(results[rule])
        drift = _mapping(host.get("drift"))
        name = self._name(host.get("name"))
        self._rows.append((outcome, name, self._shown(host.get("reason"))))
        return [
            self._text(name, 2 * _NAME_LENGTH),
            OUTCOMES.index(outcome),
            *(self._text(host.get(key)) for key in ("reason", "since", "observed_at")),
            *(self._text(host.get(key)) for key in ("gpu", "sm", "driver", "torch", "kernel")),
            [self._text(group) for group in _list(host.get("groups"))],
            "".join(statuses),
            findings,
            [self._gpu(_mapping(gpu)) for gpu in _list(host.get("gpus"))],
            self._changes(drift.get("since_last")),
            self._changes(drift.get("since_provisioned")),
            [number for item in _mapping(host.get("facts")).items() for number in map(self._text, item)],
            self._text(host.get("proven_at")),
        ]

    def _name(self, value: Any) -> str:
        """A host's name, by which the page's links find it: not empty, and of this host alone."""
        first = name = self._shown(value, _NAME_LENGTH).replace("\n", " ").strip() or "(no name)"
        count = 1
        while name in self._names:
            count += 1
            name = f"{first} ({count})"
        self._names.add(name)
        return name

    def _detail(self, result: Mapping[str, Any]) -> int:
        """The number of what was found; hosts that have the same share it."""
        every = _list(result.get("items"))
        items = []
        for item in map(_mapping, every[: self._elements]):
            evidence = [number for pair in _mapping(item.get("evidence")).items() for number in map(self._text, pair)]
            items.append([self._text(item.get("name")), _letter(item), evidence, self._text(item.get("message"))])
        left = len(every) - len(items)
        self._cut = self._cut or left > 0
        return self._details.setdefault(json.dumps([items, left], separators=(",", ":")), len(self._details))

    def _gpu(self, gpu: Mapping[str, Any]) -> list[int]:
        return [
            *(self._text(gpu.get(key)) for key in ("pci_address", "name", "sm", "uuid")),
            _number(gpu.get("memory_mib")),
        ]

    def _changes(self, changes: Any) -> list[int]:
        return [self._text(_mapping(item).get(key)) for item in _list(changes) for key in ("what", "before", "after")]

    def _waiver(self, waiver: Mapping[str, Any]) -> list[Any]:
        state, days = waiver.get("state"), waiver.get("days_left")
        return [
            *(self._text(waiver.get(key)) for key in ("rule", "hosts", "owner", "reason", "ticket", "expires")),
            days if isinstance(days, int) and abs(days) < 100_000 else None,
            WAIVER_STATES.index(state) if isinstance(state, str) and state in WAIVER_STATES else 0,
            _number(waiver.get("waives")),
        ]

    def _run(self, run: Mapping[str, Any]) -> list[Any]:
        totals, failing = _mapping(run.get("totals")), _mapping(run.get("failing"))
        counts = [_number(totals.get(outcome)) for outcome in OUTCOMES]
        failed = [
            number
            for rule, count in failing.items()
            if _plain(rule) in self._columns
            for number in (self._columns[_plain(rule)], _number(count))
        ]
        return [_epoch(run.get("at")), counts, failed]


def _severity(rule: Mapping[str, Any]) -> int:
    severity = rule.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0


def _letter(result: Mapping[str, Any]) -> str:
    """What is no status of ours is an error, whatever it says."""
    status = result.get("status")
    return STATUSES.get(status, "e") if isinstance(status, str) else "e"


def _plain(value: Any) -> str:
    """A value as text: texts as they are, nothing as nothing, anything else as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, default=lambda other: f"({type(other).__name__})")
    except (TypeError, ValueError, RecursionError):
        return f"(a value of type {type(value).__name__} that cannot be shown)"


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _epoch(value: Any) -> int | None:
    """Seconds since 1970 of a UTC time as text."""
    try:
        return (
            int(datetime.fromisoformat(value).replace(tzinfo=timezone.utc).timestamp())
            if isinstance(value, str)
            else None
        )
    except (ValueError, OverflowError):
        return None


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
