"""Runs of several processes: how they find each other, what the main process does for all, how they agree.

Each process runs the same commands on the same global arrays, of which it holds the shards on its devices. What needs
doing once is done by process 0, the main one: it writes metrics, checks checkpoints, prints. With one process, the
functions here do nothing more than the plain call would.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from clara_jax.errors import ClaraError, ReportedByMainError

# Silence after which a process counts as lost. What waits for it then ends, and the launcher can clean up within a
# minute; JAX's default is longer.
HEARTBEAT_SECONDS = 25
SHUTDOWN_SECONDS = 60  # that a process which has finished waits for the others
_PATIENCE_MS = 24 * 3600 * 1000  # for the main process at work: heartbeats show that it is alive
_HEAD_START = 1.0  # seconds
COORDINATOR, PROCESSES, PROCESS = "CLARA_COORDINATOR", "CLARA_PROCESSES", "CLARA_PROCESS"

_LOST = re.compile(r"gloo|nccl|heartbeat|coordination|peer|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED", re.I)
_counted: dict[str, int] = {}


def initialise(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Join the other processes, if there are any; must be called before anything else asks JAX for devices.

    The arguments, or ``CLARA_COORDINATOR``, ``CLARA_PROCESSES`` and ``CLARA_PROCESS`` in the environment, identify
    them. Without these, JAX detects the cluster where it can: Slurm, Cloud TPU VMs, GKE, Open MPI.

    Args:
      coordinator: host:port of process 0.
      processes: their number.
      process: the number of this one, from 0.
      environment: environment variables.

    Raises:
      ClaraError: some of the three are given and others are not, or they are invalid; the others cannot be reached.
    """
    given = {
        COORDINATOR: coordinator or environment.get(COORDINATOR),
        PROCESSES: environment.get(PROCESSES) if processes is None else processes,
        PROCESS: environment.get(PROCESS) if process is None else process,
    }
    options: dict[str, Any] = {}
    if any(value is not None for value in given.values()):
        address, count, number = _checked(given)
        if count == 1:
            return
        options = dict(coordinator_address=address, num_processes=count, process_id=number)
        options["cluster_detection_method"] = "deactivate"
    elif not _is_cluster(environment):
        return
    elif devices := _slurm_devices(environment):
        options["local_device_ids"] = devices
    try:
        jax.distributed.initialize(
            **options, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        where = f" at {options['coordinator_address']}" if "coordinator_address" in options else ""
        raise ClaraError(
            f"the processes of this run cannot reach each other{where}: {reason}; start all of them, with one "
            f"{COORDINATOR} and {PROCESSES}, each with its own {PROCESS}"
        ) from None


def is_main() -> bool:
    """Return whether this is process 0, which does for all what needs doing once."""
    return jax.process_index() == 0


def say(line: str, error: bool = False) -> None:
    """Print a line once, not once for each process."""
    if is_main():
        print(line, file=sys.stderr if error else sys.stdout, flush=True)


def on_main(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in the main process; all processes wait for it and return its value.

    Args:
      function: must return a JSON value.
      *arguments: of the function.

    Raises:
      ClaraError: where the function does. Of several processes, the main one prints it and ends; in the others it is
        a `ReportedByMainError`.
    """
    if jax.process_count() == 1:
        return function(*arguments)
    key = _next("on_main")
    if not is_main():
        outcome = json.loads(_client().blocking_key_value_get(key, _PATIENCE_MS))
        if "error" in outcome:
            barrier("reported")
            raise ReportedByMainError(outcome["error"])
        return outcome["value"]
    try:
        value = function(*arguments)
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _client().key_value_set(key, json.dumps({"error": str(error)}))
        try:
            # The runtime aborts the others when this process ends: they must have the reason, and have ended.
            barrier("reported")
            time.sleep(_HEAD_START)
        finally:  # the launcher may end this process because another has gone
            leave(2)
    else:
        _client().key_value_set(key, json.dumps({"value": value}))
        return value


def barrier(name: str) -> None:
    """Wait until all processes have come here. Not for steps: the devices' collectives synchronize those."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(_next(name), timeout_in_ms=_PATIENCE_MS)


def gather(tree: Any) -> Any:
    """Return arrays as host arrays, whole in every process, wherever their shards are; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(
        lambda x: jax.device_get(x) if _is_here(x) else multihost_utils.process_allgather(x, tiled=True), tree
    )


class Agreement:
    """A logical or of wishes over all processes, known to all at the same step without waiting for the devices.

    Every process states in each step what it wants. The wishes are combined on the devices, after the step in flight,
    and read one call later.

    Args:
      mesh: of the step's devices.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._rows = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
        self._any = jax.jit(lambda wishes: jnp.any(wishes, axis=0), out_shardings=jax.NamedSharding(mesh, jax.P()))
        self._before: jax.Array | None = None

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """Return whether any process wanted each thing at the previous call; with one process, at this call."""
        if jax.process_count() == 1:
            return wishes
        before, self._before = self._before, self._join(wishes)
        return (False,) * len(wishes) if before is None else tuple(np.asarray(before).tolist())

    def now(self, wish: bool) -> bool:
        """Return whether any process wants it at this call; waits for the devices."""
        return wish if jax.process_count() == 1 else bool(np.asarray(self._join((wish,)))[0])

    def forget(self) -> None:
        """Drop the wishes of the previous call."""
        self._before = None

    def _join(self, wishes: tuple[bool, ...]) -> jax.Array:
        row = np.array([wishes])
        shape = (self._rows.mesh.size, len(wishes))
        return self._any(jax.make_array_from_callback(shape, self._rows, lambda _: row))


def explain(error: Exception) -> str:
    """Return one line for an error that another process's loss has caused, the traceback for any other error."""
    text = str(error)
    if not (isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(text)):
        return "".join(traceback.format_exception(error))
    reason = text.splitlines()[0][:200]
    return (
        f"error: process {jax.process_index()} of {jax.process_count()} lost another one ({reason}); look at what that "
        "one has printed; the same command goes on from the last checkpoint"
    )


def several() -> bool:
    """Return whether this process has joined others; asks for no device."""
    return jax.distributed.is_initialized()


def leave(code: int) -> NoReturn:
    """End this process at once: a regular exit would wait for processes that may be gone, or wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _checked(given: Mapping[str, Any]) -> tuple[str, int, int]:
    for name, value in given.items():
        if value is None:
            have = ", ".join(known for known, x in given.items() if x is not None)
            raise ClaraError(
                f"{name} is missing where {have} is given; each process needs all three, see launch/local.sh"
            )
    if not re.fullmatch(r".+:\d+", str(given[COORDINATOR])):
        raise ClaraError(f"{COORDINATOR} is {given[COORDINATOR]!r}; it must be host:port of process 0")
    try:
        count, number = int(given[PROCESSES]), int(given[PROCESS])
    except ValueError:
        raise ClaraError(
            f"{PROCESSES} is {given[PROCESSES]!r} and {PROCESS} {given[PROCESS]!r}; give whole numbers"
        ) from None
    if not 0 <= number < count:
        raise ClaraError(f"{PROCESS} is {number} of {PROCESSES} {count}; processes are numbered from 0 to {count - 1}")
    return str(given[COORDINATOR]), count, number


def _is_cluster(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher has started this process as one of several, and JAX can ask it about the others."""
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:  # GKE
        return True
    # A TPU VM; on a single one JAX detects that there are no others.
    has_chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(has_chips and importlib.util.find_spec("libtpu") and environment.get("JAX_PLATFORMS", "tpu") != "cpu")


def _slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Return all GPUs of the node where Slurm runs one process on it; by default JAX would use only the first."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if tasks == "1" and gpus.isdigit() else None


def _is_here(x: Any) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def _next(name: str) -> str:
    """Return a key that no call has used; processes make the same calls in the same order."""
    _counted[name] = _counted.get(name, 0) + 1
    return f"clara_jax/{name}/{_counted[name]}"


def _client() -> Any:
    # JAX has no public name for the store of its coordination service. Unlike collectives on devices, waiting there has
    # no short limit, and may last as long as the main process hashes a checkpoint.
    from jax._src import distributed

    return distributed.global_state.client
