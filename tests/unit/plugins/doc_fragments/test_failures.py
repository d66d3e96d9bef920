"""What people read about failures is the table that the modules use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.gpufleet.workstation.plugins.doc_fragments import failures as fragment
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import failures

ROOT = Path(__file__).resolve().parents[4]


def test_the_page_is_up_to_date():
    done = subprocess.run([sys.executable, str(ROOT / "bin/docs"), "--check"], check=False)
    assert done.returncode == 0, "docs/failures.md is not what the tables say: run bin/docs"


def test_a_page_that_is_not_up_to_date_is_noticed(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "bin/docs").write_bytes((ROOT / "bin/docs").read_bytes())
    (tmp_path / "collections").symlink_to(ROOT / "collections")
    command = [sys.executable, str(tmp_path / "bin/docs")]
    assert subprocess.run([*command, "--check"], check=False).returncode == 1
    subprocess.run(command, check=True)
    page = tmp_path / "docs/failures.md"
    assert page.read_text(encoding="utf-8") == (ROOT / "docs/failures.md").read_text(encoding="utf-8")
    page.write_text(page.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert subprocess.run([*command, "--check"], check=False).returncode == 1


def test_every_row_of_the_page_has_all_its_cells():
    lines = (ROOT / "docs/failures.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == len(failures.TABLE)
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}


def test_the_fragment_names_every_failure_once():
    notes = yaml.safe_load(fragment.ModuleDocFragment.DOCUMENTATION)["notes"]
    for code in failures.TABLE:
        assert sum(note.count(f"C({code})") for note in notes) == 1, code


@pytest.fixture(scope="module")
def shown():
    """What ansible-doc has of the module."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections")}
    command = [sys.executable, "-m", "ansible", "doc", "-j", "gpufleet.workstation.cuda_verify"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["gpufleet.workstation.cuda_verify"]["doc"]


def test_ansible_doc_answers_for_a_code(shown):
    note = next(note for note in shown["notes"] if "C(cuda_803)" in note)
    assert failures.TABLE["cuda_803"].cause in note
    assert note.endswith("Reinstalling does not help.")
