"""What the controller keeps of a fleet's compliance, and what it does with damaged files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import history

FIRST, SECOND, THIRD = (f"2026-11-{day}T14:02:00Z" for day in ("17", "18", "19"))


def host(name: str, outcome: str = "ready", since: str = FIRST, **more: Any) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "since": since, "results": {}, "facts": {"kernel": "6.1.0-42"}, **more}


def document(at: str, *hosts: dict[str, Any]) -> dict[str, Any]:
    return {"generated_at": at, "hosts": list(hosts), "totals": {"hosts": len(hosts)}}


def failing(rule: str = "driver.floor", status: str = "failed", since: str = FIRST) -> dict[str, Any]:
    return {rule: {"status": status, "since": since, "items": []}, "os.clock": {"status": "passed", "since": FIRST}}


def test_where_nothing_was_kept_there_is_no_history_and_no_problem(tmp_path):
    assert history.read(tmp_path / "none") == history.History()


def test_a_verdict_comes_back_with_since_and_without_what_was_passed(tmp_path):
    history.write(tmp_path, document(FIRST, host("a", "not_ready", results=failing())), 400)
    found = history.read(tmp_path)
    assert (found.at, found.problems) == (FIRST, [])
    assert found.hosts["a"] == {
        "outcome": "not_ready", "since": FIRST, "facts": {"kernel": "6.1.0-42"},
        "results": {"driver.floor": {"status": "failed", "since": FIRST}},
    }  # fmt: skip


def test_the_series_is_that_of_all_runs_with_the_oldest_first(tmp_path):
    history.write(tmp_path, document(SECOND, host("a")), 400)
    history.write(tmp_path, document(FIRST, host("a", "not_ready", results=failing())), 400)
    series = history.read(tmp_path).series
    assert [run["at"] for run in series] == [FIRST, SECOND]
    assert [run["failing"] for run in series] == [{"driver.floor": 1}, {}]


@pytest.mark.parametrize(("status", "counted"), [("failed", 1), ("error", 1), ("not_run", 1), ("waived", 0)])
def test_what_is_waived_is_not_failing_and_everything_else_that_is_not_passed_is(status, counted):
    counts = history.summary(document(FIRST, host("a", results=failing(status=status))))["failing"]
    assert sum(counts.values()) == counted


def test_a_host_that_was_not_asked_keeps_its_verdict(tmp_path):
    history.write(tmp_path, document(FIRST, host("a", "not_ready", results=failing())), 400)
    before = history.read(tmp_path).hosts["a"]
    history.write(tmp_path, document(SECOND, host("a", "not_asked", SECOND, facts={})), 400)
    assert history.read(tmp_path).hosts["a"] == before


@pytest.mark.parametrize("outcome", ["unreachable", "unknown"])
def test_a_host_that_was_not_observed_keeps_results_and_facts_but_not_its_outcome(tmp_path, outcome):
    history.write(tmp_path, document(FIRST, host("a", "not_ready", results=failing())), 400)
    history.write(tmp_path, document(SECOND, host("a", outcome, SECOND, facts={})), 400)
    found = history.read(tmp_path).hosts["a"]
    assert (found["outcome"], found["since"]) == (outcome, SECOND)
    assert found["facts"] == {"kernel": "6.1.0-42"}
    assert found["results"]["driver.floor"]["since"] == FIRST


def test_a_host_that_left_the_inventory_is_forgotten(tmp_path):
    history.write(tmp_path, document(FIRST, host("a"), host("b")), 400)
    history.write(tmp_path, document(SECOND, host("b")), 400)
    assert set(history.read(tmp_path).hosts) == {"b"}


def test_the_oldest_runs_beyond_the_number_to_keep_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "history").mkdir()
    (tmp_path / "history/notes.txt").write_text("of a person", encoding="utf-8")
    for at in (FIRST, SECOND, THIRD):
        history.write(tmp_path, document(at, host("a")), 2)
    assert sorted(os.listdir(tmp_path / "history")) == ["20261118T140200Z.json", "20261119T140200Z.json", "notes.txt"]


def damage_cases() -> list[Any]:
    good = {"schema": 1, "at": SECOND, "totals": {"hosts": 1}, "failing": {}}
    entry = {"outcome": "ready", "since": FIRST, "results": {}, "facts": {}}

    def lines(head: dict[str, Any], hosts: Any) -> str:
        return json.dumps(head)[:-1] + ',\n"hosts": ' + json.dumps(hosts) + "}\n"

    return [
        pytest.param("", id="empty"),
        pytest.param("[]", id="no mapping"),
        pytest.param("\0\0\0", id="zeros"),
        pytest.param(json.dumps(good), id="one line"),
        pytest.param(lines(good, {"a": entry})[:-20], id="cut off"),
        pytest.param(lines({**good, "schema": 2}, {}), id="schema"),
        pytest.param(lines({**good, "at": FIRST}, {}), id="time of another"),
        pytest.param(lines({**good, "at": None}, {}), id="no time"),
        pytest.param(lines({**good, "totals": {"hosts": "many"}}, {}), id="totals"),
        pytest.param(lines(good, []), id="hosts"),
        pytest.param(lines(good, {"a": None}), id="no verdict"),
        pytest.param(lines(good, {"a": {**entry, "outcome": "splendid"}}), id="outcome"),
        pytest.param(lines(good, {"a": {**entry, "facts": None}}), id="facts"),
        pytest.param(lines(good, {"a": {**entry, "results": {"x": "failed"}}}), id="results"),
    ]


@pytest.mark.parametrize("text", damage_cases())
def test_a_damaged_run_is_named_and_the_one_before_it_counts(tmp_path, text):
    history.write(tmp_path, document(FIRST, host("a")), 400)
    damaged = tmp_path / "history/20261118T140200Z.json"
    damaged.write_text(text, encoding="utf-8")
    found = history.read(tmp_path)
    assert (found.at, [run["at"] for run in found.series]) == (FIRST, [FIRST])
    assert len(found.problems) == 1
    assert str(damaged) in found.problems[0]
    assert damaged.read_text(encoding="utf-8") == text


def test_bytes_that_are_no_text_are_damage_too(tmp_path):
    (tmp_path / "history").mkdir()
    (tmp_path / "history/20261118T140200Z.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "provisioned.json").write_bytes(b"\xff")
    assert len(history.read(tmp_path).problems) == 2


def test_facts_of_provisioning_are_kept_for_each_host_and_the_latest_counts(tmp_path):
    history.record_provisioned(tmp_path, {"a": {"kernel": "1"}, "b": {"kernel": "1"}}, FIRST)
    history.record_provisioned(tmp_path, {"a": {"kernel": "2"}}, SECOND)
    assert history.read(tmp_path).provisioned == {
        "a": {"at": SECOND, "facts": {"kernel": "2"}},
        "b": {"at": FIRST, "facts": {"kernel": "1"}},
    }


def test_without_a_host_that_ended_ready_nothing_is_written(tmp_path):
    history.record_provisioned(tmp_path / "none", {}, FIRST)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": []}', '{"a": {"at": 1, "facts": {}}}', '{"a": {"at": "now"}}'])
def test_a_damaged_record_is_named_and_put_aside_before_the_next_is_written(tmp_path, text):
    path = tmp_path / "provisioned.json"
    path.write_text(text, encoding="utf-8")
    found = history.read(tmp_path)
    assert found.provisioned == {}
    assert str(path) in found.problems[0]
    history.record_provisioned(tmp_path, {"a": {"kernel": "1"}}, FIRST)
    assert (tmp_path / "provisioned.damaged.json").read_text(encoding="utf-8") == text
    assert set(history.read(tmp_path).provisioned) == {"a"}


def modes(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def test_files_are_for_their_owner_alone_whatever_the_umask_is(tmp_path):
    before = os.umask(0)
    try:
        history.write(tmp_path / "compliance", document(FIRST, host("a")), 400)
        history.record_provisioned(tmp_path / "compliance", {"a": {}}, FIRST)
        history.write_reports(tmp_path / "compliance/report", {"index.html": "<p>"})
    finally:
        os.umask(before)
    assert modes(tmp_path / "compliance") == {
        ".": 0o700, ".lock": 0o600, "history": 0o700, "history/20261117T140200Z.json": 0o600, "provisioned.json": 0o600,
        "report": 0o700, "report/.lock": 0o600, "report/index.html": 0o600,
    }  # fmt: skip


def test_a_report_replaces_the_one_before_it_and_leaves_nothing_else(tmp_path):
    history.write_reports(tmp_path, {"junit.xml": "old"})
    paths = history.write_reports(tmp_path, {"junit.xml": "new"})
    assert Path(paths["junit.xml"]).read_text(encoding="utf-8") == "new"
    assert sorted(os.listdir(tmp_path)) == [".lock", "junit.xml"]


WRITERS = {
    "write": lambda folder: history.write(folder, document(FIRST, host("a")), 400),
    "record": lambda folder: history.record_provisioned(folder, {"a": {}}, FIRST),
    "reports": lambda folder: history.write_reports(folder, {"a": ""}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path, writer):
    (tmp_path / "file").write_text("", encoding="utf-8")
    folder = tmp_path / "file/compliance"
    with pytest.raises(history.NotKept, match=f"{folder}.*gpufleet_state_dir"):
        WRITERS[writer](folder)


def test_the_file_of_a_run_is_plain_json(tmp_path):
    path = history.write(tmp_path, document(FIRST, host("a"), host("b")), 400)
    assert set(json.loads(path.read_text(encoding="utf-8"))["hosts"]) == {"a", "b"}
