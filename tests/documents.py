"""Code in the documents: fenced blocks, the commands that a shell makes of them, and the files that these name."""

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clara_jax.synthesis.journal import Item, ItemOutcome, Journal
from tests.data.builders import files
from tests.data.importers import published
from tests.data.importers.published import write_json, write_lines
from tests.evaluation import made_up
from tests.locations import ROOT

DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
SHELL = ("bash", "sh", "console")
INLINE = "inline"
# Every command of this page has made a measurement, in minutes, hours or days.
MEASUREMENTS = "docs/results.md"
MARK = re.compile(r"(?:^|\s)#\s(?:.*\W)?(?:long|needs): \S")
# Bash reads this before a block. It finds no program: what it would start is written down, after the line it stands on.
# A record is one write, so that those of both sides of a pipe do not mix: one `printf`, and no line end, which flushes.
RECORDER = r"""
PATH=/nonexistent TIMEFORMAT=
record() { printf '%s\0' "$#" "${BASH_LINENO[1]}" "${@//$'\n'/$'\x1e'}" >> "$RECORD"; }
command_not_found_handle() { record "$@"; }
function cd { :; }
function . { :; }
"""


@dataclass(frozen=True)
class Block:
    """Code between fences, or within a sentence.

    Attributes:
      path: the document, relative to the repository.
      line: the line of the document before the first one of the code.
      language: what the opening fence says; `INLINE` within a sentence.
      text: the code.
    """

    path: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Command:
    """What a block starts: its words, and whether a mark says that it takes long or needs something."""

    block: Block
    line: int
    words: tuple[str, ...]
    marked: bool

    def __str__(self):
        return f"{self.block.path}:{self.block.line + self.line}: {' '.join(self.words)}"


@cache
def blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document, and the commands within its sentences."""
    found, begun, language = [], None, ""
    lines = (ROOT / document).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if begun is None:
                begun, language = number, line.removeprefix("```").strip()
            else:
                found.append(Block(document, begun, language, "\n".join(lines[begun : number - 1]) + "\n"))
                begun = None
        elif begun is None:
            spans = re.findall(r"`([^`]*python -m [^`]*)`", line)
            found += [Block(document, number - 1, INLINE, f"{span}\n") for span in spans]
    assert begun is None, f"{document}:{begun}: this block does not end"
    return found


@cache
def commands(document: str) -> list[Command]:
    """Return all that bash would start in the shell blocks of a document, with variables and loops as they stand."""
    found = []
    for block in blocks(document):
        if block.language in (*SHELL, INLINE):
            marked = marked_lines(block.text)
            for line, words in started(block):
                long = document == MEASUREMENTS or block.language == INLINE or line in marked
                found.append(Command(block, line, words, long))
    return found


def started(block: Block) -> list[tuple[int, tuple[str, ...]]]:
    """Return (line, words) of each program that a block would start, in a folder that is thrown away."""
    # Names with a slash are not looked up: a function stands for each.
    slashed = sorted(set(re.findall(r"(?<![\w./:=-])[\w.-]*/[\w./-]+", block.text)))
    stubs = "".join(f'function {name} {{ record {name} "$@"; }}\n' for name in slashed)
    with tempfile.TemporaryDirectory() as folder:
        recorder, record = Path(folder) / "recorder", Path(folder) / "record"
        recorder.write_text(RECORDER + stubs)
        record.touch()
        done = subprocess.run(
            ["/bin/bash", "-c", f"{block.text}wait"],
            cwd=folder,
            env={"BASH_ENV": str(recorder), "RECORD": str(record), "HOME": "/home/me"},
            capture_output=True,
            text=True,
        )
        assert not done.stderr and not done.returncode, f"{block}: {done.stderr}"
        fields = iter(record.read_text().replace("\x1e", "\n").split("\0")[:-1])
    return [(int(next(fields)), tuple(itertools.islice(fields, int(count)))) for count in fields]


def marked_lines(text: str) -> set[int]:
    """Return the lines to which a mark applies: that of its command, or all that follow where it stands alone."""
    found, following, begun = set(), False, 1
    for number, line in enumerate(text.split("\n"), 1):
        alone = line.startswith("#")
        following = following or (alone and bool(MARK.search(line)))
        if line.endswith("\\"):
            continue
        if following or MARK.search(line):
            found.update(range(begun, number + 1))
        begun = number + 1
    return found


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Be in a folder with all files that the documents' quick commands read, under the names that they have there."""
    _write_files(folder)
    with chdir(folder):
        yield folder


def _write_files(folder: Path) -> None:
    for name in ("configs", "clara_jax"):
        (folder / name).symlink_to(ROOT / name)
    (program,) = (block.text for block in blocks("docs/training.md") if "def get_config(" in block.text)
    (folder / "my_run.py").write_text(program)
    for name in ("folder", "papers", "data/scp", "scifact", "CLaRa_multi_stage", "reports"):
        (folder / name).mkdir(parents=True)
    text = "The ferry to Ulm Island leaves from Pier 4 every hour. It takes 40 minutes in calm weather.\n"
    for name in ("folder/ferry.txt", "papers/ferry.txt", "notes.md"):
        (folder / name).write_text(text)
    write_lines(folder / "wiki.jsonl.gz", [{"id": "w", "text": "Ulm Island has two inns."}])
    # Records, and data sets as they are published.
    files.write(folder / "data/scp/a.jsonl.zst", files.LINES["scp"])
    files.write(folder / "data/scp_dev.jsonl", files.LINES["scp"][:1])
    files.write(folder / "dev.jsonl", files.LINES["end_to_end"])
    write_json(folder / "train-v1.1.json", published.squad())
    write_json(folder / "hotpot_dev_distractor_v1.json", published.hotpotqa())
    write_lines(folder / "musique_ans_v1.0_train.jsonl", published.musique()[::2])
    write_json(folder / "dev.json", published.two_wiki())
    write_lines(folder / "id_aliases.json", published.ALIASES)
    write_lines(folder / "NQ-open.dev.jsonl", published.nq_open())
    write_lines(folder / "corpus.jsonl", [{"title": f"T{i}", "text": f"text {i}"} for i in range(30)])
    published.beir(folder / "scifact")
    (folder / "scifact/qrels/test.tsv").rename(folder / "scifact/qrels/train.tsv")
    write_lines(folder / "CLaRa_multi_stage/end_to_end.jsonl", published.clara()["end_to_end"])
    # Reports, and a journal.
    for name in ("first", "second"):
        suite = made_up.suite()
        made_up.directory(
            folder / "reports" / name, [suite], {suite.name: {"m/clara": made_up.answers({0}, ranked=True)}}
        )
    journal = Journal(folder / "scp.jsonl.journal")
    journal.want([Item("d0", "digest", {"text": text})])
    record = {"data_type": "qa", "question": ["Where from?"], "answers": ["Pier 4"], "docs": [text]}
    journal.finish(Item("d0", "digest", {"text": text}), [ItemOutcome("simple", record)])
    journal.close()
