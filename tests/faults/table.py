#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the fault table from the junit file of the fault tests, one line for each fault; the status is that of the lines."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

NUMBERS = (
    *(
        "runs",
        "hit",
        "late",
        "observations",
        "failures",
        "expected_failures",
        "false_greens",
        "recoveries",
        "converged",
    ),
    "seconds",
)
HEAD = (
    "fault",
    "tests",
    "runs",
    "hit",
    "late",
    "observed",
    "failures",
    "false greens",
    "next run converged",
    "verdict",
)
NOT_USED = ("SIGKILL of pip", "not used: hosts are never given to pip")
NOTES = """
runs        what the fault was done to; every random moment is one of its own
hit         the fault really happened, to a process that lived; late: it came after the end, and counts for nothing
observed    how often a process that uses the environment all the time looked: where `current` leads, whether that is stamped and proven,
            whether a fresh process imports torch from it; failures are those of what served before and of what serves afterwards
(n)         expected failures: this fault takes away what serves, and they ended with the run that mended it
false greens  unproven or incomplete releases that were current or stamped, and runs that failed without saying so
"""


def counts(case: ElementTree.Element) -> tuple[str, dict[str, float]]:
    """(row, numbers) of one test case."""
    properties = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
    return properties.get("fault", ""), {name: float(properties.get(name, 0)) for name in NUMBERS}


def main(path: str, seeds: str) -> int:
    """Print."""
    rows: dict[str, dict[str, float]] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314  # written by pytest
        fault, numbers = counts(case)
        if not fault:
            continue
        row = rows.setdefault(fault, dict.fromkeys((*NUMBERS, "tests", "bad", "skipped"), 0))
        for name, number in numbers.items():
            row[name] += number
        row["tests"] += 1
        row["bad"] += case.find("failure") is not None or case.find("error") is not None
        row["skipped"] += case.find("skipped") is not None
    lines = [HEAD, *((name, *cells(row)) for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"{NOT_USED[0].ljust(widths[0])}  {NOT_USED[1]}")
    seen = sum(row["observations"] for row in rows.values())
    rate = seen / max(sum(row["seconds"] for row in rows.values()), 0.1)
    print(f"\n{seen:.0f} observations, {rate:.0f} a second; random moments: seeds from 0 on, {seeds} that hit")
    print(NOTES.strip("\n"))
    return int(not rows or any(row["bad"] for row in rows.values()))


def cells(row: dict[str, float]) -> tuple[str, ...]:
    """The numbers of a row as text."""
    whole = {name: str(int(number)) for name, number in row.items()}
    failures = whole["failures"] + (f" ({whole['expected_failures']})" if row["expected_failures"] else "")
    verdict = "FAIL" if row["bad"] else "skipped" if row["skipped"] == row["tests"] else "pass"
    if verdict == "pass" and row["skipped"]:
        verdict += f", {whole['skipped']} skipped"
    numbers = [whole[name] for name in ("tests", "runs", "hit", "late", "observations")]
    return (*numbers, failures, whole["false_greens"], f"{whole['converged']} of {whole['recoveries']}", verdict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]) if Path(sys.argv[1]).exists() else 1)
