"""Serves a store to clients of the Model Context Protocol, over standard input and output."""

from __future__ import annotations

import argparse
import sys

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.model.precision import CHOICES
from clara_jax.shipped import DEFAULT

EXAMPLES = """examples:
  python -m clara_jax.mcp --store stores/notes                   what a client starts, with the model inside the package
  python -m clara_jax.mcp --checkpoint runs/first --store stores/first

A client's settings name the program and its arguments, the store by its whole path, since a client starts it anywhere:
"command": "clara", "args": ["mcp", "--store", "/home/me/notes-store"]. docs/integrations.md says more."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("mcp", __doc__, EXAMPLES)
    option = command.add_option
    command.add_checkpoint_option(parser, DEFAULT)
    option(parser, "--store", "made where there is none")
    option(parser, "--base", "default: where the checkpoint says")
    option(parser, "--weights", "default: what is fastest and fits into memory")
    option(parser, "--precision", "default: by the store, else by the processor", choices=CHOICES)
    option(parser, "--generator", "default: answers are written here")
    option(parser, "--generator-model", "default: the only one")
    command.add_compile_option(parser)
    return parser


def main() -> None:
    """Run the command."""
    arguments = parser().parse_args()
    if arguments.store is None:
        raise ClaraError("--store: is missing; name a directory, which is made where there is none")
    from clara_jax.inference.generator_server import GeneratorServer
    from clara_jax.integrations.mcp_server import make_server
    from clara_jax.rag_pipeline import RagPipeline

    pipeline = RagPipeline.open(
        arguments.checkpoint,
        arguments.store,
        create=True,
        base=arguments.base,
        precision=arguments.precision,
        weights=arguments.weights,
        rows=1,
        generator=GeneratorServer.of_options(arguments.generator, arguments.generator_model),
    )
    print(f"{len(pipeline.store):,} chunks; waiting for a client on standard input", file=sys.stderr, flush=True)
    make_server(pipeline).run("stdio")


if __name__ == "__main__":
    command.run(main)
