"""Which precision a machine gets."""

import pytest

from clara_jax.errors import ClaraError
from clara_jax.model import precision
from clara_jax.model.precision import CHOICES, PRECISIONS, check, has_instructions, resolve


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu sse2 avx2 avx512f amx_tile amx_bf16 amx_int8", True),
        ("fpu avx512f avx512_bf16", True),
        ("fpu sse2 avx2 fma", False),
        ("fpu avx512f avx512_bf16_of_another_kind", False),
    ],
)
def test_the_processor_says_what_it_can(tmp_path, flags, found):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nbugs\t: amx_bf16\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert has_instructions(path) is found


def test_a_system_that_does_not_say_has_none(tmp_path):
    assert has_instructions(tmp_path / "missing") is False


@pytest.mark.parametrize(("there", "on_cpu"), [(True, "mixed"), (False, "float32")])
def test_auto(monkeypatch, there, on_cpu):
    monkeypatch.setattr(precision, "has_instructions", lambda: there)
    assert resolve("auto", "cpu") == on_cpu
    assert resolve("auto", "tpu") == resolve("auto", "gpu") == "bfloat16"
    assert [resolve(name, "cpu") for name in PRECISIONS] == list(PRECISIONS)
    assert set(CHOICES) == {"auto", *PRECISIONS}


def test_an_unknown_one_is_refused():
    with pytest.raises(ClaraError, match="precision: 'auto' must be one of bfloat16, float32, mixed"):
        check("auto")
