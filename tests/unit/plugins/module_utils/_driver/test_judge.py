"""Which simulated transactions may run."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import judge
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import (
    Change,
    Package,
    Request,
    Transaction,
)

K = "6.12.94+deb13-amd64"
REQUEST = Request(
    branch=580,
    flavor="open",
    source="nvidia",
    package_set="compute",
    transaction=Transaction(("nvidia-driver-cuda", "nvidia-kernel-open-dkms")),
    version="580.*",
    kernels=(K,),
)
UPGRADE = [
    Change("libcuda1", "580.105.08-1", "580.178.04-1", "nvidia"),
    Change("nvidia-kernel-open-dkms", "580.105.08-1", "580.178.04-1", "nvidia"),
    Change("dkms", None, "3.3.0-1", "nvidia"),
]


def refusals(changes, request=REQUEST, **more):
    return judge.judge(request, changes, **more).refusals


def gone(*names, version="1.0"):
    return [Change(name, version, None) for name in names]


def test_an_ordinary_upgrade_may_run_and_is_summed_up():
    verdict = judge.judge(REQUEST, [*UPGRADE, *gone("nvidia-xconfig"), Change("nvidia-modprobe", None, "580.178.04-1")])
    assert verdict.refusals == []
    assert verdict.summary == {
        "install": ["nvidia-modprobe"],
        "upgrade": ["libcuda1", "nvidia-kernel-open-dkms"],
        "downgrade": [],
        "remove": ["nvidia-xconfig"],
        "others": [{"name": "dkms", "before": None, "after": "3.3.0-1"}],
    }


@pytest.mark.parametrize(
    "name",
    [
        "gdm3",
        "sddm",
        "lightdm",
        "gnome-shell",
        "task-gnome-desktop",
        "task-desktop",
        "ubuntu-desktop",
        "ubuntu-desktop-minimal",
        "kde-plasma-desktop-x",
        "plasma-desktop",
        "xserver-xorg-core",
        "xorg-x11-server-Xorg",
        "kwin-x11",
        "gdm",
        "xfce4-session",
    ],
)
def test_nobody_loses_a_desktop(name):
    found = refusals([*UPGRADE, *gone(name)])
    if name == "kde-plasma-desktop-x":  # the like of a name is not the name
        assert found == []
    else:
        assert len(found) == 1
        assert name in found[0]
        assert "desktop" in found[0] or "log in at the screen" in found[0]


@pytest.mark.parametrize(
    "name",
    [
        f"linux-image-{K}",
        f"linux-headers-{K}",
        "linux-image-amd64",
        "linux-headers-amd64",
        "linux-generic",
        "linux-image-generic",
        "linux-generic-hwe-24.04",
        "linux-headers-generic-hwe-22.04-edge",
        "linux-image-virtual",
        "kernel",
        "kernel-core",
    ],
)
def test_what_the_machine_boots_stays(name):
    found = refusals([*UPGRADE, *gone(name, version=K)])
    assert len(found) == 1
    assert f"remove {name}" in found[0]


@pytest.mark.parametrize("name", ["linux-image-6.1.0-10-amd64", "linux-libc-dev", "linux-headers-6.1.0-10-amd64"])
def test_an_old_kernel_may_go(name):
    assert refusals([*UPGRADE, *gone(name)]) == []


def test_of_the_kernels_side_by_side_on_enterprise_linux_only_those_that_boot_stay():
    request = dataclasses.replace(REQUEST, kernels=("5.14.0-503.11.1.el9_5.x86_64",))
    assert refusals(gone("kernel-core", version="5.14.0-427.el9"), request) == []
    assert "kernel-core" in refusals(gone("kernel-core", version="0:5.14.0-503.11.1.el9_5"), request)[0]


def test_five_foreign_packages_may_go_and_six_may_not():
    names = [f"helper{number}" for number in range(6)]
    assert refusals(gone(*names[:5], "nvidia-settings", "libcuda1")) == []
    assert (
        "6 packages that are not the driver's (helper0, helper1, helper2, helper3 and 2 more)"
        in refusals(gone(*names))[0]
    )


def test_the_other_source_is_not_mixed_in():
    change = Change("nvidia-driver-cuda", None, "580.178.04-1", "distro")
    assert "nvidia-driver-cuda 580.178.04-1 would come from the distribution" in refusals([*UPGRADE, change])[0]
    request = dataclasses.replace(REQUEST, source="distro")
    assert "NVIDIA's repository" in refusals([Change("libcuda1", None, "580.95.05-1", "nvidia")], request)[0]


@pytest.mark.parametrize(
    "change",
    [
        Change("nvidia-installer-cleanup", None, "20240109+1", "distro"),
        Change("nvidia-settings", None, "510.47.03-0ubuntu1", "distro"),
        Change("dkms", None, "3.2.2-1", "distro"),
        Change("libcuda1", None, "580.178.04-1", "unknown"),
    ],
)
def test_shared_helpers_and_mirrors_without_a_label_are_no_mix(change):
    assert refusals([*UPGRADE, change]) == []


@pytest.mark.parametrize("version", ["595.71.05-1", "3:615.71.09-1.el9", "570.195.03-0ubuntu0.24.04.1"])
def test_the_planned_branch_is_not_left(version):
    found = refusals([Change("nvidia-driver-cuda", None, version, "nvidia")])
    assert len(found) == 1
    assert f"nvidia-driver-cuda {version}, and the plan is 580.*" in found[0]


def test_an_exact_version_is_exact():
    request = dataclasses.replace(REQUEST, version="580.105.08")
    assert refusals([Change("libcuda1", None, "580.105.08-1", "nvidia")], request) == []
    assert "the plan is 580.105.08" in refusals([Change("libcuda1", None, "580.178.04-1", "nvidia")], request)[0]


def test_no_part_of_another_driver_stays_beside_the_new_one():
    installed = [
        Package("libcuda1", "550.163.01-2"),
        Package("nvidia-settings", "550.120-1"),
        Package("libnvidia-ml1", "550.163.01-2"),
    ]
    changes = [Change("libcuda1:amd64", "550.163.01-2", "580.178.04-1", "nvidia")]
    found = refusals(changes, installed=installed)
    assert len(found) == 1
    assert "leave libnvidia-ml1 550.163.01-2 beside 580.*" in found[0]


def test_a_transaction_that_touches_no_driver_leaves_the_installed_one_alone():
    assert (
        refusals([Change("linux-headers-amd64", None, "6.12.94-1")], installed=[Package("libcuda1", "550.163.01-2")])
        == []
    )


def test_a_downgrade_is_asked_for():
    changes = [
        Change("libcuda1", "580.178.04-1", "580.105.08-1", "nvidia"),
        Change("nvidia-settings", "595.1-1", "580.1-1", "nvidia"),
    ]
    found = refusals(changes)
    assert len(found) == 1
    assert "downgrade libcuda1 580.178.04-1 -> 580.105.08-1" in found[0]
    assert "nvidia_driver_downgrade_allowed" in found[0]
    permitted = dataclasses.replace(REQUEST, transaction=Transaction(("libcuda1",), downgrade=True))
    assert refusals(changes, permitted) == []


def test_what_the_user_holds_is_not_changed():
    assert "libcuda1, held or locked by somebody else" in refusals(UPGRADE, users_holds={"libcuda1"})[0]
    assert refusals(UPGRADE, users_holds={"firefox-esr"}) == []


@pytest.mark.parametrize("name", ["nvidia-dkms-580-open", "nvidia-dkms-580", "nvidia-kernel-open-dkms", "akmod-nvidia"])
def test_signed_modules_are_not_replaced_by_compiled_ones(name):
    request = dataclasses.replace(REQUEST, source="distro", module_build="prebuilt")
    change = Change(name, None, "580.95.05-0ubuntu1", "distro")
    assert "compiles modules on the host" in refusals([change], request)[0]
    assert refusals([dataclasses.replace(change, before="580.95.05-0ubuntu1", after=None)], request) == []


def test_a_set_that_is_named_after_not_compiling_compiles_nothing():
    request = dataclasses.replace(REQUEST, source="distro", module_build="prebuilt")
    assert refusals([Change("nvidia-headless-no-dkms-580-open", None, "580.95.05-0ubuntu1", "distro")], request) == []


def test_compiled_modules_of_the_driver_are_no_kernel():
    gone = "linux-modules-nvidia-580-open-6.8.0-90-generic"
    request = dataclasses.replace(REQUEST, source="distro", module_build="prebuilt", kernels=("6.8.0-90-generic",))
    assert refusals([Change(gone, "6.8.0-90.91", None, "distro")], request) == []


def test_all_that_is_wrong_is_said():
    changes = [*gone("gdm3", "linux-image-amd64"), Change("libcuda1", "595.71.05-1", "615.71.09-2", "distro")]
    assert len(refusals(changes)) == 4
