# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What a change of a driver is made of, and what a package manager has to offer for it.

`change.py` is the one flow for every system; `apt.py` and `dnf.py` implement `PackageManager`; `judge.py` decides, without
I/O, whether a simulated transaction may run; `kernel_modules.py` builds and verifies modules; `generations.py` keeps the way
back. All of it runs on the managed host.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from pathlib import Path


class DriverError(Exception):
    """A change cannot be made or did not succeed. The text is for people: what failed, why, what is there now, what to do."""

    def __init__(self, text: str, **facts: t.Any) -> None:
        super().__init__(text)
        self.facts = facts
        """What a program can use: `kernels`, `compiler`, `restored`, `transaction`."""


@dataclass(frozen=True)
class Package:
    """An installed package, or one that is to be installed at exactly this version."""

    name: str
    version: str
    architecture: str = ""


@dataclass(frozen=True)
class PackageFile:
    """A package file that was fetched or repacked."""

    package: Package
    path: Path
    sha256: str


@dataclass(frozen=True)
class Change:
    """What a transaction does to one package, as the package manager's own solver says."""

    name: str
    before: str | None
    after: str | None
    origin: str = "unknown"
    """Who publishes what comes: `nvidia`, `distro` or `unknown`."""


@dataclass(frozen=True)
class Transaction:
    """What is asked of the package manager in one go."""

    install: tuple[str, ...]
    """Names; `name=version` is not used, versions are the pin's business."""
    remove: tuple[str, ...] = ()
    recommends: bool = False
    downgrade: bool = False


@dataclass(frozen=True)
class Request:
    """The driver part of a plan, as the module got it."""

    branch: int
    flavor: str
    source: str
    package_set: str
    transaction: Transaction
    version: str = ""
    """What is asked for: "580.*", or an exact version of the driver."""
    kernels: tuple[str, ...] = ()
    """Releases that can boot next: running, default, one fallback."""
    module_build: str = "dkms"
    """`dkms`: compiled on the host; `prebuilt`: comes in packages, signed."""
    headers: tuple[str, ...] = ()
    repository: t.Mapping[str, t.Any] | None = None
    """`path`, `content`, `key_path` of what is to be written; only `path` where a description that is there is adopted."""
    key: str = ""
    """Text of the key that signs the repository; empty: `key_path` is not ours."""
    pin: t.Mapping[str, t.Any] | None = None
    proxy: t.Mapping[str, str] = field(default_factory=dict)
    """`http`, `https`, `no_proxy`, `ca_file`; the addresses may hold passwords."""


class PackageManager(t.Protocol):
    """What the flow needs of apt and dnf. Every method raises DriverError with a text for people; none asks questions.

    One object serves one call of the module. `holds` are names of packages that the flow has noted in the journal before it asks to
    hold them: a name that is not among them is held by the user.
    """

    name: str

    def wait(self, limit: float) -> None:
        """Wait until nobody else changes packages, at most so many seconds; then say who does."""

    def interrupted(self) -> list[str]:
        """Name what an interrupted transaction left half-done, for people; nothing where all is consistent."""

    def repair(self) -> list[str]:
        """Finish or undo what was interrupted, so that the package manager works again; say what was done."""

    def describe_repository(self, request: Request) -> bool:
        """Write repository file and key where they differ; whether anything changed. refresh() undoes it where it is unusable."""

    def refresh(self, request: Request) -> None:
        """Read the lists of the driver's source anew; other people's broken repositories do not matter."""

    def choose(self, request: Request, lasting: bool) -> bool:
        """Make the solver prefer the planned branch and source (pin, module stream); whether anything on the host changed.

        With ``lasting`` false only what this object simulates and downloads prefers them: an upgrade of the system that runs before
        the window must not bring the planned branch.
        """

    def simulate(self, transaction: Transaction) -> list[Change]:
        """Ask the solver what would happen to every package; changes nothing. Holds do not stop it: the flow compares with held()."""

    def download(self, transaction: Transaction, folder: Path) -> list[PackageFile]:
        """Fetch everything the transaction needs into a folder, verified as the package manager verifies it."""

    def fetch(self, packages: t.Sequence[Package], folder: Path) -> list[PackageFile]:
        """Get the files of these exact versions: from the cache, from a repository, or repacked from what is installed.

        What cannot be had is missing in the result.
        """

    def install(self, transaction: Transaction, folder: Path) -> str:
        """Carry a downloaded transaction out, without network; return what the package manager printed."""

    def install_files(self, files: t.Sequence[Path], remove: t.Sequence[str]) -> str:
        """Make the driver's packages exactly these files (also older ones) and remove others, without network, in one go.

        Works also from the middle of a transaction that failed, and removes the configuration of what it removes.
        """

    def installed(self) -> list[Package]:
        """The driver's packages that are on the host now, half-done ones too."""

    def held(self) -> list[str]:
        """Names of all packages that are held or locked, by whomever."""

    def freeze(self, packages: t.Sequence[Package], holds: t.Sequence[str]) -> bool:
        """Keep exactly these versions through every upgrade of the system: our pin, and hold or lock these names; whether it changed."""

    def thaw(self, holds: t.Sequence[str]) -> None:
        """Release these names, which we hold, and nothing that the user holds."""

    def forget(self) -> list[str]:
        """Remove every trace of the functions above but holds: repository, key, pins, locks of ours; return the paths."""

    def read_configuration(self) -> dict[str, str]:
        """Files that say what the solver prefers (our pin, streams, locks), path to content, for a generation."""

    def write_configuration(self, files: t.Mapping[str, str]) -> None:
        """Make those files what read_configuration() gave, and remove ours that were not there."""
