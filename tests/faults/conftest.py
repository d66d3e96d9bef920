"""Options and fixtures of the fault tests; the numbers for the table go into the junit file."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("faulty")
import faulty  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """--seeds: how many random moments each killing test tries."""
    default = int(os.environ.get("GPUFLEET_SEEDS") or 10)
    parser.addoption("--seeds", type=int, default=default, help=f"random moments for each test that kills ({default})")


def pytest_configure(config: pytest.Config) -> None:
    """The marker that names a test's row of the table."""
    config.addinivalue_line("markers", "fault(name): the row of the fault table that a test belongs to")


@pytest.fixture(scope="session")
def seeds(request: pytest.FixtureRequest) -> int:
    """How many random moments to try."""
    return int(request.config.getoption("--seeds"))


@pytest.fixture(scope="session")
def index() -> Iterator[tuple[faulty.Index, str]]:
    """The index that all hosts use."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-index-") as directory, faulty.serve(Path(directory)) as served:
        yield served


@pytest.fixture(scope="session")
def hosts(index: tuple[faulty.Index, str]) -> Iterator[list[faulty.Host]]:
    """The host that lives through one fault after the other, as hosts do; a test that fails takes it away."""
    if os.geteuid() != 0 or faulty.tiny.uv_program() is None or faulty.tiny.system_python() is None:
        pytest.skip("needs root, uv and a Python of the system's")
    there: list[faulty.Host] = []
    yield there
    for host in there:
        shutil.rmtree(host.directory)


@pytest.fixture
def tally(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[faulty.Tally]:
    """What this test counts; written into the junit file also where it fails."""
    counted = faulty.Tally()
    yield counted
    marker = request.node.get_closest_marker("fault")
    record_property("fault", marker.args[0])
    for name, value in dataclasses.asdict(counted).items():
        record_property(name, value)


@pytest.fixture
def host(
    request: pytest.FixtureRequest, hosts: list[faulty.Host], index: tuple[faulty.Index, str], tally: faulty.Tally
) -> Iterator[faulty.Host]:
    """The host as the test before left it, or a new one, with a release that serves."""
    if not hosts:
        hosts.append(faulty.new_host(*index))
    taken = hosts[0]
    taken.tally = tally
    failed = request.session.testsfailed
    taken.serve()
    yield taken
    if request.session.testsfailed > failed:
        shutil.rmtree(hosts.pop().directory, ignore_errors=True)


@pytest.fixture
def fresh_host(hosts: list[faulty.Host], index: tuple[faulty.Index, str], tally: faulty.Tally) -> Iterator[faulty.Host]:
    """A host of the test's own, without environments; ``hosts`` is asked for because of what it needs."""
    made = faulty.new_host(*index)
    made.tally = tally
    yield made
    shutil.rmtree(made.directory)
