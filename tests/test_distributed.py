"""How a process learns of the others; with one process nothing is exchanged. Several: tests/test_processes.py."""

import jax
import numpy as np
import pytest

from clara_jax import distributed
from clara_jax.errors import ClaraError
from clara_jax.model.sharding import local_parts, local_rows, make_mesh, put_batch, put_rows


@pytest.fixture
def joined(monkeypatch):
    """What JAX is asked to join, instead of joining it."""
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.append(options))
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
    return asked


def test_flags_go_before_the_environment(joined):
    environment = {"CLARA_COORDINATOR": "10.0.0.1:1234", "CLARA_PROCESSES": "4", "CLARA_PROCESS": "1"}
    distributed.initialise(environment=environment)
    distributed.initialise("host:99", processes=8, process=0, environment=environment)
    names = ("coordinator_address", "num_processes", "process_id", "cluster_detection_method")
    assert [[options[name] for name in names] for options in joined] == [
        ["10.0.0.1:1234", 4, 1, "deactivate"],
        ["host:99", 8, 0, "deactivate"],
    ]
    assert all(options["heartbeat_timeout_seconds"] <= 30 for options in joined)


@pytest.mark.parametrize(
    "environment,expected",
    [
        ({}, None),
        ({"CLARA_COORDINATOR": "h:1", "CLARA_PROCESSES": "1", "CLARA_PROCESS": "0"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, None),
        ({"SLURM_NTASKS": "8"}, None),  # within sbatch, but not started by srun
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, {}),
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a,b"}
            | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"},
            {"local_device_ids": [0, 1, 2, 3]},
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "one"}, None),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, {}),
        ({"MEGASCALE_NUM_SLICES": "2"}, {}),
    ],
)
def test_clusters_are_found(joined, environment, expected):
    distributed.initialise(environment=environment)
    times = ("heartbeat_timeout_seconds", "shutdown_timeout_seconds")
    found = [{name: value for name, value in options.items() if name not in times} for options in joined]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    "given,message",
    [
        (dict(processes=2, process=0), "CLARA_COORDINATOR is missing where CLARA_PROCESSES, CLARA_PROCESS is given"),
        (dict(coordinator="h", processes=2, process=0), "CLARA_COORDINATOR is 'h'; it must be host:port"),
        (dict(coordinator="h:1", processes=2, process=2), "CLARA_PROCESS is 2 of CLARA_PROCESSES 2"),
        (dict(coordinator="h:1", processes="two", process=0), "give whole numbers"),
    ],
)
def test_mistakes(joined, given, message):
    with pytest.raises(ClaraError, match=message):
        distributed.initialise(**given, environment={})
    assert not joined


def test_others_that_cannot_be_reached(monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: no one\nthere")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ClaraError, match="cannot reach each other at h:1: DEADLINE_EXCEEDED: no one; start all"):
        distributed.initialise("h:1", 2, 0, environment={})


def test_one_process_does_everything_itself(mesh222):
    x = np.arange(24.0).reshape(8, 3)
    assert distributed.is_main() and distributed.on_main(lambda a: a + 1, 1) == 2
    with pytest.raises(ClaraError, match="^no$"):
        distributed.on_main(lambda: (_ for _ in ()).throw(ClaraError("no")))
    agreement = distributed.Agreement(mesh222)
    assert agreement(True, False) == (True, False) and agreement.now(True) and not agreement.now(False)
    assert local_parts(mesh222) == [0, 1, 2, 3] and local_rows(8, mesh222).tolist() == list(range(8))
    for put in (put_batch, put_rows):
        placed = put({"x": x, "none": None}, mesh222)
        assert placed["none"] is None and len(placed["x"].sharding.device_set) == 8
        np.testing.assert_array_equal(distributed.gather(placed["x"]), x)


@pytest.mark.usefixtures("unchecked")
def test_rows_of_a_process_follow_its_devices(monkeypatch):
    """Devices need not stand in the order of their processes, and a part may lie in several processes."""

    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    class Mesh:
        shape = {"replica": 2, "data": 2, "model": 2}
        devices = np.array([Device(i) for i in (0, 1, 1, 0, 2, 2, 0, 0)]).reshape(2, 2, 2)

    found = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append((local_parts(Mesh), local_rows(8, Mesh).tolist()))
    assert found == [([0, 1, 3], [0, 1, 2, 3, 6, 7]), ([0, 1], [0, 1, 2, 3]), ([2], [4, 5])]


def test_what_a_lost_process_leaves_to_read():
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllReduce failed: Connection closed by peer\nand more")
    assert distributed.explain(lost).startswith("error: process 0 of 1 lost another one (UNKNOWN: Gloo AllReduce")
    assert "\n" not in distributed.explain(lost)
    for raised in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), ValueError("a peer")):
        try:
            raise raised
        except Exception as error:
            assert "Traceback" in distributed.explain(error)


@pytest.mark.usefixtures("unchecked")
def test_a_mesh_of_slices(monkeypatch):
    """A replica for each slice, and none that is cut by one."""

    class Device:
        platform = device_kind = "cpu"

        def __init__(self, number):
            self.id, self.slice_index, self.process_index = number, number // 4, 0

        def __repr__(self):
            return str(self.id)

    devices = [Device(i) for i in (4, 0, 5, 1, 2, 6, 3, 7)]
    with pytest.raises(ClaraError, match="1 replicas do not divide among 2 slices"):
        make_mesh(8, 1, 1, devices)
    made = {}
    monkeypatch.setattr(jax.sharding, "Mesh", lambda placed, names, axis_types: made.setdefault("devices", placed))
    for sizes in ((-1, 1), (2, 2), (2, 1, 4)):
        made.clear()
        make_mesh(*sizes, devices=devices)
        for replica in made["devices"]:
            assert len({device.slice_index for device in replica.flat}) == 1
