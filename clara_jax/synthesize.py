"""Make training records of documents with a language model on an OpenAI-compatible server.

The records are question-answer pairs that are checked and cover the document, and paraphrases (the paper's SCP data).
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clara_jax import command
from clara_jax.errors import ClaraError

EXAMPLES = """examples:
  python -m clara_jax.synthesize --documents corpus.jsonl --output scp.jsonl --endpoint http://localhost:8000/v1 \\
      --model Qwen/Qwen3-32B
  python -m clara_jax.synthesize answers --records instruct.jsonl --output distilled.jsonl --endpoint ... --model ...
  python -m clara_jax.synthesize statistics scp.jsonl.journal --page statistics.html
  python -m clara_jax.synthesize review scp.jsonl.journal --count 50

All that is asked and answered goes into a journal beside the output: stopped or killed, the same command goes on from
there and asks nothing twice, and the same command in another terminal helps. The key of the server is read from the
environment variable OPENAI_API_KEY (or --key-variable), and written nowhere. docs/synthesis.md says more."""
UNFINISHED = 3  # exit code


def main() -> None:
    """Run the subcommand that is named first, or the synthesis of documents."""
    commands = {"answers": _answers, "review": _review, "statistics": _statistics}
    if sys.argv[1:] and sys.argv[1] in commands:
        commands[sys.argv[1]](sys.argv[2:])
    else:
        _documents(sys.argv[1:])


def _documents(argv: list[str]) -> None:
    from clara_jax.synthesis.runner import KINDS, SynthesisSettings

    parser = _parser("", __doc__, EXAMPLES)
    add, usual = parser.add_argument, SynthesisSettings()
    add(
        "--documents",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files or folders: JSONL, text, Markdown, HTML, PDF",
    )
    command.add_option(parser, "--follow-links")
    _add_common(parser, usual)
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is made of each document (all)")
    add(
        "--rounds",
        type=int,
        default=usual.rounds,
        metavar="N",
        help=f"until a document must be covered ({usual.rounds})",
    )
    add("--keep-uncovered", action="store_true", help="pairs count also where the document was not covered by then")
    add(
        "--without-verdicts",
        dest="verdicts",
        action="store_false",
        help="what passes the checks is taken; the model is not asked whether it is right",
    )
    add("--held-out", nargs="+", default=[], metavar="FILE", help="evaluation records: what they ask is not asked")
    arguments = parser.parse_args(argv)
    from clara_jax.synthesis.duplicates import HeldOutQuestions
    from clara_jax.synthesis.recipes import Loop, document_items

    further = {name: getattr(arguments, name) for name in ("rounds", "keep_uncovered", "verdicts")}
    settings = _settings(arguments, kinds=tuple(arguments.kinds), **further)
    held_out = HeldOutQuestions.from_files(arguments.held_out) if arguments.held_out else None

    def work(runner: Any) -> Callable:
        loop = Loop(runner, held_out=held_out)
        return lambda item: loop(item.id, item.content["text"])

    _complete(
        arguments,
        settings,
        {"makes": "scp", "held_out": held_out.digest if held_out else None},
        document_items(arguments.documents, arguments.follow_links),
        work,
        lambda item, outcome: outcome.record,
    )


def _answers(argv: list[str]) -> None:
    from clara_jax.synthesis.runner import SynthesisSettings

    parser = _parser(
        " answers",
        "Answer distillation: writes question records anew, each with the answer that the model gives from the texts "
        "of the documents. What was the answer stays as a reference, gold_answer.",
    )
    add = parser.add_argument
    add(
        "--records",
        nargs="+",
        required=True,
        metavar="FILE",
        help="records of the stage instruct or end_to_end (JSONL)",
    )
    command.add_option(parser, "--k", "the first ones of the record; default: all")
    _add_common(parser, SynthesisSettings())
    arguments = parser.parse_args(argv)
    if arguments.k is not None and arguments.k < 1:
        raise ClaraError(f"--k: {arguments.k} must be at least 1")
    from clara_jax.synthesis.recipes import Teacher, distilled, record_items

    _complete(
        arguments,
        _settings(arguments),
        {"makes": "answers", "k": arguments.k},
        record_items(arguments.records),
        lambda runner: Teacher(runner, k=arguments.k),
        distilled,
    )


def _statistics(argv: list[str]) -> None:
    parser = _parser(" statistics", "Summarizes a journal.")
    add = parser.add_argument
    add("journal", type=Path, metavar="JOURNAL")
    add("--page", type=Path, metavar="FILE.html", help="also as a page")
    _add_prices(parser)
    arguments = parser.parse_args(argv)
    from clara_jax.synthesis import quality
    from clara_jax.synthesis.runner import Budget

    journal = _open(arguments.journal)
    report = quality.tables(journal, Budget(prices=tuple(arguments.prices)))
    print(quality.text(report) or "nothing has been asked yet")
    if arguments.page:
        quality.write_page(report, f"Synthesis: {arguments.journal.name}", arguments.page)


def _review(argv: list[str]) -> None:
    parser = _parser(" review", "Shows a sample of the records for manual review; the verdicts go into the journal.")
    add = parser.add_argument
    add("journal", type=Path, metavar="JOURNAL")
    add("--count", type=int, default=20, metavar="N", help="pairs or paraphrases (20)")
    add("--kind", help="of this kind alone")
    command.add_option(parser, "--seed")
    add("--reviewer", default=None, metavar="NAME", help="(the user's name)")
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        raise ClaraError(f"--count: {arguments.count} must be at least 1")
    from clara_jax.synthesis import quality

    journal, who = _open(arguments.journal), arguments.reviewer or getpass.getuser()
    shown = quality.sample(journal, arguments.count, arguments.seed, who, arguments.kind)
    if not shown:
        print("nothing is left to look at")
    else:
        quality.review(journal, shown, who, input, print)
    print(quality.review_summary(journal))


def _parser(name: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    return command.make_parser(f"synthesize{name}", description, epilog)


def _add_common(parser: argparse.ArgumentParser, usual: Any) -> None:
    add = parser.add_argument
    note = "records; rejected items are listed beside it"
    command.add_option(parser, "--output", note, type=Path, required=True, metavar="FILE.jsonl")
    add(
        "--endpoint", required=True, metavar="URL", help="of an OpenAI-compatible server, e.g. http://localhost:8000/v1"
    )
    add("--model", required=True, metavar="NAME", help="as the server calls it")
    add("--journal", type=Path, metavar="FILE", help="(OUTPUT.journal)")
    add(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable with the key (OPENAI_API_KEY)",
    )
    add("--concurrency", type=int, default=64, metavar="N", help="requests in flight (64)")
    add("--attempts", type=int, default=6, metavar="N", help="to get a request answered (6)")
    add("--timeout", type=float, default=120, metavar="S", help="of an attempt (120)")
    add("--requests-per-minute", type=float, metavar="N", help="at most")
    add("--tokens-per-minute", type=float, metavar="N", help="at most, of prompts and replies")
    add(
        "--structured",
        choices=("auto", "schema", "object", "none"),
        default="auto",
        help="how JSON is asked for (auto: what the server can)",
    )
    add("--prompts", metavar="FILE.toml", help="instead of our own prompts")
    command.add_option(parser, "--temperature", f"{usual.temperature:g}", default=usual.temperature)
    add("--max-tokens", type=int, default=usual.max_tokens, metavar="N", help=f"longest reply ({usual.max_tokens})")
    command.add_option(parser, "--seed", default=usual.seed)
    add("--again", nargs="+", default=[], metavar="REASON", help="try once more what was rejected for it, e.g. refused")
    add("--budget-tokens", type=int, metavar="N", help="stop when so many were spent, all runs together")
    add("--budget-cost", type=float, metavar="COST", help="the same in the unit of --prices")
    _add_prices(parser)


def _add_prices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prices", type=float, nargs=2, default=(0.0, 0.0), metavar=("PROMPT", "REPLY"), help="of a million tokens"
    )


def _settings(arguments: argparse.Namespace, **further: Any) -> Any:
    from clara_jax.synthesis.runner import SynthesisSettings

    common = {name: getattr(arguments, name) for name in ("temperature", "max_tokens", "seed")}
    return SynthesisSettings(**common, **further)


def _complete(
    arguments: argparse.Namespace,
    settings: Any,
    further: Mapping[str, Any],
    items: Iterable[Any],
    work: Callable[[Any], Callable],
    record_of: Callable,
) -> None:
    """Process all items, write the output, and print a summary."""
    from clara_jax.synthesis.checks import CheckLimits
    from clara_jax.synthesis.endpoint import Endpoint
    from clara_jax.synthesis.journal import Journal, rejected_file, write_output
    from clara_jax.synthesis.prompts import PromptTemplates
    from clara_jax.synthesis.runner import Budget, StepRunner, run

    budget = Budget(arguments.budget_tokens, arguments.budget_cost, tuple(arguments.prices))
    if budget.cost is not None and not any(budget.prices):
        raise ClaraError("--budget-cost: needs --prices, what a million tokens cost")
    prompts = PromptTemplates.load(arguments.prompts)
    endpoint = Endpoint(
        arguments.endpoint,
        arguments.model,
        key=os.environ.get(arguments.key_variable) or None,
        concurrency=arguments.concurrency,
        attempts=arguments.attempts,
        timeout=arguments.timeout,
        requests_per_minute=arguments.requests_per_minute,
        tokens_per_minute=arguments.tokens_per_minute,
        structured=arguments.structured,
    )
    path = arguments.journal or arguments.output.with_name(f"{arguments.output.name}.journal")
    journal = Journal(path)
    bound = {"model": arguments.model, "prompts": prompts.version, "limits": dataclasses.asdict(CheckLimits())}
    journal.bind({**bound, **dataclasses.asdict(settings), **further})
    total = journal.want(items)
    for reason in arguments.again:
        journal.again(reason)
    runner = StepRunner(endpoint.ask, journal, prompts, settings, budget)
    ended = run(journal, endpoint, runner, work(runner), arguments.concurrency)
    written = write_output(journal, arguments.output, record_of)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in written.records.items()) or "no records"
    from_journal = f"{runner.remembered:,} known from {path.name}"
    print(f"{arguments.output}: {kinds}; {runner.requests:,} requests sent, {from_journal}")
    if endpoint.repeated or endpoint.waited >= 1:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in sorted(endpoint.repeated.items())) or "nothing"
        print(f"the server: sent again: {causes}; {endpoint.waited:,.0f} s waited for it, all requests together")
    if written.rejected:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(written.rejected.items()))
        print(f"{rejected_file(arguments.output)}: rejected: {reasons}")
    if ended != "done":
        print(f"{ended}: {journal.left():,} of {total:,} items are left; the same command goes on", file=sys.stderr)
        sys.exit(UNFINISHED)


def _open(path: Path) -> Any:
    from clara_jax.synthesis.journal import Journal

    if not path.is_file():
        raise ClaraError(f"{path}: there is no journal; it lies beside the output of a synthesis")
    return Journal(path)


if __name__ == "__main__":
    command.run(main, compiles=False)
