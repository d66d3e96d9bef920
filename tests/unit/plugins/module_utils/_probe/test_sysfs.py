"""What /sys shows."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import sysfs


def _gpus(tree):
    unknown = []
    return sysfs.pci_gpus(tree.host(), unknown), unknown


def test_a_gpu_is_described_from_its_attributes(tree):
    gpus, unknown = _gpus(tree.gpu(driver="nouveau"))
    assert gpus == [
        {
            "pci_address": "0000:01:00.0",
            "pci_device_id": "2f04",
            "subsystem_id": "10de:205e",
            "kernel_driver": "nouveau",
            "answers": True,
            "pcie": {"width": 16, "max_width": 16, "speed_gts": 2.5, "max_speed_gts": 32.0},
        }
    ]
    assert unknown == []


def test_only_nvidias_display_and_3d_controllers_are_gpus(tree):
    tree.gpu("0000:01:00.0", "2f04").gpu("0000:01:00.1", "2f80", **{"class": "0x040300"})
    tree.gpu("0000:02:00.0", "2330", **{"class": "0x030200"}).gpu("0000:03:00.0", "164e", vendor="0x1002")
    gpus, _ = _gpus(tree)
    assert [gpu["pci_address"] for gpu in gpus] == ["0000:01:00.0", "0000:02:00.0"]


def test_virtual_functions_belong_to_guests(tree):
    tree.gpu("0000:01:00.0", "2330").gpu("0000:01:00.4", "2330").link(
        "/sys/bus/pci/devices/0000:01:00.4/physfn", "../x"
    )
    gpus, _ = _gpus(tree)
    assert [gpu["pci_address"] for gpu in gpus] == ["0000:01:00.0"]


def test_links_that_the_kernel_does_not_know_are_null(tree):
    tree.gpu(current_link_width="63", max_link_width="255", current_link_speed="Unknown", max_link_speed="")
    gpus, _ = _gpus(tree)
    assert gpus[0]["pcie"] == {"width": None, "max_width": None, "speed_gts": None, "max_speed_gts": None}


def test_a_device_that_answers_garbage_is_unknown_and_the_others_stay(tree):
    gpus, unknown = _gpus(tree.gpu("0000:01:00.0", "2f04").gpu("0000:02:00.0", device="zz"))
    assert [gpu["pci_address"] for gpu in gpus] == ["0000:01:00.0"]
    assert [entry["what"] for entry in unknown] == ["gpus[0000:02:00.0]"]


def test_a_bus_without_gpus_has_none(tree):
    assert _gpus(tree.folder("/sys/bus/pci/devices")) == ([], [])


def test_a_host_that_shows_no_bus_is_told_from_one_without_gpus(tree):
    assert _gpus(tree) == (None, [])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("00000000:9B:00.0", "0000:9b:00.0"),
        ("10000:e1:00.0", "10000:e1:00.0"),
        ("0000:01:00", None),
        ("virtio0", None),
        ("", None),
    ],
)
def test_pci_addresses_are_spelled_as_in_sysfs(text, address):
    assert sysfs.pci_address(text) == address


def _dmi(tree, vendor, product, flags="fpu hypervisor"):
    tree.file("/sys/class/dmi/id/sys_vendor", vendor).file("/sys/class/dmi/id/product_name", product)
    return tree.file("/proc/cpuinfo", f"processor\t: 0\nflags\t\t: {flags}\n")


@pytest.mark.parametrize(
    ("vendor", "product", "name"),
    [
        ("QEMU", "Standard PC", "kvm"),
        ("VMware, Inc.", "VMware7,1", "vmware"),
        ("Microsoft Corporation", "Virtual Machine", "microsoft"),
        ("Amazon EC2", "p5.48xlarge", "amazon"),
        ("Unheard-of", "Box", "vm"),
    ],
)
def test_a_hypervisor_is_named_by_its_dmi_strings(tree, vendor, product, name):
    assert sysfs.virtualization(_dmi(tree, vendor, product).host()) == name


def test_a_bare_metal_machine_of_a_cloud_or_of_microsoft_is_no_guest(tree):
    assert sysfs.virtualization(_dmi(tree, "Amazon EC2", "p5.metal", "fpu sse2").host()) is None
    assert sysfs.virtualization(_dmi(tree, "Microsoft Corporation", "Surface Studio", "fpu sse2").host()) is None


@pytest.mark.parametrize(
    "path", ["/run/systemd/container", "/.dockerenv", "/run/.containerenv", "/run/secrets/kubernetes.io/token"]
)
def test_containers_are_recognised(tree, path):
    assert sysfs.virtualization(_dmi(tree, "QEMU", "x").file(path, "podman").host()) == "container"


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [
        ("/run/host/container-manager", "systemd-nspawn", "container"),
        ("/proc/1/environ", "PATH=/bin\0container=lxc\0", "container"),
        ("/proc/1/environ", "container=podman\0TERM=xterm", "container"),
        ("/proc/1/environ", "PATH=/bin\0mycontainer=x\0container=\0", "kvm"),
        ("/proc/1/cgroup", "12:pids:/docker/0123\n", "container"),
        ("/proc/1/cgroup", "0::/init.scope\n", "kvm"),
    ],
)
def test_containers_are_told_by_their_first_process(tree, path, text, kind):
    assert sysfs.virtualization(_dmi(tree, "QEMU", "x").file(path, text).host()) == kind


def test_wsl_is_recognised_before_the_container_that_it_resembles(tree):
    tree.file("/proc/sys/kernel/osrelease", "6.6.87.2-microsoft-standard-WSL2\n").file("/run/.containerenv")
    assert sysfs.virtualization(tree.host()) == "wsl"


def test_a_module_is_loaded_when_sys_shows_its_state(tree):
    host = tree.file("/sys/module/nouveau/initstate", "live").folder("/sys/module/kvm/parameters").host()
    assert sysfs.module_loaded(host, "nouveau")
    assert not sysfs.module_loaded(host, "nova_core")
    assert not sysfs.module_loaded(host, "kvm")


@pytest.mark.parametrize(
    ("asleep", "answers"),
    [({}, False), ({"power_state": "D3cold"}, True), ({"power/runtime_status": "suspended"}, True)],
)
def test_a_gpu_that_sleeps_is_left_to_sleep_and_is_not_lost(tree, asleep, answers):
    tree.gpu(**asleep).file("/sys/bus/pci/devices/0000:01:00.0/config", b"\xff\xff\xff\xff")
    (found,) = sysfs.pci_gpus(tree.host(), [])
    assert found["answers"] is answers
