"""A made-up host: a tree of files under a temporary root, built up by a test step by step."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import manifest

KERNEL = "6.1.0-31-amd64"


def elf_module(fields: dict[str, str], filler: bytes = b"\x90" * 4096) -> bytes:
    """Return a minimal 64-bit ELF file whose .modinfo section holds the fields, as a kernel module's does."""
    modinfo = b"".join(f"{name}={value}".encode() + b"\0" for name, value in fields.items())
    names = b"\0.text\0.modinfo\0.shstrtab\0"
    parts = [(1, filler), (7, modinfo), (16, names)]
    offset, table, body = 64, [bytes(64)], b""
    for name, content in parts:
        table.append(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, len(content), 0, 0, 1, 0))
        body += content
        offset += len(content)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, offset, 0, 64, 0, 0, 64, len(table), len(table) - 1)
    return header + body + b"".join(table)


class Tree:
    """Builds the files of a host; every method returns the tree, so that calls can be chained."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: dict[str, str] = {}
        self.asked: list[list[str]] = []

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def folder(self, path: str) -> Tree:
        self.path(path).mkdir(parents=True, exist_ok=True)
        return self

    def file(self, path: str, content: str | bytes = "", mode: int = 0o644) -> Tree:
        self.folder(os.path.dirname(path))
        self.path(path).write_bytes(content.encode() if isinstance(content, str) else content)
        self.path(path).chmod(mode)
        return self

    def link(self, path: str, target: str) -> Tree:
        self.folder(os.path.dirname(path))
        self.path(path).symlink_to(target)
        return self

    def debian(self, version: str = "12", codename: str = "bookworm") -> Tree:
        """A plain Debian machine with one kernel, systemd and no GPU."""
        self.file("/usr/lib/os-release", f'ID=debian\nVERSION_ID="{version}"\nVERSION_CODENAME={codename}\n')
        self.link("/etc/os-release", "../usr/lib/os-release")
        self.file("/proc/sys/kernel/osrelease", f"{KERNEL}\n")
        self.file("/proc/sys/kernel/random/boot_id", "0b1fbb4c-0f6e-4f3c-9d43-58a0d2f1a111\n")
        self.file("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse2 avx2\n")
        self.file("/proc/modules", "")
        self.kernel(KERNEL).folder("/boot/grub").file("/etc/default/grub", "GRUB_DEFAULT=0\n")
        self.folder("/run/systemd/system").folder("/sys/bus/pci/devices").folder("/etc/apt/sources.list.d")
        self.file("/usr/bin/python3.11", "", 0o755).file("/var/lib/dpkg/status", "")
        return self

    def kernel(self, release: str, headers: bool = True) -> Tree:
        self.file(f"/boot/vmlinuz-{release}")
        if headers:
            self.file(f"/usr/src/linux-headers-{release}/Makefile")
            self.link(f"/lib/modules/{release}/build", f"/usr/src/linux-headers-{release}")
        return self

    def gpu(
        self, address: str = "0000:01:00.0", device: str = "2f04", driver: str | None = None, **attributes: str
    ) -> Tree:
        """An entry of the PCI bus."""
        folder = f"/sys/bus/pci/devices/{address}"
        values = {
            "vendor": "0x10de",
            "class": "0x030000",
            "device": f"0x{device}",
            "subsystem_vendor": "0x10de",
            "subsystem_device": "0x205e",
            "current_link_width": "16",
            "max_link_width": "16",
            "current_link_speed": "2.5 GT/s PCIe",
            "max_link_speed": "32.0 GT/s PCIe",
        }
        for name, value in {**values, **attributes}.items():
            self.file(f"{folder}/{name}", f"{value}\n")
        if driver:
            self.link(f"{folder}/driver", f"../../../bus/pci/drivers/{driver}")
        return self

    def loaded(self, version: str = "580.95.05", flavor: str = "open") -> Tree:
        """What a loaded driver shows under /proc and /sys."""
        words = "Open Kernel Module for x86_64" if flavor == "open" else "x86_64 Kernel Module"
        text = f"NVRM version: NVIDIA UNIX {words}  {version}  Release Build  (dvs-builder@U22)  Tue Sep 23 2025\nGCC version:  gcc 12\n"
        self.file("/proc/driver/nvidia/version", text).file("/dev/kmsg").file("/proc/uptime", "86400.00 1.00\n")
        return self.file("/sys/module/nvidia/version", f"{version}\n").file("/sys/module/nvidia/refcnt", "0\n")

    def userspace(self, version: str = "580.95.05", folder: str = "/usr/lib/x86_64-linux-gnu") -> Tree:
        self.file(f"{folder}/libcuda.so.{version}")
        return self.link(f"{folder}/libcuda.so.1", f"libcuda.so.{version}")

    def dpkg(self, *packages: tuple[str, str, str, str]) -> Tree:
        """A status file with (name, status, version, maintainer) stanzas between others."""
        stanza = "Package: {0}\nStatus: {1}\nPriority: optional\nMaintainer: {3}\nArchitecture: amd64\nVersion: {2}\nDescription: x\n y\n\n"
        other = "Package: bash\nStatus: install ok installed\nVersion: 5.2\nDescription: nvidia\n Package: libcuda1\n\n"
        text = other + "".join(stanza.format(*package) for package in packages) + other.replace("bash", "zsh")
        return self.file("/var/lib/dpkg/status", text)

    def process(self, pid: int, command: str, *files: str) -> Tree:
        self.file(f"/proc/{pid}/comm", f"{command}\n").folder(f"/proc/{pid}/fd")
        for number, target in enumerate(files):
            self.link(f"/proc/{pid}/fd/{number}", target)
        return self

    def environment(self, name: str = "base", release: str = "2.9.1-cu128-1a2b3c4d", **changes: Any) -> Tree:
        """An environment with one stamped release that is in use."""
        base = f"/opt/gpufleet/envs/{name}"
        folder = f"{base}/releases/{release}"
        site = f"{folder}/lib/python3.11/site-packages"
        self.link(f"{folder}/bin/python", "/usr/bin/python3.11")
        self.file(f"{folder}/pyvenv.cfg", "home = /usr/bin\nimplementation = CPython\nversion_info = 3.11.2\n")
        self.file(f"{site}/torch/version.py", "__version__ = '2.9.1+cu128'\ncuda: Optional[str] = '12.8'\n")
        self.file(f"{site}/torch/__pycache__/version.cpython-311.pyc", b"\0" * 100)
        self.file(f"{site}/torch-2.9.1+cu128.dist-info/METADATA", "Name: torch\n")
        self.file(f"{site}/torchvision/version.py", "__version__ = '0.24.1+cu128'\n")
        self.file(f"{site}/torchvision-0.24.1.dist-info/METADATA")
        self.file(f"{site}/torchaudio-2.9.1.dist-info/METADATA")
        self.link(f"{base}/current", f"releases/{release}")
        text = manifest.encode(manifest.render(manifest.scan(str(self.path(folder)))))
        stamp = {
            "schema": 1,
            "id": release,
            "torch": {"arch_flags": ["sm_70", "sm_120"]},
            "manifest_sha256": hashlib.sha256(text).hexdigest(),
            **changes,
        }
        self.file(f"{base}/stamps/{release}.manifest", text)
        return self.file(f"{base}/stamps/{release}.json", json.dumps(stamp))

    def run(self, argv: list[str], time_limit: float) -> str:
        self.asked.append(list(argv))
        if argv[0] not in self.commands:
            raise Unreadable(f"{argv[0]} is not installed")
        return self.commands[argv[0]]

    def host(self, **changes: Any) -> Host:
        """The host that the tree describes; libraries are absent unless a test brings them."""

        def no_library(names: Any) -> Any:
            raise Unreadable(f"{names[0]}: cannot open shared object file")

        usual = {
            "root": str(self.root),
            "machine": "x86_64",
            "release": KERNEL,
            "uid": 0,
            "run": self.run,
            "load_library": no_library,
        }
        return Host(**{**usual, **changes})


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty made-up host."""
    root = tmp_path / "root"
    root.mkdir()
    return Tree(root)


@pytest.fixture
def debian(tree: Tree) -> Tree:
    """A made-up Debian 12 machine without a GPU."""
    return tree.debian()


@pytest.fixture
def module_file() -> Any:
    """Makes the bytes of a kernel module."""
    return elf_module
