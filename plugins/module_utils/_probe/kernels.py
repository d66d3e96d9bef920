# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Kernels that can boot, and the NVIDIA module that each of them would load.

A module's version, flavor and signer are read from the file itself (its .modinfo section and the signature after its end),
because package databases and DKMS's notes say what should be there. Reading is kept cheap: an uncompressed file is read at
its section table and its end only; of a compressed one the small sibling nvidia-modeset (1-2 MB) is unpacked, which one build
makes together with nvidia.ko and which carries the same fields and signature, while nvidia.ko itself unpacks to 15-100 MB.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shlex
import struct
import threading
import zlib
from typing import Any, BinaryIO, Iterator

from . import secure_boot, sysfs
from .host import KIB, MIB, Host, Unreadable, reason

_IMAGES = ("vmlinuz-", "Image-")  # arm64 on SUSE installs Image-*
_MODULE = re.compile(r"(nvidia(?:-current|-tesla|-legacy)?(?:-\d+(?:xx)?)?(?:-open)?)\.ko(\.xz|\.zst|\.gz)?$")
# Folders below /lib/modules/<release> in which packages and DKMS put nvidia.ko, in the order in which depmod prefers them.
_PLACES = (
    "updates/dkms",
    "updates",
    "extra",
    "extra/drivers/video",
    "weak-updates",
    "weak-updates/drivers/video",
    "kernel/drivers/video",
    "kernel/drivers/char/drm",
    "kernel",
)
_ENTRIES = "/boot/loader/entries"
_SMALL = 512 * KIB
_VERSION = re.compile(r"\d{2,4}\.\d+(?:\.\d+)?$")
_MODPROBE = re.compile(r"^\s*(?:alias|install)\s+nvidia\s(.*)$", re.MULTILINE)
_COMMAND_LIMIT = 10.0
_CHUNK = 256 * KIB
_UNPACKED_LIMIT = 256 * MIB


def newest_first(releases: set[str]) -> list[str]:
    """Sort kernel releases by their numbers, the newest first."""

    def key(release: str) -> list[tuple[int, int, str]]:
        return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.findall(r"\d+|[^\d]+", release)]

    return sorted(releases, key=key, reverse=True)


def running_kernel(host: Host) -> str:
    """Return the release of the running kernel."""
    return (host.text("/proc/sys/kernel/osrelease", KIB) or host.release).strip()


def kernels(host: Host) -> list[dict[str, Any]]:
    """Return the kernels that can boot, the newest first: those in /boot, and the running one where it comes from elsewhere."""
    running = running_kernel(host)
    installed = set()
    for name in host.names("/boot"):
        for prefix in _IMAGES:
            if name.startswith(prefix) and "rescue" not in name and not name.endswith((".old", ".bak", ".hmac")):
                installed.add(name[len(prefix) :])
    default = default_kernel(host, newest_first(installed))
    if _from_elsewhere(host, running) if installed else sysfs.virtualization(host) != "container":
        installed.add(running)
    return [
        {
            "release": release,
            "running": release == running,
            "default": None if default is None else release == default,
            "headers": host.exists(f"/lib/modules/{release}/build/Makefile"),
        }
        for release in newest_first(installed)
    ]


def _from_elsewhere(host: Host, running: str) -> bool:
    """Whether the running kernel, of which /boot has no image, is there all the same: the network or a hypervisor brings it, and its
    modules and headers lie here. One that was removed leaves at most lists and modules of others; it does not boot again."""
    folder = f"/lib/modules/{running}"
    return host.is_dir(f"{folder}/kernel") and host.exists(f"{folder}/build/Makefile")


def default_kernel(host: Host, installed: list[str]) -> str | None:
    """Return the release that GRUB boots next, or None where that cannot be told."""
    folder = next((path for path in ("/boot/grub", "/boot/grub2") if host.is_dir(path)), None)
    if folder is None or not installed:
        return None
    environment = dict(re.findall(r"^(\w+)=(.*)$", host.text(f"{folder}/grubenv") or "", re.MULTILINE))
    wanted = "0"
    settings = ["/etc/default/grub"]
    settings += [f"/etc/default/grub.d/{name}" for name in host.names("/etc/default/grub.d") if name.endswith(".cfg")]
    for path in settings:
        for line in (host.text(path) or "").splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and name == "GRUB_DEFAULT":
                wanted = "".join(shlex.split(value, comments=True)[:1])
    if wanted == "saved":
        wanted = environment.get("saved_entry", "").strip()
    wanted = environment.get("next_entry", "").strip() or wanted  # for one boot only, but that is the next one
    entries = loader_entries(host)
    if wanted in entries:
        return entries[wanted]
    if wanted.isdecimal() and entries:  # a place in the menu, which lists the newest first
        menu = newest_first(set(entries.values()))
        return menu[int(wanted)] if int(wanted) < len(menu) else None
    if wanted in ("", "0"):
        return installed[0]
    named = [release for release in installed if release in wanted]
    return max(named, key=len) if named else None


def loader_entries(host: Host) -> dict[str, str]:
    """Return {id: release} of the boot loader's entries (Boot Loader Specification; Red Hat's family), rescue images left out."""
    found = {}
    for name in host.names(_ENTRIES):
        if name.endswith(".conf") and "rescue" not in name:
            version = re.search(r"^version\s+(\S+)", host.text(f"{_ENTRIES}/{name}") or "", re.MULTILINE)
            if version:
                found[name[: -len(".conf")]] = version.group(1)
    return found


def modules_by_kernel(host: Host, releases: list[str], unknown: list[dict[str, str]]) -> dict[str, Any]:
    """Return {release: {version, flavor, signer, path} or None} of the module that each kernel would load.

    One thread a kernel: decompressing takes most of the time, and it runs in parallel.
    """
    found: dict[str, Any] = dict.fromkeys(releases)
    problems: dict[str, str] = {}

    def look(release: str) -> None:
        path = None
        try:
            path = module_path(host, release)
            found[release] = {**module_facts(host, path), "path": path} if path else None
        except Exception as error:  # whatever a file holds, the other kernels count
            problems[release] = f"{path}: {reason(error)}" if path else reason(error)
            found[release] = {"version": None, "flavor": None, "signer": None, "path": path} if path else None

    threads = [threading.Thread(target=look, args=(release,), daemon=True) for release in releases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for release in sorted(problems):
        unknown.append({"what": f"driver.modules_by_kernel[{release}]", "why": problems[release]})
    return found


def module_path(host: Host, release: str) -> str | None:
    """Return the path of the module that ``modprobe nvidia`` would load, or None."""
    for place in _PLACES:
        paths = list(_modules_below(host, f"/lib/modules/{release}/{place}"))
        if paths:
            chosen = modprobe_name(host) if len(paths) > 1 else ""
            return min(paths, key=lambda path: (os.path.basename(path).partition(".")[0] != chosen, path))
    return None


def modprobe_name(host: Host) -> str:
    """Return the module that the name nvidia stands for: Debian calls it nvidia-current or nvidia-current-open."""
    for name in host.names("/etc/modprobe.d"):
        if name.startswith("nvidia") and name.endswith(".conf"):
            for meaning in _MODPROBE.findall(host.text(f"/etc/modprobe.d/{name}") or ""):
                words = [word for word in meaning.split() if word.startswith("nvidia")]
                if words:
                    return words[0]
    return "nvidia"


def _modules_below(host: Host, folder: str) -> Iterator[str]:
    """NVIDIA modules in a folder and in its subfolders that are named after NVIDIA."""
    for name in host.names(folder) if host.is_dir(folder) else []:
        path = f"{folder}/{name}"
        if _MODULE.match(name):
            yield path
        elif name.startswith("nvidia") and "." not in name and host.is_dir(path):
            yield from (f"{path}/{inner}" for inner in host.names(path) if _MODULE.match(inner))


def module_facts(host: Host, path: str) -> dict[str, str | None]:
    """Return {version, flavor, signer} of a module file; signer is null for an unsigned one."""
    folder, name = os.path.split(path)
    match = _MODULE.match(name)
    packed = match.group(2) if match else None
    state = os.stat(host.at(path))
    if packed and match and state.st_size > _SMALL:
        sibling = f"{folder}/{match.group(1)}-modeset.ko{packed}"
        if host.exists(sibling):
            path = sibling
    if packed == ".zst":
        fields = printed_fields(host.run(["modinfo", "-0", host.at(path)], _COMMAND_LIMIT))
        return {**_facts(fields), "signer": fields.get("signer") or ("signed" if fields.get("sig_id") else None)}
    with host.open(path) as file:
        content = _unpacked(file, packed) if packed else file
        return {**_facts(_modinfo(content)), "signer": secure_boot.module_signer(content)}


def _facts(fields: dict[str, str]) -> dict[str, str | None]:
    version, licence = fields.get("version", ""), fields.get("license", "")
    if not _VERSION.match(version):
        raise Unreadable("it names no version: the file is damaged, or not NVIDIA's module")
    flavor = "open" if "GPL" in licence else "proprietary" if licence == "NVIDIA" else None
    return {"version": version, "flavor": flavor}


def printed_fields(text: str) -> dict[str, str]:
    """Fields as ``modinfo -0`` prints them: "name=value" ("filename: value" comes first), each ended by NUL; the first of a name counts."""
    fields: dict[str, str] = {}
    for entry in text.split("\0"):
        match = re.match(r"([^=:]+)[=:]\s*(.*)", entry, re.DOTALL)
        if match:
            fields.setdefault(match.group(1), match.group(2).strip())
    return fields


def _modinfo(file: BinaryIO) -> dict[str, str]:
    """Fields of the .modinfo section: "name=value", each ended by NUL; the first of a name counts."""
    fields: dict[str, str] = {}
    for entry in _modinfo_section(file).decode("utf-8", "replace").split("\0"):
        name, _equals, value = entry.partition("=")
        fields.setdefault(name, value)
    return fields


def _unpacked(file: BinaryIO, packed: str) -> BinaryIO:
    """Decompress into memory, step by step, so that a bomb cannot fill it."""
    whole = io.BytesIO()
    for piece in _unxz(file) if packed == ".xz" else _gunzip(file):
        if whole.write(piece) and whole.tell() > _UNPACKED_LIMIT:
            raise Unreadable(f"it unpacks to more than {_UNPACKED_LIMIT // MIB} MiB")
    whole.seek(0)
    return whole


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    unpacker = lzma.LZMADecompressor()
    while not unpacker.eof:
        hungry = bool(unpacker.needs_input)
        data = file.read(_CHUNK) if hungry else b""
        if hungry and not data:
            raise Unreadable("it ends too early")
        yield unpacker.decompress(data, MIB)


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(31)
    while not unpacker.eof:
        data = unpacker.unconsumed_tail or file.read(_CHUNK)
        if not data:
            raise Unreadable("it ends too early")
        yield unpacker.decompress(data, MIB)


def _modinfo_section(file: BinaryIO) -> bytes:
    """Return the .modinfo section of a 64-bit ELF file, through its section table."""
    header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF" or header[4] != 2 or header[5] != 1:
        raise Unreadable("it is no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", header, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", header, 58)
    if entry_size < 64 or not count or names_index >= count:
        raise Unreadable("its section table is damaged")
    file.seek(table)
    sections = file.read(entry_size * count)
    if len(sections) < entry_size * count:
        raise Unreadable("it ends before its section table")

    def content(index: int) -> bytes:
        offset, size = struct.unpack_from("<QQ", sections, index * entry_size + 24)
        file.seek(offset)
        return file.read(min(size, MIB))

    names = content(names_index)
    for index in range(count):
        (start,) = struct.unpack_from("<I", sections, index * entry_size)
        if names[start : names.find(b"\0", start)] == b".modinfo":
            return content(index)
    raise Unreadable("it has no .modinfo section")
