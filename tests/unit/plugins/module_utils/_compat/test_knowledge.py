# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The knowledge base agrees with itself, and every row says where it is from."""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path
from typing import Any, Iterator

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import matrix, pci_ids
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Knowledge,
    at_least,
    cuda_version,
    sm_of,
    version_key,
)

KNOWLEDGE = Knowledge.of(matrix)
REPOSITORY = Path(__file__).resolve().parents[5]
TABLES = {
    name: getattr(matrix, name)
    for name in (
        "ARCHITECTURES",
        "MODELS",
        "DRIVER_BRANCHES",
        "CUDA",
        "TORCH",
        "PACKAGE_SETS",
        "DISTRIBUTIONS",
        "SIGNING_KEYS",
    )
}
SINGLES = ("DEFAULTS", "SASS", "PCI", "TOKENIZERS", "ENVIRONMENT_NEEDS")


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, table in TABLES.items():
        for row in table:
            yield name, row
    for name in SINGLES:
        yield name, getattr(matrix, name)
    for release in matrix.TORCH:
        for tag, index in release["indexes"].items():
            yield f"TORCH {release['version']} {tag}", index


def test_the_matrix_holds_literals_and_nothing_else() -> None:
    tree = ast.parse(Path(str(matrix.__file__)).read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            ast.literal_eval(statement.value or statement)
        else:
            assert isinstance(statement, (ast.Expr, ast.ImportFrom)), ast.dump(statement)
            assert not isinstance(statement, ast.ImportFrom) or statement.module == "__future__"


def test_every_row_names_sources_that_exist_and_every_source_is_used() -> None:
    used = {"cuda-h", "nvidia-smi-man"}  # of the tables of plain numbers
    for name, row in rows():
        assert row["source"], name
        assert set(row["source"]) <= set(matrix.SOURCES), (name, row["source"])
        used.update(row["source"])
    assert used == set(matrix.SOURCES)


def test_every_row_says_how_sure_it_is() -> None:
    for name, row in rows():
        if name != "DEFAULTS":
            assert re.match(r"(high|medium|low)\b", row["confidence"]), (name, row)


def test_keys_of_rows_are_the_same_within_a_table() -> None:
    for name, table in TABLES.items():
        assert len({frozenset(row) for row in table}) == 1, name


@pytest.mark.parametrize(
    ("table", "key", "count"),
    [
        ("ARCHITECTURES", "cc", 17),
        ("DRIVER_BRANCHES", "branch", 14),
        ("CUDA", "version", 16),
        ("TORCH", "version", 14),
        ("SIGNING_KEYS", "fingerprint", 8),
        ("DISTRIBUTIONS", "repository", 14),
        ("MODELS", "name", 13),
        ("PACKAGE_SETS", "name", 9),
    ],
)
def test_no_row_is_lost_or_there_twice(table: str, key: str, count: int) -> None:
    keys = [row[key] for row in TABLES[table]]
    assert len(keys) == len(set(keys)) == count


def test_651_gpus_are_known_each_with_the_compute_capability_of_its_architecture() -> None:
    lines = pci_ids.GPUS.splitlines()
    assert len(lines) == 651
    chips = {chip: row["cc"] for row in matrix.ARCHITECTURES for chip in row["chips"]}
    for line in lines:
        device_id, chip, name = line.split(" ", 2)
        assert re.fullmatch(r"[0-9a-f]{4}", device_id)
        found = pci_ids.lookup(device_id)
        assert found == pci_ids.PciGpu(chip, pci_ids.CHIPS[chip], name)
        assert pci_ids.CHIPS[chip] == chips.get(chip), line
    assert [line[:4] for line in lines] == sorted({line[:4] for line in lines})
    assert {chip for chip, cc in pci_ids.CHIPS.items() if cc is None} == {"GB120"}


@pytest.mark.parametrize("device_id", ["", "0", "0fff", "ffff", "2F04", " 2f0", "1340 ", "GM10", "12f04"])
def test_an_id_that_is_not_in_the_table_is_not_found(device_id: str) -> None:
    assert pci_ids.lookup(device_id) is None


def test_names_of_architectures_are_the_same_in_both_files() -> None:
    assert {row["cc"]: row["name"] for row in matrix.ARCHITECTURES} == pci_ids.ARCHITECTURES


def test_ids_from_the_cutoffs_on_are_what_the_cutoffs_say() -> None:
    for line in pci_ids.GPUS.splitlines():
        number, cc = int(line[:4], 16), pci_ids.CHIPS[line.split(" ")[1]]
        assert number >= matrix.PCI["first_supported"]
        if cc is not None:
            assert (number >= matrix.PCI["first_turing"]) == at_least(cc, "7.5"), line
            assert (number < matrix.PCI["first_turing"]) == (KNOWLEDGE.architectures[cc].modules == "proprietary"), line


@pytest.mark.parametrize(
    ("name", "minimum"),
    [
        ("GeForce RTX 5090", "570.86.16"),
        ("GeForce RTX 5080", "570.86.16"),
        ("GeForce RTX 5070 Ti", "570.124.04"),
        ("GeForce RTX 5070", "570.133.07"),
        ("RTX PRO 6000 Blackwell Workstation Edition", "570.133.07"),
        ("GeForce RTX 5060 Ti", "570.148.08"),
        ("GeForce RTX 5060", "570.158.01"),
        ("RTX PRO 6000 Blackwell Server Edition", "575.57.08"),
        ("GeForce RTX 5050", "575.64.03"),
        ("GB10", "580.119.02"),
        ("HGX GB200", "570.124.04"),
        ("B300 SXM6 AC", "580.82.07"),
    ],
)
def test_models_need_the_driver_that_first_lists_them(name: str, minimum: str) -> None:
    model = next(row for row in matrix.MODELS if row["name"] == name)
    assert model["first_driver"] == minimum
    named = {line[:4] for line in pci_ids.GPUS.splitlines() if line.split(" ", 2)[2] == name}
    assert named == set(model["ids"])
    for device_id in model["ids"]:
        architecture = KNOWLEDGE.architectures[str(pci_ids.CHIPS[pci_ids.lookup(device_id).chip])]
        assert at_least(minimum, str(architecture.first_driver))


def test_sm_names_follow_from_compute_capabilities() -> None:
    for row in matrix.ARCHITECTURES:
        assert row["sm"] == sm_of(row["cc"])


def test_every_index_has_a_cuda_row_and_known_architectures() -> None:
    for release in KNOWLEDGE.releases.values():
        for tag, index in release.indexes.items():
            assert cuda_version(tag) in KNOWLEDGE.cuda_floors, tag
            for arch, architectures in index.architectures.items():
                assert arch in ("x86_64", "aarch64")
                assert architectures is None or set(architectures) <= set(KNOWLEDGE.architectures)
                assert architectures is None or list(architectures) == sorted(architectures, key=version_key)


def test_floors_of_a_cuda_major_version_are_one() -> None:
    floors = {(version_key(row["version"])[0], row["floor"]) for row in matrix.CUDA}
    assert floors == {(11, "450.80.02"), (12, "525.60.13"), (13, "580.65.06")}


def test_torch_rows_are_in_order_with_companions_and_pythons_that_parse() -> None:
    versions = [row["version"] for row in matrix.TORCH]
    assert versions == sorted(versions, key=version_key)
    for row in matrix.TORCH:
        assert re.fullmatch(r"0\.\d+\.\d+", row["torchvision"])
        assert re.fullmatch(r"2\.\d+\.\d+", row["torchaudio"])
        first, last = row["python"]
        assert version_key(first) < version_key(last)
        assert set(row["pypi"]) == {"x86_64", "aarch64"}
        assert row["pypi"]["x86_64"] in row["indexes"]
        assert row["pypi"]["aarch64"] == "cpu" or row["pypi"]["aarch64"] in row["indexes"]


def test_torchaudio_has_the_number_of_torch_until_its_last_release() -> None:
    for row in matrix.TORCH:
        expected = row["version"] if version_key(row["version"]) < (2, 11) else "2.11.0"
        assert row["torchaudio"] == expected


@pytest.mark.parametrize(
    ("tag", "present"),
    [
        ("cu118", ["2.4.1", "2.5.1", "2.6.0", "2.7.0", "2.7.1"]),
        ("cu121", ["2.4.1", "2.5.1"]),
        ("cu128", ["2.7.0", "2.7.1", "2.8.0", "2.9.0", "2.9.1", "2.10.0", "2.11.0"]),
        ("cu132", ["2.12.1", "2.13.0", "2.14.1", "2.15.0"]),
    ],
)
def test_indexes_exist_for_the_releases_that_have_them(tag: str, present: list[str]) -> None:
    assert [version for version, release in KNOWLEDGE.releases.items() if tag in release.indexes] == present


def test_only_cu126_and_older_tags_have_code_for_maxwell_and_pascal() -> None:
    for release in KNOWLEDGE.releases.values():
        for tag, index in release.indexes.items():
            assert ("6.0" in (index.architectures["x86_64"] or ())) == (int(tag[2:]) <= 126)


def test_the_default_is_a_row_of_its_own_table() -> None:
    release = KNOWLEDGE.releases[matrix.DEFAULTS["torch"]]
    assert matrix.DEFAULTS["cuda"] in release.indexes
    assert release.companions == {"torchvision": "0.24.1", "torchaudio": "2.9.1"}
    assert KNOWLEDGE.branches[matrix.DEFAULTS["driver_branch"]].status == "supported"


def test_distributions_name_keys_and_package_sets_that_exist() -> None:
    for row in KNOWLEDGE.distributions:
        assert row.key in KNOWLEDGE.keys
        assert row.repository in KNOWLEDGE.keys[row.key]["repositories"]
        assert all(
            name in KNOWLEDGE.package_sets for name in (*row.sets, *([row.native_sets] if row.native_sets else []))
        )
        assert KNOWLEDGE.package_sets[row.sets[-1]]["until"] is None
        assert row.python is None or row.python_packages.get(row.python, "python3") == "python3"


def test_supported_distributions_are_there_and_installable_ones_have_a_key_that_is_shipped() -> None:
    names = {row.repository for row in KNOWLEDGE.distributions}
    assert {"debian12", "debian13", "ubuntu2204", "ubuntu2404", "ubuntu2604", "rhel9", "rhel10"} <= names
    installable = {row.repository for row in KNOWLEDGE.distributions if row.installs}
    assert installable == {"debian12", "debian13", "ubuntu2204", "ubuntu2404", "ubuntu2604", "rhel9", "rhel10"}


def test_keys_that_are_shipped_are_those_of_the_rows() -> None:
    rows = [row for row in KNOWLEDGE.keys.values() if row["file"]]
    assert len(rows) == 2
    for key in rows:
        shipped = REPOSITORY / "roles" / "nvidia_driver" / "files" / key["file"]
        assert hashlib.sha256(shipped.read_bytes()).hexdigest() == key["sha256"]


def test_packages_of_a_set_are_among_the_names_of_their_source() -> None:
    for row in matrix.PACKAGE_SETS:
        planned = {name for kind in ("desktop", "compute") for flavor in row[kind] for name in row[kind][flavor]}
        metapackages = re.compile(r"(?:nvidia-open|cuda-drivers)(?:-|$)")
        assert not row["names"] or {name for name in planned if not metapackages.match(name)} <= set(row["names"]), row[
            "name"
        ]


@pytest.mark.parametrize(
    ("os_id", "version_id", "repository"),
    [
        ("debian", "12", "debian12"),
        ("debian", "12.9", "debian12"),
        ("rocky", "9.4", "rhel9"),
        ("almalinux", "10.0", "rhel10"),
        ("ubuntu", "24.04", "ubuntu2404"),
        ("opensuse-leap", "15.6", "opensuse15"),
        ("debian", "1", None),
        ("debian", "120", None),
        ("debian", "", None),
        ("gentoo", "2", None),
    ],
)
def test_a_distribution_is_found_by_id_and_version(os_id: str, version_id: str, repository: str | None) -> None:
    found = KNOWLEDGE.distribution(os_id, version_id)
    assert (found.repository if found else None) == repository


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [
        ("570.133.07", "570.86.16", True),
        ("570.86.16", "570.133.07", False),
        ("580", "570.133.07", True),
        ("550", "550", True),
        ("550.54.14", "550", True),
        ("550", "550.54.14", False),
        ("2.10.0", "2.9.1", True),
        ("3.10", "3.9", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, minimum: str, expected: bool) -> None:
    assert at_least(version, minimum) is expected
