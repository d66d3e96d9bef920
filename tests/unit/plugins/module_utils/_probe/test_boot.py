"""What the next boot depends on."""

from __future__ import annotations

import os

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import boot

K = "6.1.0-31-amd64"


@pytest.mark.parametrize(
    ("paths", "manager", "tool"),
    [
        (["/usr/sbin/update-initramfs"], "apt", "update-initramfs"),
        (["/usr/sbin/update-initramfs", "/usr/bin/dracut"], "apt", "update-initramfs"),  # Ubuntu's dracut brings both
        (["/usr/bin/dracut"], "apt", "dracut"),
        (["/usr/bin/dracut"], "dnf", "dracut"),
        ([], "apt", None),
    ],
)
def test_the_program_that_makes_an_initramfs(tree, paths, manager, tool):
    for path in paths:
        tree.file(path)
    assert boot.initramfs_tool(tree.host(), manager) == tool


def _image(tree, older_than_now):
    """An initramfs that was made so many seconds before, or (negative) after now."""
    path = tree.file(f"/boot/initrd.img-{K}").path(f"/boot/initrd.img-{K}")
    made = path.stat().st_mtime_ns - older_than_now * 10**9
    os.utime(path, ns=(made, made))
    return tree


def _nouveau(tree):
    return boot.nouveau_in_initramfs(tree.host(), [K])[K]


@pytest.mark.parametrize("line", ["blacklist nouveau", "install nouveau /bin/false", "alias nouveau off"])
def test_an_initramfs_that_is_older_than_the_block_list_may_still_load_nouveau(tree, line):
    tree.file("/etc/modprobe.d/gpufleet-nouveau.conf", f"# ours\n{line}\n")
    assert _nouveau(_image(tree, 60)) is True
    assert _nouveau(_image(tree, -60)) is False


def test_a_package_that_keeps_old_dates_is_judged_by_its_arrival(tree):
    path = tree.file("/usr/lib/modprobe.d/nvidia.conf", "blacklist nouveau\n").path("/usr/lib/modprobe.d/nvidia.conf")
    os.utime(path, ns=(0, 0))
    assert _nouveau(_image(tree, 60)) is True


def test_one_block_list_that_is_old_enough_will_do(tree):
    tree.file("/etc/modprobe.d/a.conf", "blacklist nouveau\n")
    _image(tree, -60).file("/etc/modprobe.d/z.conf", "options nouveau modeset=0\n")
    assert _nouveau(tree) is False


@pytest.mark.parametrize("text", ["", "# blacklist nouveau\n", "blacklist nouveaux\n", "options nouveau modeset=0\n"])
def test_without_a_block_list_it_is_not_known(tree, text):
    assert _nouveau(_image(tree.file("/etc/modprobe.d/x.conf", text), 60)) is None


def test_a_masked_or_dangling_file_blocks_nothing(tree):
    tree.file("/dev/null").link("/etc/modprobe.d/a.conf", "/dev/null").link("/etc/modprobe.d/b.conf", "/nowhere")
    assert _nouveau(_image(tree, 60)) is None


def test_without_an_initramfs_nothing_is_in_it(tree):
    assert _nouveau(tree.file("/etc/modprobe.d/x.conf", "blacklist nouveau\n")) is False


def test_a_kernel_command_line_that_blocks_nouveau_is_enough(tree):
    tree.file("/etc/modprobe.d/x.conf", "blacklist nouveau\n")
    _image(tree, 60).file("/proc/cmdline", "ro rd.driver.blacklist=nouveau,nova_core quiet\n")
    assert _nouveau(tree) is False


def _disk(tree, root="253:1", source="/dev/mapper/vg-root", kind="ext4"):
    """/ on LVM on LUKS on a partition."""
    tree.file(
        "/proc/self/mountinfo",
        f"22 1 0:20 / /proc rw - proc proc rw\n30 1 {root} / / rw,relatime shared:1 - {kind} {source} rw\n",
    )
    for name, number, uuid, below in (
        ("dm-1", "253:1", "LVM-abc", "dm-0"),
        ("dm-0", "253:0", "CRYPT-LUKS2-0123-sda3_crypt", "sda3"),
        ("sda3", "8:3", None, None),
    ):
        folder = f"/sys/devices/virtual/block/{name}"
        tree.link(f"/sys/class/block/{name}", f"../../devices/virtual/block/{name}")
        tree.link(f"/sys/dev/block/{number}", f"../../devices/virtual/block/{name}").file(f"{folder}/dev", number)
        if uuid:
            tree.file(f"{folder}/dm/uuid", f"{uuid}\n")
            tree.file(f"{folder}/dm/name", "sda3_crypt\n" if name == "dm-0" else "vg-root\n")
        if below:
            tree.folder(f"{folder}/slaves/{below}")
    return tree


@pytest.mark.parametrize(
    ("crypttab", "asked"),
    [
        ("sda3_crypt UUID=1 none luks,discard\n", True),
        ("# comment\nsda3_crypt UUID=1\n", True),
        ("", True),  # an entry of the kernel command line, which says no more
        ("sda3_crypt UUID=1 /etc/keys/root.key luks\n", False),
        ("sda3_crypt UUID=1 none luks,tpm2-device=auto\n", False),
        ("sda3_crypt UUID=1 none luks,keyscript=/usr/local/sbin/key\n", None),
        ("sda3_crypt UUID=1 /k luks\nhome UUID=2 none luks\n", True),
        ("sda3_crypt UUID=1 /k luks\nbackup UUID=2 none luks,noauto\n", False),
        ("sda3_crypt UUID=1 /k luks\nswap /dev/sda2 /dev/urandom swap\n", False),
    ],
)
def test_a_root_on_an_encrypted_disk(tree, crypttab, asked):
    assert boot.disk_passphrase(_disk(tree).file("/etc/crypttab", crypttab).host()) is asked


def test_btrfs_is_followed_by_the_name_of_its_device(tree):
    assert boot.disk_passphrase(_disk(tree, "0:31", "/dev/mapper/sda3_crypt", "btrfs").host()) is True
    assert boot.disk_passphrase(tree.file("/etc/crypttab", "sda3_crypt UUID=1 none tpm2-device=auto\n").host()) is False


def test_a_plain_disk_and_a_container_ask_for_nothing(tree):
    assert boot.disk_passphrase(tree.host()) is False
    assert boot.disk_passphrase(_disk(tree, "8:3", "/dev/sda3").host()) is False
    assert boot.disk_passphrase(_disk_of_a_container(tree).host()) is False


def _disk_of_a_container(tree):
    return tree.file("/proc/self/mountinfo", "30 1 0:55 / / rw - overlay overlay rw,lowerdir=/x\n")


def test_where_clevis_is_in_the_initramfs_it_may_unlock_the_disk(tree):
    assert boot.disk_passphrase(_disk(tree).file("/usr/share/initramfs-tools/hooks/clevis").host()) is None


def test_a_boot_loader_that_unlocks_the_disk_asks_itself(tree):
    tree.file("/etc/crypttab", "sda3_crypt UUID=1 /etc/keys/root.key luks\n")
    assert boot.disk_passphrase(_disk(tree).file("/etc/default/grub", "GRUB_ENABLE_CRYPTODISK=y\n").host()) is True


def test_devices_that_stand_on_each_other_end_the_search(tree):
    _disk(tree).folder("/sys/devices/virtual/block/sda3/slaves/dm-1")
    assert boot.disk_passphrase(tree.host()) is True
