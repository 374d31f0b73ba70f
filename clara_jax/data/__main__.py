"""Prepare data: import, chunk, build, measure and show it.

    python -m clara_jax.data import squad --input train-v1.1.json --output records.jsonl
    python -m clara_jax.data corpus --input folder/ --output corpus.jsonl
    python -m clara_jax.data passages corpus.jsonl --output windows.jsonl --tokens 64
    python -m clara_jax.data build end_to_end --train records.jsonl --output data/built
    python -m clara_jax.data stats end_to_end --train records.jsonl --eval dev.jsonl
    python -m clara_jax.data inspect end_to_end records.jsonl --number 3

Each has a --help.
"""

from __future__ import annotations

from clara_jax import command
from clara_jax.data import inspection, windows_command
from clara_jax.data.builders import command as builders
from clara_jax.data.corpus import command as corpus
from clara_jax.data.importers import command as importers

COMMANDS = {
    "import": (importers.add_arguments, importers.run, "published data sets to records"),
    "corpus": (corpus.add_arguments, corpus.run, "folders of documents to passages"),
    "passages": (windows_command.add_arguments, windows_command.run, "windows of passages, for stages from text alone"),
    "build": (builders.add_arguments, builders.run, "records or passages to a data set"),
    "stats": (builders.add_statistics_arguments, builders.run_statistics, "lengths, duplicates, leaks"),
    "inspect": (inspection.add_arguments, inspection.run, "a record as the model sees it"),
}


def main() -> None:
    """Run the command line."""
    parser = command.make_parser("data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, run, description) in COMMANDS.items():
        subparser = commands.add_parser(name, help=description, description=description)
        add_arguments(subparser)
        subparser.set_defaults(run=run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":  # worker processes import this module again
    command.run(main, compiles=False)
