# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The way back: drivers that served before, with their package files, and the role's journal.

A generation is whole or it is not there: it is written beside its place and renamed when everything is on the disk. What it holds is
compared with its checksums before anybody uses it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import typing as t
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import kernels
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

from .commands import NOT_THERE, Run
from .model import DriverError, Package, PackageFile

STATE = "/var/lib/gpufleet"
SCHEMA = 1
_PARTIAL = ".partial"
_LIMIT = 60.0
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Generation:
    """What served at one time. ``packages`` hold ``name``, ``version``, ``architecture``, ``file`` (in packages/) and ``sha256``."""

    n: int
    created: str
    driver: t.Mapping[str, t.Any]
    """branch, version, flavor, source, package_set"""
    packages: t.Sequence[t.Mapping[str, str]]
    configuration: t.Mapping[str, str] = field(default_factory=dict)
    """Files of the package manager (pins, streams, locks): path to content."""
    default_kernel: str | None = None
    environments: t.Mapping[str, str] = field(default_factory=dict)
    """Name of each environment to the id of its current release."""


class Store:
    """The generations in a folder, /var/lib/gpufleet/generations."""

    def __init__(self, folder: Path = Path(STATE) / "generations") -> None:
        self.folder = folder

    def numbers(self) -> list[int]:
        """Numbers of the generations that are there, whole or not, the oldest first."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"[1-9]\d*", name))

    def all(self) -> list[Generation]:
        """Generations that one can go back to, the oldest first: whole, with every package file."""
        found = []
        for number in self.numbers():
            with contextlib.suppress(DriverError):  # read() tells whoever asks for that one
                found.append(self.read(number))
        return found

    def read(self, n: int) -> Generation:
        """Return a generation whose files are all there; their checksums are compared by files()."""
        folder = self.folder / str(n)
        try:
            document = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
            if document.pop("schema") != SCHEMA or document["n"] != n:
                raise ValueError("it is of another version")
            generation = Generation(**document)
            missing = [item["file"] for item in generation.packages if not _inside(folder, item["file"]).is_file()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            known = ", ".join(str(number) for number in self.numbers() if number != n)
            why = f"{error}" if folder.is_dir() else "there is no such generation"
            raise DriverError(f"Generation {n} cannot be used: {why}. Other generations: {known or 'none'}.") from error
        if missing:
            raise DriverError(f"Generation {n} cannot be used: {folder}/packages lacks {', '.join(missing)}.")
        return generation

    def files(self, generation: Generation) -> list[PackageFile]:
        """Return a generation's package files, each compared with its checksum."""
        found = []
        for item in generation.packages:
            path = _inside(self.folder / str(generation.n), item["file"])
            if sha256(path) != item["sha256"]:
                raise DriverError(
                    f"Generation {generation.n} cannot be used: {path} is damaged (its checksum differs). Nothing was changed."
                )
            package = Package(item["name"], item["version"], item["architecture"])
            found.append(PackageFile(package, path, item["sha256"]))
        return found

    def write(
        self,
        created: str,
        driver: t.Mapping[str, t.Any],
        packages: t.Sequence[PackageFile],
        configuration: t.Mapping[str, str],
        default_kernel: str | None,
        environments: t.Mapping[str, str],
        at_least: int = 1,
    ) -> Generation:
        """Write the next generation; ``at_least`` keeps a number from being used again after its generation was dropped."""
        number = max([at_least - 1, *self.numbers()]) + 1
        partial = self.folder / f"{number}{_PARTIAL}"
        try:
            _make_folder(self.folder)
            self._clear_partial()
            _make_folder(partial / "packages")
            kept = [self._keep(file, partial / "packages") for file in packages]
            generation = Generation(number, created, driver, kept, configuration, default_kernel, environments)
            write_json(partial / "generation.json", {"schema": SCHEMA, **asdict(generation)}, 0o600)
            _sync(partial / "packages")
            _sync(partial)
            partial.rename(self.folder / str(number))
            _sync(self.folder)
        except OSError as error:
            self._clear_partial()
            size = sum(file.path.stat().st_size for file in packages if file.path.is_file())
            raise DriverError(
                f"The way back cannot be kept in {self.folder}: {error.strerror or error}. It takes up to {size // 2**20 + 1} MiB; free"
                " space there, then run again."
            ) from error
        return generation

    def _keep(self, file: PackageFile, folder: Path) -> dict[str, str]:
        """Put a package file into a generation, and describe it."""
        target = folder / file.path.name
        for twin in sorted(self.folder.glob(f"*/packages/{glob.escape(file.path.name)}")):
            if _link(twin, target, file.sha256):
                break
        else:
            _copy(file.path, target)
            if sha256(target) != file.sha256:
                raise DriverError(f"{file.path} is damaged (its checksum differs). Run again to have it fetched anew.")
        return {**asdict(file.package), "file": target.name, "sha256": file.sha256}

    def note(self, generation: Generation, environments: t.Mapping[str, str]) -> Generation:
        """Write down which releases a generation has now: environments come and go while it serves."""
        noted = replace(generation, environments=environments)
        if noted != generation:
            document = {"schema": SCHEMA, **asdict(noted)}
            write_json(self.folder / str(noted.n) / "generation.json", document, 0o600)
        return noted

    def prune(self, keep: int, serving: int | None, also: t.Collection[int] = ()) -> list[int]:
        """Drop what is older than the ``keep`` newest; never the serving one, its predecessor or ``also``. Return what was dropped."""
        self._clear_partial()
        usable = [generation.n for generation in self.all()]
        stay = {*usable[-max(keep, 1) :], *also}
        if serving is not None:
            stay.add(serving)
            stay.update([number for number in usable if number < serving][-1:])
        dropped = [number for number in self.numbers() if number not in stay]
        for number in dropped:
            # Renamed first: a drop that is interrupted leaves no generation that looks usable.
            gone = self.folder / f"{number}{_PARTIAL}"
            (self.folder / str(number)).rename(gone)
            shutil.rmtree(gone)
        return dropped

    def _clear_partial(self) -> None:
        for path in self.folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(path)


def _inside(folder: Path, name: str) -> Path:
    if os.path.basename(name) != name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no file name")
    return folder / "packages" / name


def _link(twin: Path, target: Path, checksum: str) -> bool:
    """Share the file of an older generation, if it is exactly the same."""
    if sha256(twin) != checksum:
        return False
    try:
        os.link(twin, target)
    except OSError:
        return False  # a file system without links: a copy serves as well
    return True


def _copy(source: Path, target: Path) -> None:
    """Copy through to the disk. No link: the package manager's cache is not ours, and may be written to."""
    with source.open("rb") as reader, target.open("xb") as writer:
        os.fchmod(writer.fileno(), 0o600)
        shutil.copyfileobj(reader, writer, _CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def sha256(path: Path) -> str:
    """Return a file's checksum."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            total.update(chunk)
    return total.hexdigest()


def write_json(path: Path, document: t.Mapping[str, t.Any], mode: int = 0o644) -> None:
    """Replace a file by a JSON document, completely or not at all, also when the power fails."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    _sync(path.parent)


def _make_folder(path: Path) -> None:
    """Package files and what they were installed from concern root only."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o755 if folder == Path(STATE) else 0o700)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- the journal ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journal:
    """What this collection did to the host's driver, so that it can be undone. Written after every change."""

    previous: t.Mapping[str, t.Any] | None = None
    """What served before the last change: branch, version, flavor, source, packages."""
    present: t.Mapping[str, t.Any] | None = None
    holds: t.Sequence[str] = field(default_factory=list)
    """Packages that we hold or lock; others' holds are not ours to release."""
    gpus: t.Sequence[t.Mapping[str, str]] = field(default_factory=list)
    generation: int | None = None
    """The generation that serves."""
    before: t.Mapping[str, t.Any] | None = None
    """What was there before us, for removal."""


def read_journal(path: Path = Path(STATE) / "driver.json") -> Journal:
    """Return the journal; without one, an empty one. Earlier versions wrote ``previous`` and ``present`` only."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it holds no object")
        if document.pop("schema", 1) != SCHEMA:
            raise DriverError(
                f"{path} was written by a newer version of gpufleet.workstation. Use that version, on this host too."
            )
        known = Journal.__dataclass_fields__
        return Journal(**{name: value for name, value in document.items() if name in known and value is not None})
    except FileNotFoundError:
        return Journal()
    except (OSError, ValueError) as error:
        raise DriverError(
            f"{path} cannot be read: {error}. It says what was there before this collection; restore it from a backup, or delete it"
            " to go on without (removal then leaves the driver's packages where they are)."
        ) from error


def write_journal(journal: Journal, path: Path = Path(STATE) / "driver.json") -> None:
    """Replace the journal."""
    _make_folder(path.parent)
    write_json(path, {"schema": SCHEMA, **asdict(journal)})


# -- what else belongs to a generation --------------------------------------------------------------------------------


def environments(host: Host, root: str) -> dict[str, str]:
    """Return the current release of each environment below ``root``."""
    found = {}
    for name in host.names(root):
        target = host.link(f"{root}/{name}/current")
        if target and not name.startswith("."):
            found[name] = os.path.basename(target)
    return found


def default_kernel(host: Host) -> str | None:
    """Return the kernel that boots next, where the boot loader's configuration says."""
    return next((kernel["release"] for kernel in kernels.kernels(host) if kernel["default"]), None)


def restore_default_kernel(host: Host, run: Run, release: str | None) -> str:
    """Make a kernel the default again; return what a person has to do where that cannot be done, else nothing."""
    if release is None or default_kernel(host) == release:
        return ""
    image = f"/boot/vmlinuz-{release}"
    if not host.exists(image):
        return f"Kernel {release}, which was the default then, is not installed any more; install it, or check what boots next."
    done = run(["grubby", "--set-default", image], _LIMIT)
    if done.status == 0:
        return ""
    said = "" if done.status == NOT_THERE else f" (grubby: {done.last_words})"
    return f"Kernel {release} was the default then{said}: choose it in /etc/default/grub (GRUB_DEFAULT) and run update-grub."
