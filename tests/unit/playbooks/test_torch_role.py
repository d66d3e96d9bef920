# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environments' role on a stand-in host: the Python that a plan names comes before what is built with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

from .conftest import ANSIBLE, copy_collection

_PLAYED = """#!/usr/bin/python
# WANT_JSON
import json, os, sys
with open(sys.argv[1]) as file:
    given = json.load(file)
with open(os.path.join(os.path.dirname(sys.executable), "asked.log"), "a") as log:
    log.write("%s %s %s\\n" % ({name!r}, given["name"], os.environ.get("https_proxy", "directly")))
print(json.dumps({{"changed": True}}))
"""
_TASKS = {"ansible.builtin.package": "played_package", "gpufleet.workstation.venv_release": "played_release"}
_DRIVER = {
    "loaded_version": "580.105.08", "loaded_flavor": "open", "userspace_version": "580.105.08", "branch": 580, "flavor": "open",
}  # fmt: skip


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the collection in which the role's tasks are real and everything that they execute is played."""
    base = tmp_path_factory.mktemp("collections")
    home = copy_collection(base)
    tasks = home / "roles/torch_env/tasks/main.yml"
    text = tasks.read_text(encoding="utf-8")
    for real, played in _TASKS.items():
        assert f"{real}:" in text
        text = text.replace(f"{real}:", f"gpufleet.workstation.{played}:")
        (home / f"plugins/modules/{played}.py").write_text(_PLAYED.format(name=played), encoding="utf-8")
    tasks.write_text(text, encoding="utf-8")
    return base


def plan(*pythons: str, **desired: Any) -> dict[str, Any]:
    """What is planned for a host of Enterprise Linux 9 with an RTX 3090 and a driver."""
    observation = {
        "os": {
            "id": "rocky",
            "version_id": "9.6",
            "arch": "x86_64",
            "pythons": {version: f"/usr/bin/python{version}" for version in pythons},
        },
        "gpus": [{"pci_device_id": "2204", "pci_address": "0000:01:00.0"}],
        "driver": _DRIVER,
    }
    made = resolve(observation, {"steps": ["torch"], **desired})
    assert made["feasible"], made["refusals"]
    for environment in made["environments"]:
        environment["lock_file"] = None
    return made


def play(folder: Path, collections: Path, made: dict[str, Any], *options: str, **variables: Any) -> list[str]:
    """Hand the role a plan; return what the host was asked."""
    (folder / "python").symlink_to(shutil.which("python3", path=str(ANSIBLE.parent)) or "")
    role = {"name": "gpufleet.workstation.torch_env"}
    tasks = [{"ansible.builtin.include_role": role, "vars": {"torch_env_plan": made}}]
    host = {"ansible_connection": "local", "ansible_python_interpreter": str(folder / "python"), **variables}
    (folder / "play.yml").write_text(json.dumps([{"hosts": "ws", "gather_facts": False, "tasks": tasks}]))
    (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": {"ws": host}}}))
    done = subprocess.run(
        [str(ANSIBLE), "-i", "inventory.json", "play.yml", *options],
        env={
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "ANSIBLE_CONFIG": str(collections / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_HOME": str(folder / "ansible"),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = folder / "asked.log"
    return log.read_text().splitlines() if log.exists() else []


def test_the_distributions_newer_python_is_installed_once_and_first(tmp_path: Path, collections: Path) -> None:
    made = plan("3.9", environments=[{"name": "base"}, {"name": "vision"}])
    assert play(tmp_path, collections, made) == [
        "played_package python3.12 directly",
        "played_release base directly",
        "played_release vision directly",
    ]


def test_a_python_that_is_there_is_not_installed(tmp_path: Path, collections: Path) -> None:
    assert play(tmp_path, collections, plan("3.9", "3.12")) == ["played_release base directly"]


def test_the_package_comes_through_the_proxy(tmp_path: Path, collections: Path) -> None:
    asked = play(tmp_path, collections, plan("3.9"), gpufleet_proxy={"https": "http://proxy.example:3128"})
    assert asked[0] == "played_package python3.12 http://proxy.example:3128"


def test_a_dry_run_does_not_ask_for_a_build_with_a_python_that_it_did_not_install(
    tmp_path: Path, collections: Path
) -> None:
    made = plan("3.9", environments=[{"name": "base"}])
    assert made["environments"][0]["python_package"] == "python3.12"
    assert play(tmp_path, collections, made, "--check") == ["played_package python3.12 directly"]
