"""Three notebooks in JupyterLab, in a real browser: they run to their end, a control moves the picture, a click plays.

Screenshots of their live cells go to build/browser.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "build" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIVE = {"02_degradation": "cutoff_hz", "06_results": "condition", "11_your_own_file": "blend"}  # what is moved
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, whether it is seen or not
}
PICTURE = 'img[alt="mean spectra"]'
IDLE = """async () => (await (await fetch('/api/sessions')).json()).some(one => one.kernel.execution_state === 'idle')
  && document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"""
FAILED = """[...document.querySelectorAll('.jp-OutputArea-output')]
  .map(one => one.textContent).filter(text => text.includes('Traceback (most recent call last)'))"""
ENDED = f"""() => {FAILED}.length
  || /\\[\\d+\\]/.test([...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].at(-1)?.textContent)"""

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on a copy of the notebooks, in the smoke profile."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("notebooks", "report"):
        shutil.copytree(ROOT / name, folder / name)
    for name, values in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    own |= {"SRLIB_ROOT": str(folder), "SRLIB_PROFILE": "smoke", "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in os.environ.items() if name != "SRLIB_IN_CHAIN"} | own
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--port={address.split(':')[-1]}",
               "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not answers(address):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()  # and its kernels with it
        server.wait(20)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/api", timeout=5).status == 200
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(lab, browser):
    """A window; what runs in it is stopped when it closes."""
    opened = browser.new_page(viewport={"width": 1500, "height": 1000})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()
    for session in json.load(urllib.request.urlopen(f"{lab}/api/sessions")):
        urllib.request.urlopen(urllib.request.Request(f"{lab}/api/sessions/{session['id']}", method="DELETE"))


def wait(page, script: str, name: str, argument=None, seconds: float = 180.0) -> None:
    """Until the script is true. A screenshot makes the browser draw, without which JupyterLab does not go on."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {script}"
        page.screenshot(path=SHOTS / f"{name}.png")
        page.wait_for_timeout(200)


@pytest.mark.parametrize("name", LIVE)
def test_a_live_notebook(lab, page, name):
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
    page.locator(".jp-Notebook").wait_for()
    wait(page, IDLE, name)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    SHOTS.mkdir(parents=True, exist_ok=True)
    wait(page, ENDED, name)
    wait(page, IDLE, name)
    page.wait_for_timeout(1500)  # JupyterLab attaches what is shown once more, and the frame begins anew
    assert page.evaluate(FAILED) == []

    cell = page.locator(".jp-CodeCell", has=page.locator(PICTURE))
    cell.scroll_into_view_if_needed()
    before = cell.locator(PICTURE).get_attribute("src")
    player = cell.frame_locator("iframe")
    playwright.expect(player.locator("figcaption").last).to_have_text(re.compile("restored|degraded"))
    box = player.locator("figure").last.locator("div")
    box.click(position={"x": box.bounding_box()["width"] / 2, "y": 20})
    at = player.locator(".playing .head")
    at.wait_for()
    assert float(re.search(r"left: ([\d.]+)%", at.get_attribute("style"))[1]) >= 45

    moved = cell.locator(".jupyter-widgets", has=page.get_by_text(LIVE[name], exact=True)).last
    if moved.locator("select").count():
        moved.locator("select").select_option(index=1)
    else:
        moved.locator(".noUi-handle").press("ArrowLeft")
    wait(page, "([picture, before]) => document.querySelector(picture).src !== before", name, [PICTURE, before])
    page.wait_for_timeout(700)  # the frame draws itself
    page.screenshot(path=SHOTS / f"{name}.png")
    assert page.evaluate(FAILED) == []
