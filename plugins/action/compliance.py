# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge what a run observed of the whole fleet: once, on the controller, without asking any host anything."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader
from ansible.utils.display import Display
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import some
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import (
    canonical,
    history,
    render_html,
    render_junit,
    render_prometheus,
    render_text,
)
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.variables import (
    InvalidVariables,
    argument_spec,
    check_and_complete,
)

display = Display()

SUMMARY_CALLBACK = "gpufleet.workstation.fleet_summary"
"""Where it is enabled, it prints the text after everything else, and this action leaves that to it."""
REPORT = "report.json"
TABLE = "report.txt"

_ROLE = "gpu_compliance"
_SHIPPED = Path(__file__).resolve().parents[2] / "roles" / _ROLE / "files/policies"
_COLLECTION = "gpufleet.workstation"
_FORMATS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "html": ("index.html", render_html.html),
    "junit": ("junit.xml", render_junit.junit),
    "prometheus": ("gpufleet.prom", render_prometheus.prometheus),
}


class ActionModule(ActionBase):
    """The task ``gpufleet.workstation.compliance``."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Load rules and waivers; judge every host of the pattern, write history and reports, and fail by severity."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        result["changed"] = False
        unknown = sorted(set(self._task.args) - {"judge", "hosts"})
        if unknown:
            raise AnsibleActionFail(f"{_COLLECTION}.compliance takes no {', '.join(unknown)}; it has judge and hosts.")
        policies, evaluate = _engine()
        places = {name: self._templar.template(task_vars.get(name)) for name in locks.PLACES}
        values = self._values(task_vars)
        now = datetime.now(timezone.utc).replace(microsecond=0)
        names = self._pattern(task_vars)
        groups = {group: list(members) for group, members in task_vars["groups"].items()}
        try:
            rules = policies.load(_policy_files(values, places), values["gpu_compliance_rules"], "gpu_compliance_rules")
            waivers = policies.load_waivers(values["gpu_compliance_waivers"], rules, names, groups, now.date())
        except policies.PolicyError as error:
            raise AnsibleActionFail(f"{error} Nothing was judged.") from None
        if not boolean(self._task.args.get("judge", True)):
            return {**result, "rules": len(rules)}
        folder = history.folder_for(places)
        document = evaluate.assess(
            rules,
            waivers,
            _states(names, groups, task_vars),
            now,
            history.read(folder),
            values["gpu_compliance_fail_on"],
            _version(),
        )
        fleet = canonical.of(document)
        width = max(80, min(160, shutil.get_terminal_size((120, 24)).columns))
        text = render_text.text(fleet, width)
        reports, problems = _keep(document, fleet, text, folder, _report_folder(values, places, folder), values)
        if SUMMARY_CALLBACK not in constants.config.get_config_value("CALLBACKS_ENABLED") or TABLE not in reports:
            display.display(f"\n{text}\n")
        told = {"totals": fleet["totals"], "not_ready": _not_ready(fleet), "reports": reports}
        result.update(
            told, ansible_stats={"data": {"gpufleet_compliance": told}, "per_host": False, "aggregate": False}
        )
        wrong = [*_reasons(fleet, values["gpu_compliance_fail_on"]), *problems]
        return {**result, "failed": True, "msg": " ".join(wrong)} if wrong else result

    def _values(self, task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Return the role's variables with their types, or stop."""
        names = [name for name in argument_spec(_ROLE) if name in task_vars]
        try:
            values = check_and_complete(_ROLE, {name: self._templar.template(task_vars[name]) for name in names})
        except InvalidVariables as error:
            raise AnsibleActionFail(f"{error}. Nothing was judged.") from None
        if values["gpu_compliance_keep"] < 1:
            raise AnsibleActionFail(
                "gpu_compliance_keep is the number of runs to keep, at least 1. Nothing was judged."
            )
        return json.loads(json.dumps(values))  # plain types: no lazily templated containers past this point

    def _pattern(self, task_vars: dict[str, Any]) -> list[str]:
        """Return every host of the inventory that the playbook is for, those outside --limit too."""
        pattern = self._task.args.get("hosts") or "all"
        lookup = lookup_loader.get("ansible.builtin.inventory_hostnames", loader=self._loader, templar=self._templar)
        asked = task_vars.get("ansible_play_hosts_all") or []
        return sorted({str(host) for host in [*lookup.run([pattern], variables=task_vars), *asked]})


def _engine() -> tuple[ModuleType, ModuleType]:
    """Import what needs jmespath, which Ansible itself does not bring."""
    try:
        importlib.import_module("jmespath")
        from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import evaluate, policies
    except ImportError as error:
        if error.name != "jmespath":
            raise
        raise AnsibleActionFail(
            f"The rules need jmespath, and {sys.executable} on the controller has none. Install it there: "
            f"{sys.executable} -m pip install jmespath. Nothing was judged."
        ) from None
    return policies, evaluate


def _policy_files(values: Mapping[str, Any], places: Mapping[str, Any]) -> list[Path]:
    files = sorted(_SHIPPED.glob("*.yml"))
    for given in values["gpu_compliance_policies"]:
        path = _beside_inventory(given, places)
        if path.is_dir():
            found = sorted(path.glob("*.yml"))
            if not found:
                raise AnsibleActionFail(f"gpu_compliance_policies: there is no *.yml in {path}. Nothing was judged.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise AnsibleActionFail(f"gpu_compliance_policies: there is no {path}. Nothing was judged.")
    return files


def _beside_inventory(given: str, places: Mapping[str, Any]) -> Path:
    return Path(str(places.get("inventory_dir") or ".")) / Path(given).expanduser()


def _report_folder(values: Mapping[str, Any], places: Mapping[str, Any], folder: Path) -> Path:
    given = values["gpu_compliance_directory"]
    return _beside_inventory(given, places) if given else folder / "report"


def _states(names: list[str], groups: Mapping[str, list[str]], task_vars: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the run knows of each host.

    ``raw_get`` spares the template engine that ``hostvars[name]`` makes for each host; registered results hold no templates.
    """
    asked = set(task_vars.get("ansible_play_hosts_all") or [])
    of: dict[str, list[str]] = {}
    for group, members in groups.items():
        for name in members if group not in ("all", "ungrouped") else ():
            of.setdefault(name, []).append(group)
    states = {}
    for name in names:
        known = task_vars["hostvars"].raw_get(name) if name in asked else {}
        planned, proof = (_plain(known.get(key)) for key in ("gpufleet_host", "gpufleet_proof"))
        if "compact" in planned:
            planned.update(json.loads(planned.pop("compact")))
        states[name] = {
            "planned": planned,
            "proof": proof,
            "unreachable": planned.get("unreachable") is True or proof.get("unreachable") is True,
            "asked": name in asked,
            "groups": sorted(of.get(name, [])),
        }
    return states


def _plain(value: Any) -> dict[str, Any]:
    """Return a registered result as plain JSON types; the exception of a host that was lost is an object of Ansible's own."""
    if not isinstance(value, dict):
        return {}
    return json.loads(json.dumps({key: part for key, part in value.items() if key != "exception"}))


def _keep(
    document: dict[str, Any],
    fleet: canonical.Canonical,
    text: str,
    folder: Path,
    reports: Path,
    values: Mapping[str, Any],
) -> tuple[dict[str, str], list[str]]:
    """Write reports and history, in check mode too: they are what the run is for, and lie on no host."""
    texts = {REPORT: json.dumps(document, ensure_ascii=False) + "\n", TABLE: f"{text}\n"}
    for name in values["gpu_compliance_formats"]:
        file, render = _FORMATS[name]
        texts[file] = render(document if name == "html" else fleet)
    problems = []
    paths: dict[str, str] = {}
    try:
        history.write(folder, document, values["gpu_compliance_keep"])
    except history.NotKept as error:
        problems.append(str(error))
    try:
        paths = history.write_reports(reports, texts)
    except history.NotKept as error:
        problems.append(str(error))
    return paths, problems


def _not_ready(fleet: Mapping[str, Any]) -> list[str]:
    return [host["name"] for host in fleet["hosts"] if host["outcome"] not in ("ready", "not_asked")]


def _reasons(fleet: Mapping[str, Any], fail_on: str) -> list[str]:
    """Say why the run fails: nothing where no host that was asked has something as severe as ``fail_on``."""
    reasons = [f"{error.rstrip('.')}." for error in fleet["errors"]]
    if fail_on == "never":
        return reasons
    total = fleet["totals"]["hosts"]
    worst = canonical.SEVERITIES[: canonical.SEVERITIES.index(fail_on) + 1]
    counted = {rule["id"] for rule in fleet["rules"] if rule["severity"] in worst}
    missed = [
        host["name"]
        for host in fleet["hosts"]
        if any(rule in counted and result["status"] in canonical.BAD for rule, result in host["results"].items())
    ]
    silent = [host["name"] for host in fleet["hosts"] if host["outcome"] in ("unreachable", "unknown")]
    if missed:
        reasons.append(
            f"{len(missed)} of {total} hosts do not meet rules of severity {fail_on} or worse: {some(missed)}."
        )
    if silent:
        reasons.append(f"{len(silent)} of {total} hosts could not be observed: {some(silent)}.")
    return reasons


def _version() -> str:
    """Return the collection's version, of an installed one or of a checkout."""
    root = Path(__file__).resolve().parents[2]
    manifest = root / "MANIFEST.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"])
    return str(yaml.safe_load((root / "galaxy.yml").read_text(encoding="utf-8"))["version"])
