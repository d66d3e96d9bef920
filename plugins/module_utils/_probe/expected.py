# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The GPUs that a host should have, because they were proven here, and which of them are missing.

A host that lost one of its GPUs looks like a host with fewer. So the last proof that passed leaves a list, and on a host that
has none the journal of the last change of the driver tells.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from . import driver, sysfs, system
from .host import Host

SILENT = "the PCI bus still lists it, but it reads as 0xffff"
PATH = "/var/lib/gpufleet/gpus.json"
SCHEMA = 1
_FELL_OFF = 79  # Xid: GPU has fallen off the bus
_WHEN = {"xid": "since {0} (Xid 79)", "after": "since some time after {0}", "boot": "since the boot of {0}"}
_TOLD = ("pci_address", "pci_device_id", "uuid", "name")

Gpu = Mapping[str, Any]


def document(gpus: Iterable[Gpu], at: str, boot_id: str | None) -> dict[str, Any]:
    """What to keep at PATH: these GPUs worked at a time (UTC) of a boot."""
    rows = [{key: gpu.get(key) for key in _TOLD} for gpu in gpus]
    return {"schema": SCHEMA, "seen_at": at, "boot_id": boot_id, "gpus": rows}


def read(host: Host, journal: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the document at PATH; where there is none, the journal's GPUs, of which no time is known."""
    found = driver.json_object(host, PATH) or {"gpus": (journal or {}).get("gpus")}
    rows = found.get("gpus")
    found["gpus"] = [row for row in rows if _is_gpu(row)] if isinstance(rows, list) else []
    return found


def _is_gpu(row: Any) -> bool:
    return isinstance(row, dict) and all(row.get(key) is None or isinstance(row[key], str) for key in _TOLD)


def absent(expected: Iterable[Gpu], present: Iterable[Gpu]) -> list[Gpu]:
    """Return the expected GPUs that none of those present can be: neither the same card, nor one in its slot, nor one like it.

    Cards move to other slots, addresses change when something else is plugged in, and a broken card is replaced by one like it.
    """
    rest, left = list(expected), list(present)
    for alike in (_same_card, _same_slot, _same_kind):
        for one in list(rest):
            other = next((gpu for gpu in left if alike(one, gpu)), None)
            if other is not None:
                rest.remove(one)
                left.remove(other)
    return rest


def _same_card(one: Gpu, other: Gpu) -> bool:
    return one.get("uuid") is not None and one.get("uuid") == other.get("uuid")


def _same_slot(one: Gpu, other: Gpu) -> bool:
    return one.get("pci_address") == other.get("pci_address")


def _same_kind(one: Gpu, other: Gpu) -> bool:
    kinds = {one.get("pci_device_id"), other.get("pci_device_id")}
    return None in kinds or len(kinds) == 1


def fell_off(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the GPUs that fell off the bus since the boot, by PCI address, and when."""
    return {
        event["pci_address"]: event["at"] for event in events if event["this_boot"] and event["number"] == _FELL_OFF
    }


def missing(
    expected: Mapping[str, Any],
    gpus: Sequence[Gpu],
    events: Iterable[Mapping[str, Any]],
    booted_at: str | None,
    boot_id: str | None,
) -> list[dict[str, Any]]:
    """Return the expected GPUs that are not among ``gpus``, and those of them that are lost.

    ``since`` is the time of the Xid that says so. Without one it is that of the boot, for a GPU that is not on the bus, and
    otherwise the last time that it is known to have been there: then it went at some time after that.
    """
    fell = fell_off(events)
    worked_at = expected.get("seen_at") if boot_id and expected.get("boot_id") == boot_id else None
    found = []
    for gpu in [*(gpu for gpu in gpus if gpu["lost"]), *absent(expected["gpus"], gpus)]:
        address, why = gpu.get("pci_address"), gpu.get("lost")
        known: Gpu = next((row for row in expected["gpus"] if _same_slot(row, gpu)), {})
        name = known.get("name") or gpu.get("name") or "a GPU"
        since, what = fell.get(str(address)), "xid"
        if not since:
            after = worked_at or (booted_at if why else None)
            since, what = (after, "after") if after else (booted_at, "boot")
        when = _WHEN[what].format(since) if since else "since a time that is not known"
        found.append(
            {
                "pci_address": address,
                "uuid": gpu.get("uuid") or known.get("uuid"),
                "name": name,
                "since": since,
                "since_what": what if since else None,
                "text": f"{name} at {address} is missing {when}: {why or 'neither the PCI bus nor the driver shows it'}",
            }
        )
    return found


def missing_now(host: Host, shown: Sequence[Gpu]) -> list[dict[str, Any]]:
    """Return the missing GPUs as far as the bus and those that CUDA shows ({pci_address, uuid, name}) tell, without NVML and the log."""
    known = {gpu["pci_address"]: gpu for gpu in shown}
    rows = []
    for gpu in sysfs.pci_gpus(host, []) or []:
        rows.append({**gpu, **known.pop(gpu["pci_address"], {}), "lost": None if gpu["answers"] else SILENT})
    rows += [{**gpu, "lost": None} for gpu in known.values()]
    booted_at = system.booted_at(host)
    when = system.utc(booted_at) if booted_at is not None else None
    return missing(read(host, driver.journal(host)), rows, (), when, system.boot_id(host))


def remembered(host: Host, proven: Sequence[Gpu], at: str, boot_id: str) -> dict[str, Any]:
    """What to keep at PATH after a proof of these GPUs has passed: those, and the others that were remembered and still are there.

    Raises ValueError and Unreadable where what was remembered cannot be read: a GPU that is lost would be forgotten.
    """
    on_bus = {gpu["pci_address"]: gpu for gpu in sysfs.pci_gpus(host, []) or []}
    rows = [{**on_bus.get(gpu["pci_address"], {}), **gpu} for gpu in proven]
    addresses = {gpu["pci_address"] for gpu in proven}
    before = absent(read(host, driver.journal(host))["gpus"], rows)
    gone = absent(before, [gpu for address, gpu in on_bus.items() if address not in addresses])
    return document([*rows, *(gpu for gpu in before if gpu not in gone)], at, boot_id)
