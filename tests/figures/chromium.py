"""A headless Chromium that the tests talk to over a pipe, so that they need no driver and no port."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
PATIENCE = 60  # seconds for an answer on a busy machine


class Chromium:
    """One tab. `said`: what the console and the log had; `asked`: the addresses that it fetched."""

    def __init__(self, folder: Path) -> None:
        to_read, self.to = os.pipe()
        self.back, from_write = os.pipe()
        # Chromium reads its orders from descriptor 3 and answers on 4.
        shell = f'exec 3<&{to_read} 4>&{from_write}; exec "$0" "$@"'
        command = ["bash", "-c", shell, PROGRAM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(to_read, from_write), **quiet)
        os.close(to_read)
        os.close(from_write)
        self.count, self.rest, self.session = 0, b"", None
        self.said: list[str] = []
        self.asked: list[str] = []
        tab = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **given: Any) -> dict[str, Any]:
        """Give one order, and wait for its answer."""
        self.count += 1
        order = {"id": self.count, "method": method, "params": given}
        order |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(order).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == order["id"])
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.back, 1 << 20)
                assert part, "Chromium is gone"
                self.rest += part
            line, _, self.rest = self.rest.partition(b"\0")
            message = json.loads(line)
            self._note(message)
            if wanted(message):
                return message

    def _note(self, message: dict[str, Any]) -> None:
        what, of = message.get("method"), message.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.said.append(str(of["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled":
            self.said.append(str(of["args"]))
        elif what == "Log.entryAdded":
            self.said.append(of["entry"]["text"])
        elif what == "Network.requestWillBeSent":
            self.asked.append(of["request"]["url"])

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file in a window of this width."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Page.navigate", url="about:blank")  # so that the next is a load, not a jump
        self.do("Page.navigate", url=path.as_uri())
        self.ask("new Promise(done => document.readyState === 'complete' ? done(1) : addEventListener('load', done))")

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path, top: int = 0, height: int = 900) -> None:
        """Write what a part of the page looks like, as PNG."""
        width = self.ask("innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.do("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End it."""
        with suppress(OSError, AssertionError):
            self.session = None
            self.do("Browser.close")
        os.close(self.to)
        os.close(self.back)
        self.process.wait(PATIENCE)
