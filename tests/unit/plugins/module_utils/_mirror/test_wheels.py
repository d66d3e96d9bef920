# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which file of a lock fits a platform, and pages of indexes, read and written."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror import wheels
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.wheels import (
    Link,
    MirrorError,
    Stored,
    Wanted,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, tool

A, B = "a" * 64, "b" * 64


def wanted(*hashes: str, project: str = "numpy", version: str = "2.4.6", python: str = "3.11") -> Wanted:
    return Wanted(wheels.PACKAGE_INDEX, project, version, python, "x86_64", hashes)


def locked(torch: str = "2.9.1+cu128", arch: str = "x86_64", python: str = "3.11") -> lock.Lock:
    packages = (
        lock.Pinned("torch", torch, (A,), True),
        lock.Pinned("nvidia-nvtx-cu12", "12.8", (B,), True),
        lock.Pinned("numpy", "2.4.6", (B,)),
    )
    return lock.Lock({"name": "base", "python": python, "arch": arch, "torch": torch}, packages)


@pytest.mark.parametrize(
    ("file", "fits"),
    [
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", True),
        ("numpy-2.4.6-cp311-cp311-manylinux2014_x86_64.whl", True),
        ("numpy-2.4.6-1build-cp311-cp311-linux_x86_64.whl", True),
        ("numpy-2.4.6-cp38-abi3-manylinux1_x86_64.whl", True),
        ("numpy-2.4.6-py2.py3-none-any.whl", True),
        ("numpy-2.4.6-py310-none-any.whl", True),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_34_x86_64.whl", False),
        ("numpy-2.4.6-cp312-abi3-manylinux_2_28_x86_64.whl", False),
        ("numpy-2.4.6-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_28_aarch64.whl", False),
        ("numpy-2.4.6-cp311-cp311t-manylinux_2_28_x86_64.whl", False),
        ("numpy-2.4.6-cp311-cp311-win_amd64.whl", False),
        ("numpy-2.4.6-py2-none-any.whl", False),
        ("numpy-2.4.6.whl", False),
        ("../numpy-2.4.6-py3-none-any.whl", False),
    ],
)
def test_a_wheel_fits_where_an_installer_would_take_it(file: str, fits: bool) -> None:
    assert (wheels.rank(file, "3.11", "x86_64") is not None) == fits


def test_the_most_special_wheel_is_the_best() -> None:
    best_first = [
        "p-1-cp311-cp311-manylinux_2_28_x86_64.whl",
        "p-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "p-1-cp311-cp311-manylinux_2_5_x86_64.whl",
        "p-1-cp311-abi3-manylinux_2_28_x86_64.whl",
        "p-1-cp310-abi3-manylinux_2_28_x86_64.whl",
        "p-1-py3-none-manylinux_2_28_x86_64.whl",
        "p-1-py3-none-any.whl",
    ]
    ranks = [wheels.rank(file, "3.11", "x86_64") for file in best_first]
    assert None not in ranks
    assert ranks == sorted(ranks)  # type: ignore[type-var]
    assert len(set(ranks)) == len(ranks)


def test_an_installer_agrees_on_what_fits_and_on_the_order() -> None:
    tags = pytest.importorskip("packaging.tags")
    platforms = [name for name in wheels._platforms("x86_64") if name != "any"]
    theirs = [
        *tags.cpython_tags((3, 11), ["cp311"], platforms),
        *(
            tag
            for tag in tags.compatible_tags((3, 11), "cp311", platforms)
            if not str(tag).startswith("cp311-none-any")
        ),
    ]
    ours = [f"p-1-{tag}.whl" for tag in theirs]
    assert all(wheels.rank(file, "3.11", "x86_64") is not None for file in ours)
    native = [file for file in ours if "-cp3" in file]
    assert sorted(native, key=lambda file: wheels.rank(file, "3.11", "x86_64") or ()) == native


def test_only_a_hash_of_the_lock_is_taken() -> None:
    file = "numpy-2.4.6-py3-none-any.whl"
    assert wanted(A).rank(Link(file, "", A)) is not None
    assert wanted(A).rank(Link(file, "", B)) is None
    assert wanted(A, project="other").rank(Link(file, "", A)) is None


def test_an_announced_hash_is_preferred_and_without_one_the_version_has_to_be_right() -> None:
    announced = wanted(A).rank(Link("numpy-2.4.6-py3-none-any.whl", "", A))
    silent = wanted(A).rank(Link("numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl", "", None))
    assert announced is not None
    assert silent is not None
    assert announced < silent
    assert wanted(A).rank(Link("numpy-2.4.7-py3-none-any.whl", "", None)) is None


def test_a_lock_wants_torchs_family_from_the_torch_index_and_uv_beside_everything_else() -> None:
    found = {(item.index, item.project) for item in wheels.wanted([locked()])}
    assert found == {
        ("whl/cu128", "torch"),
        ("whl/cu128", "nvidia-nvtx-cu12"),
        ("packages/simple", "numpy"),
        ("packages/simple", "uv"),
    }
    uv = next(item for item in wheels.wanted([locked()]) if item.project == "uv")
    assert uv.rank(Link(tool.WHEELS["x86_64"].file, "", tool.WHEELS["x86_64"].sha256)) is not None


def test_two_locks_of_one_platform_want_everything_once() -> None:
    assert len(wheels.wanted([locked(), locked()])) == 4
    assert len(wheels.wanted([locked(), locked(python="3.13")])) == 8


@pytest.mark.parametrize(
    ("torch", "arch"), [("2.9.1", "x86_64"), ("2.9.1+../..", "x86_64"), ("2.9.1+cu128", "riscv64")]
)
def test_a_lock_that_belongs_to_no_index_is_refused(torch: str, arch: str) -> None:
    with pytest.raises(MirrorError, match="no index is known"):
        wheels.wanted([locked(torch, arch)])


def test_an_html_page_is_read_relative_to_its_address() -> None:
    text = f'<a href="../../p-1-py3-none-any.whl#sha256={A}">x</a><a href="/w/t-2.9.1%2Bcu128-py3-none-any.whl">t</a>'
    text += '<a href="p.tar.gz">s</a>'
    found = wheels.read_page(text, "text/html", "https://index.example/whl/cu128/p/")
    assert found == [
        Link("p-1-py3-none-any.whl", "https://index.example/whl/p-1-py3-none-any.whl", A),
        Link("t-2.9.1+cu128-py3-none-any.whl", "https://index.example/w/t-2.9.1%2Bcu128-py3-none-any.whl", None),
    ]


def test_a_base_of_the_page_counts() -> None:
    text = '<base href="https://files.example/"><a href="p-1-py3-none-any.whl">x</a>'
    assert (
        wheels.read_page(text, "text/html", "https://index.example/p/")[0].url
        == "https://files.example/p-1-py3-none-any.whl"
    )


def test_a_json_page_is_read() -> None:
    files = [{"url": "../p-1-py3-none-any.whl", "filename": "p-1-py3-none-any.whl", "hashes": {"sha256": A}}]
    found = wheels.read_page(
        json.dumps({"files": files}), "application/vnd.pypi.simple.v1+json", "https://i.example/simple/p/"
    )
    assert found == [Link("p-1-py3-none-any.whl", "https://i.example/simple/p-1-py3-none-any.whl", A)]


@pytest.mark.parametrize("text", ["", "[]", '{"files": [{}]}', '{"files": 1}'])
def test_what_is_no_json_page_is_refused(text: str) -> None:
    with pytest.raises(MirrorError, match="no page of a project"):
        wheels.read_page(text, "application/vnd.pypi.simple.v1+json", "https://i.example/")


@pytest.mark.parametrize(
    "name", ["../../etc/p-1-py3-none-any.whl", ".p-1-py3-none-any.whl", "p-1.whl/..", 'p"-1-py3-none-any.whl']
)
def test_names_that_would_leave_the_folder_are_not_taken(name: str) -> None:
    files = [{"url": "x", "filename": name, "hashes": {}}]
    assert wheels.read_page(json.dumps({"files": files}), "application/json", "https://i.example/") == []


def test_a_page_lists_each_wheel_with_its_hashes_and_is_read_again() -> None:
    stored = {Stored("torch-2.9.1+cu128-py3-none-any.whl", A), Stored("torch-2.9.0+cu128-py3-none-any.whl", B)}
    page = wheels.project_page("torch", stored, lambda item: item.sha256[::-1])
    assert (
        f'href="../../../files/{A}/torch-2.9.1%2Bcu128-py3-none-any.whl#sha256={A}" data-core-metadata="sha256={A}"'
        in page
    )
    found = wheels.read_page(page, "text/html", "https://mirror.example/whl/cu128/torch/")
    assert {Stored(link.file, link.sha256 or "") for link in found} == stored
    assert {link.url.partition("/files/")[0] for link in found} == {"https://mirror.example"}
