"""Python in the documents: it compiles, names what is there, gives the signatures as they are, and runs if it can."""

import ast
import builtins
import collections.abc
import functools
import importlib
import inspect
import re
import sys
import types
import typing
import warnings

import pytest

from tests.documents import DOCUMENTS, blocks, workspace

OURS = ("clara_jax", "benchmarks", "configs", "examples")
SIGNATURE = re.compile(r"\s*(\w+)\.(\w+)\((.*)\)\s*->\s*(.+?)\s*", re.DOTALL)
# Calls after which a block needs more than files: a model, or a server.
OPENING = {"load", "open", "OpenAI", "from_pretrained"}


class Instance(typing.NamedTuple):
    """A value of which the type alone is known."""

    hint: typing.Any


def _class_of(hint):
    """Return the class of a type, X of X | None; None where it is no class."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    found = typing.get_origin(hint) or hint
    return found if inspect.isclass(found) else None


def _annotated(owner, name, variables):
    """Return the `Instance` of an annotation, or None where there is none."""
    hint = getattr(owner, "__annotations__", {}).get(name)
    hint = eval(hint, variables) if isinstance(hint, str) else hint
    return None if hint is None else Instance(hint)


def _returned(function):
    """Return what a call of a function gives, or None where its annotations do not say."""
    if inspect.isclass(function):
        return Instance(function)
    # Signatures that tests check are called through a function of another module.
    return _annotated(function, "return", getattr(inspect.unwrap(function), "__globals__", {}))


class Names(ast.NodeVisitor):
    """Follows what is known of each name through a block, and notes what is not there.

    Attributes:
      known: objects and `Instance` by name; what is not among them is not followed.
      missing: descriptions of what does not exist.
    """

    def __init__(self, known):
        self.known, self.missing = known, []

    def visit_Import(self, node):
        for alias in node.names:
            root = alias.name.partition(".")[0]
            if root in OURS:
                module = importlib.import_module(alias.name)
                self.known[alias.asname or root] = module if alias.asname else sys.modules[root]

    def visit_ImportFrom(self, node):
        if node.module.partition(".")[0] not in OURS:
            return
        module = importlib.import_module(node.module)
        for alias in node.names:
            try:
                with warnings.catch_warnings(action="error", category=DeprecationWarning):  # of an old name
                    found = getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
            except (ImportError, DeprecationWarning):
                self.missing.append(f"{node.module} has no {alias.name}")
            else:
                self.known[alias.asname or alias.name] = found

    def visit_Assign(self, node):
        found = self.value(node.value)
        for target in node.targets:
            self.bind(target, found)

    def visit_For(self, node):
        self.bind(node.target, self.item(self.value(node.iter)))
        for statement in node.body:
            self.visit(statement)

    def visit_Expr(self, node):
        self.value(node.value)

    def visit_While(self, node):
        self.value(node.test)
        for statement in node.body:
            self.visit(statement)

    def visit_FunctionDef(self, node):
        for statement in node.body:
            self.visit(statement)

    def visit_Return(self, node):
        self.value(node.value)

    def bind(self, target, found):
        if isinstance(target, ast.Name):
            self.known.pop(target.id, None)
            if found is not None:
                self.known[target.id] = found

    def item(self, found):
        """Return what an iteration over a value gives."""
        arguments = typing.get_args(found.hint) if isinstance(found, Instance) else ()
        if isinstance(found, Instance) and isinstance(found.hint, types.UnionType):
            return self.item(Instance(arguments[0]))  # of several results the usual one stands first
        one_type = arguments and _class_of(found.hint) in (list, tuple, collections.abc.Sequence)
        return Instance(arguments[0]) if one_type else None

    def value(self, node):
        """Return what is known of an expression's value, after looking through all of it."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            for part in node.generators:
                self.bind(part.target, self.item(self.value(part.iter)))
            self.value(node.elt)
            return None
        if isinstance(node, ast.Subscript):
            return self.item(self.value(node.value))
        for part in ast.iter_child_nodes(node):
            self.value(part)
        return None

    def attribute(self, owner, name):
        if owner is None:
            return None
        if not isinstance(owner, Instance):
            if not hasattr(owner, name):
                self.missing.append(f"{getattr(owner, '__name__', owner)} has no {name}")
            return getattr(owner, name, None)
        cls = _class_of(owner.hint)
        if cls is None or not cls.__module__.startswith(OURS) or hasattr(cls, "__getattr__"):
            return None
        found = inspect.getattr_static(cls, name, None)
        if isinstance(found, property | functools.cached_property):
            return _returned(found.fget if isinstance(found, property) else found.func)
        if inspect.isfunction(found):
            return types.MethodType(found, owner)
        for one in cls.__mro__:
            if annotated := _annotated(one, name, vars(sys.modules[one.__module__])):
                return annotated
        if found is None and not re.search(rf"self\.{name}\b.* = ", inspect.getsource(cls)):
            self.missing.append(f"{cls.__name__} has no {name}")
        return found

    def call(self, node):
        function = self.value(node.func)
        for part in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.value(part)
        if not callable(function) or isinstance(function, Instance):
            return None
        named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        try:
            inspect.signature(function).bind_partial(*node.args, **named)
        except TypeError as error:
            self.missing.append(f"{ast.unparse(node.func)}: {error}")
        except ValueError:  # a builtin without a signature
            pass
        return _returned(function)


def python_blocks(document):
    return [block for block in blocks(document) if block.language == "python"]


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if python_blocks(name)])
def test_names_are_there(document):
    """A block knows the names of those before it in its document."""
    known, found = {}, []
    for block in python_blocks(document):
        if match := SIGNATURE.fullmatch(block.text):
            found += _signature_problems(block, match, known)
            continue
        names = Names(known)
        names.visit(ast.parse(block.text, str(block)))
        found += [f"{block}: {problem}" for problem in names.missing]
    assert not found, "\n".join(found)


def _signature_problems(block, match, known):
    """Compare a signature, "owner.method(...) -> type", with that of the method."""
    owner, name, parameters, returned = match.groups()
    owner = known[owner]
    method = getattr(owner.hint if isinstance(owner, Instance) else owner, name)
    actual = inspect.signature(method)
    exec(f"def written({parameters}): ...", made := {})
    found = [
        [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]
        for function in (made["written"], method)
    ]
    if not inspect.ismethod(method):
        found[1] = found[1][1:]  # self
    problems = [] if found[0] == found[1] else [f"{block}: {name} has other parameters: {actual}"]
    return problems + (
        [] if returned == actual.return_annotation else [f"{block}: {name} -> {actual.return_annotation}"]
    )


def self_contained(tree):
    """Return whether a block can run where its files are: it defines all names that it uses, and opens no model."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if module.partition(".")[0] not in (*OURS, *sys.stdlib_module_names):
                return False
            made |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            made |= {node.name, *(argument.arg for argument in node.args.args)}
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in OPENING:
                return False
    return {node.id for node in names} <= made


def blocks_that_need_nothing(document):
    """Yield the blocks of a document that can run, parsed, by their places."""
    for block in python_blocks(document):
        if not SIGNATURE.fullmatch(block.text) and self_contained(tree := ast.parse(block.text, str(block))):
            yield str(block), tree


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if any(blocks_that_need_nothing(name))])
def test_blocks_that_need_nothing_run(document, tmp_path):
    with workspace(tmp_path):
        for place, tree in blocks_that_need_nothing(document):
            exec(compile(tree, place, "exec"), {"__name__": "document"})


def test_a_name_that_is_not_there_is_found():
    text = """
from clara_jax import Clara, api, nothing
clara = Clara.load("x", bas=None)
memories = clara.compress(["a"], ides=None)
for answer in clara.answer([], memories=memories):
    print(answer.txt, [(source.id, source.skore) for source in answer.sources], clara.ask(), api.none)
"""
    names = Names({})
    names.visit(ast.parse(text))
    assert [problem.split(": ")[-1] for problem in names.missing] == [
        "clara_jax has no nothing",
        "got an unexpected keyword argument 'bas'",
        "got an unexpected keyword argument 'ides'",
        "Answer has no txt",
        "Hit has no skore",
        "Clara has no ask",
        "clara_jax.api has no none",
    ]
