# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what a host lacks of what was decided, as actions in order. Pure.

Everything that is managed is compared with the observation, files by their hashes. A host that has it all gets no action.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Driver, Notes, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired, parse
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.driver import (
    ARCHIVE_SOURCES_PATH,
    DRIVER_INSTALL_DISTRIBUTIONS,
    KEY_PATH,
    SOURCES_PATH,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    MANAGED_BLOCK_MARKER,
    Action,
    Distribution,
    Knowledge,
    ManagedFile,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.startup import (
    command_file,
    environment_files,
)

PREFERENCES_PATH = "/etc/apt/preferences.d/gpufleet-nvidia"
NOUVEAU_PATH = "/etc/modprobe.d/gpufleet-nouveau.conf"
JOURNAL_PATH = "/var/lib/gpufleet/driver.json"
ENVIRONMENT_PATH = "/etc/environment"
PROFILE_PATH = "/etc/profile.d/gpufleet.sh"
USER_ENVIRONMENT_PATH = "/etc/environment.d/50-gpufleet.conf"
SYSTEM_ENVIRONMENT_PATH = "/etc/systemd/system.conf.d/50-gpufleet.conf"
COMMAND_PATH = "/usr/local/bin/gpu-env"
PERSISTENCE_UNIT = "nvidia-persistenced.service"

_WRITTEN_BY = "Written by gpufleet.workstation; changes are overwritten."

NOUVEAU = ManagedFile(
    NOUVEAU_PATH,
    f"# {_WRITTEN_BY}\nblacklist nouveau\nblacklist nova_core\noptions nouveau modeset=0\n",
)


def observation_request(desired: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    """The options of gpu_info that show everything a plan for this desired state compares. Raises InvalidDesired."""
    wanted = parse(desired)
    files = [SOURCES_PATH, ARCHIVE_SOURCES_PATH, KEY_PATH, PREFERENCES_PATH, NOUVEAU_PATH, JOURNAL_PATH]
    files += [PROFILE_PATH, USER_ENVIRONMENT_PATH, SYSTEM_ENVIRONMENT_PATH, COMMAND_PATH]
    for environment in wanted.environments:
        files += [_runtime_env_path(wanted, environment.name), *environment_files(wanted.root, environment.name)]
    return {
        "root": wanted.root,
        "environments": [environment.name for environment in wanted.environments],
        "files": files,
        "variables": list(wanted.runtime.variables),
    }


def urls_to_ask(plan: t.Mapping[str, t.Any]) -> list[str]:
    """What a plan's builds will download from: an observation with these URLs lets the planner refuse before a change."""
    builds = {action["data"]["environment"] for action in plan["actions"] if action["id"].startswith("torch.build:")}
    pages = (_index_page(item) for item in plan["environments"] if item["name"] in builds)
    return list(dict.fromkeys(page for page in pages if page.startswith(("http://", "https://"))))


def _index_page(environment: t.Mapping[str, t.Any]) -> str:
    return f"{environment['index_url'].rstrip('/')}/torch/"


def plan_actions(
    host: Host,
    driver: Driver,
    environments: t.Sequence[t.Mapping[str, t.Any]],
    wanted: Desired,
    knowledge: Knowledge,
    notes: Notes,
) -> list[Action]:
    """Return what is to be done, in order, and refuse what the host's state does not allow."""
    actions = []
    if "driver" in wanted.steps and driver.managed:
        actions += _driver_actions(host, driver, wanted, knowledge, notes)
    if "torch" in wanted.steps:
        actions += _torch_actions(host, environments, wanted, knowledge, notes)
    if "runtime" in wanted.steps:
        actions += _runtime_actions(host, wanted, notes)
    if host.driver.get("reboot_required") and not _stale(host):
        notes.warn(
            "The host asks for a reboot, for a kernel or a driver that was installed; the driver here does not need it."
        )
    uid = host.os.get("uid")
    if actions and uid not in (None, 0):
        notes.refuse(
            "not_root",
            f"the host has to be changed, but tasks run there as user id {uid}",
            "Use become (ansible-playbook --become --ask-become-pass), or connect as root.",
        )
    return actions


# ---- driver -----------------------------------------------------------------------------------------------------------


def _driver_actions(host: Host, driver: Driver, wanted: Desired, knowledge: Knowledge, notes: Notes) -> list[Action]:
    if wanted.driver.state == "absent":
        return _remove_driver(host, notes)
    distribution = host.distribution
    if distribution is None or distribution.repository not in DRIVER_INSTALL_DISTRIBUTIONS:
        return _foreign_system(host, driver, notes)
    return _DriverChange(host, distribution, driver, wanted, knowledge, notes).actions()


def _foreign_system(host: Host, driver: Driver, notes: Notes) -> list[Action]:
    """A system where the role installs nothing: its driver is used as it is."""
    if driver.kept:
        notes.say(f"On {host.os_name}, packages, pin and block list of the driver are left as they are.")
        if _stale(host):
            notes.wait(
                "reboot",
                f"driver {host.installed.version if host.installed else ''} is installed, {host.loaded_version or 'none'} is loaded",
                "Reboot the host, then run again.",
            )
    return []


def _stale(host: Host) -> bool:
    """Whether the installed driver is not the one that is loaded."""
    if not host.driver_known or host.installed is None:
        return False
    if host.driver.get("mismatch"):
        return True
    return "loaded_version" in host.driver and host.loaded_version != host.installed.version


class _DriverChange:
    """What a Debian host lacks of a driver."""

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
        self.why_packages = self._why_packages()
        self.busy = host.processes("compute")

    def actions(self) -> list[Action]:
        found = [self._repository(), self._pin(), self._headers(), self._packages(), self._nouveau(), self._modules()]
        start = self._start()
        if self.busy and (self.why_packages or start):
            # Staging a pin or packages on a host that computes would let an unattended upgrade change its driver.
            self.notes.wait(
                "driver change",
                f"the GPU is busy: {listed(self.busy)}",
                "Wait until it is idle or stop what runs, then run again; the other steps need not wait.",
            )
            return []
        if start and start.id == "driver.reboot" and not self.wanted.driver.reboot_allowed:
            self.notes.wait(
                "reboot",
                start.why,
                "Permit it with nvidia_driver_reboot_allowed: true, or reboot the host yourself and run again.",
            )
            start = None
        return [action for action in [*found, start, self._persistence(bool(start))] if action]

    def _why_packages(self) -> str | None:
        host, driver = self.host, self.driver
        broken = [package.name for package in host.packages if package.broken and package.is_driver]
        if broken:
            return f"{listed(broken[:3])} {'are' if len(broken) > 1 else 'is'} not completely installed"
        if driver.kept:
            missing = [name for name in driver.packages if not host.has_package(name)]
            if self.wanted.driver.package_set and host.packages and missing:
                return (
                    f"{listed(missing)} of the {driver.package_set} set {'are' if len(missing) > 1 else 'is'} missing"
                )
            modules = host.driver.get("modules_by_kernel") or {}
            if modules and not any(modules.values()) and host.packages and missing:
                return f"{listed(missing)} {'are' if len(missing) > 1 else 'is'} missing, and no kernel has a module"
            return None
        if host.installed is None:
            return "no driver is installed"
        now = f"{host.installed.version or f'branch {host.installed.branch}'}"
        flavor = f" ({host.installed.flavor})" if host.installed.flavor else ""
        return f"driver {now}{flavor} is installed, {driver.branch} ({driver.flavor}) >= {driver.minimum} is planned"

    def _repository(self) -> Action | None:
        repository = self.driver.repository
        if not repository or repository["adopt"]:
            return None
        data: dict[str, t.Any] = {"key_path": None, "key_file": "", "key_content": ""}
        if self.driver.source == "nvidia":
            sources = ManagedFile(SOURCES_PATH, _sources(repository["url"], "/", (), KEY_PATH))
            data.update(
                key_path=KEY_PATH, key_file=repository["key_file"], key_content=self.wanted.driver.repository_key
            )
        else:
            codename = str(self.host.os.get("codename") or "")
            components = self.distribution.components
            sources = ManagedFile(
                ARCHIVE_SOURCES_PATH, _sources(repository["url"], codename, components, repository["signed_by"])
            )
        difference = self.host.difference(sources)
        why = f"{sources.path}: {difference}" if difference else self._key_difference(data)
        if why is None:
            return None
        data.update(sources_path=sources.path, sources_content=sources.content, content=sources.content)
        what = f"describe the package repository {repository['url']}".rstrip()
        return Action("driver.repository", "driver", what, why, data)

    def _key_difference(self, data: t.Mapping[str, t.Any]) -> str | None:
        if data["key_path"] is None:
            return None
        if data["key_content"]:
            difference = self.host.difference(ManagedFile(KEY_PATH, data["key_content"]))
        else:
            row = next((row for row in self.knowledge.keys.values() if row["file"] == data["key_file"]), None)
            difference = self.host.difference_from(KEY_PATH, row["sha256"] if row else None)
        return f"{KEY_PATH}: {difference}" if difference else None

    def _pin(self) -> Action | None:
        pin, host = self.driver.pin, self.host
        if pin is None:
            return None
        preferences = ManagedFile(PREFERENCES_PATH, _preferences(pin))
        branch_prefix = f"{self.driver.branch}."
        for other in host.pins():
            version, owner = str(other.get("version") or ""), str(other.get("from_package") or "")
            ours = other.get("file") == PREFERENCES_PATH or owner.startswith("nvidia-driver-pinning-")
            if version and not ours and not version.startswith(branch_prefix) and (other.get("priority") or 0) >= 990:
                self.notes.warn(
                    f"{other.get('file')} pins {other.get('packages')} to {version}, against the planned branch {self.driver.branch}."
                )
        if pin["package"] and host.has_package(pin["package"]):
            return None
        if host.difference(preferences) is None:
            return None
        others = [package.name for package in host.packages if package.is_pin and package.present]
        why = f"{listed(others)} pins another branch" if others else "no pin keeps the branch"
        data = {
            "package": pin["package"],
            "preferences_path": preferences.path,
            "preferences_content": preferences.content,
        }
        return Action("driver.pin", "driver", f"pin the driver to branch {self.driver.branch}", why, data)

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

    def _headers(self) -> Action | None:
        host = self.host
        lacking = self._lacking_kernels()
        kernels = host.bootable_kernels()
        without = [
            kernel.release
            for kernel in kernels
            if kernel.headers is False and (self.why_packages or kernel.release in lacking)
        ]
        generic = self.distribution.headers.get(host.arch)
        if not kernels and self.why_packages and generic:
            why = "the module is compiled on the host"
            return Action("driver.headers", "driver", "install kernel headers", why, {"packages": [generic]})
        if not without:
            return None
        packages = [f"linux-headers-{release}" for release in without]
        packages += sorted({name for name in map(_headers_package, without) if name})
        why = f"{listed(without)} {'have' if len(without) > 1 else 'has'} none, and the module is compiled against them"
        return Action("driver.headers", "driver", "install kernel headers", why, {"packages": packages})

    def _packages(self) -> Action | None:
        if not self.why_packages:
            return None
        host, driver = self.host, self.driver
        remove = self._other_flavor()
        branch = host.installed.branch if host.installed else None
        moving = [
            package.name
            for package in host.moving_packages()
            if package.source in (driver.source, "unknown")
            and package.name not in remove
            and (branch == driver.branch or not re.search(rf"-{branch}(?:-|$)", package.name))
        ]
        held = [package.name for package in host.packages if package.held and package.name in (*moving, *remove)]
        if held:
            self.notes.warn(
                f"{listed(held)} {'are' if len(held) > 1 else 'is'} held: apt will not change what is held; release it with "
                f"apt-mark unhold {' '.join(held)}."
            )
        if host.os.get("secure_boot"):
            self.notes.warn(
                "Secure Boot is on: a module that is compiled on the host loads only when the key that signs it was enrolled at "
                "the console (mokutil --import)."
            )
        locks = [f"{row.get('path')} by {row.get('holder')}" for row in host.health.get("locks") or ()]
        if locks:
            self.notes.warn(f"Package locks are held ({listed(locks)}); the installation waits for them.")
        older = host.older_kernels()
        if older:
            self.notes.warn(f"Older kernels than can boot next are not looked after: {listed(older)}.")
        data = {
            "packages": list(dict.fromkeys([*driver.packages, *moving])),
            "remove": remove,
            "version_glob": f"{driver.branch}.*",
        }
        what = f"install driver branch {driver.branch} ({driver.flavor} kernel modules, {driver.package_set} packages)"
        return Action("driver.packages", "driver", what, self.why_packages, data, disruptive=bool(host.loaded_version))

    def _other_flavor(self) -> list[str]:
        """Installed packages of the flavor that is not planned."""
        keep = set(self.driver.packages)
        other = "proprietary" if self.driver.flavor == "open" else "open"
        names = {
            name.format(branch=self.host.installed.branch if self.host.installed else "")
            for row in self.knowledge.package_sets.values()
            for kind in ("desktop", "compute")
            for name in row[kind][other]
        }
        same = {
            name.format(branch=self.driver.branch)
            for row in self.knowledge.package_sets.values()
            for kind in ("desktop", "compute")
            for name in row[kind][str(self.driver.flavor)]
        }
        return [
            package.name for package in self.host.packages if package.present and package.name in names - same - keep
        ]

    def _nouveau(self) -> Action | None:
        why = self.host.difference(NOUVEAU)
        if why is None:
            return None
        data = {"path": NOUVEAU.path, "content": NOUVEAU.content}
        return Action("driver.nouveau", "driver", "block nouveau and nova_core", f"{NOUVEAU.path}: {why}", data)

    def _modules(self) -> Action | None:
        kernels = [kernel.release for kernel in self.host.bootable_kernels()]
        lacking = self._lacking_kernels()
        if not self.why_packages and not lacking:
            return None
        why = (
            f"{listed(lacking)} has no {self.driver.flavor} module of the installed driver"
            if lacking
            else "packages change"
        )
        if self.why_packages:
            why = "a package that installed is not yet a module that loads"
        data = {"kernels": kernels, "flavor": self.driver.flavor, "branch": self.driver.branch}
        what = "check that every kernel that can boot next has its module"
        return Action("driver.modules", "driver", what, why, data)

    def _start(self) -> Action | None:
        """Bring the installed driver into the running kernel, live where nobody is in the way."""
        host = self.host
        stale = _stale(host) or (host.driver_known and host.nouveau)
        if not self.why_packages and not stale:
            return None
        version = f"{host.loaded_version} is loaded" if host.loaded_version else "no NVIDIA driver is loaded"
        obstacle = None
        if host.nouveau:
            obstacle, version = "nouveau drives a GPU", "nouveau is loaded"
        elif host.os.get("graphical"):
            obstacle = "a graphical session may use the GPU"
        elif host.loaded_version and host.driver.get("processes") is None:
            obstacle = "who uses the GPU is not known"
        elif host.loaded_version and host.processes("compute", "graphics"):
            obstacle = f"{listed(host.processes('compute', 'graphics'))} holds the GPU"
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

    def _persistence(self, starts: bool) -> Action | None:
        state = self.host.driver.get("persistence")
        state = state if isinstance(state, dict) else {}
        loaded = starts or (bool(self.host.loaded_version) and not _stale(self.host))
        if not self.why_packages and state.get("enabled") and (state.get("active") or not loaded):
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


def _headers_package(release: str) -> str | None:
    """The package that follows a kernel's flavor: linux-headers-cloud-amd64 for 6.1.0-28-cloud-amd64."""
    match = re.search(r"-((?:cloud-|rt-)?(?:amd64|arm64))$", release)
    return f"linux-headers-{match[1]}" if match else None


def _sources(url: str, suite: str, components: t.Sequence[str], signed_by: str | None) -> str:
    lines = [f"# {_WRITTEN_BY}", "Types: deb", f"URIs: {url}", f"Suites: {suite}"]
    if components:
        lines.append(f"Components: {' '.join(components)}")
    if signed_by and signed_by.startswith("/"):
        lines.append(f"Signed-By: {signed_by}")
    return "\n".join(lines) + "\n"


def _preferences(pin: t.Mapping[str, t.Any]) -> str:
    return (
        f"Explanation: {_WRITTEN_BY}\nPackage: {pin['packages']}\nPin: version {pin['version']}\n"
        f"Pin-Priority: {pin['priority']}\n"
    )


def _remove_driver(host: Host, notes: Notes) -> list[Action]:
    packages = [
        package.name
        for package in host.packages
        if (package.present and (package.is_driver or package.is_pin)) and package.source != "unknown"
    ]
    ours = [SOURCES_PATH, ARCHIVE_SOURCES_PATH, KEY_PATH, PREFERENCES_PATH, NOUVEAU_PATH, JOURNAL_PATH]
    paths = [path for path in ours if host.file(path) is not None]
    if host.installed and host.installed.source == "runfile":
        notes.refuse(
            "foreign_packages",
            f"driver {host.installed.version} was installed from a .run file, not from packages",
            "Remove it on the host with nvidia-uninstall.",
        )
    if packages and (host.distribution is None or host.distribution.repository not in DRIVER_INSTALL_DISTRIBUTIONS):
        notes.refuse(
            "distribution",
            f"this version removes no drivers on {host.os_name}",
            f"Remove {listed(packages[:5])} by the means of {host.os_name}.",
        )
    if not packages and not paths:
        return []
    users = host.processes("compute")
    if users and packages:
        notes.wait("driver removal", f"the GPU is busy: {listed(users)}", "Stop what runs, then run again.")
        return []
    data = {"packages": packages, "paths": paths}
    why = f"it is installed ({listed(packages[:3] or paths[:3])}), and nvidia_driver_state is absent"
    return [Action("driver.remove", "driver", "remove the driver", why, data, disruptive=bool(host.loaded_version))]


# ---- environments -----------------------------------------------------------------------------------------------------


def _torch_actions(
    host: Host, environments: t.Sequence[t.Mapping[str, t.Any]], wanted: Desired, knowledge: Knowledge, notes: Notes
) -> list[Action]:
    actions = []
    builds = []
    for position, environment in enumerate(environments):
        name = environment["name"]
        data = {"environment": name}
        seen = host.environment(name)
        release, why = _release(environment, seen)
        if why and release is None:
            builds.append(name)
            _check_index(host, environment, notes)
            what = f"build {environment['spec']['torch']} for the environment {name}"
            actions.append(Action(f"torch.build:{name}", "torch", what, why, data))
        if why:
            target = release or "the new release"
            what = f"switch the environment {name} to {target}"
            serving = f"{seen.get('current')} serves now" if seen.get("current") else "nothing serves now"
            actions.append(Action(f"torch.switch:{name}", "torch", what, serving, data))
        else:
            actions += _proof_actions(environment, seen, data)
        drift = [] if why else _launcher_drift(host, wanted, name, with_command=position == 0)
        if drift:
            actions.append(
                Action("torch.launcher", "torch", f"write {listed(drift)}", "it differs or is missing", data)
            )
    _check_space(host, builds, wanted, knowledge, notes)
    return actions


def _release(environment: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> tuple[str | None, str | None]:
    """Return (release to switch to, why); without a release one has to be built, without a reason all is well."""
    why = _why_rebuild(environment, seen)
    if why is None:
        return None, None
    base = environment["release_base"]
    for row in seen.get("releases") or ():
        release = str(row.get("id"))
        fits = release == base or release.startswith((f"{base}-", f"{base}."))
        if fits and row.get("stamped") and release != seen.get("current"):
            return release, f"{release} is built and proven; {why}"
    return None, why


def _why_rebuild(environment: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> str | None:
    current = seen.get("current")
    if not current:
        return "it does not exist" if not seen.get("releases") else "no release serves"
    integrity = seen.get("integrity") or {}
    stamp = seen.get("stamp") or {}
    torch = seen.get("torch") or {}
    if integrity.get("status") == "unstamped" or not stamp:
        return f"{current} was never proven"
    if stamp.get("spec_digest") != environment["spec_digest"]:
        built = (stamp.get("spec") or {}).get("torch") or current
        wanted = environment["spec"]["torch"]
        return (
            f"{built} serves, {wanted} is wanted" if built != wanted else f"{current} was built for other requirements"
        )
    if integrity.get("status") == "damaged":
        counts = [f"{integrity[kind]} {kind}" for kind in ("missing", "changed", "added") if integrity.get(kind)]
        examples = f", for example {integrity['examples'][0]}" if integrity.get("examples") else ""
        return f"{current} is damaged: {listed(counts) or 'files differ'}{examples}"
    if integrity.get("status") != "ok":
        return f"whether {current} is intact could not be seen"
    if seen.get("interpreter_ok") is False:
        return f"the Python that {current} was built with is gone"
    if torch.get("version") not in (None, environment["spec"]["torch"]):
        return f"{current} holds torch {torch['version']}, not {environment['spec']['torch']}"
    return None


def _proof_actions(
    environment: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any], data: t.Mapping[str, t.Any]
) -> list[Action]:
    """A release that serves well, but is proven for somebody else or for other GPUs."""
    name, stamp = environment["name"], seen.get("stamp") or {}
    people = {key: stamp.get(key) or seen.get(key) for key in ("owner", "group")}
    if any(people[key] not in (None, environment[key]) for key in people):
        what = f"give the environment {name} to {environment['owner']}:{environment['group']}"
        why = f"it belongs to {people['owner']}:{people['group']}"
        return [Action(f"torch.owner:{name}", "torch", what, why, data)]
    proven = (stamp.get("proof") or {}).get("sm")
    if proven is None:
        return []
    missing = [sm for sm in environment["sm"] if sm not in proven]
    if missing:
        why = f"{seen.get('current')} was proven for {listed(proven) or 'no GPU'}, not for {listed(missing)}"
        return [Action(f"torch.prove:{name}", "torch", f"prove the environment {name} again", why, data)]
    return []


def _launcher_drift(host: Host, wanted: Desired, name: str, with_command: bool) -> list[str]:
    files = dict(environment_files(wanted.root, name))
    if with_command:
        files[COMMAND_PATH] = command_file(wanted.root)
    return [
        path
        for path, (mode, content) in files.items()
        if host.difference(ManagedFile(path, content, f"{mode:04o}")) is not None
    ]


def _check_space(host: Host, builds: t.Sequence[str], wanted: Desired, knowledge: Knowledge, notes: Notes) -> None:
    free = host.free(wanted.root)
    for key, unit in (("mib", "MiB"), ("inodes", "inodes")):
        needed = knowledge.needs[key] * len(builds)
        if builds and free.get(f"free_{key}") is not None and free[f"free_{key}"] < needed:
            notes.refuse(
                "disk_space",
                f"{wanted.root} has {free[f'free_{key}']} {unit} free, building {listed(builds)} takes {needed}",
                "Free space there, or put the environments elsewhere with torch_env_root.",
            )


def _check_index(host: Host, environment: t.Mapping[str, t.Any], notes: Notes) -> None:
    silence = host.silence(_index_page(environment))
    if silence:
        notes.refuse(
            "index_unreachable",
            f"the host cannot use the torch index {environment['index_url']}: {silence}",
            "Check the host's network, name service and proxy, or name a mirror in torch_env_index_base_url.",
        )


# ---- variables --------------------------------------------------------------------------------------------------------


def _runtime_env_path(wanted: Desired, name: str) -> str:
    return f"{wanted.root}/{name}/runtime.env"


def environment_block(wanted: Desired) -> str:
    """Our lines of /etc/environment."""
    return "".join(f"{name}={value}\n" for name, value in wanted.runtime.variables.items())


def runtime_files(wanted: Desired) -> list[ManagedFile]:
    """The files that set the variables, apart from /etc/environment. A value that a process has already is kept."""
    variables = wanted.runtime.variables
    if wanted.runtime.state == "absent" or not variables:
        return []
    shell = "".join(
        f"if [ -z \"${{{name}+set}}\" ]; then\n    {name}='{value}'\nfi\nexport {name}\n"
        for name, value in variables.items()
    )
    assignments = "".join(f"{name}={value}\n" for name, value in variables.items())
    quoted = " ".join(f'"{name}={value}"' for name, value in variables.items())
    return [
        ManagedFile(PROFILE_PATH, f"# {_WRITTEN_BY}\n{shell}"),
        ManagedFile(USER_ENVIRONMENT_PATH, f"# {_WRITTEN_BY}\n{assignments}"),
        ManagedFile(SYSTEM_ENVIRONMENT_PATH, f"# {_WRITTEN_BY}\n[Manager]\nDefaultEnvironment={quoted}\n"),
        *(
            ManagedFile(_runtime_env_path(wanted, environment.name), f"# {_WRITTEN_BY}\n{assignments}")
            for environment in wanted.environments
        ),
    ]


def _runtime_actions(host: Host, wanted: Desired, notes: Notes) -> list[Action]:
    files = {file.path: file for file in runtime_files(wanted)}
    paths = [PROFILE_PATH]
    if host.os.get("init") in (None, "systemd"):
        paths += [USER_ENVIRONMENT_PATH, SYSTEM_ENVIRONMENT_PATH]
    else:
        notes.say(f"The host runs {host.os['init']}, not systemd: it needs no variables in systemd's files.")
    for environment in wanted.environments:
        # The directory of an environment comes with its first release.
        if "torch" in wanted.steps or host.environment(environment.name).get("current"):
            paths.append(_runtime_env_path(wanted, environment.name))
    actions = [_runtime_file(host, path, files.get(path)) for path in paths]
    actions.append(_runtime_block(host, environment_block(wanted) if wanted.runtime.state == "present" else ""))
    for name, value in wanted.runtime.variables.items() if wanted.runtime.state == "present" else ():
        last = _values(host).get(name)
        block = host.runtime("etc_environment").get("block")
        if last not in (None, value) and block == environment_block(wanted):
            notes.warn(f"{ENVIRONMENT_PATH} sets {name}={last} below our lines, which wins: remove that line.")
    return [action for action in actions if action]


def _values(host: Host) -> t.Mapping[str, t.Any]:
    values = host.runtime("etc_environment").get("values")
    return values if isinstance(values, dict) else {}


def _runtime_file(host: Host, path: str, wanted: ManagedFile | None) -> Action | None:
    reload = path == SYSTEM_ENVIRONMENT_PATH
    if wanted is None:
        if host.file(path) is None:
            return None
        data: dict[str, t.Any] = {
            "path": path,
            "state": "absent",
            "content": "",
            "mode": None,
            "owner": None,
            "group": None,
        }
        why = "no variables are wanted any more"
        return Action(f"runtime.file:{path}", "runtime", f"remove {path}", why, {**data, "reload": reload})
    drift = host.difference(wanted)
    if drift is None:
        return None
    data = {**wanted.as_dict(), "state": "present", "reload": reload}
    return Action(f"runtime.file:{path}", "runtime", f"write {path}", drift, data)


def _runtime_block(host: Host, block: str) -> Action | None:
    now = host.runtime("etc_environment").get("block")
    if _lines(now) == _lines(block):
        return None
    state = "present" if block else "absent"
    data = {"path": ENVIRONMENT_PATH, "state": state, "block": block, "marker": MANAGED_BLOCK_MARKER, "content": block}
    what = f"set the variables in {ENVIRONMENT_PATH}" if block else f"remove our lines from {ENVIRONMENT_PATH}"
    why = (
        "our lines are not there"
        if now is None
        else "our lines differ"
        if block
        else "no variables are wanted any more"
    )
    return Action(f"runtime.block:{ENVIRONMENT_PATH}", "runtime", what, why, data)


def _lines(block: str | None) -> list[str]:
    return (block or "").strip("\n").splitlines()
