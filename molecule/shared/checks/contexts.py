# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way in which a process gets started on a workstation, entered for real; and what the variable is there.

Each context is entered from an empty environment, so that nothing is inherited from the test. Where somebody can give the process a
value of their own before ours are applied, that is tried as well: theirs has to win.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from testinfra.host import Host

from .hosts import over_ssh
from .runtime import VARIABLE, in_user_service, value_of

SHELLS = ("bash", "zsh", "dash")
OWN = f"{VARIABLE}=true"
SCRUBBED = "env -i PATH=/usr/local/bin:/usr/bin:/bin"
PACKAGES = "zsh greetd"
DESKTOPS = {"gdm3": "gdm-password", "lightdm": "lightdm", "sddm": "sddm"}
"""Display managers that need a screen: of these the sessions are opened through their PAM services alone."""
CRON = "/etc/cron.d/gpufleet-contexts"
WITHOUT_US = ("a login shell zsh that no login started", "sudo env", "sudo -u USER env")
"""Where the system's files set nothing: zsh reads no folder of profiles and without a login there is no PAM; and Debian's sudo empties
the environment without asking pam_env. The environments' own Python has the variable there as well."""


class Seen(NamedTuple):
    """What a process got, and what one got that was given a value of its own; empty: that cannot be done there."""

    value: str | None
    own: str | None = ""


def prepare(host: Host, user: str) -> None:
    """Install the shells and the display manager, and add a person for every shell."""
    host.check_output("systemctl --quiet mask greetd.service")  # it would look for a screen
    host.check_output(
        f"DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends {PACKAGES} >/dev/null 2>&1"
    )
    host.check_output(
        f"cd /var/cache/apt && apt-get -qq download {' '.join(DESKTOPS)} 2>/dev/null && "
        "for deb in *.deb; do dpkg-deb --fsys-tarfile $deb | tar -x -C / --wildcards './etc/pam.d/*'; rm $deb; done"
    )
    for shell in SHELLS:
        host.check_output(f"id -u {shell}-user || useradd -m -s /bin/{shell} {shell}-user")
        host.check_output(f"cp /etc/ssh/authorized_keys.d/{user} /etc/ssh/authorized_keys.d/{shell}-user")
        host.check_output(f": > ~{shell}-user/.zshrc")  # otherwise zsh asks questions


def observe(host: Host, user: str, environment: str) -> dict[str, Seen]:
    """Enter every context on a host that is prepared; ``environment`` is the directory of one with ipykernel."""
    found: dict[str, Seen] = {}
    _start_cron_jobs(host)
    for part in (_sessions, _privileges, _services, _desktops, _environment(environment), _cron_jobs):
        found.update(part(host, user))
    return found


def _sessions(host: Host, user: str) -> Iterator[tuple[str, Seen]]:
    for shell in SHELLS:
        person = f"{shell}-user"
        yield f"ssh, a command ({shell})", Seen(_value(over_ssh(host, "env", person)))
        if shell != "dash":  # which does not get what is typed before it asks
            typed = (over_ssh(host, "", person, f"{own} {shell} -lc env\nexit\n") for own in ("", OWN))
            yield f"ssh, a terminal ({shell})", Seen(*map(_value, typed))
        yield f"su - ({shell})", Seen(_value(host.check_output(f"{SCRUBBED} su - {person} -c env")))
        name = f"a login shell {shell} that no login started"
        login = f"/bin/{shell} -lc env"
        yield (
            name,
            Seen(
                _value(host.check_output(f"{SCRUBBED} HOME=/ {login}")),
                _value(host.check_output(f"{SCRUBBED} HOME=/ {OWN} {login}")),
            ),
        )
    yield "su, without a login", Seen(_value(host.check_output(f"{SCRUBBED} su {user} -c env")))


def _privileges(host: Host, user: str) -> Iterator[tuple[str, Seen]]:
    """sudo as Debian has it, and where they are there, the one in Rust and systemd's own."""
    for program in ("sudo", "sudo-rs", "run0"):
        if not host.run(f"command -v {program}").succeeded:
            continue
        for options, own in (("env", f"{OWN} env"), (f"-u {user} env", ""), ("-i env", ""), (f"-i -u {user} env", "")):
            if program == "run0" and options.startswith("-i"):
                continue
            tell = [
                f"{SCRUBBED} TERM=dumb {program} {'' if program == 'run0' else '-n '}{words}"
                for words in (options, own)
                if words
            ]
            if program == "run0" and own:
                tell[1] = f"{SCRUBBED} run0 --setenv={OWN} env"
            yield (
                f"{program} {options.replace(user, 'USER')}",
                Seen(*(_value(host.check_output(line)) for line in tell)),
            )


def _services(host: Host, user: str) -> Iterator[tuple[str, Seen]]:
    run = "systemd-run --quiet --wait --pipe --collect"
    yield "a system service", Seen(*(_value(host.check_output(f"{run} {more} env")) for more in ("", f"-E {OWN}")))
    yield "a system service of a user", Seen(_value(host.check_output(f"{run} -p User={user} env")))
    yield "a user service", Seen(in_user_service(host, user))


def _desktops(host: Host, user: str) -> Iterator[tuple[str, Seen]]:
    run = f"systemd-run --quiet --wait --pipe --collect -p User={user}"
    for service in ("login", *DESKTOPS.values()):
        yield f"a session through PAM's {service}", Seen(_value(host.check_output(f"{run} -p PAMName={service} env")))
    answer, settings = "/run/gpufleet-desktop", "/run/gpufleet-greetd.toml"
    host.check_output(f"install -o {user} -m 600 /dev/null {answer}; rm -f /run/greetd.run")
    session = (
        '[terminal]\nvt = "none"\n[default_session]\ncommand = "true"\nuser = "_greetd"\n'
        f'[initial_session]\ncommand = "sh -c \'env > {answer}\'"\nuser = "{user}"\n'
    )
    host.check_output(f"printf %s {shlex.quote(session)} > {settings}")
    host.run(f"{SCRUBBED} timeout 10 /usr/sbin/greetd -c {settings}")
    yield "a desktop (greetd)", Seen(_value(host.file(answer).content_string))


def _environment(directory: str) -> Callable[[Host, str], Iterator[tuple[str, Seen]]]:
    """Contexts in which the environment itself, and nothing else, can set the variable."""
    name = directory.rpartition("/")[2]
    show = "import os; print(*(f'{key}={value}' for key, value in os.environ.items()), sep=chr(10))"
    ways = {
        "the environment's python": f"{directory}/current/bin/python -c {shlex.quote(show)}",
        "the environment's python, isolated": f"{directory}/bin/python -I -c {shlex.quote(show)}",
        "an activated shell": f"/bin/sh -c '. {directory}/bin/activate; env'",
        "gpu-env run": f"/usr/local/bin/gpu-env run {name} env",
    }

    def enter(host: Host, user: str) -> Iterator[tuple[str, Seen]]:
        for way, command in ways.items():
            lines = (f"runuser -u {user} -- {SCRUBBED} {own} {command}" for own in ("", OWN))
            yield way, Seen(*(_value(host.check_output(line)) for line in lines))

    return enter


def in_jupyter(host: Host, user: str, directory: str, kernel: str) -> Seen:
    """Start a kernel as a Jupyter server does, from a kernel.json; the server's process has, or has not, a value of its own."""
    place = "/tmp/gpufleet-jupyter/kernels/ours"
    host.check_output(f"mkdir -p {place} && printf %s {shlex.quote(kernel)} > {place}/kernel.json")
    client = f"""
import os
os.environ.pop({VARIABLE!r}, None)
os.environ.update(dict(pair.split("=") for pair in os.environ.pop("OWN").split()))
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="ours")
reply = client.execute_interactive("", user_expressions={{"x": "__import__('os').environ.get({VARIABLE!r})"}}, timeout=60)
print({VARIABLE!r} + "=" + reply["content"]["user_expressions"]["x"]["data"]["text/plain"].strip("'"))
client.stop_channels()
manager.shutdown_kernel(now=True)
"""
    scrubbed = f"runuser -u {user} -- {SCRUBBED} HOME=/tmp JUPYTER_PATH=/tmp/gpufleet-jupyter"
    start = f"{directory}/bin/python -c {shlex.quote(client)}"
    return Seen(*(_value(host.check_output(f"{scrubbed} OWN={own} {start}")) for own in ("", OWN)))


FORK = """
import os, signal, sys, time
given = sys.argv[1]
if given == "unset":
    del os.environ["TOKENIZERS_PARALLELISM"]
elif given:
    os.environ["TOKENIZERS_PARALLELISM"] = given
from tokenizers import Tokenizer, models, pre_tokenizers
tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
texts = ["a b c d e"] * 2000
tokenizer.encode_batch(texts)
child = os.fork()
if child == 0:
    tokenizer.encode_batch(texts)
    os._exit(0)
deadline = time.monotonic() + 8
while time.monotonic() < deadline:
    if os.waitpid(child, os.WNOHANG)[0]:
        sys.exit("the child ended")
    time.sleep(0.02)
os.kill(child, signal.SIGKILL)
sys.exit("the child hangs")
"""


def after_a_fork(host: Host, user: str, directory: str, given: str) -> str:
    """Return what is said where a process forks that has used tokenizers; with the environment's own setting where nothing is given."""
    command = f"runuser -u {user} -- {SCRUBBED} {directory}/bin/python -c {shlex.quote(FORK)} {shlex.quote(given)}"
    return host.run(command).stderr


def _start_cron_jobs(host: Host) -> None:
    """cron reads its files once a minute; the other contexts are entered meanwhile."""
    text = "".join(f"{own}\n* * * * * root env > /run/gpufleet-cron{number}\n" for number, own in enumerate(("", OWN)))
    host.check_output(f"rm -f /run/gpufleet-cron?; printf %s {shlex.quote(text)} > {CRON}")


def _cron_jobs(host: Host, _user: str) -> Iterator[tuple[str, Seen]]:
    deadline = time.monotonic() + 130
    answers = ["", ""]
    while not all("HOME=" in text for text in answers):
        assert time.monotonic() < deadline, "cron did not run the jobs within 130 s"
        time.sleep(2)
        answers = [host.run(f"cat /run/gpufleet-cron{number}").stdout for number in (0, 1)]
    host.check_output(f"rm {CRON}")
    yield "a cron job", Seen(*map(_value, answers))


def _value(text: str) -> str | None:
    return value_of(text.replace("\r", ""))
