# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' own checker of metrics: the installed one, or the one of the package prometheus, which need not be installed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

KEPT = Path(__file__).resolve().parents[2] / ".cache" / "promtool"


class Missing(Exception):
    """It is not installed and could not be fetched; the text says why, and what to do."""


@functools.cache
def path() -> str:
    """Where promtool is; of a Debian package it is kept in the checkout's .cache. Raises Missing."""
    found = shutil.which("promtool")
    if found or KEPT.exists():
        return found or str(KEPT)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Not installed: the package would start a server.
            quiet = {"cwd": folder, "check": True, "capture_output": True, "text": True, "timeout": 90}
            subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "prometheus"], **quiet)  # type: ignore[call-overload]
            package, content = next(Path(folder).glob("*.deb")), Path(folder, "content.tar")
            content.write_bytes(
                subprocess.run(
                    ["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True, timeout=90
                ).stdout
            )
            KEPT.parent.mkdir(exist_ok=True)
            scratch = KEPT.with_name(f"promtool.{os.getpid()}")
            with tarfile.open(content) as archive:
                member = archive.extractfile("./usr/bin/promtool")
                assert member
                scratch.write_bytes(member.read())
            scratch.chmod(0o755)
            scratch.rename(KEPT)
    except (OSError, subprocess.SubprocessError, StopIteration, KeyError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise Missing(
            f"promtool is not on this machine, and apt-get download prometheus did not bring it: {said}. Put promtool on PATH."
        ) from error
    return str(KEPT)


def complaints(metrics: str) -> str:
    """What promtool has against a textfile, nothing where it is right. Raises Missing."""
    ran = subprocess.run([path(), "check", "metrics"], input=metrics.encode(), capture_output=True, timeout=60)
    said = (ran.stdout + ran.stderr).decode()
    return said if ran.returncode or said else ""
