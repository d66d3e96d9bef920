# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the terms that the planner thinks in, as frozen dataclasses, and how versions compare."""

from __future__ import annotations

import functools
import re
import typing as t
from dataclasses import dataclass, field, fields

MANAGED_BLOCK_MARKER = "# {mark} gpufleet.workstation"
"""Encloses our lines in a file that is not ours alone; `{mark}` is BEGIN or END."""

STEPS = ("driver", "torch", "runtime", "proof")
"""What a run may do, in order."""

Row = t.Mapping[str, t.Any]
T = t.TypeVar("T")


class InvalidDesired(ValueError):
    """A value that no host can have: the user's input is wrong, so the whole run has to stop."""


@functools.lru_cache(maxsize=4096)
def version_key(version: str) -> tuple[int, ...]:
    """Order versions by their numbers: 570.86.16 < 570.133.07 < 580; what is not a number ends the comparison."""
    numbers = []
    for part in re.split(r"[.+~-]", version):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def at_least(version: str, minimum: str) -> bool:
    """Whether `version` is `minimum` or newer; a branch alone ("580") counts as the first version of that branch."""
    return version_key(version) >= version_key(minimum)


def newest(versions: t.Iterable[str]) -> str:
    """Return the highest of some versions."""
    return max(versions, key=version_key)


def branch_of(version: str) -> int | None:
    """Return the branch of a driver version: 570 for 570.133.07."""
    numbers = version_key(version)
    return numbers[0] if numbers else None


def upstream_version(package_version: str) -> str:
    """Return NVIDIA's version in a package's: 580.105.08 for 3:580.105.08-1."""
    return package_version.rsplit(":", 1)[-1].split("-", 1)[0]


def cuda_version(tag: str) -> str | None:
    """Return the CUDA version of a tag: 12.8 for cu128; None for what is not such a tag."""
    match = re.fullmatch(r"cu(\d{2})(\d)", tag)
    return f"{match[1]}.{match[2]}" if match else None


def sm_of(compute_capability: str) -> str:
    """Return the machine code's name of a compute capability: sm_120 for 12.0."""
    return "sm_" + compute_capability.replace(".", "")


def _from_row(kind: type[T], row: Row) -> T:
    return kind(**{item.name: row[item.name] for item in fields(kind)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Architecture:
    """A GPU architecture of one compute capability."""

    cc: str
    sm: str
    name: str
    first_driver: str | None
    last_branch: int | None
    modules: str
    driver_from: str
    confidence: str


@dataclass(frozen=True)
class Model:
    """A model whose first driver or whose kernel modules differ from its architecture's."""

    name: str
    ids: tuple[str, ...]
    first_driver: str
    modules: str | None


@dataclass(frozen=True)
class Branch:
    """A driver branch."""

    branch: int
    cuda: str
    eol: str | None
    status: str
    latest_seen: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """One build of a torch release: the index of one CUDA tag."""

    tag: str
    cuda: str
    architectures: t.Mapping[str, tuple[str, ...] | None]
    ptx: bool
    confidence: str


@dataclass(frozen=True)
class Release:
    """A torch release."""

    version: str
    python: tuple[str, str]
    companions: t.Mapping[str, str]
    pypi: t.Mapping[str, str]
    indexes: t.Mapping[str, Index]
    source: str = ""
    """Where an inventory knows it from; empty for the rows of matrix.py, which name their sources there."""


@dataclass(frozen=True)
class KnownGpu:
    """A GPU that an inventory describes, because the table of PCI ids does not know it."""

    name: str
    cc: str
    source: str


@dataclass(frozen=True)
class Distribution:
    """A distribution release and how drivers are packaged for it."""

    name: str
    os_ids: tuple[str, ...]
    version: str
    family: str
    repository: str
    key: str
    python: str | None
    python_packages: t.Mapping[str, str]
    pin: str
    pinning_branches: tuple[int, ...]
    branches_seen: tuple[int, ...]
    sets: tuple[str, ...]
    native: tuple[Row, ...]
    native_sets: str | None
    components: tuple[str, ...]
    headers: t.Mapping[str, str]
    installs: bool
    epel: tuple[str, ...]
    signed_modules: Row | None


@dataclass(frozen=True)
class Knowledge:
    """The knowledge base, indexed for lookups."""

    as_of: str
    defaults: Row
    architectures: t.Mapping[str, Architecture]
    models: tuple[Model, ...]
    branches: t.Mapping[int, Branch]
    cuda_floors: t.Mapping[str, str]
    releases: t.Mapping[str, Release]
    distributions: tuple[Distribution, ...]
    package_sets: t.Mapping[str, Row]
    keys: t.Mapping[str, Row]
    pci: Row
    tokenizers: Row
    needs: Row
    repository_architectures: t.Mapping[str, str]
    nvidia_base_url: str = field(default="")
    gpus: t.Mapping[str, KnownGpu] = field(default_factory=dict)
    """By PCI device id, what an inventory adds to pci_ids."""

    @classmethod
    def of(cls, matrix: t.Any) -> Knowledge:
        """Index the literals of matrix.py."""
        return cls(
            as_of=matrix.AS_OF,
            defaults=matrix.DEFAULTS,
            architectures={row["cc"]: _from_row(Architecture, row) for row in matrix.ARCHITECTURES},
            models=tuple(_from_row(Model, row) for row in matrix.MODELS),
            branches={row["branch"]: _from_row(Branch, row) for row in matrix.DRIVER_BRANCHES},
            cuda_floors={row["version"]: row["floor"] for row in matrix.CUDA},
            releases={row["version"]: _release(row) for row in matrix.TORCH},
            distributions=tuple(_from_row(Distribution, row) for row in matrix.DISTRIBUTIONS),
            package_sets={row["name"]: row for row in matrix.PACKAGE_SETS},
            keys={row["fingerprint"]: row for row in matrix.SIGNING_KEYS},
            pci=matrix.PCI,
            tokenizers=matrix.TOKENIZERS,
            needs=matrix.ENVIRONMENT_NEEDS,
            repository_architectures=matrix.REPOSITORY_ARCHITECTURES,
            nvidia_base_url=matrix.DEFAULTS["nvidia_repository_base_url"],
        )

    def model(self, device_id: str | None, name: str | None) -> Model | None:
        """Find the exception that a GPU is, by its device id, else by the name that the driver gives it."""
        plain = (name or "").replace("NVIDIA ", "", 1)
        for model in self.models:
            if device_id in model.ids:
                return model
        return next((model for model in self.models if device_id is None and plain == model.name), None)

    def distribution(self, os_id: str, version_id: str) -> Distribution | None:
        """Find a distribution release; of a version only what the row names counts (9.4 is 9, 22.04 is 22.04)."""
        for row in self.distributions:
            if os_id in row.os_ids and (version_id == row.version or version_id.startswith(row.version + ".")):
                return row
        return None


def _release(row: Row) -> Release:
    indexes = {
        tag: Index(
            tag=tag,
            cuda=str(cuda_version(tag)),
            architectures={arch: tuple(index[arch].split()) if index[arch] else None for arch in ("x86_64", "aarch64")},
            ptx=index["ptx"],
            confidence=index["confidence"],
        )
        for tag, index in row["indexes"].items()
    }
    return Release(
        version=row["version"],
        python=row["python"],
        companions={name: row[name] for name in ("torchvision", "torchaudio")},
        pypi=row["pypi"],
        indexes=indexes,
    )


@dataclass(frozen=True)
class Refusal:
    """Why a host cannot have what is asked, and what to do about it."""

    code: str
    reason: str
    remedy: str
    gpu: str | None = None

    def as_dict(self) -> dict[str, t.Any]:
        return {"code": self.code, "gpu": self.gpu, "reason": self.reason, "remedy": self.remedy}


@dataclass(frozen=True)
class Action:
    """One thing to do on a host."""

    id: str
    step: str
    what: str
    why: str
    data: Row
    disruptive: bool = False

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "id": self.id,
            "step": self.step,
            "what": self.what,
            "why": self.why,
            "disruptive": self.disruptive,
            "data": dict(self.data),
        }


@dataclass(frozen=True)
class ManagedFile:
    """A file whose whole content is ours."""

    path: str
    content: str
    mode: str = "0644"
    owner: str = "root"
    group: str = "root"

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "path": self.path,
            "mode": self.mode,
            "owner": self.owner,
            "group": self.group,
            "content": self.content,
        }
