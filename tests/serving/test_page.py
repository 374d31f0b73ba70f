"""The page in a real browser: asked by keyboard, on a phone, with a key; the server has a pipeline without a model."""

import os
import shutil
from pathlib import Path

import httpx
import pytest

from tests.serving.fakes import FakePipeline, serve

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
PICTURES = os.environ.get("CLARA_PICTURES")  # a folder for screenshots
DOCUMENTS = {
    "notes/cats.md": "Where is the cat? The cat sat on the mat.",
    "notes/dogs.md": "A dog barked at the moon.",
    "<b>odd</b>": "<script>document.title = 'broken'</script> the end",
}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def start():
    servers = []

    def begin(**options):
        servers.append(serve(pipeline=FakePipeline(rows=4, pause=0.02), **options))
        servers[-1].pipeline.stored |= DOCUMENTS
        return servers[-1]

    yield begin
    for one in servers:
        one.end()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(10_000)
    yield page
    page.close()
    assert not wrong


def picture(page, name):
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def answered(page, text):
    playwright.expect(page.locator("#answer")).to_have_text(text)
    playwright.expect(page.locator("#send")).to_be_enabled()


def test_asking_by_keyboard(page, start):
    page.goto(start().url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the question"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.locator("#question").focus()
    page.keyboard.type("where is the cat")
    page.keyboard.press("Enter")
    answered(page, "answer to where is the cat ✓")
    candidates = page.locator("#candidates li")
    assert candidates.count() == 3 and "notes/cats.md" in candidates.first.inner_text()
    assert page.locator("#candidates li.selected").count() == 3
    widths = page.locator(".bar span").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert widths[0] > widths[-1] >= 0
    text = candidates.first.locator(".text").first
    assert not text.is_visible()
    candidates.first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert text.is_visible() and "sat on the mat" in text.inner_text()
    assert "text tokens for each vector" in page.locator("#times").inner_text()
    assert page.title() == "clara_jax: ask your documents"  # what documents hold is text
    picture(page, "page")


def test_the_answer_is_seen_while_it_is_written(page, start):
    page.goto(start().url)
    page.locator("#question").fill("q" * 300)
    page.locator("#send").click()
    seen = set()
    while not page.locator("#send").is_enabled():
        seen.add(len(page.locator("#answer").inner_text()))
    assert len(seen) > 3


def test_stopping_an_answer(page, start):
    server = start()
    server.pipeline.engine.pause = 0.1  # it is stopped well before it would end
    page.goto(server.url)
    page.locator("#question").fill("q" * 2000)
    page.locator("#send").click()
    page.locator("#stop").click()
    playwright.expect(page.locator("#send")).to_be_enabled()
    page.wait_for_function("() => !document.querySelector('#answer').classList.contains('writing')")
    for _ in range(200):
        if server.pipeline.engine.ended:
            break
        page.wait_for_timeout(20)
    assert server.pipeline.engine.ended[0].result.ended == "cancelled"


def test_adding_a_document_asking_about_it_and_deleting_it(page, start):
    server = start()
    page.goto(server.url)
    playwright.expect(page.locator("#documents li")).to_have_count(3)
    page.locator("#name").fill("notes/new & odd?.md")
    page.locator("#text").fill("zebras live in Africa")
    page.locator("#put").click()
    playwright.expect(page.locator("#added")).to_contain_text("1 chunks compressed")
    assert server.pipeline.stored["notes/new & odd?.md"] == "zebras live in Africa"
    page.locator("#question").fill("where do zebras live")
    page.locator("#k").fill("1")
    page.locator("#send").click()
    answered(page, "answer to where do zebras live ✓")
    assert "notes/new & odd?.md" in page.locator("#candidates li.selected").inner_text()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_label("Delete notes/new & odd?.md").click()
    playwright.expect(page.locator("#documents li")).to_have_count(3)
    assert "notes/new & odd?.md" not in server.pipeline.stored


def test_what_goes_wrong_is_shown(browser, start):
    page = browser.new_page()
    server = start()
    page.goto(server.url)
    page.locator("#question").fill("x" * 30)
    server.worker.stop()
    page.locator("#send").click()
    playwright.expect(page.locator("#answer")).to_have_text("the server is stopping")
    page.close()


def test_on_a_phone_in_the_dark(browser, start):
    page = browser.new_page(viewport={"width": 320, "height": 640}, color_scheme="dark", has_touch=True)
    page.goto(start().url)
    page.locator("#question").fill("where is the cat")
    page.locator("#send").tap()
    answered(page, "answer to where is the cat ✓")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    small = page.locator("button:visible").evaluate_all("all => all.filter(b => b.offsetHeight < 40).length")
    assert small == 0
    picture(page, "phone")
    page.close()


def test_a_key_is_asked_for_where_one_is_needed(browser, start):
    page = browser.new_page()
    server = start(key="secret")
    page.goto(server.url)
    page.locator("#key").fill("secret")
    page.locator("#key").blur()
    playwright.expect(page.locator("#documents li")).to_have_count(3)
    assert httpx.get(f"{server.url}/v1/documents").status_code == 401
    page.close()
