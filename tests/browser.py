"""Headless Chromium, driven through a pipe: enough to open a page, ask it, click it and see it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"),
)
_PATIENCE_S = 300


class Tab:
    """A page in the browser.

    Attributes:
        requests: every URL that the page asked for.
        complaints: errors of its scripts, and what its policy blocked.
    """

    def __init__(self, send: IO[bytes], messages: Iterator[dict[str, Any]]) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._send, self._messages, self._count, self._session = send, messages, 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """One command of the DevTools protocol, and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        for answer in self._messages:
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._hear(answer["method"], answer["params"])
        raise AssertionError("the browser has gone")

    def open(self, url: str, size: tuple[int, int] = (1280, 800), scheme: str = "light") -> None:
        """Go to a viewer and wait until it says that it is ready."""
        self.visit(url, size, scheme)
        self.settle()

    def settle(self) -> None:
        """Wait until the viewer says that it is ready."""
        self.wait("['ready', 'failed'].includes(document.body?.dataset.state)")
        assert self.ask("document.body.dataset.state") == "ready", self.ask(
            "document.body.innerText"
        )

    def visit(self, url: str, size: tuple[int, int] = (1280, 800), scheme: str = "light") -> None:
        """Go to a page."""
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        dark = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[dark])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def wait(self, expression: str) -> None:
        """Wait until an expression in the page is true."""
        until = time.monotonic() + _PATIENCE_S
        while not self.ask(f"Boolean({expression})"):
            assert time.monotonic() < until, self.ask("document.body.innerText.slice(0, 400)")
            time.sleep(0.2)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page, or what it promises."""
        how = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """One key, where the focus is."""
        code = {"Enter": 13, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code, **text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """The left button in the middle of an element."""
        x, y, width, height = self.place(selector)
        at = {"x": x + width / 2, "y": y + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in pixels."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y, width, height = self.ask(f"(b => [b.x, b.y, b.width, b.height])({box})")
        return x, y, width, height

    def picture(self) -> np.ndarray:
        """What is seen: `(rows, columns, 3)` uint8."""
        # The canvases draw when a frame is due.
        self.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(BytesIO(png)).convert("RGB"))

    def _hear(self, event: str, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab; the test is skipped where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium here: `make system` installs it")
    hear, send = os.pipe(), os.pipe()

    # Chromium reads from descriptor 3 and writes to 4.
    def take() -> None:
        taken = [os.dup(hear[0]), os.dup(send[1])]
        os.dup2(taken[0], 3)
        os.dup2(taken[1], 4)

    command = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, preexec_fn=take, close_fds=False, stderr=subprocess.DEVNULL)
    os.close(hear[0])
    os.close(send[1])
    with os.fdopen(hear[1], "wb") as out, os.fdopen(send[0], "rb", buffering=0) as back:
        try:
            yield Tab(out, _messages(back))
        finally:
            process.kill()
            process.wait()


def _messages(back: Any) -> Iterator[dict[str, Any]]:
    kept = b""
    while part := back.read(1 << 20):
        *whole, kept = (kept + part).split(b"\0")
        for message in whole:
            yield json.loads(message)
