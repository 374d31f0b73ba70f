"""Opening a model goes straight: few calls between files, and one declaration of its parameters."""

import pytest

from clara_jax.checkpoints import opening
from clara_jax.method.clara import ClaraConfig
from tests.file_calls import count_file_calls

# Calls between files of the package at commit e42d8c9, counted in the same way over the same files; 13, 11, 53, 53
# and 11 of them entered a higher floor, and each opening declared the base four times. In November 2026 they are 100,
# 126, 137, 129 and 75 calls, of which two enter a higher floor.
BEFORE = {"run": 219, "compact": 335, "peft": 529, "released": 515, "base": 177}
CLIMBS = {"run": 2}  # what the main process does for all


@pytest.mark.parametrize("form", BEFORE)
def test_opening_makes_at_most_half_of_the_calls_between_files_that_it_made(kept, mesh, form):
    clara = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4)

    def opened():
        if form == "base":
            return opening.from_base(str(kept / "base"), clara, mesh, "float32")
        return opening.load(kept / form, mesh, base=str(kept / "base"))

    opened()
    counted = count_file_calls(opened)
    assert 2 * counted.calls <= BEFORE[form]
    assert counted.climbs == CLIMBS.get(form, 0)
    declarations = {name: count for (_, name), count in counted.functions.items() if name.startswith("declare")}
    assert declarations == dict.fromkeys(("declare", "declare_base", "declare_lora", "declare_added_rows"), 1)
