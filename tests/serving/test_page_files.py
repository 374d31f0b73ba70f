"""Files and folders that are given to the page in a real browser."""

import pytest

from tests.browsers import launched, needs_browser, opened, playwright
from tests.data.corpus import pdf, write
from tests.serving.fakes import FakePipeline, serve

pytestmark = needs_browser
expect = playwright.expect


@pytest.fixture
def server():
    server = serve(FakePipeline(), file=1 << 16)
    yield server
    server.end()


def test_files_and_folders_are_read_and_what_is_not_says_why(server, tmp_path):
    folder = tmp_path / "notes"
    write(
        folder,
        {
            "ferry.md": "The ferry leaves.",
            "deep/er/paper.pdf": pdf([["The paper has a text."]]),
            "empty.txt": "",
            "photo.jpg": b"\xff",
            "large.txt": "x" * (1 << 17),
            ".hidden.txt": "x",
        },
    )
    with launched() as browser, opened(browser) as page:
        page.set_default_timeout(60_000)
        page.goto(server.url)
        expect(page.locator("#kinds")).to_contain_text(".docx")
        page.locator("#picked-folder").set_input_files(folder)
        expect(page.locator("#progress")).to_have_text("2 files read, 3 not read, 1 hidden passed over", timeout=60_000)
        rows = dict(line.split("\n", 1) for line in page.locator("#files li").all_inner_texts())
        assert rows["notes/ferry.md"] == rows["notes/deep/er/paper.pdf"] == "read: 1 passage"
        assert rows["notes/empty.txt"] == "not read: holds no text"
        assert rows["notes/photo.jpg"].startswith("not read: of no known kind")
        assert rows["notes/large.txt"] == "not read: larger than 0 MiB"
        assert set(server.pipeline.stored) == {"notes/ferry.md", "notes/deep/er/paper.pdf"}
        expect(page.locator("#documents li")).to_have_count(2)
        page.evaluate(
            """() => {
                const carried = new DataTransfer();
                carried.items.add(new File(["A <b>fox</b>."], "<img src=x onerror=alert(1)>.txt"));
                const options = { bubbles: true, cancelable: true, dataTransfer: carried };
                document.body.dispatchEvent(new DragEvent("dragover", options));
                if (!document.body.classList.contains("dropping")) throw new Error("nothing shows the place");
                document.body.dispatchEvent(new DragEvent("drop", options));
            }"""
        )
        expect(page.locator("#progress")).to_have_text("1 file read", timeout=60_000)
        assert "<img src=x onerror=alert(1)>.txt" in server.pipeline.stored
        assert page.locator("#files img, #documents img").count() == 0
