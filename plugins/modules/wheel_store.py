#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a folder with the wheels of the locks, laid out as an index for a web server."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wheel_store
short_description: Keep every wheel of the locks in a folder that a web server can show as an index
version_added: 0.3.0
description:
  - Fetches each wheel that the locks of the environments need, and the uv that installs them, once, and writes the pages of the
    indexes C(whl/CUDA_TAG) and C(packages/simple) beside them (PEP 503, with the metadata files of PEP 658).
  - Of each package it takes the one file that fits the lock's platform best. Only files whose SHA-256 a lock names are stored.
  - A wheel gets its name once all of it is on the disk and verified. What is stored already is served on whatever happens, and is not
    fetched again. What a killed run left is removed by the next one.
  - Where nothing is missing, no network is asked.
options:
  path:
    description:
      - Folder of the mirror. It is made where it is missing.
    type: path
    required: true
  state:
    description:
      - V(present) fills the folder. V(absent) removes everything that this module stored there, and the folder where nothing else is in it.
    type: str
    choices: [present, absent]
    default: present
  locks:
    description:
      - Paths, on the controller, of the locks to serve, or of folders with locks in them.
      - Empty means all locks of the inventory, which lie in C(gpufleet_state_dir), by default C(.gpufleet) beside the inventory.
    type: list
    elements: path
    default: []
  lock_texts:
    description:
      - The locks themselves. Left to the action plugin, which reads O(locks).
    type: list
    elements: str
    default: []
  source:
    description:
      - V(index) fetches from O(torch_index_base_url) and O(package_index_url).
      - V(directory) takes wheels from O(directory), for hosts without a network. Every file is verified in the same way.
    type: str
    choices: [index, directory]
    default: index
  directory:
    description:
      - Folder, on the host, with wheels in it or below it, for example another mirror's. Nothing in it is changed. Required where
        O(source=directory).
    type: path
  torch_index_base_url:
    description:
      - URL below which there is one index for each CUDA tag. Credentials in it are not logged.
    type: str
    default: https://download.pytorch.org/whl
  package_index_url:
    description:
      - URL of the index for everything outside torch's family. Credentials in it are not logged.
      - Empty means the one that pip on the controller uses, which the action plugin hands over.
    type: str
    default: ""
  proxy:
    description:
      - What stands between the host and the indexes. Without it, the variables of the task's environment count.
    type: dict
    suboptions:
      http:
        description: URL of the proxy for http. Not logged.
        type: str
      https:
        description: URL of the proxy for https. Not logged.
        type: str
      no_proxy:
        description: Hosts, separated by commas, that are reached without a proxy.
        type: str
      ca_file:
        description: Path, on the host, of the certificates to trust instead of the system's.
        type: path
  prune:
    description:
      - Whether wheels that none of the locks needs are removed. Not done where a wheel is missing.
    type: bool
    default: false
  verify:
    description:
      - Whether everything that is stored is read and compared with its SHA-256. What differs is removed and fetched again.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says what would be fetched and removed; no network is asked.
  diff_mode:
    support: none
    description: Wheels are no text.
  platform:
    support: full
    platforms: linux
    description: Linux hosts with Python 3.9 or newer.
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.venv_release
"""

EXAMPLES = r"""
- name: Keep the wheels of all locks of this inventory
  gpufleet.workstation.wheel_store:
    path: /srv/gpufleet/www
  become: true

- name: Fill a folder that can be carried to a network without internet
  gpufleet.workstation.wheel_store:
    path: ~/wheels
    prune: true
  delegate_to: localhost

- name: Take over what was carried there
  gpufleet.workstation.wheel_store:
    path: /srv/gpufleet/www
    source: directory
    directory: /media/usb/wheels
  become: true
"""

RETURN = r"""
fetched:
  description: What was stored, with its size in bytes.
  returned: not in check mode
  type: list
  elements: dict
  sample: [{"file": "filelock-3.20.0-py3-none-any.whl", "bytes": 16054}]
missing:
  description: What would be fetched.
  returned: in check mode
  type: list
  elements: str
  sample: ["torch 2.9.1+cu128 for Python 3.12 on x86_64"]
removed:
  description: Files that were (in check mode, would be) removed, because no lock needs them or because they were damaged.
  returned: success
  type: list
  elements: str
wheels:
  description: How many wheels are stored now.
  returned: success
  type: int
"""

import os
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._mirror.fill import Incomplete, fill, predict
from ..module_utils._mirror.sources import Folder, Indexes, Source
from ..module_utils._mirror.store import Store
from ..module_utils._mirror.wheels import MirrorError, wanted
from ..module_utils._release import lock

_PROXY_VARIABLES = {"http": "http_proxy", "https": "https_proxy", "no_proxy": "no_proxy", "ca_file": "SSL_CERT_FILE"}
"""As urllib and OpenSSL read them."""


def main() -> None:
    """Check the options and carry out what is asked for."""
    spec = {
        "path": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "locks": {"type": "list", "elements": "path", "default": []},
        "lock_texts": {"type": "list", "elements": "str", "default": []},
        "source": {"type": "str", "choices": ["index", "directory"], "default": "index"},
        "directory": {"type": "path"},
        "torch_index_base_url": {"type": "str", "default": "https://download.pytorch.org/whl"},
        "package_index_url": {"type": "str", "default": ""},
        "proxy": {
            "type": "dict",
            "options": {
                "http": {"type": "str", "no_log": True},
                "https": {"type": "str", "no_log": True},
                "no_proxy": {"type": "str"},
                "ca_file": {"type": "path"},
            },
        },
        "prune": {"type": "bool", "default": False},
        "verify": {"type": "bool", "default": False},
    }
    module = AnsibleModule(spec, supports_check_mode=True, required_if=[("source", "directory", ["directory"])])
    os.umask(0o022)
    for url in (module.params["torch_index_base_url"], module.params["package_index_url"]):
        password = urlsplit(url).password
        if password:
            module.no_log_values |= {password, unquote(password)}
    for option, variable in _PROXY_VARIABLES.items():
        if (module.params["proxy"] or {}).get(option):
            os.environ[variable] = module.params["proxy"][option]
    store = Store(module.params["path"])
    try:
        result = _absent(store, module.check_mode) if module.params["state"] == "absent" else _present(store, module)
    except Incomplete as error:
        module.fail_json(
            msg=f"The mirror lacks wheels: {error}. Everything else that it has is served.", **error.result
        )
    except lock.InvalidLock as error:
        module.fail_json(msg=f"A lock is none: {error}. Nothing was changed.")
    except MirrorError as error:
        module.fail_json(msg=f"{error}. What was served is served on.")
    except OSError as error:
        where = error.filename or store.root
        module.fail_json(
            msg=f"{where}: {error.strerror}. What was served is served on; set this right, then run again."
        )
    else:
        module.exit_json(**result)


def _present(store: Store, module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    needed = wanted(lock.parse(text) for text in params["lock_texts"])
    options = {"prune": params["prune"], "verify": params["verify"]}

    def source() -> Source:
        if params["source"] == "directory":
            return Folder(params["directory"])
        return Indexes(params["torch_index_base_url"], params["package_index_url"])

    if module.check_mode:
        return predict(store, needed, **options)
    with store.held():
        return fill(store, needed, source, **options)


def _absent(store: Store, check_mode: bool) -> dict[str, Any]:
    there = store.exists()
    removed = [item.file for item in store.stored()]
    if there and not check_mode:
        with store.held():
            store.clear()
    return {"changed": there, "removed": removed, "wheels": len(removed) if check_mode else 0}


if __name__ == "__main__":
    main()
