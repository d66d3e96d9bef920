"""For all tests: which failure a test shows, in the results; the simulated driver."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "stubs"))
from simulated import compiled_driver, simulated, unkillable  # noqa: E402, F401  # fixtures


def pytest_configure(config: pytest.Config) -> None:
    """The marker of the tests that show a failure."""
    config.addinivalue_line("markers", "failure(code, ...): the failures of docs/failures.md that a test brings about")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write the failures that a test shows into the junit file, and what it shows them with."""
    for item in items:
        codes = [code for marker in item.iter_markers("failure") for code in marker.args]
        if codes:
            item.user_properties += [("failure", code) for code in codes]
            item.user_properties.append(("tested", how(item)))


def how(item: pytest.Item) -> str:
    """A real GPU, the simulated driver (stub), or neither."""
    if item.path.is_relative_to(TESTS / "gpu"):
        return "gpu"
    return "stub" if "simulated" in getattr(item, "fixturenames", ()) else "unit"
