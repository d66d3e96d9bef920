#!/usr/bin/python3 -I
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container of the test fleet does not have, simulated: PCI GPUs, kernels, kernel modules, DKMS, the initramfs.

Installed in the images of the test fleet only. The first argument is the command to play (main() lists them);
/etc/gpufleet-sandbox/host.json says what hardware this host pretends to have.

The rules that a real host has and that a role can get wrong are kept:
- loaded modules are lost on a reboot; what loads then is decided by the initramfs as it was last rebuilt;
- nouveau binds its GPUs early unless the initramfs holds a block list, and nvidia cannot bind a GPU that nouveau has;
- open modules do not drive GPUs before Turing, proprietary ones do not drive Blackwell;
- a DKMS build needs the kernel's headers and can fail (marker file SIMULATE_DKMS_FAILURE in the kernel's module folder).
"""

from __future__ import annotations

import base64
import ctypes
import fnmatch
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import uuid
from pathlib import Path

ETC = Path("/etc/gpufleet-sandbox")
STATE = Path("/var/lib/gpufleet-sandbox")
PCI_DEVICES = STATE / "pci-devices"
PCI_DRIVERS = STATE / "pci-drivers"
SYS_MODULE = STATE / "sys-module"
PROC_DRIVER = STATE / "proc-driver"
FIRMWARE = STATE / "firmware"
DKMS_TREE = Path("/var/lib/dkms")
DKMS_MODULES = ("", "-modeset", "-drm", "-uvm", "-peermem")
"""What follows nvidia in the names of the driver's modules."""
DKMS_OPTIONS = (
    "-m",
    "--module",
    "-v",
    "--version",
    "-k",
    "--kernelver",
    "-a",
    "--arch",
    "-c",
    "--sourcetree",
    "--dkmstree",
    "-j",
)
# What the compiler said of 550.163.01 on Linux 6.12.107, where the kernel had got a new argument.
COMPILER = """\
make -j2 KERNEL_UNAME={kernel} modules
  CC [M]  {folder}/nvidia/nv-pci.o
{folder}/nvidia/nv-pci.c: In function 'nv_resize_pcie_bars':
{folder}/nvidia/nv-pci.c:212:9: error: too few arguments to function 'pci_resize_resource'
  212 |     r = pci_resize_resource(pci_dev, NV_GPU_BAR1, requested_size);
      |         ^~~~~~~~~~~~~~~~~~~
make[4]: *** [/usr/src/linux-headers-{kernel}/scripts/Makefile.build:249: {folder}/nvidia/nv-pci.o] Error 1
make[3]: *** [/usr/src/linux-headers-{kernel}/Makefile:1991: {folder}] Error 2
make: *** [Makefile:115: modules] Error 2
"""
NEEDS = {
    "nvidia_modeset": ("nvidia",),
    "nvidia_drm": ("nvidia_modeset",),
    "nvidia_uvm": ("nvidia",),
    "nvidia_peermem": ("nvidia",),
}
FIRST_TURING_ID = 0x1E00
FIRST_BLACKWELL_ID = 0x2900
MS_BIND = 4096
LABEL = "SIMULATED by the gpufleet sandbox"
# Ubuntu's persistence daemon has no [Install] section: udev starts it when a GPU appears. Here this link and we do.
STARTED_BY_UDEV = "/usr/lib/systemd/system/multi-user.target.wants/nvidia-persistenced.service"
EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
EFI_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
EFI_X509 = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
NVIDIA_MAJOR = 195
# For tests: while this file is there, loading modules makes no device nodes, as where udev's rule is missing.
MISSING_NODES = STATE / "SIMULATE_MISSING_NODES"
UBUNTU_SIGNER = "Canonical Ltd. Kernel Module Signing (SIMULATED)"


class Refused(Exception):
    """A simulated command fails; the text is what the real one would say."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def host() -> dict:
    """What this host pretends to be."""
    return json.loads((ETC / "host.json").read_text())


def running() -> str:
    """The release of the kernel that runs: the machine's, or the one that this host pretends to have booted."""
    return os.uname().release


def enterprise_linux() -> bool:
    """Whether this host stands in for RHEL or a rebuild of it."""
    return os.path.exists("/etc/redhat-release")


def initramfs_path(kernel: str) -> Path:
    """Where a kernel's initramfs is."""
    return Path(f"/boot/initramfs-{kernel}.img" if enterprise_linux() else f"/boot/initrd.img-{kernel}")


def kernels_in_boot() -> list[str]:
    """Releases of the kernels in /boot, the newest first."""
    found = (path.name.removeprefix("vmlinuz-") for path in Path("/boot").glob("vmlinuz-*"))

    def numbers(release: str) -> list[tuple[int, int, str]]:
        parts = re.findall(r"\d+|\D+", release)
        return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]

    return sorted(found, key=numbers, reverse=True)


def module_folder(kernel: str) -> Path:
    """Where a kernel's modules are."""
    return Path("/lib/modules") / kernel


# -- files of the simulated kernel ------------------------------------------------------------------------------------


def elf_module(fields: dict[str, str]) -> bytes:
    """A kernel module as far as modinfo and depmod are concerned: an ELF object with a .modinfo section."""
    modinfo = b"".join(f"{key}={value}\0".encode() for key, value in fields.items())
    names = b"\0.modinfo\0.symtab\0.strtab\0.shstrtab\0"
    symbols = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    strings = b"\0"
    bodies = [modinfo, symbols, strings, names]
    header_size, section_size = 64, 64
    offsets, position = [], header_size
    for body in bodies:
        position += -position % 8
        offsets.append(position)
        position += len(body)
    table = position + -position % 8

    def section(
        name: bytes, kind: int, index: int, flags: int = 0, link: int = 0, info: int = 0, entry: int = 0
    ) -> bytes:
        at = names.index(b"\0" + name + b"\0") + 1
        return struct.pack("<IIQQQQIIQQ", at, kind, flags, 0, offsets[index], len(bodies[index]), link, info, 8, entry)

    sections = [
        bytes(section_size),
        section(b".modinfo", 1, 0, flags=2),
        section(b".symtab", 2, 1, link=3, info=1, entry=24),
        section(b".strtab", 3, 2),
        section(b".shstrtab", 3, 3),
    ]
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, header_size, 0, 0, section_size, len(sections), 4
    )
    out = bytearray(header)
    for offset, body in zip(offsets, bodies, strict=True):
        out += bytes(offset - len(out)) + body
    out += bytes(table - len(out))
    return bytes(out) + b"".join(sections)


def signed(module: bytes, signer: str) -> bytes:
    """A module with the trailer of a signature, in the old form that names its signer in clear. No cryptography is in it."""
    name, key, signature = signer.encode(), b"gpufleet", b"SIMULATED"
    lengths = struct.pack(">BBBBB3xI", 1, 4, 1, len(name), len(key), len(signature))
    return module + name + key + signature + lengths + b"~Module signature appended~\n"


def signer_of(module: bytes) -> str:
    """Who signed a module; empty where nobody did."""
    magic = b"~Module signature appended~\n"
    if not module.endswith(magic):
        return ""
    end = len(module) - len(magic)
    _algorithm, _hash, _kind, name, key, signature = struct.unpack(">BBBBB3xI", module[end - 12 : end])
    start = end - 12 - signature - key - name
    return module[start : start + name].decode()


def modinfo_fields(name: str, kernel: str, flavor: str, version: str) -> dict[str, str]:
    """What modinfo shows of one module."""
    fields = {"description": LABEL, "license": "NVIDIA" if flavor == "proprietary" else "Dual MIT/GPL"}
    if version:
        fields["version"] = version
    if name in ("nvidia", "nouveau"):
        fields["alias"] = "pci:v000010DEd*sv*sd*bc03sc00i00*"
    needs = ",".join(need.replace("_", "-") for need in NEEDS.get(name.replace("-", "_"), ()))
    return fields | {
        "depends": needs,
        "name": name.replace("-", "_"),
        "vermagic": f"{kernel} SMP preempt mod_unload modversions ",
    }


def depmod(kernel: str) -> None:
    """Bring the real index of a kernel's modules up to date, so that modinfo finds modules by name."""
    subprocess.run(["/sbin/depmod", kernel], check=True)


def add_kernel(release: str) -> None:
    """Make the files that a kernel package would install."""
    folder = module_folder(release)
    nouveau = folder / "kernel/drivers/gpu/drm/nouveau"
    nouveau.mkdir(parents=True, exist_ok=True)
    (nouveau / "nouveau.ko").write_bytes(elf_module(modinfo_fields("nouveau", release, "open", "")))
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (folder / name).write_text("")
    for name in ("vmlinuz", "config", "System.map"):
        Path(f"/boot/{name}-{release}").write_text(f"{LABEL}\n")
    depmod(release)


def headers_folder(release: str) -> Path:
    """Where a kernel's headers are."""
    return Path(f"/usr/src/kernels/{release}" if enterprise_linux() else f"/usr/src/linux-headers-{release}")


def add_headers(release: str) -> None:
    """Make the files that a package with a kernel's headers would install."""
    headers, folder = headers_folder(release), module_folder(release)
    (headers / "include/config").mkdir(parents=True, exist_ok=True)
    (headers / "include/config/kernel.release").write_text(f"{release}\n")
    (headers / "Makefile").write_text(f"# {LABEL}\n")
    folder.mkdir(parents=True, exist_ok=True)
    for link in ("build", "source"):
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(headers)


def kernel(arguments: list[str]) -> None:
    """kernel add-kernel|add-headers|remove-kernel|remove-headers RELEASE: what scripts of kernel packages do."""
    what, release = arguments
    if what == "add-kernel":
        add_kernel(release)
        write_initramfs(release)
        boot_entry(release)
    elif what == "add-headers":
        add_headers(release)
    elif what == "remove-headers":
        shutil.rmtree(headers_folder(release), ignore_errors=True)
        for link in ("build", "source"):
            (module_folder(release) / link).unlink(missing_ok=True)
    elif what == "remove-kernel":
        for path in (*Path("/boot").glob(f"*-{release}"), initramfs_path(release)):
            path.unlink(missing_ok=True)
        for path in Path("/boot/loader/entries").glob(f"*-{release}.conf"):
            path.unlink()
        shutil.rmtree(module_folder(release) / "kernel", ignore_errors=True)
    if what.startswith("add-") and (module_folder(release) / "build").exists() and shutil.which("dkms"):
        # Debian's hook fails the package when a build fails, RHEL's says so and goes on.
        try:
            dkms(["autoinstall", "-k", release])
        except Refused:
            if not enterprise_linux():
                raise


def boot_entry(release: str) -> None:
    """The boot loader's entry of a kernel, on RHEL: it becomes the default, as UPDATEDEFAULT=yes has it."""
    if not enterprise_linux():
        return
    name = f"{Path('/etc/machine-id').read_text().strip() or '0' * 32}-{release}"
    text = f"title {LABEL} ({release})\nversion {release}\nlinux /vmlinuz-{release}\ninitrd /initramfs-{release}.img\n"
    write_tree(Path("/boot/loader/entries"), {f"{name}.conf": f"{text}options root=/dev/vda1 ro rhgb quiet"})
    set_default_kernel(name)


def set_default_kernel(entry: str) -> None:
    """Note which entry GRUB boots."""
    folder = Path("/boot/grub2" if enterprise_linux() else "/boot/grub")
    write_tree(folder, {"grubenv": f"# GRUB Environment Block\nsaved_entry={entry}"})


def default_kernel() -> str:
    """The kernel that boots next: the saved one where GRUB_DEFAULT=saved, else the newest."""
    kernels = kernels_in_boot()
    settings = Path("/etc/default/grub")
    chosen = (
        re.findall(r"^GRUB_DEFAULT=[\"']?([^\"'\n]*)", settings.read_text(), re.MULTILINE) if settings.exists() else []
    )
    wanted = chosen[-1] if chosen else "0"
    if wanted == "saved":
        environment = Path("/boot/grub2/grubenv" if enterprise_linux() else "/boot/grub/grubenv")
        saved = re.findall(r"^saved_entry=(.*)$", environment.read_text() if environment.exists() else "", re.MULTILINE)
        wanted = saved[-1] if saved else "0"
    named = [release for release in kernels if release in wanted]
    return max(named, key=len) if named else kernels[0]


def grubby(arguments: list[str]) -> None:
    """grubby --default-kernel | --set-default PATH | --info PATH|ALL | --update-kernel PATH|ALL --args A --remove-args A."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    entries = {path.stem.partition("-")[2]: path for path in sorted(Path("/boot/loader/entries").glob("*.conf"))}

    def after(option: str) -> str:
        return words[words.index(option) + 1] if option in words else ""

    if "--default-kernel" in words:
        print(f"/boot/vmlinuz-{default_kernel()}")
    elif "--set-default" in words:
        release = after("--set-default").partition("vmlinuz-")[2]
        if release not in entries:
            raise Refused(f"The param {after('--set-default')} is incorrect")
        set_default_kernel(entries[release].stem)
        print(f"The default is {entries[release]} with index 0 and kernel /boot/vmlinuz-{release}")
    elif "--info" in words:
        for index, (release, path) in enumerate(entries.items()):
            if after("--info") in ("ALL", f"/boot/vmlinuz-{release}"):
                options = re.search(r"^options (.*)$", path.read_text(), re.MULTILINE)[1]
                print(f'index={index}\nkernel="/boot/vmlinuz-{release}"\nargs="{options}"\nid="{path.stem}"')
    elif "--update-kernel" in words:
        for release, path in entries.items():
            if after("--update-kernel") in ("ALL", f"/boot/vmlinuz-{release}"):
                head, _, options = path.read_text().strip().rpartition("\noptions ")
                kept = [word for word in options.split() if word not in after("--remove-args").split()]
                kept += [word for word in after("--args").split() if word not in kept]
                path.write_text(f"{head}\noptions {' '.join(kept)}\n")
    else:
        raise Refused(f"grubby: not simulated: {' '.join(arguments)}")


def grub_set_default(arguments: list[str]) -> None:
    """grub-set-default ENTRY, on Debian."""
    set_default_kernel(arguments[-1])


def update_grub(_arguments: list[str]) -> None:
    """update-grub: nothing to do, GRUB's choice is computed when it is asked for."""
    print(f"Generating grub configuration file ... ({LABEL})\ndone")


def install_packages(names: list[str]) -> None:
    """Give a fresh host its packages: kernels among them, whose scripts come back to us."""
    if enterprise_linux():
        command = [["dnf", "--assumeyes", "--quiet", "install", *names]]
    else:
        command = [["apt-get", "-qq", "update"], ["apt-get", "-qq", "--yes", "install", *names]]
    proxy = host().get("proxy", "")
    quiet = {
        **os.environ,
        "http_proxy": proxy,
        "DEBIAN_FRONTEND": "noninteractive",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    for words in command:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=quiet, check=False)
        if done.returncode != 0:
            raise Refused(f"{' '.join(words)}: {done.stderr[-1500:]}")


def hide_debian() -> None:
    """A stand-in for RHEL has rpm and dnf only: Debian's tools and databases go out of sight."""
    aside = Path("/usr/lib/gpufleet-sandbox/debian")
    aside.mkdir(parents=True, exist_ok=True)
    # system_upgrade needs a Python module that the image does not have, and complains in every call of dnf.
    others = ("/usr/sbin/update-initramfs", "/usr/lib/python3/dist-packages/dnf-plugins/system_upgrade.py")
    for path in (*Path("/usr/bin").glob("apt*"), *Path("/usr/bin").glob("dpkg*"), *map(Path, others)):
        if path.exists():
            shutil.move(path, aside / path.name)
    for path in (Path("/var/lib/dpkg"), Path("/etc/apt"), Path("/var/lib/apt"), Path("/etc/debian_version")):
        if path.exists():
            shutil.move(path, aside / str(path)[1:].replace("/", "-"))


def prepare() -> None:
    """Turn a fresh container into the host that host.json describes. Runs once, at the first boot."""
    described = host()
    kernels = described["kernels"]
    pretends = bool(kernels) and kernels[0]["release"] != "@running"
    if pretends:
        (STATE / "osrelease").write_text(f"{kernels[0]['release']}\n")
    subprocess.run(["/sbin/ldconfig"], check=True)
    Path("/lib/modules").mkdir(exist_ok=True)
    if enterprise_linux():
        hide_debian()
    if pretends:
        settings = "GRUB_DEFAULT=saved\nGRUB_ENABLE_BLSCFG=true" if enterprise_linux() else "GRUB_DEFAULT=0"
        write_tree(Path("/etc/default"), {"grub": settings})
        Path("/boot/grub2" if enterprise_linux() else "/boot/grub").mkdir(parents=True, exist_ok=True)
    if described.get("sudo_rs"):
        Path("/usr/bin/sudo").unlink()
        Path("/usr/bin/sudo").symlink_to("../lib/cargo/bin/sudo")
    if described.get("packages"):
        install_packages(described["packages"])
    if described.get("wsl"):
        return
    for item in kernels if not pretends else []:
        release = item["release"].replace("@running", running())
        add_kernel(release)
        if item.get("headers", True):
            add_headers(release)
        write_initramfs(release)
    newest = kernels_in_boot()[0] if pretends else running()
    for link, name in (("/vmlinuz", f"vmlinuz-{newest}"), ("/initrd.img", initramfs_path(newest).name)):
        Path(link).unlink(missing_ok=True)
        Path(link).symlink_to(f"boot/{name}")


# -- the initramfs ----------------------------------------------------------------------------------------------------


def blocked_modules() -> list[str]:
    """Modules that modprobe.d keeps from being loaded on their own."""
    found = set()
    for folder in ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"):
        for file in sorted(Path(folder).glob("*.conf")):
            found.update(re.findall(r"^\s*blacklist\s+(\S+)", file.read_text(errors="replace"), re.MULTILINE))
    return sorted(name.replace("-", "_") for name in found)


def write_initramfs(kernel: str, path: Path | None = None) -> None:
    """Rebuild one initramfs: what matters of it here is the block list that it was built with."""
    path = path or initramfs_path(kernel)
    new = path.with_name(f"{path.name}.new")
    files = sorted(modprobe_files())
    nouveau = host()["nouveau"].get("present", False)
    if nouveau:
        files.append(f"usr/lib/modules/{kernel}/kernel/drivers/gpu/drm/nouveau/nouveau.ko")
    content = {"note": LABEL, "kernel": kernel, "blocked": blocked_modules(), "files": files}
    new.write_text(json.dumps(content) + "\n")
    new.replace(path)


def modprobe_files() -> list[str]:
    """The files of modprobe.d that an initramfs gets."""
    folders = (Path("/etc/modprobe.d"), Path("/usr/lib/modprobe.d"))
    return [str(path)[1:] for folder in folders for path in folder.glob("*.conf")]


def list_initramfs(arguments: list[str]) -> None:
    """lsinitramfs FILE... and lsinitrd [FILE] [-k RELEASE]: the names of the files inside."""
    images = [Path(argument) for argument in arguments if argument.startswith("/")]
    if "-k" in arguments:
        images = [initramfs_path(arguments[arguments.index("-k") + 1])]
    for image in images or [initramfs_path(running())]:
        if not image.exists():
            raise Refused(f"{image}: No such file or directory")
        for name in json.loads(image.read_text())["files"]:
            print(f"-rw-r--r--   1 root     root         1024 Jan  1  2026 {name}" if enterprise_linux() else name)


def dracut(arguments: list[str]) -> None:
    """dracut [--force] [IMAGE [RELEASE]] | --kver RELEASE | --regenerate-all."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    release = words[words.index("--kver") + 1] if "--kver" in words else ""
    names = [word for word in words if not word.startswith("-") and word != release]
    image = Path(names[0]) if names else None
    if len(names) > 1:
        release = names[1]
    force = any(word in ("-f", "--force") for word in words)
    for kernel in kernels_in_boot() if "--regenerate-all" in words else [release or running()]:
        target = image or initramfs_path(kernel)
        if not module_folder(kernel).is_dir():
            raise Refused(f"dracut: Cannot find module directory /lib/modules/{kernel}/")
        if target.exists() and not force:
            raise Refused(f"dracut: Will not override existing initramfs ({target}) without --force")
        write_initramfs(kernel, target)


def update_initramfs(arguments: list[str]) -> None:
    """update-initramfs -c|-u|-d [-k VERSION|all]."""
    kernels = kernels_in_boot()
    action, wanted = "", running()
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-c", "-u", "-d"):
            action = argument
        elif argument in ("-k", "-kall"):
            wanted = "all" if argument == "-kall" else next(rest, "")
        elif argument not in ("-v", "-t", "-b"):
            raise Refused(f"update-initramfs: unknown option {argument}")
    if not action:
        raise Refused("You must specify at least one of -c, -u, or -d.")
    for kernel in kernels if wanted == "all" else [wanted]:
        if kernel not in kernels:
            raise Refused(f"/boot/vmlinuz-{kernel} does not exist. Cannot update.")
        print(f"update-initramfs: Generating /boot/initrd.img-{kernel} ({LABEL})")
        if action == "-d":
            Path(f"/boot/initrd.img-{kernel}").unlink(missing_ok=True)
        else:
            write_initramfs(kernel)


# -- PCI devices and loaded modules -----------------------------------------------------------------------------------


def write_tree(folder: Path, files: dict[str, str]) -> None:
    """Write small text files, each with a newline, below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")


def add_pci_device(device: dict) -> None:
    """Show one device below /sys/bus/pci/devices, as the kernel would."""
    vendor, number = device.get("vendor", "10de"), device["device"]
    subsystem_vendor, _, subsystem = device.get("subsystem", f"{vendor}:0000").partition(":")
    files = {
        "vendor": f"0x{vendor}",
        "device": f"0x{number}",
        "subsystem_vendor": f"0x{subsystem_vendor}",
        "subsystem_device": f"0x{subsystem}",
        "class": f"0x{device['class']}",
        "revision": "0xa1",
        "irq": "16",
        "numa_node": "-1",
        "enable": "1",
        "uevent": f"PCI_CLASS={device['class'].lstrip('0').upper()}\nPCI_ID={vendor}:{number}".upper()
        + f"\nPCI_SLOT_NAME={device['address']}",
    }
    if device["class"].startswith("03"):
        files["boot_vga"] = str(int(device.get("boot_vga", False)))
    for key in ("current_link_width", "max_link_width", "current_link_speed", "max_link_speed"):
        if key in device:
            files[key] = str(device[key])
    write_tree(PCI_DEVICES / device["address"], files)


def bind(address: str, driver: str) -> None:
    """Give a PCI device to a driver."""
    (PCI_DRIVERS / driver).mkdir(parents=True, exist_ok=True)
    for link, target in (
        (PCI_DEVICES / address / "driver", f"../../../../bus/pci/drivers/{driver}"),
        (PCI_DRIVERS / driver / address, f"../../devices/{address}"),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def unbind(driver: str) -> None:
    """Take its devices away from a driver."""
    for address in present_gpus():
        if bound_to(address) == driver:
            (PCI_DEVICES / address / "driver").unlink()
    shutil.rmtree(PCI_DRIVERS / driver, ignore_errors=True)


def bound_to(address: str) -> str | None:
    """Which driver has the device."""
    link = PCI_DEVICES / address / "driver"
    return os.path.basename(os.readlink(link)) if link.is_symlink() else None


def present_gpus() -> dict[str, dict]:
    """The simulated GPUs that are on the bus now, by address."""
    return {gpu["address"]: gpu for gpu in host()["gpus"] if (PCI_DEVICES / gpu["address"]).is_dir()}


def write_gpu_table() -> None:
    """The list that the stub NVML and libcuda read: one GPU a line, fields separated by |."""
    lines = []
    gpus = host()["gpus"] if host().get("wsl") else present_gpus().values()
    for gpu in gpus:
        major, _, minor = gpu["compute_capability"].partition(".")
        vendor, _, subsystem = gpu["subsystem"].partition(":")
        fields = [gpu["address"], gpu["device"], subsystem + vendor, gpu["name"], gpu["uuid"], gpu["memory_mib"]]
        fields += [major, minor, gpu["current_link_width"], gpu["max_link_width"]]
        lines.append("|".join(str(field) for field in fields))
    (STATE / "gpus").write_text("".join(f"{line}\n" for line in lines))


def drivable(gpu: dict, flavor: str) -> bool:
    """Whether modules of this flavor can drive the GPU."""
    number = int(gpu["device"], 16)
    return number >= FIRST_TURING_ID if flavor == "open" else number < FIRST_BLACKWELL_ID


def loaded() -> list[str]:
    """Modules that are loaded, the newest last."""
    path = STATE / "loaded"
    return path.read_text().split() if path.exists() else []


def set_loaded(names: list[str]) -> None:
    (STATE / "loaded").write_text("".join(f"{name}\n" for name in names))


def aliased(name: str) -> str:
    """The module that a name stands for: Debian's own packages make nvidia mean nvidia-current."""
    for path in sorted(Path("/etc/modprobe.d").glob("nvidia*.conf")):
        plain = re.escape(name).replace("_", "[-_]")
        match = re.search(rf"^\s*alias\s+{plain}\s+(\S+)", path.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1]
    return name


def find_module(name: str, kernel: str) -> Path | None:
    """The file of a module for a kernel; updates/ and extra/ go before kernel/, as depmod is told to look."""
    wanted = re.compile(re.escape(aliased(name).replace("_", "-")).replace(r"\-", "[-_]") + r"\.ko(\.xz)?$")
    files = [path for path in module_folder(kernel).rglob("*.ko*") if wanted.match(path.name)]
    return min(files, key=lambda path: not {"updates", "extra"} & set(path.parts), default=None)


def read_modinfo(path: Path) -> dict[str, str]:
    """The .modinfo fields of one of our own module files."""
    return dict(re.findall(r"([a-z]+)=([^\0]*)\0", module_content(path).decode("latin-1")))


def module_content(path: Path) -> bytes:
    """A module file, unpacked."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def load_module(name: str) -> None:
    """Load one module and what it needs into the simulated kernel."""
    name = name.replace("-", "_")
    if name in loaded():
        return
    path = find_module(name, running())
    if path is None:
        raise Refused(f"modprobe: FATAL: Module {name} not found in directory /lib/modules/{running()}")
    info = read_modinfo(path)
    if secure_boot_on() and "version" in info and signer_of(module_content(path)) not in trusted_signers():
        raise Refused(f"modprobe: ERROR: could not insert '{name}': Key was rejected by service")
    if name == "nvidia":
        take_gpus(info)
    for need in NEEDS.get(name, ()):
        load_module(need)
    if name in ("nvidia", "nvidia_uvm") and not MISSING_NODES.exists():
        make_nodes(name)
    entry = {"refcnt": "0", "initstate": "live", "taint": "OE" if info["license"] != "GPL" else ""}
    if "version" in info:
        entry["version"] = info["version"]
    write_tree(SYS_MODULE / name, entry | {"holders/.keep": ""})
    (SYS_MODULE / name / "holders/.keep").unlink()
    set_loaded([*loaded(), name])
    if name == "nvidia" and os.path.isdir("/run/systemd/system") and os.path.exists(STARTED_BY_UDEV):
        subprocess.run(["systemctl", "start", "--no-block", "nvidia-persistenced.service"], check=False)
    if name == "nouveau":
        for address in present_gpus():
            if bound_to(address) is None:
                bind(address, "nouveau")
        if any(bound_to(address) == "nouveau" for address in present_gpus()) and host()["nouveau"].get("in_use"):
            write_tree(SYS_MODULE / name, {"refcnt": "4"})


def nodes(module: str) -> list[Path]:
    """Device nodes that belong to a module."""
    if module == "nvidia":
        return [*(Path(f"/dev/nvidia{minor}") for minor in range(len(host()["gpus"]))), Path("/dev/nvidiactl")]
    return [Path("/dev/nvidia-uvm"), Path("/dev/nvidia-uvm-tools")] if module == "nvidia_uvm" else []


def make_nodes(module: str) -> None:
    """Make them, as udev's rule or nvidia-modprobe would. Nothing answers behind them: the kernel knows no such driver."""
    for number, path in enumerate(nodes(module)):
        if not path.exists():
            os.mknod(
                path, stat.S_IFCHR | 0o666, os.makedev(NVIDIA_MAJOR, number if module == "nvidia" else 250 + number)
            )
            path.chmod(0o666)


def nvidia_modprobe(arguments: list[str]) -> None:
    """nvidia-modprobe [-u|--unified-memory] [-c|--create-nvidia-device-file=N] [-m]: load modules and make their nodes."""
    wanted = ["nvidia", *(["nvidia_uvm"] if {"-u", "--unified-memory"} & set(arguments) else [])]
    for name in wanted:
        load_module(name)
        make_nodes(name)


def ub_device_create(_arguments: list[str]) -> None:
    """Ubuntu's program that makes the nodes of the modules that are loaded."""
    for name in {"nvidia", "nvidia_uvm"} & set(loaded()):
        make_nodes(name)


def take_gpus(info: dict[str, str]) -> None:
    """What the nvidia module does when it is loaded: bind the GPUs that it can drive, and describe itself under /proc."""
    flavor = "proprietary" if info["license"] == "NVIDIA" else "open"
    gpus = {at: gpu for at, gpu in present_gpus().items() if bound_to(at) is None and drivable(gpu, flavor)}
    if not gpus:
        taken = any(bound_to(address) == "nouveau" for address in present_gpus())
        why = "a GPU is bound to nouveau" if taken else f"no GPU that the {flavor} modules drive"
        raise Refused(f"modprobe: ERROR: could not insert 'nvidia': No such device ({why}; {LABEL})")
    words = "NVIDIA UNIX Open Kernel Module for x86_64" if flavor == "open" else "NVIDIA UNIX x86_64 Kernel Module"
    proc = PROC_DRIVER / "nvidia"
    write_tree(
        proc,
        {
            "version": f"NVRM version: {words}  {info['version']}  Release Build  ({LABEL})\nGCC version:  {LABEL}",
            "params": "ModifyDeviceFiles: 1\nEnableGpuFirmware: 18",
        },
    )
    for minor, (address, gpu) in enumerate(gpus.items()):
        text = f"Model: \t\t {gpu['name']}\nIRQ:   \t\t 16\nGPU UUID: \t {gpu['uuid']}\nVideo BIOS: \t ??.??.??.??.??\n"
        text += f"Bus Type: \t PCIe\nDMA Size: \t 47 bits\nBus Location: \t {address}\nDevice Minor: \t {minor}\nGPU Excluded:\t No"
        write_tree(proc / "gpus" / address, {"information": text})
        bind(address, "nvidia")


def unload_module(name: str) -> None:
    """Unload one module, unless something uses it."""
    name = name.replace("-", "_")
    if name not in loaded():
        raise Refused(f"rmmod: ERROR: Module {name} is not currently loaded")
    users = [other for other in loaded() if name in NEEDS.get(other, ())]
    if users:
        raise Refused(f"rmmod: ERROR: Module {name} is in use by: {' '.join(users)}")
    if (SYS_MODULE / name / "refcnt").read_text().strip() != "0" or (name == "nvidia" and persistence_daemon_runs()):
        raise Refused(f"rmmod: ERROR: Module {name} is in use.")
    if name in ("nvidia", "nouveau"):
        unbind(name)
    for path in nodes(name):
        path.unlink(missing_ok=True)
    if name == "nvidia":
        shutil.rmtree(PROC_DRIVER / "nvidia", ignore_errors=True)
    shutil.rmtree(SYS_MODULE / name)
    set_loaded([other for other in loaded() if other != name])


def persistence_daemon_runs() -> bool:
    """Whether the stub persistence daemon holds the GPUs open."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == "nvidia-persiste":
                return True
        except OSError:
            continue  # the process ended meanwhile
    return False


def modprobe(arguments: list[str]) -> None:
    """modprobe [-r] [-a] [-q] [-n] MODULE...; questions about the configuration go to the real one."""
    if any(
        word in arguments for word in ("-c", "--showconfig", "--show-config", "-V", "--version", "-D", "--show-depends")
    ):
        os.execv("/bin/kmod", ["modprobe", *arguments])  # noqa: S606
    remove = quiet = dry = several = blacklist = False
    names = []
    for argument in arguments:
        if argument.startswith("-") and not argument.startswith("--"):
            remove |= "r" in argument
            quiet |= "q" in argument
            dry |= "n" in argument
            several |= "a" in argument
            blacklist |= "b" in argument
        elif argument.startswith("--"):
            remove |= argument == "--remove"
            quiet |= argument == "--quiet"
            dry |= argument == "--dry-run"
            several |= argument == "--all"
            blacklist |= argument == "--use-blacklist"
        else:
            names.append(argument)
    if not names:
        raise Refused("modprobe: ERROR: missing parameters. See -h.")
    if not (several or remove):
        names = names[:1]  # the other words are module parameters
    for name in names:
        plain = name.replace("-", "_")
        try:
            if dry:
                if find_module(name, running()) is None:
                    raise Refused(f"modprobe: FATAL: Module {name} not found in directory /lib/modules/{running()}")
            elif remove:
                if plain in loaded():
                    unload_module(name)
                    for need in NEEDS.get(plain, ()):
                        if not any(need in NEEDS.get(other, ()) for other in loaded()) and need != "nvidia":
                            unload_module(need)
                elif find_module(name, running()) is None:
                    raise Refused(f"modprobe: FATAL: Module {name} not found.")
            elif not (blacklist and plain in blocked_modules()):
                load_module(name)
        except Refused as error:
            if quiet and "not found" in str(error):
                raise Refused("") from error
            raise Refused(str(error).replace("rmmod: ERROR", "modprobe: FATAL")) from error


def rmmod(arguments: list[str]) -> None:
    """rmmod MODULE..."""
    for name in arguments:
        if not name.startswith("-"):
            unload_module(name)


def lsmod() -> None:
    """The table of loaded modules."""
    print("Module                  Size  Used by")
    for name in reversed(loaded()):
        users = [other for other in loaded() if name in NEEDS.get(other, ())]
        count = max(int((SYS_MODULE / name / "refcnt").read_text()), len(users))
        print(f"{name:<19} {16384:>8}  {count} {','.join(users)}".rstrip())


def gpu(arguments: list[str]) -> None:
    """gpu remove|add ADDRESS: lets a GPU fall off the bus until the next boot, or come back."""
    described = {item["address"]: item for item in host()["gpus"]}
    if len(arguments) != 2 or arguments[0] not in ("remove", "add") or arguments[1] not in described:
        raise Refused(
            f"usage: gpufleet-sandbox gpu remove|add ADDRESS; GPUs of this host: {' '.join(described) or 'none'}"
        )
    verb, address = arguments
    if verb == "remove":
        shutil.rmtree(PCI_DEVICES / address, ignore_errors=True)
        shutil.rmtree(PROC_DRIVER / "nvidia/gpus" / address, ignore_errors=True)
    else:
        add_pci_device(described[address])
    write_gpu_table()


# -- Secure Boot ------------------------------------------------------------------------------------------------------


def variable(name: str) -> Path:
    """A variable of the simulated firmware, as efivarfs shows it: four bytes of attributes, then the value."""
    return FIRMWARE / "efi/efivars" / f"{name}-{EFI_GLOBAL if name == 'SecureBoot' else EFI_SHIM}"


def secure_boot_on() -> bool:
    path = variable("SecureBoot")
    return path.exists() and path.read_bytes()[4:] == b"\1"


def certificates(name: str) -> list[bytes]:
    """The certificates in a list of the firmware's."""
    path = variable(name)
    data, found = (path.read_bytes()[4:] if path.exists() else b""), []
    while data:
        (size,) = struct.unpack_from("<I", data, 16)
        found.append(data[28 + 16 : size])
        data = data[size:]
    return found


def set_certificates(name: str, wanted: list[bytes]) -> None:
    """Write such a list: one EFI_SIGNATURE_LIST for each certificate; no variable where there is none."""
    lists = b""
    for certificate in wanted:
        owner = uuid.UUID(EFI_SHIM).bytes_le
        sizes = struct.pack("<III", 28 + 16 + len(certificate), 0, 16 + len(certificate))
        lists += uuid.UUID(EFI_X509).bytes_le + sizes + owner + certificate
    path = variable(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if lists:
        path.write_bytes(struct.pack("<I", 6) + lists)


def der(path: str) -> bytes:
    """A certificate file's content in DER."""
    data = Path(path).read_bytes()
    return base64.b64decode(b"".join(data.strip().splitlines()[1:-1])) if data.startswith(b"-----BEGIN") else data


def common_name(certificate: bytes) -> str:
    """Whose certificate it is."""
    command = ["openssl", "x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "multiline"]
    text = subprocess.run(command, input=certificate, capture_output=True, check=True).stdout.decode()
    return re.search(r"commonName\s*= (.*)", text)[1]


def trusted_signers() -> list[str]:
    """Whose modules load while Secure Boot is on: the distribution's own, and keys that were enrolled."""
    return [UBUNTU_SIGNER, *map(common_name, certificates("MokListRT"))]


def secure_boot(arguments: list[str]) -> None:
    """secure-boot on|off|enroll [CERTIFICATE]: enroll plays the person at the console, for what waits or for the one named."""
    if arguments[:1] == ["on"]:
        variable("SecureBoot").parent.mkdir(parents=True, exist_ok=True)
        variable("SecureBoot").write_bytes(struct.pack("<IB", 6, 1))
    elif arguments[:1] == ["off"]:
        shutil.rmtree(FIRMWARE / "efi", ignore_errors=True)
    elif arguments[:1] == ["enroll"]:
        new = [der(path) for path in arguments[1:]] or certificates("MokNew")
        if not new:
            raise Refused("gpufleet-sandbox: no key waits to be enrolled")
        set_certificates("MokListRT", [*certificates("MokListRT"), *new])
        set_certificates("MokNew", [item for item in certificates("MokNew") if item not in new])
    else:
        raise Refused("usage: gpufleet-sandbox secure-boot on|off|enroll [CERTIFICATE]")


def mokutil(arguments: list[str]) -> None:
    """mokutil --sb-state | --test-key F | --import F [--hash-file H] | --generate-hash | --list-enrolled | --list-new | --revoke-import."""
    words = [part for argument in arguments for part in argument.split("=", 1)]

    def value(*options: str) -> str:
        return next((words[words.index(option) + 1] for option in options if option in words), "")

    if not (FIRMWARE / "efi/efivars").is_dir():
        raise Refused("EFI variables are not supported on this system")
    if "--sb-state" in words:
        print(f"SecureBoot {'enabled' if secure_boot_on() else 'disabled'}")
    elif "--generate-hash" in words or "-g" in words:
        given = sys.stdin.read().splitlines()
        print("input password: \ninput password again: ")
        if len(given) < 2 or not given[0] or given[0] != given[1]:
            raise Refused("Failed to get password")
        salt = "0123456789abcdef"
        print(f"$6${salt}${hashlib.sha512((salt + given[0]).encode()).hexdigest()[:86]}")
    elif "--test-key" in words or "-t" in words:
        name = value("--test-key", "-t")
        key = der(name)
        if key in certificates("MokListRT"):
            raise Refused(f"{name} is already enrolled")
        if key in certificates("MokNew"):
            raise Refused(f"{name} is already in the enrollment request")
        print(f"{name} is not enrolled")
    elif "--import" in words or "-i" in words:
        name = value("--import", "-i")
        if not value("--hash-file", "-f") and not sys.stdin.read().strip():
            raise Refused("Failed to get password")
        key = der(name)
        if key in certificates("MokListRT"):
            raise Refused(f"SKIP: {name} is already enrolled", 0)
        set_certificates("MokNew", [*(item for item in certificates("MokNew") if item != key), key])
    elif "--revoke-import" in words:
        set_certificates("MokNew", [])
    elif "--list-enrolled" in words or "--list-new" in words:
        for index, item in enumerate(certificates("MokListRT" if "--list-enrolled" in words else "MokNew"), 1):
            print(f"[key {index}]\n        Subject: CN={common_name(item)}")
    else:
        raise Refused(f"mokutil: not simulated: {' '.join(arguments)}")


def mok_files() -> tuple[Path, Path]:
    """Where DKMS's key and certificate are."""
    ubuntu = 'ID="ubuntu"' in Path("/etc/os-release").read_text()
    if ubuntu:
        return Path("/var/lib/shim-signed/mok/MOK.priv"), Path("/var/lib/shim-signed/mok/MOK.der")
    return Path("/var/lib/dkms/mok.key"), Path("/var/lib/dkms/mok.pub")


def generate_mok() -> None:
    """dkms generate_mok: make the key that modules are signed with."""
    key, certificate = mok_files()
    key.parent.mkdir(parents=True, exist_ok=True)
    subject = ["-subj", "/CN=DKMS module signing key", "-addext", "extendedKeyUsage=codeSigning"]
    command = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "36500", "-newkey", "rsa:2048", *subject]
    command += ["-keyout", str(key), "-outform", "DER", "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)


# -- DKMS -------------------------------------------------------------------------------------------------------------


class Build:
    """One version of one DKMS module: where its source is, and the tree in which it is built."""

    def __init__(self, name: str, version: str, sources: Path, tree: Path) -> None:
        self.name, self.version = name, version
        self.source = sources / f"{name}-{version}"
        self.folder = tree / name / version

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def modules(self) -> dict[str, str]:
        """File name -> name in the kernel: Debian's own packages rename the files."""
        return {f"{self.name}{part}": f"nvidia{part}" for part in DKMS_MODULES}

    def built(self, kernel: str) -> Path:
        """Where the modules for a kernel are after a build."""
        return self.folder / kernel / "x86_64/module"

    def is_built(self, kernel: str) -> bool:
        return (self.built(kernel) / f"{self.name}.ko.xz").exists()

    def targets(self, kernel: str) -> list[Path]:
        """Where modprobe finds them."""
        place = module_folder(kernel) / ("extra" if enterprise_linux() else "updates/dkms")
        return [place / f"{name}.ko.xz" for name in self.modules()]

    def is_installed(self, kernel: str) -> bool:
        path = self.targets(kernel)[0]
        return self.is_built(kernel) and path.exists() and read_modinfo(path)["version"] == self.version

    def add(self) -> None:
        """Make the tree know the source."""
        if not (self.source / "dkms.conf").exists():
            raise Refused(
                f"Error! Could not find module source directory.\nDirectory: {self.source} does not exist.", 2
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "source").is_symlink():
            (self.folder / "source").symlink_to(self.source)

    def build(self, kernel: str) -> None:
        """Build for one kernel, as far as anybody can tell; nothing outside the tree changes."""
        self.add()
        if not (module_folder(kernel) / "build/Makefile").exists():
            raise Refused(
                f"Error! Your kernel headers for kernel {kernel} cannot be found at /lib/modules/{kernel}/build or"
                f" /lib/modules/{kernel}/source.\nPlease install the linux-headers-{kernel} package or use the"
                " --kernelsourcedir option to tell DKMS where it's located.",
                21,
            )
        print(f"Building module(s) {self} for kernel {kernel} ({LABEL})... ", end="", flush=True)
        log = self.folder / "build/make.log"
        log.parent.mkdir(exist_ok=True)
        head = f"DKMS ({LABEL}) make.log for {self} for kernel {kernel} (x86_64)\n"
        if self.fails(kernel):
            log.write_text(head + COMPILER.format(folder=log.parent, kernel=kernel))
            print("(bad exit status: 2)\nFailed command:\nmake -j2 modules")
            raise Refused(
                f"\nError! Bad return status for module build on kernel: {kernel} (x86_64)\nConsult {log} for more information.",
                10,
            )
        log.write_text(f"{head}make: nothing is compiled here\n")
        flavor = re.search(r"^SANDBOX_FLAVOR=(\w+)", (self.source / "dkms.conf").read_text(), re.MULTILINE)[1]
        self.built(kernel).mkdir(parents=True, exist_ok=True)
        if secure_boot_on() and not mok_files()[1].exists():
            generate_mok()
        signer = common_name(der(str(mok_files()[1]))) if mok_files()[1].exists() else ""
        for file, name in self.modules().items():
            data = elf_module(modinfo_fields(name, kernel, flavor, self.version))
            data = signed(data, signer) if signer else data
            (self.built(kernel) / f"{file}.ko.xz").write_bytes(lzma.compress(data, preset=0))
        print("done.")

    def fails(self, kernel: str) -> bool:
        """Whether this version is known not to compile, or a test wants that: its marker is empty or holds versions (595.*)."""
        known = re.search(r'^SANDBOX_FAILS_ON="([^"]+)"', (self.source / "dkms.conf").read_text(), re.MULTILINE)
        if known and fnmatch.fnmatch(kernel, known[1]):
            return True
        marker = module_folder(kernel) / "SIMULATE_DKMS_FAILURE"
        if not marker.exists():
            return False
        patterns = marker.read_text().split()
        return not patterns or any(fnmatch.fnmatch(self.version, pattern) for pattern in patterns)

    def install(self, kernel: str) -> None:
        """Put built modules where modprobe finds them."""
        if not self.is_built(kernel):
            self.build(kernel)
        for path in self.targets(kernel):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            shutil.copyfile(self.built(kernel) / path.name, new)
            new.replace(path)
        depmod(kernel)

    def uninstall(self, kernel: str) -> None:
        """Take this version's modules away from one kernel."""
        for path in self.targets(kernel):
            if path.exists() and read_modinfo(path)["version"] == self.version:
                path.unlink()
        if module_folder(kernel).is_dir():
            depmod(kernel)

    def remove(self, kernels: list[str]) -> None:
        """Forget what was built for these kernels; nothing left to remember, nothing left of the version."""
        for kernel in kernels:
            self.uninstall(kernel)
            shutil.rmtree(self.folder / kernel, ignore_errors=True)
        if not any(path.is_dir() and path.name not in ("source", "build") for path in self.folder.glob("*")):
            shutil.rmtree(self.folder, ignore_errors=True)


def dkms(arguments: list[str]) -> None:
    """dkms status|add|build|install|autoinstall|uninstall|unbuild|remove [-m M] [-v V] [-k K|--all] [M/V]."""
    if not arguments or arguments[0] in ("-V", "--version"):
        print("dkms-3.3.0")
        return
    command, rest = arguments[0], iter(arguments[1:])
    name, version, kernels, sources, tree = "", "", [], Path("/usr/src"), DKMS_TREE
    every = force = False
    for argument in rest:
        option, has_value, value = argument.partition("=")
        if option in DKMS_OPTIONS:
            value = value if has_value else next(rest, "")
            if option in ("-m", "--module"):
                name, _, given = value.partition("/")
                version = given or version
            elif option in ("-v", "--version"):
                version = value
            elif option in ("-k", "--kernelver"):
                kernels.append(value.partition("/")[0])
            elif option == "--sourcetree":
                sources = Path(value)
            elif option == "--dkmstree":
                tree = Path(value)
        elif option == "--all":
            every = True
        elif option == "--force":
            force = True
        elif not option.startswith("-"):
            name, _, given = option.partition("/")
            version = given or version
    known = [
        Build(path.parent.parent.name, path.parent.name, sources, tree)
        for path in sorted(tree.glob("nvidia*/*/source"))
    ]
    chosen = [item for item in known if name in ("", item.name) and version in ("", item.version)]
    present = sorted(path.name for path in Path("/lib/modules").iterdir() if path.is_dir())
    if command == "status":
        for item in chosen:
            built = [kernel for kernel in kernels or present if item.is_built(kernel)]
            for kernel in built:
                print(f"{item}, {kernel}, x86_64: {'installed' if item.is_installed(kernel) else 'built'}")
            if not built:
                print(f"{item}: added")
        return
    if command == "generate_mok":
        generate_mok()
        return
    if command == "autoinstall":
        for kernel in kernels or [running()]:
            for item in known:
                if not item.is_installed(kernel):
                    item.install(kernel)
        return
    if not name or not version:
        raise Refused(
            f"Error! Arguments <module> and <module-version> are not specified.\nUsage: {command} <module>/<version>"
        )
    item = Build(name, version, sources, tree)
    if command == "add":
        item.add()
    elif command in ("build", "install"):
        for kernel in kernels or (present if every else [running()]):
            if force or not item.is_built(kernel):
                item.build(kernel)
            if command == "install":
                item.install(kernel)
    elif command == "uninstall":
        for kernel in present if every else kernels:
            item.uninstall(kernel)
    elif command in ("remove", "unbuild"):
        if not chosen:
            raise Refused(f"Error! There are no instances of module: {name}\n{version} located in the DKMS tree.", 3)
        item.remove(present if every else kernels or [running()])
    else:
        raise Refused(f"Error! Unknown action specified: {command}")


# -- boot -------------------------------------------------------------------------------------------------------------


def mount_over(source: Path, target: str) -> None:
    """Show a file or folder of ours where the kernel shows its own."""
    if not os.path.exists(target):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(str(source).encode(), target.encode(), None, MS_BIND, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def boot_kernel() -> None:
    """Show the simulated kernel's release where /proc tells it."""
    release = running()
    (STATE / "proc-version").write_text(
        f"Linux version {release} (root@{LABEL.replace(' ', '-')}) #1 SMP PREEMPT_DYNAMIC\n"
    )
    mount_over(STATE / "proc-version", "/proc/version")
    mount_over(STATE / "osrelease", "/proc/sys/kernel/osrelease")


def boot_wsl(described: dict) -> None:
    """What tells a WSL2 host apart, as far as a container can show it."""
    release = described["wsl"]["kernel"]
    for name, text in (
        ("proc-version", f"Linux version {release} (root@{LABEL.replace(' ', '-')}) #1 SMP PREEMPT_DYNAMIC"),
        ("osrelease", release),
    ):
        (STATE / name).write_text(f"{text}\n")
    mount_over(STATE / "proc-version", "/proc/version")
    mount_over(STATE / "osrelease", "/proc/sys/kernel/osrelease")
    Path("/dev/dxg").touch()
    Path("/run/WSL").mkdir(exist_ok=True)


def load_at_boot() -> None:
    """What the initramfs and udev load: nouveau unless blocked there, then nvidia if there is a module for this kernel."""
    initramfs = initramfs_path(running())
    blocked = json.loads(initramfs.read_text())["blocked"] if initramfs.exists() else []
    if present_gpus() and host()["nouveau"].get("present") and "nouveau" not in blocked:
        load_module("nouveau")
    if not present_gpus() or "nvidia" in blocked_modules():
        return
    for name in ("nvidia", "nvidia_uvm", "nvidia_drm"):
        try:
            load_module(name)
        except Refused as error:
            print(f"gpufleet-sandbox: {error}", file=sys.stderr)
            return


def boot() -> None:
    """Everything that has to be there before systemd starts."""
    STATE.mkdir(parents=True, exist_ok=True)
    if host().get("proxy"):
        # The proxy is the only way: neither a route nor a name server leads out of the host's own network.
        subprocess.run(["ip", "route", "del", "default"], check=False, capture_output=True)
        Path("/etc/resolv.conf").write_text("")
    booted = (STATE / "prepared").exists()
    if not booted:
        prepare()
        (STATE / "prepared").touch()
    described = host()
    for folder in (PCI_DEVICES, PCI_DRIVERS, SYS_MODULE, PROC_DRIVER):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    set_loaded([])
    if (STATE / "osrelease").exists() and not described.get("wsl"):
        if booted:
            (STATE / "osrelease").write_text(f"{default_kernel()}\n")
        boot_kernel()
    (STATE / "boot_id").write_text(f"{uuid.uuid4()}\n")
    for device in [*([] if described.get("wsl") else described["gpus"]), *described["other_devices"]]:
        add_pci_device(device)
    write_gpu_table()
    if described.get("wsl"):
        boot_wsl(described)
    else:
        load_at_boot()
    write_tree(Path("/run/systemd/timesync"), {"synchronized": ""})
    FIRMWARE.mkdir(exist_ok=True)
    mount_over(FIRMWARE, "/sys/firmware")
    mount_over(PCI_DEVICES, "/sys/bus/pci/devices")
    mount_over(PCI_DRIVERS, "/sys/bus/pci/drivers")
    mount_over(SYS_MODULE, "/sys/module")
    mount_over(PROC_DRIVER, "/proc/driver")
    mount_over(STATE / "boot_id", "/proc/sys/kernel/random/boot_id")


def init() -> None:
    """PID 1 of the container: simulate, then become systemd."""
    try:
        boot()
    except Exception as error:  # a host without simulated hardware is still better than none that can be looked at
        print(f"gpufleet-sandbox: booting without simulated hardware: {error!r}", file=sys.stderr)
        (STATE / "boot-error").write_text(f"{error!r}\n")
    os.execv("/lib/systemd/systemd", ["/lib/systemd/systemd", "--log-target=journal"])  # noqa: S606


def main(command: str, arguments: list[str]) -> None:
    """Play one command."""
    if command == "init":
        init()
    elif command == "lsmod":
        lsmod()
    elif command == "insmod":
        raise Refused(f"insmod: ERROR: not possible here ({LABEL})")
    else:
        play = {
            "modprobe": modprobe,
            "rmmod": rmmod,
            "update-initramfs": update_initramfs,
            "dracut": dracut,
            "lsinitramfs": list_initramfs,
            "lsinitrd": list_initramfs,
            "grubby": grubby,
            "grub-set-default": grub_set_default,
            "update-grub": update_grub,
            "kernel": kernel,
            "mokutil": mokutil,
            "nvidia-modprobe": nvidia_modprobe,
            "ub-device-create": ub_device_create,
            "secure-boot": secure_boot,
            "dkms": dkms,
            "gpu": gpu,
        }
        if command not in play:
            raise Refused(f"gpufleet-sandbox: unknown command {command!r}")
        play[command](arguments)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:])
    except Refused as refusal:
        if str(refusal):
            print(refusal, file=sys.stderr)
        sys.exit(refusal.status)
