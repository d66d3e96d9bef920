# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what others installed on a host, what that means for its people, and what they can do. Pure.

All of it is left alone. Only what lies in the very place of an environment that is wanted stops the plan.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Notes, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import Knowledge, sm_of
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Gpu, Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.sass import serving_code

_NAMED = 4
_PLACES = {
    "venv": "virtual environment",
    "conda": "conda",
    "system": "packages of the system's Python",
    "user": "packages of a user's own",
}


def judge_foreign(host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge, notes: Notes) -> None:
    """Say what was found and left alone, each kind of thing in one sentence, and refuse what is in the way."""
    names = {f"{wanted.root}/{environment.name}" for environment in wanted.environments}
    said: dict[tuple[str, str], list[str]] = {}
    for row in host.foreign():
        kind, path = str(row.get("kind")), str(row.get("path"))
        if kind == "taken":
            if path in names:
                _refuse(row, path, notes)
            continue
        for what, harm in _meanings(row, kind, host, gpus, wanted, knowledge):
            said.setdefault((what, harm), []).append(path)
    for (what, harm), paths in said.items():
        more = f" and {len(paths) - _NAMED} more places" if len(paths) > _NAMED else ""
        places = ", ".join(paths[:_NAMED]) + more if more else listed(paths)
        text = f"Found and left alone: {what} ({places})"
        if harm:
            notes.warn(f"{text}: {harm}")
        else:
            notes.say(f"{text}; the environments here are apart from it.")


def _refuse(row: t.Mapping[str, t.Any], path: str, notes: Notes) -> None:
    notes.refuse(
        "foreign_directory",
        f"{path} is {row.get('what')} and no environment of this collection",
        "Move it away, or choose another name for the environment or another torch_env_root; nothing in it is touched.",
    )


def _meanings(
    row: t.Mapping[str, t.Any], kind: str, host: Host, gpus: t.Sequence[Gpu], wanted: Desired, knowledge: Knowledge
) -> t.Iterator[tuple[str, str]]:
    """(what it is, what harm it does and what helps); no harm is an empty text."""
    torch = row.get("torch") or {}
    version = torch.get("version")
    instead = f"Start them with gpu-env run {wanted.environments[0].name}." if wanted.environments else ""
    if kind in _PLACES:
        if version:
            harm = _harm(str(version), torch.get("cuda"), host, gpus, knowledge)
            yield f"torch {version} in {_PLACES[kind]}", f"{harm} {instead}".strip() if harm else ""
        elif kind == "conda":
            yield "conda", ""
    elif kind == "search_path":
        what = str(row.get("what"))
        if what.startswith("PYTHONHOME"):
            harm = "with it no Python finds its own library, those of the environments included. Remove that setting."
        else:
            first = f"; torch {version} is there" if version else ""
            harm = (
                f"every Python imports from there first, those of the environments included{first}. Remove that setting, or start "
                "programs with python -E."
            )
        yield what, harm
    elif kind == "conda_path":
        yield (
            str(row.get("what")),
            f"python and pip in such a shell are conda's, not an environment's. {instead} Or let conda not "
            "activate itself: conda config --set auto_activate_base false.",
        )
    elif kind == "index":
        yield (
            f"a second index for pip, {row.get('what')}",
            "pip takes a package from whichever index has the higher version, whoever put it there. Builds of this collection do "
            "not read it. For pip by hand, name one index with --index-url.",
        )


def _harm(version: str, cuda: t.Any, host: Host, gpus: t.Sequence[Gpu], knowledge: Knowledge) -> str:
    """Why programs with a torch do not use this host's GPUs, as far as that is known; empty where they do, or nobody knows."""
    plain, _plus, tag = version.partition("+")
    if not cuda and not tag.startswith(("rocm", "xpu")):
        return "it is a build for CPUs only, so programs started from there never use a GPU."
    release = knowledge.releases.get(plain)
    index = release.indexes.get(tag) if release else None
    compiled = index.architectures.get(host.arch) if index else None
    if index is None or compiled is None:
        return ""
    without = [gpu.label for gpu in gpus if gpu.cc and not serving_code(compiled, gpu.cc, index.cuda)]
    if not without:
        return ""
    return (
        f"it has no code for {listed(without)}, only for {' '.join(map(sm_of, compiled))}, so programs started from there fail on "
        "the GPU with 'no kernel image is available'."
    )
