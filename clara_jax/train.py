"""Train CLaRa: the stages a configuration names, in order.

    python -m clara_jax.train --config configs/smollm2.py:size=tiny --workdir runs/first

The overrides of fields look like --config.scp.optimizer.learning_rate=3e-4 --config.mesh=4,2 --config.seed=1. A run
that was stopped or killed goes on with the same command, or with --workdir DIR alone; SIGTERM and Ctrl-C save first.
Processes that train together may also be named in the environment, as CLARA_COORDINATOR, CLARA_PROCESSES and
CLARA_PROCESS; on Cloud TPU, GKE and under Slurm they are found. A checkpoint, or the whole run directory, opens with
clara_jax.Clara.load(DIR).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clara_jax import command, huge_pages
from clara_jax.arguments import parse
from clara_jax.errors import ClaraError

if TYPE_CHECKING:
    from clara_jax.training.config import RunConfig
    from clara_jax.training.loop import RunResult


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, but for the configuration."""
    parser = command.make_parser("train", __doc__)
    contents = "config.json, run.json, metrics.jsonl, tensorboard/, curves.png, checkpoints/"
    command.add_option(parser, "--workdir", f"{contents}; default: runs/<date>-<time>")
    command.add_process_options(parser)
    command.add_compile_option(parser)
    return parser


def main() -> None:
    """Run the command."""
    arguments = parse(parser(), sys.argv)
    # After the help, which should not wait for these.
    from clara_jax import configs, distributed
    from clara_jax.formats.json_file import read_object
    from clara_jax.training.config_parsing import from_json, resolve
    from clara_jax.training.loop import WORLD, run
    from clara_jax.training.resume import CONFIG
    from clara_jax.training.stopping import Stopped, StoppedAtOnce, StopSignal

    config, workdir = arguments.config, arguments.workdir
    if config is None and not workdir:
        raise ClaraError(f"--config is missing; {configs.choice()}")
    distributed.initialise(arguments.coordinator, arguments.processes, arguments.process)
    logging.getLogger("absl").setLevel(logging.WARNING)
    if config is None:
        config = from_json(read_object(Path(workdir) / CONFIG, "name a configuration with --config"))
    else:
        config = resolve(config)
    workdir = workdir or config.workdir or distributed.on_main(time.strftime, "runs/%Y%m%d-%H%M%S")
    if "://" in workdir:
        raise ClaraError(
            f"--workdir: {workdir} is no directory; mount the bucket and name where it is mounted, see docs/pods.md"
        )
    directory = Path(workdir)
    with StopSignal().listening() as stop:
        try:
            result = run(config, directory, stop)
        except StoppedAtOnce as stopped:
            print(stopped, flush=True)
            if distributed.several():
                distributed.leave(0)
            return
        except Stopped as stopped:
            distributed.say(str(stopped))
            return
    if result is None:
        distributed.say(
            f"{directory}: this run is finished, nothing to do; open it with clara_jax.Clara.load({str(directory)!r})"
        )
        return
    _show(result, config)
    distributed.say(
        f"finished: {len(config.stages)} stage(s), fingerprint {result.bundle.fingerprint()[:12]}; open with "
        f"clara_jax.Clara.load({str(directory)!r})"
    )
    if (world := directory / WORLD).is_dir():
        files = f"--documents {world / 'documents.jsonl'} --questions {world / 'questions.jsonl'}"
        distributed.say(f"ask it what it has never seen: python -m clara_jax.ask --checkpoint {directory} {files}")


def _show(result: RunResult, config: RunConfig) -> None:
    """Print questions of held-out records, the model's answers, and the documents that were read for them."""
    from clara_jax.api import Clara
    from clara_jax.distributed import say
    from clara_jax.input_pipeline.encoding import TEXT

    stage = config.stages[-1]
    asked = [record for record in result.held_out if record.kind == "question"][: config.reporting.show]
    if not asked or stage.data.documents == TEXT:
        return
    topk = stage.topk
    documents = [record.documents[: topk.candidates if stage.ranks else topk.k] for record in asked]
    questions = [record.questions[0] for record in asked]
    answers = Clara(result.bundle).answer(
        questions, documents, k=topk.k if stage.ranks else None, max_new_tokens=stage.evaluation.answer_tokens
    )
    for record, answer in zip(asked, answers, strict=True):
        reference = f"   (reference: {record.gold_answers[0]})" if record.gold_answers else ""
        say(f"\nQuestion: {record.questions[0]}\nAnswer:   {answer.text}{reference}")
        for source in answer.sources:
            gold = " (gold)" if int(source.id.partition("#")[0]) in record.positives else ""
            score = "" if source.score is None else f", score {source.score:+.3f}"
            say(f"  source {source.rank}{score}{gold}: {source.text}")
    say("")


if __name__ == "__main__":
    huge_pages.start_again()
    command.run(main)
