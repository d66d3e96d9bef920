"""Kernels that can boot, and their NVIDIA modules."""

from __future__ import annotations

import gzip
import lzma
import os
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import kernels
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Unreadable

OPEN = {"license": "Dual MIT/GPL", "version": "580.95.05", "srcversion": "7C1B", "vermagic": "6.1.0 SMP"}
PROPRIETARY = {"version": "535.261.03", "license": "NVIDIA", "srcversion": "ABCD"}
K = "/lib/modules/6.1.0-31-amd64"


def test_newest_first_compares_numbers():
    releases = {"6.1.0-9-amd64", "6.1.0-31-amd64", "6.12.94+deb13-amd64", "5.10.0-1-amd64", "weird"}
    assert kernels.newest_first(releases) == [
        "6.12.94+deb13-amd64",
        "6.1.0-31-amd64",
        "6.1.0-9-amd64",
        "5.10.0-1-amd64",
        "weird",
    ]


def test_kernels_of_a_debian_machine(debian):
    debian.kernel("6.1.0-32-amd64", headers=False).file("/boot/vmlinuz-6.1.0-30-amd64.old").file("/boot/initrd.img-6.1")
    assert kernels.kernels(debian.host()) == [
        {"release": "6.1.0-32-amd64", "running": False, "default": True, "headers": False},
        {"release": "6.1.0-31-amd64", "running": True, "default": False, "headers": True},
    ]


def test_a_machine_without_kernels_of_its_own_has_the_running_kernel_only(tree):
    assert kernels.kernels(tree.file("/proc/sys/kernel/osrelease", "6.18.1\n").host()) == [
        {"release": "6.18.1", "running": True, "default": None, "headers": False}
    ]


def test_a_container_boots_no_kernel(tree):
    assert kernels.kernels(tree.file("/proc/sys/kernel/osrelease", "6.18.1\n").file("/.dockerenv").host()) == []
    tree.file("/boot/vmlinuz-6.18.1")  # a system container, or a host that is played by one
    assert [kernel["release"] for kernel in kernels.kernels(tree.host())] == ["6.18.1"]


def test_a_running_kernel_that_was_removed_does_not_boot_again_though_its_folder_is_left(debian):
    gone = "6.1.0-32-amd64"
    debian.file("/proc/sys/kernel/osrelease", f"{gone}\n").file(f"/lib/modules/{gone}/modules.dep")
    debian.file(f"/usr/src/linux-headers-{gone}/Makefile")
    debian.link(f"/lib/modules/{gone}/build", f"/usr/src/linux-headers-{gone}")
    assert kernels.kernels(debian.host()) == [
        {"release": "6.1.0-31-amd64", "running": False, "default": True, "headers": True}
    ]


def test_headers_of_a_kernel_that_is_not_installed_make_it_none(debian):
    debian.file("/usr/src/linux-headers-6.1.0-32-amd64/Makefile")
    debian.link("/lib/modules/6.1.0-32-amd64/build", "/usr/src/linux-headers-6.1.0-32-amd64")
    assert [kernel["release"] for kernel in kernels.kernels(debian.host())] == ["6.1.0-31-amd64"]


def test_a_kernel_that_a_hypervisor_brings_counts_where_it_can_be_served(debian):
    running = "6.18.1-host"
    debian.file("/proc/sys/kernel/osrelease", f"{running}\n").folder(f"/lib/modules/{running}/kernel")
    assert [kernel["release"] for kernel in kernels.kernels(debian.host())] == ["6.1.0-31-amd64"]
    debian.file(f"/lib/modules/{running}/build/Makefile")
    assert [kernel["release"] for kernel in kernels.kernels(debian.host())] == [running, "6.1.0-31-amd64"]


def test_rescue_images_are_no_kernels(debian):
    debian.file("/boot/vmlinuz-0-rescue-0123456789abcdef")
    assert [kernel["release"] for kernel in kernels.kernels(debian.host())] == ["6.1.0-31-amd64"]


@pytest.mark.parametrize(
    ("setting", "environment", "default"),
    [
        ("", "", "6.2"),
        ("GRUB_DEFAULT=0", "", "6.2"),
        ("GRUB_DEFAULT=saved", "", "6.2"),
        ("GRUB_DEFAULT=saved", "saved_entry=abc123-6.1.el9\n", "6.1.el9"),
        ('GRUB_DEFAULT="Advanced options>Linux 6.1.el9"  # pinned', "", "6.1.el9"),
        ("GRUB_DEFAULT=Windows", "", None),
        ('GRUB_DEFAULT=""', "", "6.2"),
    ],
)
def test_the_kernel_that_grub_boots(tree, setting, environment, default):
    tree.folder("/boot/grub2").file("/etc/default/grub", setting).file("/boot/grub2/grubenv", environment)
    assert kernels.default_kernel(tree.host(), ["6.2", "6.1.el9"]) == default


def test_a_drop_in_overrides_grubs_default(tree):
    tree.folder("/boot/grub").file("/etc/default/grub", "GRUB_DEFAULT=0\n")
    tree.file("/etc/default/grub.d/50.cfg", "GRUB_DEFAULT='x>Linux 6.1'\n")
    assert kernels.default_kernel(tree.host(), ["6.2", "6.1"]) == "6.1"


EL = ["5.14.0-570.12.1.el9_6.x86_64", "5.14.0-503.el9.x86_64"]
ID = "4f3c0000000000000000000000000001"


def _el(tree, saved, settings="GRUB_DEFAULT=saved\nGRUB_ENABLE_BLSCFG=true\n"):
    for release in EL:
        text = f"title Rocky Linux ({release}) 9.6\nversion {release}\nlinux /vmlinuz-{release}\noptions $kernelopts\n"
        tree.file(f"/boot/loader/entries/{ID}-{release}.conf", text).file(f"/boot/vmlinuz-{release}")
    tree.file(f"/boot/loader/entries/{ID}-0-rescue.conf", "title rescue\nversion 0-rescue\n")
    tree.file(f"/boot/vmlinuz-0-rescue-{ID}").file("/etc/default/grub", settings)
    return tree.file("/boot/grub2/grubenv", f"# GRUB Environment Block\n{saved}####\n")


@pytest.mark.parametrize(
    ("saved", "default"),
    [
        (f"saved_entry={ID}-{EL[1]}\n", EL[1]),
        (f"saved_entry={ID}-{EL[0]}\nboot_success=0\n", EL[0]),
        ("saved_entry=1\n", EL[1]),
        ("saved_entry=0\n", EL[0]),
        ("saved_entry=7\n", None),
        ("", EL[0]),
        (f"saved_entry={ID}-{EL[0]}\nnext_entry={ID}-{EL[1]}\n", EL[1]),
        (f"saved_entry={ID}-{EL[1]}\nnext_entry=\n", EL[1]),
        (f"saved_entry={ID}-0-rescue\n", None),
    ],
)
def test_the_kernel_that_red_hats_loader_entries_boot(tree, saved, default):
    assert kernels.default_kernel(_el(tree, saved).host(), EL) == default


def test_kernels_of_an_el_machine_with_headers_from_kernel_devel(tree):
    _el(tree, f"saved_entry={ID}-{EL[1]}\n").file("/proc/sys/kernel/osrelease", f"{EL[1]}\n")
    tree.link(f"/lib/modules/{EL[0]}/build", f"/usr/src/kernels/{EL[0]}")  # kernel-core's link, without kernel-devel
    tree.link(f"/lib/modules/{EL[1]}/build", f"/usr/src/kernels/{EL[1]}").file(f"/usr/src/kernels/{EL[1]}/Makefile")
    assert kernels.kernels(tree.host()) == [
        {"release": EL[0], "running": False, "default": False, "headers": False},
        {"release": EL[1], "running": True, "default": True, "headers": True},
    ]


def test_loader_entries_that_cannot_be_understood_are_left_out(tree):
    tree.file("/boot/loader/entries/a.conf", b"\xff\xfe garbage").file("/boot/loader/entries/b.txt", "version 6.1\n")
    assert kernels.loader_entries(tree.file("/boot/loader/entries/c.conf", "version 6.2\n").host()) == {"c": "6.2"}


# A module's end as the kernel's sign-file makes it; the signature itself is read in test_secure_boot.
SIGNED = b"\x30\x00" + bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 2]) + b"~Module signature appended~\n"


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_a_signed_module_is_known_as_one_packed_or_not(tree, module_file, suffix):
    path = f"{K}/extra/nvidia.ko{suffix}"
    tree.file(path, _packed(path, module_file(OPEN) + SIGNED))
    assert kernels.module_facts(tree.host(), path) == {"version": "580.95.05", "flavor": "open", "signer": "signed"}


@pytest.mark.parametrize(
    ("printed", "signer"),
    [
        ("signer:  Canonical Ltd. Kernel Module Signing\0", "Canonical Ltd. Kernel Module Signing"),
        ("sig_id: PKCS#7\0", "signed"),
    ],
)
def test_modinfo_names_the_signer_of_what_only_it_can_unpack(tree, printed, signer):
    path = f"{K}/kernel/nvidia-580-open/nvidia.ko.zst"
    tree.file(path).commands["modinfo"] = f"version: 580.95.05\0license: Dual MIT/GPL\0{printed}"
    assert kernels.module_facts(tree.host(), path)["signer"] == signer


def _packed(name, data):
    if name.endswith(".xz"):
        return lzma.compress(data, check=lzma.CHECK_CRC32)
    return gzip.compress(data) if name.endswith(".gz") else data


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (OPEN, {"version": "580.95.05", "flavor": "open", "signer": None}),
        (PROPRIETARY, {"version": "535.261.03", "flavor": "proprietary", "signer": None}),
    ],
)
def test_version_and_flavor_come_from_the_file_itself(tree, module_file, suffix, fields, expected):
    path = f"{K}/updates/dkms/nvidia.ko{suffix}"
    tree.file(path, _packed(path, module_file(fields)))
    assert kernels.module_facts(tree.host(), path) == expected


def test_zstd_is_left_to_modinfo(tree):
    path = f"{K}/updates/dkms/nvidia.ko.zst"
    tree.file(path, b"\x28\xb5\x2f\xfd")
    tree.commands["modinfo"] = (
        "filename:       /x.ko.zst\0version=580.95.05\0license=Dual MIT/GPL\0srcversion=A\0sig_id=PKCS#7\0signer=a: b\0sig_key=12:50\0"
    )
    assert kernels.module_facts(tree.host(), path) == {"version": "580.95.05", "flavor": "open", "signer": "a: b"}
    assert tree.asked == [["modinfo", "-0", str(tree.path(path))]]


def test_a_large_packed_module_is_judged_by_its_small_sibling(tree, module_file):
    big = module_file(OPEN, os.urandom(700 * 1024))
    tree.file(f"{K}/updates/dkms/nvidia.ko.xz", lzma.compress(big, preset=0))
    sibling = module_file({**OPEN, "version": "580.105.08"})
    tree.file(f"{K}/updates/dkms/nvidia-modeset.ko.xz", lzma.compress(sibling))
    assert kernels.module_facts(tree.host(), f"{K}/updates/dkms/nvidia.ko.xz")["version"] == "580.105.08"


def test_a_large_packed_module_without_a_sibling_is_unpacked_itself(tree, module_file):
    big = module_file(OPEN, os.urandom(700 * 1024))
    tree.file(f"{K}/updates/dkms/nvidia.ko.xz", lzma.compress(big, preset=0))
    assert kernels.module_facts(tree.host(), f"{K}/updates/dkms/nvidia.ko.xz")["version"] == "580.95.05"


def test_srcversion_is_not_mistaken_for_the_version(tree, module_file):
    path = f"{K}/updates/nvidia.ko"
    tree.file(path, module_file({"srcversion": "999.99", "license": "NVIDIA", "version": "550.163.01"}))
    assert kernels.module_facts(tree.host(), path)["version"] == "550.163.01"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("nvidia.ko", b"", "no 64-bit ELF"),
        ("nvidia.ko", b"\x7fELF" + b"\x02\x01" + b"\xff" * 58, "section table"),
        ("nvidia.ko", b"#!/bin/sh\n" * 100, "no 64-bit ELF"),
        ("nvidia.ko.xz", lzma.compress(b"x" * 100_000)[:60], "ends too early"),
        ("nvidia.ko.xz", lzma.compress(b"\0version=580.95.05\0license=NVIDIA\0"), "no 64-bit ELF"),
        ("nvidia.ko.xz", b"not xz at all", "format"),
        ("nvidia.ko.gz", gzip.compress(b"x" * 100_000)[:50], "ends too early"),
        ("nvidia.ko.zst", b"zstd", "modinfo is not installed"),
    ],
)
def test_a_damaged_module_is_there_but_unknown(tree, name, data, message):
    unknown = []
    tree.file(f"{K}/updates/dkms/{name}", data)
    found = kernels.modules_by_kernel(tree.host(), ["6.1.0-31-amd64"], unknown)
    assert found == {
        "6.1.0-31-amd64": {"version": None, "flavor": None, "signer": None, "path": f"{K}/updates/dkms/{name}"},
    }
    assert [entry["what"] for entry in unknown] == ["driver.modules_by_kernel[6.1.0-31-amd64]"]
    assert message in unknown[0]["why"]


def test_a_module_without_a_version_of_nvidias_kind_is_unknown(tree, module_file):
    path = f"{K}/updates/dkms/nvidia.ko"
    tree.file(path, module_file({"version": "not.a.number", "license": "NVIDIA"}))
    with pytest.raises(Unreadable, match="names no version"):
        kernels.module_facts(tree.host(), path)


def test_an_unheard_of_licence_is_no_flavor(tree, module_file):
    path = f"{K}/updates/dkms/nvidia.ko"
    tree.file(path, module_file({"version": "580.95.05", "license": "Other"}))
    assert kernels.module_facts(tree.host(), path) == {"version": "580.95.05", "flavor": None, "signer": None}


def test_something_that_unpacks_without_end_is_given_up(tree, monkeypatch):
    monkeypatch.setattr(kernels, "_UNPACKED_LIMIT", 4 * 1024 * 1024)
    tree.file(f"{K}/updates/dkms/nvidia.ko.xz", lzma.compress(bytes(64 * 1024 * 1024), preset=0))
    started = time.monotonic()
    with pytest.raises(Unreadable, match="unpacks to more than 4 MiB"):
        kernels.module_facts(tree.host(), f"{K}/updates/dkms/nvidia.ko.xz")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "place",
    [
        "updates/dkms/nvidia.ko.xz",
        "updates/nvidia.ko",
        "extra/nvidia.ko.xz",
        "extra/nvidia/nvidia.ko",
        "extra/drivers/video/nvidia/nvidia.ko",
        "weak-updates/nvidia/nvidia.ko",
        "kernel/drivers/video/nvidia.ko",
        "kernel/nvidia-580-open/nvidia.ko.zst",
        "updates/dkms/nvidia-current.ko.xz",
    ],
)
def test_modules_are_found_where_packages_put_them(tree, place):
    assert kernels.module_path(tree.file(f"{K}/{place}").host(), "6.1.0-31-amd64") == f"{K}/{place}"


def test_other_files_of_the_driver_are_not_the_module(tree):
    for name in (
        "nvidia-modeset.ko",
        "nvidia-drm.ko.xz",
        "nvidia-uvm.ko",
        "nvidia-fs.ko",
        "nvidia.ko.bak",
        "nvidiafb.ko",
    ):
        tree.file(f"{K}/updates/dkms/{name}")
    assert kernels.module_path(tree.host(), "6.1.0-31-amd64") is None


def test_updates_win_over_the_distributions_own(tree):
    tree.file(f"{K}/kernel/nvidia-580/nvidia.ko").file(f"{K}/updates/dkms/nvidia.ko")
    assert kernels.module_path(tree.host(), "6.1.0-31-amd64") == f"{K}/updates/dkms/nvidia.ko"


def test_of_debians_two_modules_the_one_that_modprobe_chooses_counts(tree, module_file):
    tree.file(f"{K}/updates/dkms/nvidia-current.ko", module_file(PROPRIETARY))
    tree.file(f"{K}/updates/dkms/nvidia-current-open.ko", module_file({**OPEN, "version": "550.163.01"}))
    text = "install nvidia modprobe -i nvidia-current-open $CMDLINE_OPTS\nremove nvidia modprobe -r -i nvidia-drm\n"
    tree.file("/etc/alternatives/nvidia--nvidia-modprobe.conf", text)
    tree.link("/etc/modprobe.d/nvidia.conf", "/etc/alternatives/nvidia--nvidia-modprobe.conf")
    found = kernels.modules_by_kernel(tree.host(), ["6.1.0-31-amd64"], [])["6.1.0-31-amd64"]
    assert found == {
        "version": "550.163.01",
        "flavor": "open",
        "signer": None,
        "path": f"{K}/updates/dkms/nvidia-current-open.ko",
    }


def test_a_kernel_without_a_module_has_none(debian):
    assert kernels.modules_by_kernel(debian.host(), ["6.1.0-31-amd64"], []) == {"6.1.0-31-amd64": None}
