# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the sandbox keeps things, and what it is called. Several checkouts share the cache; each has its own state."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

SANDBOX = Path(__file__).resolve().parents[1]
CHECKOUT = SANDBOX.parents[2]
NETWORK = "gpufleet-net"
SERVER = "gpufleet-index"
LABEL = "gpufleet.sandbox"


class SandboxError(Exception):
    """Something that a person has to know and can do something about."""


@dataclass(frozen=True)
class Settings:
    """Paths and addresses of one sandbox."""

    checkout: Path = CHECKOUT
    cache: Path = field(default_factory=lambda: Path(os.environ.get("GPUFLEET_CACHE") or "/var/cache/gpufleet"))
    subnet: ipaddress.IPv4Network = field(
        default_factory=lambda: ipaddress.IPv4Network(os.environ.get("GPUFLEET_SUBNET") or "10.213.77.0/24")
    )

    @property
    def state(self) -> Path:
        """What belongs to this checkout's fleet: keys, inventory. Git ignores it."""
        return self.checkout / ".state/sandbox"

    @property
    def served(self) -> Path:
        """What the fleet's server shows."""
        return self.cache / "www"

    @property
    def inventory(self) -> Path:
        """The Ansible inventory of the fleet."""
        return self.state / "inventory.yml"

    @property
    def server_address(self) -> str:
        """Address of the server with the package repository and the torch index."""
        return str(self.subnet[2])

    @property
    def server_url(self) -> str:
        """Where hosts and controller reach the server."""
        return f"http://{self.server_address}"

    @cached_property
    def fleet(self) -> dict[str, Any]:
        """personas.yml."""
        return load_yaml("personas.yml")

    @property
    def personas(self) -> dict[str, dict[str, Any]]:
        """Every host that the sandbox knows, by name."""
        return self.fleet["hosts"]

    def address(self, name: str) -> str:
        """The fixed address of a host."""
        return str(self.subnet[11 + list(self.personas).index(name)])

    def select(self, names: list[str] | None) -> list[str]:
        """The hosts that were asked for, or the default ones, in the order of personas.yml."""
        unknown = sorted(set(names or []) - set(self.personas))
        if unknown:
            raise SandboxError(f"there is no host {', '.join(unknown)}. The sandbox has: {', '.join(self.personas)}.")
        if names:
            return [name for name in self.personas if name in names]
        return [name for name, persona in self.personas.items() if persona.get("default", True)]


def load_yaml(name: str) -> Any:
    """Read one of the sandbox's data files."""
    return yaml.safe_load((SANDBOX / name).read_text())


def container_name(host: str) -> str:
    """The container that plays a host."""
    return f"gpufleet-{host}"
