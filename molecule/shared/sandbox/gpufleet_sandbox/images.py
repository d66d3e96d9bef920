# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images: minimal Debian root file systems with systemd as PID 1, sshd and the simulated commands in place."""

from __future__ import annotations

import io
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .machine import Mirrors, apt_proxy, digest, local_certificates
from .podman import podman
from .settings import SANDBOX, SandboxError, Settings
from .shell import locked, run, step

PACKAGES = (
    "systemd systemd-sysv dbus libpam-systemd openssh-server python3 sudo cron kmod ca-certificates procps iproute2"
    " libpam-modules passwd"
)
# Name -> Debian release, and what the image has beside PACKAGES. The hosts for the driver's systems are made of the last three.
RECIPES = {
    "debian12": ("bookworm", ""),
    "debian13": ("trixie", ""),
    "apt12": ("bookworm", " dpkg-repack unattended-upgrades"),
    "apt13": ("trixie", " dpkg-repack unattended-upgrades sudo-rs"),
    "el": ("trixie", " dnf rpm dnf-plugins-core"),
}
# Commands that would reach the kernel of the machine below: the sandbox plays them.
PLAYED = ("modprobe", "rmmod", "insmod", "lsmod")
SIMULATOR = "/usr/lib/gpufleet-sandbox/simulator.py"
# What would change the machine below, draw on a console that is not there, or hold apt's locks at odd moments.
MASKED = (
    "systemd-sysctl.service systemd-modules-load.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount"
    " systemd-udevd.service systemd-udev-trigger.service console-getty.service getty@tty1.service"
    " sys-kernel-debug.mount sys-kernel-tracing.mount systemd-pstore.service"
    " apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer"
)
CUSTOMIZE = rf"""
set -eu
root=$1
chroot "$root" useradd --create-home --shell /bin/bash admin
for name in {" ".join(PLAYED)}; do
  chroot "$root" dpkg -L kmod | grep "bin/$name\$" | while read -r path; do
    chroot "$root" dpkg-divert --quiet --local --rename --divert "$path.kmod" --add "$path"
    printf '#!/bin/sh\nexec /usr/bin/python3 -I {SIMULATOR} %s "$@"\n' "$name" > "$root$path"
    chmod 0755 "$root$path"
  done
done
chroot "$root" dpkg-divert --quiet --local --rename --add /usr/sbin/update-initramfs
printf '#!/bin/sh\nexec /usr/bin/python3 -I {SIMULATOR} update-initramfs "$@"\n' > "$root/usr/sbin/update-initramfs"
chmod 0755 "$root/usr/sbin/update-initramfs"
for unit in {MASKED}; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
rm -f "$root"/etc/ssh/ssh_host_*
: > "$root/etc/machine-id"
chroot "$root" update-ca-certificates > /dev/null 2>&1
"""


@dataclass(frozen=True)
class Image:
    """A root file system: what it is made of decides its name."""

    name: str
    tag: str
    archive: Path


def image(settings: Settings, name: str, mirrors: Mirrors) -> Image:
    """Name the image that today's recipe and today's mirrors lead to."""
    certificates = [path.read_bytes() for path in local_certificates()]
    suite, more = RECIPES[name]
    key = digest(PACKAGES + more, CUSTOMIZE, *mirrors.lines(suite), *certificates)
    return Image(name, f"localhost/gpufleet-{name}:{key}", settings.cache / f"rootfs/{name}-{key}.tar")


def have(wanted: Image) -> bool:
    """Whether podman has the image."""
    return bool(podman("images", "--quiet", wanted.tag).strip())


def make(wanted: Image, mirrors: Mirrors) -> None:
    """Build the root file system, unless an earlier run left it, and hand it to podman."""
    with locked(wanted.archive.parent / f"{wanted.name}.lock"):
        if not wanted.archive.exists():
            with step(f"building a {wanted.name} root file system"):
                build(wanted, mirrors)
        if not have(wanted):
            with step(f"importing {wanted.name} into podman"):
                podman("import", "--quiet", str(wanted.archive), wanted.tag)


def prune(made: dict[str, Image]) -> None:
    """Drop earlier versions of these images; those that a container still uses stay."""
    for wanted in made.values():
        for path in wanted.archive.parent.glob(f"{wanted.name}-*.tar"):
            if path != wanted.archive:
                path.unlink()
        for tag in podman("images", "--format", "{{.Repository}}:{{.Tag}}").split():
            if tag.startswith(f"localhost/gpufleet-{wanted.name}:") and tag != wanted.tag:
                podman("rmi", tag, check=False)


def build(wanted: Image, mirrors: Mirrors) -> None:
    """Run mmdebstrap with this machine's mirrors."""
    wanted.archive.parent.mkdir(parents=True, exist_ok=True)
    partial = wanted.archive.with_suffix(".partial.tar")
    hook = wanted.archive.with_suffix(".hook")
    hook.write_text(f"#!/bin/sh{CUSTOMIZE}")
    hook.chmod(0o755)
    suite, more = RECIPES[wanted.name]
    options = [
        "--mode=root",
        "--variant=minbase",
        "--skip=cleanup/apt/lists",
        f"--include={(PACKAGES + more).replace(' ', ',')}",
    ]
    folder = "/usr/local/share/ca-certificates"
    for path in local_certificates():
        options.append(f"--customize-hook=copy-in {shlex.quote(str(path))} {folder}")
    options.append(f'--customize-hook={shlex.quote(str(hook))} "$1"')
    if apt_proxy():
        options.append(f'--aptopt=Acquire::http::Proxy "{apt_proxy()}"')
    try:
        run("mmdebstrap", *options, suite, partial, *mirrors.lines(suite))
    except SandboxError as error:
        raise SandboxError(f"{error}\nIs Debian's mirror reachable (apt-get update)?") from error
    finally:
        hook.unlink()
    partial.replace(wanted.archive)


def simulator_files() -> dict[str, bytes]:
    """The files below rootfs/, which go into every container: changing them needs no new image."""
    root = SANDBOX / "rootfs"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def play_script(name: str) -> bytes:
    """A command that the simulator plays."""
    return f'#!/bin/sh\nexec /usr/bin/python3 -I {SIMULATOR} {name} "$@"\n'.encode()


def archive(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A tar of root's files: path -> (content, mode). The same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        folders: set[str] = set()
        for path, (content, mode) in sorted(files.items()):
            for parent in reversed(Path(path).parents[:-1]):
                if str(parent) not in folders:
                    folders.add(str(parent))
                    entry = tarfile.TarInfo(str(parent))
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
