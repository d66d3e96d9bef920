# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two ways to a host of the test fleet: as root through podman, which needs no password, and over ssh like a person."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import testinfra
import yaml
from testinfra.host import Host

# Another fleet than the default one has a name, as in the sandbox's settings.py.
FLEET = os.environ.get("GPUFLEET_FLEET", "")
INVENTORY = Path(__file__).resolve().parents[3] / f".state/sandbox{'-' * bool(FLEET)}{FLEET}/inventory.yml"
CONTAINER_PREFIX = f"gpufleet-{FLEET}-" if FLEET else "gpufleet-"


def named(name: str) -> Host:
    """Return a host of the fleet, with root's rights."""
    return testinfra.get_host(f"podman://{CONTAINER_PREFIX}{name}")


def variables(host: Host) -> dict[str, Any]:
    """Return what the fleet's inventory says of a host."""
    backend = host.backend
    name = backend.name.removeprefix(CONTAINER_PREFIX) if hasattr(backend, "name") else backend.host
    everything = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))["all"]
    return {**everything["vars"], **everything["hosts"][name]}


def over_ssh(host: Host, command: str, user: str = "", typed: str = "") -> str:
    """Return what a command prints in an ssh session of its own; without a command, what is typed does at a terminal."""
    known = variables(host)
    arguments = ["ssh", "-o", "BatchMode=yes", *known["ansible_ssh_common_args"].split()]
    arguments += ["-i", known["ansible_ssh_private_key_file"], "-p", str(known["ansible_port"])]
    arguments += ["-l", user or known["ansible_user"], "-T" if command else "-tt", known["ansible_host"]]
    arguments += [command] if command else []
    result = subprocess.run(arguments, input=typed, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def fingerprint(host: Host) -> str:
    """Return what a run could have changed: packages, configuration, our folders, accounts."""
    paths = "/etc /opt /usr/local /var/lib/gpufleet"
    return host.check_output(
        f"find {paths} -type f -printf '%p %s %T@\\n' 2>/dev/null | sort | sha256sum; dpkg -l | sha256sum"
    )
