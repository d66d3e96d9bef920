"""Judging the fleet with the shipped rules: what fails the run, which hosts count, and what is left on the controller.

How a whole run ends is shown in tests/unit/playbooks/test_check_compliance.py, with an engine that knows one rule.
"""

from __future__ import annotations

import datetime
import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.lookup.inventory_hostnames import LookupModule
from ansible.template import Templar
from ansible_collections.gpufleet.workstation.plugins.action import compliance

sys.path.append(str(Path(__file__).resolve().parents[4] / "tests/compliance"))
import healthy

NOW = datetime.datetime.fromisoformat(healthy.NOW)
RULE = """\
- id: mine.{name}
  title: A rule of the team's own
  severity: {severity}
  expect: {expect}
  evidence: {{kernel: os.kernel}}
  rationale: because
  remedy: mend it
"""


class Registered(dict):
    """Ansible's hostvars, as far as they are read."""

    raw_get = dict.get


class Site:
    """A controller with an inventory, and what a run registered for its hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, dict[str, Any]] = {}
        self.limit: list[str] | None = None
        self.shown: list[str] = []
        self.callbacks: list[str] = []

    def add(self, name: str, planned: dict[str, Any] | None = None) -> dict[str, Any]:
        """Add a host, healthy unless told; return what was registered for it."""
        self.hosts[name] = planned or healthy.state()["planned"]
        return self.hosts[name]

    def rule(self, name: str, severity: str, expect: str) -> None:
        (self.folder / f"{name}.yml").write_text(RULE.format(name=name, severity=severity, expect=json.dumps(expect)))

    def judge(
        self, check_mode: bool = False, arguments: dict[str, Any] | None = None, **variables: Any
    ) -> dict[str, Any]:
        """Run the action as the playbook's last play does."""
        loader = DataLoader()
        asked = list(self.hosts) if self.limit is None else self.limit
        values = {
            "groups": {"all": list(self.hosts), "workstations": list(self.hosts)},
            "hostvars": Registered({name: {"gpufleet_host": planned} for name, planned in self.hosts.items()}),
            "ansible_play_hosts_all": asked,
            "inventory_dir": str(self.folder),
            **variables,
        }
        task = SimpleNamespace(
            action="compliance", args=arguments or {}, async_val=0, check_mode=check_mode, diff=False, environment=None
        )
        shell = SimpleNamespace(tmpdir="/nowhere")
        action = compliance.ActionModule(
            task=task,
            connection=SimpleNamespace(_shell=shell),
            play_context=None,
            loader=loader,
            templar=Templar(loader=loader, variables=values),
            shared_loader_obj=None,
        )
        return action.run(None, values)

    @property
    def kept(self) -> Path:
        return self.folder / ".gpufleet/compliance"

    def outcomes(self) -> dict[str, str]:
        report = json.loads((self.kept / "report/report.json").read_text(encoding="utf-8"))
        return {host["name"]: host["outcome"] for host in report["hosts"]}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site at the time at which the healthy host was observed; what is displayed is kept."""
    clock = SimpleNamespace(now=lambda zone: NOW.astimezone(zone))
    monkeypatch.setattr(compliance, "datetime", clock)
    monkeypatch.setattr(compliance, "lookup_loader", SimpleNamespace(get=lambda _name, **given: LookupModule(**given)))
    made = Site(tmp_path)
    config = SimpleNamespace(get_config_value={"CALLBACKS_ENABLED": made.callbacks}.get)
    monkeypatch.setattr(compliance, "constants", SimpleNamespace(config=config))
    monkeypatch.setattr(compliance.display, "display", lambda text, *_more, **_named: made.shown.append(text))
    return made


@pytest.fixture
def callback(site: Site) -> None:
    """A configuration in which the summary callback is enabled."""
    site.callbacks.append(compliance.SUMMARY_CALLBACK)


def test_a_healthy_fleet_meets_the_shipped_rules(site: Site) -> None:
    site.add("a")
    site.add("b")
    result = site.judge()
    assert not result.get("failed"), result["msg"]
    assert (result["changed"], result["not_ready"], result["totals"]["ready"]) == (False, [], 2)
    assert "2 of 2 hosts" in "".join(site.shown)


@pytest.mark.parametrize(
    ("severity", "fail_on", "fails"),
    [
        ("critical", "critical", True),
        ("high", "critical", False),
        ("high", "high", True),
        ("medium", "high", False),
        ("medium", "medium", True),
        ("low", "medium", False),
        ("low", "low", True),
        ("critical", "never", False),
    ],
)
@pytest.mark.parametrize(
    "expect", ["os.kernel == 'another'", "os.nothing == 'x'"]
)  # one that fails, one that cannot be judged
def test_a_run_fails_by_the_severity_of_what_is_not_met(
    site: Site, expect: str, severity: str, fail_on: str, fails: bool
) -> None:
    site.add("a")
    site.rule("own", severity, expect)
    result = site.judge(gpu_compliance_policies=["own.yml"], gpu_compliance_fail_on=fail_on)
    assert result.get("failed", False) is fails
    if fails:
        assert f"1 of 1 hosts do not meet rules of severity {fail_on} or worse: a." in result["msg"]
    assert site.outcomes() == {"a": "not_ready" if severity in ("critical", "high") else "ready"}


def test_what_a_waiver_covers_fails_no_run_until_it_expires(site: Site) -> None:
    site.add("a")
    site.rule("own", "critical", "os.kernel == 'another'")
    waiver = {"rule": "mine.own", "hosts": "workstations", "owner": "ops", "reason": "known", "ticket": "T-1"}
    for days, fails in ((1, False), (-1, True)):
        expires = (NOW + datetime.timedelta(days=days)).date().isoformat()
        result = site.judge(
            gpu_compliance_policies=["own.yml"], gpu_compliance_waivers=[{**waiver, "expires": expires}]
        )
        assert result.get("failed", False) is fails, expires


@pytest.mark.parametrize("judge", [True, False])
@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("os.kernel == '1' &&", "no JMESPath expression"),
        ("no_such_function(os.kernel)", "no_such_function"),
        ("nothing_there == 'x'", "nothing_there"),
        ("`true`", "does not depend on what was observed"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_file_and_line(site: Site, judge: bool, expect: str, said: str) -> None:
    site.add("a")
    site.rule("own", "high", expect)
    with pytest.raises(AnsibleActionFail, match=rf"{site.folder}/own\.yml, line 4: .*Nothing was judged\.") as refused:
        site.judge(arguments={"judge": judge}, gpu_compliance_policies=["own.yml"])
    assert said in str(refused.value)
    assert not site.kept.exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"gpu_compliance_rules": {"driver.flor": {"enabled": False}}}, "driver.flor"),
        ({"gpu_compliance_policies": ["empty"]}, r"no \*\.yml"),
        ({"gpu_compliance_policies": ["mine.yml", "mine.yml"]}, "mine.yml"),
        ({"gpu_compliance_waivers": [{"rule": "a.b"}]}, "Nothing was judged"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_hosts_are_asked(
    site: Site, variables: dict[str, Any], said: str
) -> None:
    (site.folder / "empty").mkdir()
    site.rule("mine", "high", "os.kernel == 'x'")
    with pytest.raises(AnsibleActionFail, match=said):
        site.judge(arguments={"judge": False}, **variables)


def test_reading_the_rules_judges_nothing(site: Site) -> None:
    site.add("a")
    site.rule("own", "low", "os.kernel == 'x'")
    alone = site.judge(arguments={"judge": False})
    more = site.judge(arguments={"judge": False}, gpu_compliance_policies=["."])
    assert more["rules"] == alone["rules"] + 1
    assert not site.kept.exists()
    assert site.shown == []


def test_an_argument_that_is_not_there_is_refused(site: Site) -> None:
    with pytest.raises(AnsibleActionFail, match="takes no fail_on; it has judge and hosts"):
        site.judge(arguments={"fail_on": "low"})


def test_hosts_that_cannot_be_observed_count_and_fail_the_run(site: Site) -> None:
    site.add("fine")
    site.add("gone", {"unreachable": True, "msg": "the cable is cut", "exception": object()})
    site.add("mute", {"failed": True, "msg": "Missing sudo password"})
    result = site.judge()
    assert site.outcomes() == {"fine": "ready", "gone": "unreachable", "mute": "unknown"}
    assert result["failed"]
    assert result["msg"] == "2 of 3 hosts could not be observed: gone, mute."
    assert result["totals"]["hosts"] == 3


def test_the_first_host_of_a_limit_that_is_gone_keeps_nobody_from_being_judged(site: Site) -> None:
    site.add("a", {"unreachable": True, "msg": "no route to host"})
    site.add("b")
    site.add("c")
    site.limit = ["a", "b"]
    assert site.judge()["failed"]
    assert site.outcomes() == {"a": "unreachable", "b": "ready", "c": "not_asked"}
    site.limit = ["b"]
    assert not site.judge().get("failed")
    assert site.outcomes() == {"a": "not_asked", "b": "ready", "c": "not_asked"}


def test_a_host_whose_observation_makes_no_sense_is_unknown_and_the_others_are_judged(site: Site) -> None:
    site.add("a")["observation"] = {"schema": 1, "os": "gone", "gpus": {"x": None}, "driver": [[]], "environments": 7}
    site.add("b")["observation"]["schema"] = 2
    site.add("c")
    assert site.judge()["failed"]
    found = site.outcomes()
    assert found.pop("c") == "ready"
    assert set(found.values()) <= {"unknown", "not_ready"}


def test_what_was_handed_on_as_one_text_is_judged_as_the_rest_is(site: Site) -> None:
    planned = healthy.state()["planned"]
    site.add("a", {"changed": False, "compact": json.dumps({key: planned[key] for key in ("observation", "plan")})})
    assert not site.judge().get("failed")
    assert site.outcomes() == {"a": "ready"}


@pytest.mark.parametrize("check_mode", [True, False])
def test_reports_are_their_owners_alone_and_written_in_check_mode_too(site: Site, check_mode: bool) -> None:
    site.add("a")
    before = os.umask(0)
    try:
        result = site.judge(check_mode)
    finally:
        os.umask(before)
    assert set(result["reports"]) == {"report.json", "report.txt", "index.html", "junit.xml", "gpufleet.prom"}
    paths = [site.kept, *site.kept.rglob("*")]
    assert len([path for path in paths if path.parent == site.kept / "history"]) == 1
    modes = {path.relative_to(site.folder): stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {
        path: mode for path, mode in modes.items() if mode != (0o700 if (site.folder / path).is_dir() else 0o600)
    } == {}


def test_reports_go_where_the_inventory_says_and_only_those_that_are_wanted(site: Site) -> None:
    site.add("a")
    result = site.judge(gpu_compliance_directory="out/reports", gpu_compliance_formats=["junit"])
    folder = site.folder / "out/reports"
    assert {path.name for path in folder.iterdir()} == {".lock", "report.json", "report.txt", "junit.xml"}
    assert result["reports"]["junit.xml"] == str(folder / "junit.xml")
    assert not (site.kept / "report").exists()


@pytest.mark.usefixtures("callback")
def test_where_reports_cannot_be_written_the_verdict_is_shown_and_the_run_fails(site: Site) -> None:
    site.add("a")
    (site.folder / "file").touch()
    result = site.judge(gpu_compliance_directory="file")
    assert result["failed"]
    assert f"{site.folder}/file cannot be written on the controller" in result["msg"]
    assert result["reports"] == {}
    assert "a is train-ready" in "".join(site.shown)  # the callback has no file to print
    assert list((site.kept / "history").glob("*.json")), "the verdicts are kept all the same"


@pytest.mark.usefixtures("callback")
def test_the_callback_prints_the_table_where_it_is_enabled(site: Site) -> None:
    site.add("a")
    result = site.judge()
    assert site.shown == []
    assert "a is train-ready" in Path(result["reports"]["report.txt"]).read_text(encoding="utf-8")
