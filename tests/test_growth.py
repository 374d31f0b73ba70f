"""The benchmark of growth: exponents, the verdict on them, and all of it on a tiny model."""

import json
import subprocess
import sys

import pytest

from benchmarks import growth
from tests import tiny
from tests.locations import ROOT


def _case(*must):
    return growth.GrowthCase("search", "stored", "chunks", (10, 20, 40), must, ())


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert growth.exponent((1, 2, 4, 8), [3 * size**1.5 for size in (1, 2, 4, 8)]) == pytest.approx(1.5)
    assert growth.exponent((5, 10, 20), (2.0, 2.0, 2.0)) == pytest.approx(0.0)


@pytest.mark.parametrize(("power", "worse"), [(0.7, False), (1.0, False), (1.09, False), (1.2, True)])
def test_time_may_grow_as_the_work_does_and_not_faster(power, worse):
    seconds = [[0.1 * size**power, 0.1 * size ** (power + 0.01)] for size in (10, 20, 40)]
    found = growth.summary(_case(10, 20, 40), seconds)
    assert found["faster than it must"] is worse
    assert found["exponents of turns"] == pytest.approx([power, power + 0.01])
    assert ("faster than it must: search with chunks, stored" in growth.verdict([found])) is worse
    assert growth.verdict([found]).startswith("nothing grows faster") is not worse
    assert f"| 10 to 40 | {seconds[0][0]:.2g}" in growth.table([found]).splitlines()[2]


def test_work_that_grows_as_a_square_may_take_time_that_does():
    found = growth.summary(_case(100, 400, 1600), [[size**2.0] for size in (10, 20, 40)])
    assert (found["exponent of the work"], found["faster than it must"]) == (pytest.approx(2.0), False)


def test_the_picture_has_a_panel_for_each_case(tmp_path):
    results = [growth.summary(_case(10, 20, 40), [[1.0], [2.0], [4.0]])]
    results.append(results[0] | {"panel": "compression", "axis": "documents"})
    growth.draw(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_every_case_is_timed(tmp_path):
    base, out = tiny.write_base(tmp_path / "base"), tmp_path / "out.json"
    sizes = {"lengths": (32, 64), "batches": (1, 2), "candidates": (5, 10), "chunks": (300, 600)}
    given = [word for name, values in sizes.items() for word in (f"--{name}", *map(str, values))]
    command = [sys.executable, "-m", "benchmarks.growth", f"--base={base}", f"--output={out}", "--repeats=1", *given]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    # Where so little is computed, what is fixed decides, and a busy machine: either verdict may come of it.
    assert done.returncode in (0, 1) and ("grows faster than it must" in done.stdout), done.stderr[-2000:]
    found = json.loads(out.read_text())["results"]
    assert [tuple(row["sizes"]) for row in found] == [*sizes.values()][:3] + [sizes["candidates"], sizes["chunks"]]
    assert all(second > 0 for row in found for second in row["seconds"])
    works = {(row["axis"], row["case"]): row["exponent of the work"] for row in found}
    assert works["candidates", "memories stored"] == pytest.approx(0, abs=1e-6)
    assert works["documents", "compression"] == pytest.approx(1)
    # Beside a document's tokens stand the memory tokens, whose number does not grow.
    tokens = [length + growth.CLARA.memory_tokens for length in sizes["lengths"]]
    assert growth.exponent(sizes["lengths"], tokens) < works["tokens of a document", "compression"] < 2
