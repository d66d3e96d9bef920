# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: bring a mirror's folder to what the locks need."""

from __future__ import annotations

import functools
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.sources import Source
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.store import DiskFull, Listed, Store
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.wheels import MirrorError, Stored, Wanted


class Incomplete(MirrorError):
    """Some wheels could not be had. All others are served."""

    def __init__(self, text: str, result: dict[str, t.Any]) -> None:
        super().__init__(text)
        self.result = result


def fill(
    store: Store, wanted: t.Sequence[Wanted], source: t.Callable[[], Source], *, prune: bool, verify: bool
) -> dict[str, t.Any]:
    """Fetch what is missing, then list it; on request find damaged wheels first and take away what no lock needs last.

    The source is opened only where something is missing. Raises Incomplete, once everything else has been done.
    """
    damaged = store.damaged() if verify else []
    before = store.listed()
    if damaged:
        store.write_pages({key: files - set(damaged) for key, files in before.items()})
        store.remove(damaged)
    fetched: list[Stored] = []
    problems: list[str] = []
    needed: Listed = {}
    opened: Source | None = None
    for item in wanted:
        found = store.find(item)
        if found is None:
            try:
                opened = opened or source()
                found = _fetch(store, item, opened)
                fetched.append(found)
            except DiskFull as error:
                problems.append(str(error))
                break
            except MirrorError as error:
                problems.append(f"{item}: {error}")
                continue
        needed.setdefault((item.index, item.project), set()).add(found)
    listed = _union(store.listed(), needed)
    if prune and not problems:
        listed = {key: needed.get(key, set()) for key in listed}
    pages = store.write_pages(listed)
    removed = _unlisted(store, listed) if prune and not problems else []
    store.remove(removed)
    result = {
        "changed": bool(fetched or pages or removed or damaged),
        "fetched": [{"file": item.file, "bytes": store.size(item)} for item in fetched],
        "removed": [item.file for item in (*damaged, *removed)],
        "wheels": len(store.stored()),
    }
    if problems:
        raise Incomplete("; ".join(problems), result)
    return result


def predict(store: Store, wanted: t.Sequence[Wanted], *, prune: bool, verify: bool) -> dict[str, t.Any]:
    """What `fill` would do; asks no network and writes nothing."""
    damaged = set(store.damaged()) if verify else set()
    there = {
        item: found for item, found in ((item, store.find(item)) for item in wanted) if found and found not in damaged
    }
    needed: Listed = {}
    for item, found in there.items():
        needed.setdefault((item.index, item.project), set()).add(found)
    before = store.listed()
    unlisted = any(files - before.get(key, set()) for key, files in needed.items())
    removed = sorted(damaged | (set(store.stored()) - set().union(*needed.values()) if prune else set()))
    unneeded = prune and any(files - needed.get(key, set()) for key, files in before.items())
    missing = [str(item) for item in wanted if item not in there]
    return {
        "changed": bool(missing or unlisted or removed or unneeded),
        "missing": missing,
        "removed": [item.file for item in removed],
        "wheels": len(store.stored()),
    }


def _union(one: Listed, other: Listed) -> Listed:
    return {key: one.get(key, set()) | other.get(key, set()) for key in {**one, **other}}


def _unlisted(store: Store, listed: Listed) -> list[Stored]:
    kept = set().union(*listed.values()) if listed else set()
    return [item for item in store.stored() if item not in kept]


def _fetch(store: Store, wanted: Wanted, source: Source) -> Stored:
    offered = source.links(wanted)
    ranked = sorted(
        ((rank, link) for rank, link in ((wanted.rank(link), link) for link in offered) if rank),
        key=lambda pair: (pair[0], pair[1].file),
    )
    if not ranked:
        raise MirrorError(_why_none(wanted, offered))
    why = ""
    for _rank, link in ranked:
        try:
            return source.take(link, functools.partial(store.add, link, wanted.hashes))
        except MirrorError as error:
            # Only a file whose hash was not announced may be another than the one that is meant.
            if link.sha256 or isinstance(error, DiskFull):
                raise
            why = why or str(error)
    raise MirrorError(why)


def _why_none(wanted: Wanted, offered: t.Sequence[t.Any]) -> str:
    same = [link for link in offered if f"-{wanted.version}-" in link.file]
    if same:
        return (
            f"its source has {len(same)} wheels of this version, but none with a hash of the lock that runs there; nothing was taken. "
            "Make the lock anew from this source (playbooks/lock.yml) if you trust it"
        )
    return "its source does not have this version as a wheel. Check the URL of the index, or the folder"
