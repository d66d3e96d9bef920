# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the lock of an environment. Every package that it gets, exactly, with the hashes of its files. Pure.

A lock is text: a header that says what it was made for, then two parts in the format of pip's requirements. What belongs to torch's
family comes from the torch index and nothing else does, so that neither index can replace what the other serves. Who belongs to the
family is decided when the lock is made, and the part in which a package stands says it from then on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing as t

SCHEMA = 1
FAMILY = ("torch", "torchvision", "torchaudio", "triton", "pytorch-triton")
"""Projects that come from the torch index wherever they occur. Of what is named nvidia-*, that which torch itself needs joins them."""
LIBRARIES = "nvidia-"
"""How the names of the libraries begin that torch needs, and others that have nothing to do with it."""

_HEAD = f"# Lock {SCHEMA} of gpufleet.workstation. Made by playbooks/lock.yml; keep it under version control.\n"
_INPUTS = "# for: "
_PARTS = ("# from the torch index", "# from the package index")
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)((?: --hash=sha256:[0-9a-f]{64})+)\Z")
_INPUT_KEYS = ("name", "python", "arch", "torch", "companions", "requirements")


class InvalidLock(ValueError):
    """A text that is no lock, or not the lock that is meant. The text says why, for people."""


@dataclasses.dataclass(frozen=True)
class Pinned:
    """One package at one version, with the sha256 of each file of it that may be installed."""

    name: str
    version: str
    hashes: tuple[str, ...]
    from_torch_index: bool = False

    def requirement(self) -> str:
        """As pip reads it."""
        return " \\\n    ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{value}" for value in self.hashes)])


@dataclasses.dataclass(frozen=True)
class Lock:
    """What an environment consists of on one platform."""

    inputs: dict[str, t.Any]
    packages: tuple[Pinned, ...]

    def render(self) -> str:
        """The text, always the same for the same lock."""
        inputs = json.dumps(self.inputs, sort_keys=True, ensure_ascii=False)
        return f"{_HEAD}{_INPUTS}{inputs}\n" + "".join(
            f"\n{title}\n{text}" for title, text in zip(_PARTS, (self.part(True), self.part(False)))
        )

    def part(self, torch_index: bool) -> str:
        """The requirements of one index, by name."""
        chosen = sorted(
            (item for item in self.packages if item.from_torch_index == torch_index), key=lambda item: item.name
        )
        return "".join(f"{item.requirement()}\n" for item in chosen)


def inputs(spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What of an environment's specification decides on its lock."""
    return {key: spec[key] for key in _INPUT_KEYS if spec.get(key)}


def file_name(spec: t.Mapping[str, t.Any]) -> str:
    """Where the lock lies below the folder of all locks: it names environment and platform, and changes with the inputs."""
    digest = hashlib.sha256(json.dumps(inputs(spec), sort_keys=True).encode("utf-8")).hexdigest()
    python = str(spec["python"]).replace(".", "")
    return f"{spec['name']}/torch-{spec['torch']}-cp{python}-{spec['arch']}-{digest[:8]}.txt"


def digest(text: str) -> str:
    """The sha256 by which a specification names its lock."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def parse(text: str) -> Lock:
    """Read a lock; raises InvalidLock for anything that is not exactly one."""
    head, _newline, rest = text.partition("\n")
    if head + "\n" != _HEAD:
        raise InvalidLock(f"it does not begin with {_HEAD.strip()!r}")
    line, _newline, body = rest.partition("\n")
    try:
        made_for = json.loads(line[len(_INPUTS) :]) if line.startswith(_INPUTS) else None
    except ValueError:
        made_for = None
    if not isinstance(made_for, dict):
        raise InvalidLock("its second line does not say what it was made for")
    lock = Lock(made_for, tuple(pinned(body)))
    astray = [item.name for item in lock.packages if item.name in FAMILY and not item.from_torch_index]
    if astray:
        raise InvalidLock(f"it takes {astray[0]} from the package index: make it anew with playbooks/lock.yml")
    if lock.render() != text or len({item.name for item in lock.packages}) != len(lock.packages):
        raise InvalidLock("it was edited by hand: make it anew with playbooks/lock.yml")
    return lock


def pinned(text: str) -> t.Iterator[Pinned]:
    """Read pinned requirements, as uv and pip write them; where they are a lock's, with the index of their part."""
    from_torch_index = False
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if line in _PARTS:
            from_torch_index = line == _PARTS[0]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _PINNED.match(line.strip())
        if not match:
            raise InvalidLock(f"{line.strip()[:80]!r} is no requirement with one version and its hashes")
        hashes = tuple(sorted(part.rpartition(":")[2] for part in match[3].split()))
        yield Pinned(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2], hashes, from_torch_index)


def difference(before: Lock | None, after: Lock) -> list[str]:
    """What changes between two locks, a line each: `+ name 1.0`, `- name 1.0`, `~ name 1.0 -> 2.0`."""
    old = {item.name: item for item in before.packages} if before else {}
    new = {item.name: item for item in after.packages}
    lines = []
    for name in sorted({*old, *new}):
        if name not in new:
            lines.append(f"- {name} {old[name].version}")
        elif name not in old:
            lines.append(f"+ {name} {new[name].version}")
        elif old[name].version != new[name].version:
            lines.append(f"~ {name} {old[name].version} -> {new[name].version}")
        elif old[name].from_torch_index != new[name].from_torch_index:
            lines.append(
                f"~ {name} {new[name].version}: from the {'torch' if new[name].from_torch_index else 'package'} index"
            )
        elif old[name].hashes != new[name].hashes:
            lines.append(f"~ {name} {new[name].version}: other files")
    return lines
