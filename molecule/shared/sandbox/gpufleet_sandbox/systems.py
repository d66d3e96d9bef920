# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a container look like another system: commands that the simulator plays, package sources, release files."""

from __future__ import annotations

from typing import Any

from . import tls
from .images import play_script
from .native import compile_library
from .settings import Settings

AUTHORITY = "etc/gpufleet-sandbox/ca.pem"
PRELOADED = "/usr/lib/gpufleet-sandbox/libuname.so"
PLAYED = {
    "deb": ("lsinitramfs", "update-grub", "grub-set-default", "mokutil"),
    "rpm": ("dracut", "lsinitrd", "grubby", "mokutil"),
}
EL_REPOSITORY = """\
[{name}]
name={title} (SIMULATED by the gpufleet sandbox)
baseurl=http://$sandbox/{path}/
enabled=1
gpgcheck=1
gpgkey=http://$sandbox/nvidia/repository.asc
"""


APT_SOURCES = """\
Types: deb
URIs: {server}/{archive}
Suites: {suite}
Components: {components}
Signed-By: {key}
"""
ARCHIVE_KEY = "/usr/share/keyrings/gpufleet-sandbox-archive.asc"
DNF_CONF = """\
[main]
gpgcheck=1
installonly_limit=3
clean_requirements_on_remove=True
best=True
skip_if_unavailable=False
"""


def of(settings: Settings, persona: dict[str, Any]) -> dict[str, Any]:
    """The system that a host stands in for; empty where it is what its image is."""
    return settings.fleet["systems"][persona["system"]] if "system" in persona else {}


def packages(settings: Settings, persona: dict[str, Any]) -> list[str]:
    """What a host gets installed at its first boot."""
    system = of(settings, persona)
    if not system:
        return []
    found = [*system["base"], *persona.get("packages", [])]
    for kernel in persona["kernels"]:
        release = kernel["release"]
        if system["packages"] == "rpm":
            release = release.removesuffix(".x86_64")
            found += [f"kernel-{release}", *([f"kernel-devel-{release}"] if kernel.get("headers") else [])]
        else:
            found += [f"linux-image-{release}", *([f"linux-headers-{release}"] if kernel.get("headers") else [])]
    return found


def nvidia_folder(persona: dict[str, Any]) -> str:
    """The folder of NVIDIA's repository that belongs to a host's system."""
    return persona.get("nvidia", persona["image"])


def proxy_variables(settings: Settings, name: str) -> dict[str, Any]:
    """Inventory variables of a host behind the proxy: by name, over HTTPS, with an authority that only the variables tell of."""
    if not settings.behind_proxy(name):
        return {}
    url, base = settings.proxy_url, f"https://{tls.NAME}"
    return {
        "gpufleet_proxy": {"http": url, "https": url, "ca_file": f"/{AUTHORITY}"},
        "nvidia_driver_repository_url": f"{base}/nvidia/{nvidia_folder(settings.personas[name])}/x86_64/",
        "torch_env_index_base_url": f"{base}/stand-in",
        "torch_env_package_index_url": f"{base}/packages",
    }


def files(settings: Settings, persona: dict[str, Any]) -> dict[str, tuple[bytes, int]]:
    """Files to lay over the image, beside those that every host gets: path -> (content, mode)."""
    found: dict[str, tuple[bytes, int]] = {}
    kernels = persona["kernels"]
    if kernels and kernels[0]["release"] != "@running":
        library = compile_library("uname.c", "libuname.so", "", 0)
        found[PRELOADED.lstrip("/")] = (library, 0o755)
        found["etc/ld.so.preload"] = (f"{PRELOADED}\n".encode(), 0o644)
    if persona.get("proxy"):
        tls.certificate(settings)
        found[AUTHORITY] = (tls.authority(settings).read_bytes(), 0o644)
    system = of(settings, persona)
    if not system:
        return found
    for name in PLAYED[system["packages"]]:
        found[f"usr/bin/{name}"] = (play_script(name), 0o755)
    if system["packages"] == "deb":
        words = {key: system[key] for key in ("archive", "suite", "components")}
        text = APT_SOURCES.format(server=settings.server_url, key=ARCHIVE_KEY, **words)
        found[f"etc/apt/sources.list.d/{system['archive']}.sources"] = (text.encode(), 0o644)
        found["etc/apt/sources.list"] = (b"# The archive is simulated: see sources.list.d.\n", 0o644)
        key = (settings.served / "nvidia/repository.asc").read_bytes()
        found[ARCHIVE_KEY.lstrip("/")] = (key, 0o644)
    else:
        name = system["os_release"]["PRETTY_NAME"]
        for path in ("etc/redhat-release", "etc/system-release"):
            found[path] = (f"{name}\n".encode(), 0o644)
        found["etc/ld.so.conf.d/lib64.conf"] = (b"/usr/lib64\n", 0o644)
        found["usr/libexec/platform-python"] = (b'#!/bin/sh\nexec /usr/bin/python3 "$@"\n', 0o755)
        found["etc/dnf/dnf.conf"] = (DNF_CONF.encode(), 0o644)
        found["etc/dnf/plugins/local.conf"] = (b"[main]\nenabled = false\n", 0o644)
        found["etc/dnf/vars/releasever"] = (f"{system['os_release']['VERSION_ID'].partition('.')[0]}\n".encode(), 0o644)
        found["etc/dnf/vars/sandbox"] = (f"{settings.server_address}\n".encode(), 0o644)
        text = EL_REPOSITORY.format(
            name="baseos", title=f"{system['os_release']['NAME']} - BaseOS", path=system["archive"]
        )
        found["etc/yum.repos.d/baseos.repo"] = (text.encode(), 0o644)
    return found
