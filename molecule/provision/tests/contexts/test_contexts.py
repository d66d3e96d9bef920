"""A process is started in every launch context of a host, and the table of what each got is kept in .state/test/contexts.txt."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checks import contexts, hosts, runtime
from checks.contexts import Seen

pytestmark = pytest.mark.timeout(400)  # an environment is built, and cron looks once a minute

ROOT = Path(__file__).resolve().parents[4]
TABLE = ROOT / ".state/test/contexts.txt"
USER = "admin"
LAB = "/opt/gpufleet/envs/lab"
HOSTS = {"ws-mixed": "Debian 13", "ws-1080ti": "Debian 12"}
ENVIRONMENTS = [
    {"name": "lab", "requirements": ["ipykernel", "tokenizers"], "variables": {"NOTE_OF_LAB": "two words; a=b"}}
]
TRICKY = "a  b;c|d&e=f:g,h~!*?[x]{y}<z>@^ (é) -x"
EVERYTHING = {
    "runtime_env_variables": {runtime.VARIABLE: "false", "NOTE_OF_HOST": TRICKY},
    "torch_env_environments_lab": ENVIRONMENTS,
}


@pytest.fixture(scope="module")
def provisioned(play):
    """The hosts with one more environment, which brings Jupyter's kernel and tokenizers."""
    with ThreadPoolExecutor() as pool:
        prepared = [pool.submit(contexts.prepare, hosts.named(name), USER) for name in HOSTS]
        done = play(
            "provision-gpu.yml",
            "--limit",
            ",".join(HOSTS),
            "-e",
            json.dumps({**EVERYTHING, "gpufleet_batches": "100%"}),
        )
        for job in prepared:
            job.result()
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def seen(provisioned):
    """What was found, by host and context; also the table."""

    def look(name: str) -> dict[str, Seen]:
        host = hosts.named(name)
        kernel = host.file(f"{LAB}/takeaway/kernel.json").content_string
        return {
            **contexts.observe(host, USER, LAB),
            "a Jupyter kernel": contexts.in_jupyter(host, USER, LAB, kernel),
        }

    with ThreadPoolExecutor() as pool:
        found = dict(zip(HOSTS, pool.map(look, HOSTS), strict=True))
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(found))
    return found


def table(found: dict[str, dict[str, Seen]]) -> str:
    """Contexts by hosts: the value, and what a process kept that had TOKENIZERS_PARALLELISM=true of its own."""
    lines = [("started in", *(f"{name} ({system})" for name, system in HOSTS.items()))]
    for context in dict.fromkeys(context for row in found.values() for context in row):
        cells = (row.get(context) for row in found.values())
        lines.append((context, *("not there" if cell is None else shown(cell) for cell in cells)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    return f"{runtime.VARIABLE}; in brackets: where the user set true\n{text}\n"


def shown(cell: Seen) -> str:
    return f"{cell.value or 'unset'}" + (f" ({cell.own or 'unset'})" if cell.own != "" else "")


@pytest.mark.parametrize("name", HOSTS)
def test_the_variable_is_in_effect_wherever_a_process_is_started(seen, name):
    values = {context: cell.value for context, cell in seen[name].items()}
    expected = {context: None if context in contexts.WITHOUT_US else "false" for context in values}
    assert len(values) > 25
    assert values == expected


@pytest.mark.parametrize("name", HOSTS)
def test_a_value_that_the_user_set_wins_wherever_one_can_be_set(seen, name):
    own = {context: cell.own for context, cell in seen[name].items() if cell.own != ""}
    assert len(own) > 10
    assert own == dict.fromkeys(own, "true")


@pytest.mark.parametrize("name", HOSTS)
def test_any_other_value_is_the_same_for_systemd_pam_and_a_shell(provisioned, name):
    host = hosts.named(name)
    commands = ("systemd-run --quiet --wait --pipe --collect env", "su - zsh-user -c env", "env -i HOME=/ bash -lc env")
    answers = [host.check_output(command) for command in commands]
    assert [runtime.value_of(text, "NOTE_OF_HOST") for text in answers] == [TRICKY] * len(commands)


@pytest.mark.parametrize("name", HOSTS)
def test_a_fork_after_tokenizers_were_used_neither_warns_nor_hangs(provisioned, name):
    assert contexts.after_a_fork(hosts.named(name), USER, LAB, "") == "the child ended\n"


def test_without_the_variable_it_warns_and_with_garbage_it_hangs(provisioned):
    """Controls: the test above can fail."""
    host = hosts.named("ws-mixed")
    assert "just got forked" in contexts.after_a_fork(host, USER, LAB, "unset")
    assert contexts.after_a_fork(host, USER, LAB, "flase").endswith("the child hangs\n")


def test_for_the_environments_alone_nothing_else_on_the_host_is_touched(seen, play):
    """And what the whole host had is taken away; comes last."""
    options = {**EVERYTHING, "runtime_env_scope": "environment"}
    done = play("provision-gpu.yml", "--limit", "ws-mixed", "--tags", "runtime", "-e", json.dumps(options))
    assert "FAILED" not in done.stdout, done.stdout[-4000:]
    host = hosts.named("ws-mixed")
    runtime.set_nowhere(host, USER)
    host.check_output("systemctl stop 'user@*.service'")  # who was here keeps what they have until they log in again
    assert runtime.in_user_service(host, USER) is None
    for interpreter in (f"{LAB}/current/bin/python", f"{LAB}/bin/python"):
        assert runtime.in_python(host, interpreter) == "false"
        assert runtime.in_python(host, interpreter, given="true") == "true"
    own = host.check_output(
        "env -i /usr/local/bin/gpu-env run lab python -c 'import os; print(os.environ[\"NOTE_OF_LAB\"])'"
    )
    assert own == "two words; a=b"
