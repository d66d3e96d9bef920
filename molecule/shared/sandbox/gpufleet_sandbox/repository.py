# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated NVIDIA package repository: flat, signed, one folder per distribution, as NVIDIA's is."""

from __future__ import annotations

import datetime
import gzip
import os
import shutil
from pathlib import Path
from typing import Any

from . import debs, native, stubs
from .machine import digest
from .settings import SANDBOX, Settings, load_yaml
from .shell import fresh_folder, run, step

KEY_NAME = "The gpufleet sandbox (simulated NVIDIA repository) <sandbox@gpufleet.test>"


def pin_file(pattern: str) -> str:
    """/etc/apt/preferences.d/nvidia-driver-pin of a pinning package."""
    groups = (
        "cuda-drivers* src:nvidia-open*:any",
        "nvidia-* libnvidia-* libcuda1 libcudadebugger1 libxnvctrl0 firmware-nvidia-gsp xserver-xorg-video-nvidia*",
    )
    return "\n".join(f"Package: {group}\nPin: version {pattern}\nPin-Priority: 1000\n" for group in groups)


def packages(described: dict[str, Any]) -> list[debs.Package]:
    """Every package of the repository, with its stub content."""
    found = []
    for pin in described["pins"]:
        package = debs.Package(pin["name"], pin["version"], "all", f"APT driver pinning file. {stubs.NOTE}.")
        package.relations = {key: ["nvidia-driver-pinning"] for key in ("Provides", "Conflicts", "Replaces")}
        package.files["/etc/apt/preferences.d/nvidia-driver-pin"] = pin_file(pin["pattern"]).encode()
        found.append(package)
    found.append(
        debs.Package(
            "dkms",
            described["dkms"]["version"],
            "all",
            f"Dynamic Kernel Module System. {stubs.NOTE}: builds nothing.",
            relations={"Depends": described["dkms"]["depends"]},
            programs={"/usr/sbin/dkms": stubs.DKMS.encode()},
            scripts={"preinst": stubs.ONLY_HERE},
        )
    )
    for driver in described["drivers"]:
        full = driver["version"]
        version = full.rpartition("-")[0]
        branch = int(full.partition(".")[0])
        words = {"v": version, "full": full, "branch": branch}
        for template in described["packages"]:
            if branch in template.get("only", [branch]):
                found.append(_driver_package(template, words, driver["cuda"]))
    return found


def _driver_package(template: dict[str, Any], words: dict[str, Any], cuda: int) -> debs.Package:
    package = debs.Package(template["name"], words["full"], "amd64", f"NVIDIA driver component. {stubs.NOTE}: a stub.")
    if "source" in template:
        package.fields["Source"] = template["source"]
    if "multi_arch" in template:
        package.fields["Multi-Arch"] = template["multi_arch"]
    for key in ("depends", "conflicts", "provides"):
        package.relations[key.capitalize()] = [text.format(**words) for text in template.get(key, [])]
    stubs.fill(package, template.get("content"), words["v"], cuda)
    return package


def signing_key(settings: Settings) -> dict[str, str]:
    """gpg's environment, with the key pair that signs the repository; made once per machine."""
    home = settings.cache / "gnupg"
    environment = {"GNUPGHOME": str(home)}
    if not (home / "ready").exists():
        fresh_folder(home).chmod(0o700)
        batch = ("--batch", "--passphrase", "", "--quick-generate-key", KEY_NAME, "rsa3072", "sign", "never")
        run("gpg", *batch, env=environment)
        (home / "ready").touch()
    return environment


def build_repository(settings: Settings) -> None:
    """Make the repository, unless it is there already as these files describe it."""
    sources = [Path(module.__file__).read_bytes() for module in (debs, native, stubs) if module.__file__]
    data = (SANDBOX / "nvidia_packages.yml").read_bytes()
    version = digest(data, native.sources(), Path(__file__).read_bytes(), *sources)
    target = settings.served / "nvidia"
    marker = target / ".version"
    if marker.exists() and marker.read_text() == version:
        return
    with step("building the simulated NVIDIA repository"):
        _build(settings, target, version)


def _build(settings: Settings, target: Path, version: str) -> None:
    described = load_yaml("nvidia_packages.yml")
    environment = signing_key(settings)
    new = fresh_folder(settings.cache / "nvidia.new")
    first = new / described["distributions"][0] / "x86_64"
    first.mkdir(parents=True)
    entries = []
    for package in packages(described):
        data = debs.build(package)
        (first / package.filename).write_bytes(data)
        entries.append(debs.index_entry(package, data))
    index = "\n".join(entries).encode()
    files = {"Packages": index, "Packages.gz": gzip.compress(index, mtime=debs.TIME)}
    date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
    for name, data in files.items():
        (first / name).write_bytes(data)
    (first / "Release").write_text(debs.release(files, date))
    sign = ("gpg", "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", "", "--digest-algo", "SHA512")
    run(*sign, "--clearsign", "--output", first / "InRelease", first / "Release", env=environment)
    run(*sign, "--detach-sign", "--armor", "--output", first / "Release.gpg", first / "Release", env=environment)
    run("gpg", "--batch", "--yes", "--armor", "--output", new / "repository.asc", "--export", env=environment)
    run("gpgconf", "--kill", "gpg-agent", env=environment)
    for other in described["distributions"][1:]:
        shutil.copytree(first, new / other / "x86_64", copy_function=os.link)
    (new / ".version").write_text(version)
    target.parent.mkdir(parents=True, exist_ok=True)
    old = settings.cache / "nvidia.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
