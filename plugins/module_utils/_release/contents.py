# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what every file of a release holds, by its SHA-256.

To hash a whole release at the end of its build would make the build slower by a tenth. Its wheels' RECORD files hold the hashes of nearly
everything already, so only the rest is hashed then: the RECORDs themselves, bytecode, launchers, our own files. That list has the format of
sha256sum, one line a file, sorted by path, the paths relative to the release and written as in the manifest:

    <sha256 in hex>  <path>

A file is what it was when its hash is one that the list, or a RECORD, has for it. A changed RECORD is noticed by the list.
"""

from __future__ import annotations

import base64
import binascii
import concurrent.futures
import hashlib
import os
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import manifest, record

_BLOCK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def render(release: str, tree: t.Mapping[str, str]) -> str:
    """The list for a release: a line for every regular file that no RECORD has a hash for. Raises OSError and ValueError."""
    vouched = _vouched(release, tree)
    return "".join(
        f"{digest}  {path}\n"
        for path, digest in _digests(release, (path for path in tree if path not in vouched), tree)
    )


def changed(release: str, tree: t.Mapping[str, str], text: str) -> list[str]:
    """The files of ``tree`` whose content is not what it was when ``text`` was made. Raises OSError and ValueError."""
    listed = _parse(text)
    known = {**_vouched(release, tree, tolerant=True), **{path: {digest} for path, digest in listed.items()}}
    return [path for path, digest in _digests(release, tree, tree) if digest not in known.get(path, ())]


def _parse(text: str) -> dict[str, str]:
    listed = {}
    for number, line in enumerate(text.split("\n")[:-1], 1):
        digest, separator, path = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ValueError(f"line {number} is not '<sha256>  <path>'")
        listed[path] = digest
    return listed


def _vouched(release: str, tree: t.Mapping[str, str], tolerant: bool = False) -> dict[str, set[str]]:
    """{path: the hashes that RECORDs have for it}; a file that one of them names without a hash is left out."""
    packages = record.site_packages(release)
    inside = os.path.normpath(release) + os.sep
    found: dict[str, set[str]] = {}
    silent = set()
    for name in sorted(os.listdir(packages)):
        if not name.endswith(".dist-info"):
            continue
        try:
            with open(os.path.join(packages, name, "RECORD"), encoding="utf-8", newline="") as file:
                promises = record.parse_record(file.read())
        except (OSError, ValueError):
            if not tolerant:
                raise
            continue  # then it is not what it was, which its own hash says
        for path, promise in promises.items():
            full = os.path.normpath(os.path.join(packages, path))
            inner = manifest.escape(full[len(inside) :]) if full.startswith(inside) else ""
            digest = _hex(promise.sha256)
            if inner not in tree or digest is None:
                silent.add(inner)
            else:
                found.setdefault(inner, set()).add(digest)
    return {path: digests for path, digests in found.items() if path not in silent}


def _hex(urlsafe: str | None) -> str | None:
    try:
        return base64.urlsafe_b64decode(urlsafe + "=" * (-len(urlsafe) % 4)).hex() if urlsafe else None
    except (binascii.Error, ValueError):
        return None


def _digests(release: str, paths: t.Iterable[str], tree: t.Mapping[str, str]) -> t.Iterator[tuple[str, str]]:
    """(path, SHA-256) of the regular files among ``paths``, sorted, read by as many threads as there are processors."""
    regular = sorted(path for path in paths if tree[path].isdigit())
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        yield from zip(regular, pool.map(lambda path: _sha256(os.path.join(release, manifest.unescape(path))), regular))


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(path, _FLAGS)
    try:
        block = os.read(descriptor, _BLOCK)
        while block:
            digest.update(block)
            block = os.read(descriptor, _BLOCK)
    finally:
        os.close(descriptor)
    return digest.hexdigest()
