"""Rules and waivers that are not understood stop the run, with file and line."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.policies import (
    PolicyError,
    Waiver,
    load,
    load_waivers,
)

RULE = """\
- id: driver.floor
  title: The loaded driver is new enough
  severity: critical
  for_each: gpus
  name_of: item.pci_address
  applies: item.minimum_driver != `null`
  expect: ver(driver.loaded_version, '>=', item.minimum_driver) && params.hours > `1`
  params: {hours: 168, names: [a], strict: true, word: x}
  evidence:
    loaded: driver.loaded_version
    needed: item.minimum_driver
  rationale: Older drivers do not know the card.
  remedy: Install a newer driver.
"""
TODAY = datetime.date(2026, 11, 23)
WAIVER = {
    "rule": "driver.floor",
    "hosts": "ws-*",
    "owner": "lab",
    "reason": "spare part",
    "ticket": "T-1",
    "expires": "2026-12-31",
}


def written(folder: Path, text: str, name: str = "rules.yml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_rule_is_read_as_it_is_written(tmp_path):
    (rule,) = load([written(tmp_path, RULE)], {}, "tuning")
    assert (rule.id, rule.severity, rule.line, rule.params["hours"]) == ("driver.floor", "critical", 1, 168)
    assert rule.for_each is not None
    assert list(rule.evidence) == ["loaded", "needed"]


def test_a_folder_is_its_files_in_order(tmp_path):
    written(tmp_path, RULE.replace("driver.floor", "z.last"), "b.yml")
    written(tmp_path, RULE, "a.yml")
    written(tmp_path, "no rules", "notes.txt")
    assert [rule.id for rule in load([tmp_path], {}, "tuning")] == ["driver.floor", "z.last"]


@pytest.mark.parametrize(
    ("before", "after", "line", "said"),
    [
        ("driver.floor", "Driver", 1, "an id of lower case words"),
        ("- id: driver.floor\n", "- titel: x\n", 1, "an id of lower case words"),
        ("severity: critical", "severity: fatal", 3, "severity is one of"),
        ("severity: critical", "severity: [critical]", 3, "severity is one of"),
        ("  remedy: Install", "  remedi: Install", 13, "did you mean remedy"),
        ("title: The loaded driver is new enough", "title: ''", 2, "title is a text"),
        ("title: The loaded driver is new enough", "title: 12", 2, "title is a text"),
        ("title: The loaded driver is new enough", 'title: "a\\x1b[2J"', 2, "title is a text"),
        ("  rationale: Older drivers do not know the card.\n", "", 1, "it has no rationale"),
        ("item.minimum_driver) && params.hours > `1`", "params.houres)", 7, "no parameter houres; did you mean hours"),
        ("loaded: driver.loaded_version", "loaded: drivr.loaded_version", 10, "no drivr; did you mean driver"),
        ("loaded: driver.loaded_version", "loaded: '['", 10, "evidence loaded: no JMESPath"),
        (
            "  evidence:\n    loaded: driver.loaded_version\n    needed: item.minimum_driver\n",
            "  evidence: {}\n",
            9,
            "at least one value",
        ),
        ("expect: ver(driver.loaded_version, '>=', item.minimum_driver)", "expect: 'true' #", 7, "stands in backticks"),
        (
            "expect: ver(driver.loaded_version, '>=', item.minimum_driver)",
            "expect: true #",
            7,
            "an expression is a text",
        ),
        (
            "expect: ver(driver.loaded_version, '>=', item.minimum_driver)",
            "expect: 'params.strict' #",
            7,
            "does not depend on what was observed",
        ),
        (
            "expect: ver(driver.loaded_version, '>=', item.minimum_driver)",
            "expect: '@ != `5`' #",
            7,
            "does not depend on what was observed",
        ),
        (
            "expect: ver(driver.loaded_version, '>=', item.minimum_driver)",
            "expect: 'driver.mismatch' #",
            7,
            "the item of for_each",
        ),
        ("  for_each: gpus\n", "", 6, "only with for_each"),
        ("hours: 168", "hours: null", 8, "params holds numbers"),
        ("hours: 168", "hours: .nan", 8, "params holds numbers"),
        ("hours: 168", "hours: [1, x]", 8, "params holds numbers"),
        ("hours: 168", "Hours: 168", 8, "params holds numbers"),
        ("  severity: critical", "  severity: critical\n  severity: low", 4, "severity is there twice"),
        ("params: {", "params: &a {", 8, "anchors and aliases"),
        ("title: The", "title: !!python/name:os.system The", 2, "tags are not allowed"),
        ("title: The", "<<: {severity: low}\n  title: The", 2, "cannot be read"),
        ("title: The", "1: x\n  title: The", 2, "a key is no text"),
        ("title: The", "title: 'The", 7, "no YAML"),
        ("params: {hours: 168", "params: {deep: " + "[" * 50 + "]" * 50 + ", hours: 168", 8, "nested deeper"),
        ("hours: 168", "hours: 2026-99-99", 8, "cannot be read"),
    ],
)
def test_what_is_odd_is_refused_with_file_and_line(tmp_path, before, after, line, said):
    assert before in RULE
    path = written(tmp_path, RULE.replace(before, after))
    with pytest.raises(PolicyError) as caught:
        load([path], {}, "tuning")
    assert said in caught.value.message
    assert (caught.value.file, caught.value.line) == (str(path), line)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("text", ["", "[]", "{}", "id: x", "- x", "- [a]", "null", "---\n[]\n---\n[]\n"])
def test_a_file_that_holds_no_rules_is_refused(tmp_path, text):
    with pytest.raises(PolicyError):
        load([written(tmp_path, text)], {}, "tuning")


def test_files_that_cannot_be_files_of_rules_are_refused(tmp_path):
    large, binary = tmp_path / "large.yml", tmp_path / "binary.yml"
    large.write_bytes(b"#" * (1024 * 1024 + 1))
    binary.write_bytes(b"- id: a.b\n  title: \xff\n")
    for path, said in (
        (large, "larger than 1024 KiB"),
        (binary, "not UTF-8"),
        (tmp_path / "none.yml", "cannot be read"),
        (tmp_path / "x", "cannot be read"),
    ):
        with pytest.raises(PolicyError, match=said):
            load([path], {}, "tuning")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PolicyError, match="holds no"):
        load([tmp_path / "folder"], {}, "tuning")


def test_aliases_that_would_make_a_short_file_enormous_are_refused_at_once(tmp_path):
    bomb = "- &a0 [x]\n" + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
    with pytest.raises(PolicyError, match="anchors and aliases"):
        load([written(tmp_path, bomb)], {}, "tuning")


def test_an_id_may_be_there_once(tmp_path):
    first, second = written(tmp_path, RULE, "a.yml"), written(tmp_path, "\n" + RULE, "b.yml")
    with pytest.raises(PolicyError) as caught:
        load([first, second], {}, "tuning")
    assert (caught.value.file, caught.value.line) == (str(second), 2)
    assert f"({first}, line 1)" in caught.value.message


def test_the_inventory_changes_severity_and_parameters_and_leaves_rules_out(tmp_path):
    path = written(tmp_path, RULE + RULE.replace("driver.floor", "driver.other"))
    tuning = {
        "driver.floor": {"severity": "low", "params": {"hours": 2.5, "names": []}},
        "driver.other": {"enabled": False},
    }
    (rule,) = load([path], tuning, "tuning")
    assert (rule.severity, rule.params) == ("low", {"hours": 2.5, "names": [], "strict": True, "word": "x"})


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ([], "a mapping"),
        ({"driver.flor": {"enabled": False}}, "did you mean driver.floor"),
        ({5: {"enabled": False}}, "no rule 5"),
        ({"driver.floor": None}, "it has enabled"),
        ({"driver.floor": {}}, "it has enabled"),
        ({"driver.floor": {"expect": "`true`"}}, "expect cannot be changed"),
        ({"driver.floor": {"enabled": "false"}}, "without quotes"),
        ({"driver.floor": {"severity": "none"}}, "severity is one of"),
        ({"driver.floor": {"severity": []}}, "severity is one of"),
        ({"driver.floor": {"params": []}}, "params is a mapping"),
        ({"driver.floor": {"params": {"hour": 1}}}, "did you mean hours"),
        ({"driver.floor": {"params": {"hours": "168"}}}, "the parameter hours is a number"),
        ({"driver.floor": {"params": {"hours": True}}}, "the parameter hours is a number"),
        ({"driver.floor": {"params": {"hours": None}}}, "the parameter hours is a number"),
        ({"driver.floor": {"params": {"strict": 1}}}, "is true or false"),
        ({"driver.floor": {"params": {"names": [1]}}}, "is a list"),
        ({"driver.floor": {"params": {"names": "a"}}}, "is a list"),
        ({"driver.floor": {"params": {"word": 1}}}, "is a text"),
    ],
)
def test_a_change_that_is_not_understood_is_refused(tmp_path, tuning, said):
    with pytest.raises(PolicyError) as caught:
        load([written(tmp_path, RULE)], tuning, "gpu_compliance_rules")
    assert said in caught.value.message
    assert caught.value.file == "gpu_compliance_rules"


def waivers(tmp_path: Path, *items: Any, hosts: tuple[str, ...] = ("ws-1", "ws-2", "srv")) -> list[Waiver]:
    rules = load([written(tmp_path, RULE)], {}, "tuning")
    return load_waivers(list(items), rules, hosts, {"lab": ["ws-1", "elsewhere"], "none": []}, TODAY)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [("ws-*", {"ws-1", "ws-2"}), ("lab", {"ws-1"}), ("srv", {"srv"}), ("*", {"ws-1", "ws-2", "srv"})],
)
def test_a_waiver_is_for_the_hosts_of_a_pattern_or_a_group(tmp_path, pattern, matched):
    (waiver,) = waivers(tmp_path, {**WAIVER, "hosts": pattern})
    assert (waiver.matched, waiver.active, waiver.days_left) == (matched, True, 38)


@pytest.mark.parametrize("change", [{"rule": "driver.flor"}, {"hosts": "nobody"}, {"hosts": "none"}, {"hosts": "WS-1"}])
def test_a_waiver_for_nothing_is_an_orphan(tmp_path, change):
    (waiver,) = waivers(tmp_path, {**WAIVER, **change})
    assert waiver.problem
    assert not waiver.active


@pytest.mark.parametrize(
    ("expires", "active", "left"),
    [
        ("2026-11-23", True, 0),
        ("2026-11-22", False, -1),
        (datetime.date(2027, 2, 21), True, 90),
        ("2020-01-01", False, -2518),
    ],
)
def test_a_waiver_ends_after_its_day(tmp_path, expires, active, left):
    (waiver,) = waivers(tmp_path, {**WAIVER, "expires": expires})
    assert (waiver.active, waiver.days_left) == (active, left)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"expires": "2027-02-22"}, "more than 90 days ahead"),
        ({"expires": "never"}, "expires is a day"),
        ({"expires": "2026-13-01"}, "expires is a day"),
        ({"expires": None}, "expires is a day"),
        ({"expires": datetime.datetime(2026, 12, 1)}, "expires is a day"),
        ({"owner": ""}, "owner is a text"),
        ({"ticket": 12}, "ticket is a text"),
        ({"reason": None}, "reason is a text"),
        ({"until": "x"}, "a waiver has no until"),
    ],
)
def test_a_waiver_that_is_not_complete_or_too_long_is_refused(tmp_path, change, said):
    with pytest.raises(PolicyError, match=said):
        waivers(tmp_path, {**WAIVER, **change})


@pytest.mark.parametrize("items", [{}, "x", ["x"], [None]])
def test_what_are_no_waivers_are_refused(items):
    with pytest.raises(PolicyError, match="waivers"):
        load_waivers(items, [], [], {}, TODAY)
