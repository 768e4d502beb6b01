"""JupyterLab in a real browser, driven by Playwright: what the browser tests and the latency table share."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
QUIET = [  # Chromium looks for its maker's hosts otherwise
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--allow-file-access-from-files",
]  # fmt: skip
SETTINGS = {  # cells out of sight are in the page, too; nothing pops up over the pictures
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
PICTURE = "img.rcp-picture"
OPENED = ["02_pseudo_labels", "04_coreset", "05_scoring"]  # that the tests open
LISTEN = """() => {  // an error behind a slider goes to the kernel's log, and no cell shows it
  window.rcpErrors = [];
  window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.iopubMessage.connect((_, message) => {
    if (message.header.msg_type === 'error') window.rcpErrors.push(message.content.ename + ': ' + message.content.evalue);
  });
}"""


def executable() -> str:
    """Return the browser's path: `RCP_BROWSER`, or the first of the usual names."""
    found = os.environ.get("RCP_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise RuntimeError(f"no browser found: install Debian's package chromium, or set RCP_BROWSER (looked for {', '.join(NAMES)})")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """Open a headless browser."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable(), args=QUIET)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def server(folder: Path, notebooks: list[str]) -> Iterator[str]:
    """Serve copies of some notebooks by JupyterLab, so that what it saves changes no file of the repository; yield the address."""
    work, settings = folder / "notebooks", folder / "settings"
    work.mkdir(parents=True)
    for name in notebooks:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", work)
    for plugin, values in SETTINGS.items():
        file = settings / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(settings), "RCP_OUT": str(folder / "out"), "RCP_PROGRESS": "0",
        "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={work}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--expose-app-in-browser",
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen, log: Path) -> str:
    for _ in range(600):
        if found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/", log.read_text(errors="replace")):
            return found[0]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


class Notebook:
    """A notebook, open and executed in JupyterLab."""

    def __init__(self, opened: Browser, address: str, name: str):
        """Open the notebook and run all its cells."""
        self.name = name
        self.page: Page = opened.new_page(viewport={"width": 1280, "height": 900})
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{address}lab/tree/{name}.ipynb?reset")
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=120_000)
        self.page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=120_000)
        self.page.evaluate(LISTEN)
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(
            "() => { const cells = window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code');"
            " return cells.every(c => c.model.executionCount > 0 && c.model.executionState !== 'running')"
            " && window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'; }",
            timeout=300_000,
        )  # fmt: skip

    def troubles(self) -> list[str]:
        """Return all errors: tracebacks, warnings on stderr, broken widgets, errors of the page and behind the sliders."""
        shown = self.page.locator(
            '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"], .jupyter-widgets-error-widget'
        )
        return self.errors + shown.all_inner_texts() + self.page.evaluate("() => window.rcpErrors")

    def explorers(self) -> list[Locator]:
        """Return the interactive figures: the boxes that hold controls and a picture."""
        pictures = self.page.locator(PICTURE)
        pictures.first.wait_for(timeout=30_000)
        return [pictures.nth(i).locator("xpath=ancestor::*[contains(@class,'widget-vbox')][1]") for i in range(pictures.count())]

    def close(self) -> None:
        """Close the page; the kernel ends with the server."""
        self.page.close()


def pixels(explorer: Locator) -> str:
    """Return the bytes of an explorer's picture, in hexadecimal digits."""
    return explorer.locator(PICTURE).evaluate(
        "async i => Array.from(new Uint8Array(await (await fetch(i.src)).arrayBuffer()), b => b.toString(16)).join('')"
    )


def wait_for_change(explorer: Locator, before: str, seconds: float = 10) -> bool:
    """Return whether the picture differs from what it was, within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if pixels(explorer) != before:
            return True
        time.sleep(0.05)
    return False


def press(explorer: Locator, slider: int, key: str) -> float:
    """Press a key on a slider; return the milliseconds until the next picture is shown (nan if none comes within 3 s)."""
    handle = explorer.locator(".noUi-handle").nth(slider)
    handle.focus()
    return handle.evaluate(
        """(handle, [key, picture]) => new Promise(done => {
             const image = handle.closest('.widget-vbox').querySelector(picture), start = performance.now();
             const give = ms => { image.removeEventListener('load', shown); clearTimeout(late); done(ms); };
             const shown = () => requestAnimationFrame(() => give(performance.now() - start));
             const late = setTimeout(() => give(NaN), 3000);
             image.addEventListener('load', shown);
             handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
           })""",
        [key, PICTURE],
    )


def click(explorer: Locator, x: float, y: float) -> None:
    """Click a picture at fractions of its width and height."""
    picture = explorer.locator(PICTURE)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    picture.click(position={"x": x * box["width"], "y": y * box["height"]})


def drag(explorer: Locator, start: tuple[float, float], end: tuple[float, float], steps: int = 4) -> None:
    """Drag on a picture from one place to another, in fractions of its width and height, over some places in between."""
    picture = explorer.locator(PICTURE)
    picture.scroll_into_view_if_needed()
    box, mouse = picture.bounding_box(), explorer.page.mouse
    mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    mouse.down()
    mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=steps)
    mouse.up()


def type_beside(explorer: Locator, slider: int, text: str) -> None:
    """Type a number into the readout beside a slider."""
    readout = explorer.locator(".widget-readout").nth(slider)
    readout.click()
    readout.fill(text)
    readout.press("Enter")
