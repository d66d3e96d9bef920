# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which uv builds environments, how it gets onto a host, and what its messages mean."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
import zipfile

from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import ReleaseError, hide_credentials

UV_VERSION = "0.13.9"
_READABLE_PROGRAM = 0o755


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One wheel of uv: its file name, sha256 and the platform tag that pip knows it by."""

    file: str
    sha256: str
    platform: str


WHEELS = {
    "x86_64": Wheel(
        f"uv-{UV_VERSION}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19",
        "manylinux_2_17_x86_64",
    ),
    "aarch64": Wheel(
        f"uv-{UV_VERSION}-py3-none-manylinux_2_28_aarch64.whl",
        "ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375",
        "manylinux_2_28_aarch64",
    ),
}


def sha256_of(path: str) -> str:
    """The sha256 of a file; raises OSError."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def installed(tools: str, version: str = UV_VERSION) -> str:
    """Where the pinned uv lies below the directory of tools."""
    return os.path.join(tools, f"uv-{version}", "uv")


def unpack(archive: str, wheel: Wheel, tools: str, version: str = UV_VERSION) -> str:
    """Unpack uv from its wheel, once the wheel is known to be the pinned one; returns the path of uv."""
    step = "install uv"
    try:
        found = sha256_of(archive)
    except OSError as error:
        raise ReleaseError(step, f"the wheel {archive} cannot be read: {error.strerror}", "Run again.") from error
    if found != wheel.sha256:
        raise ReleaseError(
            step,
            f"the wheel's sha256 is {found}, not {wheel.sha256}",
            f"Give the unchanged file {wheel.file}, or leave torch_env_uv_wheel empty so that the controller fetches it.",
        )
    target = installed(tools, version)
    os.makedirs(tools, mode=0o755, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".uv-", dir=tools)
    try:
        program = os.path.join(scratch, "uv")
        packed_name = f"uv-{version}.data/scripts/uv"
        with zipfile.ZipFile(archive) as opened, opened.open(packed_name) as packed, open(program, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        for path in (program, scratch):
            os.chmod(path, _READABLE_PROGRAM)
        shutil.rmtree(os.path.dirname(target), ignore_errors=True)
        os.rename(scratch, os.path.dirname(target))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        cause = f"uv cannot be unpacked into {tools}: {error}"
        raise ReleaseError(step, cause, "Check that the disk has room and is healthy.") from error
    return target


_MEANINGS = (
    ("No space left on device", "Free space on that file system, or choose another torch_env_root."),
    ("Disk quota exceeded", "Raise the quota of the build account, or choose another torch_env_root."),
    (
        "Hash mismatch",
        "What the index serves is not what it announces: check the index or the mirror; nothing of it was used.",
    ),
    (
        "invalid peer certificate",
        "The certificate of the index is not trusted: check the host's clock and its CA certificates.",
    ),
    ("dns error", "The host cannot resolve the name of the index: check DNS, the proxy and the index URL."),
    ("Connection refused", "Nothing answers at the index: check its URL, the mirror and the proxy."),
    (
        "end of file before message length reached",
        "The connection ended in the middle of a file: check the network, the mirror and the proxy; nothing of it was used.",
    ),
    (
        "network timeout",
        "The index stopped sending: check the network, the mirror and the proxy, or raise UV_HTTP_TIMEOUT.",
    ),
    ("timed out", "The index does not answer in time: check the network, the mirror and the proxy."),
    ("401 Unauthorized", "The index wants credentials: put them into the URL, which is never logged."),
    ("403 Forbidden", "The index refuses the request: check its URL, the credentials and the proxy."),
    ("no wheels with a matching Python", "Choose a Python version that this release supports (torch_env_python)."),
    ("no wheels with a matching platform", "The index has no build for this host's architecture or C library."),
    ("has no usable wheels", "Choose versions that exist as wheels: nothing is compiled on the host."),
    ("was not found in the package registry", "Check the spelling of the requirement and the index URL."),
    (
        "No solution found",
        "Change the versions that contradict each other or do not exist (torch_env_version, requirements).",
    ),
    (
        "Failed to extract archive",
        "What the index sent is no sound wheel: check the index or the mirror; nothing of it was used.",
    ),
    ("Failed to fetch", "Check the index URL, the mirror, the proxy and the network of this host."),
    ("error sending request", "Check the index URL, the mirror, the proxy and the network of this host."),
)


def explain(output: str, lines: int = 12) -> tuple[str, str]:
    """(the lines of uv's output that name the cause, without credentials, in one text; what to do about it)."""
    said = [line.strip() for line in hide_credentials(output).splitlines() if line.strip()]
    begin = next((number for number, line in enumerate(said) if line.startswith(("error", "warning: "))), 0)
    # uv's hints advise index strategies that would let any index replace torch.
    end = next((number for number, line in enumerate(said) if line.startswith("hint:") and number > begin), len(said))
    cause = " ".join(said[begin:end][-lines:]).replace("error: ", "", 1) or "no message"
    for sign, meaning in _MEANINGS:
        if sign.lower() in cause.lower():
            return cause, meaning
    return cause, "Correct what is named, then run again."
