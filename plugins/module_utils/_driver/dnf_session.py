# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. One session with dnf's own Python interface, in the interpreter that dnf itself uses.

`dnf.py` runs the text of this file as a program: Ansible's interpreter need not be the one that has dnf's modules. A request
comes as JSON on stdin, the answer leaves as one line after `ANSWER`; what dnf and the packages' scripts print comes before it.
Tables that are made for people (`dnf install --assumeno`) are cut to the width of a terminal and translated; this is neither.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import typing as t

ANSWER = "gpufleet-answer: "

# The driver's packages of NVIDIA, RPM Fusion and the distributions ...
_DRIVER_NAME = re.compile(
    r"(?:nvidia-|libnvidia-|cuda-drivers|cuda-compat|[a]?kmod-nvidia|xorg-x11-(?:drv-)?nvidia)"
    r"(?!container|docker|cuda-(?:toolkit|dev|gdb|doc|samples)|cudnn|nsight|gds|fs|ml-dev|egl-|vaapi)"
)
# ... are those that carry the driver's version: helpers such as dnf-plugin-nvidia have numbers of their own.
_DRIVER_VERSION = re.compile(r"\d{3}\.\d+")
_LOCKING_PLUGINS = ["versionlock", "nvidia"]  # they hide packages; the caller knows the locks and asks nevertheless
_INCOMING = ("INSTALL", "DOWNGRADE", "UPGRADE", "REINSTALL", "OBSOLETE")
_OUTGOING = ("DOWNGRADED", "UPGRADED", "OBSOLETED", "REMOVE")


def is_driver(name: str, version: str) -> bool:
    """Whether a package is a part of the driver itself and moves with it from version to version."""
    return bool(_DRIVER_NAME.match(name)) and bool(_DRIVER_VERSION.match(version))


class Refused(Exception):
    """dnf says no; `kind` tells the caller what about."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def open_base(request: dict[str, t.Any], online: bool) -> t.Any:
    """Return dnf's Base as the dnf command has it, but with all of the driver's repositories in sight: no streams, no locks."""
    import dnf

    base = dnf.Base()
    conf = base.conf
    conf.read(priority=dnf.conf.PRIO_MAINCONFIG)
    conf.substitutions.update_from_etc(conf.installroot, varsdir=conf.varsdir)
    conf.debuglevel = 1
    conf.assumeyes = True
    conf.best = True
    conf.clean_requirements_on_remove = False  # what was not asked for stays
    conf.install_weak_deps = bool(request.get("recommends"))
    if request.get("ca_file"):
        conf.sslcacert = request["ca_file"]
    base.init_plugins(disabled_glob=_LOCKING_PLUGINS)
    base.pre_configure_plugins()
    if online:
        base.read_all_repos()
    base.configure_plugins()
    ours = request.get("repositories", [])
    for repo in base.repos.iter_enabled():
        if request.get("only_ours") and repo.id not in ours:
            repo.disable()
        elif repo.id in ours:
            repo.skip_if_unavailable = False
            repo.module_hotfixes = True  # streams steer what others install; here the version decides
        else:
            repo.skip_if_unavailable = True  # other people's broken repositories are not ours to stop at
        if request.get("refresh"):
            repo.metadata_expire = 1
    return base


def fill(base: t.Any, online: bool) -> None:
    """Load what is installed and, online, what is on offer."""
    import dnf

    try:
        base.fill_sack(load_system_repo=True, load_available_repos=online)
    except dnf.exceptions.RepoError as error:
        raise Refused("repository", str(error)) from error


def hide(base: t.Any, request: dict[str, t.Any]) -> None:
    """Hide driver packages of other branches and of other sources from the solver."""
    ours = request.get("repositories", [])
    wanted = request.get("version")
    hidden = [
        package
        for package in base.sack.query().available()
        if is_driver(package.name, package.version)
        and ((wanted and not _fits(package.version, wanted)) or (ours and package.reponame not in ours))
    ]
    base.sack.add_excludes(base.sack.query().filterm(pkg=hidden))


def _fits(version: str, wanted: str) -> bool:
    return version.startswith(wanted[:-1]) if wanted.endswith("*") else version == wanted


def mark(base: t.Any, request: dict[str, t.Any]) -> None:
    """Tell the solver what is asked for: the driver in one version, whatever else where it is not there yet."""
    import dnf

    missing = []
    remove = request.get("remove", [])
    available = base.sack.query().available()
    asked = list(request.get("install", []))
    if any(_DRIVER_NAME.match(name) for name in asked):
        # Every part of the driver moves: those that nothing requires in an exact version would stay behind.
        asked += sorted(
            package.name
            for package in base.sack.query().installed()
            if is_driver(package.name, package.version) and package.name not in asked + remove
        )
    for name in remove:
        for package in base.sack.query().installed().filter(name=name):
            base.package_remove(package)
    for name in asked:
        offers = [
            package
            for package in available.filter(name=name).latest()
            if is_driver(package.name, package.version) and package.arch in ("noarch", base.conf.arch)
        ]
        if offers:
            # What nobody asked for moves along where it can; where it conflicts (the other flavor), it goes.
            base.package_install(offers[0], strict=name in request.get("install", []))
        elif name not in request.get("install", []) or _serves(base, name, request.get("version")):
            continue
        elif _DRIVER_NAME.match(name) and base.sack.query().installed().filter(name=name):
            missing.append(name)  # dnf would take what is installed for an answer, in whatever version
        else:
            try:
                base.install(name)
            except dnf.exceptions.MarkingError:
                missing.append(name)
    if missing:
        raise Refused("missing", " ".join(missing))


def _serves(base: t.Any, spec: str, wanted: str | None) -> bool:
    """Whether what is asked for is there already, the driver's packages in the version that is asked for."""
    import dnf

    there = dnf.subject.Subject(spec).get_best_query(base.sack).installed()
    return any(not wanted or not is_driver(p.name, p.version) or _fits(p.version, wanted) for p in there)


def resolve(base: t.Any) -> list[dict[str, t.Any]]:
    """Let the solver work; return what would happen to every package."""
    import dnf

    try:
        base.resolve(allow_erasing=True)
    except dnf.exceptions.Error as error:
        raise Refused("solver", str(error)) from error
    return changes(base) if base.transaction else []


def changes(base: t.Any) -> list[dict[str, t.Any]]:
    """What the transaction does, one entry a package name (and architecture, where it is not the host's)."""
    import libdnf.transaction as lt

    incoming = {getattr(lt, f"TransactionItemAction_{name}") for name in _INCOMING}
    outgoing = {getattr(lt, f"TransactionItemAction_{name}") for name in _OUTGOING}
    found: dict[str, dict[str, t.Any]] = {}
    extra = []
    for item in base.transaction:
        package = item.pkg
        name = package.name if package.arch in ("noarch", base.conf.arch) else f"{package.name}.{package.arch}"
        entry = {"name": name, "before": None, "after": None, "repository": "", "vendor": ""}
        if item.action in incoming:
            side = "after"
        elif item.action in outgoing:
            side = "before"
        else:
            continue
        if found.get(name, entry)[side] is not None:  # kernels: several versions side by side
            extra.append(entry)
        else:
            entry = found.setdefault(name, entry)
        entry[side] = package.evr
        if side == "after":
            entry["repository"] = package.reponame
            entry["vendor"] = f"{package.vendor or ''} {package.packager or ''}".strip()
    return sorted([*found.values(), *extra], key=lambda entry: (entry["name"], entry["after"] or ""))


def refresh(request: dict[str, t.Any]) -> dict[str, t.Any]:
    """Read the metadata of the driver's repositories anew; say which streams of the driver they have."""
    base = open_base(request, online=True)
    missing = [name for name in request["repositories"] if name not in {repo.id for repo in base.repos.iter_enabled()}]
    if missing:
        raise Refused("repository", f"dnf does not know the repository {missing[0]}, or it is not enabled")
    fill(base, online=True)
    return {"streams": streams(base)}


def streams(base: t.Any) -> list[str]:
    """The streams of the module nvidia-driver that are on offer; none where the repository has no modules."""
    from dnf.module.module_base import ModuleBase

    packages, _spec = ModuleBase(base).get_modules("nvidia-driver")
    return sorted({package.getStream() for package in packages})


def solve(request: dict[str, t.Any]) -> dict[str, t.Any]:
    """Ask what would happen; nothing changes."""
    online = bool(request.get("install"))
    base = open_base(request, online)
    return {"changes": _solve(base, request, online)}


def _solve(base: t.Any, request: dict[str, t.Any], online: bool = True) -> list[dict[str, t.Any]]:
    fill(base, online)
    hide(base, request)
    mark(base, request)
    return resolve(base)


def download(request: dict[str, t.Any]) -> dict[str, t.Any]:
    """Fetch what the transaction needs into a folder and verify its signatures."""
    base = open_base(request, online=True)
    plan = _solve(base, request)
    return {"changes": plan, "files": _fetch(base, base.transaction.install_set if plan else [], request["folder"])}


def fetch(request: dict[str, t.Any]) -> dict[str, t.Any]:
    """Fetch exact versions, also those that streams and locks hide; what no repository has is left out."""
    import hawkey

    base = open_base(request, online=True)
    fill(base, online=True)
    query = base.sack.query(flags=hawkey.IGNORE_EXCLUDES).available()
    found = []
    for name, version, arch in request["packages"]:
        found += [package for package in query.filter(name=name, arch=arch) if package.evr == version][:1]
    return {"files": _fetch(base, found, request["folder"])}


def _fetch(base: t.Any, packages: t.Iterable[t.Any], folder: str) -> list[dict[str, str]]:
    import dnf

    packages = list(packages)
    base.conf.destdir = folder
    try:
        base.download_packages(packages)
    except dnf.exceptions.DownloadError as error:
        raise Refused("download", str(error)) from error
    files = []
    for package in packages:
        status, text = base.package_signature_check(package)
        if status:
            raise Refused("signature", f"{text}, {_signature(package.localPkg())}")
        target = os.path.join(folder, os.path.basename(package.localPkg()))
        if os.path.realpath(package.localPkg()) != os.path.realpath(target):  # a repository in a folder is not copied
            shutil.copyfile(package.localPkg(), target)
        files.append({"name": package.name, "version": package.evr, "arch": package.arch, "path": target})
    return files


def _signature(path: str) -> str:
    """The signature of a package file as rpm describes it, with the key's id."""
    tags = "%|RSAHEADER?{%{RSAHEADER:pgpsig}}:{%|DSAHEADER?{%{DSAHEADER:pgpsig}}:{not signed}|}|"
    done = subprocess.run(
        ["/usr/bin/rpm", "-qp", "--nosignature", "--qf", tags, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.stdout.decode("utf-8", "replace") or "signature unreadable"


def apply(request: dict[str, t.Any]) -> dict[str, t.Any]:
    """Make installed packages exactly these files, remove others; all in one transaction, without network.

    `removals`: names that may go although nobody asked; null: any.
    """
    import dnf

    base = open_base(request, online=False)
    fill(base, online=False)
    installed = base.sack.query().installed()
    for package in base.add_remote_rpms(request["files"], strict=True):
        if not installed.filter(name=package.name, evr=package.evr, arch=package.arch):
            base.package_install(package)
    for name in request.get("remove", []):
        for package in installed.filter(name=name):
            base.package_remove(package)
    plan = resolve(base)
    permitted = request.get("removals")
    surprising = [
        entry["name"]
        for entry in plan
        if permitted is not None and not entry["after"] and entry["name"] not in permitted
    ]
    if surprising:
        raise Refused("surprise", " ".join(surprising))
    if plan:
        try:
            base.do_transaction(_display())
        except dnf.exceptions.Error as error:
            raise Refused("transaction", str(error)) from error
    return {"changes": plan}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _display() -> t.Any:
    from dnf.yum.rpmtrans import TransactionDisplay

    class Lines(TransactionDisplay):
        """Prints what happens as lines: dnf's own display redraws one line for a terminal."""

        last = ""

        def progress(
            self, package: t.Any, action: t.Any, ti_done: int, ti_total: int, ts_done: int, ts_total: int
        ) -> None:
            line = f"{ts_done}/{ts_total} {package}"
            if package and line != self.last:
                _say(line)
                self.last = line

        def scriptout(self, msgs: t.Any) -> None:
            if msgs:
                _say(msgs.decode("utf-8", "replace").rstrip() if isinstance(msgs, bytes) else msgs)

        def error(self, message: str) -> None:
            _say(f"error: {message}")

    return Lines()


OPERATIONS = {
    "refresh": refresh,
    "solve": solve,
    "download": download,
    "fetch": fetch,
    "apply": apply,
}


def main() -> int:
    """Carry one request out."""
    request = json.load(sys.stdin)
    answer: dict[str, t.Any]
    try:
        answer = OPERATIONS[request["operation"]](request)
    except Refused as error:
        answer = {"error": error.kind, "text": str(error)}
    except Exception as error:  # whatever dnf raises beyond its documented errors is an answer too, for people
        answer = {"error": "other", "text": f"{type(error).__name__}: {error}"}
    _say(ANSWER + json.dumps(answer))
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    raise SystemExit(main())
