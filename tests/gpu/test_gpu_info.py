"""gpu_info on a real GPU, against nvidia-smi, /sys, /proc and the loader, each read here by other means.

Nothing skips for want of a GPU: without one these tests fail, and say so.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import pci_ids
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import expected, nvml
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe
from nvml_answers import Replay

CAPTURE = Path(__file__).resolve().with_name("capture.py")
COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
FIELDS = [
    "pci.bus_id",
    "pci.device_id",
    "name",
    "uuid",
    "memory.total",
    "compute_cap",
    "driver_version",
    "persistence_mode",
    "mig.mode.current",
    "pcie.link.width.max",
]
REQUEST = Request(root="/nowhere/envs", cuda=True, time_limit=60)
BUSY = """
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
context = ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
print("busy", flush=True)
time.sleep(120)
"""
MAPPED = """
import ctypes, re
ctypes.CDLL("libcuda.so.1")
print(re.search(r"/\\S*libcuda\\.so\\.\\S+", open("/proc/self/maps").read()).group())
"""


# gpu_info's name -> nvidia-smi's
COUNTERS = {
    "corrected_volatile": "ecc.errors.corrected.volatile.total",
    "uncorrected_volatile": "ecc.errors.uncorrected.volatile.total",
    "corrected_total": "ecc.errors.corrected.aggregate.total",
    "uncorrected_total": "ecc.errors.uncorrected.aggregate.total",
}
WATTS = {"limit_w": "power.limit", "default_limit_w": "power.default_limit", "max_limit_w": "power.max_limit"}
STATES = ["pci.bus_id", "ecc.mode.current", "temperature.gpu", "compute_mode", *COUNTERS.values(), *WATTS.values()]


def query(what, fields):
    """Rows of nvidia-smi's CSV output, by field."""
    command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return [dict(zip(fields, (cell.strip() for cell in row))) for row in csv.reader(text.splitlines()) if row]


def number(text):
    """What nvidia-smi prints as a number; None for N/A and its like."""
    match = re.match(r"-?\d+(\.\d+)?", text or "")
    return float(match.group()) if match else None


def address_of(bus_id):
    """nvidia-smi's 00000000:01:00.0 in the spelling of /sys."""
    domain, rest = bus_id.lower().split(":", 1)
    return f"{int(domain, 16):04x}:{rest}"


@pytest.fixture(scope="module", autouse=True)
def smi():
    """What nvidia-smi says of each GPU, by PCI address."""
    try:
        rows = query("gpu", FIELDS)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.fail(f"these tests need a machine with an NVIDIA GPU and a working nvidia-smi: {error}")
    assert rows, "nvidia-smi lists no GPU"
    return {address_of(row["pci.bus_id"]): row for row in rows}


@pytest.fixture(scope="module")
def seen(smi):
    """The observation with libcuda."""
    return observe(Host(), REQUEST)


def test_every_gpu_of_nvidia_smi_is_seen_and_no_other(seen, smi):
    assert {gpu["pci_address"] for gpu in seen["gpus"] if gpu["source"] == "nvml"} == set(smi)


def test_identity_memory_and_capability_agree_with_nvidia_smi(seen, smi):
    for gpu in seen["gpus"]:
        told = smi[gpu["pci_address"]]
        assert gpu["name"] == told["name"]
        assert gpu["uuid"] == told["uuid"]
        assert gpu["memory_mib"] == int(told["memory.total"])
        assert gpu["compute_capability"] == told["compute_cap"]
        assert gpu["sm"] == f"sm_{told['compute_cap'].replace('.', '')}"
        assert gpu["pci_device_id"] == told["pci.device_id"].lower().replace("0x", "")[:4]
        assert gpu["persistence_mode"] is (told["persistence_mode"] == "Enabled")
        assert gpu["mig"] == {"Enabled": True, "Disabled": False}.get(told["mig.mode.current"])


def test_the_table_of_pci_ids_agrees_with_the_driver(seen):
    """What a host without a driver would be told is what the driver itself says."""
    for gpu in seen["gpus"]:
        known = pci_ids.lookup(gpu["pci_device_id"])
        assert known is not None, f"{gpu['name']} ({gpu['pci_device_id']}) is not in the table"
        assert known.compute_capability == gpu["compute_capability"]
        assert gpu["chip"] == known.chip
        assert gpu["architecture"]


def test_the_bus_agrees_with_sys(seen):
    for gpu in seen["gpus"]:
        folder = Path("/sys/bus/pci/devices") / gpu["pci_address"]
        if not folder.exists():
            continue  # some container run times hide the bus; NVML is then the only source
        assert (folder / "vendor").read_text().strip() == "0x10de"
        assert int((folder / "device").read_text(), 16) == int(gpu["pci_device_id"], 16)
        width = folder / "max_link_width"
        if width.exists() and 0 < int(width.read_text()) <= 32:
            assert gpu["pcie"]["max_width"] == int(width.read_text())


def test_driver_versions_agree_with_the_kernel_and_the_loader(seen, smi):
    driver = seen["driver"]
    (version,) = {row["driver_version"] for row in smi.values()}
    assert driver["loaded_version"] == version
    assert driver["branch"] == int(version.split(".")[0])
    assert driver["mismatch"] is False
    mapped = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True, check=True).stdout.strip()
    assert mapped.endswith(f"libcuda.so.{driver['userspace_version']}"), f"programs map {mapped}"


def test_the_flavor_agrees_with_the_license_of_the_loaded_module(seen):
    path = Path("/proc/driver/nvidia/version")
    if path.exists():
        expected = "open" if "Open Kernel Module" in path.read_text() else "proprietary"
        assert seen["driver"]["loaded_flavor"] == expected


def test_the_cuda_version_agrees_with_nvidia_smi(seen):
    text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=120, check=True).stdout
    assert seen["driver"]["cuda_api"] == re.search(r"CUDA Version:\s*([\d.]+)", text).group(1)


def test_libcuda_initialises_and_sees_the_gpus(seen, smi):
    assert seen["driver"]["libcuda"]["result"] == 0
    assert seen["driver"]["libcuda"]["error"] is None
    if not any(gpu["mig"] for gpu in seen["gpus"]):
        assert seen["driver"]["libcuda"]["gpus"] == len(smi)


def test_nothing_about_the_gpus_or_the_driver_is_unknown(seen):
    about = [
        entry for entry in seen["unknown"] if entry["what"].startswith(("gpus", "nvml", "libcuda", "driver.libcuda"))
    ]
    assert about == []


def test_without_libcuda_the_same_gpus_are_described(seen):
    plain = observe(Host(), Request(root="/nowhere/envs", time_limit=60))
    volatile = ("pcie", "health")
    strip = [{key: value for key, value in gpu.items() if key not in volatile} for gpu in plain["gpus"]]
    assert strip == [{key: value for key, value in gpu.items() if key not in volatile} for gpu in seen["gpus"]]
    assert plain["driver"]["libcuda"] is None


def test_libcuda_and_nvml_name_the_same_gpus():
    """Without NVML the same GPUs are found through libcuda alone, by the same addresses and UUIDs."""

    def without_nvml(names):
        if "nvidia-ml" in names[0]:
            raise Unreadable("NVML is switched off for this test")
        return Host().load_library(names)

    with_nvml = observe(Host(), REQUEST)["gpus"]
    if any(gpu["mig"] for gpu in with_nvml):
        pytest.skip("libcuda names instances, not GPUs, where MIG is on")
    alone = observe(Host(load_library=without_nvml), REQUEST)
    assert [gpu["source"] for gpu in alone["gpus"]] == ["libcuda"] * len(with_nvml)
    for ours, theirs in zip(alone["gpus"], with_nvml):
        for key in ("pci_address", "name", "uuid", "compute_capability", "sm"):
            assert ours[key] == theirs[key], key
        assert 0.9 * theirs["memory_mib"] < ours["memory_mib"] <= theirs["memory_mib"]


def test_the_callers_environment_hides_no_gpu(monkeypatch, smi):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen = observe(Host(), REQUEST)
    assert len(seen["gpus"]) == len(smi)
    assert seen["driver"]["libcuda"]["result"] == 0


def test_a_process_that_computes_is_seen_while_it_lives():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"busy\n"
        found = observe(Host(), Request(root="/nowhere/envs"))["driver"]["processes"]
        if os.geteuid() == 0:
            assert [entry["kind"] for entry in found if entry["pid"] == process.pid] == ["compute"]
        else:
            assert found is None
    finally:
        process.kill()
        process.wait()
    later = observe(Host(), Request(root="/nowhere/envs"))["driver"]["processes"] or []
    assert process.pid not in [entry["pid"] for entry in later]


def test_our_own_children_are_not_reported_as_users_of_the_gpu():
    found = observe(Host(), REQUEST)["driver"]["processes"] or []
    assert os.getpid() not in [entry["pid"] for entry in found]
    assert [entry for entry in found if entry["command"] == Path("/proc/self/comm").read_text().strip()] == []


def test_a_library_that_hangs_costs_its_time_limit_only(smi):
    def hang(names):
        time.sleep(300)

    started = time.monotonic()
    seen = observe(Host(load_library=hang), Request(root="/nowhere/envs", cuda=True, time_limit=1))
    assert time.monotonic() - started < 5
    assert {entry["what"] for entry in seen["unknown"]} >= {"nvml", "libcuda"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to try it")
def test_an_unprivileged_user_sees_the_same_gpus(seen):
    program = (
        "import json, os, sys\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host\n"
        "from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe\n"
        "print(json.dumps(observe(Host(), Request(root='/nowhere/envs', cuda=True, time_limit=60))))\n"
    )
    preload = f"import sys; sys.path.insert(0, {str(COLLECTIONS)!r})\n"
    modules = "".join(
        f"import ansible_collections.gpufleet.workstation.plugins.module_utils._probe.{name}\n"
        for name in ("observe", "nvml", "libcuda")
    )  # before the change of user: the checkout may be root's alone
    done = subprocess.run(
        [sys.executable, "-c", preload + modules + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    assert theirs["os"]["uid"] == 65534
    assert theirs["driver"]["processes"] is None
    assert [gpu["uuid"] for gpu in theirs["gpus"]] == [gpu["uuid"] for gpu in seen["gpus"]]
    assert theirs["driver"]["libcuda"]["result"] == 0


def test_the_health_of_every_gpu_agrees_with_nvidia_smi(seen):
    told = {address_of(row["pci.bus_id"]): row for row in query("gpu", STATES)}
    for gpu in seen["gpus"]:
        row, health = told[gpu["pci_address"]], gpu["health"]
        enabled = {"Enabled": True, "Disabled": False}.get(row["ecc.mode.current"])
        if enabled is None:
            assert health["ecc"] == "not_applicable"
        else:
            assert health["ecc"]["enabled"] is enabled
            for ours, theirs in COUNTERS.items():
                assert health["ecc"][ours] == (
                    number(row[theirs]) if number(row[theirs]) is not None else "not_applicable"
                )
        for ours, theirs in WATTS.items():
            if number(row[theirs]) is not None:
                assert health["power"][ours] == pytest.approx(number(row[theirs]), abs=0.01), ours
        assert health["temperature_c"] == pytest.approx(number(row["temperature.gpu"]), abs=15)
        assert health["compute_mode"] == row["compute_mode"].lower()
        assert not [reason for reason in health["throttle"] if reason.startswith("unknown")]


def test_rows_the_window_and_the_recovery_agree_with_nvidia_smi(seen):
    text = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=120, check=True).stdout
    for card in ElementTree.fromstring(text).iter("gpu"):  # noqa: S314  # nvidia-smi's own words
        health = next(gpu for gpu in seen["gpus"] if gpu["pci_address"] == address_of(card.get("id")))["health"]
        assert health["bar1_mib"] == number(card.findtext("bar1_memory_usage/total"))
        recovery = card.findtext("gpu_recovery_action")
        if recovery and "N/A" not in recovery:
            assert health["recovery_action"] == recovery.strip().lower().replace(" ", "_")
        remapped = card.find("remapped_rows")
        if remapped is None or number(remapped.findtext("remapped_row_corr")) is None:
            assert health["remapped_rows"] == "not_applicable"
        else:
            rows = health["remapped_rows"]
            assert rows["corrected"] == number(remapped.findtext("remapped_row_corr"))
            assert rows["uncorrected"] == number(remapped.findtext("remapped_row_unc"))
            assert rows["pending"] is (remapped.findtext("remapped_row_pending").strip() == "Yes")
            assert rows["failure"] is (remapped.findtext("remapped_row_failure").strip() == "Yes")


def test_nothing_of_the_health_is_without_an_answer(seen):
    def gaps(value, path):
        if isinstance(value, dict):
            return [gap for key, item in value.items() for gap in gaps(item, f"{path}.{key}")]
        return [path] if value is None else []

    branch = seen["driver"]["branch"]
    for gpu in seen["gpus"]:
        assert [gap for gap in gaps(gpu["health"], "health") if branch >= 570 or "recovery" not in gap] == []
        assert gpu["lost"] is None
        assert (gpu["health"]["mig"] == "not_applicable") is (gpu["mig"] is None)


def test_the_log_is_read_or_said_to_be_unreadable(seen):
    said = [entry["why"] for entry in seen["unknown"] if entry["what"] == "health.xid"]
    assert (seen["health"]["xid"] is None) is bool(said) or os.path.isdir("/var/log/journal")
    for event in seen["health"]["xid"] or []:
        assert event["count"] > 0
        assert event["title"]


def test_a_gpu_that_was_proven_here_and_is_gone_is_missing(seen, monkeypatch, tmp_path):
    """Remembered are the GPUs of this machine, and one more that it never had."""
    assert seen["health"]["missing_gpus"] == []
    other = {"pci_address": "0000:fe:00.0", "pci_device_id": "2204", "uuid": "GPU-0", "name": "NVIDIA GeForce RTX 3090"}
    kept = expected.document([*seen["gpus"], other], seen["observed_at"], seen["os"]["boot_id"])
    path = tmp_path / "gpus.json"
    path.write_text(json.dumps(kept))
    monkeypatch.setattr(expected, "PATH", str(path))
    (missing,) = observe(Host(), Request(root="/nowhere/envs", time_limit=60))["health"]["missing_gpus"]
    assert (missing["uuid"], missing["since"], missing["since_what"]) == ("GPU-0", seen["observed_at"], "after")


def test_what_capture_records_here_can_be_replayed(seen):
    done = subprocess.run([sys.executable, str(CAPTURE)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    recording = json.loads(done.stdout)
    again = nvml.read(Host(load_library=lambda names: Replay(recording)))
    assert again["problems"] == recording["about"]["problems"] == []
    assert [gpu["name"] for gpu in again["gpus"]] == [gpu["name"] for gpu in seen["gpus"]]
    assert [set(gpu["health"]) for gpu in again["gpus"]] == [set(gpu["health"]) for gpu in seen["gpus"]]
    for gpu in seen["gpus"]:
        assert gpu["uuid"].split("-", 1)[1] not in done.stdout
