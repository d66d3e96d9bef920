#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print each failure of docs/failures.md with how it was brought about, from junit files; the status is that of the tests.

    tests/stubs/table.py .state/test/unit.xml .state/test/gpu.xml     what ran (a file that is not there counts as nothing)
    tests/stubs/table.py --claims                                     which tests there are, as JSON: failure -> gpu, stub or unit

Tests name the failures that they bring about with the marker `failure`; tests/conftest.py writes both into the junit file.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import failures  # noqa: E402

WAYS = {"gpu": "real GPU", "stub": "stub", "unit": "unit"}  # the best first
MARKED = ("tests/gpu", "tests/unit/plugins/module_utils/_proof", "tests/unit/plugins/module_utils/_probe")
NOTES = """
real GPU  brought about on a GPU, with NVIDIA's driver
stub      brought about by simulated libraries of the driver (tests/stubs), with the proof's and the observation's own processes
unit      brought about by made-up answers or files
"""
Shown = tuple[str, str, str]  # failure, way, passed|failed|skipped


def shown_in(path: Path) -> list[Shown]:
    """What the tests of a junit file showed."""
    found = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314  # written by pytest
        properties = [(item.get("name"), item.get("value", "")) for item in case.iter("property")]
        bad = case.find("failure") is not None or case.find("error") is not None
        verdict = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        way = dict(properties).get("tested", "")
        found += [(value, way, verdict) for name, value in properties if name == "failure"]
    return found


def render(shown: list[Shown]) -> tuple[list[str], bool]:
    """The lines of the table, and whether every test passed."""
    counts = Counter(shown)
    rows = [("failure", "what it is", *WAYS.values(), "verdict")]
    for code in sorted({each[0] for each in shown}, key=lambda code: (list(failures.TABLE).index(code), code)):
        verdicts = Counter(verdict for each, _way, verdict in shown if each == code)
        verdict = "FAIL" if verdicts["failed"] else "pass" if verdicts["passed"] else "skipped"
        cells = [str(counts[code, way, "passed"] or "-") for way in WAYS]
        rows.append((code, failures.TABLE[code].title[:70], *cells, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    tested = Counter(
        best({way for each, way, verdict in shown if each == code and verdict == "passed"}) for code in failures.TABLE
    )
    sums = ", ".join(f"{tested[way]} {name}" for way, name in WAYS.items() if tested[way])
    missing = [code for code in failures.TABLE if code not in {each[0] for each in shown}]
    lines += [
        NOTES.rstrip("\n"),
        "",
        f"{len(failures.TABLE)} failures, by the best way that was used: {sums or 'none'}",
    ]
    if missing:
        named = ", ".join(missing) if len(missing) <= 10 else f"{len(missing)} (bin/test unit has tests of theirs)"
        lines.append(f"not brought about by these tests: {named}")
    return lines, not any(verdict == "failed" for _code, _way, verdict in shown)


def best(ways: set[str]) -> str | None:
    """The best of several ways."""
    return next((way for way in WAYS if way in ways), None)


def claims() -> dict[str, str]:
    """The best way in which any test brings a failure about, as the tests' markers say."""
    import pytest

    ways: dict[str, set[str]] = {}

    class Collector:
        """Takes what tests/conftest.py wrote into the tests."""

        def pytest_collection_finish(self, session: Any) -> None:
            for item in session.items:
                properties = dict(item.user_properties)
                for name, value in item.user_properties:
                    if name == "failure":
                        ways.setdefault(value, set()).add(properties["tested"])

    options = ["--collect-only", "-qq", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        status = pytest.main([*options, *(str(ROOT / folder) for folder in MARKED)], plugins=[Collector()])
    finally:
        sys.stdout = stdout
    if status:
        raise SystemExit(int(status))
    return {code: str(best(found)) for code, found in sorted(ways.items())}


def main(arguments: list[str]) -> int:
    """Print."""
    if arguments == ["--claims"]:
        print(json.dumps(claims(), indent=1))
        return 0
    paths = [Path(argument) for argument in arguments if Path(argument).exists()]
    lines, good = render([each for path in paths for each in shown_in(path)])
    print("\n".join(lines))
    return 0 if good and paths else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
