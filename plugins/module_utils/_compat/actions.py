# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what a host lacks of what was decided, as actions in order. Pure.

Everything that is managed is compared with the observation, files by their hashes. A host that has it all gets no action.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Driver, Notes, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired, parse
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.driver_actions import (
    DRIVER_PATHS,
    driver_actions,
    is_stale,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Action,
    Knowledge,
    ManagedFile,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.proof import (
    proof_actions,
    why_no_gpu_proof,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.runtime import (
    SYSTEM_PATHS,
    environment_path,
    runtime_actions,
    warn_of_breaking,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import takeaway
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.mounts import REMEDY, is_shared, why_not
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.startup import (
    command_file,
    environment_files,
)

COMMAND_PATH = "/usr/local/bin/gpu-env"


def observation_request(desired: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    """The options of gpu_info that show everything a plan for this desired state compares. Raises InvalidDesired."""
    wanted = parse(desired)
    files = [*DRIVER_PATHS, *SYSTEM_PATHS, COMMAND_PATH]
    for environment in wanted.environments:
        files += [environment_path(wanted, environment.name), *environment_files(wanted.root, environment.name)]
        files += takeaway.paths(wanted.root, environment.name)
    return {
        "root": wanted.root,
        "environments": [environment.name for environment in wanted.environments],
        "files": files,
        "variables": list(wanted.runtime.variables),
        "integrity": wanted.integrity,
    }


def urls_to_ask(plan: t.Mapping[str, t.Any]) -> list[str]:
    """What a plan's builds will download from: an observation with these URLs lets the planner refuse before a change."""
    builds = {action["data"]["environment"] for action in plan["actions"] if action["id"].startswith("torch.build:")}
    pages = (_index_page(item) for item in plan["environments"] if item["name"] in builds)
    return list(dict.fromkeys(page for page in pages if page.startswith(("http://", "https://"))))


def _index_page(environment: t.Mapping[str, t.Any]) -> str:
    return f"{environment['index_url'].rstrip('/')}/torch/"


def plan_actions(
    host: Host,
    driver: Driver,
    environments: t.Sequence[dict[str, t.Any]],
    wanted: Desired,
    knowledge: Knowledge,
    notes: Notes,
) -> list[Action]:
    """Return what is to be done, in order, and refuse what the host's state does not allow.

    An environment that has to wait for its switch is proven as it serves: its ``proof`` changes.
    """
    actions = []
    if "driver" in wanted.steps and driver.managed:
        actions += driver_actions(host, driver, wanted, knowledge, notes)
    if "torch" in wanted.steps:
        starts_driver = any(action.id in ("driver.load", "driver.reboot") for action in actions)
        actions += _torch_actions(host, environments, wanted, knowledge, notes, starts_driver)
    if "runtime" in wanted.steps:
        actions += runtime_actions(host, wanted, notes)
    warn_of_breaking(host, notes)
    if host.driver.get("reboot_required") and not is_stale(host):
        notes.warn(
            "The host asks for a reboot, for a kernel or a driver that was installed; the driver here does not need it."
        )
    uid = host.os.get("uid")
    if actions and uid not in (None, 0):
        notes.refuse(
            "not_root",
            f"the host has to be changed, but tasks run there as user id {uid}",
            "Use become (ansible-playbook --become --ask-become-pass), or connect as root.",
        )
    drift = {}
    if "torch" not in wanted.steps:
        drift = {item["name"]: _why_rebuild(item, host.environment(item["name"])) for item in environments}
    return actions + proof_actions(host, environments, actions, drift, wanted, notes)


# ---- environments -----------------------------------------------------------------------------------------------------


def _torch_actions(
    host: Host,
    environments: t.Sequence[dict[str, t.Any]],
    wanted: Desired,
    knowledge: Knowledge,
    notes: Notes,
    starts_driver: bool,
) -> list[Action]:
    file_system = host.free(wanted.root).get("file_system")
    if is_shared(file_system):
        notes.refuse("root_shared", why_not(wanted.root, file_system), REMEDY)
    actions: list[Action] = []
    builds = []
    for position, environment in enumerate(environments):
        name = environment["name"]
        data = {"environment": name}
        seen = host.environment(name)
        release, why = _release(environment, seen)
        if why and release is None:
            builds.append(name)
            _check_index(host, environment, notes)
            actions += _python_actions(environment, actions)
            what = f"build {environment['spec']['torch']} for the environment {name}"
            actions.append(Action(f"torch.build:{name}", "torch", what, why, data))
        what = f"switch the environment {name} to {release or 'the new release'}"
        wait = None if starts_driver or not why else _why_switch_waits(host, environment, wanted)
        if wait is not None:
            notes.wait(what, f"{why}; {wait[0]}", wait[1])
            environment["proof"] = _proof_of_what_serves(environment, seen)
        elif why:
            serving = f"{seen.get('current')} serves now" if seen.get("current") else "nothing serves now"
            actions.append(Action(f"torch.switch:{name}", "torch", what, serving, data))
        else:
            actions += _proof_actions(environment, seen, data)
        left = seen.get("leftovers") if wait is None else None  # the build or switch that ends the wait removes them
        if left:
            what = f"remove what is left of {listed(left)}"
            actions.append(Action(f"torch.clean:{name}", "torch", what, "a removal was interrupted", data))
        drift = [] if why else _launcher_drift(host, wanted, name, with_command=position == 0)
        if drift:
            actions.append(
                Action("torch.launcher", "torch", f"write {listed(drift)}", "it differs or is missing", data)
            )
        stale = [] if why else _stale_takeaway(host, environment, wanted)
        if stale:
            actions.append(
                Action(f"torch.takeaway:{name}", "torch", f"write {listed(stale)}", "it differs or is missing", data)
            )
    _check_space(host, builds, wanted, knowledge, notes)
    return actions


def _why_switch_waits(host: Host, environment: t.Mapping[str, t.Any], wanted: Desired) -> tuple[str, str] | None:
    """Why the quick proof, where that decides on the switch, cannot be made now, with what to do; None where it can."""
    if environment["switch_after"] != "quick":
        return None
    otherwise = "Or let the static proof decide (torch_env_switch_after: static)."
    missing = why_no_gpu_proof(host, wanted)
    return missing and (f"the proof at level quick decides on it, and {missing[0]}", f"{missing[1]} {otherwise}")


def _proof_of_what_serves(environment: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
    """What the release that goes on serving has to prove; None where none serves."""
    if not seen.get("current"):
        return None
    spec = (seen.get("stamp") or {}).get("spec") or {}
    expect = {"torch": spec.get("torch"), "companions": spec.get("companions") or {}}
    return {**environment["proof"], "expect": expect}


def _python_actions(environment: t.Mapping[str, t.Any], planned: t.Sequence[Action]) -> list[Action]:
    """The package of the Python that a build needs and the host lacks, once for all environments."""
    package, version = environment["python_package"], environment["spec"]["python"]
    action = f"torch.python:{version}"
    if not package or any(other.id == action for other in planned):
        return []
    data = {"environment": environment["name"], "package": package}
    why = f"the environment {environment['name']} is built with Python {version}, which the host lacks"
    return [Action(action, "torch", f"install the package {package}", why, data)]


def _release(environment: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> tuple[str | None, str | None]:
    """Return (release to switch to, why); without a release one has to be built, without a reason all is well."""
    why = _why_rebuild(environment, seen)
    if why is None:
        return None, None
    base = environment["release_base"]
    for row in seen.get("releases") or ():
        release = str(row.get("id"))
        fits = release == base or release.startswith((f"{base}-", f"{base}."))
        if fits and row.get("stamped") and release != seen.get("current"):
            return release, f"{release} is built and proven; {why}"
    return None, why


def _why_rebuild(environment: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> str | None:
    current = seen.get("current")
    if not current:
        return "it does not exist" if not seen.get("releases") else "no release serves"
    integrity = seen.get("integrity") or {}
    stamp = seen.get("stamp") or {}
    torch = seen.get("torch") or {}
    if integrity.get("status") == "unstamped" or not stamp:
        return f"{current} was never proven"
    if seen.get("interpreter_ok") is False:
        built = f"Python {seen['python']}" if seen.get("python") else "Python"
        return f"{current} has a dangling interpreter: the {built} that it was built with is gone"
    if stamp.get("spec_digest") != environment["spec_digest"]:
        built = (stamp.get("spec") or {}).get("torch") or current
        wanted = environment["spec"]["torch"]
        return (
            f"{built} serves, {wanted} is wanted" if built != wanted else f"{current} was built for other requirements"
        )
    if integrity.get("status") == "damaged":
        counts = [f"{integrity[kind]} {kind}" for kind in ("missing", "changed", "added") if integrity.get(kind)]
        examples = f", for example {integrity['examples'][0]}" if integrity.get("examples") else ""
        return f"{current} is damaged: {listed(counts) or 'files differ'}{examples}"
    if integrity.get("status") != "ok":
        return f"whether {current} is intact could not be seen"
    if torch.get("version") not in (None, environment["spec"]["torch"]):
        return f"{current} holds torch {torch['version']}, not {environment['spec']['torch']}"
    return None


def _proof_actions(
    environment: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any], data: t.Mapping[str, t.Any]
) -> list[Action]:
    """A release that serves well, but is proven for somebody else or for other GPUs."""
    name, stamp = environment["name"], seen.get("stamp") or {}
    people = {key: stamp.get(key) or seen.get(key) for key in ("owner", "group")}
    if any(people[key] not in (None, environment[key]) for key in people):
        what = f"give the environment {name} to {environment['owner']}:{environment['group']}"
        why = f"it belongs to {people['owner']}:{people['group']}"
        return [Action(f"torch.owner:{name}", "torch", what, why, data)]
    proven = (stamp.get("proof") or {}).get("sm")
    if proven is None:
        return []
    missing = [sm for sm in environment["sm"] if sm not in proven]
    if missing:
        why = f"{seen.get('current')} was proven for {listed(proven) or 'no GPU'}, not for {listed(missing)}"
        return [Action(f"torch.prove:{name}", "torch", f"prove the environment {name} again", why, data)]
    return []


def _stale_takeaway(host: Host, environment: t.Mapping[str, t.Any], wanted: Desired) -> list[str]:
    """The files for users that do not say what serves; without its lock, which another controller may have, they are left alone."""
    locked = wanted.locks.get(environment["name"])
    return _drift(host, takeaway.managed(environment, locked)) if locked else []


def _launcher_drift(host: Host, wanted: Desired, name: str, with_command: bool) -> list[str]:
    files = dict(environment_files(wanted.root, name))
    if with_command:
        files[COMMAND_PATH] = command_file(wanted.root)
    return _drift(host, files)


def _drift(host: Host, files: t.Mapping[str, tuple[int, str]]) -> list[str]:
    return [
        path
        for path, (mode, content) in files.items()
        if host.difference(ManagedFile(path, content, f"{mode:04o}")) is not None
    ]


def _check_space(host: Host, builds: t.Sequence[str], wanted: Desired, knowledge: Knowledge, notes: Notes) -> None:
    free = host.free(wanted.root)
    for key, unit in (("mib", "MiB"), ("inodes", "inodes")):
        needed = knowledge.needs[key] * len(builds)
        if builds and free.get(f"free_{key}") is not None and free[f"free_{key}"] < needed:
            notes.refuse(
                "disk_space",
                f"{wanted.root} has {free[f'free_{key}']} {unit} free, building {listed(builds)} takes {needed}",
                "Free space there, or put the environments elsewhere with torch_env_root.",
            )


def _check_index(host: Host, environment: t.Mapping[str, t.Any], notes: Notes) -> None:
    silence = host.silence(_index_page(environment))
    if silence:
        notes.refuse(
            "index_unreachable",
            f"the host cannot use the torch index {environment['index_url']}: {silence}",
            "Check the host's network, name service and proxy, and the URL (torch_env_index_base_url), or name a mirror of it in "
            "torch_env_mirror_index_base_url.",
        )
