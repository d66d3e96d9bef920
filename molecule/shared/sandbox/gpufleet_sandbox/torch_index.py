# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The torch indexes that the fleet's server shows, laid out like download.pytorch.org/whl.

/real/cu128/      torch's own wheels and all that they need, with the tag in the version of torch's family
/stand-in/<tag>/  tiny wheels that are named as such
/packages/        everything that is not torch's family, and a few tiny packages for tests
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import wheels
from .machine import digest, install_packages
from .settings import SANDBOX, SandboxError, Settings, load_yaml
from .shell import fresh_folder, locked, run, say, step, write_if_changed

DOWNLOADS_AT_ONCE = 3
# pip takes wheels for exactly these platforms only, and torch's need them all.
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
REAL_MARKER = ".complete"


def build_index(settings: Settings, real: bool, stop: threading.Event) -> None:
    """Make the stand-ins, and where a host needs them, get torch's own wheels."""
    described = load_yaml("torch_index.yml")
    with locked(settings.cache / "index.lock"):
        build_stand_ins(settings, described)
        if real and not have_real(settings):
            with step("downloading torch's own wheels (5 GB)"):
                build_real(settings, described["real"], stop)
        build_packages_index(settings, described, stop)


def have_real(settings: Settings) -> bool:
    """Whether torch's own wheels are all there."""
    marker = settings.served / "real" / REAL_MARKER
    return marker.exists() and marker.read_text() == _version(load_yaml("torch_index.yml")["real"])


def _version(described: dict[str, Any]) -> str:
    return digest(json.dumps(described))


# -- torch's own wheels -----------------------------------------------------------------------------------------------


def find_pip(settings: Settings) -> list[str]:
    """A Python that has pip; Debian's is installed where there is none."""
    candidates = [str(settings.checkout / ".venv/bin/python"), sys.executable, "/usr/bin/python3"]
    for _ in range(2):
        for python in candidates:
            if os.path.exists(python) and "pip" in run(python, "-m", "pip", "--version", check=False):
                return [python, "-m", "pip"]
        install_packages("python3-pip")
    raise SandboxError("no Python with pip was found, and installing python3-pip gave none.")


def build_real(settings: Settings, described: dict[str, Any], stop: threading.Event) -> None:
    """Download what is missing, several at a time, and put each wheel into its place when it is complete."""
    pip = find_pip(settings)
    folder = settings.served / "real" / described["tag"]
    folder.mkdir(parents=True, exist_ok=True)
    fresh_folder(settings.cache / "downloads")
    pythons = described["pythons"]
    wanted = [(requirement, python) for requirement in described["per_python"] for python in pythons]
    wanted += [(requirement, pythons[-1]) for requirement in described["shared"]]
    # The largest first: torch, then what is shared, then the small ones.
    wanted.sort(key=lambda item: not item[0].startswith(("torch==", "nvidia-")))
    with ThreadPoolExecutor(max_workers=DOWNLOADS_AT_ONCE) as pool:
        jobs = [pool.submit(_fetch, settings, pip, folder, described, *item, stop) for item in wanted]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stop.set()
            raise
    if stop.is_set():
        return
    shutil.rmtree(settings.cache / "downloads")
    write_pages(folder, _listed(folder))
    write_if_changed(settings.served / "real" / REAL_MARKER, _version(described))


def _fetch(
    settings: Settings,
    pip: list[str],
    folder: Path,
    described: dict[str, Any],
    requirement: str,
    python: str,
    stop: threading.Event,
) -> None:
    """Get one wheel; nothing any more once another step of the fleet has failed."""
    if stop.is_set():
        return
    name, _, version = requirement.partition("==")
    tagged = f"{version}+{described['tag']}" if name in described["tagged"] else version
    if _present(folder, name, tagged, python):
        return
    into = fresh_folder(settings.cache / "downloads" / f"{name}-{python}")
    _download(pip, into, python, "--no-deps", requirement)
    wheel = next(into.glob("*.whl"))
    if tagged != version:
        wheel = wheels.retag(wheel, tagged)
    _publish(wheel, folder)
    shutil.rmtree(into)


def _download(pip: list[str], into: Path, python: str, *requirements: str) -> None:
    """Download wheels for one Python of the fleet."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    target = ["--only-binary=:all:", "--python-version", python, *platforms]
    # A constraint of the machine's own configuration is about other environments; its index is what we want.
    options = ["download", "--quiet", "--no-cache-dir", "--disable-pip-version-check", "--dest", str(into)]
    try:
        run(*pip, *options, *target, *requirements, env={"PIP_CONSTRAINT": "", "TMPDIR": str(into)})
    except SandboxError as error:
        raise SandboxError(
            f"{error}\nIs the Python package index of this machine reachable (pip download {requirements[-1]})?"
        ) from error


def _present(folder: Path, name: str, version: str, python: str) -> bool:
    """Whether an earlier run has put the wheel into its place."""
    plain = name.replace("-", "_")
    tag = f"cp{python.replace('.', '')}"
    for path in folder.glob(f"*-{version}-*.whl"):
        parts = path.name.split("-")
        if wheels.normalized(parts[0]) == wheels.normalized(plain) and (tag == parts[2] or parts[2].startswith("py")):
            return path.with_suffix(".whl.json").exists()
    return False


def _publish(wheel: Path, folder: Path) -> None:
    """Put a complete wheel into its place, what the index page needs beside it, that last."""
    metadata = wheels.wheel_metadata(wheel)
    found = re.search(r"^Requires-Python: (.*)$", metadata.decode(errors="replace"), re.MULTILINE)
    described = {
        "sha256": wheels.sha256_of(wheel),
        "metadata_sha256": hashlib.sha256(metadata).hexdigest(),
        "requires_python": found[1] if found else "",
    }
    (folder / f"{wheel.name}.metadata").write_bytes(metadata)
    size = wheel.stat().st_size
    wheel.replace(folder / wheel.name)
    write_if_changed(folder / f"{wheel.name}.json", json.dumps(described))
    if size > 50_000_000:
        say(f"{wheel.name} ({size // 1_000_000} MB)")


def _listed(folder: Path, url: str = "../") -> list[wheels.Listed]:
    """The wheels of a folder, as a page shows them."""
    return [
        wheels.Listed(url=url, file=path.name.removesuffix(".json"), **json.loads(path.read_text()))
        for path in sorted(folder.glob("*.whl.json"))
    ]


def write_pages(folder: Path, listed: list[wheels.Listed]) -> None:
    """The pages of an index: one a project, and the list."""
    projects = sorted({wheel.project for wheel in listed})
    for project in projects:
        page = wheels.project_page(project, [wheel for wheel in listed if wheel.project == project])
        write_if_changed(folder / project / "index.html", page)
    write_if_changed(folder / "index.html", wheels.root_page(projects))


# -- stand-ins --------------------------------------------------------------------------------------------------------


def stand_in_wheels(described: dict[str, Any], tag: str) -> dict[str, bytes]:
    """The tiny wheels of one index, by file name."""
    found = {}
    cuda = f"{tag[2:-1]}.{tag[-1]}"
    for release in described["releases"]:
        for project, version in release.items():
            root = SANDBOX / "stand_in"
            words = {"@VERSION@": f"{version}+{tag}", "@CUDA@": cuda, "@FLAGS@": described["tags"][tag]}
            files = {}
            for path in sorted((root / project).rglob("*.py")):
                text = path.read_text()
                for word, value in words.items():
                    text = text.replace(word, value)
                files[str(path.relative_to(root))] = text
            summary = f"SIMULATED stand-in for {project}, made by the gpufleet sandbox: it computes nothing on a GPU"
            requires = [] if project == "torch" else [f"torch=={release['torch']}"]
            for python in described["pythons"]:
                number = python.replace(".", "")
                name, data = wheels.make_wheel(
                    project,
                    f"{version}+{tag}",
                    f"cp{number}-cp{number}-manylinux_2_28_x86_64",
                    summary,
                    files,
                    requires,
                )
                found[name] = data
    return found


def build_stand_ins(settings: Settings, described: dict[str, Any]) -> None:
    """Write the stand-in indexes where they are not as these files describe them."""
    root = settings.served / "stand-in"
    for tag in described["stand_in"]["tags"]:
        _write_small(root / tag, stand_in_wheels(described["stand_in"], tag))
        write_pages(root / tag, _listed(root / tag))


def _write_small(folder: Path, made: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != data:
            new = fresh_folder(folder / ".new") / name
            new.write_bytes(data)
            _publish(new, folder)
            (folder / ".new").rmdir()


# -- everything else --------------------------------------------------------------------------------------------------


def extra_wheels(described: list[dict[str, Any]]) -> dict[str, bytes]:
    """Tiny packages for tests of further requirements."""
    found = {}
    for extra in described:
        module = extra["name"].replace("-", "_")
        for version in extra["versions"]:
            files = {f"{module}.py": f'"""A package of the gpufleet sandbox."""\n\n__version__ = "{version}"\n'}
            name, data = wheels.make_wheel(extra["name"], version, "py3-none-any", "A package for tests", files, [])
            found[name] = data
    return found


def pinned_uv(settings: Settings) -> str:
    """The uv of the collection, as a requirement."""
    path = str(settings.checkout / "collections")
    if path not in sys.path:
        sys.path.insert(0, path)
    from ansible_collections.gpufleet.workstation.plugins.module_utils._release import tool

    return f"uv=={tool.UV_VERSION}"


def build_packages_index(settings: Settings, described: dict[str, Any], stop: threading.Event) -> None:
    """The index for what is not torch: the extras, uv, and torch's ordinary dependencies where they were downloaded."""
    folder = settings.served / "packages"
    _write_small(folder, extra_wheels(described["extras"]))
    python = described["real"]["pythons"][-1]
    _fetch(settings, find_pip(settings), folder, described["real"], pinned_uv(settings), python, stop)
    tagged = set(described["real"]["tagged"])
    real = settings.served / "real" / described["real"]["tag"]
    if have_real(settings):
        _fetch_requirements(settings, folder, described["requirements"], described["real"]["pythons"])
    listed = _listed(folder)
    if have_real(settings):
        there = {wheel.file for wheel in listed}
        others = (wheel for wheel in _listed(real, f"/real/{real.name}/") if wheel.project not in tagged)
        listed += [wheel for wheel in others if wheel.file not in there]
    write_pages(folder, listed)


def _fetch_requirements(settings: Settings, folder: Path, requirements: list[str], pythons: list[str]) -> None:
    """Get packages with all that they need, unless an earlier run did."""
    marker, version = folder / REAL_MARKER, digest(*requirements, *pythons)
    if marker.exists() and marker.read_text() == version:
        return
    with step(f"downloading {', '.join(requirements)} and what they need (25 MB)"):
        for python in pythons:
            into = fresh_folder(settings.cache / "downloads" / f"requirements-{python}")
            _download(find_pip(settings), into, python, *requirements)
            for wheel in into.glob("*.whl"):
                if not (folder / f"{wheel.name}.json").exists():
                    _publish(wheel, folder)
            shutil.rmtree(into)
    write_if_changed(marker, version)
