"""A headless Chromium, driven through the DevTools protocol, and waiting for what another process does."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")


def until(ask: Callable[[], Any], what: str) -> Any:
    """The first answer that is true."""
    end = time.monotonic() + 180
    while not (answer := ask()):
        assert time.monotonic() < end, f"after 180 s: never {what}"
        time.sleep(0.05)
    return answer


class Tab:
    """One tab."""

    def __init__(self, address: str) -> None:
        import websocket

        self.socket, self.number = websocket.create_connection(address, suppress_origin=True, timeout=180), 0

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, script: str) -> Any:
        found = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        return until(lambda: self.value(script), f"true in the page: {script}")

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


@contextmanager
def chromium(folder: Path) -> Iterator[Tab]:
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [CHROMIUM, *flags.split(), "--remote-debugging-port=0", "--window-size=1480,1500"]
    port = folder / "DevToolsActivePort"
    with (folder / "log").open("w") as log:
        running = subprocess.Popen([*command, f"--user-data-dir={folder}", "about:blank"], stdout=log, stderr=log)
        try:
            number = until(lambda: port.is_file() and port.read_text().split(), "a port of the browser")[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/json", timeout=60) as answer:
                pages = [one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page"]
            yield Tab(pages[0])
        finally:
            running.kill()
            running.wait()
