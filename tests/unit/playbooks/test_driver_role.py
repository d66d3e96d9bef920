"""The driver's role on a stand-in host: what it asks of the host, in which order, and when it leaves the driver alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import ANSIBLE, copy_collection

# Every task that would touch a machine is played by this: it notes what is asked and changes the host's description accordingly.
_STAND_IN = """#!/usr/bin/python
# WANT_JSON
import json, os, sys
home = os.path.dirname(sys.executable)
with open(os.path.join(home, "host.json")) as file:
    host = json.load(file)
with open(sys.argv[1]) as file:
    given = json.load(file)
driver, said = host["observation"]["driver"], {name!r}
answer = {{"changed": said not in ("gpu_info", "wait_for"), "rc": 0, "stdout": "", "stdout_lines": [], "stderr": "", "delta": "0:01"}}

def load(version, flavor):
    if host.get("broken") == version:
        version = flavor = None
    driver.update(loaded_version=version, loaded_flavor=flavor)
    driver["libcuda"] = dict(result=0, error=None, gpus=1) if version else None

if said == "gpu_info":
    answer["observation"] = host["observation"]
    if host.get("arrives"):
        driver["processes"] = host["arrives"]
elif said == "driver_packages":
    said += " " + given["state"] + (" %s" % given["generation"] if given.get("generation") else "")
    if given["state"] in host.get("fails", {{}}):
        answer.update(failed=True, msg=host["fails"][given["state"]])
    elif given["state"] != "staged":
        driver.update(host["then"])
elif said == "command":
    argv = given["argv"]
    said = " ".join(argv)
    if given.get("removes", "").startswith("/etc/") and given["removes"] not in host.get("files", []):
        said, answer["delta"] = "nothing", None
    if argv[0] in host.get("missing", ["docker", "podman"]):
        answer.update(rc=2, msg="No such file or directory: " + argv[0])
    elif argv[0] == "docker":
        answer["stdout_lines"] = host.get("containers", [])
    if argv[0] == "drain" and host.get("drain fails"):
        answer.update(rc=1, stderr="node is needed")
    elif argv[0] == "drain":
        driver["processes"] = []
    elif argv[:2] == ["modprobe", "--remove"] and argv[2] == "nvidia" and not driver["processes"]:
        load(None, None)
    elif argv == ["modprobe", "nvidia"] and not driver["loaded_version"]:
        load(driver["userspace_version"], driver["flavor"])
        answer["stderr"] = "" if driver["loaded_version"] else "could not insert nvidia: Key was rejected by service"
    if answer["rc"] and "failed_when" not in given:
        answer["failed"] = answer["rc"] != 0
elif said == "reboot":
    host["observation"]["os"]["boot_id"] += "+"
    load(driver["userspace_version"], driver["flavor"])
elif said == "systemd_service":
    said = "%s %s%s" % (given.get("state"), given["name"], " enabled" if given.get("enabled") else "")
if said != "nothing":
    with open(os.path.join(home, "asked.log"), "a") as log:
        log.write(said + "\\n")
with open(os.path.join(home, "host.json"), "w") as file:
    json.dump(host, file)
print(json.dumps(answer))
"""
_PLAYED = ("command", "reboot", "systemd_service", "wait_for")
_HARMLESS = {"copy", "debug", "fail", "file", "include_tasks", "set_fact", "slurp"}
"""Modules that are left as they are: their files lie in the host's own folder."""

_DEFAULTS = {
    "nvidia_driver_mok_password": "", "nvidia_driver_way_back_required": True, "nvidia_driver_reboot_notice": 60,
    "nvidia_driver_drain_command": [], "nvidia_driver_undrain_command": [], "nvidia_driver_keep": 3,
}  # fmt: skip
STAGE = {"id": "driver.stage", "disruptive": False, "data": {}}
PACKAGES = {"id": "driver.packages", "disruptive": True, "data": {}}
LOAD = {"id": "driver.load", "disruptive": True, "data": {"modules": ["nvidia", "nvidia_uvm"]}}
REBOOT = {"id": "driver.reboot", "disruptive": True, "data": {}}
UPGRADE = [STAGE, PACKAGES, LOAD]
NEW = {"userspace_version": "595.71.05", "flavor": "open"}
COMPUTES = {"pid": 4711, "command": "python3", "user": "alice", "kind": "compute", "container": None}
DESKTOP = {"pid": 900, "command": "Xorg", "user": "root", "kind": "graphics", "container": None}


class Machine:
    """One host, described in a file that the stand-ins read and write."""

    def __init__(self, folder: Path, collections: Path) -> None:
        self.folder, self.collections = folder, collections
        (folder / "python").symlink_to(shutil.which("python3", path=str(ANSIBLE.parent)) or "")
        self.host: dict[str, Any] = {
            "then": NEW,
            "observation": {
                "schema": 1,
                "os": {"id": "debian", "boot_id": "first", "sessions": [], "inhibitors": [], "disk_passphrase": False},
                "gpus": [{"pci_address": "0000:01:00.0", "pci_device_id": "2f04", "name": "RTX 5070", "sm": "sm_120"}],
                "driver": {
                    "userspace_version": "580.95.05", "flavor": "open", "loaded_version": "580.95.05", "loaded_flavor": "open",
                    "nouveau_loaded": False, "processes": [], "journal": {"schema": 1, "generation": 1, "holds": ["libcuda1"]},
                    "persistence": {"unit": "nvidia-persistenced.service", "present": True, "enabled": True, "active": True},
                    "device_nodes": {"/dev/nvidia-uvm": True}, "libcuda": None,
                },
            },
        }  # fmt: skip
        self.driver = self.host["observation"]["driver"]
        self.os = self.host["observation"]["os"]
        self.inventory = {"ansible_connection": "gpufleet.workstation.breakable", "ansible_host": str(folder)}

    def apply(self, actions: list[dict[str, Any]], **variables: Any) -> str:
        """Hand the role a plan with these actions; return all that Ansible printed."""
        return self.play(variables, nvidia_driver_plan={"driver": {"branch": 595, "actions": actions}})

    def play(self, variables: dict[str, Any], entry: str = "main", **given: Any) -> str:
        (self.folder / "host.json").write_text(json.dumps(self.host), encoding="utf-8")
        role = {"name": "gpufleet.workstation.nvidia_driver", "tasks_from": entry}
        tasks: list[dict[str, Any]] = [
            {"ansible.builtin.include_role": role, "vars": given},
            {"ansible.builtin.debug": {"var": "nvidia_driver_pending"}},
        ]
        inventory = {
            **self.inventory,
            "ansible_python_interpreter": str(self.folder / "python"),
            "__nvidia_driver_state_folder": str(self.folder / "state"),
            **_DEFAULTS,
            **variables,
        }
        (self.folder / "play.yml").write_text(
            json.dumps([{"hosts": "ws", "gather_facts": False, "tasks": tasks}]), encoding="utf-8"
        )
        (self.folder / "inventory.json").write_text(json.dumps({"all": {"hosts": {"ws": {}}}}), encoding="utf-8")
        (self.folder / "variables.json").write_text(json.dumps(inventory), encoding="utf-8")
        done = subprocess.run(
            [str(ANSIBLE), "-i", "inventory.json", "-e", "@variables.json", "play.yml"],
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(self.collections / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
                "ANSIBLE_HOME": str(self.folder / "ansible"),
                "ANSIBLE_NOCOLOR": "1",
            },
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        self.status = done.returncode
        self.host = json.loads((self.folder / "host.json").read_text(encoding="utf-8"))
        return " ".join((done.stdout + done.stderr).replace('\\"', '"').split())

    @property
    def asked(self) -> list[str]:
        """What the host was asked, but for being looked at."""
        log = self.folder / "asked.log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [line for line in lines if line != "gpu_info"]

    @property
    def loaded(self) -> str | None:
        return self.host["observation"]["driver"]["loaded_version"]

    @property
    def journal(self) -> dict[str, Any]:
        return json.loads((self.folder / "state/driver.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the collection in which the role's tasks are real and everything that they execute is played."""
    base = tmp_path_factory.mktemp("collections")
    home = copy_collection(base)
    for name in ("gpu_info", "driver_packages"):
        (home / f"plugins/modules/{name}.py").write_text(_STAND_IN.format(name=name), encoding="utf-8")
    for name in _PLAYED:
        (home / f"plugins/modules/played_{name}.py").write_text(_STAND_IN.format(name=name), encoding="utf-8")
    for path in (home / "roles/nvidia_driver/tasks").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        used = set(re.findall(r"^\s+ansible\.builtin\.(\w+):", text, re.MULTILINE))
        assert used <= {*_PLAYED, *_HARMLESS}, f"{path.name} would touch this machine: {used}"
        for name in _PLAYED:
            text = text.replace(f"ansible.builtin.{name}:", f"gpufleet.workstation.played_{name}:")
        path.write_text(text, encoding="utf-8")
    return base


@pytest.fixture
def machine(tmp_path: Path, role: Path) -> Machine:
    return Machine(tmp_path, role)


def test_live_upgrade_stages_first_then_replaces_and_loads_in_one_window(machine):
    said = machine.apply(
        UPGRADE, nvidia_driver_drain_command=["drain", "ws"], nvidia_driver_undrain_command=["resume", "ws"]
    )
    assert machine.status == 0, said
    assert machine.asked == [
        "driver_packages staged",
        "drain ws",
        "driver_packages installed",
        "stopped nvidia-persistenced.service",
        *(
            f"modprobe --remove {name}"
            for name in ("nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia_peermem", "nvidia")
        ),
        "modprobe nvidia",
        "modprobe nvidia_uvm",
        "started nvidia-persistenced.service enabled",
        "docker ps --format {{ .Names }}",
        "podman ps --format {{ .Names }}",
        "resume ws",
    ]
    assert machine.loaded == "595.71.05"
    assert machine.journal["gpus"] == [{"pci_address": "0000:01:00.0", "pci_device_id": "2f04", "name": "RTX 5070"}]
    assert machine.journal["holds"] == ["libcuda1"]


def test_host_that_is_staged_already_is_not_touched(machine):
    said = machine.apply([])
    assert machine.status == 0, said
    assert machine.asked == []


def test_busy_host_is_staged_and_nothing_is_replaced(machine):
    machine.apply([STAGE])
    assert machine.status == 0
    assert machine.asked == ["driver_packages staged"]


def test_host_that_came_into_use_since_the_plan_waits_and_names_who_computes(machine):
    machine.driver["processes"] = [
        COMPUTES,
        {**COMPUTES, "pid": 12, "command": "train", "container": "0123456789ab"},
        {**COMPUTES, "pid": 1, "command": "nvidia-persiste", "kind": "daemon"},
    ]
    said = machine.apply(UPGRADE, nvidia_driver_undrain_command=["resume", "ws"])
    assert machine.status == 0, said
    assert machine.asked == ["driver_packages staged", "resume ws"]
    assert (
        "the GPU is busy: python3 (process 4711 of alice), train (process 12 of alice in the container 0123456789ab)"
        in said
    )
    assert "nvidia-persiste" not in said
    assert machine.loaded == "580.95.05"


def test_host_whose_users_cannot_be_seen_any_more_waits(machine):
    machine.driver["processes"] = None
    said = machine.apply(UPGRADE)
    assert machine.status == 0, said
    assert machine.asked == ["driver_packages staged"]
    assert "gpu_info could not see who uses the GPUs" in said
    assert machine.loaded == "580.95.05"


def test_drain_ends_what_computes_so_that_the_change_goes_on(machine):
    machine.driver["processes"] = [COMPUTES]
    machine.apply(UPGRADE, nvidia_driver_drain_command=["drain", "ws"])
    assert machine.status == 0
    assert machine.loaded == "595.71.05"


def test_drain_that_fails_leaves_the_host_waiting_and_gives_it_back(machine):
    machine.host["drain fails"] = True
    said = machine.apply(
        UPGRADE, nvidia_driver_drain_command=["drain", "ws"], nvidia_driver_undrain_command=["resume", "ws"]
    )
    assert machine.status == 0, said
    assert machine.asked == ["driver_packages staged", "drain ws", "resume ws"]
    assert "the drain command failed with 1: node is needed" in said


def test_drain_command_that_does_not_exist_is_a_drain_that_fails(machine):
    machine.host["missing"] = ["drain"]
    said = machine.apply(UPGRADE, nvidia_driver_drain_command=["drain", "ws"])
    assert machine.status == 0, said
    assert "driver_packages installed" not in machine.asked
    assert "No such file or directory: drain" in said


def test_failure_in_the_window_fails_the_host_and_gives_it_back(machine):
    machine.host["fails"] = {"installed": "kernel 6.12: error: too few arguments"}
    said = machine.apply(UPGRADE, nvidia_driver_undrain_command=["resume", "ws"])
    assert machine.status == 2
    assert machine.asked[-2:] == ["driver_packages installed", "resume ws"]
    assert "too few arguments" in said


def test_desktop_session_waits_for_a_permitted_reboot(machine):
    machine.driver["processes"] = [DESKTOP]
    said = machine.apply(UPGRADE)
    assert "the GPU is busy: Xorg (process 900 of root)" in said
    assert "driver_packages installed" not in machine.asked


def test_permitted_reboot_replaces_a_driver_that_a_desktop_session_holds(machine):
    machine.driver["processes"] = [DESKTOP]
    said = machine.apply([STAGE, PACKAGES, REBOOT], nvidia_driver_reboot_allowed=True)
    assert machine.status == 0, said
    assert "reboot" in machine.asked
    assert not [line for line in machine.asked if line.startswith("modprobe")]
    assert machine.loaded == "595.71.05"
    assert not (machine.folder / "state/driver-reboot.json").exists()


def test_users_who_are_logged_in_are_warned_and_get_time(machine):
    machine.os["sessions"] = [{"user": "alice", "kind": "graphical"}]
    machine.apply([STAGE, PACKAGES, REBOOT], nvidia_driver_reboot_allowed=True, nvidia_driver_reboot_notice=30)
    warned = next(line for line in machine.asked if line.startswith("wall"))
    assert "In 30 seconds" in warned
    assert "the machine reboots" in warned
    assert (
        machine.asked.index(warned) < machine.asked.index("wait_for") < machine.asked.index("driver_packages installed")
    )


def test_computing_that_begins_during_the_notice_stops_the_window(machine):
    machine.os["sessions"] = [{"user": "alice", "kind": "terminal"}]
    machine.host["arrives"] = [COMPUTES]
    said = machine.apply(UPGRADE)
    assert "driver_packages installed" not in machine.asked
    assert "the GPU is busy: python3" in said


def test_inhibitor_holds_a_reboot_off_and_is_named(machine):
    machine.os["inhibitors"] = [{"who": "GNOME Software", "why": "installing updates"}]
    said = machine.apply([STAGE, PACKAGES, REBOOT], nvidia_driver_reboot_allowed=True)
    assert machine.asked == ["driver_packages staged"]
    assert "a reboot is held off by GNOME Software (installing updates)" in said


def test_driver_that_cannot_be_loaded_live_is_rebooted_into_where_that_is_permitted(machine):
    machine.driver["processes"] = [DESKTOP]
    machine.apply(UPGRADE, nvidia_driver_reboot_allowed=True)
    assert machine.status == 0
    assert machine.asked.index("modprobe nvidia") < machine.asked.index("reboot")
    assert machine.loaded == "595.71.05"


def test_local_connection_installs_and_leaves_the_reboot_to_the_person(machine):
    machine.inventory["ansible_connection"] = "local"
    said = machine.apply([STAGE, PACKAGES, REBOOT], nvidia_driver_reboot_allowed=True)
    assert machine.status == 0, said
    assert "reboot" not in machine.asked
    assert "Ansible runs on this very machine and cannot reboot it" in said
    assert "driver 595.71.05 (open) is installed, 580.95.05 (open) is loaded" in said
    assert "Reboot ws, then run again." in said


def test_host_is_not_rebooted_twice_for_a_driver_that_does_not_come_up(machine):
    machine.host["broken"] = "595.71.05"
    first = machine.apply([STAGE, PACKAGES, REBOOT], nvidia_driver_reboot_allowed=True)
    assert machine.status == 2
    assert "driver 595.71.05 (open) is installed, none is loaded" in first
    again = machine.apply([REBOOT], nvidia_driver_reboot_allowed=True)
    assert machine.status == 2
    assert machine.asked.count("reboot") == 1
    assert "It is not rebooted again." in again
    assert "driver-reboot.json to permit another reboot" in again


def test_module_that_the_kernel_refuses_is_quoted_with_what_is_installed_and_loaded(machine):
    machine.driver.update(loaded_version=None, loaded_flavor=None)
    machine.host["broken"] = "595.71.05"
    said = machine.apply([PACKAGES, {**LOAD, "disruptive": False}])
    assert "driver 595.71.05 (open) is installed, none is loaded" in said
    assert "Key was rejected by service" in said
    assert machine.loaded is None


def test_disk_that_asks_for_a_passphrase_leaves_the_reboot_to_a_person(machine):
    machine.os["disk_passphrase"] = True
    said = machine.apply([PACKAGES, REBOOT], nvidia_driver_reboot_allowed=True)
    assert machine.status == 0, said
    assert "reboot" not in machine.asked
    assert "its disk asks for a passphrase, which somebody has to type at the console" in said


def test_fresh_host_is_neither_drained_nor_warned(machine):
    machine.driver.update(userspace_version=None, flavor=None, loaded_version=None, loaded_flavor=None)
    machine.os["sessions"] = [{"user": "alice", "kind": "graphical"}]
    machine.apply(
        [STAGE, {**PACKAGES, "disruptive": False}, {**LOAD, "disruptive": False}], nvidia_driver_drain_command=["drain"]
    )
    assert machine.status == 0
    assert machine.loaded == "595.71.05"
    assert not {"drain", "wait_for"} & set(machine.asked)


def test_plan_without_a_start_installs_and_leaves_what_is_loaded_alone(machine):
    machine.driver.update(userspace_version=None, flavor=None, loaded_version=None, nouveau_loaded=True)
    said = machine.apply([STAGE, {**PACKAGES, "disruptive": False}], nvidia_driver_reboot_allowed=True)
    assert machine.status == 0, said
    assert machine.asked == [
        "driver_packages staged", "driver_packages installed", "None nvidia-persistenced.service enabled",
    ]  # fmt: skip


def test_missing_device_nodes_are_made_without_touching_the_driver(machine):
    machine.driver["device_nodes"]["/dev/nvidia-uvm"] = False
    machine.apply([{"id": "driver.nodes", "disruptive": False, "data": {}}])
    assert machine.status == 0
    assert machine.asked == [
        "nvidia-modprobe --unified-memory --create-nvidia-device-file=0", "started nvidia-persistenced.service enabled",
    ]  # fmt: skip


def test_missing_device_nodes_are_made_without_nvidia_modprobe(machine):
    machine.driver["device_nodes"]["/dev/nvidia-uvm"] = False
    machine.host["missing"] = ["nvidia-modprobe"]
    machine.apply([{"id": "driver.nodes", "disruptive": False, "data": {}}])
    assert machine.status == 0
    assert machine.asked[-3:] == [
        "modprobe nvidia_uvm",
        "ub-device-create",
        "started nvidia-persistenced.service enabled",
    ]


def test_driver_that_is_loaded_and_does_not_answer_is_no_success(machine):
    machine.host["then"] = {}
    machine.driver["libcuda"] = {"result": 999, "error": "unknown error", "gpus": 0}
    said = machine.apply([{"id": "driver.freeze", "disruptive": False, "data": {}}])
    assert machine.status == 2
    assert "CUDA does not start: unknown error" in said


def test_containers_are_described_the_new_driver_and_named(machine):
    machine.host["files"] = ["/etc/cdi/nvidia.yaml"]
    machine.host["missing"] = ["nvidia-ctk", "podman"]
    machine.host["containers"] = ["trainer", "notebook"]
    said = machine.apply(UPGRADE)
    assert machine.status == 0, said
    assert "restart those that use a GPU: trainer, notebook." in said
    assert '"nvidia-ctk cdi generate" failed: No such file or directory: nvidia-ctk' in said


def test_generation_is_gone_back_to_in_a_window_of_its_own(machine):
    machine.driver.update(userspace_version="595.71.05", loaded_version="595.71.05")
    machine.host["then"] = {"userspace_version": "580.95.05", "flavor": "open"}
    said = machine.play({}, entry="generation", nvidia_driver_generation=1)
    assert machine.status == 0, said
    assert machine.asked[0] == "driver_packages generation 1"
    assert machine.loaded == "580.95.05"


def test_removal_unloads_the_driver_and_leaves_no_folder(machine):
    machine.host["then"] = {"userspace_version": None, "flavor": None}
    said = machine.apply([{"id": "driver.remove", "disruptive": True, "data": {}}])
    assert machine.status == 0, said
    assert machine.asked[0] == "driver_packages absent"
    assert machine.loaded is None
    assert "modprobe nvidia" not in machine.asked
    assert f"rmdir --ignore-fail-on-non-empty {machine.folder}/state" in machine.asked
