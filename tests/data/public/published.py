"""Small data sets in the forms in which their authors publish them."""

import gzip
import io
import json
import zipfile

TOWNS = ("Oslo", "Lima", "Graz", "Kiel", "Bath", "Nice", "Cork", "Bern", "Riga", "Pisa", "Gent", "Ulm")


def squad(articles, first):
    """Return a file with two paragraphs an article and two questions a paragraph."""
    data = []
    for number in range(first, first + articles):
        paragraphs = []
        for part in range(2):
            town = f"{TOWNS[(2 * number + part) % len(TOWNS)]}{number}"
            context = (
                f"The harbour of {town} was opened in {1500 + 10 * number + part}, after {number + 3} years of work."
            )
            asked = [(f"When was the harbour of {town} opened?", str(1500 + 10 * number + part))]
            asked.append((f"Which harbour was opened in {1500 + 10 * number + part}?", town))
            qas = [
                {
                    "id": f"q{number}-{part}-{i}",
                    "question": question,
                    "answers": [{"text": answer, "answer_start": context.index(answer)}],
                }
                for i, (question, answer) in enumerate(asked)
            ]
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"Harbour_{number}", "paragraphs": paragraphs})
    return json.dumps({"version": "1.1", "data": data}).encode()


def natural_questions(count):
    """Return a file of Lost in the Middle, each question with its passage."""
    lines = []
    for number in range(count):
        passage = {
            "title": f"Song {number}",
            "text": f"Song {number} was sung by singer{number} in a hall.",
            "isgold": True,
            "hasanswer": True,
        }
        asked = {"question": f"who sang song {number}", "answers": [f"singer{number}"], "ctxs": [passage]}
        lines.append(json.dumps(asked))
    return gzip.compress("\n".join(lines).encode())


def boolq(count):
    rows = [
        {
            "question": f"is hill {i} high",
            "title": "Hills",
            "answer": i % 2 == 0,
            "passage": f"Hill {i} is a hill of height {i}.",
        }
        for i in range(count)
    ]
    return "\n".join(map(json.dumps, rows)).encode()


def wiki_split(count, first=0):
    line = "Town {0} , which is `` old '' , lies at a river .\tTown {0} is `` old '' . <::::> It lies at a river ."
    return "".join(line.format(i) + "\n" for i in range(first, first + count)).encode()


def archive(files):
    """Return a ZIP archive as GitHub makes it: in a folder that is called after the commit."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(f"repository-0123abc/{name}", content)
    return buffer.getvalue()


def fairytales():
    files = {"README.md": "Not read."}
    for split in ("train", "val", "test"):
        files[f"data-by-train-split/section-stories/{split}/fox-story.csv"] = (
            f'section,text\n1,"The fox of {split} ran\ninto the wood."\n2,It met a bear.\n'
        )
        files[f"data-by-train-split/questions/{split}/fox-questions.csv"] = (
            "question_id,local-or-sum,cor_section,question,answer1\n1,local,1,Where did the fox run?,into the wood\n"
            '2,summary,"1,2",What happened?,much\n'
        )
    return archive(files)


def ott_qa(pages):
    """Return the archive of Wikipedia's pages, given as texts by title."""
    tokenized = {f"/wiki/{title}": text for title, text in pages.items()}
    return archive({"data/traindev_request_tok/Table_0.json": json.dumps(tokenized), "README.md": "Not read."})


def contents_of_book(modules, licence="http://creativecommons.org/licenses/by/4.0/"):
    names = "".join(f'<col:module document="{module}"/>' for module in modules)
    return (
        '<col:collection xmlns:col="http://cnx.rice.edu/collxml" xmlns:md="http://cnx.rice.edu/mdml">'
        f'<metadata><md:license url="{licence}">A licence</md:license></metadata>'
        f"<col:content>{names}</col:content></col:collection>"
    ).encode()


def module(title, paragraphs):
    written = "".join(f"<para>{text}</para>" for text in paragraphs)
    return (
        f'<document xmlns="http://cnx.rice.edu/cnxml"><title>{title}</title><content><section><title>A</title>{written}'
        "<note><para>A note is not running text, and is left out of what is read, however long it may be written."
        "</para></note></section></content></document>"
    ).encode()
