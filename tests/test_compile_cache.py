"""Compiled programs that are kept: found by the next process, the same bits, and never a reason to fail."""

import itertools
import os
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from clara_jax import compile_cache
from clara_jax.formats.jsonl import zstd
from tests.locations import ROOT
from tests.test_rag_pipeline import write_checkpoint
from tests.tiny import document

# A command as any other: what it prints, and how many programs it has compiled and loaded.
CODE = """
import sys
from collections import Counter
from clara_jax import command

def main():
    import jax, numpy as np
    events = Counter()
    jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    y = jax.jit(jax.grad(lambda x: jax.numpy.sum(jax.nn.softmax(x @ x) * x)))(x)
    hits, misses = (events[f"/jax/compilation_cache/cache_{name}"] for name in ("hits", "misses"))
    print(np.asarray(y).tobytes().hex(), hits, misses, sys.argv[1:])

command.run(main)
"""


# `ask`, which ends with how many programs it has loaded and compiled.
ASK = """
from collections import Counter
from clara_jax import ask, command

def main():
    import jax
    events = Counter()
    jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
    ask.main()
    print(*(events[f"/jax/compilation_cache/cache_{name}"] for name in ("hits", "misses")))

command.run(main)
"""


def start(home, *arguments, code=CODE, **variables):
    """What the command prints: the result's bytes, programs loaded, programs kept, and its arguments."""
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in names and not k.startswith("JAX_PERSISTENT")}
    environment |= {"XDG_CACHE_HOME": str(home), "JAX_NUM_CPU_DEVICES": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(maxsplit=3), done.stderr


def entries(home):
    return sorted(home.glob(f"clara_jax/compiled/*/*{compile_cache.ENTRY}"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder, and the result, of a command that was the first of all."""
    home = tmp_path_factory.mktemp("home")
    (result, hits, misses, _), said = start(home)
    assert hits == "0" and int(misses) == len(entries(home)) > 0 and not said
    return home, result


def test_the_second_start_loads_the_same_bits_and_says_nothing(first):
    home, result = first
    (again, hits, misses, _), said = start(home)
    assert (again, misses, said) == (result, "0", "") and int(hits) > 0


@pytest.mark.slow
def test_a_second_question_compiles_nothing(mesh, tmp_path):
    checkpoint, notes = write_checkpoint(tmp_path, mesh), tmp_path / "notes.txt"
    notes.write_text(document(3))
    words = ("--checkpoint", str(checkpoint), "--documents", str(notes), "--max-new-tokens", "4", "Where is it?")
    said = [" ".join(start(tmp_path / "home", *words, code=ASK)[0]).split() for _ in range(2)]
    (hits, compiled), (loaded, again) = ([int(count) for count in one[-2:]] for one in said)
    assert compiled > 10
    assert again == 0 and loaded == hits + compiled


def test_a_flag_of_every_command_switches_it_off(first):
    home, result = first
    before = entries(home)
    (again, hits, misses, arguments), said = start(home, "--no-compile-cache", "rest")
    assert (again, hits, misses, arguments.strip(), said) == (result, "0", "0", "['rest']", "")
    assert entries(home) == before


def test_importing_the_package_configures_nothing(tmp_path):
    code = "import os; import clara_jax, clara_jax.api, jax\n"
    code += "print(jax.config.jax_compilation_cache_dir, 'JAX_COMPILATION_CACHE_DIR' in os.environ)"
    assert start(tmp_path, code=code)[0] == ["None", "False"]


def test_processes_at_once_then_damage(first, tmp_path):
    """Two that begin together; then entries as a killed process or a full disk leaves them: compiled again, and removed
    when the command ends."""
    with ThreadPoolExecutor() as pool:
        for (result, *_), said in pool.map(start, [tmp_path] * 2):
            assert result == first[1] and not said
    root = tmp_path / "clara_jax/compiled"
    whole = entries(tmp_path)
    assert all(compile_cache._is_whole(path) for path in whole)
    for path, keep in zip(whole, itertools.cycle((0.5, 0, 0.99)), strict=False):
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])
    os.utime(root / compile_cache.STAMP, (0, 0))  # as if the folder had been looked at long ago
    (result, hits, *_), said = start(tmp_path)
    assert result == first[1] and hits == "0" and said.count("Error reading persistent compilation cache") == len(whole)
    assert not entries(tmp_path)
    (result, hits, misses, _), said = start(tmp_path)
    assert (result, hits, misses, said) == (first[1], "0", str(len(whole)), "")


def test_a_folder_that_cannot_be_made_is_a_warning(first, tmp_path):
    (tmp_path / "clara_jax").write_text("a file")
    (result, hits, misses, _), said = start(tmp_path)
    assert (result, hits, misses) == (first[1], "0", "0")
    assert said.startswith("warning: ") and "compiled programs are not kept: Not a directory" in said
    assert said.count("\n") == 1


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """What `enable` sets in a process whose cache folder is ``tmp_path``: nothing of it comes to pass."""
    options = {}
    monkeypatch.setattr(compile_cache, "_configure", options.update)
    monkeypatch.setattr(compile_cache.atexit, "register", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return options


def test_a_full_disk_is_a_warning(configured, monkeypatch, capsys):
    monkeypatch.setattr(compile_cache, "RESERVE", 1 << 60)
    compile_cache.enable()
    said = capsys.readouterr().err
    assert not configured and said.startswith("warning: ") and "MiB are free" in said and said.count("\n") == 1


def test_small_programs_are_kept_too(configured, tmp_path):
    compile_cache.enable()
    folder = tmp_path / "clara_jax/compiled" / compile_cache.machine()
    assert configured.pop("jax_compilation_cache_dir") == str(folder) and folder.is_dir()
    assert configured == {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


@pytest.mark.parametrize(
    "variable, value", [("JAX_COMPILATION_CACHE_DIR", "/x"), ("JAX_ENABLE_COMPILATION_CACHE", "0")]
)
def test_jaxs_variables_come_first(configured, monkeypatch, tmp_path, variable, value):
    monkeypatch.setenv(variable, value)
    compile_cache.enable()
    assert not configured and not list(tmp_path.iterdir())


@pytest.mark.parametrize("compress", [zlib.compress, zstd.compress])
def test_what_is_whole(tmp_path, compress):
    data = compress(os.urandom(1000))
    for length in range(0, len(data) + 1, 7):
        (tmp_path / "entry").write_bytes(data[:length])
        assert compile_cache._is_whole(tmp_path / "entry") == (length == len(data))
    (tmp_path / "entry").write_bytes(data)
    assert compile_cache._is_whole(tmp_path / "entry")


def test_the_longest_unused_go_first(tmp_path):
    (tmp_path / compile_cache.STAMP).touch()
    now = time.time()
    for age, folder in enumerate(("one", "two", "one", "two")):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / f"{age}{compile_cache.ENTRY}"
        path.write_bytes(zlib.compress(os.urandom(1000)))
        os.utime(path, (now - age, now - age))
    (tmp_path / "one" / "note").write_text("not an entry")
    compile_cache.trim(tmp_path, limit=2500)
    left = {path.name for path in tmp_path.glob("*/*")}
    assert left == {f"0{compile_cache.ENTRY}", f"1{compile_cache.ENTRY}", "note"}
    compile_cache.trim(tmp_path, limit=0)
    assert {path.name for path in tmp_path.glob("*/*")} == {"note"}


def test_another_processor_or_number_of_cores_has_another_folder(monkeypatch):
    here = compile_cache.machine()
    assert here == compile_cache.machine()
    with monkeypatch.context() as patch:
        patch.setenv("PJRT_NPROC", "77")
        cores = compile_cache.machine()
    monkeypatch.setattr(compile_cache.importlib.metadata, "version", {"jax": "0.10", "jaxlib": "0.10"}.get)
    facts = "vendor_id\t: AuthenticAMD\nmodel\t\t: 1\ncpu MHz\t\t: {}\nflags\t\t: fpu avx2{}\n\nvendor_id\t: Other\n"

    def read(clock, flags):
        monkeypatch.setattr(compile_cache.Path, "read_text", lambda *_, **__: facts.format(clock, flags))
        return compile_cache.machine()

    assert read(2000, "") == read(3000, "") != read(2000, " amx_bf16")
    assert len({here, cores, read(2000, ""), read(2000, " amx_bf16")}) == 4
