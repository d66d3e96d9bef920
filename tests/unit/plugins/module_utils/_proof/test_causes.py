"""Which cause a failure has on a host, from made-up files and records."""

from __future__ import annotations

import errno
import os
import struct
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import causes, failures, judge

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
PREFIX = "/opt/gpufleet/envs/base/releases/2.9.1-cu128-1a2b3c4d"
SITE = f"{PREFIX}/lib/python3.11/site-packages"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"


@pytest.fixture
def host(tmp_path):
    """A host with driver 580.95.05, loaded and installed, and two GPUs that it serves."""

    def no_program(argv, time_limit):
        raise Unreadable(f"{argv[0]} is not installed")

    host = Host(root=str(tmp_path), machine="x86_64", uid=0, run=no_program)
    loaded(host, "580.95.05")
    installed(host, "580.95.05")
    for address in (FIRST, SECOND):
        folder = f"/sys/bus/pci/devices/{address}"
        for name, value in {"vendor": "0x10de", "class": "0x030000", "device": "0x2f04"}.items():
            put(host, f"{folder}/{name}", value)
        put(host, f"{folder}/config", b"\xde\x10\x04\x2f" + bytes(60))
        os.symlink("../../../bus/pci/drivers/nvidia", host.root + folder + "/driver")
    for name in ("nvidia", "nvidia_uvm"):
        put(host, f"/sys/module/{name}/refcnt", "0")
    return host


def put(host, path, content=""):
    os.makedirs(os.path.dirname(host.root + path), exist_ok=True)
    with open(host.root + path, "wb") as file:
        file.write(content if isinstance(content, bytes) else f"{content}\n".encode())


def loaded(host, version):
    text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build"
    put(host, "/proc/driver/nvidia/version", text)


def installed(host, version, folder=LIBRARIES):
    put(host, f"{folder}/libcuda.so.{version}", b"\x7fELF")
    link = host.root + f"{folder}/libcuda.so.1"
    if os.path.islink(link):
        os.unlink(link)
    os.symlink(f"libcuda.so.{version}", link)


def narrowed(host, code, *records, name="driver.init", gpu=None, missing=(), evidence="it failed", **values):
    """The failed check after its causes were looked for."""
    check = judge.failed(name, code, evidence, **values)
    told = causes.seen(records, "ada", missing, PREFIX)
    checks, gpus = ([check], []) if gpu is None else ([], [{"pci_address": gpu, "checks": [check]}])
    causes.narrow(host, told, checks, gpus)
    assert check["status"] == "failed"
    assert check["evidence"].startswith(evidence)
    assert check["remedy"] == failures.remedy(check["code"])
    return check


def around(libcuda=None, **nodes):
    return {
        "event": "around",
        "libcuda": libcuda,
        "nodes": {f"/dev/{name.replace('_', '-')}": nodes[name] for name in nodes},
    }


def nvml(errors=(), **gpus):
    addresses = {"first": FIRST, "second": SECOND}
    return {"event": "nvml", "gpus": {addresses[name]: gpus[name] for name in gpus}, "errors": list(errors)}


def variables(**values):
    return {"event": "torch", "facts": {"variables": values}}


# ---- the driver's library -------------------------------------------------------------------------------------------


@pytest.mark.failure("cuda_34")
@pytest.mark.parametrize("code", ["cuda_34", "cuda_100", "cuda_999", "cuda_3", "cuda_35"])
def test_a_stub_of_libcuda_is_named_with_the_file_that_leads_to_it(host, code):
    stub = "/usr/local/cuda-13.0/targets/x86_64-linux/lib/stubs/libcuda.so"
    put(host, "/etc/ld.so.conf.d/cuda.conf", "# toolkit\n/usr/local/cuda/targets/x86_64-linux/lib/stubs")
    os.makedirs(host.root + "/usr/local/cuda-13.0")
    os.symlink("cuda-13.0", host.root + "/usr/local/cuda")
    found = narrowed(host, code, around(stub))
    assert found["code"] == "cuda_34"
    assert stub in found["evidence"]
    assert "/etc/ld.so.conf.d/cuda.conf names that folder" in found["evidence"]


@pytest.mark.failure("shadowed_driver")
def test_a_libcuda_of_another_version_than_the_installed_driver_is_named(host):
    put(host, "/etc/ld.so.conf.d/old.conf", "/opt/nvidia/lib")
    found = narrowed(host, "cuda_803", around("/opt/nvidia/lib/libcuda.so.550.54.14"))
    assert found["code"] == "shadowed_driver"
    assert "/opt/nvidia/lib/libcuda.so.550.54.14 was loaded, the installed driver is 580.95.05" in found["evidence"]
    assert "old.conf" in found["evidence"]


@pytest.mark.failure("cuda_804")
@pytest.mark.parametrize(
    "path", ["/usr/local/cuda-13.1/compat/libcuda.so.590.44.01", "/usr/local/cuda/compat/libcuda.so.1"]
)
def test_a_compatibility_package_keeps_its_code_and_gets_its_path(host, path):
    found = narrowed(host, "cuda_804", around(path))
    assert found["code"] == "cuda_804"
    assert path in found["evidence"]


@pytest.mark.failure("cuda_803")
def test_a_mismatch_names_both_versions(host):
    installed(host, "590.44.01")
    found = narrowed(host, "cuda_803", around(f"{LIBRARIES}/libcuda.so.590.44.01"))
    assert found["code"] == "cuda_803"
    assert "driver 580.95.05 is loaded, 590.44.01 is installed" in found["evidence"]


@pytest.mark.failure("driver_not_loaded_yet")
@pytest.mark.parametrize("code", ["cuda_35", "cuda_36", "cuda_222"])
def test_what_an_old_driver_lacks_a_restart_may_bring(host, code):
    installed(host, "590.44.01")
    found = narrowed(host, code, name="torch.devices")
    assert found["code"] == "driver_not_loaded_yet"
    assert "590.44.01 is installed" in found["evidence"]


@pytest.mark.failure("cuda_35")
def test_an_old_driver_that_is_the_installed_one_keeps_its_code_and_gets_its_version(host):
    found = narrowed(host, "cuda_35", name="torch.devices")
    assert (found["code"], found["evidence"]) == ("cuda_35", "it failed (driver 580.95.05 is loaded)")


def test_an_older_package_than_the_loaded_driver_is_no_reason_to_restart_for_35(host):
    installed(host, "570.86.10")
    assert narrowed(host, "cuda_35", name="torch.devices")["code"] == "cuda_35"


# ---- modules and device nodes ---------------------------------------------------------------------------------------


@pytest.mark.failure("uvm_not_loaded")
@pytest.mark.parametrize("code", ["cuda_999", "cuda_3", "cuda_304"])
def test_a_module_that_is_not_loaded_is_named(host, code):
    os.unlink(host.root + "/sys/module/nvidia_uvm/refcnt")
    os.rmdir(host.root + "/sys/module/nvidia_uvm")
    found = narrowed(host, code, around(nvidia_uvm=errno.ENXIO))
    assert found["code"] == "uvm_not_loaded"
    assert "modprobe nvidia_uvm" in found["remedy"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(number, code, marks=pytest.mark.failure(code))
        for number, code in [
            (errno.ENOENT, "device_missing"),
            (errno.ENXIO, "device_missing"),
            (errno.ENODEV, "device_missing"),
            (errno.EACCES, "device_permission"),
            (errno.EPERM, "device_forbidden"),
            (errno.EIO, "gpu_not_started"),
        ]
    ],
)
@pytest.mark.parametrize("failed_with", ["cuda_3", "cuda_100", "cuda_304", "cuda_999"])
def test_how_a_node_failed_to_open_tells_the_cause(host, number, code, failed_with):
    put(host, "/dev/nvidia0")
    os.chmod(host.root + "/dev/nvidia0", 0o660)
    found = narrowed(host, failed_with, around(nvidiactl=0, nvidia_uvm=0, nvidia0=number))
    assert found["code"] == code
    assert "/dev/nvidia0" in found["evidence"]
    if code == "device_permission":
        assert "'ada' may not open" in found["evidence"]
        assert "mode 0660" in found["evidence"]


@pytest.mark.failure("suspended")
def test_a_host_that_slept_says_so_where_nothing_else_explains_it(host):
    put(host, "/sys/power/suspend_stats/success", "3")
    found = narrowed(host, "cuda_999", around(nvidiactl=0))
    assert (found["code"], "slept 3 times" in found["evidence"]) == ("suspended", True)
    put(host, "/sys/power/suspend_stats/success", "0")
    assert narrowed(host, "cuda_999", around(nvidiactl=0))["code"] == "cuda_999"


@pytest.mark.failure("fabric_manager_stopped")
def test_a_fabric_manager_that_does_not_run_is_told_from_one_that_does(host):
    put(host, "/proc/1/comm", "systemd")
    assert narrowed(host, "cuda_802")["code"] == "fabric_manager_stopped"
    put(host, "/proc/700/comm", "nv-fabricmanage")
    assert narrowed(host, "cuda_802")["code"] == "cuda_802"


# ---- GPUs -----------------------------------------------------------------------------------------------------------


@pytest.mark.failure("gpu_lost")
@pytest.mark.parametrize("code", ["cuda_46", "cuda_719", "cuda_999", "cuda_700", "timed_out", "wrong_result"])
def test_a_gpu_that_does_not_answer_fell_off_the_bus_and_the_other_did_not(host, code):
    put(host, f"/sys/bus/pci/devices/{SECOND}/config", b"\xff" * 64)
    found = narrowed(host, code, name="gpu.driver_kernel", gpu=SECOND)
    assert found["code"] == "gpu_lost"
    assert SECOND in found["evidence"]
    assert narrowed(host, code, name="gpu.driver_kernel", gpu=FIRST)["code"] == code


@pytest.mark.failure("gpu_lost", "nvml_15")
def test_nvml_says_that_a_gpu_is_lost(host):
    found = narrowed(host, "gpu_missing", nvml(errors=[15]), name="driver.gpus", missing=[SECOND])
    assert found["code"] == "gpu_lost"


@pytest.mark.failure("gpu_lost")
def test_xid_79_of_this_boot_is_the_cause_and_other_numbers_are_evidence(host):
    put(host, "/proc/sys/kernel/random/boot_id", "0b1fbb4c-0f6e-4f3c-9d43-58a0d2f1a111")
    put(host, "/proc/stat", "btime 1700000000")
    put(host, "/proc/uptime", "1000.0 1000.0")
    put(host, "/dev/kmsg", "4,1000,5000000,-;NVRM: Xid (PCI:0000:02:00): 31, pid=812, name=python, MMU Fault")
    found = narrowed(host, "cuda_700", name="gpu.matmul_fp32", gpu=SECOND)
    assert found["code"] == "cuda_700"
    assert "the kernel log has Xid 31 (GPU memory page fault) on 0000:02:00.0" in found["evidence"]
    assert narrowed(host, "cuda_700", name="gpu.matmul_fp32", gpu=FIRST)["evidence"] == "it failed"
    put(
        host,
        "/dev/kmsg",
        "4,1000,5000000,-;NVRM: Xid (PCI:0000:02:00): 79, pid='<unknown>', GPU has fallen off the bus.",
    )
    assert narrowed(host, "cuda_999", name="gpu.matmul_fp32", gpu=SECOND)["code"] == "gpu_lost"


def give(host, address, kernel_driver):
    """Another kernel driver takes a GPU."""
    link = f"{host.root}/sys/bus/pci/devices/{address}/driver"
    os.unlink(link)
    if kernel_driver:
        os.symlink(f"../../../bus/pci/drivers/{kernel_driver}", link)


@pytest.mark.failure("gpu_not_served")
def test_a_missing_gpu_that_another_kernel_driver_has_is_named(host):
    give(host, SECOND, "vfio-pci")
    found = narrowed(host, "gpu_missing", name="driver.gpus", missing=[SECOND])
    assert found["code"] == "gpu_not_served"
    assert f"{SECOND} has the kernel driver vfio-pci" in found["evidence"]


@pytest.mark.failure("gpu_not_served")
def test_cuda_shows_nothing_where_the_module_has_taken_no_gpu(host):
    give(host, SECOND, "vfio-pci")
    assert narrowed(host, "cuda_100", around(nvidia0=errno.EACCES))["code"] == "device_permission"
    give(host, FIRST, None)
    found = narrowed(host, "cuda_100", around(nvidia_uvm=errno.ENOENT))
    assert found["code"] == "gpu_not_served"
    assert f"{FIRST} has the kernel driver none" in found["evidence"]


@pytest.mark.failure("mig_empty")
@pytest.mark.parametrize(("code", "missing"), [("cuda_100", ()), ("gpu_missing", (SECOND,))])
def test_mig_without_instances_is_named(host, code, missing):
    found = narrowed(host, code, nvml(second={"mig": True, "instances": 0}), name="driver.gpus", missing=missing)
    assert found["code"] == "mig_empty"
    assert SECOND in found["evidence"]


@pytest.mark.failure("mig_one_instance")
def test_a_gpu_beside_a_parted_one_is_not_shown(host):
    told = nvml(first={"mig": True, "instances": 2}, second={"mig": False})
    found = narrowed(host, "gpu_missing", told, name="driver.gpus", missing=[SECOND])
    assert found["code"] == "mig_one_instance"
    assert FIRST in found["evidence"]


@pytest.mark.failure("compute_mode")
@pytest.mark.parametrize(("mode", "name"), [(2, "PROHIBITED"), (3, "EXCLUSIVE_PROCESS")])
def test_the_compute_mode_is_named_with_whoever_holds_the_gpu(host, mode, name):
    put(host, "/proc/812/comm", "python")
    told = nvml(first={"compute_mode": 0}, second={"compute_mode": mode, "processes": [812, 999999]})
    found = narrowed(host, "cuda_46", told, name="gpu.driver_kernel", gpu=SECOND)
    assert found["code"] == "compute_mode"
    assert f"in compute mode {name}, held by python (812), a process (999999)" in found["evidence"]
    assert narrowed(host, "cuda_46", told, name="gpu.driver_kernel", gpu=FIRST)["code"] == "cuda_46"


# ---- the environment ------------------------------------------------------------------------------------------------


@pytest.mark.failure("devices_hidden")
@pytest.mark.parametrize(
    "path",
    [
        "/opt/gpufleet/envs/base/runtime.env",
        f"{SITE}/local.pth",
        f"{SITE}/sitecustomize.py",
        "/etc/python3.11/sitecustomize.py",
        "/etc/environment",
    ],
)
@pytest.mark.parametrize("code", ["cuda_100", "torch_misses_gpu"])
def test_a_variable_that_hides_gpus_is_named_with_the_file_that_sets_it(host, path, code):
    os.makedirs(host.root + SITE)
    put(host, path, "CUDA_VISIBLE_DEVICES=''")
    found = narrowed(host, code, variables(CUDA_VISIBLE_DEVICES=""), name="torch.devices")
    assert found["code"] == "devices_hidden"
    assert found["evidence"].endswith(f"(CUDA_VISIBLE_DEVICES is '' in the environment's own processes, set in {path})")


def test_a_variable_of_the_environment_hides_nothing_from_the_drivers_own_program(host):
    told = narrowed(host, "cuda_100", variables(CUDA_VISIBLE_DEVICES=""), name="driver.init")
    assert told["code"] != "devices_hidden"


def test_what_only_the_engine_of_containers_reads_hides_nothing(host):
    assert (
        narrowed(host, "cuda_100", variables(NVIDIA_VISIBLE_DEVICES="all"), name="torch.devices")["code"]
        != "devices_hidden"
    )


def elf(size=4096, sections=10):
    """A 64-bit library whose table of sections is its end."""
    at = size - 64 * sections
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 3, 62, 1, 0, 64, at, 0, 64, 56, 0, 64, sections, 0
    )
    return head + bytes(size - len(head))


DAMAGE = {"cut short": elf()[:2000], "cut off": elf()[:20], "empty": b"", "zeros": bytes(4096)}


@pytest.mark.failure("damaged_library")
@pytest.mark.parametrize("content", DAMAGE.values(), ids=list(DAMAGE))
@pytest.mark.parametrize(
    ("code", "evidence"),
    [("crashed", "ended by SIGBUS."), ("crashed", "ended by SIGSEGV."), ("import_failed", "ImportError")],
)
def test_a_library_that_is_cut_short_is_found_by_name(host, content, code, evidence):
    put(host, f"{SITE}/torch/lib/libtorch.so", elf())
    put(host, f"{SITE}/torch/lib/libtorch_cuda.so", content)
    found = narrowed(host, code, name="torch.import", evidence=evidence)
    assert found["code"] == "damaged_library"
    assert f"{SITE}/torch/lib/libtorch_cuda.so is not whole" in found["evidence"]


@pytest.mark.parametrize(
    ("code", "evidence"),
    [("crashed", "ended by SIGBUS."), ("crashed", "ended by SIGILL."), ("import_failed", "ImportError")],
)
def test_libraries_that_are_whole_are_not_blamed(host, code, evidence):
    put(host, f"{SITE}/torch/lib/libtorch.so", elf())
    put(host, f"{SITE}/numpy.libs/libscript.so", "/* GNU ld script */ INPUT(libm.so.6)")
    os.mkfifo(host.root + f"{SITE}/torch/lib/libpipe.so")
    os.symlink("/dev/zero", host.root + f"{SITE}/torch/lib/liblink.so")
    found = narrowed(host, code, name="torch.import", evidence=evidence)
    assert (found["code"], found["evidence"]) == (code, evidence)


def test_damage_is_looked_for_once_and_not_without_end(host, monkeypatch):
    for number in range(40):
        os.makedirs(host.root + f"{SITE}/empty-{number}")
    put(host, f"{SITE}/zlast/libtorch.so", elf()[:2000])
    monkeypatch.setattr(causes, "_NAMES", 20)
    assert narrowed(host, "crashed", name="torch.import", evidence="ended by SIGBUS.")["code"] == "crashed"
    monkeypatch.setattr(causes, "_NAMES", 50_000)
    asked = []
    genuine = causes.child.start
    monkeypatch.setattr(causes.child, "start", lambda *given: asked.append(1) or genuine(*given))
    checks = [judge.failed(f"torch.{name}", "crashed", "ended by SIGBUS.") for name in ("import", "cpu", "devices")]
    causes.narrow(host, causes.seen([], "ada", (), PREFIX), checks, [])
    assert {check["code"] for check in checks} == {"damaged_library"}
    assert len(asked) == 1


def test_a_folder_that_does_not_answer_costs_the_limit(host, monkeypatch):
    put(host, f"{SITE}/torch/lib/libtorch.so", elf()[:2000])
    monkeypatch.setattr(causes, "_DAMAGE_SECONDS", 0.5)
    monkeypatch.setattr(causes, "_first_cut_short", lambda folders: time.sleep(60))
    started = time.monotonic()
    assert narrowed(host, "crashed", name="torch.import", evidence="ended by SIGBUS.")["code"] == "crashed"
    assert time.monotonic() - started < 10


@pytest.mark.failure("shadowed_library")
def test_a_library_of_another_place_is_named_with_the_file_that_leads_to_it(host):
    put(host, "/etc/ld.so.conf.d/cuda.conf", "/usr/local/cuda/lib64")
    path = "/usr/local/cuda/lib64/libcublas.so.12.4.5.8"
    found = narrowed(host, "shadowed_library", name="torch.libraries", evidence=f"{path} was loaded", path=path)
    assert found["code"] == "shadowed_library"
    assert "/etc/ld.so.conf.d/cuda.conf names that folder" in found["evidence"]


# ---- what cannot be believed or seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(causes._RULES))
def test_a_host_that_shows_nothing_leaves_every_code_as_it_is(tmp_path, code):
    host = Host(root=str(tmp_path))
    assert narrowed(host, code)["code"] == code
    assert narrowed(host, code, name="gpu.copy", gpu=FIRST)["evidence"] == "it failed"


ODD = [
    None,
    3,
    "",
    "x\0y",
    "\x1b[2J",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    {FIRST: None},
    {FIRST: []},
    {FIRST: {"mig": "x"}},
    True,
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("code", ["cuda_100", "cuda_46", "cuda_999", "crashed", "shadowed_library", "gpu_missing"])
def test_records_of_any_form_are_taken(host, odd, code):
    records = [
        {"event": "nvml", "gpus": odd, "errors": odd},
        {
            "event": "nvml",
            "gpus": {FIRST: {"mig": odd, "compute_mode": odd, "processes": odd, "instances": odd}},
            "errors": odd,
        },
        {"event": "around", "libcuda": odd, "nodes": odd},
        {"event": "torch", "facts": odd},
        {"event": "torch", "facts": {"variables": odd}},
        {"event": odd},
    ]
    assert narrowed(host, code, *records, path=odd)["code"] in failures.TABLE


def test_what_passed_or_did_not_run_is_left_alone(host):
    checks = [judge.passed("driver.init", "fine"), judge.not_run("driver.gpus", "no_gpu", "there is none")]
    before = [dict(check) for check in checks]
    causes.narrow(host, causes.seen([around("/x/stubs/libcuda.so")], "ada", (), PREFIX), checks, [])
    assert checks == before


def test_every_code_that_a_rule_can_give_and_that_asks_for_one_is_in_the_table():
    assert set(causes._RULES) <= set(failures.TABLE)
