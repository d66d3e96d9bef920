# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the sandbox keeps things, and what it is called. Several checkouts share the cache; each has its own state."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

SANDBOX = Path(__file__).resolve().parents[1]
CHECKOUT = SANDBOX.parents[2]
# Several fleets can stand beside each other on one machine: each has a name, and a range of addresses that follows from it.
FLEET = os.environ.get("GPUFLEET_FLEET", "")
PREFIX = f"gpufleet-{FLEET}-" if FLEET else "gpufleet-"
NETWORK = f"{PREFIX}net"
SERVER = f"{PREFIX}index"
# Hosts behind the proxy have a network of their own, and no route out of it.
INNER_NETWORK = f"{PREFIX}inner"
PROXY = f"{PREFIX}proxy"
LABEL = f"gpufleet.sandbox{'.' if FLEET else ''}{FLEET}"


class SandboxError(Exception):
    """Something that a person has to know and can do something about."""


def _subnet() -> ipaddress.IPv4Network:
    """The range that was asked for, else the fleet's own one below 10.213."""
    third = 128 + int(hashlib.sha256(FLEET.encode()).hexdigest(), 16) % 127 if FLEET else 77
    return ipaddress.IPv4Network(os.environ.get("GPUFLEET_SUBNET") or f"10.213.{third}.0/24")


@dataclass(frozen=True)
class Settings:
    """Paths and addresses of one sandbox."""

    checkout: Path = CHECKOUT
    cache: Path = field(default_factory=lambda: Path(os.environ.get("GPUFLEET_CACHE") or "/var/cache/gpufleet"))
    subnet: ipaddress.IPv4Network = field(default_factory=_subnet)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]{0,12}", FLEET):
            raise SandboxError(f"GPUFLEET_FLEET={FLEET}: a fleet's name has up to 12 lower case letters and digits.")

    @property
    def state(self) -> Path:
        """What belongs to this checkout's fleet: keys, inventory. Git ignores it."""
        return self.checkout / ".state" / ("-".join(filter(None, ("sandbox", FLEET))))

    @property
    def lock(self) -> Path:
        """Held by whoever changes this fleet. What all fleets share (images, repositories, index) has locks of its own."""
        return self.cache / f"lock{'-' * bool(FLEET)}{FLEET}"

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

    @property
    def inner_subnet(self) -> ipaddress.IPv4Network:
        """The range of the network behind the proxy: one below the fleet's in the second number."""
        return ipaddress.IPv4Network((int(self.subnet.network_address) - (1 << 16), self.subnet.prefixlen))

    def behind_proxy(self, name: str) -> bool:
        """Whether a host's only way out is the proxy."""
        return bool(self.personas[name].get("proxy"))

    @property
    def proxy_url(self) -> str:
        """The proxy, as hosts behind it reach it."""
        return f"http://{self.inner_subnet[2]}:3128"

    def address(self, name: str) -> str:
        """The fixed address of a host."""
        subnet = self.inner_subnet if self.behind_proxy(name) else self.subnet
        return str(subnet[11 + list(self.personas).index(name)])

    def select(self, names: list[str] | None, group: str | None = None) -> list[str]:
        """The hosts that were asked for by name or group, or the default ones, in the order of personas.yml."""
        unknown = sorted(set(names or []) - set(self.personas))
        if unknown:
            raise SandboxError(f"there is no host {', '.join(unknown)}. The sandbox has: {', '.join(self.personas)}.")
        if names or group:
            wanted = {name for name, persona in self.personas.items() if group and persona.get("group") == group}
            if group and not wanted:
                raise SandboxError(f"no host is in a group {group!r}.")
            return [name for name in self.personas if name in wanted or name in (names or [])]
        return [name for name, persona in self.personas.items() if persona.get("default", True)]


def load_yaml(name: str) -> Any:
    """Read one of the sandbox's data files."""
    return yaml.safe_load((SANDBOX / name).read_text())


def container_name(host: str) -> str:
    """The container that plays a host."""
    return f"{PREFIX}{host}"
