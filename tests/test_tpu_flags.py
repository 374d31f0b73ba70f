"""Where libtpu is installed for its compiler alone, commands begin without its search for TPUs."""

import importlib.machinery
import importlib.util
import sys
import types

import pytest

from clara_jax import tpu_flags


@pytest.fixture
def machine(monkeypatch):
    """A machine with libtpu, without TPUs and GPUs, on which nothing is set and JAX is not imported."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(tpu_flags.glob, "glob", lambda pattern: [])
    monkeypatch.delitem(sys.modules, "jax")
    have(monkeypatch, "libtpu")
    return monkeypatch


def have(monkeypatch, *packages):
    spec = importlib.machinery.ModuleSpec("found", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name in packages else None)


def test_libtpu_alone_is_not_started(machine):
    tpu_flags.skip_absent()
    assert tpu_flags.os.environ["JAX_PLATFORMS"] == "cpu"


def test_jax_that_was_imported_before_is_told(machine):
    said = []
    config = types.SimpleNamespace(update=lambda *change: said.append(change))
    machine.setitem(sys.modules, "jax", types.SimpleNamespace(config=config))
    tpu_flags.skip_absent()
    assert said == [("jax_platforms", "cpu")]


@pytest.mark.parametrize("packages", [(), ("libtpu", "jax_plugins")])
def test_without_libtpu_or_with_a_gpu_nothing_changes(machine, packages):
    have(machine, *packages)
    tpu_flags.skip_absent()
    assert "JAX_PLATFORMS" not in tpu_flags.os.environ


def test_with_a_tpu_or_a_choice_nothing_changes(machine):
    machine.setattr(tpu_flags.glob, "glob", lambda pattern: ["/dev/vfio/0"] if "vfio" in pattern else [])
    tpu_flags.skip_absent()
    assert "JAX_PLATFORMS" not in tpu_flags.os.environ
    machine.setattr(tpu_flags.glob, "glob", lambda pattern: [])
    machine.setenv("JAX_PLATFORMS", "tpu,cpu")
    tpu_flags.skip_absent()
    assert tpu_flags.os.environ["JAX_PLATFORMS"] == "tpu,cpu"
