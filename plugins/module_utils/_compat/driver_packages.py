# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what a driver that was decided on consists of, where it comes from and how it is kept. Pure.

One host has packages of one source. Packages of another source are replaced in one transaction where that was asked for with
nvidia_driver_source, and are a refusal elsewhere.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Driver, Notes, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import Distribution, Knowledge, Row
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import (
    Host,
    Package,
    compiles_modules,
)

SOURCES_PATH = "/etc/apt/sources.list.d/gpufleet-nvidia.sources"
ARCHIVE_SOURCES_PATH = "/etc/apt/sources.list.d/gpufleet-archive.sources"
KEY_PATH = "/etc/apt/keyrings/gpufleet-nvidia.asc"
REPO_PATH = "/etc/yum.repos.d/gpufleet-nvidia.repo"
RPM_KEY_PATH = "/etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia"
PREFERENCES_PATH = "/etc/apt/preferences.d/gpufleet-nvidia"

PRIORITY = 1001
"""Above 1000, which NVIDIA's pinning packages use; from 1000 on a pin permits downgrades, which it needs to hold."""

PINNED_PACKAGES = "nvidia-* libnvidia-* cuda-drivers* libcuda1 libcudadebugger1 libxnvctrl0 firmware-nvidia-gsp xserver-xorg-video-nvidia*"
"""As apt_preferences(5) wants them. What has another version scheme, such as the container tools, does not match the version."""

_WHOSE = {
    "nvidia": "NVIDIA's repository",
    "distro": "the distribution's archive",
}


def add_packages(
    driver: Driver, host: Host, distribution: Distribution, wanted: Desired, knowledge: Knowledge, notes: Notes
) -> None:
    """Fill in where modules come from, package set, packages, pin and repository."""
    driver.build = _build(driver, host)
    row = set_row(driver, distribution, knowledge)
    if row is None:
        return
    fresh = "desktop" if host.os.get("graphical") else "compute"
    driver.package_set = wanted.driver.package_set or _installed_set(host, distribution, knowledge) or fresh
    names = row[driver.package_set][driver.flavor]
    if not names:
        notes.warn(f"Compute-only packages of {distribution.name} are not established; the desktop set is planned.")
        driver.package_set, names = "desktop", row["desktop"][driver.flavor]
    if driver.package_set == "compute" and row["daemon"]:
        names = (*names, row["daemon"])
    driver.packages = [name.format(branch=driver.branch) for name in names]
    if driver.build == "prebuilt":
        driver.packages += _module_packages(driver, host, notes)
    if distribution.installs:
        driver.pin = _pin(driver, host, distribution)
        if not (driver.kept and foreign_packages(driver, host)):  # what is kept and not from there needs no repository
            driver.repository = _repository(driver, host, distribution, wanted, knowledge, notes)


def signed_modules(host: Host) -> Row | None:
    """How the distribution names its signed module packages, where it has them for all kernels that can boot next."""
    row = host.distribution.signed_modules if host.distribution else None
    if row and all(_kernel_flavor(release) in row["kernels"] for release in host.future_kernels()):
        return row
    return None


def _build(driver: Driver, host: Host) -> str:
    """Whether modules come compiled: where the archive has them signed, unless the driver that is kept compiles its own."""
    if driver.source != "distro" or signed_modules(host) is None:
        return "dkms"
    compiles = any(package.compiles for package in host.packages if package.present)
    return "dkms" if driver.kept and compiles else "prebuilt"


def _kernel_flavor(release: str) -> str:
    """The kind of an Ubuntu kernel: generic for 6.17.0-40-generic."""
    return re.sub(r"^[0-9.]+-[0-9]+-", "", release)


def kernel_metapackage(host: Host, release: str) -> str | None:
    """What the metapackages of an Ubuntu kernel end with: generic, or generic-hwe-24.04 for a kernel newer than the release's own."""
    row = host.distribution.signed_modules if host.distribution else None
    flavor = _kernel_flavor(release)
    if row is None or host.distribution is None or flavor not in row["kernels"]:
        return None
    own = release.startswith(f"{row['first_kernel']}.")
    return flavor if own or flavor not in ("generic", "lowlatency") else f"{flavor}-hwe-{host.distribution.version}"


def _module_packages(driver: Driver, host: Host, notes: Notes) -> list[str]:
    """Signed modules of every kernel that can boot next, and what brings those of the kernels to come."""
    row = signed_modules(host)
    if row is None:
        return []
    releases = host.future_kernels()
    newest = [kernel_metapackage(host, release) for release in releases[:1]] or ["generic"]
    flavor = "-open" if driver.flavor == "open" else ""
    kernels = [*releases, *(name for name in newest if name)]
    packages = [row["package"].format(branch=driver.branch, flavor=flavor, kernel=kernel) for kernel in kernels]
    if not driver.kept:
        notes.warn(
            f"{packages[-1]} follows the kernel: it brings the newest kernel that has signed modules, which may be newer than the one that "
            "runs and then boots next."
        )
    return packages


def set_row(driver: Driver, distribution: Distribution, knowledge: Knowledge) -> Row | None:
    """The package set of a driver's source and branch."""
    names: tuple[str | None, ...] = distribution.sets if driver.source == "nvidia" else (distribution.native_sets,)
    if driver.build == "prebuilt" and distribution.signed_modules:
        names = (distribution.signed_modules["set"],)
    rows = [knowledge.package_sets[name] for name in names if name]
    return next((row for row in rows if row["until"] is None or (driver.branch or 0) <= row["until"]), None)


def _installed_set(host: Host, distribution: Distribution, knowledge: Knowledge) -> str | None:
    """Which package set is installed, from whichever source and branch."""
    branch = host.installed.branch if host.installed else None
    signed = distribution.signed_modules or {}
    names = [name for name in (*distribution.sets, distribution.native_sets, signed.get("set")) if name]
    for kind in ("desktop", "compute"):
        sets = [packages for name in names for packages in knowledge.package_sets[name][kind].values() if packages]
        if any(all(host.has_package(package.format(branch=branch)) for package in packages) for packages in sets):
            return kind
    return None


# ---- what is replaced ---------------------------------------------------------------------------------------------------


def foreign_packages(driver: Driver, host: Host) -> list[Package]:
    """Parts of a driver from another source. What no repository of ours names is foreign unless we brought it."""
    own = {driver.source, "unknown"} if host.journal else {driver.source}
    return [package for package in host.moving_packages() if package.source not in own]


def refuse_foreign(driver: Driver, host: Host, wanted: Desired, notes: Notes) -> None:
    """Replace another source's driver only where that was asked for, and only where the result cannot be a mixture."""
    foreign = foreign_packages(driver, host)
    if not foreign:
        return
    names = [package.name for package in foreign]
    shown = listed(names[:3] + ([f"{len(names) - 3} more"] if len(names) > 3 else []))
    version = host.installed.version if host.installed else ""
    there = f"driver {version} from {_whose(foreign[0].source)} is installed ({shown})"
    described = _nvidia_files(host) if driver.source == "distro" else []
    if described:
        notes.refuse(
            "foreign_packages",
            f"{there}, and {listed(described)} still describes NVIDIA's repository, whose packages would be mixed with the distribution's",
            "Remove both with nvidia_driver_state: absent (other people's repository files by hand), then run again; or set "
            "nvidia_driver_source: nvidia.",
        )
    elif wanted.driver.source:
        notes.say(
            f"{there[:1].upper()}{there[1:]}; all of it is replaced in one transaction, as nvidia_driver_source asks."
        )
    else:
        other = foreign[0].source
        keep = f"; or keep that source with nvidia_driver_source: {other}, where it has a driver >= {driver.minimum}"
        notes.refuse(
            "foreign_packages",
            f"{there}, and packages of {_whose(driver.source)} must not be mixed with it",
            f"Set nvidia_driver_source: {driver.source} to replace all of them in one transaction"
            f"{keep if other == 'distro' else ''}.",
        )


def _whose(source: str | None) -> str:
    return _WHOSE.get(source or "", "a publisher that is not known")


def _nvidia_files(host: Host) -> list[str]:
    """Files that describe a repository of NVIDIA's."""
    rows = [(row.get("file"), row.get("uris")) for row in host.apt_sources()]
    rows += [(row.get("file"), row.get("urls")) for row in host.dnf_repositories()]
    found = {str(file) for file, urls in rows if any("/compute/cuda/repos/" in str(url) for url in urls or ())}
    return sorted(found | {path for path in (SOURCES_PATH, REPO_PATH) if host.file(path) is not None})


def transaction(driver: Driver, host: Host, knowledge: Knowledge) -> tuple[list[str], list[str]]:
    """Return (install, remove): the planned packages and all that move with them, and what has to go for them."""
    row = set_row(driver, host.distribution, knowledge) if host.distribution else None
    known = {name.format(branch=driver.branch) for name in (row or {}).get("names", ())}
    without_branch = _names_without_branch(driver, host, knowledge) - known
    remove = _other_flavor(driver, host, knowledge)
    install = list(driver.packages)
    foreign = {package.name for package in foreign_packages(driver, host)}
    metapackages = {name.format(branch=driver.branch) for name in _metapackages(row)}
    for package in host.moving_packages():
        name = package.name
        if name in remove or name in install:
            continue
        successor = _successor(name, driver, host, known)
        if successor is None and name in metapackages - foreign:
            successor = name  # one that stayed behind would keep its parts at its own version
        if name in without_branch and f"{name}-{driver.branch}" in known:
            successor = f"{name}-{driver.branch}"
        if successor and driver.build == "prebuilt" and compiles_modules(successor):
            successor = None
        if successor:
            install.append(successor)
        goes = _of_branch(name, host) and not _named_after_version(name, driver, host)
        goes = goes or name in without_branch
        replaced = name in foreign or goes or (successor is None and package.compiles)
        if successor != name and replaced:
            remove.append(name)
    remove += [package.name for package in host.packages if package.present and _outlived(package.name, driver, host)]
    return list(dict.fromkeys(install)), list(dict.fromkeys(remove))


def _metapackages(row: Row | None) -> set[str]:
    """The names that stand for a source's sets."""
    return {name for kind in ("desktop", "compute") for names in (row or {}).get(kind, {}).values() for name in names}


def _names_without_branch(driver: Driver, host: Host, knowledge: Knowledge) -> set[str]:
    """Names of a newer branch that have no branch in them, where those of the planned one do: on the way back nothing replaces them."""
    own = host.installed.branch if host.installed else None
    if driver.source != "nvidia" or host.distribution is None or own is None or own <= (driver.branch or 0):
        return set()
    rows = [knowledge.package_sets[row] for row in host.distribution.sets]
    names = {name for row in rows for name in (*row["names"], *_metapackages(row))}
    return {name for name in names if "{branch}" not in name} if any("{branch}" in name for name in names) else set()


def _named_after_version(name: str, driver: Driver, host: Host) -> bool:
    """Whether a package of the branch that stays has the full version in its name, as Ubuntu's firmware: the other flavor needs it."""
    installed = host.installed
    return installed is not None and installed.branch == driver.branch and name.endswith(f"-{installed.version}")


def _outlived(name: str, driver: Driver, host: Host) -> bool:
    """Whether a package of what goes is removed by nothing else: compiled modules, which have the kernel's version, and firmware of an
    earlier version."""
    if name.startswith("nvidia-firmware-"):
        return host.installed is not None and host.installed.branch != driver.branch and _of_branch(name, host)
    modules = re.match(r"linux-modules-nvidia-(\d+)(-open)?-", name)
    planned = (str(driver.branch), driver.flavor == "open", "distro")
    return modules is not None and (modules[1], bool(modules[2]), driver.source) != planned


def _of_branch(name: str, host: Host) -> bool:
    """Whether a package has the number of the installed branch in its name."""
    branch = host.installed.branch if host.installed else None
    return bool(branch and re.search(rf"-{branch}(?:-|$)", name))


def _successor(name: str, driver: Driver, host: Host, known: set[str]) -> str | None:
    """What a package that moves with the driver is called in the planned one; None: there it has no part."""
    own = host.installed.branch if host.installed else None
    if own and own != driver.branch and _of_branch(name, host):
        stem = re.sub(rf"-{own}(?=-|$)", "", name)
        named = re.sub(rf"-{own}(?=-|$)", f"-{driver.branch}", name)
        candidates = [named, stem]
    else:
        candidates = [name]
    if known:
        other = _other_flavor_names(driver, known)
        return next((one for one in candidates if one in known and one not in other), None)
    foreign = {package.name for package in foreign_packages(driver, host)}
    if name in foreign or (_of_branch(name, host) and own != driver.branch):
        return None
    return name


def _other_flavor_names(driver: Driver, known: set[str]) -> set[str]:
    """Those of a source's packages that belong to the flavor that is not planned."""
    kernel = re.compile(r"nvidia-(?:dkms|kernel-source|headless|driver)|nvidia-kernel-(?:open-)?dkms|kmod-nvidia")
    parts = {name for name in known if kernel.match(name)}
    is_open = {name for name in parts if re.search(r"-open(?:-|$)", name)}
    has_open_twin = {
        name for name in parts if f"{name}-open" in parts or name in ("nvidia-kernel-dkms", "kmod-nvidia-latest-dkms")
    }
    return has_open_twin if driver.flavor == "open" else is_open


def _other_flavor(driver: Driver, host: Host, knowledge: Knowledge) -> list[str]:
    """Installed packages of the flavor that is not planned."""
    other = "proprietary" if driver.flavor == "open" else "open"
    branch = host.installed.branch if host.installed else ""
    names = _names(knowledge, other, branch)
    if driver.source == "distro":
        # Debian's flavors bring words for modprobe of their own; those of the old one would go on naming modules that are gone.
        kernel = re.compile(r"nvidia-(?:open-)?kernel-dkms$")
        names |= {name.replace("-dkms", "-support") for name in names if kernel.match(name)}
    same = _names(knowledge, str(driver.flavor), driver.branch) | _names(knowledge, str(driver.flavor), branch)
    keep = set(driver.packages)
    return [package.name for package in host.packages if package.present and package.name in names - same - keep]


def _names(knowledge: Knowledge, flavor: str, branch: t.Any) -> set[str]:
    return {
        name.format(branch=branch)
        for row in knowledge.package_sets.values()
        for kind in ("desktop", "compute")
        for name in row[kind][flavor]
    }


# ---- how it is kept -------------------------------------------------------------------------------------------------------


def _pin(driver: Driver, host: Host, distribution: Distribution) -> dict[str, t.Any]:
    """How branch and version are held: our own apt preferences, a module stream, or locks where there are no streams."""
    kind = distribution.pin
    if kind == "versionlock" and host.stream:
        kind = "module_stream"  # documented without streams, yet this repository has them
    packages = {
        "module_stream": f"nvidia-driver:{driver.branch}-{'open' if driver.flavor == 'open' else 'dkms'}",
        "versionlock": f"*nvidia*{driver.branch}*",
    }.get(kind, PINNED_PACKAGES)
    return {
        "kind": kind,
        "package": None,
        "packages": packages,
        "version": f"{driver.branch}.*",
        "priority": PRIORITY if kind == "preferences" else None,
    }


# ---- where it comes from --------------------------------------------------------------------------------------------------


def _repository(
    driver: Driver, host: Host, distribution: Distribution, wanted: Desired, knowledge: Knowledge, notes: Notes
) -> dict[str, t.Any] | None:
    if driver.source == "distro":
        for file in _nvidia_files(host) if not driver.kept else ():
            notes.warn(
                f"{file} describes NVIDIA's repository: where it has a newer version of the branch, the transaction is refused."
            )
        return _archive_repository(host, distribution, wanted, notes)
    arch = knowledge.repository_architectures.get(host.arch, host.arch)
    url = (
        wanted.driver.repository_url
        or f"{knowledge.defaults['nvidia_repository_base_url']}/{distribution.repository}/{arch}"
    )
    _warn_of_other_releases(host, distribution, notes)
    apt = distribution.family == "debian"
    path, key_path = (SOURCES_PATH, KEY_PATH) if apt else (REPO_PATH, RPM_KEY_PATH)
    adopted = _adopted(host, url, path, notes)
    if adopted:
        if wanted.driver.repository_key:
            notes.warn(f"nvidia_driver_repository_key is not used: {adopted['file']} names a key of its own.")
        signed_by = adopted.get("signed_by") or " ".join(adopted.get("keys") or ()) or None
        return {
            "url": url,
            "path": adopted["file"],
            "key_path": None,
            "key_file": "",
            "signed_by": signed_by,
            "adopt": adopted["file"],
        }
    key = knowledge.keys[distribution.key]
    if not key["file"] and not wanted.driver.repository_key:
        if driver.kept:
            notes.say(
                f"No repository is described for upgrades: the key that signs NVIDIA's for {distribution.name} is not shipped here."
            )
            return None
        notes.refuse(
            "driver_key",
            f"the key that signs NVIDIA's repository for {distribution.name} ({distribution.key}) is not shipped with this collection",
            "Download it from NVIDIA, compare its fingerprint, and give its path on the controller with nvidia_driver_repository_key.",
        )
    return {
        "url": url,
        "path": path,
        "key_path": key_path,
        "key_file": "" if wanted.driver.repository_key else key["file"] or "",
        "signed_by": key_path,
        "adopt": None,
    }


def _adopted(host: Host, url: str, path: str, notes: Notes) -> t.Mapping[str, t.Any] | None:
    """Somebody's description of the same repository, which is used as it is."""
    rows = [(row, row.get("uris")) for row in host.apt_sources()]
    rows += [(row, row.get("urls")) for row in host.dnf_repositories()]
    others = [
        row for row, urls in rows if row.get("file") != path and any(same_uri(str(one), url) for one in urls or ())
    ]
    if not others:
        return None
    file = others[0].get("file")
    if host.file(path) is not None:
        notes.warn(f"{file} and {path} both describe {url}; remove the former, apt stops where their keys differ.")
        return None
    if others[0].get("gpgcheck") is False:
        notes.refuse(
            "driver_key",
            f"{file} describes {url} without a check of signatures (gpgcheck=0)",
            "Set gpgcheck=1 and gpgkey there, or remove that file and give the key with nvidia_driver_repository_key.",
        )
    notes.say(f"The repository is described by {file} already; that file is used.")
    return others[0]


def _warn_of_other_releases(host: Host, distribution: Distribution, notes: Notes) -> None:
    """A repository that NVIDIA made for another release: never a way around a key that is refused here."""
    rows = [(row.get("file"), row.get("uris")) for row in host.apt_sources()]
    rows += [(row.get("file"), row.get("urls")) for row in host.dnf_repositories()]
    for file, urls in rows:
        for url in urls or ():
            match = re.search(r"/compute/cuda/repos/([a-z0-9]+)/", str(url))
            if match and match[1] != distribution.repository:
                notes.warn(
                    f"{file} describes NVIDIA's repository for {match[1]}, not for {distribution.name}: remove that file."
                )


def same_uri(left: str, right: str) -> bool:
    return left.rstrip("/") == right.rstrip("/")


def _archive_repository(
    host: Host, distribution: Distribution, wanted: Desired, notes: Notes
) -> dict[str, t.Any] | None:
    """The distribution's archive, found by where `main` comes from; `adopt` where it has all components already."""
    if not distribution.components:
        return None
    codename = str(host.os.get("codename") or "")
    main = [
        source
        for source in host.apt_sources()
        if "main" in (source.get("components") or ()) and (not codename or codename in (source.get("suites") or ()))
    ]
    if not codename and main:
        codename = str((main[0].get("suites") or [""])[0])
    found: dict[str, t.Any] = {"path": ARCHIVE_SOURCES_PATH, "key_path": None, "key_file": "", "suites": [codename]}
    if host.os_id == "ubuntu":  # drivers of a release come with its updates
        found["suites"] = sorted({str(suite) for source in main for suite in source.get("suites") or ()} | {codename})
    if wanted.driver.repository_url:
        key_path = KEY_PATH if wanted.driver.repository_key else None
        signed_by = key_path or (main[0].get("signed_by") if main else None)
        return {
            **found,
            "url": wanted.driver.repository_url,
            "key_path": key_path,
            "signed_by": signed_by,
            "adopt": None,
        }
    if not main:
        if "apt" in host.os and host.os["apt"] is None:
            notes.refuse(
                "driver_source",
                f"which archive {host.os_name} uses could not be read",
                "Mend what the warnings name of /etc/apt, or set nvidia_driver_source to nvidia.",
            )
        elif host.apt_sources_known:
            notes.refuse(
                "driver_source",
                f"no apt source of {host.os_name} was found that carries {codename or 'its release'} main",
                "Add the distribution's archive to the host's apt sources, or set nvidia_driver_source to nvidia.",
            )
        return {**found, "url": "", "signed_by": None, "adopt": None}
    url = str((main[0].get("uris") or [""])[0])
    present = {
        component
        for source in host.apt_sources()
        if source.get("file") != ARCHIVE_SOURCES_PATH
        if any(same_uri(str(uri), url) for uri in source.get("uris") or ())
        and set(source.get("suites") or ()) & {codename}
        for component in source.get("components") or ()
    }
    adopted = main[0].get("file") if set(distribution.components) <= present else None
    return {
        **found,
        "url": url,
        "path": adopted or ARCHIVE_SOURCES_PATH,
        "signed_by": main[0].get("signed_by"),
        "adopt": adopted,
    }
