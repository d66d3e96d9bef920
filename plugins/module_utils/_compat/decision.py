# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what the parts of the planner hand to each other."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import DesiredEnvironment
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import Refusal, at_least, branch_of
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Gpu


@dataclass
class Notes:
    """What is said on the way to a plan; nothing is said twice."""

    refusals: list[Refusal] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pending: list[dict[str, str]] = field(default_factory=list)

    def refuse(self, code: str, reason: str, remedy: str, gpu: Gpu | None = None) -> None:
        refusal = Refusal(code, reason, remedy, gpu.address if gpu else None)
        if refusal not in self.refusals:
            self.refusals.append(refusal)

    def say(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)

    def warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    def wait(self, what: str, why: str, remedy: str) -> None:
        self.pending.append({"what": what, "why": why, "remedy": remedy})

    def soften(self) -> None:
        """Turn refusals into warnings, where they concern a step that this run leaves out."""
        for refusal in self.refusals:
            self.warn(f"{refusal.reason[:1].upper()}{refusal.reason[1:]}. {refusal.remedy}")
        self.refusals.clear()

    def add(self, other: Notes) -> None:
        for refusal in other.refusals:
            if refusal not in self.refusals:
                self.refusals.append(refusal)
        for reason in other.reasons:
            self.say(reason)
        for warning in other.warnings:
            self.warn(warning)


@dataclass(frozen=True)
class Ceiling:
    """The newest driver that a host can have: one version, or any version of a branch, and why.

    `remedy` may hold {branch}, for the branch that would do.
    """

    what: str
    code: str
    remedy: str
    version: str | None = None
    branch: int | None = None

    def allows(self, minimum: str) -> bool:
        if self.version is not None:
            return at_least(self.version, minimum)
        return self.branch is None or (branch_of(minimum) or 0) <= self.branch


@dataclass(frozen=True)
class Need:
    """The oldest driver that will do for something."""

    version: str
    whose: str
    gpu: Gpu | None = None


@dataclass
class Driver:
    """The driver that is decided on.

    `managed`: this run may change it. `kept`: what is installed fulfils everything. `build`: where its modules come from, "dkms"
    (compiled on the host) or "prebuilt" (in packages). `secure_boot`: the way that Secure Boot leaves, see driver.SECURE_BOOT.
    """

    minimum: str
    branch: int | None = None
    flavor: str | None = None
    source: str | None = None
    package_set: str | None = None
    packages: list[str] = field(default_factory=list)
    pin: dict[str, t.Any] | None = None
    repository: dict[str, t.Any] | None = None
    managed: bool = False
    kept: bool = False
    build: str = "dkms"
    secure_boot: str = ""

    def as_dict(self, actions: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        return {
            "branch": self.branch,
            "flavor": self.flavor,
            "minimum": self.minimum,
            "source": self.source,
            "package_set": self.package_set,
            "packages": self.packages,
            "pin": self.pin,
            "repository": self.repository,
            "actions": actions,
        }


@dataclass(frozen=True)
class Stack:
    """One environment's torch build and Python. `code`: for each GPU the machine code that serves it, as in sm_86.

    `python_package`: what has to be installed so that the interpreter is there.
    """

    wanted: DesiredEnvironment
    version: str
    tag: str | None
    index_url: str
    companions: dict[str, str]
    python: str | None
    interpreter: str | None
    python_package: str | None
    code: tuple[str | None, ...]

    @property
    def build(self) -> str:
        return f"{self.version}+{self.tag}" if self.tag else self.version


def listed(names: t.Iterable[str]) -> str:
    """Join names for a sentence: a, b and c."""
    words = list(dict.fromkeys(names))
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
