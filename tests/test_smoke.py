"""The README's first command, in its short form: from nothing to a trained model, as a user runs it."""

import subprocess
import sys

from clara_jax.training.metrics import read_metrics
from tests.locations import ROOT


def test_smoke_ci(tmp_path, optimized):
    """The command itself fails where a loss does not fall."""
    run = tmp_path / "smoke"
    out = subprocess.run(
        [sys.executable, "-m", "clara_jax.train", "--config", "configs/smoke.py:ci", "--workdir", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    rows = read_metrics(run / "metrics.jsonl")
    ends = {row["stage"]: row for row in rows if row.get("finished")}
    assert list(ends) == ["scp", "instruct", "end_to_end"]
    for end in ends.values():
        assert end["held_out_loss"][1] < end["held_out_loss"][0] and end["compilations"] == 1
    # A memory that is read: the answers are likelier with their document's than without one.
    assert ends["scp"]["held_out_ce"][1] < 0.95 * ends["scp"]["held_out_ce_no_memory"][1]
    assert {"held_out_recall@1", "held_out_exact_match", "held_out_exact_match_other_memory"} <= set(ends["end_to_end"])
    assert "finished: 3 stage(s)" in out.stdout
