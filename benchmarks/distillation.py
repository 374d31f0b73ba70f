"""Measure whether a teacher that reads the text helps: L_CE + w KL(teacher || student) beside L_CE alone.

    python -m benchmarks.distillation --teacher runs/text --data DIR [--start smollm2-clara] [--length 64]
        [--steps 60] [--kl-weights 0 1] [--output FILE]

The student answers questions from memories (a section of `configs/smollm2.py`, questions alone); the teacher is the
generator of a run with documents=text and answers the same questions with the documents in its prompt. It is frozen.
The divergence is over the whole vocabulary at every token of the right answer, a mean over records as L_CE is. All
weights start from one checkpoint, and read the same batches in the same order. The table has held-out loss, exact match
and F1 of each, the paired difference of F1 to the first, with 95% intervals, and the teacher's with text.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Float32
from tqdm import tqdm

from clara_jax import command
from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.configs import smollm2
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import Batch, PromptBatch, collate
from clara_jax.input_pipeline.buckets import levels, shape_ladder
from clara_jax.input_pipeline.encoding import TEXT, sizes_of
from clara_jax.method.clara import ClaraModel
from clara_jax.method.cross_entropy import language_model_loss
from clara_jax.method.generator import label_weights, target_states
from clara_jax.method.parameters import flatten, merge, split
from clara_jax.method.stages import encode_documents
from clara_jax.metrics.answers import exact_match, token_f1
from clara_jax.metrics.bootstrap import Bootstrap
from clara_jax.model.sharding import make_mesh, put_rows
from clara_jax.training.config import RunConfig
from clara_jax.training.config_parsing import resolve
from clara_jax.training.evaluate import Evaluation
from clara_jax.training.optimizer import make_optimizer
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stage_data import StageBatches, StageData, StageRecords
from clara_jax.training.stopping import StopSignal

TEACHER = "teacher"  # the adapter's name beside those of the three roles
RATE = 4  # of the sections
LADDER = 4  # shapes of the teacher's prompts


@flax.struct.dataclass
class TaughtBatch(Batch):
    """A batch with the teacher's prompts.

    Attributes:
      teacher: those of the same questions, with their documents as text; targets end where the student's do.
    """

    teacher: PromptBatch


def divergence(
    model: ClaraModel, params: Any, taught: Float[jax.Array, "B A E"], states: Float[jax.Array, "B A E"]
) -> Float32[jax.Array, "B A"]:
    """Return KL(teacher || student) of the next token, over the vocabulary and the added tokens; float32 [B, A].

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters, of whose head both make use.
      taught: the teacher's last-layer states, which get no gradient.
      states: the student's.
    """

    def log_probabilities(states: jax.Array) -> list[jax.Array]:
        # The vocabulary may be split over devices, the added tokens are not: they stay two arrays.
        parts = [part for part in model.logits(params, states) if part is not None]
        total = jax.nn.logsumexp(jnp.stack([jax.nn.logsumexp(part, axis=-1) for part in parts]), axis=0)
        return [part - total[..., None] for part in parts]

    teacher, student = log_probabilities(jax.lax.stop_gradient(taught)), log_probabilities(states)
    each = [jnp.sum(jnp.exp(t) * (t - s), axis=-1) for t, s in zip(teacher, student, strict=True)]
    return sum(each[1:], each[0])


def taught_loss(model: ClaraModel, params: Any, batch: TaughtBatch, weight: float) -> tuple[jax.Array, jax.Array]:
    """Return L_CE + w KL and L_CE, means over records of means over their labels."""
    documents = encode_documents(model, params, batch.documents)  # pyright: ignore[reportArgumentType] - are texts
    states = target_states(model, params, batch.prompt, documents.memory)
    weights = label_weights(batch.prompt)
    ce, _ = language_model_loss(model, params, states, batch.prompt.labels, weights)
    loss = ce
    if weight:
        shared = min(batch.prompt.labels.shape[1], batch.teacher.labels.shape[1])  # labels end together
        taught = _read_text(model, params, batch.teacher)
        found = divergence(model, params, taught[:, -shared:], states[:, -shared:])
        loss = ce + weight * jnp.sum(found * weights[:, -shared:])
    records = jnp.maximum(jnp.sum(weights), 1)
    return loss / records, ce / records


def _read_text(model: ClaraModel, params: Any, prompt: PromptBatch) -> jax.Array:
    """Return the teacher's states that predict the targets, [B, A, E]."""
    return target_states(model, {**params, "lora": {"generator": params["lora"][TEACHER]}}, prompt, None)


def train(
    bundle: Bundle, stage: StageConfig, batches: Iterator[TaughtBatch], steps: int, weight: float, frozen: Any
) -> dict[str, jax.Array]:
    """Train from the bundle's parameters, and return what was trained, by path.

    Args:
      bundle: the start.
      stage: gives optimizer and trained subtrees.
      batches: at least ``steps``, in host arrays.
      steps: their number.
      weight: w.
      frozen: all other parameters, the teacher's adapter among them.
    """
    trained, _ = split(bundle.params, stage.subtrees)
    optimizer = make_optimizer(stage.optimizer, steps)
    moments = optimizer.init(trained)

    def loss(trained: Any, batch: TaughtBatch) -> tuple[jax.Array, jax.Array]:
        return taught_loss(bundle.model, merge(trained, frozen), batch, weight)

    @jax.jit
    def step(trained: Any, moments: Any, batch: TaughtBatch) -> tuple[Any, Any, jax.Array]:
        (_, ce), gradients = jax.value_and_grad(loss, has_aux=True)(trained, batch)
        updates, moments = optimizer.update(gradients, moments, trained)
        return optax.apply_updates(trained, updates), moments, ce

    with tqdm(total=steps, desc=f"weight {weight:g}", unit=" steps") as bar:
        for _, batch in zip(range(steps), batches, strict=False):
            trained, moments, ce = step(trained, moments, put_rows(batch, bundle.mesh))
            bar.set_postfix(ce=f"{float(ce):.3f}")
            bar.update()
    return trained


def taught_batches(memory: StageBatches, text: StageData, bundle: Bundle, steps: int) -> Iterator[TaughtBatch]:
    """Yield the batches of a stage, each with the teacher's prompts for its questions."""
    ladder = shape_ladder(text.sizes, bundle.tokenizer, LADDER)
    for step in range(steps):
        batch = memory.loader.batch(step)
        read = [text.examples[example.index] for example in memory.loader.examples(step)]
        shapes = ladder[int(levels(sizes_of(read), ladder).max())]
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        yield TaughtBatch(**fields, teacher=collate(read, shapes, bundle.tokenizer).prompt)


def config_of(arguments: argparse.Namespace) -> RunConfig:
    """Return the run whose only stage is the section of the curriculum, with questions alone.

    Raises:
      ClaraError: the curriculum has no section of this length.
    """
    lengths = sorted({length for length, rate, _ in smollm2.READ["full"] if rate == RATE})
    if arguments.length not in lengths:
        raise ClaraError(f"--length: {arguments.length} must be one of {', '.join(map(str, lengths))}")
    name = f"instruct_{arguments.length}"
    made = smollm2.get_config(
        f"size=full,stages={name},start={arguments.start},seed={arguments.seed}"
        + (f",data={arguments.data}" if arguments.data else "")
    )
    section: Any = made[name]
    kept = [i for i, entry in enumerate(section.data.train) if entry.startswith("questions:")]
    section.data.train = tuple(section.data.train[i] for i in kept)
    section.data.weights = tuple(section.data.weights[i] for i in kept)
    section.data.limit = arguments.limit
    section.optimizer.update(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        accumulate=1,
        learning_rate=arguments.learning_rate,
        schedule="cosine_with_minimum",
        warmup=0.1,
    )
    section.objective.update(scaffold=0.0, scaffold_end=None, scaffold_steps=None)  # trained and measured as it is used
    held_out = tuple(entry for entry in section.evaluation.data if entry.startswith("questions:"))
    section.evaluation.update(data=held_out, limit=arguments.questions, answers=arguments.questions)
    return resolve(made)


def measure(config: RunConfig, start: Bundle, teacher: Bundle, weights: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Train with each weight and yield its row: held-out values, and F1's difference to the first weight's.

    The first row is the teacher's, which reads the text.

    Args:
      config: of one stage, which answers questions from memories.
      start: where each training begins.
      teacher: with the adapter of a generator that reads texts, on the same base.
      weights: w of the divergence, one for each training.

    Raises:
      ClaraError: the teacher has another base, or an adapter of other sizes.
    """
    (stage,) = config.stages
    as_text = dataclasses.replace(stage, data=dataclasses.replace(stage.data, documents=TEXT))
    records = StageRecords.read(config, stage)
    memory, text = (StageData.encode(config, one, start, records) for one in (stage, as_text))
    _, frozen = split(start.params, stage.subtrees)
    frozen = {**frozen, **_adapter(teacher, start)}
    steps = stage.optimizer.steps or 1
    batches = StageBatches.plan(config, Path(), 0, start, memory, steps, StopSignal())

    with jax.set_mesh(start.mesh):
        evaluation = _evaluation(stage, memory, start)
        reads = _evaluation(as_text, text, teacher)
        trained, rest = split(teacher.params, as_text.subtrees)
        yield {"weight": None, **_values(reads, reads(trained, rest), text, None)}
        first = None
        for weight in weights:
            trained = train(start, stage, taught_batches(batches, text, start, steps), steps, weight, frozen)
            row = _values(evaluation, evaluation(trained, frozen), memory, first)
            first = row["values"] if first is None else first
            yield {"weight": weight, **row}


def _adapter(teacher: Bundle, start: Bundle) -> dict[str, jax.Array]:
    """Return the teacher's adapter by the path that it has beside the student's."""
    if teacher.base["hash"] != start.base["hash"]:
        raise ClaraError("--teacher: its base is another than that of --start")
    found, expected = (flatten(one.params["lora"], "generator/") for one in (teacher, start))
    shapes = [{path: leaf.shape for path, leaf in one.items()} for one in (found, expected)]
    if shapes[0] != shapes[1] or teacher.model.clara.lora_scale != start.model.clara.lora_scale:
        raise ClaraError("--teacher: its adapter has another rank or scale than that of --start")
    return {path.replace("generator", f"lora/{TEACHER}", 1): leaf for path, leaf in found.items()}


def _evaluation(stage: StageConfig, data: StageData, bundle: Bundle) -> Evaluation:
    return Evaluation(
        bundle.model,
        stage.stage,
        stage.hyperparameters,
        bundle.tokenizer,
        bundle.mesh,
        data.held_out,
        data.held_out_records,
        data.encoding,
        stage.optimizer.batch_size,
        max_new_tokens=stage.evaluation.answer_tokens,
        end_ids=bundle.end_ids,
        controls=False,
    )


def _values(
    evaluation: Evaluation, means: dict[str, float] | None, data: StageData, first: np.ndarray | None
) -> dict[str, Any]:
    """Return a row: means in percent, F1's interval, each question's F1, and the difference to another row's."""
    assert means is not None  # nothing stops it
    golds = [record.gold_answers for record in data.held_out_records]

    def each(metric: Callable[..., float]) -> np.ndarray:
        return 100 * np.array([metric(*pair) for pair in zip(evaluation.answers, golds, strict=True)], float)

    f1, draws = each(token_f1), Bootstrap(len(golds))
    row = {"ce": means["ce"], "EM": float(each(exact_match).mean()), "F1": _interval(draws.mean(f1)), "values": f1}
    return row if first is None else {**row, "difference": _interval(draws.difference(f1, first))}


def _interval(found: Any) -> list[float]:
    return [found.mean, found.low, found.high]


def _line(row: dict[str, Any]) -> str:
    name = "the teacher, from text" if row["weight"] is None else f"{row['weight']:g}"
    mean, low, high = row["F1"]
    difference = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row["difference"]) if "difference" in row else ""
    return f"| {name} | {row['ce']:.3f} | {row['EM']:.1f} | {mean:.1f} [{low:.1f}, {high:.1f}] | {difference} |"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("distillation", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--teacher", required=True, metavar="DIR", help="a run of configs/smollm2.py with documents=text")
    add("--data", metavar="DIR", help="of the records, as the argument data of configs/smollm2.py")
    add("--start", default="smollm2-clara", metavar="DIR", help="where each training begins (smollm2-clara)")
    add("--length", type=int, default=64, metavar="N", help="tokens of a window, of a section with rate 4 (64)")
    command.add_option(parser, "--limit", "of the training records of each file; 20000", default=20_000)
    add("--steps", type=int, default=60, metavar="N", help="of each training (60)")
    add("--learning-rate", type=float, default=5e-4, metavar="X", help="its peak (5e-4)")
    add("--questions", type=int, default=128, metavar="N", help="held-out ones (128)")
    add("--kl-weights", type=float, nargs="+", default=[0.0, 1.0], metavar="W", help="of the divergence (0 1)")
    command.add_option(parser, "--output", "rows as JSON")
    command.add_option(parser, "--batch-size", "16", default=16)
    command.add_option(parser, "--seed")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    config = config_of(arguments)
    mesh = make_mesh(**config.mesh_sizes)
    clara = config.clara_of(config.stages[0])
    start, teacher = (
        opening.load(path, mesh, None, config.model.precision, config.model.remat).with_memories(
            clara.doc_max_length, clara.compress_rate
        )
        for path in (arguments.start, arguments.teacher)
    )
    print("| weight | held-out CE | EM | F1 | to the first |\n|---|---|---|---|---|")
    rows = []
    for row in measure(config, start, teacher, arguments.kl_weights):
        print(_line(row), flush=True)
        rows.append({**row, "values": row["values"].tolist()})
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
