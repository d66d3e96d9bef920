"""On which kind of file system a root lies, from the text of /proc/self/mountinfo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import model, mounts

LOCAL = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:14 - proc proc rw
28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
31 28 259:3 / /home rw,relatime shared:17 - xfs /dev/nvme0n1p3 rw,attr2
"""


def mounted(point: str, kind: str, optional: str = "shared:99 ") -> str:
    return f"{LOCAL}80 28 0:55 / {point} rw,relatime {optional}- {kind} server:/export rw,vers=4.2\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/opt/gpufleet/envs", "nfs4"),
        ("/opt/gpufleet", "nfs4"),
        ("/opt/gpufleet-other", "ext4"),
        ("/opt", "ext4"),
        ("/", "ext4"),
        ("/home/ann/envs", "xfs"),
    ],
)
def test_the_longest_mount_point_above_a_path_counts(path: str, kind: str) -> None:
    assert mounts.kind_of(path, mounted("/opt/gpufleet", "nfs4")) == kind


def test_what_is_mounted_over_something_hides_it() -> None:
    below = mounted("/opt", "nfs4")
    assert mounts.kind_of("/opt/envs", below + "81 80 8:1 / /opt rw - ext4 /dev/sda1 rw\n") == "ext4"
    automatic = mounted("/opt", "autofs") + "81 80 0:56 / /opt rw - nfs server:/export rw\n"
    assert mounts.kind_of("/opt/envs", automatic) == "nfs"


def test_blanks_in_mount_points_and_missing_optional_fields_are_understood() -> None:
    assert mounts.kind_of("/srv/our files/envs", mounted("/srv/our\\040files", "cifs", optional="")) == "cifs"


@pytest.mark.parametrize("text", ["", "\n", "garbage", "1 2 3 - ext4", "22 28 0:21 / / rw -"])
def test_what_cannot_be_understood_says_nothing(text: str) -> None:
    assert mounts.kind_of("/opt", text) is None


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "glusterfs", "9p", "virtiofs", "gfs2", "ocfs2", "beegfs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.rclone"),
    ],
)
def test_what_other_hosts_see_is_shared_and_refused(kind: str, tmp_path: Path) -> None:
    assert mounts.is_shared(kind)
    if os.geteuid() == 0:
        root = str(tmp_path / "envs")
        with pytest.raises(model.BadInput, match=f"the kind {kind}, which other hosts see too") as caught:
            model.check_root(root, mounted(str(tmp_path), kind))
        assert "torch_env_root" in caught.value.remedy
        assert model.check_root(root, mounted("/somewhere/else", kind)) == root


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk", "fuse.mergerfs", None])
def test_what_only_this_host_sees_is_not(kind: str | None) -> None:
    assert not mounts.is_shared(kind)
