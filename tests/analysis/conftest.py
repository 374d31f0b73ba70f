"""A tiny model whose roles differ, as if it had been trained."""

import pytest

from clara_jax import Clara
from clara_jax.checkpoints import opening
from clara_jax.method.clara import ClaraConfig
from tests.tiny import with_adapters, write_base

SIZES = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, max_length=256)


def make_bundle(folder, mesh, **base):
    return with_adapters(opening.from_base(str(write_base(folder, **base)), SIZES, mesh, "float32"))


@pytest.fixture(scope="package")
def clara(tmp_path_factory, mesh):
    return Clara(make_bundle(tmp_path_factory.mktemp("base"), mesh), batch_size=4)
