#!/usr/bin/env python3
"""Use an environment over and over, as its users do, until standard input ends; then print what was seen, as JSON.

Every time: where does ``current`` lead, is that release stamped and proven, and do torch and its companion import from it, in a fresh
process? Once a second that goes through the environment's launcher. Shares no code with the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

PERIOD = 0.04  # seconds: 25 observations in each, where the machine has time
LAUNCHER_PERIOD = 1.0
PROGRAM = "import torch, torchvision; assert torch.__version__ == '2.9.1+cu128', torch.__version__"
SHOWN = 5


def imports(release: Path) -> str:
    """What goes wrong when a fresh process imports from the release; nothing where it works."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            sys.path.insert(0, str(release / "lib" / python / "site-packages"))
            exec(PROGRAM, {})  # noqa: S102  # a constant
            status = 0
        except BaseException as error:
            os.write(writer, repr(error).encode()[:500])
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        text = said.read().decode()
    return text or ("" if os.waitpid(child, 0)[1] == 0 else "it died")


def launcher(home: Path) -> str:
    """What goes wrong when the environment's launcher is started; nothing where it works."""
    done = subprocess.run(
        [home / "bin" / "python", "-c", PROGRAM], capture_output=True, text=True, check=False, cwd="/"
    )
    return "" if done.returncode == 0 else f"launcher: {done.returncode}: {done.stderr.strip()}"


def unproven(home: Path, release: Path) -> str:
    """Why what serves should not serve; nothing where it may."""
    try:
        stamp = json.loads((home / "stamps" / f"{release.name}.json").read_text())
    except (OSError, ValueError) as error:
        return f"{release.name} serves without a stamp: {error}"
    proven = stamp["id"] == release.name and stamp["proof"]["verdict"] == "passed"
    return "" if proven else f"{release.name} serves unproven"


def main() -> int:
    """Watch."""
    home = Path(sys.argv[1])
    sys.dont_write_bytecode = True
    served: list[str] = []
    failures: list[tuple[float, str]] = []
    greens: list[str] = []
    observations = 0
    begin = last_launch = time.monotonic()
    ending = last = False
    while not last:
        last = ending  # one more whole look after the end was asked for: what was switched last counts as well
        now = time.monotonic()
        problem = ""
        try:
            release = (home / "current").resolve(strict=True)
            if served[-1:] != [release.name]:
                served.append(release.name)
            greens += filter(None, [unproven(home, release)])
            problem = imports(release)
            if not problem and now - last_launch > LAUNCHER_PERIOD:
                last_launch = now
                problem = launcher(home)
        except OSError as error:
            problem = repr(error)
        observations += 1
        if problem:
            failures.append((time.time(), problem))
        if observations == 1:
            print("watching", flush=True)
        pause = 0.0 if ending else max(0.0, PERIOD - (time.monotonic() - now))
        ending = bool(select.select([sys.stdin], [], [], pause)[0])
    with contextlib.suppress(BrokenPipeError):
        print(
            json.dumps(
                {
                    "observations": observations,
                    "seconds": time.monotonic() - begin,
                    "served": served,
                    "failures": len(failures),
                    "last_failure": max((moment for moment, _text in failures), default=0.0),
                    "examples": [text for _moment, text in failures[:SHOWN]],
                    "false_greens": len(greens),
                    "green_examples": greens[:SHOWN],
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
