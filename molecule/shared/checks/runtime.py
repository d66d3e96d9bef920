# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environment variables as processes really get them: each launch context is entered, and `env` is asked inside it."""

from __future__ import annotations

import re
import time
import uuid

from testinfra.host import Host

from .hosts import over_ssh

VARIABLE = "TOKENIZERS_PARALLELISM"
FILES = (
    "/etc/profile.d/gpufleet.sh",
    "/etc/environment.d/50-gpufleet.conf",
    "/etc/systemd/system.conf.d/50-gpufleet.conf",
)
BLOCK = re.compile(r"^# BEGIN gpufleet\.workstation\n(.*?)^# END gpufleet\.workstation$", re.MULTILINE | re.DOTALL)


def value_of(text: str, variable: str = VARIABLE) -> str | None:
    """Return a variable's value in the output of env."""
    found = re.findall(rf"^{variable}=(.*)$", text, re.MULTILINE)
    return found[-1] if found else None


def in_logins(host: Host, user: str) -> dict[str, str | None]:
    """Return the value in each kind of session."""
    answers = {
        "ssh, command": over_ssh(host, "env"),
        "ssh, login shell": over_ssh(host, "bash -lc env"),
        "su - user": host.check_output("env -i PATH=/usr/bin:/bin su - %s -c env", user),
        "sudo -i as root": host.check_output("env -i PATH=/usr/bin:/bin sudo -n -i -- env"),
        "sudo -i as the user": host.check_output("env -i PATH=/usr/bin:/bin sudo -n -i -u %s -- env", user),
        "login shell with an empty environment": host.check_output("env -i HOME=/ PATH=/usr/bin:/bin bash -lc env"),
    }
    return {context: value_of(text) for context, text in answers.items()}


def in_system_service(host: Host) -> str | None:
    """Return the value in a service of the system manager that starts now."""
    return value_of(host.check_output("systemd-run --quiet --wait --pipe --collect env"))


def in_user_service(host: Host, user: str) -> str | None:
    """Return the value in a service of a user's manager that starts now. systemd-run would need the user's D-Bus."""
    uid = host.user(user).uid
    name = f"gpufleet-check-{uuid.uuid4().hex[:8]}"
    unit, answer = f"/run/systemd/user/{name}.service", f"/run/user/{uid}/{name}"
    text = f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'env > {answer}'\n"
    systemctl = f"runuser -u {user} -- env XDG_RUNTIME_DIR=/run/user/{uid} systemctl --user"
    host.check_output("systemctl start user@%s.service", str(uid))
    try:
        host.check_output("mkdir -p /run/systemd/user && printf %s > %s", text, unit)
        host.check_output(f"{systemctl} daemon-reload && {systemctl} start {name}.service")
        return value_of(host.file(answer).content_string)
    finally:
        host.check_output("rm -f %s %s", unit, answer)


def in_cron_job(host: Host, user: str) -> str | None:
    """Return the value in a cron job; takes until the next full minute."""
    name = f"gpufleet-check-{uuid.uuid4().hex[:8]}"
    answer = f"/run/{name}"
    host.check_output("install -o %s -m 600 /dev/null %s", user, answer)
    try:
        line = f"* * * * * {user} env > {answer}"
        host.check_output("printf '%%s\\n' %s > %s", line, f"/etc/cron.d/{name}")
        deadline = time.monotonic() + 130
        while time.monotonic() < deadline:
            text = host.file(answer).content_string
            if "SHELL=" in text or "HOME=" in text:
                return value_of(text)
            time.sleep(3)
        raise AssertionError("cron did not run the job within 130 s")
    finally:
        host.check_output("rm -f %s %s", f"/etc/cron.d/{name}", answer)


def in_python(host: Host, interpreter: str, *, given: str | None = None) -> str | None:
    """Return the value that an environment's Python sees when it is started with nothing but what is given."""
    code = f"import os; print('{VARIABLE}=' + os.environ.get('{VARIABLE}', '<unset>'))"
    prefix = "env -i" if given is None else f"env -i {VARIABLE}={given}"
    found = value_of(host.check_output(f"{prefix} %s -c %s", interpreter, code))
    return None if found == "<unset>" else found


def set_everywhere(host: Host, user: str, value: str = "false") -> None:
    """Every launch context that needs no waiting has the value."""
    found = in_logins(host, user) | {"system service": in_system_service(host)}
    assert found == dict.fromkeys(found, value)


def set_nowhere(host: Host, user: str) -> None:
    """No launch context has the variable, and no file of ours is left."""
    found = in_logins(host, user) | {"system service": in_system_service(host)}
    assert found == dict.fromkeys(found, None)
    assert [path for path in FILES if host.file(path).exists] == []
    assert not BLOCK.search(etc_environment(host))


def others_lines(host: Host) -> str:
    """Return /etc/environment without our block: what must never change."""
    return BLOCK.sub("", etc_environment(host)).strip("\n")


def etc_environment(host: Host) -> str:
    """Return the text of /etc/environment; a minimal host has no such file."""
    file = host.file("/etc/environment")
    return file.content_string if file.exists else ""
