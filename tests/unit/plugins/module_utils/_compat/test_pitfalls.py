# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What broke other people's drivers, each a case that fails without the remedy. Named after what went wrong there."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

Make = Callable[..., dict[str, Any]]
RTX_3090, RTX_5070, GTX_1080, V100 = "2204", "2f04", "1b80", "1db1"
KEY = {"repository_key": "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----"}
DRIVER = {"steps": ["driver"]}


def ids(plan: dict[str, Any]) -> list[str]:
    return [action["id"].partition(".")[2] for action in plan["actions"]]


def data(plan: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [action["data"] for action in plan["actions"] if action["id"] == f"driver.{name}"]
    return found


def codes(plan: dict[str, Any]) -> list[str]:
    return [row["code"] for row in plan["refusals"]]


def said(plan: dict[str, Any]) -> str:
    return "\n".join([*plan["reasons"], *plan["warnings"]])


@pytest.fixture
def converged(full: Make, carry_out: Make) -> Callable[[str], dict[str, Any]]:
    def make(system: str) -> dict[str, Any]:
        observation = full(RTX_3090, system=system)
        return carry_out(observation, resolve(observation, {"driver": KEY, **DRIVER}))

    return make


# ---- packages and pins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["debian13", "ubuntu2404"])
def test_unattended_upgrade_moves_what_is_pinned_to_a_branch_only(converged: Make, system: str) -> None:
    seen = converged(system)
    seen["driver"]["pins"][0]["version"] = "580.*"
    plan = resolve(seen, {"driver": KEY, **DRIVER})
    assert ids(plan) == ["freeze"]
    assert "not pinned to the exact version" in plan["actions"][0]["why"]


@pytest.mark.parametrize("system", ["debian13", "ubuntu2404", "rocky9", "alma10"])
def test_holding_some_packages_is_not_enough(converged: Make, system: str) -> None:
    seen = converged(system)
    loose = seen["driver"]["packages"][-1]
    loose["held"] = False
    plan = resolve(seen, {"driver": KEY, **DRIVER})
    assert ids(plan) == ["freeze"]
    assert loose["name"] in plan["actions"][0]["why"]
    assert data(plan, "freeze") == {"version": "580.178.04"}


@pytest.mark.parametrize("system", ["debian13", "rocky9"])
def test_our_own_holds_do_not_block_our_own_upgrade_but_the_users_do(converged: Make, system: str) -> None:
    seen = converged(system)
    upgrade = {"driver": {**KEY, "branch": "595"}, **DRIVER}
    assert {"stage", "packages", "freeze"} <= set(ids(resolve(seen, upgrade)))
    seen["driver"]["journal"]["holds"] = []
    plan = resolve(seen, upgrade)
    assert codes(plan) == ["driver_held"]
    command = "apt-mark unhold" if system == "debian13" else "dnf versionlock delete"
    assert command in plan["refusals"][0]["remedy"]


def test_ubuntus_whole_set_moves_together_or_apt_says_held_broken_packages(
    full: Make, driven: Make, package: Make
) -> None:
    version = "580.173.02-0ubuntu0.24.04.1"
    names = ["libnvidia-compute-580", "libnvidia-gl-580", "nvidia-utils-580", "nvidia-dkms-580-open", "nvidia-kernel-common-580",
             "nvidia-firmware-580-580.173.02"]  # fmt: skip
    driver = driven("580.173.02", source="distro", packages=[package(name, version, "distro") for name in names])
    plan = resolve(
        full(RTX_3090, system="ubuntu2404", **driver), {"driver": {"source": "distro", "branch": "595"}, **DRIVER}
    )
    change = data(plan, "packages")
    assert {"libnvidia-compute-595", "libnvidia-gl-595", "nvidia-utils-595", "nvidia-kernel-common-595"} <= set(
        change["packages"]
    )
    assert set(change["remove"]) == set(names)


def test_firmware_that_is_named_after_the_version_stays_for_the_other_flavor(
    full: Make, driven: Make, package: Make
) -> None:
    names = ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-kernel-source-580-open", "nvidia-utils-580"]
    firmware = ["nvidia-firmware-580-580.173.02", "nvidia-firmware-580-580.159.03"]
    versions = {**dict.fromkeys([*names, firmware[0]], "580.173.02-1ubuntu1"), firmware[1]: "580.159.03-1ubuntu1"}
    driver = driven("580.173.02", packages=[package(name, version, "nvidia") for name, version in versions.items()])
    seen = full(RTX_3090, system="ubuntu2404", **driver)
    flavor = data(resolve(seen, {"driver": {**KEY, "branch": "580", "flavor": "proprietary"}, **DRIVER}), "packages")
    assert set(flavor["remove"]) == {"nvidia-dkms-580-open", "nvidia-kernel-source-580-open"}
    branch = data(resolve(seen, {"driver": {**KEY, "branch": "595"}, **DRIVER}), "packages")
    assert {*firmware, "nvidia-utils-580"} <= set(branch["remove"])


@pytest.mark.parametrize("under_way", [True, False])
def test_what_nothing_depends_on_is_installed_after_an_interrupted_change(
    full: Make, driven: Make, package: Make, under_way: bool
) -> None:
    names = ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-kernel-source-580-open"]
    journal = {"schema": 1, "before": {"under_way": True} if under_way else {}}
    packages = [package(name, "580.173.02-1ubuntu1", "nvidia") for name in names]
    driver = driven("580.173.02", packages=packages, journal=journal)
    plan = resolve(full(RTX_3090, system="ubuntu2404", **driver), {"driver": KEY, **DRIVER})
    assert ("packages" in ids(plan)) == under_way
    if under_way:
        assert {"nvidia-utils-580", "nvidia-compute-utils-580"} <= set(data(plan, "packages")["packages"])


def test_names_without_a_branch_go_where_the_way_leads_back_to_names_with_one(
    full: Make, driven: Make, package: Make
) -> None:
    both = ["nvidia-modprobe"]
    names = [
        "libnvidia-compute",
        "nvidia-dkms-open",
        "nvidia-kernel-source-open",
        "libnvidia-cfg1",
        "nvidia-firmware",
        "nvidia-persistenced",
    ]
    packages = [package(name, "595.71.05-1ubuntu1", "nvidia") for name in [*names, *both]]
    seen = full(RTX_3090, system="ubuntu2404", **driven("595.71.05", packages=packages))
    desired = {"driver": {**KEY, "branch": "580", "downgrade_allowed": True}, **DRIVER}
    change = data(resolve(seen, desired), "packages")
    assert set(change["remove"]) == set(names)
    assert {"libnvidia-cfg1-580", "nvidia-modprobe", "nvidia-compute-utils-580"} <= set(change["packages"])


def test_signed_modules_of_the_old_branch_go_with_it(full: Make, driven: Make, package: Make) -> None:
    version = "580.173.02-0ubuntu0.24.04.1"
    modules = ["linux-modules-nvidia-580-open-6.8.0-51-generic", "linux-modules-nvidia-580-open-generic"]
    old = [package("libnvidia-compute-580", version, "distro")]
    driver = driven(
        "580.173.02", source="distro", packages=[*old, *(package(name, "6.8.0-51.52", "distro") for name in modules)]
    )
    desired = {"driver": {"source": "distro", "branch": "595"}, **DRIVER}
    change = data(resolve(full(RTX_3090, system="ubuntu2404", **driver), desired), "packages")
    assert set(modules) <= set(change["remove"])
    flavor = {"driver": {"source": "distro", "branch": "580", "flavor": "proprietary"}, **DRIVER}
    change = data(resolve(full(RTX_3090, system="ubuntu2404", **driver), flavor), "packages")
    assert set(modules) <= set(change["remove"])
    same = {"driver": {"source": "distro", "branch": "580"}, **DRIVER}
    kept = resolve(full(RTX_3090, system="ubuntu2404", **driver), same)
    assert not [action for action in kept["actions"] if set(modules) & set(action["data"].get("remove", ()))]


def test_nvidia_driver_nnn_alone_selects_dkms_over_signed_modules(full: Make) -> None:
    desired = {"driver": {"source": "distro", "package_set": "desktop"}, **DRIVER}
    packages = resolve(full(RTX_3090, system="ubuntu2404"), desired)["driver"]["packages"]
    assert packages[0] == "nvidia-driver-580-open"
    assert [name for name in packages if name.startswith("linux-modules-nvidia-580-open-")] == packages[1:]
    assert not [name for name in packages if "dkms" in name]


@pytest.mark.parametrize(
    ("kernels", "last"),
    [
        (["6.8.0-51-generic"], "linux-modules-nvidia-580-open-generic"),
        (["6.17.0-40-generic", "6.8.0-51-generic"], "linux-modules-nvidia-580-open-generic-hwe-24.04"),
        (["6.8.0-1020-aws"], "linux-modules-nvidia-580-open-aws"),
    ],
)
def test_the_metapackage_of_the_other_kernel_line_brings_another_kernel(
    full: Make, kernels: list[str], last: str
) -> None:
    observation = full(RTX_3090, system="ubuntu2404")
    observation["os"]["kernels"] = [
        {"release": release, "running": place == 0, "default": place == 0, "headers": True}
        for place, release in enumerate(kernels)
    ]
    plan = resolve(observation, {"driver": {"source": "distro"}, **DRIVER})
    assert plan["driver"]["packages"][-1] == last
    assert f"{last} follows the kernel" in said(plan)


def test_a_kernel_without_signed_modules_is_served_by_dkms(full: Make) -> None:
    observation = full(RTX_3090, system="ubuntu2404")
    observation["os"]["kernels"] = [{"release": "6.9.1-custom", "running": True, "default": True, "headers": True}]
    plan = resolve(observation, {"driver": {"source": "distro"}, **DRIVER})
    assert data(plan, "modules")["build"] == "dkms"
    assert plan["driver"]["packages"] == ["nvidia-headless-580-open", "nvidia-utils-580"]


def test_names_with_a_branch_stop_at_580_in_nvidias_ubuntu_repository(full: Make, driven: Make, package: Make) -> None:
    names = ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580", "libnvidia-gl-580"]
    driver = driven("580.105.08", packages=[package(name, "580.105.08-1ubuntu1", "nvidia") for name in names])
    plan = resolve(full(RTX_3090, system="ubuntu2404", **driver), {"driver": {"branch": "595"}, **DRIVER})
    change = data(plan, "packages")
    assert change["packages"] == ["libnvidia-compute", "nvidia-dkms-open", "nvidia-persistenced", "libnvidia-gl"]
    assert sorted(change["remove"]) == sorted(names)


def test_asking_ubuntu_for_570_gives_580_so_it_is_refused(full: Make) -> None:
    plan = resolve(full(RTX_3090, system="ubuntu2404"), {"driver": {"source": "distro", "branch": "570"}, **DRIVER})
    assert codes(plan) == ["driver_source"]
    assert "has branch 580 and 595, not 570" in plan["refusals"][0]["reason"]


def test_a_default_stream_drifts_to_the_newest_branch(converged: Make) -> None:
    seen = converged("rocky9")
    seen["os"]["dnf"]["streams"]["nvidia-driver"] = "open-dkms"
    plan = resolve(seen, {"driver": KEY, **DRIVER})
    assert ids(plan) == ["freeze"]
    assert plan["actions"][0]["why"] == "module stream open-dkms is enabled, not 580-open"


def test_a_stream_is_not_a_version_so_exact_versions_are_locked_too(converged: Make) -> None:
    seen = converged("rocky9")
    for package in seen["driver"]["packages"]:
        package["held"] = False
    plan = resolve(seen, {"driver": KEY, **DRIVER})
    assert ids(plan) == ["freeze"]
    assert "not locked" in plan["actions"][0]["why"]


def test_enterprise_linux_10_has_no_streams(full: Make) -> None:
    assert resolve(full(RTX_3090, system="alma10"), {"driver": KEY})["driver"]["pin"]["kind"] == "versionlock"


def test_a_users_lock_on_another_branch_is_in_the_way_also_of_what_is_not_installed(full: Make) -> None:
    lock = {"file": "/etc/dnf/plugins/versionlock.list", "packages": "kmod-nvidia-open-dkms", "version": "3:570.211.01-1.el9",
            "pin": "kmod-nvidia-open-dkms-3:570.211.01-1.el9.*", "priority": None, "from_package": None}  # fmt: skip
    plan = resolve(full(RTX_3090, system="rocky9", pins=[lock]), {"driver": KEY, **DRIVER})
    assert codes(plan) == ["driver_held"]
    lock["version"] = "3:580.178.04-1.el9"
    assert resolve(full(RTX_3090, system="rocky9", pins=[lock]), {"driver": KEY, **DRIVER})["feasible"]


def test_excluded_packages_are_invisible_to_dnf(full: Make) -> None:
    observation = full(RTX_3090, system="rocky9")
    observation["os"]["dnf"]["excludes"] = [{"file": "/etc/dnf/dnf.conf", "id": None, "packages": ["*nvidia*"]}]
    plan = resolve(observation, {"driver": KEY, **DRIVER})
    assert codes(plan) == ["driver_held"]
    assert "/etc/dnf/dnf.conf hides" in plan["refusals"][0]["reason"]


def test_precompiled_modules_lag_behind_a_new_kernel(full: Make, carry_out: Make) -> None:
    desired = {"driver": {"source": "distro"}, **DRIVER}
    observation = full(RTX_3090, system="ubuntu2404")
    seen = carry_out(observation, resolve(observation, desired), "580.173.02")
    new = "6.17.0-41-generic"
    seen["os"]["kernels"].insert(0, {"release": new, "running": False, "default": True, "headers": False})
    seen["driver"]["modules_by_kernel"][new] = None
    plan = resolve(seen, desired)
    assert f"linux-modules-nvidia-580-open-{new}" in data(plan, "packages")["packages"]
    assert "headers" not in ids(plan)
    assert data(plan, "modules")["build"] == "prebuilt"


def test_a_keyring_package_and_an_own_file_for_one_repository_make_apt_stop(full: Make) -> None:
    observation = full(RTX_3090, system="ubuntu2404")
    keyring = {"file": "/etc/apt/sources.list.d/cuda-ubuntu2404-x86_64.list", "suites": ["/"], "components": [],
               "uris": ["https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/"],
               "signed_by": "/usr/share/keyrings/cuda-archive-keyring.gpg"}  # fmt: skip
    observation["os"]["apt"]["sources"].append(keyring)
    plan = resolve(observation, {"driver": {**KEY, "source": "nvidia"}, **DRIVER})
    assert "repository" not in ids(plan)
    assert plan["driver"]["repository"]["signed_by"] == "/usr/share/keyrings/cuda-archive-keyring.gpg"
    assert "nvidia_driver_repository_key is not used" in said(plan)


def test_sqv_refuses_the_key_of_older_repositories_on_debian_13_so_they_are_no_way_out(full: Make) -> None:
    observation = full(RTX_3090)
    older = {"file": "/etc/apt/sources.list.d/cuda-debian12.list", "suites": ["/"], "components": [], "signed_by": None,
             "uris": ["https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/"]}  # fmt: skip
    observation["os"]["apt"]["sources"].append(older)
    plan = resolve(observation, DRIVER)
    assert plan["driver"]["repository"]["adopt"] is None
    assert data(plan, "repository")["key_file"].startswith("02182E60")
    assert "describes NVIDIA's repository for debian12, not for Debian 13" in said(plan)


@pytest.mark.parametrize(("system", "folder"), [("debian13-arm", "debian13/sbsa"), ("alma9-arm", "rhel9/sbsa")])
def test_the_repository_for_aarch64_is_called_sbsa(full: Make, system: str, folder: str) -> None:
    assert resolve(full(RTX_3090, system=system), {"driver": KEY})["driver"]["repository"]["url"].endswith(folder)


def test_a_low_priority_of_nvidias_repository_keeps_its_newer_dkms_away(full: Make) -> None:
    pin = {"file": "/etc/apt/preferences.d/nvidia-low", "packages": "*", "version": None, "pin": "release l=NVIDIA CUDA",
           "priority": 100, "from_package": None}  # fmt: skip
    plan = resolve(full(RTX_3090, system="debian12", pins=[pin]), DRIVER)
    assert "/etc/apt/preferences.d/nvidia-low gives NVIDIA's repository priority 100" in said(plan)


def test_rpm_fusions_driver_conflicts_and_is_replaced_only_where_that_is_asked(
    full: Make, driven: Make, package: Make
) -> None:
    names = ["xorg-x11-drv-nvidia", "xorg-x11-drv-nvidia-cuda", "akmod-nvidia"]
    driver = driven(
        "570.211.01", packages=[package(name, "3:570.211.01-1.el9", "distro") for name in names], source="distro"
    )
    observation = full(RTX_5070, system="rocky9", **driver)
    wanted = {**KEY, "branch": "595"}
    assert codes(resolve(observation, {"driver": wanted, **DRIVER})) == ["foreign_packages"]
    plan = resolve(observation, {"driver": {**wanted, "source": "nvidia"}, **DRIVER})
    assert data(plan, "packages")["remove"] == names


def test_debian_and_nvidia_name_their_open_modules_in_another_word_order(full: Make, driven: Make) -> None:
    driver = driven("550.163.01", source="distro")
    plan = resolve(full(RTX_5070, **driver), {"driver": {"source": "nvidia"}, **DRIVER})
    assert "nvidia-kernel-open-dkms" in data(plan, "packages")["packages"]
    assert "nvidia-open-kernel-dkms" in data(plan, "packages")["remove"]


def test_debians_words_for_modprobe_go_with_the_flavor_that_they_belong_to(full: Make, driven: Make) -> None:
    driver = driven("550.163.01", source="distro")
    driver["packages"].append({**driver["packages"][0], "name": "nvidia-open-kernel-support"})
    plan = resolve(full(RTX_3090, **driver), {"driver": {"source": "distro", "flavor": "proprietary"}, **DRIVER})
    assert data(plan, "packages")["remove"] == ["nvidia-open-kernel-dkms", "nvidia-open-kernel-support"]
    assert "nvidia-open-kernel-support" not in data(plan, "packages")["packages"]


# ---- kernels and modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "name"), [("debian13", "linux-headers-"), ("ubuntu2404", "linux-headers-"), ("rocky9", "kernel-devel-")]
)
def test_headers_are_absent_for_the_running_kernel(full: Make, system: str, name: str) -> None:
    observation = full(RTX_3090, system=system)
    running = observation["os"]["kernels"][0]
    running["headers"] = False
    packages = data(resolve(observation, {"driver": {**KEY, "source": "nvidia"}, **DRIVER}), "headers")["packages"]
    assert f"{name}{running['release']}" in packages


@pytest.mark.parametrize(("system", "name"), [("debian13", "linux-headers-"), ("rocky9", "kernel-devel-")])
def test_a_new_kernel_landed_without_headers_and_the_driver_dies_at_the_next_boot(
    converged: Make, system: str, name: str
) -> None:
    seen = converged(system)
    new = "6.99.0-1.el9.x86_64" if system == "rocky9" else "6.99.0-amd64"
    seen["os"]["kernels"].insert(0, {"release": new, "running": False, "default": True, "headers": False})
    seen["driver"]["modules_by_kernel"][new] = None
    plan = resolve(seen, {"driver": KEY, **DRIVER})
    assert ids(plan) == ["headers", "modules"]
    assert f"{name}{new}" in data(plan, "headers")["packages"]
    assert data(plan, "modules")["kernels"][0] == new


def test_kernel_devel_matched_of_the_newest_version_would_bring_the_newest_kernel(full: Make) -> None:
    observation = full(RTX_3090, system="rocky9")
    for kernel in observation["os"]["kernels"]:
        kernel["headers"] = False
    packages = data(resolve(observation, {"driver": KEY, **DRIVER}), "headers")["packages"]
    assert "kernel-devel-matched-5.14.0-611.el9.x86_64" in packages
    assert "kernel-devel-matched" not in packages


def test_debian_13s_own_driver_does_not_compile_on_its_current_kernel(full: Make) -> None:
    observation = full(RTX_3090)
    plan = resolve(observation, {"driver": {"source": "distro"}, **DRIVER})
    assert plan["feasible"]
    assert "Kernel 6.12.107+deb13-amd64 is too new for driver 550.163.01" in said(plan)
    assert "nvidia_driver_source: nvidia" in said(plan)
    observation["os"]["kernels"] = observation["os"]["kernels"][1:]
    assert "is too new" not in said(resolve(observation, {"driver": {"source": "distro"}, **DRIVER}))


def test_dpkg_is_left_half_configured_by_a_build_that_failed(converged: Make) -> None:
    seen = converged("debian13")
    seen["driver"]["interrupted"] = ["nvidia-kernel-open-dkms is half-configured"]
    seen["driver"]["packages"][-1]["state"] = "half-configured"
    assert ids(resolve(seen, {"driver": KEY, **DRIVER}))[:3] == ["repair", "stage", "packages"]


def test_dnf_was_killed_between_installing_and_erasing(converged: Make) -> None:
    seen = converged("rocky9")
    left = "nvidia-driver-cuda.x86_64 is installed 2 times (3:580.105.08-1.el9, 3:580.178.04-1.el9)"
    seen["driver"]["interrupted"] = [left]
    plan = resolve(seen, {"driver": KEY, **DRIVER})
    assert ids(plan) == ["repair"]
    assert data(plan, "repair") == {"what": [left]}


def test_nouveau_binds_from_the_initramfs_though_it_is_blocked(converged: Make) -> None:
    seen = converged("debian13")
    release = seen["os"]["kernels"][0]["release"]
    seen["driver"]["nouveau_in_initramfs"] = {release: True}
    plan = resolve(seen, {"driver": KEY, **DRIVER})
    assert ids(plan) == ["nouveau"]
    assert plan["actions"][0]["why"] == f"the initramfs of {release} still brings nouveau"


@pytest.mark.parametrize(("device", "flavor"), [(RTX_5070, "proprietary"), (GTX_1080, "open"), (V100, "open")])
def test_the_wrong_flavor_shows_no_devices(full: Make, driven: Make, device: str, flavor: str) -> None:
    plan = resolve(full(device, **driven("580.105.08", flavor)), DRIVER)
    other = "open" if flavor == "proprietary" else "proprietary"
    assert plan["driver"]["flavor"] == other
    assert data(plan, "packages")["remove"] == [
        "nvidia-kernel-dkms" if flavor == "proprietary" else "nvidia-kernel-open-dkms"
    ]
    assert codes(resolve(full(device), {"driver": {"flavor": flavor}, **DRIVER})) == ["driver_flavor"]


def test_branch_620_has_no_proprietary_modules(full: Make) -> None:
    plan = resolve(full(GTX_1080), {"driver": {"branch": "620"}, **DRIVER})
    assert "driver_branch" in codes(plan)


def test_a_key_that_nobody_staged_ends_in_a_silent_cpu(full: Make) -> None:
    observation = full(RTX_3090)
    observation["os"].update(secure_boot=True, machine_owner_key=None)
    plan = resolve(observation, {"driver": {"mok_password_set": True}, **DRIVER})
    assert ids(plan) == ["repository", "headers", "stage", "keys"]
    assert plan["pending"][0]["what"] == "console"
    bare = resolve(observation, DRIVER)
    assert "keys" not in ids(bare)
    assert "Set nvidia_driver_mok_password" in bare["pending"][0]["remedy"]


def test_the_persistence_daemon_makes_no_nodes_for_nvidia_uvm(converged: Make) -> None:
    seen = converged("debian13")
    seen["driver"]["device_nodes"] = {"/dev/nvidiactl": True, "/dev/nvidia-uvm": False}
    assert ids(resolve(seen, {"driver": KEY, **DRIVER})) == ["nodes"]


def test_nvidia_smi_is_green_and_the_loaded_module_is_another_than_the_installed_driver(converged: Make) -> None:
    seen = converged("debian13")
    seen["driver"].update(loaded_version="580.105.08", mismatch=True)
    assert ids(resolve(seen, {"driver": KEY, **DRIVER})) == ["load"]
    seen["os"]["graphical"] = True
    assert ids(resolve(seen, {"driver": {**KEY, "reboot_allowed": True}, **DRIVER})) == ["reboot"]


def test_removing_the_newest_branch_drops_old_gpus_so_it_is_never_taken_unasked(full: Make) -> None:
    for device in (GTX_1080, V100):
        assert resolve(full(device), DRIVER)["driver"]["branch"] == 580


# ---- reboot -------------------------------------------------------------------------------------------------------------


def test_a_healthy_host_is_not_rebooted(converged: Make) -> None:
    seen = converged("debian13")
    seen["driver"]["reboot_required"] = True
    plan = resolve(seen, {"driver": {**KEY, "reboot_allowed": True}, **DRIVER})
    assert (plan["actions"], plan["pending"]) == ([], [])


def test_a_state_that_says_upgrade_required_does_not_outlive_the_upgrade(
    full: Make, driven: Make, carry_out: Make
) -> None:
    training = {"pid": 42, "command": "python3", "kind": "compute"}
    observation = full(RTX_3090, **driven("570.211.01", processes=[training]))
    desired = {"driver": {"branch": "595"}, **DRIVER}
    seen = carry_out(observation, resolve(observation, desired))
    assert seen["driver"]["staged"]
    seen["driver"]["processes"] = []
    seen = carry_out(seen, resolve(seen, desired), "595.84")
    assert (resolve(seen, desired)["actions"], resolve(seen, desired)["pending"]) == ([], [])


def test_what_was_staged_for_another_branch_is_staged_anew(full: Make, driven: Make, carry_out: Make) -> None:
    training = {"pid": 42, "command": "python3", "kind": "compute"}
    observation = full(RTX_3090, **driven("570.211.01", processes=[training]))
    seen = carry_out(observation, resolve(observation, {"driver": {"branch": "595"}, **DRIVER}))
    assert ids(resolve(seen, {"driver": {"branch": "580"}, **DRIVER})) == ["stage"]


def test_a_desktop_is_not_rebooted_under_its_user_without_permission(full: Make, driven: Make) -> None:
    observation = full(RTX_3090, **driven("570.211.01"))
    observation["os"]["graphical"] = True
    plan = resolve(observation, {"driver": {"branch": "595"}, **DRIVER})
    assert ids(plan) == ["repository", "stage"]
    assert [row["what"] for row in plan["pending"]] == ["reboot"]
