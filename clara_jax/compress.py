"""Compresses a corpus into a store, once; questions are then asked with python -m clara_jax.ask."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clara_jax import command, huge_pages
from clara_jax.errors import ClaraError
from clara_jax.model.precision import CHOICES
from clara_jax.retrieval.encodings import DEFAULT_ENCODING, ENCODINGS
from clara_jax.shipped import DEFAULT

if TYPE_CHECKING:
    from clara_jax.rag_pipeline import RagPipeline
    from clara_jax.retrieval.indexing import IndexReport
    from clara_jax.retrieval.read_report import ReadReport
    from clara_jax.retrieval.shards import Shard

EXAMPLES = """examples:
  python -m clara_jax.compress --store stores/notes --corpus notes/               the model inside the package
  python -m clara_jax.compress --checkpoint runs/first --store stores/first --corpus notes/ papers/*.pdf
  python -m clara_jax.compress --checkpoint runs/first --store stores/first --corpus corpus.jsonl.zst --index
  python -m clara_jax.compress --store stores/notes --corpus notes/ --sync        and forget what is no longer there
  python -m clara_jax.compress --store stores/first --list --stats
  python -m clara_jax.compress --store stores/first --delete old.md
  python -m clara_jax.compress --store stores/first --verify --compact
  python -m clara_jax.compress --store stores/large --corpus corpus/ --shard 3 --shards 16     one of 16 workers
  python -m clara_jax.compress --store stores/large --publish                                  when all have finished
  python -m clara_jax.compress --store stores/large --corpus corpus/ --ray local --shards 16   both, on a Ray cluster

A document is known by its id: the path below the folder that was named, or a JSONL line's "id". Given again, it is
replaced; chunks that are as they were are not compressed again. Stopped or killed, the same command does the rest.
What cannot be read is left out, and listed at the end with the reason; what it was before stays in the store.

With --shards, workers that know nothing of each other compress the documents whose ids fall to them; nobody sees any of
it until --publish puts all of it into the store, in one commit."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("compress", __doc__, EXAMPLES)
    add, option = parser.add_argument, command.add_option
    option(parser, "--store", "made where there is none", required=True)
    command.add_checkpoint_option(parser, DEFAULT)
    add(
        "--corpus",
        nargs="+",
        metavar="PATH",
        help="folders and files of .txt, .md, .html, .pdf, .docx, .pptx, .epub, .csv, .tsv and .jsonl, a corpus of "
        "python -m clara_jax.data corpus, or the directory of a data set that was built of one",
    )
    option(parser, "--follow-links")
    option(parser, "--strict")
    add("--sync", action="store_true", help="delete documents that are gone from the folders of --corpus")
    add("--shard", type=int, metavar="I", help="compress this part of --corpus alone, beside the store (from 0)")
    add("--shards", type=int, metavar="N", help="into how many parts --corpus is divided")
    add(
        "--ray",
        metavar="ADDRESS",
        help="compress all shards by the workers of a Ray cluster (local: one of this machine), and publish",
    )
    add("--resources", nargs="+", metavar="NAME=N", help="of each worker of --ray, e.g. TPU=4 (default: CPU=1)")
    add("--publish", action="store_true", help="put what the workers of all shards have compressed into the store")
    add("--discard", action="store_true", help="forget what workers of shards have compressed")
    add("--delete", nargs="+", metavar="ID", help="take documents out of the store")
    add("--list", action="store_true", help="print the documents of the store")
    add("--stats", action="store_true", help="print what the store holds, as JSON")
    add("--verify", action="store_true", help="read all of the store, and name the chunks that are damaged")
    add("--compact", action="store_true", help="join the store's small files and remove what only old versions need")
    add("--index", action="store_true", help="make search vectors anew, for stores too large for the devices")
    add("--encoding", choices=ENCODINGS, help=f"of memories in a new store ({DEFAULT_ENCODING})")
    option(parser, "--compress-rate", "where the model was trained for several")
    command.add_renamed_option(parser, "--rate", "--compress-rate", type=int)
    option(parser, "--memory-count", "default: as the store has it, else as the model was trained")
    option(parser, "--batch-size", "32", default=32)
    option(parser, "--base", "default: where the checkpoint says")
    option(parser, "--precision", "default: by the store, else by the processor", choices=CHOICES)
    command.add_process_options(parser)
    command.add_compile_option(parser)
    return parser


def main() -> None:
    """Run the command."""
    arguments = parser().parse_args()
    work = ("corpus", "publish", "discard", "delete", "verify", "compact", "index", "list", "stats")
    if not any(getattr(arguments, name) for name in work):
        options = [f"--{name}" for name in work]
        raise ClaraError(f"nothing to do: give {', '.join(options[:-1])} or {options[-1]}; see --help")
    if arguments.sync and not arguments.corpus:
        raise ClaraError("--sync: give the folders with --corpus")
    shard = _shard(arguments)
    from clara_jax import distributed
    from clara_jax.retrieval.document_store import DocumentStore

    distributed.initialise(arguments.coordinator, arguments.processes, arguments.process)
    if arguments.delete:
        gone = distributed.on_main(lambda: DocumentStore.open(arguments.store).delete(arguments.delete))
        distributed.say(f"{arguments.store}: {gone} of {len(arguments.delete)} documents deleted")
    if arguments.discard:
        distributed.on_main(_discard, arguments.store)
    if shard:
        _stage(arguments, shard)
    if arguments.ray:
        _on_ray(arguments)
    if arguments.publish:
        distributed.on_main(_publish, arguments.store)
    if not arguments.shards and (arguments.corpus or arguments.index):
        _compress(arguments)
    if arguments.verify:
        distributed.on_main(_verify, arguments.store)
    if arguments.compact:
        distributed.on_main(lambda: DocumentStore.open(arguments.store).tidy(now=True))
        distributed.say(f"{arguments.store}: compacted")
    if arguments.list:
        distributed.on_main(_list, arguments.store)
    if arguments.stats:
        distributed.on_main(lambda: print(json.dumps(DocumentStore.open(arguments.store).stats(), indent=2)))


def _shard(arguments: argparse.Namespace) -> Shard | None:
    """Return the shard that this process is to compress, None where it is all of the corpus, or --ray does it."""
    if arguments.resources and not arguments.ray:
        raise ClaraError("--resources: are of the workers of --ray")
    if arguments.shard is arguments.shards is arguments.ray is None:
        return None
    if not arguments.shards or not arguments.corpus or (arguments.shard is None) == (arguments.ray is None):
        raise ClaraError("--corpus and --shards N go together with --shard I, or with --ray ADDRESS")
    for option in ("sync", "publish", "delete", "index", "compact"):
        if getattr(arguments, option):
            raise ClaraError(f"--{option}: not together with --shards; give it when all shards are published")
    if arguments.discard and arguments.ray is None:
        raise ClaraError(
            "--discard: not together with --shard: other workers' parts would go, too; give it alone before"
        )
    from clara_jax.retrieval.shards import Shard

    return None if arguments.ray else Shard(arguments.shard, arguments.shards)


def _resources(given: Sequence[str]) -> dict[str, float]:
    """Return the amounts of resources by their names."""
    found = {}
    for one in given:
        name, _, amount = one.partition("=")
        if not re.fullmatch(r"\d+(\.\d+)?", amount) or not name or not float(amount):
            raise ClaraError(f"--resources: {one!r} must be a name and a positive number, e.g. TPU=4")
        found[name] = float(amount)
    return found


def _on_ray(arguments: argparse.Namespace) -> None:
    resources = _resources(arguments.resources or ["CPU=1"])
    from clara_jax.integrations import ray_tasks
    from clara_jax.retrieval.shards import Shard

    Shard(0, arguments.shards)  # there is one at least
    model = {
        name: ray_tasks.absolute(value) if isinstance(value, str) else value
        for name, value in _model(arguments).items()
    }
    corpus = [ray_tasks.absolute(given) for given in arguments.corpus]
    if "://" not in arguments.store:
        model["store"] = os.path.abspath(os.path.expanduser(arguments.store))  # it need not be there yet
    counts, report = ray_tasks.compress(
        arguments.ray, arguments.shards, resources, model, corpus, arguments.follow_links, arguments.strict
    )
    print(f"{arguments.store}: compressed {_counts(counts)}", report.table(), sep="\n", flush=True)
    _publish(arguments.store)


def _publish(location: str) -> None:
    from clara_jax.retrieval.document_store import DocumentStore
    from clara_jax.retrieval.publishing import publish

    report = publish(DocumentStore.open(location))
    print(f"{location}: published {_counts(report)}", flush=True)


def _discard(location: str) -> None:
    from clara_jax.retrieval.document_store import DocumentStore
    from clara_jax.retrieval.publishing import discard

    print(f"{location}: {discard(DocumentStore.open(location)):,} parts forgotten", flush=True)


def _counts(report: IndexReport) -> str:
    return (
        f"{report.documents:,} documents, {report.compressed:,} chunks compressed, {report.unchanged:,} unchanged, "
        f"{report.removed:,} removed"
    )


def _list(location: str) -> None:
    from clara_jax.retrieval.document_store import DocumentStore

    store = DocumentStore.open(location)
    print(f"{'chunks':>7}  {'tokens':>9}  {'bytes':>11}  {'type':<8}  {'modified':<20}  document")
    for one in store.documents()[0]:
        size = one.chunks * store.encoding.size  # of its memories
        print(f"{one.chunks:>7}  {one.tokens:>9}  {size:>11,}  {one.type:<8}  {one.modified:<20}  {one.id}")


def _verify(location: str) -> None:
    from tqdm import tqdm

    from clara_jax.retrieval.document_store import DocumentStore
    from clara_jax.retrieval.verifying import damaged_chunks

    store = DocumentStore.open(location)
    with store.reading(), tqdm(total=len(store), unit=" chunks", desc="verifying") as bar:
        count, damaged = len(store), damaged_chunks(store, bar.update)
    if damaged:
        shown = ", ".join(map(repr, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        raise ClaraError(
            f"{location}: {len(damaged):,} of {count:,} chunks are damaged: {shown}; delete their documents (--delete) "
            "and add them again"
        )
    print(f"{location}: {count:,} chunks are as they were written", flush=True)


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `RagPipeline.open`."""
    return dict(
        checkpoint=arguments.checkpoint,
        store=arguments.store,
        create=bool(arguments.corpus),
        encoding=arguments.encoding,
        base=arguments.base,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        rate=arguments.compress_rate,
        memory_count=arguments.memory_count,
    )


def _open(arguments: argparse.Namespace) -> RagPipeline:
    from clara_jax.rag_pipeline import RagPipeline

    return RagPipeline.open(**_model(arguments))


def _stage(arguments: argparse.Namespace, shard: Shard) -> None:
    from clara_jax import distributed

    report = _add(_open(arguments), arguments, shard)
    distributed.say(report.table())


def _compress(arguments: argparse.Namespace) -> None:
    from clara_jax import distributed
    from clara_jax.retrieval.syncing import folders

    scopes = folders(arguments.corpus) if arguments.sync else []
    pipeline = _open(arguments)
    if arguments.corpus:
        report = _add(pipeline, arguments)
        if arguments.sync:
            distributed.on_main(_sync, pipeline, scopes, report)
        distributed.say(report.table())
    distributed.on_main(pipeline.finish, arguments.index or None)


def _add(pipeline: RagPipeline, arguments: argparse.Namespace, shard: Shard | None = None) -> ReadReport:
    """Read the corpus once, so that a mistake costs no time and the work is known; then read and compress it.

    Of a shard, its documents alone are read; there may be none.
    """
    from tqdm import tqdm

    from clara_jax import distributed
    from clara_jax.retrieval.documents import every
    from clara_jax.retrieval.read_report import ReadReport
    from clara_jax.retrieval.shards import Shard

    given = arguments.corpus, arguments.follow_links

    def read() -> list:
        report, chunks = ReadReport(arguments.strict), 0
        with tqdm(unit=" documents", desc="reading") as bar:
            wanted = Shard(shard.index, shard.count).holds if shard else every  # of this reading alone
            for document in pipeline.read(*given, report, wanted):
                chunks += len(document.chunks)
                bar.set_postfix_str(f"file {report.at:,} of {report.found:,}", refresh=False)
                bar.update()
        try:
            if not shard:
                report.check_any()
        except ClaraError:
            print(report.table(), flush=True)
            raise
        return [chunks, report.skipped]

    total, skipped = distributed.on_main(read)
    # Several processes need the same documents: what only one of them cannot read is an error there.
    report = ReadReport(arguments.strict or distributed.several(), skipped)
    with tqdm(
        total=total, unit=" chunks", desc="compressing", disable=not distributed.is_main(), smoothing=0.05
    ) as bar:

        def done(part: IndexReport) -> None:
            bar.update(part.compressed + part.unchanged)

        documents = pipeline.read(*given, report, shard.holds if shard else every)
        indexed = pipeline.stage(documents, shard, done) if shard else pipeline.add(documents, done)
    distributed.say(f"{arguments.store}: {f'{shard}: ' if shard else ''}{_counts(indexed)}")
    return report


def _sync(pipeline: RagPipeline, scopes: list[str], report: ReadReport) -> None:
    from clara_jax.retrieval.syncing import gone

    ids = gone(pipeline.store, scopes, report)
    pipeline.delete(ids)
    print(f"gone from the folder: {len(ids):,} documents removed", *(f"  {name}" for name in ids), sep="\n", flush=True)


if __name__ == "__main__":
    huge_pages.start_again()
    command.run(main)
