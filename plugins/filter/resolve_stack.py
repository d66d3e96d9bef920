# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``resolve_stack``: what would this host get?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: resolve_stack
short_description: Plan driver, torch and environments of a host from what is known of it
version_added: 0.1.0
description:
  - Decides which NVIDIA driver, which torch build and which Python a host gets, and lists what has to be done for it, or says
    why the host cannot have it and what would work instead.
  - A pure function on the controller. It reads no host; nothing but its input and the collection's knowledge base decides.
  - All GPUs of a host are planned together.
positional: desired
options:
  _input:
    description:
      - What is known of the host, as the RV(gpufleet.workstation.gpu_info#module:observation) of
        M(gpufleet.workstation.gpu_info).
      - A part of it will do. C(os) with C(id), C(version_id) and C(arch), and C(gpus) with a C(pci_device_id) each, answer what
        a fresh host with these GPUs would get. What is missing counts as not known, on a fresh host.
    type: dict
    required: true
  desired:
    description:
      - What is wanted. Every key is optional, a value V(auto) lets the plan choose.
      - What is asked for explicitly is never replaced. It is planned, or refused with the nearest that works.
    type: dict
    default: {}
    suboptions:
      driver:
        description: The driver, with the keys of the variables of P(gpufleet.workstation.nvidia_driver#role) after their prefix.
        type: dict
        suboptions:
          state:
            description: Whether the host has a driver.
            type: str
            choices: [present, absent]
            default: present
          minimum:
            description: The oldest driver that is good enough, a branch or a version. GPUs and torch builds raise it.
            type: str
            default: "550"
          branch:
            description: The driver branch, such as V(580).
            type: str
            default: auto
          flavor:
            description: Which kernel modules.
            type: str
            choices: [auto, open, proprietary]
            default: auto
          source:
            description: Whose packages, those of NVIDIA's repository or of the distribution's archive.
            type: str
            choices: [auto, nvidia, distro]
            default: auto
          package_set:
            description: Packages for computing alone, or for a desktop too.
            type: str
            choices: [auto, compute, desktop]
            default: auto
          repository_url:
            description: A mirror of NVIDIA's repository for this distribution and architecture.
            type: str
            default: ""
          repository_key:
            description: The ASCII-armoured public key that signs NVIDIA's repository or the mirror.
            type: str
            default: ""
          reboot_allowed:
            description: Whether a reboot is planned where one is needed; else it is pending.
            type: bool
            default: false
          downgrade_allowed:
            description: Whether an older branch may replace a newer one.
            type: bool
            default: false
          gpus_exclude:
            description: PCI addresses of GPUs that the host need not serve.
            type: list
            elements: str
            default: []
          branch_preferred:
            description: The newest branch up to this one that all GPUs of the host support. Excludes a branch.
            type: str
            default: ""
          accept_missing_gpus:
            description: Whether to plan although GPUs are not there any more that were there at the last change of the driver.
            type: bool
            default: false
          mok_password_set:
            description: Whether there is a password under which a key can be handed to the firmware (Secure Boot).
            type: bool
            default: false
      torch:
        description: The torch build of environments that name none.
        type: dict
        suboptions:
          version:
            description: The version, with or without its CUDA tag (V(2.9.1+cu128)).
            type: str
            default: 2.9.1
          cuda:
            description: The CUDA tag, such as V(cu128).
            type: str
            default: auto
          index_url:
            description: The exact index of torch's family.
            type: str
            default: ""
          index_base_url:
            description: The URL below which there is an index for each tag.
            type: str
            default: https://download.pytorch.org/whl
      python:
        description: The version of Python, such as V(3.12).
        type: str
        default: auto
      environments:
        description: The environments of the host.
        type: list
        elements: dict
        default:
          - name: base
        suboptions:
          name:
            description: The name.
            type: str
            required: true
          torch:
            description: As O(desired.torch.version).
            type: str
          cuda:
            description: As O(desired.torch.cuda).
            type: str
          python:
            description: As O(desired.python).
            type: str
          companions:
            description: Which companions of torch are installed, each in the one version that fits.
            type: list
            elements: str
            choices: [torchvision, torchaudio]
            default: [torchvision, torchaudio]
          requirements:
            description: Further requirements, names with versions.
            type: list
            elements: str
            default: []
          owner:
            description: The account that uses the environment.
            type: str
            default: root
          group:
            description: The group that may read it; V(root) means everybody.
            type: str
            default: root
          smoke:
            description: As O(desired.smoke), which it replaces.
            type: list
            elements: str
          switch_after:
            description: As O(desired.switch_after), which it replaces.
            type: str
            choices: [static, quick]
          variables:
            description: Environment variables of its processes, beside those of O(desired.runtime.variables).
            type: dict
      root:
        description: The directory of the environments.
        type: path
        default: /opt/gpufleet/envs
      package_index_url:
        description: The index of everything but torch's family.
        type: str
        default: ""
      mirror:
        description: Where the host fetches from instead of the two indexes; locks are made from the indexes all the same.
        type: dict
        suboptions:
          index_base_url:
            description: As O(desired.torch.index_base_url).
            type: str
            default: ""
          package_index_url:
            description: As O(desired.package_index_url).
            type: str
            default: ""
      keep:
        description: How many releases of an environment are kept.
        type: int
        default: 2
      smoke:
        description: A program and its arguments that have to succeed in a release before that one may serve.
        type: list
        elements: str
        default: []
      switch_after:
        description: The level of proof that a release has to pass before it may serve. Where it cannot be made, the switch is pending.
        type: str
        choices: [static, quick]
        default: static
      integrity:
        description: How gpu_info and venv_release compare releases with what was stamped.
        type: str
        choices: [sizes, hashes]
        default: sizes
      runtime:
        description: Environment variables.
        type: dict
        suboptions:
          state:
            description: Whether they are set.
            type: str
            choices: [present, absent]
            default: present
          scope:
            description: Who gets them, every process of the host or those of the environments only.
            type: str
            choices: [host, environment]
            default: host
          variables:
            description: Names and values.
            type: dict
            default:
              TOKENIZERS_PARALLELISM: "false"
      proof:
        description: How the host is proven; handed on in the plan.
        type: dict
        suboptions:
          level:
            description: What is tried.
            type: str
            choices: [static, quick, full, stress]
            default: quick
          required_level:
            description: What counts as ready.
            type: str
            choices: [static, quick, full, stress]
            default: quick
          time_limit:
            description: Seconds for each environment; V(0) leaves it to M(gpufleet.workstation.cuda_verify).
            type: int
            default: 0
          max_age:
            description: Hours for which the stamp of an earlier proof counts where nothing changed since.
            type: int
            default: 168
      steps:
        description: What a run may do. Without V(driver), environments are planned for the driver that is there now.
        type: list
        elements: str
        choices: [driver, torch, runtime, proof]
        default: [driver, torch, runtime, proof]
      knowledge:
        description:
          - Rows beside those of the knowledge base, for what is newer than it; in an inventory the variable C(gpufleet_knowledge).
          - Every row names its source, which the plan repeats. A bad row is an error that names its place.
        type: dict
        suboptions:
          torch:
            description:
              - Releases of torch by version. Each has C(source), C(python) (the first and the last version that it supports), C(indexes)
                and, where they are known, C(torchvision) and C(torchaudio).
              - C(indexes) holds for each CUDA tag the compute capabilities that the build has code for, by architecture (C(x86_64),
                C(aarch64)), and C(driver), the oldest one that will do, where the CUDA version is not known either.
            type: dict
            default: {}
          gpus:
            description:
              - GPUs by PCI device id, in quotes. Each has C(source), C(name), C(compute_capability) and, where they are known,
                C(first_driver) and C(modules) (V(open), V(proprietary) or V(both)).
            type: dict
            default: {}
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.plan
  - module: gpufleet.workstation.gpu_info
"""

EXAMPLES = r"""
- name: What would an RTX 5070 on Debian 13 get?
  ansible.builtin.debug:
    msg: "{{ host | gpufleet.workstation.resolve_stack }}"
  vars:
    host:
      os: {id: debian, version_id: "13", arch: x86_64}
      gpus:
        - pci_device_id: "2f04"

- name: Could it run torch 2.6.0+cu124? (No, it says, but 2.7.0+cu128)
  ansible.builtin.debug:
    msg: "{{ (host | gpufleet.workstation.resolve_stack(wanted)).refusals }}"
  vars:
    host:
      os: {id: debian, version_id: "13", arch: x86_64}
      gpus:
        - pci_device_id: "2f04"
    wanted:
      torch: {version: 2.6.0+cu124}

- name: Plan with a release and a GPU that are newer than the knowledge base
  ansible.builtin.debug:
    msg: "{{ host | gpufleet.workstation.resolve_stack({'torch': {'version': '2.16.0'}, 'knowledge': gpufleet_knowledge}) }}"
  vars:
    host:
      os: {id: debian, version_id: "13", arch: x86_64}
      gpus:
        - pci_device_id: "3a04"
    gpufleet_knowledge:
      torch:
        "2.16.0":
          source: https://github.com/pytorch/pytorch/blob/main/RELEASE.md, read 2026-12-20
          python: ["3.11", "3.15"]
          torchvision: "0.30.0"
          indexes:
            cu132: {x86_64: 7.5 8.0 8.6 9.0 10.0 12.0, aarch64: 8.0 9.0 10.0 11.0 12.0}
      gpus:
        "3a04":
          source: lspci and nvidia-smi on host lab-07, 2026-12-20
          name: GeForce RTX 6070
          compute_capability: "12.0"
"""

RETURN = r"""
_value:
  description: The plan. All keys are there in every plan.
  type: dict
  contains:
    feasible:
      description: Whether the host can have what is wanted.
      type: bool
    refusals:
      description: Why it cannot, each with C(code), C(gpu) (PCI address or none), C(reason) and C(remedy).
      type: list
      elements: dict
    gpus:
      description: The GPUs that are served, with their compute capability, C(sm), the code that C(runs_on) them and the first driver.
      type: list
      elements: dict
    driver:
      description: Branch, flavor, minimum version, source, packages, pin and repository of the driver, and its actions.
      type: dict
    torch:
      description: Version, build, index, companions and Python of the first environment.
      type: dict
    environments:
      description: What each environment is built from, with a digest of it, and its actions.
      type: list
      elements: dict
    runtime:
      description: The files that set environment variables, and their actions.
      type: dict
    actions:
      description: All actions in order; none on a host that has everything, none where something is refused.
      type: list
      elements: dict
    reasons:
      description: How the decision came about, one sentence each.
      type: list
      elements: str
    warnings:
      description: What a person should know, but what stops nothing.
      type: list
      elements: str
    pending:
      description: What waits, with C(what), C(why) and C(remedy).
      type: list
      elements: dict
    steps:
      description: What the run may do.
      type: list
      elements: str
    proof:
      description: O(desired.proof), completed.
      type: dict
"""

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleTemplatePluginError
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve


def resolve_stack(observation: Any, desired: Any = None) -> dict[str, Any]:
    """Return the plan of a host."""
    if not isinstance(observation, Mapping):
        raise AnsibleTemplatePluginError(
            f"resolve_stack takes the observation of a host, a mapping with os and gpus, not {type(observation).__name__}."
        )
    try:
        return resolve(_plain(observation), _plain(desired))
    except InvalidDesired as error:
        raise AnsibleTemplatePluginError(f"resolve_stack: {error}.") from None


def _plain(value: Any) -> Any:
    """Copy into Python's own types: templating hands over tagged strings and containers that template their items lazily."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return value


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"resolve_stack": resolve_stack}
