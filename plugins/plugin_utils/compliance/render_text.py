# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The canonical document for a terminal: a table, then what is wrong, since when and what to do.

What is the same of several hosts is said once, so that five hundred hosts read like the few kinds they are.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import aligned, paragraph, some
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.metrics import seconds
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import canonical

_COLUMNS = ("host", "GPU", "driver loaded / installed", "torch", "proof age", "outcome", "not met (since)")
_ROWS = 40  # a larger fleet has a row for each kind of host
_KINDS = 5  # of evidence, for each rule
_CELL, _EVIDENCE = 36, 300  # characters
_NEAR = 14  # days before its end, from when on a waiver is named


def text(document: dict[str, Any], width: int = 120) -> str:
    """Return the report; its last line says how many hosts are ready."""
    fleet = canonical.of(document)
    width = max(width, 40)
    hosts = fleet["hosts"]
    lines = _table(fleet, width) if hosts else []
    lines += _not_judged(hosts, width)
    for rule in sorted(fleet["rules"], key=lambda rule: canonical.SEVERITIES.index(rule["severity"])):
        lines += _rule(rule, hosts, width)
    lines += _drift(hosts, width)
    lines += _waivers(fleet["waivers"], width)
    for kind in ("errors", "notes"):
        said = list(dict.fromkeys(fleet[kind]))
        lines += ["", *(line for each in said for line in paragraph(f"{kind[:-1]}: ", each, width))] if said else []
    return "\n".join([*lines, "", _summary(fleet)]).lstrip("\n")


def _table(fleet: dict[str, Any], width: int) -> list[str]:
    severities = {rule["id"]: canonical.SEVERITIES.index(rule["severity"]) for rule in fleet["rules"]}
    order = sorted(fleet["hosts"], key=lambda host: canonical.OUTCOMES.index(host["outcome"]))
    rows: dict[tuple[str, ...], list[str]] = {}
    for number, host in enumerate(order):
        row = (
            host["gpu"],
            host["driver"],
            host["torch"],
            _age(host["proven_at"], fleet["generated_at"]),
            host["outcome"].replace("_", " ").upper(),
            _not_met(host, severities),
        )
        # A number that no other host has keeps the rows of a small fleet apart.
        rows.setdefault((*row, str(number) * (len(order) <= _ROWS)), []).append(host["name"])
    cells = [list(_COLUMNS)]
    for key, names in rows.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        cells.append([_short(names[0]) + more, *map(_short, key[:5]), key[5]])
    before = len(aligned([[*row[:-1], "|"] for row in cells])[0]) - 1
    room = max(width - before, 44)
    lines = aligned([[*row[:-1], _short(row[-1], room)] for row in cells])
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def _not_met(host: dict[str, Any], severities: dict[str, int]) -> str:
    """The most severe rule that the host does not meet, how many others, and since when the first of them."""
    bad = {identity: result for identity, result in host["results"].items() if result["status"] in canonical.BAD}
    if not bad:
        return f"since {_day(host['since'])}" if host["since"] and host["outcome"] != "ready" else "-"
    first = min(bad, key=lambda identity: severities[identity])
    more = f" + {len(bad) - 1} more" if len(bad) > 1 else ""
    since = min((result["since"] for result in bad.values() if result["since"]), default="")
    return f"{first}{more}{f' ({_day(since)})' if since else ''}"


def _not_judged(hosts: list[dict[str, Any]], width: int) -> list[str]:
    """Hosts that could not be judged, by what is known of them."""
    lines: list[str] = []
    for outcome in ("unknown", "unreachable", "not_asked"):
        kinds: dict[tuple[str, str], list[str]] = {}
        for host in hosts:
            if host["outcome"] == outcome:
                kinds.setdefault((host["reason"], _day(host["since"])), []).append(host["name"])
        for (reason, since), names in kinds.items():
            head = f"{outcome.replace('_', ' ').upper()} {some(names)}{f' since {since}' if since else ''}"
            lines += ["", *paragraph(head, f": {reason}" if reason else "", width)]
    return lines


def _rule(rule: dict[str, str], hosts: list[dict[str, Any]], width: int) -> list[str]:
    """A rule that some hosts do not meet: which, since when, the evidence, the remedy."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for host in hosts:
        result = host["results"].get(rule["id"])
        if result and result["status"] in canonical.BAD:
            kinds.setdefault((result["status"], _day(result["since"]), _evidence(result)), []).append(host["name"])
    if not kinds:
        return []
    lines = ["", *paragraph(f"{rule['severity'].upper()} {rule['id']}: ", rule["title"], width)]
    ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    for (status, since, evidence), names in ordered[:_KINDS]:
        whom = f"{some(names)}: " if len(hosts) > 1 else ""
        head = f"  {whom}{status.replace('_', ' ')}{f' since {since}' if since else ''}"
        lines += paragraph(head, f": {evidence}" if evidence else "", width)
    others = [name for _kind, names in ordered[_KINDS:] for name in names]
    if others:
        lines += paragraph("  and, with other evidence or since another day: ", some(others), width)
    return lines + (paragraph("  what to do: ", rule["remedy"], width) if rule["remedy"] else [])


def _evidence(result: dict[str, Any]) -> str:
    bad = [item for item in result["items"] if item["status"] in canonical.BAD] or result["items"]
    said = [f"{item['name']}: {item['evidence']}".removeprefix(": ") for item in bad[:3]]
    more = [f"and {len(bad) - 3} more"] if len(bad) > 3 else []
    return "; ".join([*(_short(each, _EVIDENCE) for each in said), *more])


def _drift(hosts: list[dict[str, Any]], width: int) -> list[str]:
    changes: dict[str, list[str]] = {}
    for host in hosts:
        for change in dict.fromkeys(host["since_last"]):
            changes.setdefault(_short(change, _EVIDENCE), []).append(host["name"])
    if not changes:
        return []
    lines = ["", "Changed since the last verdict:"]
    for change, names in changes.items():
        lines += paragraph("  ", f"{f'{some(names)}: ' if len(hosts) > 1 else ''}{change}", width)
    return lines


def _waivers(waivers: list[dict[str, Any]], width: int) -> list[str]:
    """Waivers that somebody has to look after."""
    lines = []
    for waiver in waivers:
        left = waiver["days_left"]
        if waiver["state"] == "orphaned":
            what = "waives nothing, its rule or hosts do not exist"
        elif waiver["state"] == "expired":
            what = f"expired on {waiver['expires']}"
        elif left is not None and left <= _NEAR:
            what = (
                f"ends {'today' if left <= 0 else 'tomorrow' if left == 1 else f'in {left} days'} ({waiver['expires']})"
            )
        else:
            continue
        of = f"waiver of {waiver['rule']} for {waiver['hosts']} ({waiver['owner']}, {waiver['ticket']}): "
        lines += paragraph(of, what, width)
    return ["", *lines] if lines else []


def _summary(fleet: dict[str, Any]) -> str:
    totals, hosts = fleet["totals"], fleet["hosts"]
    if not hosts:
        return "No hosts, so nothing is train-ready."
    if len(hosts) == 1:
        outcome = hosts[0]["outcome"]
        of = f" ({outcome.replace('_', ' ')})" if outcome not in ("ready", "not_ready") else ""
        return f"{hosts[0]['name']} is {'' if outcome == 'ready' else 'not '}train-ready{of}"
    others = [
        f"{totals[key]} {key.replace('_', ' ')}" for key in ("unreachable", "unknown", "not_asked") if totals[key]
    ]
    besides = f" ({', '.join(others)})" if others else ""
    return f"{totals['ready']} of {totals['hosts']} hosts train-ready{besides}"


def _age(then: str, now: str) -> str:
    before, after = seconds(then), seconds(now)
    if before is None or after is None:
        return "-"
    hours = (after - before) // 3600
    if hours < 0:
        return "in the future"
    return f"{hours // 24} d" if hours >= 48 else f"{hours} h"


def _day(time: str) -> str:
    return time[:10]


def _short(value: str, longest: int = _CELL) -> str:
    return value if len(value) <= longest else f"{value[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
