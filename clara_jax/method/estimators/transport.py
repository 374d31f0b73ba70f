"""Entropic optimal transport from documents to ranks (Cuturi 2013; top-k by it: Xie et al. 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32

from clara_jax.method.topk import masked_softmax

ITERATIONS = 50  # a few suffice; each costs as much as a softmax over K + 1 ranks for each document


def transport_plan(
    s: Float32[jax.Array, " D"],
    indices: Int32[jax.Array, " K"],
    taken: Float32[jax.Array, "K D"],
    allowed: Bool[jax.Array, "K D"],
) -> Float32[jax.Array, "K D"]:
    """Return p [K, D], the ranks' columns of the entropic transport plan from documents to ranks (Xie et al. 2020).

    It is a `clara_jax.method.topk.SoftChoice`.

    Each document has a mass of 1. A rank takes 1, the rest n - K. Rank j lies at K + 1 - j on the line and the rest at
    0; moving from s to y costs (s - y)² / 2, so that changing places with the next rank costs the difference of the
    scores, and τ means the same as in the other methods.

    The plan is softmax_y(s y + v_y), with potentials v for which every y gets its mass: the zero of a monotone function
    of K + 1 numbers. It is found from the potentials of the hard assignment by Sinkhorn steps (which always converge)
    and Newton steps (which converge fast). A last Newton step, the only one that is differentiated, has the gradient of
    the implicit function.
    """
    ranks = len(indices)
    mask, rank_exists = jnp.any(allowed, axis=0), jnp.any(allowed, axis=1)
    n = jnp.sum(mask)
    y = jnp.arange(ranks, -1, -1, dtype=s.dtype)
    takes = _append(rank_exists.astype(s.dtype), jnp.maximum(n - ranks, 0).astype(s.dtype))
    free = takes > 0
    free &= jnp.arange(ranks + 1) != jnp.argmax(free)  # a constant added to all potentials changes nothing: fix one
    both = free[:, None] & free

    def plan(v: jax.Array, s: jax.Array) -> jax.Array:  # [D, K + 1]
        return masked_softmax(s[:, None] * y + v, mask[:, None] & (takes > 0))

    def excess(v: jax.Array, s: jax.Array) -> jax.Array:
        return jnp.where(takes > 0, jnp.sum(plan(v, s), axis=0) - takes, 0)

    def newton(v: jax.Array, missing: jax.Array) -> jax.Array:
        p = plan(v, fixed)
        slope = jnp.diag(jnp.sum(p, axis=0)) - jnp.einsum("Dy,Dz->yz", p, p, precision="highest")
        slope = jnp.where(both, slope, 0) + jnp.diag(jnp.where(free, 1e-6, 1.0))
        return jnp.linalg.solve(slope, jnp.where(free, missing, 0))

    def step(v: jax.Array) -> jax.Array:
        reached = jnp.maximum(jnp.sum(plan(v, fixed), axis=0), 1e-30)
        v = jnp.where(takes > 0, v + jnp.log(jnp.where(takes > 0, takes, 1)) - jnp.log(reached), v)
        now = excess(v, fixed)
        further = v - newton(v, now)
        better = jnp.max(jnp.abs(excess(further, fixed))) < jnp.max(jnp.abs(now))
        return jnp.where(better, further, v)

    fixed = jax.lax.stop_gradient(s)
    left = jnp.max(jnp.where(mask & ~jnp.any(taken > 0, axis=0), fixed, -jnp.inf))
    borders = _append(fixed[indices], left)
    borders = (borders[:-1] + borders[1:]) / 2  # midway between a rank's document and the next one's, costs are equal
    v = jnp.pad(jnp.cumsum(jnp.where(jnp.isfinite(borders), borders, 0)), (1, 0))
    v = jax.lax.stop_gradient(jax.lax.fori_loop(0, ITERATIONS, lambda _, v: step(v), v))
    # newton() is linear in its second argument, and its slope is a constant.
    v = v - newton(v, excess(v, s))
    return jnp.where(allowed, plan(v, s)[:, :-1].T, 0)


def _append(x: Float32[jax.Array, " K"], last: Float32[jax.Array, ""]) -> Float32[jax.Array, " K+1"]:
    """Append a number like `jnp.append`, which fails for rows that are mapped and split over devices (jax 0.10)."""
    return jnp.where(jnp.arange(len(x) + 1) < len(x), jnp.pad(x, (0, 1)), last)
