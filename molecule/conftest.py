"""Fixtures of the scenarios' tests: hosts of the simulated fleet, and plays run on them as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra
import yaml
from testinfra.host import Host

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "molecule/shared"))

from checks.hosts import INVENTORY, named  # noqa: E402  # found through the line above

os.environ["PATH"] = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"  # testinfra asks ansible-inventory
os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")


@pytest.fixture(scope="session")
def host_named() -> Callable[[str], Host]:
    """Return a function that gives the host of a name, with root's rights."""
    groups = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))["all"]["children"]
    with_password = set(groups.get("sudo_password", {"hosts": {}})["hosts"])

    def get(name: str) -> Host:
        if name in with_password:  # testinfra cannot give sudo a password
            return named(name)
        return testinfra.get_host(f"ansible://{name}?ansible_inventory={INVENTORY}", sudo=True)

    return get


@pytest.fixture(scope="session")
def play() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a playbook of the collection as a user would, and gives what they would see."""

    def run(playbook: str, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "COLUMNS": "160",
        }
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(INVENTORY), *options, str(ROOT / playbook)]
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )

    return run
