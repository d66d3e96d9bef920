"""What others installed: recognised by reading, within bounds, whatever a user put into a home."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import foreign
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe

ROOT = "/opt/gpufleet/envs"
SITE = "lib/python3.11/site-packages"
VERSION = "from typing import Optional\n__version__ = '{0}'\ncuda: Optional[str] = {1!r}\n"


def torch(tree, site, version="2.6.0+cu124", cuda="12.4"):
    return tree.file(f"{site}/torch/version.py", VERSION.format(version, cuda))


def venv(tree, path, **build):
    tree.file(f"{path}/pyvenv.cfg", "home = /usr/bin\n").link(f"{path}/bin/python", "/usr/bin/python3")
    return torch(tree, f"{path}/{SITE}", **build)


def look(tree, wanted=("base",), pid=0):
    return foreign.observe(tree.host(), ROOT, list(wanted), pid)


def found(tree, **more):
    seen = look(tree, **more)
    assert seen["unknown"] == []
    return [(row["kind"], row["path"], (row["torch"] or {}).get("version")) for row in seen["found"]]


def test_a_plain_host_has_nothing(debian):
    assert look(debian) == {"found": [], "unknown": []}


@pytest.mark.parametrize("place", ["/home/ann/venv", "/home/ann/torch-env", "/root/.venv", "/opt/pytorch"])
def test_a_virtual_environment_as_the_guide_makes_it_is_found_with_its_torch(debian, place):
    venv(debian, place, version="2.9.1+cpu", cuda=None)
    (row,) = look(debian)["found"]
    assert row == {
        "kind": "venv",
        "path": place,
        "what": "a virtual environment",
        "torch": {"version": "2.9.1+cpu", "cuda": None},
    }


def test_a_virtual_environment_without_torch_is_nobodys_business(debian):
    debian.file("/home/ann/venv/pyvenv.cfg", "home = /usr/bin\n").file(f"/home/ann/venv/{SITE}/six.py")
    assert found(debian) == []


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        ("/usr/lib/python3/dist-packages", "system"),
        ("/usr/lib64/python3.9/site-packages", "system"),
        ("/usr/local/lib/python3.11/dist-packages", "system"),
        ("/home/ann/.local/lib/python3.11/site-packages", "user"),
        ("/root/.local/lib/python3.11/site-packages", "user"),
    ],
)
def test_a_torch_that_pip_installed_outside_of_environments_is_found(debian, site, kind):
    torch(debian, site)
    assert found(debian) == [(kind, site, "2.6.0+cu124")]


def test_conda_and_its_environments_are_found(debian):
    debian.file("/opt/miniconda3/conda-meta/history").file("/home/ann/miniforge3/conda-meta/history")
    torch(debian, f"/home/ann/miniforge3/envs/train/{SITE}")
    assert found(debian) == [
        ("conda", "/opt/miniconda3", None),
        ("conda", "/home/ann/miniforge3", None),
        ("conda", "/home/ann/miniforge3/envs/train", "2.6.0+cu124"),
    ]


@pytest.mark.parametrize(
    ("path", "line", "what"),
    [
        ("/etc/environment", "PYTHONPATH=/srv/old", "PYTHONPATH=/srv/old"),
        ("/etc/environment", 'PYTHONPATH="/a:/b"', "PYTHONPATH=/a:/b"),
        ("/etc/profile.d/lab.sh", "export PYTHONPATH=/srv/old:$PYTHONPATH", "PYTHONPATH=/srv/old:$PYTHONPATH"),
        ("/etc/profile.d/lab.sh", "[ -d /x ] && export PYTHONHOME=/x", "PYTHONHOME=/x"),
        ("/home/ann/.bashrc", "  declare -x PYTHONPATH='/srv/old'; true", "PYTHONPATH=/srv/old"),
        ("/home/ann/.config/fish/config.fish", "set -gx PYTHONPATH /srv/old", "PYTHONPATH=/srv/old"),
    ],
)
def test_a_search_path_that_a_profile_sets_is_found(debian, path, line, what):
    (row,) = look(debian.file(path, f"# x\n{line}\n"))["found"]
    assert (row["kind"], row["path"], row["what"], row["torch"]) == ("search_path", path, what, None)


@pytest.mark.parametrize(
    "line",
    [
        "# export PYTHONPATH=/x",
        "PYTHONPATH=",
        'export PYTHONPATH=""',
        "unset PYTHONPATH",
        "set -e PYTHONPATH",
        "PYTHONPATH=/x python3 tool.py",
        "MY_PYTHONPATH=/x",
        'if [ -z "$PYTHONPATH" ]; then',
        "alias conda=true",
    ],
)
def test_what_sets_no_search_path_is_not_taken_for_one(debian, line):
    assert found(debian.file("/etc/profile.d/lab.sh", f"{line}\n")) == []


def test_the_torch_on_a_search_path_is_named(debian):
    torch(debian, "/srv/old")
    debian.file("/etc/environment", "PYTHONPATH=relative:/srv/none:/srv/old\n")
    assert found(debian) == [("search_path", "/etc/environment", "2.6.0+cu124")]


def test_our_own_lines_are_not_foreign(debian):
    debian.file("/etc/environment", "# BEGIN gpufleet.workstation\nPYTHONPATH=/srv/x\n# END gpufleet.workstation\n")
    debian.file("/etc/profile.d/gpufleet.sh", "export PYTHONPATH=/srv/x\n")
    assert found(debian) == []


def test_the_session_that_became_root_is_looked_at(debian):
    for pid, parent, environ in (
        (40, 30, "PATH=/usr/bin\0"),
        (30, 20, "PYTHONPATH=/srv/old\0CONDA_PREFIX=/opt/conda\0TOKEN=secret\0"),
        (20, 1, "PYTHONPATH=/other\0"),
    ):
        debian.file(f"/proc/{pid}/stat", f"{pid} (a (b) c) S {parent} 1 1 0\n").file(f"/proc/{pid}/environ", environ)
    rows = look(debian, pid=40)["found"]
    assert [(row["kind"], row["what"]) for row in rows] == [
        ("search_path", "PYTHONPATH=/srv/old"),
        ("conda_path", "conda's environment /opt/conda"),
    ]
    assert "secret" not in str(rows)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/profile.d/conda.sh", "\n# >>> conda initialize >>>\n"),
        ("/home/ann/.bashrc", "# >>> conda initialize >>>\n# <<<\n"),
        ("/home/ann/.zshrc", "export PATH=$HOME/miniconda3/bin:$PATH\n"),
        ("/home/ann/.bashrc", '. "/opt/conda/etc/profile.d/conda.sh"\n'),
    ],
)
def test_conda_on_the_path_is_found(debian, path, text):
    assert found(debian.file(path, text)) == [("conda_path", path, None)]


@pytest.mark.parametrize("path", ["/etc/pip.conf", "/home/ann/.config/pip/pip.conf", "/root/.pip/pip.conf"])
def test_a_second_index_of_pip_is_found_without_its_password(debian, path):
    debian.file(path, "[global]\nindex-url = https://a.example/\nextra_index_url =\n  https://u:pw@b.example/simple\n")
    (row,) = look(debian)["found"]
    assert row == {
        "kind": "index",
        "path": path,
        "what": "extra_index_url = https://b.example/simple",
        "torch": None,
    }


def test_a_second_index_in_a_variable_is_found(debian):
    debian.file("/etc/environment", "PIP_EXTRA_INDEX_URL=https://u:pw@b.example/simple\n")
    (row,) = look(debian)["found"]
    assert (row["kind"], row["what"]) == ("index", "PIP_EXTRA_INDEX_URL=https://b.example/simple")


def test_a_garbled_pip_configuration_is_said(debian):
    seen = look(debian.file("/etc/pip.conf", "extra-index-url = https://b.example\n"))
    assert [entry["what"] for entry in seen["unknown"]] == ["foreign[/etc/pip.conf]"]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda tree: venv(tree, f"{ROOT}/base"), "a virtual environment"),
        (lambda tree: tree.file(f"{ROOT}/base/data/x"), "a directory with files of somebody else"),
        (lambda tree: tree.link(f"{ROOT}/base", "/srv"), "a link"),
        (lambda tree: tree.file(f"{ROOT}/base", ""), "a file"),
    ],
)
def test_what_lies_in_the_place_of_an_environment_is_told(debian, make, what):
    rows = look(make(debian))["found"]
    assert [(row["kind"], row["path"], row["what"]) for row in rows] == [("taken", f"{ROOT}/base", what)]
    assert look(debian, wanted=["other"])["found"] == []


def test_links_in_a_home_lead_nowhere(debian):
    venv(debian, "/srv/real")
    debian.link("/home/ann/venv", "/srv/real").file("/home/bob/venv/pyvenv.cfg").link(
        "/home/bob/venv/lib", "/srv/real/lib"
    )
    debian.file("/srv/secret", "PYTHONPATH=/secret\n").link("/home/ann/.bashrc", "/srv/secret")
    assert found(debian) == []


def test_fifos_devices_and_endless_files_hold_nobody(debian):
    debian.folder("/home/ann/venv").folder(f"/home/bob/venv/{SITE}/torch").file("/home/bob/venv/pyvenv.cfg")
    for path in ("/home/ann/.bashrc", "/home/ann/venv/pyvenv.cfg", f"/home/bob/venv/{SITE}/torch/version.py"):
        os.mkfifo(debian.path(path))
    with open(debian.path("/home/bob") / ".bashrc", "wb") as file:
        file.truncate(1 << 34)
    started = time.monotonic()
    assert found(debian) == []
    assert time.monotonic() - started < 1


def test_many_homes_cost_little_and_the_rest_is_said(debian):
    for number in range(105):
        venv(debian, f"/home/user{number:03}/venv")
    started = time.monotonic()
    seen = look(debian)
    assert time.monotonic() - started < 2
    assert len(seen["found"]) == 60
    assert [entry["why"] for entry in seen["unknown"]] == [
        "of 105 folders in /home only the first 100 were looked at",
        "100 things were found; the first 60 are listed",
    ]


def test_nothing_is_written_or_executed(debian):
    venv(debian, "/home/ann/venv")
    trap = debian.path("/home/ann/venv/bin/activate")
    trap.write_text("#!/bin/sh\ntouch ran\n")
    before = {path: path.lstat().st_mtime for path in debian.root.rglob("*")}
    look(debian)
    assert {path: path.lstat().st_mtime for path in debian.root.rglob("*")} == before
    assert debian.asked == []


def test_the_observation_holds_it(debian):
    venv(debian, "/home/ann/torch-env")
    (row,) = [row for row in observe(debian.host(), Request())["foreign"] if row["kind"] == "venv"]
    assert row["path"] == "/home/ann/torch-env"


def test_a_home_that_hangs_costs_the_limit_and_the_rest_is_observed(debian, monkeypatch):
    monkeypatch.setattr(foreign, "observe", lambda *_arguments: time.sleep(60))
    started = time.monotonic()
    seen = observe(debian.host(), Request(time_limit=1))
    assert time.monotonic() - started < 3
    assert seen["foreign"] is None
    assert [entry["what"] for entry in seen["unknown"]] == ["foreign"]
