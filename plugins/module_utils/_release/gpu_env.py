# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the text of the command gpu-env, a program of its own that imports nothing but the standard library.

It runs commands in the managed environments below ROOT, and makes overlays of them: virtual environments of a user that see one
release of a managed environment beside packages of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import glob
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import typing as t

ROOT = "/opt/gpufleet/envs"
FAMILY = ("torch", "torchvision", "torchaudio", "triton", "pytorch-triton")
"""What an overlay cannot replace, beside everything named nvidia-*; the same projects as in _release/lock.py."""

MARK = "Written by gpufleet.workstation"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_UNFIT_IN_PATHS = re.compile(r"[\x00-\x1f\x7f:\"'`\\$]")  # PATH and the scripts that activate would read them otherwise
_BASE, _RELEASE = "gpufleet-base", "gpufleet-release"  # keys of an overlay's pyvenv.cfg
_INSTALLER = "gpufleet\n"
_SHEBANG_LIMIT = 127
_NOT_FOUND = 127


class Problem(Exception):
    """Why something cannot be done and what to do about it, for people."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class Overlay(t.NamedTuple):
    """A user's overlay: where it is known, where it lies, and which release of which environment it sees (empty: unfinished)."""

    name: str
    link: str
    path: str
    base: str
    release: str


def _say(*columns: str) -> None:
    sys.stdout.write("\t".join(columns) + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def release_of(base: str) -> str | None:
    """The release of a managed environment that serves now, if this user can use it. A process that were started through the
    symlink would import late modules from the next release."""
    release = os.path.realpath(os.path.join(ROOT, base, "current"))
    return release if os.access(os.path.join(release, "bin", "python"), os.X_OK) else None


def bases() -> dict[str, str]:
    """The managed environments that this user can use: {name: release}."""
    with contextlib.suppress(OSError):
        found = {name: release_of(name) for name in sorted(os.listdir(ROOT)) if _NAME.match(name)}
        return {name: release for name, release in found.items() if release}
    return {}


def registry() -> str | None:
    """Where the user's overlays are known. Root looks for them there, in the home that passwd names, before it removes a release.

    None for root, who has none and looks at none: it would run what users can write; and for a user without an account.
    """
    if os.geteuid() == 0:
        return None
    try:
        return os.path.join(pwd.getpwuid(os.getuid()).pw_dir, ".local", "share", "gpufleet", "envs")
    except KeyError:
        return None


def overlay(name: str) -> Overlay | None:
    """The overlay of this name, if the user has one."""
    place = registry()
    if place is None or not os.path.lexists(os.path.join(place, name)):
        return None
    link = os.path.join(place, name)
    path = os.path.realpath(link)
    settings = _settings(os.path.join(path, "pyvenv.cfg"))
    return Overlay(name, link, path, settings.get(_BASE, ""), settings.get(_RELEASE, ""))


def overlays() -> list[Overlay]:
    """All overlays of the user."""
    place, names = registry(), []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = sorted(os.listdir(place)) if place else []
    return [found for found in map(overlay, filter(_NAME.match, names)) if found]


def _settings(path: str) -> dict[str, str]:
    """The lines KEY=VALUE of a file; none where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            pairs = [line.partition("=") for line in file if not line.startswith("#")]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise Problem(f"'{name}' is no name of an environment", 2)


def _stale(found: Overlay) -> str:
    """What is wrong with an overlay, and what to do about it; empty where nothing is."""
    if not found.release:
        return f"it is not complete: gpu-env remove {found.name}"
    if not os.access(os.path.join(found.release, "bin", "python"), os.X_OK):
        return f"its release {os.path.basename(found.release)} of {found.base} is gone: gpu-env update {found.name}"
    return ""


def resolve(name: str) -> tuple[str, bool]:
    """(the directory that a name stands for, whether that is an overlay)."""
    _check_name(name)
    found = overlay(name)
    if found:
        wrong = _stale(found)
        if wrong:
            raise Problem(f"{name} cannot be used: {wrong}", _NOT_FOUND)
        return found.path, True
    release = release_of(name)
    if release is None:
        raise Problem(f"no environment '{name}' that you can use; 'gpu-env list' shows what there is", _NOT_FOUND)
    return release, False


def show_list(_options: argparse.Namespace) -> None:
    """One line an environment: name, release, and what else is to be said."""
    managed = bases()
    for name, release in managed.items():
        _say(name, os.path.basename(release))
    for found in overlays():
        now = managed.get(found.base)
        note = _stale(found)
        if not note and now is None:
            note = f"you cannot use {found.base} any more"
        elif not note and now != found.release:
            note = f"{found.base} serves {os.path.basename(str(now))} now: gpu-env update {found.name}"
        what = f"overlay of {found.base or '?'} at {found.path}" + (f"; {note}" if note else "")
        _say(found.name, os.path.basename(found.release) or "-", what)


def show_path(options: argparse.Namespace) -> None:
    """Print the directory."""
    _say(resolve(options.name)[0])


def show_activation(options: argparse.Namespace) -> None:
    """Print what to type; no program can change the shell that started it."""
    directory, own = resolve(options.name)
    script = os.path.join(directory if own else os.path.join(ROOT, options.name), "bin", "activate")
    _say(f"source {_quoted(script)}  # bash, zsh\nsource {_quoted(script + '.fish')}  # fish")


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII) else f"'{word}'"  # a quote in a path is refused


def run(options: argparse.Namespace) -> None:
    """Become the command, in the environment."""
    directory, own = resolve(options.name)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise Problem("which command? gpu-env run NAME COMMAND [ARGUMENT...]", 2)
    release = _settings(os.path.join(directory, "pyvenv.cfg"))[_RELEASE] if own else directory
    environment = _settings(os.path.join(os.path.dirname(os.path.dirname(release)), "runtime.env"))
    environment.update(os.environ, VIRTUAL_ENV=directory)
    environment["PATH"] = os.path.join(directory, "bin") + os.pathsep + os.environ.get("PATH", os.defpath)
    environment.pop("PYTHONHOME", None)
    if own:
        environment["UV_CONSTRAINT"] = _uri(_constraints(directory))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the command would go on ignoring them
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 -- the command that the user asks for
    except OSError as error:
        status = _NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
        raise Problem(f"{command[0]}: {error.strerror}", status) from None


def new(options: argparse.Namespace) -> None:
    """Make an overlay."""
    name, base = options.name, options.base
    _refuse_root("gpu-env new")
    _check_name(name)
    _check_name(base)
    found = overlay(name)
    if found:
        how = _stale(found) or f"to bring it to the release that {base} serves now: gpu-env update {name}"
        raise Problem(f"you have an overlay {name} already, at {found.path}; {how}")
    managed = bases()
    if name in managed:
        raise Problem(f"{name} is the name of a managed environment; choose another one")
    release = managed.get(base)
    if release is None:
        raise Problem(f"no environment '{base}' that you can use; there is: {', '.join(managed) or 'none'}", _NOT_FOUND)
    place = registry()
    if place is None:
        raise Problem(f"uid {os.getuid()} has no account, and so no home in which root could see that {base} is in use")
    path = _place(name, options.path, place)
    link = os.path.join(place, name)
    try:
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if path != os.path.realpath(link):
            os.symlink(path, link)
        _make(path, name, base, release)
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        if os.path.islink(link):
            os.unlink(link)
        if isinstance(error, OSError):
            where = f" ({error.filename})" if error.filename else ""
            raise Problem(f"{path} cannot be made: {error.strerror}{where}; choose another place with --path") from None
        raise
    _say(f"{name} sees {os.path.basename(release)} of {base}. Use it with")
    _say(f"  gpu-env run {name} pip install PACKAGE\n  gpu-env run {name} python")
    _say(f"or, for this shell and for editors,\n  source {_quoted(path)}/bin/activate\n  {path}/bin/python")


def _refuse_root(what: str) -> None:
    if os.geteuid() == 0:
        raise Problem(
            f"{what} is for the user who will use the overlay: root would run, as root, what others can write. "
            "Run it as that user, without sudo"
        )


def _place(name: str, path: str | None, usual: str) -> str:
    """Where a new overlay will lie."""
    if path is None:
        data = os.environ.get("XDG_DATA_HOME") or ""
        path = os.path.join(data, "gpufleet", "envs", name) if os.path.isabs(data) else os.path.join(usual, name)
    path = os.path.realpath(path)
    if _UNFIT_IN_PATHS.search(path):
        raise Problem(
            f"{path!r} holds a character that PATH or a shell reads otherwise; choose another place with --path"
        )
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise Problem(f"{path} is there already and not empty; choose another place with --path")
    return path


def _make(path: str, name: str, base: str, release: str) -> None:
    """Make the virtual environment from the interpreter that the release was made from."""
    interpreter = os.path.realpath(os.path.join(release, "bin", "python"))
    command = [interpreter, "-I", "-S", "-m", "venv", "--without-pip", "--prompt", name, path]
    status, said = _call(command)
    if status != 0:
        raise Problem(f"{path} cannot be made: {said}; choose another place with --path")
    _add_pip(path)
    _guard_uv(path)
    with open(os.path.join(path, "pip.conf"), "w", encoding="utf-8") as file:
        file.write(
            f"# {MARK}: what the base brings keeps its version.\n[install]\nconstraint = {_uri(_constraints(path))}\n"
        )
    see(path, base, release)
    if not os.path.isdir(release):  # a switch and the pruning after it came in between
        raise Problem(f"{base} was changed in the meantime; run the command again")


def _add_pip(path: str) -> None:
    """Bring pip: from the interpreter's own store, else, as on Debian without python3-venv, with uv from the package index."""
    python = os.path.join(path, "bin", "python")
    status, said = _call([python, "-I", "-m", "ensurepip", "--default-pip"])
    if status == 0:
        if os.path.isdir(
            os.path.join(_packages(path), "setuptools")
        ):  # Python before 3.12: it would hide the base's newer one
            status, said = _call([python, "-I", "-m", "pip", "--no-input", "uninstall", "-q", "-y", "setuptools"])
    else:
        tools = sorted(glob.glob(os.path.join(glob.escape(ROOT), ".tools", "uv-*", "uv")))
        if tools:
            status, said = _call([tools[-1], "pip", "install", "--quiet", "--python", python, "pip"])
    if status != 0:
        raise Problem(
            f"pip cannot be had: {said}. Have Python's ensurepip installed (Debian, Ubuntu: the package python3-venv), or let "
            "uv reach a package index (UV_DEFAULT_INDEX)"
        )


def _call(command: list[str]) -> tuple[int, str]:
    """(exit status, the last line that was said)."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return done.returncode, lines[-1] if lines else f"exit status {done.returncode}"


def _guard_uv(path: str) -> None:
    """uv reads no configuration in a virtual environment: while it is active, a variable keeps torch's family as it is."""
    uri = _uri(_constraints(path))
    for script, setting, begin, removal in (
        (
            "activate",
            f"UV_CONSTRAINT='{uri}'\nexport UV_CONSTRAINT\n",
            "    unset VIRTUAL_ENV\n",
            "    unset UV_CONSTRAINT\n",
        ),
        ("activate.fish", f"set -gx UV_CONSTRAINT '{uri}'\n", "    set -e VIRTUAL_ENV\n", "    set -e UV_CONSTRAINT\n"),
    ):
        file_name = os.path.join(path, "bin", script)
        with open(file_name, encoding="utf-8") as file:
            text = file.read()
        _replace(file_name, text.replace(begin, removal + begin, 1) + setting)


def see(path: str, base: str, release: str) -> None:
    """Make an overlay see one release. What says so to root comes last: until then the overlay counts as unfinished, or as before."""
    packages = _packages(path)
    versions = distributions(release)
    family = {name: version for name, version in versions.items() if name in FAMILY or name.startswith("nvidia-")}
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(family.items()))
    _replace(_constraints(path), f"# {MARK}: torch's family as {base} has it.\n{pins}")
    # addsitedir also runs the release's own .pth files, and with them the module that sets the runtime variables.
    _replace(os.path.join(packages, "gpufleet_base.pth"), f"import site; site.addsitedir({_packages(release)!r})\n")
    _show_distributions(packages, _packages(release))
    _show_scripts(path, release)
    with open(os.path.join(path, "pyvenv.cfg"), encoding="utf-8") as file:
        kept = [line for line in file if line.partition("=")[0].strip() not in (_BASE, _RELEASE)]
    _replace(os.path.join(path, "pyvenv.cfg"), "".join([*kept, f"{_BASE} = {base}\n", f"{_RELEASE} = {release}\n"]))


def _show_distributions(packages: str, seen: str) -> None:
    """Copy the descriptions of the base's packages: uv looks for packages in the overlay's own directory alone.

    A package of the user's own keeps its description. To replace or uninstall a copied one removes the copy and nothing else.
    """
    for info in _copies(packages):
        shutil.rmtree(os.path.join(packages, info))
    own = {_project(info) for info in os.listdir(packages) if info.endswith(".dist-info")}
    for info in (name for name in os.listdir(seen) if name.endswith(".dist-info") and _project(name) not in own):
        copy = os.path.join(packages, info)
        shutil.copytree(os.path.join(seen, info), copy, ignore=shutil.ignore_patterns("RECORD", "INSTALLER"))
        _replace(os.path.join(copy, "INSTALLER"), _INSTALLER)
        places = [
            os.path.relpath(os.path.join(place, file), packages)
            for place, _folders, files in os.walk(copy)
            for file in files
        ]
        _replace(os.path.join(copy, "RECORD"), "".join(f"{place},,\n" for place in [*sorted(places), f"{info}/RECORD"]))


def _copies(packages: str) -> list[str]:
    """The descriptions that were copied from a base."""
    found = []
    for info in sorted(os.listdir(packages)):
        with contextlib.suppress(OSError), open(os.path.join(packages, info, "INSTALLER"), encoding="utf-8") as file:
            found += [info] if file.read() == _INSTALLER else []
    return found


def _show_scripts(path: str, release: str) -> None:
    """Give the base's commands, such as torchrun, to the overlay's Python: the base's own would not see the user's packages."""
    python = os.path.join(path, "bin", "python")
    first = f"#!{python}\n"
    if len(first) > _SHEBANG_LIMIT or " " in python:
        first = f"#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''\n"
    mark = f"# {MARK}: as in the base, for the overlay's Python.\n"
    for present in os.scandir(os.path.join(path, "bin")):
        if mark in _script(present.path):
            os.unlink(present.path)
    for given in os.scandir(os.path.join(release, "bin")):
        text = _script(given.path)
        head = re.match(
            rf"#!(?:/bin/sh\n'''exec' )?'?{re.escape(release)}/bin/python[0-9.]*(?:'?[^\n]*\n' '''\n|\n)", text
        )
        target = os.path.join(path, "bin", given.name)
        if head and not os.path.lexists(target):
            _replace(target, f"{first}{mark}{text[head.end() :]}", 0o755)


def _script(path: str) -> str:
    """The text of a small script; empty for everything else."""
    if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > 65536:
        return ""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read() if file.read(2) == "#!" and file.seek(0) == 0 else ""


def update(options: argparse.Namespace) -> None:
    """Bring an overlay to the release that its base serves now."""
    _refuse_root("gpu-env update")
    _check_name(options.name)
    found = overlay(options.name)
    if not found:
        raise Problem(f"you have no overlay {options.name}; 'gpu-env list' shows what there is", _NOT_FOUND)
    if not found.release:
        raise Problem(f"{found.name} cannot be updated: {_stale(found)}")
    release = release_of(found.base)
    if release is None:
        raise Problem(f"there is no environment '{found.base}' any more that you can use")
    if _python_of(release) != _python_of(found.path):
        own = distributions(found.path, _copies(_packages(found.path)))
        raise Problem(
            f"{found.base} has another Python now, {_python_of(release)}, for which the packages of {found.name} were not made. "
            f"Make a new overlay and install them there: {' '.join(f'{name}=={version}' for name, version in own.items())}"
        )
    if release == found.release:
        _say(f"{found.name} sees {os.path.basename(release)}, which {found.base} serves")
    else:
        _say(f"{found.base}: {os.path.basename(found.release)} -> {os.path.basename(release)}")
    before, after = distributions(found.release), distributions(release)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            _say(f"  {name} {before.get(name, '-')} -> {after.get(name, '-')}")
    if options.check:
        return
    see(found.path, found.base, release)
    python = os.path.join(found.path, "bin", "python")
    done = subprocess.run(
        [python, "-m", "pip", "check"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        _say(f"Not everything fits together any more; pip check says:\n{(done.stdout or done.stderr).strip()}")


def remove(options: argparse.Namespace) -> None:
    """Remove an overlay with everything in it."""
    _refuse_root("gpu-env remove")
    _check_name(options.name)
    found = overlay(options.name)
    if not found:
        managed = f"{options.name} is a managed environment" if options.name in bases() else "there is no such overlay"
        raise Problem(f"{managed}; 'gpu-env list' shows yours")
    if not os.path.islink(found.link):
        shutil.rmtree(found.link)
    else:
        if found.release:
            shutil.rmtree(found.path)
        elif os.path.lexists(found.path):
            _say(f"{found.path} is left as it is: it holds no complete overlay")
        os.unlink(found.link)
    _say(f"{found.name} is removed")


def distributions(directory: str, without: t.Sequence[str] = ()) -> dict[str, str]:
    """The packages in an environment's own directory: {project: version}; none where it is gone."""
    try:
        names = sorted(os.listdir(_packages(directory)))
    except (OSError, Problem):
        return {}
    infos = [name for name in names if name.endswith(".dist-info") and name not in without]
    return {_project(info): info[: -len(".dist-info")].rpartition("-")[2] for info in infos}


def _project(info: str) -> str:
    """The normal name of the project that a directory *.dist-info describes."""
    return re.sub(r"[-_.]+", "-", info[: -len(".dist-info")].rpartition("-")[0]).lower()


def _packages(directory: str) -> str:
    found = glob.glob(os.path.join(glob.escape(directory), "lib", "python3.*", "site-packages"))
    if len(found) != 1:
        raise Problem(f"{directory} is no complete environment")
    return found[0]


def _python_of(directory: str) -> str:
    """The Python of an environment, as in python3.11."""
    return os.path.basename(os.path.dirname(_packages(directory)))


def _constraints(path: str) -> str:
    return os.path.join(path, "constraints.txt")


def _uri(path: str) -> str:
    """A path as pip and uv take it where a list is separated by blanks."""
    from urllib.parse import quote  # pylint: disable=import-outside-toplevel  # it would cost every start of a command 5 ms

    return "file://" + quote(path)


def _replace(path: str, text: str, mode: int = 0o644) -> None:
    scratch = f"{path}.{os.getpid()}"
    with open(scratch, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    os.rename(scratch, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu-env",
        allow_abbrev=False,
        description="Run commands in environments with torch, and make overlays of them.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, action: t.Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(action=action)
        if name != "list":
            command.add_argument("name", metavar="NAME")
        return command

    add("list", show_list, "the environments, and your overlays, with their releases")
    add("run", run, "run a command in an environment").add_argument("command", metavar="CMD", nargs=argparse.REMAINDER)
    add("path", show_path, "the directory of an environment, as it is now")
    add("activate", show_activation, "what to type to activate an environment in your shell")
    making = add("new", new, "make an overlay of your own: it sees a release of BASE, and takes your packages")
    making.add_argument(
        "--from", dest="base", metavar="BASE", required=True, help="the managed environment to build upon"
    )
    making.add_argument("--path", metavar="DIR", help="where to put it, instead of your ~/.local/share/gpufleet/envs")
    updating = add("update", update, "let an overlay see the release that its base serves now")
    updating.add_argument("--check", action="store_true", help="only show what would change")
    add("remove", remove, "remove an overlay with everything in it")
    return parser


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        options.action(options)
        sys.stdout.flush()
    except Problem as problem:
        _complain(f"gpu-env: {problem}")
        return problem.status
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"gpu-env: {where}{error.strerror}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
