# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: rows that an inventory adds to the knowledge base (gpufleet_knowledge), checked and merged. Pure.

Every row names its source, as those of matrix.py do. Of what both know, the inventory's row counts.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Index,
    InvalidDesired,
    Knowledge,
    KnownGpu,
    Model,
    Release,
    cuda_version,
    version_key,
)

NAME = "gpufleet_knowledge"
_ARCHITECTURES = ("x86_64", "aarch64")
_RELEASE = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:(?:a|b|rc|\.dev|\.post)[0-9]+)?")
_PYTHON = re.compile(r"3\.[0-9]{1,2}")
_DRIVER = re.compile(r"[0-9]{3,4}(?:\.[0-9]+){0,2}")
_CAPABILITY = re.compile(r"[0-9]{1,2}\.[0-9]")
_CAPABILITIES = re.compile(rf"{_CAPABILITY.pattern}(?: {_CAPABILITY.pattern})*")
_DEVICE = re.compile(r"[0-9a-f]{4}")
_MODULES = ("open", "proprietary", "both")


@dataclass(frozen=True)
class Additions:
    """Rows beside those of matrix.py."""

    releases: t.Mapping[str, Release] = field(default_factory=dict)
    floors: t.Mapping[str, str] = field(default_factory=dict)
    gpus: t.Mapping[str, KnownGpu] = field(default_factory=dict)
    models: tuple[Model, ...] = ()


def extend(knowledge: Knowledge, additions: Additions) -> Knowledge:
    """The knowledge base with an inventory's rows."""
    if additions == Additions():
        return knowledge
    return dataclasses.replace(
        knowledge,
        releases={**knowledge.releases, **additions.releases},
        cuda_floors={**knowledge.cuda_floors, **additions.floors},
        gpus={**knowledge.gpus, **additions.gpus},
        models=(*additions.models, *knowledge.models),
    )


def parse_additions(value: t.Any, cuda_floors: t.Container[str]) -> Additions:
    """Check an inventory's rows; `cuda_floors` are the CUDA versions whose driver is known. Raises InvalidDesired, naming the place."""
    if value is None:
        return Additions()
    top = _mapping(NAME, value, ("torch", "gpus"))
    releases: dict[str, Release] = {}
    floors: dict[str, str] = {}
    for version, row in _mapping(f"{NAME}.torch", top.get("torch") or {}).items():
        where = f"{NAME}.torch[{version}]"
        if not _RELEASE.fullmatch(version):
            raise InvalidDesired(f"{where}: {version!r} is no version of torch such as 2.16.0, without a tag")
        releases[version] = _release(where, version, row, floors, cuda_floors)
    gpus, models = {}, []
    for given, row in _mapping(f"{NAME}.gpus", top.get("gpus") or {}).items():
        where = f"{NAME}.gpus[{given}]"
        device = given.lower()
        device = device[2:] if device.startswith("0x") else device
        if not _DEVICE.fullmatch(device):
            raise InvalidDesired(
                f"{where}: {given!r} is no PCI device id such as 2f04 (in quotes: YAML reads 2e12 as a number)"
            )
        gpus[device], model = _gpu(where, device, row)
        models += [model] if model else []
    return Additions(releases, floors, gpus, tuple(models))


def _release(where: str, version: str, given: t.Any, floors: dict[str, str], cuda_floors: t.Container[str]) -> Release:
    row = _mapping(where, given, ("source", "python", "torchvision", "torchaudio", "indexes"))
    source = _source(where, row)
    python = row.get("python")
    if not isinstance(python, (list, tuple)) or len(python) != 2:
        raise InvalidDesired(
            f"{where}.python must be the first and the last version of Python, such as ['3.11', '3.15']"
        )
    first, last = (_text(f"{where}.python", item, _PYTHON, "a version such as '3.12', in quotes") for item in python)
    if version_key(first) > version_key(last):
        raise InvalidDesired(f"{where}.python begins with {first}, which is newer than {last}")
    companions = {
        name: _text(f"{where}.{name}", row[name], _RELEASE, "a version such as 0.30.0")
        for name in ("torchvision", "torchaudio")
        if row.get(name) is not None
    }
    indexes = {}
    for tag, index in _mapping(f"{where}.indexes", row.get("indexes") or {}).items():
        indexes[tag] = _index(f"{where}.indexes[{tag}]", tag, index, floors, cuda_floors)
    if not indexes:
        raise InvalidDesired(
            f"{where}.indexes must name at least one CUDA tag with the compute capabilities that it has code for"
        )
    return Release(version, (first, last), companions, {}, indexes, source)


def _index(where: str, tag: str, given: t.Any, floors: dict[str, str], cuda_floors: t.Container[str]) -> Index:
    row = _mapping(where, given, (*_ARCHITECTURES, "driver"))
    cuda = cuda_version(tag)
    if cuda is None:
        raise InvalidDesired(f"{where}: {tag!r} is no CUDA tag such as cu132")
    compiled = {
        arch: _text(f"{where}.{arch}", row[arch], _CAPABILITIES, "compute capabilities such as 8.0 9.0 12.0").split()
        for arch in _ARCHITECTURES
        if row.get(arch) is not None
    }
    if not compiled:
        raise InvalidDesired(
            f"{where} must say for {' or '.join(_ARCHITECTURES)} which compute capabilities it has code for"
        )
    if row.get("driver") is not None:
        floors[cuda] = _text(
            f"{where}.driver", row["driver"], _DRIVER, "the oldest driver that runs it, such as 580.65.06"
        )
    elif cuda not in cuda_floors and cuda not in floors:
        raise InvalidDesired(f"{where}.driver is missing: which driver CUDA {cuda} needs is not in the knowledge base")
    architectures = {arch: tuple(compiled[arch]) if arch in compiled else None for arch in _ARCHITECTURES}
    return Index(tag, cuda, architectures, ptx=False, confidence="medium")


def _gpu(where: str, device: str, given: t.Any) -> tuple[KnownGpu, Model | None]:
    row = _mapping(where, given, ("source", "name", "compute_capability", "first_driver", "modules"))
    source = _source(where, row)
    name = row.get("name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InvalidDesired(f"{where}.name must be what the GPU is called, such as GeForce RTX 5070")
    capability = _text(f"{where}.compute_capability", row.get("compute_capability"), _CAPABILITY, "such as 12.0")
    modules = row.get("modules")
    if modules not in (None, *_MODULES):
        raise InvalidDesired(f"{where}.modules must be one of {', '.join(_MODULES)}; it is {modules!r}")
    model = None
    if row.get("first_driver") is not None:
        first = _text(f"{where}.first_driver", row["first_driver"], _DRIVER, "a driver version such as 580.65.06")
        model = Model(name.strip(), (device,), first, modules)
    elif modules is not None:
        raise InvalidDesired(
            f"{where}.modules needs first_driver beside it: the driver since which they drive this GPU"
        )
    return KnownGpu(name.strip(), capability, source), model


def _source(where: str, row: t.Mapping[str, t.Any]) -> str:
    source = row.get("source")
    if not isinstance(source, str) or not source.strip() or not source.isprintable():
        raise InvalidDesired(f"{where}.source is missing: say where this is known from, such as a URL and a date")
    return source.strip()


def _mapping(where: str, value: t.Any, known: tuple[str, ...] = ()) -> dict[str, t.Any]:
    if not isinstance(value, t.Mapping):
        raise InvalidDesired(f"{where} must be a mapping")
    named = {str(key): item for key, item in value.items()}
    for key in named if known else ():
        if key not in known:
            raise InvalidDesired(f"{where}: there is no {key!r}; known are {', '.join(known)}")
    return named


def _text(where: str, value: t.Any, pattern: re.Pattern[str], expectation: str) -> str:
    text = str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    if not pattern.fullmatch(text):
        raise InvalidDesired(f"{where} must be {expectation}; it is {value!r}")
    return text
