"""``python -m clara_jax.data public``: the folder of real data, from public downloads."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara_jax import command
from clara_jax.data.public.sources import BOOKS, PARTS
from clara_jax.errors import ClaraError
from clara_jax.files import file_errors, replaced_when_whole
from clara_jax.locks import locked
from clara_jax.text.counting import open_counter

if TYPE_CHECKING:
    from clara_jax.data.public.downloads import Downloads

MADE, LOCK = "public.json", ".public.lock"  # in the folder: what was made of what
MAX_TOKENS = 250  # of a document: with the compressor's frame no more than 256
POOL = ("wiki_leads", "openstax")  # parts whose passages must not repeat held-out documents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``public``."""
    parts = "\n".join(f"  {name:12} {part.what} ({part.licence})" for name, part in PARTS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Downloads public data sets, checks them, and makes the folder that configs/smollm2.py reads\n"
        "(data=DIR) and python -m clara_jax.evaluate --data DIR. Stopped or killed, the same command\n"
        f"does the rest.\n\nparts:\n{parts}"
    )
    option = command.add_option
    option(parser, "--output", "the folder", required=True, metavar="DIR")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="of the parts above; default: all that can be fetched"
    )
    parser.add_argument(
        "--files", nargs="+", default=[], metavar="PATH", help="files that you have, or folders of them: not fetched"
    )
    parser.add_argument("--downloads", metavar="DIR", help="where what is fetched is kept (OUTPUT/downloads)")
    parser.add_argument("--offline", action="store_true", help="fetch nothing: --files and --downloads have it all")
    option(parser, "--tokenizer", "smollm2", default="smollm2")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=MAX_TOKENS,
        metavar="N",
        help=f"longest document; the rest is left out ({MAX_TOKENS})",
    )
    option(parser, "--seed")


def run(arguments: argparse.Namespace) -> None:
    """Make the folder, part by part.

    Raises:
      ClaraError: an unknown part; what is needed is not there, cannot be fetched, or is not as published.
    """
    if arguments.max_tokens < 1:
        raise ClaraError(f"--max-tokens: {arguments.max_tokens} must be at least 1")
    for name in arguments.only or ():
        if name not in PARTS:
            raise ClaraError(f"--only: {name!r} must be one of {', '.join(PARTS)}{command.did_you_mean(name, PARTS)}")
    from clara_jax.data.public.downloads import Downloads, given_files

    output = Path(arguments.output)
    folder = Path(arguments.downloads) if arguments.downloads else output / "downloads"
    downloads = Downloads(folder, given_files(arguments.files), arguments.offline)
    chosen = [name for name in PARTS if name in arguments.only] if arguments.only else _obtainable(downloads)
    count = open_counter(arguments.tokenizer, arguments.max_tokens)
    options = {"tokenizer": arguments.tokenizer, "max_tokens": arguments.max_tokens, "seed": arguments.seed}

    def fits(texts: Sequence[str]) -> list[bool]:
        return [length <= arguments.max_tokens for length in count(texts)]

    with file_errors(f"{output}: cannot be written"):
        output.mkdir(parents=True, exist_ok=True)
        with locked(str(output / LOCK), f"{output}: another process is making it"):
            for name in chosen:
                _part(name, output, downloads, fits, options)
    for name in [name for name in PARTS if name not in chosen and not arguments.only]:
        (download,) = PARTS[name].downloads
        print(f"{name}: left out; fetch {download.file} by hand from {download.page}, and name it with --files")
    print(f"python -m clara_jax.train --config smollm2:size=short,data={output} --workdir runs/smollm2")


def _obtainable(downloads: Downloads) -> list[str]:
    """Return the parts whose files can be fetched, or are there."""
    return [name for name, part in PARTS.items() if all(map(downloads.obtainable, part.downloads))]


def _part(
    name: str, output: Path, downloads: Downloads, fits: Callable[[Sequence[str]], list[bool]], options: dict[str, Any]
) -> None:
    """Make a part, unless it is there, made of the same files with the same options."""
    from clara_jax.data.public import passages, questions

    part, seed = PARTS[name], options["seed"]
    facts = options | {"downloads": {one.file: one.sha256 for one in part.downloads}}
    held_out: list[str] = []
    if name in POOL:
        held_out = sorted(set(questions.held_out_documents(output)))
        facts["held_out"] = hashlib.sha256(json.dumps(held_out).encode()).hexdigest()
    made = _made(output)
    known = made.get(name, {})
    if known.get("of") == facts and all((output / file).is_file() for file in known["files"]):
        _report(name, known["files"], "there already")
        return
    files = {one.file: downloads.path(one) for one in part.downloads}
    paths, patterns = list(files.values()), [one.members for one in part.downloads]
    make: dict[str, Callable[[], dict[str, int]]] = {
        "squad": lambda: questions.squad(paths[0], paths[1], output, fits, seed),
        "nq": lambda: questions.natural_questions(paths[0], output, fits, seed),
        "boolq": lambda: questions.boolq(paths[0], output, fits),
        "fairytaleqa": lambda: questions.fairytaleqa(paths[0], patterns[0], output, fits),
        "wikisplit": lambda: passages.wiki_split(paths[:-1], paths[-1:], output),
        **{
            one: partial(questions.multi_hop, one, paths[0], output, fits, seed)
            for one in ("hotpotqa", "2wiki", "musique")
        },
        "wiki_leads": lambda: passages.wiki_leads(paths[0], patterns[0], output, passages.HeldOut(held_out)),
        "openstax": lambda: passages.openstax(
            zip(BOOKS, paths, strict=True), downloads.path, output, passages.HeldOut(held_out)
        ),
    }
    written = make[name]()
    with replaced_when_whole(output / MADE) as temporary:
        content = made | {name: {"of": facts, "files": written, "licence": part.licence}}
        temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    _report(name, written, "made")


def _made(output: Path) -> dict[str, Any]:
    """Return what was made before, by part."""
    from clara_jax.formats.json_file import read_object

    return read_object(output / MADE, "remove it") if (output / MADE).is_file() else {}


def _report(name: str, files: dict[str, int], done: str) -> None:
    print(f"{name}: {done}: {sum(files.values()):,} lines in {len(files)} file(s)", flush=True)
