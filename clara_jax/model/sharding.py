"""Placement of arrays: a mesh of three axes, and the one table from logical axis names to them.

``data`` splits the batch and, as in fully sharded data parallelism, the embedding axis of every weight; ``model``
splits heads, MLP and vocabulary (tensor parallelism); ``replica`` splits the batch alone, so that what has to be summed
between slices of a pod, over the slow network, is the gradient and nothing else. The mesh is Explicit: array types
carry their sharding, so a missing annotation is an error and not a silent copy. The same code runs on the 1 x 1 x 1
mesh of a laptop.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jaxtyping import Int64, Shaped

from clara_jax import tpu_flags
from clara_jax.errors import ClaraError

Array = np.ndarray | jax.Array  # on the host or on devices: computations take both
AXES = ("replica", "data", "model")
BATCH = ("replica", "data")  # the mesh axes that an array's rows are split over
RULES = {"embed": "data", "heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"}
# Axes that stay whole on every device where the mesh does not divide them: a model has few key/value heads, and a
# vocabulary with added or trimmed rows is rarely a round number.
MAY_STAY_WHOLE = {"kv_heads", "vocab"}


# JAX options that a process may have changed for other programs, with the values that models need and the reason.
_OPTIONS: dict[str, tuple[Any, str]] = {
    # Indices, random numbers and tables have 32 bits, whatever else the process computes.
    "jax_enable_x64": (False, "models are computed in 32 bits"),
    "jax_numpy_dtype_promotion": ("standard", "numbers take the precision of the arrays beside them"),
    "jax_numpy_rank_promotion": ("allow", "vectors are scales of matrices"),
}


def make_mesh(
    data: int = -1,
    model: int = 1,
    replica: int = -1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] a variable in jax's stubs
) -> jax.sharding.Mesh:
    """Return a ``(replica, data, model)`` mesh over the given (default: all) devices.

    Args:
      data: size of the axis; -1 takes all devices that the other axes leave.
      model: size of the axis.
      replica: size of the axis; -1 is one for each slice (devices that a fast network joins), 1 without slices.
      devices: in any order; default all of all processes.

    Raises:
      ClaraError: the number of devices is no product of the three; slices that are neither whole replicas nor parts of
        one.
    """
    tpu_flags.set_defaults()
    for option, (value, why) in _OPTIONS.items():
        if getattr(jax.config, option) != value:
            words = f"{option.upper()} is set to {value!r} in this process: {why}"
            warnings.warn(words, stacklevel=2)
            jax.config.update(option, value)
    devices = all_devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if model < 1 or any(size < 1 and size != -1 for size in (replica, data)):
        raise ClaraError(
            f"mesh: ({replica}, {data}, {model}) is no mesh; sizes must be at least 1 (replica may be -1: one for each "
            "slice; data may be -1: all that is left)"
        )
    replica = slices if replica == -1 else replica
    if data == -1:
        data = max(1, len(devices) // (replica * model))
    if replica * data * model != len(devices):
        raise ClaraError(
            f"mesh: replica {replica} x data {data} x model {model} = {replica * data * model} does not match the "
            f"{len(devices)} devices; choose sizes whose product is {len(devices)}"
        )
    shape, explicit = (replica, data, model), (AxisType.Explicit,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(shape, AXES, devices=devices, axis_types=explicit)
    if replica % slices:
        raise ClaraError(f"mesh: {replica} replicas do not divide among {slices} slices; choose a multiple of {slices}")
    placed = mesh_utils.create_hybrid_device_mesh((replica // slices, data, model), (slices, 1, 1), devices)
    return jax.sharding.Mesh(placed, AXES, axis_types=explicit)


def platform(mesh: jax.sharding.Mesh) -> str:
    """Return the platform of the mesh's devices, as JAX names it: "cpu", "gpu", "tpu"."""
    return mesh.devices.flat[0].platform


def all_devices() -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm] a variable in jax's stubs
    """Return the devices of all processes.

    Raises:
      ClaraError: the platform that JAX_PLATFORMS names is not available.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a platform was found among its plugins
        raise ClaraError(
            f"no devices: {str(error)[:300] or 'no platform can be used'}; JAX_PLATFORMS is "
            f"{os.environ.get('JAX_PLATFORMS', '')!r}: install the build of JAX for it, or unset it"
        ) from None


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Return the number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def divisible(count: int, mesh: jax.sharding.Mesh) -> int:
    """Return the size of the smallest batch of at least ``count`` rows that the mesh divides."""
    shards = batch_shards(mesh)
    return -(-count // shards) * shards


def spec(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    path: str = "",
) -> jax.P:
    """Return the partition of an array with the given logical axes.

    Args:
      shape: of the array.
      axes: a logical name for each axis, None where it is never split.
      mesh: with the axes `AXES`.
      path: name of the array in error messages.

    Raises:
      ClaraError: an axis that the mesh does not divide and that may not stay whole.
    """
    names = []
    for size, axis in zip(shape, axes, strict=True):
        name = RULES.get(axis) if axis else None
        if name and size % mesh.shape[name]:
            if axis not in MAY_STAY_WHOLE:
                raise ClaraError(
                    f'mesh: axis "{name}" of size {mesh.shape[name]} does not divide the {size} of "{axis}" in '
                    f"{path}; choose a divisor of {size}"
                )
            name = None
        names.append(name)
    return jax.P(*names)


def shardings(
    axes: Mapping[str, tuple[tuple[int, ...], tuple[str | None, ...]]], mesh: jax.sharding.Mesh
) -> dict[str, jax.NamedSharding]:
    """Return the sharding of each of several arrays.

    Args:
      axes: shape and logical axes by the array's name.
      mesh: with the axes `AXES`.

    Raises:
      ClaraError: see `spec`.
    """
    return {name: jax.NamedSharding(mesh, spec(*array, mesh, name)) for name, array in axes.items()}


def check_batch(batch_size: int, mesh: jax.sharding.Mesh, field: str = "batch_size") -> None:
    """Raise an error where the mesh does not divide the batch.

    Args:
      batch_size: rows.
      mesh: with the axes `AXES`.
      field: name of the batch size in the error message.

    Raises:
      ClaraError: the number of rows is no multiple of `batch_shards`.
    """
    if batch_size % batch_shards(mesh):
        sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH)
        raise ClaraError(
            f"{field}: {batch_size} is not divisible by the {batch_shards(mesh)} parts that the mesh splits a batch "
            f"into ({sizes})"
        )


def local_parts(mesh: jax.sharding.Mesh) -> list[int]:
    """Return which of the `batch_shards` of a batch this process's devices hold, in order."""
    parts = mesh.devices.reshape(batch_shards(mesh), -1)
    here = jax.process_index()
    return [number for number, devices in enumerate(parts) if any(device.process_index == here for device in devices)]


def local_rows(count: int, mesh: jax.sharding.Mesh) -> Int64[np.ndarray, " rows"]:
    """Return which of ``count`` rows, a number that the mesh divides, this process's devices hold; int64, in order."""
    return np.arange(count).reshape(batch_shards(mesh), -1)[local_parts(mesh)].ravel()


def put_whole(value, mesh: jax.sharding.Mesh) -> jax.Array:
    """Place a value, the same in every process, whole on each device."""
    return jax.device_put(value, jax.NamedSharding(mesh, jax.P()))


def put_batch(tree, mesh: jax.sharding.Mesh):
    """Place host arrays, whole in every process, with their leading axis split over the mesh; None stays None."""
    return jax.tree.map(lambda x: place(x, jax.NamedSharding(mesh, jax.P(BATCH))), tree)


def put_rows(tree, mesh: jax.sharding.Mesh):
    """Place host arrays like `put_batch`, where each process has only its `local_rows`."""
    sharding, parts, local = jax.NamedSharding(mesh, jax.P(BATCH)), batch_shards(mesh), local_parts(mesh)

    def put(x: np.ndarray) -> jax.Array:
        size = len(x) // len(local)  # rows of a part

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # JAX passes a slice for each axis
            first = local.index((index[0].start or 0) // size) * size
            return x[first : first + size]

        return jax.make_array_from_callback((size * parts, *x.shape[1:]), sharding, part)

    return jax.tree.map(put, tree)


def place(value: np.ndarray, sharding: jax.NamedSharding) -> jax.Array:
    """Place a host array, whole in every process, on the devices."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


# Axes of one element make the sharding of a reshape ambiguous, and JAX may take the wrong axis; these functions name it
# explicitly.


def join_rows(x: Shaped[Array, "B D *rest"]) -> Shaped[jax.Array, " B*D *rest"]:
    """Reshape [B, D, ...] to [B · D, ...], every device keeping its rows."""
    rows, _, *rest = jax.typeof(x).sharding.spec
    return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=jax.P(rows, *rest))


def split_rows(x: Shaped[Array, " N *rest"], count: int) -> Shaped[jax.Array, "N//{count} {count} *rest"]:
    """Reshape [B · D, ...] to [B, D, ...] with D = ``count``, the inverse of `join_rows`."""
    rows, *rest = jax.typeof(x).sharding.spec
    return jnp.reshape(x, (x.shape[0] // count, count, *x.shape[1:]), out_sharding=jax.P(rows, None, *rest))


def reshape_rows(x: Shaped[Array, "B ..."], *shape: int) -> Shaped[jax.Array, "B ..."]:
    """Reshape [B, ...] to [B, *shape]; only rows are split over devices."""
    rows = jax.typeof(x).sharding.spec[0]
    return jnp.reshape(x, (x.shape[0], *shape), out_sharding=jax.P(rows, *(None for _ in shape)))


def microbatches(x: Shaped[Array, " B *rest"], parts: int) -> Shaped[jax.Array, "{parts} B//{parts} *rest"]:
    """Reshape [B, ...] to [parts, B / parts, ...], every part spread over the devices as the batch is."""
    return jnp.moveaxis(split_rows(x, parts), 1, 0)
