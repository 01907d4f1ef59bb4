"""The graph of our imports: `python -m tools.import_graph [--root FOLDER]`.

A room is a folder of `experiments/` with all that is below it, or a module that lies directly
there; the library is one room, `slurm` another. An arrow leads from a room to one that it imports
from. A room's floor is the length of the longest way down from it: 1 where it imports nothing of
ours. Imports within functions count, those for type checkers alone do not. The command prints the
figures, the cycles, and each room with what it imports.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("adahessian", "experiments", "slurm")  # each may import from those before it
Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class ImportGraph:
    """The imports of a tree.

    Attributes:
        modules: of each of our modules, those of ours that it imports.
        foreign: of each of our modules, the packages of others that it imports.
    """

    modules: Graph
    foreign: Graph

    @cached_property
    def rooms(self) -> Graph:
        """Of each room, the other rooms that it imports from."""
        found: dict[str, set[str]] = {}
        for module, targets in self.modules.items():
            room = room_of(module)
            found.setdefault(room, set()).update({room_of(t) for t in targets} - {room})
        if not found.get("experiments"):  # the folder itself, whose `__init__` is empty
            found.pop("experiments", None)
        return found


def read(root: Path = ROOT) -> ImportGraph:
    """The graph of the tree below `root`."""
    files: dict[str, Path] = {}
    for layer in LAYERS:
        for path in sorted((root / layer).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    modules, foreign = {}, {}
    for name, path in files.items():
        package = name if name in packages else name.rpartition(".")[0]
        names = list(_imported(ast.parse(path.read_text("utf-8")), package))
        ours = {_module(target, files) for target in names if target.split(".")[0] in LAYERS}
        modules[name] = ours - {name, ""}
        foreign[name] = {target.split(".")[0] for target in names} - set(LAYERS)
    return ImportGraph(modules, foreign)


def room_of(module: str) -> str:
    """The room of a module: a folder of `experiments` or a file there, the library, or slurm.

    A folder is one room with all that is below it: what is private in it is shared there.
    """
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "experiments" else parts[0]


def cycles(graph: Graph) -> list[set[str]]:
    """Groups of nodes from each of which all others of the group can be reached."""
    reach = {node: _reachable(graph, node) for node in graph}
    found: list[set[str]] = []
    for node in graph:
        if node in reach[node] and not any(node in group for group in found):
            found.append({other for other in reach[node] if node in reach[other]})
    return found


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each node; those of a cycle share one, as high as if they lay in a row."""
    group = {node: frozenset([node]) for node in graph}
    group |= {node: frozenset(cycle) for cycle in cycles(graph) for node in cycle}
    known: dict[frozenset[str], int] = {}

    def floor(members: frozenset[str]) -> int:
        if members not in known:
            below = {group[target] for node in members for target in graph[node]} - {members}
            known[members] = len(members) + max(map(floor, below), default=0)
        return known[members]

    return {node: floor(group[node]) for node in graph}


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += graph[node]
    return seen


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The dotted names that a module imports, relative ones resolved."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imported(node, package)


def _module(name: str, files: Mapping[str, Path]) -> str:
    """The module that a dotted name is, or is in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.import_graph", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="another tree than this one")
    graph = read(parser.parse_args(arguments).root)
    level = floors(graph.rooms)
    arrows = sum(map(len, graph.rooms.values()))
    print(
        f"{len(graph.modules)} modules, {len(level)} rooms on {max(level.values())} floors, ",
        end="",
    )
    print(f"{arrows} arrows")
    for kind, nodes in (("rooms", graph.rooms), ("modules", graph.modules)):
        found = cycles(nodes)
        print(f"cycles of {kind}: {len(found)}", *(f"\n  {', '.join(sorted(c))}" for c in found))
    for room in sorted(level, key=lambda room: (-level[room], room)):
        print(f"{level[room]:3} {room} -> {', '.join(sorted(graph.rooms[room])) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
