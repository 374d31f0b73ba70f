"""The study of the estimators: what it makes of finished runs, and that its configurations are ones that train."""

import json

import pytest

from benchmarks import topk_study
from clara_jax.configs import topk_study as config
from clara_jax.errors import ClaraError
from clara_jax.method.estimators.methods import METHODS
from clara_jax.training.config_parsing import resolve


def _finish(workdir, case, seed, recalls):
    run = topk_study.place(workdir, case, seed)
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"finished": True}))
    rows = [
        {"stage": "end_to_end", "step": step} | {f"eval_{name}": recall for name in topk_study.MEASURED}
        for step, recall in enumerate(recalls)
    ]
    rows.insert(1, {"stage": "end_to_end", "step": 0, "loss": 1.0})  # a step of training is no evaluation
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_compares_cases_seed_by_seed(tmp_path):
    for seed, recall in enumerate((0.2, 0.4, 0.6)):
        _finish(tmp_path, "iterative", seed, (0.0, recall))
        _finish(tmp_path, "softsort:temperature=0.5", seed, (0.0, recall + 0.125))
    cases = ("iterative", "softsort:temperature=0.5", "lapsum")  # the last has no run yet
    found = topk_study.curves(tmp_path, cases, range(3))
    first, second = topk_study.table(found).splitlines()[2:]
    assert first.startswith("| iterative | 3 | 0.400 [0.200, 0.600] |") and first.endswith("|  |  |  |  |")
    # Every seed gains as much, so the interval of the difference has no width, however wide those of the means are.
    assert second.count("+0.125 [+0.125, +0.125]") == len(topk_study.MEASURED)
    topk_study.draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"


def test_a_report_of_nothing_says_so(tmp_path):
    with pytest.raises(ClaraError, match="no finished run"):
        topk_study.curves(tmp_path, list(METHODS), range(5))


def test_a_finished_run_is_not_repeated_and_a_broken_one_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(topk_study, "CONFIG", str(tmp_path / "missing.py"))
    _finish(tmp_path, "iterative", 0, (0.5,))
    topk_study.train(topk_study.place(tmp_path, "iterative", 0), "part=rank")
    with pytest.raises(ClaraError, match=r"iterative-1: .*missing\.py"):
        topk_study.train(topk_study.place(tmp_path, "iterative", 1), "part=rank")


@pytest.mark.parametrize("method", METHODS)
def test_every_estimator_has_a_configuration(method):
    run = resolve(config.get_config(f"part=rank,start=somewhere,method={method},seed=3"))
    assert [(stage.name, stage.topk.method) for stage in run.stages] == [("end_to_end", method)]
