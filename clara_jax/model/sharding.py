"""Where arrays live: a mesh of two axes, and the one table from logical axis names to them.

``data`` splits the batch and, as in fully sharded data parallelism, the embedding axis of every weight; ``model``
splits heads, MLP and vocabulary (tensor parallelism). The mesh is Explicit: array types carry their sharding, so a
missing annotation is an error and not a silent copy. The same code runs on the 1 x 1 mesh of a laptop.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType

from clara_jax.errors import ClaraError

RULES = {"embed": "data", "heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"}
# Axes that stay whole on every device where the mesh does not divide them: a model has few key/value heads, and a
# vocabulary with added or trimmed rows is rarely a round number.
MAY_STAY_WHOLE = {"kv_heads", "vocab"}


def make_mesh(data: int = -1, model: int = 1, devices: list | None = None) -> jax.sharding.Mesh:
    """A ``(data, model)`` mesh over the given (default: all) devices; ``data = -1`` takes what ``model`` leaves.

    Raises:
      ClaraError: the number of devices is no product of the two.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or (data < 1 and data != -1):
        raise ClaraError(
            f"mesh: ({data}, {model}) is not a mesh; both sizes must be at least 1 (data may be -1: all that is left)"
        )
    if data == -1:
        data = max(1, len(devices) // model)
    if data * model != len(devices):
        raise ClaraError(
            f"mesh: data {data} x model {model} = {data * model} does not match the {len(devices)} devices; choose "
            f"sizes whose product is {len(devices)}"
        )
    return jax.make_mesh((data, model), ("data", "model"), devices=devices, axis_types=(AxisType.Explicit,) * 2)


def spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: jax.sharding.Mesh, path: str = "") -> jax.P:
    """The partition of an array with these logical axes.

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


def check_batch(batch_size: int, mesh: jax.sharding.Mesh, field: str = "batch_size") -> None:
    """Raises:
    ClaraError: the mesh's data axis does not divide the batch."""
    if batch_size % mesh.shape["data"]:
        raise ClaraError(f'{field}: {batch_size} is not divisible by the mesh axis "data" of size {mesh.shape["data"]}')


def put_batch(tree, mesh: jax.sharding.Mesh):
    """Places host arrays with their leading axis split over ``data``; None leaves stay None."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))), tree)
