#!/usr/bin/python3 -I
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container of the test fleet does not have, simulated: PCI GPUs, kernels, kernel modules, DKMS, the initramfs.

Installed in the images of the test fleet only. The first argument is the command to play (init, modprobe, rmmod, insmod,
lsmod, update-initramfs, dkms, gpu); /etc/gpufleet-sandbox/host.json says what hardware this host pretends to have.

The rules that a real host has and that a role can get wrong are kept:
- loaded modules are lost on a reboot; what loads then is decided by the initramfs as it was last rebuilt;
- nouveau binds its GPUs early unless the initramfs holds a block list, and nvidia cannot bind a GPU that nouveau has;
- open modules do not drive GPUs before Turing, proprietary ones do not drive Blackwell;
- a DKMS build needs the kernel's headers and can fail (marker file SIMULATE_DKMS_FAILURE in the kernel's module folder).
"""

from __future__ import annotations

import ctypes
import json
import lzma
import os
import re
import shutil
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
DKMS_TREE = Path("/var/lib/dkms")
DKMS_MODULES = ("nvidia", "nvidia-modeset", "nvidia-drm", "nvidia-uvm", "nvidia-peermem")
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


class Refused(Exception):
    """A simulated command fails; the text is what the real one would say."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def host() -> dict:
    """What this host pretends to be."""
    return json.loads((ETC / "host.json").read_text())


def running() -> str:
    """The release of the kernel that really runs."""
    return os.uname().release


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


def prepare_kernel(kernel: dict) -> None:
    """Make the files that a kernel package would install."""
    release = kernel["release"]
    folder = module_folder(release)
    nouveau = folder / "kernel/drivers/gpu/drm/nouveau"
    nouveau.mkdir(parents=True, exist_ok=True)
    (nouveau / "nouveau.ko").write_bytes(elf_module(modinfo_fields("nouveau", release, "open", "")))
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (folder / name).write_text("")
    for name in ("vmlinuz", "config", "System.map"):
        Path(f"/boot/{name}-{release}").write_text(f"{LABEL}\n")
    if kernel.get("headers", True):
        headers = Path("/usr/src") / f"linux-headers-{release}"
        (headers / "include/config").mkdir(parents=True, exist_ok=True)
        (headers / "include/config/kernel.release").write_text(f"{release}\n")
        (headers / "Makefile").write_text(f"# {LABEL}\n")
        for link in ("build", "source"):
            (folder / link).unlink(missing_ok=True)
            (folder / link).symlink_to(headers)
    depmod(release)


def prepare() -> None:
    """Turn a fresh container into the host that host.json describes. Runs once, at the first boot."""
    described = host()
    for kernel in described["kernels"]:
        kernel["release"] = kernel["release"].replace("@running", running())
    subprocess.run(["/sbin/ldconfig"], check=True)
    if described.get("wsl"):
        return
    for kernel in described["kernels"]:
        prepare_kernel(kernel)
    for link, name in (("/vmlinuz", "vmlinuz"), ("/initrd.img", "initrd.img")):
        Path(link).unlink(missing_ok=True)
        Path(link).symlink_to(f"boot/{name}-{described['kernels'][0]['release']}")
    for kernel in described["kernels"]:
        write_initramfs(kernel["release"])


# -- the initramfs ----------------------------------------------------------------------------------------------------


def blocked_modules() -> list[str]:
    """Modules that modprobe.d keeps from being loaded on their own."""
    found = set()
    for folder in ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"):
        for file in sorted(Path(folder).glob("*.conf")):
            found.update(re.findall(r"^\s*blacklist\s+(\S+)", file.read_text(errors="replace"), re.MULTILINE))
    return sorted(name.replace("-", "_") for name in found)


def write_initramfs(kernel: str) -> None:
    """Rebuild one initramfs: what matters of it here is the block list that it was built with."""
    path = Path(f"/boot/initrd.img-{kernel}")
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"note": LABEL, "blocked": blocked_modules()}) + "\n")
    new.replace(path)


def update_initramfs(arguments: list[str]) -> None:
    """update-initramfs -c|-u|-d [-k VERSION|all]."""
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in Path("/boot").glob("vmlinuz-*"))
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


def find_module(name: str, kernel: str) -> Path | None:
    """The file of a module for a kernel; updates/ goes before kernel/, as depmod's default says."""
    wanted = re.compile(re.escape(name.replace("_", "-")).replace(r"\-", "[-_]") + r"\.ko(\.xz)?$")
    files = [path for path in module_folder(kernel).rglob("*.ko*") if wanted.match(path.name)]
    return min(files, key=lambda path: "updates" not in path.parts, default=None)


def read_modinfo(path: Path) -> dict[str, str]:
    """The .modinfo fields of one of our own module files."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    return dict(re.findall(r"([a-z]+)=([^\0]*)\0", data.decode("latin-1")))


def load_module(name: str) -> None:
    """Load one module and what it needs into the simulated kernel."""
    name = name.replace("-", "_")
    if name in loaded():
        return
    path = find_module(name, running())
    if path is None:
        raise Refused(f"modprobe: FATAL: Module {name} not found in directory /lib/modules/{running()}")
    info = read_modinfo(path)
    if name == "nvidia":
        take_gpus(info)
    for need in NEEDS.get(name, ()):
        load_module(need)
    entry = {"refcnt": "0", "initstate": "live", "taint": "OE" if info["license"] != "GPL" else ""}
    if "version" in info:
        entry["version"] = info["version"]
    write_tree(SYS_MODULE / name, entry | {"holders/.keep": ""})
    (SYS_MODULE / name / "holders/.keep").unlink()
    set_loaded([*loaded(), name])
    if name == "nouveau":
        for address in present_gpus():
            if bound_to(address) is None:
                bind(address, "nouveau")
        if any(bound_to(address) == "nouveau" for address in present_gpus()) and host()["nouveau"].get("in_use"):
            write_tree(SYS_MODULE / name, {"refcnt": "4"})


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


# -- DKMS -------------------------------------------------------------------------------------------------------------


def dkms_built(version: str, kernel: str) -> bool:
    return (DKMS_TREE / "nvidia" / version / kernel / "x86_64/module/nvidia.ko.xz").exists()


def dkms_versions() -> list[str]:
    """Versions of the one DKMS module that the simulated repository has."""
    return sorted(path.parent.name for path in (DKMS_TREE / "nvidia").glob("*/source"))


def dkms_install(version: str, kernel: str) -> None:
    """Build and install the modules for one kernel, as far as modinfo and modprobe can tell."""
    source = Path("/usr/src") / f"nvidia-{version}"
    if not (source / "dkms.conf").exists():
        raise Refused(f"Error! Could not find module source directory.\nDirectory: {source} does not exist.", 2)
    built = DKMS_TREE / "nvidia" / version
    built.mkdir(parents=True, exist_ok=True)
    if not (built / "source").is_symlink():
        (built / "source").symlink_to(source)
    if not (module_folder(kernel) / "build/Makefile").exists():
        raise Refused(
            f"Error! Your kernel headers for kernel {kernel} cannot be found at /lib/modules/{kernel}/build or"
            f" /lib/modules/{kernel}/source.\nPlease install the linux-headers-{kernel} package or use the --kernelsourcedir"
            " option to tell DKMS where it's located.",
            21,
        )
    print(f"Building module(s) nvidia/{version} for kernel {kernel} ({LABEL})... ", end="")
    log = built / "build/make.log"
    log.parent.mkdir(exist_ok=True)
    if (module_folder(kernel) / "SIMULATE_DKMS_FAILURE").exists():
        log.write_text(f"{LABEL}\nnv-pci.c:212: error: too few arguments to function 'pci_resize_resource'\n")
        print("failed!")
        raise Refused(
            f"Error! Bad return status for module build on kernel: {kernel} (x86_64)\nConsult {log} for more information.",
            10,
        )
    log.write_text(f"{LABEL}\n")
    flavor = re.search(r"^SANDBOX_FLAVOR=(\w+)", (source / "dkms.conf").read_text(), re.MULTILINE)[1]
    folder = built / kernel / "x86_64/module"
    folder.mkdir(parents=True, exist_ok=True)
    target = module_folder(kernel) / "updates/dkms"
    target.mkdir(parents=True, exist_ok=True)
    for name in DKMS_MODULES:
        data = lzma.compress(elf_module(modinfo_fields(name, kernel, flavor, version)), preset=0)
        (folder / f"{name}.ko.xz").write_bytes(data)
        (target / f"{name}.ko.xz").write_bytes(data)
    depmod(kernel)
    print("done.")


def dkms_remove(version: str, kernel: str) -> None:
    """Take one version's modules away from one kernel."""
    shutil.rmtree(DKMS_TREE / "nvidia" / version / kernel, ignore_errors=True)
    for name in DKMS_MODULES:
        path = module_folder(kernel) / "updates/dkms" / f"{name}.ko.xz"
        if path.exists() and read_modinfo(path)["version"] == version:
            path.unlink()
    if module_folder(kernel).is_dir():
        depmod(kernel)


def dkms(arguments: list[str]) -> None:
    """dkms status|add|build|install|autoinstall|remove [-m M] [-v V] [-k K|--all] [M/V]."""
    if not arguments or arguments[0] in ("-V", "--version"):
        print("dkms-3.3.0")
        return
    command, rest = arguments[0], iter(arguments[1:])
    version, kernels, every = "", [], False
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if name in ("-m", "--module", "-v", "--version", "-k", "--kernelver", "-a", "--arch", "-c"):
            value = value if has_value else next(rest, "")
            if name in ("-m", "--module"):
                version = value.partition("/")[2] or version
            elif name in ("-v", "--version"):
                version = value
            elif name in ("-k", "--kernelver"):
                kernels.append(value.partition("/")[0])
        elif name == "--all":
            every = True
        elif not name.startswith("-"):
            version = name.partition("/")[2] or version
    present = sorted(path.name for path in Path("/lib/modules").iterdir() if path.is_dir())
    if command == "status":
        for item in [version] if version else dkms_versions():
            done = [kernel for kernel in (kernels or present) if dkms_built(item, kernel)]
            for kernel in done:
                print(f"nvidia/{item}, {kernel}, x86_64: installed")
            if not done and item in dkms_versions():
                print(f"nvidia/{item}: added")
    elif command == "add":
        folder = DKMS_TREE / "nvidia" / version
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "source").is_symlink():
            (folder / "source").symlink_to(f"/usr/src/nvidia-{version}")
    elif command in ("build", "install"):
        for kernel in kernels or [running()]:
            if not dkms_built(version, kernel):
                dkms_install(version, kernel)
    elif command == "autoinstall":
        for kernel in kernels or [running()]:
            for item in dkms_versions():
                if not dkms_built(item, kernel):
                    dkms_install(item, kernel)
    elif command in ("remove", "uninstall", "unbuild"):
        for kernel in present if every else kernels:
            dkms_remove(version, kernel)
        if every:
            shutil.rmtree(DKMS_TREE / "nvidia" / version, ignore_errors=True)
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
    initramfs = Path(f"/boot/initrd.img-{running()}")
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
    if not (STATE / "prepared").exists():
        prepare()
        (STATE / "prepared").touch()
    for folder in (PCI_DEVICES, PCI_DRIVERS, SYS_MODULE, PROC_DRIVER):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    set_loaded([])
    (STATE / "boot_id").write_text(f"{uuid.uuid4()}\n")
    described = host()
    for device in [*([] if described.get("wsl") else described["gpus"]), *described["other_devices"]]:
        add_pci_device(device)
    write_gpu_table()
    if described.get("wsl"):
        boot_wsl(described)
    else:
        load_at_boot()
    write_tree(Path("/run/systemd/timesync"), {"synchronized": ""})
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
        play = {"modprobe": modprobe, "rmmod": rmmod, "update-initramfs": update_initramfs, "dkms": dkms, "gpu": gpu}
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
