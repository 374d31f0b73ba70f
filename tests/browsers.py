"""A real browser for tests of pages, and axe, which finds what keeps people with disabilities from using one.

axe-core is not among the requirements, as it is no Python package: ``npm install --no-save axe-core`` in the checkout,
or name its axe.min.js in CLARA_AXE.
"""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
AXE = Path(
    os.environ.get("CLARA_AXE") or Path(__file__).resolve().parent.parent / "node_modules" / "axe-core" / "axe.min.js"
)
PICTURES = os.environ.get("CLARA_PICTURES")  # a folder for screenshots


@contextlib.contextmanager
def launched():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, **options):
    """A page on which no script fails and nothing is reported as an error."""
    page = browser.new_page(**{"viewport": {"width": 1000, "height": 900}, **options})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def note(message):
        # A refusal of the server, which the page shows, is none of its errors.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    page.on("console", note)
    page.set_default_timeout(10_000)
    yield page
    page.close()
    assert not wrong


def picture(page, name):
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def check_axe(page):
    """Check that axe finds nothing wrong with the page as it stands."""
    if not AXE.is_file():
        pytest.skip(f"axe-core is not there: npm install --no-save axe-core, or name axe.min.js in CLARA_AXE ({AXE})")
    page.evaluate(AXE.read_text("utf-8"))  # a policy of the page does not bind what the browser's driver runs
    found = page.evaluate("async () => (await axe.run()).violations")
    shown = [f"{one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes']]}" for one in found]
    assert not shown, "\n".join(shown)
