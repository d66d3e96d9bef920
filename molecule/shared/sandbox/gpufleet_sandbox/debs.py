# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages and the indexes of a flat repository, as bytes. Pure: reads and writes no files."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

# Fixed, so that the same content gives the same bytes: 2026-01-01.
TIME = 1767225600


@dataclass
class Package:
    """What goes into one package: a .deb, or a .rpm with rpm's names for relations and scripts."""

    name: str
    version: str
    architecture: str
    description: str
    relations: dict[str, list[str]] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    programs: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    triggers: str = ""
    maintainer: str = "The gpufleet sandbox <sandbox@gpufleet.test>"

    @property
    def filename(self) -> str:
        """Name of the .deb, without the epoch, as apt expects it."""
        return f"{self.name}_{self.version.partition(':')[2] or self.version}_{self.architecture}.deb"

    def control(self) -> str:
        """The control stanza, without the fields that describe the .deb itself."""
        lines = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": self.maintainer,
            "Section": "NVIDIA",
            "Priority": "optional",
            **self.fields,
            **{key: ", ".join(values) for key, values in self.relations.items() if values},
            "Description": self.description,
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items())


def _tar(entries: list[tuple[str, bytes | str, int]]) -> bytes:
    """A tar of files (bytes) and symlinks (text), with the folders above them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        seen = set()

        def add(name: str, kind: bytes, mode: int, data: bytes = b"", target: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size, entry.linkname, entry.mtime = kind, mode, len(data), target, TIME
            entry.uname = entry.gname = "root"
            tar.addfile(entry, io.BytesIO(data))

        for path, content, mode in sorted(entries):
            for parent in reversed(Path(path.lstrip("/")).parents):
                if parent not in seen:
                    seen.add(parent)
                    add("./" if parent == Path(".") else f"./{parent}/", tarfile.DIRTYPE, 0o755)
            name = f"./{path.lstrip('/')}"
            if isinstance(content, str):
                add(name, tarfile.SYMTYPE, 0o777, target=content)
            else:
                add(name, tarfile.REGTYPE, mode, content)
        if not entries:
            add("./", tarfile.DIRTYPE, 0o755)
    return buffer.getvalue()


def _ar(members: list[tuple[str, bytes]]) -> bytes:
    """An ar archive, which is what a .deb is."""
    out = [b"!<arch>\n"]
    for name, data in members:
        out.append(f"{name:<16}{TIME:<12}{0:<6}{0:<6}{0o100644:<8o}{len(data):<10}`\n".encode())
        out += [data, b"\n" if len(data) % 2 else b""]
    return b"".join(out)


def build(package: Package) -> bytes:
    """The .deb, uncompressed: it is small and built often."""
    entries: list[tuple[str, bytes | str, int]] = [(path, data, 0o644) for path, data in package.files.items()]
    entries += [(path, data, 0o755) for path, data in package.programs.items()]
    entries += [(path, target, 0o777) for path, target in package.links.items()]
    conffiles = "".join(f"{path}\n" for path in sorted(package.files) if path.startswith("/etc/"))
    control: list[tuple[str, bytes | str, int]] = [("control", package.control().encode(), 0o644)]
    control += [(name, text.encode(), 0o755) for name, text in package.scripts.items()]
    if conffiles:
        control.append(("conffiles", conffiles.encode(), 0o644))
    if package.triggers:
        control.append(("triggers", package.triggers.encode(), 0o644))
    return _ar([("debian-binary", b"2.0\n"), ("control.tar", _tar(control)), ("data.tar", _tar(entries))])


def index_entry(package: Package, data: bytes, folder: str = ".") -> str:
    """The stanza of one .deb, which lies in a folder of the repository, in Packages."""
    control = package.control()
    head, _, description = control.partition("Description:")
    digest = hashlib.sha256(data).hexdigest()
    return (
        f"{head}Filename: {folder}/{package.filename}\nSize: {len(data)}\nSHA256: {digest}\nDescription:{description}"
    )


def release(files: dict[str, bytes], date: str, fields: dict[str, str]) -> str:
    """The Release file of a repository."""
    described = {**fields, "Date": date, "Acquire-By-Hash": "no"}
    lines = [f"{key}: {value}" for key, value in described.items()]
    lines += ["SHA256:"]
    lines += [f" {hashlib.sha256(data).hexdigest()} {len(data):>16} {name}" for name, data in sorted(files.items())]
    return "\n".join(lines) + "\n"
