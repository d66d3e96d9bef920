# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: on which kind of file system a path lies, and whether other hosts see the same files.

Environments belong to one host: it alone knows which processes use a release, and what its GPUs proved.
"""

from __future__ import annotations

import re

PATH = "/proc/self/mountinfo"

_SHARED = re.compile(
    r"9p|acfs|afs|beegfs|ceph|cifs|coda|fhgfs|gfs2?|glusterfs|gpfs|lustre|mmfs|ncpfs|nfs4?|ocfs2|orangefs|panfs|prl_fs|pvfs2|smb3|smbfs"
    r"|vboxsf|virtiofs|vmhgfs|wekafs"
    r"|fuse\.(beegfs|ceph|ceph-fuse|cephfs|curlftpfs|davfs|gcsfuse|glusterfs|goofys|gpfs|juicefs|mfs|moosefs|rclone|s3fs|seaweedfs"
    r"|smbnetfs|sshfs|vmhgfs-fuse|weka)"
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def kind_of(path: str, mountinfo: str) -> str | None:
    """The file system's type, as proc_pid_mountinfo(5) tells it, of a path without links; None where the text does not say."""
    found, longest = None, -1
    for line in mountinfo.splitlines():
        left, _dash, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) < 6 or not after[0]:
            continue
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), before[4]).rstrip("/")
        # Of two that are mounted at one place the later one is seen.
        if f"{path}/".startswith(f"{point}/") and len(point) >= longest:
            found, longest = after[0], len(point)
    return found


def is_shared(kind: str | None) -> bool:
    """Whether other hosts see the files of such a file system, or other systems of this machine do."""
    return _SHARED.fullmatch(kind or "") is not None


def why_not(root: str, kind: str | None) -> str:
    """Say why environments cannot be there."""
    return (
        f"{root} is on a file system of the kind {kind}, which other hosts see too: two of them would switch and prune releases under each "
        "other, none knows what the others' processes use, and a server that squashes root keeps it from owning what it protects"
    )


REMEDY = "Keep environments on a disk of the host (torch_env_root), and share the wheels instead (role wheel_mirror)."
