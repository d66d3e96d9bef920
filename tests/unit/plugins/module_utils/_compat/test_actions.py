# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host lacks of what was decided: a fresh host everything, a converged host nothing, a drifted one what drifted."""

from __future__ import annotations

import copy
import shutil
import subprocess
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import observation_request
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

Make = Callable[..., dict[str, Any]]
RTX_5070, RTX_3090, GTX_1080 = "2f04", "2204", "1b80"
KERNEL, OLD_KERNEL = "6.12.107+deb13-amd64", "6.12.94+deb13-amd64"
FRESH_DRIVER = ["repository", "headers", "stage", "packages", "modules", "nouveau", "freeze", "load", "persistence"]


def ids(plan: dict[str, Any], step: str | None = None) -> list[str]:
    return [action["id"] for action in plan["actions"] if step in (None, action["step"])]


def driver_ids(plan: dict[str, Any]) -> list[str]:
    return [name.partition(".")[2] for name in ids(plan, "driver")]


def action(plan: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [entry for entry in plan["actions"] if entry["id"] == name]
    return found


def waiting(plan: dict[str, Any]) -> list[str]:
    return [entry["what"] for entry in plan["pending"]]


def test_a_fresh_host_gets_everything_in_order(full: Make) -> None:
    plan = resolve(full(RTX_5070))
    assert ids(plan) == [
        *(f"driver.{name}" for name in FRESH_DRIVER),
        "torch.build:base",
        "torch.switch:base",
        "runtime.file:/etc/profile.d/gpufleet.sh",
        "runtime.file:/etc/environment.d/50-gpufleet.conf",
        "runtime.file:/etc/systemd/system.conf.d/50-gpufleet.conf",
        "runtime.file:/opt/gpufleet/envs/base/runtime.env",
        "runtime.block:/etc/environment",
        "proof.run:base",
    ]
    assert plan["pending"] == []
    changes = plan["driver"]["actions"] + plan["environments"][0]["actions"] + plan["runtime"]["actions"]
    assert changes == plan["actions"][:-1]
    assert not any(entry["disruptive"] for entry in plan["actions"])
    for entry in plan["actions"]:
        assert set(entry) == {"id", "step", "what", "why", "disruptive", "data"}
        assert entry["what"]
        assert entry["why"]


def test_one_environment_alone_touches_nothing_that_others_share(full: Make, driven: Make) -> None:
    desired = {"environments": [{"name": "vision"}], "environments_alone": True, "steps": ["torch", "runtime", "proof"]}
    plan = resolve(full(RTX_5070, **driven("570.211.01")), desired)
    assert ids(plan) == [
        "torch.build:vision",
        "torch.switch:vision",
        "runtime.file:/opt/gpufleet/envs/vision/runtime.env",
        "proof.run:vision",
    ]


@pytest.mark.parametrize(
    ("devices", "system", "desired"),
    [
        ([RTX_5070], "debian13", {}),
        ([RTX_5070], "debian12", {}),
        ([GTX_1080], "debian12", {}),
        ([RTX_3090, RTX_5070], "debian13", {"driver": {"package_set": "desktop"}}),
        ([RTX_5070], "debian13", {"driver": {"branch": "595"}}),
        ([RTX_5070], "debian13", {"driver": {"branch": "615"}}),
        ([RTX_3090], "debian13", {"driver": {"source": "distro"}}),
        (
            [RTX_3090],
            "debian13",
            {"environments": [{"name": "a"}, {"name": "b", "torch": "2.8.0", "group": "ml", "owner": "ann"}]},
        ),
        ([RTX_3090], "debian13", {"runtime": {"variables": {"OMP_NUM_THREADS": 8, "TOKENIZERS_PARALLELISM": "0"}}}),
        ([RTX_3090], "debian13", {"runtime": {"state": "absent"}}),
        ([RTX_3090], "debian13", {"driver": {"repository_key": "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n"}}),
    ],
)
def test_a_host_on_which_the_plan_was_carried_out_needs_nothing(
    full: Make, carry_out: Make, devices: list[str], system: str, desired: dict[str, Any]
) -> None:
    observation = full(*devices, system=system)
    plan = resolve(observation, desired)
    assert plan["feasible"], plan["refusals"]
    assert plan["actions"]
    branch = plan["driver"]["branch"]
    seen = carry_out(observation, plan, version="550.163.01" if branch == 550 else f"{branch}.142.03")
    again = resolve(seen, desired)
    assert (again["actions"], again["pending"], again["refusals"]) == ([], [], [])


@pytest.mark.parametrize("first", ["550.163.01", "570.211.01"])
def test_an_upgrade_converges_too(full: Make, driven: Make, carry_out: Make, first: str) -> None:
    observation = full(RTX_3090, **driven(first, "proprietary"))
    desired = {"driver": {"branch": "595", "flavor": "open", "reboot_allowed": True}}
    plan = resolve(observation, desired)
    assert driver_ids(plan) == [name for name in FRESH_DRIVER if name != "headers"]
    assert action(plan, "driver.packages")["data"]["remove"] == ["nvidia-kernel-dkms"]
    again = resolve(carry_out(observation, plan, "595.84"), desired)
    assert (again["actions"], again["pending"], again["refusals"]) == ([], [], [])


# ---- driver -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def converged(full: Make, carry_out: Make) -> dict[str, Any]:
    """A Debian 13 host with an RTX 5070 on which the default plan was carried out."""
    observation = full(RTX_5070)
    return carry_out(observation, resolve(observation))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pins": []}, ["freeze"]),
        ({"interrupted": ["bash is half-configured"]}, ["repair"]),
        ({"device_nodes": {"/dev/nvidia-uvm": False}}, ["nodes"]),
        ({"nouveau_in_initramfs": {KERNEL: True, OLD_KERNEL: None}}, ["nouveau"]),
        ({"modules_by_kernel": {KERNEL: None}}, ["modules"]),
        ({"modules_by_kernel": {KERNEL: {"version": "580.65.06", "flavor": "open"}}}, ["modules"]),
        ({"modules_by_kernel": {KERNEL: {"version": "580.178.04", "flavor": "proprietary"}}}, ["modules"]),
        ({"modules_by_kernel": {}}, []),
        ({"loaded_version": None}, ["load"]),
        (
            {"persistence": {"unit": "nvidia-persistenced.service", "present": True, "enabled": False, "active": True}},
            ["persistence"],
        ),
        (
            {"persistence": {"unit": "nvidia-persistenced.service", "present": True, "enabled": True, "active": False}},
            ["persistence"],
        ),
        ({"loaded_version": "580.105.08", "mismatch": True}, ["load"]),
    ],
)
def test_what_drifted_of_a_driver_is_an_action(
    converged: dict[str, Any], change: dict[str, Any], expected: list[str]
) -> None:
    converged["driver"].update(change)
    plan = resolve(converged)
    assert driver_ids(plan) == expected
    assert plan["pending"] == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/apt/sources.list.d/gpufleet-nvidia.sources", "driver.repository"),
        ("/etc/apt/keyrings/gpufleet-nvidia.asc", "driver.repository"),
        ("/etc/modprobe.d/gpufleet-nouveau.conf", "driver.nouveau"),
        ("/etc/profile.d/gpufleet.sh", "runtime.file:/etc/profile.d/gpufleet.sh"),
        ("/etc/environment.d/50-gpufleet.conf", "runtime.file:/etc/environment.d/50-gpufleet.conf"),
        ("/etc/systemd/system.conf.d/50-gpufleet.conf", "runtime.file:/etc/systemd/system.conf.d/50-gpufleet.conf"),
        ("/opt/gpufleet/envs/base/runtime.env", "runtime.file:/opt/gpufleet/envs/base/runtime.env"),
        ("/usr/local/bin/gpu-env", "torch.launcher"),
        ("/opt/gpufleet/envs/base/bin/python", "torch.launcher"),
    ],
)
@pytest.mark.parametrize(
    ("drift", "why"),
    [
        (None, "it is not there"),
        ({"sha256": "0" * 64}, "its content differs"),
        ({"mode": "0600"}, "its mode is 0600"),
        ({"owner": "mallory"}, "its owner is mallory"),
        ({"type": "link"}, "a link is in its place"),
    ],
)
def test_what_drifted_of_a_file_is_an_action(
    converged: dict[str, Any], path: str, expected: str, drift: dict[str, Any] | None, why: str
) -> None:
    assert path in observation_request({})["files"]
    converged["files"][path] = None if drift is None else {**converged["files"][path], **drift}
    plan = resolve(converged)
    assert ids(plan) == [expected] + ["proof.run:base"] * path.endswith("/runtime.env")
    assert why in plan["actions"][0]["why"] or expected == "torch.launcher"


def test_packages_that_are_half_installed_are_repaired(converged: dict[str, Any]) -> None:
    next(row for row in converged["driver"]["packages"] if row["name"] == "nvidia-kernel-open-dkms")["state"] = (
        "half-configured"
    )
    plan = resolve(converged)
    assert driver_ids(plan) == ["repair", "stage", "packages", "modules", "freeze", "load", "persistence"]
    assert action(plan, "driver.repair")["data"] == {"what": ["nvidia-kernel-open-dkms is half-configured"]}
    assert action(plan, "driver.packages")["why"] == "nvidia-kernel-open-dkms is not completely installed"


def test_a_package_set_that_was_asked_for_is_completed(converged: dict[str, Any]) -> None:
    plan = resolve(converged, {"driver": {"package_set": "desktop"}})
    assert action(plan, "driver.packages")["why"] == "nvidia-open of the desktop set is missing"
    assert resolve(converged, {"driver": {"package_set": "compute"}})["actions"] == []
    converged["os"]["graphical"] = True
    assert resolve(converged)["actions"] == []


def test_all_packages_that_carry_the_drivers_version_move_together(full: Make, driven: Make, package: Make) -> None:
    driver = driven("570.211.01")
    driver["packages"] += [
        package("firmware-nvidia-gsp", "570.211.01-1", "nvidia"),
        package("nvidia-modprobe", "570.133.07-1", "distro"),
        package("nvidia-driver-pinning-570", "570-1", "nvidia"),
        package("nvidia-open-570", "570.211.01-1", "nvidia"),
    ]
    plan = resolve(full(RTX_3090, **driver), {"driver": {"branch": "595"}})
    data = action(plan, "driver.packages")["data"]
    assert data["packages"] == [
        "nvidia-driver-cuda",
        "nvidia-kernel-open-dkms",
        "libcuda1",
        "nvidia-persistenced",
        "firmware-nvidia-gsp",
    ]
    assert data["version"] == "595.*"
    assert data["remove"] == ["nvidia-open-570"]
    assert action(plan, "driver.stage")["data"] == {**data, "kernels": [KERNEL, OLD_KERNEL], "build": "dkms"}
    assert plan["driver"]["pin"]["version"] == "595.*"


def test_packages_that_a_user_holds_are_refused_with_the_command(full: Make, driven: Make) -> None:
    driver = driven("550.163.01")
    driver["packages"][0]["held"] = True
    plan = resolve(full(RTX_5070, **driver))
    assert [row["code"] for row in plan["refusals"]] == ["driver_held"]
    assert "apt-mark unhold libcuda1" in plan["refusals"][0]["remedy"]
    driver["journal"] = {"holds": ["libcuda1"], "gpus": []}
    assert resolve(full(RTX_5070, **driver))["feasible"]


@pytest.mark.parametrize(("priority", "refused"), [(1000, False), (1001, True)])
def test_a_pin_of_somebody_else_for_another_branch_is_said_and_refused_where_it_outranks_ours(
    full: Make, priority: int, refused: bool
) -> None:
    pin = {
        "file": "/etc/apt/preferences.d/mine",
        "packages": "nvidia-*",
        "version": "595.*",
        "priority": priority,
        "from_package": None,
    }
    plan = resolve(full(RTX_5070, pins=[pin]))
    words = "/etc/apt/preferences.d/mine pins nvidia-* to 595.*"
    assert plan["feasible"] is not refused
    assert any(words in text for text in (row["reason"] for row in plan["refusals"])) is refused
    assert any(words in warning for warning in plan["warnings"]) is not refused


@pytest.mark.parametrize("branch", ["580", "615"])
def test_every_branch_is_pinned_by_our_own_file_above_nvidias_pinning_packages(full: Make, branch: str) -> None:
    pin = resolve(full(RTX_5070), {"driver": {"branch": branch}})["driver"]["pin"]
    assert (pin["kind"], pin["package"], pin["version"], pin["priority"]) == ("preferences", None, f"{branch}.*", 1001)
    assert pin["packages"].startswith("nvidia-* ")


@pytest.mark.parametrize(
    ("kernels", "packages"),
    [
        (
            [("6.12.107+deb13-amd64", True, False), ("6.12.94+deb13-amd64", False, True)],
            ["linux-headers-6.12.107+deb13-amd64", "linux-headers-amd64", "dkms"],
        ),
        (
            [("6.1.0-28-cloud-amd64", True, False)],
            ["linux-headers-6.1.0-28-cloud-amd64", "linux-headers-cloud-amd64", "dkms"],
        ),
        ([("6.9.1-custom", True, False)], ["linux-headers-6.9.1-custom", "dkms"]),
        ([("6.12.107+deb13-amd64", True, True)], ["dkms"]),
        ([], ["linux-headers-amd64", "dkms"]),
    ],
)
def test_headers_are_installed_for_kernels_that_have_none(
    full: Make, kernels: list[tuple[str, bool, bool]], packages: list[str]
) -> None:
    observation = full(RTX_5070)
    observation["os"]["kernels"] = [
        {"release": release, "running": running, "default": running, "headers": headers}
        for release, running, headers in kernels
    ]
    plan = resolve(observation)
    assert action(plan, "driver.headers")["data"] == {"packages": packages}


def test_modules_are_checked_for_the_running_the_default_and_one_other_kernel(full: Make) -> None:
    observation = full(RTX_5070)
    observation["os"]["kernels"] = [
        {"release": release, "running": release == "6.4", "default": release == "6.6", "headers": True}
        for release in ("6.7", "6.6", "6.5", "6.4", "6.3")
    ]
    plan = resolve(observation)
    assert action(plan, "driver.modules")["data"] == {
        "kernels": ["6.7", "6.6", "6.4"],
        "flavor": "open",
        "branch": 580,
        "build": "dkms",
    }
    assert any("6.5 and 6.3" in warning for warning in plan["warnings"])


def test_a_kernel_without_module_is_checked_with_its_headers(converged: dict[str, Any]) -> None:
    converged["os"]["kernels"].insert(0, {"release": "6.13-amd64", "running": False, "default": True, "headers": False})
    converged["driver"]["modules_by_kernel"]["6.13-amd64"] = None
    plan = resolve(converged)
    assert driver_ids(plan) == ["headers", "modules"]
    assert action(plan, "driver.headers")["data"]["packages"] == ["linux-headers-6.13-amd64", "linux-headers-amd64"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"nouveau_loaded": True}, "nouveau drives a GPU"),
        ({"nova_core_loaded": True}, "nouveau drives a GPU"),
        (
            {"loaded_version": "570.86.16", "processes": [{"pid": 7, "command": "Xorg", "kind": "graphics"}]},
            "Xorg (7) holds the GPU",
        ),
    ],
)
def test_what_cannot_be_replaced_live_waits_for_a_permitted_reboot(
    full: Make, change: dict[str, Any], why: str
) -> None:
    observation = full(RTX_5070, **change)
    plan = resolve(observation)
    assert plan["feasible"]
    assert waiting(plan) == ["reboot"]
    assert why in plan["pending"][0]["why"]
    assert "nvidia_driver_reboot_allowed" in plan["pending"][0]["remedy"]
    assert not {"driver.load", "driver.reboot"} & set(ids(plan))
    allowed = resolve(observation, {"driver": {"reboot_allowed": True}})
    assert allowed["pending"] == []
    assert action(allowed, "driver.reboot")["disruptive"]


def test_whom_nobody_could_see_is_not_rebooted_under_but_a_drain_ends_whatever_runs(full: Make, driven: Make) -> None:
    observation = full(RTX_5070, **driven("570.211.01", processes=None))
    desired = {"driver": {"branch": "595", "reboot_allowed": True}, "steps": ["driver"]}
    plan = resolve(observation, desired)
    assert waiting(plan) == ["driver change"]
    assert plan["pending"][0]["why"] == "who uses the GPU could not be read"
    assert not any(row["disruptive"] for row in plan["actions"])
    plan = resolve(observation, {**desired, "driver": {**desired["driver"], "drains": True}})
    assert "who uses the GPU is not known" in action(plan, "driver.reboot")["why"]
    removal = {"driver": {"state": "absent"}, "steps": ["driver"]}
    observation["driver"]["journal"] = {"holds": []}
    assert (ids(resolve(observation, removal)), waiting(resolve(observation, removal))) == ([], ["driver removal"])


def test_a_desktop_is_rebooted_not_switched_under_its_user(full: Make) -> None:
    observation = full(RTX_5070)
    observation["os"]["graphical"] = True
    assert waiting(resolve(observation)) == ["reboot"]


def test_the_daemon_alone_does_not_keep_a_driver_loaded(full: Make, driven: Make) -> None:
    daemon = {"pid": 5, "command": "nvidia-persistenced", "kind": "daemon"}
    plan = resolve(full(RTX_5070, **driven("570.86.16", processes=[daemon])))
    load = action(plan, "driver.load")
    assert load["disruptive"]
    assert load["data"] == {"modules": ["nvidia", "nvidia_uvm"]}
    assert action(plan, "driver.packages")["disruptive"]


def test_a_reboot_that_waits_is_all_that_is_left_after_the_packages(full: Make, carry_out: Make) -> None:
    observation = full(RTX_5070, nouveau_loaded=True)
    seen = carry_out(observation, resolve(observation))
    plan = resolve(seen)
    assert ids(plan) == []
    assert waiting(plan) == ["reboot"]
    assert driver_ids(resolve(seen, {"driver": {"reboot_allowed": True}})) == ["reboot"]


def test_a_gpu_that_computes_keeps_its_driver_while_the_change_is_staged_and_everything_else_goes_on(
    full: Make, driven: Make, carry_out: Make
) -> None:
    training = {"pid": 42, "command": "python3 train.py", "kind": "compute"}
    observation = full(RTX_5070, **driven("570.86.16", processes=[training]))
    allowed = {"driver": {"reboot_allowed": True}}
    plan = resolve(observation, allowed)
    assert waiting(plan) == ["driver change"]
    assert plan["pending"][0]["why"] == "the GPU is busy: python3 train.py (42)"
    assert driver_ids(plan) == ["repository", "stage"]
    assert "torch.build:base" in ids(plan)
    again = resolve(carry_out(observation, plan), allowed)
    assert (driver_ids(again), waiting(again)) == ([], ["driver change"])
    seen = carry_out(observation, plan)
    seen["driver"]["processes"] = []
    assert driver_ids(resolve(seen, allowed)) == ["packages", "modules", "nouveau", "freeze", "load", "persistence"]


def test_a_gpu_that_computes_keeps_no_window_shut_where_a_drain_ends_what_computes(full: Make, driven: Make) -> None:
    training = {"pid": 42, "command": "python3 train.py", "kind": "compute"}
    plan = resolve(full(RTX_5070, **driven("570.86.16", processes=[training])), {"driver": {"drains": True}})
    assert plan["pending"] == []
    assert driver_ids(plan) == [
        "repository",
        "stage",
        "packages",
        "modules",
        "nouveau",
        "freeze",
        "load",
        "persistence",
    ]


def test_a_gpu_that_computes_does_not_wait_for_anything_on_a_converged_host(converged: dict[str, Any]) -> None:
    converged["driver"]["processes"] = [{"pid": 42, "command": "python3", "kind": "compute"}]
    plan = resolve(converged)
    assert (plan["actions"], plan["pending"]) == ([], [])


def test_a_reboot_for_something_else_is_only_said(converged: dict[str, Any]) -> None:
    converged["driver"]["reboot_required"] = True
    plan = resolve(converged)
    assert (plan["actions"], plan["pending"]) == ([], [])
    assert any("asks for a reboot" in warning for warning in plan["warnings"])


def test_secure_boot_and_held_locks_are_said_where_packages_change(full: Make, converged: dict[str, Any]) -> None:
    observation = full(RTX_5070)
    for seen in (observation, converged):
        seen["os"]["secure_boot"] = True
        del seen["os"]["machine_owner_key"]
        seen["health"]["locks"] = [{"path": "/var/lib/dpkg/lock", "holder": "apt (1)"}]
    warnings = "\n".join(resolve(observation)["warnings"])
    assert "Secure Boot" in warnings
    assert "/var/lib/dpkg/lock by apt (1)" in warnings
    assert resolve(converged)["warnings"] == []


def test_a_driver_elsewhere_that_is_not_loaded_waits_for_a_reboot(fresh: Make, driven: Make) -> None:
    driver = driven("580.105.08", loaded_version="570.86.16", mismatch=True)
    plan = resolve(fresh(RTX_3090, system="arch", driver=driver))
    assert plan["feasible"], plan["refusals"]
    assert waiting(plan) == ["reboot"]
    assert driver_ids(plan) == []


def test_removing_takes_packages_and_our_files_and_nothing_else(converged: dict[str, Any], package: Make) -> None:
    converged["driver"]["packages"].append(package("cuda-keyring", "1.1-1", "nvidia"))
    plan = resolve(converged, {"driver": {"state": "absent"}, "steps": ["driver"]})
    (remove,) = plan["actions"]
    assert remove["id"] == "driver.remove"
    assert remove["disruptive"]
    assert "cuda-keyring" not in remove["data"]["packages"]
    assert remove["data"]["packages"] == ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]
    assert remove["data"]["paths"] == [
        "/etc/apt/sources.list.d/gpufleet-nvidia.sources",
        "/etc/apt/keyrings/gpufleet-nvidia.asc",
        "/etc/apt/preferences.d/gpufleet-nvidia",
        "/etc/modprobe.d/gpufleet-nouveau.conf",
    ]


def test_removing_waits_for_whoever_computes_and_does_nothing_where_nothing_is(
    converged: dict[str, Any], full: Make
) -> None:
    converged["driver"]["processes"] = [{"pid": 42, "command": "python3", "kind": "compute"}]
    absent = {"driver": {"state": "absent"}, "steps": ["driver"]}
    assert waiting(resolve(converged, absent)) == ["driver removal"]
    plan = resolve(full(RTX_5070), absent)
    assert (plan["actions"], plan["pending"], plan["feasible"]) == ([], [], True)


# ---- environments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"current": None}, "no release serves"),
        (
            {"integrity": {"status": "damaged", "missing": 2, "changed": 0, "added": 1, "examples": ["lib/x"]}},
            "2 missing and 1 added",
        ),
        ({"integrity": {"status": "unstamped"}, "stamp": None}, "was never proven"),
        ({"interpreter_ok": False}, "has a dangling interpreter"),
        ({"torch": {"version": "2.9.1+cpu"}}, "holds torch 2.9.1+cpu"),
    ],
)
def test_a_release_that_is_not_well_is_built_anew(converged: dict[str, Any], change: dict[str, Any], why: str) -> None:
    converged["environments"][0].update(change)
    if change.get("current", "x") is None:
        converged["environments"][0]["releases"] = [{"id": "2.8.0-cu128-00000000", "stamped": True}]
    plan = resolve(converged)
    assert ids(plan) == ["torch.build:base", "torch.switch:base", "proof.run:base"]
    assert why in plan["actions"][0]["why"]


def test_another_torch_is_built_and_switched_to(converged: dict[str, Any]) -> None:
    plan = resolve(converged, {"torch": {"version": "2.10.0"}})
    assert ids(plan) == ["torch.build:base", "torch.switch:base", "proof.run:base"]
    assert plan["actions"][0]["why"] == "2.9.1+cu128 serves, 2.10.0+cu128 is wanted"
    assert plan["actions"][0]["data"] == {"environment": "base"}


def test_a_release_that_is_there_is_switched_to_without_a_build(converged: dict[str, Any]) -> None:
    (base,) = converged["environments"]
    older = {"id": "2.9.0-cu128-11111111", "stamped": True}
    base["releases"].append(older)
    base.update(
        current=older["id"],
        stamp={"spec_digest": "other", "spec": {"torch": "2.9.0+cu128"}},
        torch={"version": "2.9.0+cu128"},
    )
    plan = resolve(converged)
    assert ids(plan) == ["torch.switch:base", "proof.run:base"]
    base["releases"][0]["stamped"] = False
    assert ids(resolve(converged)) == ["torch.build:base", "torch.switch:base", "proof.run:base"]


def test_what_an_interrupted_removal_left_is_cleaned_once(converged: dict[str, Any], carry_out: Any) -> None:
    converged["environments"][0]["leftovers"] = ["2.8.0-cu128-00000000", "2.9.0-cu128-11111111"]
    plan = resolve(converged)
    assert ids(plan) == ["torch.clean:base"]
    (action,) = plan["environments"][0]["actions"]
    assert action["what"] == "remove what is left of 2.8.0-cu128-00000000 and 2.9.0-cu128-11111111"
    assert action["data"] == {"environment": "base"}
    assert resolve(carry_out(converged, plan))["actions"] == []
    built = resolve(converged, {"torch": {"version": "2.10.0"}})
    assert ids(built) == ["torch.build:base", "torch.switch:base", "torch.clean:base", "proof.run:base"]


def test_a_release_without_a_stamp_is_nothing_to_clean(converged: dict[str, Any]) -> None:
    """It may be one that is being built, or one whose stamp is damaged."""
    converged["environments"][0]["releases"].append({"id": "2.9.0-cu128-11111111", "stamped": False})
    assert resolve(converged)["actions"] == []


def test_a_new_owner_is_an_action(converged: dict[str, Any]) -> None:
    plan = resolve(converged, {"environments": [{"name": "base", "owner": "ann", "group": "ml"}]})
    assert ids(plan) == ["torch.owner:base", "proof.run:base"]
    assert "root:root" in plan["actions"][0]["why"]


def test_another_gpu_is_proven_anew(converged: dict[str, Any]) -> None:
    converged["gpus"].append({"pci_device_id": RTX_3090, "pci_address": "0000:02:00.0"})
    plan = resolve(converged)
    assert ids(plan) == ["torch.prove:base", "proof.run:base"]
    assert "was proven for sm_120, not for sm_86" in plan["actions"][0]["why"]


@pytest.mark.parametrize(
    ("disk", "count", "words"),
    [
        ({"free_mib": 7999, "free_inodes": 10**6}, 1, "7999 MiB free, building base takes 8000"),
        ({"free_mib": 15000, "free_inodes": 10**6}, 2, "15000 MiB free, building base and more takes 16000"),
        ({"free_mib": 10**6, "free_inodes": 19999}, 1, "19999 inodes free"),
    ],
)
def test_a_disk_that_is_too_small_is_refused_before_anything_changes(
    full: Make, disk: dict[str, int], count: int, words: str
) -> None:
    observation = full(RTX_5070)
    observation["health"]["disk"] = {"/opt/gpufleet/envs": disk}
    plan = resolve(observation, {"environments": [{"name": name} for name in ("base", "more")[:count]]})
    assert [row["code"] for row in plan["refusals"]] == ["disk_space"]
    assert words in plan["refusals"][0]["reason"]
    assert plan["actions"] == []


def test_a_full_disk_does_not_matter_where_nothing_is_built(converged: dict[str, Any]) -> None:
    converged["health"]["disk"] = {"/opt/gpufleet/envs": {"free_mib": 1, "free_inodes": 1}}
    assert resolve(converged)["feasible"]


def test_without_root_a_host_that_needs_changes_is_refused_and_a_converged_one_is_not(
    full: Make, converged: dict[str, Any]
) -> None:
    observation = full(RTX_5070)
    observation["os"]["uid"] = converged["os"]["uid"] = 1000
    plan = resolve(observation)
    assert [row["code"] for row in plan["refusals"]] == ["not_root"]
    assert "--become" in plan["refusals"][0]["remedy"]
    assert resolve(converged)["feasible"]


# ---- variables ----------------------------------------------------------------------------------------------------------


def test_files_set_the_variables_and_leave_what_a_process_has() -> None:
    variables = {"OMP_NUM_THREADS": 8, "TOKENIZERS_PARALLELISM": "false", "X_SPACED": "a b;c|d&e"}
    plan = resolve({}, {"runtime": {"variables": variables}})
    content = {row["path"]: row["content"] for row in plan["runtime"]["files"]}
    profile = content["/etc/profile.d/gpufleet.sh"]
    shell = shutil.which("sh")
    assert shell
    script = f'{profile}printf "%s,%s,%s" "$OMP_NUM_THREADS" "$TOKENIZERS_PARALLELISM" "$X_SPACED"'
    run = subprocess.run(
        [shell, "-euc", script], env={"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=True
    )
    assert run.stdout == "2,false,a b;c|d&e"
    assert content["/etc/systemd/system.conf.d/50-gpufleet.conf"].splitlines()[1:] == [
        "[Manager]",
        'DefaultEnvironment="OMP_NUM_THREADS=8" "TOKENIZERS_PARALLELISM=false" "X_SPACED=a b;c|d&e"',
    ]
    for path in ("/etc/environment.d/50-gpufleet.conf", "/opt/gpufleet/envs/base/runtime.env"):
        assert content[path].splitlines()[1:] == [
            "OMP_NUM_THREADS=8",
            "TOKENIZERS_PARALLELISM=false",
            "X_SPACED=a b;c|d&e",
        ]


def test_actions_carry_what_the_role_needs(full: Make) -> None:
    plan = resolve(full(RTX_5070))
    system = action(plan, "runtime.file:/etc/systemd/system.conf.d/50-gpufleet.conf")["data"]
    assert (system["state"], system["mode"], system["owner"], system["group"], system["reload"]) == (
        "present", "0644", "root", "root", True,
    )  # fmt: skip
    assert action(plan, "runtime.file:/etc/profile.d/gpufleet.sh")["data"]["reload"] is False
    block = action(plan, "runtime.block:/etc/environment")["data"]
    assert (block["state"], block["block"], block["marker"]) == (
        "present", "TOKENIZERS_PARALLELISM=false\n", "# {mark} gpufleet.workstation",
    )  # fmt: skip


def test_what_is_unwanted_is_removed_and_only_that(converged: dict[str, Any]) -> None:
    plan = resolve(converged, {"runtime": {"state": "absent"}})
    assert {entry["data"]["state"] for entry in plan["runtime"]["actions"]} == {"absent"}
    assert len(plan["runtime"]["actions"]) == 5
    assert ids(plan)[5:] == ["proof.run:base"]
    assert plan["runtime"]["files"] == []


def test_a_line_below_ours_that_wins_is_said(converged: dict[str, Any]) -> None:
    converged["runtime"]["etc_environment"]["values"] = {"TOKENIZERS_PARALLELISM": "true"}
    plan = resolve(converged)
    assert plan["actions"] == []
    assert any("sets TOKENIZERS_PARALLELISM=true below our lines" in warning for warning in plan["warnings"])


def test_an_environment_that_is_not_there_gets_no_variables_without_its_first_release(full: Make) -> None:
    plan = resolve(full(RTX_5070), {"steps": ["runtime"]})
    assert "runtime.file:/opt/gpufleet/envs/base/runtime.env" not in ids(plan)
    assert "runtime.block:/etc/environment" in ids(plan)


def test_a_host_without_systemd_gets_no_files_for_it(full: Make) -> None:
    observation = full(RTX_5070)
    observation["os"]["init"] = "init"
    assert not [name for name in ids(resolve(observation), "runtime") if "system" in name or "environment.d" in name]


# ---- what is asked of gpu_info ------------------------------------------------------------------------------------------


def test_gpu_info_is_asked_for_everything_that_is_compared(full: Make) -> None:
    desired = {
        "root": "/data/envs",
        "environments": [{"name": "a"}, {"name": "b"}],
        "runtime": {"variables": {"OMP_NUM_THREADS": 1}},
    }
    request = observation_request(desired)
    assert request["root"] == "/data/envs"
    assert request["environments"] == ["a", "b"]
    assert request["variables"] == ["OMP_NUM_THREADS"]
    assert len(request["files"]) == len(set(request["files"]))
    plan = resolve(full(RTX_5070), desired)
    written = [entry["data"][key] for entry in plan["actions"] for key in ("path", "key_path")
               if entry["data"].get(key) and not entry["id"].startswith("runtime.block")]  # fmt: skip
    assert len(written) > 6
    assert set(written) <= set(request["files"])


def test_a_request_for_a_bad_desired_state_names_the_variable() -> None:
    with pytest.raises(InvalidDesired, match="torch_env_root"):
        observation_request({"root": "relative"})


def test_planning_changes_nothing_that_it_is_given(converged: dict[str, Any]) -> None:
    desired = {"environments": [{"name": "a", "requirements": ["z", "a"]}], "driver": {"gpus_exclude": ["01:00.0"]}}
    before = copy.deepcopy((converged, desired))
    resolve(converged, desired)
    assert (converged, desired) == before
