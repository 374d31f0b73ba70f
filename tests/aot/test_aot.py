"""The command that plans: what it says of a small model, and one line for everything that cannot be."""

import importlib.util
import json
import subprocess
import sys

import pytest

from clara_jax.aot import __main__ as aot
from clara_jax.aot import lowering
from clara_jax.aot.roofline import GIB
from clara_jax.chips import CHIPS
from clara_jax.errors import ClaraError
from tests.aot.analytic_comm import step_bytes
from tests.aot.test_analytic_comm import WIDE
from tests.aot.test_planning import needs_libtpu

CONFIG = "configs/mistral7b_scp.py"


@pytest.fixture
def counted(monkeypatch):
    """Bytes that a device receives, with pencil and paper, for each step that the command lowers."""
    found, lower = [], lowering.train_step

    def train_step(model, stage, shapes, mesh):
        found.append(sum(step_bytes(model, stage, shapes, stage.optimizer.batch_size, mesh).values()))
        return lower(model, stage, shapes, mesh)

    monkeypatch.setattr(lowering, "train_step", train_step)
    return found


def run(monkeypatch, *arguments, config=CONFIG):
    monkeypatch.setattr(sys, "argv", ["aot", "--config", config, *arguments])
    aot.main()


def small(monkeypatch, folder, *arguments):
    """A plan of small sizes, as JSON."""
    (folder / "config.json").write_text(json.dumps(WIDE))
    sizes = [f"--config.clara.{field}" for field in ("doc_max_length=16", "compress_rate=4", "lora_rank=4")]
    sizes += [f"--base-config={folder / 'config.json'}", "--batch=8", "--text=12", "--target=8"]
    run(monkeypatch, *sizes, "--config.model.remat=full", f"--output={folder / 'plan.json'}", *arguments)
    return json.loads((folder / "plan.json").read_text())


@needs_libtpu
def test_a_small_step_is_compiled_and_reported(monkeypatch, tmp_path, capsys, counted):
    (program,) = small(monkeypatch, tmp_path, "--topology=v5e:2x4")["programs"]
    assert program["program"] == "scp" and program["fits"] and program["hbm"] == 16 * GIB
    assert set(program["memory"]) == {"arguments", "outputs", "temporaries", "program"}
    assert sum(program["collectives"].values()) == pytest.approx(counted[0], rel=0.1)
    assert program["flops"] > program["model_flops"] > 0 and program["traffic"] > program["memory"]["arguments"]
    assert program["binds"] == max(program["bounds"], key=program["bounds"].get)
    assert 0 < program["mfu_ceiling"] <= 1
    out = capsys.readouterr().out
    assert "v5e:2x4: 8 devices, mesh replica 1, data 8, model 1" in out and "| scp | 8 |" in out


@needs_libtpu
@pytest.mark.parametrize(
    "topology",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("v4:2x2x2", "v5p:2x2x2", "v6e:2x4")), "tpu7x:2x2x1"],
)
def test_every_chip(monkeypatch, tmp_path, topology, counted):
    """Steps, compressing and decoding; a tpu7x chip is two devices, and some of its collectives run on other cores."""
    plan = small(monkeypatch, tmp_path, f"--topology={topology}", "--programs=train,compress,decode")
    assert plan["mesh"] == {"replica": 1, "data": 8, "model": 1}
    step, compress, decode = plan["programs"]
    assert sum(step["collectives"].values()) == pytest.approx(counted[0], rel=0.1)
    assert compress["flops"] > compress["model_flops"] > 0 and set(compress["bounds"]) == set(step["bounds"])
    assert set(decode["bounds"]) == {"compute", "memory"} and all(program["fits"] for program in plan["programs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x2"], "known are v4, v5e, v5p, v6e, tpu7x"),
        (["--topology=v5e:8"], "chips along each axis"),
        ([], "--topology is missing"),
        (["--topology=v5e:2x4", "--mesh=many"], "--mesh: 'many' must be whole numbers"),
        (["--topology=v5e:2x4", "--programs=sing"], "must name some of train, compress, decode"),
        pytest.param(["--topology=v5e:2x4", "--mesh=3,2"], "does not match the 8 devices", marks=needs_libtpu),
        pytest.param(["--topology=v5e:2x4", "--batch=12"], "12 is not divisible by the 8 parts", marks=needs_libtpu),
        pytest.param(["--topology=v5e:3x5"], "not one that libtpu knows", marks=needs_libtpu),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch, arguments, message):
    with pytest.raises(ClaraError, match=message) as error:
        run(monkeypatch, *arguments)
    assert "\n" not in str(error.value)


def test_a_missing_libtpu_names_its_cure(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "libtpu" else found(name, *args)
    )
    with pytest.raises(ClaraError, match="pip install"):
        run(monkeypatch, "--topology=v5e:2x4")


def test_the_command_ends_with_two():
    command = [sys.executable, "-m", "clara_jax.aot", "--config", CONFIG, "--topology", "v9:2x2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --topology") and done.stderr.count("\n") == 1


def test_links_of_the_chip_with_the_fewest():
    v5e, v5p = CHIPS["v5e"], CHIPS["v5p"]
    assert v5e.bandwidth_in((4, 4)) == v5e.ici_bandwidth * 2 / 4  # a corner of a grid
    assert v5e.bandwidth_in((16, 16)) == v5e.ici_bandwidth  # a torus
    assert v5p.bandwidth_in((2, 2, 1)) == v5p.ici_bandwidth * 2 / 6
    assert v5p.bandwidth_in((4, 4, 4)) == v5p.ici_bandwidth


SLICES = ("v5e:4x4", "v6e:2x4", "v5p:2x2x1", "v5p:4x4x4", "v5p:8x8x8", "v6e:16x16")
RUNS = [(topology, stage) for topology in SLICES for stage in ("scp", "instruct", "end_to_end")]


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "stage"),
    [
        pytest.param(*RUNS[0], marks=pytest.mark.slow),
        *(pytest.param(*run, marks=pytest.mark.drill) for run in RUNS[1:]),
    ],
)
def test_mistral_7b(monkeypatch, tmp_path, topology, stage, counted):
    """The paper's batches where they have a row for each device, else so many; minutes and gigabytes each."""
    written = tmp_path / "plan.json"
    arguments = (f"--topology={topology}", "--config.model.remat=full", f"--output={written}")
    run(monkeypatch, *arguments, config=f"configs/mistral7b_{stage}.py")
    (program,) = json.loads(written.read_text())["programs"]
    assert program["fits"]
    assert sum(program["collectives"].values()) == pytest.approx(counted[0], rel=0.1)
