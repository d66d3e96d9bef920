"""The verdict: no record, no pass."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge, torch_checks

GPU = {"pci_address": "0000:01:00.0", "uuid": "GPU-1", "name": "NVIDIA GeForce RTX 5070", "sm": "sm_120"}
FACTS = {
    "version": "2.9.1+cu128",
    "distribution_version": "2.9.1",
    "cuda": "12.8",
    "hip": None,
    "arch_flags": ["sm_75", "sm_90a", "sm_120", "compute_120"],
    "file": "/env/lib/torch/__init__.py",
    "prefix": "/env",
}
EXPECT = {"torch": "2.9.1+cu128", "companions": {"torchvision": "0.24.1"}}


def told(name, gpu=None, **more):
    return {"event": "check", "id": name, "gpu": gpu, "status": "passed", "evidence": "seen", **more}


def static_records():
    return [
        {"event": "python", "version": "3.12.1", "prefix": "/env"},
        told("torch.import"),
        {"event": "torch", "facts": FACTS},
        told("torch.cpu"),
        told("companion.torchvision"),
        {"event": "companions", "facts": {"torchvision": "0.24.1+cu128"}},
    ]


def gpu_records():
    return [told(name, GPU["pci_address"]) for name in ["gpu.identity", *judge.gpu_checks("sm_120")]]


def static_verdict(records, sm=("sm_120",)):
    return judge.verdict(judge.static_checks(judge.Outcome(records, None), EXPECT, sm)[0])


def gpu_verdict(records):
    driver = judge.Outcome([told("gpu.driver_kernel", GPU["pci_address"])], None)
    outcomes = {GPU["pci_address"]: judge.Outcome(records, None)}
    return judge.judged_gpus(outcomes, driver, [GPU], {})[0]["verdict"]


def test_all_records_together_pass():
    assert static_verdict(static_records()) == "passed"
    assert gpu_verdict(gpu_records()) == "passed"


@pytest.mark.parametrize("index", range(len(static_records())))
def test_a_lost_static_record_never_passes(index):
    records = static_records()
    del records[index]
    assert static_verdict(records) != "passed"


@pytest.mark.parametrize("index", range(len(gpu_records())))
def test_a_lost_gpu_record_never_passes(index):
    records = gpu_records()
    del records[index]
    assert gpu_verdict(records) == "not_run"


@pytest.mark.parametrize("status", ["failed", "not_run", "Passed", None, True, []])
def test_only_the_word_passed_passes(status):
    records = gpu_records()
    records[3] = told("gpu.elementwise", GPU["pci_address"], status=status)
    assert gpu_verdict(records) == "failed"


def test_a_record_of_another_gpu_does_not_count():
    records = gpu_records()
    records[-1] = {**records[-1], "gpu": "0000:02:00.0"}
    assert gpu_verdict(records) == "not_run"


def test_no_checks_prove_nothing():
    assert judge.verdict([]) == "not_run"
    assert judge.combine([]) == "not_run"
    assert judge.combine(["passed", "not_run"]) == "not_run"
    assert judge.combine(["not_run", "failed", "passed"]) == "failed"


def test_every_architecture_of_the_host_must_be_covered():
    checks, _torch, _companions = judge.static_checks(
        judge.Outcome(static_records(), None), EXPECT, ["sm_120", "sm_86", "sm_90"]
    )
    arch = next(check for check in checks if check["id"] == "torch.arch")
    assert arch["code"] == "arch_missing"
    assert "sm_86, sm_90" in arch["evidence"]  # sm_75 is another major version, and sm_90a is not code for every 9.0


@pytest.mark.failure("arch_unknown")
def test_what_gpus_need_that_nobody_named_is_not_guessed():
    checks, _torch, _companions = judge.static_checks(judge.Outcome(static_records(), None), EXPECT, [])
    arch = next(check for check in checks if check["id"] == "torch.arch")
    assert (arch["status"], arch["code"]) == ("not_run", "arch_unknown")
    assert "sm_120" in arch["evidence"]


@pytest.mark.failure("stopped")
def test_what_comes_after_a_failure_did_not_run_and_names_it():
    records = [told("a", status="failed"), told("c")]
    checks = judge.from_records(judge.Outcome(records, None), ["a", "b", "c"])
    assert [check["status"] for check in checks] == ["failed", "not_run", "passed"]
    assert (checks[1]["code"], checks[1]["evidence"]) == ("stopped", "a failed before it")


def test_the_code_that_serves_is_named_and_ptx_is_listed_apart():
    checks, _torch, _companions = judge.static_checks(judge.Outcome(static_records(), None), EXPECT, ["sm_121"])
    arch = next(check for check in checks if check["id"] == "torch.arch")
    assert arch["values"]["runs_on"] == {"sm_121": "sm_120"}
    assert arch["values"]["ptx"] == ["compute_120"]


@pytest.mark.parametrize(
    ("sm", "present", "absent"),
    [
        ("sm_52", "gpu.matmul_fp32", "gpu.matmul_fp16"),
        ("sm_75", "gpu.matmul_fp16", "gpu.matmul_bf16"),
        ("sm_80", "gpu.matmul_bf16", None),
    ],
)
def test_types_that_the_hardware_lacks_are_not_asked_for(sm, present, absent):
    names = judge.gpu_checks(sm)
    assert present in names
    assert absent not in names


@pytest.mark.parametrize("text", ["120", "sm_1", "sm_", "compute_90", "sm_12.0", ""])
def test_what_is_no_architecture_is_refused(text):
    with pytest.raises(ValueError, match="no compute capability"):
        judge.capability(text)


def test_every_check_of_a_gpu_exists_in_the_script():
    assert [check.name for check in judge.GPU_CHECKS] == list(torch_checks.GPU_CHECKS)
    companions = {check.name: check.companion for check in judge.GPU_CHECKS if check.companion}
    assert companions == torch_checks.COMPANIONS


# ---- the result -----------------------------------------------------------------------------------------------------


def test_a_result_is_plain_json():
    checks, torch, companions = judge.static_checks(judge.Outcome(static_records(), None), EXPECT, ["sm_120"])
    assert json.loads(json.dumps([checks, torch, companions], allow_nan=False))[0][0]["id"] == "python.start"


# ---- levels ---------------------------------------------------------------------------------------------------------


def test_each_level_contains_the_ones_before_it():
    names = [set(judge.gpu_checks("sm_120", level, ["torchvision", "torchaudio"])) for level in judge.LEVELS[1:]]
    assert names[0] < names[1] < names[2]
    assert judge.gpu_checks("sm_120", "static") == []
    assert judge.includes("full", "full")
    assert not judge.includes("quick", "full")


@pytest.mark.parametrize(("sm", "version", "asked"), [("sm_86", "2.9.1", False), ("sm_89", "2.9.1+cu128", True)])
def test_fp8_is_asked_for_where_the_hardware_has_it(sm, version, asked):
    assert ("gpu.matmul_fp8" in judge.gpu_checks(sm, "full", torch_version=version)) is asked


def test_fp8_is_not_asked_of_a_torch_that_lacks_it():
    assert "gpu.matmul_fp8" not in judge.gpu_checks("sm_90", "full", torch_version="2.0.1+cu118")


def test_kernels_of_companions_belong_to_environments_that_have_them():
    assert "gpu.torchvision_nms" not in judge.gpu_checks("sm_90", "full", ["torchaudio"])


def test_nothing_for_several_gpus_is_asked_of_one():
    assert judge.host_checks("full", ["sm_90"]) == ["torch.compile"]
    assert judge.host_checks("full", ["sm_61", "sm_61"]) == ["gpus.peer", "gpus.all_reduce"]
    assert judge.host_checks("quick", ["sm_90", "sm_90"]) == []


def test_the_highest_level_of_which_all_passed_is_proven():
    checks = [judge.passed(name, "") for name in ("torch.import", "driver.init", "gpu.copy", "gpu.memory")]
    assert judge.proven("stress", checks) == "full"
    assert judge.proven("full", [*checks, judge.failed("gpu.copy", "wrong_result", "")]) == "static"
    assert judge.proven("full", [*checks, judge.not_run("torch.version", "stopped", "")]) is None
    assert judge.proven("static", checks) is None


@pytest.mark.parametrize(
    ("record", "limit"),
    [
        ({"event": "begin", "id": "gpu.copy", "gpu": "0000:01:00.0"}, 60),
        ({"event": "begin", "id": "gpu.burn", "gpu": "0000:01:00.0"}, 360),
        ({"event": "begin", "id": "torch.compile", "gpu": None}, 120),
        ({"event": "begin", "id": "torch.devices", "gpu": None}, 60),
        ({"event": "begin", "id": "driver.init", "gpu": None}, 60),
        ({"event": "begin", "id": "torch.import", "gpu": None}, None),
        ({"event": "begin", "id": "companion.torchvision", "gpu": None}, None),
        ({"event": "check", "id": "gpu.copy", "gpu": "0000:01:00.0"}, None),
        ({"event": "end"}, 60),
        ({"event": []}, None),
    ],
)
def test_what_touches_a_gpu_has_a_limit(record, limit):
    assert judge.step_limit(record, 60, 300) == limit


def bandwidth(link, to_gpu=50.0, from_gpu=50.0):
    check = judge.passed("gpu.bandwidth", "measured", to_gpu_gb_s=to_gpu, from_gpu_gb_s=from_gpu)
    return judge.with_observations([check], {"link": link} if link is not None else {}, "full")[0]


@pytest.mark.parametrize(
    ("link", "slower", "status"),
    [
        ([5, 16], 55.0, "passed"),
        ([5, 16], 37.0, "failed"),  # 60 % of 63 GB/s are 37.8
        ([4, 16], 19.0, "passed"),
        ([4, 16], 15.0, "failed"),  # half of the lanes somewhere on the way
        ([3, 4], 2.4, "passed"),
    ],
)
@pytest.mark.failure("slow_link")
def test_bandwidth_is_judged_by_what_the_link_carries_in_both_directions(link, slower, status):
    for check in (bandwidth(link, to_gpu=slower, from_gpu=60.0), bandwidth(link, to_gpu=60.0, from_gpu=slower)):
        assert (check["status"], check["code"]) == (status, None if status == "passed" else "slow_link")
        assert f"generation {link[0]}, {link[1]} lanes" in check["evidence"]


@pytest.mark.parametrize("link", [None, [0, 16], [9, 16], [4, 0], "fast", []])
@pytest.mark.failure("link_unknown")
def test_bandwidth_over_a_link_that_is_not_known_is_measured_and_not_passed(link):
    check = bandwidth(link, to_gpu=0.1)
    assert (check["status"], check["code"]) == ("not_run", "link_unknown")
    assert check["values"]["to_gpu_gb_s"] == 0.1


def hardware(*checks, **seen):
    return judge.with_observations(list(checks or (judge.passed("gpu.memory", ""),)), seen, "full")[-1]


@pytest.mark.failure("ecc_uncorrected")
def test_errors_of_the_memory_during_the_proof_fail():
    found = hardware(
        judge.passed("gpu.memory", ""), judge.not_run("gpu.burn", "stopped", ""), xid=[], uncorrected_ecc_errors=2
    )
    assert (found["id"], found["status"], found["code"]) == ("gpu.hardware", "failed", "ecc_uncorrected")


@pytest.mark.failure("not_watched")
def test_a_gpu_that_nobody_watched_is_not_passed():
    assert (hardware()["status"], hardware()["code"]) == ("not_run", "not_watched")
    assert hardware(temperature_c=40)["status"] == "not_run"


def test_a_gpu_that_reported_nothing_passes_and_says_whether_its_memory_counts_errors():
    assert hardware(xid=[], uncorrected_ecc_errors=0)["status"] == "passed"
    assert "not counted" in hardware(xid=[])["evidence"]


def test_nobody_watches_below_level_full_or_where_nothing_ran():
    ran, left = judge.passed("gpu.copy", ""), judge.not_run("gpu.copy", "busy", "")
    assert judge.with_observations([ran], {}, "quick") == [ran]
    assert judge.with_observations([left], {}, "full") == [left]


def test_several_processes_tell_the_worst_of_what_one_told():
    good, bad, left = judge.passed("a", "fine"), judge.failed("a", "crashed", "died"), judge.not_run("a", "stopped", "")
    assert judge.joined("gpus.all_reduce", [good, left, bad])["evidence"] == "died"
    assert judge.joined("gpus.all_reduce", [good, left])["status"] == "not_run"
    assert judge.joined("gpus.all_reduce", [good, good])["status"] == "passed"
