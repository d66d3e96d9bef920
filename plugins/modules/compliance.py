#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``compliance``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: compliance
short_description: Judge all hosts by rules, and write the reports
version_added: 0.5.0
description:
  - Reads what C(playbooks/check_compliance.yml) registered for every host of the play, evaluates the rules, applies waivers, compares
    with the last verdicts and with what provisioning left, keeps the new verdicts, and writes the reports.
  - Asks no host anything. Hosts of O(hosts) that the run did not ask, because of C(--limit), count as C(not_asked). One that did not
    answer or could not be observed is never ready.
  - Rules, waivers and folders come from the variables C(gpu_compliance_*) of the role P(gpufleet.workstation.gpu_compliance#role).
    What is wrong with them is named with file and line.
  - History and reports lie in C(compliance) of C(gpufleet_state_dir), by default C(.gpufleet) beside the inventory, readable by their
    owner alone.
  - Fails where a host does not meet a rule of severity C(gpu_compliance_fail_on) or worse, is unreachable or was not observed, where a
    waiver names a rule or hosts that do not exist, and where a file cannot be written.
options:
  judge:
    description:
      - With V(false) rules and waivers are only loaded, so that a mistake in them is found before any host is asked.
    type: bool
    default: true
  hosts:
    description:
      - Pattern of the hosts that make up the fleet, those outside C(--limit) too.
    type: str
    default: all
requirements:
  - jmespath on the controller
attributes:
  check_mode:
    support: full
    description: Does the same. Reports and history are what it is for, and lie on the controller; no host is changed.
  diff_mode:
    support: none
    description: It changes no host; the text says what is no longer as at the last verdict.
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
- name: Judge the fleet
  gpufleet.workstation.compliance:
    hosts: workstations
  run_once: true
"""

RETURN = r"""
rules:
  description: How many rules were loaded.
  returned: when O(judge=false)
  type: int
totals:
  description: How many hosts there are, and how many of each outcome.
  returned: when O(judge=true)
  type: dict
  sample: {"hosts": 12, "ready": 9, "not_ready": 1, "unknown": 0, "unreachable": 1, "not_asked": 1}
not_ready:
  description: Names of the hosts that were asked and are not ready.
  returned: when O(judge=true)
  type: list
  elements: str
reports:
  description: Paths of the reports on the controller, by their file names. Empty where they could not be written.
  returned: when O(judge=true)
  type: dict
  sample: {"report.json": "/etc/ansible/.gpufleet/compliance/report/report.json"}
ansible_stats:
  description: RV(totals), RV(not_ready) and RV(reports) as C(gpufleet_compliance), as M(ansible.builtin.set_stats) leaves data behind.
  returned: when O(judge=true)
  type: dict
"""
