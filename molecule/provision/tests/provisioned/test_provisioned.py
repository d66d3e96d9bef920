"""Every host is what its row says, seen with dpkg, modinfo, real logins and the environment's own Python."""

from __future__ import annotations

import json

import pytest
from checks import driver, runtime

ENVIRONMENT = "/opt/gpufleet/envs/base"
FLAVORS = {"ws-5070": "open", "ws-4090": "open", "ws-mixed": "open", "ws-1080ti": "proprietary"}
BUILDS = {**dict.fromkeys(("ws-5070", "ws-4090", "ws-mixed", "ws-wsl"), "2.9.1+cu128"), "ws-1080ti": "2.9.1+cu126"}


@pytest.mark.parametrize(("name", "flavor"), FLAVORS.items())
def test_driver_of_the_planned_branch_and_flavor_is_installed_and_loaded(host_named, name, flavor):
    host = host_named(name)
    version = driver.installed(host, "580", flavor)
    kernels = host.check_output("ls /lib/modules").split()
    driver.modules(host, kernels, version, flavor)
    driver.loaded(host, version, flavor)
    driver.persistence_daemon(host)


@pytest.mark.parametrize("name", FLAVORS)
def test_driver_stays_where_it_is(host_named, name):
    host = host_named(name)
    driver.pinned(host, "580")
    driver.repository_is_signed(host)
    driver.nouveau_is_blocked(host)
    assert driver.journal(host)["present"]["branch"] == 580


def test_wsl_gets_no_linux_driver(host_named):
    assert driver.packages(host_named("ws-wsl")) == {}


@pytest.mark.parametrize(("name", "build"), BUILDS.items())
def test_environment_holds_the_planned_build(host_named, name, build):
    host = host_named(name)
    code = "import torch, torchvision, torchaudio; print(torch.__version__, torchvision.__version__, torchaudio.__version__)"
    words = host.check_output("runuser -u nobody -- gpu-env run base python -I -c %s", code).split()
    assert words[0] == build
    assert words[1].partition("+")[0] == "0.24.1"
    assert words[2].partition("+")[0] == "2.9.1"


@pytest.mark.parametrize("name", BUILDS)
def test_environment_belongs_to_root_and_nobody_else_can_write_it(host_named, name):
    host = host_named(name)
    release = host.check_output("readlink -f %s/current", ENVIRONMENT)
    assert host.check_output("find %s ! -user root -print -quit", release) == ""
    assert host.check_output("find %s ! -type l -perm /022 -print -quit", release) == ""
    stamp = json.loads(host.file(f"{ENVIRONMENT}/stamps/{release.rpartition('/')[2]}.json").content_string)
    assert stamp["proof"]["verdict"] == "passed"
    assert stamp["files"] == int(host.check_output("find %s ! -type d | wc -l", release))


@pytest.mark.parametrize("name", BUILDS)
def test_the_proof_is_on_record_for_the_release_and_the_boot_that_serve(host_named, name):
    host = host_named(name)
    release = host.check_output("readlink -f %s/current", ENVIRONMENT).rpartition("/")[2]
    file = host.file("/var/lib/gpufleet/proof/base.json")
    assert (file.is_file, file.user, file.group, file.mode) == (True, "root", "root", 0o644)
    proof = json.loads(file.content_string)
    assert (proof["verdict"], proof["level"], proof["release"]) == ("passed", "static", release)
    assert proof["release_digest"] == host.file(f"{ENVIRONMENT}/stamps/{release}.json").sha256sum
    assert proof["boot_id"] == host.check_output("cat /proc/sys/kernel/random/boot_id")


@pytest.mark.parametrize("name", sorted(set(BUILDS) - {"ws-1080ti"}))  # there sudo asks for a password
def test_variable_is_in_effect_in_every_launch_context(host_named, name):
    runtime.set_everywhere(host_named(name), "admin")


@pytest.mark.parametrize("name", BUILDS)
def test_variable_is_in_effect_in_the_environment_itself_unless_the_user_set_it(host_named, name):
    host = host_named(name)
    for interpreter in (f"{ENVIRONMENT}/current/bin/python", f"{ENVIRONMENT}/bin/python"):
        assert runtime.in_python(host, interpreter) == "false"
        assert runtime.in_python(host, interpreter, given="true") == "true"


def test_variable_reaches_cron_jobs_and_user_services(host_named):
    host = host_named("ws-5070")
    assert runtime.in_cron_job(host, "admin") == "false"
    assert runtime.in_user_service(host, "admin") == "false"
