# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided for which GPUs: branch, flavor, minimum, torch build; what is refused, and what is named instead."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import INPUT_REFUSALS, resolve

Make = Callable[..., dict[str, Any]]
REPOSITORY = Path(__file__).resolve().parents[5]

RTX_5070, RTX_5090, RTX_5050, RTX_3090, RTX_4090 = "2f04", "2b85", "2d83", "2204", "2684"
GTX_1080, GTX_1080_TI, GTX_980, V100, T4 = "1b80", "1b06", "13c0", "1db1", "1eb8"
H100, GH200, B200, B300, GB10, THOR, RUBIN, GB120 = "2330", "2342", "2901", "3182", "2e12", "2b00", "307f", "3340"
KEPLER, UNKNOWN = "0fff", "3fff"


def codes(plan: dict[str, Any]) -> set[str]:
    return {refusal["code"] for refusal in plan["refusals"]}


def said(plan: dict[str, Any]) -> str:
    return "\n".join([*plan["reasons"], *plan["warnings"]])


def refused(plan: dict[str, Any], code: str) -> str:
    """Return reason and remedy of the only refusal with a code."""
    assert not plan["feasible"]
    assert plan["actions"] == []
    (refusal,) = [refusal for refusal in plan["refusals"] if refusal["code"] == code]
    return f"{refusal['reason']} -> {refusal['remedy']}"


KEYS = {
    "feasible", "refusals", "gpus", "driver", "torch", "environments", "runtime", "actions", "reasons", "warnings", "pending",
    "steps", "proof",
}  # fmt: skip


@pytest.mark.parametrize(
    "observation", [{}, None, {"os": None, "gpus": None}, {"os": {"id": "debian", "version_id": "13"}}]
)
def test_a_host_that_was_not_observed_gets_a_complete_plan_that_refuses(observation: Any) -> None:
    plan = resolve(observation)
    assert set(plan) == KEYS
    assert codes(plan) == {"unobserved"}
    assert plan["actions"] == []
    json.dumps(plan)


def test_an_observation_of_another_schema_is_refused(fresh: Make) -> None:
    assert "schema 2" in refused(resolve(fresh(RTX_5070, schema=2)), "unobserved")


@pytest.mark.parametrize(
    ("system", "devices", "branch", "flavor", "minimum", "build", "runs_on"),
    [
        ("debian13", [RTX_5070], 580, "open", "570.133.07", "2.9.1+cu128", ["sm_120"]),
        ("debian12", [RTX_5070], 580, "open", "570.133.07", "2.9.1+cu128", ["sm_120"]),
        ("debian13", [RTX_5090], 580, "open", "570.86.16", "2.9.1+cu128", ["sm_120"]),
        ("debian13", [RTX_5050], 580, "open", "575.64.03", "2.9.1+cu128", ["sm_120"]),
        ("debian12", [GTX_1080_TI], 580, "proprietary", "550", "2.9.1+cu126", ["sm_60"]),
        ("debian12", [GTX_980], 580, "proprietary", "550", "2.9.1+cu126", ["sm_50"]),
        ("debian13", [V100], 580, "proprietary", "550", "2.9.1+cu128", ["sm_70"]),
        ("debian13", [T4], 580, "open", "550", "2.9.1+cu128", ["sm_75"]),
        ("debian12", [RTX_4090], 580, "open", "550", "2.9.1+cu128", ["sm_86"]),
        ("debian12", [H100], 580, "open", "550", "2.9.1+cu128", ["sm_90"]),
        ("debian12", [B200], 580, "open", "570.86.15", "2.9.1+cu128", ["sm_100"]),
        ("debian13", [B300], 580, "open", "580.82.07", "2.9.1+cu128", ["sm_100"]),
        ("debian13-arm", [GB10], 580, "open", "580.119.02", "2.9.1+cu128", ["sm_120"]),
        ("debian13-arm", [GH200], 580, "open", "550", "2.9.1+cu128", ["sm_90"]),
        ("debian12", [RTX_5090, RTX_3090], 580, "open", "570.86.16", "2.9.1+cu128", ["sm_120", "sm_86"]),
        ("debian12", [GTX_1080, RTX_3090], 580, "proprietary", "550", "2.9.1+cu126", ["sm_60", "sm_86"]),
        ("debian13", [RUBIN], 615, "open", "615", "2.9.1+cu128", ["sm_100"]),
        ("debian13", [UNKNOWN], 580, "open", "550", "2.9.1+cu128", [None]),
        ("debian13", [KEPLER, RTX_3090], 580, "open", "550", "2.9.1+cu128", ["sm_86"]),
    ],
)
def test_a_fresh_host_gets_what_its_gpus_need(
    fresh: Make, system: str, devices: list[str], branch: int, flavor: str, minimum: str, build: str, runs_on: list[str]
) -> None:
    plan = resolve(fresh(*devices, system=system))
    assert plan["feasible"], plan["refusals"]
    driver = plan["driver"]
    assert (driver["branch"], driver["flavor"], driver["minimum"]) == (branch, flavor, minimum)
    assert plan["torch"]["build"] == build
    assert [gpu["runs_on"] for gpu in plan["gpus"]] == runs_on
    assert plan["environments"][0]["proof"]["expect"]["torch"] == build


def test_rtx_5070_with_550_gets_580_with_open_modules(fresh: Make, driven: Make) -> None:
    plan = resolve(fresh(RTX_5070, driver=driven("550.163.01", "proprietary")), {"driver": {"reboot_allowed": True}})
    assert plan["feasible"], plan["refusals"]
    driver = plan["driver"]
    assert (driver["branch"], driver["flavor"], driver["minimum"], driver["source"]) == (
        580,
        "open",
        "570.133.07",
        "nvidia",
    )
    assert driver["pin"] == {
        "kind": "preferences",
        "package": None,
        "packages": driver["pin"]["packages"],
        "version": "580.*",
        "priority": 1001,
    }
    assert driver["repository"]["url"] == "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64"
    assert driver["repository"]["key_file"] == "02182E60104FCDC26EAE1B8597A5D4CB8793F200.asc"
    assert plan["torch"] == {
        "version": "2.9.1",
        "build": "2.9.1+cu128",
        "index_url": "https://download.pytorch.org/whl/cu128",
        "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"},
        "python": "3.13",
    }
    assert "GeForce RTX 5070 (sm_120) needs driver >= 570.133.07 and open kernel modules." in plan["reasons"]
    (packages,) = [action for action in driver["actions"] if action["id"] == "driver.packages"]
    assert packages["disruptive"]
    assert packages["data"]["remove"] == ["nvidia-kernel-dkms"]


def test_leaving_cu128_is_said_with_the_reason(fresh: Make) -> None:
    plan = resolve(fresh(GTX_1080_TI))
    assert (
        "torch 2.9.1+cu126 instead of +cu128, because +cu128 has no code for GeForce GTX 1080 Ti (sm_61): "
        "it has sm_60 code for GeForce GTX 1080 Ti (sm_61)." in plan["reasons"]
    )
    assert plan["torch"]["index_url"].endswith("/cu126")


def test_pre_turing_and_blackwell_in_one_host_are_refused(fresh: Make) -> None:
    plan = resolve(fresh(GTX_1080, RTX_5090))
    text = refused(plan, "gpu_mix")
    assert plan["refusals"][0]["code"] == "gpu_mix"
    assert "GeForce GTX 1080" in text
    assert "GeForce RTX 5090" in text
    assert "nvidia_driver_gpus_exclude" in text


def test_an_excluded_gpu_is_not_planned_for(fresh: Make) -> None:
    plan = resolve(fresh(GTX_1080, RTX_5090), {"driver": {"gpus_exclude": ["00000000:01:00.0"]}})
    assert plan["feasible"]
    assert [gpu["name"] for gpu in plan["gpus"]] == ["GeForce RTX 5090"]
    assert plan["environments"][0]["sm"] == ["sm_120"]
    assert "GeForce GTX 1080 (sm_61) at 0000:01:00.0 is left out" in said(plan)


def test_excluding_what_is_not_there_is_said(fresh: Make) -> None:
    plan = resolve(fresh(RTX_5090), {"driver": {"gpus_exclude": ["0000:99:00.0"]}})
    assert plan["feasible"]
    assert "names 0000:99:00.0, where this host has no GPU" in said(plan)


def test_a_gpu_that_belongs_to_a_virtual_machine_is_left_out(fresh: Make) -> None:
    observation = fresh(GTX_1080, RTX_5090)
    observation["gpus"][0]["kernel_driver"] = "vfio-pci"
    plan = resolve(observation)
    assert plan["feasible"]
    assert [gpu["name"] for gpu in plan["gpus"]] == ["GeForce RTX 5090"]


def test_a_host_without_gpus_is_refused_and_only_for_that(fresh: Make) -> None:
    plan = resolve(fresh(system="arch"))
    assert codes(plan) == {"no_gpu"}


def test_a_driver_is_removed_also_where_there_is_no_gpu(fresh: Make) -> None:
    plan = resolve(fresh(), {"driver": {"state": "absent"}, "steps": ["driver", "runtime"]})
    assert plan["refusals"] == []


def test_a_host_with_no_gpu_left_is_refused(fresh: Make) -> None:
    plan = resolve(fresh(RTX_5090), {"driver": {"gpus_exclude": ["0000:01:00.0"]}})
    assert "Shorten nvidia_driver_gpus_exclude" in refused(plan, "no_gpu")


def test_a_host_without_gpus_can_still_have_variables(fresh: Make) -> None:
    plan = resolve(fresh(), {"steps": ["runtime"]})
    assert plan["feasible"]
    assert {action["step"] for action in plan["actions"]} == {"runtime"}
    assert plan["warnings"] == []


def test_a_gpu_older_than_maxwell_is_refused_where_it_is_the_only_one(fresh: Make) -> None:
    assert "older than Maxwell" in refused(resolve(fresh(KEPLER)), "gpu_too_old")
    assert "it is left out" in said(resolve(fresh(KEPLER, RTX_3090)))


def test_what_the_driver_says_of_a_device_beats_the_table(fresh: Make) -> None:
    observation = fresh(RTX_3090)
    observation["gpus"][0].update(compute_capability="12.0", name="NVIDIA Thing", source="nvml")
    (gpu,) = resolve(observation)["gpus"]
    assert (gpu["name"], gpu["sm"], gpu["runs_on"]) == ("Thing", "sm_120", "sm_120")
    observation["gpus"][0].update(compute_capability="3.5")
    assert codes(resolve(observation)) == {"gpu_too_old"}


def test_a_model_is_known_by_name_where_there_is_no_device_id(fresh: Make) -> None:
    observation = fresh()
    observation["gpus"] = [{"name": "NVIDIA GeForce RTX 5070", "compute_capability": "12.0", "source": "nvml"}]
    assert resolve(observation)["driver"]["minimum"] == "570.133.07"


@pytest.mark.parametrize("given", ["2f04", "2F04", "0x2f04", "0X2F04"])
def test_device_ids_are_read_in_every_spelling(fresh: Make, given: str) -> None:
    (gpu,) = resolve(fresh(given))["gpus"]
    assert gpu["name"] == "GeForce RTX 5070"


@pytest.mark.parametrize("device", [UNKNOWN, GB120])
def test_an_unknown_gpu_gets_open_modules_and_what_is_not_known_is_said(fresh: Make, device: str) -> None:
    plan = resolve(fresh(device))
    assert plan["feasible"]
    assert plan["driver"]["flavor"] == "open"
    (gpu,) = plan["gpus"]
    assert (gpu["sm"], gpu["runs_on"], gpu["minimum_driver"]) == (None, None, None)
    assert "open kernel modules are assumed" in said(plan)
    assert "whether torch has code for it could not be checked" in said(plan)


def test_an_unknown_gpu_from_before_turing_gets_proprietary_modules(fresh: Make) -> None:
    plan = resolve(fresh("1dff"))
    assert (plan["driver"]["flavor"], plan["driver"]["branch"]) == ("proprietary", 580)
    assert codes(resolve(fresh("1dff"), {"driver": {"branch": "595"}})) == {"driver_branch"}


def test_a_compute_capability_that_is_newer_than_the_table_is_judged_by_its_code(fresh: Make) -> None:
    observation = fresh(UNKNOWN)
    observation["gpus"][0]["compute_capability"] = "13.0"
    assert "no code that runs on unknown GPU [10de:3fff] (sm_130)" in refused(resolve(observation), "torch_arch")
    observation["gpus"][0]["compute_capability"] = "12.3"
    assert resolve(observation)["gpus"][0]["runs_on"] == "sm_120"


@pytest.mark.parametrize(
    ("torch", "code", "words"),
    [
        (
            {"version": "2.6.0", "cuda": "cu124"},
            "torch_arch",
            ["2.6.0+cu124", "GeForce RTX 5070 (sm_120)", "2.7.0+cu128"],
        ),
        ({"version": "2.6.0"}, "torch_arch", ["2.7.0+cu128"]),
        ({"version": "2.7.1+cu126"}, "torch_arch", ["2.7.1+cu126", "2.7.1+cu128"]),
        ({"version": "2.9.1", "cuda": "cu126"}, "torch_arch", ["2.9.1+cu128"]),
        ({"version": "2.5.1"}, "torch_arch", ["2.7.0+cu128"]),
        ({"version": "2.9.7"}, "torch_unknown", ["not in the knowledge base", "2.9.1 and 2.9.0", "2.9.1+cu128"]),
        ({"version": "2.9"}, "torch_unknown", ["2.9.0"]),
        ({"version": "1.13.1"}, "torch_unknown", ["2.4.1", "2.7.0+cu128"]),
        (
            {"version": "2.16.0"},
            "torch_unknown",
            ["newer than the knowledge base", "ends at 2.15.0", "torch_env_index_base_url"],
        ),
        ({"version": "2.16.0+cu132"}, "torch_unknown", ["torch_env_index_base_url"]),
        ({"version": "2.6.0+cu128"}, "torch_index_unknown", ["cu118, cu124 and cu126", "2.7.0+cu128"]),
        (
            {"cuda": "cu127"},
            "torch_index_unknown",
            ["no cu127 index for torch 2.9.1", "cu126, cu128 and cu130", "2.9.1+cu128"],
        ),
        ({"cuda": "cu1288"}, "torch_index_unknown", ["Did you mean cu128?"]),
        ({"version": "2.9.1+cpu"}, "torch_arch", ["no CUDA build"]),
        ({"cuda": "rocm6.4"}, "torch_arch", ["no CUDA build"]),
        (
            {"version": "2.16.0", "cuda": "cu13", "index_base_url": "https://m/whl"},
            "torch_index_unknown",
            ["cu13 is no CUDA tag"],
        ),
    ],
)
def test_what_an_rtx_5070_cannot_have_is_refused_with_the_nearest_that_works(
    fresh: Make, torch: dict[str, str], code: str, words: list[str]
) -> None:
    plan = resolve(fresh(RTX_5070, system="debian12"), {"torch": torch})
    assert codes(plan) == {code}
    text = refused(plan, code)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("build", "index"),
    [("2.7.0+cu128", "cu128"), ("2.8.0+cu129", "cu129"), ("2.9.1+cu130", "cu130"), ("2.15.0+cu132", "cu132")],
)
def test_what_was_asked_for_and_works_is_planned_as_asked(fresh: Make, build: str, index: str) -> None:
    plan = resolve(fresh(RTX_5070), {"torch": {"version": build}})
    assert plan["feasible"]
    assert plan["torch"]["build"] == build
    assert plan["torch"]["index_url"].endswith(f"/{index}")
    assert f"torch {build} was asked for" in said(plan)


@pytest.mark.parametrize(
    ("version", "devices", "tag"),
    [
        ("2.7.0", [RTX_5070], "cu128"),
        ("2.7.0", [V100], "cu126"),
        ("2.11.0", [V100], "cu126"),
        ("2.11.0", [RTX_5070], "cu128"),
        ("2.12.1", [RTX_5070], "cu130"),
        ("2.12.1", [GTX_1080], "cu126"),
        ("2.15.0", [RTX_5070], "cu132"),
        ("2.6.0", [RTX_3090], "cu124"),
    ],
)
def test_auto_prefers_cu128_then_what_pypi_has(fresh: Make, version: str, devices: list[str], tag: str) -> None:
    plan = resolve(fresh(*devices), {"torch": {"version": version}})
    assert plan["feasible"], plan["refusals"]
    assert plan["torch"]["build"] == f"{version}+{tag}"


def test_a_release_without_code_for_volta_names_the_nearest_that_has(fresh: Make) -> None:
    assert "2.14.1+cu126" in refused(resolve(fresh(V100), {"torch": {"version": "2.15.0"}}), "torch_arch")


def test_a_torch_newer_than_the_knowledge_base_is_allowed_with_its_tag_and_index(fresh: Make) -> None:
    torch = {"version": "2.16.0+cu140", "index_base_url": "https://mirror.example/whl"}
    plan = resolve(fresh(RTX_5070), {"torch": torch})
    assert plan["feasible"]
    assert plan["torch"]["index_url"] == "https://mirror.example/whl/cu140"
    assert plan["torch"]["companions"] == {}
    assert "unknown since 2026-11-22" in said(plan)
    assert "static proof" in said(plan)


def test_an_inferred_index_is_taken_only_on_request_and_with_a_warning(fresh: Make) -> None:
    assert resolve(fresh(RTX_5070), {"torch": {"version": "2.15.0"}})["torch"]["build"] != "2.15.0+cu134"
    plan = resolve(fresh(RTX_5070), {"torch": {"version": "2.15.0+cu134"}})
    assert plan["feasible"]
    assert "is inferred" in said(plan)


def test_index_urls_of_the_user_are_used(fresh: Make) -> None:
    plan = resolve(
        fresh(RTX_5070), {"torch": {"index_url": "https://m.example/exact/"}, "package_index_url": "https://p.example"}
    )
    assert plan["torch"]["index_url"] == "https://m.example/exact"
    assert plan["environments"][0]["package_index_url"] == "https://p.example"
    assert resolve(fresh(RTX_5070), {"torch": {"index_base_url": "https://m.example/whl"}})["torch"]["index_url"] == (
        "https://m.example/whl/cu128"
    )


# ---- aarch64, Jetson, WSL2 ----------------------------------------------------------------------------------------------


def test_dgx_spark_takes_torch_from_the_index_not_the_cpu_wheel_of_pypi(fresh: Make) -> None:
    plan = resolve(fresh(GB10, system="debian13-arm"))
    assert plan["torch"]["index_url"] == "https://download.pytorch.org/whl/cu128"
    assert "the aarch64 wheel of 2.9.1 on PyPI is for CPUs only" in said(plan)
    assert plan["driver"]["repository"]["url"].endswith("/debian13/sbsa")
    assert plan["environments"][0]["spec"]["arch"] == "aarch64"


def test_an_aarch64_build_whose_code_is_not_established_is_refused(fresh: Make) -> None:
    plan = resolve(fresh(GH200, system="debian13-arm"), {"torch": {"version": "2.8.0+cu128"}})
    assert "is not established" in refused(plan, "torch_arch")
    assert "2.9.0+cu128" in refused(plan, "torch_arch")


def test_architectures_have_their_other_names_and_others_are_refused(fresh: Make) -> None:
    observation = fresh(GB10)
    observation["os"]["arch"] = "arm64"
    assert resolve(observation)["environments"][0]["spec"]["arch"] == "aarch64"
    observation["os"]["arch"] = "ppc64le"
    assert codes(resolve(observation)) == {"architecture"}
    del observation["os"]["arch"]
    assert "x86_64 is assumed" in said(resolve(observation))


def jetson(name: str, cc: str, version: str) -> dict[str, Any]:
    return {
        "os": {"id": "ubuntu", "version_id": "24.04", "arch": "aarch64"},
        "gpus": [{"name": name, "compute_capability": cc, "source": "libcuda"}],
        "driver": {"loaded_version": version},
    }


def test_thor_keeps_jetpacks_driver_and_gets_cu130() -> None:
    plan = resolve(jetson("Thor", "11.0", "580.00"))
    assert plan["feasible"], plan["refusals"]
    assert plan["torch"]["build"] == "2.9.1+cu130"
    assert (plan["driver"]["source"], plan["driver"]["actions"], plan["driver"]["packages"]) == ("platform", [], [])


def test_orin_is_served_only_by_builds_of_cuda_13_2_and_a_driver_that_runs_them() -> None:
    assert "JetPack" in refused(resolve(jetson("Orin", "8.7", "540.4.0")), "torch_arch")
    plan = resolve(jetson("Orin", "8.7", "595.00"), {"torch": {"version": "2.12.1+cu132"}})
    assert plan["feasible"], plan["refusals"]
    assert plan["gpus"][0]["runs_on"] == "sm_80"
    assert "2.12.1+cu132" in refused(resolve(jetson("Orin", "8.7", "595.00")), "torch_arch")


def wsl(version: str | None) -> dict[str, Any]:
    driver = {"loaded_version": version, "userspace_version": version, "source": "wsl"} if version else {}
    return {
        "os": {"id": "ubuntu", "version_id": "24.04", "arch": "x86_64", "virtualization": "wsl"},
        "gpus": [{"name": "NVIDIA GeForce RTX 5070", "compute_capability": "12.0", "source": "nvml"}],
        "driver": driver,
    }


def test_the_driver_of_wsl2_is_left_to_windows() -> None:
    plan = resolve(wsl("581.29"))
    assert plan["feasible"], plan["refusals"]
    assert (plan["driver"]["source"], plan["driver"]["branch"], plan["driver"]["actions"]) == ("wsl", 581, [])
    assert {action["step"] for action in plan["actions"]} == {"torch", "runtime", "proof"}


def test_a_windows_driver_that_is_too_old_is_refused_with_the_remedy_in_windows() -> None:
    plan = resolve(wsl("552.44"))
    assert codes(plan) == {"driver_minimum"}
    assert "Update the NVIDIA driver in Windows" in plan["refusals"][0]["remedy"]


def test_a_windows_driver_of_unknown_version_is_said() -> None:
    plan = resolve(wsl(None))
    assert plan["feasible"]
    assert "belongs to Windows, and its version is not known" in said(plan)


# ---- the driver ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "flavor", "devices"),
    [
        ("595.84", "open", [RTX_3090]),
        ("595.84", "proprietary", [RTX_3090]),
        ("580.105.08", "open", [RTX_5070]),
        ("570.211.01", "open", [RTX_5070]),
        ("570.133.07", "open", [RTX_5070]),
        ("580.65.06", "proprietary", [GTX_1080]),
        ("630.10", "open", [RTX_5070]),
    ],
)
def test_a_driver_that_fulfils_everything_is_kept(
    fresh: Make, driven: Make, version: str, flavor: str, devices: list[str]
) -> None:
    plan = resolve(fresh(*devices, driver=driven(version, flavor)))
    assert plan["feasible"], plan["refusals"]
    assert (plan["driver"]["branch"], plan["driver"]["flavor"]) == (int(version[:3]), flavor)
    assert "driver.packages" not in {action["id"] for action in plan["actions"]}
    assert f"Driver {version} ({flavor} kernel modules) is installed and good enough: it is kept." in plan["reasons"]


@pytest.mark.parametrize(
    ("version", "flavor", "devices", "branch"),
    [
        ("550.163.01", "proprietary", [RTX_5070], 580),
        ("570.86.16", "open", [RTX_5070], 580),
        ("580.105.08", "open", [GB10], 580),
        ("595.84", "proprietary", [RTX_5070], 595),
        ("535.261.03", "proprietary", [RTX_4090], 580),
        ("590.44.01", "proprietary", [RTX_5070], 595),
    ],
)
def test_a_driver_that_does_not_fulfil_everything_is_replaced_never_by_an_older_branch(
    fresh: Make, driven: Make, version: str, flavor: str, devices: list[str], branch: int
) -> None:
    plan = resolve(fresh(*devices, driver=driven(version, flavor)))
    assert plan["feasible"], plan["refusals"]
    assert plan["driver"]["branch"] == branch
    assert "driver.packages" in {action["id"] for action in plan["actions"]}


def test_a_branch_that_gets_no_more_fixes_is_kept_with_a_warning(fresh: Make, driven: Make) -> None:
    plan = resolve(fresh(RTX_3090, driver=driven("550.163.01")))
    assert plan["driver"]["branch"] == 550
    assert "Driver branch 550 gets no more fixes; supported are 580, 595, 615 and 620." in plan["warnings"]


@pytest.mark.parametrize(
    ("desired", "devices", "code", "words"),
    [
        (
            {"branch": "550"},
            [RTX_5070],
            "driver_branch",
            ["GeForce RTX 5070 (sm_120) needs driver >= 570.133.07", "or to 580"],
        ),
        ({"branch": "570"}, [RTX_5050], "driver_branch", ["575.64.03", "580"]),
        ({"branch": "595"}, [GTX_1080], "driver_branch", ["supported up to branch 580", "auto or 580"]),
        ({"branch": "535"}, [RTX_3090], "driver_minimum", ["nvidia_driver_minimum", "branch 535"]),
        ({"branch": "585"}, [RTX_3090], "driver_branch_unknown", ["no driver branch 585", "590 and 580"]),
        ({"branch": "100"}, [RTX_3090], "driver_branch_unknown", ["470"]),
        ({"minimum": "590"}, [GTX_1080], "driver_minimum", ["branch 580, the last one for GeForce GTX 1080"]),
        ({"flavor": "proprietary"}, [RTX_5070], "driver_flavor", ["open kernel modules only", "auto or open"]),
        ({"flavor": "open"}, [GTX_1080], "driver_flavor", ["proprietary kernel modules only"]),
        ({"flavor": "proprietary", "branch": "620"}, [RTX_3090], "driver_flavor", ["branch 620 has no proprietary"]),
        ({"source": "distro"}, [RTX_5070], "driver_source", ["550.163.01", "nvidia_driver_source to nvidia"]),
        ({"source": "distro", "branch": "580"}, [RTX_3090], "driver_source", ["has branch 550, not 580"]),
    ],
)
def test_a_driver_that_was_asked_for_and_cannot_be_is_refused(
    fresh: Make, desired: dict[str, str], devices: list[str], code: str, words: list[str]
) -> None:
    plan = resolve(fresh(*devices), {"driver": desired})
    assert code in codes(plan)
    text = "\n".join(f"{row['reason']} -> {row['remedy']}" for row in plan["refusals"] if row["code"] == code)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("desired", "branch"),
    [({"minimum": "590"}, 595), ({"minimum": "600"}, 615), ({"minimum": "580.178.05"}, 580), ({"branch": 595}, 595)],
)
def test_the_branch_follows_the_users_floor(fresh: Make, desired: dict[str, Any], branch: int) -> None:
    plan = resolve(fresh(RTX_3090), {"driver": desired})
    assert plan["feasible"], plan["refusals"]
    assert plan["driver"]["branch"] == branch


def test_a_branch_newer_than_the_knowledge_base_is_planned_on_request(fresh: Make) -> None:
    plan = resolve(fresh(RTX_5070), {"driver": {"branch": "640"}})
    assert plan["feasible"], plan["refusals"]
    assert plan["driver"]["branch"] == 640
    assert plan["driver"]["pin"]["package"] is None
    assert "branch 640 is unknown since 2026-11-22" in said(plan)


def test_torch_for_cuda_13_raises_the_driver_or_is_refused(fresh: Make, driven: Make) -> None:
    torch = {"torch": {"version": "2.15.0+cu132"}}
    raised = resolve(fresh(RTX_3090, driver=driven("550.163.01")), torch)
    assert raised["feasible"], raised["refusals"]
    assert (raised["driver"]["branch"], raised["driver"]["minimum"]) == (580, "580.65.06")
    assert "torch 2.15.0+cu132 needs driver >= 580.65.06." in raised["reasons"]
    text = refused(resolve(fresh(RTX_3090), {**torch, "driver": {"branch": "550"}}), "torch_driver")
    assert "needs driver >= 580.65.06" in text
    assert "auto or to 580" in text
    assert "2.14.1+cu126" in text


def test_auto_takes_a_build_that_the_branch_that_was_asked_for_can_run(fresh: Make) -> None:
    plan = resolve(fresh(RTX_3090), {"torch": {"version": "2.12.1"}, "driver": {"branch": "550"}})
    assert plan["feasible"], plan["refusals"]
    assert plan["torch"]["build"] == "2.12.1+cu126"


def test_a_downgrade_is_refused_unless_permitted(fresh: Make, driven: Make) -> None:
    observation = fresh(RTX_3090, driver=driven("595.84"))
    assert "nvidia_driver_downgrade_allowed" in refused(
        resolve(observation, {"driver": {"branch": "580"}}), "driver_downgrade"
    )
    plan = resolve(observation, {"driver": {"branch": "580", "downgrade_allowed": True, "reboot_allowed": True}})
    assert plan["feasible"], plan["refusals"]
    assert plan["driver"]["branch"] == 580


def test_an_old_gpu_under_a_branch_that_dropped_it_needs_a_downgrade(fresh: Make, driven: Make) -> None:
    observation = fresh(GTX_1080, driver=driven("595.84"))
    assert codes(resolve(observation)) == {"driver_downgrade"}
    plan = resolve(observation, {"driver": {"downgrade_allowed": True}})
    assert (plan["driver"]["branch"], plan["driver"]["flavor"]) == (580, "proprietary")


def test_debian_12s_own_driver_is_below_the_floor(fresh: Make) -> None:
    text = refused(resolve(fresh(RTX_3090, system="debian12"), {"driver": {"source": "distro"}}), "driver_source")
    assert "535.261.03" in text
    assert "550" in text


def test_debian_13s_own_driver_is_planned_with_its_components_and_its_known_trouble(full: Make) -> None:
    observation = full(RTX_3090)
    observation["os"]["apt"]["sources"][0]["components"] = ["main"]
    plan = resolve(observation, {"driver": {"source": "distro"}})
    assert plan["feasible"], plan["refusals"]
    driver = plan["driver"]
    assert (driver["branch"], driver["source"], driver["pin"]["version"]) == (550, "distro", "550.*")
    assert driver["packages"] == ["libcuda1", "nvidia-smi", "nvidia-open-kernel-dkms", "nvidia-persistenced"]
    (repository,) = [action for action in driver["actions"] if action["id"] == "driver.repository"]
    assert repository["data"]["content"].splitlines()[1:] == [
        "Types: deb",
        "URIs: http://archive.example/debian",
        "Suites: trixie",
        "Components: contrib non-free non-free-firmware",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
    ]
    assert repository["data"]["key_path"] is None
    assert "fails on kernel 6.12.107" in said(plan)


def test_debians_archive_is_used_as_it_is_where_it_has_all_components(full: Make) -> None:
    plan = resolve(full(RTX_3090), {"driver": {"source": "distro"}})
    assert plan["driver"]["repository"]["adopt"] == "/etc/apt/sources.list.d/debian.sources"
    assert "driver.repository" not in {action["id"] for action in plan["actions"]}


def test_debians_archive_must_be_among_the_sources(full: Make) -> None:
    observation = full(RTX_3090)
    observation["os"]["apt"]["sources"] = []
    assert "carries trixie main" in refused(resolve(observation, {"driver": {"source": "distro"}}), "driver_source")


def test_a_driver_from_debian_that_fulfils_everything_is_kept(full: Make, driven: Make) -> None:
    plan = resolve(full(RTX_3090, **driven("550.163.01", source="distro")))
    assert plan["feasible"], plan["refusals"]
    assert (plan["driver"]["source"], plan["driver"]["branch"]) == ("distro", 550)
    assert not {"driver.packages", "driver.pin", "driver.repository"} & {action["id"] for action in plan["actions"]}


def test_a_driver_from_debian_is_never_mixed_with_nvidias(full: Make, driven: Make) -> None:
    plan = resolve(full(RTX_5070, **driven("550.163.01", source="distro")))
    text = refused(plan, "foreign_packages")
    assert "Set nvidia_driver_source: nvidia to replace all of them in one transaction" in text
    assert plan["driver"]["branch"] == 580


def test_a_driver_from_debian_is_replaced_as_a_whole_where_the_source_is_asked_for(full: Make, driven: Make) -> None:
    plan = resolve(full(RTX_5070, **driven("550.163.01", source="distro")), {"driver": {"source": "nvidia"}})
    assert plan["feasible"], plan["refusals"]
    (packages,) = [action for action in plan["actions"] if action["id"] == "driver.packages"]
    assert packages["data"]["remove"] == ["nvidia-smi", "nvidia-open-kernel-dkms"]
    assert packages["data"]["packages"] == [
        "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-persistenced",
    ]  # fmt: skip


def test_a_driver_from_nvidia_gives_way_to_debians_only_without_nvidias_repository(full: Make, driven: Make) -> None:
    observation = full(RTX_3090, **driven("550.163.01"))
    asked = {"driver": {"source": "distro"}}
    assert resolve(observation, asked)["feasible"]
    row = {"file": "/etc/apt/sources.list.d/cuda.list", "suites": ["/"],
           "uris": ["https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64"]}  # fmt: skip
    observation["os"]["apt"]["sources"].append(row)
    text = refused(resolve(observation, asked), "foreign_packages")
    assert "/etc/apt/sources.list.d/cuda.list" in text
    assert "nvidia_driver_source: nvidia" in text


def test_packages_that_are_no_driver_may_come_from_anywhere(full: Make, driven: Make, package: Make) -> None:
    driver = driven("570.86.16")
    driver["packages"] += [
        package("nvidia-modprobe", "570.133.07-1", "distro"),
        package("firmware-nvidia-graphics", "20250410-2", "distro"),
        package("cuda-keyring", "1.1-1", "nvidia"),
        package("libcuda1-old", "570.86.16-1", "distro", state="config-files"),
    ]
    plan = resolve(full(RTX_5070, **driver))
    assert plan["feasible"], plan["refusals"]


def test_a_driver_from_a_run_file_is_refused_with_the_way_out(full: Make, driven: Make) -> None:
    driver = driven("580.105.08", source="runfile")
    driver["packages"] = []
    assert "nvidia-uninstall" in refused(resolve(full(RTX_5070, **driver)), "foreign_packages")
    assert resolve(full(RTX_5070, **driver), {"steps": ["torch"]})["feasible"]


def test_where_no_driver_can_be_installed_a_suitable_one_must_be_there(fresh: Make, driven: Make) -> None:
    for os_id, version in (
        ("arch", ""),
        ("fedora", "43"),
        ("sles", "15.6"),
        ("opensuse-leap", "16.0"),
        ("rocky", "8.10"),
    ):
        observation = fresh(RTX_3090)
        observation["os"].update(id=os_id, version_id=version)
        plan = resolve(observation)
        assert "Install a driver >= 550" in refused(plan, "distribution")
        assert plan["driver"]["branch"] == 580
        kept = resolve({**observation, "driver": driven("580.105.08")})
        assert "distribution" not in codes(kept)
        assert kept["driver"]["actions"] == []


@pytest.mark.parametrize(
    ("system", "packages", "pin"),
    [
        (
            "ubuntu2404",
            ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580", "nvidia-compute-utils-580"],
            "580.*",
        ),
        ("ubuntu2604", ["libnvidia-compute", "nvidia-dkms-open", "nvidia-persistenced"], "595.*"),
        ("rocky9", ["nvidia-driver-cuda", "kmod-nvidia-open-dkms"], "nvidia-driver:580-open"),
        ("alma10", ["nvidia-driver-cuda", "kmod-nvidia-open-dkms"], "*nvidia*580*"),
    ],
)
def test_packages_and_pins_are_named_as_each_distribution_names_them(
    fresh: Make, system: str, packages: list[str], pin: str
) -> None:
    driver = resolve(fresh(RTX_3090, system=system))["driver"]
    assert driver["packages"] == packages
    assert pin in (driver["pin"]["version"], driver["pin"]["packages"])


@pytest.mark.parametrize(
    ("package_set", "graphical", "packages"),
    [
        ("auto", False, ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]),
        ("auto", True, ["nvidia-open"]),
        ("compute", True, ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]),
        ("desktop", False, ["nvidia-open"]),
    ],
)
def test_the_package_set_follows_the_desktop_unless_it_is_said(
    full: Make, package_set: str, graphical: bool, packages: list[str]
) -> None:
    observation = full(RTX_3090)
    observation["os"]["graphical"] = graphical
    assert resolve(observation, {"driver": {"package_set": package_set}})["driver"]["packages"] == packages


def test_proprietary_packages_are_others(full: Make) -> None:
    for package_set, packages in (
        ("compute", ["nvidia-driver-cuda", "nvidia-kernel-dkms"]),
        ("desktop", ["cuda-drivers"]),
    ):
        plan = resolve(full(GTX_1080), {"driver": {"package_set": package_set}})
        assert plan["driver"]["packages"] == packages


def test_an_apt_source_for_the_same_repository_is_adopted(full: Make) -> None:
    observation = full(RTX_3090)
    observation["os"]["apt"]["sources"].append(
        {
            "file": "/etc/apt/sources.list.d/cuda-debian13-x86_64.list",
            "uris": ["https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/"],
            "suites": ["/"],
            "components": [],
            "signed_by": "/usr/share/keyrings/cuda-archive-keyring.gpg",
        }
    )
    plan = resolve(observation)
    assert plan["driver"]["repository"]["adopt"] == "/etc/apt/sources.list.d/cuda-debian13-x86_64.list"
    assert plan["driver"]["repository"]["signed_by"] == "/usr/share/keyrings/cuda-archive-keyring.gpg"
    assert "driver.repository" not in {action["id"] for action in plan["actions"]}


def test_a_mirror_with_its_own_key_replaces_nvidias_repository(full: Make) -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----\n"
    plan = resolve(full(RTX_3090), {"driver": {"repository_url": "http://mirror.example/nv/", "repository_key": key}})
    (action,) = [action for action in plan["actions"] if action["id"] == "driver.repository"]
    assert "URIs: http://mirror.example/nv\n" in action["data"]["content"]
    assert (action["data"]["key_file"], action["data"]["key_content"]) == ("", key.strip())


# ---- steps --------------------------------------------------------------------------------------------------------------


def test_torch_alone_is_planned_against_the_driver_that_is_there(fresh: Make, driven: Make) -> None:
    steps = {"steps": ["torch"]}
    good = resolve(fresh(RTX_3090, driver=driven("550.163.01")), steps)
    assert good["feasible"], good["refusals"]
    assert {action["step"] for action in good["actions"]} == {"torch"}
    cuda_13 = {**steps, "torch": {"version": "2.15.0"}}
    assert codes(resolve(fresh(RTX_3090, driver=driven("550.163.01")), cuda_13)) == {"torch_driver"}
    assert codes(resolve(fresh(RTX_5070, driver=driven("550.163.01")), steps)) == {"torch_driver"}
    assert codes(resolve(fresh(RTX_5070, driver=driven("580.105.08", "proprietary")), steps)) == {"torch_driver"}
    assert codes(resolve(fresh(GTX_1080, driver=driven("595.84", "proprietary")), steps)) == {"torch_driver"}


def test_torch_alone_is_refused_where_no_driver_is_installed_and_planned_where_that_is_not_known(
    fresh: Make, full: Make
) -> None:
    assert codes(resolve(full(RTX_3090), {"steps": ["torch"]})) == {"torch_driver"}
    assert resolve(fresh(RTX_3090), {"steps": ["torch"]})["feasible"]


def test_the_driver_alone_is_not_refused_for_torch(fresh: Make) -> None:
    plan = resolve(fresh(RTX_5070), {"steps": ["driver"], "torch": {"version": "2.6.0"}})
    assert plan["feasible"], plan["refusals"]
    assert "no code that runs on GeForce RTX 5070" in said(plan)
    assert {action["step"] for action in plan["actions"]} == {"driver"}


# ---- Python -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "python"),
    [
        ("debian12", "3.11"),
        ("debian13", "3.13"),
        ("ubuntu2204", "3.10"),
        ("ubuntu2404", "3.12"),
        ("rocky9", "3.12"),
        ("alma10", "3.12"),
    ],
)
def test_a_fresh_system_gets_its_own_python_or_the_newer_one_it_packages(fresh: Make, system: str, python: str) -> None:
    plan = resolve(fresh(RTX_3090, system=system))
    assert plan["torch"]["python"] == python
    assert plan["environments"][0]["interpreter"] == f"/usr/bin/python{python}"
    assert ("its package python3.12 is installed" in said(plan)) == (system == "rocky9")
    assert plan["environments"][0]["python_package"] == ("python3.12" if system == "rocky9" else None)


def test_a_default_python_that_is_not_established_is_said(fresh: Make) -> None:
    plan = resolve(fresh(RTX_3090, system="ubuntu2604"))
    assert (plan["torch"]["python"], plan["environments"][0]["spec"]["python"]) == (None, "auto")
    assert "Which Python Ubuntu 26.04 comes with is not in the knowledge base" in said(plan)


@pytest.mark.parametrize(
    ("pythons", "wanted", "expected"),
    [
        (["3.13"], "auto", "3.13"),
        (["3.12", "3.13", "3.14"], "auto", "3.13"),
        (["3.9", "3.12", "3.14"], "auto", "3.14"),
        (["3.12", "3.13"], "3.12", "3.12"),
    ],
)
def test_the_systems_own_python_is_preferred_then_the_newest(
    full: Make, pythons: list[str], wanted: str, expected: str
) -> None:
    observation = full(RTX_3090)
    observation["os"]["pythons"] = {version: f"/opt/python{version}" for version in pythons}
    plan = resolve(observation, {"python": wanted})
    assert plan["torch"]["python"] == expected
    assert plan["environments"][0]["interpreter"] == f"/opt/python{expected}"


@pytest.mark.parametrize(
    ("system", "pythons", "wanted", "words"),
    [
        ("debian13", ["3.13"], "3.15", "supports Python 3.10 to 3.14, not 3.15"),
        ("debian13", ["3.13"], "3.9", "not 3.9"),
        (
            "debian13",
            ["3.13"],
            "3.12",
            "Python 3.12 is not installed and not packaged for Debian 13: the host has 3.13",
        ),
        ("arch", ["3.8", "3.9"], "auto", "the host has 3.8 and 3.9"),
        ("arch", [], "auto", "supports Python 3.10 to 3.14, the host has none -> Install one of these"),
    ],
)
def test_a_python_that_is_not_there_or_does_not_fit_is_refused(
    fresh: Make, driven: Make, system: str, pythons: list[str], wanted: str, words: str
) -> None:
    observation = fresh(RTX_3090, system=system, driver=driven("580.105.08"))
    observation["os"]["pythons"] = {version: f"/usr/bin/python{version}" for version in pythons}
    assert words in refused(resolve(observation, {"python": wanted}), "python")


def test_a_python_that_may_be_missing_is_said_where_the_host_is_not_known(fresh: Make) -> None:
    plan = resolve(fresh(RTX_3090), {"python": "3.12"})
    assert plan["feasible"]
    assert "Python 3.12 has to be installed on the host: Debian 13 comes with 3.13." in plan["warnings"]


# ---- environments -------------------------------------------------------------------------------------------------------


def test_each_environment_has_its_own_stack_and_the_driver_serves_all(fresh: Make) -> None:
    environments = [
        {"name": "a"},
        {"name": "b", "torch": "2.15.0", "requirements": ["x", "a"], "companions": ["torchaudio"]},
    ]
    plan = resolve(fresh(RTX_3090), {"environments": environments})
    first, second = plan["environments"]
    assert [first["spec"]["torch"], second["spec"]["torch"]] == ["2.9.1+cu128", "2.15.0+cu132"]
    assert plan["driver"]["minimum"] == "580.65.06"
    assert plan["torch"]["build"] == "2.9.1+cu128"
    assert second["spec"] == {
        "name": "b",
        "python": "3.13",
        "torch": "2.15.0+cu132",
        "companions": {"torchaudio": "2.11.0"},
        "requirements": ["a", "x"],
        "arch": "x86_64",
        "schema": 1,
    }
    assert second["release_base"] == f"2.15.0-cu132-{second['spec_digest'][:8]}"
    assert second["proof"] == {
        "name": "b",
        "python": "/opt/gpufleet/envs/b/current/bin/python",
        "user": "root",
        "expect": {"torch": "2.15.0+cu132", "companions": {"torchaudio": "2.11.0"}},
        "sm": ["sm_86"],
    }


def test_a_digest_depends_on_what_is_built_and_on_nothing_else(fresh: Make) -> None:
    base = resolve(fresh(RTX_3090))["environments"][0]["spec_digest"]
    for same in (
        {"keep": 3},
        {"package_index_url": "https://x"},
        {"mirror": {"index_base_url": "https://x/whl", "package_index_url": "https://x/simple"}},
        {"environments": [{"name": "base", "owner": "alice"}]},
    ):
        assert resolve(fresh(RTX_3090), same)["environments"][0]["spec_digest"] == base
    for other in ({"torch": {"version": "2.9.0"}}, {"environments": [{"name": "base", "requirements": ["x"]}]}):
        assert resolve(fresh(RTX_3090), other)["environments"][0]["spec_digest"] != base


def test_codes_of_refusals_are_the_documented_ones() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_]+)`", text[text.index("Refusal codes:") :].partition("\n\n")[0]))
    sources = (REPOSITORY / "plugins" / "module_utils" / "_compat").glob("*.py")
    used = set().union(*(re.findall(r"refuse\(\s*\"([a-z_]+)\"", path.read_text(encoding="utf-8")) for path in sources))
    assert len(used) > 10
    assert used | INPUT_REFUSALS <= documented


def test_what_could_not_be_read_is_passed_on(fresh: Make) -> None:
    plan = resolve(fresh(RTX_3090, unknown=[{"what": "os.secure_boot", "why": "Permission denied"}]))
    assert "os.secure_boot could not be read: Permission denied" in plan["warnings"]
