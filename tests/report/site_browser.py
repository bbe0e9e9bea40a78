"""A headless Chromium that opens pages from disk and tells what went wrong in them, through the DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
PATIENCE = 120  # seconds
EVENTS = (
    "Runtime.exceptionThrown",
    "Runtime.consoleAPICalled",
    "Log.entryAdded",
    "Network.requestWillBeSent",
    "Network.loadingFailed",
)


def chromium() -> str | None:
    """The first browser of that family on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab; ``events`` holds what the page asked for and complained about since it was opened."""

    def __init__(self, address: str) -> None:
        import websocket

        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=PATIENCE)
        self._number = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") in EVENTS:
                self.events.append((answer["method"], answer["params"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file at this width, every picture loaded."""
        self.events.clear()
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Page.navigate", url=path.as_uri())
        self.wait(f"document.readyState === 'complete' && location.pathname === {json.dumps(path.as_posix())}")
        self.value("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
        self.wait("Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => true)")

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression; an exception in it is an error here."""
        found = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if answer := self.value(script):
                return answer
            time.sleep(0.05)
        raise AssertionError(f"never true in the page: {script}")

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    @property
    def complaints(self) -> list[str]:
        """Exceptions, console errors and warnings, and requests that failed."""
        found = []
        for name, said in self.events:
            if name == "Runtime.exceptionThrown":
                found.append(said["exceptionDetails"]["text"])
            elif name == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
                found.append(str(said["args"]))
            elif name == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
                found.append(said["entry"]["text"])
            elif name == "Network.loadingFailed" and not said.get("canceled"):
                found.append(said["errorText"])
        return found

    @property
    def asked_for(self) -> list[str]:
        """The addresses that the page requested."""
        return [said["request"]["url"] for name, said in self.events if name == "Network.requestWillBeSent"]

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        options: dict[str, Any] = {"captureBeyondViewport": whole}
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png", **options)["data"]))
        return path


@contextmanager
def browser(folder: Path, program: str):
    """A Page; the browser's profile and log stay in ``folder``."""
    profile = folder / "profile"
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with (folder / "browser.log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield Page(_address(profile / "DevToolsActivePort"))
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _address(port_file: Path) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                return next(page["webSocketDebuggerUrl"] for page in json.load(answer) if page["type"] == "page")
        except (OSError, IndexError, StopIteration):
            time.sleep(0.1)
    raise AssertionError(f"the browser never came up; its words are in {port_file.parent.parent}/browser.log")
