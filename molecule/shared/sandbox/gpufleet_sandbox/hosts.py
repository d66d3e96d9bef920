# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns a persona into what its container holds, and into its lines of the inventory."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import yaml

from . import systems
from .images import archive, simulator_files
from .settings import Settings
from .shell import run, write_if_changed

USER = "admin"
KEYS_FOLDER = "/etc/ssh/authorized_keys.d"
SSHD = f"""\
# The sandbox: key login for {USER} only.
AuthorizedKeysFile {KEYS_FOLDER}/%u .ssh/authorized_keys
PasswordAuthentication no
UseDNS no
"""
LANES = 16


def gpu_uuid(host: str, address: str) -> str:
    """A UUID that stays the same however often the host is made."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{host}.gpufleet.test/{address}')}"


def hardware(settings: Settings, name: str) -> dict[str, Any]:
    """host.json: what the simulator lets the host pretend."""
    persona = settings.personas[name]
    gpus, others = [], list(settings.fleet["other_devices"])
    for position, slot in enumerate(persona["gpus"]):
        model = settings.fleet["models"][slot["model"]]
        link = {"current_link_width": LANES, "max_link_width": LANES, "current_link_speed": "2.5 GT/s PCIe"}
        identity = {"uuid": gpu_uuid(name, slot["address"]), "class": "030000", "boot_vga": position == 0}
        gpus.append({**model, **link, **identity, "address": slot["address"]})
        # A graphics card's sound function is NVIDIA's as well, and no GPU.
        sound = {"device": "22e8", "class": "040300", "subsystem": model["subsystem"]}
        if not persona.get("wsl"):
            others.append({**sound, "address": slot["address"][:-1] + "1"})
    return {
        "name": name,
        "gpus": gpus,
        "other_devices": [] if persona.get("wsl") else others,
        "kernels": persona["kernels"],
        "nouveau": persona.get("nouveau", {"present": False}),
        "wsl": persona.get("wsl"),
        "packages": systems.packages(settings, persona),
        "proxy": settings.proxy_url if settings.behind_proxy(name) else "",
        "sudo_rs": persona.get("sudo_rs", False),
    }


def os_fields(settings: Settings, persona: dict[str, Any]) -> dict[str, str]:
    """What a stand-in says that it is; nothing where the host is what its image is."""
    return persona.get("os_release") or systems.of(settings, persona).get("os_release") or {}


def os_release(fields: dict[str, str]) -> str:
    """The text of /etc/os-release."""
    return "".join(f'{key}="{value}"\n' for key, value in fields.items())


def contents(settings: Settings, name: str, extra: dict[str, tuple[bytes, int]]) -> bytes:
    """Everything that is laid over the base image to make this host, as a tar."""
    persona = settings.personas[name]
    identity = settings.state / "hostkeys" / name
    files = {path: (data, 0o755 if data.startswith(b"#!") else 0o644) for path, data in simulator_files().items()}
    password = persona.get("sudo") == "password"
    rule = f"{USER} ALL=(ALL:ALL) {'' if password else 'NOPASSWD:'}ALL\n"
    files |= {
        "etc/gpufleet-sandbox/host.json": (json.dumps(hardware(settings, name), indent=1).encode(), 0o644),
        "etc/ssh/ssh_host_ed25519_key": (identity.read_bytes(), 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (Path(f"{identity}.pub").read_bytes(), 0o644),
        "etc/ssh/sshd_config.d/50-gpufleet-sandbox.conf": (SSHD.encode(), 0o644),
        f"{KEYS_FOLDER.lstrip('/')}/{USER}": (Path(f"{settings.state}/id_ed25519.pub").read_bytes(), 0o644),
        f"etc/sudoers.d/{USER}": (rule.encode(), 0o440),
    }
    described = os_fields(settings, persona)
    if described:
        files["etc/os-release"] = (os_release(described).encode(), 0o644)
    files |= systems.files(settings, persona)
    return archive(files | extra)


def ensure_keys(settings: Settings, names: list[str]) -> None:
    """Key pairs of the fleet's user and of every host, and the list of host keys that ssh checks against."""
    settings.state.mkdir(parents=True, exist_ok=True)
    (settings.state / "hostkeys").mkdir(mode=0o700, exist_ok=True)
    for path, comment in [
        (settings.state / "id_ed25519", "gpufleet sandbox"),
        *((settings.state / "hostkeys" / name, name) for name in names),
    ]:
        if not path.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
    known = []
    for name in settings.personas:
        public = settings.state / "hostkeys" / f"{name}.pub"
        if public.exists():
            known.append(f"{settings.address(name)},{name} {' '.join(public.read_text().split()[:2])}\n")
    write_if_changed(settings.state / "known_hosts", "".join(known))


def become_password(settings: Settings) -> str:
    """The password that sudo asks for on hosts that want one; made once."""
    path = settings.state / "become_password"
    if not path.exists():
        write_if_changed(path, f"{uuid.uuid4()}\n", mode=0o600)
    return path.read_text().strip()


def inventory(settings: Settings, names: list[str], real: bool) -> str:
    """The Ansible inventory of these hosts. Paths are absolute, and nothing is a template: other tools read it too."""
    state = settings.state
    groups: dict[str, dict[str, Any]] = {"expected_ready": {}, "expected_refused": {}, "sudo_password": {}, "wsl": {}}
    hosts: dict[str, Any] = {}
    for name in names:
        persona = settings.personas[name]
        kind = "real" if real and persona["torch"] == "real" else "stand-in"
        variables = {
            "ansible_host": settings.address(name),
            "torch_env_index_base_url": f"{settings.server_url}/{kind}",
            # The stand-ins have the versions of the real wheels, and other hashes: they need locks of their own.
            "gpufleet_state_dir": f"{state}/{kind}",
            "nvidia_driver_repository_url": f"{settings.server_url}/nvidia/{systems.nvidia_folder(persona)}/x86_64/",
            "gpufleet_note": persona["note"],
            **systems.proxy_variables(settings, name),
            **persona.get("variables", {}),
        }
        if (
            variables.get("nvidia_driver_source") == "distro"
        ):  # with this source the address would be that of the archive's mirror
            del variables["nvidia_driver_repository_url"]
        if persona.get("sudo") == "password":
            variables["ansible_become_password"] = become_password(settings)
            groups["sudo_password"][name] = None
        if persona.get("wsl"):
            groups["wsl"][name] = None
        hosts[name] = variables
        groups[f"expected_{persona['expected']}"][name] = None
    common = {
        "ansible_user": USER,
        "ansible_port": 22,
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": f"{state}/id_ed25519",
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={state}/known_hosts -o IdentitiesOnly=yes",
        "torch_env_package_index_url": f"{settings.server_url}/packages",
        "nvidia_driver_repository_key": f"{state}/nvidia-repository.asc",
        "gpu_proof_level": "static",
        "gpu_proof_required_level": "static",
    }
    tree = {
        "all": {
            "vars": common,
            "hosts": hosts,
            "children": {group: {"hosts": members} for group, members in groups.items() if members},
        }
    }
    header = "# Written by molecule/shared/sandbox/fleet. The simulated fleet that is up now.\n"
    return f"---\n{header}{yaml.safe_dump(tree, sort_keys=False, width=200)}"
