"""Prepare data: import, chunk, build, measure and show it.

    python -m clara_jax.data import squad --input train-v1.1.json --output records.jsonl
    python -m clara_jax.data corpus --input folder/ --output corpus.jsonl
    python -m clara_jax.data passages corpus.jsonl --output windows.jsonl --tokens 64
    python -m clara_jax.data documents records.jsonl --output passages.jsonl
    python -m clara_jax.data build end_to_end --train records.jsonl --output data/built
    python -m clara_jax.data stats end_to_end --train records.jsonl --eval dev.jsonl
    python -m clara_jax.data inspect end_to_end records.jsonl --number 3
    python -m clara_jax.data public --output data/public

Each has a --help.
"""

from __future__ import annotations

import importlib
import sys

from clara_jax import command

# Of each: the module of its arguments and its work, which is imported when it is called, the names of both functions
# there, and what it does.
COMMANDS = {
    "import": ("importers.command", "add_arguments", "run", "published data sets to records"),
    "corpus": ("corpus.command", "add_arguments", "run", "folders of documents to passages"),
    "passages": ("windows_command", "add_arguments", "run", "windows of passages, for stages from text alone"),
    "documents": ("documents_command", "add_arguments", "run", "the documents of records to passages"),
    "build": ("build_command", "add_arguments", "run", "records or passages to a data set"),
    "stats": ("build_command", "add_statistics_arguments", "run_statistics", "lengths, duplicates, leaks"),
    "public": ("public.command", "add_arguments", "run", "the folder of real data, from public downloads"),
    "inspect": ("inspect_command", "add_arguments", "run", "a record as the model sees it"),
}


def main() -> None:
    """Run the command line."""
    parser = command.make_parser("data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, add_arguments, run, description) in COMMANDS.items():
        subparser = commands.add_parser(name, help=description, description=description)
        if sys.argv[1:2] == [name]:
            chosen = importlib.import_module(f"clara_jax.data.{module}")
            getattr(chosen, add_arguments)(subparser)
            subparser.set_defaults(run=getattr(chosen, run))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":  # worker processes import this module again
    command.run(main, compiles=False)
