"""Old names of modules: each can be imported for one version more, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence

from clara_jax.deprecation import warn_renamed

# (Folder before, folder now): the modules' names, "old:new" where they changed. "" is the root of the package.
_MOVED = {
    ("", ""): "library:rag_pipeline plain:base_lm",
    ("", "checkpoints"): "bundle:opening exporting",
    ("analysis", "analysis"): "analysis:inside_report",
    ("aot", ""): "chips topology:chips",
    ("aot", "aot"): "abstract:workload analytic_comm:lowering bases:workload collectives:hlo_cost",
    ("checkpoints", "formats"): (
        "base gguf_file gguf_header hugging_face json_file safetensors_files torch_file torch_pickle"
    ),
    ("data", "formats"): "jsonl",
    ("data.builders", "data"): "command:build_command passages",
    ("data", "input_pipeline"): (
        "batches chat_templates distinct encoding loading:loader mixture packing plan:sampler prompts "
        "rates records shapes:buckets token_cache tokenization turns windows word_level"
    ),
    ("data", "text"): "facts titles",
    ("data.corpus", "text"): "chunks counting documents sentences",
    ("evaluation", "evaluation"): (
        "aggregate:scoring assemble:report console:tables contestants:systems counterfactual:altered_documents "
        "cramming:baselines entries:system_specs formatting:tables html_tables:tables measures:scoring "
        "needle:altered_documents outcomes:predictions page:html_page plots:html_plots pruning:baselines "
        "wording:tables world:suites"
    ),
    ("evaluation", "metrics"): "answers cases intervals:bootstrap overlap:rouge ranking ways:controls",
    ("inference", "inference"): "memories:memory_cache prefixes:prefix_cache",
    ("method", "method.appendix"): "gradient_paths marginal",
    ("method", "method.estimators"): "lapsum transport",
    ("retrieval", "inference"): "memory_store",
    ("retrieval", "retrieval"): "exact:exact_search filling:indexing first_pass:ann",
    ("synthesis", "synthesis"): (
        "answer_type:checks asking:runner decontamination:duplicates distillation:recipes expected:checks "
        "items:recipes leaks:duplicates loop:recipes output:journal pace:endpoint rate_limit:endpoint "
        "redaction:completion review:quality settings:runner statistics:quality steps:runner work:runner"
    ),
    ("synthesis", "text"): "words",
}


def _full(folder: str, name: str) -> str:
    return ".".join(part for part in ("clara_jax", folder, name) if part)


def moved_modules() -> dict[str, str]:
    """Return the full names of modules before and now."""
    pairs = ((old, new, *name.partition(":")[::2]) for (old, new), names in _MOVED.items() for name in names.split())
    return {_full(old, name): _full(new, renamed or name) for old, new, name, renamed in pairs}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by the names that they had, after all other finders."""

    def __init__(self) -> None:
        self._names = moved_modules()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for a name that was, None for any other."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in self._names else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """Return None: `exec_module` puts the module that exists in the new one's place."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Import the module under its name now, and let the old name stand for it."""
        old = module.__name__
        new = self._names[old]
        warn_renamed(old, new)
        sys.modules[old] = importlib.import_module(new)


def install() -> None:
    """Let old names of modules be imported; a second call changes nothing."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
