#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module cuda_verify: documentation, validation and one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_verify
short_description: Prove that torch computes correctly on every GPU of a host
version_added: 0.1.0
description:
  - Runs each environment's own Python and compares what torch computes on every GPU with float64 references computed on the CPU.
  - Level V(static) needs neither GPU nor driver. It imports torch and its companions, compares their versions with what is
    expected, and compares the GPU architectures that torch was compiled for with what the host's GPUs need.
  - Level V(quick) does that and, on every GPU, runs a kernel through the driver alone, without torch, then torch's own
    kernels. Which of the two fails tells a broken driver from a wrong torch.
  - Level V(full) adds what takes seconds to a minute, FP8 products, a step of an optimizer, the companions' own kernels, the
    bandwidth between host and GPU, C(torch.compile), a pattern in 90 % of the memory that is free, and with several GPUs
    copies between every two of them and an all-reduce of NCCL.
  - Level V(stress) adds a burn of O(burn_seconds) on all GPUs at once.
  - An environment's Python never runs as root. It runs isolated (C(-I)) as the account O(environments[].user), with a clean
    environment, in a private directory, in a session of its own, and is killed with everything it started at O(time_limit), or
    when a step on a GPU takes longer than O(gpu_limit). GPUs that were not proven by then are proven without the one that hung.
  - So what the host sets for everybody, such as C(CUDA_VISIBLE_DEVICES) or C(LD_LIBRARY_PATH) in C(/etc/environment), is no part of the
    proof. M(gpufleet.workstation.gpu_info) shows it as C(runtime.breaking), and the plan warns of it.
  - V(passed) means that every check of every GPU ran and passed. What could not run is V(not_run), never V(passed).
  - Changes nothing on the host and leaves nothing behind, apart from the verdict itself where O(stamp=true).
  - Only one proof of root's runs on a host at a time. A call waits up to 15 minutes for another one, such as that of the host's own
    timer (role P(gpufleet.workstation.gpu_compliance#role)).
options:
  environments:
    description:
      - The environments to prove, one after the other.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the environment, for the result.
        type: str
        required: true
      python:
        description:
          - Path of the environment's Python. A symbolic link in its directory, such as C(current), is followed once at the start.
        type: path
        required: true
      user:
        description:
          - Account that runs the environment's Python.
          - Without it, or with V(root), that is the account V(gpufleet) where it exists, else V(nobody).
          - Where the task itself does not run as root it must be the account of the task, which is the default there.
        type: str
      expect:
        description: What must be installed. What is left out is imported at most, not compared.
        type: dict
        suboptions:
          torch:
            description:
              - Version of torch as C(torch.__version__) gives it, for example V(2.9.1+cu128).
              - Without a local version (V(2.9.1)) every build of that version passes, but a CPU-only build never does.
            type: str
          companions:
            description:
              - Companion packages that must be importable, with their versions as values.
              - One that carries a local version for another CUDA tag than torch's fails.
            type: dict
      sm:
        description: What the GPUs of this host need, as O(sm), for this environment.
        type: list
        elements: str
  python:
    description:
      - Path of one Python to prove, in place of O(environments).
    type: path
  level:
    description: How much is proven. Each level contains the ones before it.
    type: str
    choices: [static, quick, full, stress]
    default: quick
  sm:
    description:
      - The architectures of this host's GPUs, for example V(sm_120). Torch must contain machine code that runs on each; PTX
        does not count.
      - From level V(quick) on the default is what the driver shows. At level V(static) the check C(torch.arch) is V(not_run)
        without it.
    type: list
    elements: str
    default: []
  gpus:
    description:
      - PCI addresses of the GPUs to prove, for example V(0000:01:00.0). Without it, all.
      - A GPU that is named here and that CUDA does not show is a failure. So is, without this option, one that the kernel
        module serves and CUDA does not show, and one that passed on this host before (O(stamp)) and is gone.
    type: list
    elements: str
  when_busy:
    description:
      - What to do about a GPU on which other processes compute. With V(skip) its checks are V(not_run); with V(run) they run
        beside that work, and need up to about 1 GiB of the GPU's memory.
      - C(gpu.memory), which would take the memory that the others need, and C(gpu.bandwidth), which they would slow down, are
        V(not_run) on such a GPU with V(run) too.
      - A desktop and services that only watch the GPU do not count. An MPS server and processes of other containers do.
    type: str
    choices: [skip, run]
    default: skip
  time_limit:
    description:
      - Seconds for each environment. Whatever still runs then is killed, and its check has failed.
      - The default is 300, from level V(full) on 600, and at level V(stress) O(burn_seconds) more.
      - A process that hangs inside the driver cannot be killed; it is reported within 5 more seconds.
    type: int
  gpu_limit:
    description:
      - Seconds for each step on a GPU. One that takes longer is a failure C(hung), and its process is killed.
      - Once a GPU has hung it is left alone for the rest of the task, and steps on the others get 15 s.
      - The burn may take O(burn_seconds) and C(torch.compile), most of which is work of the CPU, 60 s longer.
    type: int
    default: 60
    version_added: 0.4.0
  burn_seconds:
    description: Seconds for which level V(stress) loads the GPUs.
    type: int
    default: 60
    version_added: 0.4.0
  stamp:
    description:
      - Keep the verdict of each environment on the host, in C(/var/lib/gpufleet/proof/<name>.json), with everything that it holds
        for, release, driver, boot, GPUs and time. Only root can do that, and only for a release of this collection's environments.
      - What was kept before is deleted before the proof starts, so that one that dies leaves nothing. Never in check mode.
      - The GPUs that passed are remembered in C(/var/lib/gpufleet/gpus.json). One that is gone later is missing, for this module and for
        M(gpufleet.workstation.gpu_info). Where O(gpus) names those that count, what is gone is forgotten.
      - A stamp is no change of the host.
      - With V(false) none is written, but a failure deletes the one that is there, in which it is no longer believed.
    type: bool
    default: false
    version_added: 0.4.0
  max_age:
    description:
      - Hours. A verdict that was kept (O(stamp)) and is younger than this is returned as it is, where it V(passed) at O(level) or above and
        release, environment variables, driver, boot, GPUs with their MIG instances and compute modes, O(environments[].expect) and
        O(environments[].user) are still the same, and at level V(stress) its burn took O(burn_seconds) or longer. Nothing of the
        environment is executed then.
      - Whether the release's files are intact is not looked at; M(gpufleet.workstation.gpu_info) does that.
      - V(0) proves anew.
      - What the driver logged since (Xids) is not looked at here; M(gpufleet.workstation.plan) does, and plans a new proof.
    type: int
    default: 0
    version_added: 0.4.0
  fail_on_verdict:
    description:
      - Whether the task fails when the verdict is V(failed). It never fails because of V(not_run).
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Proving is the same in check mode; no stamp is deleted or written.
  diff_mode:
    support: none
    description: Nothing is changed.
  platform:
    support: full
    platforms: linux
    description: Linux hosts with Python 3.9 or newer.
extends_documentation_fragment:
  - gpufleet.workstation.failures
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.gpu_info
"""

EXAMPLES = r"""
- name: Prove the environment that everybody uses
  gpufleet.workstation.cuda_verify:
    environments:
      - name: base
        python: /opt/gpufleet/envs/base/current/bin/python
        expect:
          torch: 2.9.1+cu128
          companions:
            torchvision: 0.24.1
            torchaudio: 2.9.1
  register: proof

- name: Prove one interpreter on the first GPU, and go on whatever comes of it
  gpufleet.workstation.cuda_verify:
    python: /home/ada/venv/bin/python
    gpus: ["0000:01:00.0"]
    fail_on_verdict: false
  become: true
  become_user: ada

- name: Prove a new workstation under load for ten minutes
  gpufleet.workstation.cuda_verify:
    python: /opt/gpufleet/envs/base/current/bin/python
    level: stress
    burn_seconds: 600

- name: Keep the verdict, and prove only where the one that is kept says nothing of the host any more
  gpufleet.workstation.cuda_verify:
    environments:
      - name: base
        python: /opt/gpufleet/envs/base/current/bin/python
    stamp: true
    max_age: 168
  become: true

- name: Check without a GPU that this torch has code for an RTX 5070
  gpufleet.workstation.cuda_verify:
    python: /srv/image/venv/bin/python
    level: static
    sm: [sm_120]
"""

RETURN = r"""
verdict:
  description:
    - V(failed) where any check failed, V(passed) where all checks of all environments passed, else V(not_run).
  returned: success or verdict failed
  type: str
  sample: passed
level:
  description: The level that was asked for.
  returned: success or verdict failed
  type: str
  sample: quick
environments:
  description: One entry for each environment, in the order given.
  returned: success or verdict failed
  type: list
  elements: dict
  contains:
    name:
      description: Name of the environment; the path of the Python where O(python) was given.
      type: str
    python:
      description: Path of the Python, as given.
      type: str
    user:
      description: The account that ran it; null where there was none.
      type: str
    verdict:
      description: The verdict of this environment, V(passed), V(failed) or V(not_run).
      type: str
    level:
      description: The level that was asked for.
      type: str
    proven:
      description:
        - The highest level at which everything passed; null where not even V(static) did.
        - On a host without a GPU, O(level=quick) gives the verdict V(not_run) and this says V(static).
      type: str
    stamped:
      description:
        - Whether the verdict is one that was kept, see O(max_age). Then RV(environments[].user), all checks and the companions are
          empty, and of torch there is only the version.
      type: bool
    proven_at:
      description: When the proof began, by the host's clock, in UTC. What the driver logs from then on is news.
      type: str
      sample: "2026-11-22T19:00:00Z"
    reason:
      description: The first failure, else the first check that did not run, in one sentence. Empty when passed.
      type: str
    remedy:
      description: What to do about it.
      type: str
    torch:
      description: The torch that was imported; null where none was.
      type: dict
      contains:
        version:
          description: C(torch.__version__).
          type: str
        distribution_version:
          description: Version in the package's metadata, which lacks the CUDA tag when it came from PyPI.
          type: str
        cuda:
          description: The CUDA version that it was built for; null for a CPU-only build.
          type: str
        arch_flags:
          description: The architectures that it was compiled for.
          type: list
          elements: str
    companions:
      description: Versions of the companions that were imported, by name.
      type: dict
    ms:
      description: Wall time in milliseconds.
      type: int
    checks:
      description:
        - The checks of the environment and the host. Static ones are
          C(python.start) (the interpreter starts as the account),
          C(torch.import) (torch is installed and its libraries load),
          C(torch.origin) (it comes from the environment itself),
          C(torch.libraries) (so do the libraries of CUDA that it loaded),
          C(torch.version) (it is the expected build),
          C(torch.cuda) (it is built for CUDA, and for the CUDA of its tag),
          C(torch.arch) (it has machine code for every GPU),
          C(torch.cpu) (a product on the CPU is exact),
          C(companion.NAME) (the companion can be imported, works on the CPU and belongs to this torch).
        - From level V(quick) on follow
          C(driver.init) (libcuda loads and starts),
          C(driver.gpus) (CUDA shows every GPU),
          C(driver.end) (the driver's process ended by itself),
          C(torch.devices) (torch starts CUDA).
        - From level V(full) on, and with more than one GPU,
          C(gpus.peer) (copies between every two GPUs are unchanged, with and without peer access) and
          C(gpus.all_reduce) (NCCL's sums over all GPUs that passed are exact, one process for each GPU; multicast inside NVSwitch
          is left alone), then
          C(torch.compile) (a compiled function is right, on the first GPU of compute capability 7.0 or higher; where the compiler or
          Python's headers are missing it is V(not_run)).
        - Always last is C(python.end) (the environment's process ended by itself).
      type: list
      elements: dict
      contains: &check
        id:
          description: The check.
          type: str
        status:
          description: V(passed), V(failed) or V(not_run).
          type: str
        evidence:
          description: What was seen, or why the check did not run, in one sentence.
          type: str
        code:
          description:
            - Stable name of the cause of a failure, null for a check that passed. C(cuda_) and a number is an error of CUDA, for
              example V(cuda_209) (no code for this GPU) or V(cuda_803) (loaded and installed driver differ).
          type: str
        values:
          description: The numbers behind the evidence.
          type: dict
        ms:
          description: Wall time in milliseconds; null for what was not timed.
          type: float
        remedy:
          description: What to do; null for a check that passed.
          type: str
    gpus:
      description: One entry for each GPU, in PCI order. Empty at level V(static) and where the driver shows none.
      type: list
      elements: dict
      contains:
        pci_address:
          description: PCI address.
          type: str
          sample: "0000:01:00.0"
        uuid:
          description: UUID.
          type: str
        name:
          description: Name that the driver gives it.
          type: str
        sm:
          description: Its architecture.
          type: str
          sample: sm_120
        verdict:
          description: The verdict of this GPU.
          type: str
        checks:
          description:
            - At level V(quick)
              C(gpu.driver_kernel) (a kernel compiled and run by the driver, without torch),
              C(gpu.identity) (torch sees this GPU under the same name and architecture),
              C(gpu.copy) (4 MiB to the GPU and back are unchanged),
              C(gpu.elementwise) and C(gpu.reduction) (torch's own kernels, float32),
              C(gpu.matmul_fp32) (TF32 off), C(gpu.matmul_fp16) (compute capability 5.3 or higher), C(gpu.matmul_bf16) and
              C(gpu.matmul_tf32) (both 8.0 or higher),
              C(gpu.conv2d) (cuDNN, forward and backward).
            - From level V(full) on also
              C(gpu.matmul_fp8) (e4m3, compute capability 8.9 or higher),
              C(gpu.optimizer_step) (AdamW changes every weight by what it must),
              C(gpu.torchvision_nms) and C(gpu.torchaudio_lfilter) (where the companion is expected),
              C(gpu.bandwidth) (pinned memory reaches 60 % of what the PCI Express link carries at the generation and with the lanes
              that NVML shows under load; not run where NVML shows none),
              C(gpu.memory) (90 % of the free memory keeps a pattern that depends on the address, and its complement),
              C(gpu.hardware) (NVML reported no Xid and no uncorrectable error of the memory meanwhile; not run where it cannot tell).
            - At level V(stress) also C(gpu.burn) (every product of the burn has the bits of the first one). Its C(values) tell
              C(products), C(tflop_s), C(temperature_c) and C(power_w) (the highest), and C(throttled) (why clocks were lowered).
            - Every result must be finite and within an error bound that follows from the arithmetic of its type.
          type: list
          elements: dict
          contains: *check
"""

import contextlib
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.sysfs import pci_address
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge, stamp

LONGEST = 24 * 3600
PATIENCE = 900.0  # seconds that another proof gets to end


def problem_with(parameters: dict) -> str | None:
    """Say what is wrong with the values that the argument specification cannot judge."""
    for name in ("time_limit", "gpu_limit", "burn_seconds"):
        if parameters[name] is not None and not 1 <= parameters[name] <= LONGEST:
            return f"{name} is {parameters[name]} s; it must be from 1 to {LONGEST}"
    if parameters["max_age"] < 0:
        return f"max_age is {parameters['max_age']} hours; it must be 0 or more"
    if parameters["stamp"] and os.geteuid() != 0:
        return "stamp: only root can keep a verdict; use become, or leave it out"
    if parameters["level"] == "stress" and (parameters["time_limit"] or LONGEST) <= parameters["burn_seconds"]:
        return f"time_limit is {parameters['time_limit']} s; the burn alone takes {parameters['burn_seconds']} s"
    environments = parameters["environments"] or []
    for sm in [*parameters["sm"], *(sm for environment in environments for sm in environment["sm"] or [])]:
        try:
            judge.capability(sm)
        except ValueError as error:
            return f"sm: {error}"
    for address in parameters["gpus"] or []:
        if pci_address(address) is None:
            return f"gpus: '{address}' is no PCI address such as 0000:01:00.0"
    return None


def _prove(environments: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Prove what no stamp covers. Where stamps cover everything, a third of the time would go into loading what proves."""
    from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner

    return runner.prove(environments, **options)


def main() -> None:
    """Run the module."""
    expect = {"torch": {"type": "str"}, "companions": {"type": "dict"}}
    module = AnsibleModule(
        argument_spec={
            "environments": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "python": {"type": "path", "required": True},
                    "user": {"type": "str"},
                    "expect": {"type": "dict", "options": expect},
                    "sm": {"type": "list", "elements": "str"},
                },
            },
            "python": {"type": "path"},
            "level": {"type": "str", "choices": list(judge.LEVELS), "default": "quick"},
            "sm": {"type": "list", "elements": "str", "default": []},
            "gpus": {"type": "list", "elements": "str"},
            "when_busy": {"type": "str", "choices": ["skip", "run"], "default": "skip"},
            "time_limit": {"type": "int"},
            "gpu_limit": {"type": "int", "default": 60},
            "burn_seconds": {"type": "int", "default": 60},
            "stamp": {"type": "bool", "default": False},
            "max_age": {"type": "int", "default": 0},
            "fail_on_verdict": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("environments", "python")],
        required_one_of=[("environments", "python")],
        supports_check_mode=True,
    )
    parameters = module.params
    problem = problem_with(parameters)
    if problem:
        module.fail_json(msg=f"cuda_verify: {problem}.")
    python = parameters["python"]
    environments = [{"name": python, "python": python}] if python else parameters["environments"]
    addresses = parameters["gpus"]
    options = {
        "level": parameters["level"],
        "sm": parameters["sm"],
        "gpus": None if addresses is None else [str(pci_address(address)) for address in addresses],
        "when_busy": parameters["when_busy"],
        "time_limit": parameters["time_limit"],
        "gpu_limit": parameters["gpu_limit"],
        "burn_seconds": parameters["burn_seconds"],
    }
    keep = parameters["stamp"] and not module.check_mode
    alone = stamp.alone(Host(), PATIENCE) if os.geteuid() == 0 else contextlib.nullcontext()
    try:
        with alone:
            result = stamp.prove(
                _prove,
                environments,
                options,
                keep,
                parameters["max_age"],
                module.warn,
                doubt=os.geteuid() == 0 and not module.check_mode,
            )
    except stamp.NotAlone as error:
        module.fail_json(msg=f"cuda_verify: nothing was proven: {error}. Run again when it has ended.")
    except OSError as error:
        module.fail_json(
            msg=f"cuda_verify: the stamp of an earlier proof cannot be deleted, so nothing was proven: {error}."
        )
    if result["verdict"] == "failed" and parameters["fail_on_verdict"]:
        bad = next(environment for environment in result["environments"] if environment["verdict"] == "failed")
        module.fail_json(msg=f"{bad['name']} is not proven. {bad['reason']}. What to do: {bad['remedy']}", **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
