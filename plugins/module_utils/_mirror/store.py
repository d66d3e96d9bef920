# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the folder that a mirror serves. What is in it is complete and verified at every moment.

files/<sha256>/<wheel>[.metadata], whl/<CUDA tag>/<project>/index.html and packages/simple/<project>/index.html, with what is on the
way in .incoming.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import re
import shutil
import typing as t
import zipfile

from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.wheels import (
    PACKAGE_INDEX,
    TORCH_INDEXES,
    Link,
    MirrorError,
    Stored,
    Wanted,
    index_page,
    project_page,
    read_page,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.tool import sha256_of

RESERVE = 1 << 20
"""Bytes that a wheel has to leave free, so that pages can always be written."""
_BLOCK = 1 << 20
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA\Z")

Listed = t.Dict[t.Tuple[str, str], t.Set[Stored]]
"""(index, project) -> what its page lists."""


class Truncated(MirrorError):
    """Fewer bytes came than were announced: trying again may help."""


class DiskFull(MirrorError):
    """There is no room for a file. No other file is tried."""


@dataclasses.dataclass
class Offer:
    """An opened wheel: its bytes, and how many there have to be where that is known."""

    read: t.Callable[[int], bytes]
    size: int | None


class Store:
    """The folder of one mirror."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._incoming = os.path.join(root, ".incoming")

    @contextlib.contextmanager
    def held(self) -> t.Iterator[None]:
        """Keep other runs out, and take away what a killed one left. Raises MirrorError where another run is at work."""
        os.makedirs(self.root, mode=0o755, exist_ok=True)
        with open(os.path.join(self.root, ".lock"), "w", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise MirrorError(
                    f"another run is filling {self.root} at this moment. Wait for it, then run again"
                ) from error
            shutil.rmtree(self._incoming, ignore_errors=True)
            yield

    def find(self, wanted: Wanted) -> Stored | None:
        """The best stored wheel that serves; no network is asked."""
        found = []
        for sha256 in wanted.hashes:
            with contextlib.suppress(FileNotFoundError):
                for file in os.listdir(os.path.join(self.root, "files", sha256)):
                    rank = wanted.rank(Link(file, "", sha256)) if file.endswith(".whl") else None
                    if rank:
                        found.append((rank, Stored(file, sha256)))
        return min(found)[1] if found else None

    def add(self, link: Link, hashes: t.Collection[str], offer: Offer) -> Stored:
        """Store a wheel once every byte of it is there and its hash is one of these. Raises MirrorError."""
        partial = os.path.join(self._incoming, f"{link.file}.partial")
        try:
            self._check_room(link, offer.size)
            os.makedirs(self._incoming, exist_ok=True)
            found = hashlib.sha256()
            with open(partial, "wb") as file:
                while block := offer.read(_BLOCK):
                    found.update(block)
                    file.write(block)
                file.flush()
                size = file.tell()
                os.fsync(file.fileno())
            if offer.size is not None and size != offer.size:
                raise Truncated(f"{link.file} ended after {size} of {offer.size} bytes")
            sha256 = found.hexdigest()
            if sha256 not in hashes:
                raise MirrorError(
                    f"{link.file} has the sha256 {sha256}, which no lock names; it was thrown away. Its source serves "
                    "something else than the lock was made from"
                )
            stored = Stored(link.file, sha256)
            self._write(f"{stored.path}.metadata", _metadata(partial, link.file))
            os.chmod(partial, 0o644)
            self._move(partial, stored.path)
        except OSError as error:
            self._full(error, link.file)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
        return stored

    def _check_room(self, link: Link, size: int | None) -> None:
        free = shutil.disk_usage(self.root).free
        if size is not None and size + RESERVE > free:
            raise DiskFull(_no_room(self.root, link.file, f"it has {size >> 20} MiB, {free >> 20} MiB are free"))

    def _full(self, error: OSError, what: str) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(_no_room(self.root, what, str(error.strerror))) from error

    def listed(self) -> Listed:
        """What the pages list, as far as it is there."""
        found: Listed = {}
        for index in self._indexes():
            folder = os.path.join(self.root, index)
            for project in sorted(os.listdir(folder)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    with open(os.path.join(folder, project, "index.html"), encoding="utf-8") as file:
                        links = read_page(file.read(), "text/html", "")
                    there = {Stored(link.file, link.sha256) for link in links if link.sha256}
                    found[index, project] = {item for item in there if os.path.exists(self._at(item.path))}
        return found

    def write_pages(self, listed: Listed) -> list[str]:
        """Make the pages list exactly this; returns the paths of those that changed."""
        texts = {
            f"{index}/{project}/index.html": project_page(project, files, self._metadata_sha256)
            for (index, project), files in listed.items()
            if files
        }
        for index in {index for index, _project in listed} | {PACKAGE_INDEX}:
            projects = {project for (own, project), files in listed.items() if own == index and files}
            texts[f"{index}/index.html"] = index_page(projects)
        changed = [path for path, text in sorted(texts.items()) if self._text(path) != text]
        try:
            for path in changed:
                self._write(path, texts[path].encode("utf-8"))
        except OSError as error:
            self._full(error, "the pages of the index")
            raise
        for (index, project), files in listed.items():
            if not files:
                changed.append(f"{index}/{project}/index.html")
                shutil.rmtree(self._at(f"{index}/{project}"), ignore_errors=True)
        return changed

    def stored(self) -> list[Stored]:
        """Every wheel that is there."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for sha256 in sorted(os.listdir(self._at("files"))):
                found += [
                    Stored(name, sha256)
                    for name in sorted(os.listdir(self._at(f"files/{sha256}")))
                    if name.endswith(".whl")
                ]
        return found

    def size(self, item: Stored) -> int:
        """Bytes of a wheel."""
        return os.stat(self._at(item.path)).st_size

    def damaged(self) -> list[Stored]:
        """Wheels whose content is not what their folder's name says: reads everything."""
        return [item for item in self.stored() if sha256_of(self._at(item.path)) != item.sha256]

    def remove(self, items: t.Iterable[Stored]) -> None:
        """Take wheels away; their pages have to be written first."""
        for item in items:
            shutil.rmtree(os.path.dirname(self._at(item.path)), ignore_errors=True)

    def exists(self) -> bool:
        """Whether anything of a mirror is there."""
        return any(
            os.path.exists(self._at(name)) for name in ("files", TORCH_INDEXES, PACKAGE_INDEX, ".incoming", ".lock")
        )

    def clear(self) -> None:
        """Take away everything that a mirror consists of, and its folder where nothing else is in it."""
        for name in (TORCH_INDEXES, "packages", "files", ".incoming"):
            shutil.rmtree(self._at(name), ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(".lock"))
        with contextlib.suppress(OSError):
            os.rmdir(self.root)

    def _indexes(self) -> list[str]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            found += [f"{TORCH_INDEXES}/{tag}" for tag in sorted(os.listdir(self._at(TORCH_INDEXES)))]
        return found + ([PACKAGE_INDEX] if os.path.isdir(self._at(PACKAGE_INDEX)) else [])

    def _metadata_sha256(self, item: Stored) -> str:
        return sha256_of(self._at(f"{item.path}.metadata"))

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _text(self, path: str) -> str | None:
        try:
            with open(self._at(path), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _write(self, path: str, data: bytes) -> None:
        os.makedirs(self._incoming, exist_ok=True)
        scratch = os.path.join(self._incoming, "page")
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._move(scratch, path)

    def _move(self, scratch: str, path: str) -> None:
        """Put a complete file into its place, and make sure that its name survives a power failure."""
        target = self._at(path)
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.rename(scratch, target)
        folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _no_room(root: str, what: str, why: str) -> str:
    return (
        f"the disk of {root} has no room for {what}: {why}. Free space there and run again: what was fetched stays and is served, "
        "the rest is fetched then"
    )


def _metadata(path: str, file: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(next(name for name in archive.namelist() if _METADATA.match(name)))
    except (zipfile.BadZipFile, StopIteration, EOFError) as error:
        raise MirrorError(f"{file} is no wheel: it was thrown away") from error
