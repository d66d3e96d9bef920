"""The observation as a whole: personas, sick hosts, drivers that hang, and trees of garbage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import pci_ids
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import breaking, health, libcuda, nvml
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEYS = {
    *("schema", "observed_at", "os", "gpus", "driver", "environments", "runtime", "files", "health", "foreign"),
    "unknown",
}
NVIDIA = "NVIDIA CORPORATION <cudatools@nvidia.com>"
RTX_5070 = {
    "pci_address": "0000:01:00.0",
    "pci_device_id": "2f04",
    "subsystem_id": "10de:205e",
    "name": "NVIDIA GeForce RTX 5070",
    "uuid": "GPU-1",
    "compute_capability": "12.0",
    "memory_mib": 12227,
    "persistence_mode": True,
    "pcie": {"width": 8, "max_width": 8, "speed_gts": 2.5, "max_speed_gts": 32.0},
    "compute_pids": [],
}


def _nvml(*gpus, **changes):
    return {"driver_version": "580.95.05", "cuda_version": "13.0", "gpus": list(gpus), "problems": [], **changes}


@pytest.fixture
def answers(monkeypatch):
    """What NVML and libcuda answer in this test; an exception is raised in the child."""
    given_answers = {}

    def reader(name):
        def read(host):
            answer = given_answers.get(name, Unreadable("cannot be loaded"))
            if isinstance(answer, Exception):
                raise answer
            return answer() if callable(answer) else answer

        return read

    monkeypatch.setattr(nvml, "read", reader("nvml"))
    monkeypatch.setattr(libcuda, "read", reader("libcuda"))
    return given_answers


def _running_children():
    """Processes that this one started and that still run."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.append(name)
    return found


def _whats(seen):
    return [entry["what"] for entry in seen["unknown"]]


def test_a_machine_without_a_gpu(debian):
    seen = observe(debian.host(), Request())
    assert set(seen) == KEYS
    assert seen["gpus"] == []
    assert seen["unknown"] == []
    assert seen["os"]["id"] == "debian"
    assert seen["os"]["kernels"][0]["default"] is True
    assert seen["driver"]["modules_by_kernel"] == {"6.1.0-31-amd64": None}
    assert (seen["driver"]["loaded_version"], seen["driver"]["branch"], seen["driver"]["mismatch"]) == (
        None,
        None,
        None,
    )
    assert seen["driver"]["reboot_required"] is False
    assert seen["driver"]["processes"] == []


def test_a_gpu_without_a_driver_is_known_by_its_pci_id(debian):
    (gpu,) = observe(debian.gpu(driver="nouveau").host(), Request())["gpus"]
    assert gpu == {
        "pci_address": "0000:01:00.0",
        "pci_device_id": "2f04",
        "subsystem_id": "10de:205e",
        "name": gpu["name"],
        "chip": "GB205",
        "compute_capability": "12.0",
        "sm": "sm_120",
        "architecture": pci_ids.ARCHITECTURES["12.0"],
        "uuid": None,
        "memory_mib": None,
        "persistence_mode": None,
        "mig": None,
        "pcie": {"width": 16, "max_width": 16, "speed_gts": 2.5, "max_speed_gts": 32.0},
        "kernel_driver": "nouveau",
        "health": None,
        "lost": None,
        "source": "pci",
    }
    assert "5070" in gpu["name"]


def test_an_unknown_device_id_has_no_capability(debian):
    (gpu,) = observe(debian.gpu(device="ffff").host(), Request())["gpus"]
    assert (gpu["chip"], gpu["compute_capability"], gpu["sm"], gpu["architecture"]) == (None, None, None, None)
    assert gpu["pci_device_id"] == "ffff"


def test_a_served_gpu_is_described_by_nvml_and_the_bus(debian, answers, module_file):
    answers["nvml"] = _nvml(RTX_5070)
    debian.gpu(driver="nvidia").loaded().userspace()
    debian.dpkg(("libcuda1", "install ok installed", "580.95.05-1", NVIDIA))
    module = module_file({"version": "580.95.05", "license": "Dual MIT/GPL"})
    debian.file("/lib/modules/6.1.0-31-amd64/updates/dkms/nvidia.ko", module)
    seen = observe(debian.host(), Request())
    (gpu,) = seen["gpus"]
    assert (gpu["name"], gpu["source"], gpu["memory_mib"]) == ("NVIDIA GeForce RTX 5070", "nvml", 12227)
    assert gpu["pcie"]["width"] == 16  # the bus is asked first
    driver = {
        key: seen["driver"][key] for key in ("loaded_version", "loaded_flavor", "userspace_version", "branch", "flavor")
    }
    assert driver == {
        "loaded_version": "580.95.05",
        "loaded_flavor": "open",
        "userspace_version": "580.95.05",
        "branch": 580,
        "flavor": "open",
    }
    assert (seen["driver"]["source"], seen["driver"]["cuda_api"]) == ("nvidia", "13.0")
    assert (seen["driver"]["mismatch"], seen["driver"]["reboot_required"]) == (False, False)
    assert seen["unknown"] == []


def test_a_red_hat_machine_as_a_whole(tree, answers, module_file):
    release = "5.14.0-570.12.1.el9_6.x86_64"
    answers["nvml"] = _nvml({**RTX_5070, "virtualization_mode": 0})
    tree.file("/etc/os-release", 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n')
    tree.file("/proc/sys/kernel/osrelease", f"{release}\n").folder("/sys/bus/pci/devices").folder("/var/lib/rpm")
    tree.file("/usr/bin/dnf").file("/usr/bin/dracut").file("/var/lib/dpkg/status").folder("/etc/apt")
    tree.file(f"/boot/vmlinuz-{release}").file(f"/boot/loader/entries/x-{release}.conf", f"version {release}\n")
    tree.file(f"/boot/initramfs-{release}.img").file("/boot/grub2/grubenv", f"saved_entry=x-{release}\n")
    tree.file("/etc/default/grub", "GRUB_DEFAULT=saved\n").file("/etc/modprobe.d/b.conf", "blacklist nouveau\n")
    module = module_file({"version": "580.178.04", "license": "Dual MIT/GPL"})
    tree.file(f"/lib/modules/{release}/extra/drivers/video/nvidia/nvidia.ko", module)
    tree.commands["rpm"] = "nvidia-driver-cuda-libs\t3\t580.178.04-1.el9\tx86_64\tNVIDIA x\n"
    tree.loaded("580.178.04").userspace("580.178.04", "/usr/lib64").gpu(driver="nvidia")
    seen = observe(tree.host(), Request())
    assert (seen["os"]["package_manager"], seen["os"]["apt"], seen["os"]["initramfs"]) == ("dnf", None, "dracut")
    assert seen["os"]["dnf"] == {
        "repositories": [],
        "streams": {"nvidia-driver": None},
        "versionlock": False,
        "excludes": [],
    }
    assert [(kernel["release"], kernel["default"]) for kernel in seen["os"]["kernels"]] == [(release, True)]
    driver = seen["driver"]
    assert (driver["branch"], driver["source"], driver["interrupted"]) == (580, "nvidia", [])
    assert driver["modules_by_kernel"][release]["signer"] is None
    assert driver["nouveau_in_initramfs"] == {release: True}  # it is older than the block list
    assert driver["virtual"] == {"0000:01:00.0": None}
    assert driver["device_nodes"]["/dev/nvidia-uvm"] is False
    assert seen["unknown"] == []


def test_what_is_being_done_is_not_half_done(debian, monkeypatch):
    debian.dpkg(("libcuda1", "install ok unpacked", "580.95.05-1", NVIDIA))
    assert observe(debian.host(), Request())["driver"]["interrupted"] == ["libcuda1 is unpacked"]
    held = [{"path": "/var/lib/dpkg/lock", "holder": "apt (process 812)"}]
    monkeypatch.setattr(health, "locks", lambda host, unknown: held)
    seen = observe(debian.host(), Request())
    assert seen["driver"]["interrupted"] is None
    assert seen["unknown"] == [{"what": "driver.interrupted", "why": "apt (process 812) changes packages right now"}]


def test_a_database_that_cannot_be_read_leaves_packages_and_their_state_unknown(debian):
    debian.path("/var/lib/dpkg/status").unlink()
    debian.link("/var/lib/dpkg/status", "status")
    driver = observe(debian.file("/usr/bin/apt-get").host(), Request())["driver"]
    assert (driver["packages"], driver["interrupted"]) == (None, None)


def test_a_gpu_that_is_given_to_a_guest_and_one_that_is_shared(debian, answers):
    answers["nvml"] = _nvml({**RTX_5070, "virtualization_mode": 3})
    debian.loaded().gpu(driver="nvidia").gpu("0000:02:00.0", "2204", driver="vfio-pci")
    assert observe(debian.host(), Request())["driver"]["virtual"] == {
        "0000:01:00.0": "vgpu",
        "0000:02:00.0": "passthrough",
    }


def test_user_space_that_is_newer_than_the_loaded_module_is_a_mismatch(debian, answers):
    answers["nvml"] = Unreadable("nvmlInit_v2 failed with 18 (Driver/library version mismatch)")
    seen = observe(debian.gpu(driver="nvidia").loaded("580.95.05").userspace("595.71.05").host(), Request())
    assert (seen["driver"]["mismatch"], seen["driver"]["reboot_required"], seen["driver"]["branch"]) == (
        True,
        True,
        595,
    )
    assert seen["unknown"] == [{"what": "nvml", "why": "nvmlInit_v2 failed with 18 (Driver/library version mismatch)"}]
    assert seen["gpus"][0]["source"] == "pci"


def test_a_module_on_disk_that_differs_from_the_loaded_one_needs_a_reboot(debian, answers, module_file):
    answers["nvml"] = _nvml()
    module = module_file({"version": "580.105.08", "license": "Dual MIT/GPL"})
    debian.loaded("580.95.05").userspace("580.95.05").file("/lib/modules/6.1.0-31-amd64/updates/dkms/nvidia.ko", module)
    driver = observe(debian.host(), Request())["driver"]
    assert (driver["mismatch"], driver["reboot_required"]) == (False, True)


def test_a_gpu_that_nvml_does_not_list_stays_and_is_said(debian, answers):
    answers["nvml"] = _nvml(RTX_5070)
    debian.loaded().gpu(driver="nvidia").gpu("0000:02:00.0", "2204", driver="nvidia").gpu(
        "0000:03:00.0", "2204", driver="vfio-pci"
    )
    seen = observe(debian.host(), Request())
    assert [(gpu["pci_address"], gpu["source"]) for gpu in seen["gpus"]] == [
        ("0000:01:00.0", "nvml"),
        ("0000:02:00.0", "pci"),
        ("0000:03:00.0", "pci"),
    ]
    assert _whats(seen) == ["gpus[0000:02:00.0]"]


def test_problems_of_nvml_are_passed_on(debian, answers):
    answers["nvml"] = _nvml(problems=[["gpus[nvml 0]", "GPU is lost"]])
    assert observe(debian.loaded().host(), Request())["unknown"] == [{"what": "gpus[nvml 0]", "why": "GPU is lost"}]


def test_without_a_bus_and_a_driver_the_gpus_are_not_known(tree):
    seen = observe(tree.file("/etc/os-release", "ID=debian\n").host(), Request())
    assert seen["gpus"] is None
    assert _whats(seen) == ["gpus"]
    assert "no PCI bus" in seen["unknown"][0]["why"]


def test_where_the_bus_is_hidden_the_driver_is_enough(tree, answers):
    answers["nvml"] = _nvml(RTX_5070)
    seen = observe(tree.file("/etc/os-release", "ID=debian\n").file("/dev/nvidiactl").host(), Request())
    assert [gpu["source"] for gpu in seen["gpus"]] == ["nvml"]
    assert seen["unknown"] == [{"what": "health.xid", "why": "there is neither /dev/kmsg nor a journal"}]


def test_wsl_has_a_gpu_without_pci_and_takes_versions_from_nvml(tree, answers):
    answers["nvml"] = _nvml(RTX_5070)
    tree.file("/proc/sys/kernel/osrelease", "6.6.87.2-microsoft-standard-WSL2\n").file("/dev/dxg")
    tree.file("/etc/os-release", "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=24.04\n")
    tree.file("/usr/lib/wsl/lib/libcuda.so.1.1").link("/usr/lib/wsl/lib/libcuda.so.1", "libcuda.so.1.1")
    seen = observe(tree.folder("/sys/bus/pci/devices").host(), Request())
    (gpu,) = seen["gpus"]
    assert (gpu["source"], gpu["chip"], gpu["pci_device_id"], gpu["kernel_driver"]) == ("nvml", "GB205", "2f04", None)
    assert gpu["pcie"] == RTX_5070["pcie"]
    driver = seen["driver"]
    assert (driver["source"], driver["branch"], driver["userspace_version"], driver["mismatch"]) == (
        "wsl",
        580,
        "580.95.05",
        False,
    )


def test_libcuda_is_asked_only_on_request(debian, answers):
    answers["nvml"] = _nvml()
    answers["libcuda"] = {"result": 0, "error": None, "cuda_version": "13.0", "gpus": []}
    host = debian.loaded().host()
    assert observe(host, Request())["driver"]["libcuda"] is None
    assert observe(host, Request(cuda=True))["driver"]["libcuda"] == {"result": 0, "error": None, "gpus": 0}


def test_libcuda_alone_names_gpus_where_nvml_is_missing(debian, answers):
    answers["libcuda"] = {
        "result": 0,
        "error": None,
        "cuda_version": "12.4",
        "gpus": [
            {
                "pci_address": "0000:01:00.0",
                "name": "X",
                "uuid": "GPU-2",
                "compute_capability": "8.6",
                "memory_mib": 100,
            }
        ],
    }
    seen = observe(debian.loaded().gpu(device="ffff", driver="nvidia").host(), Request(cuda=True))
    (gpu,) = seen["gpus"]
    assert (gpu["source"], gpu["sm"], gpu["architecture"], gpu["uuid"]) == ("libcuda", "sm_86", "Ampere", "GPU-2")
    assert seen["driver"]["cuda_api"] == "12.4"
    assert _whats(seen) == ["nvml"]


def test_a_failed_initialisation_of_cuda_is_a_finding(debian, answers):
    answers["nvml"] = _nvml()
    answers["libcuda"] = {"result": 803, "error": "cuInit failed with 803 (X)", "cuda_version": "13.0", "gpus": []}
    seen = observe(debian.loaded().host(), Request(cuda=True))
    assert seen["driver"]["libcuda"] == {"result": 803, "error": "cuInit failed with 803 (X)", "gpus": 0}
    assert seen["unknown"] == []


def test_without_a_driver_no_library_is_loaded_at_all(debian):
    def load(names):
        raise AssertionError("NVML would have the kernel module loaded")

    seen = observe(debian.gpu().host(load_library=load), Request(cuda=True))
    assert seen["unknown"] == [{"what": "driver.libcuda", "why": "no driver is loaded"}]


def test_a_driver_that_hangs_costs_the_limit_once_and_leaves_no_process(debian):
    def hang(names):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    started = time.monotonic()
    seen = observe(debian.loaded().gpu(driver="nvidia").host(load_library=hang), Request(cuda=True, time_limit=0.5))
    assert time.monotonic() - started < 1.5
    assert seen["gpus"][0]["source"] == "pci"
    assert {entry["what"]: entry["why"] for entry in seen["unknown"]} == dict.fromkeys(
        ("libcuda", "nvml"), "no answer within 0.5 s; the child process was killed"
    )
    assert _running_children() == []


def test_a_driver_that_crashes_costs_its_own_part_only(debian):
    seen = observe(debian.loaded().host(load_library=lambda names: os.kill(os.getpid(), signal.SIGSEGV)), Request())
    assert seen["driver"]["loaded_version"] == "580.95.05"
    assert [entry["why"] for entry in seen["unknown"]] == [
        "the child process was killed by signal 11 (SIGSEGV) without an answer"
    ]


def test_without_root_what_only_root_sees_is_unknown(debian, answers):
    answers["nvml"] = _nvml(RTX_5070)
    seen = observe(debian.loaded().gpu(driver="nvidia").host(uid=1000), Request())
    assert seen["os"]["uid"] == 1000
    assert seen["driver"]["processes"] is None
    assert _whats(seen) == ["driver.processes"]


def test_a_real_unprivileged_user_gets_an_observation():
    read, write = os.pipe()
    if os.fork() == 0:
        os.setgroups([]) if os.geteuid() == 0 else None
        os.setresgid(65534, 65534, 65534) if os.geteuid() == 0 else None
        os.setresuid(65534, 65534, 65534) if os.geteuid() == 0 else None
        os.write(write, json.dumps(observe(Host(), Request(files=["/etc/shadow", "/root/x"]))).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        seen = json.load(pipe)
    os.wait()
    assert set(seen) == KEYS
    assert seen["os"]["uid"] != 0
    assert "files[/etc/shadow]" in _whats(seen)
    assert seen["files"]["/etc/shadow"] is None


@pytest.mark.parametrize(
    "broken",
    [
        "/etc/os-release",
        "/proc/sys/kernel/osrelease",
        "/proc/driver/nvidia/version",
        "/var/lib/dpkg/status",
        "/etc/apt/preferences",
        "/var/lib/gpufleet/driver.json",
        "/var/lib/gpufleet/gpus.json",
        "/dev/kmsg",
        "/proc/uptime",
        "/etc/environment",
        "/etc/default/grub",
        "/run/reboot-required.pkgs",
        "/proc/net/unix",
        "/etc/crypttab",
        "/etc/modprobe.d/gpufleet-nouveau.conf",
        "/proc/self/mountinfo",
        "/run/systemd/sessions/3",
        "/run/systemd/inhibit/3",
        "/var/lib/dpkg/updates/0000",
        "/var/lib/dkms/mok.pub",
        "/var/lib/gpufleet/staged/transaction.json",
        "/var/lib/gpufleet/generations/1/generation.json",
        "/sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23",
        "/sys/bus/pci/devices/0000:01:00.0/vendor",
        "/opt/gpufleet/envs/base/stamps/2.9.1-cu128-1a2b3c4d.json",
        "/opt/gpufleet/envs/base/releases/2.9.1-cu128-1a2b3c4d/pyvenv.cfg",
    ],
)
@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "garbage", "huge"])
def test_a_broken_file_costs_its_own_key_and_never_the_observation(debian, answers, broken, kind):
    answers["nvml"] = _nvml()
    debian.loaded().environment().file("/var/lib/dkms/mok.pub", b"\x30\x03\x30\x01\x00")
    path = debian.path(broken)
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "garbage":
        path.write_bytes(bytes(range(256)) * 20)
    else:
        with open(path, "wb") as file:
            file.truncate(200 * 1024 * 1024)
    seen = observe(debian.host(), Request())
    assert set(seen) == KEYS
    json.dumps(seen, allow_nan=False)
    if kind not in ("garbage", "huge"):
        assert seen["unknown"], f"{broken} was {kind} and nobody says so"


def test_names_that_are_no_text_are_made_printable(debian):
    folder = os.fsencode(debian.folder("/opt/gpufleet/envs").path("/opt/gpufleet/envs"))
    os.makedirs(folder + b"/\xff\xfe/releases")
    seen = observe(debian.host(), Request())
    assert json.dumps(seen["environments"][0]["name"], ensure_ascii=False).encode("utf-8")


_PATHS = [
    "/etc/os-release",
    "/proc/sys/kernel/osrelease",
    "/proc/driver/nvidia/version",
    "/proc/cpuinfo",
    "/proc/net/unix",
    "/proc/1/cgroup",
    "/proc/1/comm",
    "/proc/77/fd/3",
    "/proc/77/comm",
    "/sys/module/nvidia/version",
    "/sys/bus/pci/devices/0000:01:00.0/vendor",
    "/sys/bus/pci/devices/0000:01:00.0/class",
    "/sys/bus/pci/devices/0000:01:00.0/device",
    "/sys/bus/pci/devices/0000:01:00.0/driver",
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "/boot/vmlinuz-6.1.0-31-amd64",
    "/boot/grub/grubenv",
    "/etc/default/grub",
    "/etc/modprobe.d/nvidia.conf",
    "/lib/modules/6.1.0-31-amd64/updates/dkms/nvidia.ko",
    "/lib/modules/6.1.0-31-amd64/updates/dkms/nvidia.ko.xz",
    "/lib/modules/6.1.0-31-amd64/updates/dkms/nvidia.ko.gz",
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/etc/ld.so.conf.d/x.conf",
    "/var/lib/dpkg/status",
    "/var/lib/dpkg/info/nvidia-driver-pinning-580.list",
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d/x.sources",
    "/etc/apt/preferences.d/nvidia",
    "/etc/systemd/system/display-manager.service",
    "/etc/environment",
    "/etc/profile.d/gpufleet.sh",
    "/etc/systemd/system.conf.d/50-gpufleet.conf",
    "/var/lib/gpufleet/driver.json",
    "/opt/gpufleet/envs/base/current",
    "/opt/gpufleet/envs/base/releases/r/pyvenv.cfg",
    "/opt/gpufleet/envs/base/releases/r/lib/python3.11/site-packages/torch/version.py",
    "/opt/gpufleet/envs/base/stamps/r.json",
    "/opt/gpufleet/envs/base/stamps/r.manifest",
    "/run/zypp.pid",
    "/var/lib/dpkg/lock",
    "/usr/bin/dnf",
    "/var/lib/rpm/.rpm.lock",
    "/var/lib/dnf/history.sqlite",
    "/etc/dnf/dnf.conf",
    "/etc/dnf/modules.d/nvidia-driver.module",
    "/etc/dnf/plugins/versionlock.list",
    "/etc/dnf/plugins/versionlock.conf",
    "/etc/dnf/versionlock.toml",
    "/etc/yum.repos.d/x.repo",
    "/var/lib/dpkg/updates/0001",
    "/boot/loader/entries/x.conf",
    "/boot/grub2/grubenv",
    "/boot/initrd.img-6.1.0-31-amd64",
    "/etc/modprobe.d/x.conf",
    "/etc/crypttab",
    "/proc/self/mountinfo",
    "/proc/self/cgroup",
    "/proc/77/cgroup",
    "/proc/cmdline",
    "/sys/class/block/dm-0/dm/uuid",
    "/sys/class/block/dm-0/slaves",
    "/run/utmp",
    "/run/systemd/sessions/c1",
    "/run/systemd/inhibit/1",
    "/sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23",
    "/sys/firmware/efi/efivars/MokNew-605dab50-e046-4300-abb6-3dd810dd8b23",
    "/var/lib/dkms/mok.pub",
    "/etc/dkms/framework.conf",
    "/proc/driver/nvidia/gpus/0000:01:00.0/information",
    "/var/lib/gpufleet/staged/transaction.json",
    "/var/lib/gpufleet/generations/1/generation.json",
    "/var/lib/gpufleet/gpus.json",
    "/sys/bus/pci/devices/0000:01:00.0/config",
    "/var/log/journal/0123",
    "/dev/kmsg",
    "/proc/uptime",
]
_WORDS = [
    b"0x10de",
    b"0x030000",
    b"0x2f04",
    b"releases/r",
    b"/dev/nvidia-uvm",
    b"{}",
    b'{"torch": 7, "manifest_sha256": []}',
    b"Package: libcuda1\nStatus: install ok installed\n\n",
    b"Package: nvidia-driver\nStatus:\n x",
    b"Types: deb\nURIs:\n\n",
    b"deb [x",
    b"NVRM version: 580.1 ",
    b"GRUB_DEFAULT='",
    b"export A='",
    b"\x7fELF\x02\x01",
    b"77",
    b"1 a\n-> b\tc\n? d\n",
    b"__version__ = '",
    b"ID_LIKE=rhel\n",
    b"[main]\nenabled=",
    b"[a]\nbaseurl=$",
    b"[[packages]]\nname = 'x'\n",
    b"!nvidia-1-",
    b"saved_entry=x\n",
    b"version 6.1.0-31-amd64\n",
    b"30 1 253:0 / / rw - ext4 /dev/dm-0 rw\n",
    b"CRYPT-LUKS2-",
    b"blacklist nouveau\n",
    b"TYPE=x11\nUSER=\\xzz\n",
    b"WHAT=shutdown\nMODE=block\n",
    b"\x30\x03\x30\x01\x00",
    b"~Module signature appended~\n",
    b'{"driver": {}, "packages": [], "created": []}',
    b'{"gpus": [{"pci_address": []}, {}], "seen_at": 7}',
    b"4,1,1,-;NVRM: Xid (PCI:0000:01:00): 79, x\n",
    b"1.0 1.0\n",
    b"\xff\xff",
]
_CONTENT = st.one_of(
    st.binary(max_size=80), st.sampled_from(_WORDS), st.lists(st.sampled_from(_WORDS), max_size=4).map(b"".join)
)
_KIND = st.sampled_from(["file", "file", "file", "link", "folder", "fifo", "secret"])


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(_PATHS), st.tuples(_KIND, _CONTENT), max_size=14), st.booleans())
def test_no_tree_whatever_makes_it_raise(tmp_path_factory, answers, entries, cuda):
    answers["nvml"] = _nvml(RTX_5070)
    root = tmp_path_factory.mktemp("hostile")
    for name, (kind, content) in entries.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            path.mkdir(exist_ok=True)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            os.symlink(content.replace(b"\0", b"")[:40] or b"x", os.fsencode(path))
        else:
            path.write_bytes(content)
            path.chmod(0 if kind == "secret" else 0o644)
    host = Host(root=str(root), machine="x86_64", release="6.1.0-31-amd64", uid=0, run=lambda argv, limit: "\0\n\t")
    seen = observe(host, Request(files=["/etc/environment"], cuda=cuda))
    assert set(seen) == KEYS
    assert set(seen["driver"]["modules_by_kernel"]) == {kernel["release"] for kernel in seen["os"]["kernels"]}
    assert all(entry["what"] and entry["why"] for entry in seen["unknown"])
    json.dumps(seen, allow_nan=False, ensure_ascii=False).encode("utf-8")


def test_who_computes_is_told_with_the_gpus(debian, answers):
    answers["nvml"] = _nvml({**RTX_5070, "compute_pids": [812]})
    debian.gpu(driver="nvidia").loaded().process(812, "python").process(900, "python")
    debian.link("/proc/900/fd/3", "/dev/nvidia-uvm")
    seen = observe(debian.host(), Request())["driver"]["processes"]
    assert [(row["pid"], row["kind"], row["gpus"]) for row in seen] == [
        (812, "compute", ["0000:01:00.0"]),
        (900, "compute", []),
    ]


def test_what_harms_cuda_is_told_of_files_and_of_those_who_compute(debian, answers):
    answers["nvml"] = _nvml({**RTX_5070, "compute_pids": [812]})
    debian.gpu(driver="nvidia").loaded().process(812, "python").process(813, "python")
    for pid in (812, 813):
        debian.file(f"/proc/{pid}/environ", "HOME=/root\0CUDA_LAUNCH_BLOCKING=1\0")
    debian.file("/etc/profile.d/cuda.sh", "export CUDA_VISIBLE_DEVICES=0\n")
    seen = observe(debian.host(), Request())["runtime"]["breaking"]
    assert [(row["where"], row["name"], row["value"]) for row in seen] == [
        ("/etc/profile.d/cuda.sh", "CUDA_VISIBLE_DEVICES", "0"),
        ("process 812 (python)", "CUDA_LAUNCH_BLOCKING", None),
    ]


def test_a_process_that_hangs_in_the_driver_holds_nobody_who_looks_at_its_environment(debian, answers, monkeypatch):
    answers["nvml"] = _nvml({**RTX_5070, "compute_pids": [812]})
    debian.gpu(driver="nvidia").loaded().process(812, "python")
    debian.file("/etc/profile.d/cuda.sh", "export CUDA_VISIBLE_DEVICES=0\n")
    monkeypatch.setattr(breaking, "of_processes", lambda _host, _processes: time.sleep(60))
    monkeypatch.setattr(
        "ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe._ENVIRONMENTS_LIMIT", 0.2
    )
    seen = observe(debian.host(), Request())
    assert [row["name"] for row in seen["runtime"]["breaking"]] == ["CUDA_VISIBLE_DEVICES"]
    assert "runtime.breaking[processes]" in [row["what"] for row in seen["unknown"]]


FELL_OFF = (
    "4,1,1000000,-;NVRM: Xid (PCI:0000:02:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
)
BOTH = {
    "schema": 1,
    "seen_at": "2026-11-01T00:00:00Z",
    "boot_id": "another",
    "gpus": [
        {"pci_address": "0000:01:00.0", "pci_device_id": "2f04", "uuid": "GPU-1", "name": "RTX 5070"},
        {"pci_address": "0000:02:00.0", "pci_device_id": "2204", "uuid": "GPU-2", "name": "RTX 3090"},
    ],
}


@pytest.fixture
def two(debian, answers):
    """A host that should have two GPUs, of which NVML shows the first."""
    answers["nvml"] = _nvml(RTX_5070)
    debian.loaded().gpu("0000:01:00.0", driver="nvidia").gpu("0000:02:00.0", "2204", driver="nvidia")
    return debian.file("/var/lib/gpufleet/gpus.json", json.dumps(BOTH))


def _without_second(tree):
    shutil.rmtree(tree.path("/sys/bus/pci/devices/0000:02:00.0"))


def _seen_missing(tree):
    seen = observe(tree.host(), Request())
    return seen, [(row["name"], row["since_what"]) for row in seen["health"]["missing_gpus"]]


def test_a_host_with_all_its_gpus_misses_none(two, answers):
    answers["nvml"] = _nvml(RTX_5070, {**RTX_5070, "pci_address": "0000:02:00.0", "uuid": "GPU-2"})
    seen, missing = _seen_missing(two)
    assert missing == []
    assert [gpu["lost"] for gpu in seen["gpus"]] == [None, None]
    assert seen["health"]["xid"] == []


def test_a_gpu_that_is_not_on_the_bus_is_missing_since_the_boot(two):
    _without_second(two)
    seen, missing = _seen_missing(two)
    assert missing == [("RTX 3090", "boot")]
    assert len(seen["gpus"]) == 1


def test_a_gpu_that_fell_off_the_bus_is_missing_since_then(two):
    _without_second(two.file("/dev/kmsg", FELL_OFF))
    assert _seen_missing(two)[1] == [("RTX 3090", "xid")]


@pytest.mark.parametrize("xid", [True, False], ids=["with an Xid", "without"])
def test_a_gpu_that_the_bus_lists_and_that_reads_as_nothing_is_lost(two, xid):
    two.file("/sys/bus/pci/devices/0000:02:00.0/config", b"\xff" * 64)
    two.file("/sys/bus/pci/devices/0000:01:00.0/config", b"\xde\x10" + bytes(62))
    if xid:
        two.file("/dev/kmsg", FELL_OFF)
    seen, missing = _seen_missing(two)
    assert missing == [("RTX 3090", "xid" if xid else "after")]
    assert [gpu["lost"] for gpu in seen["gpus"]] == [None, "the PCI bus still lists it, but it reads as 0xffff"]


@pytest.mark.parametrize("way", ["where it is", "while it is asked", "only the log"])
def test_a_gpu_that_the_driver_calls_lost_is_missing(two, answers, way):
    if way == "where it is":
        answers["nvml"] = _nvml(RTX_5070, lost=1)
    elif way == "while it is asked":
        answers["nvml"] = _nvml(RTX_5070, {**RTX_5070, "pci_address": "0000:02:00.0", "uuid": None, "lost": True})
    else:
        two.file("/dev/kmsg", FELL_OFF)
    seen, missing = _seen_missing(two)
    assert missing == [("RTX 3090", "xid" if way == "only the log" else "after")]
    assert seen["gpus"][1]["lost"] == "the driver says that it is lost"


def test_a_gpu_that_the_driver_does_not_serve_is_not_lost_for_that(two):
    seen, missing = _seen_missing(two)
    assert (missing, seen["gpus"][1]["lost"]) == ([], None)
    assert _whats(seen) == ["gpus[0000:02:00.0]"]


def test_without_a_driver_that_answers_the_bus_tells_which_are_there(two, answers):
    answers["nvml"] = Unreadable("nvmlInit_v2 failed with 18 (Driver/library version mismatch)")
    assert _seen_missing(two)[1] == []
    _without_second(two)
    assert _seen_missing(two)[1] == [("RTX 3090", "boot")]


def test_where_nobody_knows_which_gpus_are_here_none_is_called_missing(tree):
    tree.file("/var/lib/gpufleet/gpus.json", json.dumps(BOTH)).file("/etc/os-release", "ID=debian\n")
    health = observe(tree.file("/dev/kmsg").file("/proc/uptime", "5 5").host(), Request())["health"]
    assert health["missing_gpus"] is None


def test_mig_is_told_in_a_word_and_in_full(debian, answers):
    instance = {"uuid": "MIG-1", "name": "1g.10gb", "memory_mib": 9984}
    state = {"mig": {"enabled": True, "pending": True, "instances": [instance]}}
    answers["nvml"] = _nvml({**RTX_5070, "health": state})
    (gpu,) = observe(debian.loaded().gpu(driver="nvidia").host(), Request())["gpus"]
    assert (gpu["mig"], gpu["health"]["mig"]["instances"]) == (True, [instance])


def test_a_log_that_hangs_costs_its_limit_and_its_part(debian, answers):
    answers["nvml"] = _nvml(RTX_5070)
    debian.loaded().gpu(driver="nvidia").folder("/var/log/journal/0123")
    started = time.monotonic()
    seen = observe(debian.host(run=lambda argv, limit: time.sleep(60)), Request(time_limit=0.5))
    assert time.monotonic() - started < 2
    assert seen["health"]["xid"] is None
    assert seen["gpus"][0]["source"] == "nvml"
    assert seen["unknown"] == [{"what": "health.xid", "why": "no answer within 0.5 s; the child process was killed"}]
    assert _running_children() == []
