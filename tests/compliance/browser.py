# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headless Chromium, driven with the DevTools protocol over the pipe that Chromium offers for it: standard library only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT = 60
"""Seconds that one answer may take."""
KEYS = {
    "ArrowUp": 38,
    "ArrowDown": 40,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Tab": 9,
    "Enter": 13,
    "Home": 36,
    "End": 35,
    "PageDown": 34,
    "PageUp": 33,
}


def missing() -> str:
    """What has to be installed before these tests can run, or nothing."""
    if shutil.which("chromium"):
        return ""
    return "chromium is not installed: run tests/compliance/setup (Debian: apt-get install --no-install-recommends chromium)"


class Page:
    """One page, and everything that it complained about or asked the network for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self._in, self._out = process.stdin, process.stdout
        self._number, self._left, self._session = 0, b"", ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Network.setCacheDisabled", cacheDisabled=True)
        # Reports on a violation come from the page itself too: a hostile value must not be able to swallow them.
        self.send(
            "Page.addScriptToEvaluateOnNewDocument",
            source="addEventListener('securitypolicyviolation', (e) => console.error('violation', e.violatedDirective, e.sample));",
        )
        self.size(1440, 900)

    def send(self, method: str, /, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": self._session} if self._session else {}
        )
        self._in.write(json.dumps(message).encode() + b"\0")
        self._in.flush()
        end = time.monotonic() + LIMIT
        while True:
            answer = self._next(end, method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _next(self, end: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._out], [], [], max(0, end - time.monotonic()))
            assert ready, f"Chromium has not answered {method} within {LIMIT} s"
            part = os.read(self._out.fileno(), 1 << 20)
            assert part, f"Chromium has ended while {method} was asked"
            self._left += part
        one, self._left = self._left.split(b"\0", 1)
        return json.loads(one)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(item.get("value", item.get("description"))) for item in params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, media: str = "", **features: str) -> None:
        """Emulate a medium and features of it: ``prefers_color_scheme="dark"``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", media=media, features=named)

    def open(self, path: Path, fragment: str = "") -> float:
        """Load the page anew; return the seconds from the start of the navigation until two frames after its script had ended."""
        self.send("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        del self.requests[:]
        self.send("Page.navigate", url=path.as_uri() + (f"#{fragment}" if fragment else ""))
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() / 1000))))"
        return float(self.run(frames))

    def until(self, condition: str) -> None:
        end = time.monotonic() + LIMIT
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"not true within {LIMIT} s: {condition}"
            time.sleep(0.01)

    def run(self, script: str) -> Any:
        answer = self.send(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def key(self, *keys: str, control: bool = False) -> None:
        for key in keys:
            event: dict[str, Any] = {"key": key, "modifiers": 2 if control else 0}
            if key in KEYS:
                event |= {"code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            self.send(
                "Input.dispatchKeyEvent",
                type="keyDown" if text else "rawKeyDown",
                **event,
                **({"text": text} if text else {}),
            )
            self.send("Input.dispatchKeyEvent", type="keyUp", **event)
        self.frame()

    def frame(self) -> None:
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")
        self.frame()

    def go(self, fragment: str) -> None:
        self.run(f"location.hash = {json.dumps(fragment)}")
        self.frame()

    def text(self, selector: str = "body") -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def screenshot(self, path: Path) -> None:
        self.frame()
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """A fresh browser with a profile of its own, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        options += [
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh", "chromium", *options]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield Page(process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
