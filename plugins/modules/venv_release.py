#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring one environment with torch to the release that is asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
module: venv_release
short_description: Build, prove, switch, roll back or remove a Python environment that holds torch
version_added: 0.1.0
description:
  - An environment is a series of releases. Each is a virtual environment below C(ROOT/NAME/releases) that is built once and never
    changed again. C(ROOT/NAME/current) is a symlink to the one that serves, C(ROOT/NAME/previous) to the one before it.
  - One execution builds a release at its final place, compares every file with what its wheel promised, compiles the bytecode,
    gives everything to root, proves it on this host, stamps it, switches to it in one step and removes old releases.
  - O(smoke) and O(switch_after) gate the switch. A release that is stamped and does not pass them stays I(staged). What served serves
    on, and the next execution goes on from there without building.
  - Whatever fails or is killed on the way, the release that served before serves on, and what was left is removed by the next run.
  - What has to be built is built by a process of its own on the host, as a systemd unit C(gpufleet-build-NAME-PID) where there is systemd.
    A lost connection or a controller that ends does not stop it. The next run for the same O(spec) follows it and says so. While it
    runs, the action plugin shows its step, the bytes so far and the rate.
  - For users to take away, C(ROOT/NAME/takeaway) holds the release that serves as requirements and constraints for pip, as a C(Dockerfile)
    and as a Jupyter C(kernel.json), all made from O(lock). O(state=previous) removes them, because it knows neither lock nor indexes of the
    release; the next O(state=present) writes them again.
  - Packages are installed as wheels only, by uv, as the system account C(gpufleet). No code of an environment ever runs as root.
  - The first release after an empty cache shares its files with uv's cache, as hard links that belong to root. Later releases get
    copies, so that no two releases share a file; that costs their size again. A cache older than a week is dropped before a build.
options:
  name:
    description:
      - Name of the environment. A lower-case letter or a digit, then those, C(.), C(_) or C(-), at most 63 characters.
    type: str
    required: true
  root:
    description:
      - Directory that holds all environments. It and what lies above it must belong to root and not be writable by everybody.
      - File systems that other hosts see too (NFS, CIFS, Ceph, Lustre and the like) are refused.
    type: path
    default: /opt/gpufleet/envs
  state:
    description:
      - V(present) makes a proven release of O(spec) current; it is built where the host has none.
      - V(previous) goes back to the release that served before, or to O(release), once it is proven against this host as it is now.
        Needs no network.
      - V(absent) removes the environment with all its releases, unless a process or an overlay (C(gpu-env new)) uses one. With the last
        environment go uv, its cache, the launcher and the account C(gpufleet), if this module created it.
    type: str
    choices: [present, previous, absent]
    default: present
  release:
    description:
      - Name of the release that O(state=previous) goes back to. Empty means the one that served before.
    type: str
    default: ""
  spec:
    description:
      - What the environment has to hold, as the plan returns it, with V(name), V(python), V(torch), V(companions), V(requirements),
        V(arch) and V(schema). Required where O(state=present).
    type: dict
  spec_digest:
    description:
      - SHA-256 of the canonical JSON of O(spec), as the plan returns it. Required where O(state=present).
    type: str
  release_base:
    description:
      - Name of a release of O(spec), as the plan returns it. A number is appended where the name is taken. Required where O(state=present).
    type: str
  index_url:
    description:
      - URL of the package index that torch and its companions come from. Credentials in it are not logged. Required where O(state=present).
    type: str
  package_index_url:
    description:
      - URL of the package index for everything outside torch's family. Empty means the one that uv uses on this host.
    type: str
    default: ""
  proxy:
    description:
      - What stands between the host and the indexes. Without it, the variables of the task's environment count.
    type: dict
    suboptions:
      http:
        description: URL of the proxy for http. Not logged.
        type: str
      https:
        description: URL of the proxy for https. Not logged.
        type: str
      no_proxy:
        description: Hosts, separated by commas, that are reached without a proxy.
        type: str
      ca_file:
        description: Path, on the host, of the certificates to trust instead of the system's.
        type: path
  lock:
    description:
      - Text of the lock, in which every package of the environment stands with its version and the SHA-256 of its files. Nothing else is
        installed. The plan names its file on the controller (RV(gpufleet.workstation.plan#module:plan)). Required to build.
    type: str
  interpreter:
    description:
      - Path of the Python interpreter that the environment is made with. Required where O(state=present).
    type: path
  owner:
    description:
      - Account that uses the environment and as which it is proven. With V(root), who never runs an environment's Python, that is
        the account C(gpufleet).
    type: str
    default: root
  group:
    description:
      - Group whose members may read the environment. V(root) means everybody.
    type: str
    default: root
  keep:
    description:
      - How many proven releases to keep, the current one included. One that a process or an overlay uses is kept in any case.
    type: int
    default: 2
  sm:
    description:
      - Architectures of this host's GPUs, for example V(sm_120). The proof fails where torch has no code for one of them.
    type: list
    elements: str
    default: []
  time_limit:
    description:
      - Seconds that building may take, the download included.
    type: int
    default: 3600
  smoke:
    description:
      - A program and its arguments that have to succeed in a release before every switch to it. It runs as O(owner) (for V(root) as the
        account C(gpufleet)), in a private directory, with the release's C(bin) first on PATH, C(VIRTUAL_ENV), O(variables) and nothing
        of the task's environment. Empty means that nothing is run.
    type: list
    elements: str
    default: []
  variables:
    description:
      - Variables for O(smoke), besides those that the environment's C(runtime.env) holds already, and for what users take away.
    type: dict
    default: {}
  switch_after:
    description:
      - Level of the proof that has to pass before a switch. At V(quick) every GPU in O(gpus) has to compute first; where one is busy or
        none runs, the release is staged and RV(pending) says why.
    type: str
    choices: [static, quick]
    default: static
  gpus:
    description:
      - PCI addresses of the GPUs that O(switch_after=quick) needs. Empty means all.
    type: list
    elements: str
    default: []
  integrity:
    description:
      - How releases are compared with what was stamped, V(sizes) (every path, size and link) or V(hashes) (the contents as well).
      - A release that is found damaged never serves again, and is not repaired; a new one is built.
    type: str
    choices: [sizes, hashes]
    default: sizes
  proof_time_limit:
    description:
      - Seconds that the proof may take, and O(smoke).
    type: int
    default: 300
  lock_timeout:
    description:
      - Seconds to wait for another run that changes environments below the same O(root).
    type: int
    default: 300
  disk_required:
    description:
      - MiB that must be free below O(root) before a build begins. V(0) means an estimate, which is 8192 for the first release of a
        torch version and the size of the earlier ones after that.
    type: int
    default: 0
  launcher:
    description:
      - Path of the command that runs programs in the environments below O(root). Empty means that none is written.
    type: path
    default: /usr/local/bin/gpu-env
  follow_seconds:
    description:
      - Seconds after which an execution that follows a build comes back with RV(progress), for the action plugin to show it and go on.
    type: float
    default: 10.0
  follow:
    description:
      - What an execution before this one returned as RV(follow). Left to the action plugin.
    type: str
    default: ""
  uv_archive:
    description:
      - Path, on the host, of the uv wheel that the collection pins. Usually left to the action plugin, which hands it over when the
        host needs it.
    type: path
  uv_wheel:
    description:
      - Path, on the controller, of the same wheel. Empty means that the controller fetches it once with pip and keeps it in
        C($XDG_CACHE_HOME/gpufleet).
    type: path
    default: ""
attributes:
  check_mode:
    support: full
    description: Predicts whether a release would be built or switched to; nothing is transferred or written.
  diff_mode:
    support: full
    description: Shows the current and the previous release before and after.
  platform:
    support: full
    platforms: linux
    description: Linux hosts with Python 3.9 or newer; the module has to run as root.
requirements:
  - useradd on the host, where the account C(gpufleet) does not exist yet
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.plan
  - module: gpufleet.workstation.cuda_verify
"""

EXAMPLES = r"""
- name: Observe and plan
  gpufleet.workstation.plan:
    steps: [torch]
  register: planned

- name: Serve the environments that the plan wants to change
  gpufleet.workstation.venv_release:
    name: "{{ item.name }}"
    root: "{{ item.root }}"
    spec: "{{ item.spec }}"
    spec_digest: "{{ item.spec_digest }}"
    release_base: "{{ item.release_base }}"
    index_url: "{{ item.index_url }}"
    package_index_url: "{{ item.package_index_url }}"
    lock: "{{ lookup('ansible.builtin.file', item.lock_file, rstrip=false) }}"
    interpreter: "{{ item.interpreter }}"
    sm: "{{ item.sm }}"
  loop: "{{ planned.plan.environments | selectattr('actions') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Go back to the release that served before
  gpufleet.workstation.venv_release:
    name: base
    state: previous

- name: Go back to a certain release
  gpufleet.workstation.venv_release:
    name: base
    state: previous
    release: 2.9.0-cu128-4d5e6f70
"""

RETURN = r"""
what:
  description: What was decided and why.
  returned: always
  type: str
  sample: "build 2.9.1-cu128-1f2e3d4c: no release of this specification is there"
release:
  description: The release that serves now (in check mode, that would serve).
  returned: success
  type: str
  sample: 2.9.1-cu128-1f2e3d4c
previous:
  description: The release that O(state=previous) would go back to.
  returned: success
  type: str
path:
  description: Directory of RV(release).
  returned: success
  type: str
steps:
  description: The steps that were taken, in order.
  returned: always
  type: list
  elements: dict
  contains:
    step:
      description: Name of the step.
      type: str
    seconds:
      description: How long it took, in seconds.
      type: float
proof:
  description: Result of the static proof with its checks, where one was made.
  returned: when a release was or should have been proven
  type: dict
pending:
  description: What waits, where a release is staged because its proof at level V(quick) could not be made; null where nothing waits.
  returned: success
  type: dict
  contains:
    what:
      description: What waits.
      type: str
    why:
      description: For what, such as the processes that use a GPU.
      type: str
    remedy:
      description: What to do about it.
      type: str
running:
  description: The build goes on; the task executes the module again until it ends.
  returned: while a build runs; never as a task's result
  type: bool
follow:
  description: Which build, and who follows it.
  returned: while a build runs; never as a task's result
  type: str
progress:
  description: What the build does.
  returned: while a build runs; never as a task's result
  type: dict
  contains:
    release:
      description: The release that is being built.
      type: str
    step:
      description: The step that it is at.
      type: str
    seconds:
      description: How long it has been building, in seconds.
      type: int
    bytes_done:
      description: Bytes that have come so far, unpacked; null in steps that bring none.
      type: int
    bytes_total:
      description: Bytes that a release of this torch had, or usually has.
      type: int
    bytes_total_from:
      description: How RV(progress.bytes_total) is known.
      type: str
    rate:
      description: Bytes per second, unpacked, within O(follow_seconds); null where RV(progress.bytes_done) is.
      type: int
removed:
  description: Releases that were removed, or of which was removed what an interrupted removal had left.
  returned: success
  type: list
  elements: str
step:
  description: The step, or the option, that failed.
  returned: failure
  type: str
cause:
  description: Why it failed; for uv, its own last lines without credentials.
  returned: failure
  type: str
remedy:
  description: What to do about it.
  returned: failure
  type: str
"""

import os
import time
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._release import build, jobs, store, worker
from ..module_utils._release.model import BadInput, Layout, ReleaseError, Request, check_name, check_root
from ..module_utils._release.release import Operation

_PROXY_VARIABLES = {
    "http": "http_proxy",
    "https": "https_proxy",
    "no_proxy": "no_proxy",
    "ca_file": "SSL_CERT_FILE",
}
"""As uv and everything else reads them."""


def main() -> None:
    """Check the options and carry out the operation."""
    spec = {
        "name": {"type": "str", "required": True},
        "root": {"type": "path", "default": "/opt/gpufleet/envs"},
        "state": {"type": "str", "choices": ["present", "previous", "absent"], "default": "present"},
        "release": {"type": "str", "default": ""},
        "spec": {"type": "dict"},
        "spec_digest": {"type": "str"},
        "release_base": {"type": "str"},
        "index_url": {"type": "str"},
        "package_index_url": {"type": "str", "default": ""},
        "proxy": {
            "type": "dict",
            "options": {
                "http": {"type": "str", "no_log": True},
                "https": {"type": "str", "no_log": True},
                "no_proxy": {"type": "str"},
                "ca_file": {"type": "path"},
            },
        },
        "lock": {"type": "str"},
        "interpreter": {"type": "path"},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "keep": {"type": "int", "default": 2},
        "sm": {"type": "list", "elements": "str", "default": []},
        "time_limit": {"type": "int", "default": 3600},
        "smoke": {"type": "list", "elements": "str", "default": []},
        "variables": {"type": "dict", "default": {}},
        "switch_after": {"type": "str", "choices": ["static", "quick"], "default": "static"},
        "gpus": {"type": "list", "elements": "str", "default": []},
        "integrity": {"type": "str", "choices": ["sizes", "hashes"], "default": "sizes"},
        "proof_time_limit": {"type": "int", "default": 300},
        "lock_timeout": {"type": "int", "default": 300},
        "disk_required": {"type": "int", "default": 0},
        "launcher": {"type": "path", "default": "/usr/local/bin/gpu-env"},
        "follow_seconds": {"type": "float", "default": 10.0},
        "follow": {"type": "str", "default": ""},
        "uv_archive": {"type": "path"},
        "uv_wheel": {"type": "path", "default": ""},
    }
    needed = ["spec", "spec_digest", "release_base", "index_url", "interpreter"]
    module = AnsibleModule(spec, supports_check_mode=True, required_if=[("state", "present", needed)])
    os.umask(0o022)
    for url in (module.params["index_url"], module.params["package_index_url"]):
        password = urlsplit(url or "").password
        if password:
            module.no_log_values.add(password)
    for option, variable in _PROXY_VARIABLES.items():
        if (module.params["proxy"] or {}).get(option):
            os.environ[variable] = module.params["proxy"][option]
    operation = None
    try:
        if os.geteuid() != 0:
            raise BadInput("become", "environments are built and owned by root", "Set become: true for this task.")
        request = _request(module.params)
        building = module.params["state"] == "present" and not module.check_mode
        begin = time.monotonic()
        while True:
            host = worker.real_host(request.layout, module.params["uv_archive"], hand_over=partial(_hand_over, request))
            operation = Operation(request, host, module.check_mode)
            job = jobs.find(request.layout)
            if job is not None and building and _is_ours(job, request, module.params["follow"]):
                operation.before = store.read_state(request.layout)
                _follow(module, job, adopted=not module.params["follow"])
            if job is not None and job.running and module.params["state"] == "absent":
                raise ReleaseError("look for users", f"the environment is in use by {job.who()}", _END_IT)
            if job is not None and building and not job.running:
                with suppress(ReleaseError), store.locked(request.layout, 0):
                    if jobs.find(request.layout) == job:  # nobody fetched its result: the disk tells what came of it
                        jobs.clear(request.layout)
            result = getattr(operation, module.params["state"])()
            if "job" not in result:
                break
            if result["job"] is not None:
                _follow(module, result["job"], adopted=False)
            other = jobs.find(request.layout)
            if other is not None and time.monotonic() - begin > request.lock_timeout:
                cause = f"the environment is being changed by another run ({other.who()})"
                raise ReleaseError("wait for the lock", cause, _END_IT)
            time.sleep(0.05)
    except ReleaseError as error:
        module.fail_json(**worker.failure(module.params["name"], operation, error))
    else:
        _tell(module, result)


_END_IT = "Let that build end, or end that process; then run again."


def _is_ours(job: jobs.Job, request: Request, follow: str) -> bool:
    """Whether to wait for this job instead of looking at the disk."""
    if follow:
        return follow.startswith(f"{job.id}.")
    return job.running and job.status["spec_digest"] == request.spec_digest


def _hand_over(request: Request, release_id: str, before: store.State) -> jobs.Job | None:
    """Start the worker; None where one of another run is at work that does not hold the lock yet, or no more."""
    other = jobs.find(request.layout)
    if other is not None and other.running:
        return None
    expected = build.expected_bytes(before.stamped.values(), request.spec)
    environment = {name: os.environ[name] for name in build.PASSED_ON if name in os.environ}
    return jobs.start(request, release_id, expected, environment)


def _follow(module: AnsibleModule, job: jobs.Job, adopted: bool) -> None:
    """Wait for a job for a while, tell what came of it, and exit."""
    if adopted:
        module.warn(f"{job.layout.name}: adopted the build that began at {job.status['began']}")
    me = module.params["follow"] or job.join()
    followed = job.follow(me, module.params["follow_seconds"])
    if followed.progress is not None:
        module.exit_json(changed=False, running=True, follow=me, progress=followed.progress)
    if followed.failure is not None:
        module.fail_json(**followed.failure)
    _tell(module, followed.result or {})


def _tell(module: AnsibleModule, result: dict[str, Any]) -> None:
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


def _request(params: dict[str, Any]) -> Request:
    layout = Layout(check_root(params["root"]), check_name(params["name"]))
    return Request(
        layout=layout,
        spec=params["spec"] or {},
        spec_digest=params["spec_digest"] or "",
        release_base=params["release_base"] or "",
        index_url=params["index_url"] or "",
        package_index_url=params["package_index_url"],
        lock=params["lock"] or "",
        interpreter=params["interpreter"] or "",
        owner=params["owner"],
        group=params["group"],
        keep=params["keep"],
        sm=tuple(params["sm"]),
        time_limit=params["time_limit"],
        proof_time_limit=params["proof_time_limit"],
        lock_timeout=params["lock_timeout"],
        disk_required_mib=params["disk_required"],
        launcher=params["launcher"],
        release=params["release"],
        smoke=tuple(params["smoke"]),
        variables={name: str(value) for name, value in params["variables"].items()},
        switch_after=params["switch_after"],
        gpus=tuple(params["gpus"]),
        integrity=params["integrity"],
    )


if __name__ == "__main__":
    main()
