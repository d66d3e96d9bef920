"""Options of the fault tests."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """--seeds: how many random moments each killing test tries."""
    default = int(os.environ.get("GPUFLEET_SEEDS") or 10)
    parser.addoption("--seeds", type=int, default=default, help=f"random moments for each test that kills ({default})")


@pytest.fixture(scope="session")
def seeds(request: pytest.FixtureRequest) -> int:
    """How many random moments to try."""
    return int(request.config.getoption("--seeds"))
