#!/usr/bin/env python3
"""Execute the real module venv_release with the options in a JSON object, as Ansible does on a host once it has connected."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.workstation.plugins.modules import venv_release

if __name__ == "__main__":
    with patch_module_args(json.loads(sys.argv[1])):
        venv_release.main()
