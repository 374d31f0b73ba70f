"""Compare the implementations of attention that this machine has, forward and with the backward pass.

    python -m benchmarks.attention [--rows 4] [--length 2048] [--heads 32] [--kv-heads 8] [--channels 128]
    taskset -c 0 python -m benchmarks.attention --rows 8 --length 272 --heads 9 --kv-heads 3 --channels 64 \
        --precision float32                                                       # SmolLM2's compressor, one core

Rows are padded on the left by up to a quarter. Each is measured in turns with the others, in one run; the table has
how many times as fast as "xla" it is, and as `jax.nn.dot_product_attention` as XLA compiles it (ratios of medians). On
a GPU or TPU the table has milliseconds, too: on a CPU, which other work shares, they would mean little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.model.attention import attention, choose, make_attention_mask
from clara_jax.model.sharding import make_mesh, put_batch
from clara_jax.model.transformer import positions_of

LIBRARY, WHOLE_ROWS = "jax.nn, XLA", "xla"


def library(q: jax.Array, k: jax.Array, v: jax.Array, attended: jax.Array) -> jax.Array:
    """Attend by the library's function, with the same mask."""
    mask = attended[:, None, :, None] == attended[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="xla")


def ours(implementation: str, q: jax.Array, k: jax.Array, v: jax.Array, attended: jax.Array) -> jax.Array:
    """Attend by one of this package's implementations."""
    attention_mask = make_attention_mask(implementation, attended, positions_of(attended), None, q.shape[-1], q.dtype)
    return attention(q, k, v, attention_mask)


def with_backward(forward: Callable, cotangent: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
    """Return the gradients of an implementation with respect to queries, keys and values."""
    q, k, v, attended = arrays
    return jax.vjp(lambda *x: forward(*x, attended), q, k, v)[1](cotangent)


def available(channels: int, dtype: jnp.dtype) -> list[str]:
    """Return the names of XLA's implementation, and of the one that the current mesh's devices choose."""
    return list(dict.fromkeys([WHOLE_ROWS, choose("auto", channels, dtype, cached=False, windowed=False)]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("attention", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--rows", type=int, default=4, metavar="N", help="B (4)")
    add("--length", type=int, default=2048, metavar="N", help="T (2048)")
    add("--heads", type=int, default=32, metavar="N", help="H (32)")
    add("--kv-heads", type=int, default=8, metavar="N", help="G, which divides H (8)")
    add("--channels", type=int, default=128, metavar="N", help="C (128)")
    command.add_option(parser, "--precision", "bfloat16", choices=("bfloat16", "float32"), default="bfloat16")
    command.add_option(parser, "--repeats", "7", default=7)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    if arguments.heads % arguments.kv_heads:
        raise ClaraError(f"--kv-heads: {arguments.kv_heads} does not divide --heads {arguments.heads}")
    device, dtype = jax.devices()[0], jnp.dtype(arguments.precision)
    rng, shape = np.random.default_rng(0), (arguments.rows, arguments.length)
    sizes = (arguments.heads, arguments.kv_heads, arguments.kv_heads, arguments.heads)
    q, k, v, cotangent = (rng.normal(size=(*shape, n, arguments.channels)).astype(dtype) for n in sizes)
    begins = rng.integers(0, arguments.length // 4 + 1, (arguments.rows, 1))
    attended = np.arange(arguments.length) >= begins
    cotangent *= attended[..., None, None].astype(dtype)
    mesh = make_mesh(1, 1, devices=[device])
    q, k, v, cotangent, attended = put_batch((q, k, v, cotangent, attended), mesh)
    with jax.set_mesh(mesh):
        ways = {LIBRARY: library} | {name: partial(ours, name) for name in available(arguments.channels, dtype)}
        runs = {}
        for name, forward in ways.items():
            runs[name, "forward"] = partial(jax.jit(forward), q, k, v, attended)
            runs[name, "with backward"] = partial(
                jax.jit(partial(with_backward, forward)), cotangent, q, k, v, attended
            )
        timed = device.platform != "cpu"
        medians = measure(runs, arguments.repeats, 10 if timed else 1)
    print(f"{device.device_kind}: B {arguments.rows}, T {arguments.length}, H {sizes[0]}, G {sizes[1]}, C ", end="")
    print(f"{arguments.channels}, {dtype}\n| attention | pass | × {WHOLE_ROWS} | × {LIBRARY} |", end="")
    print((" ms |" * timed) + "\n|---|---|---|---|" + "---|" * timed)
    for (name, which), seconds in medians.items():
        ratios = (f"{medians[other, which] / seconds:.2f}" for other in (WHOLE_ROWS, LIBRARY))
        print(f"| {name} | {which} | {' | '.join(ratios)} |" + f" {seconds * 1e3:.3f} |" * timed)


def measure(runs: dict[tuple[str, str], Callable], repeats: int, calls: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of a call, over ``repeats`` measurements of ``calls`` calls each, in turns."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())  # compiled
    for _ in tqdm(range(repeats), desc="measuring", unit="turn"):
        for name, run in runs.items():
            start = time.monotonic()
            jax.block_until_ready([run() for _ in range(calls)])
            times[name].append((time.monotonic() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    command.run(main)
