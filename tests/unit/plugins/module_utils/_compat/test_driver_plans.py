# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every system and source through a driver's whole life: fresh, converged, upgraded, downgraded, another flavor, removed."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import observation_request
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

Make = Callable[..., dict[str, Any]]
RTX_3090 = "2204"
MISSING = "GeForce GTX 1080 at 0000:02:00.0 is missing since the boot of 2026-11-22T08:00:00Z: neither the PCI bus nor the driver shows it"
KEY = {"repository_key": "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----"}
URL = "https://developer.download.nvidia.com/compute/cuda/repos"
LIVES = [
    # system, source, what the user adds, first branch, second branch (None: the source has one only)
    ("debian12", "nvidia", {}, 580, 595),
    ("debian13", "nvidia", {}, 580, 595),
    ("debian13-arm", "nvidia", {}, 580, 595),
    ("ubuntu2204", "nvidia", {}, 580, 595),
    ("ubuntu2404", "nvidia", {}, 580, 595),
    ("ubuntu2404-arm", "nvidia", {}, 580, 595),
    ("ubuntu2604", "nvidia", KEY, 595, 610),
    ("rocky9", "nvidia", KEY, 580, 595),
    ("rocky9", "nvidia", KEY, 580, 610),
    ("alma9-arm", "nvidia", KEY, 580, 595),
    ("alma10", "nvidia", KEY, 580, 595),
    ("debian12", "distro", {"minimum": "535"}, 535, None),
    ("debian13", "distro", {}, 550, None),
    ("ubuntu2204", "distro", {}, 580, 595),
    ("ubuntu2404", "distro", {}, 580, 595),
    ("ubuntu2604", "distro", {}, 580, 595),
]
each_life = pytest.mark.parametrize(
    ("system", "source", "more", "first", "second"), LIVES, ids=[f"{life[0]}-{life[1]}-{life[4]}" for life in LIVES]
)


def wish(source: str, more: dict[str, Any], branch: int, **others: Any) -> dict[str, Any]:
    return {"driver": {"source": source, "branch": str(branch), **more, **others}, "steps": ["driver"]}


def ids(plan: dict[str, Any]) -> list[str]:
    return [action["id"].partition(".")[2] for action in plan["actions"]]


def data(plan: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [action["data"] for action in plan["actions"] if action["id"] == f"driver.{name}"]
    return found


@each_life
@pytest.mark.parametrize("package_set", ["compute", "desktop"])
def test_a_life_converges_at_every_step_and_leaves_nothing(
    full: Make, carry_out: Make, system: str, source: str, more: dict[str, Any], first: int, second: int | None,
    package_set: str,
) -> None:  # fmt: skip
    more = {**more, "package_set": package_set}
    seen = full(RTX_3090, system=system)
    steps: list[tuple[int, dict[str, Any], bool]] = [(first, {}, False)]
    if second:
        steps += [(second, {}, True), (first, {"downgrade_allowed": True}, True)]
    steps += [(first, {"flavor": "proprietary"}, True), (first, {"flavor": "open"}, True)]
    for branch, others, disruptive in steps:
        desired = wish(source, more, branch, **others)
        plan = resolve(seen, desired)
        assert plan["feasible"], (branch, others, plan["refusals"])
        assert plan["pending"] == []
        order = [
            "repair",
            "repository",
            "headers",
            "stage",
            "packages",
            "modules",
            "nouveau",
            "freeze",
            "load",
            "persistence",
        ]
        assert ids(plan) == [name for name in order if name in ids(plan)]
        assert {"stage", "packages", "modules", "freeze", "load"} <= set(ids(plan))
        assert any(action["disruptive"] for action in plan["actions"]) is disruptive
        assert not set(data(plan, "packages")["packages"]) & set(data(plan, "packages")["remove"])
        seen = carry_out(seen, plan, f"{branch}.91.07")
        again = resolve(seen, desired)
        assert (again["actions"], again["pending"], again["refusals"]) == ([], [], [])
        assert not [one for one in seen["driver"]["packages"] if not one["held"] and "linux-modules" not in one["name"]]
    removal = {"driver": {"state": "absent", **more}, "steps": ["driver"]}
    gone = resolve(seen, removal)
    assert ids(gone) == ["remove"]
    assert set(data(gone, "remove")["paths"]) <= set(observation_request(removal)["files"])
    seen = carry_out(seen, gone)
    assert resolve(seen, removal)["actions"] == []
    assert not any(path for path, file in seen["files"].items() if file and "gpufleet-" in path)


@each_life
def test_a_downgrade_is_made_only_when_asked(
    full: Make, carry_out: Make, system: str, source: str, more: dict[str, Any], first: int, second: int | None
) -> None:
    if second is None:
        return
    desired = wish(source, more, second)
    seen = carry_out(full(RTX_3090, system=system), resolve(full(RTX_3090, system=system), desired), f"{second}.91.07")
    assert [row["code"] for row in resolve(seen, wish(source, more, first))["refusals"]] == ["driver_downgrade"]
    auto = {"driver": {"source": source, **more}, "steps": ["driver"]}
    assert resolve(seen, auto)["driver"]["branch"] == second
    assert resolve(seen, auto)["actions"] == []


@pytest.mark.parametrize(
    ("system", "branch", "package_set", "flavor", "packages"),
    [
        ("debian13", 580, "compute", "open", ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]),
        ("debian13", 580, "desktop", "proprietary", ["cuda-drivers"]),
        (
            "ubuntu2404",
            580,
            "compute",
            "open",
            ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580", "nvidia-compute-utils-580"],
        ),
        ("ubuntu2404", 580, "desktop", "open", ["nvidia-open-580"]),
        ("ubuntu2404", 580, "desktop", "proprietary", ["cuda-drivers-580"]),
        ("ubuntu2404", 595, "compute", "open", ["libnvidia-compute", "nvidia-dkms-open", "nvidia-persistenced"]),
        ("ubuntu2404", 595, "desktop", "open", ["nvidia-open"]),
        ("rocky9", 580, "compute", "open", ["nvidia-driver-cuda", "kmod-nvidia-open-dkms"]),
        ("rocky9", 580, "compute", "proprietary", ["nvidia-driver-cuda", "kmod-nvidia-latest-dkms"]),
        ("alma10", 595, "desktop", "open", ["nvidia-open"]),
    ],
)
def test_package_sets_of_nvidias_repository(
    full: Make, system: str, branch: int, package_set: str, flavor: str, packages: list[str]
) -> None:
    desired = wish("nvidia", KEY, branch, package_set=package_set, flavor=flavor)
    assert resolve(full(RTX_3090, system=system), desired)["driver"]["packages"] == packages


@pytest.mark.parametrize(
    ("system", "url"),
    [
        ("debian12", f"{URL}/debian12/x86_64"),
        ("debian13-arm", f"{URL}/debian13/sbsa"),
        ("ubuntu2204", f"{URL}/ubuntu2204/x86_64"),
        ("ubuntu2404-arm", f"{URL}/ubuntu2404/sbsa"),
        ("ubuntu2604", f"{URL}/ubuntu2604/x86_64"),
        ("rocky9", f"{URL}/rhel9/x86_64"),
        ("alma9-arm", f"{URL}/rhel9/sbsa"),
        ("alma10", f"{URL}/rhel10/x86_64"),
    ],
)
def test_the_repository_is_described_in_the_packagers_own_words(full: Make, system: str, url: str) -> None:
    described = data(resolve(full(RTX_3090, system=system), {"driver": KEY}), "repository")
    if described["path"].endswith(".repo"):
        assert described["path"] == "/etc/yum.repos.d/gpufleet-nvidia.repo"
        assert described["content"].splitlines()[1:] == [
            "[gpufleet-nvidia]", "name=NVIDIA driver (gpufleet.workstation)", f"baseurl={url}", "enabled=1", "gpgcheck=1",
            "gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia",
        ]  # fmt: skip
        assert described["key_path"] == "/etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia"
    else:
        assert described["content"].splitlines()[1:] == [
            "Types: deb", f"URIs: {url}", "Suites: /", "Signed-By: /etc/apt/keyrings/gpufleet-nvidia.asc",
        ]  # fmt: skip
        assert described["key_path"] == "/etc/apt/keyrings/gpufleet-nvidia.asc"
    assert described["key_content"] == KEY["repository_key"]


@pytest.mark.parametrize(
    ("system", "key_file"),
    [
        ("debian12", "EB693B3035CD5710E231E123A4B469963BF863CC.asc"),
        ("debian13", "02182E60104FCDC26EAE1B8597A5D4CB8793F200.asc"),
        ("ubuntu2204", "EB693B3035CD5710E231E123A4B469963BF863CC.asc"),
        ("ubuntu2404", "EB693B3035CD5710E231E123A4B469963BF863CC.asc"),
        ("ubuntu2604", None),
        ("rocky9", None),
        ("rhel9", None),
        ("alma10", None),
        ("rhel10", None),
    ],
)
def test_a_key_that_is_not_shipped_is_given_by_the_user_or_refused_and_never_skipped(
    full: Make, system: str, key_file: str | None
) -> None:
    plan = resolve(full(RTX_3090, system=system), {"steps": ["driver"]})
    codes = [row["code"] for row in plan["refusals"]]
    if key_file:
        assert plan["feasible"], codes
        assert data(plan, "repository")["key_file"] == key_file
    else:
        assert "driver_key" in codes
        assert (
            "nvidia_driver_repository_key"
            in next(row for row in plan["refusals"] if row["code"] == "driver_key")["remedy"]
        )


def test_a_mirror_is_used_with_the_key_that_is_known(full: Make) -> None:
    url = "http://mirror.example/debian13"
    described = data(resolve(full(RTX_3090), {"driver": {"repository_url": url}}), "repository")
    assert f"URIs: {url}\n" in described["content"]
    assert described["key_file"] == "02182E60104FCDC26EAE1B8597A5D4CB8793F200.asc"


@pytest.mark.parametrize("gpgcheck", [True, False])
def test_a_dnf_repository_for_the_same_source_is_adopted_if_it_checks_signatures(full: Make, gpgcheck: bool) -> None:
    observation = full(RTX_3090, system="rocky9")
    row = {"file": "/etc/yum.repos.d/cuda-rhel9.repo", "id": "cuda-rhel9-x86_64", "urls": [f"{URL}/rhel9/x86_64/"],
           "enabled": True, "gpgcheck": gpgcheck, "keys": [f"{URL}/rhel9/x86_64/D42D0685.pub"]}  # fmt: skip
    observation["os"]["dnf"]["repositories"].append(row)
    plan = resolve(observation, {"steps": ["driver"]})
    assert plan["feasible"] is gpgcheck
    assert plan["driver"]["repository"]["adopt"] == "/etc/yum.repos.d/cuda-rhel9.repo"
    assert "repository" not in ids(plan)
    if not gpgcheck:
        assert [row["code"] for row in plan["refusals"]] == ["driver_key"]
    row["enabled"] = False
    assert resolve(observation, {"driver": KEY, "steps": ["driver"]})["driver"]["repository"]["adopt"] is None


@pytest.mark.parametrize("system", ["rocky9", "rhel9", "alma10", "rhel10"])
def test_enterprise_linux_has_no_driver_of_its_own(full: Make, system: str) -> None:
    (refusal,) = resolve(full(RTX_3090, system=system), {"driver": {"source": "distro"}, "steps": ["driver"]})[
        "refusals"
    ][:1]
    assert refusal["code"] == "driver_source"
    assert "has no NVIDIA driver" in refusal["reason"]


@pytest.mark.parametrize(
    ("system", "epel", "first"),
    [
        ("rocky9", False, "epel-release"),
        ("rocky9", True, "dkms"),
        ("alma10", False, "epel-release"),
        ("rhel9", True, "dkms"),
        ("rhel9", False, None),
        ("rhel10", False, None),
    ],
)
def test_dkms_comes_from_epel_which_is_installed_or_asked_for(
    full: Make, system: str, epel: bool, first: str | None
) -> None:
    observation = full(RTX_3090, system=system)
    if epel:
        observation["os"]["dnf"]["repositories"].append(
            {"id": "epel", "enabled": True, "urls": ["http://mirror.example/"]}
        )
    plan = resolve(observation, {"driver": KEY, "steps": ["driver"]})
    if first:
        assert data(plan, "headers")["packages"][0] == first
        assert data(plan, "headers")["packages"][-1] == "dkms"
    else:
        (refusal,) = plan["refusals"]
        assert refusal["code"] == "driver_source"
        assert f"epel-release-latest-{system[4:]}" in refusal["remedy"]


@pytest.mark.parametrize(
    ("system", "release", "packages"),
    [
        ("debian12", "6.1.0-28-amd64", ["linux-headers-6.1.0-28-amd64", "linux-headers-amd64"]),
        ("ubuntu2404", "6.8.0-51-generic", ["linux-headers-6.8.0-51-generic", "linux-headers-generic"]),
        ("ubuntu2404", "6.17.0-40-generic", ["linux-headers-6.17.0-40-generic", "linux-headers-generic-hwe-24.04"]),
        ("ubuntu2204", "6.5.0-1020-aws", ["linux-headers-6.5.0-1020-aws", "linux-headers-aws"]),
        (
            "rocky9",
            "5.14.0-611.el9.x86_64",
            ["kernel-devel-5.14.0-611.el9.x86_64", "kernel-devel-matched-5.14.0-611.el9.x86_64"],
        ),
        ("alma9-arm", "5.14.0-611.el9.aarch64+64k", ["kernel-64k-devel-5.14.0-611.el9.aarch64"]),
    ],
)
def test_headers_are_those_of_the_kernel_and_what_brings_the_next(
    full: Make, system: str, release: str, packages: list[str]
) -> None:
    observation = full(RTX_3090, system=system)
    observation["os"]["kernels"] = [{"release": release, "running": True, "default": True, "headers": False}]
    found = data(resolve(observation, {"driver": {**KEY, "source": "nvidia"}, "steps": ["driver"]}), "headers")[
        "packages"
    ]
    assert [name for name in found if name not in ("epel-release", "dkms")] == packages


@pytest.mark.parametrize(
    ("system", "branch", "flavor", "stream", "pin"),
    [
        ("rocky9", 580, "open", None, ("module_stream", "nvidia-driver:580-open")),
        ("rocky9", 595, "proprietary", "580-open", ("module_stream", "nvidia-driver:595-dkms")),
        ("alma10", 580, "open", None, ("versionlock", "*nvidia*580*")),
        ("alma10", 580, "open", "open-dkms", ("module_stream", "nvidia-driver:580-open")),
    ],
)
def test_enterprise_linux_9_has_streams_and_10_has_them_where_its_repository_does(
    full: Make, system: str, branch: int, flavor: str, stream: str | None, pin: tuple[str, str]
) -> None:
    observation = full(RTX_3090, system=system)
    observation["os"]["dnf"]["streams"]["nvidia-driver"] = stream
    planned = resolve(observation, wish("nvidia", KEY, branch, flavor=flavor))["driver"]["pin"]
    assert (planned["kind"], planned["packages"]) == pin


# ---- one branch for a fleet of different GPUs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "system", "preferred", "branch"),
    [
        (["2204"], "debian13", "595", 595),
        (["1b80"], "debian13", "595", 580),
        (["2204", "1b80"], "debian13", "595", 580),
        (["2204"], "debian13", "590", 590),
        (["2204"], "debian13", "600", 595),
        (["2204"], "debian13", "580", 580),
        (["2204"], "ubuntu2604", "610", 610),
        (["2204"], "debian13", "640", 640),
    ],
)
def test_every_host_gets_the_newest_branch_up_to_the_preferred_that_its_gpus_support(
    full: Make, devices: list[str], system: str, preferred: str, branch: int
) -> None:
    plan = resolve(
        full(*devices, system=system), {"driver": {**KEY, "branch_preferred": preferred}, "steps": ["driver"]}
    )
    assert plan["feasible"], plan["refusals"]
    assert plan["driver"]["branch"] == branch


@pytest.mark.parametrize(
    ("installed", "branch", "changes"), [("580.105.08", 595, True), ("595.84", 595, False), ("610.43.02", 610, False)]
)
def test_a_preferred_branch_upgrades_and_never_downgrades(
    full: Make, driven: Make, installed: str, branch: int, changes: bool
) -> None:
    plan = resolve(full(RTX_3090, **driven(installed)), {"driver": {"branch_preferred": "595"}, "steps": ["driver"]})
    assert plan["feasible"], plan["refusals"]
    assert plan["driver"]["branch"] == branch
    assert ("stage" in ids(plan)) is changes


# ---- whose driver it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["580.105.08", "535.129.03", None])
def test_a_vgpu_guest_keeps_its_driver_and_is_refused_where_that_is_too_old_or_missing(
    full: Make, driven: Make, version: str | None
) -> None:
    observation = full(RTX_3090, **(driven(version, "proprietary", "runfile", packages=[]) if version else {}))
    observation["driver"]["virtual"] = {"0000:01:00.0": "vgpu"}
    plan = resolve(observation, {"driver": {"branch": "595"}})
    assert [action for action in plan["actions"] if action["step"] == "driver"] == []
    if version == "580.105.08":
        assert plan["feasible"], plan["refusals"]
        assert "belongs to NVIDIA's vGPU software: it is never changed here" in "\n".join(plan["reasons"])
    else:
        assert "gpu_virtual" in {row["code"] for row in plan["refusals"]}
        assert "guest driver" in plan["refusals"][0]["remedy"]


def test_a_gpu_that_was_given_to_a_guest_is_left_out(full: Make) -> None:
    observation = full("2204", "1b80")
    observation["driver"]["virtual"] = {"0000:02:00.0": "passthrough"}
    plan = resolve(observation)
    assert [gpu["pci_address"] for gpu in plan["gpus"]] == ["0000:01:00.0"]
    assert any("0000:02:00.0 is left out" in warning for warning in plan["warnings"])


@pytest.mark.parametrize("version", ["580.105.08", "535.129.03", None])
def test_a_container_without_kernels_uses_the_machines_driver_and_never_installs_one(
    full: Make, driven: Make, version: str | None
) -> None:
    observation = full(RTX_3090, **(driven(version, packages=[], modules_by_kernel={}) if version else {}))
    observation["os"].update(virtualization="container", kernels=[])
    plan = resolve(observation)
    assert [action for action in plan["actions"] if action["step"] == "driver"] == []
    assert plan["feasible"] is (version == "580.105.08")
    if not plan["feasible"]:
        assert "distribution" in {row["code"] for row in plan["refusals"]}
        assert "the machine that runs this container" in plan["refusals"][0]["remedy"]


@pytest.mark.parametrize(("version", "kept"), [("580.105.08", True), ("535.129.03", False)])
def test_a_cloud_images_driver_of_unknown_origin_is_kept_where_it_will_do_and_refused_elsewhere(
    full: Make, driven: Make, version: str, kept: bool
) -> None:
    driver = driven(version)
    driver["source"] = None
    for package in driver["packages"]:
        package["source"] = "unknown"
    plan = resolve(full(RTX_3090, **driver), {"steps": ["driver"]})
    assert plan["feasible"] is kept
    assert "stage" not in ids(plan)
    if not kept:
        assert [row["code"] for row in plan["refusals"]] == ["foreign_packages"]
        assert resolve(full(RTX_3090, **driver), {"driver": {"source": "nvidia"}})["feasible"]


def test_a_host_with_a_missing_gpu_is_not_planned_from_what_is_left(full: Make, driven: Make) -> None:
    observation = full("2204", **driven("580.105.08"))
    observation["health"] = {"missing_gpus": [{"text": MISSING}]}
    desired = {"driver": {"branch": "595"}, "steps": ["driver"]}
    (refusal,) = resolve(observation, desired)["refusals"]
    assert (refusal["code"], refusal["reason"]) == ("gpu_missing", MISSING)
    accepted = {"driver": {**desired["driver"], "accept_missing_gpus": True}, "steps": ["driver"]}
    plan = resolve(observation, accepted)
    assert plan["feasible"]
    assert any(warning.startswith(MISSING) for warning in plan["warnings"])
    assert plan["proof"]["gpus"] == ["0000:01:00.0"]  # and so the next proof forgets what is not there
    observation["health"]["missing_gpus"][0]["pci_address"] = "0000:02:00.0"
    without = resolve(
        observation, {"driver": {**desired["driver"], "gpus_exclude": ["0000:02:00.0"]}, "steps": ["driver"]}
    )
    assert without["feasible"]
    assert MISSING not in " ".join(without["warnings"])
    assert resolve(observation, {"driver": {"state": "absent"}, "steps": ["driver"]})["feasible"]


@pytest.mark.parametrize("steps", [["driver"], ["torch"], ["proof"]])
def test_a_host_whose_only_gpu_is_missing_is_not_called_one_without(full: Make, driven: Make, steps: list[str]) -> None:
    observation = full(**driven("580.105.08"))
    observation["health"] = {"missing_gpus": [{"text": MISSING}]}
    plan = resolve(observation, {"steps": steps})
    assert [(row["code"], row["reason"]) for row in plan["refusals"]] == [("gpu_missing", MISSING)]
    assert plan["actions"] == []


# ---- Secure Boot --------------------------------------------------------------------------------------------------------


def secure(observation: dict[str, Any], key: dict[str, Any] | None) -> dict[str, Any]:
    observation["os"].update(secure_boot=True, machine_owner_key=key)
    return observation


def test_with_secure_boot_ubuntus_signed_modules_are_taken_where_no_key_is_enrolled(
    full: Make, carry_out: Make
) -> None:
    observation = secure(full(RTX_3090, system="ubuntu2404"), None)
    plan = resolve(observation, {"steps": ["driver"]})
    assert plan["feasible"], plan["refusals"]
    assert plan["driver"]["source"] == "distro"
    assert plan["driver"]["packages"] == [
        "nvidia-headless-no-dkms-580-open",
        "nvidia-utils-580",
        "linux-modules-nvidia-580-open-6.17.0-40-generic",
        "linux-modules-nvidia-580-open-6.8.0-51-generic",
        "linux-modules-nvidia-580-open-generic-hwe-24.04",
    ]
    assert data(plan, "modules")["build"] == "prebuilt"
    assert not {"headers", "keys"} & set(ids(plan))
    assert plan["pending"] == []
    assert any("brings the newest kernel that has signed modules" in warning for warning in plan["warnings"])
    assert resolve(carry_out(observation, plan), {"steps": ["driver"]})["actions"] == []


@pytest.mark.parametrize("system", ["debian13", "ubuntu2404", "rocky9"])
def test_with_secure_boot_and_an_enrolled_key_dkms_signs(full: Make, system: str) -> None:
    observation = secure(
        full(RTX_3090, system=system), {"path": "/var/lib/dkms/mok.pub", "enrolled": True, "pending": False}
    )
    plan = resolve(observation, {"driver": KEY, "steps": ["driver"]})
    assert plan["driver"]["source"] == "nvidia"
    assert data(plan, "modules")["build"] == "dkms"
    assert plan["pending"] == []
    assert "keys" not in ids(plan)


@pytest.mark.parametrize("system", ["debian13", "rocky9"])
@pytest.mark.parametrize("password", [True, False])
def test_with_secure_boot_and_no_key_the_old_driver_is_kept_until_a_person_was_at_the_console(
    full: Make, driven: Make, carry_out: Make, system: str, password: bool
) -> None:
    key = {"path": "/var/lib/dkms/mok.pub", "enrolled": False, "pending": False}
    observation = secure(full(RTX_3090, system=system, **driven("570.211.01")), key)
    desired = {"driver": {**KEY, "branch": "595", "mok_password_set": password}, "steps": ["driver"]}
    plan = resolve(observation, desired)
    assert ids(plan) == ["repository", "stage", *(["keys"] if password else [])]
    (pending,) = plan["pending"]
    assert pending["what"] == "console"
    assert ("mokutil --import /var/lib/dkms/mok.pub" in pending["remedy"]) is not password
    seen = carry_out(observation, plan)
    again = resolve(seen, desired)
    assert (again["actions"], [row["what"] for row in again["pending"]]) == ([], ["console"])
    seen["os"]["machine_owner_key"] = {**key, "enrolled": True}
    assert ids(resolve(seen, desired)) == ["packages", "modules", "nouveau", "freeze", "load", "persistence"]


# ---- the window ---------------------------------------------------------------------------------------------------------


def test_a_driver_that_serves_is_only_staged_where_its_replacement_needs_a_reboot_that_is_not_permitted(
    full: Make, driven: Make, carry_out: Make
) -> None:
    desktop = {"pid": 7, "command": "Xorg", "kind": "graphics"}
    observation = full(RTX_3090, **driven("570.211.01", processes=[desktop]))
    desired = {"driver": {"branch": "595"}, "steps": ["driver"]}
    plan = resolve(observation, desired)
    assert ids(plan) == ["repository", "stage"]
    assert [row["what"] for row in plan["pending"]] == ["reboot"]
    again = resolve(carry_out(observation, plan), desired)
    assert (again["actions"], len(again["pending"])) == ([], 1)
    allowed = {"driver": {"branch": "595", "reboot_allowed": True}, "steps": ["driver"]}
    assert ids(resolve(observation, allowed))[-2:] == ["reboot", "persistence"]


def test_somebody_who_holds_a_reboot_off_is_named_and_waited_for(full: Make, driven: Make) -> None:
    observation = full(RTX_3090, **driven("570.211.01", processes=[{"pid": 7, "command": "Xorg", "kind": "graphics"}]))
    observation["os"]["inhibitors"] = [{"who": "backup", "why": "it runs"}]
    plan = resolve(observation, {"driver": {"branch": "595", "reboot_allowed": True}, "steps": ["driver"]})
    assert ids(plan) == ["repository", "stage"]
    assert plan["pending"][0]["why"] == "it is held off by backup (it runs)"


def test_a_disk_passphrase_leaves_the_reboot_to_a_person_at_the_console(full: Make) -> None:
    observation = full(RTX_3090, nouveau_loaded=True)
    observation["os"]["disk_passphrase"] = True
    plan = resolve(observation, {"driver": {"reboot_allowed": True}, "steps": ["driver"]})
    assert "packages" in ids(plan)
    assert "reboot" not in ids(plan)
    assert "a person at its console who types the passphrase" in plan["pending"][0]["remedy"]


def test_containers_that_compute_are_named(full: Make, driven: Make) -> None:
    process = {"pid": 7, "command": "python3", "kind": "compute", "container": "0123456789ab"}
    plan = resolve(full(RTX_3090, **driven("570.211.01", processes=[process])), {"driver": {"branch": "595"}})
    assert plan["pending"][0]["why"] == "the GPU is busy: python3 (7 in container 0123456789ab)"


def test_a_mirror_of_the_distributions_archive_is_described_with_its_components(full: Make) -> None:
    wanted = {"driver": {"source": "distro", "repository_url": "http://mirror.example/debian"}, "steps": ["driver"]}
    described = data(resolve(full(RTX_3090), wanted), "repository")
    assert described["path"] == "/etc/apt/sources.list.d/gpufleet-archive.sources"
    assert described["content"].splitlines()[1:] == [
        "Types: deb", "URIs: http://mirror.example/debian", "Suites: trixie", "Components: contrib non-free non-free-firmware",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
    ]  # fmt: skip
    assert described["key_path"] is None


def test_ubuntus_archive_gets_its_component_for_drivers_in_all_suites(full: Make) -> None:
    observation = full(RTX_3090, system="ubuntu2404")
    observation["os"]["apt"]["sources"][0]["components"] = ["main", "universe"]
    described = data(resolve(observation, {"driver": {"source": "distro"}, "steps": ["driver"]}), "repository")
    assert "Suites: noble noble-updates\nComponents: restricted\n" in described["content"]


def test_a_driver_that_was_there_before_us_outlives_every_removal(full: Make, driven: Make) -> None:
    plan = resolve(full(RTX_3090, **driven("580.105.08")), {"driver": {"state": "absent"}, "steps": ["driver"]})
    assert (plan["actions"], plan["feasible"]) == ([], True)
    assert any("was not installed by this collection" in reason for reason in plan["reasons"])


def test_a_removal_does_not_release_what_the_user_holds(full: Make, carry_out: Make) -> None:
    observation = full(RTX_3090)
    seen = carry_out(observation, resolve(observation, {"steps": ["driver"]}))
    seen["driver"]["journal"]["holds"] = []
    (refusal,) = resolve(seen, {"driver": {"state": "absent"}, "steps": ["driver"]})["refusals"]
    assert refusal["code"] == "driver_held"
    assert "apt-mark unhold nvidia-driver-cuda" in refusal["remedy"]


def test_what_is_kept_of_another_publisher_gets_no_repository_and_nothing_beside_it(full: Make, driven: Make) -> None:
    driver = driven("580.105.08")
    driver["source"] = None
    for package in driver["packages"]:
        package["source"] = "unknown"
    plan = resolve(full(RTX_3090, **driver), {"driver": {"package_set": "desktop"}, "steps": ["driver"]})
    assert plan["feasible"]
    assert not {"repository", "stage", "packages"} & set(ids(plan))
    assert "freeze" in ids(plan)


@pytest.mark.parametrize("step", ["driver", "torch", "runtime", "proof"])
@pytest.mark.parametrize("exclude", [[], ["0000:99:00.0"]])
def test_no_step_passes_on_the_gpus_that_are_left_for_each_ends_with_a_proof(
    full: Make, driven: Make, step: str, exclude: list[str]
) -> None:
    observation = full(RTX_3090, **driven("580.105.08"))
    observation["health"] = {"missing_gpus": [{"text": MISSING, "pci_address": "0000:41:00.0"}]}
    desired = {"steps": [step], "driver": {"gpus_exclude": exclude}}
    assert "gpu_missing" in [row["code"] for row in resolve(observation, desired)["refusals"]]


def test_an_empty_list_of_steps_only_looks(full: Make, driven: Make) -> None:
    observation = full(RTX_3090, **driven("580.105.08"))
    observation["health"] = {"missing_gpus": [{"text": MISSING}]}
    assert resolve(observation, {"steps": []})["feasible"]


# ---- what is there is less than it seems --------------------------------------------------------------------------------


def test_a_helper_alone_is_no_driver(full: Make, package: Make) -> None:
    observation = full(RTX_3090, packages=[package("nvidia-prime", "0.8.17", "distro")])
    plan = resolve(observation, {"steps": ["driver"]})
    assert {action["why"] for action in plan["actions"] if action["id"] == "driver.packages"} == {
        "no driver is installed"
    }
    key = {"path": "/var/lib/dkms/mok.pub", "enrolled": False, "pending": False}
    ubuntu = secure(full(RTX_3090, system="ubuntu2404", packages=observation["driver"]["packages"]), key)
    assert resolve(ubuntu, {"steps": ["driver"]})["driver"]["source"] == "distro", "Ubuntu's modules are signed"


def test_a_container_of_which_nothing_but_a_helper_is_known_says_so_without_a_version(
    full: Make, package: Make
) -> None:
    observation = full(RTX_3090, packages=[package("nvidia-prime", "0.8.17", "distro")])
    observation["os"].update(virtualization="container", kernels=[])
    plan = resolve(observation)
    assert "None" not in " ".join(row["reason"] for row in plan["refusals"])


def test_a_driver_without_its_library_is_completed(full: Make, driven: Make, package: Make) -> None:
    left = [package("nvidia-dkms-580-open", "580.105.08-1ubuntu1", "nvidia")]
    observation = full(RTX_3090, system="ubuntu2404", **driven("580.105.08", packages=left, userspace_version=None))
    plan = resolve(observation, {"steps": ["driver"]})
    assert "so is libcuda" in next(row["why"] for row in plan["actions"] if row["id"] == "driver.packages")
    assert "libnvidia-compute-580" in data(plan, "packages")["packages"]


def test_modules_that_nothing_compiles_any_more_bring_back_what_compiles_them(
    full: Make, driven: Make, carry_out: Make
) -> None:
    observation = full(RTX_3090, **driven("580.105.08"))
    driver = observation["driver"]
    driver["packages"] = [one for one in driver["packages"] if "dkms" not in one["name"]]
    driver["modules_by_kernel"][observation["os"]["kernels"][0]["release"]] = None
    plan = resolve(observation, {"steps": ["driver"]})
    assert "nvidia-kernel-open-dkms" in data(plan, "packages")["packages"]
    assert resolve(carry_out(observation, plan, "580.105.08"), {"steps": ["driver"]})["actions"] == []


def test_a_kernel_that_lacks_the_module_of_a_driver_without_packages_is_left_to_whoever_brought_it(
    full: Make, driven: Make
) -> None:
    observation = full(RTX_3090, **driven("580.105.08", source=None, packages=[]))
    observation["driver"]["modules_by_kernel"][observation["os"]["kernels"][0]["release"]] = None
    plan = resolve(observation, {"steps": ["driver"]})
    assert not {"headers", "modules"} & set(ids(plan))
    (pending,) = plan["pending"]
    assert pending["what"] == "driver modules"
    assert "nvidia_driver_source: nvidia" in pending["remedy"]
    assert {"stage", "packages"} <= set(
        ids(resolve(observation, {"driver": {"source": "nvidia"}, "steps": ["driver"]}))
    )


def test_a_daemon_of_which_nothing_is_known_is_no_action_on_every_run(full: Make, carry_out: Make) -> None:
    seen = carry_out(full(RTX_3090), resolve(full(RTX_3090), {"steps": ["driver"]}))
    seen["driver"]["persistence"] = None
    assert resolve(seen, {"steps": ["driver"]})["actions"] == []


def test_an_archive_whose_description_could_not_be_read_is_not_described_by_an_empty_one(full: Make) -> None:
    observation = full(RTX_3090)
    observation["os"]["apt"] = None
    (refusal,) = resolve(observation, {"driver": {"source": "distro"}, "steps": ["driver"]})["refusals"]
    assert refusal["code"] == "driver_source"


def test_a_release_whose_codename_is_not_known_is_the_one_that_apt_uses(full: Make) -> None:
    observation = full(RTX_3090)
    observation["os"]["codename"] = None
    desired = {"driver": {"source": "distro"}, "steps": ["driver"]}
    assert "repository" not in ids(resolve(observation, desired)), "apt has all components"
    observation["os"]["apt"]["sources"][0]["components"] = ["main"]
    described = data(resolve(observation, desired), "repository")
    assert "Suites: trixie\n" in described["content"]


def test_ubuntus_library_tells_the_version_where_the_file_does_not(full: Make, carry_out: Make) -> None:
    desired = {"driver": {**KEY, "source": "nvidia"}, "steps": ["driver"]}
    observation = full(RTX_3090, system="ubuntu2404")
    seen = carry_out(observation, resolve(observation, desired))
    seen["driver"]["userspace_version"] = None
    plan = resolve(seen, desired)
    assert not {"modules", "load"} & set(ids(plan))


def test_a_kernel_that_came_after_the_change_was_staged_gets_its_headers(
    full: Make, driven: Make, carry_out: Make
) -> None:
    busy = {"pid": 1, "command": "python3", "kind": "compute"}
    observation = full(RTX_3090, **driven("570.211.01", processes=[busy]))
    desired = {"driver": {"branch": "595"}, "steps": ["driver"]}
    seen = carry_out(observation, resolve(observation, desired))
    new = "6.13.1+deb13-amd64"
    seen["os"]["kernels"].insert(0, {"release": new, "running": False, "default": True, "headers": False})
    seen["driver"]["modules_by_kernel"][new] = None
    plan = resolve(seen, desired)
    assert ids(plan) == ["headers"]
    assert data(plan, "headers")["packages"] == [f"linux-headers-{new}", "linux-headers-amd64"]
    assert resolve(carry_out(seen, plan), desired)["actions"] == []


def test_a_driver_is_not_loaded_into_a_kernel_that_was_removed(full: Make) -> None:
    observation = full(RTX_3090)
    observation["os"]["kernels"] = observation["os"]["kernels"][1:]
    plan = resolve(observation, {"driver": {"reboot_allowed": True}, "steps": ["driver"]})
    assert "load" not in ids(plan)
    assert [row["why"] for row in plan["actions"] if row["id"] == "driver.reboot"] == [
        "no NVIDIA driver is loaded, and cannot be replaced live: the running kernel is not installed any more"
    ]


# ---- what others wrote --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "version", "stops"),
    [
        ("nvidia-container-toolkit*", "1.17.*", False),
        ("cuda-toolkit-12-8", "12.8*", False),
        ("nvidia-settings-legacy", "340.108*", False),
        ("nvidia-driver-*", "580*", False),
        ("libcuda1", "3:580*", False),
        ("nvidia-*", "*580*", False),
        ("libcuda1", "570*", True),
        ("libcuda1:amd64 libnvidia-ml1", "570.211.01-1", True),
        ("nvidia-*", "570.*", True),
        ("src:nvidia-graphics-drivers", "570.*", True),
        ("src:nvidia-container-toolkit", "570.*", False),
        ("/^nvidia-/", "570.*", True),
    ],
)
def test_only_a_pin_that_keeps_the_driver_at_another_branch_is_in_the_way(
    full: Make, packages: str, version: str, stops: bool
) -> None:
    pin = {"file": "/etc/apt/preferences.d/site", "packages": packages, "version": version, "pin": f"version {version}",
           "priority": 1001, "from_package": None}  # fmt: skip
    plan = resolve(full(RTX_3090, pins=[pin]), {"steps": ["driver"]})
    assert [row["code"] for row in plan["refusals"]] == (["driver_held"] if stops else [])


def test_a_removal_leaves_the_pinning_package_that_somebody_else_installed(
    full: Make, carry_out: Make, package: Make
) -> None:
    seen = carry_out(full(RTX_3090), resolve(full(RTX_3090), {"steps": ["driver"]}))
    seen["driver"]["packages"].append(package("nvidia-driver-pinning-580", "580-1", "nvidia"))
    plan = resolve(seen, {"driver": {"state": "absent"}, "steps": ["driver"]})
    assert "nvidia-driver-pinning-580" not in data(plan, "remove")["packages"]
    seen = carry_out(seen, plan)
    assert resolve(seen, {"driver": {"state": "absent"}, "steps": ["driver"]})["actions"] == []


# ---- which branch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("installed", "flavor"), [("620.05", "proprietary"), ("620.05", "auto")])
def test_a_branch_without_modules_of_the_flavor_is_refused_whoever_chose_it(
    full: Make, driven: Make, installed: str, flavor: str
) -> None:
    plan = resolve(full(RTX_3090, **driven(installed)), {"driver": {"flavor": flavor}, "steps": ["driver"]})
    assert [row["code"] for row in plan["refusals"]] == (["driver_flavor"] if flavor == "proprietary" else [])


def test_an_archives_newer_branch_stays_where_an_older_one_is_preferred(
    full: Make, driven: Make, package: Make
) -> None:
    names = ["libnvidia-compute-595", "nvidia-dkms-595", "nvidia-utils-595"]
    packages = [package(name, "595.71.05-0ubuntu1", "distro") for name in names]
    driver = driven("595.71.05", "proprietary", "distro", packages=packages)
    desired = {"driver": {"branch_preferred": "580", "flavor": "open"}, "steps": ["driver"]}
    plan = resolve(full(RTX_3090, system="ubuntu2404", **driver), desired)
    assert plan["feasible"], plan["refusals"]
    assert (plan["driver"]["branch"], plan["driver"]["flavor"]) == (595, "open")


def test_a_desktop_set_stays_one_where_its_names_change_with_the_branch(
    full: Make, driven: Make, package: Make
) -> None:
    names = ["nvidia-open-580", "nvidia-driver-580-open", "libnvidia-compute-580", "nvidia-dkms-580-open"]
    driver = driven("580.105.08", packages=[package(name, "580.105.08-1ubuntu1", "nvidia") for name in names])
    plan = resolve(full(RTX_3090, system="ubuntu2404", **driver), {"driver": {"branch": "595"}, "steps": ["driver"]})
    assert plan["driver"]["package_set"] == "desktop"
    assert "nvidia-open" in data(plan, "packages")["packages"]


def test_an_archive_that_moved_on_since_the_knowledge_base_is_believed(full: Make, driven: Make) -> None:
    desired = {"driver": {"source": "distro", "minimum": "550.190"}, "steps": ["driver"]}
    assert resolve(full(RTX_3090, **driven("550.200.01", source="distro")), desired)["feasible"]
    assert not resolve(full(RTX_3090, **driven("550.163.01", source="distro")), desired)["feasible"]


def test_a_metapackage_moves_with_its_parts_though_the_other_set_is_asked_for(
    full: Make, driven: Make, package: Make
) -> None:
    names = ["nvidia-open", "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1"]
    driver = driven("580.105.08", packages=[package(name, "580.105.08-1", "nvidia") for name in names])
    desired = {"driver": {"branch": "595", "package_set": "compute"}, "steps": ["driver"]}
    assert "nvidia-open" in data(resolve(full(RTX_3090, **driver), desired), "packages")["packages"]


def test_a_metapackage_without_a_branch_goes_on_the_way_back_to_one_with_it(
    full: Make, driven: Make, package: Make
) -> None:
    names = ["nvidia-open", "nvidia-driver-open", "libnvidia-compute", "nvidia-dkms-open"]
    driver = driven("595.71.05", packages=[package(name, "595.71.05-1ubuntu1", "nvidia") for name in names])
    desired = {"driver": {"branch": "580", "downgrade_allowed": True}, "steps": ["driver"]}
    change = data(resolve(full(RTX_3090, system="ubuntu2404", **driver), desired), "packages")
    assert "nvidia-open" in change["remove"]
    assert "nvidia-open-580" in change["packages"]
