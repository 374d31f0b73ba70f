"""Exports models to PEFT adapters, the released CLaRa format, a merged model or a compact copy, and imports them.

A compact copy holds the trained parameters alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.model.precision import CHOICES

EXAMPLES = """examples:
  python -m clara_jax.convert export --checkpoint runs/first --format peft --output exports/peft
  python -m clara_jax.convert export --checkpoint runs/first --format released --output exports/clara
  python -m clara_jax.convert export --checkpoint runs/first --format merged --output exports/generator
  python -m clara_jax.convert export --checkpoint runs/first --format compact --dtype int8 --output models/first
  python -m clara_jax.convert import --source CLaRa-7B-E2E/compression-16 --output runs/e2e --base path/to/base

What is written is read back and compared before it gets its name. How other programs open it: docs/converting.md."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("convert", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a model for other programs")
    add = export.add_argument
    command.add_option(export, "--checkpoint", required=True)
    add("--format", required=True, choices=("peft", "released", "merged", "compact"))
    add("--role", help="of a merged model: compressor, query_reasoner or generator (generator)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        help="of what is written (float32; merged: as trained; compact: bfloat16). int8 is for compact",
    )
    add("--base-name", metavar="NAME", help="what the files say of where the base lies (default: where it was found)")
    imported = commands.add_parser("import", help="make a checkpoint of what other programs wrote")
    imported.add_argument("--source", required=True, metavar="DIR", help="a released checkpoint, or PEFT folders")
    for one in (export, imported):
        command.add_option(one, "--output", "a folder that is not there yet", required=True, metavar="DIR")
        command.add_option(one, "--base", "default: where the checkpoint says")
        command.add_option(one, "--precision", "default: as trained", choices=CHOICES)
        command.add_compile_option(one)
    return parser


def main() -> None:
    """Run the command."""
    arguments = parser().parse_args()
    if arguments.command == "export":
        _check(arguments)
    from clara_jax.checkpoints import exporting, opening
    from clara_jax.model.sharding import make_mesh

    output = Path(arguments.output)
    if output.exists():  # refused before anything large is read
        raise ClaraError(f"{output}: is there already; name another folder or remove it")
    source = arguments.checkpoint if arguments.command == "export" else arguments.source
    bundle = opening.load(source, make_mesh(), arguments.base, arguments.precision)
    if arguments.command == "import":
        bundle.save(output, "import")
        print(f"{output}: a checkpoint; python -m clara_jax.ask --checkpoint {output} ... opens it")
        return
    if arguments.format == "merged":
        exporting.export_merged(bundle, output, arguments.role or "generator", arguments.dtype)
    elif arguments.format == "compact":
        exporting.export_compact(bundle, output, arguments.dtype or "bfloat16")
    else:
        export = exporting.export_peft if arguments.format == "peft" else exporting.export_released
        export(bundle, output, arguments.dtype or "float32", arguments.base_name)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {arguments.format}, {size / 2**20:,.1f} MiB, read back and compared")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.role and arguments.format != "merged":
        raise ClaraError(f"--role: {arguments.format} holds all roles; only --format merged has one")
    if arguments.base_name and arguments.format == "merged":
        raise ClaraError("--base-name: a merged model needs no base")
    if arguments.base_name and arguments.format == "compact":
        raise ClaraError("--base-name: a compact copy names the base by which it was made")
    if arguments.dtype == "int8" and arguments.format != "compact":
        raise ClaraError("--dtype: int8 is for --format compact; other programs would not know the scales")


if __name__ == "__main__":
    command.run(main)
