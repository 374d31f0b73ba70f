"""Time decoding by the kind of weights, against the memory's bandwidth, and against Hugging Face's ``generate``.

Hugging Face has the same weights, in float32 and in bfloat16, on the same machine.

    pip install torch          # for Hugging Face; without it the rest is measured
    python -m benchmarks.decode [--base smollm2] [--precision float32] [--rows 1,8] [--prompt 128] [--max-new-tokens 64]
    taskset -c 0 python -m benchmarks.decode          # on one core, where others work on the machine

Decoding is greedy, without end tokens. The time of a token is what each further token adds, (time of N - time of 1) /
(N - 1), so that prefill is left out on both sides. All ways take turns, and medians are compared. "of the bandwidth"
is the rate of reading the weights once a token, as a share of the rate of summing a large array in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.checkpoints import exporting, opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.inference.decode import Sampling
from clara_jax.inference.engine import Engine
from clara_jax.inference.requests import Request
from clara_jax.inference.weights import prepare, size
from clara_jax.method.clara import ClaraConfig
from clara_jax.model.precision import has_instructions
from clara_jax.model.sharding import make_mesh

READ_BYTES, NO_TOKEN = 2**29, -1
OTHER = "Hugging Face"
FLOAT32 = "merged-float32"  # what the others are compared with
WAYS = ("adapter", FLOAT32, "merged-bfloat16")
Way = Callable[[int], list[list[int]]]  # tokens to write -> those of each row


def ours(bundle: Bundle, weights: str, prompts: np.ndarray) -> Way:
    """Return a function that decodes with this package's engine."""
    rows = len(prompts)
    engine = Engine(bundle.model, bundle.params, bundle.mesh, (NO_TOKEN,), rows, weights, prefix_budget=0)
    nothing = np.zeros((0, bundle.model.clara.memory_tokens, bundle.model.config.embed_dim), np.float32)

    def write(tokens: int) -> list[list[int]]:
        requests = [Request(ids, [-1] * len(ids), nothing, Sampling(tokens)) for ids in prompts.tolist()]
        return [list(result.tokens) for result in engine.generate(requests)]

    return write


def hugging_face(folder: str, precision: str, prompts: np.ndarray) -> Way:
    """Return a function that decodes with Hugging Face's ``generate``."""
    import torch  # pyright: ignore[reportMissingImports] - not required, see `main`
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    model.generation_config.eos_token_id = None
    ids = torch.tensor(prompts, device=model.device)

    def write(tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
            )
        return out[:, ids.shape[1] :].tolist()

    return write


def bandwidth() -> Callable[[], float]:
    """Return a function that measures the bytes a second of a sum."""
    total = jax.jit(jnp.sum)
    large = jnp.ones(READ_BYTES // 4)
    total(large).block_until_ready()

    def measure() -> float:
        began = time.perf_counter()
        total(large).block_until_ready()
        return large.nbytes / (time.perf_counter() - began)

    return measure


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("decode", __doc__, package="benchmarks")
    add = parser.add_argument
    command.add_option(parser, "--base", "smollm2", default="smollm2")
    command.add_option(parser, "--precision", "float32", choices=exporting.DTYPES, default="float32")
    add("--rows", type=_numbers, default=(1, 8), metavar="N,N", help="answers that are written together (1,8)")
    add("--prompt", type=int, default=128, metavar="N", help="tokens of a prompt (128)")
    command.add_option(parser, "--max-new-tokens", "64", default=64)
    command.add_renamed_option(parser, "--new-tokens", "--max-new-tokens", type=int)
    command.add_option(parser, "--repeats", "5", default=5)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    bundle = opening.from_base(
        arguments.base, ClaraConfig(), make_mesh(1, 1, devices=jax.devices()[:1]), arguments.precision
    )
    read = {
        weights: size(prepare(bundle.model, bundle.params, weights, bundle.mesh)[1])
        for weights in tqdm(WAYS, desc="weights")
    }
    has = "multiplies" if has_instructions() else "has no instruction to multiply"
    print(f'\nthis processor {has} bfloat16; see `clara_jax.inference.weights` for what "merged" is then')
    prompts = np.random.default_rng(0).integers(100, 1000, (max(arguments.rows), arguments.prompt), np.int32)
    with tempfile.TemporaryDirectory() as folder:
        torch = importlib.util.find_spec("torch") is not None
        if torch:
            exporting.export_merged(bundle, Path(folder) / "merged", dtype="float32")
        for rows in arguments.rows:
            ways = {weights: ours(bundle, weights, prompts[:rows]) for weights in WAYS}
            for dtype in ("float32", "bfloat16") if torch else ():
                ways[f"{OTHER}, {dtype}"] = hugging_face(f"{folder}/merged", dtype, prompts[:rows])
            compare(rows, ways, read, arguments)
    if not torch:
        print("torch is not installed: nothing to compare with; pip install torch")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def compare(rows: int, ways: dict[str, Way], read: dict[str, int], arguments: argparse.Namespace) -> None:
    """Measure in turns and print a table."""
    count, times, rates = arguments.max_new_tokens, {name: [] for name in ways}, []
    written = {name: (way(1), way(count))[1] for name, way in ways.items()}  # compiles
    measure = bandwidth()
    for _ in tqdm(range(arguments.repeats), desc=f"{rows} rows"):
        rates.append(measure())
        for name, way in ways.items():
            began = time.perf_counter()
            way(1)
            first = time.perf_counter()
            way(count)
            times[name].append((2 * first - began - time.perf_counter()) / (1 - count))
    fast = statistics.median(rates)
    print(
        f"\n{arguments.base}, {arguments.precision}, {rows} rows, prompts of {arguments.prompt} tokens, {count} "
        f"answered; {jax.devices()[0].device_kind}, jax {jax.__version__}; a sum reads {fast / 1e9:.0f} GB/s\n\n"
        f"| weights | ms a token | tokens/s | of the bandwidth | against {FLOAT32} | against {OTHER}'s faster | same "
        "tokens |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    other = min((median for name, median in medians.items() if name.startswith(OTHER)), default=None)
    for name, median in medians.items():
        share = f"{read[name] / median / fast:.0%}" if name in read else ""
        against = f"{other / median:.2f}" if other else ""
        same = f"{sum(a == b for a, b in zip(written[name], written[FLOAT32], strict=True))} of {rows}"
        to_float32 = f"{medians[FLOAT32] / median:.2f}"
        values = (name, f"{1000 * median:.1f}", f"{rows / median:.0f}", share, to_float32, against, same)
        print(f"| {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    command.run(main)
