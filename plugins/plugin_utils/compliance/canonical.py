# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The canonical document in its contract's shape, for those who write it as text, JUnit or metrics.

They take it as it comes from `of`: every key is there and of its type, every text is one line that is safe to show. What is missing or odd
becomes what alarms: a status that nobody knows is an error, a host that calls itself ready beside a failed rule is not.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import clean

STATUSES = ("failed", "error", "not_run", "waived", "passed", "not_applicable")
OUTCOMES = ("not_ready", "unknown", "unreachable", "not_asked", "ready")
SEVERITIES = ("critical", "high", "medium", "low")
BAD = ("failed", "error", "not_run")
"""What keeps a host from being ready where the rule's severity is critical or high."""
_MET: dict[str, dict[str, Any]] = {
    status: {"status": status, "since": "", "items": []} for status in ("passed", "not_applicable")
}
"""Most results, one for all: nobody changes a canonical document."""
_STATES = ("active", "expired", "unneeded", "orphaned")
_NAME, _TEXT = 120, 2000  # characters


class Canonical(dict[str, Any]):
    """A document that `of` has made, which nobody has to look through again."""


def of(document: Any) -> Canonical:
    """Return a canonical document of whatever is given; raises nothing for what JSON can hold."""
    if isinstance(document, Canonical):
        return document
    document = _mapping(document)
    rules = _rules(document)
    hosts = [_host(_mapping(host), rules) for host in _list(document.get("hosts"))]
    return Canonical(
        generated_at=_text(document.get("generated_at"), _NAME),
        collection=_text(document.get("collection"), _NAME),
        rules=list(rules.values()),
        hosts=hosts,
        waivers=[_waiver(_mapping(waiver)) for waiver in _list(document.get("waivers"))],
        totals={
            "hosts": len(hosts),
            **{each: sum(host["outcome"] == each for host in hosts) for each in OUTCOMES},
        },
        errors=[_text(text) for text in _list(document.get("errors"))],
        notes=[_text(text) for text in _list(document.get("notes"))],
    )


def _rules(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Rules by their ids, in their order; those that only results name are as severe as can be."""
    rules: dict[str, dict[str, str]] = {}
    for rule in map(_mapping, _list(document.get("rules"))):
        identity = _text(rule.get("id"), _NAME)
        rules.setdefault(
            identity,
            {
                "id": identity,
                "title": _text(rule.get("title")) or identity,
                "severity": _one_of(SEVERITIES, rule.get("severity"), "critical"),
                "remedy": _text(rule.get("remedy")),
            },
        )
    named = {key for host in _list(document.get("hosts")) for key in _mapping(_mapping(host).get("results"))}
    for identity in sorted({_text(key, _NAME) for key in named} - set(rules)):
        rules[identity] = {"id": identity, "title": identity, "severity": "critical", "remedy": ""}
    return rules


def _host(host: dict[str, Any], rules: dict[str, dict[str, str]]) -> dict[str, Any]:
    outcome = _one_of(OUTCOMES, host.get("outcome"), "unknown")
    results: dict[str, dict[str, Any]] = {}
    # Of a host that was not observed every rule is an error: that is one thing to say, not a hundred.
    if outcome in ("ready", "not_ready"):
        lost = {"status": "error", "since": "", "items": [_item({"message": "it was not judged"}, "error")]}
        told = {_text(key, _NAME): result for key, result in _mapping(host.get("results")).items()}
        results = {identity: _result(_mapping(told[identity])) if identity in told else lost for identity in rules}
    if outcome == "ready" and any(
        result["status"] in BAD and rules[identity]["severity"] in ("critical", "high")
        for identity, result in results.items()
    ):
        outcome = "not_ready"
    drift = _mapping(host.get("drift"))
    return {
        "name": _text(host.get("name"), _NAME) or "?",
        "outcome": outcome,
        "reason": _text(host.get("reason")),
        **{key: _text(host.get(key), _NAME) for key in ("since", "observed_at", "proven_at")},
        **{key: _text(host.get(key), _NAME) or "-" for key in ("gpu", "driver", "torch")},
        "results": results,
        "since_last": [_change(_mapping(change)) for change in _list(drift.get("since_last"))],
    }


def _result(result: dict[str, Any]) -> dict[str, Any]:
    status = _one_of(STATUSES, result.get("status"), "error")
    since = _text(result.get("since"), _NAME)
    if status in _MET and not since:
        return _MET[status]
    items = _list(result.get("items")) if status not in _MET else []  # nobody shows what was met
    return {"status": status, "since": since, "items": [_item(_mapping(item), status) for item in items]}


def _item(item: dict[str, Any], status: str) -> dict[str, str]:
    evidence = [f"{_text(key, _NAME)}: {_text(value)}" for key, value in _mapping(item.get("evidence")).items()]
    said = [part for part in (_text(item.get("message")), ", ".join(evidence)) if part]
    return {
        "name": _text(item.get("name"), _NAME),
        "status": _one_of(STATUSES, item.get("status"), status),
        "evidence": _cut("; ".join(said), _TEXT),
    }


def _change(change: dict[str, Any]) -> str:
    before, after = (_text(change.get(key)) or "nothing" for key in ("before", "after"))
    return _cut(f"{_text(change.get('what'))}: {before} -> {after}", _TEXT)


def _waiver(waiver: dict[str, Any]) -> dict[str, Any]:
    left = waiver.get("days_left")
    return {
        **{key: _text(waiver.get(key), _NAME) for key in ("rule", "hosts", "owner", "ticket", "expires")},
        "reason": _text(waiver.get("reason")),
        "days_left": left if isinstance(left, int) and not isinstance(left, bool) else None,
        "state": _one_of(_STATES, waiver.get("state"), "expired"),
    }


def _text(value: Any, longest: int = _TEXT) -> str:
    """One line for people: texts as they are, nothing for null, everything else as JSON has it."""
    if value is None or isinstance(value, str):
        return _line(value or "", longest)
    if isinstance(value, list) and value and all(isinstance(each, (str, int)) for each in value):
        told = ", ".join(_text(each, longest) for each in value)
        return _cut(told.replace("., ", ". "), longest)  # some are sentences
    return _cut(clean(json.dumps(value, ensure_ascii=False, sort_keys=True)), longest)


@functools.lru_cache(maxsize=4096)
def _line(value: str, longest: int) -> str:
    """Hosts say the same in the same words."""
    return _cut(clean(value), longest)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _one_of(words: tuple[str, ...], value: Any, otherwise: str) -> str:
    return value if isinstance(value, str) and value in words else otherwise


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
