"""The module's own part: its options, check mode, and what it returns when a change fails."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.change import Result
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import DriverError
from ansible_collections.gpufleet.workstation.plugins.modules import driver_packages

PLAN = {
    "branch": 580,
    "flavor": "open",
    "source": "nvidia",
    "package_set": "compute",
    "actions": [
        {
            "id": "driver.stage",
            "what": "fetch it",
            "data": {"packages": ["libcuda1"], "remove": [], "version": "580.*"},
        },
        {"id": "driver.packages", "what": "install it", "data": {"packages": ["libcuda1"], "version": "580.*"}},
    ],
}


class FakeFlow:
    """A flow that does or raises what the test wants."""

    error: Exception | None = None
    called: list[tuple[Any, ...]] = []  # noqa: RUF012  # one list for the test that reads it

    def __init__(self, manager, request, actions, options, run, host, result: Result) -> None:
        self.made = (manager, request, actions, options)
        self.result = result

    def _go(self, *words):
        self.called.append((*words, *self.made))
        self.result.done.append({"id": "x", "what": "y", "changed": True, "s": 0.1})
        self.result.warnings.append("mind the gap")
        if self.error:
            self.result.restored = True
            raise self.error

    def staged(self):
        self._go("staged")

    def installed(self):
        self._go("installed")

    def absent(self):
        self._go("absent")

    def generation(self, number, check):
        self._go("generation", number, check)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the module with options and returns what it prints."""
    monkeypatch.setattr(driver_packages, "Flow", FakeFlow)
    monkeypatch.setattr(FakeFlow, "called", [])
    monkeypatch.setattr(driver_packages, "Apt", lambda _run, proxy: ("apt", proxy))
    monkeypatch.setattr(driver_packages, "Dnf", lambda _run: ("dnf",))
    monkeypatch.setattr(driver_packages.packages, "manager", lambda _host, _family: "apt")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # Beside the controller's code in one process Ansible shows warnings instead of returning them.
    warned: list[str] = []
    monkeypatch.setattr(driver_packages.AnsibleModule, "warn", lambda _module, text: warned.append(text))
    hangup = signal.getsignal(signal.SIGHUP)

    def run(check=False, **options) -> dict[str, Any]:
        with patch_module_args({"_ansible_check_mode": check, **options}), pytest.raises(SystemExit):
            driver_packages.main()
        return {**json.loads(capsys.readouterr().out), "warned": warned}

    yield run
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize("state", ["staged", "installed", "absent"])
def test_each_state_is_one_call_of_the_flow(call, state):
    result = call(state=state, plan=PLAN, proxy={"http": "http://proxy"}, keep=5, time_limit=60)
    (called,) = FakeFlow.called
    assert called[0] == state
    assert called[1] == ("apt", {"http": "http://proxy"})
    assert called[2].transaction.install == ("libcuda1",)
    assert (called[4].keep, called[4].time_limit) == (5, 60.0)
    assert result["changed"] is True
    assert result["warned"] == ["mind the gap"]


def test_a_closed_connection_interrupts_nothing(call):
    call(state="staged", plan=PLAN)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_every_key_of_the_documentation_is_returned_also_by_a_failure(call, monkeypatch):
    documented = set(yaml.safe_load(driver_packages.RETURN)) - {"msg"}
    assert documented <= set(call(state="staged", plan=PLAN))
    monkeypatch.setattr(FakeFlow, "error", DriverError("It failed. Do this."))
    failed = call(state="installed", plan=PLAN)
    assert documented <= set(failed)
    assert failed["failed"] is True
    assert failed["msg"] == "It failed. Do this."
    assert failed["restored"] is True
    assert failed["changed"] is True


def test_what_the_system_refuses_is_said_without_a_traceback(call, monkeypatch):
    monkeypatch.setattr(FakeFlow, "error", OSError(30, "Read-only file system", "/run/x"))
    failed = call(state="staged", plan=PLAN)
    assert "Read-only file system" in failed["msg"]
    assert failed["done"]


def test_check_mode_says_what_would_be_done_and_does_nothing(call):
    result = call(check=True, state="installed", plan=PLAN)
    assert FakeFlow.called == []
    assert result["changed"] is True
    assert [step["id"] for step in result["done"]] == ["driver.packages"]
    assert call(check=True, state="absent", plan=PLAN)["changed"] is False
    call(check=True, state="generation", generation=2)
    assert FakeFlow.called[0][:3] == ("generation", 2, True)


def test_a_generation_needs_its_number(call):
    assert "generation" in call(state="generation")["msg"]
    assert FakeFlow.called == []


def test_passwords_are_not_returned(call):
    result = call(state="staged", plan=PLAN, proxy={"https": "http://u:s3cret@proxy"}, mok_password="hunter22hunter")  # noqa: S106  # made up
    assert "s3cret" not in json.dumps(result)
    assert "hunter22" not in json.dumps(result)


def test_only_root_changes_packages(call, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    failed = call(state="staged", plan=PLAN)
    assert "become: true" in failed["msg"]
    assert FakeFlow.called == []


def test_dnf_is_used_where_it_is_the_systems_own(call, monkeypatch):
    monkeypatch.setattr(driver_packages.packages, "manager", lambda _host, _family: "dnf")
    call(state="staged", plan=PLAN)
    assert FakeFlow.called[0][1] == ("dnf",)
    monkeypatch.setattr(driver_packages.packages, "manager", lambda _host, _family: None)
    assert "neither apt nor dnf" in call(state="staged", plan=PLAN)["msg"]


def test_the_documentation_names_every_option():
    documented = set(yaml.safe_load(driver_packages.DOCUMENTATION)["options"])
    assert documented == {
        "state",
        "plan",
        "key",
        "generation",
        "way_back_required",
        "downgrade_allowed",
        "environments_root",
        "keep",
        "proxy",
        "mok_password",
        "time_limit",
    }
