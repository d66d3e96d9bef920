"""The driver in user space and what belongs to it."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import driver
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Unreadable

UNIT = "nvidia-persistenced.service"


@pytest.mark.parametrize(
    "folder", ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/x86_64-linux-gnu/nvidia/current"]
)
def test_the_version_is_in_the_name_behind_libcuda_so_1(tree, folder):
    assert driver.userspace_version(tree.userspace("580.95.05", folder).host()) == "580.95.05"


def test_aarch64_has_its_own_folder(tree):
    tree.userspace("580.95.05", "/usr/lib/aarch64-linux-gnu")
    assert driver.userspace_version(tree.host(machine="aarch64")) == "580.95.05"
    assert driver.userspace_version(tree.host(machine="x86_64")) is None


def test_debians_chain_of_alternatives_is_followed(tree):
    tree.userspace("535.261.03", "/usr/lib/x86_64-linux-gnu/nvidia/current")
    tree.link("/etc/alternatives/nvidia--libcuda.so.1", "/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.1")
    tree.link("/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/etc/alternatives/nvidia--libcuda.so.1")
    assert driver.userspace_version(tree.host()) == "535.261.03"


def test_of_two_files_the_linked_one_counts(tree):
    tree.userspace("580.95.05").file("/usr/lib/x86_64-linux-gnu/libcuda.so.595.71.05")
    assert driver.userspace_version(tree.host()) == "580.95.05"


def test_without_the_link_the_newest_file_counts(tree):
    tree.file("/usr/lib64/libcuda.so.99.10").file("/usr/lib64/libcuda.so.580.95.05")
    assert driver.userspace_version(tree.host()) == "580.95.05"


def test_folders_of_the_loaders_configuration_count_but_not_cuda_compat(tree):
    tree.file("/etc/ld.so.conf.d/a.conf", "/usr/local/cuda/compat\n").userspace("575.57.08", "/usr/local/cuda/compat")
    assert driver.userspace_version(tree.host()) is None
    tree.file("/etc/ld.so.conf.d/b.conf", "# x\n/usr/local/nvidia/lib64\n").userspace(
        "580.95.05", "/usr/local/nvidia/lib64"
    )
    assert driver.userspace_version(tree.host()) == "580.95.05"


def test_wsls_library_has_no_version_in_its_name(tree):
    tree.file("/usr/lib/wsl/lib/libcuda.so.1.1").link("/usr/lib/wsl/lib/libcuda.so.1", "libcuda.so.1.1")
    assert driver.userspace_version(tree.host()) is None


def test_a_unit_that_is_installed_enabled_and_active(tree):
    tree.file(f"/usr/lib/systemd/system/{UNIT}")
    tree.link(f"/etc/systemd/system/multi-user.target.wants/{UNIT}", f"/usr/lib/systemd/system/{UNIT}")
    tree.link(f"/run/systemd/units/invocation:{UNIT}", "0123456789abcdef0123456789abcdef")
    assert driver.persistence(tree.host()) == {"unit": UNIT, "present": True, "enabled": True, "active": True}


def test_a_unit_that_is_installed_only(tree):
    tree.file(f"/lib/systemd/system/{UNIT}")
    assert driver.persistence(tree.host()) == {"unit": UNIT, "present": True, "enabled": False, "active": False}


def test_a_unit_that_udev_starts_counts_as_enabled(tree):
    tree.file(f"/lib/systemd/system/{UNIT}", "[Unit]\n")
    rule = f'ACTION=="add", DEVPATH=="/bus/pci/drivers/nvidia", TAG+="systemd", ENV{{SYSTEMD_WANTS}}="{UNIT}"\n'
    assert driver.persistence(tree.file("/lib/udev/rules.d/71-nvidia.rules", rule).host())["enabled"] is True


def test_a_masked_unit_is_neither_present_nor_enabled(tree):
    tree.link(f"/etc/systemd/system/{UNIT}", "/dev/null").file(f"/usr/lib/systemd/system/{UNIT}").file("/dev/null")
    tree.link(f"/etc/systemd/system/multi-user.target.wants/{UNIT}", "x")
    assert driver.persistence(tree.host())["enabled"] is False


def test_a_leftover_link_without_a_unit_enables_nothing(tree):
    tree.link(f"/etc/systemd/system/multi-user.target.wants/{UNIT}", f"/lib/systemd/system/{UNIT}")
    assert driver.persistence(tree.host()) == {"unit": UNIT, "present": False, "enabled": False, "active": False}


@pytest.mark.parametrize(
    ("target", "manager", "desktop"),
    [
        ("/lib/systemd/system/graphical.target", True, True),
        (None, True, True),
        ("/lib/systemd/system/multi-user.target", True, False),
        ("/lib/systemd/system/graphical.target", False, False),
    ],
)
def test_a_desktop_starts_a_display_manager_by_default(tree, target, manager, desktop):
    if manager:
        tree.file("/lib/systemd/system/gdm.service")
        tree.link("/etc/systemd/system/display-manager.service", "/lib/systemd/system/gdm.service")
    if target:
        tree.link("/etc/systemd/system/default.target", target)
    assert driver.graphical(tree.host()) is desktop


@pytest.mark.parametrize("socket", ["@/tmp/.X11-unix/X0", "/run/user/1000/wayland-0"])
def test_a_running_display_server_makes_a_desktop(tree, socket):
    line = f"0000000000000000: 00000002 00000000 00010000 0001 01 12345 {socket}\n"
    assert driver.graphical(tree.file("/proc/net/unix", f"Num RefCount\n{line}0: 1 2 3 4 5 6 /run/x\n").host()) is True


def test_no_reboot_is_asked_for_by_other_packages(tree):
    tree.file("/run/reboot-required").file("/run/reboot-required.pkgs", "libc6\ndbus\n")
    assert driver.reboot_asked_for(tree.host()) is False
    tree.file("/run/reboot-required.pkgs", "libc6\nlinux-image-6.1.0-32-amd64\n")
    assert driver.reboot_asked_for(tree.host()) is True


GPU = {"pci_address": "0000:01:00.0", "kernel_driver": "nvidia"}


def test_device_nodes_are_those_that_programs_open(tree):
    assert driver.device_nodes(tree.host(), []) == {
        "/dev/nvidiactl": False,
        "/dev/nvidia-uvm": False,
        "/dev/nvidia-uvm-tools": False,
    }
    tree.file("/dev/nvidiactl").file("/dev/nvidia1")
    tree.file("/proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t X\nDevice Minor: \t 1\n")
    found = driver.device_nodes(tree.host(), [GPU, {**GPU, "pci_address": "0000:02:00.0"}])
    assert found == {
        "/dev/nvidiactl": True,
        "/dev/nvidia-uvm": False,
        "/dev/nvidia-uvm-tools": False,
        "/dev/nvidia1": True,
    }


@pytest.mark.parametrize(
    ("bound", "mode", "guest", "files", "kind"),
    [
        ("nvidia", None, False, [], None),
        ("vfio-pci", None, False, [], "passthrough"),
        ("pciback", None, False, [], "passthrough"),
        ("nvidia", 1, True, ["/usr/bin/nvidia-gridd"], None),  # a guest with a whole GPU is served like any other
        ("nvidia", 2, True, [], "vgpu"),
        ("nvidia", 3, False, [], "vgpu"),
        ("nvidia", None, False, ["/sys/bus/pci/devices/0000:01:00.0/mdev_supported_types/nvidia-256/name"], "vgpu"),
        (None, None, True, ["/usr/bin/nvidia-gridd"], "vgpu"),
        (None, None, False, ["/usr/bin/nvidia-gridd"], None),
    ],
)
def test_gpus_that_are_shared_or_given_away(tree, bound, mode, guest, files, kind):
    for path in files:
        tree.file(path)
    assert driver.virtual(tree.host(), {**GPU, "kernel_driver": bound}, mode, guest) == kind


def test_what_is_staged_is_said_without_the_rest(tree):
    assert driver.staged(tree.host()) is None
    text = '{"branch": 580, "flavor": "open", "version": "580.178.04", "packages": "sha256", "files": [1]}'
    assert driver.staged(tree.file("/var/lib/gpufleet/staged/transaction.json", text).host()) == {
        "branch": 580,
        "flavor": "open",
        "version": "580.178.04",
        "packages": "sha256",
    }


GENERATION = """{"schema": 1, "n": %d, "created": "2026-11-22T19:00:00Z", "default_kernel": null, "configuration": {},
"driver": {"branch": 550, "version": "550.163.01", "flavor": "open", "source": "distro"},
"packages": [{"name": "libcuda1", "version": "550.163.01-2", "architecture": "amd64", "file": "libcuda1.deb", "sha256": "x"}],
"environments": {"base": "2.9.1-cu128-1a2b3c4d"}}"""
STORE = "/var/lib/gpufleet/generations"


def test_generations_that_are_whole_are_ways_back_and_others_are_named(tree):
    unknown = []
    for number in (10, 9, 8, 7):
        tree.file(f"{STORE}/{number}/generation.json", GENERATION % number)
        if number != 8:
            tree.file(f"{STORE}/{number}/packages/libcuda1.deb")
    tree.file(f"{STORE}/7/generation.json", '{"driver": []}').folder(f"{STORE}/11.partial").folder(f"{STORE}/12")
    assert driver.generations(tree.host(), unknown) == [
        {
            "n": number,
            "branch": 550,
            "version": "550.163.01",
            "flavor": "open",
            "created": "2026-11-22T19:00:00Z",
            "environments": {"base": "2.9.1-cu128-1a2b3c4d"},
        }
        for number in (9, 10)
    ]
    assert [entry["what"] for entry in unknown] == ["driver.generations[7]", "driver.generations[8]"]
    assert "lacks libcuda1.deb" in unknown[1]["why"]


def test_the_journal_is_returned_as_written(tree):
    assert driver.journal(tree.host()) is None
    assert driver.journal(tree.file("/var/lib/gpufleet/driver.json", '{"branch": 580}').host()) == {"branch": 580}


def test_a_journal_that_is_no_object_is_unreadable(tree):
    with pytest.raises(Unreadable, match="no JSON object"):
        driver.journal(tree.file("/var/lib/gpufleet/driver.json", "[1]").host())
