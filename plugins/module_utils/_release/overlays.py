# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which releases are seen by users' overlays (gpu-env new), and so must not be removed.

No place of root's is open to everybody, so overlays are known in the homes of their users alone. They are looked up as the user,
who may have a home on a server that root may not read, and who gains nothing by what lies there: nothing is executed, a file is
read only if it is a plain one, and only its first bytes. One child does that, within a time limit; a home that does not answer
makes the answer "cannot be said", never "nobody".
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import pwd
import stat
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.child import NoAnswer, start

REGISTRY = ".local/share/gpufleet/envs"
"""Below a home: directories, or symlinks to them, as gpu-env makes them."""
KEY = "gpufleet-release"

_MOST_OVERLAYS = 200  # of one user: whoever has more loses the count of the rest
_MOST_BYTES = 16384
_LONGEST_NAME = 200
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Home(t.NamedTuple):
    """Where a user's overlays are known."""

    uid: int
    gid: int
    user: str
    path: str


def pinned(
    root: str, say: t.Callable[[str], object] = lambda _text: None, time_limit: float = 20.0
) -> dict[str, list[str]] | None:
    """The releases below ``root`` that overlays see, by their real paths, each with the overlays' paths.

    None where that cannot be said; ``say`` is told whose home is the reason. Needs root.
    """
    inside = os.path.realpath(root)
    progress = mmap.mmap(-1, _LONGEST_NAME)  # shared with the child: which home it is reading
    try:
        found = start(lambda: _look(homes(), inside, progress), time_limit).answer()
    except NoAnswer as error:
        where = progress[:].rstrip(b"\0").decode("utf-8", "replace")
        say(f"it cannot be said which overlays are in use: {where or 'the list of accounts'}: {error}")
        return None
    seen: dict[str, list[str]] = {}
    for release, path in found:
        seen.setdefault(release, []).append(path if path.isprintable() else repr(path))
    return {release: sorted(paths) for release, paths in seen.items()}


def homes() -> list[Home]:
    """The homes of all accounts that can be found: those that passwd lists, and those that lie beside them or were logged in.

    A directory service need not list its accounts; their homes have owners nevertheless.
    """
    found = {
        (entry.pw_uid, entry.pw_dir): Home(entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir)
        for entry in pwd.getpwall()
    }
    people = {os.path.dirname(home.path) for home in found.values() if home.uid >= 1000}
    for place in sorted({"/home", *people} - {"/", ""}):
        for name in _names(place):
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                owner = os.lstat(path).st_uid
                found.setdefault((owner, path), _home_of(owner, path))
    for name in filter(str.isdigit, _names("/run/user")):
        home = _home_of(int(name), "/")
        found.setdefault((home.uid, home.path), home)
    return [home for home in found.values() if home.uid != 0 and home.path.startswith("/") and home.path != "/"]


def _home_of(uid: int, otherwise: str) -> Home:
    """The account's own home, or the directory that was found where the account has no name."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Home(uid, uid, "", otherwise)
    return Home(uid, entry.pw_gid, entry.pw_name, entry.pw_dir)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _look(places: t.Sequence[Home], inside: str, progress: mmap.mmap) -> list[tuple[str, str]]:
    """(release, overlay) of all overlays in these homes of the releases below a root; runs in the child."""
    found = []
    for home in places:
        name = f"{home.path} of {home.user or home.uid}".encode("utf-8", "replace")[:_LONGEST_NAME]
        progress[:] = name.ljust(_LONGEST_NAME, b"\0")
        _become(home)
        try:
            found += [(release, path) for release, path in _overlays(home) if _is_release(release, inside)]
        finally:
            os.seteuid(0)
    return found


def _is_release(path: str, inside: str) -> bool:
    if not path.startswith(inside + os.sep):
        return False
    parts = path[len(inside) + 1 :].split(os.sep)
    return len(parts) == 3 and parts[1] == "releases" and not {"", os.curdir, os.pardir} & set(parts)


def _become(home: Home) -> None:
    """Have files opened with the rights of a user, also by a server that does not trust root."""
    os.setgroups([home.gid])
    if home.user:
        os.initgroups(home.user, home.gid)
    os.setegid(home.gid)
    os.seteuid(home.uid)


def _overlays(home: Home) -> list[tuple[str, str]]:
    try:
        if os.stat(home.path).st_uid != home.uid:
            return []  # a home that belongs to somebody else, as those of system accounts do
        with os.scandir(os.path.join(home.path, REGISTRY)) as entries:
            paths = [entry.path for entry in itertools.islice(entries, _MOST_OVERLAYS)]
    except OSError as error:
        if error.errno in _NOT_THERE or (error.errno == errno.EACCES and _opens(home.path)):
            return []  # an overlay in a folder that its user closed cannot be used either
        raise
    return [
        (release, os.path.realpath(path)) for path in paths for release in _release(os.path.join(path, "pyvenv.cfg"))
    ]


def _opens(home: str) -> bool:
    """Whether the home itself lets its user in: a server that wants the user's own ticket does not."""
    with contextlib.suppress(OSError), os.scandir(home):
        return True
    return False


def _release(path: str) -> list[str]:
    """What an overlay says it sees; nothing where there is no overlay (any more)."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        )  # whatever it is, opening it must not wait
    except OSError as error:
        if error.errno in (*_NOT_THERE, errno.EACCES, errno.ENXIO, errno.ENODEV):
            return []
        raise
    try:
        text = os.read(descriptor, _MOST_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
    pairs = [line.partition("=") for line in text.decode("utf-8", "replace").splitlines()]
    return [value.strip() for key, _equals, value in pairs if key.strip() == KEY]
