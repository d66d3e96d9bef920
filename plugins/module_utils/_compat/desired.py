# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the desired state, validated. Everything that no host could have is InvalidDesired here.

What depends on the host (a GPU, a driver, an index) is not judged here: that is a refusal of the plan.
"""

from __future__ import annotations

import difflib
import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import breaking, matrix
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.additions import Additions, parse_additions
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import STEPS, InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock

DEFAULT_ROOT = "/opt/gpufleet/envs"
COMPANIONS = ("torchvision", "torchaudio")
SWITCH_AFTER = ("static", "quick")
INTEGRITY = ("sizes", "hashes")
SCOPES = ("host", "environment")

_ENVIRONMENT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Who logs in, or the loader and the interpreter before any file of ours is read, decides on these.
_NOT_OURS = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|PWD|IFS|ENV|BASH_ENV|LD_\w+|PYTHON(?:PATH|HOME)")
# The files that set a variable read these in different ways, and not the same way in every version.
_FORBIDDEN_IN_VALUES = {
    "\"'`": "quotes",
    "\\": "backslashes, which some files take for the start of an escape",
    "$": "'$', which shells and environment.d(5) expand",
    "%": "'%', which systemd-system.conf(5) expands",
    "#": "'#', at which pam_env(8) ends the line",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST_LINE = 1000
"""Bytes of NAME=value: pam_env before Linux-PAM 1.5 reads no longer lines."""
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_.-]{0,30}\$?", re.IGNORECASE)
_URL = re.compile(r"(?:https?|file)://[^\s\x00-\x1f\x7f\"'`\\<>]+")
_TORCH = re.compile(r"([0-9]+(?:\.[0-9]+){0,2}(?:(?:a|b|rc|\.dev|\.post)[0-9]+)?)(?:\+([a-z0-9][a-z0-9.]*))?")
_TAG = re.compile(r"[a-z][a-z0-9.]{0,15}")
_PYTHON = re.compile(r"3\.[0-9]{1,2}")
_DRIVER_VERSION = re.compile(r"[0-9]{3,4}(?:\.[0-9]+){0,2}")
_PCI_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_REQUIREMENT = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*(?:[<>=!~][^@#;\\\n\r]*)?(?:;[^#\\\n\r]*)?"
)
_ROOT = re.compile(r"(?:/[A-Za-z0-9._+-]+){2,}")
# What belongs to the system: the directory itself, and anything below a directory of the second list.
_NO_ROOT = ("/usr/local", "/var/lib")
_NO_ROOT_BELOW = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys"),
    *("/usr/bin", "/usr/include", "/usr/lib", "/usr/sbin", "/usr/share"),
)

_PREFIXES = {
    "driver": "nvidia_driver_",
    "torch": "torch_env_",
    "mirror": "torch_env_mirror_",
    "runtime": "runtime_env_",
    "proof": "gpu_proof_",
}
_DEFAULTS: t.Mapping[str, t.Any] = matrix.DEFAULTS
_TOP_LEVEL = ("python", "environments", "root", "package_index_url", "keep", "smoke", "switch_after")


@dataclass(frozen=True)
class DesiredDriver:
    state: str
    minimum: str
    branch: int | None
    flavor: str | None
    source: str | None
    package_set: str | None
    repository_url: str
    repository_key: str
    reboot_allowed: bool
    downgrade_allowed: bool
    gpus_exclude: tuple[str, ...]
    branch_preferred: int | None
    accept_missing_gpus: bool
    mok_password_set: bool
    drains: bool
    """Whether a command of the user ends what computes before the driver is replaced."""


@dataclass(frozen=True)
class DesiredTorch:
    """A torch build. `cuda` is what the variable of that name says, `tag` what is asked for in all; None: the plan may choose."""

    version: str
    cuda: str | None
    tag: str | None
    index_url: str
    index_base_url: str
    custom_index: bool


@dataclass(frozen=True)
class DesiredMirror:
    """Where hosts fetch from instead of the indexes themselves; empty where they do not."""

    index_base_url: str
    package_index_url: str


@dataclass(frozen=True)
class DesiredEnvironment:
    name: str
    torch: DesiredTorch
    python: str | None
    companions: tuple[str, ...]
    requirements: tuple[str, ...]
    owner: str
    group: str
    smoke: tuple[str, ...]
    """A command that has to succeed in a release before that one may become current."""
    switch_after: str
    """The level of proof that a release has to pass before it may become current."""
    variables: t.Mapping[str, str]
    """All that its processes get, those of the host included."""


@dataclass(frozen=True)
class DesiredRuntime:
    state: str
    scope: str
    """Who gets the variables: every process of the host, or those of the environments alone."""
    variables: t.Mapping[str, str]


@dataclass(frozen=True)
class Desired:
    """The desired state of one host, complete and valid."""

    driver: DesiredDriver
    environments: tuple[DesiredEnvironment, ...]
    environments_alone: bool
    """Whether nothing but these environments may be touched."""
    root: str
    package_index_url: str
    mirror: DesiredMirror
    keep: int
    locks: t.Mapping[str, lock.Lock]
    """Environment name to its lock."""
    integrity: str
    """How releases are compared with what was stamped."""
    runtime: DesiredRuntime
    proof: t.Mapping[str, t.Any]
    steps: tuple[str, ...]
    knowledge: Additions
    """Rows that the inventory adds to the knowledge base."""


def parse(given: t.Mapping[str, t.Any] | None) -> Desired:
    """Check and complete a desired state. Raises InvalidDesired, naming the variable."""
    top = _Section("", {} if given is None else given)
    top.only(
        *(
            "driver",
            "torch",
            "python",
            "environments",
            "environments_alone",
            "root",
            "package_index_url",
            "mirror",
            "keep",
            "smoke",
            "switch_after",
            "integrity",
            "locks",
            "runtime",
            "proof",
            "steps",
            "knowledge",
        )
    )
    torch = _torch(top.section("torch"))
    python = _python(top, "python")
    runtime = _runtime(top.section("runtime"))
    return Desired(
        driver=_driver(top.section("driver")),
        environments=_environments(top, torch, python, runtime),
        environments_alone=top.flag("environments_alone"),
        root=_root(top),
        package_index_url=top.url("package_index_url"),
        mirror=_mirror(top, torch),
        keep=top.number("keep", 2, 2),
        locks=_locks(top.section("locks")),
        integrity=top.choice("integrity", INTEGRITY, "sizes"),
        runtime=runtime,
        proof=_proof(top.section("proof")),
        steps=_steps(top),
        knowledge=parse_additions(top.values.get("knowledge"), [str(row["version"]) for row in matrix.CUDA]),
    )


class _Section:
    """One mapping of the desired state, with typed access that names the variable in every complaint."""

    def __init__(self, path: str, values: t.Any) -> None:
        self.path = path
        if not isinstance(values, t.Mapping):
            raise InvalidDesired(f"{self.name() or 'the desired state'} must be a mapping, not {_kind(values)}")
        self.values = values

    def name(self, key: str = "") -> str:
        """Name a key both as the role variable and as the key of the desired state."""
        full = ".".join(part for part in (self.path, key) if part)
        variable = None
        if self.path in _PREFIXES and key:
            variable = _PREFIXES[self.path] + key
        elif not self.path and key in _TOP_LEVEL:
            variable = f"torch_env_{key}"
        elif not self.path and key == "integrity":
            variable = "gpufleet_integrity"
        elif self.path.startswith("environments"):
            variable = "torch_env_environments"
        return f"{variable} ({full})" if variable and variable != full else full

    def only(self, *known: str) -> None:
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
                raise InvalidDesired(f"{self.name()}{': ' if self.path else ''}there is no {key!r}{hint}")

    def bad(self, key: str, expectation: str) -> InvalidDesired:
        return InvalidDesired(f"{self.name(key)} {expectation}; it is {_shown(self.values.get(key))}")

    def section(self, key: str) -> _Section:
        values = self.values.get(key)
        return _Section(f"{self.path}.{key}" if self.path else key, {} if values is None else values)

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.bad(key, "must be a string")
        return str(value).strip()

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise self.bad(key, f"must be one of {', '.join(choices)}")
        return value

    def matching(self, key: str, default: str, pattern: re.Pattern[str], expectation: str) -> str:
        value = self.text(key, default)
        if not pattern.fullmatch(value):
            raise self.bad(key, expectation)
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word in ("true", "yes", "on", "1"):
            return True
        if word in ("false", "no", "off", "0", "none"):
            return False
        raise self.bad(key, "must be true or false")

    def number(self, key: str, default: int, minimum: int) -> int:
        value = self.values.get(key, default)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.bad(key, f"must be a number, at least {minimum}")
        return value

    def strings(self, key: str) -> list[str] | None:
        values = self.values.get(key)
        if values is None:
            return None
        if isinstance(values, (str, bytes)) or not isinstance(values, t.Sequence):
            raise self.bad(key, "must be a list")
        if not all(isinstance(value, str) for value in values):
            raise self.bad(key, "must be a list of strings")
        return [value.strip() for value in values]

    def url(self, key: str) -> str:
        value = self.text(key)
        if value and not _URL.fullmatch(value):
            raise self.bad(key, "must be an http, https or file URL without spaces or quotes")
        return value.rstrip("/")


def _driver(section: _Section) -> DesiredDriver:
    section.only("state", "minimum", "branch", "flavor", "source", "package_set", "repository_url", "repository_key",
                 "reboot_allowed", "downgrade_allowed", "gpus_exclude", "branch_preferred", "accept_missing_gpus",
                 "mok_password_set", "drains")  # fmt: skip
    branch = section.text("branch", "auto")
    if branch != "auto" and not re.fullmatch(r"[0-9]{3,4}", branch):
        raise section.bad("branch", "must be auto or the number of a branch, such as 580")
    preferred = section.text("branch_preferred")
    if preferred and not re.fullmatch(r"[0-9]{3,4}", preferred):
        raise section.bad("branch_preferred", "must be empty or the number of a branch, such as 595")
    if preferred and branch != "auto":
        raise InvalidDesired(
            f"{section.name('branch')} asks for {branch} on every host and {section.name('branch_preferred')} for the newest up to "
            f"{preferred} that each can have; leave one of them out"
        )
    key = section.text("repository_key")
    if key and "-----BEGIN PGP PUBLIC KEY BLOCK-----" not in key:
        raise InvalidDesired(f"{section.name('repository_key')} must hold an ASCII-armoured OpenPGP public key")
    return DesiredDriver(
        state=section.choice("state", ("present", "absent"), "present"),
        minimum=section.matching(
            "minimum",
            _DEFAULTS["driver_minimum"],
            _DRIVER_VERSION,
            "must be a driver version such as 550 or 570.133.07",
        ),
        branch=None if branch == "auto" else int(branch),
        flavor=_unless_auto(section.choice("flavor", ("auto", "open", "proprietary"), "auto")),
        source=_unless_auto(section.choice("source", ("auto", "nvidia", "distro"), "auto")),
        package_set=_unless_auto(section.choice("package_set", ("auto", "compute", "desktop"), "auto")),
        repository_url=section.url("repository_url"),
        repository_key=key,
        reboot_allowed=section.flag("reboot_allowed"),
        downgrade_allowed=section.flag("downgrade_allowed"),
        gpus_exclude=tuple(_address(section, value) for value in section.strings("gpus_exclude") or ()),
        branch_preferred=int(preferred) if preferred else None,
        accept_missing_gpus=section.flag("accept_missing_gpus"),
        mok_password_set=section.flag("mok_password_set"),
        drains=section.flag("drains"),
    )


def normal_pci_address(address: str) -> str | None:
    """Write a PCI address as sysfs does (0000:01:00.0), whatever its case and domain; None for anything else."""
    match = _PCI_ADDRESS.fullmatch(address.lower())
    return f"{(match[1] or '0')[-4:]:0>4}:{match[2]}" if match else None


def _address(section: _Section, value: str) -> str:
    address = normal_pci_address(value)
    if address is None:
        raise InvalidDesired(
            f"{section.name('gpus_exclude')} must list PCI addresses such as 0000:01:00.0, not {_shown(value)}"
        )
    return address


def _torch(section: _Section, default: DesiredTorch | None = None) -> DesiredTorch:
    """Read {version, cuda, index_url, index_base_url}; what is missing comes from `default`."""
    section.only("version", "cuda", "index_url", "index_base_url")
    match = _TORCH.fullmatch(section.text("version", default.version if default else _DEFAULTS["torch"]))
    if not match:
        raise section.bad("version", "must be a version such as 2.9.1 or 2.9.1+cu128")
    own = _unless_auto(section.matching("cuda", "auto", _TAG, "must be auto or a CUDA tag such as cu128"))
    if match[2] and own and own != match[2]:
        raise InvalidDesired(f"{section.name('version')} asks for {match[2]} and {section.name('cuda')} for {own}")
    tag = own or match[2]
    if default and not tag and "cuda" not in section.values:
        tag = default.cuda if "version" in section.values else default.tag
    index_url = section.url("index_url") or (default.index_url if default else "")
    base = section.url("index_base_url") or (default.index_base_url if default else "")
    named = re.fullmatch(r"cu[0-9]{3}", index_url.rsplit("/", 1)[-1]) if index_url else None
    if named and tag and named[0] != tag:
        raise InvalidDesired(f"{section.name('index_url')} is the index of {named[0]}, but {tag} is asked for")
    return DesiredTorch(
        version=match[1],
        cuda=own,
        tag=tag or (named[0] if named else None),
        index_url=index_url,
        index_base_url=base or _DEFAULTS["torch_index_base_url"],
        custom_index=bool(index_url or (base and base != _DEFAULTS["torch_index_base_url"])),
    )


def _mirror(top: _Section, torch: DesiredTorch) -> DesiredMirror:
    section = top.section("mirror")
    section.only("index_base_url", "package_index_url")
    mirror = DesiredMirror(section.url("index_base_url"), section.url("package_index_url"))
    for key, real in (("index_base_url", torch.index_base_url), ("package_index_url", top.url("package_index_url"))):
        if real and section.url(key) == real:
            raise InvalidDesired(
                f"{section.name(key)} and torch_env_{key} name the same place. Locks are made from the latter, so it has to be the index "
                "itself; hosts use it too where no mirror is named"
            )
    return mirror


def _python(section: _Section, key: str, default: str | None = None) -> str | None:
    value = section.text(key, default or "auto")
    if value != "auto" and not _PYTHON.fullmatch(value):
        raise section.bad(key, "must be auto or a version such as 3.12 (in quotes: YAML reads 3.10 as the number 3.1)")
    return _unless_auto(value)


def _environments(
    top: _Section, torch: DesiredTorch, python: str | None, runtime: DesiredRuntime
) -> tuple[DesiredEnvironment, ...]:
    values = top.values.get("environments")
    if values is None:
        values = [{"name": "base"}]
    if isinstance(values, (str, bytes)) or not isinstance(values, t.Sequence):
        raise top.bad("environments", "must be a list")
    smoke = _smoke(top) if top.values.get("smoke") else ()
    switch_after = top.choice("switch_after", SWITCH_AFTER, "static")
    found: dict[str, DesiredEnvironment] = {}
    for number, value in enumerate(values):
        section = _Section(f"environments[{number}]", value)
        section.only(
            *(
                "name",
                "torch",
                "cuda",
                "python",
                "companions",
                "requirements",
                "owner",
                "group",
                "smoke",
                "switch_after",
                "variables",
            )
        )
        environment = _environment(section, torch, python, smoke, switch_after, runtime)
        if environment.name in found:
            raise InvalidDesired(f"{section.name('name')}: there are two environments named {environment.name}")
        found[environment.name] = environment
    return tuple(found.values())


def _environment(
    section: _Section,
    torch: DesiredTorch,
    python: str | None,
    smoke: tuple[str, ...],
    switch_after: str,
    runtime: DesiredRuntime,
) -> DesiredEnvironment:
    """Read one environment; what is missing comes from the other arguments."""
    name = section.matching(
        "name", "", _ENVIRONMENT_NAME,
        "must begin with a lower-case letter or a digit and hold only those, '.', '_' and '-', at most 63 in all",
    )  # fmt: skip
    asked = {key: section.values[key] for key in ("torch", "cuda") if section.values.get(key) is not None}
    own = _Section(section.path, {{"torch": "version"}.get(key, key): value for key, value in asked.items()})
    companions = section.strings("companions")
    for companion in companions or ():
        if companion not in COMPANIONS:
            raise InvalidDesired(
                f"{section.name('companions')} may hold {' and '.join(COMPANIONS)}, not {_shown(companion)}; "
                "other packages belong to requirements"
            )
    companions = list(COMPANIONS) if companions is None else [item for item in COMPANIONS if item in companions]
    return DesiredEnvironment(
        name=name,
        torch=_torch(own, torch),
        python=_python(section, "python", python),
        companions=tuple(companions),
        requirements=_requirements(section, companions),
        owner=section.matching("owner", "root", _ACCOUNT, "must be the name of an account"),
        group=section.matching("group", "root", _ACCOUNT, "must be the name of a group"),
        smoke=smoke if section.values.get("smoke") is None else _smoke(section),
        switch_after=section.choice("switch_after", SWITCH_AFTER, switch_after),
        variables=_own_variables(section, runtime),
    )


def _own_variables(section: _Section, runtime: DesiredRuntime) -> dict[str, str]:
    """What an environment's processes get: the host's variables and, before them, its own."""
    own = _variables(section) or {}
    for name, value in own.items() if runtime.scope == "host" else ():
        if runtime.variables.get(name, value) != value:
            raise InvalidDesired(
                f"{section.name('variables')}: {name} is {_shown(value)} there and {_shown(runtime.variables[name])} in "
                "runtime_env_variables, which every process of the host has already and keeps. Leave one out, or set "
                "runtime_env_scope: environment"
            )
    return dict(sorted({**runtime.variables, **own}.items())) if runtime.state == "present" else {}


def _smoke(section: _Section) -> tuple[str, ...]:
    """A program and its arguments, as they are: blanks at the end of an argument may be meant."""
    words = section.values.get("smoke")
    if isinstance(words, (str, bytes)) or not isinstance(words, t.Sequence) or not words:
        raise section.bad(
            "smoke", "must be a list, a program and its arguments, such as [python, -c, 'import mypackage']"
        )
    if not all(isinstance(word, str) and word and "\0" not in word for word in words):
        raise section.bad("smoke", "must be a list of strings, none of them empty")
    return tuple(words)


def _requirements(section: _Section, companions: list[str]) -> tuple[str, ...]:
    requirements = section.strings("requirements") or []
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if not match or not requirement.isprintable():
            raise InvalidDesired(
                f"{section.name('requirements')} may hold names with versions, such as transformers>=4.50, and neither options "
                f"nor URLs nor paths: {_shown(requirement)}"
            )
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        if name == "torch" or name in companions:
            raise InvalidDesired(
                f"{section.name('requirements')}: {name} has one version that fits and comes with the environment; "
                f"drop {_shown(requirement)}"
            )
    return tuple(sorted(set(requirements)))


def _root(top: _Section) -> str:
    root = top.text("root", DEFAULT_ROOT).rstrip("/")
    parts = root.split("/")
    if not _ROOT.fullmatch(root) or "." in parts or ".." in parts:
        raise top.bad(
            "root", "must be an absolute path of letters, digits, '.', '_', '+' and '-', two levels deep, without '..'"
        )
    if root in _NO_ROOT or any(f"{root}/".startswith(f"{place}/") for place in _NO_ROOT_BELOW):
        raise top.bad(
            "root", f"must be a directory of its own such as {DEFAULT_ROOT}: everything in it belongs to the role"
        )
    return root


def _locks(section: _Section) -> dict[str, lock.Lock]:
    """The locks by environment, as their texts."""
    found = {}
    for name, text in section.values.items():
        try:
            found[name] = lock.parse(str(text))
        except lock.InvalidLock as error:
            raise InvalidDesired(f"{section.name(name)} is no lock: {error}") from None
    return found


def _runtime(section: _Section) -> DesiredRuntime:
    section.only("state", "scope", "variables")
    given = _variables(section)
    return DesiredRuntime(
        section.choice("state", ("present", "absent"), "present"),
        section.choice("scope", SCOPES, "host"),
        {str(matrix.TOKENIZERS["variable"]): str(matrix.TOKENIZERS["written"])} if given is None else given,
    )


def _variables(section: _Section) -> dict[str, str] | None:
    """Names and values, checked; None where nothing is said."""
    given = section.values.get("variables")
    if given is None:
        return None
    if not isinstance(given, t.Mapping):
        raise section.bad("variables", "must be a mapping of names to values")
    return {name: _variable(section.name("variables"), name, given[name]) for name in sorted(given, key=str)}


def _variable(where: str, name: t.Any, value: t.Any) -> str:
    if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
        raise InvalidDesired(
            f"{where}: {_shown(name)} is no name of a variable; letters, digits and '_' make one, a digit not the first"
        )
    if _NOT_OURS.fullmatch(name):
        raise InvalidDesired(
            f"{where}: {name} cannot be set here: the login, the loader or Python decides on it before any of our files is read, "
            "and a wrong value breaks every program. Set it in the one unit or script that needs it"
        )
    if name == matrix.TOKENIZERS["variable"]:
        if str(value).strip().lower() not in matrix.TOKENIZERS["false_values"]:
            raise InvalidDesired(
                f'{where}: {name} must be "false", not {_shown(value)}: the tokenizers library reads anything else as true, and a '
                "process that forks after using it then deadlocks. A process that never forks can set it for itself"
            )
        return str(matrix.TOKENIZERS["written"])
    if isinstance(value, bool) or not isinstance(value, (str, int)):  # of a fraction YAML may have dropped a zero
        raise InvalidDesired(f"{where}: the value of {name} must be a string in quotes, not {_shown(value)}")
    text = str(value)
    problem = _value_problem(name, text)
    if problem:
        raise InvalidDesired(
            f"{where}: the value of {name} must not {problem}, so that it is the same in every context: {_shown(value)}"
        )
    row = breaking.judge(name, text)
    if row and row.refused:
        raise InvalidDesired(f"{where}: {name} is not set for everybody, because {row.why}")
    return text


def _value_problem(name: str, text: str) -> str | None:
    """What a value must not do, completing a sentence; None where every file that sets it can hold it."""
    if _CONTROL.search(text):
        return "hold line ends or other control characters"
    if not text or text != text.strip():
        return "be empty, or begin or end with a space"
    if len(f"{name}={text}".encode()) > _LONGEST_LINE:
        return f"be longer than {_LONGEST_LINE} bytes with its name"
    for characters, what in _FORBIDDEN_IN_VALUES.items():
        if any(character in text for character in characters):
            return f"hold {what}"
    return None


def _proof(section: _Section) -> dict[str, t.Any]:
    section.only("level", "required_level", "time_limit", "max_age")
    return {
        "level": section.choice("level", judge.LEVELS, "quick"),
        "required_level": section.choice("required_level", judge.LEVELS, "quick"),
        "time_limit": section.number("time_limit", 0, 0),
        "max_age": section.number("max_age", 168, 0),
    }


def _steps(top: _Section) -> tuple[str, ...]:
    steps = top.strings("steps")
    if steps is None:
        return STEPS
    for step in steps:
        if step not in STEPS:
            raise InvalidDesired(f"steps may hold {', '.join(STEPS)}, not {_shown(step)}")
    return tuple(step for step in STEPS if step in steps)


def _unless_auto(value: str) -> str | None:
    return None if value == "auto" else value


def _kind(value: t.Any) -> str:
    return {list: "a list", str: "a string", bool: "a boolean", int: "a number", type(None): "nothing"}.get(
        type(value), f"of type {type(value).__name__}"
    )


def _shown(value: t.Any) -> str:
    """Quote a value for a message, short enough for one."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
