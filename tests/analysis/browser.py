"""A Chromium without a window, driven over its DevTools protocol through a pipe: no package, no port.

https://chromedevtools.github.io/devtools-protocol/; `--remote-debugging-pipe` reads commands from descriptor 3 and
writes answers to descriptor 4, JSON messages that end with a NUL byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: As scripts/setup looks for them.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)
_TIMEOUT_S = 30


def chromium() -> str:
    """Return the path of a Chromium; a test skips where there is none, under CI it fails."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        assert "CI" not in os.environ, "set-up should have installed chromium here"
        pytest.skip("chromium is not installed: apt-get install chromium")
    return found


class Tab:
    """One page of a certain width."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._rest = commands, answers, b""
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(until - time.monotonic(), 0))
            piece = os.read(self._answers, 1 << 20) if ready else b""
            assert piece, "chromium does not answer"
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, path: Path, width: int, height: int = 900) -> None:
        """Show a file in a window of so many CSS pixels, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        seen = len(self.events)
        self.call("Page.navigate", url=path.as_uri())
        while not any(one.get("method") == "Page.loadEventFired" for one in self.events[seen:]):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + _TIMEOUT_S
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < until, f"never came true: {script}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key as from the keyboard."""
        text = "\r" if key == "Enter" else ""
        for kind in ("keyDown", "keyUp"):
            code = {"Enter": 13}.get(key, 0)
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def picture(self, path: Path, top: int = 0, height: int = 1600) -> None:
        """Save what a part of the page looks like as PNG."""
        width = self.run("innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def trouble(self) -> list[str]:
        """Return errors and warnings of the console, and exceptions that no script caught."""
        return [json.dumps(one["params"]) for one in self.events if _is_trouble(one)]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for."""
        wanted = [one for one in self.events if one.get("method") == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in wanted]


def _is_trouble(event: dict[str, Any]) -> bool:
    told: dict[str, Callable[[dict[str, Any]], bool]] = {
        "Runtime.exceptionThrown": lambda parameters: True,
        "Runtime.consoleAPICalled": lambda parameters: parameters["type"] in ("error", "warning", "assert"),
        "Log.entryAdded": lambda parameters: parameters["entry"]["level"] in ("error", "warning"),
    }
    return event.get("method") in told and told[event["method"]](event["params"])


@contextlib.contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """Start a Chromium that keeps its files in `folder`, and give one of its pages."""
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    flags = [*_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    # A shell moves the pipes to the descriptors that Chromium wants, and becomes it
    moved = f'exec "$0" "$@" 3<&{command_read} 4>&{answer_write}'
    process = subprocess.Popen(
        ["bash", "-c", moved, chromium(), *flags],
        pass_fds=(command_read, answer_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        os.close(command_read)
        os.close(answer_write)
        yield Tab(command_write, answer_read)
    finally:
        process.terminate()
        process.wait(timeout=20)
        os.close(command_write)
        os.close(answer_read)
