# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Whether a simulated transaction may run. Pure: no I/O, the same answer for apt and dnf.

A solver does what it is asked and takes away whatever is in the way. Each refusal says which package, why that is not done, and
what a person can do.
"""

from __future__ import annotations

import fnmatch
import re
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.packages import is_driver_package

from .kernel_modules import driver_version
from .model import Change, Package, Request

FOREIGN_REMOVALS = 5
"""How many packages that are not the driver's may go. A driver that replaces another takes a helper or two along, no more."""

DISPLAY_MANAGERS = (r"gdm3?|sddm|lightdm|lightdm-gtk-greeter|xdm|lxdm|slim|ly|greetd|plasma-login-manager",)
"""Without them nobody can log in at the screen."""

DESKTOPS = (
    # Ubuntu's desktops, whole
    r"(?:ubuntu|kubuntu|xubuntu|lubuntu|edubuntu|ubuntu-mate|ubuntu-budgie|ubuntucinnamon|ubuntustudio)-desktop(?:-.+)?",
    # Debian's
    r"task-.*-?desktop|desktop-base|gnome|gnome-core|kde-standard|kde-full|lxde|lxqt|mate-desktop-environment",
    # the sessions themselves, on every system
    r"gnome-shell|gnome-session(?:-.+)?|mutter|nautilus|plasma-desktop|plasma-workspace|kwin(?:-.+)?|xfce4|xfce4-session",
    r"cinnamon|cinnamon-session|mate-session-manager|budgie-desktop|sway|i3|i3-wm|hyprland|pantheon-shell",
    # what they draw on
    r"xorg|xserver-xorg|xserver-xorg-core|xorg-x11-server-(?:Xorg|Xwayland|common)|xwayland",
)
KERNEL_METAPACKAGES = (
    # Debian: they bring every new kernel
    r"linux-(?:image|headers)-(?:rt-|cloud-)?(?:amd64|arm64)",
    # Ubuntu, with and without HWE; a release in the name makes it a kernel, which is looked at separately
    r"linux-(?:image-|headers-|modules-extra-)?(?:generic|lowlatency|oem|virtual|aws|azure|gcp|nvidia|raspi|realtime)"
    r"(?:-hwe)?(?:-\d\d\.\d\d[a-z]?)?(?:-edge)?",
    # Enterprise Linux
    r"kernel",
)
# Of linux-modules-nvidia-580-<release> only the name is a kernel's: it is a part of the driver.
_KERNEL_PACKAGE = re.compile(
    r"(?!linux-\w+-nvidia-)(?:linux-(?:image|headers|modules|modules-extra|objects)|kernel)(?:-|$)"
)
_EL_KERNEL = re.compile(r"kernel(?:-(?:core|modules|modules-core|modules-extra|uki-virt|devel))?$")

# Those packages whose version is the driver's own. Others of the same family (settings, persistence daemon, keyrings, what Debian
# shares between its branches) have numbers of their own, or come from elsewhere rightly.
_CORE = re.compile(
    r"(?:libcuda1|libnvidia-(?:compute|gl|cfg1|ml1|ptxjitcompiler1)(?:-\d+(?:-server)?)?|nvidia-(?:open|driver)(?:-\d+)?(?:-(?:open|server))*"
    r"|nvidia-driver-(?:cuda|cuda-libs|common|libs|bin)|cuda-drivers(?:-\d+)?|nvidia-(?:open-)?kernel-(?:open-)?dkms"
    r"|nvidia-dkms-\d+(?:-(?:open|server))*|nvidia-kernel-source-\d+(?:-(?:open|server))*|kmod-nvidia(?:-open|-latest)?(?:-dkms)?"
    r"|xorg-x11-drv-nvidia(?:-(?:cuda|libs|cuda-libs))?|akmod-nvidia(?:-open)?)(?::\w+)?$"
)
_COMPILES = re.compile(r"(?!.*-no-dkms)(?:nvidia-(?:.*-)?dkms|kmod-nvidia.*-dkms|akmod-nvidia)")


class Verdict(t.NamedTuple):
    """What is to be said of a transaction."""

    refusals: list[str]
    """Why it may not run; nothing where it may."""
    summary: dict[str, t.Any]
    """`install`, `upgrade`, `downgrade`, `remove`: names of the driver's packages; `others`: what else it touches."""


def is_core(name: str) -> bool:
    """Whether the version of a package is the driver's own."""
    return bool(_CORE.match(name))


def judge(
    request: Request,
    changes: t.Sequence[Change],
    installed: t.Sequence[Package] = (),
    users_holds: t.Collection[str] = (),
) -> Verdict:
    """Judge what the solver would do. ``installed`` are the driver's packages now, ``users_holds`` what somebody else keeps."""
    refusals = [*protected(changes, request.kernels)]
    refusals += _foreign(changes)
    refusals += _held(changes, users_holds)
    refusals += _sources(request, changes)
    refusals += _branch(request, changes, installed)
    refusals += _downgrades(request, changes)
    if request.module_build == "prebuilt":
        building = [change.name for change in changes if change.after and _COMPILES.match(change.name)]
        if building:
            refusals.append(
                f"it would bring {_listed(building)}, which compiles modules on the host, although the plan is to use the signed ones that"
                " come compiled. Install the linux-modules-nvidia package of every kernel first, or remove the kernels that have none."
            )
    return Verdict(refusals, summary(changes))


def protected(changes: t.Sequence[Change], kernels: t.Collection[str] = ()) -> list[str]:
    """Refuse to remove what a person sits in front of, and what the machine boots."""
    gone = [change for change in changes if change.after is None]
    found = []
    managers = [change.name for change in gone if _any(DISPLAY_MANAGERS, change.name)]
    if managers:
        found.append(f"it would remove the display manager {_listed(managers)}: nobody could log in at the screen.")
    desktops = [change.name for change in gone if _any(DESKTOPS, change.name)]
    if desktops:
        found.append(f"it would remove parts of the desktop: {_listed(desktops)}.")
    boots = [change.name for change in gone if _is_kernel(change, kernels)]
    if boots:
        found.append(
            f"it would remove {_listed(boots)}, which the running or the next kernel, or its updates, come from."
        )
    return found


def _is_kernel(change: Change, kernels: t.Collection[str]) -> bool:
    """Whether a package belongs to a kernel that runs or boots next, or brings its updates."""
    name = _plain(change.name)
    if _EL_KERNEL.match(name):  # several versions are installed side by side: an old one may go
        version = (change.before or "").rpartition(":")[2]
        return any(release.startswith(version) for release in kernels) if version and kernels else True
    if _any(KERNEL_METAPACKAGES, name):
        return True
    return bool(_KERNEL_PACKAGE.match(name)) and any(name.endswith(f"-{release}") for release in kernels)


def _foreign(changes: t.Sequence[Change]) -> t.Iterator[str]:
    gone = [change.name for change in changes if change.after is None and not _is_driver(change.name)]
    if len(gone) > FOREIGN_REMOVALS:
        yield (
            f"it would remove {len(gone)} packages that are not the driver's ({_listed(gone)}). Find out what ties them to the driver"
            f' ("apt-cache rdepends", "dnf repoquery --whatrequires") and settle that first.'
        )


def _held(changes: t.Sequence[Change], users_holds: t.Collection[str]) -> t.Iterator[str]:
    touched = [change.name for change in changes if _plain(change.name) in {_plain(name) for name in users_holds}]
    if touched:
        yield (
            f"it would change {_listed(touched)}, held or locked by somebody else. Release them if that is meant"
            f" (apt-mark unhold {' '.join(touched)}; dnf versionlock delete)."
        )


def _sources(request: Request, changes: t.Sequence[Change]) -> t.Iterator[str]:
    others = {"nvidia", "distro"} - {request.source}
    strange = [
        f"{change.name} {change.after}"
        for change in changes
        if change.after and is_core(change.name) and change.origin in others
    ]
    if strange:
        publisher = "the distribution" if request.source == "nvidia" else "NVIDIA's repository"
        yield (
            f"{_listed(strange)} would come from {publisher}, and the plan is nvidia_driver_source {request.source}: drivers from two"
            " sources break each other. Remove the other source's repository or pin, or choose that source."
        )


def _branch(request: Request, changes: t.Sequence[Change], installed: t.Sequence[Package]) -> t.Iterator[str]:
    pattern = request.version or f"{request.branch}.*"
    strays = [
        f"{change.name} {change.after}"
        for change in changes
        if change.after and is_core(change.name) and not _of(change.after, request.branch, pattern)
    ]
    if strays:
        yield (
            f"it would install {_listed(strays)}, and the plan is {pattern}. Another pin, a hold or another repository interferes:"
            ' see "apt-cache policy" (dnf: "dnf module list nvidia-driver", "dnf versionlock list") on the host.'
        )
    touched = {_plain(change.name) for change in changes}
    stays = [
        f"{package.name} {package.version}"
        for package in installed
        if is_core(package.name)
        and _plain(package.name) not in touched
        and not _of(package.version, request.branch, pattern)
    ]
    if stays and any(is_core(change.name) and change.after for change in changes):
        yield (
            f"it would leave {_listed(stays)} beside {pattern}: parts of two drivers do not work together. See what holds them, or remove"
            " them, on the host."
        )


def _of(version: str, branch: int, pattern: str) -> bool:
    """Whether a package's version is of a branch, and of the exact version where one is planned."""
    upstream = driver_version(version)
    return upstream.partition(".")[0] == str(branch) and (
        fnmatch.fnmatchcase(upstream, pattern) or fnmatch.fnmatchcase(version, pattern)
    )


def _downgrades(request: Request, changes: t.Sequence[Change]) -> t.Iterator[str]:
    if request.transaction.downgrade:
        return
    older = [
        f"{change.name} {change.before} -> {change.after}"
        for change in changes
        if is_core(change.name) and _is_downgrade(change)
    ]
    if older:
        yield f"it would downgrade {_listed(older)}. Permit that with nvidia_driver_downgrade_allowed: true."


def _is_downgrade(change: Change) -> bool:
    if change.before is None or change.after is None:
        return False
    return _number(change.after) < _number(change.before)


def _number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", driver_version(version))]


def summary(changes: t.Sequence[Change]) -> dict[str, t.Any]:
    """Say what a transaction does, the driver's packages by what happens to them, the others one by one."""
    found: dict[str, t.Any] = {"install": [], "upgrade": [], "downgrade": [], "remove": [], "others": []}
    for change in changes:
        if not _is_driver(change.name):
            found["others"].append({"name": change.name, "before": change.before, "after": change.after})
        elif change.after is None:
            found["remove"].append(change.name)
        elif change.before is None:
            found["install"].append(change.name)
        else:
            found["downgrade" if _is_downgrade(change) else "upgrade"].append(change.name)
    return found


def _is_driver(name: str) -> bool:
    return is_driver_package(_plain(name))


def _plain(name: str) -> str:
    """A name without the architecture that apt appends to foreign ones."""
    return name.partition(":")[0]


def _any(table: t.Collection[str], name: str) -> bool:
    return any(re.fullmatch(pattern, _plain(name)) for pattern in table)


def _listed(names: t.Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
