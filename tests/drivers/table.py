#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the driver matrix, systems x phases, from the junit files of its tests: a case test_<phase>[<host>] is a cell."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import PERSONAS

CASE = re.compile(r"^test_([a-z]+)\w*\[(?:.*-)?((?:drv|ws)-[\w-]+)\]$")
# What outweighs what, where several cases make one cell.
RANK = ["-", "pass", "FAIL"]


def verdict(case: ElementTree.Element) -> str:
    """Of one test case."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "FAIL"
    return "-" if case.find("skipped") is not None else "pass"


def main(paths: list[str]) -> int:
    """Print; the status is that of the cells."""
    rows: dict[str, dict[str, str]] = {}
    phases: list[str] = []
    for path in filter(Path.exists, map(Path, paths)):
        for case in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314  # written by pytest
            found = CASE.match(case.get("name", ""))
            if found:
                phase, host = found.groups()
                if phase not in phases:
                    phases.append(phase)
                row = rows.setdefault(host, {})
                row[phase] = max(row.get(phase, "-"), verdict(case), key=RANK.index)
    hosts = [name for name in PERSONAS if name in rows]
    width = max(map(len, hosts), default=4)
    for name in ("host", *hosts):
        cells = [phase if name == "host" else rows[name].get(phase, "-") for phase in phases]
        print(
            "  ".join(
                [name.ljust(width), *(c.ljust(max(len(p), 4)) for c, p in zip(cells, phases, strict=True))]
            ).rstrip()
        )
    print("\nWhat the hosts are:")
    for name in hosts:
        print(f"{name.ljust(width)}  {PERSONAS[name]['note']}")
    print("- : does not apply to this host; its reason is in the test's output")
    return int("FAIL" in [cell for row in rows.values() for cell in row.values()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
