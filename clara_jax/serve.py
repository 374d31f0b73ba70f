"""Serves a store over HTTP, or a base model alone, with an OpenAI-compatible chat.

The server of a store also has sources, ranking, search, documents, metrics and a page.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.model.precision import CHOICES
from clara_jax.shipped import DEFAULT

_LAST_WORDS = 3  # seconds in which clients receive the last errors
_LAST_SECONDS = 1.0  # in which the worker ends, if it is not inside a long program
EXAMPLES = """examples:
  python -m clara_jax.serve --store stores/notes          the model inside the package
  python -m clara_jax.serve --checkpoint runs/first --store stores/first         then open http://127.0.0.1:8000
  python -m clara_jax.serve --checkpoint runs/first --store stores/first --host 0.0.0.0 --api-key-file key.txt
  python -m clara_jax.serve --text smollm2                                        an ordinary chat model

The key may also stand in the environment variable CLARA_API_KEY. Stopped by Ctrl-C or SIGTERM, the server takes no more
requests, finishes what it has begun, and tells the rest that it ends. docs/serving.md says more."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("serve", __doc__, EXAMPLES)
    add, option = parser.add_argument, command.add_option
    command.add_checkpoint_option(parser)
    option(parser, "--store", "made where there is none")
    add("--text", metavar="BASE", help="instead of both: smollm2, a Hugging Face folder or name, or a GGUF file")
    add("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    add("--port", type=int, default=8000, help="(8000); 0 takes a free one")
    add("--rows", type=int, default=16, metavar="N", help="answers that are written together (16)")
    add("--queue", type=int, default=64, metavar="N", help="requests that may wait beside them (64); more get a 429")
    add("--api-key-file", metavar="FILE", help="what clients must name, on its first line")
    add("--max-body", type=int, default=4, metavar="MIB", help="largest request (4)")
    add("--max-file", type=int, default=16, metavar="MIB", help="largest file that is sent, e.g. from the page (16)")
    add("--body-seconds", type=float, default=20, metavar="S", help="until a request has arrived (20)")
    add("--request-seconds", type=float, default=300, metavar="S", help="until it is answered (300)")
    add("--drain-seconds", type=float, default=25, metavar="S", help="for what is under way when the server ends (25)")
    option(parser, "--generator", "default: answers are written here")
    option(parser, "--generator-model", "default: the only one")
    option(parser, "--weights", "default: what is fastest and fits into memory")
    option(parser, "--base", "default: where the checkpoint says")
    option(parser, "--precision", "default: by the store, else by the processor; of a base bfloat16", choices=CHOICES)
    add("--no-warm-up", action="store_true", help="compile when the first questions come, not before")
    command.add_compile_option(parser)
    return parser


def main() -> None:
    """Run the command."""
    arguments = parser().parse_args()
    for name in ("rows", "queue", "max_body", "max_file", "body_seconds", "request_seconds", "drain_seconds"):
        if getattr(arguments, name) <= 0:
            raise ClaraError(f"--{name.replace('_', '-')}: {getattr(arguments, name)} must be above 0")
    _check_mode(arguments)
    key = _key(arguments.api_key_file)
    local = _loopback(arguments.host)
    from clara_jax.serving.guard import LOOPBACK, RequestLimits
    from clara_jax.serving.worker import Worker

    print("opening the model ...", flush=True)
    model, app, what = _base(arguments) if arguments.text is not None else _store(arguments)
    starting = None if arguments.no_warm_up else _Starting(model.warm_up)
    worker = Worker(model, arguments.queue, starting)
    limits = RequestLimits(
        key,
        LOOPBACK if local else None,
        arguments.max_body << 20,
        arguments.max_file << 20,
        arguments.body_seconds,
        arguments.request_seconds,
    )
    if not local and key is None:
        print(f"warning: anyone who reaches {arguments.host} may use all of it; give --api-key-file", flush=True)
    written = f"weights {model.engine.weights}" if arguments.generator is None else f"answers by {model.engine.server}"
    print(f"{what}, {written}, {worker.rows} rows", flush=True)
    _listen(app(worker, limits), worker, arguments, starting)


class _Starting:
    """Compile the programs of first questions in the worker's thread, and say so.

    Attributes:
      error: what ended it, if it has failed.
      failed: is called then.
    """

    def __init__(self, warm_up: Callable[[], None]):
        self.error: Exception | None = None
        self.failed: Callable[[], None] = lambda: None
        self._warm_up = warm_up

    def __call__(self) -> None:
        """Do it."""
        print("compiling, or loading what was compiled before; questions wait until then ...", flush=True)
        began = time.monotonic()
        try:
            self._warm_up()
        except Exception as error:
            self.error = error
            self.failed()
            raise
        print(f"ready after {time.monotonic() - began:.1f} s", flush=True)


def _check_mode(arguments: argparse.Namespace) -> None:
    if arguments.text is None:
        if arguments.store is None:
            raise ClaraError("--store: is missing; give one, or a base alone with --text")
        return
    for name in ("checkpoint", "store", "base", "generator", "generator_model"):
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ClaraError(f"{option}: means nothing with --text, which serves a base alone; leave one of them out")


def _store(arguments: argparse.Namespace) -> tuple[Any, Callable[..., Any], str]:
    """Open the pipeline; return it, the function that makes its application, and a description."""
    from clara_jax.inference.generator_server import GeneratorServer
    from clara_jax.rag_pipeline import RagPipeline
    from clara_jax.serving.store import store_app

    pipeline = RagPipeline.open(
        arguments.checkpoint or DEFAULT,
        arguments.store,
        create=True,
        base=arguments.base,
        precision=arguments.precision,
        batch_size=arguments.rows,
        weights=arguments.weights,
        generator=GeneratorServer.of_options(arguments.generator, arguments.generator_model),
    )
    return pipeline, store_app, f"{len(pipeline.store):,} chunks"


def _base(arguments: argparse.Namespace) -> tuple[Any, Callable[..., Any], str]:
    """Open a base model alone; return the same."""
    from clara_jax.base_lm import BaseLM
    from clara_jax.serving.text import text_app

    lm = BaseLM.open(
        arguments.text, precision=arguments.precision, batch_size=arguments.rows, weights=arguments.weights
    )
    return lm, partial(text_app, model=lm.name), lm.name


def _listen(app: Any, worker: Any, arguments: argparse.Namespace, starting: _Starting | None) -> None:
    import uvicorn

    from clara_jax.serving.app import UVICORN

    class Server(uvicorn.Server):
        """A server that stops the worker before it stops listening."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            if not worker.stopping:
                print("stopping: what is under way is finished", flush=True)
                worker.stop()
                # Clients that still wait by then get an error, and are not cut off.
                timer = threading.Timer(arguments.drain_seconds, worker.end)
                timer.daemon = True
                timer.start()
            else:
                worker.end()  # the second signal
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        **UVICORN,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=int(arguments.drain_seconds) + _LAST_WORDS,
        limit_concurrency=4 * worker.limit + 64,
        server_header=False,
    )
    server = Server(config)
    try:
        sockets = [config.bind_socket()]
    except SystemExit:
        raise ClaraError(f"--port: {arguments.host}:{arguments.port} cannot be listened at; take another") from None
    host, port = sockets[0].getsockname()[:2]
    sockets[0].listen(config.backlog)  # now, so that who reads the line may connect
    print(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)  # uvicorn handles both while it runs, and raises them again at its end
    if starting is not None:
        starting.failed = lambda: setattr(server, "should_exit", True)
        server.should_exit = starting.error is not None
    server.run(sockets)
    worker.end()
    if starting is not None and starting.error is not None:
        raise starting.error
    if not worker.join(_LAST_SECONDS):
        # The thread is inside XLA, compiling: nothing can stop it, and ending the interpreter would abort the process.
        # All clients have got their error, and a store's commits are whole or not there.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _key(path: str | None) -> str | None:
    if path is None:
        return os.environ.get("CLARA_API_KEY") or None
    try:
        key = Path(path).read_text("utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClaraError(f"--api-key-file: {path} cannot be read: {error}") from None
    if not key:
        raise ClaraError(f"--api-key-file: the first line of {path} is empty; it is the key")
    return key


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    command.run(main)
