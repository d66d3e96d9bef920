#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``plan``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Observe a host and plan what makes it train-ready
version_added: 0.1.0
description:
  - Runs M(gpufleet.workstation.gpu_info) once on the host, then resolves the observation against the desired state on the
    controller. Changes nothing on the host.
  - The desired state is composed from the variables of the roles P(gpufleet.workstation.nvidia_driver#role),
    P(gpufleet.workstation.torch_env#role), P(gpufleet.workstation.runtime_env#role) and
    P(gpufleet.workstation.gpu_proof#role), all of which are checked here against the roles' argument specifications.
  - A value that is not allowed fails the task. A host that cannot have what is asked, or that could not be observed, does
    not fail it, and gets RV(plan.refusals) instead.
options:
  steps:
    description:
      - What the plan may contain. Without it C(--tags) and C(--skip-tags) of the run decide.
      - An empty list plans nothing, and only observes.
      - With O(steps=[torch]) alone environments are planned against the driver that the host has now.
    type: list
    elements: str
    choices: [driver, torch, runtime, proof]
  make_locks:
    description:
      - Whether a lock is made on the controller where an environment has to be built and has none. Never in check mode.
      - Without it such a build is planned all the same. Only where it is carried out it needs the lock.
    type: bool
    default: true
  compact:
    description:
      - Whether RV(observation) and RV(plan) are returned as one JSON text, RV(compact), instead. For playbooks that read them once, on the
        controller - of a thousand hosts Ansible spends most of its time on copying results.
      - Where something would be downloaded, hosts are not asked then whether they reach it. That would be a second execution.
    type: bool
    default: false
    version_added: 0.5.0
attributes:
  check_mode:
    support: full
    description: >-
      Observing and planning are the same; C(changed) then says whether a real run would change the host. A proof is no change.
  diff_mode:
    support: full
    description: One entry for each planned change.
  platform:
    support: full
    platforms: linux
    description: Linux hosts with Python 3.9 or newer.
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.gpu_info
  - plugin: gpufleet.workstation.resolve_stack
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Observe and plan
  gpufleet.workstation.plan:
  register: gpufleet_host

- name: Say what this host would get
  ansible.builtin.debug:
    var: gpufleet_host.plan.reasons
"""

RETURN = r"""
compact:
  description: JSON of an object with RV(observation) and RV(plan).
  returned: with O(compact=true)
  type: str
observation:
  description: What M(gpufleet.workstation.gpu_info) saw; empty where the host could not be observed.
  returned: unless O(compact=true)
  type: dict
plan:
  description: The plan, as described in docs/architecture.md.
  returned: always
  type: dict
  contains:
    feasible:
      description: Whether the host can have what is asked.
      type: bool
    refusals:
      description: Why not. Each entry has C(code), C(gpu), C(reason) and C(remedy).
      type: list
      elements: dict
    actions:
      description: What a run would do, in order. Each entry has C(id), C(step), C(what), C(why), C(disruptive) and C(data).
      type: list
      elements: dict
    pending:
      description: What is wanted but waits, for example for permission to reboot.
      type: list
      elements: dict
    reasons:
      description: How the decision came about, one sentence each.
      type: list
      elements: str
"""
