"""The page in a real browser: asked by keyboard, on a phone, with a key; the server has a pipeline without a model."""

import contextlib
import re

import httpx
import pytest

from tests.browsers import check_axe, launched, needs_browser, opened, picture, playwright
from tests.serving.fakes import FakePipeline, serve

pytestmark = needs_browser
expect = playwright.expect
DOCUMENTS = {
    "notes/cats.md": "😀 Where is the cat? The answer to it: the cat sat on the mat.\n\nNothing else is known.",
    "notes/dogs.md": "A dog barked at the moon.",
    "<b>odd</b>": "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\"> the end",
    "notes/more.md": "There is more.",
}


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def start():
    servers = []

    def begin(documents=DOCUMENTS, **options):
        servers.append(serve(pipeline=FakePipeline(rows=4, pause=0.02), **options))
        servers[-1].pipeline.stored |= documents
        return servers[-1]

    yield begin
    for one in servers:
        one.end()


@pytest.fixture
def page(browser):
    with opened(browser) as page:
        yield page


def ask(page, question):
    page.locator("#question").fill(question)
    page.locator("#send").click()


def answered(page, text):
    expect(page.locator(".turn").first.locator(".answer")).to_contain_text(text)
    expect(page.locator("#send")).to_be_enabled()


def test_the_question_is_first_and_an_answer_comes_by_keyboard_alone(page, start):
    page.goto(start().url)
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("where is the cat")
    page.keyboard.press("Enter")
    answered(page, "answer to where is the cat ✓")
    expect(page.locator("#question")).to_be_focused()
    expect(page.locator("#question")).to_have_value("")
    assert page.locator("#announced").inner_text().startswith("answer to where is the cat ✓")
    assert page.title() == "clara_jax: ask your documents"  # what documents hold is text
    assert page.locator("#turns b, #turns script, #turns img").count() == 0
    picture(page, "page")


def test_sources_are_open_quoted_and_cited(page, start):
    page.goto(start().url)
    page.locator("#settings summary").click()
    page.locator("#k").fill("1")
    ask(page, "where is the cat")
    answered(page, "answer to where is the cat ✓")
    sources = page.locator(".sources > li")
    assert sources.count() == 3 and sources.first.locator(".text").is_visible()
    assert sources.first.locator("mark").inner_text() == "The answer to it: the cat sat on the mat."
    assert sources.locator("mark").count() == 1
    assert sources.locator(".tag").all_inner_texts() == ["read for the answer", *["found, not read"] * 2]
    cite = page.locator(".answer .cite")
    assert cite.all_inner_texts() == ["1"] and cite.get_attribute("aria-label") == "Source 1"
    cite.focus()
    page.keyboard.press("Enter")
    expect(sources.first).to_be_focused()
    assert not page.locator(".candidates").is_visible()
    page.get_by_text("How it was found: 4 passages").click()
    widths = page.locator(".bar span").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert len(widths) == 4 and widths[0] > widths[-1] >= 0
    assert "text tokens for each vector" in page.locator(".turn").inner_text()


def test_an_answer_that_no_source_has_is_said_to_be_one(page, start):
    page.goto(start({"a.md": "A fox."}).url)
    ask(page, "zebras")
    answered(page, "answer to zebras ✓")
    expect(page.locator(".turn")).to_contain_text("check it before you rely on it")
    assert page.locator(".cite").count() == 0


def test_a_model_that_abstains_says_so(page, start):
    server = start()
    page.goto(server.url)
    page.locator("#settings summary").click()
    page.locator("#abstain").fill("0.9")
    ask(page, "where is the cat")
    answered(page, "The documents do not seem to answer this question.")
    expect(page.locator(".turn")).to_contain_text("below the one in the settings")
    expect(page.locator(".answer")).to_have_class(re.compile("silent"))
    assert page.locator(".tag.read").count() == page.locator(".cite").count() == 0
    server.pipeline.stored.clear()
    ask(page, "where is the cat")
    expect(page.locator(".turn").first).to_contain_text("there is no document to answer from")


def test_follow_up_questions_are_a_conversation(page, start):
    server = start()
    asked = []
    answer = server.pipeline.ask
    server.pipeline.ask = lambda question, **options: asked.append(options["history"]) or answer(question, **options)
    page.goto(server.url)
    ask(page, "where is the cat")
    answered(page, "answer to where is the cat ✓")
    assert "follow-up" in page.locator("#question-label").inner_text().lower()
    ask(page, "and the dog")
    answered(page, "answer to and the dog ✓")
    assert asked == [[], [("user", "where is the cat"), ("assistant", "answer to where is the cat ✓")]]
    assert page.locator(".turn h2").all_inner_texts() == ["and the dog", "where is the cat"]  # the newest first
    assert page.locator(".turn").nth(1).locator(".sources").is_hidden()
    page.locator("#fresh").click()
    assert page.locator(".turn").count() == 0
    ask(page, "another thing")
    answered(page, "answer to another thing ✓")
    assert asked[-1] == []


def test_the_answer_is_seen_while_it_is_written(page, start):
    page.goto(start().url)
    ask(page, "q" * 300)
    seen = set()
    while not page.locator("#send").is_enabled():
        seen.add(len(page.locator(".answer").inner_text()))
    assert len(seen) > 3


def test_stopping_an_answer(page, start):
    server = start()
    server.pipeline.engine.pause = 0.1  # it is stopped well before it would end
    page.goto(server.url)
    ask(page, "q" * 2000)
    page.locator("#stop").click()
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator(".turn")).to_contain_text("Stopped.")
    for _ in range(200):
        if server.pipeline.engine.ended:
            break
        page.wait_for_timeout(20)
    assert server.pipeline.engine.ended[0].result.ended == "cancelled"


def test_a_document_is_written_asked_about_and_deleted(page, start):
    server = start()
    page.goto(server.url)
    expect(page.locator("#documents li")).to_have_count(4)
    page.get_by_text("Write or paste a document").click()
    page.locator("#name").fill("notes/new & odd?.md")
    page.locator("#text").fill("zebras live in Africa")
    page.locator("#put").click()
    expect(page.locator("#added")).to_contain_text("1 passage compressed")
    assert server.pipeline.stored["notes/new & odd?.md"] == "zebras live in Africa"
    ask(page, "where do zebras live")
    answered(page, "answer to where do zebras live ✓")
    assert "notes/new & odd?.md" in page.locator(".sources li").first.inner_text()
    page.get_by_label("Delete notes/new & odd?.md").click()
    expect(page.locator("#documents li")).to_have_count(4)
    expect(page.locator("#undo-button")).to_be_focused()
    ask(page, "and lions")  # is not answered from what was deleted
    answered(page, "answer to and lions ✓")
    assert "notes/new & odd?.md" not in server.pipeline.stored
    assert "zebras" not in page.locator(".turn").first.locator(".sources").inner_text()


def test_deleting_is_undone(page, start):
    server = start()
    page.goto(server.url)
    names = page.locator("#documents .name").all_inner_texts
    expect(page.locator("#documents li")).to_have_count(4)
    before = names()
    page.get_by_label("Delete notes/cats.md").click()
    assert "notes/cats.md" not in names()
    page.keyboard.press("Enter")  # the button to undo has the focus
    assert names() == before
    expect(page.get_by_label("Delete notes/cats.md")).to_be_focused()
    page.get_by_label("Delete notes/cats.md").click()
    page.get_by_label("Delete notes/dogs.md").click()  # the one before cannot be undone any more
    expect(page.locator("#undo-text")).to_have_text("notes/dogs.md is deleted.")
    page.locator("#undo-button").click()
    expect(page.get_by_label("Delete notes/dogs.md")).to_be_focused()
    assert set(server.pipeline.stored) == set(DOCUMENTS) - {"notes/cats.md"}
    page.get_by_label("Delete notes/dogs.md").click()
    page.goto("about:blank")  # leaving the page does not bring it back
    for _ in range(100):
        if "notes/dogs.md" not in server.pipeline.stored:
            break
        page.wait_for_timeout(20)
    assert "notes/dogs.md" not in server.pipeline.stored


def test_documents_are_searched(page, start):
    page.goto(start({f"folder/{n}.md": "x" for n in range(120)} | DOCUMENTS).url)
    expect(page.locator("#documents li")).to_have_count(50)
    page.locator("#more").click()
    expect(page.locator("#documents li")).to_have_count(100)
    page.locator("#search").fill("NOTES/")
    expect(page.locator("#documents li")).to_have_count(3)
    expect(page.locator("#list-state")).to_have_text("3 documents found")
    page.locator("#search").fill("nowhere")
    expect(page.locator("#list-state")).to_have_text("0 documents found")


def test_what_goes_wrong_is_shown(browser, start):
    page = browser.new_page()
    server = start()
    page.goto(server.url)
    server.worker.stop()
    ask(page, "x" * 30)
    expect(page.locator(".turn .bad")).to_have_text("the server is stopping")
    expect(page.locator("#question")).to_have_value("x" * 30)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser, start, scheme):
    options = {"viewport": {"width": 320, "height": 640}, "color_scheme": scheme, "has_touch": True}
    with opened(browser, **options) as page:
        page.goto(start(DOCUMENTS | {"folder/" + "long" * 40: "x"}).url)
        page.locator("#question").fill("where is the cat")
        page.locator("#send").tap()
        answered(page, "answer to where is the cat ✓")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        small = page.locator("button:visible").evaluate_all("all => all.filter(b => b.offsetHeight < 40).length")
        assert small == 0
        picture(page, f"phone_{scheme}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(browser, start, scheme):
    with opened(browser, color_scheme=scheme) as page:
        page.goto(start().url)
        expect(page.locator("#documents li")).to_have_count(4)
        check_axe(page)
        page.locator("#picked").set_input_files(
            [{"name": "a.md", "mimeType": "", "buffer": b"A fox."}, {"name": "b.png", "mimeType": "", "buffer": b"x"}]
        )
        expect(page.locator("#progress")).to_have_text("1 file read, 1 not read")
        ask(page, "where is the cat")
        answered(page, "answer to where is the cat ✓")
        page.locator("#settings summary").click()
        page.get_by_text("How it was found").click()
        page.get_by_text("Write or paste a document").click()
        page.get_by_label("Delete notes/more.md").click()
        check_axe(page)


def test_a_key_is_asked_for_and_kept_for_the_tab(browser, start):
    server = start(key="secret")
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-wrong")).to_have_text("This is not the key.")
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        expect(page.locator("#documents li")).to_have_count(4)
        expect(page.locator("#question")).to_be_focused()
        expect(page.locator("#key")).to_be_hidden()
        page.reload()
        expect(page.locator("#documents li")).to_have_count(4)
        assert context.cookies() == [] and page.evaluate("localStorage.length") == 0
        other = context.new_page()  # another tab has to ask again
        other.goto(server.url)
        expect(other.locator("#key")).to_be_visible()
        page.locator("#settings summary").click()
        page.locator("#forget").click()
        expect(page.locator("#key")).to_be_focused()
        assert page.locator("#documents li").count() == 0 and page.evaluate("sessionStorage.length") == 0
    assert httpx.get(f"{server.url}/v1/documents").status_code == 401


def test_no_script_but_its_own_runs(browser, start):
    page = browser.new_page()
    policy = page.goto(start().url).headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'broken'";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=\\"document.title = 'broken'\\">");
        }"""
    )
    page.wait_for_timeout(100)
    assert page.title() == "clara_jax: ask your documents"
    page.close()
