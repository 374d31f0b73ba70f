"""Evaluate models on questions, with baselines, controls and intervals, into a report.

``compare`` compares two reports; ``corpus`` searches a whole store for what answers the questions. Each has a --help.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from pathlib import Path

from clara_jax import command, huge_pages
from clara_jax.errors import ClaraError
from clara_jax.model.precision import CHOICES

EXAMPLES = """examples:
  python -m clara_jax.evaluate --checkpoint runs/smoke --report reports/smoke
  python -m clara_jax.evaluate --checkpoint trained=runs/smollm2 untrained=fresh:runs/smollm2 --data DIR \\
      --text-checkpoint tuned=runs/smollm2_text --suite compressor end_to_end --limit 20 --report reports/smollm2
  python -m clara_jax.evaluate compare reports/first reports/second
  python -m clara_jax.evaluate corpus --store stores/first --questions dev.jsonl --report reports/corpus

A checkpoint is a training run, one of its checkpoints, a released one, or fresh:PATH, its base with adapters that
nothing has trained. Each is asked with its memories and, as controls, without them, with another question's, with
shuffled ones, with the right ones alone, with random candidates; its base is given the documents as text. Stopped or
killed, the same command does the rest; further checkpoints and suites may be added to a report."""

K = 5
RESAMPLES = 2_000
LEAST = dict(limit=1, resamples=1, batch_size=1, timed=0, inside=0, cram=0)  # the smallest value of an option
DEPTHS = (1, 5, 20)  # of Recall@k over a whole corpus
SEARCHES = ("memory", "words", "both")
CRAMMED, CRAM_STEPS, CRAM_RATE = "crammed", 300, 0.05


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from clara_jax.evaluation.suites import NAMES
    from clara_jax.metrics.controls import CONDITIONS

    conditions = "\n".join(f"  {condition.name:17} {condition.description}" for condition in CONDITIONS.values())
    epilog = f"{EXAMPLES}\n\nsuites:\n{NAMES}\n\nconditions:\n{conditions}"
    parser = command.make_parser("evaluate", __doc__, epilog)
    add, option = parser.add_argument, command.add_option
    option(parser, "--checkpoint", "models that answer from memories", nargs="+", required=True, metavar="[NAME=]DIR")
    add("--text-checkpoint", nargs="+", default=[], metavar="[NAME=]DIR", help="models that were trained on text")
    add("--report", required=True, type=Path, metavar="DIR", help="predictions, report.json and report.html")
    add("--suite", nargs="+", metavar="NAME", help="see below; default world, or compressor and end_to_end with --data")
    add("--data", metavar="DIR", help="the folder of the released evaluation data")
    option(parser, "--limit", "cases of each suite, drawn; default: all")
    add("--condition", nargs="+", metavar="NAME", help="of the conditions below (all); rank: rankers alone")
    command.add_renamed_option(parser, "--ways", "--condition", nargs="+")
    add("--retriever", nargs="+", default=[], metavar="NAME", help="besides bm25: minilm, dense:MODEL")
    option(parser, "--k", "of ranked ones; default: as the first one was trained, or 5")
    option(parser, "--max-new-tokens", "32; paraphrases four times as long", default=32)
    note = "also asks checkpoints with one memory token for all places at these, as NAME@N"
    option(parser, "--compress-rate", note, nargs="+", default=[])
    command.add_renamed_option(parser, "--rates", "--compress-rate", nargs="+", type=int)
    option(parser, "--memory-count", "default: as each checkpoint was trained")
    add("--cram", type=int, default=0, metavar="N", help="ask the first N cases of a suite from crammed memories (0)")
    add("--cram-steps", type=int, default=CRAM_STEPS, metavar="N", help=f"of a document's memories ({CRAM_STEPS})")
    add(
        "--cram-learning-rate",
        type=float,
        default=CRAM_RATE,
        metavar="X",
        help=f"in units of the memories' root mean square ({CRAM_RATE})",
    )
    add("--timed", type=int, default=4, metavar="N", help="cases asked alone for their times, of one suite a kind (4)")
    add("--inside", type=int, default=64, metavar="N", help="cases that are looked inside (64); 0: none")
    option(parser, "--seed")
    add("--resamples", type=int, default=RESAMPLES, metavar="N", help=f"of the bootstrap ({RESAMPLES:,})")
    option(parser, "--batch-size", "16", default=16)
    option(parser, "--base", "default: where the checkpoint says")
    option(parser, "--precision", "default: as trained", choices=CHOICES)
    command.add_process_options(parser)
    command.add_compile_option(parser)
    return parser


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["compare"]:
        _compare(sys.argv[2:])
    elif sys.argv[1:2] == ["corpus"]:
        _corpus(sys.argv[2:])
    else:
        _evaluate(parser().parse_args())


def _evaluate(arguments: argparse.Namespace) -> None:
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ClaraError(f"--{name.replace('_', '-')}: {value} must be at least {least}")
    if CRAMMED in (arguments.condition or ()) and not arguments.cram:
        raise ClaraError(f"--condition {CRAMMED}: say how many cases of each suite are to be answered so, --cram N")
    from clara_jax import distributed

    distributed.initialise(arguments.coordinator, arguments.processes, arguments.process)
    from clara_jax.evaluation import html_page, report, runner, system_specs
    from clara_jax.evaluation.baselines import Cramming
    from clara_jax.evaluation.suites import open_suites
    from clara_jax.evaluation.systems import Settings
    from clara_jax.evaluation.tables import summary
    from clara_jax.model.sharding import make_mesh

    # Expected of checkpoints named fresh:PATH.
    warnings.filterwarnings("ignore", message="this checkpoint has no trained query reasoner")
    models, texts = (
        [system_specs.named(value) for value in part] for part in (arguments.checkpoint, arguments.text_checkpoint)
    )
    names = [name for name, _ in (*models, *texts)]
    if len(set(names)) < len(names):
        raise ClaraError(f"two checkpoints have one name ({', '.join(names)}); give each NAME=PATH")
    world, k = system_specs.trained_on(models[0][1])
    k = arguments.k if arguments.k is not None else k or K
    directory, settings = arguments.report, Settings(k, arguments.max_new_tokens, arguments.seed)
    names = arguments.suite or _usual_suites(arguments.data, world is not None)
    suites = open_suites(names, arguments.data, arguments.limit, world, settings.seed)
    opener = system_specs.CheckpointOpener(
        make_mesh(), arguments.base, arguments.precision, arguments.batch_size, arguments.seed, directory
    )
    cramming = Cramming(arguments.cram_steps, arguments.cram_learning_rate)

    def memory_spec(name: str, path: str, rate: int | None) -> runner.SystemSpec:
        return system_specs.memory_spec(
            name,
            path,
            opener,
            suites,
            settings,
            arguments.condition,
            cramming,
            arguments.cram,
            rate,
            arguments.memory_count,
        )

    def text_spec(name: str, path: str, adapter: bool = True) -> runner.SystemSpec:
        return system_specs.text_spec(
            name, path, opener, settings, arguments.condition, adapter, arguments.memory_count
        )

    systems = [
        *(memory_spec(*model, rate) for model in models for rate in (None, *dict.fromkeys(arguments.compress_rate))),
        text_spec(system_specs.BASE, models[0][1], adapter=False),
        *(text_spec(*model) for model in texts),
        *system_specs.ranker_specs(arguments.retriever, settings),
    ]
    distributed.on_main(system_specs.warn_of_precisions, systems)
    with contextlib.ExitStack() as stack:
        distributed.on_main(stack.enter_context, runner.claimed(directory))
        distributed.on_main(runner.write_plan, directory, systems, suites, settings)
        runner.run(systems, suites, settings, directory, 2 * arguments.batch_size, arguments.timed)
        if arguments.inside:
            runner.look_inside(systems, suites, settings, directory, arguments.inside)

        def conclude() -> None:
            made = report.report_of(directory, arguments.resamples, settings.seed)
            html_page.write(made, directory)
            print(summary(made))
            print(f"{directory / 'report.html'}, {directory / 'report.json'}")

        distributed.on_main(conclude)


def _usual_suites(data: str | None, world: bool) -> list[str]:
    if data is not None:
        return ["compressor", "end_to_end"]
    if world:
        return ["world"]
    raise ClaraError("nothing to evaluate on: give --data, the folder of the released evaluation data, or --suite")


def _compare(argv: list[str]) -> None:
    parser = command.make_parser(
        "evaluate compare",
        "Compares two reports case by case: what the second has more than the first, and how sure that is.",
    )
    add, option = parser.add_argument, command.add_option
    add("first", type=Path, metavar="DIR")
    add("second", type=Path, metavar="DIR")
    add(
        "--systems",
        nargs="+",
        metavar="A=B",
        help="a system of the first report and one of the second (the same names)",
    )
    option(parser, "--json")
    option(parser, "--seed")
    add("--resamples", type=int, default=RESAMPLES, metavar="N", help=f"of the bootstrap ({RESAMPLES:,})")
    arguments = parser.parse_args(argv)
    from clara_jax.evaluation import compare

    pairs = [pair.partition("=") for pair in arguments.systems or ()]
    for left, equals, right in pairs:
        if not (left and equals and right):
            raise ClaraError(f"--systems: {left + equals + right!r} is not A=B, e.g. trained/clara=trained/no_memory")
    systems = {left: right for left, _, right in pairs} or None
    found = compare.compare(arguments.first, arguments.second, systems, arguments.seed, arguments.resamples)
    print(json.dumps(found, indent=1) if arguments.json else compare.text(found))


CORPUS_EXAMPLES = """examples:
  python -m clara_jax.compress --store stores/wiki --corpus wiki.jsonl.gz
  python -m clara_jax.evaluate corpus --store stores/wiki --questions questions.jsonl --report reports/wiki
  python -m clara_jax.data documents records.jsonl --output passages.jsonl     the documents of records, as a corpus

A line of --questions has a question, and either the ids of the documents that answer it ("gold_passage"), or its
documents with those that are right ("docs", "pos_index"), which the store must hold as well. Stopped or killed, the
same command does the rest."""


def corpus_parser() -> argparse.ArgumentParser:
    """Return the parser of the subcommand ``corpus``."""
    from clara_jax.shipped import DEFAULT

    about = "Searches a whole store: how often what answers a question is among the first, by memories and by words."
    parser = command.make_parser("evaluate corpus", about, CORPUS_EXAMPLES)
    add, option = parser.add_argument, command.add_option
    option(parser, "--store", "python -m clara_jax.compress makes one", required=True)
    command.add_checkpoint_option(parser, DEFAULT)
    add("--questions", nargs="+", required=True, metavar="FILE", help="JSONL, see below; .gz, .zst")
    add("--report", required=True, type=Path, metavar="DIR", help="ranks of all questions, and results.json")
    add(
        "--how",
        nargs="+",
        choices=SEARCHES,
        default=list(SEARCHES),
        help="the searches; others are compared with the first",
    )
    shown = ", ".join(map(str, DEPTHS))
    add("--depth", nargs="+", type=int, default=list(DEPTHS), metavar="N", help=f"the k of Recall@k ({shown})")
    add("--first-pass", action="store_true", help="search vectors first, also where all memories fit")
    add("--answers", action="store_true", help="also answer each question from what each search finds")
    option(parser, "--k", "default: as the model was trained")
    option(parser, "--max-new-tokens", "16", default=16)
    option(parser, "--limit", "of the questions of each file, drawn; default: all")
    option(parser, "--json")
    option(parser, "--seed")
    add("--resamples", type=int, default=RESAMPLES, metavar="N", help=f"of the bootstrap ({RESAMPLES:,})")
    option(parser, "--batch-size", "16", default=16)
    option(parser, "--base", "default: where the checkpoint says")
    option(parser, "--precision", "default: as the store's", choices=CHOICES)
    command.add_compile_option(parser)
    return parser


def _corpus(argv: list[str]) -> None:
    arguments = corpus_parser().parse_args(argv)
    for name, values in dict(depth=arguments.depth, limit=[arguments.limit], resamples=[arguments.resamples]).items():
        if any(value is not None and value < 1 for value in values):
            raise ClaraError(f"--{name}: must be at least 1")
    from clara_jax.evaluation import whole_corpus
    from clara_jax.evaluation.case_files import corpus_questions
    from clara_jax.formats.jsonl import data_files
    from clara_jax.rag_pipeline import RagPipeline

    settings = whole_corpus.Settings(
        tuple(sorted(set(arguments.depth))),
        True if arguments.first_pass else None,
        arguments.answers,
        arguments.k,
        arguments.max_new_tokens,
    )
    questions = corpus_questions(data_files(arguments.questions, "--questions"), arguments.limit)
    pipeline = RagPipeline.open(
        arguments.checkpoint,
        arguments.store,
        base=arguments.base,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
    )
    searches = list(dict.fromkeys(arguments.how))
    found = whole_corpus.measure(
        pipeline, questions, searches, settings, arguments.report, arguments.seed, arguments.resamples
    )
    print(json.dumps(found, indent=1) if arguments.json else whole_corpus.text(found))


if __name__ == "__main__":
    huge_pages.start_again()
    command.run(main)
