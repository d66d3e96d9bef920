# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which wheels locks need, and the pages of an index (PEP 503 and 691, read and written). Pure."""

from __future__ import annotations

import dataclasses
import html
import html.parser
import json
import re
import typing as t
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, tool

PACKAGE_INDEX = "packages/simple"
TORCH_INDEXES = "whl"
GENERATOR = "gpufleet.workstation wheel_mirror"
"""What every page names as its generator: who makes locks tells a mirror, which lacks most files, from an index by it."""
GLIBC_MINOR = 28
"""Locks are resolved for glibc 2.28: what needs a newer one may not run on every host of the lock."""
_OLDEST_GLIBC_MINOR = {"x86_64": 5, "aarch64": 17}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl\Z")


class MirrorError(Exception):
    """The mirror cannot be brought to what is asked for. The text says why and what to do, for people."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A wheel that an index or a folder offers. Some indexes do not announce the hash."""

    file: str
    url: str
    sha256: str | None

    @property
    def project(self) -> str:
        return normalized(self.file.split("-")[0])


@dataclasses.dataclass(frozen=True, order=True)
class Wanted:
    """One wheel that a lock needs: any file with one of the hashes that runs on the platform."""

    index: str
    """Its index on the mirror: `whl/cu128` or `packages/simple`."""
    project: str
    version: str
    python: str
    arch: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.project} {self.version} for Python {self.python} on {self.arch}"

    def rank(self, link: Link) -> tuple[int, ...] | None:
        """How good a file is, the smallest is the best; None where it is none that may be used."""
        allowed = link.sha256 in self.hashes if link.sha256 else _version(link.file) == self.version
        if link.project != self.project or not allowed:
            return None
        found = rank(link.file, self.python, self.arch)
        # A hash that is announced is known before hundreds of megabytes have come.
        return (link.sha256 is None, *found) if found else None


def wanted(locks: t.Iterable[lock.Lock]) -> list[Wanted]:
    """What the locks need, with the uv that installs it."""
    found = set()
    for item in locks:
        python, arch = str(item.inputs["python"]), str(item.inputs["arch"])
        tag = str(item.inputs["torch"]).partition("+")[2]
        if not re.fullmatch(r"[a-z0-9]+", tag) or arch not in _OLDEST_GLIBC_MINOR:
            raise MirrorError(
                f"the lock of {item.inputs['name']} is for torch {item.inputs['torch']} on {arch}, which no index is known for"
            )
        packages = [*item.packages, lock.Pinned("uv", tool.UV_VERSION, (tool.WHEELS[arch].sha256,))]
        for package in packages:
            index = f"{TORCH_INDEXES}/{tag}" if package.from_torch_index else PACKAGE_INDEX
            found.add(Wanted(index, package.name, package.version, python, arch, package.hashes))
    return sorted(found)


def normalized(name: str) -> str:
    """A project's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def rank(file: str, python: str, arch: str) -> tuple[int, int] | None:
    """Where a wheel stands in an installer's order of preference; None where it does not run on this platform."""
    parts = file[: -len(".whl")].split("-")
    if not _SAFE_NAME.match(file) or len(parts) not in (5, 6):
        return None
    pythons, abis, platforms = (part.split(".") for part in parts[-3:])
    interpreters, systems = _interpreters(python), _platforms(arch)
    ranks = [
        (interpreters.index((tag, abi)), systems.index(system))
        for tag in pythons
        for abi in abis
        for system in platforms
        if (tag, abi) in interpreters and system in systems
    ]
    return min(ranks, default=None)


def _interpreters(python: str) -> list[tuple[str, str]]:
    minor = int(python.split(".")[1])
    own = f"cp3{minor}"
    found = [(own, own), (own, "abi3"), (own, "none")]
    found += [(f"cp3{older}", "abi3") for older in range(minor - 1, 1, -1)]
    return [
        *found,
        (f"py3{minor}", "none"),
        ("py3", "none"),
        *((f"py3{older}", "none") for older in range(minor - 1, -1, -1)),
    ]


def _platforms(arch: str) -> list[str]:
    found = []
    for minor in range(GLIBC_MINOR, _OLDEST_GLIBC_MINOR[arch] - 1, -1):
        found += [f"manylinux_2_{minor}_{arch}"] + ([f"{_LEGACY[minor]}_{arch}"] if minor in _LEGACY else [])
    return [*found, f"linux_{arch}", "any"]


def _version(file: str) -> str:
    return file.split("-")[1] if "-" in file else ""


def read_page(text: str, media_type: str, url: str) -> list[Link]:
    """The wheels of a project's page, in either format. Raises MirrorError for what is no page."""
    if "json" not in media_type:
        page = _Page()
        page.feed(text)
        base = urljoin(url, page.base)
        offered = [(urljoin(base, href), None, None) for href in page.links]
    else:
        try:
            files = json.loads(text)["files"]
            offered = [(urljoin(url, item["url"]), item["filename"], item["hashes"].get("sha256")) for item in files]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MirrorError(f"what the index serves is no page of a project: {error}") from error
    found = []
    for address, name, announced in offered:
        plain, fragment = urldefrag(address)
        file = name or unquote(urlsplit(plain).path.rpartition("/")[2])
        sha256 = announced or fragment.partition("sha256=")[2]
        if _SAFE_NAME.match(file):
            found.append(Link(file, plain, sha256 if _HASH.match(sha256) else None))
    return found


class _Page(html.parser.HTMLParser):
    """Collects the links of a page, and the address that they are relative to."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if target and tag == "a":
            self.links.append(target)
        elif target and tag == "base":
            self.base = target


@dataclasses.dataclass(frozen=True, order=True)
class Stored:
    """A wheel of the mirror, as a page lists it. It lies in a folder that its hash names."""

    file: str
    sha256: str

    @property
    def path(self) -> str:
        """Where it lies below the mirror's folder."""
        return f"files/{self.sha256}/{self.file}"


def project_page(project: str, files: t.Iterable[Stored], metadata: t.Callable[[Stored], str]) -> str:
    """The page of one project; `metadata` gives the sha256 of a wheel's metadata, which is served beside it (PEP 658)."""
    lines = []
    for item in sorted(files):
        digest = metadata(item)
        attributes = "".join(f' {name}="sha256={digest}"' for name in ("data-core-metadata", "data-dist-info-metadata"))
        target = f"../../../{quote(item.path)}#sha256={item.sha256}"
        lines.append(f'<a href="{target}"{attributes}>{html.escape(item.file)}</a><br>')
    return _page(f"Links for {project}", lines)


def index_page(projects: t.Iterable[str]) -> str:
    """The page that lists the projects of an index."""
    return _page("Simple index", [f'<a href="{name}/">{name}</a><br>' for name in sorted(projects)])


def _page(title: str, lines: list[str]) -> str:
    body = "\n".join(lines)
    return (
        f'<!DOCTYPE html>\n<html>\n<head><meta charset="utf-8"><meta name="generator" content="{GENERATOR}">'
        '<meta name="pypi:repository-version" content="1.1">'
        f"<title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )
