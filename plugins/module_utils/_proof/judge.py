# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. From the records of the proof's processes to a verdict. Pure.

Every check that belongs to a level has a place in the result before anything is judged: what no record speaks of is
`not_run`, so that a crash, a hang or a lost record can never look like a pass.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Collection, Mapping, NamedTuple, Sequence

from .._compat import sass
from . import failures

BURN_SECONDS = 60
"""That level stress burns, unless told otherwise."""
MANY = 1_000_000  # no error of CUDA has such a number
LEVELS = ("static", "quick", "full", "stress")
"""From the least to the most that is proven."""


class GpuCheck(NamedTuple):
    """A check that torch makes on every GPU."""

    name: str
    level: str  # the first level that it belongs to
    capability: tuple[int, int] = (0, 0)  # from which on the hardware has what it tests
    companion: str | None = None  # the package whose kernel it runs: asked for only where that is expected
    torch: tuple[int, int] = (0, 0)  # the version from which on torch has it
    undisturbed: bool = False  # it means something, or harms nobody, only while nobody else computes on the GPU


GPU_CHECKS = (
    GpuCheck("gpu.copy", "quick"),
    GpuCheck("gpu.elementwise", "quick"),
    GpuCheck("gpu.reduction", "quick"),
    GpuCheck("gpu.matmul_fp32", "quick"),
    GpuCheck("gpu.matmul_fp16", "quick", (5, 3)),
    GpuCheck("gpu.matmul_bf16", "quick", (8, 0)),
    GpuCheck("gpu.matmul_tf32", "quick", (8, 0)),
    GpuCheck("gpu.conv2d", "quick"),
    GpuCheck("gpu.matmul_fp8", "full", (8, 9), torch=(2, 1)),
    GpuCheck("gpu.optimizer_step", "full"),
    GpuCheck("gpu.torchvision_nms", "full", companion="torchvision"),
    GpuCheck("gpu.torchaudio_lfilter", "full", companion="torchaudio"),
    GpuCheck("gpu.bandwidth", "full", undisturbed=True),
    GpuCheck("gpu.memory", "full", undisturbed=True),
    GpuCheck("gpu.burn", "stress"),
)
"""In the order of the result."""

UNDISTURBED = frozenset(check.name for check in GPU_CHECKS if check.undisturbed)

COMPILES_FROM = (7, 0)  # compute capability: Triton has no older one
COMPILE_LONGER = 60.0  # seconds that torch.compile, which is the CPU's work, may take beyond the limit of a step
# The least that pinned copies must reach of what the link carries. Links in good order reach 75 to 90 %; one with half the
# lanes, or of one generation less, somewhere on the way reaches at most half.
LINK_SHARE = 0.6
LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # by generation, less the line code

KEPT_EVIDENCE = 2000  # characters
Check = dict[str, Any]


class Outcome(NamedTuple):
    """How a process of the proof ended, and what it recorded."""

    records: list[dict[str, Any]]
    problem: tuple[str, str] | None  # code and sentence, where it did not end well


def capability(sm: str) -> tuple[int, int]:
    """`sm_120` is compute capability 12.0."""
    match = re.fullmatch(r"sm_(\d+)(\d)[a-z]?", sm)
    if not match:
        raise ValueError(f"'{sm}' is no compute capability such as sm_120")
    return int(match.group(1)), int(match.group(2))


def _dotted(sm: str) -> str:
    major, minor = capability(sm)
    return f"{major}.{minor}"


def includes(level: str, other: str) -> bool:
    """Whether proving at `level` proves `other` as well."""
    return LEVELS.index(level) >= LEVELS.index(other)


def gpu_checks(
    sm: str, level: str = "quick", companions: Collection[str] = (), torch_version: str | None = None
) -> list[str]:
    """The ids of torch's checks on a GPU of this compute capability."""
    version = re.match(r"(\d+)\.(\d+)", torch_version or "")
    release = (int(version.group(1)), int(version.group(2))) if version else (99, 0)
    return [
        check.name
        for check in GPU_CHECKS
        if includes(level, check.level)
        and capability(sm) >= check.capability
        and release >= check.torch
        and (check.companion is None or check.companion in companions)
    ]


def host_checks(level: str, sm: Sequence[str]) -> list[str]:
    """The ids of the checks that belong to the environment and to several GPUs; `sm` names the GPUs' architectures."""
    if not includes(level, "full"):
        return []
    several = ["gpus.peer", "gpus.all_reduce"] if len(sm) > 1 else []
    return several + (["torch.compile"] if any(capability(each) >= COMPILES_FROM for each in sm) else [])


def level_of(name: str) -> str:
    """The first level that a check belongs to."""
    if name in ("gpus.peer", "gpus.all_reduce", "torch.compile", "gpu.hardware"):
        return "full"
    if name.startswith("driver.") or name in ("torch.devices", "gpu.driver_kernel", "gpu.identity"):
        return "quick"
    return next((check.level for check in GPU_CHECKS if check.name == name), "static")


def step_limit(record: Mapping[str, Any], gpu_limit: float, burn_seconds: float) -> float | None:
    """How many seconds the step that this record begins may take; None for what touches no GPU."""
    name = str(record.get("id"))
    if record.get("event") == "end":
        return gpu_limit  # what is left is taking the CUDA contexts down
    if record.get("event") != "begin" or not (record.get("gpu") or level_of(name) != "static"):
        return None
    longer = {"gpu.burn": burn_seconds, "torch.compile": COMPILE_LONGER}
    return gpu_limit + longer.get(name, 0.0)


def passed(name: str, evidence: str, **values: Any) -> Check:
    return _check(name, "passed", evidence, None, values)


def failed(name: str, code: str, evidence: str, **values: Any) -> Check:
    return _check(name, "failed", evidence, code, values)


def not_run(name: str, code: str, evidence: str) -> Check:
    return _check(name, "not_run", evidence, code, {})


def _check(name: str, status: str, evidence: str, code: str | None, values: dict[str, Any]) -> Check:
    return {
        "id": name,
        "status": status,
        "evidence": evidence,
        "code": code,
        "values": values,
        "ms": None,
        "remedy": failures.remedy(code) if code else None,
    }


def from_records(outcome: Outcome, names: Sequence[str], gpu: str | None = None) -> list[Check]:
    """The checks `names` as the records tell them; what they do not tell did not run or was cut short."""
    told: dict[str, Check] = {}
    begun = set()
    for record in outcome.records:
        if record.get("gpu") != gpu:
            continue
        if record.get("event") == "begin":
            begun.add(record.get("id"))
        elif record.get("event") == "check":
            told[str(record.get("id"))] = _from_record(record)
    checks = []
    blamed: str | None = None
    for name in names:
        if name in told:
            checks.append(told[name])
            if told[name]["status"] != "passed":
                blamed = name
        elif name in begun and outcome.problem is not None:
            checks.append(failed(name, *outcome.problem))
        elif outcome.problem is not None:
            checks.append(not_run(name, "stopped", outcome.problem[1]))
        else:
            reason = f"{blamed} failed before it" if blamed else "the process reported nothing about it"
            checks.append(not_run(name, "stopped", reason))
    return checks


def _mapping(value: Any) -> dict[str, Any]:
    """Records come from a process that anything in an environment can write for: nothing about them is certain."""
    return dict(value) if isinstance(value, dict) else {}


def _from_record(record: dict[str, Any]) -> Check:
    name, status = str(record.get("id")), record.get("status")
    evidence = str(record.get("evidence") or "")[:KEPT_EVIDENCE]
    code: str | None = None
    if status != "passed":
        code = record.get("code")
        known = isinstance(code, str) and code in failures.TABLE
        status = "not_run" if known and status == "not_run" else "failed"
        if not known:
            error = _mapping(record.get("error"))
            kind = error.get("type")
            number = _number(error.get("number"))
            code = failures.code_of(name, number, kind if isinstance(kind, str) else None, evidence)
    check = _check(name, status, evidence, code, _mapping(record.get("values")))
    check["ms"] = record["ms"] if isinstance(record.get("ms"), (int, float)) else None
    return check


def _number(value: Any) -> int | None:
    """An error's number; what libraries call an error's code can be anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MANY else None


# ---- static ---------------------------------------------------------------------------------------------------------


def split_version(version: str) -> tuple[str, str | None]:
    """`2.9.1+cu128` is `2.9.1` and the local version `cu128`."""
    public, _plus, local = version.partition("+")
    return public, local or None


def static_checks(
    outcome: Outcome, expect: dict[str, Any], sm: Sequence[str]
) -> tuple[list[Check], dict[str, Any], dict[str, str]]:
    """All static checks, torch's facts and the companions' versions."""
    wanted = dict(expect.get("companions") or {})
    torch: dict[str, Any] = {}
    companions: dict[str, str] = {}
    python: dict[str, Any] | None = None
    for record in outcome.records:
        if record.get("event") == "torch":
            torch = _torch_facts(_mapping(record.get("facts")))
        elif record.get("event") == "companions":
            companions = {name: str(version) for name, version in _mapping(record.get("facts")).items()}
        elif record.get("event") == "python":
            python = record
    if python is not None:
        start = passed("python.start", f"Python {python.get('version')} in {python.get('prefix')}")
    else:
        start = failed("python.start", *(outcome.problem or ("ended_early", "the interpreter reported nothing")))
    imported = from_records(outcome, ["torch.import"])[0]
    checks = [start, imported]
    if imported["status"] == "passed" and torch:
        checks += [
            _origin(torch),
            _libraries(torch),
            _version(torch, expect.get("torch")),
            _cuda(torch, expect.get("torch")),
            _arch(torch, sm),
        ]
        checks += from_records(outcome, ["torch.cpu"])
        for name, check in zip(wanted, from_records(outcome, ["companion." + name for name in wanted])):
            checks.append(_companion(check, companions.get(name), wanted[name], torch))
    else:
        names = ["torch.origin", "torch.libraries", "torch.version", "torch.cuda", "torch.arch", "torch.cpu"]
        names += ["companion." + name for name in wanted]
        checks += [not_run(name, "stopped", "torch was not imported") for name in names]
    return checks, torch, companions


def _torch_facts(facts: dict[str, Any]) -> dict[str, Any]:
    if not facts:
        return {}
    keys = ("version", "distribution_version", "cuda", "hip", "file", "prefix")
    torch: dict[str, Any] = {key: str(facts[key]) if facts.get(key) is not None else None for key in keys}
    foreign = facts.get("foreign_libraries")
    torch["foreign_libraries"] = [_mapping(each) for each in foreign] if isinstance(foreign, list) else []
    flags = facts.get("arch_flags")
    torch["arch_flags"] = [flag for flag in flags if isinstance(flag, str)] if isinstance(flags, list) else []
    return torch


def _origin(torch: dict[str, Any]) -> Check:
    file, prefix = str(torch.get("file")), str(torch.get("prefix"))
    if file.startswith(prefix.rstrip("/") + "/"):
        return passed("torch.origin", f"torch comes from {file}")
    return failed("torch.origin", "outside", f"torch comes from {file}, which is outside of {prefix}")


def _libraries(torch: dict[str, Any]) -> Check:
    """What an older system-wide CUDA brings along must not stand in for what torch was tested with."""
    for each in torch["foreign_libraries"]:
        path, own = str(each.get("path")), str(each.get("own"))
        text = f"{path} was loaded in place of {own}"
        return failed("torch.libraries", "shadowed_library", text, path=path, own=own)
    return passed("torch.libraries", "no library of CUDA came from another place than the environment's own")


def _version(torch: dict[str, Any], expected: str | None) -> Check:
    found = str(torch.get("version"))
    if not expected:
        return passed("torch.version", f"torch {found}; no version was asked for")
    public, local = split_version(expected)
    same = found == expected if local else split_version(found)[0] == public
    if same:
        return passed("torch.version", f"torch {found}, as asked for")
    code = "wrong_index" if split_version(found)[0] == public else "wrong_version"
    if torch.get("cuda") is None and not torch.get("hip"):
        code = "cpu_build"
    return failed("torch.version", code, f"torch says {found}, asked for was {expected}")


def _cuda(torch: dict[str, Any], expected: str | None) -> Check:
    cuda, version = torch.get("cuda"), torch.get("version")
    if torch.get("hip"):
        return failed("torch.cuda", "rocm_build", f"torch {version} is built for ROCm {torch['hip']}, not for CUDA")
    if not cuda:
        return failed("torch.cuda", "cpu_build", f"torch {version} is a CPU-only build")
    tag = split_version(expected)[1] if expected else None
    tag = tag or split_version(str(version))[1]
    if tag and tag.startswith("cu") and tag != "cu" + "".join(str(cuda).split(".")[:2]):
        return failed("torch.cuda", "wrong_version", f"torch {version} is built for CUDA {cuda}, which is not {tag}")
    return passed("torch.cuda", f"torch is built for CUDA {cuda}")


def _arch(torch: dict[str, Any], sm: Sequence[str]) -> Check:
    """Every GPU needs machine code that runs on it; PTX, which a driver would have to compile, does not count."""
    flags = torch["arch_flags"]
    compiled = " ".join(flags) or "none"
    if not sm:
        return not_run("torch.arch", "arch_unknown", f"torch has code for {compiled}; what the GPUs need is not known")
    codes = [_dotted(flag) for flag in flags if re.fullmatch(r"sm_\d+", flag)]  # sm_90a runs on 9.0 alone
    used: dict[str, str | None] = {}
    for wanted in sm:
        code = sass.serving_code(codes, _dotted(wanted), torch.get("cuda") or "0")
        used[wanted] = "sm_" + code.replace(".", "") if code else None
    missing = sorted(wanted for wanted, code in used.items() if code is None)
    if missing:
        code = "arch_missing" if torch.get("cuda") else "cpu_build"
        return failed("torch.arch", code, f"no code for {', '.join(missing)}; torch has code for {compiled}")
    text = ", ".join(f"{wanted} runs the code for {code}" for wanted, code in sorted(used.items()))
    ptx = [flag for flag in flags if flag.startswith("compute_")]
    return passed("torch.arch", text, runs_on=used, arch_flags=flags, ptx=ptx)


def _companion(check: Check, found: str | None, expected: str | None, torch: dict[str, Any]) -> Check:
    """An imported companion must have the version asked for, and be built for torch's own CUDA tag."""
    if check["status"] != "passed":
        return check
    if found is None:
        return not_run(check["id"], "stopped", "the process did not report its version")
    public, local = split_version(found)
    tag = split_version(str(torch.get("version")))[1]
    wanted_public, wanted_local = split_version(expected or public)
    if public != wanted_public or (wanted_local and local != wanted_local):
        code = "wrong_index" if public == wanted_public else "wrong_version"
        problem = failed(check["id"], code, f"{found}, asked for was {expected}")
    elif local and tag and local != tag and re.fullmatch(r"cpu|cu\d+", local):
        problem = failed(check["id"], "companion_build", f"{found} does not belong to torch {torch.get('version')}")
    else:
        return check
    problem["ms"] = check["ms"]
    return problem


# ---- GPUs -----------------------------------------------------------------------------------------------------------


def judged_gpus(
    torch: Mapping[str, Outcome],
    driver: Outcome,
    gpus: Sequence[dict[str, Any]],
    skipped: Mapping[str, tuple[str, str]],
    names_of: Callable[[str], list[str]] = gpu_checks,
    shared: Mapping[str, tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """One entry per GPU.

    `torch` holds, by PCI address, the process that tells about it; `skipped`, why one was left alone; `shared`, why one was
    spared what would disturb others. `names_of` gives the checks of an architecture.
    """
    result = []
    for gpu in gpus:
        address = gpu["pci_address"]
        names = ["gpu.identity", *names_of(gpu["sm"])]
        if address in skipped:
            checks = [not_run(name, *skipped[address]) for name in ("gpu.driver_kernel", *names)]
        else:
            checks = from_records(driver, ["gpu.driver_kernel"], address)
            if checks[0]["status"] == "passed":
                told = from_records(torch[address], names, address)
                spared = (shared or {}).get(address)
                checks += [
                    not_run(check["id"], *spared) if spared and check["id"] in UNDISTURBED else check for check in told
                ]
            else:
                checks += [not_run(name, "stopped", "the driver's own kernel did not pass") for name in names]
        shown = {key: gpu.get(key) for key in ("pci_address", "uuid", "name", "sm")}
        result.append({**shown, "verdict": verdict(checks), "checks": checks})
    return result


def unfinished(outcome: Outcome, gpus: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The GPUs that still had some of their `checks` before them when the process ended."""
    told = {(record.get("gpu"), record.get("id")) for record in outcome.records if record.get("event") == "check"}
    return [gpu for gpu in gpus if any((gpu["pci_address"], name) not in told for name in gpu["checks"])]


def with_observations(checks: list[Check], seen: Mapping[str, Any], level: str) -> list[Check]:
    """The checks of one GPU, in the light of what NVML told meanwhile: the link, the temperature, errors of the hardware."""
    if not includes(level, "full"):
        return checks
    result = []
    for check in checks:
        if check["id"] == "gpu.bandwidth" and check["status"] == "passed":
            check = _bandwidth(check, seen.get("link"))
        if check["id"] == "gpu.burn":
            kept = ("temperature_c", "power_w", "throttled")
            told = {key: seen[key] for key in kept if key in seen}
            throttled = f", throttled by {', '.join(told['throttled'])}" if told.get("throttled") else ""
            shown = f"; up to {told['temperature_c']} °C{throttled}" if "temperature_c" in told else ""
            check = {**check, "evidence": check["evidence"] + shown, "values": {**check["values"], **told}}
        result.append(check)
    return [*result, _hardware(seen)] if any(check["status"] != "not_run" for check in checks) else result


def _bandwidth(check: Check, link: Any) -> Check:
    """Fast enough for the link that NVML saw under load; where it saw none, there is nothing to compare with."""
    speeds = [check["values"].get(name) for name in ("to_gpu_gb_s", "from_gpu_gb_s")]
    generation, lanes = link if isinstance(link, list) and len(link) == 2 else (None, None)
    if generation not in LANE_GB_S or not lanes or not all(isinstance(speed, (int, float)) for speed in speeds):
        unknown = not_run("gpu.bandwidth", "link_unknown", f"{check['evidence']}; what the link carries is not known")
        return {**unknown, "values": check["values"], "ms": check["ms"]}
    carries = LANE_GB_S[generation] * lanes
    values = {**check["values"], "link_generation": generation, "link_lanes": lanes, "link_gb_s": round(carries, 1)}
    evidence = f"{check['evidence']}; the link (generation {generation}, {lanes} lanes) carries {carries:.1f} GB/s"
    if min(speeds) >= LINK_SHARE * carries:
        return {**check, "evidence": evidence, "values": values}
    slow = failed("gpu.bandwidth", "slow_link", f"{evidence}, less than {LINK_SHARE:.0%} of that arrived", **values)
    return {**slow, "ms": check["ms"]}


def _hardware(seen: Mapping[str, Any]) -> Check:
    """A GPU that reported an error of its hardware while it computed is not proven, nor one that nobody could watch."""
    values = {key: seen[key] for key in ("xid", "uncorrected_ecc_errors") if key in seen}
    if seen.get("xid"):
        numbers = ", ".join(str(number) for number in seen["xid"])
        return failed("gpu.hardware", "xid", f"the driver reported Xid {numbers} during the proof", **values)
    if seen.get("uncorrected_ecc_errors"):
        text = (
            f"{seen['uncorrected_ecc_errors']} uncorrectable errors of the GPU's memory were counted during the proof"
        )
        return failed("gpu.hardware", "ecc_uncorrected", text, **values)
    if "xid" not in seen:
        return not_run("gpu.hardware", "not_watched", "NVML told nothing of the GPU's errors during the proof")
    memory = (
        "no uncorrectable error of the memory"
        if "uncorrected_ecc_errors" in seen
        else "errors of the memory are not counted"
    )
    return passed("gpu.hardware", f"no Xid during the proof, {memory}", **values)


def joined(name: str, checks: Sequence[Check]) -> Check:
    """One check that several processes told: the first failure, else the first that did not run, else the first."""
    worst = next(
        (check for status in ("failed", "not_run") for check in checks if check["status"] == status), checks[0]
    )
    return {**worst, "id": name}


def proven(level: str, checks: Sequence[Check]) -> str | None:
    """The highest level below `level` of which every check passed."""
    for lower in reversed(LEVELS[: LEVELS.index(level)]):
        if verdict([check for check in checks if includes(lower, level_of(check["id"]))]) == "passed":
            return lower
    return None


def verdict(checks: Sequence[Check]) -> str:
    """`passed` only where every check passed; no checks prove nothing."""
    statuses = {check["status"] for check in checks}
    if "failed" in statuses:
        return "failed"
    return "passed" if statuses == {"passed"} else "not_run"


def combine(verdicts: Sequence[str]) -> str:
    """The verdict of several: the worst of them, and `not_run` of none."""
    if "failed" in verdicts:
        return "failed"
    return "passed" if verdicts and set(verdicts) == {"passed"} else "not_run"
