# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The one flow that changes a driver, for every package manager.

What takes long happens before anything is replaced: the packages of the next driver are here, those of the present one are kept, the
modules were built on trial. Then everything is replaced in one go, proven from /lib/modules, and put back where that fails.

A run may be killed at any point. The journal says before the first step what is about to happen, so that the next run knows whether
what it finds was there rightly: `present` is empty for as long as a change is under way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import typing as t
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import boot as boot_files
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import kernels as kernel_files
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import packages as package_files
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import secure_boot as secure_boot_state
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable

from . import generations, initramfs, judge, kernel_modules, secure_boot
from .commands import Run
from .generations import Generation, Journal, Store
from .model import Change, DriverError, Package, PackageFile, PackageManager, Request, Transaction

LOCK = "/run/gpufleet-driver.lock"
STAGED = "transaction.json"
SCHEMA = 1

STAGED_ACTIONS = ("driver.repair", "driver.repository", "driver.headers", "driver.stage", "driver.keys")
INSTALLED_ACTIONS = ("driver.packages", "driver.modules", "driver.nouveau", "driver.freeze")

_WAIT = 600.0
_UNCHANGED = "Nothing of the driver was changed."


@dataclass(frozen=True)
class Options:
    """What is asked of a call beside the plan."""

    way_back_required: bool = True
    environments_root: str = "/opt/gpufleet/envs"
    mok_password: str = ""
    keep: int = 3
    time_limit: float = 3600.0
    wait_limit: float = _WAIT


@dataclass
class Result:
    """What a call returns, also where it fails."""

    done: list[dict[str, t.Any]] = field(default_factory=list)
    transaction: dict[str, t.Any] = field(default_factory=lambda: judge.summary([]))
    kernels: list[dict[str, str]] = field(default_factory=list)
    generation: int | None = None
    restored: bool | None = None
    compiler: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything on the host is other than before."""
        return any(step["changed"] for step in self.done)


@dataclass
class Step:
    """One entry of `done` while it is under way."""

    what: str
    changed: bool = False


def request_of(
    plan: t.Mapping[str, t.Any], key: str = "", downgrade: bool = False, proxy: t.Mapping[str, str] | None = None
) -> Request:
    """Read the driver part of a plan."""
    todo = actions_of(plan)
    packages = todo.get("driver.packages") or todo.get("driver.stage") or {}
    modules = todo.get("driver.modules") or todo.get("driver.stage") or {}
    repository = todo.get("driver.repository")
    if repository is None and (plan.get("repository") or {}).get("adopt"):
        repository = {"path": plan["repository"]["adopt"], "signed_by": plan["repository"].get("signed_by")}
    package_set = str(plan.get("package_set") or "compute")
    return Request(
        branch=int(plan.get("branch") or 0),
        flavor=str(plan.get("flavor") or ""),
        source=str(plan.get("source") or ""),
        package_set=package_set,
        transaction=Transaction(
            install=tuple(packages.get("packages") or ()),
            remove=tuple(packages.get("remove") or ()),
            recommends=package_set == "desktop",
            downgrade=downgrade,
        ),
        version=str(packages.get("version") or ""),
        kernels=tuple(modules.get("kernels") or ()),
        module_build=str(modules.get("build") or "dkms"),
        headers=tuple((todo.get("driver.headers") or {}).get("packages") or ()),
        repository=repository,
        key=str((repository or {}).get("key_content") or key),
        pin=plan.get("pin"),
        proxy=proxy or {},
    )


def actions_of(plan: t.Mapping[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    """Return the plan's actions by id."""
    return {action["id"]: dict(action.get("data") or {}) for action in plan.get("actions") or ()}


def predicted(plan: t.Mapping[str, t.Any], state: str) -> list[dict[str, t.Any]]:
    """What a call would do, for check mode: the plan's actions of this state, each of which is there because something differs."""
    ids = {"staged": STAGED_ACTIONS, "installed": INSTALLED_ACTIONS, "absent": ("driver.remove",)}[state]
    return [
        {"id": action["id"], "what": str(action.get("what") or action["id"]), "changed": True, "s": 0.0}
        for action in plan.get("actions") or ()
        if action["id"] in ids
    ]


class Flow:
    """One call of the module."""

    def __init__(
        self,
        manager: PackageManager,
        request: Request,
        actions: t.Mapping[str, t.Mapping[str, t.Any]],
        options: Options,
        run: Run,
        host: Host,
        result: Result,
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self.manager = manager
        self.request = request
        self.actions = actions
        self.options = options
        self.result = result
        self._run = run
        self._host = host
        self._clock = clock
        self._state = Path(host.root + generations.STATE)
        self._folder = self._state / "staged"
        self._journal_path = self._state / "driver.json"
        self._store = Store(self._state / "generations")
        self._saved = self._state / "modules"

    # ---- the four states ----------------------------------------------------------------------------------------------

    def staged(self) -> None:
        """Do everything that replaces nothing."""
        with self._alone():
            self._make_consistent()
            if "driver.repository" in self.actions:
                with self._step("driver.repository", "describe the package repository") as step:
                    step.changed = self.manager.describe_repository(self.request)
            if {"driver.repository", "driver.headers", "driver.stage"} & set(self.actions):
                with self._step("refresh", "read the package lists"):
                    self.manager.refresh(self.request)
            if self.request.headers:
                self._install_headers()
            if "driver.keys" in self.actions:
                self._stage_key()
            if "driver.stage" in self.actions:
                self._stage()

    def installed(self) -> None:
        """Replace what serves, prove it, keep it."""
        with self._alone():
            self._make_consistent()
            if "driver.packages" in self.actions:
                self._replace()
            elif "driver.modules" in self.actions:
                with self._step("driver.modules", "prove a module for every kernel that can boot next") as step:
                    self._prove_modules(step)
            if "driver.nouveau" in self.actions:
                self._block_nouveau()
            elif "driver.packages" in self.actions:
                self._renew_images()
            if {"driver.packages", "driver.freeze"} & set(self.actions):
                if "driver.packages" not in self.actions and (self.request.pin or {}).get("kind") == "module_stream":
                    self.manager.choose(self.request, lasting=True)
                self._freeze()
                self._keep_generation()
            if "driver.packages" in self.actions:
                for folder in (self._folder, self._saved):
                    shutil.rmtree(folder, ignore_errors=True)

    def absent(self) -> None:
        """Take away what this collection brought; what was there before comes back."""
        with self._alone():
            self._make_consistent()
            self._remove()

    def generation(self, number: int, check: bool = False) -> None:
        """Go back to a generation from the files on the host."""
        with self._alone():
            target = self._store.read(number)
            self.result.generation = number
            # A way back that was killed may have its packages in place and neither proven nor frozen them.
            if self._matches(target) and not _under_way(self._journal()) and not self.manager.interrupted():
                with self._step("generation", f"generation {number} serves already"):
                    return
            self.result.transaction = self._difference(target)
            if check:
                with self._step("generation", f"go back to generation {number}: {_named(target.driver)}") as step:
                    step.changed = True
                return
            self._make_consistent()
            self._go_back(target)

    # ---- before the window --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> t.Iterator[None]:
        """Be the only one who changes drivers here, and then the only one who changes packages."""
        path = self._host.root + LOCK
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a+", encoding="utf-8") as lock:
            end = self._clock() + self.options.wait_limit
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._clock() >= end:
                        lock.seek(0)
                        raise DriverError(
                            f"Another run has been changing this host's driver for more than {self.options.wait_limit:g} s (process"
                            f" {lock.read().strip() or 'unknown'}). {_UNCHANGED} Let it finish, then run again."
                        ) from None
                    time.sleep(1.0)
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self.manager.wait(self.options.wait_limit)
            yield

    @contextlib.contextmanager
    def _step(self, name: str, what: str) -> t.Iterator[Step]:
        step = Step(what)
        begin = self._clock()
        try:
            yield step
        finally:
            self.result.done.append(
                {"id": name, "what": step.what, "changed": step.changed, "s": round(self._clock() - begin, 1)}
            )

    def _make_consistent(self) -> None:
        """Finish what was interrupted. The solver is told first what is planned: settling dependencies must not bring another branch."""
        if self.request.branch:
            self.manager.choose(self.request, lasting=False)
        left = self.manager.interrupted()
        if left:
            with self._step("driver.repair", f"finish interrupted package work: {'; '.join(left[:3])}") as step:
                step.changed = True
                did = self.manager.repair()
                step.what += f" ({'; '.join(did)})" if did else ""

    def _install_headers(self) -> None:
        """Bring what modules are compiled with. Nobody uses it yet, so it is installed before the window."""
        with self._step("driver.headers", f"install {', '.join(self.request.headers)}") as step:
            try:
                transaction = Transaction(self._headers_of_kernels_here())
                changes = self.manager.simulate(transaction)
            except DriverError as error:
                raise DriverError(
                    f"Kernel headers cannot be installed: {error} A kernel without headers in the archive cannot get a module: install a"
                    f" current kernel, remove the old one, then run again. {_UNCHANGED}"
                ) from error
            driver = [change.name for change in changes if judge.is_core(change.name)]
            refusals = judge.protected(changes, self.request.kernels)
            if driver:
                refusals.append(f"it would change {', '.join(driver)} of the driver.")
            if refusals:
                raise DriverError(f"Installing kernel headers is refused: {' '.join(refusals)} {_UNCHANGED}")
            if not changes:
                return
            folder = self._state / "headers"
            step.changed = True
            self._note_brought(changes)
            try:
                self.manager.download(transaction, folder)
                self.manager.install(transaction, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _headers_of_kernels_here(self) -> tuple[str, ...]:
        """What is planned, without a metapackage that brings the headers of a kernel that neither is here nor comes with an upgrade.

        DKMS would compile for that kernel, and a driver that is too old for it could not be installed for those that do boot.
        """
        named = tuple(name for name in self.request.headers if not re.match(r"linux-headers-\D", name))
        following = tuple(name for name in self.request.headers if name not in named)
        if not following or not any(name.startswith("linux-headers-") for name in named):
            return self.request.headers
        needed = {change.name for change in self.manager.simulate(Transaction(named))}
        others = [
            change.name
            for change in self.manager.simulate(Transaction(self.request.headers))
            if re.match(r"linux-headers-\d", change.name) and change.name not in needed
        ]
        images = {name.replace("headers", "image", 1) for name in following}
        if not others or images <= self._upgradable(images):
            return self.request.headers
        self.result.warnings.append(
            f"{' and '.join(following)} is left out: it brings {others[0]}, and that kernel is not installed, nor does"
            f" {' and '.join(sorted(images))} bring it here. Install both where the kernel is to follow the archive."
        )
        return named

    def _upgradable(self, names: t.Collection[str]) -> set[str]:
        """Which of these packages are installed in a version older than the archive's."""
        try:
            changes = self.manager.simulate(Transaction(tuple(sorted(names))))
        except DriverError:  # there is no such package
            return set()
        return {change.name for change in changes if change.before and change.after}

    def _stage_key(self) -> None:
        with self._step("driver.keys", "stage the key that signs modules") as step:
            staged = secure_boot.stage(self._host, self._run, self.options.mok_password)
            step.changed = staged.changed
            step.what = staged.text

    def _simulate(self) -> list[Change]:
        """Ask the solver, and refuse what must not run."""
        changes = self.manager.simulate(self.request.transaction)
        users = set(self.manager.held()) - set(self._journal().holds)
        verdict = judge.judge(self.request, changes, self.manager.installed(), users)
        self.result.transaction = verdict.summary
        if verdict.refusals:
            raise DriverError(
                f"The change to driver branch {self.request.branch} is refused: {' Also, '.join(verdict.refusals)} {_UNCHANGED}",
                transaction=verdict.summary,
            )
        return changes

    def _stage(self) -> None:
        """Download, keep the way back, build on trial, and only then write down that all is staged."""
        with self._step("simulate", "ask the package manager what would happen"):
            changes = self._simulate()
        record = self._staged_record()
        if record is not None and self._is_staged(record, changes):
            with self._step("driver.stage", "everything is staged already"):
                return
        with contextlib.suppress(FileNotFoundError):
            (self._folder / STAGED).unlink()
        files: list[PackageFile] = []
        with self._step("driver.stage", "download the packages") as step:
            step.changed = True
            if any(change.after for change in changes):
                self._make_state(self._folder)
                files = self.manager.download(self.request.transaction, self._folder)
        target = self._way_back()
        if target is not None or self._serves():
            self._try_build(files, changes)
        self._make_state(self._folder)
        generations.write_json(self._folder / STAGED, self._record(changes, files, target))

    def _record(
        self, changes: t.Sequence[Change], files: t.Sequence[PackageFile], target: Generation | None
    ) -> dict[str, t.Any]:
        versions = [change.after for change in changes if change.after and judge.is_core(change.name)]
        return {
            "schema": SCHEMA,
            "branch": self.request.branch,
            "flavor": self.request.flavor,
            "source": self.request.source,
            "version": kernel_modules.driver_version(versions[0]) if versions else self._installed_version(),
            "packages": digest(self.request.transaction),
            "install": list(self.request.transaction.install),
            "remove": list(self.request.transaction.remove),
            "changes": sorted([change.name, change.after] for change in changes),
            "files": [
                {"name": file.package.name, "version": file.package.version, "architecture": file.package.architecture}
                | {"file": file.path.name, "sha256": file.sha256}
                for file in files
            ],
            "way_back": target.n if target else None,
        }

    def _staged_record(self) -> dict[str, t.Any] | None:
        try:
            record = json.loads((self._folder / STAGED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # a run that did not come that far
        return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None

    def _is_staged(self, record: t.Mapping[str, t.Any], changes: t.Sequence[Change]) -> bool:
        """Whether what is staged is what is planned now, whole."""
        if record["packages"] != digest(self.request.transaction):
            return False
        if record["changes"] != sorted([change.name, change.after] for change in changes):
            return False
        if record["way_back"] is not None and record["way_back"] not in [one.n for one in self._store.all()]:
            return False
        for item in record["files"]:
            path = self._folder / item["file"]
            if not path.is_file() or generations.sha256(path) != item["sha256"]:
                return False
        return True

    def _staged_files(self) -> list[PackageFile]:
        record = self._staged_record() or {"files": []}
        return [
            PackageFile(
                Package(item["name"], item["version"], item["architecture"]),
                self._folder / item["file"],
                item["sha256"],
            )
            for item in record["files"]
        ]

    def _way_back(self) -> Generation | None:
        """Make sure that what serves now can be put back; None: it is nothing, and removal is the way back."""
        journal = self._journal()
        if _under_way(journal):  # what is there now is half of something: the way back leads before it
            target = self._generation(journal.generation)
            if target is None and journal.generation is not None and self.options.way_back_required:
                raise DriverError(
                    f"A change was interrupted, and generation {journal.generation}, the way back to what served before it, is damaged."
                    f" {_UNCHANGED} To go on without a way back: nvidia_driver_way_back_required: false."
                )
            return target
        present = self.manager.installed()
        if not present:
            return None
        for known in reversed(self._store.all()):
            if self._matches(known):
                return self._store.note(known, generations.environments(self._host, self.options.environments_root))
        with self._step("way back", "keep the packages that serve now") as step:
            files, missing = self._collect(present)
            if missing:
                text = f"{', '.join(missing[:5])}: neither a repository has them in this version, nor could they be repacked"
                if self.options.way_back_required:
                    raise DriverError(
                        f"The way back cannot be secured: {text}. {_UNCHANGED} Install dpkg-repack (Enterprise Linux: rpmrebuild), or go"
                        " without a way back with nvidia_driver_way_back_required: false."
                    )
                self.result.warnings.append(f"There is no way back to the driver that serves now: {text}.")
                return None
            step.changed = True
            return self._write_generation(files)

    def _collect(self, packages: t.Sequence[Package]) -> tuple[list[PackageFile], list[str]]:
        """Get the files of these packages: kept ones, staged ones, else from the package manager. Also return what is missing."""
        known = {file.package: file for file in self._staged_files() if file.path.is_file()}
        for one in self._store.all():
            with contextlib.suppress(DriverError):  # damaged files are fetched anew
                known.update({file.package: file for file in self._store.files(one)})
        plain = {_plain(package): file for package, file in known.items()}
        found = [plain[_plain(package)] for package in packages if _plain(package) in plain]
        missing = [package for package in packages if _plain(package) not in plain]
        if missing:
            folder = self._state / "way-back"
            self._make_state(folder)
            found += self.manager.fetch(missing, folder)
        there = {_plain(file.package) for file in found}
        return found, [f"{package.name} {package.version}" for package in packages if _plain(package) not in there]

    def _write_generation(self, files: t.Sequence[PackageFile]) -> Generation:
        driver = self._facts()
        version = self._installed_version() or driver["version"] or ""
        generation = self._store.write(
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            {
                "branch": int(version.partition(".")[0] or 0),
                "version": version,
                "flavor": driver["flavor"]
                or (self.request.flavor if version.startswith(f"{self.request.branch}.") else None),
                "source": driver["source"],
                "package_set": self.request.package_set,
            },
            files,
            self.manager.read_configuration(),
            generations.default_kernel(self._host),
            generations.environments(self._host, self.options.environments_root),
            at_least=(self._journal().generation or 0) + 1,
        )
        shutil.rmtree(self._state / "way-back", ignore_errors=True)
        return generation

    def _try_build(self, files: t.Sequence[PackageFile], changes: t.Sequence[Change]) -> None:
        """Build the modules before anything is replaced, where a driver serves that would be missed."""
        if self.request.module_build != "dkms" or not self.request.kernels:
            return
        with self._step("trial build", f"build the modules on trial for {', '.join(self.request.kernels)}") as step:
            if any(change.name == "dkms" for change in changes) or not self._host.exists("/usr/sbin/dkms"):
                # An older dkms may fail on sources that need the one that comes with them.
                step.what = "no trial build: dkms comes with the packages; a build that fails is undone"
                return
            failures = kernel_modules.trial_build(
                self._run, files, self.request.kernels, self._state / "trial", self.options.time_limit
            )
            if failures:
                self.result.compiler = [line for failure in failures for line in failure.compiler]
                raise DriverError(
                    f"The modules do not build, so the driver that serves was not touched. {kernel_modules.explain(failures)}",
                    kernels=[failure.kernel for failure in failures],
                )

    # ---- in the window ------------------------------------------------------------------------------------------------

    def _replace(self) -> None:
        """Install what is staged and prove it, or put back what was there."""
        with self._step("simulate", "ask the package manager once more what would happen"):
            changes = self._simulate()
        record = self._staged_record()
        if record is None or not self._is_staged(record, changes):
            self._stage()
            changes = self._simulate()
        journal = self._journal()
        target = self._way_back()
        before = _served(journal, target) if _under_way(journal) else self.manager.installed()
        configuration = self.manager.read_configuration()
        self._note_brought(changes)
        self._begin(target)
        self._save_modules()
        try:
            self.manager.thaw(journal.holds)
            self.manager.choose(self.request, lasting=True)
            if changes:
                with self._step("driver.packages", "replace the packages in one transaction") as step:
                    step.changed = True
                    self.manager.install(self.request.transaction, self._folder)
            with self._step("driver.modules", "prove a module for every kernel that can boot next") as step:
                self._prove_modules(step)
        except (DriverError, OSError) as error:
            self._restore(error, target, before, changes, configuration, journal)

    def _prove_modules(self, step: Step) -> None:
        """See that every kernel has its module, and build what is missing."""
        version = self._installed_version()
        if self.request.branch and not version.startswith(f"{self.request.branch}."):
            raise DriverError(
                f"Branch {self.request.branch} is planned, but driver {version or 'none'} is installed now. Another pin or a hold"
                ' interferes: see "apt-cache policy libcuda1" and "apt-mark showhold" (dnf: "dnf module list nvidia-driver",'
                ' "dnf versionlock list") on the host.'
            )
        lacking = self._lacking(version)
        failures: list[kernel_modules.Failure] = []
        if lacking and self.request.module_build == "dkms":
            step.changed = True
            failures = kernel_modules.build(
                self._run, sorted(lacking), version, self.options.time_limit, self._host.root
            )
            lacking = self._lacking(version)
        self.result.kernels = [
            {"release": one.release, "version": one.version, "flavor": one.flavor, "path": one.path}
            for one in kernel_modules.proven(self._host, self.request.kernels)
        ]
        if lacking:
            failures = [failure for failure in failures if failure.kernel in lacking]
            self.result.compiler = [line for failure in failures for line in failure.compiler]
            reasons = "; ".join(f"{release}: {why}" for release, why in lacking.items())
            raise DriverError(
                f"There is no {self.request.flavor} NVIDIA module {version} for kernel {' and '.join(lacking)} ({reasons})."
                f" {kernel_modules.explain(failures) if failures else kernel_modules.WAYS_OUT}",
                kernels=list(lacking),
            )

    def _lacking(self, version: str) -> dict[str, str]:
        return kernel_modules.lacking(
            self._host, self.request.kernels, version, self.request.flavor, self._secure_boot()
        )

    def _secure_boot(self) -> bool:
        with contextlib.suppress(Unreadable, OSError):  # the planner says what is not known
            return bool(secure_boot_state.secure_boot(self._host))
        return False

    def _block_nouveau(self) -> None:
        """Write the block list, then rebuild the initial RAM file systems: an image that is older than the list is taken for one that
        was made without it. Nothing may touch the list afterwards, not even its mode."""
        data = self.actions["driver.nouveau"]
        path = Path(self._host.root + data["path"])
        with self._step("driver.nouveau", "keep nouveau away from the GPUs") as step:
            step.changed = True
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(data["content"], encoding="utf-8")
            path.chmod(0o644)
            rebuilt = initramfs.rebuild(self._host, self._run, self._kernels(), self.options.time_limit)
            step.what += f" (rebuilt {', '.join(rebuilt)})" if rebuilt else ""

    def _renew_images(self) -> None:
        """Rebuild the images that would, after this change, load nouveau or the driver that was there before."""
        kernels = self._kernels()
        with_nouveau = boot_files.nouveau_in_initramfs(self._host, kernels)
        outdated = [
            release
            for release in kernels
            if with_nouveau[release] or initramfs.holds_older_driver(self._host, self._run, release)
        ]
        if outdated:
            with self._step("initramfs", f"rebuild the initial RAM file systems of {', '.join(outdated)}") as step:
                step.changed = bool(initramfs.rebuild(self._host, self._run, outdated, self.options.time_limit))

    def _kernels(self) -> list[str]:
        """Kernels that can boot next: those of the plan, else the running one, the default and one to fall back to."""
        if self.request.kernels:
            return list(self.request.kernels)
        found = kernel_files.kernels(self._host)
        default = [kernel for kernel in found if kernel["default"]] or found[:1]
        next_ones = [kernel["release"] for kernel in found if kernel["running"] or kernel in default]
        return next_ones + [kernel["release"] for kernel in found if kernel["release"] not in next_ones][:1]

    def _freeze(self) -> None:
        """Keep exactly what is installed. Our holds are in the journal before they are set: a name that is not there is the user's."""
        with self._step("driver.freeze", "keep these versions through every upgrade") as step:
            packages = self.manager.installed()
            journal = self._journal()
            users = set(self.manager.held()) - set(journal.holds)
            holds = sorted(package.name for package in packages if package.name not in users)
            self._write_journal(replace(journal, holds=holds))
            step.changed = self.manager.freeze(packages, holds)

    def _keep_generation(self) -> None:
        """Write the generation that serves now, and drop the oldest ones."""
        present = self.manager.installed()
        journal = self._journal()
        known = next((one for one in reversed(self._store.all()) if self._matches(one)), None)
        with self._step("generation", "keep this driver as a generation") as step:
            if known is None:
                files, missing = self._collect(present)
                if missing:
                    self.result.warnings.append(
                        f"There is no generation of this driver: {', '.join(missing[:5])} could be neither fetched nor repacked."
                    )
                else:
                    known = self._write_generation(files)
                    step.changed = True
            number = known.n if known else None
            self.result.generation = number
            self._end(number)
            # Not the one that was there before us: removal brings it back.
            first = (journal.before or {}).get("generation")
            dropped = self._store.prune(self.options.keep, number, also=() if first is None else (first,))
            if dropped:
                step.what += f", drop {', '.join(map(str, dropped))}"

    # ---- putting back -------------------------------------------------------------------------------------------------

    def _restore(
        self,
        error: DriverError | OSError,
        target: Generation | None,
        before: t.Sequence[Package],
        changes: t.Sequence[Change],
        configuration: t.Mapping[str, str],
        journal: Journal,
    ) -> t.NoReturn:
        """Put back what was there, prove it, and say all of it."""
        if not isinstance(error, DriverError):  # a full disk, above all
            error = DriverError(f"The change failed: {error}.")
        built = re.findall(r"build on kernel: (\S+)", str(error.facts.get("output") or ""))
        kernels = list(dict.fromkeys([*(error.facts.get("kernels") or ()), *built]))
        with self._step("restore", "put back what was there") as step:
            step.changed = True
            failures = self._failed_builds(kernels) if kernels and not self.result.compiler else []
            self.result.compiler += [line for failure in failures for line in failure.compiler]
            trouble = ""
            for put_back in (
                lambda: self.manager.write_configuration(configuration),  # first: nothing may bring the planned branch
                lambda: self._put_packages_back(target, before, changes),
                lambda: self._hold_again(journal),
            ):
                try:
                    put_back()
                except (DriverError, OSError) as another:  # one that fails does not keep the other from being tried
                    trouble = trouble or str(another)
            there = {(package.name, package.version) for package in self.manager.installed()}
            if not trouble and there != {(package.name, package.version) for package in before}:
                trouble = "other packages are installed than before"
            try:
                lacking = self._modules_again(before) if before else ""
            except (DriverError, OSError) as another:
                lacking = str(another)
            self.result.restored = not trouble and not lacking
            if self.result.restored:
                self._write_journal(journal) if journal != Journal() else self._drop_journal()
                shutil.rmtree(self._saved, ignore_errors=True)
        text = str(error)
        parts = [text]
        if built and not failures:
            parts.append(f"No module could be built for kernel {' and '.join(dict.fromkeys(built))}.")
        parts += map(str, failures)
        parts.append(self._left(bool(before), trouble, lacking))
        remedies = [failure.remedy for failure in failures] or [
            kernel_modules.WAYS_OUT if kernels else "Mend the cause, then run again."
        ]
        here = {*self.request.kernels, *(kernel["release"] for kernel in kernel_files.kernels(self._host))}
        absent = [release for release in kernels if release not in here]
        if absent:
            remedies = [
                f"Kernel {' and '.join(absent)} is not installed, only its headers are, and DKMS compiles for them: remove them"
                f" (apt-get purge {' '.join(f'linux-headers-{release}' for release in absent)}), then run again.",
                *(remedies if len(absent) < len(kernels) else ()),
            ]
        parts += [remedy for remedy in dict.fromkeys(remedies) if remedy not in text]
        raise DriverError(" ".join(parts), kernels=kernels) from error

    def _hold_again(self, journal: Journal) -> None:
        """Hold what we held before, as far as it is there."""
        there = self.manager.installed()
        if journal.holds:
            self.manager.freeze(there, [one.name for one in there if one.name in journal.holds])

    def _left(self, was_there: bool, trouble: str, lacking: str) -> str:
        """Say what is on the host after putting back."""
        if self.result.restored:
            if was_there:
                return "The packages that were there before are installed again, and every kernel that had a module has it again."
            return "The packages of this attempt were removed again."
        left = f"What was there before could not be put back completely ({trouble or lacking})."
        if was_there and not lacking:
            return f"{left} Every kernel that had a module has it again, so that the driver that served loads at the next boot."
        return f"{left} The driver that is loaded serves until the next reboot." if self._serves() else left

    def _put_packages_back(
        self, target: Generation | None, before: t.Sequence[Package], changes: t.Sequence[Change]
    ) -> None:
        """Make the driver's packages what they were, and remove what came with the others."""
        keep = {package.name for package in before}
        new = [change.name for change in changes if change.before is None and change.after]
        remove = list(
            dict.fromkeys(
                [*(package.name for package in self.manager.installed() if package.name not in keep)]
                + [name for name in new if name not in keep]
            )
        )
        files = self._store.files(target) if target else []
        if before and target is None:
            raise DriverError("there is no way back: the packages that served were not kept")
        for attempt in (1, 2):
            try:
                self.manager.install_files([file.path for file in files], remove)
                return
            except DriverError as error:
                self.manager.repair()  # whatever comes: consistent
                if attempt == 2 or "build on kernel" in str(error.facts.get("output") or ""):
                    raise  # a module that does not compile would not compile now either

    def _modules_again(self, before: t.Sequence[Package]) -> str:
        """See that the kernels that had a module have it again; say what is wrong, else nothing."""
        folder = self._saved / "lib/modules"
        kernels = sorted(os.listdir(folder)) if folder.is_dir() else []
        version = next((kernel_modules.driver_version(one.version) for one in before if judge.is_core(one.name)), "")
        saved = kernel_modules.proven(replace(self._host, root=str(self._saved)), kernels)

        def missing() -> dict[str, str]:
            found: dict[str, str] = {}
            for module in saved:
                if module.version == version:  # what was not the driver's before is not missed now
                    found.update(kernel_modules.lacking(self._host, [module.release], version, module.flavor))
            return found

        self._put_modules_back(missing())
        return "; ".join(f"kernel {release}: {why}" for release, why in missing().items())

    def _failed_builds(self, kernels: t.Sequence[str]) -> list[kernel_modules.Failure]:
        """What failed in a build that a package's script made. Where another kernel succeeded after it, the build is repeated."""
        found = [failure for failure in kernel_modules.left_behind(self._host.root) if failure.kernel in kernels]
        return found or kernel_modules.build(
            self._run, kernels, self._installed_version(), self.options.time_limit, self._host.root
        )

    def _save_modules(self) -> None:
        """Keep the module files that serve: a driver that is put back cannot be compiled where the disk is full, or gcc gone."""
        if self._saved.is_dir():
            return  # a run that was killed kept them
        partial = Path(f"{self._saved}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for module in kernel_modules.proven(self._host, self._kernels()):
            source = Path(self._host.root + module.path)
            target = Path(f"{partial}{module.path}").parent
            target.mkdir(parents=True)
            for file in source.parent.glob(f"{source.name.partition('.')[0]}*.ko*"):
                if not file.is_symlink():
                    _link_or_copy(file, target / file.name)
        partial.rename(self._saved)

    def _put_modules_back(self, releases: t.Collection[str]) -> None:
        """Put saved module files back in their places."""
        for release in releases:
            for file in (self._saved / "lib/modules" / release).glob("**/*.ko*"):
                target = Path(f"{self._host.root}/{file.relative_to(self._saved)}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    target.unlink()
                _link_or_copy(file, target)
            self._run(["depmod", release], self.options.time_limit)

    # ---- generation and removal ---------------------------------------------------------------------------------------

    def _go_back(self, target: Generation) -> None:
        """Replace what serves by a generation."""
        files = self._store.files(target)
        journal = self._journal()
        present = self._way_back()
        before = _served(journal, present) if _under_way(journal) else self.manager.installed()
        configuration = self.manager.read_configuration()
        wanted = {item["name"] for item in target.packages}
        self._begin(present)
        self._save_modules()
        version = str(target.driver.get("version") or "")
        self.request = replace(
            self.request,
            branch=int(target.driver.get("branch") or 0),
            flavor=str(target.driver.get("flavor") or self.request.flavor),
            kernels=tuple(self._kernels()),
        )
        try:
            self.manager.thaw(journal.holds)
            with self._step("generation", f"go back to generation {target.n}: {_named(target.driver)}") as step:
                step.changed = True
                self.manager.write_configuration(target.configuration)
                self.manager.install_files(
                    [file.path for file in files],
                    [package.name for package in self.manager.installed() if package.name not in wanted],
                )
                if not self._matches(target):
                    raise DriverError(f"Generation {target.n} (driver {version}) was not installed completely.")
            if target.packages:
                with self._step("driver.modules", "prove a module for every kernel that can boot next") as step:
                    self._prove_modules(step)
        except (DriverError, OSError) as error:
            self._restore(error, present, before, (), configuration, journal)
        self._freeze()
        todo = generations.restore_default_kernel(self._host, self._run, target.default_kernel)
        if todo:
            self.result.warnings.append(todo)
        self._end(target.n)
        shutil.rmtree(self._saved, ignore_errors=True)

    def _remove(self) -> None:
        """Remove the driver and every trace of ours; put back what was there before us."""
        data = self.actions.get("driver.remove") or {}
        journal = self._journal()
        before = journal.before or {}
        target = self._generation(before.get("generation"))
        files = self._store.files(target) if target else []
        # A removal that was killed while it dropped the generations has put back already what was there before us.
        old = target.packages if target else before.get("packages") or ()
        there = {(package.name, package.version) for package in self.manager.installed()}
        if (
            before.get("generation") is not None
            and target is None
            and not {(item["name"], item["version"]) for item in old} <= there
        ):
            text = "The driver that was there before this collection cannot be put back: the files of its packages are damaged or gone."
            if self.options.way_back_required:
                raise DriverError(
                    f"{text} Nothing was removed. To remove ours all the same: nvidia_driver_way_back_required: false."
                )
            self.result.warnings.append(text)
        shutil.rmtree(self._state / "proof", ignore_errors=True)
        stay = {item["name"] for item in old if target or (item["name"], item["version"]) in there}
        installed = [package.name for package in self.manager.installed()]
        # Also what an earlier change of ours replaced: its configuration may still be there.
        earlier = [item["name"] for one in self._store.all() for item in one.packages]
        known = dict.fromkeys([*(data.get("packages") or ()), *installed, *earlier])
        names = [name for name in known if name not in stay]
        self.manager.thaw(journal.holds)
        with self._step("driver.remove", "remove the driver's packages") as step:
            if files:
                step.what = f"remove the driver's packages, put back {_named(target.driver) if target else ''}"
            if names or files:
                step.changed = bool(installed) or bool(files)
                self.manager.install_files([file.path for file in files], names)
            brought = [name for name in before.get("brought") or () if name not in stay]
            step.changed |= self._remove_brought(brought)
        with self._step("forget", "remove our repository, pin and block list") as step:
            gone = self.manager.forget()
            self.manager.write_configuration(target.configuration if target else {})
            keep = {str(self._journal_path), str(self._state)}
            for path in data.get("paths") or ():
                if self._host.root + path in keep:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._host.root + path)
                    gone.append(path)
            step.changed = bool(gone)
            step.what += f": {', '.join(dict.fromkeys(gone))}" if gone else ""
        # Also where the list went in a run that was killed before this.
        if journal != Journal() or any(path.startswith("/etc/modprobe.d/") for path in gone):
            with self._step("initramfs", "rebuild the initial RAM file systems without the block list") as step:
                rebuilt = initramfs.rebuild(self._host, self._run, self._kernels(), self.options.time_limit)
                step.changed = bool(rebuilt)
        # Last, so that a run that stops before this point comes back to removing.
        for folder in ("staged", "headers", "trial", "way-back", "build-logs", "modules", "generations"):
            shutil.rmtree(self._state / folder, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (self._state / "gpus.json").unlink()
        self._drop_journal()
        with contextlib.suppress(OSError):  # somebody else keeps something there
            self._state.rmdir()

    def _remove_brought(self, names: t.Sequence[str]) -> bool:
        """Remove what came along with our drivers (headers, dkms), unless something else needs it by now."""
        present = [name for name in names if name]
        if not present:
            return False
        try:
            changes = self.manager.simulate(Transaction((), tuple(present)))
        except DriverError as error:
            self.result.warnings.append(f"{', '.join(present)} came with the driver and stays: {error}")
            return False
        others = [change.name for change in changes if change.name not in present]
        if others:
            self.result.warnings.append(
                f"{', '.join(present)} came with the driver and stays, because {', '.join(others[:4])} needs it."
            )
            return False
        if changes:
            self.manager.install_files([], [change.name for change in changes])
        return bool(changes)

    # ---- journal and small things -------------------------------------------------------------------------------------

    def _journal(self) -> Journal:
        return generations.read_journal(self._journal_path)

    def _write_journal(self, journal: Journal) -> None:
        generations.write_journal(journal, self._journal_path)

    def _drop_journal(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._journal_path.unlink()

    def _begin(self, target: Generation | None) -> None:
        """Write down that a change is under way, and at the first one what was there before us. Proofs of the old driver end here."""
        shutil.rmtree(self._state / "proof", ignore_errors=True)
        journal = self._journal()
        before = dict(journal.before or {})
        if "packages" not in before:
            before["packages"] = [asdict(package) for package in self.manager.installed()]
            before["generation"] = target.n if target else None
        before["under_way"] = True
        self._write_journal(
            replace(
                journal,
                previous=journal.present or journal.previous,
                present=None,
                generation=target.n if target else None,
                before=before,
            )
        )

    def _end(self, number: int | None) -> None:
        """Write down that the change is over and what serves now."""
        journal = self._journal()
        before = {name: value for name, value in (journal.before or {}).items() if name != "under_way"}
        self._write_journal(replace(journal, present=self._present(), generation=number, before=before or None))

    def _note_brought(self, changes: t.Sequence[Change]) -> None:
        """Remember what comes newly along with our transactions, for removal."""
        new = [change.name for change in changes if change.before is None and change.after]
        new = [name for name in new if not package_files.is_driver_package(name.partition(":")[0])]
        if not new:
            return
        journal = self._journal()
        before = dict(journal.before or {})
        before["brought"] = sorted({*(before.get("brought") or ()), *new})
        self._write_journal(replace(journal, before=before))

    def _present(self) -> dict[str, t.Any] | None:
        packages = self.manager.installed()
        if not packages:
            return None
        facts = self._facts()
        version = self._installed_version()
        return {
            "branch": int(version.partition(".")[0] or 0),
            "version": version,
            "flavor": self.request.flavor or facts["flavor"],
            "source": facts["source"] or self.request.source,
            "packages": [{"name": package.name, "version": package.version} for package in packages],
        }

    def _generation(self, number: int | None) -> Generation | None:
        if number is None:
            return None
        with contextlib.suppress(DriverError):  # a way back that is damaged is none
            return self._store.read(number)
        return None

    def _matches(self, generation: Generation) -> bool:
        """Whether exactly a generation's packages are installed."""
        return {
            (item["name"].partition(":")[0], item["version"], item["architecture"]) for item in generation.packages
        } == {_plain(package) for package in self.manager.installed()}

    def _difference(self, target: Generation) -> dict[str, t.Any]:
        now = {package.name: package.version for package in self.manager.installed()}
        then = {item["name"]: item["version"] for item in target.packages}
        changes = [
            Change(name, now.get(name), then.get(name))
            for name in sorted({*now, *then})
            if now.get(name) != then.get(name)
        ]
        return judge.summary(changes)

    def _installed_version(self) -> str:
        """The driver's version, by its packages; nothing where there is none."""
        versions = [
            kernel_modules.driver_version(package.version)
            for package in sorted(
                self.manager.installed(), key=lambda package: (not package.name.startswith("libcuda"), package.name)
            )
            if judge.is_core(package.name)
        ]
        return versions[0] if versions else ""

    def _facts(self) -> dict[str, t.Any]:
        """Version, source and flavor of the installed driver, as its packages tell."""
        return package_files.summary(package_files.inventory(self._host, self.manager.name, []).packages or [])

    def _serves(self) -> bool:
        return self._host.exists("/proc/driver/nvidia/version")

    def _make_state(self, folder: Path) -> None:
        """apt downloads as a user of its own, who has to come through."""
        for path in (self._state, folder):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Keep a file under another name too; whoever replaces it makes a new one."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def digest(transaction: Transaction) -> str:
    """What is asked for, in one word; the observation shows it as `driver.staged.packages`."""
    text = json.dumps([sorted(transaction.install), sorted(transaction.remove)])
    return hashlib.sha256(text.encode()).hexdigest()


def _under_way(journal: Journal) -> bool:
    """Whether a change began and did not end."""
    return bool((journal.before or {}).get("under_way"))


def _served(journal: Journal, target: Generation | None) -> list[Package]:
    """What served before the change that is under way: the way back's packages, else those that the journal names."""
    if target:
        return [Package(item["name"], item["version"], item["architecture"]) for item in target.packages]
    return [Package(item["name"], item["version"]) for item in (journal.previous or {}).get("packages") or ()]


def _plain(package: Package) -> tuple[str, str, str]:
    return (package.name.partition(":")[0], package.version, package.architecture)


def _named(driver: t.Mapping[str, t.Any]) -> str:
    return f"driver {driver.get('version') or 'none'} ({driver.get('flavor') or 'unknown flavor'})"
