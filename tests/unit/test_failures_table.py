"""The table of failures says how each is tested: that has to be what the tests' own markers say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import failures

TABLE = Path(__file__).resolve().parents[1] / "stubs/table.py"


@pytest.fixture(scope="module")
def claimed():
    """Failure -> gpu, stub or unit, from the markers of all tests."""
    done = subprocess.run([sys.executable, str(TABLE), "--claims"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_no_test_claims_a_failure_that_is_not_in_the_table(claimed):
    assert set(claimed) <= set(failures.TABLE)


def test_every_failure_is_brought_about_by_a_test(claimed):
    assert sorted(set(failures.TABLE) - set(claimed)) == []


def test_the_table_says_of_every_failure_how_it_is_tested(claimed):
    said = {row.code: row.tested for row in failures.TABLE.values()}
    assert {code: way for code, way in said.items() if claimed.get(code) != way} == {}
