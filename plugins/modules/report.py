#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``report``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Show the plan or the outcome of all hosts of the play
version_added: 0.1.0
description:
  - Reads what C(playbooks/provision_gpu.yml) registered for every host of the play, prints a table, and returns it as data.
  - Asks no host anything and changes nothing on any. Hosts that did not answer are part of the table.
  - With O(show=outcome), except in check mode, the controller keeps what every host is like that is train-ready, in
    C(compliance/provisioned.json) of C(gpufleet_state_dir). C(playbooks/check_compliance.yml) tells with it what changed since.
options:
  show:
    description:
      - V(plan) groups the hosts by what would be done and says why.
      - V(outcome) prints one row for each host, then the reason and the remedy of every host that is not train-ready.
    type: str
    choices: [plan, outcome]
    default: outcome
attributes:
  check_mode:
    support: full
    description: In check mode hosts with planned actions are shown as such, and proof is not required.
  diff_mode:
    support: none
    description: It changes nothing on hosts.
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
- name: Judge every host and print the table
  gpufleet.workstation.report:
  register: gpufleet_report
  run_once: true
"""

RETURN = r"""
hosts:
  description: The row of each host, by its name.
  returned: when O(show=outcome)
  type: dict
  contains:
    ready:
      description: Whether the host is train-ready. Nothing that is missing or unknown is ever ready.
      type: bool
    outcome:
      description:
        - One of C(ready), C(planned), C(held_back), C(unfinished), C(pending), C(not_proven), C(refused), C(unreachable), C(failed).
      type: str
    reason:
      description: Why the host is not ready.
      type: str
    remedy:
      description: What to do about it.
      type: str
    generation:
      description: The driver's generation that serves, as the host's journal numbers it; null where it keeps none.
      type: int
table:
  description: The printed text.
  returned: when O(show=outcome)
  type: str
groups:
  description: Hosts grouped by what their plans say.
  returned: when O(show=plan)
  type: list
  elements: dict
disruptive:
  description: Whether any host would see a disruptive step.
  returned: when O(show=plan)
  type: bool
"""
