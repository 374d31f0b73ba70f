"""A run whose memories start on a scaffold: sections of one kind, lengths that grow, records of several kinds."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from clara_jax import Clara
from clara_jax.checkpoints.integrity import read_metadata
from clara_jax.checkpoints.retention import checkpoints
from clara_jax.checkpoints.run import load_arrays
from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.loop import run
from clara_jax.training.metrics import read_metrics
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stopping import Stopped, StopSignal
from tests import tiny
from tests.configurations import changed, stage

CLARA = ClaraConfig(
    doc_max_length=24, compress_rate=4, lora_rank=4, lora_dropout=0.0, different_mem_tokens=False, memory_map="affine"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaffold")
    tiny.write_base(folder / "base")
    tiny.write_records(folder)
    passages = [{"text": " ".join(tiny.document(i + j) for j in range(4))} for i in range(16)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    return folder


def config(place):
    optimizer = dict(batch_size=4, learning_rate=1e-2, warmup=0.0)
    pool, asked = f"autoencode:{place}/pool.jsonl", f"instruct:{place}/instruct.jsonl"
    stages = (
        StageConfig(
            "autoencode_12",
            data=dict(train=(f"{place}/pool.jsonl", f"continue:{place}/pool.jsonl"), doc_max_length=12),
            optimizer=dict(steps=3) | optimizer,
            objective=dict(scaffold=1.0, mse_weight=0.0),
            evaluation=dict(data=(pool,), limit=4),
            saving=dict(every=2),
        ),
        StageConfig(
            "instruct_24",
            data=dict(
                train=(asked, f"questions:{place}/scp.jsonl", pool), weights=(1.0, 1.0, 1.0), crop="answer", buckets=2
            ),
            optimizer=dict(steps=4) | optimizer,
            objective=dict(scaffold=1.0, scaffold_end=0.0, scaffold_steps=2, ce_over="records", mse_weight=0.0),
            topk=dict(k=1),
            evaluation=dict(data=(f"scp:{place}/scp.jsonl", asked, pool), limit=4, answers=2, answer_tokens=3),
            saving=dict(every=2),
        ),
    )
    model = ModelSection(str(place / "base"), "float32")
    return RunConfig(stages, model, CLARA, reporting=dict(progress=False, tensorboard=False, show=0), mesh=(1, 1))


def losses(workdir):
    return [
        {name: value for name, value in row.items() if name.startswith(("loss", "step", "scaffold", "eval_ce"))}
        for row in read_metrics(workdir / "metrics.jsonl")
        if "step" in row
    ]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs take all devices; tests have eight fake ones."""
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args: devices)
        yield


@pytest.fixture(scope="module")
def finished(place):
    run(config(place), place / "run", StopSignal())
    return place / "run"


def test_the_scaffold_falls_as_it_is_told(finished):
    rows = [row for row in read_metrics(finished / "metrics.jsonl") if "loss" in row]
    assert [row["stage"] for row in rows] == ["autoencode_12"] * 3 + ["instruct_24"] * 4
    assert ["scaffold" in row for row in rows] == [False] * 3 + [True] * 4, "a constant one is no news"
    np.testing.assert_allclose([row["scaffold"] for row in rows[3:]], [1, 0.5, 0, 0], atol=1e-6)
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[2]["grad_norm/tokens/map"] > 0


@pytest.mark.parametrize("number, end, says", [(0, None, ""), (1, 0.0, "autoencode_12"), (1, None, "instruct_24")])
def test_what_ends_on_a_scaffold_says_so(place, tmp_path, capsys, number, end, says):
    """One line at the stage's end, with what to do; nothing where none is left."""
    autoencode, instruct = config(place).stages
    short = dict(data=dict(limit=4), optimizer=dict(steps=1), evaluation=dict(data=(), answers=0))
    scaffold = dict(scaffold=float(number), scaffold_steps=None)
    autoencode = changed(autoencode, objective=scaffold | dict(scaffold_end=None), **short)
    instruct = changed(instruct, objective=scaffold | dict(scaffold_end=end), **short)
    run(dataclasses.replace(config(place), stages=(autoencode, instruct)), tmp_path / "run", StopSignal())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    if not says:
        assert not lines
    elif end == 0:
        assert len(lines) == 1 and "autoencode_12 ended with scaffold 1:" in lines[0]
        assert "instruct_24 is to take it away: use no checkpoint from before its end" in lines[0]
    else:
        assert len(lines) == 2 and all("ended with scaffold 1:" in line for line in lines)
        assert "set config.instruct_24.objective.scaffold_end=0" in lines[1]


def test_kinds_are_measured_apart(finished):
    (last,) = [row for row in read_metrics(finished / "metrics.jsonl") if row.get("step") == 4 and "eval_ce" in row]
    for name in ("ce", "ce_no_memory", "ce_other_memory", "exact_match"):
        assert np.isfinite(last[f"eval_{name}"]), name
    for kind in ("autoencode", "scp"):  # the second comes before the questions, and takes no answers from them
        assert np.isfinite(last[f"eval_{kind}_ce"]) and f"eval_{kind}_exact_match" not in last
    assert abs(last["eval_autoencode_ce"] - last["eval_ce"]) > 1e-3


def test_the_map_starts_at_the_embeddings_and_is_kept(finished):
    """The first checkpoint's map still lies near where the fit put it; every later one is opened with the model."""
    first, last = checkpoints(finished)[0], checkpoints(finished)[-1]
    maps = [load_arrays(path, only=("tokens",))["tokens"]["map"] for path in (first, last)]
    assert set(maps[0]) == {"scale", "center", "shift"}
    assert 0 < np.mean(np.abs(maps[0]["scale"])) < 0.2, "a fiftieth of the spreads' ratio, and a few steps"
    assert np.abs(maps[0]["center"]).mean() > 1e-3 and np.abs(maps[1]["scale"] - maps[0]["scale"]).max() > 1e-4
    assert read_metadata(first)["clara"]["doc_max_length"] == 12 and read_metadata(last)["clara"]["compress_rate"] == 4
    clara = Clara.load(finished)
    memories = clara.compress([tiny.document(0)])
    assert memories.array.shape == (1, 6, 64)
    np.testing.assert_array_equal(clara.bundle.params["tokens"]["map"]["shift"], maps[1]["shift"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_alike(place, finished):
    class After(StopSignal):
        """Tells to stop when it has been asked so often."""

        asked = 0

        def __call__(self):
            self.asked += 1
            return self.asked > 11

    workdir = place / "stopped"
    with pytest.raises(Stopped):
        run(config(place), workdir, After())
    run(config(place), workdir, StopSignal())
    assert losses(workdir) == losses(finished)
    ends = [json.loads((path / "run.json").read_text())["finished"]["fingerprint"] for path in (workdir, finished)]
    assert ends[0] == ends[1]


def test_what_a_scaffold_needs(place):
    good = config(place)
    with pytest.raises(
        ClaraError, match=r'autoencode_12.objective.scaffold is 1.0; only a memory map has one; set .*"affine"'
    ):
        RunConfig(good.stages, good.model, ClaraConfig(24, 4, different_mem_tokens=False), mesh=(1, 1))
    with pytest.raises(ClaraError, match="compress_rate .* 3 memory tokens of 6: only with one token for all places"):
        RunConfig(good.stages[:1], good.model, ClaraConfig(24, 4, memory_map="affine"), mesh=(1, 1))
    with pytest.raises(ClaraError, match="instruct_x.objective.scaffold is 2.0; it must be a number in"):
        stage("instruct_x", objective=dict(scaffold=2.0))
    with pytest.raises(
        ClaraError, match="end_to_end_x.objective.scaffold is 1.0; only stages that train the compressor"
    ):
        stage("end_to_end_x", objective=dict(scaffold=1.0))
    with pytest.raises(ClaraError, match="retrieval.data.train .* records of other kinds have no place"):
        stage("retrieval", data=dict(train=("autoencode:a.jsonl",)))
