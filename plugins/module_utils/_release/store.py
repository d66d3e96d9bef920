# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what lies on the disk for one environment (releases, stamps, links) and how that is changed safely.

A release counts only with its stamp, and the stamp is the last thing that is written. Files are replaced by rename(2) after
fsync(2), links by rename(2): whoever looks sees the old state or the new one. What is removed first gets a name that no release
can have: a removal that is interrupted leaves what is certainly nobody's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import contents, manifest, startup
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import (
    SCHEMA,
    BadInput,
    Layout,
    ReleaseError,
    is_foreign,
)

_ID_SEPARATOR = "."
_REMOVED = "."
"""Begins the name of a directory that was a release and is being removed."""


@dataclasses.dataclass(frozen=True)
class State:
    """What one environment has: its releases with their stamps (None: unstamped), first stamped first, and the two links."""

    releases: dict[str, dict[str, t.Any] | None]
    current: str | None
    previous: str | None

    @property
    def stamped(self) -> dict[str, dict[str, t.Any]]:
        return {release_id: stamp for release_id, stamp in self.releases.items() if stamp is not None}

    @property
    def leftovers(self) -> list[str]:
        """Those of the unstamped whose removal began and did not end."""
        return [name for name in self.releases if name.startswith(_REMOVED)]


def id_of(name: str) -> str:
    """The id of a release, also of one that is being removed."""
    return name[len(_REMOVED) :] if name.startswith(_REMOVED) else name


def read_state(layout: Layout) -> State:
    """Read what there is; nothing there is a state too. Raises ReleaseError for links in the way and OSError."""
    for path in (layout.home, layout.releases, layout.stamps):
        if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
            raise BadInput(
                "name", f"{path} is no directory of its own", "Remove what is in the way, or choose another name."
            )
    if os.path.isdir(layout.home) and is_foreign(os.listdir(layout.home)):
        raise BadInput(
            "name",
            f"{layout.home} is somebody else's: it holds other things than an environment",
            "Move it away, or choose another name or another torch_env_root.",
        )
    names = _names(layout.releases)
    stamps = {name: read_stamp(layout, name) for name in names}
    ordered = sorted(names, key=lambda name: _order(name, stamps[name] or {}))
    releases = {name: stamps[name] for name in ordered}
    return State(releases, _linked(layout, "current", names), _linked(layout, "previous", names))


def _order(name: str, stamp: dict[str, t.Any]) -> tuple[int, str, str]:
    """Stamps are numbered, because a clock can go back; the time only orders those from before the numbers."""
    serial = stamp.get("serial")
    return serial if isinstance(serial, int) else 0, str(stamp.get("built_at", "")), name


def next_serial(state: State) -> int:
    """The number of the next stamp: higher than that of every release that is there."""
    return 1 + max((_order(name, stamp)[0] for name, stamp in state.stamped.items()), default=0)


def _names(directory: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _linked(layout: Layout, which: str, names: list[str]) -> str | None:
    try:
        directory, _slash, name = os.readlink(layout.link(which)).rpartition("/")
    except OSError:
        return None
    return name if directory == "releases" and name in names else None


def read_stamp(layout: Layout, release_id: str) -> dict[str, t.Any] | None:
    """The stamp of a release, or None where it has none that can be understood."""
    try:
        with open(layout.stamp(release_id), encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return None
    if not isinstance(stamp, dict) or stamp.get("schema") != SCHEMA or stamp.get("id") != release_id:
        return None
    if not isinstance(stamp.get("spec"), dict) or not isinstance(stamp.get("proof"), dict):
        return None
    return stamp


def damage(layout: Layout, release_id: str, stamp: dict[str, t.Any], hashes: bool = False) -> str | None:
    """Say how a stamped release differs from what it was when it was proven; None where it does not.

    Sizes, links, added and missing files always; what the files hold where ``hashes`` is set.
    """
    if stamp.get("damaged"):
        return str(stamp["damaged"])
    try:
        with open(layout.manifest(release_id), "rb") as file:
            stored = file.read()
        if hashlib.sha256(stored).hexdigest() != stamp.get("manifest_sha256"):
            return "its manifest is not the one that was stamped"
        present = manifest.scan(layout.release(release_id))
        if manifest.encode(manifest.render(present)) == stored:
            return _other_contents(layout, release_id, stamp, present) if hashes else None
        difference = manifest.compare(manifest.parse(manifest.decode(stored)), present)
    except (OSError, ValueError) as error:
        return f"it cannot be examined: {error}"
    counts = (
        f"{len(difference.missing)} files missing, {len(difference.changed)} changed, {len(difference.added)} added"
    )
    return f"{counts}, for example {', '.join(difference.examples)}"


def _other_contents(layout: Layout, release_id: str, stamp: dict[str, t.Any], present: dict[str, str]) -> str | None:
    """Which files hold something else than when the release was stamped."""
    with open(layout.hashes(release_id), "rb") as file:
        stored = file.read()
    if hashlib.sha256(stored).hexdigest() != stamp.get("hashes_sha256"):
        return "its list of hashes is not the one that was stamped"
    changed = contents.changed(layout.release(release_id), present, manifest.decode(stored))
    return f"{len(changed)} files hold something else, for example {', '.join(changed[:5])}" if changed else None


def condemn(layout: Layout, stamp: dict[str, t.Any], damage: str) -> None:
    """Write down that a release is damaged: from now on it never counts as intact, however it is looked at."""
    write_stamp(layout, {**stamp, "damaged": damage})


class Obstacle(t.NamedTuple):
    """Why a stamped release cannot serve; damage lasts, an interpreter may come back."""

    text: str
    lasting: bool


def unusable(layout: Layout, release_id: str, stamp: dict[str, t.Any], hashes: bool = False) -> Obstacle | None:
    """Say why a stamped release cannot serve: damage, or an interpreter that went with the system's; None where it can."""
    python = layout.python(release_id)
    if not os.access(python, os.X_OK):
        return Obstacle(f"its interpreter {os.path.realpath(python)} is gone", lasting=False)
    if hashes and "hashes_sha256" not in stamp:
        return Obstacle("it was built before hashes were kept", lasting=False)
    wrong = damage(layout, release_id, stamp, hashes)
    return None if wrong is None else Obstacle(wrong, lasting=True)


def next_id(state: State, layout: Layout, base: str) -> str:
    """An id that no release of this environment has or had: ``base``, then ``base.2``, ``base.3`` and so on."""
    taken = {id_of(name) for name in state.releases}
    with contextlib.suppress(FileNotFoundError):
        taken |= {name.rpartition(_ID_SEPARATOR)[0] for name in os.listdir(layout.stamps)}
    numbers = [1] if base in taken else []
    for name in taken:
        stem, _dot, number = name.rpartition(_ID_SEPARATOR)
        if stem == base and number.isdigit():
            numbers.append(int(number))
    return f"{base}{_ID_SEPARATOR}{max(numbers) + 1}" if numbers else base


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step that survives a power loss."""
    directory = os.path.dirname(path)
    scratch = os.path.join(directory, f".{os.path.basename(path)}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(scratch, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
    _sync_directory(directory)


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_sync(path: str) -> subprocess.Popen[str]:
    """Begin to bring everything written to the file system of ``path`` to the disk. Raises OSError."""
    return subprocess.Popen(["/usr/bin/sync", "-f", path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish_sync(running: subprocess.Popen[str], time_limit: float) -> None:
    """Wait until it is there. Raises OSError where the disk refuses or does not answer in time."""
    try:
        _nothing, said = running.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        running.kill()
        raise OSError(errno.ETIMEDOUT, f"the disk did not take everything within {time_limit:.0f} s") from None
    if running.returncode != 0:
        raise OSError(errno.EIO, f"sync says: {said.strip()}")


def write_stamp(layout: Layout, stamp: dict[str, t.Any]) -> None:
    """Write a stamp; from now on the release may be switched to."""
    text = json.dumps(stamp, indent=1, sort_keys=True) + "\n"
    write_file(layout.stamp(stamp["id"]), text.encode("utf-8"))


def switch(layout: Layout, state: State, release_id: str) -> State:
    """Make a release current and the one that served before previous."""
    if state.current == release_id:
        return state
    order = [("current", release_id)]
    if state.current is not None:
        # A rollback moves current first: were it stopped half-way, the release to go back to would still be linked.
        order.insert(1 if state.previous == release_id else 0, ("previous", state.current))
    for which, target in order:
        scratch = os.path.join(layout.home, f".{which}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        os.symlink(os.path.join("releases", target), scratch)
        os.rename(scratch, layout.link(which))
        _sync_directory(layout.home)
    return State(state.releases, release_id, state.current or state.previous)


def prunable(state: State, keep: int, staged: str | None = None) -> list[str]:
    """Which releases may go, oldest first: unstamped ones, and stamped ones beyond the newest ``keep``.

    Never one of those that the links name, nor the one that is ``staged`` for a switch.
    """
    stamped = list(state.stamped)
    kept = {state.current, state.previous, staged}
    for release_id in reversed(stamped):
        if len(kept & set(stamped)) >= keep:
            break
        kept.add(release_id)
    return [release_id for release_id in state.releases if release_id not in kept]


def remove_release(layout: Layout, name: str) -> None:
    """Remove a release, or one of the leftovers. Its name goes first: what is left can neither serve nor be mistaken. Raises OSError."""
    release_id = id_of(name)
    removed = layout.release(_REMOVED + release_id)
    if name == release_id:
        with contextlib.suppress(FileNotFoundError):
            os.rename(layout.release(release_id), removed)
            _sync_directory(layout.releases)
    for path in (layout.stamp(release_id), layout.manifest(release_id), layout.hashes(release_id)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    remove_tree(removed)


def remove_tree(path: str) -> None:
    """Remove a directory if it is there; raises OSError."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def outdated_files(files: dict[str, tuple[int, str]]) -> list[str]:
    """Those of our own files that are missing or differ in content, mode or owner. Raises ReleaseError for foreign ones."""
    outdated = []
    for path, (mode, content) in files.items():
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                present = file.read()
                status = os.fstat(file.fileno())
        except FileNotFoundError:
            outdated.append(path)
            continue
        if startup.MARK not in present:
            raise ReleaseError(
                "write the launchers", f"{path} was not written by this collection", "Move it away, then run again."
            )
        if os.path.islink(path) or present != content or status.st_mode & 0o7777 != mode or status.st_uid != 0:
            outdated.append(path)
    return outdated


def write_files(files: dict[str, tuple[int, str]], paths: t.Iterable[str]) -> None:
    """Write those of our own files that outdated_files() named."""
    for path in paths:
        mode, content = files[path]
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        write_file(path, content.encode("utf-8"), mode)


@contextlib.contextmanager
def locked(layout: Layout, timeout: float) -> t.Iterator[None]:
    """Hold the lock of the root. The kernel frees it when its holder ends, however that happens."""
    descriptor = _acquire(layout, time.monotonic() + timeout, timeout)
    try:
        holder = f"process {os.getpid()}, working on {layout.name} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode("utf-8"), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(layout: Layout, deadline: float, timeout: float) -> int:
    """Return the descriptor that holds the lock."""
    pause = 0.01
    while True:
        os.makedirs(layout.root, mode=0o755, exist_ok=True)
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, layout.lock):
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
                os.close(descriptor)
                raise ReleaseError(
                    "wait for the lock",
                    f"{layout.root} is being changed by another run ({holder}), for longer than {timeout:.0f} s",
                    "Let that run end, then run again.",
                ) from None
            time.sleep(pause)
            pause = min(pause * 2, 0.2)
        os.close(descriptor)


def _is_file(descriptor: int, path: str) -> bool:
    """Whether ``path`` still names the open file: who removes the last environment removes the lock as well."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
