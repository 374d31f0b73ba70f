"""The floors of the house: imports point downward only."""

import ast
import collections

from tests.locations import ROOT

# From bottom to top. A folder, or a module at the root of the package, imports what stands below it; within a folder
# modules import each other, but not in a circle.
FLOORS = [
    {"errors", "spelling", "strict_json", "deprecation", "tpu_flags"},
    {
        "chips",
        "config_checks",
        "distributed",
        "extras",
        "files",
        "locks",
        "memory_count",
        "pages",
        "confined",
        "moved",
        "redaction",
        "shipped",
    },
    {"compile_cache", "huge_pages"},
    {"command"},
    {"formats", "metrics", "model"},
    {"input_pipeline"},
    {"method", "text"},
    {"checkpoints", "data"},
    {"inference"},
    {"inputs", "results", "retrieval", "training"},
    {"api", "configs"},
    {"arguments"},
    {"aot"},
    {"analysis", "base_lm", "rag_pipeline", "synthesis"},
    {"evaluation", "integrations", "serving"},
]
COMMANDS = {"__main__", "ask", "compress", "convert", "evaluate", "mcp", "serve", "synthesize", "track", "train"}
LARGEST_SHARE, MOST_LINES = 0.2, 450


def modules():
    """Return the syntax tree of each module of the package, by its dotted name without the package's."""
    found = {}
    for path in sorted((ROOT / "clara_jax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "clara_jax").with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def _is_for_types(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree, names):
    """Return the modules of the package that a module imports, at its top or within a function."""
    found = set()
    types = {node for block in ast.walk(tree) if _is_for_types(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if node in types:
            continue
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for candidate in candidates:
            if candidate.startswith("clara_jax."):
                candidate = candidate.removeprefix("clara_jax.")
                found.add(candidate if candidate in names else candidate.rpartition(".")[0])
    return found & names.keys() - {""}


def floor_of(module):
    top = module.partition(".")[0]
    if top in COMMANDS:
        return len(FLOORS)
    (floor,) = [number for number, floor in enumerate(FLOORS) if top in floor]
    return floor


def test_imports_point_downward():
    names = modules()
    climbing = []
    for module, tree in names.items():
        if not module:  # the package root, which imports on first use
            continue
        for other in imported(tree, names):
            same = module.partition(".")[0] == other.partition(".")[0]
            if not same and floor_of(other) >= floor_of(module):
                climbing.append(f"{module} -> {other}")
    assert not climbing, climbing


def test_no_command_is_imported():
    names = modules()
    found = [
        f"{module} -> {other}" for module, tree in names.items() for other in imported(tree, names) & COMMANDS if module
    ]
    assert not found, found


def test_no_circle_of_modules():
    names = modules()
    left = {module: imported(tree, names) - {module} for module, tree in names.items() if module}
    packages = {module for module in left if any(other.startswith(f"{module}.") for other in left)}
    while free := [module for module, below in left.items() if not below & (left.keys() - packages)]:
        for module in free:
            del left[module]
    assert not left, left


def test_sizes():
    lines = {
        path.relative_to(ROOT / "clara_jax"): path.read_text(encoding="utf-8").count("\n")
        for path in (ROOT / "clara_jax").rglob("*.py")
    }
    long = {str(path): count for path, count in lines.items() if count > MOST_LINES}
    assert not long, long
    folders = collections.Counter()
    for path, count in lines.items():
        folders[path.parts[0] if len(path.parts) > 1 else "."] += count
    shares = {folder: count / sum(lines.values()) for folder, count in folders.items()}
    assert max(shares.values()) < LARGEST_SHARE, shares
