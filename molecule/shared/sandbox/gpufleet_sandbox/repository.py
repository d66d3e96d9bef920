# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated package repositories, made from packages/*.yml, signed with a test key and laid out as the real ones are."""

from __future__ import annotations

import datetime
import gzip
import shutil
from pathlib import Path

from . import catalogue, debs, native, rpms, stubs
from .catalogue import Repository
from .machine import digest
from .settings import SANDBOX, Settings
from .shell import fresh_folder, locked, run, step

KEY_NAME = "The gpufleet sandbox (simulated NVIDIA repository) <sandbox@gpufleet.test>"
TREES = ("nvidia", "el", "debian", "ubuntu")
"""What the server shows of them: the first word of every repository's path."""


def signing_key(settings: Settings) -> dict[str, str]:
    """gpg's environment, with the key pair that signs the repositories; made once per machine."""
    home = settings.cache / "gnupg"
    environment = {"GNUPGHOME": str(home)}
    if not (home / "ready").exists():
        fresh_folder(home).chmod(0o700)
        batch = ("--batch", "--passphrase", "", "--quick-generate-key", KEY_NAME, "rsa3072", "sign", "never")
        run("gpg", *batch, env=environment)
        (home / "ready").touch()
    return environment


def build_repositories(settings: Settings) -> None:
    """Make the repositories, unless they are there already as these files describe them."""
    modules = (catalogue, debs, native, rpms, stubs)
    sources = [Path(module.__file__).read_bytes() for module in modules if module.__file__]
    sources.append((SANDBOX / "rootfs" / stubs.SIMULATOR.lstrip("/")).read_bytes())
    version = digest(catalogue.data(), native.sources(), Path(__file__).read_bytes(), *sources)
    marker = settings.served / "nvidia/.version"
    with locked(settings.cache / "repository.lock"):
        if not marker.exists() or marker.read_text() != version:
            with step("building the simulated package repositories"):
                _build(settings, version)


def _build(settings: Settings, version: str) -> None:
    new = fresh_folder(settings.cache / "repositories.new")
    environment = signing_key(settings)
    for repository in catalogue.repositories():
        folder = new / repository.path
        folder.mkdir(parents=True, exist_ok=True)
        for path in (build_rpm if repository.format == "rpm" else build_deb)(repository, folder, environment):
            sign(path, environment)
    key = new / "nvidia/repository.asc"
    run("gpg", "--batch", "--yes", "--armor", "--output", key, "--export", env=environment)
    run("gpgconf", "--kill", "gpg-agent", env=environment)
    (new / "nvidia/.version").write_text(version)
    publish(new, settings.served)


def build_deb(repository: Repository, folder: Path, _environment: dict[str, str]) -> list[Path]:
    """A Debian repository, flat or with suites and components; returns the Release file."""
    entries: dict[str, list[str]] = {}
    flat = repository.layout == "flat"
    suite, components = repository.facts.get("suite"), repository.facts.get("components", [])
    for package in repository.packages:
        component = repository.components[package.filename]
        place = "." if flat else f"pool/{suite}/{component}"
        (folder / place).mkdir(parents=True, exist_ok=True)
        data = debs.build(package)
        (folder / place / package.filename).write_bytes(data)
        entries.setdefault(component, []).append(debs.index_entry(package, data, place))
    files: dict[str, bytes] = {}
    for component in ["main"] if flat else components:
        index = "\n".join(entries.get(component, [])).encode()
        prefix = "" if flat else f"{component}/binary-amd64/"
        files |= {f"{prefix}Packages": index, f"{prefix}Packages.gz": gzip.compress(index, mtime=debs.TIME)}
    top = folder if flat else folder / "dists" / suite
    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    if flat:
        fields = {"Origin": "NVIDIA", "Label": "NVIDIA CUDA", "Architecture": "x86_64"}
    else:
        fields = {"Origin": repository.facts["label"], "Label": repository.facts["label"], "Suite": suite}
        fields |= {"Codename": suite, "Architectures": "amd64", "Components": " ".join(components)}
    date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
    (top / "Release").write_text(debs.release(files, date, fields))
    return [top / "Release"]


def build_rpm(repository: Repository, folder: Path, environment: dict[str, str]) -> list[Path]:
    """An rpm repository; returns the metadata file that is signed."""
    rpms.build(repository.packages, catalogue.PUBLISHERS[repository.publisher], folder)
    rpms.sign(sorted(folder.glob("*.rpm")), KEY_NAME, environment)
    modules = None
    if repository.streams:
        modules = rpms.modules(repository.facts["module"], repository.facts["default_stream"], repository.streams)
    return [rpms.index(folder, modules)]


def sign(path: Path, environment: dict[str, str]) -> None:
    """Sign an index as apt or dnf expects it beside the index."""
    command = ("gpg", "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", "", "--digest-algo", "SHA512")
    if path.name == "Release":
        run(*command, "--clearsign", "--output", path.with_name("InRelease"), path, env=environment)
        run(*command, "--detach-sign", "--armor", "--output", path.with_name("Release.gpg"), path, env=environment)
    else:
        run(*command, "--detach-sign", "--armor", "--output", f"{path}.asc", path, env=environment)


def publish(new: Path, served: Path) -> None:
    """Put finished trees in the place of the old ones; NVIDIA's last, because its marker says that all are there."""
    served.mkdir(parents=True, exist_ok=True)
    for tree in reversed(TREES):
        old = new / f"{tree}.old"
        if (served / tree).exists():
            (served / tree).rename(old)
        (new / tree).rename(served / tree)
    shutil.rmtree(new)
