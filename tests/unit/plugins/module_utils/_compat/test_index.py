"""A host that cannot reach the index is refused before anything changes on it, and only where it would download."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import urls_to_ask
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

FRESH = {"os": {"id": "debian", "version_id": "12", "arch": "x86_64"}, "gpus": [{"pci_device_id": "2f04"}]}
PAGE = "https://download.pytorch.org/whl/cu128/torch/"


def test_what_a_build_downloads_from_is_asked():
    assert urls_to_ask(resolve(FRESH)) == [PAGE]
    assert urls_to_ask(resolve(FRESH, {"steps": ["driver"]})) == []


@pytest.mark.parametrize("answer", [{"status": None, "error": "timed out"}, {"status": 404, "error": "it answers 404"}])
def test_silent_index_is_refused_with_its_address_and_the_cause(answer):
    plan = resolve({**FRESH, "urls": {PAGE: answer}})
    assert plan["feasible"] is False
    assert plan["actions"] == []
    (refusal,) = plan["refusals"]
    assert refusal["code"] == "index_unreachable"
    assert "https://download.pytorch.org/whl/cu128" in refusal["reason"]
    assert answer["error"] in refusal["reason"]
    assert "torch_env_index_base_url" in refusal["remedy"]
    assert "torch_env_mirror_index_base_url" in refusal["remedy"]


def test_hosts_install_from_a_mirror_and_locks_are_made_from_the_index():
    mirror = {"index_base_url": "http://m.lan:8080/whl/", "package_index_url": "http://m.lan:8080/packages/simple"}
    plan = resolve(FRESH, {"mirror": mirror, "package_index_url": "https://pypi.example/simple"})
    (environment,) = plan["environments"]
    assert (environment["index_url"], environment["package_index_url"]) == (
        "http://m.lan:8080/whl/cu128",
        "http://m.lan:8080/packages/simple",
    )
    assert (environment["lock_index_url"], environment["lock_package_index_url"]) == (
        "https://download.pytorch.org/whl/cu128",
        "https://pypi.example/simple",
    )
    assert urls_to_ask(plan) == ["http://m.lan:8080/whl/cu128/torch/"]


def test_without_a_mirror_hosts_install_from_what_locks_are_made_from():
    (environment,) = resolve(FRESH)["environments"]
    assert environment["index_url"] == environment["lock_index_url"] == "https://download.pytorch.org/whl/cu128"
    assert environment["package_index_url"] == environment["lock_package_index_url"] == ""


def test_index_that_answers_changes_nothing():
    assert resolve({**FRESH, "urls": {PAGE: {"status": 200, "error": None}}}) == resolve(FRESH)


def test_garbled_answer_is_not_taken_for_one():
    assert resolve({**FRESH, "urls": {PAGE: {"status": None}}})["feasible"] is False
    assert resolve({**FRESH, "urls": "none"}) == resolve(FRESH)


def test_gpu_that_is_left_out_is_not_proven():
    gpus = [
        {"pci_address": "0000:01:00.0", "pci_device_id": "2f04"},
        {"pci_address": "0000:02:00.0", "pci_device_id": "2204"},
    ]
    host = {**FRESH, "gpus": gpus}
    assert resolve(host)["proof"]["gpus"] is None
    assert resolve(host, {"driver": {"gpus_exclude": ["0000:02:00.0"]}})["proof"]["gpus"] == ["0000:01:00.0"]


@pytest.mark.parametrize("odd", [0, "closed", True, ["open"], {"open": 1}])
def test_flavor_or_source_that_does_not_exist_counts_as_not_known(odd):
    driver = {"userspace_version": "570.211.01", "loaded_version": "570.211.01", "flavor": odd, "source": odd}
    plan = resolve({**FRESH, "driver": {**driver, "loaded_flavor": odd}})
    assert plan["driver"]["flavor"] == "open"
    assert plan["driver"]["source"] in ("nvidia", "distro")


def test_install_that_was_interrupted_before_the_modules_is_finished():
    package = {"name": "libcuda1", "version": "580.178.04-1", "source": "nvidia", "held": False, "state": "installed"}
    driver = {"userspace_version": "580.178.04", "branch": 580, "source": "nvidia", "packages": [package]}
    modules = {"6.12.107+deb13-amd64": None}
    plan = resolve({**FRESH, "driver": {**driver, "modules_by_kernel": modules}}, {"steps": ["driver"]})
    assert "driver.packages" in [action["id"] for action in plan["actions"]]
