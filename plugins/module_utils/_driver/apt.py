# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The package manager of Debian and Ubuntu.

Everything runs with the same words, so that what was simulated is what is downloaded and installed. What this object writes into the
system's configuration: our repository, its key, our pin. What steers one call only (pins before the window, a proxy with its password)
lies in a folder below /run that only root can read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import typing as t
import weakref
from pathlib import Path

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import health
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.packages import is_driver_package

from . import judge
from .commands import Done, Run
from .kernel_modules import driver_version
from .model import Change, DriverError, Package, PackageFile, Request, Transaction

PREFERENCES = "/etc/apt/preferences.d/gpufleet-nvidia"
SOURCES = ("/etc/apt/sources.list.d/gpufleet-nvidia.sources", "/etc/apt/sources.list.d/gpufleet-archive.sources")
KEY = "/etc/apt/keyrings/gpufleet-nvidia.asc"
PRIORITY = 1001
"""Above 1000, which NVIDIA's pinning packages use: it also permits going back to an older version."""

_WORK = "/run/gpufleet-apt-"
_CACHE = "/var/cache/apt/archives"
_UPDATES = "/var/lib/dpkg/updates"
_LISTS = "/var/lib/apt/lists"
_WRITTEN_BY = "# Written by gpufleet.workstation; changes are overwritten.\n"

_APT_GET = (
    "apt-get",
    "--yes",
    "--quiet",
    "--option=DPkg::Lock::Timeout=120",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=Dpkg::Use-Pty=0",
)
_ENVIRONMENT = {
    "APT_LISTCHANGES_FRONTEND": "none",
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",
    "UCF_FORCE_CONFFOLD": "1",
}
# Holds do not stop the solver: whose they are is decided from held(), with a better message than apt's.
_ANY_HOLD = ("--ignore-hold", "--allow-change-held-packages")

_QUICK = 120.0
_SIMULATION = 300.0
_NETWORK = 3600.0
_INSTALLATION = 7200.0  # DKMS compiles for every kernel

_LINE = re.compile(r"^(Inst|Remv|Purg) (\S+)(?: \[([^\]]+)\])?(?: \((\S+)(?: ([^\[)]*))?[^)]*\))?", re.MULTILINE)
_STATES = "${binary:Package}\\t${Version}\\t${Architecture}\\t${db:Status-Want}\\t${db:Status-Status}\\n"
_HALF_DONE = ("half-installed", "half-configured", "unpacked", "triggers-awaited", "triggers-pending")
# Not held at one version. A keyring has to follow its repository, NVIDIA's pinning packages are left as they are, and Ubuntu's compiled
# modules have to follow new kernels: their dependency on the driver's exact version keeps them from going elsewhere.
_NOT_FROZEN = re.compile(
    r"cuda-keyring$|nvidia-driver-pinning-|cuda-compat|linux-(?:modules|objects|signatures)-nvidia"
)


class _Row(t.NamedTuple):
    """A package as dpkg has it."""

    name: str
    version: str
    architecture: str
    want: str
    state: str


class Apt:
    """apt and dpkg. ``root`` is where the files are that this object reads and writes itself; commands always mean the host."""

    name = "apt"

    def __init__(
        self,
        run: Run,
        proxy: t.Mapping[str, str] | None = None,
        root: str = "",
        sleep: t.Callable[[float], None] = time.sleep,
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._proxy = proxy or {}
        self._root = root
        self._sleep = sleep
        self._clock = clock
        self._undo: dict[str, bytes | None] = {}
        # One for each process: a run whose controller is gone goes on, while the next one waits for it to end.
        self._work = Path(f"{root}{_WORK}{os.getpid()}")
        self._begin()
        # At the latest when the module ends: nothing of this call stays, above all no password.
        weakref.finalize(self, shutil.rmtree, self._work, ignore_errors=True)

    def _begin(self) -> None:
        """Make the folder that steers this call, and remove what killed calls left."""
        for left in self._work.parent.glob(f"{Path(_WORK).name}*"):
            if left == self._work or not Path("/proc", left.name.rpartition("-")[2]).exists():
                shutil.rmtree(left, ignore_errors=True)
        self._work.mkdir(parents=True, mode=0o700)
        self._options: list[str] = []
        lines = []
        for scheme in ("http", "https"):
            if self._proxy.get(scheme):
                lines.append(f'Acquire::{scheme}::Proxy "{_quoted(self._proxy[scheme])}";')
        for name in re.split(r"[,\s]+", self._proxy.get("no_proxy") or ""):
            if name:
                lines += [
                    f'Acquire::{scheme}::Proxy::{_quoted(name.lstrip("."))} "DIRECT";' for scheme in ("http", "https")
                ]
        if self._proxy.get("ca_file"):
            lines.append(f'Acquire::https::CaInfo "{_quoted(self._proxy["ca_file"])}";')
        if lines:
            path = self._work / "apt.conf"
            _write(str(path), "\n".join([*lines, ""]).encode(), 0o600)
            self._options.append(f"--config-file={path}")

    # ---- locks and half-done work -------------------------------------------------------------------------------------

    def wait(self, limit: float) -> None:
        """Wait until nobody else changes packages; then say who does."""
        end = self._clock() + limit
        while True:
            held = health.package_locks(Host(root=self._root), [])
            if not held:
                return
            if self._clock() >= end:
                lock = held[0]
                raise DriverError(
                    f"{lock['path']} has been held by {lock['holder']} for more than {limit:g} s, so that no package can be changed."
                    " Nothing was changed. Let it finish, or see what it waits for, then run again."
                )
            self._sleep(2.0)

    def interrupted(self) -> list[str]:
        """Name what is half-done."""
        found = [f"{row.name} is {row.state}" for row in self._half_done()]
        names = os.listdir(self._root + _UPDATES) if os.path.isdir(self._root + _UPDATES) else []
        if any(name.isdigit() for name in names):
            found.append("dpkg was interrupted while it wrote down what it did")
        if not found:
            audit = self._dpkg("--audit").output
            found = [" ".join(line.split()) for line in audit.splitlines() if line.startswith(" ") and line.split()]
        if not found:
            check = self._apt(["check"], _SIMULATION)
            if check.status != 0:
                found = [" ".join(line.split()) for line in check.output.splitlines() if " : " in line] or [
                    check.last_words
                ]
        return found

    def _half_done(self) -> list[_Row]:
        return [row for row in self._rows() if row.state in _HALF_DONE]

    def repair(self) -> list[str]:
        """Finish what is half-done; what of the driver cannot be finished is taken away, because it blocks every use of apt."""
        did = []
        done = self._dpkg("--force-confdef", "--force-confold", "--configure", "--pending", limit=_INSTALLATION)
        if done.status == 0:
            did.append("configured what was unpacked")
        if "Error!" not in done.output:  # what DKMS cannot build would be built, and fail, once more
            did += self._fix_broken()
        removed: list[str] = []
        while True:
            stuck = [row.name for row in self._half_done()] + self._broken()
            stuck = [name for name in stuck if name not in removed and is_driver_package(name.partition(":")[0])]
            if not stuck:
                break
            # dpkg itself: apt refuses to remove a package whose unpacking was interrupted, and would rather bring another driver than
            # let go of what depended on it.
            self._dpkg("--force-remove-reinstreq", "--force-depends", "--remove", *stuck, limit=_INSTALLATION)
            removed += stuck
        if removed:
            did.append(f"removed {', '.join(removed)}, which could not be configured")
            did += self._fix_broken()
        left = self.interrupted()
        if left:
            raise DriverError(
                f"Package work that was interrupted cannot be finished: {'; '.join(left[:5])}. {_complaint(done.output)} Repair these"
                ' packages ("dpkg --configure --pending", "apt-get --fix-broken install"), then run again.'
            )
        return did

    def _broken(self) -> list[str]:
        """Names of packages whose dependencies are not there."""
        return re.findall(r"^ (\S+) : ", self._apt(["check"], _SIMULATION).output, re.MULTILINE)

    def _fix_broken(self) -> list[str]:
        """Let apt settle dependencies, unless it would take away what a person needs."""
        words = [*_ANY_HOLD, "--fix-broken", "install"]
        simulated = self._apt(["--simulate", *words], _SIMULATION)
        changes = parse_simulation(simulated.output)
        refusals = judge.protected(changes, [os.uname().release])
        if refusals:
            raise DriverError(
                f"Package work was interrupted, and apt's way to finish it is not taken: {refusals[0]} Repair the packages by hand"
                ' ("apt-get --fix-broken install" on the host shows the choice), then run again.'
            )
        now = {
            driver_version(row.version) for row in self._rows() if row.state == "installed" and judge.is_core(row.name)
        }
        then = {driver_version(change.after) for change in changes if change.after and judge.is_core(change.name)}
        # Parts of two versions are brought to one. Where there is one, settling dependencies must not replace it.
        replaces = len(now) == 1 and bool(then - now)
        if simulated.status != 0 or not changes or replaces:
            return []
        done = self._apt(words, _INSTALLATION)
        return [f"let apt settle {', '.join(change.name for change in changes)}"] if done.status == 0 else []

    # ---- the repository -----------------------------------------------------------------------------------------------

    def describe_repository(self, request: Request) -> bool:
        """Write the repository's description and key where they differ."""
        repository = request.repository or {}
        files = {}
        if repository.get("key_path") and request.key:
            files[str(repository["key_path"])] = request.key
        if repository.get("path") and repository.get("content"):
            files[str(repository["path"])] = str(repository["content"])
        changed = False
        for path, content in files.items():
            before = _read(self._root + path)
            if before != content.encode():
                self._undo.setdefault(path, before)
                _write(self._root + path, content.encode(), 0o644)
                changed = True
        return changed

    def refresh(self, request: Request) -> None:
        """Read the lists anew. Somebody else's broken repository must not keep ours from being read."""
        done = self._apt(["update"], _NETWORK)
        if done.status == 0 and not re.search(r"^[WE]:", done.output, re.MULTILINE):
            return
        path = str((request.repository or {}).get("path") or "")
        if not path:
            if done.status != 0:
                raise DriverError(f"The package lists cannot be read: {explain_refresh(done.output, request)}")
            return
        folder, _slash, name = path.rpartition("/")
        own = [f"--option=Dir::Etc::sourcelist={path}", "--option=Dir::Etc::sourceparts=-"]
        if not name.endswith(".list"):  # apt takes the format from a file's name only within a folder
            parts = self._work / "sources"
            parts.mkdir(exist_ok=True)
            link = parts / name
            link.unlink(missing_ok=True)
            link.symlink_to(f"{self._root}{folder}/{name}")
            own = ["--option=Dir::Etc::sourcelist=-", f"--option=Dir::Etc::sourceparts={parts}"]
        done = self._apt(["--error-on=any", *own, "--option=APT::Get::List-Cleanup=0", "update"], _NETWORK)
        if done.status != 0:
            left = self._take_back()
            raise DriverError(
                f"The driver's package repository cannot be used: {explain_refresh(done.output, request)}{left}"
            )

    def _take_back(self) -> str:
        """Undo the description of an unusable repository, because it would disturb every later use of apt."""
        for path, before in self._undo.items():
            if before is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._root + path)
            else:
                _write(self._root + path, before, 0o644)
        taken = bool(self._undo)
        self._undo = {}
        return (
            " Its description was taken away again; nothing of the driver was changed."
            if taken
            else " Nothing of the driver was changed."
        )

    # ---- choosing, simulating, downloading ----------------------------------------------------------------------------

    def choose(self, request: Request, lasting: bool) -> bool:
        """Pin the planned branch, for this object or for the host."""
        text = branch_preferences(request)
        if lasting:
            self._options = [option for option in self._options if "PreferencesParts" not in option]
            return self._preferences(text)
        parts = self._work / "preferences.d"
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        folder, name = os.path.split(PREFERENCES)
        for other in os.listdir(self._root + folder) if os.path.isdir(self._root + folder) else ():
            if other != name:
                (parts / other).symlink_to(f"{self._root}{folder}/{other}")
        (parts / name).write_text(text, encoding="utf-8")
        self._options = [option for option in self._options if "PreferencesParts" not in option]
        self._options.append(f"--option=Dir::Etc::PreferencesParts={parts}")
        return False

    def simulate(self, transaction: Transaction) -> list[Change]:
        """Ask apt's solver."""
        done = self._apt(["--simulate", *_words(transaction)], _SIMULATION)
        if done.status != 0:
            raise DriverError(
                f"apt cannot resolve {_listed(transaction.install or transaction.remove)}: {_complaint(done.output)}"
                f' "apt-cache policy {" ".join(transaction.install)}" on the host shows what it can see. Nothing of the driver was changed.'
            )
        return parse_simulation(done.output)

    def download(self, transaction: Transaction, folder: Path) -> list[PackageFile]:
        """Fetch what the transaction needs, compare it with the repository's checksums, and drop what is there beside it."""
        asked = [(change.name, change.after) for change in self.simulate(transaction) if change.after]
        wanted = {(name.partition(":")[0], version) for name, version in asked}
        folder.mkdir(parents=True, exist_ok=True)
        words = [f"--option=Dir::Cache::archives={folder}", "--download-only", *_words(transaction)]
        done = self._apt(words, _NETWORK)
        if done.status != 0:
            raise DriverError(
                f"The packages cannot be downloaded: {_complaint(done.output)} Nothing of the driver was changed;"
                " run again to go on from here."
            )
        files = []
        sums = self._checksums([f"{name}={version}" for name, version in asked])
        for path in sorted(folder.glob("*.deb")):
            package = self._describe(path)
            if (package.name, package.version) not in wanted:
                path.unlink()
                continue
            checksum = _sha256(path)
            published = sums.get(_key(package))
            if published and published != checksum:
                path.unlink()
                raise DriverError(
                    f"{path.name} is damaged: its checksum is not what the repository says. It was deleted; run again"
                    " to fetch it once more."
                )
            files.append(PackageFile(package, path, checksum))
        lacking = {name for name, _version in wanted} - {file.package.name for file in files}
        if lacking:
            raise DriverError(
                f"apt downloaded everything, but {_listed(sorted(lacking))} is not in {folder}. See whether something empties it"
                ' ("apt-config dump DPkg::Post-Invoke"), then run again.'
            )
        for rest in (folder / "partial", folder / "lock"):
            shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(missing_ok=True)
        return files

    def fetch(self, packages: t.Sequence[Package], folder: Path) -> list[PackageFile]:
        """Get exact versions: from the cache, from a repository, or repacked from what is installed."""
        folder.mkdir(parents=True, exist_ok=True)
        missing = list(packages)
        found: dict[Package, PackageFile] = {}

        def look() -> None:
            for package in list(missing):
                path = folder / _file_name(package)
                if not path.is_file() or _key(self._describe(path)) != _key(package):
                    continue
                found[package] = PackageFile(package, path, _sha256(path))
                missing.remove(package)

        look()
        sums = self._checksums([f"{package.name}={package.version}" for package in missing])
        cache = Path(self._root + _CACHE)
        for package in missing:
            path = cache / _file_name(package)
            published = sums.get(_key(package))
            if path.is_file() and published and _sha256(path) == published:
                shutil.copy(path, folder / path.name)
        look()
        published_words = [f"{package.name}={package.version}" for package in missing if _key(package) in sums]
        if published_words:
            # apt-get download writes into the working folder.
            argv = [
                "sh",
                "-c",
                'cd "$1" && shift && exec "$@"',
                "sh",
                str(folder),
                *_APT_GET,
                *self._options,
                "download",
            ]
            self._run([*argv, *published_words], _NETWORK, _ENVIRONMENT)
            look()
        if missing:
            self._repack(missing, folder)
            look()
        return [found[package] for package in packages if package in found]

    def _repack(self, packages: t.Sequence[Package], folder: Path) -> None:
        """Make package files of what is installed, with dpkg-repack, which is installed for that and removed again."""
        there = {(row.name.partition(":")[0], row.version): row for row in self._rows() if row.state == "installed"}
        names = [package.name for package in packages if (package.name.partition(":")[0], package.version) in there]
        if not names:
            return
        brought: list[str] = []
        if not any(os.access(f"{self._root}{place}/dpkg-repack", os.X_OK) for place in ("/usr/bin", "/bin")):
            words = ["--no-install-recommends", "install", "dpkg-repack"]
            changes = parse_simulation(self._apt(["--simulate", *words], _SIMULATION).output)
            if not changes or any(change.before or change.after is None for change in changes):
                return
            if self._apt(words, _NETWORK).status != 0:
                return
            brought = [change.name for change in changes]
        for name in names:
            self._run(
                ["sh", "-c", 'cd "$1" && exec dpkg-repack "$2"', "sh", str(folder), name], _SIMULATION, _ENVIRONMENT
            )
        if brought:
            self._apt(["purge", *brought], _INSTALLATION)

    # ---- installing ---------------------------------------------------------------------------------------------------

    def install(self, transaction: Transaction, folder: Path) -> str:
        """Carry a downloaded transaction out, without network."""
        words = [
            f"--option=Dir::Cache::archives={folder}",
            "--option=APT::Keep-Downloaded-Packages=true",
            "--no-download",
            *_words(transaction),
        ]
        done = self._apt(words, _INSTALLATION)
        if done.status != 0:
            raise DriverError(f"Installing the packages failed: {_complaint(done.output)}", output=done.output)
        return done.output

    def install_files(self, files: t.Sequence[Path], remove: t.Sequence[str]) -> str:
        """Make the driver's packages exactly these files and remove others, in one go; by dpkg where apt cannot."""
        automatic = set(self._run(["apt-mark", "showauto"], _QUICK, _ENVIRONMENT).output.split())
        present = {row.name.partition(":")[0] for row in self._rows() if row.state != "config-files"}
        gone = [name for name in remove if name.partition(":")[0] in present]
        output = ""
        if files or gone:
            # No --no-download: apt calls reading a local file a download, too.
            words = ["install", "--purge", "--no-install-recommends", "--allow-downgrades", *_ANY_HOLD]
            words += [*map(str, files), *(f"{name}-" for name in gone)]
            simulated = self._apt(["--simulate", *words], _SIMULATION)
            # Headers that came with the driver go with it: no kernel needs them to boot.
            changes = [
                change
                for change in parse_simulation(simulated.output)
                if not (change.name in gone and change.name.startswith("linux-headers-"))
            ]
            refusals = judge.protected(changes, [os.uname().release])
            if refusals:
                raise DriverError(f"These packages are not put in place: {refusals[0]} Nothing was changed.")
            done = self._apt(words, _INSTALLATION)
            output = done.output
            if done.status != 0:
                output += self._by_dpkg(files, gone)
        residual = [
            row.name
            for row in self._rows()
            if row.state == "config-files" and row.name.partition(":")[0] in {n.partition(":")[0] for n in remove}
        ]
        if residual:
            self._dpkg("--purge", *residual, limit=_INSTALLATION)
        again = sorted(automatic & {self._describe(path).name for path in files})
        if again:
            self._run(["apt-mark", "auto", *again], _QUICK, _ENVIRONMENT)
        return output

    def _by_dpkg(self, files: t.Sequence[Path], gone: t.Sequence[str]) -> str:
        """The way where apt refuses to work because too much is broken: dpkg needs no consistent state to begin with."""
        force = ("--force-confdef", "--force-confold")
        output = ""
        if gone:
            output += self._dpkg(
                "--force-remove-reinstreq", "--force-depends", "--purge", *gone, limit=_INSTALLATION
            ).output
        if files:
            output += self._dpkg(
                *force,
                "--force-downgrade",
                "--force-depends",
                "--force-conflicts",
                "--install",
                *map(str, files),
                limit=_INSTALLATION,
            ).output
        done = self._dpkg(*force, "--configure", "--pending", limit=_INSTALLATION)
        output += done.output
        left = self.interrupted()
        if left:
            raise DriverError(
                f"The packages could not be put in place: {'; '.join(left[:5])}. {_complaint(output)}", output=output
            )
        return output

    # ---- what is there ------------------------------------------------------------------------------------------------

    def installed(self) -> list[Package]:
        """The driver's packages on the host."""
        return [
            Package(row.name, row.version, row.architecture)
            for row in self._rows()
            if row.state not in ("not-installed", "config-files")
            and is_driver_package(row.name.partition(":")[0])
            and not re.match(r"cuda-keyring$|nvidia-driver-pinning-", row.name)
        ]

    def held(self) -> list[str]:
        """Names of all packages on hold."""
        return [row.name for row in self._rows() if row.want == "hold"]

    def freeze(self, packages: t.Sequence[Package], holds: t.Sequence[str]) -> bool:
        """Pin exact versions and hold."""
        frozen = [package for package in packages if not _NOT_FROZEN.match(package.name)]
        changed = self._preferences(exact_preferences(frozen))
        now = set(self.held())
        wanted = [name for name in holds if name not in now and not _NOT_FROZEN.match(name)]
        if wanted:
            done = self._run(["apt-mark", "hold", *wanted], _QUICK, _ENVIRONMENT)
            if done.status != 0:
                raise DriverError(
                    f"The driver is installed, but its packages could not be held: {_complaint(done.output)}"
                )
        return changed or bool(wanted)

    def thaw(self, holds: t.Sequence[str]) -> None:
        """Release these names."""
        ours = [name for name in self.held() if name in set(holds)]
        if ours:
            done = self._run(["apt-mark", "unhold", *ours], _QUICK, _ENVIRONMENT)
            if done.status != 0:
                raise DriverError(f"Our holds could not be released: {_complaint(done.output)} Nothing was changed.")

    def forget(self) -> list[str]:
        """Remove our repository, key and pin."""
        gone = []
        for path in (PREFERENCES, *SOURCES, KEY):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._root + path)
                gone.append(path)
        return gone

    def read_configuration(self) -> dict[str, str]:
        """Our pin."""
        content = _read(self._root + PREFERENCES)
        return {} if content is None else {PREFERENCES: content.decode("utf-8", "replace")}

    def write_configuration(self, files: t.Mapping[str, str]) -> None:
        """Make our pin what it was."""
        if PREFERENCES in files:
            self._preferences(files[PREFERENCES])
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._root + PREFERENCES)

    # ---- tools --------------------------------------------------------------------------------------------------------

    def _apt(self, words: t.Sequence[str], limit: float) -> Done:
        return self._run([*_APT_GET, *self._options, *words], limit, _ENVIRONMENT)

    def _dpkg(self, *words: str, limit: float = _QUICK) -> Done:
        return self._run(["dpkg", *words], limit, _ENVIRONMENT)

    def _rows(self) -> list[_Row]:
        done = self._run(["dpkg-query", "--show", f"--showformat={_STATES}"], _QUICK, _ENVIRONMENT)
        if done.status != 0:
            raise DriverError(
                f"dpkg's list of packages cannot be read: {done.last_words}. Repair dpkg on the host, then run again."
            )
        native = os.uname().machine
        native = {"x86_64": "amd64", "aarch64": "arm64"}.get(native, native)
        rows = []
        for line in done.output.splitlines():
            columns = line.split("\t")
            if len(columns) == 5:
                # "libcuda1:amd64" is plain libcuda1 on an amd64 host; a foreign architecture stays a part of the name, as apt has it.
                name, _colon, architecture = columns[0].partition(":")
                columns[0] = name if architecture in ("", native) else columns[0]
                rows.append(_Row(*columns))
        return rows

    def _describe(self, path: Path) -> Package:
        form = "--showformat=${Package}\\t${Version}\\t${Architecture}"
        done = self._run(["dpkg-deb", "--show", form, str(path)], _QUICK, _ENVIRONMENT)
        name, _tab, rest = done.output.strip().partition("\t")
        version, _tab, architecture = rest.partition("\t")
        if done.status != 0 or not architecture:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            raise DriverError(
                f"{path} is no package (dpkg-deb: {done.last_words}). It was deleted; run again to fetch it once more."
            )
        return Package(name, version, architecture)

    def _checksums(self, words: t.Sequence[str]) -> dict[tuple[str, str, str], str]:
        """SHA-256 of packages that a repository publishes, by name, version and architecture."""
        if not words:
            return {}
        done = self._run(["apt-cache", "show", *words], _QUICK, _ENVIRONMENT)
        found = {}
        for stanza in done.output.split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|Architecture|SHA256): (\S+)$", stanza, re.MULTILINE))
            if len(fields) == 4:
                found[(fields["Package"], fields["Version"], fields["Architecture"])] = fields["SHA256"]
        return found

    def _preferences(self, text: str) -> bool:
        path = self._root + PREFERENCES
        if _read(path) == text.encode():
            return False
        _write(path, text.encode(), 0o644)
        return True


# ---- text -------------------------------------------------------------------------------------------------------------


def parse_simulation(output: str) -> list[Change]:
    """Read what apt-get --simulate says: "Inst NAME [OLD] (NEW LABEL:RELEASE [ARCH])", "Remv NAME [OLD]", "Purg NAME [OLD]"."""
    found: dict[str, Change] = {}
    for verb, name, before, after, origin in _LINE.findall(output):
        if verb == "Inst":
            found[name] = Change(name, before or None, after, _origin(origin))
        elif name not in found:
            found[name] = Change(name, before or None, None)
    return list(found.values())


def _origin(text: str) -> str:
    """Say who publishes a package, by the labels that apt prints for it."""
    words = text.lower()
    if "nvidia" in words:
        return "nvidia"
    return "distro" if re.search(r"debian|ubuntu|canonical", words) else "unknown"


def branch_preferences(request: Request) -> str:
    """Our pin while apt solves: the planned branch, or the exact version that is asked for."""
    pin = request.pin or {}
    packages = pin.get("packages") or "*nvidia* libcuda1 libcudadebugger1 libnvcuvid1 cuda-drivers* libxnvctrl0"
    words = packages if isinstance(packages, str) else " ".join(packages)
    version = request.version or f"{request.branch}.*"
    if re.fullmatch(r"[\d.]+", version):
        version = f"{version}*"  # the revision of the packaging follows
    return f"{_WRITTEN_BY}Package: {words}\nPin: version {version}\nPin-Priority: {PRIORITY}\n"


def exact_preferences(packages: t.Sequence[Package]) -> str:
    """Our pin afterwards: exactly what is installed."""
    versions: dict[str, list[str]] = {}
    for package in sorted(packages, key=lambda package: package.name):
        names = versions.setdefault(package.version, [])
        plain = package.name.partition(":")[0]
        if plain not in names:
            names.append(plain)
    stanzas = [
        f"Package: {' '.join(names)}\nPin: version {version}\nPin-Priority: {PRIORITY}\n"
        for version, names in versions.items()
    ]
    return "\n".join([_WRITTEN_BY.rstrip("\n") + "\n" + stanzas[0], *stanzas[1:]]) if stanzas else _WRITTEN_BY


def explain_refresh(output: str, request: Request) -> str:
    """Say why a package repository cannot be read, and what to do."""
    repository = request.repository or {}
    key = repository.get("key_path") or repository.get("signed_by") or "the key that its description names"
    words = _complaint(output)
    missing = re.search(r"NO_PUBKEY (\w+)|Missing key (\w+)", output)
    rotated = "Give the new key with nvidia_driver_repository_key (the publisher's page has it), then run again."
    if (
        re.search(r"SHA1 is not considered secure|policy.*SHA-?1", output, re.IGNORECASE | re.DOTALL)
        and "sqv" in output
    ):
        return (
            f"the key in {key} is bound with SHA-1, which sqv (Debian 13) has refused since 2026-02-01. {words} The publisher has issued"
            f" the key anew. {rotated}"
        )
    if missing:
        return f"it is signed with key {missing.group(1) or missing.group(2)}, which {key} does not hold: the key was changed. {rotated}"
    expired = re.search(r"EXPKEYSIG (\w+)|KEYEXPIRED (\w*)", output)
    if expired:
        return f"the key {expired.group(1) or expired.group(2)} in {key} has expired. {rotated}"
    if "REVKEYSIG" in output:
        return f"the key in {key} was revoked. {rotated}"
    rules = (
        (r"not valid yet|not live until", "the host's clock is behind. Set it (timedatectl), then run again."),
        (
            r"Release file .* is expired|is expired \(invalid since",
            "the repository's lists are older than they may be, or the host's clock is ahead. Check the clock and the mirror.",
        ),
        (r"407 ", "the proxy asks for a password. Put it into gpufleet_proxy, then run again."),
        (
            r"[Cc]ertificate verif",
            "the server's certificate is not trusted. Name the CA in gpufleet_proxy (ca_file), or check the clock.",
        ),
        (
            r"Temporary failure resolving|Could not resolve|Name or service not known",
            "its name cannot be resolved. Check DNS, or set gpufleet_proxy.",
        ),
        (
            r"Could not connect|Connection refused|Unable to connect|timed out|Connection failed|Network is unreachable",
            "the host does not reach it. Check the network, the mirror, or set gpufleet_proxy.",
        ),
        (
            r"404 ",
            "there is no repository at this address (404). Check nvidia_driver_repository_url and the distribution's version.",
        ),
        (
            r"Conflicting values set for option Signed-By",
            "another file describes the same repository with another key. Remove one of the two on the host.",
        ),
        (r"is not signed|no longer signed", "it is not signed. An unsigned repository is not used."),
        (r"BADSIG", "its signature is wrong: a proxy or mirror changed it. Check that mirror."),
        (
            r"Hash Sum mismatch|unexpected size|Mirror sync in progress",
            "its lists do not match each other: the mirror is being updated, or a proxy keeps an old file. Run again in a while.",
        ),
        (r"No space left", "the disk is full. Free space in /var, then run again."),
    )
    for pattern, text in rules:
        if re.search(pattern, output):
            return f"{text} {words}".rstrip()
    return f"{words} Check that the host reaches the repository, its clock, and the key that signs it ({key})."


def _complaint(output: str) -> str:
    """What apt, dpkg and DKMS say themselves of a failure, without the noise around it."""
    lines = [line.strip() for line in output.splitlines()]
    chosen = [line for line in lines if re.match(r"(Error!|ERROR:|dpkg: error|E:|Err:)", line)]
    chosen += [line for line in lines if " : Depends:" in line or " : Conflicts:" in line or " : Breaks:" in line]
    chosen = chosen or [line for line in lines if line.startswith("W:")] or [line for line in lines if line][-5:]
    return " ".join(dict.fromkeys(chosen[:8])) if chosen else "It said nothing."


def _words(transaction: Transaction) -> list[str]:
    """A transaction in apt-get's words, the same for simulation, download and installation."""
    words = ["install"]
    if not transaction.recommends:
        words.append("--no-install-recommends")
    if transaction.downgrade:
        words.append("--allow-downgrades")
    return [*words, *_ANY_HOLD, *transaction.install, *(f"{name}-" for name in transaction.remove)]


def _key(package: Package) -> tuple[str, str, str]:
    """A package as files and lists name it; apt adds the architecture to the name of foreign ones."""
    return (package.name.partition(":")[0], package.version, package.architecture)


def _file_name(package: Package) -> str:
    """The name of a package's file in apt's cache and from apt-get download."""
    return f"{package.name.partition(':')[0]}_{package.version.replace(':', '%3a')}_{package.architecture}.deb"


def _quoted(text: str) -> str:
    if re.search(r'["\n;]', text):
        raise DriverError(
            "gpufleet_proxy holds a quote, a semicolon or a line end, which apt cannot read. Encode it (%22, %3B)."
        )
    return text


def _listed(names: t.Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path: str, content: bytes, mode: int) -> None:
    """Replace a file, completely or not at all."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    temporary = f"{folder}/.{os.path.basename(path)}.gpufleet"  # apt skips names with a dot in front
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1024 * 1024), b""):
            total.update(chunk)
    return total.hexdigest()
