#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the packages and kernel modules of a host's NVIDIA driver to what a plan says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: driver_packages
short_description: Stage, install, keep, take back or remove the packages of an NVIDIA driver
version_added: 0.2.0
description:
  - Carries out the driver part of a plan of M(gpufleet.workstation.plan), with apt or dnf. It decides nothing about versions.
  - Every transaction is simulated first. One that would remove a desktop, a display manager or a kernel, mix packages of two sources,
    leave the planned branch, downgrade the driver unasked, change what somebody else holds, or remove more than five packages that are
    not the driver's, is refused before anything changes.
  - A module counts when its file lies in C(/lib/modules) of every kernel that can boot next, in the right version and flavor. When one
    cannot be built, the packages, pins and holds that were there before are put back from files on the host, and the message quotes the
    compiler.
  - Interrupted package work is finished first, whoever left it. A call may be killed at any point; the next one brings the host there.
  - Only one call changes a host at a time. Package managers run in sessions of their own, so that a lost connection interrupts nothing.
options:
  state:
    description:
      - V(staged) does everything that replaces nothing. It repairs, describes and reads the repository, installs kernel headers, simulates,
        downloads, keeps the packages that serve now, and, where a driver serves, builds the new modules on trial.
      - V(installed) replaces the packages without network, proves a module for every kernel that can boot next, blocks nouveau, keeps
        exactly these versions and writes a generation. What is not staged yet is staged first.
      - V(absent) removes the driver and every file and hold of this collection. The packages that were there before it come back.
      - V(generation) goes back to the driver O(generation) from files on the host, without network.
    type: str
    choices: [staged, installed, absent, generation]
    required: true
  plan:
    description:
      - The plan's C(driver). Only its actions are carried out; without actions nothing is done. O(state=generation) needs none.
    type: dict
    default: {}
  key:
    description:
      - Text of the key that signs the repository, as the plan's C(driver.repository) names it. It is public.
    type: str
    default: ""
  generation:
    description:
      - Number of the generation to go back to. Required where O(state=generation).
    type: int
  way_back_required:
    description:
      - Whether a driver that serves is only replaced when its packages could be kept, fetched in exactly their version or repacked.
    type: bool
    default: true
  downgrade_allowed:
    description:
      - Whether a newer driver may be replaced by an older one.
    type: bool
    default: false
  environments_root:
    description:
      - Directory of the environments, whose current releases a generation notes.
    type: path
    default: /opt/gpufleet/envs
  keep:
    description:
      - How many generations to keep. The one that serves, the one before it and the one that was there before this collection stay in
        any case.
    type: int
    default: 3
  proxy:
    description:
      - Proxy for the package manager. It is written to a file that only root can read, for as long as the call lasts (dnf may need it in
        its own way), and never shown.
    type: dict
    suboptions:
      http:
        description: URL of the proxy for http.
        type: str
      https:
        description: URL of the proxy for https.
        type: str
      no_proxy:
        description: Hosts that are reached directly, separated by commas.
        type: str
      ca_file:
        description: File, on the host, with the certificates of the authorities to trust.
        type: path
  mok_password:
    description:
      - Password under which the key that signs modules is staged for Secure Boot. It is typed once, at the host's console.
    type: str
    default: ""
  time_limit:
    description:
      - Seconds that building the modules for one kernel, or one initial RAM file system, may take.
    type: int
    default: 3600
attributes:
  check_mode:
    support: full
    description:
      - Returns the plan's actions of this O(state) as what would be done, and changes nothing. With O(state=generation) it compares the
        generation with what is installed.
  diff_mode:
    support: none
    description: What changes is in RV(transaction) and RV(done).
  platform:
    support: full
    platforms: linux
    description: Debian, Ubuntu, RHEL, Rocky Linux and AlmaLinux with Python 3.9 or newer; the module has to run as root.
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.plan
  - module: gpufleet.workstation.gpu_info
"""

EXAMPLES = r"""
- name: Observe and plan
  gpufleet.workstation.plan:
    steps: [driver]
  register: planned

- name: Fetch and try out what is needed, while people work on
  gpufleet.workstation.driver_packages:
    state: staged
    plan: "{{ planned.plan.driver }}"
    key: "{{ lookup('ansible.builtin.file', 'nvidia-debian13.asc') }}"

- name: Replace the driver
  gpufleet.workstation.driver_packages:
    state: installed
    plan: "{{ planned.plan.driver }}"
  register: replaced

- name: Go back to the driver before, without network
  gpufleet.workstation.driver_packages:
    state: generation
    generation: 1
"""

RETURN = r"""
done:
  description: What was done, in order; in check mode, what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The plan's action, or the name of a step of its own.
      type: str
      sample: driver.packages
    what:
      description: What it was, for people.
      type: str
    changed:
      description: Whether it changed anything on the host.
      type: bool
    s:
      description: How long it took, in seconds.
      type: float
transaction:
  description: What the package manager would do, or did, by its own simulation.
  returned: always
  type: dict
  contains:
    install:
      description: Names of the driver's packages that come.
      type: list
      elements: str
    upgrade:
      description: Names of the driver's packages that get a newer version.
      type: list
      elements: str
    downgrade:
      description: Names of the driver's packages that get an older version.
      type: list
      elements: str
    remove:
      description: Names of the driver's packages that go.
      type: list
      elements: str
    others:
      description: Other packages that are touched, as C(name), and the versions C(before) and C(after), each null where there is none.
      type: list
      elements: dict
kernels:
  description: The modules that the kernels that can boot next would load, as far as this call looked at them.
  returned: always
  type: list
  elements: dict
  contains:
    release:
      description: Release of the kernel.
      type: str
    version:
      description: Version of the module.
      type: str
    flavor:
      description: V(open) or V(proprietary).
      type: str
    path:
      description: File of the module.
      type: str
generation:
  description: Number of the generation that serves now, null where there is none or where this call did not change it.
  returned: always
  type: int
restored:
  description:
    - Null where nothing was replaced or all went well, true where a change failed and what was there is there again, false where that
      did not succeed either.
  returned: always
  type: bool
compiler:
  description: The compiler's own lines about modules that could not be built.
  returned: always
  type: list
  elements: str
msg:
  description: What failed, why, what is there now and what to do.
  returned: failure
  type: str
"""

import os
import signal
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._driver.apt import Apt
from ..module_utils._driver.change import Flow, Options, Result, actions_of, predicted, request_of
from ..module_utils._driver.commands import run
from ..module_utils._driver.dnf import Dnf
from ..module_utils._driver.model import DriverError, PackageManager
from ..module_utils._probe import packages, system
from ..module_utils._probe.host import Host


def main() -> None:
    """Check the options and carry out the change."""
    spec = {
        "state": {"type": "str", "choices": ["staged", "installed", "absent", "generation"], "required": True},
        "plan": {"type": "dict", "default": {}},
        "key": {"type": "str", "default": "", "no_log": False},
        "generation": {"type": "int"},
        "way_back_required": {"type": "bool", "default": True},
        "downgrade_allowed": {"type": "bool", "default": False},
        "environments_root": {"type": "path", "default": "/opt/gpufleet/envs"},
        "keep": {"type": "int", "default": 3},
        "proxy": {
            "type": "dict",
            "options": {
                "http": {"type": "str", "no_log": True},
                "https": {"type": "str", "no_log": True},
                "no_proxy": {"type": "str"},
                "ca_file": {"type": "path"},
            },
        },
        "mok_password": {"type": "str", "default": "", "no_log": True},
        "time_limit": {"type": "int", "default": 3600},
    }
    module = AnsibleModule(spec, supports_check_mode=True, required_if=[("state", "generation", ["generation"])])
    # The connection may go away in the middle: what was begun is finished.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    given = module.params
    if module.check_mode and given["state"] != "generation":
        module.exit_json(**_returned(Result(done=predicted(given["plan"], given["state"]))))
    result = Result()
    try:
        if os.geteuid() != 0:
            raise DriverError("Packages are changed by root only. Set become: true for this task.")
        flow = _flow(given, result)
        if given["state"] == "generation":
            flow.generation(given["generation"], module.check_mode)
        else:
            getattr(flow, given["state"])()
    except DriverError as error:
        module.fail_json(msg=str(error), **_returned(result))
    except OSError as error:
        module.fail_json(msg=f"The host cannot be worked on: {error}. Mend that, then run again.", **_returned(result))
    for text in result.warnings:
        module.warn(text)
    module.exit_json(**_returned(result))


def _flow(given: dict[str, Any], result: Result) -> Flow:
    """Put the flow together for this host."""
    host = Host()
    proxy = {name: value for name, value in (given["proxy"] or {}).items() if value}
    request = request_of(given["plan"], given["key"], given["downgrade_allowed"], proxy)
    name = packages.manager(host, system.identity(host)["family"])
    managers: dict[str | None, Any] = {"apt": lambda: Apt(run, proxy), "dnf": lambda: Dnf(run)}
    if name not in managers:
        raise DriverError("This host has neither apt nor dnf: its driver is not managed. Nothing was changed.")
    manager: PackageManager = managers[name]()
    options = Options(
        way_back_required=given["way_back_required"],
        environments_root=given["environments_root"],
        mok_password=given["mok_password"],
        keep=given["keep"],
        time_limit=float(given["time_limit"]),
    )
    return Flow(manager, request, actions_of(given["plan"]), options, run, host, result)


def _returned(result: Result) -> dict[str, Any]:
    """A call's result in the words of RETURN."""
    found = asdict(result)
    del found["warnings"]
    return {**found, "changed": result.changed}


if __name__ == "__main__":
    main()
