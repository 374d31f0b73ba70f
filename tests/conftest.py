"""Tests run on eight fake CPU devices: one of them for most, a 4 x 2 mesh for those on sharding."""

import gc
import mmap
import os
import tarfile
from collections import Counter
from glob import glob

import jax
import jaxlib
import jaxtyping
import pytest
from jax.experimental.compilation_cache import compilation_cache

from clara_jax import compile_cache
from clara_jax.chips import ABSENT
from tests import signatures  # noqa: F401  (by its name below)
from tests.locations import ROOT

# Before these modules are imported: shapes and dtypes in their signatures are checked whenever they are called.
jaxtyping.install_import_hook(
    [f"clara_jax.{room}" for room in ("inference", "method", "model")], "tests.signatures.checked"
)
jax.config.update("jax_num_cpu_devices", 8)
KEPT = ROOT / "tests" / "kept" / "2026_11.tar.gz"
# Tests compile much and run little. So do the processes that they start. `optimized` is for what needs the rest.
UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ.setdefault(UNOPTIMIZED, "1")
jax.config.update("jax_disable_most_optimizations", os.environ[UNOPTIMIZED] != "0")
# These two compile five times as fast for CPUs, to programs that are a little slower: XLA's older generator of code for
# fusions, and one LLVM module for a program instead of up to 32 that several threads compile.
FLAGS = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
# Without these: a worker of pytest-xdist has them from the process that started it.
FLAGS_OF_USERS = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in FLAGS]


def is_known(flag):
    """Return whether this jaxlib has a flag: one that XLA does not know ends the process."""
    name = flag.removeprefix("--").partition("=")[0].encode()
    for library in glob(f"{os.path.dirname(jaxlib.__file__)}/libjax_common.*"):
        with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(name) >= 0:
                return True
    return False


os.environ["XLA_FLAGS"] = " ".join([*FLAGS_OF_USERS, *filter(is_known, FLAGS)])
# Threads that XLA has for all devices of a process, here and in what a test starts; by default as many as there are
# cores or devices. A collective blocks its thread until all devices are there, and a device may be in two at once: with
# a thread for each device the last one may find none, and all wait forever.
os.environ.setdefault("PJRT_NPROC", "32")
if not any(glob(device) for device in ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*")):
    # Where the compiler for TPUs is installed, this process and every one that a test starts would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"
    for variable, value in ABSENT.items():
        os.environ.setdefault(variable, value)

# What one run of the tests has compiled, the next one loads: `JAX_ENABLE_COMPILATION_CACHE=false` for a cold one.
compile_cache.enable()

from clara_jax.model.sharding import make_mesh  # noqa: E402  (after the device count is set)


def pytest_collection_modifyitems(items):
    """Whole commands first, then what trains: the long files should not be what one worker is left with at the end."""
    long = ("test_resume", "test_train_command", "test_evaluate_command", "test_rag_pipeline", "test_processes")
    long += ("test_smoke", "training/", "method/")
    items.sort(key=lambda item: next((i for i, name in enumerate(long) if name in item.nodeid), len(long)))


def pytest_terminal_summary(terminalreporter, config):
    """Whatever was not checked is listed: what was skipped, with its reason, and what was not even chosen."""
    skipped = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, list | tuple) else str(report.longrepr)
        skipped[report.nodeid.partition("::")[0], reason.removeprefix("Skipped: ")] += 1
    lines = [f"{file}, {count} skipped: {reason}" for (file, reason), count in sorted(skipped.items())]
    if config.option.markexpr == config.getini("addopts")[1]:
        lines.append("tests marked slow (python -m pytest -q -m slow) and drill (python -m pytest -q -m drill)")
    if lines:
        terminalreporter.section("not checked")
    for line in lines:
        terminalreporter.write_line(line)


def pytest_collection_finish():
    """All that was imported and collected stays to the end: the garbage collector need not go through it each time that
    a program is traced, which makes garbage by the million."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """A compiled program takes tens of memory maps, of which the kernel gives a process 65,530 in all: a worker that
    kept the programs of every module would end in a segmentation fault."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Files that an earlier version wrote, unpacked; what they name by a path is found from their folder."""
    with tarfile.open(KEPT) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unchecked(monkeypatch):
    """Check no signatures: for tests whose objects only look like what is annotated."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def mesh():
    """A mesh of one device."""
    return make_mesh(1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def mesh42():
    """Eight devices, data 4 x model 2."""
    return make_mesh(4, 2)


@pytest.fixture(scope="module")
def optimized():
    """Compile as users do, with all optimizations: for numbers of the released implementation, for memory and time."""
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(UNOPTIMIZED, "0")
        patch.setenv("XLA_FLAGS", " ".join(FLAGS_OF_USERS))  # for what a test starts; this process has read them
        yield
    jax.config.update("jax_disable_most_optimizations", os.environ[UNOPTIMIZED] != "0")


@pytest.fixture(scope="session")
def usual_code():
    """Options of the compiler that undo `FLAGS`: for what is read off a program as users get it."""
    return {"xla_cpu_use_fusion_emitters": True} if is_known(FLAGS[0]) else {}


@pytest.fixture(scope="module")
def uncached():
    """Neither load nor keep compiled programs: JAX keeps programs for topologies, and cannot load them."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def mesh222():
    """Eight devices, two along each axis: two replicas, whose rows are four parts."""
    return make_mesh(2, 2, 2)
