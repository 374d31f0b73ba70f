"""The command ``clara``: every command of the package by its name, ``clara ask`` for ``python -m clara_jax.ask``."""

from __future__ import annotations

import runpy
import sys

from clara_jax import __version__, command
from clara_jax.errors import ClaraError, did_you_mean

COMMANDS = {
    "ask": "answer questions from documents, with their passages",
    "compress": "compress documents into a store",
    "serve": "a page, and an OpenAI-compatible server",
    "mcp": "the same for clients of the Model Context Protocol",
    "train": "train a model",
    "track": "send a run's metrics to W&B, MLflow or Trackio",
    "evaluate": "measure models beside their controls, and write a report",
    "data": "prepare records and corpora",
    "synthesize": "write training records about documents with a language model",
    "convert": "take checkpoints in, and export them",
    "aot": "what a run will take on TPUs, before one is rented",
}


def main() -> None:
    """Run the command that the first argument names, as if it had been started as a module.

    Raises:
      ClaraError: there is no such command.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: clara COMMAND ...\n\ncommands, each with --help:")
        print("\n".join(f"  {each:{width}}  {what}" for each, what in COMMANDS.items()))
        print(f"\nclara --version: clara_jax {__version__}; https://arxiv.org/abs/2511.18659")
    elif name == "--version":
        print(f"clara_jax {__version__}")
    elif name in COMMANDS:
        del sys.argv[1]
        command.invoked = "clara "
        runpy.run_module(f"clara_jax.{name}", run_name="__main__", alter_sys=True)
    else:
        near = did_you_mean(name, COMMANDS) or "; see clara --help"
        raise ClaraError(f"there is no command {name}{near}")


def start() -> None:
    """Run `main`, where the other commands begin with their own `command.run`."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        main()
    else:
        command.run(main, compiles=False)


if __name__ == "__main__":
    start()
