# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which GPUs need a person, whatever is planned for their host. Pure."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.xid_catalogue import ACTIONS

_NEEDS_A_PERSON = ("reset", "reboot", "inspect")


def unhealthy(host: Host) -> t.Iterator[str]:
    """Say what is wrong with GPUs, each with what to do. A GPU that is missing is refused, not warned of."""
    names = {}
    for gpu in host.observed_gpus():
        name = names[gpu.get("pci_address")] = f"{gpu.get('name') or 'The GPU'} at {gpu.get('pci_address')}"
        state: dict[str, t.Any] = {key: value or {} for key, value in (gpu.get("health") or {}).items()}
        ecc, rows, pages = (state.get(key, {}) for key in ("ecc", "remapped_rows", "retired_pages"))
        errors = ecc.get("uncorrected_volatile")
        if errors:
            yield (
                f"{name} made {errors} memory errors that could not be corrected since its driver was loaded: what it computed may be"
                " wrong. Reboot when it is idle; if it happens again, have the card replaced."
            )
        if ecc.get("sram_threshold_exceeded"):
            yield f"{name} makes more errors in its caches than a good card. Have it replaced."
        if rows.get("failure"):
            yield f"{name} has bad memory that it cannot replace any more. Have the card replaced."
        elif rows.get("pending") or pages.get("pending"):
            yield f"{name} takes bad memory out of use at its next reset. Reboot when it is idle."
        action = state.get("recovery_action")
        if action and action not in ("none", "not_applicable"):
            yield f"{name}: the driver asks for {action.replace('_', ' ')}. Do that when it is idle."
    for event in host.xid_events():
        if event.get("this_boot") and event.get("action") in _NEEDS_A_PERSON:
            address, times = event.get("pci_address"), event.get("count") or 1
            often = f"{times} times, last " if times > 1 else ""
            yield (
                f"{names.get(address) or f'The GPU at {address}'}: Xid {event.get('number')} ({event.get('title')}) {often}at"
                f" {event.get('last_at')}. {ACTIONS[event['action']]}"
            )
