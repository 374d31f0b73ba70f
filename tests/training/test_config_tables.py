"""The tables of docs/training.md are those that the fields' descriptions make."""

import re

from clara_jax.method.clara import ClaraConfig
from docs.config_tables import PAGE, SECTIONS, descriptions, table, with_tables


def test_the_page_is_current():
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- table: (\w+) -->", page)) == {cls.__name__ for cls in SECTIONS}
    assert with_tables(page) == page, "python -m docs.config_tables writes the tables anew"


def test_every_field_has_a_row():
    assert len(descriptions(ClaraConfig)) == 11
    assert "| `lora_rank` | 16 | a whole number |" in table(ClaraConfig)
    for cls in SECTIONS:
        assert table(cls).count("\n") == 2 + len(descriptions(cls)) and "[below](#" not in table(cls).replace("](#", "")
