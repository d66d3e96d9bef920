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
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.driver_packages import (
    add_packages,
    refuse_foreign,
    signed_modules,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Knowledge,
    Row,
    at_least,
    branch_of,
    cuda_version,
    newest,
    version_key,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Gpu, Host, Installed

SECURE_BOOT = (
    {"signed_modules": True, "key": None, "way": "signed"},
    {"signed_modules": False, "key": "enrolled", "way": "dkms"},
    {"signed_modules": False, "key": "pending", "way": "console"},
    {"signed_modules": False, "key": "absent", "way": "stage"},
)
"""How a module gets past Secure Boot: the first row that fits. `key`: the state of the key that DKMS signs with, None: any.
`console`: the key waits for a person at the machine; `stage`: it has to be handed to the firmware first."""


def ceilings(host: Host, gpus: t.Sequence[Gpu], wanted: Desired, notes: Notes) -> list[Ceiling]:
    """Say what bounds the driver from above."""
    installed = host.installed
    current = (installed.version or (str(installed.branch) if installed.branch else None)) if installed else None
    if host.wsl:
        if current:
            # The numbers of a branch differ between Windows and Linux, the branches do not.
            remedy = "Update the NVIDIA driver in Windows, then run wsl --shutdown."
            return [Ceiling(f"the Windows driver {current}", "driver_minimum", remedy, branch=branch_of(current))]
        notes.warn("The driver of this WSL2 host belongs to Windows, and its version is not known.")
        return []
    owner = _owner(host, gpus)
    if owner:
        return [Ceiling(f"{current}, {owner.whose}", owner.code, owner.remedy, version=current)] if current else []
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
        versions = [row["version"] for row in host.distribution.native]
        if installed and installed.source == "distro" and installed.version:
            versions.append(installed.version)  # the archive has moved on since the knowledge base was written
        version = newest(versions)
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
    _refuse_missing_gpus(host, wanted, notes)
    left_alone = host.wsl or _from_jetpack(gpus) or _owner(host, gpus)
    if left_alone or "driver" not in wanted.steps or wanted.driver.state == "absent":
        return _as_it_is(host, gpus, minimum, wanted, notes)
    driver = Driver(minimum=minimum, flavor=_flavor(gpus, wanted, notes), managed=True)
    _refuse_branch(gpus, wanted, knowledge, notes)
    if host.installed and _fulfils(host.installed, driver, host, gpus, wanted, knowledge):
        _keep(driver, host.installed, host, wanted, knowledge, notes)
    else:
        _choose(driver, host, gpus, wanted, knowledge, notes)
    _refuse_flavor(driver, wanted, knowledge, notes)
    driver.secure_boot = _secure_boot(host, driver)
    _say_needs(driver, gpus, needs, wanted, notes)
    branch = knowledge.branches.get(driver.branch or 0)
    if branch and branch.status == "eol":
        since = f" since {branch.eol}" if branch.eol else ""
        supported = listed(str(row.branch) for row in knowledge.branches.values() if row.status != "eol")
        notes.warn(f"Driver branch {branch.branch} gets no more fixes{since}; supported are {supported}.")
    return driver


class _Owner(t.NamedTuple):
    """Somebody else whose driver it is."""

    name: str
    whose: str
    code: str
    remedy: str


def _owner(host: Host, gpus: t.Sequence[Gpu]) -> _Owner | None:
    """Who brings the driver, where packages on this host cannot: the hypervisor's vendor, or the machine around a container."""
    if any(host.virtual(gpu) == "vgpu" for gpu in gpus):
        return _Owner(
            "NVIDIA's vGPU software",
            "the driver of NVIDIA's vGPU software",
            "gpu_virtual",
            "Install the guest driver that belongs to the vGPU software of the hypervisor; no driver from a repository works with it.",
        )
    if host.os.get("virtualization") == "container" and not host.os.get("kernels"):
        return _Owner(
            "the machine around this container",
            "the driver of the machine around this container",
            "distribution",
            "Install or update the driver on the machine that runs this container, and give the container its GPUs.",
        )
    return None


def _refuse_missing_gpus(host: Host, wanted: Desired, notes: Notes) -> None:
    """A host whose GPUs are not all there is not planned from what is left: whatever the steps are, a proof follows them."""
    if wanted.driver.state == "absent" or not wanted.steps:
        return
    missing = host.missing_gpus(wanted.driver.gpus_exclude)
    if missing and wanted.driver.accept_missing_gpus:
        notes.warn(f"{'; '.join(missing)}; nvidia_driver_accept_missing_gpus says that this is meant.")
    elif missing:
        notes.refuse(*gpus_missing(missing))


def gpus_missing(missing: t.Sequence[str]) -> tuple[str, str, str]:
    """Return code, reason and remedy of the refusal of a host whose GPUs are not all there."""
    return (
        "gpu_missing",
        "; ".join(missing),
        "Switch the machine off and on, which brings back what fell off the bus for once; else check seat, power and lspci -d 10de:."
        " If it was taken out, set nvidia_driver_accept_missing_gpus: true; to go on without it, name it in nvidia_driver_gpus_exclude.",
    )


def _secure_boot(host: Host, driver: Driver) -> str:
    """Which way SECURE_BOOT leaves; nothing where it is off, or not known."""
    if not host.os.get("secure_boot") or "machine_owner_key" not in host.os:
        return ""
    seen = host.machine_owner_key
    key = "enrolled" if seen.get("enrolled") else "pending" if seen.get("pending") else "absent"
    signed = driver.build == "prebuilt"
    return next(str(row["way"]) for row in SECURE_BOOT if row["signed_modules"] == signed and row["key"] in (None, key))


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
    elif _owner(host, gpus):
        _leave_to_owner(driver, host, gpus, wanted, notes)
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


def _leave_to_owner(driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, notes: Notes) -> None:
    owner = _owner(host, gpus)
    if owner is None:
        return
    driver.source = "platform"
    if host.installed or not host.driver_known:
        notes.say(
            f"The driver belongs to {owner.name}: it is never changed here; it has to be {driver.minimum} or newer."
        )
    elif {"driver", "torch", "proof"} & set(wanted.steps) and wanted.driver.state == "present":
        notes.refuse(owner.code, f"no driver is there, and it would have to be {owner.whose}", owner.remedy)


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
    for gpu in gpus:
        if gpu.last_branch and branch > gpu.last_branch:
            notes.refuse(
                "driver_branch",
                f"{gpu.label} is supported up to branch {gpu.last_branch}, not by {branch}",
                f"Set nvidia_driver_branch to auto or {gpu.last_branch}.",
                gpu,
            )


def _refuse_flavor(driver: Driver, wanted: Desired, knowledge: Knowledge, notes: Notes) -> None:
    """A flavor that the chosen branch has no modules of; that a GPU needs it is refused with the GPU's name."""
    branch = knowledge.branches.get(driver.branch or 0)
    if branch and wanted.driver.flavor and wanted.driver.flavor not in branch.modules:
        notes.refuse(
            "driver_flavor",
            f"branch {branch.branch} has no {wanted.driver.flavor} kernel modules",
            "Set nvidia_driver_flavor to auto, or nvidia_driver_branch to an older branch.",
        )


def _fulfils(
    installed: Installed, driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge
) -> bool:
    """Whether the installed driver is all that is asked for and needed."""
    if installed.branch is None or installed.source not in ("nvidia", "distro", None):
        return False
    new_enough = at_least(installed.version or str(installed.branch), driver.minimum)
    flavors = {gpu.modules for gpu in gpus} & {"open", "proprietary"} | ({wanted.driver.flavor} - {None})
    preferred = _preferred(installed.source or "nvidia", driver, host, gpus, wanted, knowledge)
    return (
        new_enough
        and wanted.driver.branch in (None, installed.branch)
        and wanted.driver.source in (None, installed.source)
        and (preferred is None or installed.branch >= preferred)
        and all(installed.branch <= gpu.last_branch for gpu in gpus if gpu.last_branch)
        and (installed.flavor is None or flavors <= {installed.flavor})
    )


def _preferred(
    source: str, driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge
) -> int | None:
    """The newest branch up to the preferred one that this source has and every GPU of the host supports."""
    limit = wanted.driver.branch_preferred
    if limit is None:
        return None
    last = min([limit, *(gpu.last_branch for gpu in gpus if gpu.last_branch)])
    distribution = host.distribution
    if source == "distro":
        rows = distribution.native if distribution else ()
        branches = [int(row["branch"]) for row in rows if at_least(row["version"], driver.minimum)]
    else:
        first = min((*distribution.branches_seen, *distribution.pinning_branches), default=0) if distribution else 0
        known = [
            row.branch
            for row in knowledge.branches.values()
            if row.branch >= first and driver.flavor in row.modules and (row.status != "eol" or row.branch == limit)
        ]
        branches = [*known, *([limit] if limit > max(knowledge.branches) else [])]
    lowest = branch_of(driver.minimum) or 0
    return max((branch for branch in branches if lowest <= branch <= last), default=None)


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
        add_packages(driver, host, host.distribution, wanted, knowledge, notes)


def _choose(
    driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge, notes: Notes
) -> None:
    """Choose a driver to install, and refuse what stands in its way."""
    driver.source = _source(driver, host, gpus, wanted, notes)
    distribution = host.distribution
    if driver.source == "distro":
        driver.branch = _archive_branch(driver, host, gpus, wanted, knowledge, notes)
    else:
        driver.branch = _nvidia_branch(driver, host, gpus, wanted, knowledge, notes)
    if distribution:
        add_packages(driver, host, distribution, wanted, knowledge, notes)
    if distribution is None or not distribution.installs:
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
    refuse_foreign(driver, host, wanted, notes)
    _refuse_downgrade(driver, host, wanted, notes)


def _refuse_downgrade(driver: Driver, host: Host, wanted: Desired, notes: Notes) -> None:
    installed = host.installed
    if not (installed and installed.branch and driver.branch and driver.branch < installed.branch):
        return
    if not wanted.driver.downgrade_allowed:
        notes.refuse(
            "driver_downgrade",
            f"branch {installed.branch} is installed, branch {driver.branch} would be a downgrade",
            "Permit it with nvidia_driver_downgrade_allowed, or keep the newer one with nvidia_driver_branch: auto."
            if wanted.driver.branch
            else "Permit it with nvidia_driver_downgrade_allowed: the newer branch does not fit this host.",
        )
    notes.warn(f"Branch {driver.branch} replaces the newer branch {installed.branch}.")


def _source(driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, notes: Notes) -> str:
    """Where packages come from: what is asked for; where the driver is from that is there; NVIDIA's repository."""
    if wanted.driver.source:
        return wanted.driver.source
    serves = bool(_archive_rows(driver, host, gpus, wanted))
    if host.installed and host.installed.source == "distro" and serves:
        notes.say(f"The driver that is there is from the archive of {host.os_name}, which has a suitable one, too.")
        return "distro"
    fresh = host.installed is None or host.installed.branch is None
    unsigned = host.os.get("secure_boot") and not host.machine_owner_key.get("enrolled")
    if fresh and unsigned and serves and signed_modules(host) is not None:
        notes.say(
            f"Secure Boot is on and no key of this host is enrolled: the driver comes from the archive of {host.os_name}, whose "
            "modules are signed."
        )
        return "distro"
    return "nvidia"


def _archive_rows(driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired) -> list[Row]:
    """Drivers of the distribution's own archive that would do."""
    last = min((gpu.last_branch for gpu in gpus if gpu.last_branch), default=None)
    return [
        row
        for row in (host.distribution.native if host.distribution else ())
        if at_least(row["version"], driver.minimum)
        and wanted.driver.branch in (None, row["branch"])
        and (last is None or row["branch"] <= last)
    ]


def _archive_branch(
    driver: Driver, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge, notes: Notes
) -> int | None:
    """The branch that the distribution's own archive gives."""
    rows = host.distribution.native if host.distribution else ()
    if not rows:
        has_none = host.distribution is not None and host.distribution.family == "redhat"
        what = "has no NVIDIA driver" if has_none else "has which drivers is not established"
        notes.refuse("driver_source", f"the archive of {host.os_name} {what}", "Set nvidia_driver_source to nvidia.")
        return wanted.driver.branch
    asked = [row for row in rows if row["branch"] == wanted.driver.branch]
    enough = _archive_rows(driver, host, gpus, wanted)
    preferred = _preferred("distro", driver, host, gpus, wanted, knowledge)
    installed = (host.installed.branch if host.installed else None) or 0
    enough.sort(key=lambda row: (row["branch"] < installed, row["branch"] != preferred))
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
    _warn_of_kernels(row, host, notes)
    notes.say(f"Driver {row['version']} from the archive of {host.os_name}.")
    return int(row["branch"])


def _warn_of_kernels(row: Row, host: Host, notes: Notes) -> None:
    """A kernel that is newer than the archive's driver supports. A warning: the archive may have mended it since."""
    first = row["fails_from"]
    newer = [release for release in host.future_kernels() if first and at_least(release, first)]
    if newer:
        notes.warn(
            f"Kernel {listed(newer)} is too new for driver {row['version']} of {host.os_name}, as known on the day of the knowledge base: "
            "the trial build decides, and where it fails nothing is replaced. The way out is nvidia_driver_source: nvidia."
        )


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
    if installed and last and installed > last:
        installed = None
    preferred = _preferred("nvidia", driver, host, gpus, wanted, knowledge)
    if preferred and preferred >= (installed or 0):
        limit = wanted.driver.branch_preferred
        notes.say(
            f"Driver branch {preferred}: the newest up to {limit} (nvidia_driver_branch_preferred) for this host."
        )
        return preferred
    lowest = max(default, branch_of(driver.minimum) or 0, min(seen, default=0) if default not in seen else 0)
    lowest = max(lowest, installed or 0)  # never a downgrade unasked
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
