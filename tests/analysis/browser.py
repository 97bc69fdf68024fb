"""Pages of ours in a real browser: Chromium, headless, driven by the DevTools protocol over a pipe.

The protocol is https://chromedevtools.github.io/devtools-protocol/; with `--remote-debugging-pipe` Chromium reads
messages of JSON, each ended by a zero byte, from its descriptor 3 and writes them to 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: What the program is called, on the systems that have one.
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LIMIT_S = 60.0


class Page:
    """One page in a window of a certain width. `console` is what it said there, `asked` the addresses it loaded."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._last, self._session = b"", 0, ""
        self.console: list[str] = []
        self.asked: list[str] = []

    def open(self, file: Path, width: int, height: int = 900) -> None:
        """Load the file in a window of this size, in pixels; one narrower than 600 is a phone's."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is, as JSON has it; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until the expression is true."""
        end = time.monotonic() + _LIMIT_S
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._answer()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _answer(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], _LIMIT_S)
            assert ready, "Chromium says nothing"
            piece = os.read(self._answers, 1 << 16)
            assert piece, "Chromium has ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            words = " ".join(str(one.get("value", one.get("description"))) for one in params["args"])
            self.console.append(f"{params['type']}: {words}")
        elif event == "Runtime.exceptionThrown":
            self.console.append(f"error: {params['exceptionDetails']}")
        elif event == "Log.entryAdded":
            self.console.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Run Chromium without a network, its profile in `folder`; skip the test where there is none, but not in CI."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        assert "CI" not in os.environ, "set-up should have installed Chromium here"
        pytest.skip("no Chromium on this machine")
    argv = [found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    argv += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    its_commands, commands = os.pipe()
    answers, its_answers = os.pipe()

    def at_three_and_four() -> None:
        # first out of the way: either may be 3 or 4 itself
        read, write = os.dup(its_commands), os.dup(its_answers)
        spare = [os.dup(read), os.dup(write)]
        os.dup2(spare[0], 3)
        os.dup2(spare[1], 4)

    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        start_new_session=True,
        preexec_fn=at_three_and_four,
    )
    os.close(its_commands)
    os.close(its_answers)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        os.killpg(process.pid, signal.SIGKILL)  # with its renderers
        process.wait(20)
