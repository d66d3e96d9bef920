# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Python environments, described by reading only.

Nothing of an environment is imported or executed here: the probe runs as root, and an environment may hold what its users
put there. Integrity is size and presence of every file against the manifest that was written when the release was built, and on
request what every file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from .._proof import stamp as proofs
from .._release import contents
from .._release import manifest as manifests
from .accounts import group_name, user_name
from .host import MIB, Host, Unreadable

_MANIFEST_LIMIT = 64 * MIB
_PYTHON = re.compile(r"^\s*version(?:_info)?\s*=\s*(\d+\.\d+(?:\.\d+)?)", re.MULTILINE)
_DISTRIBUTION = re.compile(r"([A-Za-z0-9._]+?)-([^-]+)\.dist-info$")
_INTERPRETER = re.compile(r"/python(3\.\d+)$")
_SITE = re.compile(r"python3\.\d+$")
_COMPANIONS = ("torchvision", "torchaudio")


def observe(
    host: Host, root: str, wanted: list[str], unknown: list[dict[str, str]], hashes: bool = False
) -> list[dict[str, Any]]:
    """Return the environments below ``root``: the wanted ones that exist, or all."""
    found = []
    for name in host.names(root):
        path = f"{root.rstrip('/')}/{name}"
        if name.startswith(".") or (wanted and name not in wanted) or not host.is_dir(f"{path}/releases"):
            continue
        try:
            found.append(_environment(host, name, path, unknown, hashes))
        except (OSError, Unreadable, ValueError) as error:
            unknown.append({"what": f"environments[{name}]", "why": str(error)})
    return found


def _environment(host: Host, name: str, path: str, unknown: list[dict[str, str]], hashes: bool) -> dict[str, Any]:
    current = _release(host, path, "current")
    stamps = _usable_stamps(host, path)
    entries = [entry for entry in host.names(f"{path}/releases") if host.is_dir(f"{path}/releases/{entry}")]
    releases = [entry for entry in entries if not entry.startswith(".")]
    found: dict[str, Any] = {
        "name": name,
        "path": path,
        "current": current,
        "previous": _release(host, path, "previous"),
        "releases": [{"id": release, "stamped": release in stamps} for release in releases],
        "leftovers": [entry[1:] for entry in entries if entry.startswith(".")],
        "python": None,
        "interpreter_ok": False,
        "owner": None,
        "group": None,
        "torch": None,
        "companions": {},
        "integrity": None,
        "stamp": None,
        "stamp_digest": None,
        "verdict": None,
    }
    state = host.lstat(path)
    if state:
        found["owner"], found["group"] = user_name(state.st_uid), group_name(state.st_gid)
    if current is None:
        return found
    release = f"{path}/releases/{current}"
    what = f"environments[{name}]"
    try:
        found["stamp"] = _stamp(host, path, current)
    except (OSError, Unreadable, ValueError) as error:
        unknown.append({"what": f"{what}.stamp", "why": f"{path}/stamps/{current}.json: {error}"})
    try:
        found["stamp_digest"] = proofs.digest_of(host, f"{path}/stamps/{current}.json")
        found["verdict"] = proofs.read(host, name)
    except (OSError, Unreadable, proofs.NoStamp) as error:
        unknown.append({"what": f"{what}.verdict", "why": str(error)})
    for key in ("owner", "group"):  # whom the release was built for; the folder itself is root's
        named = (found["stamp"] or {}).get(key)
        found[key] = named if isinstance(named, str) else found[key]
    try:
        found["integrity"] = integrity(host, path, current, found["stamp"], hashes)
    except (OSError, Unreadable, ValueError) as error:
        unknown.append({"what": f"{what}.integrity", "why": str(error)})
    python = _PYTHON.search(host.text(f"{release}/pyvenv.cfg") or "")
    found["python"] = python.group(1) if python else None
    found["interpreter_ok"] = _serves(host, f"{release}/bin/python", found["python"])
    try:
        found["torch"], found["companions"] = _packages(host, release, found["stamp"])
    except (OSError, Unreadable) as error:
        unknown.append({"what": f"{what}.torch", "why": str(error)})
    return found


def _usable_stamps(host: Host, path: str) -> set[str]:
    """The releases that have a stamp, without those of which it is written down that they are damaged."""
    usable = set()
    for entry in host.names(f"{path}/stamps"):
        release, dot, kind = entry.rpartition(".")
        if dot and kind == "json":
            try:
                stamp = _stamp(host, path, release)
            except (OSError, Unreadable, ValueError):
                continue
            if stamp and not stamp.get("damaged"):
                usable.add(release)
    return usable


def _serves(host: Host, python: str, version: str | None) -> bool:
    """Whether an interpreter is there and still the one of the release: an upgrade can put another version under its name."""
    if not host.runnable(python):
        return False
    now = _INTERPRETER.search(host.resolve(python))
    return now is None or version is None or f"{version}.".startswith(f"{now.group(1)}.")


def _release(host: Host, path: str, link: str) -> str | None:
    """Return the release that a link names; a link to anywhere else names none."""
    target = host.link(f"{path}/{link}")
    if target is None:
        return None
    folder, release = os.path.split(os.path.normpath(os.path.join(path, target)))
    return release if folder == f"{path}/releases" else None


def _stamp(host: Host, path: str, release: str) -> dict[str, Any] | None:
    text = host.text(f"{path}/stamps/{release}.json")
    if text is None:
        return None
    stamp = json.loads(text)
    if not isinstance(stamp, dict):
        raise Unreadable("it holds no JSON object")
    return stamp


def integrity(
    host: Host, path: str, release: str, stamp: dict[str, Any] | None, hashes: bool = False
) -> dict[str, Any]:
    """Compare a release with its manifest: size and presence of every file, and that the manifest is the stamped one.

    What the files hold as well where ``hashes`` is set; a release from before hashes were kept is Unreadable then.
    """
    manifest_path = f"{path}/stamps/{release}.manifest"
    try:
        manifest = host.read_bytes(manifest_path, _MANIFEST_LIMIT)
    except FileNotFoundError:
        manifest = None
    if stamp is None or manifest is None:
        return {"status": "unstamped", "missing": 0, "changed": 0, "added": 0, "examples": []}
    folder = f"{path}/releases/{release}"
    present = manifests.scan(host.at(folder)) if host.is_dir(folder) else {}
    if hashlib.sha256(manifest).hexdigest() != stamp.get("manifest_sha256"):
        return _verdict(manifests.Difference([], [manifest_path], []))
    text = manifests.decode(manifest)
    if manifests.render(present) != text:
        return _verdict(manifests.compare(manifests.parse(text), present))
    if stamp.get("damaged"):  # an earlier look, which read the files, has found it
        return _verdict(manifests.Difference([], [f"{path}/stamps/{release}.json: {stamp['damaged']}"], []))
    changed = _other_contents(host, path, release, stamp, present) if hashes else []
    return _verdict(manifests.Difference([], changed, []))


def _other_contents(host: Host, path: str, release: str, stamp: dict[str, Any], present: dict[str, str]) -> list[str]:
    """The files that hold something else than when the release was stamped."""
    if "hashes_sha256" not in stamp:
        raise Unreadable(f"{release} was built before hashes were kept: only sizes can be compared")
    list_path = f"{path}/stamps/{release}.hashes"
    stored = host.read_bytes(list_path, _MANIFEST_LIMIT)
    if hashlib.sha256(stored).hexdigest() != stamp["hashes_sha256"]:
        return [list_path]
    return contents.changed(host.at(f"{path}/releases/{release}"), present, manifests.decode(stored))


def _verdict(difference: manifests.Difference) -> dict[str, Any]:
    return {
        "status": "damaged" if difference else "ok",
        "missing": len(difference.missing),
        "changed": len(difference.changed),
        "added": len(difference.added),
        "examples": difference.examples,
    }


def _packages(
    host: Host, release: str, stamp: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, str | None]]:
    """Return torch and its companions, from their version files and the installed metadata."""
    sites = [name for name in host.names(f"{release}/lib") if _SITE.match(name)]
    if not sites:
        return None, {}
    site = f"{release}/lib/{sites[0]}/site-packages"
    distributions = {}
    for name in host.names(site):
        match = _DISTRIBUTION.match(name)
        if match:
            distributions[match.group(1).lower()] = match.group(2)
    companions = {
        name: _version(host, site, name) or distributions[name] for name in _COMPANIONS if name in distributions
    }
    if "torch" not in distributions and not host.is_dir(f"{site}/torch"):
        return None, companions
    text = host.text(f"{site}/torch/version.py") or ""
    stamped = (stamp or {}).get("torch")
    torch = {
        "version": assigned(text, "__version__"),
        "distribution_version": distributions.get("torch"),
        "cuda": assigned(text, "cuda"),
        "arch_flags": stamped.get("arch_flags") if isinstance(stamped, dict) else None,
    }
    return torch, companions


def _version(host: Host, site: str, package: str) -> str | None:
    return assigned(host.text(f"{site}/{package}/version.py") or "", "__version__")


def assigned(text: str, name: str) -> str | None:
    """Return the string that a line of Python assigns to a name: torch/version.py is read, never run."""
    match = re.search(rf"^{name}\s*(?::[^=\n]*)?=\s*['\"]([^'\"\n]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else None
