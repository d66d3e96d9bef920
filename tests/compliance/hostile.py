# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hostile host, a hostile user or an unlucky one gets into a report: every format has to stand all of it.

`documents()` are canonical documents that hold one of the `PAYLOADS` in every place for free text. `SECRETS` may be in no report at all.
`OBSERVATION` is what a host tells of its users; `PRIVATE` is what of it has to be gone before a document is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FORGED = "FORGED"
"""The payloads' own lines and elements would begin with this."""
SECRETS = ("hunter2", "s3cr3t", "ghp_token")
PAYLOADS = {
    "markup": f"<img src=x onerror=alert(1)><b>{FORGED}</b>&lt;i&gt; &amp; <!-- ",
    "script": f"</script><script>{FORGED}=1;alert(1)</script>",
    "handler": "' onmouseover='alert(1)' x=\" onfocus=alert(1) autofocus \"",
    "address": "javascript:alert(1)",
    "template": "{{ lookup('pipe','id') }} {% raw %} ${7*7} {{data}} {{policy}}",
    "style": "</style><style>*{display:none}</style>",
    "cdata": f"]]><{FORGED}/><![CDATA[ <?xml version='1.0'?> <!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]> &e;",
    "terminal": "\x1b[2J\x1b[1;1H\x1b[32mREADY\x1b[0m \x9b31m \x1b]0;title\x07 \x08\x08\x08 \r",
    "link": "\x1b]8;;https://evil.invalid/\x1b\\safe\x1b]8;;\x1b\\",
    "reordered": "host\u202eydaer\u202c \u2066a\u2069 \u200e\u200f\u061c",
    "invisible": "re\u200bady\u200c\u200d\u2060\ufeff\xad\u180e \U000e0041\U000e007f \u2028\u2029",
    "control": "".join(map(chr, range(1, 32))) + "\x7f\x80\x85\x9f\ufffe\uffff\ufff9",
    "nul": "before\x00after",
    "surrogates": "\ud800 lone \udfff",
    "line": f"x\n{FORGED} 9 of 9 hosts train-ready\r\n{FORGED}\x0b{FORGED}\x0c{FORGED}",
    "label": f'a"}} 1\n{FORGED}{{host="b"}} 1\n# TYPE {FORGED} counter\n\\',
    "escapes": 'ends with a backslash \\" and \\n and \\\\ {} \\',
    "long": "W" * 100_000,
    "many_words": "word " * 20_000,
    "credentials": "https://user:hunter2@index.invalid/simple HTTPS://s3cr3t@index.invalid ftp://a:hunter2\x00@b git+ssh://ghp_token:x@c/d",
    "wide": "\u5de5\u4f5c\u7ad9 \U0001f4a5 e\u0301\u0301\u0301\u0301",
    "formula": "=HYPERLINK(1) @SUM(1) +1 -1",
    "path": "../../../../etc/passwd",
    "option": "--limit=all; rm -rf / $(id) `id`",
    "number": "1e999",
    "empty": "",
    "blank": " \t ",
}
OBSERVATION: dict[str, Any] = {
    "driver": {
        "processes": [
            {"pid": 4711, "command": "python train.py --token s3cr3t", "user": "ada.lovelace", "kind": "compute"}
        ]
    },
    "runtime": {
        "breaking": [
            {
                "where": "/home/ada.lovelace/.bashrc",
                "name": "LD_PRELOAD",
                "value": "/home/ada.lovelace/x.so",
                "why": "",
            }
        ]
    },
    "foreign": [{"kind": "venv", "path": "/home/ada.lovelace/venv", "what": "a venv", "torch": None}],
    "files": {"/etc/pip.conf": {"index": "https://user:hunter2@index.invalid/simple"}},
}
PRIVATE = ("ada.lovelace", "train.py", *SECRETS)


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every payload's name and a document that is full of it."""
    for name, payload in PAYLOADS.items():
        yield name, document(payload)


def document(payload: Any, evidence: Any = None) -> dict[str, Any]:
    """A canonical document with the payload wherever a host or a user has a say; two hosts have one name."""
    item = {
        "name": payload,
        "status": "failed",
        "evidence": evidence or {"found": payload, "list": [payload], "of": {"a": payload}},
        "message": payload,
    }
    failed = {"status": "failed", "since": payload, "items": [item, {**item, "status": "error"}]}
    change = {"what": payload, "before": payload, "after": [payload]}
    gpu = {"pci_address": payload, "name": payload, "sm": payload, "uuid": payload, "memory_mib": payload}
    host = {
        "name": payload,
        "groups": [payload],
        "outcome": "not_ready",
        **dict.fromkeys(
            ("reason", "observed_at", "proven_at", "since", "gpu", "sm", "driver", "torch", "kernel"), payload
        ),
        "gpus": [gpu],
        "results": {"user.rule": failed, "driver.floor": {"status": "passed", "since": payload, "items": []}},
        "facts": {"kernel": payload, "gpus": [payload]},
        "drift": {"since_last": [change], "since_provisioned": [change]},
    }
    texts = dict.fromkeys(("title", "rationale", "remedy", "source"), payload)
    waiver = {
        **dict.fromkeys(("rule", "hosts", "owner", "reason", "ticket"), payload),
        "expires": "2026-12-01",
        "days_left": 8,
        "state": "active",
    }
    totals = {"hosts": 4, "ready": 0, "not_ready": 2, "unknown": 0, "unreachable": 1, "not_asked": 1}
    return {
        "schema": 1,
        "generated_at": "2026-11-23T12:00:00Z",
        "collection": payload,
        "fail_on": "high",
        "rules": [
            {"id": "user.rule", "severity": "critical", "params": {"hours": payload}, **texts},
            {"id": "driver.floor", "severity": "high", "params": {}, **texts},
        ],
        "hosts": [
            host,
            host,
            {**host, "outcome": "unreachable", "results": {}},
            {**host, "outcome": "not_asked", "results": {}},
        ],
        "waivers": [
            {**waiver, "waives": 1},
            {**waiver, "state": "expired", "waives": 0},
            {**waiver, "state": "orphaned", "waives": 0},
        ],
        "totals": totals,
        "history": [{"at": "2026-11-22T12:00:00Z", "totals": totals, "failing": {"user.rule": 2}}],
        "errors": [payload],
        "notes": [payload],
    }
