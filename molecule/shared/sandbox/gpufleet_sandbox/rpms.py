# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rpm packages and their repositories, made with rpmbuild, rpmsign and createrepo_c."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import yaml

from .debs import TIME, Package
from .shell import run

HEADER = """\
%define debug_package %{{nil}}
%define __os_install_post %{{nil}}
%define _build_id_links none
%define _buildhost gpufleet.test
%define _binary_payload w1.gzdio
%define use_source_date_epoch_as_buildtime 1
Name: gpufleet-sandbox
Version: 1
Release: 1
Summary: Stub packages
License: GPL-3.0-or-later
Vendor: {vendor}
AutoReqProv: no
%description
Never built itself: the packages below are.
%install
cp -a {files}/. %{{buildroot}}/
"""


def version_parts(version: str) -> tuple[str, str, str]:
    """Epoch, version and release of "3:580.178.04-1.el9"; a missing release is 1."""
    epoch, _, rest = version.rpartition(":")
    number, _, release = rest.partition("-")
    return epoch or "0", number, release or "1"


def nevra(package: Package) -> str:
    """How module metadata names a package."""
    epoch, number, release = version_parts(package.version)
    return f"{package.name}-{epoch}:{number}-{release}.{package.architecture}"


def batches(packages: list[Package]) -> list[list[Package]]:
    """Packages that one spec file can make together: no two with the same name or path."""
    found: list[tuple[set[str], list[Package]]] = []
    for package in packages:
        mine = {package.name, *package.files, *package.programs, *package.links}
        for taken, members in found:
            if not taken & mine:
                taken |= mine
                members.append(package)
                break
        else:
            found.append((mine, [package]))
    return [members for _taken, members in found]


def spec(packages: list[Package], vendor: str, files: Path) -> str:
    """The spec file of packages whose content lies in a folder."""
    text = [HEADER.format(vendor=vendor, files=files)]
    for package in packages:
        epoch, number, release = version_parts(package.version)
        lines = [f"%package -n {package.name}", f"Epoch: {epoch}" if epoch != "0" else "", f"Version: {number}"]
        lines += [f"Release: {release}", f"Summary: {package.description}", "AutoReqProv: no"]
        lines += ["BuildArch: noarch"] if package.architecture == "noarch" else []
        lines += [f"{tag}: {value}" for tag, values in package.relations.items() for value in values]
        lines += [f"%description -n {package.name}", package.description]
        lines += [f"%{name} -n {package.name}\n{script}" for name, script in package.scripts.items()]
        lines += [f"%files -n {package.name}"]
        lines += [f"%dir {folder}" for folder in own_folders(package)]
        lines += [f"%attr(0644,root,root) {_config(path)}{path}" for path in sorted(package.files)]
        lines += [f"%attr(0755,root,root) {path}" for path in sorted(package.programs)]
        lines += sorted(package.links)
        text.append("\n".join(filter(None, lines)) + "\n")
    return "\n".join(text)


def own_folders(package: Package) -> list[str]:
    """Folders that are nobody else's: they go with the package."""
    folders = {str(Path(path).parent) for path in package.files}
    return sorted(path for path in folders if path.startswith(("/usr/src/", "/usr/lib/firmware/nvidia/")))


def _config(path: str) -> str:
    return "%config(noreplace) " if path.startswith("/etc/") else ""


def build(packages: list[Package], vendor: str, target: Path) -> None:
    """Make the .rpm files of these packages."""
    target.mkdir(parents=True, exist_ok=True)
    for batch in batches(packages):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            content = folder / "content"
            content.mkdir()
            for package in batch:
                for path, data in {**package.files, **package.programs}.items():
                    place = content / path.lstrip("/")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(data)
                for path, destination in package.links.items():
                    place = content / path.lstrip("/")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.symlink_to(destination)
            (folder / "stubs.spec").write_text(spec(batch, vendor, content))
            options = ["--define", f"_topdir {folder}/build", "--target", "x86_64", "--noclean"]
            run("rpmbuild", "-bb", "--quiet", *options, folder / "stubs.spec", env={"SOURCE_DATE_EPOCH": str(TIME)})
            for path in (folder / "build/RPMS").glob("*/*.rpm"):
                shutil.move(path, target / path.name)


def sign(paths: list[Path], key: str, environment: dict[str, str]) -> None:
    """Sign packages with the test key."""
    macros = (f"_gpg_name {key}", "_gpg_digest_algo sha512", f"__gpg {shutil.which('gpg')}")
    options = [word for macro in macros for word in ("--define", macro)]
    run("rpmsign", *options, "--addsign", *paths, env=environment)


def modules(name: str, default: str, streams: dict[str, list[Package]]) -> str:
    """Module metadata: every stream with its packages, and which stream is the default."""
    documents: list[dict] = [
        {
            "document": "modulemd-defaults",
            "version": 1,
            "data": {"module": name, "stream": default, "profiles": {stream: ["default"] for stream in streams}},
        }
    ]
    for stream, packages in streams.items():
        names = {package.name for package in packages}
        documents.append(
            {
                "document": "modulemd",
                "version": 2,
                "data": {
                    "name": name,
                    "stream": stream,
                    "version": TIME,
                    "context": "00000000",
                    "arch": "x86_64",
                    "summary": f"NVIDIA driver {stream} (SIMULATED by the gpufleet sandbox)",
                    "description": "Stub packages.",
                    "license": {"module": ["GPL-3.0-or-later"]},
                    "profiles": {"default": {"rpms": ["nvidia-open" if "nvidia-open" in names else "cuda-drivers"]}},
                    "artifacts": {"rpms": sorted(map(nevra, packages))},
                },
            }
        )
    return yaml.safe_dump_all(documents, explicit_start=True, explicit_end=True, sort_keys=False)


def index(folder: Path, module_metadata: str | None) -> Path:
    """Make the repository's metadata; returns the file that is to be signed."""
    run("createrepo_c", "--quiet", "--simple-md-filenames", folder)
    if module_metadata:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "modules.yaml"
            path.write_text(module_metadata)
            run("modifyrepo_c", "--mdtype=modules", "--simple-md-filenames", path, folder / "repodata")
    return folder / "repodata/repomd.xml"
