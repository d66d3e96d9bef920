# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which torch build and which Python an environment gets, on every GPU generation, and what keeps a release serving."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import matrix
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock

Make = Callable[..., dict[str, Any]]
RTX_5070 = "2f04"


@pytest.fixture
def converged(full: Make, carry_out: Make) -> dict[str, Any]:
    """A host on which the plan for its RTX 5070 was carried out."""
    observation = full(RTX_5070)
    return carry_out(observation, resolve(observation, {"locks": {"base": LOCK}}))


def locked(version: str) -> str:
    """The text of a lock."""
    return lock.Lock({"name": "base"}, (lock.Pinned("torch", version, ("0" * 64,), True),)).render()


LOCK = locked("2.9.1+cu128")


def test_a_controller_without_the_lock_keeps_what_was_built_with_one(converged: dict[str, Any]) -> None:
    plan = resolve(converged)
    assert plan["actions"] == []
    assert plan["environments"][0]["spec"]["lock"] == lock.digest(LOCK)
    assert [action["id"] for action in resolve(converged, {"locks": {"base": locked("2.9.2+cu128")}})["actions"]] == [
        "torch.build:base",
        "torch.switch:base",
        "proof.run:base",
    ]


def test_a_stamp_that_is_garbled_adopts_nothing(converged: dict[str, Any]) -> None:
    odd = copy.deepcopy(converged)
    odd["environments"][0]["stamp"]["spec"] = {"lock": "a" * 64, "torch": None}
    assert "lock" not in resolve(odd)["environments"][0]["spec"]


# ---- Python -------------------------------------------------------------------------------------------------------------


def with_pythons(observation: dict[str, Any], *versions: str) -> dict[str, Any]:
    observation["os"]["pythons"] = {version: f"/usr/bin/python{version}" for version in versions}
    return observation


@pytest.mark.parametrize(
    ("system", "pythons", "wanted", "package", "version"),
    [
        ("rocky9", ["3.9"], "auto", "python3.12", "3.12"),
        ("rocky9", ["3.9"], "3.11", "python3.11", "3.11"),
        ("debian13", [], "auto", "python3", "3.13"),
        ("debian13", ["3.8"], "3.13", "python3", "3.13"),
    ],
)
def test_a_python_that_the_distribution_packages_is_installed_before_the_build(
    full: Make, driven: Make, system: str, pythons: list[str], wanted: str, package: str, version: str
) -> None:
    observation = with_pythons(full(RTX_5070, system=system, **driven("580.105.08")), *pythons)
    plan = resolve(observation, {"python": wanted, "steps": ["torch"]})
    assert plan["feasible"], plan["refusals"]
    assert [action["id"] for action in plan["actions"]] == [
        f"torch.python:{version}",
        "torch.build:base",
        "torch.switch:base",
    ]
    assert plan["actions"][0]["data"] == {"environment": "base", "package": package}
    (environment,) = plan["environments"]
    assert (environment["interpreter"], environment["python_package"]) == (f"/usr/bin/python{version}", package)
    installed = resolve(with_pythons(observation, *pythons, version), {"python": wanted, "steps": ["torch"]})
    assert [action["id"] for action in installed["actions"]] == ["torch.build:base", "torch.switch:base"]
    assert installed["environments"][0]["spec_digest"] == environment["spec_digest"]


def test_one_package_serves_all_environments(full: Make, driven: Make) -> None:
    observation = with_pythons(full(RTX_5070, system="rocky9", **driven("580.105.08")), "3.9")
    environments = [{"name": "a"}, {"name": "b"}, {"name": "c", "python": "3.11"}]
    plan = resolve(observation, {"environments": environments, "steps": ["torch"]})
    assert [action["id"] for action in plan["actions"] if action["id"].startswith("torch.python")] == [
        "torch.python:3.12",
        "torch.python:3.11",
    ]
    assert [len(item["actions"]) for item in plan["environments"]] == [3, 2, 3]


def test_a_newer_python_beside_it_is_no_reason_to_build_anew(full: Make, driven: Make, carry_out: Make) -> None:
    observation = with_pythons(full(RTX_5070, system="rocky9", **driven("580.105.08")), "3.9", "3.12")
    wanted = {"steps": ["torch"]}
    seen = carry_out(observation, resolve(observation, wanted))
    assert resolve(with_pythons(seen, "3.9", "3.12", "3.13"), wanted)["actions"] == []


def test_after_a_system_upgrade_the_environment_is_built_with_the_python_that_is_there_now(
    full: Make, driven: Make, carry_out: Make
) -> None:
    """Debian 12 with Python 3.11 became Debian 13 with 3.13; what served is kept until the new release is proven."""
    observation = full(RTX_5070, system="debian12", **driven("580.105.08"))
    wanted = {"steps": ["torch"]}
    seen = carry_out(observation, resolve(observation, wanted))
    seen["os"].update(version_id="13", codename="trixie")
    with_pythons(seen, "3.13")
    seen["environments"][0].update(interpreter_ok=False, python="3.11.2")
    plan = resolve(seen, wanted)
    assert [action["id"] for action in plan["actions"]] == ["torch.build:base", "torch.switch:base"]
    old = seen["environments"][0]["current"]
    assert (
        plan["actions"][0]["why"]
        == f"{old} has a dangling interpreter: the Python 3.11.2 that it was built with is gone"
    )
    assert plan["environments"][0]["spec"]["python"] == "3.13"
    assert plan["environments"][0]["release_base"] != old
    assert f"{old} serves now" in plan["actions"][1]["why"]


def test_a_named_python_that_vanished_and_is_not_packaged_is_refused(converged: dict[str, Any]) -> None:
    converged["environments"][0]["interpreter_ok"] = False
    plan = resolve(with_pythons(converged, "3.14"), {"python": "3.13"})
    assert plan["environments"][0]["python_package"] == "python3"
    plan = resolve(with_pythons(converged, "3.14"), {"python": "3.12"})
    assert [refusal["code"] for refusal in plan["refusals"]] == ["python"]


# ---- GPU generations ----------------------------------------------------------------------------------------------------

BUILDS = {
    # compute capability: (build for x86_64, its code; build for aarch64, its code); None: refused
    "5.0": (("cu126", "sm_50"), None),
    "5.2": (("cu126", "sm_50"), None),
    "6.0": (("cu126", "sm_60"), None),
    "6.1": (("cu126", "sm_60"), None),
    "7.0": (("cu128", "sm_70"), None),
    "7.5": (("cu128", "sm_75"), None),
    "8.0": (("cu128", "sm_80"), ("cu128", "sm_80")),
    "8.6": (("cu128", "sm_86"), ("cu128", "sm_80")),
    "8.7": (None, None),
    "8.9": (("cu128", "sm_86"), ("cu128", "sm_80")),
    "9.0": (("cu128", "sm_90"), ("cu128", "sm_90")),
    "10.0": (("cu128", "sm_100"), ("cu128", "sm_100")),
    "10.3": (("cu128", "sm_100"), ("cu128", "sm_100")),
    "10.7": (("cu128", "sm_100"), ("cu128", "sm_100")),
    "11.0": (None, ("cu130", "sm_110")),
    "12.0": (("cu128", "sm_120"), ("cu128", "sm_120")),
    "12.1": (("cu128", "sm_120"), ("cu128", "sm_120")),
}
"""What torch 2.9.1 has for each generation, written down by hand from the wheels that were measured and NVIDIA's tables."""
SYSTEM_NAMES = (
    *("debian12", "debian13", "ubuntu2204", "ubuntu2404", "ubuntu2604"),
    *("rocky9", "rhel9", "rhel10", "alma10", "arch"),
)


def test_every_generation_of_the_knowledge_base_has_its_row() -> None:
    assert set(BUILDS) == {row["cc"] for row in matrix.ARCHITECTURES}


@pytest.mark.parametrize("system", SYSTEM_NAMES)
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("cc", BUILDS)
def test_every_generation_gets_its_build_or_is_refused_on_every_system(
    fresh: Make, driven: Make, cc: str, arch: str, system: str
) -> None:
    flavor = "proprietary" if cc < "7.5" and len(cc) == 3 else "open"
    observation = fresh("2f04", system=system, driver=driven("615.71.09" if cc == "10.7" else "580.178.04", flavor))
    observation["os"]["arch"] = arch
    observation["gpus"] = [{"pci_address": "0000:01:00.0", "name": "the GPU", "compute_capability": cc}]
    expected = BUILDS[cc][arch == "aarch64"]
    plan = resolve(observation, {"steps": ["torch"]})
    if isinstance(expected, tuple):
        assert plan["feasible"], plan["refusals"]
        tag, code = expected
        assert (plan["torch"]["build"], plan["gpus"][0]["runs_on"]) == (f"2.9.1+{tag}", code)
        assert plan["torch"]["index_url"] == f"https://download.pytorch.org/whl/{tag}"
        assert plan["torch"]["companions"] == {"torchvision": "0.24.1", "torchaudio": "2.9.1"}
        return
    (refusal,) = plan["refusals"]
    assert (refusal["code"], refusal["gpu"], plan["actions"]) == ("torch_arch", "0000:01:00.0", [])
    assert f"has no code that runs on the GPU (sm_{cc.replace('.', '')})" in refusal["reason"]


@pytest.mark.parametrize(
    ("devices", "tag"),
    [
        (["1b80"], "cu126"),  # GTX 1080
        (["13c0"], "cu126"),  # GTX 980
        (["1b80", "2204"], "cu126"),  # with an RTX 3090: one build that serves both
        (["2b85", "2204"], "cu128"),  # RTX 5090 and 3090
    ],
)
def test_one_build_serves_all_gpus_of_a_host_and_leaving_the_default_is_said(
    fresh: Make, devices: list[str], tag: str
) -> None:
    plan = resolve(fresh(*devices))
    assert plan["feasible"], plan["refusals"]
    assert plan["torch"]["build"] == f"2.9.1+{tag}"
    assert all(gpu["runs_on"] for gpu in plan["gpus"])
    aloud = [
        text for text in plan["reasons"] if "instead of +cu128, because +cu128 has no code for GeForce GTX" in text
    ]
    assert len(aloud) == (tag == "cu126")


def test_the_gpu_that_no_common_build_serves_is_named(fresh: Make, driven: Make) -> None:
    observation = fresh("1eb8", "2e12", system="debian13-arm", driver=driven("580.178.04"))  # a T4 beside a GB10
    plan = resolve(observation, {"steps": ["torch"]})
    (refusal,) = plan["refusals"]
    assert refusal["gpu"] == "0000:01:00.0"
    assert "no code that runs on T4" in refusal["reason"].replace("Tesla ", "")
    assert "move one to another host, or name it in nvidia_driver_gpus_exclude" in refusal["remedy"]


@pytest.mark.parametrize(("device", "code"), [("2342", "sm_90"), ("2e12", "sm_120")])
def test_grace_hopper_and_dgx_spark_take_the_cuda_wheels_not_pypis_for_cpus(
    fresh: Make, driven: Make, device: str, code: str
) -> None:
    observation = fresh(device, system="ubuntu2404-arm", driver=driven("580.178.04"))
    plan = resolve(observation, {"steps": ["torch"]})
    assert (plan["torch"]["build"], plan["gpus"][0]["runs_on"]) == ("2.9.1+cu128", code)
    assert "the aarch64 wheel of 2.9.1 on PyPI is for CPUs only" in " ".join(plan["reasons"])


# ---- newer than the knowledge base --------------------------------------------------------------------------------------


def test_a_newer_torch_is_allowed_with_tag_and_index_and_said_to_be_unknown(fresh: Make) -> None:
    torch = {"version": "2.99.0", "cuda": "cu199", "index_base_url": "https://mirror.example/whl"}
    plan = resolve(fresh(RTX_5070), {"torch": torch})
    assert plan["feasible"], plan["refusals"]
    (warning,) = [text for text in plan["warnings"] if "2.99.0" in text]
    assert f"torch 2.99.0+cu199 is unknown since {matrix.AS_OF}" in warning
    assert "static proof" in warning
    assert "companions are unknown too and not installed" in warning
    (environment,) = plan["environments"]
    assert (environment["spec"]["torch"], environment["spec"]["companions"]) == ("2.99.0+cu199", {})
    assert environment["proof"]["sm"] == ["sm_120"]
    for missing in ("cuda", "index_base_url"):
        (refusal,) = resolve(fresh(RTX_5070), {"torch": {**torch, missing: None}})["refusals"]
        assert refusal["code"] == "torch_unknown"
        assert "Say which build is meant" in refusal["remedy"]
