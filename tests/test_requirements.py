"""What is installed: requirements.txt is the package with all extras, and every import has its package."""

import ast
import sys
import tomllib

import pytest

from clara_jax import extras
from clara_jax.errors import ClaraError
from tests.locations import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
# Packages that others of ours always bring, and those that no extra has: they are asked for where they are used.
BROUGHT = {"markupsafe", "mcp_types", "pydantic_core", "starlette"}
# The packages whose names differ from those of the modules in them.
DISTRIBUTION = {
    "absl": "absl-py",
    "backports": "backports.zstd",
    "docx": "python-docx",
    "haystack": "haystack-ai",
    "lance": "pylance",
    "langchain_core": "langchain-core",
    "llama_index": "llama-index-core",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "pptx": "python-pptx",
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "pyyaml",
}


def name_of(requirement):
    return requirement.partition(";")[0].partition(">=")[0].partition("[")[0].strip()


def named_extras(requirement):
    return requirement.partition("[")[2].rstrip("]").split(",")


def needs(extra):
    """Return the requirements of an extra, with those of the extras that it names."""
    found = set()
    for requirement in OPTIONAL[extra]:
        if name_of(requirement) == PROJECT["name"]:
            found = found.union(*map(needs, named_extras(requirement)))
        else:
            found.add(requirement)
    return found


def listed(file):
    """Return the requirements in a file, as pyproject.toml spells them."""
    lines = (ROOT / file).read_text().replace('"', "'").splitlines()
    return sorted(line for line in lines if line and not line.startswith("#"))


def test_requirements_are_the_package_with_all_extras():
    assert listed("requirements.txt") == sorted({*PROJECT["dependencies"], *needs("all")})
    assert listed("requirements-aot.txt") == OPTIONAL["aot"]
    # Other people's tools, which the tests alone need, and what many machines need that fill one store.
    added = {"haystack", "langchain", "llamaindex", "mcp", "shards"}
    slow = {"mlflow", "ray", "trackio", "wandb"}  # heavy ones
    assert set(named_extras(OPTIONAL["all"][0])) == OPTIONAL.keys() - {"all", "aot", "documents", *added, *slow}
    for names, file in ((added, "requirements-dev.txt"), (slow, "requirements-slow.txt")):
        packages = {one for name in names for one in OPTIONAL[name] if name_of(one) != PROJECT["name"]}
        assert packages <= set(listed(file))


def imported(path):
    """Return the packages that a file imports, and whether each import is at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            package = name.partition(".")[0]
            if package not in sys.stdlib_module_names and package != "clara_jax":
                yield package


def test_every_import_has_its_package():
    core, everything = set(map(name_of, PROJECT["dependencies"])), set(map(name_of, set().union(*map(needs, OPTIONAL))))
    missing, unnamed = set(), set()
    for path in (ROOT / "clara_jax").rglob("*.py"):
        for package in set(imported(path)) - BROUGHT:
            name = DISTRIBUTION.get(package, package)
            if name not in core | everything | {"compression", "charset_normalizer", "msvcrt"}:
                missing.add(f"{path.name}: {package}")
            if name in everything - core and package not in extras.OF:
                unnamed.add(package)
    assert missing == set() and unnamed == set()
    for package, extra in extras.OF.items():
        assert DISTRIBUTION.get(package, package) in map(name_of, needs(extra)) or package in BROUGHT


def test_a_missing_package_is_one_line_that_names_the_extra():
    with (
        pytest.raises(ClaraError, match=r"fastapi is not installed; pip install 'clara_jax\[serve\]'"),
        extras.asked_for(),
    ):
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
    # requirements.txt has not every extra, those of trackers for one.
    with pytest.raises(ClaraError, match=r"in a checkout pip install '\.\[wandb\]'$"), extras.asked_for():
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
    with pytest.raises(ModuleNotFoundError), extras.asked_for():
        raise ModuleNotFoundError("No module named 'something_else'", name="something_else")
