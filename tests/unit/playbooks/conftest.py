"""A fleet of folders: the real playbooks, actions and callback, played on hosts that a test describes in files.

Only what would touch a host is replaced: `gpu_info` and `cuda_verify` answer from the host's folder, the roles leave a mark
there, and a connection plugin breaks when the folder says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import COMMAND_PATH
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import stamp
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, takeaway
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.startup import (
    command_file,
    environment_files,
)

ROOT = Path(__file__).resolve().parents[3]
ANSIBLE = Path(sys.executable).parent / "ansible-playbook"

# A module knows its host by the interpreter that runs it: every host has a link of its own.
_ANSWER = """#!/usr/bin/python
# WANT_JSON
import json, os, shutil, sys
folder = os.path.dirname(sys.executable)
served = any(os.path.exists(os.path.join(folder, role)) for role in ("torch_env", "runtime_env"))
name = "{after}" if served else "{before}"
shutil.copy(sys.argv[1], os.path.join(folder, "asked-" + name))
with open(os.path.join(folder, name)) as file:
    print(json.dumps(json.load(file)))
"""
_RELEASE = """#!/usr/bin/python
# WANT_JSON
import json, os, sys
with open(sys.argv[1]) as file:
    given = json.load(file)
with open(os.path.join(os.path.dirname(sys.executable), "releases.log"), "a") as log:
    words = given["name"], given["state"], given["root"], given.get("release")
    log.write(" ".join(word for word in words if word) + "\\n")
print(json.dumps({"changed": True}))
"""
_MARK = """
- name: Serve
  ansible.builtin.command:
    argv: [sh, "{folder}/serve", "{{{{ ansible_python_interpreter | dirname }}}}", {role}, "{arguments}"]
  register: served
- name: Wait
  ansible.builtin.set_fact:
    {role}_pending: "{{{{ served.stdout | from_json if served.stdout else {{}} }}}}"
"""
_SERVE = """
cd "$1"
touch "$2"
[ -z "$3" ] || echo "$3" >> releases.log
[ ! -e "$2.waits" ] || cat "$2.waits"
[ ! -e "$2.kills" ] || touch dead
[ ! -e "$2.fails" ] || { echo "no space left" >&2; exit 1; }
"""
_CONNECTION = """
import os
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = '''
name: breakable
short_description: A local connection that can break
description: [A local connection that can break.]
author: [The gpufleet.workstation maintainers (@gpufleet)]
options:
  folder: {description: [Folder of the host.], type: str, vars: [{name: ansible_host}]}
extends_documentation_fragment: [connection_pipelining]
'''

class Connection(Local):
    transport = "gpufleet.workstation.breakable"

    def exec_command(self, *args, **kwargs):
        if os.path.exists(os.path.join(self.get_option("folder"), "dead")):
            raise AnsibleConnectionFailure("the cable is cut")
        return super().exec_command(*args, **kwargs)
"""

OBSERVATION: dict[str, Any] = {
    "schema": 1,
    "observed_at": "2026-11-22T19:00:00Z",
    "os": {
        "id": "debian",
        "version_id": "12",
        "arch": "x86_64",
        "virtualization": "wsl",
        "uid": 0,
        "init": "systemd",
        "boot_id": "boot-1",
    },
    "gpus": [
        {
            "pci_address": "0000:01:00.0",
            "pci_device_id": "2f04",
            "name": "NVIDIA GeForce RTX 5070",
            "uuid": "GPU-1",
            "health": {"mig": "not_applicable", "compute_mode": "default"},
        }
    ],
    "driver": {"userspace_version": "580.95.05", "loaded_version": "580.95.05", "branch": 580, "packages": []},
    "environments": [],
}


@dataclass
class Run:
    """What a user sees of a run."""

    status: int
    text: str

    @property
    def table(self) -> str:
        """The last table."""
        return self.text[self.text.rfind("\nhost ") :]


class Fleet:
    """Hosts as folders, and runs on them."""

    def __init__(self, folder: Path, collections: Path) -> None:
        self.folder, self.collections = folder, collections
        self.hosts: dict[str, dict[str, Any]] = {}

    def add(self, name: str, ready: bool = True, proof: str = "passed", **variables: Any) -> Path:
        """Add a host: a WSL2 machine whose driver is good; unless it is ready its variables are not set yet."""
        home = self.folder / name
        home.mkdir()
        (home / "python").symlink_to(sys.executable)
        self.hosts[name] = {
            "ansible_connection": "gpufleet.workstation.breakable",
            "ansible_host": str(home),
            "ansible_python_interpreter": str(home / "python"),
            **variables,
        }
        self.observe(name, "after.json", ready=True)
        self.observe(name, "before.json", ready=ready)
        proven = {"passed": "quick", "not_run": "static"}.get(proof)
        environment = {
            "name": "base", "verdict": proof, "proven": proven, "reason": "as the test asks", "remedy": "ask otherwise",
            "gpus": [], "checks": [],
        }  # fmt: skip
        self.write(name, "proof.json", {"verdict": proof, "level": "quick", "environments": [environment]})
        return home

    def observe(self, name: str, file: str, ready: bool, **changes: Any) -> None:
        """Say what gpu_info sees of a host."""
        observation = {**OBSERVATION, **changes}
        if ready:
            observation = {**observation, **self._provisioned(observation, self.hosts[name])}
        self.write(name, file, {"changed": False, "observation": observation})

    def stamp(self, name: str, file: str, *environments: str, at: str = "2026-11-17T14:02:00Z") -> None:
        """Have gpu_info see the stamps that cuda_verify left when it proved environments of a host as it is seen."""
        answer = json.loads((self.folder / name / file).read_text(encoding="utf-8"))
        seen = answer["observation"]
        for environment in seen["environments"]:
            if environment["name"] in environments:
                gpus = [{**gpu, "verdict": "passed", "checks": []} for gpu in seen["gpus"]]
                proven = {
                    "name": environment["name"], "verdict": "passed", "level": "quick", "proven": "quick", "reason": "",
                    "remedy": "", "torch": None, "checks": [], "gpus": gpus,
                }  # fmt: skip
                now = {
                    "release": environment["current"],
                    "release_digest": environment["stamp_digest"],
                    "variables": seen["files"][f"{environment['path']}/runtime.env"]["sha256"],
                    "driver": seen["driver"]["loaded_version"],
                    "flavor": None,
                    "userspace": seen["driver"]["userspace_version"],
                    "boot_id": seen["os"]["boot_id"],
                    "sm": ["sm_120"],
                    "wish": stamp.wish(
                        {
                            "expect": {
                                "torch": "2.9.1+cu128",
                                "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"},
                            },
                            "user": environment["owner"],
                        }
                    ),
                    "burn_seconds": 60,
                    "gpus": [{**gpu, **stamp.settings(gpu["health"])} for gpu in seen["gpus"]],
                    "at": at,
                }
                environment["verdict"] = stamp.document(proven, now)
        self.write(name, file, answer)

    def write(self, name: str, file: str, content: dict[str, Any]) -> None:
        (self.folder / name / file).write_text(json.dumps(content), encoding="utf-8")

    def marks(self, name: str) -> set[str]:
        """Which roles ran on a host."""
        roles = ("nvidia_driver", "torch_env", "runtime_env")
        return {role for role in roles if (self.folder / name / role).exists()}

    def asked(self, name: str, file: str) -> dict[str, Any]:
        """The options that the module which answers from a file was last given on a host."""
        return json.loads((self.folder / name / f"asked-{file}").read_text(encoding="utf-8"))

    def was_asked(self, name: str, file: str) -> bool:
        """Whether the module which answers from a file was executed on a host."""
        return (self.folder / name / f"asked-{file}").exists()

    def releases(self, name: str) -> list[str]:
        """What venv_release was asked on a host: name, state, root and release of each call; and the driver's generation."""
        log = self.folder / name / "releases.log"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    def play(self, *options: str, playbook: str = "provision_gpu", callback: bool = True) -> Run:
        """Play one of the collection's playbooks as a user would."""
        inventory = self.folder / "inventory.json"
        inventory.write_text(
            json.dumps({"all": {"vars": {"ansible_become": False}, "hosts": self.hosts}}), encoding="utf-8"
        )
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(self.collections / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "COLUMNS": "160",
            **({"ANSIBLE_CALLBACKS_ENABLED": "gpufleet.workstation.fleet_summary"} if callback else {}),
        }
        command = [str(ANSIBLE), "-i", str(inventory), *options]
        command += [name if "/" in name else f"gpufleet.workstation.{name}" for name in playbook.split()]
        done = subprocess.run(
            command,
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr)

    def _locked(self, observation: dict[str, Any], environments: list[dict[str, Any]]) -> dict[str, str]:
        """Put a lock of every environment beside the inventory, as an earlier run would have; return their texts."""
        texts = {}
        for item in resolve(observation, {"environments": environments})["environments"]:
            text = lock.Lock(
                lock.inputs(item["spec"]), (lock.Pinned("torch", "2.9.1+cu128", ("0" * 64,), True),)
            ).render()
            path = self.folder / ".gpufleet/locks" / lock.file_name(item["spec"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            texts[item["name"]] = text
        return texts

    def _provisioned(self, observation: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """What the host shows once everything that the planner wants is there."""
        environments = variables.get("torch_env_environments", [{"name": "base"}])
        locks = self._locked(observation, environments)
        plan = resolve(observation, {"environments": environments, "locks": locks})
        assert plan["feasible"], plan["refusals"]
        seen: dict[str, Any] = {"environments": [], "files": {}, "runtime": {}}
        for item in plan["environments"]:
            release_stamp = {
                "spec": item["spec"], "spec_digest": item["spec_digest"], "owner": "root", "group": "root",
                "proof": {"sm": item["sm"]},
            }  # fmt: skip
            seen["environments"].append(
                {
                    "name": item["name"], "path": f"{item['root']}/{item['name']}", "current": "r2", "previous": "r1",
                    "releases": [{"id": "r2", "stamped": True}], "interpreter_ok": True, "owner": "root", "group": "root",
                    "torch": {"version": item["spec"]["torch"]}, "integrity": {"status": "ok"}, "stamp": release_stamp,
                    "stamp_digest": "0" * 64,
                }
            )  # fmt: skip
        managed = {row["path"]: (int(row["mode"], 8), row["content"]) for row in plan["runtime"]["files"]}
        for item in plan["environments"]:
            managed.update(environment_files(item["root"], item["name"]))
            managed.update(takeaway.managed(item, lock.parse(locks[item["name"]])))
            managed[COMMAND_PATH] = command_file(item["root"])
        for path, (mode, content) in managed.items():
            digest = hashlib.sha256(content.encode()).hexdigest()
            seen["files"][path] = {
                "sha256": digest, "mode": f"{mode:04o}", "owner": "root", "group": "root", "type": "file"
            }  # fmt: skip
        seen["runtime"]["etc_environment"] = {"block": "TOKENIZERS_PARALLELISM=false\n", "values": {}}
        return seen


def copy_collection(base: Path) -> Path:
    """Copy the collection below a folder, with a connection that can break; return its root."""
    home = base / "ansible_collections/gpufleet/workstation"
    home.mkdir(parents=True)
    for name in ("plugins", "playbooks", "roles"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("galaxy.yml", "meta"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, home / name)
    (home / "plugins/connection").mkdir()
    (home / "plugins/connection/breakable.py").write_text(_CONNECTION, encoding="utf-8")
    (base / "ansible.cfg").write_text("[defaults]\n", encoding="utf-8")
    return home


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the collection whose modules and roles are played."""
    base = tmp_path_factory.mktemp("collections")
    home = copy_collection(base)
    modules = home / "plugins/modules"
    (modules / "gpu_info.py").write_text(_ANSWER.format(before="before.json", after="after.json"), encoding="utf-8")
    (modules / "cuda_verify.py").write_text(_ANSWER.format(before="proof.json", after="proof.json"), encoding="utf-8")
    (modules / "venv_release.py").write_text(_RELEASE, encoding="utf-8")
    (base / "serve").write_text(_SERVE, encoding="utf-8")
    for role in ("nvidia_driver", "torch_env", "runtime_env", "gpu_compliance"):
        shutil.rmtree(home / "roles" / role / "tasks")
        (home / "roles" / role / "tasks").mkdir()
        text = "---" + _MARK.format(folder=base, role=role, arguments="")
        (home / "roles" / role / "tasks/main.yml").write_text(text, encoding="utf-8")
    text = "---" + _MARK.format(
        folder=base, role="nvidia_driver", arguments="driver generation {{ nvidia_driver_generation }}"
    )
    (home / "roles/nvidia_driver/tasks/generation.yml").write_text(text, encoding="utf-8")
    return base


@pytest.fixture
def fleet(tmp_path: Path, collections: Path) -> Fleet:
    return Fleet(tmp_path, collections)
