# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The canonical document as JUnit XML: a suite for each host, a case for each rule.

A host that was not observed has one case that says so, an error; one that was not asked has one that was skipped.
"""

from __future__ import annotations

import functools
from typing import Any
from xml.sax.saxutils import escape

from ansible_collections.gpufleet.workstation.plugins.module_utils._report.metrics import seconds
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import canonical

_ELEMENTS = {"failed": "failure", "error": "error", "not_run": "skipped", "waived": "skipped"}
_COUNTED = {"failure": "failures", "error": "errors", "skipped": "skipped"}
_OBSERVED = {"id": "gpufleet.observed", "title": "The host was observed", "severity": ""}
"""The case of a host that was not judged looks like a rule's."""


def junit(document: dict[str, Any]) -> str:
    """Return the XML; it is valid against the schema that Jenkins' xUnit plugin checks JUnit files with."""
    fleet = canonical.of(document)
    timestamp = f" timestamp={_quoted(fleet['generated_at'])}" if seconds(fleet["generated_at"]) is not None else ""
    totals = dict.fromkeys(("tests", *_COUNTED.values()), 0)
    lines = []
    for host in fleet["hosts"]:
        cases = _judged(host, fleet["rules"]) if host["results"] else [_not_judged(host)]
        counts = dict.fromkeys(totals, 0)
        for element, _case in cases:
            counts["tests"] += 1
            if element:
                counts[_COUNTED[element]] += 1
        for key, count in counts.items():
            totals[key] += count
        lines += [
            f'  <testsuite name={_quoted(host["name"])} time="0"{timestamp}{_attributes(counts)}>',
            *(case for _element, case in cases),
            "  </testsuite>",
        ]
    totals.pop("skipped")  # the schema has no such attribute there
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<testsuites name="gpufleet compliance"{_attributes(totals)}>',
            *lines,
            "</testsuites>\n",
        ]
    )


@functools.lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return f'"{escape(text, {chr(34): "&quot;"})}"'


def _attributes(counts: dict[str, int]) -> str:
    return "".join(f' {name}="{count}"' for name, count in counts.items())


def _judged(host: dict[str, Any], rules: list[dict[str, str]]) -> list[tuple[str, str]]:
    """The element and the text of each rule's case."""
    cases = []
    for rule in rules:
        result = host["results"].get(rule["id"])
        if result is None:
            continue
        said = [f"{item['name']}: {item['evidence']}".removeprefix(": ") for item in result["items"]]
        since = [f"since: {result['since']}"] if result["since"] else []
        remedy = [f"what to do: {rule['remedy']}"] if rule["remedy"] else []
        message = f"{result['status'].replace('_', ' ')}: {said[0] if said else rule['title']}"
        cases.append(_case(host["name"], rule, result["status"], message, [*since, *said, *remedy]))
    return cases


def _not_judged(host: dict[str, Any]) -> tuple[str, str]:
    status = {"not_asked": "not_run", "ready": "passed"}.get(host["outcome"], "error")
    message = f"{host['outcome'].replace('_', ' ')}: {host['reason']}".removesuffix(": ")
    since = [f"since: {host['since']}"] if host["since"] else []
    return _case(host["name"], _OBSERVED, status, message, since)


def _case(host: str, rule: dict[str, str], status: str, message: str, lines: list[str]) -> tuple[str, str]:
    # Readers that put all suites together tell the cases of a rule apart by their names.
    case = f'    <testcase classname={_quoted(rule["id"])} name={_quoted(host)[:-1]}: {_quoted(rule["title"])[1:]} time="0"'
    element = _ELEMENTS.get(status, "")
    if not element:
        return "", f"{case}/>"
    kind = f" type={_quoted(rule['severity'])}" if status in ("failed", "error") and rule["severity"] else ""
    text = escape("\n".join(lines))
    return element, f"{case}>\n      <{element} message={_quoted(message)}{kind}>{text}</{element}>\n    </testcase>"
