# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: does a freshly installed environment hold what its distributions' RECORD files promise?

An installer that was killed, or that took files from a damaged cache, says "satisfied" ever after; RECORD tells the truth.
"""

from __future__ import annotations

import base64
import concurrent.futures
import csv
import hashlib
import os
import stat
import typing as t


class Promise(t.NamedTuple):
    """What one RECORD line says of a file: its size and sha256 (base64, unpadded), either None where the line is silent."""

    size: int | None
    sha256: str | None


def site_packages(release: str) -> str:
    """The one site-packages directory of an environment. Raises FileNotFoundError."""
    library = os.path.join(release, "lib")
    for name in sorted(os.listdir(library)):
        path = os.path.join(library, name, "site-packages")
        if name.startswith("python") and os.path.isdir(path):
            return path
    raise FileNotFoundError(2, "No such file or directory", os.path.join(library, "python*", "site-packages"))


def parse_record(text: str) -> dict[str, Promise]:
    """Read a RECORD file. Raises ValueError for a line that is none."""
    promises: dict[str, Promise] = {}
    for row in csv.reader(text.splitlines()):
        if not row:
            continue
        if len(row) != 3:
            raise ValueError(f"{row!r} is not path, hash and size")
        path, digest, size = row
        promises[path] = Promise(int(size) if size else None, digest[7:] if digest.startswith("sha256=") else None)
    return promises


def distributions(packages: str) -> dict[str, str]:
    """The installed distributions by normalised name, with their versions, from the names of their .dist-info folders."""
    found = {}
    for name in sorted(os.listdir(packages)):
        if name.endswith(".dist-info"):
            project, _dash, version = name[: -len(".dist-info")].rpartition("-")
            found[project.replace("_", "-").replace(".", "-").lower()] = version
    return found


def problems(release: str, hashes: bool) -> list[str]:
    """What is wrong with the files that the RECORDs list, one sentence each; empty when everything is there.

    Sizes always, contents where ``hashes`` is set. A file that several distributions list has to match one of them.
    """
    packages = site_packages(release)
    promised: dict[str, list[Promise]] = {}
    found: list[str] = []
    infos = [name for name in sorted(os.listdir(packages)) if name.endswith(".dist-info")]
    if not infos:
        return ["no distribution is installed"]
    inside = os.path.normpath(release) + os.sep
    for info in infos:
        try:
            with open(os.path.join(packages, info, "RECORD"), encoding="utf-8", newline="") as file:
                promises = parse_record(file.read())
        except (OSError, ValueError) as error:
            found.append(f"{info}/RECORD cannot be read: {error}")
            continue
        for path, promise in promises.items():
            full = os.path.normpath(os.path.join(packages, path))
            if not full.startswith(inside):
                found.append(f"{info} lists {path}, which lies outside the environment")
                continue
            promised.setdefault(full, []).append(promise)
    to_hash = []
    for full, promises_of_file in promised.items():
        shown = os.path.relpath(full, release)
        try:
            status = os.lstat(full)
        except OSError:
            found.append(f"{shown} is missing")
            continue
        if not stat.S_ISREG(status.st_mode):
            found.append(f"{shown} is no regular file")
        elif all(promise.size not in (None, status.st_size) for promise in promises_of_file):
            found.append(f"{shown} has {status.st_size} bytes instead of {promises_of_file[0].size}")
        elif hashes and all(promise.sha256 for promise in promises_of_file):
            to_hash.append(full)
    if to_hash:
        found += _wrong_contents(release, to_hash, promised)
    return found


def _wrong_contents(release: str, files: list[str], promised: dict[str, list[Promise]]) -> list[str]:
    found = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for full, digest in zip(files, pool.map(_sha256, files)):
            if all(promise.sha256 != digest for promise in promised[full]):
                found.append(f"{os.path.relpath(full, release)} has other contents than its wheel")
    return found


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        return f"unreadable: {error}"
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode("ascii")
