# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/pitfalls.md names tests that exist, at least one for every pitfall."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TEXT = (TESTS.parent / "docs/pitfalls.md").read_text(encoding="utf-8")
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
SECTIONS = {"Packages and pins": 16, "Kernel and module": 15, "Reboot": 5}


def entries(section: str) -> list[str]:
    """The numbered pitfalls of a section."""
    body = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    (text,) = [part for part in body if part.startswith(f"{section}\n")]
    return re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]


def functions(path: Path) -> set[str]:
    """The functions of a file."""
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize(("section", "count"), SECTIONS.items())
def test_every_pitfall_has_a_remedy_and_a_test(section: str, count: int) -> None:
    found = entries(section)
    assert len(found) == count
    for entry in found:
        assert re.match(r"\*\*.+?\*\*\s+\(.+?\)", entry, re.DOTALL), entry
        assert TEST.search(entry), f"no test: {entry}"


@pytest.mark.parametrize(("name", "function"), sorted(set(TEST.findall(TEXT))))
def test_every_test_that_is_named_exists(name: str, function: str) -> None:
    path = TESTS / re.sub(r"^unit/_", "unit/plugins/module_utils/_", name)
    assert path.is_file(), f"{name} does not exist"
    assert function in functions(path)
