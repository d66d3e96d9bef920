"""Options of the fault tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """--seeds: how many random moments each killing test tries."""
    parser.addoption("--seeds", type=int, default=10, help="random moments for each test that kills (default: 10)")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> int:
    """How many random moments to try."""
    return int(request.config.getoption("--seeds"))
