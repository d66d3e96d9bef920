# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what a host lacks of the driver that was decided on, as actions in order. Pure.

What takes long comes first and replaces nothing. What replaces the driver comes only where the window for it is open: nobody computes, the
reboot that it needs is permitted, and the firmware will accept the module. Elsewhere the plan ends after what can be prepared, and says in
`pending` what is waited for. A host on which everything is prepared, or done, gets no action.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Driver, Notes, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.driver_packages import (
    ARCHIVE_SOURCES_PATH,
    KEY_PATH,
    PREFERENCES_PATH,
    PRIORITY,
    REPO_PATH,
    RPM_KEY_PATH,
    SOURCES_PATH,
    foreign_packages,
    kernel_metapackage,
    set_row,
    transaction,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Action,
    Distribution,
    Knowledge,
    ManagedFile,
    upstream_version,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Host

NOUVEAU_PATH = "/etc/modprobe.d/gpufleet-nouveau.conf"
JOURNAL_PATH = "/var/lib/gpufleet/driver.json"
PERSISTENCE_UNIT = "nvidia-persistenced.service"
UVM_NODE = "/dev/nvidia-uvm"

DRIVER_PATHS = (
    *(SOURCES_PATH, ARCHIVE_SOURCES_PATH, KEY_PATH, PREFERENCES_PATH, REPO_PATH, RPM_KEY_PATH),
    *(NOUVEAU_PATH, JOURNAL_PATH),
)
"""Everything of the driver's that we write: what a plan compares, and what a removal takes away."""

_WRITTEN_BY = "Written by gpufleet.workstation; changes are overwritten."
_EPEL_RPM = "https://dl.fedoraproject.org/pub/epel/epel-release-latest-{release}.noarch.rpm"

NOUVEAU = ManagedFile(
    NOUVEAU_PATH,
    f"# {_WRITTEN_BY}\nblacklist nouveau\nblacklist nova_core\noptions nouveau modeset=0\n",
)


def driver_actions(host: Host, driver: Driver, wanted: Desired, knowledge: Knowledge, notes: Notes) -> list[Action]:
    """Return what is to be done to the driver, in order."""
    if wanted.driver.state == "absent":
        return _remove_driver(host, wanted, notes)
    if host.distribution is None or not host.distribution.installs:
        return _foreign_system(host, driver, notes)
    return _DriverChange(host, host.distribution, driver, wanted, knowledge, notes).actions()


def is_stale(host: Host) -> bool:
    """Whether the installed driver is not the one that is loaded."""
    if not host.driver_known or host.installed is None:
        return False
    if host.driver.get("mismatch"):
        return True
    return "loaded_version" in host.driver and host.loaded_version != host.installed.version


def _foreign_system(host: Host, driver: Driver, notes: Notes) -> list[Action]:
    """A system where the role installs nothing: its driver is used as it is."""
    if driver.kept:
        notes.say(f"On {host.os_name}, packages, pin and block list of the driver are left as they are.")
        if is_stale(host):
            notes.wait(
                "reboot",
                f"driver {host.installed.version if host.installed else ''} is installed, {host.loaded_version or 'none'} is loaded",
                "Reboot the host, then run again.",
            )
    return []


class _Wait(t.NamedTuple):
    """What keeps the window shut."""

    what: str
    why: str
    remedy: str


class _DriverChange:
    """What a host lacks of a driver."""

    def __init__(
        self,
        host: Host,
        distribution: Distribution,
        driver: Driver,
        wanted: Desired,
        knowledge: Knowledge,
        notes: Notes,
    ) -> None:
        self.host = host
        self.distribution = distribution
        self.driver = driver
        self.wanted = wanted
        self.knowledge = knowledge
        self.notes = notes
        self.lacking = self._lacking_kernels()
        self.why_packages = self._why_packages()
        self.install, self.remove = transaction(driver, host, knowledge) if self.why_packages else ([], [])
        self.digest = self._digest() if self.why_packages else ""
        self.staged = host.is_staged(driver.branch, driver.flavor, self.digest)

    def actions(self) -> list[Action]:
        self._leave_what_nothing_compiles()
        if self.why_packages:
            self._refuse_held()
            self._warn()
        prepare = [self._repair(), self._repository(), self._headers(), self._stage()]
        start = self._start()
        wait = self._wait(start)
        if wait:
            self.notes.wait(*wait)
        if wait and (self.why_packages or wait.what == "console"):
            return [action for action in [*prepare, self._keys()] if action]
        start = None if wait else self._permitted(start)
        installed = [self._packages(), self._modules(), self._nouveau(), self._freeze()]
        loaded = [self._nodes(bool(start)), start, self._persistence(bool(start))]
        return [action for action in [*prepare, *installed, *loaded] if action]

    # ---- why ------------------------------------------------------------------------------------------------------------

    def _why_packages(self) -> str | None:
        host, driver = self.host, self.driver
        broken = [package.name for package in host.packages if package.broken and package.is_driver]
        if broken:
            return f"{listed(broken[:3])} {'are' if len(broken) > 1 else 'is'} not completely installed"
        if driver.kept:
            return self._why_kept_packages()
        if host.installed is None or host.installed.branch is None:  # helpers alone are no driver
            return "no driver is installed"
        now = host.installed.version or f"branch {host.installed.branch}"
        flavor = f" ({host.installed.flavor})" if host.installed.flavor else ""
        return f"driver {now}{flavor} is installed, {driver.branch} ({driver.flavor}) >= {driver.minimum} is planned"

    def _why_kept_packages(self) -> str | None:
        """Why packages of a driver change that is good enough."""
        host, driver = self.host, self.driver
        missing = [name for name in driver.packages if not host.has_package(name)]
        are = "are" if len(missing) > 1 else "is"
        if not host.packages or not missing:
            return None
        if foreign_packages(driver, host):
            self.notes.say("Its packages are of a publisher that is not known, so they are left as they are.")
            return None
        if host.change_under_way:  # apt settles dependencies; nothing depends on nvidia-smi or the persistence daemon
            return f"{listed(missing)} {are} missing since a change was interrupted"
        if self.wanted.driver.package_set:
            return f"{listed(missing)} of the {driver.package_set} set {are} missing"
        if "userspace_version" in host.driver and host.driver["userspace_version"] is None:
            return f"{listed(missing)} {are} missing, and so is libcuda"
        if driver.build == "prebuilt" and self.lacking:
            return f"kernel {listed(self.lacking)} has no signed module of the driver"
        if self.lacking and not self._compiles():
            return f"{listed(missing)} {are} missing, and nothing else compiles the module that kernel {listed(self.lacking)} lacks"
        modules = host.driver.get("modules_by_kernel") or {}
        if modules and not any(modules.values()):
            return f"{listed(missing)} {are} missing, and no kernel has a module"
        return None

    def _compiles(self) -> bool:
        """Whether a package that is installed compiles modules on this host."""
        return any(package.compiles for package in self.host.packages if package.present)

    def _leave_what_nothing_compiles(self) -> None:
        """Modules of a driver that is kept and came by other means than packages are made by those means."""
        known = isinstance(self.host.driver.get("packages"), list)
        if not self.lacking or self.why_packages or not known or self._compiles() or self.driver.build == "prebuilt":
            return
        self.notes.wait(
            "driver modules",
            f"kernel {listed(self.lacking)} has no module of the driver, and no package here makes one",
            "Make it by the means that brought the driver, or replace that driver with nvidia_driver_source: nvidia.",
        )
        self.lacking = []

    def _lacking_kernels(self) -> list[str]:
        """Kernels that can boot next without the module of the installed driver."""
        installed = self.host.installed
        if installed is None:
            return []
        lacking = []
        for kernel in self.host.bootable_kernels():
            if not kernel.looked_at:
                continue
            module = kernel.module or {}
            same_version = module.get("version") == installed.version
            same_flavor = module.get("flavor") in (None, self.driver.flavor)
            if not (same_version and same_flavor):
                lacking.append(kernel.release)
        return lacking

    def _refuse_held(self) -> None:
        """What somebody holds is not released by us, so what cannot be done with it is refused before anything starts."""
        host = self.host
        touched = {*self.install, *self.remove}
        held = [
            package.name
            for package in host.packages
            if package.held and package.name in touched and package.name not in host.own_holds()
        ]
        rpm = self.distribution.family == "redhat"
        if held:
            self.notes.refuse(
                "driver_held",
                f"{listed(held)} {'are' if len(held) > 1 else 'is'} held or locked by somebody else, and would have to change",
                _release(host, held),
            )
        for pin in self._opposing_pins():
            what = f"{pin.get('file')} pins {pin.get('packages')} to {pin.get('version')}, against the planned branch {self.driver.branch}"
            if rpm or (pin.get("priority") or 0) >= PRIORITY:
                self.notes.refuse(
                    "driver_held", what, "Remove that pin or lock, or plan the branch that it names; then run again."
                )
            else:
                self.notes.warn(f"{what}; ours outranks it.")
        self._refuse_excluded(touched)

    def _opposing_pins(self) -> list[t.Mapping[str, t.Any]]:
        """Pins and locks of other people that keep a part of the planned driver at another branch."""
        row = set_row(self.driver, self.distribution, self.knowledge) or {}
        names = {*self.install, *(name.format(branch=self.driver.branch) for name in row.get("names", ()))}
        own = self.host.own_holds()
        found = []
        for pin in self.host.pins():
            packages, owner = str(pin.get("packages") or ""), str(pin.get("from_package") or "")
            ours = pin.get("file") == PREFERENCES_PATH or owner.startswith("nvidia-driver-pinning-") or packages in own
            strong = pin.get("priority") is None or (pin.get("priority") or 0) >= 990  # a lock has none
            branch = re.match(r"(?:\d+:)?(\d{3})(?=[.*-]|$)", str(pin.get("version") or ""))
            opposes = branch is not None and int(branch[1]) != self.driver.branch
            if opposes and strong and not ours and _is_about(packages, names):
                found.append(pin)
        return found

    def _refuse_excluded(self, touched: t.Collection[str]) -> None:
        for row in self.host.dnf_excludes():
            hidden = [
                name for name in touched if any(fnmatch.fnmatchcase(name, glob) for glob in row.get("packages") or ())
            ]
            if hidden and row.get("id") is None:
                self.notes.refuse(
                    "driver_held",
                    f"{row.get('file')} hides {listed(sorted(hidden))} from dnf (excludepkgs)",
                    "Take the driver's packages out of that line, then run again.",
                )

    def _warn(self) -> None:
        host, notes = self.host, self.notes
        if host.os.get("secure_boot") and not self.driver.secure_boot and self.driver.build == "dkms":
            notes.warn(
                "Secure Boot is on: a module that is compiled on the host loads only when the key that signs it was enrolled at "
                "the console (mokutil --import)."
            )
        locks = [f"{row.get('path')} by {row.get('holder')}" for row in host.health.get("locks") or ()]
        if locks:
            notes.warn(f"Package locks are held ({listed(locks)}); the installation waits for them.")
        older = host.older_kernels()
        if older:
            notes.warn(f"Older kernels than can boot next are not looked after: {listed(older)}.")
        for pin in host.pins():
            priority = pin.get("priority")
            if (
                self.driver.source == "nvidia"
                and "NVIDIA" in str(pin.get("pin"))
                and priority is not None
                and priority < 500
            ):
                notes.warn(
                    f"{pin.get('file')} gives NVIDIA's repository priority {priority}: then apt does not take from it the dkms that this "
                    "driver needs (>= 3.1.8), where the system's own is older. Give it 500 or more."
                )

    # ---- what is prepared -----------------------------------------------------------------------------------------------

    def _repair(self) -> Action | None:
        left = self.host.interrupted()
        if not left:
            return None
        why = f"package work was interrupted: {listed(left[:3])}{f' and {len(left) - 3} more' if len(left) > 3 else ''}"
        return Action("driver.repair", "driver", "finish what was interrupted", why, {"what": left})

    def _repository(self) -> Action | None:
        repository = self.driver.repository
        if not repository or repository["adopt"]:
            return None
        data: dict[str, t.Any] = {
            "key_path": repository["key_path"],
            "key_file": repository["key_file"],
            "key_content": "",
        }
        if repository["key_path"]:
            data["key_content"] = self.wanted.driver.repository_key
        described = ManagedFile(repository["path"], self._description(repository))
        difference = self.host.difference(described)
        why = f"{described.path}: {difference}" if difference else self._key_difference(data)
        if why is None:
            return None
        data.update(path=described.path, content=described.content)
        what = f"describe the package repository {repository['url']}".rstrip()
        return Action("driver.repository", "driver", what, why, data)

    def _description(self, repository: t.Mapping[str, t.Any]) -> str:
        if self.distribution.family == "redhat":
            return _yum_repository(repository["url"], repository["key_path"])
        if self.driver.source == "nvidia":
            return _sources(repository["url"], ["/"], (), repository["key_path"])
        return _sources(repository["url"], repository["suites"], self.distribution.components, repository["signed_by"])

    def _key_difference(self, data: t.Mapping[str, t.Any]) -> str | None:
        path = data["key_path"]
        if path is None:
            return None
        if data["key_content"]:
            difference = self.host.difference(ManagedFile(path, data["key_content"]))
        else:
            row = next((row for row in self.knowledge.keys.values() if row["file"] == data["key_file"]), None)
            difference = self.host.difference_from(path, row["sha256"] if row else None)
        return f"{path}: {difference}" if difference else None

    def _headers(self) -> Action | None:
        """Kernel headers, and what compiles modules."""
        if self.driver.build == "prebuilt" or not (self.why_packages or self.lacking):
            return None
        packages, whys = [], []
        without = [
            kernel.release
            for kernel in self.host.bootable_kernels()
            if kernel.headers is False and (self.why_packages or kernel.release in self.lacking)
        ]
        if without:
            whys.append(f"{listed(without)} {'have' if len(without) > 1 else 'has'} no headers")
            packages += self._header_packages(without)
        elif not self.staged and not self.host.bootable_kernels():
            generic = self.distribution.headers.get(self.host.arch)
            packages += [generic] if generic else []
        if not self.staged and not self._compiles():  # what was staged had dkms installed; kernels may have come since
            whys.append("dkms compiles the module on the host")
            packages = [*self._epel(), *packages, "dkms"]
        if not packages:
            return None
        return Action(
            "driver.headers",
            "driver",
            "install what modules are compiled with",
            " and ".join(whys),
            {"packages": packages},
        )

    def _header_packages(self, releases: t.Sequence[str]) -> list[str]:
        if self.distribution.family == "redhat":
            newest = self.host.future_kernels()[0]
            follows = newest in releases and _kernel_devel(newest) == f"kernel-devel-{newest}"
            # Brings the headers of every kernel to come. Of this very version, because the newest one would bring the newest kernel.
            return [*map(_kernel_devel, releases), *([f"kernel-devel-matched-{newest}"] if follows else [])]
        packages = [f"linux-headers-{release}" for release in releases]
        followers = [_follower(release) or kernel_metapackage(self.host, release) for release in releases]
        return packages + sorted({f"linux-headers-{name}" for name in followers if name})

    def _epel(self) -> list[str]:
        """What describes EPEL, which has dkms for Enterprise Linux."""
        host = self.host
        if self.distribution.family != "redhat":
            return []
        rows = host.dnf_repositories()
        there = any("epel" in f"{row.get('id')} {' '.join(row.get('urls') or ())}".lower() for row in rows)
        if there or (not host.dnf_repositories_known and host.os_id not in self.distribution.epel):
            return []
        if host.os_id in self.distribution.epel:
            return ["epel-release"]
        self.notes.refuse(
            "driver_source",
            f"the kernel modules are compiled by dkms, which comes from EPEL, and {host.os_name} ({host.os_id}) has no repository of that "
            "name",
            f"Enable EPEL or a mirror of it (dnf install {_EPEL_RPM.format(release=self.distribution.version)}), then run again.",
        )
        return []

    def _digest(self) -> str:
        """What the module writes down of what it staged (change.digest), so that another change is not taken for this one."""
        return hashlib.sha256(json.dumps([sorted(self.install), sorted(self.remove)]).encode("utf-8")).hexdigest()

    def _change(self) -> dict[str, t.Any]:
        return {"packages": self.install, "remove": self.remove, "version": f"{self.driver.branch}.*"}

    def _stage(self) -> Action | None:
        if not self.why_packages or self.staged:
            return None
        what = f"fetch and try driver branch {self.driver.branch}, and secure the way back"
        data = {**self._change(), "kernels": self.host.future_kernels(), "build": self.driver.build}
        return Action("driver.stage", "driver", what, self.why_packages, data)

    def _keys(self) -> Action | None:
        """Hand the key that signs modules to the firmware; without a password for the console only a person can."""
        if self.driver.secure_boot != "stage" or not self.wanted.driver.mok_password_set:
            return None
        key = self.host.machine_owner_key.get("path") or ""
        why = "Secure Boot is on, and this key is not enrolled"
        return Action("driver.keys", "driver", "stage the key that signs the modules", why, {"key": key})

    # ---- the window -------------------------------------------------------------------------------------------------------

    def _wait(self, start: Action | None) -> _Wait | None:
        """What keeps the driver from being replaced now; nothing where nothing is to be replaced."""
        if not self.why_packages and not start:
            return self._console() if self.lacking else None
        busy = _in_use(self.host, self.wanted)
        if busy:
            return _Wait("driver change", *busy)
        return self._console() or self._reboot(start)

    def _console(self) -> _Wait | None:
        """Secure Boot, and a key that only a person at the machine can confirm."""
        way = self.driver.secure_boot
        if way not in ("stage", "console"):
            return None
        key = self.host.machine_owner_key.get("path")
        confirm = "reboot with somebody at the console: Enroll MOK, Continue, Yes, the password; then run again"
        if way == "console":
            return _Wait(
                "console", f"the key {key} is staged and not yet confirmed", f"{confirm[:1].upper()}{confirm[1:]}."
            )
        by_hand = f"or run mokutil --import {key} on the host; " if key else ""
        first = (
            ""
            if self.wanted.driver.mok_password_set
            else f"Set nvidia_driver_mok_password and run again, {by_hand}then "
        )
        return _Wait(
            "console",
            "Secure Boot is on, and the key that signs modules compiled here is not enrolled; the driver that serves is kept",
            f"{first}{confirm if first else confirm[:1].upper() + confirm[1:]}.",
        )

    def _reboot(self, start: Action | None) -> _Wait | None:
        """A reboot that nobody permitted: what serves now is not replaced by what serves after it only."""
        if start is None or start.id != "driver.reboot":
            return None
        host = self.host
        serves = bool(host.loaded_version) and host.installed is not None and not is_stale(host)
        inhibitors = host.inhibitors()
        if self.why_packages and not serves:
            return None
        if not self.wanted.driver.reboot_allowed:
            return _Wait("reboot", start.why, _PERMIT)
        if inhibitors:
            return _Wait("reboot", f"it is held off by {listed(inhibitors)}", "Run again when that is over.")
        return None

    def _permitted(self, start: Action | None) -> Action | None:
        """The start, unless it is a reboot that is left to a person."""
        if start is None or start.id != "driver.reboot":
            return start
        inhibitors = self.host.inhibitors()
        if not self.wanted.driver.reboot_allowed:
            self.notes.wait("reboot", start.why, _PERMIT)
        elif inhibitors:
            self.notes.wait(
                "reboot", f"{start.why}; it is held off by {listed(inhibitors)}", "Run again when that is over."
            )
        elif self.host.os.get("disk_passphrase"):
            self.notes.wait(
                "reboot",
                f"{start.why}; the disk asks for its passphrase at every boot",
                "Reboot the host with a person at its console who types the passphrase, then run again.",
            )
        else:
            return start
        return None

    # ---- what is replaced -----------------------------------------------------------------------------------------------

    def _packages(self) -> Action | None:
        if not self.why_packages:
            return None
        driver = self.driver
        what = f"install driver branch {driver.branch} ({driver.flavor} kernel modules, {driver.package_set} packages)"
        disruptive = bool(self.host.loaded_version)
        return Action("driver.packages", "driver", what, self.why_packages, self._change(), disruptive=disruptive)

    def _modules(self) -> Action | None:
        if not self.why_packages and not self.lacking:
            return None
        have = "have" if len(self.lacking) > 1 else "has"
        why = f"{listed(self.lacking)} {have} no {self.driver.flavor} module of the installed driver"
        if self.why_packages:
            why = "a package that installed is not yet a module that loads"
        data = {
            "kernels": self.host.future_kernels(),
            "flavor": self.driver.flavor,
            "branch": self.driver.branch,
            "build": self.driver.build,
        }
        what = "see that every kernel that can boot next has its module"
        return Action("driver.modules", "driver", what, why, data)

    def _nouveau(self) -> Action | None:
        difference = self.host.difference(NOUVEAU)
        early = self.host.nouveau_at_boot()
        if difference:
            why = f"{NOUVEAU.path}: {difference}"
        elif early:
            why = f"the initramfs of {listed(early)} still brings nouveau"
        else:
            return None
        data = {"path": NOUVEAU.path, "content": NOUVEAU.content}
        return Action("driver.nouveau", "driver", "block nouveau and nova_core", why, data)

    def _freeze(self) -> Action | None:
        why = "upgrades of the system must not move it" if self.why_packages else self._thawed()
        if why is None:
            return None
        installed = self.host.installed
        version = (
            installed.version
            if installed and installed.version and not self.why_packages
            else f"{self.driver.branch}.*"
        )
        return Action("driver.freeze", "driver", "keep the driver at its exact version", why, {"version": version})

    def _thawed(self) -> str | None:
        """What of an installed driver an upgrade of the system would move."""
        host, pin = self.host, self.driver.pin
        packages = [package for package in host.packages if package.to_freeze]
        if pin is None or not host.pins_known or not packages:
            return None
        if self.distribution.family == "redhat":
            packages = [package for package in packages if re.match(r"\d{3}\.", upstream_version(package.version))]
        loose = [package.name for package in packages if not package.held]
        if loose:
            word = "locked" if self.distribution.family == "redhat" else "held"
            return f"{_few(loose)} {'are' if len(loose) > 1 else 'is'} not {word}"
        stream = pin["packages"].partition(":")[2] if pin["kind"] == "module_stream" and self.driver.repository else ""
        if stream and host.stream and host.stream != stream:
            return f"module stream {host.stream} is enabled, not {stream}"
        if self.distribution.family == "redhat":
            return None
        pinned = {
            (name, row.get("version"))
            for row in host.pins()
            if row.get("file") == PREFERENCES_PATH and row.get("priority") == PRIORITY
            for name in str(row.get("packages")).split()
        }
        unpinned = [package.name for package in packages if (package.name, package.version) not in pinned]
        return (
            f"{_few(unpinned)} {'are' if len(unpinned) > 1 else 'is'} not pinned to the exact version"
            if unpinned
            else None
        )

    # ---- what is started ------------------------------------------------------------------------------------------------

    def _nodes(self, starts: bool) -> Action | None:
        if starts or not self.host.loaded_version or not self.host.lacks_node(UVM_NODE):
            return None
        why = f"{UVM_NODE} is missing, and CUDA does not start without it"
        return Action("driver.nodes", "driver", "make the device nodes of nvidia-uvm", why, {})

    def _start(self) -> Action | None:
        """Bring the installed driver into the running kernel, live where nobody is in the way."""
        host = self.host
        stale = is_stale(host) or (host.driver_known and host.nouveau)
        if not self.why_packages and not stale:
            return None
        version = f"{host.loaded_version} is loaded" if host.loaded_version else "no NVIDIA driver is loaded"
        if host.nouveau:
            version = "nouveau is loaded"
        obstacle = self._obstacle()
        if obstacle:
            why = f"{version}, and cannot be replaced live: {obstacle}"
            return Action("driver.reboot", "driver", "reboot into the driver", why, {}, disruptive=True)
        modules = ["nvidia", "nvidia_uvm"]
        if self.driver.package_set == "desktop":
            modules = ["nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"]
        what = "replace the loaded driver" if host.loaded_version else "load the driver"
        return Action(
            "driver.load", "driver", what, version, {"modules": modules}, disruptive=bool(host.loaded_version)
        )

    def _obstacle(self) -> str | None:
        """Why the loaded driver cannot be replaced without a reboot."""
        host = self.host
        rows = host.os.get("kernels")
        if rows and all(row.get("running") is False for row in rows):
            return "the running kernel is not installed any more"
        if host.nouveau:
            return "nouveau drives a GPU"
        if host.os.get("graphical"):
            return "a graphical session may use the GPU"
        if host.loaded_version and host.driver.get("processes") is None:
            return "who uses the GPU is not known"
        holders = host.processes("graphics", *(() if self.wanted.driver.drains else ("compute",)))
        return f"{listed(holders)} holds the GPU" if host.loaded_version and holders else None

    def _persistence(self, starts: bool) -> Action | None:
        state = self.host.driver.get("persistence")
        state = state if isinstance(state, dict) else {}
        loaded = starts or (bool(self.host.loaded_version) and not is_stale(self.host))
        if not self.why_packages and (not state or (state.get("enabled") and (state.get("active") or not loaded))):
            return None
        if not self.why_packages and state.get("present") is False:
            self.notes.warn(
                "The persistence daemon is not installed: the first use of an idle GPU takes seconds longer."
            )
            return None
        why = "it is not enabled" if not state.get("enabled") else "it is not running"
        if self.why_packages:
            why = "packages change, and without it an idle GPU loses its state"
        data = {"unit": str(state.get("unit") or PERSISTENCE_UNIT)}
        return Action("driver.persistence", "driver", "enable the persistence daemon", why, data)


_PERMIT = "Permit it with nvidia_driver_reboot_allowed: true, or reboot the host yourself and run again."


def _release(host: Host, held: t.Sequence[str]) -> str:
    rpm = host.distribution is not None and host.distribution.family == "redhat"
    command = "dnf versionlock delete" if rpm else "apt-mark unhold"
    return f"Release what was meant to be released ({command} {' '.join(held)}), then run again."


def _in_use(host: Host, wanted: Desired) -> tuple[str, str] | None:
    """Why no driver may be taken from under who computes with it, and what to do; None where nobody does or a drain command sees to it."""
    if wanted.driver.drains:
        return None
    if host.loaded_version and host.driver.get("processes", ()) is None:
        return (
            "who uses the GPU could not be read",
            "See the warnings for why, then run again; or let nvidia_driver_drain_command end what runs.",
        )
    busy = listed(host.processes("compute"))
    remedy = "Wait until it is idle or stop what runs, then run again; the other steps need not wait."
    return (f"the GPU is busy: {busy}", remedy) if busy else None


def _is_about(packages: str, names: t.Collection[str]) -> bool:
    """Whether a pin or lock is about one of these packages; it may name them, src:names, patterns or /expressions/ (apt_preferences(5))."""
    for word in packages.split():
        if word.startswith("src:"):
            about = bool(re.search(r"nvidia-(?:graphics|driver|open|kernel|dkms)", word))
        elif re.fullmatch(r"/.+/", word):
            about = "nvidia" in word or "cuda1" in word
        else:
            about = bool(fnmatch.filter(names, word.partition(":")[0]))
        if about:
            return True
    return False


def _few(names: t.Sequence[str]) -> str:
    return listed([*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])])


def _follower(release: str) -> str | None:
    """What Debian's metapackages of a kernel end with: cloud-amd64 for 6.1.0-28-cloud-amd64."""
    match = re.search(r"-((?:cloud-|rt-)?(?:amd64|arm64))$", release)
    return match[1] if match else None


def _kernel_devel(release: str) -> str:
    """The headers of an Enterprise Linux kernel; variants such as 64k have packages of their own."""
    version, _plus, variant = release.partition("+")
    if "uek" in version:
        variant = "uek"
    return f"kernel-{variant}-devel-{version}" if variant else f"kernel-devel-{version}"


def _sources(url: str, suites: t.Sequence[str], components: t.Sequence[str], signed_by: str | None) -> str:
    lines = [f"# {_WRITTEN_BY}", "Types: deb", f"URIs: {url}", f"Suites: {' '.join(suites)}"]
    if components:
        lines.append(f"Components: {' '.join(components)}")
    if signed_by and signed_by.startswith("/"):
        lines.append(f"Signed-By: {signed_by}")
    return "\n".join(lines) + "\n"


def _yum_repository(url: str, key_path: str) -> str:
    lines = [f"# {_WRITTEN_BY}", "[gpufleet-nvidia]", "name=NVIDIA driver (gpufleet.workstation)", f"baseurl={url}"]
    return "\n".join([*lines, "enabled=1", "gpgcheck=1", f"gpgkey=file://{key_path}"]) + "\n"


def _remove_driver(host: Host, wanted: Desired, notes: Notes) -> list[Action]:
    packages = [
        package.name
        for package in host.packages
        if package.present and package.is_driver and package.source != "unknown"
    ]
    paths = [path for path in DRIVER_PATHS if host.file(path) is not None]
    if not packages and not paths:
        return []
    if not paths and not host.journal:
        # Also what a removal has put back: a second one must not take it away.
        version = host.installed.version if host.installed else None
        notes.say(f"{f'Driver {version}' if version else packages[0]} was not installed by this collection: it stays.")
        return []
    if packages and (host.distribution is None or not host.distribution.installs):
        notes.refuse(
            "distribution",
            f"this version removes no drivers on {host.os_name}",
            f"Remove {listed(packages[:5])} by the means of {host.os_name}.",
        )
    held = [package.name for package in host.packages if package.held and package.name in packages]
    held = [name for name in held if name not in host.own_holds()]
    if held:
        notes.refuse(
            "driver_held",
            f"{_few(held)} {'are' if len(held) > 1 else 'is'} held or locked by somebody else",
            _release(host, held),
        )
    busy = _in_use(host, wanted) if packages else None
    if busy:
        notes.wait("driver removal", *busy)
        return []
    data = {"packages": packages, "paths": paths}
    why = f"it is installed ({listed(packages[:3] or paths[:3])}), and nvidia_driver_state is absent"
    return [Action("driver.remove", "driver", "remove the driver", why, data, disruptive=bool(host.loaded_version))]
