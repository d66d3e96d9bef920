# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The canonical document as JUnit XML: a suite for each host, a case for each rule.

A host that was not observed has one case that says so, an error; one that was not asked has one that was skipped.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from xml.etree import ElementTree

from ansible_collections.gpufleet.workstation.plugins.module_utils._report.metrics import seconds
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import canonical

_ELEMENTS = {"failed": "failure", "error": "error", "not_run": "skipped", "waived": "skipped"}
_OBSERVED = "gpufleet.observed"  # the rule-like name of the case of a host that was not judged


def junit(document: dict[str, Any]) -> str:
    """Return the XML; it is valid against the schema that Jenkins' xUnit plugin checks JUnit files with."""
    fleet = canonical.of(document)
    root = ElementTree.Element("testsuites", name="gpufleet compliance")
    totals: Counter[str] = Counter()
    for host in fleet["hosts"]:
        suite = ElementTree.SubElement(root, "testsuite", name=host["name"], time="0")
        if seconds(fleet["generated_at"]) is not None:
            suite.set("timestamp", fleet["generated_at"])
        counts = _judged(suite, host, fleet["rules"]) if host["results"] else _not_judged(suite, host)
        _count(suite, counts)
        totals += counts
    _count(root, totals)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _judged(suite: ElementTree.Element, host: dict[str, Any], rules: list[dict[str, str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for rule in rules:
        if rule["id"] not in host["results"]:
            continue
        result = host["results"][rule["id"]]
        lines = [f"{item['name']}: {item['evidence']}".removeprefix(": ") for item in result["items"]]
        since = [f"since: {result['since']}"] if result["since"] else []
        remedy = [f"what to do: {rule['remedy']}"] if rule["remedy"] else []
        message = f"{result['status'].replace('_', ' ')}: {lines[0] if lines else rule['title']}"
        counts += _case(suite, rule["id"], rule["title"], result["status"], message, [*since, *lines, *remedy])
        if result["status"] in ("failed", "error"):
            suite[-1][-1].set("type", rule["severity"])
    return counts


def _not_judged(suite: ElementTree.Element, host: dict[str, Any]) -> Counter[str]:
    status = {"not_asked": "not_run", "ready": "passed"}.get(host["outcome"], "error")
    message = f"{host['outcome'].replace('_', ' ')}: {host['reason']}".removesuffix(": ")
    since = [f"since: {host['since']}"] if host["since"] else []
    return _case(suite, _OBSERVED, "The host was observed", status, message, since)


def _case(
    suite: ElementTree.Element, rule: str, title: str, status: str, message: str, lines: list[str]
) -> Counter[str]:
    # Readers that put all suites together tell the cases of a rule apart by their names.
    case = ElementTree.SubElement(suite, "testcase", classname=rule, name=f"{suite.get('name')}: {title}", time="0")
    element = _ELEMENTS.get(status)
    if element:
        ElementTree.SubElement(case, element, message=message).text = "\n".join(lines)
    return Counter(["tests", *([element] if element else [])])


def _count(element: ElementTree.Element, counts: Counter[str]) -> None:
    element.set("tests", str(counts["tests"]))
    element.set("failures", str(counts["failure"]))
    element.set("errors", str(counts["error"]))
    if element.tag == "testsuite":
        element.set("skipped", str(counts["skipped"]))
