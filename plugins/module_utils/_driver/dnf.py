# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. dnf 4 and rpm, for the flow in `change.py`: Enterprise Linux 9 and 10.

What is solved, downloaded and installed goes through dnf's own Python interface (`dnf_session.py`, in dnf's interpreter). There a
driver is chosen by its version, whatever stream is enabled, so that nothing on the host has to change before the window. What lasts
is the enabled stream (where the repository has streams) and one version lock a package.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import inspect
import json
import os
import re
import sqlite3
import tempfile
import time
import typing as t
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import health
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.packages import origin

from . import dnf_session
from .commands import NOT_THERE, Done, Run, run
from .model import Change, DriverError, Package, PackageFile, Request, Transaction

REPOSITORY = "gpufleet-nvidia"
REPOSITORY_PATH = "/etc/yum.repos.d/gpufleet-nvidia.repo"
STREAM_PATH = "/etc/dnf/modules.d/nvidia-driver.module"
STATE_PATH = "/var/lib/gpufleet/dnf.json"
STAGED = "/var/lib/gpufleet/staged"
GENERATIONS = "/var/lib/gpufleet/generations"
LOCK_PLUGIN = "python3-dnf-plugin-versionlock"
PLAN_NAME = "dnf-transaction.json"
"""In the folder of a downloaded transaction: exactly what install() carries out."""

_EPEL = "epel-release"
_CACHE = "/var/cache/dnf"
_HISTORY = "/var/lib/dnf/history.sqlite"
_LOCK_CONFIGURATION = "/etc/dnf/plugins/versionlock.conf"
_LOCK_LIST = "/etc/dnf/plugins/versionlock.list"
_QUERY = "%{NAME}\\t%{EPOCHNUM}\\t%{VERSION}-%{RELEASE}\\t%{ARCH}\\n"
_QUERY_LIMIT = 120.0
_POLL = 2.0
_STREAM = "[nvidia-driver]\nname=nvidia-driver\nstream={stream}\nprofiles=\nstate=enabled\n"
# libdnf/transaction/Types.hpp
_STATE_UNFINISHED = 0
_ACTIONS_IN, _ACTIONS_OUT = (1, 2, 4, 6, 9), (3, 5, 7, 8)
_NEVRA = re.compile(r"(?P<name>.+)-(?:\d+:)?[^-:]+-[^-]+$")


class Dnf:
    """`PackageManager` for dnf."""

    name = "dnf"

    def __init__(self, run: Run = run, root: str = "", time_limit: float = 3600.0) -> None:
        self._run = run
        self._root = root
        self._time_limit = time_limit
        self._request: Request | None = None
        self._written: dict[str, str | None] = {}

    # Waiting, repairing

    def wait(self, limit: float) -> None:
        """Wait until nobody else changes packages, at most so many seconds; then say who does."""
        end = time.monotonic() + limit
        while True:
            locks = health.package_locks(Host(root=self._root), [])
            if not locks:
                return
            if time.monotonic() >= end:
                raise DriverError(
                    f"Packages cannot be changed: {locks[0]['holder']} has held {locks[0]['path']} for more than {limit:g} s."
                    " Nothing was changed. Let it finish, or end it, and run again."
                )
            time.sleep(min(_POLL, max(end - time.monotonic(), 0.05)))

    def interrupted(self) -> list[str]:
        """Name what an interrupted transaction left half-done."""
        found = []
        check = self._run(["rpmdb", "--verifydb"], _QUERY_LIMIT)
        if check.status:
            found.append(f"the rpm database is damaged: {check.last_words}")
        for name, versions in self._duplicates().items():
            found.append(f"{name} is installed in {len(versions)} versions: {', '.join(p.version for p in versions)}")
        unfinished = self._unfinished()
        if unfinished:
            names = sorted({package.name for package in [*unfinished.incoming, *unfinished.outgoing]})
            found.append(f"dnf transaction {unfinished.number} was interrupted: {', '.join(names)}")
        return found

    def repair(self) -> list[str]:
        """Finish what was interrupted, from files that are on the host; say what was done."""
        done = []
        if self._run(["rpmdb", "--verifydb"], _QUERY_LIMIT).status:
            rebuilt = self._run(["rpmdb", "--rebuilddb"], self._time_limit)
            if rebuilt.status:
                raise DriverError(f"The rpm database is damaged and could not be rebuilt: {rebuilt.last_words}")
            done.append("rebuilt the rpm database")
        unfinished = self._unfinished()
        if unfinished:
            done += self._finish(unfinished)
            self._remember(repaired=unfinished.number)
        older = [package for versions in self._duplicates().values() for package in versions[:-1]]
        self._erase(older)
        left = self._duplicates()
        if left:
            raise DriverError(
                f"An interrupted transaction left {', '.join(left)} in several versions, and rpm could not remove the older ones."
                " Remove them with rpm -e --nodeps --noscripts and run again."
            )
        return done + _removed(older)

    def _finish(self, unfinished: Unfinished) -> list[str]:
        """Finish a transaction of the driver as far as its packages are on this host, with rpm: it does as it is told.

        A package that is there already is installed once more without the scripts that remove: rpm runs those of the copy that it
        replaces last, and the module that was just built would be gone.
        """
        there = set(self._all_installed())
        files = [
            file
            for file in self._files_on_host(unfinished.incoming)
            if _is_driver(file.package) or str(file.path).startswith(self._at(STAGED))
        ]
        options = ["--oldpackage", "--replacepkgs", "--replacefiles", "--nodeps"]
        new = [str(file.path) for file in files if file.package not in there]
        if new:
            self._rpm(["-U", *options, *new])
        now = set(self._all_installed())
        arrived = {package.name for package in unfinished.incoming if package in now}
        complete = all(package in now for package in unfinished.incoming if _is_driver(package))
        stale = [
            package
            for package in unfinished.outgoing
            if package in now and _is_driver(package) and (complete or package.name in arrived)
        ]
        self._erase(stale)
        again = [str(file.path) for file in files if file.package in there]
        if again:
            self._rpm(["-U", *options, "--nopreun", "--nopostun", *again])
        done = (
            [f"finished transaction {unfinished.number}, which was interrupted: {len(files)} packages"] if files else []
        )
        return done + _removed(stale)

    def _erase(self, packages: t.Sequence[Package]) -> str:
        return self._rpm(["-e", "--nodeps", *(_spec(package) for package in packages)]) if packages else ""

    def _rpm(self, arguments: t.Sequence[str]) -> str:
        done = self._run(["rpm", *arguments], self._time_limit)
        if done.status:
            raise DriverError(
                f"rpm could not finish an interrupted transaction: {done.last_words}. Packages of the driver are half-done;"
                " what rpm says has to be solved first.",
                output=done.output,
            )
        return done.output

    # Source

    def describe_repository(self, request: Request) -> bool:
        """Write the repository's file and key where they differ; whether anything changed."""
        repository = request.repository
        if not repository or not repository.get("content"):
            return False
        changed = self._write(repository["path"], repository["content"])
        if request.key and repository.get("key_path"):
            changed |= self._write(repository["key_path"], request.key)
            changed |= self._import_key(repository["key_path"])
        return changed

    def _import_key(self, path: str) -> bool:
        before = set(self._keys())
        imported = self._run(["rpm", "--import", self._at(path)], _QUERY_LIMIT)
        if imported.status:
            self._undo()
            raise DriverError(
                f"rpm does not accept the key that signs the driver's repository: {imported.last_words}. The repository was not added."
                " Give the key that its publisher uses now with nvidia_driver_repository_key."
            )
        new = sorted(set(self._keys()) - before)
        if new:
            self._remember(keys=sorted({*self._state().get("keys", []), *new}))
        return bool(new)

    def _keys(self) -> list[str]:
        done = self._run(["rpm", "-q", "gpg-pubkey"], _QUERY_LIMIT)
        return [] if done.status else done.output.split()

    def refresh(self, request: Request) -> None:
        """Read the repository's metadata anew; add what the steps to come need: EPEL's description, the lock plugin."""
        self._request = request
        if request.source == "nvidia":
            answer, output = self._ask("refresh", refresh=True, only_ours=True)
            if "error" in answer:
                self._undo()
                raise DriverError(self._why_unusable(answer, output))
            self._remember(streams=answer["streams"])
        self._add([name for name in request.headers if name == _EPEL])
        if not Path(self._at(_LOCK_CONFIGURATION)).exists():
            self._add([LOCK_PLUGIN])

    def _add(self, names: t.Sequence[str]) -> None:
        there = {package.name for package in self._all_installed()}
        missing = [name for name in names if name not in there]
        if missing:
            before = self._state().get("added", [])
            # First, because a run that is killed in between would take them for the user's ever after.
            self._remember(added=sorted({*before, *missing}))
            try:
                with tempfile.TemporaryDirectory() as folder:
                    transaction = Transaction(install=tuple(missing))
                    self.download(transaction, Path(folder))
                    self.install(transaction, Path(folder))
            except DriverError:
                # A transaction that was killed may have brought some of them all the same.
                there = {package.name for package in self._all_installed()}
                self._remember(added=sorted({*before, *(name for name in missing if name in there)}))
                raise

    def _why_unusable(self, answer: t.Mapping[str, t.Any], output: str) -> str:
        url = _url(self._request) or f"repository {REPOSITORY}"
        said = _one_line("\n".join(dict.fromkeys(re.findall(r"^  - (.+)$", output, re.MULTILINE))) or answer["text"])
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        if re.search(r"not yet valid|has expired", said):
            reason = f"its certificate is not valid at this host's time, {now}"
            remedy = "Set the host's clock; if it is right, ask whoever runs the server."
        elif re.search(r"Curl error \((?:35|60|77)\)", said):
            reason = "its certificate is not trusted here"
            remedy = (
                "Behind a proxy or mirror with a CA of its own, give that with gpufleet_proxy.ca_file."
                f" See that this host's clock is right, too: {now}."
            )
        elif re.search(r"Curl error \((?:5|6|7|28|37|52|56)\)", said):
            reason = "it cannot be reached"
            remedy = "Check network, proxy (gpufleet_proxy) and nvidia_driver_repository_url."
        elif re.search(r"\bGPG\b", said):
            reason = "its metadata is not signed with the key that is known here"
            remedy = "Give the key that its publisher uses now with nvidia_driver_repository_key."
        else:
            reason = "dnf cannot use it"
            remedy = "Check nvidia_driver_repository_url."
        return f"The driver's source {url} is unusable: {reason} ({said}). No package was changed. {remedy}"

    def choose(self, request: Request, lasting: bool) -> bool:
        """Prefer the planned branch: in this object always, on the host (its module stream) where it is to last."""
        self._request = request
        pin = request.pin or {}
        stream = str(pin.get("packages") or "").partition(":")[2] if pin.get("kind") == "module_stream" else ""
        if not stream:
            suffix = "open" if request.flavor == "open" else "dkms"
            stream = f"{request.branch}-{suffix}"
        if not lasting:
            return False
        before = self._read(STREAM_PATH)
        if (before is not None and _stream_of(before) == stream) or stream not in self._offered():
            return False
        if "stream_before" not in self._state():
            self._remember(stream_before=before)
        self._write(STREAM_PATH, _STREAM.format(stream=stream))
        return True

    def _offered(self) -> list[str]:
        """The streams on offer; asked where no change of this host's driver has asked before."""
        if "streams" not in self._state() and self._repositories():
            answer, _output = self._ask("refresh", refresh=True, only_ours=True)
            if "streams" in answer:
                self._remember(streams=answer["streams"])
        return list(self._state().get("streams", []))

    # Transactions

    def simulate(self, transaction: Transaction) -> list[Change]:
        """Ask the solver what would happen to every package; changes nothing."""
        answer, output = self._ask_twice("solve", **_marks(transaction))
        self._check(answer, transaction, output)
        return self._changes(answer["changes"])

    def download(self, transaction: Transaction, folder: Path) -> list[PackageFile]:
        """Fetch everything the transaction needs into a folder, signatures verified."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        answer, output = self._ask_twice("download", folder=str(folder), **_marks(transaction))
        self._check(answer, transaction, output)
        removals = [entry["name"] for entry in answer["changes"] if not entry["after"]]
        plan = {"files": [Path(file["path"]).name for file in answer["files"]], "removals": removals}
        _replace(folder / PLAN_NAME, json.dumps(plan, indent=1, sort_keys=True))
        return [_package_file(file) for file in answer["files"]]

    def fetch(self, packages: t.Sequence[Package], folder: Path) -> list[PackageFile]:
        """Get the files of exact versions: from this host, from a repository, or repacked from what is installed."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = []
        for file in self._files_on_host(packages):
            target = folder / file.path.name
            if file.path != target:
                _copy(file.path, target)
            found.append(PackageFile(file.package, target, file.sha256))
        missing = [package for package in packages if package not in {file.package for file in found}]
        if missing:
            asked = [[p.name, p.version, p.architecture] for p in missing]
            answer, _output = self._ask("fetch", packages=asked, folder=str(folder))
            found += [_package_file(file) for file in answer.get("files", [])]
        there = {file.package for file in found}
        for package in packages:
            if package not in there:
                found += self._repack(package, folder)
        return found

    def _repack(self, package: Package, folder: Path) -> list[PackageFile]:
        before = set(folder.glob("**/*.rpm"))
        done = self._run(
            ["rpmrebuild", "--batch", "--notest-install", f"--directory={folder}", _spec(package)], self._time_limit
        )
        if done.status:
            return []
        for path in sorted(set(folder.glob("**/*.rpm")) - before):
            if self._package_in(path) == package:
                return [PackageFile(package, path, _sha256(path))]
        return []

    def install(self, transaction: Transaction, folder: Path) -> str:
        """Carry a downloaded transaction out, without network; return what dnf and the packages' scripts printed."""
        plan = json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))
        return self._apply(
            [folder / name for name in plan["files"]], transaction.remove, [*plan["removals"], *transaction.remove]
        )

    def install_files(self, files: t.Sequence[Path], remove: t.Sequence[str]) -> str:
        """Make the driver's packages exactly these files (also older ones) and remove others, in one go."""
        unfinished = self._unfinished()
        if not unfinished and not self._duplicates():
            return self._apply(files, remove, None)
        # From the middle of a transaction there is nothing that dnf could solve: rpm does as it is told.
        wanted = {package for package in map(self._package_in, files) if package is not None}
        there = set(self._all_installed())
        new = [str(path) for path in files if self._package_in(path) not in there]
        output = self._rpm(["-U", "--oldpackage", "--replacefiles", "--nodeps", *new]) if new else ""
        names = {package.name for package in wanted}
        output += self._erase(
            [
                package
                for package in self._all_installed()
                if package.name in remove or (package.name in names and package not in wanted)
            ]
        )
        if unfinished:
            self._remember(repaired=unfinished.number)
        return output

    def _apply(self, files: t.Sequence[Path], remove: t.Sequence[str], removals: t.Sequence[str] | None) -> str:
        answer, output = self._ask(
            "apply",
            files=[str(path) for path in files],
            remove=list(remove),
            removals=None if removals is None else list(removals),
        )
        if answer.get("error") == "surprise":
            raise DriverError(
                f"The host changed since the packages were downloaded: {answer['text']} would be removed now, too."
                " Nothing was changed. Run again: the transaction is simulated anew."
            )
        if "error" in answer:
            raise DriverError(f"dnf could not change the driver's packages: {_one_line(answer['text'])}", output=output)
        installed = self._all_installed()
        there = {(name, p.version) for p in installed for name in (p.name, f"{p.name}.{p.architecture}")}
        lacking = [
            entry["name"]
            for entry in answer["changes"]
            if entry["after"] and (entry["name"], entry["after"]) not in there
        ]
        if lacking:  # dnf calls that a success
            said = re.findall(r"^(?:error|warning): (?!Error in)(.+)$", output, re.MULTILINE)
            raise DriverError(
                f"rpm did not install {', '.join(lacking)}: {'; '.join(said[:2]) or _last_words(output)}", output=output
            )
        return output

    def installed(self) -> list[Package]:
        """The driver's packages that are on the host now."""
        return [package for package in self._all_installed() if _is_driver(package)]

    # What lasts

    def held(self) -> list[str]:
        """Names of all packages that are locked, by whomever."""
        found = set()
        names = [package.name for package in self.installed()]
        for entry in self._locks():
            entry = entry.lstrip("!")
            matching = [name for name in names if _lock_is_for(entry, name)]
            found.update(matching or [_lock_name(entry)])
        return sorted(found)

    def freeze(self, packages: t.Sequence[Package], holds: t.Sequence[str]) -> bool:
        """Keep exactly these versions through every upgrade of the system; whether it changed."""
        if not Path(self._at(_LOCK_CONFIGURATION)).exists():
            try:
                self._add([LOCK_PLUGIN])
            except DriverError as error:
                raise DriverError(
                    f"The driver cannot be kept at its version: {LOCK_PLUGIN} is missing. {error} The driver works, but the next"
                    f" upgrade of the system may replace it. Install {LOCK_PLUGIN} and run again."
                ) from error
        if not self._locking_enabled():
            raise DriverError(
                f"The driver cannot be kept at its version: {_LOCK_CONFIGURATION} says enabled=0. Set enabled=1 and run again."
            )
        wanted = sorted({_lock(package) for package in packages if package.name in holds})
        others = [line for line in self._lock_lines() if not _is_ours(line, holds)]
        return self._write(self._lock_list(), "".join(f"{line}\n" for line in [*others, *wanted]))

    def thaw(self, holds: t.Sequence[str]) -> None:
        """Release these names, which we hold, and nothing that the user holds."""
        lines = self._lock_lines()
        kept = [line for line in lines if not _is_ours(line, holds)]
        if kept != lines:
            self._write(self._lock_list(), "".join(f"{line}\n" for line in kept))

    def forget(self) -> list[str]:
        """Remove repository, key and stream of ours, and what was added for them unless others use it; return the paths."""
        state = self._state()
        removed = []
        for path in (REPOSITORY_PATH, _key_path(self._read(REPOSITORY_PATH))):
            if path and self._remove(path):
                removed.append(path)
        unused = {LOCK_PLUGIN: not self._locks(), _EPEL: not self._uses_epel()}
        for name in (*state.get("keys", []), *(name for name in state.get("added", []) if unused[name])):
            self._take_away(name)
        if "stream_before" in state:
            self.write_configuration(
                {STREAM_PATH: state["stream_before"]} if state["stream_before"] is not None else {}
            )
            removed.append(STREAM_PATH)
        if self._remove(STATE_PATH):
            removed.append(STATE_PATH)
        return removed

    def _take_away(self, name: str) -> None:
        """Remove what we added; what another package needs by now stays. Our notes go last, so that the next run comes back to it."""
        done = self._run(["rpm", "-e", name], _QUERY_LIMIT)
        if done.status and not re.search(r"is needed by|is not installed", done.output):
            raise DriverError(
                f"{name}, which came for the driver, could not be removed: {done.last_words}. The driver itself is gone."
                " Mend what rpm says, then run again."
            )

    def _uses_epel(self) -> bool:
        done = self._run(["rpm", "-qa", "--qf", "%{VENDOR}\\t%{NAME}\\n"], _QUERY_LIMIT)
        names = {
            name
            for vendor, _tab, name in (line.partition("\t") for line in done.output.splitlines())
            if "Fedora" in vendor
        }
        return bool(names - {_EPEL})

    def read_configuration(self) -> dict[str, str]:
        """The enabled stream; locks are names in the journal and follow from the packages."""
        text = self._read(STREAM_PATH)
        return {} if text is None else {STREAM_PATH: text}

    def write_configuration(self, files: t.Mapping[str, str]) -> None:
        """Make the enabled stream what read_configuration() gave."""
        if STREAM_PATH in files:
            self._write(STREAM_PATH, files[STREAM_PATH])
        elif "stream_before" in self._state():
            self._remove(STREAM_PATH)

    # dnf and rpm

    def _ask_twice(self, operation: str, **details: t.Any) -> tuple[dict[str, t.Any], str]:
        """Ask on the metadata that is there; where that leads nowhere, mirrors may have moved on: read all of it anew and ask again."""
        answer, output = self._ask(operation, **details)
        if answer.get("error") in ("missing", "solver", "download"):
            answer, output = self._ask(operation, refresh=True, **details)
        return answer, output

    def _ask(self, operation: str, **details: t.Any) -> tuple[dict[str, t.Any], str]:
        """Have one session with dnf; return its answer and what was printed before."""
        request = self._request
        proxy = dict(request.proxy) if request else {}
        details.update(operation=operation, repositories=self._repositories(), ca_file=proxy.get("ca_file", ""))
        details["version"] = self._version()
        environment = {
            variable: proxy[key]
            for key, variable in (("http", "http_proxy"), ("https", "https_proxy"), ("no_proxy", "no_proxy"))
            if proxy.get(key)
        }
        done = self._run(
            [self._interpreter(), "-I", "-c", inspect.getsource(dnf_session)],
            self._time_limit,
            environment,
            json.dumps(details),
        )
        return _answer(done, operation, self._time_limit)

    def _version(self) -> str:
        """The driver's version that is asked for; empty where none is known yet, or the distribution decides."""
        request = self._request
        if request is None or request.source != "nvidia" or not request.branch:
            return ""
        return request.version or f"{request.branch}.*"

    def _interpreter(self) -> str:
        """The interpreter that has dnf's modules: the one in the first line of dnf itself."""
        with contextlib.suppress(OSError), open(self._at("/usr/bin/dnf"), "rb") as file:
            match = re.match(rb"#!\s*(/\S+)", file.readline(200))
            if match:
                return match.group(1).decode()
        raise DriverError(
            "dnf 4 is not installed, or /usr/bin/dnf is not its program (dnf 5 is not supported). Nothing was changed."
        )

    def _repositories(self) -> list[str]:
        """The ids of the driver's repositories: ours, or those in the file that was adopted."""
        if self._request is None or self._request.source != "nvidia":
            return []
        repository = self._request.repository or {}
        text = self._read(str(repository.get("path") or repository.get("adopt") or REPOSITORY_PATH))
        parser = ConfigParser(interpolation=None, strict=False)
        with contextlib.suppress(ConfigError):
            parser.read_string(text or "")
        return parser.sections() or [REPOSITORY]

    def _check(self, answer: t.Mapping[str, t.Any], transaction: Transaction, output: str = "") -> None:
        kind = answer.get("error")
        if kind is None:
            return
        text = _one_line(answer["text"])
        if kind == "missing":
            asked = f" (driver {self._version()})" if self._version() else ""
            raise DriverError(
                f"No enabled repository has {text}{asked}. Nothing was changed. Packages can be hidden by excludepkgs in /etc/dnf/dnf.conf;"
                " dkms comes from EPEL, kernel headers of an older kernel from a repository that keeps them."
            )
        if kind == "signature":
            raise DriverError(
                f"A package of the driver is not signed with a key that this host trusts: {text}. Nothing was installed."
                " If the publisher has a new key, give it with nvidia_driver_repository_key.",
            )
        if kind == "solver":
            wanted = ", ".join(transaction.install)
            raise DriverError(f"dnf finds no way to install {wanted}: {text}. Nothing was changed.")
        mirror = re.findall(r"^\[MIRROR\] (.+)$", output, re.MULTILINE)[-1:]
        text = "; ".join([text, *mirror])
        raise DriverError(f"dnf could not prepare the driver's packages: {text}. Nothing was installed.", output=output)

    def _changes(self, entries: t.Iterable[t.Mapping[str, t.Any]]) -> list[Change]:
        ours = self._repositories()
        return [
            Change(
                entry["name"],
                entry["before"],
                entry["after"],
                "nvidia" if entry["repository"] in ours else origin(entry["vendor"]) if entry["after"] else "unknown",
            )
            for entry in entries
        ]

    def _all_installed(self) -> list[Package]:
        done = self._run(["rpm", "-qa", "--qf", _QUERY], _QUERY_LIMIT)
        if done.status:
            raise DriverError(f"rpm cannot list the installed packages: {done.last_words}. Nothing was changed.")
        return parse_packages(done.output)

    def _duplicates(self) -> dict[str, list[Package]]:
        """The driver's packages that are there in several versions, oldest first."""
        found: dict[str, list[Package]] = {}
        for package in self.installed():
            found.setdefault(f"{package.name}.{package.architecture}", []).append(package)
        return {
            name: sorted(versions, key=lambda package: version_key(package.version))
            for name, versions in found.items()
            if len(versions) > 1
        }

    def _unfinished(self) -> Unfinished | None:
        found = read_unfinished(self._at(_HISTORY))
        return None if found is None or found.number == self._state().get("repaired") else found

    def _files_on_host(self, packages: t.Sequence[Package]) -> list[PackageFile]:
        """Files of exactly these packages in the staged folder, in generations and in dnf's cache."""
        wanted = {f"{_spec(package)}.rpm": package for package in packages}
        found: dict[Package, PackageFile] = {}
        for folder in (STAGED, GENERATIONS, _CACHE):
            for path in sorted(Path(self._at(folder)).glob("**/*.rpm")):
                package = wanted.get(path.name)
                if package is not None and package not in found and self._package_in(path) == package:
                    found[package] = PackageFile(package, path, _sha256(path))
        return list(found.values())

    def _package_in(self, path: Path) -> Package | None:
        done = self._run(["rpm", "-K", "--nosignature", str(path)], _QUERY_LIMIT)
        if done.status:
            return None  # cut off
        packages = parse_packages(
            self._run(["rpm", "-qp", "--nosignature", "--qf", _QUERY, str(path)], _QUERY_LIMIT).output
        )
        return packages[0] if packages else None

    # Locks

    def _lock_settings(self) -> ConfigParser:
        parser = ConfigParser(interpolation=None, strict=False)
        with contextlib.suppress(ConfigError):
            parser.read_string(self._read(_LOCK_CONFIGURATION) or "")
        return parser

    def _locking_enabled(self) -> bool:
        value = self._lock_settings().get("main", "enabled", fallback="1")
        return value.strip().lower() in ("1", "yes", "true", "on")

    def _lock_list(self) -> str:
        return self._lock_settings().get("main", "locklist", fallback=_LOCK_LIST)

    def _lock_lines(self) -> list[str]:
        return (self._read(self._lock_list()) or "").splitlines()

    def _locks(self) -> list[str]:
        return [line.strip() for line in self._lock_lines() if line.strip() and not line.startswith("#")]

    # Files

    def _at(self, path: str) -> str:
        return self._root + path

    def _read(self, path: str) -> str | None:
        try:
            return Path(self._at(path)).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _write(self, path: str, content: str) -> bool:
        before = self._read(path)
        if before == content:
            return False
        self._written.setdefault(path, before)
        _replace(Path(self._at(path)), content)
        return True

    def _remove(self, path: str) -> bool:
        try:
            os.unlink(self._at(path))
        except FileNotFoundError:
            return False
        return True

    def _undo(self) -> None:
        """Take back what this object wrote: a repository that cannot be used must not stay in everybody's way."""
        for path, before in self._written.items():
            if before is None:
                self._remove(path)
            else:
                _replace(Path(self._at(path)), before)
        self._written.clear()

    def _state(self) -> dict[str, t.Any]:
        return dict(json.loads(self._read(STATE_PATH) or "{}"))

    def _remember(self, **values: t.Any) -> None:
        state = {**self._state(), **values}
        if state != self._state():
            _replace(Path(self._at(STATE_PATH)), json.dumps(state, indent=1, sort_keys=True))


class Unfinished(t.NamedTuple):
    """A transaction of dnf's history that never ended."""

    number: int
    incoming: tuple[Package, ...]
    outgoing: tuple[Package, ...]


def read_unfinished(path: str) -> Unfinished | None:
    """The last transaction of dnf's history, if it never ended and was about the driver."""
    if not os.path.exists(path):
        return None
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        last = connection.execute("SELECT id, state FROM trans ORDER BY id DESC LIMIT 1").fetchone()
        if last is None or last[1] != _STATE_UNFINISHED:
            return None
        rows = connection.execute(
            "SELECT action, name, epoch, version, release, arch FROM trans_item JOIN rpm USING (item_id) WHERE trans_id = ?",
            last[:1],
        ).fetchall()
    except sqlite3.Error as error:
        raise DriverError(f"dnf's history ({path}) cannot be read: {error}. Nothing was changed.") from error
    finally:
        connection.close()
    packages = [(row[0], Package(row[1], _evr(row[2], f"{row[3]}-{row[4]}"), row[5])) for row in rows]
    if not any(_is_driver(package) for _action, package in packages):
        return None
    return Unfinished(
        last[0],
        tuple(package for action, package in packages if action in _ACTIONS_IN),
        tuple(package for action, package in packages if action in _ACTIONS_OUT),
    )


def parse_packages(text: str) -> list[Package]:
    """Parse what rpm prints for `_QUERY`: name, epoch, version-release and architecture, separated by tabs."""
    rows = [line.split("\t") for line in text.splitlines()]
    found = [Package(row[0], _evr(row[1], row[2]), row[3]) for row in rows if len(row) == 4 and row[0] != "gpg-pubkey"]
    return sorted(found, key=lambda package: (package.name, package.architecture, package.version))


def version_key(version: str) -> list[t.Any]:
    """A key that sorts the driver's versions as rpm does; they consist of numbers and of words that never differ in kind."""
    epoch, _colon, rest = version.rpartition(":")
    parts = re.findall(r"\d+|[a-z]+", rest)
    return [int(epoch or 0), *((1, int(part)) if part.isdecimal() else (0, part) for part in parts)]


def _removed(packages: t.Sequence[Package]) -> list[str]:
    names = ", ".join(f"{package.name} {package.version}" for package in packages)
    return [f"removed what it had left: {names}"] if packages else []


def _evr(epoch: t.Any, version: str) -> str:
    return version if str(epoch) in ("0", "(none)", "") else f"{epoch}:{version}"


def _is_driver(package: Package) -> bool:
    return dnf_session.is_driver(package.name, package.version.rpartition(":")[2])


def _spec(package: Package) -> str:
    return f"{package.name}-{package.version.rpartition(':')[2]}.{package.architecture}"


def _lock(package: Package) -> str:
    """A lock as `dnf versionlock add` writes it."""
    epoch, _colon, version = package.version.rpartition(":")
    return f"{package.name}-{epoch or 0}:{version}.*"


def _lock_name(entry: str) -> str:
    match = _NEVRA.match(entry)
    return match.group("name") if match else entry


def _lock_is_for(entry: str, name: str) -> bool:
    return fnmatch.fnmatchcase(name, _lock_name(entry))


def _is_ours(line: str, holds: t.Sequence[str]) -> bool:
    line = line.strip()
    return bool(line) and line[0] not in "#!" and line.endswith(".*") and _lock_name(line) in holds


def _marks(transaction: Transaction) -> dict[str, t.Any]:
    return {
        "install": list(transaction.install),
        "remove": list(transaction.remove),
        "recommends": transaction.recommends,
    }


def _answer(done: Done, operation: str, limit: float) -> tuple[dict[str, t.Any], str]:
    output, mark, answer = done.output.rpartition(dnf_session.ANSWER)
    if mark:
        return json.loads(answer), output
    if done.timed_out:
        raise DriverError(f"dnf did not finish within {limit:g} s ({operation}).", output=done.output)
    if done.status == NOT_THERE:
        raise DriverError(f"dnf cannot be asked: {done.last_words}.")
    raise DriverError(
        f"dnf ended without an answer ({operation}, status {done.status}): {done.last_words}", output=done.output
    )


def _one_line(text: str) -> str:
    return "; ".join(line.strip(" -") for line in text.splitlines() if line.strip())


def _last_words(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


def _url(request: Request | None) -> str:
    return str(((request and request.repository) or {}).get("url") or "")


def _stream_of(text: str) -> str | None:
    parser = ConfigParser(interpolation=None, strict=False)
    with contextlib.suppress(ConfigError):
        parser.read_string(text)
    enabled = parser.get("nvidia-driver", "state", fallback="") == "enabled"
    return parser.get("nvidia-driver", "stream", fallback=None) if enabled else None


def _key_path(text: str | None) -> str | None:
    match = re.search(r"^gpgkey\s*=\s*file://(/\S+gpufleet\S*)$", text or "", re.MULTILINE)
    return match.group(1) if match else None


def _package_file(file: t.Mapping[str, str]) -> PackageFile:
    path = Path(file["path"])
    return PackageFile(Package(file["name"], file["version"], file["arch"]), path, _sha256(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1024 * 1024), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(source.read_bytes())
    os.replace(partial, target)


def _replace(path: Path, content: str) -> None:
    """Write a file root:root 0644, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.gpufleet")
    with open(partial, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
