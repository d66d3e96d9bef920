# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data files below packages/, turned into packages with stub content. Adding a branch is adding rows there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import stubs
from .debs import Package
from .settings import SANDBOX

FOLDER = SANDBOX / "packages"
# Whom the packages say that they are from: the collection tells sources apart by it.
PUBLISHERS = {
    "nvidia": "NVIDIA CORPORATION <cudatools@nvidia.com>",
    "debian": "Debian NVIDIA Maintainers <pkg-nvidia-devel@lists.alioth.debian.org>",
    "ubuntu": "Ubuntu Core Developers <ubuntu-devel-discuss@lists.ubuntu.com>",
    "el": "Rocky Enterprise Software Foundation",
}
RELATIONS = {
    "deb": {
        "pre_depends": "Pre-Depends",
        "depends": "Depends",
        "recommends": "Recommends",
        "conflicts": "Conflicts",
        "breaks": "Breaks",
        "provides": "Provides",
        "replaces": "Replaces",
    },
    "rpm": {
        "depends": "Requires",
        "recommends": "Recommends",
        "supplements": "Supplements",
        "conflicts": "Conflicts",
        "provides": "Provides",
        "obsoletes": "Obsoletes",
    },
}


@dataclass
class Repository:
    """One repository: where it is served, and what it holds."""

    name: str
    format: str
    publisher: str
    facts: dict[str, Any]
    packages: list[Package] = field(default_factory=list)
    components: dict[str, str] = field(default_factory=dict)
    """Debian archives: file name -> component."""
    layout: str = "flat"
    """Debian repositories: `flat`, or `archive` with suites and components."""
    streams: dict[str, list[Package]] = field(default_factory=dict)
    """Modular rpm repositories: stream -> its packages."""

    @property
    def path(self) -> str:
        """Below the server's folder."""
        return self.facts["path"]


def data() -> bytes:
    """Everything that the repositories are made from."""
    return b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.yml")))


def repositories() -> list[Repository]:
    """Every repository of the sandbox."""
    found = []
    for path in sorted(FOLDER.glob("*.yml")):
        found += describe(path)
    return found


def describe(path: Path) -> Iterator[Repository]:
    """The repositories of one data file."""
    described = yaml.safe_load(path.read_text())
    for name, facts in described["repositories"].items():
        repository = Repository(name, described["format"], described["publisher"], facts)
        repository.layout = described.get("layout", "flat")
        for row, words, cuda in rows(described, name, facts):
            package = make(repository, row, words, cuda)
            repository.packages.append(package)
            repository.components[package.filename] = row.get("component", "main")
            for stream in facts.get("streams", []):
                if in_stream(stream, words.get("branch"), row.get("flavor")):
                    repository.streams.setdefault(stream, []).append(package)
        yield repository


def rows(described: dict[str, Any], name: str, facts: dict[str, Any]) -> Iterator[tuple[dict, dict, int]]:
    """Every package's row, the words for its templates, and what libcuda says of the driver's CUDA."""
    wanted = lambda row: name in row.get("in", [name])  # noqa: E731  # filters in one line each
    drivers = list(filter(wanted, described.get("drivers", [])))
    newest = {}
    for driver in drivers:
        words = driver_words(described, driver, facts)
        newest[words["branch"]] = words
        for row in filter(wanted, described.get("packages", [])):
            if words["branch"] in row.get("only", [words["branch"]]):
                yield row, words, driver["cuda"]
    for kernel in facts.get("kernels", []):
        words = {**facts, "k": kernel["release"], "full": kernel["version"], "v": kernel["release"]}
        for row in filter(wanted, described.get("each_kernel", [])):
            yield row, words, 0
        for row in described.get("each_kernel_and_branch", []):
            for branch in (branch for branch in row["only"] if branch in newest):
                yield row, {**words, "branch": branch, "v": newest[branch]["v"]}, 0
    for row in filter(wanted, described.get("others", [])):
        full = str(row["version"]).format(**facts)
        yield row, {**facts, **row, "full": full, "v": full.rpartition("-")[0] or full}, 0


def driver_words(described: dict[str, Any], driver: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What templates may name of a driver."""
    version = driver["version"]
    words = {**facts, "v": version, "branch": int(version.partition(".")[0]), "revision": driver.get("revision", "1")}
    words["fails_on"] = driver.get("fails_on", "")
    words["full"] = described["version"].format(**words)
    words["ev"] = words["full"].rpartition("-")[0]
    return words


def in_stream(stream: str, branch: int | None, flavor: str | None) -> bool:
    """Whether a driver's package is in a module stream: 580-open, 580-dkms, open-dkms (the newest), latest-dkms."""
    of, _, kind = stream.partition("-")
    if branch is None or (of.isdecimal() and int(of) != branch):
        return False
    return flavor in (None, "open" if "open" in (of, kind) else "proprietary")


def make(repository: Repository, row: dict[str, Any], words: dict[str, Any], cuda: int) -> Package:
    """One package, with its stub content."""
    deb = repository.format == "deb"
    package = Package(
        row["name"].format(**words),
        words["full"],
        row.get("architecture", "amd64" if deb else "x86_64"),
        f"{row.get('what', 'NVIDIA driver component' if 'branch' in words else 'System component')}. {stubs.NOTE}: a stub.",
        maintainer=PUBLISHERS[repository.publisher],
    )
    if "source" in row:
        package.fields["Source"] = row["source"].format(**words)
    if "multi_arch" in row:
        package.fields["Multi-Arch"] = row["multi_arch"]
    if deb:
        package.fields["Section"] = "NVIDIA" if repository.publisher == "nvidia" else row.get("component", "main")
    for key, tag in RELATIONS[repository.format].items():
        if key in row:
            package.relations[tag] = [text.format(**words) for text in row[key]]
    layout = stubs.EL if not deb else stubs.UBUNTU if "ubuntu" in repository.path else stubs.DEBIAN
    stubs.fill(package, row.get("content", []), layout, words, cuda)
    return package
