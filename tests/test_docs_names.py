"""What the documents point to is there: files and folders in tables of places, and links."""

import re

import pytest

from tests.documents import DOCUMENTS
from tests.locations import ROOT

# Tables whose first column names places below a folder of the repository.
PLACES = {"README.md": ("| folder |", "clara_jax"), "docs/architecture.md": ("| place |", "clara_jax")}
PLACES |= {"CONTRIBUTING.md": ("| you want to |", "")}


def lines_of(document):
    """Return the lines of a document outside of its blocks of code."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).split("\n")


def anchors(document):
    """Return what a link may name after "#": headings as GitHub spells them, and named anchors."""
    headings = [line.lstrip("#").strip() for line in lines_of(document) if re.match(r"#+ ", line)]
    spelled = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return spelled | set(re.findall(r'<a name="([^"]+)"', "\n".join(lines_of(document))))


@pytest.mark.parametrize("document", PLACES)
def test_places_are_there(document):
    head, folder = PLACES[document]
    lines = lines_of(document)
    begin = next(number for number, line in enumerate(lines) if line.startswith(head)) + 2
    missing, count = [], 0
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        cell = line.split("|")[1 if folder else 2]
        before = ROOT / folder
        for name in re.findall(r"`([\w./]+)`", cell):
            count += 1
            # A name without folder is beside the one before it.
            found = [path for path in (ROOT / folder / name, ROOT / "clara_jax" / name, before / name) if path.exists()]
            if not found:
                missing.append(name)
            elif found[0].is_file():
                before = found[0].parent
    assert count > 10 and not missing, missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(lines_of(document))):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path.resolve().relative_to(ROOT).as_posix())):
            missing.append(target)
    assert not missing, missing
