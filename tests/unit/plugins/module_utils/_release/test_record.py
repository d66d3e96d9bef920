from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import record

EMPTY = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
HELLO = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"  # sha256 of "hello"


def write(packages: Path, info: str, lines: list[str]) -> None:
    (packages / info).mkdir()
    (packages / info / "RECORD").write_text("\n".join([*lines, f"{info}/RECORD,,"]) + "\n")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    directory = tmp_path / "lib" / "python3.11" / "site-packages"
    directory.mkdir(parents=True)
    (tmp_path / "lib64").symlink_to("lib")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_text("hello")
    (directory / "a.py").write_text("hello")
    write(directory, "a-1.0.dist-info", [f"a.py,sha256={HELLO},5", f"../../../bin/tool,sha256={HELLO},5"])
    return directory


def found(packages: Path, hashes: bool = False) -> list[str]:
    return record.problems(str(packages.parents[2]), hashes)


@pytest.mark.parametrize("hashes", [False, True])
def test_an_intact_environment_has_no_problem(packages: Path, hashes: bool) -> None:
    assert found(packages, hashes) == []


def test_a_missing_file_is_named(packages: Path) -> None:
    (packages / "a.py").unlink()
    assert found(packages) == ["lib/python3.11/site-packages/a.py is missing"]


def test_a_script_outside_site_packages_is_compared_too(packages: Path) -> None:
    (packages.parents[2] / "bin" / "tool").write_text("hell")
    assert found(packages) == ["bin/tool has 4 bytes instead of 5"]


def test_other_contents_of_the_same_size_are_seen_with_hashes(packages: Path) -> None:
    (packages / "a.py").write_text("HELLO")
    assert found(packages) == []
    assert found(packages, hashes=True) == ["lib/python3.11/site-packages/a.py has other contents than its wheel"]


def test_a_link_in_place_of_a_file_is_a_problem(packages: Path) -> None:
    (packages / "a.py").unlink()
    (packages / "a.py").symlink_to("/etc/hosts")
    assert found(packages) == ["lib/python3.11/site-packages/a.py is no regular file"]


def test_a_missing_record_is_a_problem(packages: Path) -> None:
    (packages / "a-1.0.dist-info" / "RECORD").unlink()
    assert len(found(packages)) == 1
    assert "RECORD cannot be read" in found(packages)[0]


def test_a_record_that_leads_out_of_the_environment_is_a_problem(packages: Path) -> None:
    write(packages, "b-1.0.dist-info", ["../../../../etc/passwd,,", "/etc/passwd,,"])
    assert [problem for problem in found(packages) if "outside" in problem] == found(packages)
    assert len(found(packages)) == 2


def test_an_environment_without_distributions_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    assert record.problems(str(tmp_path), False) == ["no distribution is installed"]


def test_a_file_of_two_distributions_has_to_match_one_of_them(packages: Path) -> None:
    (packages / "shared.py").write_text("")
    write(packages, "b-1.0.dist-info", [f"shared.py,sha256={HELLO},5"])
    write(packages, "c-1.0.dist-info", [f"shared.py,sha256={EMPTY},0"])
    assert found(packages, hashes=True) == []
    (packages / "shared.py").write_text("hi")
    assert found(packages, hashes=True) == ["lib/python3.11/site-packages/shared.py has 2 bytes instead of 5"]


def test_distributions_are_named_in_normal_form(packages: Path) -> None:
    write(packages, "nvidia_cublas_cu12-12.8.4.1.dist-info", [])
    assert record.distributions(str(packages)) == {"a": "1.0", "nvidia-cublas-cu12": "12.8.4.1"}
