"""``python -m clara_jax.data corpus``: from documents of any kind to a corpus of chunks."""

from __future__ import annotations

import argparse

from clara_jax import command
from clara_jax.data.corpus.build import SKIP, STOP, build_corpus
from clara_jax.errors import ClaraError
from clara_jax.text.chunks import SENTENCES, TOKENS, Chunker
from clara_jax.text.counting import WORDS, open_counter

OFF = "off"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Reads folders and files of .txt, .md, .html, .pdf, .docx, .pptx, .epub, .csv, .tsv and .jsonl, and writes a "
        "corpus: one JSON object a chunk, with where it comes from."
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="folders (searched to any depth), files or patterns")
    command.add_option(parser, "--follow-links")
    command.add_option(parser, "--output", "corpus.jsonl; with .gz or .zst after it, it is compressed", required=True)
    note = f'or a checkpoint\'s "tokenizer" folder; default: {WORDS}, which are counted in place of tokens'
    command.add_option(parser, "--tokenizer", note, default=WORDS)
    add("--max-tokens", type=int, default=256, metavar="N", help="longest chunk: the model's doc_max_length (256)")
    add("--overlap", type=int, default=0, metavar="N", help="how much of a chunk the next one repeats (0)")
    add("--overlap-unit", choices=(SENTENCES, TOKENS), default=SENTENCES, help=f"what --overlap counts ({SENTENCES})")
    add(
        "--title",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="begin every chunk with its document's title on a separate line",
    )
    add("--language", default="en", metavar="CODE", help="of the documents, for finding sentences (en)")
    add(
        "--near-duplicates",
        default="0.8",
        metavar="SIMILARITY",
        help=f"drop a chunk that repeats one before it, from this Jaccard similarity on; {OFF} keeps all (0.8)",
    )
    add(
        "--on-error",
        choices=(STOP, SKIP),
        default=STOP,
        help="stop at the first file that cannot be read, or skip it and say so in OUTPUT.rejected.jsonl (stop)",
    )
    add("--workers", type=int, metavar="N", help="processes that read (by default as many as are worth their start)")


def run(arguments: argparse.Namespace) -> None:
    """Build the corpus and print a report.

    Raises:
      ClaraError: see `build_corpus`.
    """
    if arguments.workers is not None and arguments.workers < 1:
        raise ClaraError(f"--workers: {arguments.workers} must be at least 1")
    near = _near_duplicates(arguments.near_duplicates)
    chunker = Chunker(
        open_counter(arguments.tokenizer, arguments.max_tokens),
        arguments.max_tokens,
        arguments.overlap,
        arguments.overlap_unit,
        arguments.title,
        arguments.language,
    )
    report = build_corpus(
        arguments.input,
        arguments.output,
        chunker,
        near,
        arguments.on_error,
        arguments.workers,
        follow_links=arguments.follow_links,
    )
    print(report)
    if arguments.tokenizer == WORDS:
        print("Lengths are in words. Name the base model with --tokenizer, so that the model reads every chunk whole.")


def _near_duplicates(value: str) -> float | None:
    if value == OFF:
        return None
    try:
        return float(value)
    except ValueError:
        raise ClaraError(f'--near-duplicates: {value!r} must be a number from 0 to 1, or "{OFF}"') from None
