"""The picture of a run shows what the rows hold, and any run can be drawn: unfinished, odd, or empty."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from clara_jax.errors import ClaraError
from clara_jax.training.curves import draw


def training(stage, steps, **changes):
    return [
        {"stage": stage, "step": i, "loss": 3 - i / 9, "grad_norm": 1.0, "learning_rate": 1e-3} | changes for i in steps
    ]


EVALUATION = {"eval_loss": 2.0, "eval_ce_no_memory": 2.5, "eval_exact_match": 0.5, "eval_exact_match_no_memory": 0.1}
SUMMARY = {"stage": "scp", "steps": 3, "finished": True, "held_out_loss": [3.0, 2.0]}


@pytest.fixture
def drawn(monkeypatch):
    """(label, steps, values) of every curve."""
    curves, plot = [], Axes.plot

    def record(axes, steps, values, *args, **options):
        curves.append((options.get("label"), list(steps), list(values)))
        return plot(axes, steps, values, *args, **options)

    monkeypatch.setattr(Axes, "plot", record)
    return curves


def test_every_value_is_drawn_where_it_belongs(tmp_path, drawn):
    rows = [
        {"stage": "instruct", "step": 0, "eval_recall@1": 0.25} | EVALUATION,
        *training("instruct", range(3)),
        {"stage": "instruct", "step": 3} | EVALUATION,
        SUMMARY | {"stage": "instruct"},
    ]
    draw(rows, tmp_path / "curves.png")
    curves = {label: (steps, values) for label, steps, values in drawn}
    assert curves["training"][0] == [0, 1, 2] and np.allclose(curves["training"][1], [3, 3 - 1 / 9, 3 - 2 / 9])
    assert curves["held-out"] == ([0, 3], [2.0, 2.0])
    assert curves["held-out CE, no memory"] == ([0, 3], [2.5, 2.5])
    assert curves["exact match"] == ([0, 3], [0.5, 0.5])
    assert curves["exact match, no memory"] == ([0, 3], [0.1, 0.1])
    assert curves["Recall@1"] == ([0], [0.25])
    assert curves["gradient norm"][1] == [1.0] * 3 and curves["learning rate"][1] == [1e-3] * 3
    assert len(curves) == 9  # the raw losses have no label


def test_smoothing_is_a_mean_over_neighbours(tmp_path, drawn):
    draw(training("scp", range(40)) + training("scp", [40], loss=100.0), tmp_path / "curves.png")
    values = next(values for label, _, values in drawn if label == "training")
    assert np.allclose(values[2:38], [3 - i / 9 for i in range(2, 38)])  # a mean leaves a line where it is
    assert values[40] == pytest.approx((100 + 3 - 38 / 9 + 3 - 39 / 9) / 3)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [SUMMARY],
        training("scp", [0]),
        training("scp", range(3)) + [SUMMARY],
        [{"stage": "scp", "step": 0} | EVALUATION],
        training("scp", range(4), loss=float("nan"), grad_norm=float("inf"), learning_rate=None),
        training("scp", range(4), grad_norm=0.0, learning_rate=0.0),
        training("scp", range(2))
        + training("end_to_end", range(2))
        + [{"stage": "end_to_end", "step": 2} | EVALUATION],
    ],
    ids=["empty", "no-steps", "one-step", "no-evaluation", "no-training", "not-finite", "zeros", "two-stages"],
)
@pytest.mark.filterwarnings("error")
def test_any_run_can_be_drawn(tmp_path, rows):
    draw(rows, tmp_path / "curves.png")
    image = imread(tmp_path / "curves.png")
    assert min(image.shape[:2]) > 300 and image[..., :3].std() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(ClaraError, match="curves cannot be written: No such file"):
        draw(training("scp", range(2)), tmp_path / "none" / "curves.png")
