"""Sends a training run's metrics to Weights & Biases, MLflow or Trackio: once, or as long as it trains.

What was sent is not sent again, neither by a second call nor where training repeats steps after a crash.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from clara_jax import command
from clara_jax.errors import ClaraError

EXAMPLES = """examples:
  python -m clara_jax.track runs/first --to wandb --project clara
  python -m clara_jax.track runs/first --to mlflow --project clara --follow       until the run is finished, or Ctrl-C
  WANDB_MODE=offline python -m clara_jax.track runs/first --to wandb --project clara

Keys and addresses are the trackers': WANDB_API_KEY, WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SERVER_URL, TRACKIO_DIR.
docs/training.md says more."""
_LONGEST = 86_400.0  # seconds between two looks


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("track", __doc__, EXAMPLES)
    add = parser.add_argument
    add("workdir", metavar="DIR", help="the run directory")
    add("--to", required=True, choices=("wandb", "mlflow", "trackio"), help="the tracker")
    add("--project", default="clara", metavar="NAME", help="project there, an experiment of MLflow (clara)")
    add("--name", metavar="NAME", help="of the run there (default: the directory's)")
    add("--follow", action="store_true", help="go on until the run is finished")
    add("--every", type=float, default=10.0, metavar="S", help="with --follow: seconds between two looks (10)")
    return parser


def main() -> None:
    """Run the command."""
    arguments = parser().parse_args()
    if not 0 < arguments.every <= _LONGEST:
        raise ClaraError(f"--every: {arguments.every:g} must be above 0, and at most {_LONGEST:g}")
    from clara_jax.training.trackers import MetricExport

    stop = threading.Event()

    def end(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)  # a second one does not wait for the tracker

    for kind in (signal.SIGINT, signal.SIGTERM) if arguments.follow else ():
        signal.signal(kind, end)
    with MetricExport(Path(arguments.workdir), arguments.to, arguments.project, arguments.name) as export:
        while True:
            last = export.finished  # before the rows are read: nothing comes after them then
            if (count := export.update()) and arguments.follow:
                print(f"{count:,} rows sent, {export.sent:,} in all", flush=True)
            if last or not arguments.follow or stop.wait(arguments.every):
                break
    state = "finished" if last else "not finished; the same command sends what comes"
    print(f"{arguments.workdir} to {arguments.to}: {export.sent:,} new rows; the run is {state}", flush=True)


if __name__ == "__main__":
    command.run(main, compiles=False)
