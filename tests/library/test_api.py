"""The public names and signatures of the library are those of api.txt.

A change of them is a decision: `UPDATE_API=1 pytest tests/library/test_api.py` writes the file
anew; commit it with an entry in CHANGELOG.md.
"""

import ast
import difflib
import inspect
import os
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("api.txt")
# Each with the package that it needs.
MODULES = {
    "adahessian": "torch",
    "adahessian.conformance": "json",
    "adahessian.jax": "optax",
    "adahessian.keras": "keras",
    "adahessian.spectrum": "torch",
}


def source(definition):
    """Return the syntax tree of a class or function."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(definition))).body
    return tree


def signature(function):
    """Return a signature as it is written, on one line."""
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({ast.unparse(function.args)}){returns}"


def members(cls):
    """Yield the public members of a class as it is written, and what private bases give it."""
    for base in cls.__mro__[1:]:
        if base.__module__.startswith("adahessian.") and base.__name__.startswith("_"):
            yield from members(base)
    for node in source(cls).body:
        if isinstance(node, ast.FunctionDef):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                kinds = "".join(f"@{ast.unparse(d)} " for d in node.decorator_list)
                yield f"  {kinds}{signature(node)}"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            line = ast.unparse(node)
            if not line.startswith("_"):
                yield f"  {line}"


def public(module_name):
    """Return the lines of a module: its names in order, with their signatures."""
    module = import_module(module_name)
    lines = [module_name]
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if value.__name__ != name:
            lines.append(f" {name} = {value.__name__}")
        elif inspect.isclass(value):
            lines += [f" class {name}", *members(value)]
        else:
            lines.append(f" {signature(source(value))}")
    return lines


@pytest.mark.parametrize("module", MODULES)
def test_public_names_and_signatures(module):
    pytest.importorskip(MODULES[module])
    sections = dict.fromkeys(MODULES, "")
    if SNAPSHOT.exists():
        for section in SNAPSHOT.read_text().split("\n\n"):
            sections[section.split("\n")[0]] = section.strip()
    found = "\n".join(public(module))
    if os.environ.get("UPDATE_API"):
        sections[module] = found
        SNAPSHOT.write_text("\n\n".join(sections.values()) + "\n")
    elif found != sections[module]:
        difference = difflib.unified_diff(
            sections[module].splitlines(), found.splitlines(), "api.txt", "now", lineterm="", n=0
        )
        pytest.fail(
            "public names or signatures have changed:\n"
            + "\n".join(difference)
            + "\nIf you mean it: UPDATE_API=1 pytest tests/library/test_api.py, and a line in "
            "CHANGELOG.md",
            pytrace=False,
        )
