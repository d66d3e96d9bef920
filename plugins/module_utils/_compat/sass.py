# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which machine code (SASS) runs on which GPU."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import matrix
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import version_key

_RULE: t.Mapping[str, t.Any] = matrix.SASS


def runs_on(code: str, device: str, cuda: str) -> bool:
    """Whether code compiled for compute capability `code` by CUDA `cuda` runs on a device (all as in "12.0")."""
    code, device = _renamed(code), _renamed(device)
    code_key, device_key = version_key(code), version_key(device)
    if code_key[0] != device_key[0] or code_key > device_key:
        return False
    if device not in _RULE["excluded_devices"].get(code, ()):
        return True
    return code in _RULE["lifted_for"] and version_key(cuda) >= version_key(_RULE["lifted_from_cuda"])


def serving_code(architectures: t.Iterable[str], device: str, cuda: str) -> str | None:
    """The closest of the compiled architectures that runs on the device, as in "8.6"; None where none does."""
    fitting = [code for code in architectures if runs_on(code, device, cuda)]
    return max(fitting, key=version_key) if fitting else None


def _renamed(compute_capability: str) -> str:
    return _RULE["same_device"].get(compute_capability, compute_capability)
