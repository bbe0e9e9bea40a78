"""A JupyterLab of its own and a headless Chromium that looks at it, driven through the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
PATIENCE = 180  # seconds: a machine with other work on it opens JupyterLab slowly


def chromium() -> str | None:
    """The first browser of that family on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def until(what: str, ask: Any, patience: float | int = PATIENCE) -> Any:
    """The first true answer; an AssertionError that says what never happened."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"after {patience} s: {what}")


@contextmanager
def _process(command: list[str], log: Path, **settings: Any):
    with log.open("w") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **settings)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


class Tab:
    """One page of the browser."""

    def __init__(self, address: str, folder: Path) -> None:
        import websocket

        self._folder = folder
        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=PATIENCE)
        self._number = 0

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        try:
            return until(f"never true in the page: {script}", lambda: self.value(script))
        except AssertionError:
            self.screenshot(self._folder / "failed.png")
            raise

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def click(self, selector: str) -> None:
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_until(self, selector: str, script: str) -> None:
        """Click again as long as nothing happens: a toolbar is drawn before it listens."""
        for _ in range(20):
            self.click(selector)
            try:
                return until("", lambda: self.value(script), 3)
            except AssertionError:
                continue
        self.wait(script)

    def type(self, words: str) -> None:
        self.command("Input.insertText", text=words)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))
        return path


@contextmanager
def lab(folder: Path, notebook: str, browser: str):
    """A Tab that shows ``notebook`` of ``folder``, its kernel idle. Everything both programs write stays in it."""
    places = {name: folder / f".{name}" for name in ("config", "data", "runtime", "browser", "settings", "workspaces")}
    news = places["settings"] / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment |= {f"JUPYTER_{name.upper()}_DIR": str(places[name]) for name in ("config", "data", "runtime")}
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    server += [f"--LabApp.user_settings_dir={places['settings']}", f"--LabApp.workspaces_dir={places['workspaces']}"]
    with ExitStack() as running:
        jupyter = running.enter_context(
            _process([*server, "--ServerApp.port=0"], folder / "lab.log", env=environment, cwd=folder)
        )
        chrome = [browser, *FLAGS, f"--user-data-dir={places['browser']}", "--window-size=1480,1200", "about:blank"]
        running.enter_context(_process(chrome, folder / "browser.log"))
        told = places["runtime"] / f"jpserver-{jupyter.pid}.json"
        facts = until("JupyterLab never came up", lambda: told.is_file() and _read(told))
        port_file = places["browser"] / "DevToolsActivePort"
        port = until("the browser never came up", lambda: port_file.is_file() and port_file.read_text().split())[0]
        tab = Tab(until("the browser has no page", lambda: _page(port)), folder)
        tab.command("Page.enable")
        tab.command("Page.navigate", url=f"{facts['url']}lab/tree/{notebook}?token={facts['token']}")
        tab.wait("!!document.querySelector('.jp-Notebook .jp-Cell')")
        tab.wait("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'")
        yield tab


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:  # half written
        return None


def _page(port: str) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
            pages = json.load(answer)
    except OSError:
        return None
    return next((page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"), None)
