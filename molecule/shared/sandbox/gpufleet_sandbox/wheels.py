# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wheels and index pages: retagging torch's wheels, making stand-ins, writing what an index shows. Knows no network."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import urllib.parse
import zipfile
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
# The earliest time that a zip can hold, so that the same content gives the same bytes.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def sha256_of(path: Path) -> str:
    """Hash a file without holding it in memory."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            total.update(block)
    return total.hexdigest()


def normalized(name: str) -> str:
    """A project's name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def record_line(path: str, data: bytes) -> str:
    """One line of RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(data)}\n"


class Unexpected(Exception):
    """A wheel does not look the way the retagging needs."""


def retag(path: Path, version: str) -> Path:
    """Give a wheel another version, in place, and return its new path.

    The files of dist-info are the last ones of torch's wheels. So nothing of the other 900 MB has to be copied: the
    archive is cut where they begin, and written on from there. All other files stay byte for byte the same.
    """
    name, old, rest = path.name.split("-", 2)
    before, after = f"{name}-{old}.dist-info/", f"{name}-{version}.dist-info/"
    with zipfile.ZipFile(path, "a") as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        metadata = [entry for entry in entries if entry.filename.startswith(before)]
        if not metadata or metadata != entries[-len(metadata) :]:
            raise Unexpected(f"{path.name}: the files of {before} are not the last ones of the archive")
        contents = {entry.filename: archive.read(entry) for entry in metadata if not entry.is_dir()}
        archive.start_dir = metadata[0].header_offset
        for entry in metadata:
            archive.filelist.remove(entry)
            del archive.NameToInfo[entry.filename]
        text = contents[f"{before}METADATA"].decode()
        changed, times = re.subn(
            rf"^Version: {re.escape(old)}$", f"Version: {version}", text, count=1, flags=re.MULTILINE
        )
        if times != 1:
            raise Unexpected(f"{path.name}: METADATA does not say Version: {old}")
        contents[f"{before}METADATA"] = changed.encode()
        record = contents.pop(f"{before}RECORD").decode().splitlines(keepends=True)
        lines = [line for line in record if not line.startswith(before)]
        for old_path, data in contents.items():
            new_path = after + old_path.removeprefix(before)
            lines.append(record_line(new_path, data))
            archive.writestr(_entry(new_path), data, zipfile.ZIP_DEFLATED)
        lines.append(f"{after}RECORD,,\n")
        archive.writestr(_entry(f"{after}RECORD"), "".join(lines), zipfile.ZIP_DEFLATED)
    return path.rename(path.with_name(f"{name}-{version}-{rest}"))


def _entry(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path, ZIP_TIME)
    entry.external_attr = 0o100644 << 16
    return entry


def make_wheel(
    name: str, version: str, tag: str, summary: str, files: dict[str, str], requires: list[str]
) -> tuple[str, bytes]:
    """A small wheel: its file name and its bytes."""
    plain = name.replace("-", "_")
    info = f"{plain}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\nRequires-Python: >=3.10\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    pure = "true" if tag.endswith("-none-any") else "false"
    described = {
        **files,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: gpufleet-sandbox\nRoot-Is-Purelib: {pure}\nTag: {tag}\n",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        lines = []
        for path, text in described.items():
            archive.writestr(_entry(path), text)
            lines.append(record_line(path, text.encode()))
        archive.writestr(_entry(f"{info}/RECORD"), "".join(lines) + f"{info}/RECORD,,\n")
    return f"{plain}-{version}-{tag}.whl", buffer.getvalue()


@dataclass(frozen=True)
class Listed:
    """A wheel as an index page shows it."""

    url: str
    file: str
    sha256: str
    metadata_sha256: str | None = None
    requires_python: str = ""

    @property
    def project(self) -> str:
        """The project that the wheel belongs to."""
        return normalized(self.file.split("-")[0])


def wheel_metadata(path: Path) -> bytes:
    """METADATA of a wheel."""
    with zipfile.ZipFile(path) as archive:
        name = next(entry for entry in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry))
        return archive.read(name)


def project_page(project: str, wheels: list[Listed]) -> str:
    """The page of one project (PEP 503, with PEP 658's metadata files)."""
    lines = []
    for wheel in sorted(wheels, key=lambda item: item.file):
        attributes = ""
        if wheel.requires_python:
            attributes += f' data-requires-python="{html.escape(wheel.requires_python)}"'
        if wheel.metadata_sha256:
            for name in ("data-core-metadata", "data-dist-info-metadata"):
                attributes += f' {name}="sha256={wheel.metadata_sha256}"'
        target = f"{wheel.url}{urllib.parse.quote(wheel.file)}#sha256={wheel.sha256}"
        lines.append(f'<a href="{target}"{attributes}>{html.escape(wheel.file)}</a><br>')
    return _page(f"Links for {project}", lines)


def root_page(projects: list[str]) -> str:
    """The page that lists an index's projects."""
    return _page("Simple index", [f'<a href="{project}/">{project}</a><br>' for project in sorted(projects)])


def _page(title: str, lines: list[str]) -> str:
    body = "\n".join(lines)
    return (
        '<!DOCTYPE html>\n<html>\n<head><meta name="pypi:repository-version" content="1.1">'
        f"<title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )
