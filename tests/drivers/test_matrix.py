# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every system and source through a driver's whole life: nothing there, 580, 595, back, another flavor, removed.

Each phase is one run over all hosts at once; a case is one host's verdict, taken from its own package manager and files.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import checks
import harness
import pytest
from checks import Seen
from harness import Host, Played, Run

pytestmark = [pytest.mark.skipif(bool(harness.lacking()), reason=harness.lacking()), pytest.mark.timeout(3000)]

HOSTS = harness.driver_hosts()
BUDGET = 3  # remote executions of a run that has nothing to do
STEPS = {
    "driver.load",
    "driver.reboot",
    "driver.persistence",
    "driver.nodes",
}  # carried out by the role, not by driver_packages

# On drv-debian13-distro the kernel that comes with linux-image-amd64 is newer than Debian's driver.
REMOVE_NEWEST_KERNEL = """
newest=$(ls /boot | sed -n 's/^vmlinuz-//p' | sort -V | tail -n 1)
apt-get -qq -y purge linux-image-amd64 "linux-image-$newest" "linux-headers-amd64" "linux-headers-$newest" >/dev/null
"""

each_host = pytest.mark.parametrize("name", HOSTS)


class Matrix:
    """The phases, each run once, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.too_new: dict[str, tuple[Played, Seen]] = {}
        harness.up(HOSTS)
        harness.on_all(HOSTS, upgrade_everything)  # so that what it changes later is not taken for the driver's doing
        self.hosts = {name: Host(name) for name in HOSTS}

    def look(self) -> dict[str, Seen]:
        """Everything as it is now."""
        return harness.look(HOSTS)

    def provision(self, *options: str, hosts: list[str] | None = None, **variables: Any) -> Run:
        # Debian 12's own driver is 535, below the default floor.
        return harness.play("provision_gpu.yml", hosts or HOSTS, *options, nvidia_driver_minimum="535", **variables)

    @functools.cached_property
    def fresh(self) -> tuple[dict[str, Seen], Run, dict[str, Seen], Run, dict[str, Seen]]:
        """Before; the prediction; after the prediction; the run; after it."""
        before = self.look()
        predicted = self.provision("--check", "--diff")
        between = self.look()
        run, after = self.provision(), self.look()
        self.too_new = {name: (run[name], after[name]) for name in HOSTS if "does not compile" in run[name].message}
        if self.too_new:  # the way out that the message names: without the kernel for which there is no module
            harness.on_all(self.too_new, lambda host: host.run(REMOVE_NEWEST_KERNEL))
            again = self.provision(hosts=list(self.too_new))
            run.hosts.update(again.hosts)
            after = {**after, **harness.look(self.too_new)}
            before = {**before, **{name: without_kernel(before[name], after[name]) for name in self.too_new}}
        return before, predicted, between, run, after

    @functools.cached_property
    def converged(self) -> tuple[Run, Run, dict[str, Seen]]:
        """Run again, in check mode and for real."""
        _ = self.fresh
        predicted = self.provision("--check", "--diff")
        return predicted, self.provision(), self.look()

    @functools.cached_property
    def broken(self) -> tuple[Run, Run, dict[str, Seen]]:
        """Holds released, a module deleted, the block list changed: predicted, then mended."""
        _ = self.converged
        harness.on_all(HOSTS, harm)
        predicted = self.provision("--check", "--diff")
        return predicted, self.provision(), self.look()

    @functools.cached_property
    def everything(self) -> tuple[dict[str, Seen], dict[str, Any], dict[str, Seen]]:
        """The system's own upgrades of everything, for real."""
        _ = self.broken
        before = self.look()
        said = harness.on_all(HOSTS, upgrade_everything)
        return before, said, self.look()

    @functools.cached_property
    def upgraded(self) -> tuple[dict[str, Seen], Run, Run, dict[str, Seen]]:
        """580 to 595: predicted, then done."""
        before = self.everything[2]
        predicted = self.provision("--check", "--diff", nvidia_driver_branch="595")
        return before, predicted, self.provision(nvidia_driver_branch="595"), self.look()

    @functools.cached_property
    def rolled_back(self) -> tuple[dict[str, Seen], Run, dict[str, Seen]]:
        """To the generation of the first install, without network."""
        before = self.upgraded[0]
        numbers = {(seen["journal"] or {}).get("generation") for seen in before.values() if isinstance(seen, dict)}
        target = {"gpufleet_to": numbers.pop()} if len(numbers) == 1 else {}
        harness.on_all(HOSTS, Host.cut_network)
        try:
            run = harness.play("rollback.yml", HOSTS, **target)
        finally:
            harness.on_all(HOSTS, Host.restore_network)
        return before, run, self.look()

    @functools.cached_property
    def other_flavor(self) -> tuple[Run, Run, dict[str, Seen]]:
        """Proprietary modules where somebody asks for them, open ones where the GPU is too old for them (refused)."""
        _ = self.rolled_back
        old = [name for name in HOSTS if self.hosts[name].before_turing]
        refused = self.provision("--check", hosts=old, nvidia_driver_flavor="open") if old else Run(0, 0.0, "", {})
        return refused, self.provision(nvidia_driver_flavor="proprietary"), self.look()

    @functools.cached_property
    def failed_build(self) -> tuple[dict[str, Seen], Run, dict[str, Seen]]:
        """595, on kernels for which it does not compile."""
        before = self.other_flavor[2]
        failure = "for folder in /lib/modules/*/; do touch $folder/SIMULATE_DKMS_FAILURE; done"
        harness.on_all(HOSTS, lambda host: host.run(failure))
        try:
            run = self.provision(nvidia_driver_branch="595", nvidia_driver_flavor="auto")
        finally:
            harness.on_all(HOSTS, lambda host: host.run("rm -f /lib/modules/*/SIMULATE_DKMS_FAILURE"))
        return before, run, self.look()

    @functools.cached_property
    def again(self) -> tuple[Run, dict[str, Seen]]:
        """The same run once the cause is gone."""
        _ = self.failed_build
        return self.provision(nvidia_driver_branch="595"), self.look()

    @functools.cached_property
    def downgrade(self) -> tuple[dict[str, Seen], Run, dict[str, Seen], Run, dict[str, Seen]]:
        """595 to 580: unasked, then asked for."""
        before = self.again[1]
        unasked = self.provision(nvidia_driver_branch="580")
        between = self.look()
        asked = self.provision(nvidia_driver_branch="580", nvidia_driver_downgrade_allowed=True)
        return before, unasked, between, asked, self.look()

    @functools.cached_property
    def removed(self) -> tuple[dict[str, Seen], Run, dict[str, Seen]]:
        """Everything goes; a second time there is nothing to do."""
        _ = self.downgrade
        run = harness.play("remove.yml", HOSTS, gpufleet_remove=True)
        return self.fresh[0], run, self.look()


def without_kernel(before: Seen, after: Seen) -> Seen:
    """What the host was before, had it not had the kernels that it has no more."""
    gone = set(before["boots"]) - set(after["boots"])
    of_them = tuple(gone)
    packages = {
        name: facts
        for name, facts in before["packages"].items()
        if name != "linux-image-amd64" and not name.endswith(of_them)
    }
    files = {path: value for path, value in before["files"].items() if not path.endswith(of_them)}
    # depmod's lists outlive a kernel, and its folder with them
    modules = {kernel: found for kernel, found in before["modules"].items() if kernel in after["modules"]}
    return {**before, "packages": packages, "files": files, "modules": modules, "boots": after["boots"]}


def harm(host: Host) -> None:
    """What people and accidents do to a host that was fine."""
    loosen = (
        "rm -f /etc/dnf/plugins/versionlock.list"
        if host.rpm
        else "apt-mark showhold | xargs -r apt-mark unhold >/dev/null"
    )
    host.run(
        f"{loosen}; rm -f /lib/modules/*/updates/dkms/nvidia.ko* /lib/modules/*/extra/nvidia.ko*; rm -f /dev/nvidia-uvm*\n"
        "echo '# by hand' >> /etc/modprobe.d/gpufleet-nouveau.conf"
    )


def upgrade_everything(host: Host) -> str:
    """As people and timers do it; what was said."""
    if host.rpm:
        return host.run("dnf -y upgrade 2>&1")
    return host.run(
        "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update 2>&1; apt-get -y full-upgrade 2>&1\n"
        "printf '%s\\n' 'Unattended-Upgrade::Origins-Pattern { \"origin=*\"; };' > /tmp/all.conf\n"
        "APT_CONFIG=/tmp/all.conf unattended-upgrade --verbose 2>&1; rm /tmp/all.conf\n"
        "apt-get -y autoremove --purge 2>&1"
    )


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    made = Matrix()
    yield made
    harness.on_all(HOSTS, Host.restore_network)


def goes_to_595(host: Host) -> bool:
    """Whether there is a 595 for this host's GPUs in its source."""
    return host.nvidia and not host.before_turing and host.branch != "595"


def refused(run: Run, name: str, *words: str) -> None:
    """The host was refused with a reason and a way out, and the plan did nothing."""
    played = run[name]
    assert played.refusals, f"{name} was not refused: {played.planned} {played.message}"
    assert played.planned == []
    text = " ".join(f"{item['reason']} {item['remedy']}" for item in played.refusals)
    for word in words:
        assert word in text
    assert not played.ready


def executed(run: Run, name: str) -> set[str]:
    """Ids of the actions that were carried out, as far as driver_packages names them."""
    return {step["id"] for step in run[name].done if step["changed"]}


def as_predicted(predicted: Run, run: Run, name: str) -> None:
    """The prediction named exactly the actions of the run, and the run carried out no other one."""
    assert predicted[name].planned == run[name].planned
    assert predicted[name].done == []
    carried_out = {item for item in executed(run, name) if item.startswith("driver.")}
    assert carried_out <= set(run[name].planned) | {"driver.modules"}, "done without having been planned"
    assert set(run[name].planned) - STEPS <= {step["id"] for step in run[name].done}, "planned and not done"


@each_host
def test_predicted_fresh_and_nothing_changed(matrix: Matrix, name: str) -> None:
    before, predicted, between, run, _after = matrix.fresh
    assert predicted[name].ready, predicted[name].message
    assert predicted[name].planned
    if name in matrix.too_new:  # what was planned was begun, and could not be done
        assert predicted[name].planned == matrix.too_new[name][0].planned
    else:
        checks.untouched(before[name], between[name])
        as_predicted(predicted, run, name)


@each_host
def test_fresh_host_gets_the_driver(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    run, after = matrix.fresh[3:]
    assert run[name].ready, run[name].message
    checks.serves(host, after[name], host.branch, host.flavor)


@each_host
def test_honest_where_the_kernel_is_too_new(matrix: Matrix, name: str) -> None:
    before, *_ = matrix.fresh
    if name not in matrix.too_new:
        pytest.skip("the driver compiles for every kernel of this host")
    played, seen = matrix.too_new[name]
    for words in ("error:", "pci_resize_resource", "6.12.107", "/var/lib/gpufleet/", "removed again"):
        assert words in played.message
    assert seen["problems"] == []
    assert checks.driver(seen) == {}
    assert before[name]["packages"].keys() <= seen["packages"].keys()


@each_host
def test_prebuilt_modules_are_taken_where_ubuntu_has_them(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    if host.nvidia or "ubuntu" not in name:
        pytest.skip("only Ubuntu's archive has modules that are compiled and signed")
    seen = matrix.fresh[4][name]
    packages = checks.installed(seen)
    assert [package for package in packages if "dkms" in package and "no-dkms" not in package] == []
    for kernel in seen["boots"]:
        assert [
            package
            for package in packages
            if package.startswith("linux-modules-nvidia-580") and package.endswith(kernel)
        ]


@each_host
def test_converged_host_is_left_alone(matrix: Matrix, name: str) -> None:
    predicted, run, after = matrix.converged
    assert predicted[name].planned == run[name].planned == []
    assert not predicted[name].changed
    assert not run[name].changed
    assert run[name].ready, run[name].message
    assert 0 < run[name].executions <= BUDGET
    checks.same_driver(matrix.fresh[4][name], after[name])


@each_host
def test_broken_host_is_predicted_and_mended(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    predicted, run, after = matrix.broken
    assert predicted[name].planned, "harm was not noticed"
    as_predicted(predicted, run, name)
    assert run[name].ready, run[name].message
    checks.serves(host, after[name], host.branch, host.flavor)


@each_host
def test_kept_when_everything_else_is_upgraded(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    before, said, after = matrix.everything
    assert isinstance(said[name], str), said[name]
    assert checks.driver(after[name]) == checks.driver(before[name]), said[name]
    checks.serves(host, after[name], host.branch, host.flavor)
    if not host.rpm and host.nvidia and {"libcuda1", "libnvidia-compute"} & set(checks.driver(after[name])):
        # Without our pin and holds the same command takes what is newest, unless names keep to a branch (Ubuntu's, until 580).
        loose = "apt-get -s --ignore-hold -o Dir::Etc::PreferencesParts=/var/empty -o Dir::Etc::Preferences=/var/empty/none full-upgrade"
        assert re.search(
            r"^Inst (libcuda1|libnvidia-compute) .*\((6\d\d|59)", said[name] + host.run(loose), re.MULTILINE
        )


@each_host
def test_upgrade_to_595_or_an_honest_refusal(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    before, predicted, run, after = matrix.upgraded
    if goes_to_595(host):
        as_predicted(predicted, run, name)
        assert run[name].ready, run[name].message
        checks.serves(host, after[name], "595", host.flavor)
    elif run[name].refusals:
        refused(predicted, name, "595")
        refused(run, name, "595")
        checks.untouched(before[name], after[name])
    elif name == "drv-ubuntu2204-distro":  # which branches its archive has is not known before it is asked
        assert "Unable to locate package nvidia-headless-no-dkms-595-open" in run[name].message
        assert "Nothing of the driver was changed" in run[name].message
        checks.same_driver(before[name], after[name])
    else:
        checks.serves(host, after[name], "595", host.flavor)


@each_host
def test_rollback_without_network(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    before, run, after = matrix.rolled_back
    assert run[name].ready, run[name].message
    assert checks.driver(after[name]) == checks.driver(before[name])
    checks.serves(host, after[name], host.branch, host.flavor)


@each_host
def test_flavor_is_switched_where_the_gpu_allows(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    to_open, run, after = matrix.other_flavor
    if host.before_turing:
        refused(to_open, name, "open")
    if host.blackwell:
        refused(run, name, "open")
        checks.serves(host, after[name], host.branch, "open")
    else:
        assert run[name].ready or run[name].refusals, run[name].message
        flavor = host.flavor if run[name].refusals else "proprietary"
        checks.serves(host, after[name], host.branch, flavor)


@each_host
def test_failing_build_keeps_the_driver(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    if not goes_to_595(host):
        pytest.skip("no 595 for this host")
    before, run, after = matrix.failed_build
    if all(not step["id"].startswith("driver.") for step in run[name].done):
        pytest.fail(f"nothing was tried: {run[name].planned} {run[name].message}")
    assert not run[name].ready
    for word in (after[name]["boots"][0], "595.", "error:", "remove"):
        assert word in run[name].message
    checks.same_driver(before[name], after[name])
    checks.kept(host, after[name])


@each_host
def test_again_after_the_cause_is_gone(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    if not goes_to_595(host):
        pytest.skip("no 595 for this host")
    run, after = matrix.again
    assert run[name].ready, run[name].message
    checks.serves(host, after[name], "595", host.flavor)


@each_host
def test_downgrade_only_when_asked(matrix: Matrix, name: str) -> None:
    host = matrix.hosts[name]
    if not goes_to_595(host):
        pytest.skip("no 595 for this host")
    before, unasked, between, asked, after = matrix.downgrade
    refused(unasked, name, "nvidia_driver_downgrade_allowed")
    checks.same_driver(before[name], between[name])
    assert asked[name].ready, asked[name].message
    checks.serves(host, after[name], "580", host.flavor)


@each_host
def test_removal_leaves_nothing(matrix: Matrix, name: str) -> None:
    before, run, after = matrix.removed
    assert run[name].ready, run[name].message
    assert checks.driver(after[name]) == {}
    assert not after[name]["loaded"]["version"]
    checks.untouched(before[name], after[name])
