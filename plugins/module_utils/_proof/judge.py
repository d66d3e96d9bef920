# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. From the records of the proof's processes to a verdict. Pure.

Every check that belongs to a level has a place in the result before anything is judged: what no record speaks of is
`not_run`, so that a crash, a hang or a lost record can never look like a pass.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .._compat import sass
from . import remedies

LEVELS = ("static", "quick")
GPU_CHECKS: Tuple[Tuple[str, Tuple[int, int]], ...] = (
    ("gpu.copy", (0, 0)),
    ("gpu.elementwise", (0, 0)),
    ("gpu.reduction", (0, 0)),
    ("gpu.matmul_fp32", (0, 0)),
    ("gpu.matmul_fp16", (5, 3)),
    ("gpu.matmul_bf16", (8, 0)),
    ("gpu.matmul_tf32", (8, 0)),
    ("gpu.conv2d", (0, 0)),
)
"""torch's checks of one GPU at level quick, and the compute capability from which the hardware has what they test."""

Check = Dict[str, Any]


class Outcome(NamedTuple):
    """How a process of the proof ended, and what it recorded."""

    records: List[Dict[str, Any]]
    problem: Optional[Tuple[str, str]]  # code and sentence, where it did not end well


def capability(sm: str) -> Tuple[int, int]:
    """`sm_120` is compute capability 12.0."""
    match = re.fullmatch(r"sm_(\d+)(\d)[a-z]?", sm)
    if not match:
        raise ValueError("'%s' is no compute capability such as sm_120" % sm)
    return int(match.group(1)), int(match.group(2))


def gpu_checks(sm: str) -> List[str]:
    """The ids of torch's checks on a GPU of this compute capability."""
    return [name for name, first in GPU_CHECKS if capability(sm) >= first]


def passed(name: str, evidence: str, **values: Any) -> Check:
    return _check(name, "passed", evidence, None, values)


def failed(name: str, code: str, evidence: str, **values: Any) -> Check:
    return _check(name, "failed", evidence, code, values)


def not_run(name: str, code: str, evidence: str) -> Check:
    return _check(name, "not_run", evidence, code, {})


def _check(name: str, status: str, evidence: str, code: Optional[str], values: Dict[str, Any]) -> Check:
    return {
        "id": name,
        "status": status,
        "evidence": evidence,
        "code": code,
        "values": values,
        "ms": None,
        "remedy": remedies.remedy(code) if code else None,
    }


def from_records(outcome: Outcome, names: Sequence[str], gpu: Optional[str] = None) -> List[Check]:
    """The checks `names` as the records tell them; what they do not tell did not run or was cut short."""
    told: Dict[str, Check] = {}
    begun = set()
    for record in outcome.records:
        if record.get("gpu") != gpu:
            continue
        if record.get("event") == "begin":
            begun.add(record.get("id"))
        elif record.get("event") == "check":
            told[str(record.get("id"))] = _from_record(record)
    checks = []
    blamed: Optional[str] = None
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
            reason = "%s failed before it" % blamed if blamed else "the process reported nothing about it"
            checks.append(not_run(name, "stopped", reason))
    return checks


def _from_record(record: Dict[str, Any]) -> Check:
    name, status = str(record.get("id")), record.get("status")
    evidence = str(record.get("evidence") or "")
    code: Optional[str] = None
    if status != "passed":
        status = "failed"
        code = record.get("code")
        if code not in remedies.REMEDIES:
            error = record.get("error") or {}
            code = remedies.code_of(name, error.get("number"), error.get("type"), evidence)
    check = _check(name, status, evidence, code, record.get("values") or {})
    check["ms"] = record.get("ms")
    return check


# ---- static ---------------------------------------------------------------------------------------------------------


def split_version(version: str) -> Tuple[str, Optional[str]]:
    """`2.9.1+cu128` is `2.9.1` and the local version `cu128`."""
    public, _plus, local = version.partition("+")
    return public, local or None


def static_checks(
    outcome: Outcome, expect: Dict[str, Any], sm: Sequence[str], roots: Sequence[str]
) -> Tuple[List[Check], Dict[str, Any], Dict[str, Any]]:
    """All static checks, torch's facts and the companions' facts."""
    wanted = dict(expect.get("companions") or {})
    torch: Dict[str, Any] = {}
    companions: Dict[str, Any] = {}
    python: Optional[Dict[str, Any]] = None
    for record in outcome.records:
        if record.get("event") == "torch":
            torch = dict(record.get("facts") or {})
        elif record.get("event") == "companions":
            companions = dict(record.get("facts") or {})
        elif record.get("event") == "python":
            python = record
    if python is not None:
        start = passed("python.start", "Python %s in %s" % (python.get("version"), python.get("prefix")))
    else:
        start = failed("python.start", *(outcome.problem or ("ended_early", "the interpreter reported nothing")))
    imported = from_records(outcome, ["torch.import"])[0]
    checks = [start, imported]
    if imported["status"] == "passed":
        checks += [
            _origin(torch, roots),
            _version(torch, expect.get("torch")),
            _cuda(torch, expect.get("torch")),
            _arch(torch, sm),
        ]
    else:
        reason = "torch was not imported"
        checks += [not_run(name, "stopped", reason) for name in ("torch.origin", "torch.version", "torch.cuda", "torch.arch")]
    checks += from_records(outcome, ["torch.cpu"])
    for name, check in zip(wanted, from_records(outcome, ["companion." + name for name in wanted])):
        checks.append(_companion(check, companions.get(name), wanted[name], torch))
    return checks, torch, companions


def _origin(torch: Dict[str, Any], roots: Sequence[str]) -> Check:
    file, prefix = str(torch.get("file")), str(torch.get("prefix"))
    if any(file.startswith(root.rstrip("/") + "/") for root in (prefix, *roots)):
        return passed("torch.origin", "torch comes from %s" % file)
    return failed("torch.origin", "outside", "torch comes from %s, which is outside of %s" % (file, prefix))


def _version(torch: Dict[str, Any], expected: Optional[str]) -> Check:
    found = str(torch.get("version"))
    if not expected:
        return passed("torch.version", "torch %s; no version was asked for" % found)
    public, local = split_version(expected)
    same = found == expected if local else split_version(found)[0] == public
    if same:
        return passed("torch.version", "torch %s, as asked for" % found)
    code = "cpu_build" if torch.get("cuda") is None and not torch.get("hip") else "wrong_version"
    return failed("torch.version", code, "torch says %s, asked for was %s" % (found, expected))


def _cuda(torch: Dict[str, Any], expected: Optional[str]) -> Check:
    cuda, version = torch.get("cuda"), torch.get("version")
    if torch.get("hip"):
        return failed("torch.cuda", "rocm_build", "torch %s is built for ROCm %s, not for CUDA" % (version, torch["hip"]))
    if not cuda:
        return failed("torch.cuda", "cpu_build", "torch %s is a CPU-only build" % version)
    tag = split_version(expected)[1] if expected else None
    tag = tag or split_version(str(version))[1]
    if tag and tag.startswith("cu") and tag != "cu" + "".join(str(cuda).split(".")[:2]):
        return failed("torch.cuda", "wrong_version", "torch %s is built for CUDA %s, which is not %s" % (version, cuda, tag))
    return passed("torch.cuda", "torch is built for CUDA %s" % cuda)


def _arch(torch: Dict[str, Any], sm: Sequence[str]) -> Check:
    """Every GPU needs machine code that runs on it; PTX, which a driver would have to compile, does not count."""
    flags = [str(flag) for flag in torch.get("arch_flags") or []]
    compiled = " ".join(flags) or "none"
    if not sm:
        return not_run("torch.arch", "arch_unknown", "torch has code for %s; what the GPUs need is not known" % compiled)
    codes = ["%d.%d" % capability(flag) for flag in flags if re.fullmatch(r"sm_\d+", flag)]  # sm_90a runs on 9.0 alone
    used: Dict[str, Optional[str]] = {}
    for wanted in sm:
        code = sass.serving_code(codes, "%d.%d" % capability(wanted), torch.get("cuda") or "0")
        used[wanted] = "sm_" + code.replace(".", "") if code else None
    missing = sorted(wanted for wanted, code in used.items() if code is None)
    if missing:
        code = "arch_missing" if torch.get("cuda") else "cpu_build"
        return failed("torch.arch", code, "no code for %s; torch has code for %s" % (", ".join(missing), compiled))
    text = ", ".join("%s runs the code for %s" % pair for pair in sorted(used.items()))
    ptx = [flag for flag in flags if flag.startswith("compute_")]
    return passed("torch.arch", text, runs_on=used, arch_flags=flags, ptx=ptx)


def _companion(check: Check, facts: Optional[Dict[str, Any]], expected: Optional[str], torch: Dict[str, Any]) -> Check:
    """An imported companion must have the version asked for, and be built for torch's own CUDA tag."""
    if check["status"] != "passed" or facts is None:
        return check
    found = str(facts.get("version"))
    public, local = split_version(found)
    tag = split_version(str(torch.get("version")))[1]
    problem: Optional[Check] = None
    if expected:
        wanted_public, wanted_local = split_version(expected)
        if public != wanted_public or (wanted_local and local != wanted_local):
            problem = failed(check["id"], "wrong_version", "%s, asked for was %s" % (found, expected))
    if problem is None and local and tag and local != tag and re.fullmatch(r"cpu|cu\d+", local):
        problem = failed(check["id"], "companion_build", "%s does not belong to torch %s" % (found, torch.get("version")))
    if problem is not None:
        problem["ms"] = check["ms"]
        return problem
    return check


# ---- GPUs -----------------------------------------------------------------------------------------------------------


def judged_gpus(
    torch: Outcome, driver: Outcome, gpus: Sequence[Dict[str, Any]], skipped: Dict[str, Tuple[str, str]]
) -> List[Dict[str, Any]]:
    """One entry per GPU; `skipped` says, by PCI address, which ones were left alone and why."""
    result = []
    for gpu in gpus:
        address = gpu["pci_address"]
        names = ["gpu.identity", *gpu_checks(gpu["sm"])]
        if address in skipped:
            checks = [not_run(name, *skipped[address]) for name in ("gpu.driver_kernel", *names)]
        else:
            checks = from_records(driver, ["gpu.driver_kernel"], address)
            if checks[0]["status"] == "passed":
                checks += from_records(torch, names, address)
            else:
                checks += [not_run(name, "stopped", "the driver's own kernel did not pass") for name in names]
        shown = {key: gpu.get(key) for key in ("pci_address", "uuid", "name", "sm")}
        result.append({**shown, "verdict": verdict(checks), "checks": checks})
    return result


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
