"""Take pictures of the server's page with a real model: docs/images/page.png and phone.png.

    python -m benchmarks.page_pictures --checkpoint runs/smoke [--output docs/images]

The model is that of configs/smoke.py, the documents are those of its world that no training record knows. Needs
playwright and an installed Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import httpx
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.serving_load import QUEUE, server
from clara_jax import command
from clara_jax.configs import smoke
from clara_jax.data import synthetic
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError

DOCUMENTS = 200
# Name, width, height and colour scheme of each.
PICTURES: tuple[tuple[str, int, int, Literal["light", "dark"]], ...] = (
    ("page", 1000, 900, "light"),
    ("phone", 360, 740, "dark"),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("page_pictures", __doc__, package="benchmarks")
    command.add_option(parser, "--checkpoint", required=True)
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
    world = SyntheticConfig(**smoke.get_config().to_dict()["synthetic"])
    documents = list(synthetic.documents(world, "eval"))[:DOCUMENTS]
    record = synthetic.records(world, "end_to_end", "eval")[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        server(arguments.checkpoint, Path(folder, "store"), 4, QUEUE) as (url, _),
        sync_playwright() as playwright,
    ):
        body = [{"id": f"world/{i}.txt", "text": document.text} for i, document in enumerate(documents)]
        body += [{"id": f"question/{i}.txt", "text": text} for i, text in enumerate(record.documents)]
        httpx.post(f"{url}/v1/documents", json={"documents": body}, timeout=300).raise_for_status()
        asked = {"messages": [{"role": "user", "content": record.questions[0]}], "k": 1}
        for _ in range(2):  # compiles what reads a prompt, and what reads one whose documents are known
            httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=300).raise_for_status()
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, width, height, scheme in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(url)
            _ask(page, record.questions[0])
            page.screenshot(path=str(arguments.output / f"{name}.png"))
            page.close()
        browser.close()


def _ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.locator("#k").fill("1")
    page.locator("#send").click()
    expect(page.locator("#send")).to_be_enabled(timeout=60_000)
    expect(page.locator("#candidates li")).not_to_have_count(0)
    page.locator("#candidates li summary").first.click()


if __name__ == "__main__":
    command.run(main)
