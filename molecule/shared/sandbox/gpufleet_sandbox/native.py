# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stub libraries: compiled with the machine's gcc for every driver version that the sandbox has."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from .settings import SANDBOX
from .shell import run

NATIVE = SANDBOX / "native"


@functools.cache
def compile_library(source: str, soname: str, version: str, cuda: int, *, wsl: bool = False) -> bytes:
    """Compile one stub library."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / soname
        options = [
            "-shared",
            "-fPIC",
            "-O1",
            "-s",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fvisibility=hidden",
            f"-Wl,-soname,{soname}",
        ]
        defines = [f'-DVERSION="{version}"', f"-DCUDA_VERSION={cuda}", *(["-DWSL"] if wsl else [])]
        run("gcc", *options, *defines, "-o", target, NATIVE / source)
        return target.read_bytes()


def sources() -> bytes:
    """Everything that decides what comes out of the compiler."""
    return b"".join(path.read_bytes() for path in sorted(NATIVE.iterdir()))
