# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which torch build and which Python an environment gets. Pure.

What was asked for explicitly is never replaced: it is planned, or refused with the nearest that works on this host.
"""

from __future__ import annotations

import difflib
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Ceiling, Notes, Stack, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import (
    DesiredEnvironment,
    DesiredTorch,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Index,
    Knowledge,
    Release,
    branch_of,
    cuda_version,
    newest,
    sm_of,
    version_key,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Gpu, Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.sass import serving_code


def resolve_environment(
    wanted: DesiredEnvironment,
    host: Host,
    gpus: t.Sequence[Gpu],
    ceilings: t.Sequence[Ceiling],
    knowledge: Knowledge,
    notes: Notes,
) -> Stack:
    """Decide on torch build, index, companions and Python of one environment."""
    torch = wanted.torch
    search = _BuildSearch(host.arch, gpus, ceilings, knowledge)
    release = knowledge.releases.get(torch.version)
    index = _choose_index(torch, release, search, host, knowledge, notes)
    tag = index.tag if index else torch.tag
    python = _choose_python(wanted, release, host, notes)
    return Stack(
        wanted=wanted,
        version=torch.version,
        tag=tag,
        index_url=torch.index_url or (f"{torch.index_base_url}/{tag}" if tag else ""),
        companions=_companions(wanted, release, notes) if release else {},
        python=python.version,
        interpreter=python.interpreter,
        python_package=python.package,
        code=tuple(search.code_for(gpu, index) for gpu in gpus),
    )


def _companions(wanted: DesiredEnvironment, release: Release, notes: Notes) -> dict[str, str]:
    """The companions that are wanted, in the version that belongs to the release; an inventory's row may leave them out."""
    missing = [name for name in wanted.companions if name not in release.companions]
    if missing:
        notes.warn(f"Which {listed(missing)} belongs to torch {release.version} is not known, so it is not installed.")
    return {name: release.companions[name] for name in wanted.companions if name in release.companions}


def _choose_index(
    torch: DesiredTorch,
    release: Release | None,
    search: _BuildSearch,
    host: Host,
    knowledge: Knowledge,
    notes: Notes,
) -> Index | None:
    """Return the build, or None where there is none in the knowledge base; says why, and refuses what cannot be."""
    if release is None:
        _judge_unknown_release(torch, search, knowledge, notes)
        return None
    if release.source:
        notes.say(
            f"torch {release.version} is known from the inventory (gpufleet_knowledge; source: {release.source})."
        )
    if torch.tag is None:
        index = search.best(release)
        if index is None:
            index = search.ranked(release)[0]
            search.refuse(release, index, notes)
            return index
        _explain(release, index, search, knowledge, notes)
    elif torch.tag not in release.indexes:
        _refuse_index(release, torch.tag, search, notes)
        return None
    else:
        index = release.indexes[torch.tag]
        if search.obstacle(index):
            search.refuse(release, index, notes)
            return index
        notes.say(f"torch {release.version}+{index.tag} was asked for: {search.coverage(index)}.")
    if index.confidence == "low":
        notes.warn(
            f"That there is a torch {release.version}+{index.tag} is inferred. Where there is none the build fails, and what "
            "serves now goes on serving."
        )
    if release.pypi.get(host.arch) == "cpu":
        notes.say(
            f"torch comes from the {index.tag} index: the {host.arch} wheel of {release.version} on PyPI is for CPUs only."
        )
    return index


class _BuildSearch:
    """Judges torch builds for the GPUs and the driver of one host."""

    def __init__(self, arch: str, gpus: t.Sequence[Gpu], ceilings: t.Sequence[Ceiling], knowledge: Knowledge) -> None:
        self.arch = arch
        self.gpus = gpus
        self.ceilings = ceilings
        self.knowledge = knowledge

    def code_for(self, gpu: Gpu, index: Index | None) -> str | None:
        if index is None or gpu.cc is None:
            return None
        code = serving_code(index.architectures.get(self.arch) or (), gpu.cc, index.cuda)
        return sm_of(code) if code else None

    def uncovered(self, index: Index) -> list[Gpu]:
        return [gpu for gpu in self.gpus if gpu.cc is not None and not self.code_for(gpu, index)]

    def floor(self, index: Index) -> str:
        return self.knowledge.cuda_floors[index.cuda]

    def too_low(self, index: Index) -> Ceiling | None:
        return next((ceiling for ceiling in self.ceilings if not ceiling.allows(self.floor(index))), None)

    def obstacle(self, index: Index) -> bool:
        return bool(index.architectures.get(self.arch) is None or self.uncovered(index) or self.too_low(index))

    def ranked(self, release: Release) -> list[Index]:
        """The builds of a release, the preferred one first: the default tag, the one on PyPI, the newest CUDA."""
        first = (self.knowledge.defaults["cuda"], release.pypi.get(self.arch), release.pypi.get("x86_64"))
        return sorted(
            release.indexes.values(),
            key=lambda index: (
                index.confidence == "low",
                first.index(index.tag) if index.tag in first else len(first),
                [-number for number in version_key(index.cuda)],
            ),
        )

    def best(self, release: Release) -> Index | None:
        return next((index for index in self.ranked(release) if not self.obstacle(index)), None)

    def coverage(self, index: Index) -> str:
        pairs = dict.fromkeys((self.code_for(gpu, index), gpu.label) for gpu in self.gpus if gpu.cc)
        if not pairs:
            return "no GPU is known to check it against"
        return "it has " + listed(f"{code} code for {label}" for code, label in pairs)

    def nearest(self, version: str) -> list[str]:
        """The builds closest to a version that work here, the closest first; of equally close ones the newer."""
        order = sorted(self.knowledge.releases.values(), key=lambda release: version_key(release.version), reverse=True)
        works = [
            (release, self.best(release)) for release in sorted(order, key=lambda row: _distance(row.version, version))
        ]
        return [f"{release.version}+{index.tag}" for release, index in works if index and index.confidence != "low"]

    def refuse(self, release: Release, index: Index, notes: Notes) -> None:
        """Say why a build does not run here, with the nearest that does."""
        build = f"{release.version}+{index.tag}"
        nearest = self.nearest(release.version)
        instead = f"Set torch_env_version to {nearest[0]}, the nearest that works here." if nearest else ""
        if index.architectures.get(self.arch) is None:
            reason = f"which GPUs torch {build} for {self.arch} has code for is not established"
            notes.refuse("torch_arch", reason, instead or self._nothing_works())
            return
        for gpu in self.uncovered(index):
            compiled = " ".join(map(sm_of, index.architectures[self.arch] or ()))
            notes.refuse(
                "torch_arch",
                f"torch {build} for {self.arch} has no code that runs on {gpu.label}, only for {compiled}",
                instead or self._nothing_works(),
                gpu,
            )
        ceiling = self.too_low(index)
        if ceiling:
            remedy = ceiling.remedy.format(branch=branch_of(self.floor(index)))
            notes.refuse(
                "torch_driver",
                f"torch {build} needs driver >= {self.floor(index)}, the newest possible here is {ceiling.what}",
                f"{remedy} Or s{instead[1:]}" if instead else remedy,
            )

    def _nothing_works(self) -> str:
        if any(gpu.architecture and gpu.architecture.driver_from == "jetpack" for gpu in self.gpus):
            return "Use the torch wheels that NVIDIA publishes for JetPack."
        if len(self.gpus) > 1:
            return (
                "No torch build serves all GPUs of this host: move one to another host, or name it in "
                "nvidia_driver_gpus_exclude."
            )
        return (
            f"No torch build in the knowledge base of {self.knowledge.as_of} works here: ask for a newer one, with its "
            "tag and index, or use another GPU."
        )


def _explain(release: Release, index: Index, search: _BuildSearch, knowledge: Knowledge, notes: Notes) -> None:
    """Say why this build, above all where it is not the default one."""
    default = release.indexes.get(knowledge.defaults["cuda"])
    build = f"torch {release.version}+{index.tag}"
    if default is None or default is index:
        notes.say(f"{build}: {search.coverage(index)}.")
        return
    uncovered = search.uncovered(default)
    if uncovered:
        why = f"+{default.tag} has no code for {listed(gpu.label for gpu in uncovered)}"
    elif default.architectures.get(search.arch) is None:
        why = f"which GPUs +{default.tag} for {search.arch} has code for is not established"
    else:
        why = f"+{default.tag} needs a newer driver"
    notes.say(f"{build} instead of +{default.tag}, because {why}: {search.coverage(index)}.")


def _refuse_index(release: Release, tag: str, search: _BuildSearch, notes: Notes) -> None:
    best = search.best(release)
    nearest = [f"{release.version}+{best.tag}"] if best else search.nearest(release.version)
    works = f"The nearest that works here is {nearest[0]}." if nearest else "No known build works here."
    indexes = listed(release.indexes)
    if not tag.startswith("cu"):
        notes.refuse(
            "torch_arch",
            f"torch {release.version}+{tag} is no CUDA build: it cannot use this host's GPUs",
            f"Set torch_env_cuda to auto or to one of {indexes}. {works}",
        )
        return
    close = difflib.get_close_matches(tag, list(release.indexes), n=1) if cuda_version(tag) is None else []
    hint = f" Did you mean {close[0]}?" if close else ""
    notes.refuse(
        "torch_index_unknown",
        f"there is no {tag} index for torch {release.version}, only {indexes}",
        f"Set torch_env_cuda to auto or to one of these.{hint} {works}",
    )


def _judge_unknown_release(torch: DesiredTorch, search: _BuildSearch, knowledge: Knowledge, notes: Notes) -> None:
    """A release that is not in the knowledge base: a newer one is allowed on request, any other refused."""
    last = newest(knowledge.releases)
    nearest = search.nearest(torch.version)
    works = f"The nearest that work here are {listed(nearest[:2])}." if nearest else "No known release works here."
    if version_key(torch.version) <= version_key(last):
        close = sorted(knowledge.releases, key=lambda known: _distance(known, torch.version))[:2]
        notes.refuse(
            "torch_unknown",
            f"torch {torch.version} is not in the knowledge base of {knowledge.as_of}; nearest to it are {listed(close)}",
            works,
        )
    elif torch.tag is None or not torch.custom_index:
        notes.refuse(
            "torch_unknown",
            f"torch {torch.version} is newer than the knowledge base of {knowledge.as_of}, which ends at {last}",
            "Say which build is meant, with torch_env_cuda and torch_env_index_base_url: it is then installed, guarded by the "
            f"static proof. {works}",
        )
    elif cuda_version(torch.tag) is None:
        notes.refuse(
            "torch_index_unknown" if torch.tag.startswith("cu") else "torch_arch",
            f"{torch.tag} is no CUDA tag, such as cu132",
            f"Set torch_env_cuda to the tag of torch {torch.version}. {works}",
        )
    else:
        notes.warn(
            f"torch {torch.version}+{torch.tag} is unknown since {knowledge.as_of}: whether it has code for these GPUs is left "
            "to the static proof, and which driver it needs to you. Its companions are unknown too and not installed."
        )


def _distance(known: str, asked: str) -> int:
    """How far apart two versions are; a minor version counts as a hundred patches."""
    left, right = ((*version_key(version), 0, 0, 0)[:3] for version in (known, asked))
    return abs(sum((a - b) * weight for a, b, weight in zip(left, right, (10000, 100, 1))))


@dataclass(frozen=True)
class _Python:
    """The Python of an environment: its version, where it is or will be, and the package that brings it where it is missing."""

    version: str | None
    interpreter: str | None
    package: str | None = None


def _choose_python(wanted: DesiredEnvironment, release: Release | None, host: Host, notes: Notes) -> _Python:
    """The named Python; else the system's own where torch supports it, the one that serves now, or the newest supported one.

    What the distribution packages and the host lacks is installed.
    """
    here = host.pythons()
    own = host.distribution.python if host.distribution else None
    packages: t.Mapping[str, str] = host.distribution.python_packages if host.distribution else {}
    supports = f"torch {release.version} supports Python {' to '.join(release.python)}" if release else ""
    has = listed(sorted(here, key=version_key)) or "none" if here is not None else f"{host.os_name} comes with {own}"

    def fits(version: str) -> bool:
        return release is None or version_key(release.python[0]) <= version_key(version)[:2] <= version_key(
            release.python[1]
        )

    def installed(version: str) -> _Python:
        return _Python(version, (here or {}).get(version, f"/usr/bin/python{version}"))

    def packaged(version: str) -> _Python:
        return _Python(version, f"/usr/bin/python{version}", packages[version])

    there = here if here is not None else [own] if own else []
    if wanted.python is not None:
        version = wanted.python
        if not fits(version):
            notes.refuse("python", f"{supports}, not {version}", "Set torch_env_python to auto or to one of these.")
        elif version not in there and version in packages:
            notes.say(
                f"Python {version} is asked for, {_lead(here, has)}: its package {packages[version]} is installed."
            )
            return packaged(version)
        elif here is not None and version not in here:
            notes.refuse(
                "python",
                f"Python {version} is not installed and not packaged for {host.os_name}: the host has {has}",
                f"Install Python {version} on the host, or set torch_env_python to auto.",
            )
        elif here is None and version != own:
            notes.warn(f"Python {version} has to be installed on the host: {has}.")
        return installed(version)

    fitting = [version for version in there if fits(version)]
    if fitting:
        serving = _serving_python(host, wanted.name)
        return installed(own if own in fitting else serving if serving in fitting else newest(fitting))
    if here is None and own is None:
        notes.warn(
            f"Which Python {host.os_name} comes with is not in the knowledge base: it is chosen on the observed host."
        )
        return _Python(None, None)
    offered = [version for version in packages if fits(version)]
    if offered:
        best = newest(offered)
        notes.say(f"{supports}, {_lead(here, has)}: its package {packages[best]} is installed.")
        return packaged(best)
    notes.refuse("python", f"{supports}, {_lead(here, has)}", "Install one of these on the host.")
    return _Python(None, None)


def _lead(here: t.Mapping[str, str] | None, has: str) -> str:
    return has if here is None else f"the host has {has}"


def _serving_python(host: Host, name: str) -> str | None:
    """The Python that the environment was built with: a newer one that somebody installs beside it is no reason to build anew."""
    built = ((host.environment(name).get("stamp") or {}).get("spec") or {}).get("python")
    return built if isinstance(built, str) else None
