"""Rebuilding initial RAM file systems so that nouveau stays away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import initramfs
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import NOT_THERE, Done
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import DriverError
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

K = "6.12.107+deb13-amd64"
NOUVEAU = "usr/lib/modules/6.12.107+deb13-amd64/kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz\n"
# A line of lsinitrd; lsinitramfs prints paths alone.
LONG = "-rw-r--r--   1 root     root      1234 Nov 22  2026 usr/lib/modules/5.14.0/kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz\n"


DONE, NO_NOUVEAU = Done(0, ""), Done(0, "usr/bin/sh\n")


class Programs:
    """Plays update-initramfs, dracut and the programs that list an image."""

    def __init__(self, rebuild: Done = DONE, listing: Done = NO_NOUVEAU) -> None:
        self.rebuild, self.listing = rebuild, listing
        self.asked: list[list[str]] = []

    def __call__(self, argv, time_limit, environment=None, text=""):
        self.asked.append(list(argv))
        if argv[0].startswith("ls"):
            return self.listing
        if argv[0] == "dracut":
            Path(argv[2]).write_text("new")
        return self.rebuild


@pytest.fixture
def host(tmp_path):
    def make(program: str, image: str) -> Host:
        for path in (program, image):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("old")
        return Host(root=str(tmp_path))

    return make


@pytest.fixture
def debian(host):
    return host("usr/sbin/update-initramfs", f"boot/initrd.img-{K}")


@pytest.fixture
def enterprise(host):
    return host("usr/bin/dracut", f"boot/initramfs-{K}.img")


def test_update_initramfs_renews_what_is_there_and_makes_what_is_not(debian):
    programs = Programs()
    assert initramfs.rebuild(debian, programs, [K, "6.1"], 600) == [f"/boot/initrd.img-{K}", "/boot/initrd.img-6.1"]
    assert [argv for argv in programs.asked if argv[0] == "update-initramfs"] == [
        ["update-initramfs", "-u", "-k", K],
        ["update-initramfs", "-c", "-k", "6.1"],
    ]


def test_dracut_never_writes_over_the_image_that_boots(enterprise):
    programs = Programs()
    image = Path(enterprise.root) / f"boot/initramfs-{K}.img"
    assert initramfs.rebuild(enterprise, programs, [K], 600) == [f"/boot/initramfs-{K}.img"]
    assert programs.asked[0][0:2] == ["dracut", "--force"]
    assert programs.asked[0][2] != str(image)
    assert programs.asked[0][3] == K
    assert image.read_text() == "new"
    assert [path.name for path in image.parent.iterdir()] == [image.name]


@pytest.mark.parametrize(
    ("files", "image"),
    [
        ([f"boot/initrd.img-{K}", "usr/bin/dracut"], f"/boot/initrd.img-{K}"),
        (["etc/debian_version", "usr/bin/dracut"], f"/boot/initrd.img-{K}"),
        (["usr/bin/dracut"], f"/boot/initramfs-{K}.img"),
        (["usr/sbin/update-initramfs"], f"/boot/initrd.img-{K}"),
    ],
)
def test_dracut_makes_the_image_that_the_distribution_boots(tmp_path, files, image):
    for path in (*files, "boot/grub/grub.cfg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert initramfs.rebuild(Host(root=str(tmp_path)), Programs(), [K], 600) == [image]


def test_ubuntus_images_that_dracut_made_are_listed_by_dracuts_program(debian):
    class Ubuntu(Programs):
        def __call__(self, argv, *more):
            return Done(NOT_THERE, "not installed") if argv[0] == "lsinitramfs" else super().__call__(argv, *more)

    assert initramfs.loads_nouveau(debian, Ubuntu(listing=Done(0, LONG)), K) is True


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (
            Done(1, "gzip: write error: No space left on device\n"),
            "/boot is full. The old image is still there. Remove kernels",
        ),
        (Done(1, "dracut: FAILED: cp\n"), "dracut: FAILED: cp. The old image is still there. Mend the cause"),
        (Done(-15, "", True), "it was not done in time. The old image is still there."),
    ],
)
def test_a_rebuild_that_fails_leaves_the_old_image_and_says_so(enterprise, done, words):
    image = Path(enterprise.root) / f"boot/initramfs-{K}.img"
    with pytest.raises(DriverError) as caught:
        initramfs.rebuild(enterprise, Programs(done), [K], 600)
    assert f"/boot/initramfs-{K}.img could not be rebuilt: {words}" in str(caught.value)
    assert image.read_text() == "old"
    assert [path.name for path in image.parent.iterdir()] == [image.name]


def test_a_kernel_that_has_no_image_after_a_failure_must_not_be_booted(debian):
    with pytest.raises(
        DriverError, match=r"initrd.img-6.1 could not be rebuilt: cp: error. There is no image .* do not reboot into it"
    ):
        initramfs.rebuild(debian, Programs(Done(1, "cp: error\n")), ["6.1"], 600)


def test_a_host_without_a_program_for_it_needs_no_image(tmp_path):
    programs = Programs()
    assert initramfs.rebuild(Host(root=str(tmp_path)), programs, [K], 600) == []
    assert programs.asked == []


@pytest.mark.parametrize(
    ("content", "older", "holds"),
    [
        (f"usr/lib/modules/{K}/updates/dkms/nvidia.ko.xz\n", True, True),
        (f"usr/lib/modules/{K}/updates/dkms/nvidia-current-open.ko\n", True, True),
        (f"usr/lib/modules/{K}/updates/dkms/nvidia.ko.xz\n", False, False),
        (NOUVEAU + "usr/lib/firmware/nvidia/gsp.bin\n", True, False),
    ],
)
def test_an_image_with_modules_older_than_those_on_disk_is_found(debian, content, older, holds):
    root = Path(debian.root)
    module = root / f"lib/modules/{K}/updates/dkms/nvidia.ko.xz"
    module.parent.mkdir(parents=True)
    module.write_text("new")
    then = module.stat().st_ctime_ns + (-1 if older else 1) * 10**9
    os.utime(root / f"boot/initrd.img-{K}", ns=(then, then))
    assert initramfs.holds_older_driver(debian, Programs(listing=Done(0, content)), K) is holds


def test_a_kernel_without_module_or_image_has_no_older_driver_in_its_image(debian):
    programs = Programs()
    assert not initramfs.holds_older_driver(debian, programs, K)
    assert not initramfs.holds_older_driver(debian, programs, "6.1")
    assert programs.asked == []


@pytest.mark.parametrize("listing", [NOUVEAU, LONG])
def test_an_image_that_would_still_load_nouveau_is_a_failure_where_the_host_blocks_it(debian, listing):
    programs = Programs(listing=Done(0, listing))
    assert initramfs.rebuild(debian, programs, [K], 600) == [f"/boot/initrd.img-{K}"]  # as after a removal
    block = Path(debian.root) / "etc/modprobe.d/gpufleet-nouveau.conf"
    block.parent.mkdir(parents=True)
    block.write_text("blacklist nouveau\n")
    with pytest.raises(DriverError, match="would still load nouveau"):
        initramfs.rebuild(debian, programs, [K], 600)


@pytest.mark.parametrize(
    ("listed", "content", "loads"),
    [
        ("etc/modprobe.d/gpufleet-nouveau.conf", "blacklist nouveau\nblacklist nova_core\n", False),
        ("usr/lib/modprobe.d/nvidia.conf", "# NVIDIA\nblacklist nouveau\n", False),
        ("-rw-r--r-- 1 root root 9 Nov 22 2026 etc/modprobe.d/x.conf", "install nouveau /bin/false\n", False),
        ("etc/modprobe.d/other.conf", "# blacklist nouveau\nblacklist pcspkr\n", True),
        ("etc/modprobe.d/not-copied-yet", "blacklist nouveau\n", True),
    ],
)
def test_nouveau_is_blocked_by_what_is_in_the_image(debian, listed, content, loads):
    path = Path(debian.root) / listed.rpartition(" ")[2]
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert initramfs.loads_nouveau(debian, Programs(listing=Done(0, f"{listed}\n{NOUVEAU}")), K) is loads


def test_a_block_that_is_not_in_the_image_blocks_nothing(debian):
    path = Path(debian.root) / "etc/modprobe.d/gpufleet-nouveau.conf"
    path.parent.mkdir(parents=True)
    path.write_text("blacklist nouveau\n")
    assert initramfs.loads_nouveau(debian, Programs(listing=Done(0, NOUVEAU)), K) is True


@pytest.mark.parametrize("listing", [Done(1, "cpio: premature end\n"), Done(NOT_THERE, "lsinitramfs is not installed")])
def test_what_cannot_be_listed_is_unknown(debian, listing):
    assert initramfs.loads_nouveau(debian, Programs(listing=listing), K) is None
    assert initramfs.rebuild(debian, Programs(listing=listing), [K], 600) == [f"/boot/initrd.img-{K}"]


def test_other_modules_whose_names_hold_nouveau_are_not_nouveau(debian):
    listing = Done(0, "usr/lib/modules/6/kernel/sound/not-nouveau.ko\nusr/share/nouveau.ko.txt\n")
    assert initramfs.loads_nouveau(debian, Programs(listing=listing), K) is False
