# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which driver a host gets. Pure.

A driver that is installed and fulfils everything is kept, whatever its branch: a default is no reason to change a host.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import (
    Ceiling,
    Driver,
    Need,
    Notes,
    Stack,
    listed,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Distribution,
    Knowledge,
    Row,
    at_least,
    branch_of,
    cuda_version,
    newest,
    version_key,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Gpu, Host, Installed

DRIVER_INSTALL_DISTRIBUTIONS = ("debian12", "debian13")
"""Where the role nvidia_driver can install a driver. Elsewhere a suitable one has to be there already."""

SOURCES_PATH = "/etc/apt/sources.list.d/gpufleet-nvidia.sources"
ARCHIVE_SOURCES_PATH = "/etc/apt/sources.list.d/gpufleet-archive.sources"
KEY_PATH = "/etc/apt/keyrings/gpufleet-nvidia.asc"

PINNED_PACKAGES = "nvidia-* libnvidia-* cuda-drivers* libcuda1 libcudadebugger1 libxnvctrl0 firmware-nvidia-gsp xserver-xorg-video-nvidia*"
"""As apt_preferences(5) wants them. What has another version scheme, such as the container tools, does not match the version."""


def ceilings(host: Host, gpus: t.Sequence[Gpu], wanted: Desired, notes: Notes) -> list[Ceiling]:
    """Say what bounds the driver from above."""
    current = host.installed.version or str(host.installed.branch) if host.installed else None
    if host.wsl:
        if current:
            # The numbers of a branch differ between Windows and Linux, the branches do not.
            remedy = "Update the NVIDIA driver in Windows, then run wsl --shutdown."
            return [Ceiling(f"the Windows driver {current}", "driver_minimum", remedy, branch=branch_of(current))]
        notes.warn("The driver of this WSL2 host belongs to Windows, and its version is not known.")
        return []
    if _from_jetpack(gpus):
        remedy = "Update JetPack, or use the torch wheels that NVIDIA publishes for it."
        # JetPack numbers its drivers within a branch in a way of its own, such as 580.00.
        return (
            [Ceiling(f"JetPack's driver {current}", "torch_driver", remedy, branch=branch_of(current))]
            if current
            else []
        )
    if "driver" not in wanted.steps:
        remedy = "Run without --tags, or with the tag driver, so that the driver may change."
        if current:
            return [Ceiling(f"{current}, which this run leaves alone", "torch_driver", remedy, version=current)]
        if host.driver_known and "torch" in wanted.steps:
            notes.refuse("torch_driver", "no driver is installed, and this run leaves the driver alone", remedy)
        return []
    if wanted.driver.state == "absent":
        return []
    found = []
    if wanted.driver.branch is not None:
        what = f"branch {wanted.driver.branch}, which nvidia_driver_branch asks for"
        remedy = "Set nvidia_driver_branch to auto or to {branch}."
        found.append(Ceiling(what, "driver_branch", remedy, branch=wanted.driver.branch))
    oldest = min((gpu for gpu in gpus if gpu.last_branch), key=lambda gpu: gpu.last_branch or 0, default=None)
    if oldest:
        what = f"branch {oldest.last_branch}, the last one for {oldest.label}"
        remedy = "Move that GPU to another host, or name it in nvidia_driver_gpus_exclude."
        found.append(Ceiling(what, "driver_branch", remedy, branch=oldest.last_branch))
    if wanted.driver.source == "distro" and host.distribution and host.distribution.native:
        version = newest(row["version"] for row in host.distribution.native)
        what = f"{version}, the newest in the archive of {host.distribution.name}"
        found.append(Ceiling(what, "driver_source", "Set nvidia_driver_source to nvidia.", version=version))
    return found


def resolve_driver(
    host: Host,
    gpus: t.Sequence[Gpu],
    bounds: t.Sequence[Ceiling],
    stacks: t.Sequence[Stack],
    wanted: Desired,
    knowledge: Knowledge,
    notes: Notes,
) -> Driver:
    """Decide on the driver of a host."""
    needs = _needs(gpus, stacks, wanted, knowledge)
    minimum = newest(need.version for need in needs)
    _refuse_unmet(needs, bounds, gpus, wanted, knowledge, notes)
    if host.wsl or _from_jetpack(gpus) or "driver" not in wanted.steps or wanted.driver.state == "absent":
        return _as_it_is(host, gpus, minimum, wanted, notes)
    driver = Driver(minimum=minimum, flavor=_flavor(gpus, wanted, notes), managed=True)
    _refuse_branch(gpus, wanted, knowledge, notes)
    if host.installed and _fulfils(host.installed, gpus, minimum, wanted):
        _keep(driver, host.installed, host, wanted, knowledge, notes)
    else:
        _choose(driver, host, gpus, wanted, knowledge, notes)
    _say_needs(driver, gpus, needs, wanted, notes)
    branch = knowledge.branches.get(driver.branch or 0)
    if branch and branch.status == "eol":
        since = f" since {branch.eol}" if branch.eol else ""
        supported = listed(str(row.branch) for row in knowledge.branches.values() if row.status != "eol")
        notes.warn(f"Driver branch {branch.branch} gets no more fixes{since}; supported are {supported}.")
    return driver


def _from_jetpack(gpus: t.Sequence[Gpu]) -> bool:
    return any(gpu.architecture and gpu.architecture.driver_from == "jetpack" for gpu in gpus)


def _needs(gpus: t.Sequence[Gpu], stacks: t.Sequence[Stack], wanted: Desired, knowledge: Knowledge) -> list[Need]:
    needs = [Need(wanted.driver.minimum, "nvidia_driver_minimum")]
    needs += [Need(gpu.first_driver, gpu.label, gpu) for gpu in gpus if gpu.first_driver]
    for stack in stacks:
        floor = knowledge.cuda_floors.get(cuda_version(stack.tag or "") or "")
        if floor:
            needs.append(Need(floor, f"torch {stack.build}"))
    return needs


def _refuse_unmet(
    needs: t.Sequence[Need],
    bounds: t.Sequence[Ceiling],
    gpus: t.Sequence[Gpu],
    wanted: Desired,
    knowledge: Knowledge,
    notes: Notes,
) -> None:
    """Refuse what is needed and cannot be had; torch builds are judged where they are chosen."""
    needed_branch = _supported_branch(branch_of(newest(need.version for need in needs)) or 0, knowledge)
    for need in needs:
        own = need.whose == "nvidia_driver_minimum"
        # How old a driver may be is asked of those that are installed here, not of JetPack's.
        if not (own or need.gpu) or (own and ("driver" not in wanted.steps or _from_jetpack(gpus))):
            continue
        for ceiling in bounds:
            if ceiling.allows(need.version):
                continue
            code = "driver_minimum" if own and ceiling.code == "driver_branch" else ceiling.code
            remedy = ceiling.remedy.format(branch=needed_branch)
            what = "asks for" if own else "needs"
            notes.refuse(
                code,
                f"{need.whose} {what} driver >= {need.version}, the newest possible here is {ceiling.what}",
                f"{remedy} Or lower nvidia_driver_minimum." if own else remedy,
                need.gpu,
            )


def _as_it_is(host: Host, gpus: t.Sequence[Gpu], minimum: str, wanted: Desired, notes: Notes) -> Driver:
    """The driver of a host where this run does not choose one."""
    driver = Driver(minimum=minimum)
    if host.installed:
        driver.branch, driver.flavor = host.installed.branch, host.installed.flavor
        driver.source = host.installed.source
    if host.wsl:
        driver.source, driver.flavor = "wsl", None
        notes.say(f"WSL2: the driver belongs to Windows; it has to be {minimum} or newer there.")
    elif _from_jetpack(gpus):
        driver.source = "platform"
        notes.say("Jetson: the driver comes with JetPack and is left alone.")
    elif "driver" not in wanted.steps:
        if "torch" in wanted.steps:
            notes.say(
                "The driver is left alone in this run; environments are planned against the one that is installed."
            )
            _refuse_unusable(host, gpus, notes)
    else:
        driver.managed, driver.packages = True, []
        notes.say("The driver is to be removed.")
    return driver


def _refuse_unusable(host: Host, gpus: t.Sequence[Gpu], notes: Notes) -> None:
    """A GPU that the installed driver cannot drive, for its flavor or because it is too new a driver."""
    if host.installed is None:
        return
    for gpu in gpus:
        if gpu.modules in ("open", "proprietary") and host.installed.flavor not in (None, gpu.modules):
            reason = f"{gpu.label} needs {gpu.modules} kernel modules, installed are {host.installed.flavor} ones"
        elif gpu.last_branch and (host.installed.branch or 0) > gpu.last_branch:
            reason = f"{gpu.label} is supported up to branch {gpu.last_branch}, installed is {host.installed.branch}"
        else:
            continue
        notes.refuse("torch_driver", reason, "Run with the tag driver too, so that the driver may change.", gpu)


def _flavor(gpus: t.Sequence[Gpu], wanted: Desired, notes: Notes) -> str:
    """Which kernel modules all GPUs can use."""
    needs = {kind: [gpu for gpu in gpus if gpu.modules == kind] for kind in ("open", "proprietary")}
    if needs["open"] and needs["proprietary"]:
        notes.refuse(
            "gpu_mix",
            f"{listed(gpu.label for gpu in needs['proprietary'])} needs the proprietary kernel modules, "
            f"{listed(gpu.label for gpu in needs['open'])} the open ones, and a host can load only one kind",
            "Move one of them to another host, or name it in nvidia_driver_gpus_exclude.",
        )
        return wanted.driver.flavor or "open"
    needed = next((kind for kind, needing in needs.items() if needing), None)
    if needed and wanted.driver.flavor and wanted.driver.flavor != needed:
        for gpu in needs[needed]:
            notes.refuse(
                "driver_flavor",
                f"{gpu.label} works with {needed} kernel modules only, not with {wanted.driver.flavor} ones",
                f"Set nvidia_driver_flavor to auto or {needed}.",
                gpu,
            )
    return wanted.driver.flavor or needed or "open"


def _refuse_branch(gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge, notes: Notes) -> None:
    """Judge a branch that was asked for."""
    branch = wanted.driver.branch
    if branch is None:
        return
    if branch not in knowledge.branches:
        if branch > max(knowledge.branches):
            notes.warn(
                f"Driver branch {branch} is unknown since {knowledge.as_of}; what it supports could not be checked."
            )
        else:
            near = sorted(knowledge.branches, key=lambda known: (abs(known - branch), -known))[:2]
            supported = listed(str(row.branch) for row in knowledge.branches.values() if row.status != "eol")
            notes.refuse(
                "driver_branch_unknown",
                f"there is no driver branch {branch}; nearest are {listed(map(str, near))}",
                f"Set nvidia_driver_branch to auto or to a branch that is supported: {supported}.",
            )
    elif wanted.driver.flavor and wanted.driver.flavor not in knowledge.branches[branch].modules:
        notes.refuse(
            "driver_flavor",
            f"branch {branch} has no {wanted.driver.flavor} kernel modules",
            "Set nvidia_driver_flavor to auto, or nvidia_driver_branch to an older branch.",
        )
    for gpu in gpus:
        if gpu.last_branch and branch > gpu.last_branch:
            notes.refuse(
                "driver_branch",
                f"{gpu.label} is supported up to branch {gpu.last_branch}, not by {branch}",
                f"Set nvidia_driver_branch to auto or {gpu.last_branch}.",
                gpu,
            )


def _fulfils(driver: Installed, gpus: t.Sequence[Gpu], minimum: str, wanted: Desired) -> bool:
    """Whether the installed driver is all that is asked for and needed."""
    if driver.branch is None or driver.source not in ("nvidia", "distro", None):
        return False
    new_enough = at_least(driver.version, minimum) if driver.version else at_least(str(driver.branch), minimum)
    flavors = {gpu.modules for gpu in gpus} & {"open", "proprietary"} | ({wanted.driver.flavor} - {None})
    return (
        new_enough
        and wanted.driver.branch in (None, driver.branch)
        and wanted.driver.source in (None, driver.source)
        and all(driver.branch <= gpu.last_branch for gpu in gpus if gpu.last_branch)
        and (driver.flavor is None or flavors <= {driver.flavor})
    )


def _keep(
    driver: Driver, installed: Installed, host: Host, wanted: Desired, knowledge: Knowledge, notes: Notes
) -> None:
    driver.kept = True
    driver.branch = installed.branch
    driver.flavor = installed.flavor or driver.flavor
    driver.source = installed.source or wanted.driver.source or "nvidia"
    version = installed.version or f"branch {installed.branch}"
    notes.say(f"Driver {version} ({driver.flavor} kernel modules) is installed and good enough: it is kept.")
    if host.distribution:
        _add_packages(driver, host, host.distribution, wanted, knowledge, notes)


def _choose(
    driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge, notes: Notes
) -> None:
    """Choose a driver to install, and refuse what stands in its way."""
    driver.source = wanted.driver.source or "nvidia"
    distribution = host.distribution
    if driver.source == "distro":
        driver.branch = _archive_branch(driver, distribution, wanted, host, notes)
    else:
        driver.branch = _nvidia_branch(driver, host, gpus, wanted, knowledge, notes)
    if distribution:
        _add_packages(driver, host, distribution, wanted, knowledge, notes)
    if distribution is None or distribution.repository not in DRIVER_INSTALL_DISTRIBUTIONS:
        branch = f"branch {driver.branch}, " if driver.branch else ""
        notes.refuse(
            "distribution",
            f"this version installs no drivers on {host.os_name}, and no suitable one is there",
            f"Install a driver >= {driver.minimum} ({branch}{driver.flavor} kernel modules) by the means of "
            f"{host.os_name}, then run again.",
        )
    installed = host.installed
    if installed and installed.source == "runfile":
        notes.refuse(
            "foreign_packages",
            f"driver {installed.version} was installed from a .run file, over which packages cannot be installed",
            "Remove it on the host with nvidia-uninstall, then run again; or leave it alone with --tags torch,runtime.",
        )
    foreign = [
        package.name
        for package in host.moving_packages()
        if package.source in ("nvidia", "distro") and package.source != driver.source
    ]
    if foreign:
        whose = {"nvidia": "NVIDIA's repository", "distro": "the distribution's archive"}
        other = "distro" if driver.source == "nvidia" else "nvidia"
        shown = listed(foreign[:3] + ([f"{len(foreign) - 3} more"] if len(foreign) > 3 else []))
        notes.refuse(
            "foreign_packages",
            f"driver {installed.version if installed else ''} from {whose[other]} is installed ({shown}), and packages of "
            f"{whose[driver.source]} must not be mixed with it",
            f"Remove it on the host (apt-get purge {' '.join(foreign)}), then run again"
            + (
                f"; or keep it with nvidia_driver_source: {other}, where a driver >= {driver.minimum} is to be had there."
                if wanted.driver.source
                else "."
            ),
        )
    if installed and installed.branch and driver.branch and driver.branch < installed.branch:
        if not wanted.driver.downgrade_allowed:
            notes.refuse(
                "driver_downgrade",
                f"branch {installed.branch} is installed, branch {driver.branch} would be a downgrade",
                "Permit it with nvidia_driver_downgrade_allowed, or keep the newer one with nvidia_driver_branch: auto."
                if wanted.driver.branch
                else "Permit it with nvidia_driver_downgrade_allowed: the newer branch does not fit this host.",
            )
        notes.warn(f"Branch {driver.branch} replaces the newer branch {installed.branch}.")


def _archive_branch(
    driver: Driver, distribution: Distribution | None, wanted: Desired, host: Host, notes: Notes
) -> int | None:
    """The branch that the distribution's own archive gives."""
    rows = distribution.native if distribution else ()
    if not rows:
        notes.refuse(
            "driver_source",
            f"which drivers the archive of {host.os_name} has is not established",
            "Set nvidia_driver_source to nvidia.",
        )
        return wanted.driver.branch
    asked = [row for row in rows if row["branch"] == wanted.driver.branch]
    enough = [row for row in rows if at_least(row["version"], driver.minimum)]
    row = (asked or enough or rows)[0]
    if wanted.driver.branch and not asked:
        has = listed(str(other["branch"]) for other in rows)
        notes.refuse(
            "driver_source",
            f"the archive of {host.os_name} has branch {has}, not {wanted.driver.branch}",
            "Set nvidia_driver_source to nvidia, or nvidia_driver_branch to auto.",
        )
    if row["note"]:
        notes.warn(f"{row['version']} of {host.os_name}: {row['note']}.")
    notes.say(f"Driver {row['version']} from the archive of {host.os_name}, as nvidia_driver_source asks.")
    return int(row["branch"])


def _nvidia_branch(
    driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge, notes: Notes
) -> int | None:
    """The branch to take from NVIDIA's repository."""
    distribution = host.distribution
    seen = {*distribution.branches_seen, *distribution.pinning_branches} if distribution else set()
    if wanted.driver.branch is not None:
        if seen and wanted.driver.branch not in seen and wanted.driver.branch in knowledge.branches:
            notes.warn(
                f"Branch {wanted.driver.branch} was never seen in NVIDIA's repository for {host.os_name}; where it is not there, "
                "the installation stops before it changes anything."
            )
        notes.say(f"Driver branch {wanted.driver.branch}, as nvidia_driver_branch asks.")
        return wanted.driver.branch
    default = int(knowledge.defaults["driver_branch"])
    last = min((gpu.last_branch for gpu in gpus if gpu.last_branch), default=None)
    installed = host.installed.branch if host.installed else None
    lowest = max(default, branch_of(driver.minimum) or 0, min(seen, default=0) if default not in seen else 0)
    if installed and installed > lowest and not (last and installed > last):
        lowest = installed  # never a downgrade unasked
    branch = _supported_branch(lowest, knowledge, driver.flavor)
    if last and branch > last:
        branch = last
    if branch == default:
        eol = knowledge.branches[branch].eol
        notes.say(f"Driver branch {branch}: the default, supported until {eol} and the last one for Maxwell to Volta.")
    else:
        notes.say(f"Driver branch {branch}: the oldest supported one from {lowest} on, which is needed here.")
    return branch


def _supported_branch(lowest: int, knowledge: Knowledge, flavor: str | None = None) -> int:
    """The lowest branch from the default one on that still gets fixes; the number itself where there is none."""
    lowest = max(lowest, int(knowledge.defaults["driver_branch"]))
    rows = [row for row in knowledge.branches.values() if row.branch >= lowest and row.status != "eol"]
    return min((row.branch for row in rows if flavor is None or flavor in row.modules), default=lowest)


def _add_packages(
    driver: Driver, host: Host, distribution: Distribution, wanted: Desired, knowledge: Knowledge, notes: Notes
) -> None:
    """Fill in package set, packages, pin and repository."""
    row = _set_row(driver, distribution, knowledge)
    if row is None:
        return
    kinds = ("desktop", "compute")
    there = [kind for kind in kinds if any(_all_there(host, row[kind][flavor], driver.branch) for flavor in row[kind])]
    fresh = "desktop" if host.os.get("graphical") else "compute"
    driver.package_set = wanted.driver.package_set or (there or [fresh])[0]
    names = row[driver.package_set][driver.flavor]
    if not names:
        notes.warn(f"Compute-only packages of {distribution.name} are not established; the desktop set is planned.")
        driver.package_set, names = "desktop", row["desktop"][driver.flavor]
    driver.packages = [name.format(branch=driver.branch) for name in names]
    if driver.source == "nvidia":
        driver.pin = _pin(driver, distribution)
        driver.repository = _nvidia_repository(host, distribution, wanted, knowledge, notes)
    else:
        driver.repository = _archive_repository(host, distribution, notes)


def _set_row(driver: Driver, distribution: Distribution, knowledge: Knowledge) -> Row | None:
    names = distribution.sets if driver.source == "nvidia" else (distribution.native_sets,)
    rows = [knowledge.package_sets[name] for name in names if name]
    return next((row for row in rows if row["until"] is None or (driver.branch or 0) <= row["until"]), None)


def _all_there(host: Host, names: t.Sequence[str], branch: int | None) -> bool:
    return bool(names) and all(host.has_package(name.format(branch=branch)) for name in names)


def _pin(driver: Driver, distribution: Distribution) -> dict[str, t.Any]:
    """How the branch is held: a package of NVIDIA's, our own apt preferences, a module stream or a version lock."""
    version = f"{driver.branch}.*"
    if distribution.pin == "module_stream":
        stream = f"nvidia-driver:{driver.branch}-{'open' if driver.flavor == 'open' else 'dkms'}"
        return {"kind": "module_stream", "package": None, "packages": stream, "version": version, "priority": None}
    if distribution.pin == "versionlock":
        packages = f"*nvidia*{driver.branch}*"
        return {"kind": "versionlock", "package": None, "packages": packages, "version": version, "priority": None}
    known = driver.branch in distribution.pinning_branches
    return {
        "kind": "package" if known else "preferences",
        "package": f"nvidia-driver-pinning-{driver.branch}" if known else None,
        "packages": PINNED_PACKAGES,
        "version": version,
        "priority": 1000,
    }


def _same_uri(left: str, right: str) -> bool:
    return left.rstrip("/") == right.rstrip("/")


def _nvidia_repository(
    host: Host, distribution: Distribution, wanted: Desired, knowledge: Knowledge, notes: Notes
) -> dict[str, t.Any]:
    arch = knowledge.repository_architectures.get(host.arch, host.arch)
    url = (
        wanted.driver.repository_url
        or f"{knowledge.defaults['nvidia_repository_base_url']}/{distribution.repository}/{arch}"
    )
    others = [
        source
        for source in host.apt_sources()
        if source.get("file") != SOURCES_PATH and any(_same_uri(str(uri), url) for uri in source.get("uris") or ())
    ]
    ours = host.file(SOURCES_PATH) is not None
    adopted = others[0] if others and not ours else None
    if others and ours:
        notes.warn(
            f"{others[0].get('file')} and {SOURCES_PATH} both describe {url}; remove the former, apt stops where their keys differ."
        )
    key = knowledge.keys[distribution.key]
    if adopted:
        notes.say(f"The repository is described by {adopted['file']} already; that file is used.")
    elif (
        not key["file"] and not wanted.driver.repository_key and distribution.repository in DRIVER_INSTALL_DISTRIBUTIONS
    ):
        notes.refuse(
            "driver_source",
            f"the key that signs NVIDIA's repository for {distribution.name} is not known",
            "Give it with nvidia_driver_repository_key.",
        )
    return {
        "url": url,
        "key_file": "" if adopted or wanted.driver.repository_key else key["file"] or "",
        "signed_by": adopted.get("signed_by") if adopted else KEY_PATH if distribution.family == "debian" else None,
        "adopt": adopted["file"] if adopted else None,
    }


def _archive_repository(host: Host, distribution: Distribution, notes: Notes) -> dict[str, t.Any] | None:
    """The distribution's archive, found by where `main` comes from; `adopt` where it has all components already."""
    if not distribution.components:
        return None
    codename = str(host.os.get("codename") or "")
    main = [
        source
        for source in host.apt_sources()
        if "main" in (source.get("components") or ()) and (not codename or codename in (source.get("suites") or ()))
    ]
    if not main:
        if host.apt_sources_known:
            notes.refuse(
                "driver_source",
                f"no apt source of {host.os_name} was found that carries {codename or 'its release'} main",
                "Add the distribution's archive to the host's apt sources, or set nvidia_driver_source to nvidia.",
            )
        return {"url": "", "key_file": "", "signed_by": None, "adopt": None}
    url = str((main[0].get("uris") or [""])[0])
    present = {
        component
        for source in host.apt_sources()
        if any(_same_uri(str(uri), url) for uri in source.get("uris") or ())
        and set(source.get("suites") or ()) & {codename}
        for component in source.get("components") or ()
    }
    complete = set(distribution.components) <= present
    return {
        "url": url,
        "key_file": "",
        "signed_by": main[0].get("signed_by"),
        "adopt": main[0].get("file") if complete else None,
    }


def _say_needs(driver: Driver, gpus: t.Sequence[Gpu], needs: t.Sequence[Need], wanted: Desired, notes: Notes) -> None:
    """Say what decided on version and flavor."""
    for gpu in gpus:
        parts = []
        if gpu.first_driver and not at_least(wanted.driver.minimum, gpu.first_driver):
            parts.append(f"driver >= {gpu.first_driver}")
        if gpu.modules in ("open", "proprietary") and gpu.known:
            parts.append(f"{gpu.modules} kernel modules")
        if gpu.last_branch:
            parts.append(f"a branch up to {gpu.last_branch}")
        if parts:
            notes.say(f"{gpu.label} needs {listed(parts)}.")
    for need in needs:
        raises = need.version == driver.minimum and version_key(need.version) > version_key(wanted.driver.minimum)
        if raises and need.gpu is None:
            notes.say(f"{need.whose} needs driver >= {need.version}.")
