#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``lock``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lock
short_description: Make the locks of the environments of all hosts of the play anew
version_added: 0.3.0
description:
  - Reads the plans that C(playbooks/lock.yml) registered, and resolves each environment once for each platform. Asks no host anything.
  - A lock holds every package with its version and the SHA-256 of its files. Torch's family comes from the torch index and nothing else
    does. Locks lie in C(gpufleet_state_dir), by default in C(.gpufleet) beside the inventory; keep them under version control.
  - What changes is printed. Without a change of what is asked for, provisioning never changes a lock.
attributes:
  check_mode:
    support: full
    description: Says what would change and writes nothing.
  diff_mode:
    support: none
    description: The changes are printed in any case.
  platform:
    support: full
    platforms: linux
    description: Runs on the controller.
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.plan
"""

EXAMPLES = r"""
- name: Resolve every environment again, and show what changes
  gpufleet.workstation.lock:
  run_once: true
"""

RETURN = r"""
locks:
  description: For each lock file, by its path, a line for each package that comes (C(+)), goes (C(-)) or changes (C(~)).
  returned: always
  type: dict
  sample: {"/etc/ansible/.gpufleet/locks/base/torch-2.9.1+cu128-cp311-x86_64-1f2e3d4c.txt": ["~ numpy 2.4.5 -> 2.4.6"]}
"""
