# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running programs, and telling the person what goes on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .settings import SandboxError

STARTED = time.monotonic()
_PRINTING = threading.Lock()


def say(text: str) -> None:
    """One line for the person, with the seconds since the start."""
    with _PRINTING:
        print(f"sandbox {time.monotonic() - STARTED:6.1f}s  {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say that something begins and how long it took."""
    say(f"{what} ...")
    begun = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - begun:.1f} s")


def run(*argv: str | Path, data: bytes | None = None, check: bool = True, env: dict[str, str] | None = None) -> str:
    """Run a program and return its output; a failure names the program and what it said."""
    arguments = [str(argument) for argument in argv]
    done = subprocess.run(
        arguments,
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    if check and done.returncode != 0:
        errors = done.stderr.decode(errors="replace").strip() or output.strip()
        raise SandboxError(f"{' '.join(arguments[:6])} failed with {done.returncode}:\n{errors[-3000:]}")
    return output


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until nobody else on this machine does the same, then hold the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run of the sandbox ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_if_changed(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file completely or not at all, and only when it differs."""
    if path.exists() and path.read_text() == text and path.stat().st_mode & 0o777 == mode:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.chmod(mode)
    new.replace(path)


def fresh_folder(path: Path) -> Path:
    """An empty folder, whatever was there before."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
