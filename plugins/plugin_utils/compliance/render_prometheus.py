# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The canonical document as metrics of a whole fleet, for the textfile collector on the controller.

Series: 5 a host, 6 a rule, 1 a waiver, and 2 for each rule that a host does not meet; passed rules have none of their own, or a
thousand hosts with a hundred rules would need a hundred thousand.
"""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._report.metrics import Family, label, seconds, text
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import canonical

_SHOWN = (*canonical.BAD, "waived")


def prometheus(document: dict[str, Any]) -> str:
    """Return the textfile."""
    fleet = canonical.of(document)
    hosts = list(zip(_distinct([host["name"] for host in fleet["hosts"]]), fleet["hosts"]))
    rules = {rule["id"]: {"rule": rule["id"], "severity": rule["severity"]} for rule in fleet["rules"]}
    statuses: Counter[tuple[str, str]] = Counter()
    rule_status, failing_since = [], []
    for name, host in hosts:
        for identity, result in host["results"].items():
            statuses[identity, result["status"]] += 1
            labels = {"host": name, **rules[identity]}
            if result["status"] in _SHOWN:
                rule_status.append(({**labels, "status": result["status"]}, 1))
            if result["status"] in canonical.BAD:
                failing_since.append((labels, seconds(result["since"])))
    waivers = [
        ({key: waiver[key] for key in ("rule", "hosts", "ticket")}, _end_of_day(waiver["expires"]))
        for waiver in fleet["waivers"]
    ]
    return text(
        [
            _gauge(
                "train_ready",
                "1 where the host was observed and meets every rule of severity critical and high; else 0.",
                [({"host": name}, host["outcome"] == "ready") for name, host in hosts],
            ),
            _gauge(
                "host_outcome",
                "1 for what the host is: ready, not_ready, unknown, unreachable or not_asked.",
                [({"host": name, "outcome": host["outcome"]}, 1) for name, host in hosts],
            ),
            _gauge(
                "host_outcome_since_timestamp_seconds",
                "Since when the host is what it is.",
                [({"host": name}, seconds(host["since"])) for name, host in hosts],
            ),
            _gauge(
                "host_verified_timestamp_seconds",
                "When the host was last observed, by its own clock.",
                [({"host": name}, seconds(host["observed_at"])) for name, host in hosts],
            ),
            _gauge(
                "host_proven_timestamp_seconds",
                "When the oldest of the proofs ended that the host has of its environments, by its own clock.",
                [({"host": name}, seconds(host["proven_at"])) for name, host in hosts],
            ),
            _gauge("rule_status", "1 for each rule that a host does not meet, or that is waived.", rule_status),
            _gauge(
                "rule_failing_since_timestamp_seconds",
                "Since when the host does not meet the rule (failed, error or not_run, and not waived).",
                failing_since,
            ),
            _gauge(
                "rule_hosts",
                "Hosts with that result of the rule.",
                [
                    ({**labels, "status": status}, statuses[identity, status])
                    for identity, labels in rules.items()
                    for status in canonical.STATUSES
                ],
            ),
            _gauge("waiver_expiry_timestamp_seconds", "When the waiver ends.", waivers),
            _gauge(
                "hosts",
                "Hosts of the inventory by outcome.",
                [({"outcome": outcome}, fleet["totals"][outcome]) for outcome in canonical.OUTCOMES],
            ),
            _gauge("report_errors", "Errors of the evaluation itself.", [({}, len(fleet["errors"]))]),
            _gauge(
                "report_timestamp_seconds",
                "When the fleet was evaluated, by the controller's clock.",
                [({}, seconds(fleet["generated_at"]))],
            ),
        ]
    )


def _gauge(name: str, meaning: str, series: list[tuple[dict[str, str], Any]]) -> Family:
    return Family(f"gpufleet_{name}", "gauge", meaning, series)


def _distinct(names: list[str]) -> list[str]:
    """What names become as labels, numbered where two become the same: a series must not hide another host's."""
    found: dict[str, None] = {}
    for name in map(label, names):
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name[:180]} ({number})"
        found[unique] = None
    return list(found)


def _end_of_day(date: str) -> int | None:
    """The last day counts as a whole."""
    start = seconds(f"{date}T00:00:00Z")
    return None if start is None else start + int(datetime.timedelta(days=1).total_seconds())
