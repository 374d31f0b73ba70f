"""Take pictures of the server's page with its defaults and a real model: docs/images/page_*.png.

    python -m benchmarks.page_pictures [--checkpoint DIR] [--report reports/smoke] [--output docs/images]

The model is the one inside the package, or --checkpoint; the documents are examples/documents, which the page itself
reads. With --report also of an evaluation's report: report_*.png. Needs playwright and an installed Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.serving_load import QUEUE, server
from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.shipped import DEFAULT

DOCUMENTS = Path(__file__).resolve().parent.parent / "examples" / "documents"
QUESTIONS = ("In which year was the boat club founded?", "What do members pay?")
PATIENCE = 900_000  # milliseconds for an answer, compilation included
# Name, width and height of each; both in light and dark.
SIZES = (("desktop", 1100, 900), ("phone", 360, 740))
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("page_pictures", __doc__, package="benchmarks")
    command.add_option(parser, "--checkpoint", "default: the model inside the package", default=DEFAULT)
    parser.add_argument("--report", type=Path, metavar="DIR", help="of an evaluation, whose page is shown, too")
    command.add_option(
        parser, "--output", "in this folder; docs/images", type=Path, metavar="DIR", default=Path("docs/images")
    )
    return parser


def main() -> None:
    """Take the pictures."""
    arguments = parser().parse_args()
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        raise ClaraError("no Chromium is installed")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        url, _ = stack.enter_context(server(arguments.checkpoint, Path(folder, "store"), 4, QUEUE))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=browser_path, args=["--no-sandbox"]
        )
        for size, width, height in SIZES:
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.set_default_timeout(PATIENCE)
                page.goto(url)
                _ask(page)
                page.screenshot(path=str(arguments.output / f"page_{size}_{scheme}.png"))
                if arguments.report is not None:
                    page.goto((arguments.report / "report.html").resolve().as_uri())
                    _look(page)
                    page.screenshot(path=str(arguments.output / f"report_{size}_{scheme}.png"))
                page.close()
        browser.close()


def _ask(page: Page) -> None:
    """Have the page read the documents, and ask a question and another one after it."""
    page.locator("#picked-folder").set_input_files(DOCUMENTS)
    expect(page.locator("#progress")).to_have_text("3 files read", timeout=PATIENCE)
    for question in QUESTIONS:
        page.locator("#question").fill(question)
        page.locator("#send").click()
        expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE)
    page.evaluate("scrollTo(0, 0)")


def _look(page: Page) -> None:
    """Show a case of the report in which the memory helped."""
    page.locator("nav .inner").first.click()
    section = page.locator("section[id$=-cases]").first
    section.locator("summary").first.click()
    section.get_by_label("right with memory, wrong without").check()
    section.locator(".f1 > summary").first.click()


if __name__ == "__main__":
    command.run(main)
