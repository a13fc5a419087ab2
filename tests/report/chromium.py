"""Headless Chromium, driven by its DevTools protocol over two pipes."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from importlib import resources
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-pipe",
        "--mute-audio",
    ),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)


class Chromium:
    """A context with one page."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (child_reads, self._writes), (self._reads, child_writes) = os.pipe(), os.pipe()

        def as_three_and_four():
            # By copies, since one of the numbers may be the other's.
            copies = os.dup(child_reads), os.dup(child_writes)
            for number, copy in zip((3, 4), copies, strict=True):
                os.dup2(copy, number)

        self._process = subprocess.Popen(
            [PROGRAM, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            preexec_fn=as_three_and_four,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._folder.name},
        )
        os.close(child_reads)
        os.close(child_writes)
        self._number, self._buffer, self.events = 0, b"", []
        self.new_tab()
        return self

    def __exit__(self, *error):
        os.close(self._writes)
        os.close(self._reads)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def new_tab(self, *, in_new_window=False):
        """Open a tab, which is the one that all else is about from now on; return its number for `use_tab`."""
        self._session = None
        target = self.call("Target.createTarget", url="about:blank", newWindow=in_new_window)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self._session

    def use_tab(self, tab):
        """Go back to a tab."""
        self._session = tab

    def call(self, method, **params):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self._buffer:
            part = os.read(self._reads, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width=1280, height=900, dark=False):
        """Open a file, or an address, and wait until the page is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        is_address = str(path).startswith("http")
        self.call("Page.navigate", url=path if is_address else Path(path).resolve().as_uri())
        self.wait_for("document.documentElement?.dataset.ready")

    def evaluate(self, expression):
        """Return the value of an expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression, seconds=60.0):
        """Wait until an expression is true and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} was not true within {seconds} s"
            time.sleep(0.05)
        return value

    def requested(self):
        """Return the addresses that the page has asked for since it was opened."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def complaints(self):
        """Return what the browser said of the page: errors of scripts, and what its policy has forbidden."""
        thrown = [event for event in self.events if event.get("method") == "Runtime.exceptionThrown"]
        logged = [event["params"]["entry"]["text"] for event in self.events if event.get("method") == "Log.entryAdded"]
        return [str(event["params"]["exceptionDetails"]) for event in thrown] + logged

    def axe_findings(self):
        """Return what axe-core finds serious or critical in the page: rules, and the elements that break them."""
        self.evaluate(f"{(resources.files('axe_core_python') / 'axe.min.js').read_text(encoding='utf-8')}; 0")
        found = self.evaluate(
            "axe.run().then(({violations, passes}) => ({passed: passes.length, violations: violations.map("
            "({id, impact, nodes}) => ({id, impact, where: nodes.map(({target}) => target.join(' '))}))}))"
        )
        assert found["passed"] > 10  # it did look
        return [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]

    def press(self, key, *, code=0, shift=False):
        """Press a key and release it; `code` is its virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=8 if shift else 0,
            )

    def screenshot(self, path, *, whole=True):
        """Write a picture of the page."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(picture["data"]))
