"""Answers questions from a store, or from documents given at once, and shows the sources of the answers."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import json
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.model.precision import CHOICES
from clara_jax.shipped import DEFAULT

if TYPE_CHECKING:
    from clara_jax.rag_pipeline import RagPipeline
    from clara_jax.results import RagAnswer

EXAMPLES = """examples:
  python -m clara_jax.ask --documents notes/ "Who wrote the minutes?"             the model inside the package
  python -m clara_jax.ask --checkpoint runs/first --store stores/first "Where did the Normans come from?"
  python -m clara_jax.ask --checkpoint runs/first --documents notes/ "Who wrote the minutes?"
  python -m clara_jax.ask --checkpoint runs/first --store stores/first --questions questions.txt --json
  python -m clara_jax.ask --checkpoint runs/first --store stores/first          (asks for questions)"""

SHOWN = 160  # characters of a source's text
EXITS, HELPS = ("exit", "quit", ":q"), ("help", "?")  # words that are no questions


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("ask", __doc__, EXAMPLES)
    add, option = parser.add_argument, command.add_option
    add("question", nargs="?", help="without one, and without --questions, they are asked for one after another")
    command.add_checkpoint_option(parser, DEFAULT)
    option(parser, "--store", "python -m clara_jax.compress makes one")
    add("--documents", nargs="+", metavar="PATH", help="instead of a store: files and folders, compressed first")
    add("--questions", metavar="FILE", help="a question a line, or .jsonl with the field question; each is shown")
    option(parser, "--strict", "with --documents")
    option(parser, "--k", "default: as the model was trained")
    option(parser, "--candidates", "20; JSON lists them", default=20)
    add(
        "--how",
        choices=("memory", "words", "both"),
        help="what finds them (default: memory; words, where the model has not learned to rank)",
    )
    add("--where", metavar="CONDITION", help="that chunks must meet, e.g. \"document = 'notes/a.md'\"")
    add("--expand", type=int, default=0, metavar="N", help="give the best N chunks as text, too: for names and numbers")
    add("--abstain-below", type=float, metavar="SCORE", help="answer nothing where the best score is below")
    option(parser, "--max-new-tokens", "64", default=64)
    option(parser, "--temperature", "0", default=0.0)
    option(parser, "--top-p", "1", default=1.0)
    option(parser, "--seed")
    option(parser, "--json", "one object a question")
    option(parser, "--base", "default: where the checkpoint says")
    option(parser, "--generator", "default: answers are written here")
    option(parser, "--generator-model", "default: the only one")
    option(parser, "--weights", "default: what is fastest and fits into memory")
    option(parser, "--precision", "default: by the store, else by the processor", choices=CHOICES)
    command.add_compile_option(parser)
    return parser


def main() -> None:
    """Run the command."""
    arguments = parser().parse_args()
    if bool(arguments.store) == bool(arguments.documents):
        raise ClaraError("give either --store or --documents")
    # In --documents a/ b.md "Who ...?" the parser takes the question for one more path.
    if arguments.question is None and not arguments.questions and len(arguments.documents or ()) > 1:
        last = arguments.documents[-1]
        if "://" not in last and not glob.glob(last):
            arguments.question = arguments.documents.pop()
    if arguments.question is not None and arguments.questions:
        raise ClaraError("give either a question or --questions")
    questions = _file(arguments.questions) if arguments.questions else None
    if arguments.where is not None:
        from clara_jax.retrieval.conditions import compiled

        compiled(arguments.where)  # refused before a model is opened
    with _pipeline(arguments) as pipeline:
        if arguments.question is not None:
            _answer(pipeline, arguments, arguments.question)
        elif questions is not None:
            _answer_all(pipeline, arguments, questions)
        else:
            _converse(pipeline, arguments)


@contextlib.contextmanager
def _pipeline(arguments: argparse.Namespace) -> Iterator[RagPipeline]:
    from clara_jax.inference.generator_server import GeneratorServer
    from clara_jax.rag_pipeline import RagPipeline

    # Questions are answered one by one, as they come.
    options = {"base": arguments.base, "precision": arguments.precision, "weights": arguments.weights, "rows": 1}
    options["generator"] = GeneratorServer.of_options(arguments.generator, arguments.generator_model)
    if arguments.store:
        yield RagPipeline.open(arguments.checkpoint, arguments.store, **options)
        return
    with tempfile.TemporaryDirectory() as folder:
        pipeline = RagPipeline.open(arguments.checkpoint, folder, create=True, **options)
        _add(pipeline, arguments)
        yield pipeline


def _add(pipeline: RagPipeline, arguments: argparse.Namespace) -> None:
    """Compress the documents, and say on standard error what could not be read."""
    from tqdm import tqdm

    from clara_jax.retrieval.indexing import IndexReport
    from clara_jax.retrieval.read_report import ReadReport

    report = ReadReport(arguments.strict)
    with tqdm(unit=" chunks", desc="compressing") as bar:

        def done(part: IndexReport) -> None:
            bar.set_postfix_str(f"file {report.at:,} of {report.found:,}", refresh=False)
            bar.update(part.compressed + part.unchanged)

        pipeline.add(pipeline.read(arguments.documents, report=report), done)
    print(report.table(), file=sys.stderr, flush=True)
    report.check_any()
    pipeline.finish()


def _answer_all(pipeline: RagPipeline, arguments: argparse.Namespace, questions: list[tuple[str, str]]) -> None:
    """Answer the questions of a file, each shown with its answer as soon as it is there.

    Raises:
      ClaraError: at the end, where some could not be answered; the reason of each has been printed.
    """
    failed = 0
    for where, question in questions:
        if not arguments.json:
            print(f"> {question}", flush=True)
        try:
            _answer(pipeline, arguments, question)
        except ClaraError as error:
            failed += 1
            print(f"error: {where}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise ClaraError(f"{arguments.questions}: {failed} of {len(questions)} questions were not answered; see above")


def _converse(pipeline: RagPipeline, arguments: argparse.Namespace) -> None:
    """Answer questions as they are typed, until there are no more or one of `EXITS` is."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # on Windows there is none
            import readline  # noqa: F401  (input() then edits lines, and the arrow keys bring earlier ones back)
        print(f"{len(pipeline.store):,} chunks; help explains, exit ends", file=sys.stderr, flush=True)
    while True:
        try:
            line = input("question> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        if line.lower() in EXITS:
            return
        if line.lower() in HELPS:
            print(_help(pipeline, arguments), flush=True)
        elif line:
            try:
                _answer(pipeline, arguments, line)
            except ClaraError as error:  # the next question may be a better one
                print(f"error: {error}", file=sys.stderr, flush=True)


def _help(pipeline: RagPipeline, arguments: argparse.Namespace) -> str:
    k, how = arguments.k or pipeline.usual_k, arguments.how or pipeline.usual_how
    return (
        f"Type a question. It is answered from the {k} best of {len(pipeline.store):,} chunks, found by {how}, which "
        "are\nlisted with their scores below the answer. Each question stands for itself. "
        f"{', '.join(EXITS)}, or the end of input, ends.\nOther options: python -m clara_jax.ask --help"
    )


def _file(path: str) -> list[tuple[str, str]]:
    """Return the questions of a file, each with its place."""
    from clara_jax.formats.jsonl import decode, raw_lines

    questions = []
    for where, line in raw_lines(path):
        if path.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            fields = decode(line, where)
            question = fields.get("question") if isinstance(fields, dict) else None
        else:
            question = line.decode("utf-8", "replace")
        if not isinstance(question, str) or not question.strip():
            raise ClaraError(f'{where}: "question" is missing; each line needs one')
        questions.append((where, question.strip()))
    if not questions:
        raise ClaraError(f"{path}: holds no question")
    return questions


def _answer(pipeline: RagPipeline, arguments: argparse.Namespace, question: str) -> None:
    from clara_jax.inference.decode import Sampling

    answer = pipeline.answer(
        question,
        sampling=Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p),
        seed=arguments.seed,
        k=arguments.k,
        how=arguments.how,
        where=arguments.where,
        expand=arguments.expand,
        abstain_below=arguments.abstain_below,
        candidates=arguments.candidates,
    )
    print(json.dumps(_fields(answer), ensure_ascii=False) if arguments.json else _text(answer), flush=True)


def _fields(answer: RagAnswer) -> dict[str, Any]:
    context = answer.context
    return {
        "question": context.question,
        "answer": answer.text,
        "log_probability": answer.log_probability,
        "selected": context.selected,
        "candidates": [dataclasses.asdict(hit) for hit in context.hits],
        "compress_ratio": context.compress_ratio,
        "prompt_tokens": context.prompt_tokens,
        "answer_tokens": len(answer.tokens),
        "milliseconds": answer.milliseconds,
    }


def _text(answer: RagAnswer) -> str:
    context = answer.context
    abstained = "the best chunk's score is below the threshold" if context.hits else "nothing found"
    lines = [f"(no answer: {abstained})" if answer.text is None else answer.text]
    lines += [f"  {hit.line(SHOWN)}" for hit in context.sources]
    times = ", ".join(f"{name} {value:.0f} ms" for name, value in answer.milliseconds.items())
    read = f"{context.compress_ratio:.1f} text tokens for each vector read"
    lines.append(f"  {times}; {len(answer.tokens)} tokens; {read}")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
