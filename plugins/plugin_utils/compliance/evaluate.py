# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Judge every host by every rule, and put it into the canonical document.

Pure. A host is ready only where it was observed now and every rule that counts was seen to be met; no state of a host makes this raise.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import clean, host_row
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import document as documents
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.expressions import (
    Compiled,
    EvaluationError,
    Missing,
    plain,
)
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.policies import WARN_BEFORE, Rule, Waiver

ORDER = ("failed", "error", "not_run", "waived", "passed", "not_applicable")
"""Of several elements' statuses the first of these is the rule's."""
DECISIVE = ("critical", "high")
"""Severities that keep a host from being ready."""
OUTCOMES = ("ready", "not_ready", "unknown", "unreachable", "not_asked")

_BAD = ("failed", "error", "not_run")
_FINE = ("passed", "not_applicable")
_SCHEMA = 1
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_MAX_ELEMENTS = 1000
"""That one rule is asked of on one host."""
_GPU = ("pci_address", "name", "sm", "uuid", "memory_mib")
_ROW = ("gpu", "sm", "driver", "torch")

Item = dict[str, Any]
Verdict = tuple[str, str]
"""A status and, unless it is passed, why."""


class History(Protocol):
    """What is needed of earlier runs: the last verdict of each host, what provisioning left, the course, what could not be read."""

    @property
    def hosts(self) -> Mapping[str, dict[str, Any]]: ...
    @property
    def provisioned(self) -> Mapping[str, dict[str, Any]]: ...
    @property
    def series(self) -> list[dict[str, Any]]: ...
    @property
    def problems(self) -> list[str]: ...


def assess(
    rules: Sequence[Rule],
    waivers: Sequence[Waiver],
    hosts: Mapping[str, Any],
    now: datetime.datetime,
    previous: History | None,
    fail_on: str,
    version: str,
) -> dict[str, Any]:
    """Return the canonical document of the fleet. ``hosts``: {name: {planned, proof, unreachable, asked, groups}}; ``now`` is in UTC."""
    at = now.strftime(_TIME)
    waived = {rule.id: [waiver for waiver in waivers if waiver.active and waiver.rule == rule.id] for rule in rules}
    uses = dict.fromkeys(map(id, waivers), 0)
    judged = []
    for name in sorted(hosts):
        state = hosts[name] if isinstance(hosts[name], dict) else {}
        host = _host(name, state, rules, now)
        for rule in rules:
            _waive(host["results"][rule.id], name, host["outcome"], waived[rule.id], uses)
        _decide(host, rules)
        _compare(host, previous, at)
        judged.append(host)
    totals = {"hosts": len(judged), **{each: sum(host["outcome"] == each for host in judged) for each in OUTCOMES}}
    failing: dict[str, int] = {}
    for host in judged:
        for rule_id, result in host["results"].items():
            if result["status"] in _BAD:
                failing[rule_id] = failing.get(rule_id, 0) + 1
    errors, notes = _said_of_waivers(waivers, judged, uses)
    return {
        "schema": 1,
        "generated_at": at,
        "collection": version,
        "fail_on": fail_on,
        "rules": [
            {
                **{key: getattr(rule, key) for key in ("id", "title", "severity", "rationale", "remedy", "source")},
                "params": dict(rule.params),
            }
            for rule in rules
        ],
        "hosts": judged,
        "waivers": [_waiver(waiver, judged, uses) for waiver in waivers],
        "totals": totals,
        "history": [
            *(previous.series if previous else []),
            {"at": at, "totals": totals, "failing": dict(sorted(failing.items()))},
        ],
        "errors": errors,
        "notes": [*(previous.problems if previous else []), *notes],
    }


# ---- one host -------------------------------------------------------------------------------------------------------


def _host(name: str, state: dict[str, Any], rules: Sequence[Rule], now: datetime.datetime) -> dict[str, Any]:
    """The entry of a host, before waivers, with an outcome only where it was not observed."""
    groups = [clean(group) for group in _list(state.get("groups"))]
    outcome, reason = _unobserved(state)
    document: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    if not outcome:
        level = _mapping(_mapping(_mapping(state.get("planned")).get("plan")).get("proof")).get("required_level")
        try:
            document = _mapping(plain(documents.build(name, state, groups, now, level)))
            facts = _mapping(plain(documents.facts(document)))
        except Exception as error:  # whatever a host says, the others are judged
            document, outcome = {}, "unknown"
            reason = f"its observation cannot be read: {type(error).__name__}: {clean(error)[:200]}"
    entry = {
        "name": name,
        "groups": groups,
        "outcome": outcome,
        "reason": reason,
        "observed_at": _short(document.get("observed_at")),
        "proven_at": _proven_at(document),
        **_row(name, state if document else {}),
        "kernel": _short(_mapping(document.get("os")).get("kernel")) or "-",
        "gpus": [
            {key: _short(gpu.get(key)) for key in _GPU}
            for gpu in map(_mapping, _list(document.get("gpus"))[:_MAX_ELEMENTS])
        ],
        "facts": facts,
    }
    if outcome:
        entry["results"] = {rule.id: {"status": "not_run", "items": []} for rule in rules}
        return entry
    document["now"] = now.strftime(_TIME)
    entry["results"] = {rule.id: judge(rule, document) for rule in rules}
    return entry


def _unobserved(state: dict[str, Any]) -> tuple[str, str]:
    """Why a host was not observed now; two empty texts where it was."""
    planned = _mapping(state.get("planned"))
    if state.get("asked") is False:
        return "not_asked", "this run left it out"
    said = clean(documents.redact(planned.get("msg") if isinstance(planned.get("msg"), str) else ""))[:500]
    if state.get("unreachable") not in (None, False) or planned.get("unreachable") not in (None, False):
        return "unreachable", said or "the host did not answer"
    observation = _mapping(planned.get("observation"))
    if not observation or planned.get("failed") not in (None, False):
        return "unknown", said or "the host answered, but was not observed"
    schema = observation.get("schema")
    if schema != _SCHEMA or isinstance(schema, bool):
        return "unknown", f"its observation is of schema {clean(schema)[:40] or '?'}, and only {_SCHEMA} is understood"
    return "", ""


def _row(name: str, state: dict[str, Any]) -> dict[str, str]:
    """The texts of the table that every report of this collection shows."""
    try:
        row = host_row(name, {"planned": state.get("planned")})
    except (
        AttributeError,
        TypeError,
        ValueError,
        KeyError,
        RecursionError,
    ):  # values of other types than they should be
        row = {}
    return {key: _short(row.get(key)) or "-" for key in _ROW}


def _proven_at(document: dict[str, Any]) -> str | None:
    """The oldest proof of what is wanted; None where one of them has none."""
    wanted = [item for item in map(_mapping, _list(document.get("environments"))) if item.get("wanted")]
    times = [_mapping(item.get("verdict")).get("proven_at") for item in wanted]
    return min((_short(time) for time in times), default=None) if all(isinstance(each, str) for each in times) else None


def _decide(host: dict[str, Any], rules: Sequence[Rule]) -> None:
    """Set the outcome of a host that was observed."""
    if host["outcome"]:
        return
    decisive = [(rule, host["results"][rule.id]) for rule in rules if rule.severity in DECISIVE]
    bad = [(rule, result) for rule, result in decisive if result["status"] not in (*_FINE, "waived")]
    if bad:
        host["outcome"] = "not_ready"
        names = ", ".join(f"{rule.id} {result['status'].replace('_', ' ')}" for rule, result in bad[:5])
        host["reason"] = names + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    elif not any(result["status"] in ("passed", "waived") for _rule, result in decisive):
        host["outcome"] = "unknown"
        host["reason"] = f"no rule of severity {' or '.join(DECISIVE)} applies to it, so nothing that counts was judged"
    else:
        host["outcome"] = "ready"


# ---- one rule -------------------------------------------------------------------------------------------------------


def judge(rule: Rule, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return {status, items} of a rule on the document of a host, before waivers."""
    scope = {**document, "params": rule.params}
    scope.pop("item", None)
    if rule.for_each is None:
        verdict = _verdict(rule, scope)
        items = [] if verdict[0] == "not_applicable" else [_item(rule, scope, "", verdict)]
        return {"status": verdict[0], "items": items}
    try:
        elements = _elements(rule.for_each, scope)
    except EvaluationError as error:
        return {"status": "error", "items": [{"name": "", "status": "error", "evidence": {}, "message": str(error)}]}
    worst, items = "not_applicable", []
    for index, element in enumerate(elements):
        scope["item"] = element
        verdict = _verdict(rule, scope)
        if ORDER.index(verdict[0]) < ORDER.index(worst):
            worst = verdict[0]
        if verdict[0] not in _FINE:
            items.append(_item(rule, scope, _name(rule, scope, index), verdict))
    return {"status": worst, "items": items}


def _elements(for_each: Compiled, scope: dict[str, Any]) -> list[Any]:
    elements = for_each.evaluate(scope)
    if not isinstance(elements, list):
        raise EvaluationError(f"{for_each.text} is {'null' if elements is None else 'no list'}")
    if len(elements) > _MAX_ELEMENTS:
        raise EvaluationError(f"{for_each.text} has more than {_MAX_ELEMENTS} elements")
    return elements


def _verdict(rule: Rule, scope: dict[str, Any]) -> Verdict:
    try:
        if rule.applies is not None and not _answer(rule.applies, scope, "applies"):
            return "not_applicable", ""
        if rule.possible is not None and not _answer(rule.possible, scope, "possible"):
            return "not_run", "it cannot be judged now"
        return ("passed", "") if _answer(rule.expect, scope, "expect") else ("failed", "")
    except EvaluationError as error:
        return "error", str(error)


def _answer(expression: Compiled, scope: dict[str, Any], what: str) -> bool:
    answer = expression.evaluate(scope)
    if answer is True or answer is False:
        return bool(answer)
    raise EvaluationError(f"{what} is neither true nor false: {_brief(answer)}")


def _item(rule: Rule, scope: dict[str, Any], name: str, verdict: Verdict) -> Item:
    status, message = verdict
    return {"name": name, "status": status, "evidence": _evidence(rule, scope), "message": message}


def _evidence(rule: Rule, scope: dict[str, Any]) -> dict[str, Any]:
    """What is shown beside a verdict; it decides nothing."""
    shown: dict[str, Any] = {}
    for key, expression in rule.evidence.items():
        try:
            shown[key] = _brief(expression.evaluate(scope))
        except Missing:
            shown[key] = None
        except EvaluationError as error:
            shown[key] = f"({_short(str(error))})"
    return shown


def _name(rule: Rule, scope: dict[str, Any], index: int) -> str:
    try:
        found = rule.name_of.evaluate(scope) if rule.name_of else None
    except EvaluationError:
        found = None
    return (clean(found)[:120] if isinstance(found, (str, int)) else "") or f"[{index}]"


def _brief(value: Any, depth: int = 0) -> Any:
    """A value, as much of it as a person reads."""
    if isinstance(value, str):
        return value if len(value) <= 300 else value[:299] + "\N{HORIZONTAL ELLIPSIS}"
    if isinstance(value, list):
        more = [f"and {len(value) - 20} more"] if len(value) > 20 else []
        return "..." if depth > 3 else [_brief(item, depth + 1) for item in value[:20]] + more
    if isinstance(value, dict):
        return "..." if depth > 3 else {key[:80]: _brief(item, depth + 1) for key, item in list(value.items())[:20]}
    return value


def _short(value: Any) -> Any:
    """A text or number of a host's, as one line."""
    if isinstance(value, str):
        return clean(value)[:200].encode("utf-8", "replace").decode()
    return value if isinstance(value, int) else None


# ---- waivers --------------------------------------------------------------------------------------------------------


def _waive(result: dict[str, Any], name: str, outcome: str, waivers: Sequence[Waiver], uses: dict[int, int]) -> None:
    """Apply the waivers of a rule to its result on a host. What was not observed is not waived: nobody knows what it is."""
    if outcome or result["status"] not in _BAD:
        return
    for waiver in waivers:
        if name in waiver.matched:
            uses[id(waiver)] += 1
            result["status"] = "waived"


def _waiver(waiver: Waiver, hosts: list[dict[str, Any]], uses: dict[int, int]) -> dict[str, Any]:
    return {
        **{key: getattr(waiver, key) for key in ("rule", "hosts", "owner", "reason", "ticket")},
        "expires": waiver.expires.isoformat(),
        "days_left": waiver.days_left,
        "state": _state(waiver, hosts, uses),
        "waives": uses[id(waiver)],
    }


def _state(waiver: Waiver, hosts: list[dict[str, Any]], uses: dict[int, int]) -> str:
    if waiver.problem:
        return "orphaned"
    if not waiver.active:
        return "expired"
    # Of hosts that were not observed nobody can say that they need it no longer.
    seen = all(host["outcome"] in ("ready", "not_ready") for host in hosts if host["name"] in waiver.matched)
    return "unneeded" if seen and not uses[id(waiver)] else "active"


def _said_of_waivers(
    waivers: Sequence[Waiver], hosts: list[dict[str, Any]], uses: dict[int, int]
) -> tuple[list[str], list[str]]:
    """Errors and notes."""
    errors, notes = [], []
    for waiver in waivers:
        what = f"the waiver of {waiver.rule} for {waiver.hosts} ({waiver.ticket}, {waiver.owner})"
        state = _state(waiver, hosts, uses)
        if state == "orphaned":
            errors.append(f"{what} is for nothing: {waiver.problem}. Mend or remove it")
        elif state == "expired":
            notes.append(f"{what} expired on {waiver.expires} and waives nothing")
        elif state == "unneeded":
            notes.append(f"{what} waives nothing now: it can be removed")
        elif waiver.days_left <= WARN_BEFORE:
            notes.append(f"{what} ends on {waiver.expires}, in {waiver.days_left} days")
    return errors, notes


# ---- earlier runs ---------------------------------------------------------------------------------------------------


def _compare(host: dict[str, Any], previous: History | None, at: str) -> None:
    """Set since when the outcome and each status are what they are, and what changed."""
    last = _mapping(previous.hosts.get(host["name"])) if previous else {}
    host["since"] = _since(last, "outcome", host["outcome"], at)
    results = _mapping(last.get("results"))
    for rule_id, result in host["results"].items():
        before = _mapping(results.get(rule_id))
        if before or result["status"] not in _FINE or not last:
            result["since"] = _since(before, "status", result["status"], at)
        else:  # a history keeps no results that were fine
            result["since"] = None
    observed = host["outcome"] in ("ready", "not_ready") or host["facts"]
    provisioned = _mapping(previous.provisioned.get(host["name"])) if previous else {}
    host["drift"] = {
        "since_last": _changes(last.get("facts"), host["facts"]) if observed else [],
        "since_provisioned": _changes(provisioned.get("facts"), host["facts"]) if observed else [],
    }


def _since(before: dict[str, Any], key: str, now: str, at: str) -> str:
    since = before.get("since")
    return since if before.get(key) == now and isinstance(since, str) and since <= at else at


def _changes(before: Any, after: dict[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(before, dict) or not before:
        return []
    return [
        {"what": key, "before": before.get(key), "after": after.get(key)}
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
