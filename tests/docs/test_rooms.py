"""Imports go one way: `adahessian <- experiments <- slurm`, and down the floors of docs/design.md.

`python -m tools.import_graph` shows all of them.
"""

import sys

import pytest

from tools import import_graph

GRAPH = import_graph.read()

# Top down. A room may import from its own floor (without a cycle) and from those below it.
FLOORS = (
    {
        "run",
        "evaluate",
        "report",
        "paper_table",
        "export",
        "figures",
        "spectrum",
        "corpora",
        "translate",
        "upload",
        "dashboard",
    }
    | {"benchmarks"},
    {"reports", "slurm"},
    {"training", "results"},
    {"tracking", "plans"},
    {"runs", "tasks", "landscapes", "cli"},
    {"config", "runtime", "ports"},
    {"adahessian", "models", "optimizers", "plots", "errors"},
)
# Packages of others, and the room that imports them. torchvision is three things: transforms, the
# ImageNet networks, and the loader that ours is measured beside.
HOMES = {
    "wandb": {"experiments.tracking"},
    "matplotlib": {"experiments.plots"},
    "submitit": {"slurm"},
    "torchvision": {"experiments.tasks", "experiments.models", "experiments.benchmarks"},
    "yaml": {"experiments.config"},
    "sacrebleu": {"experiments.tasks"},
    "sentencepiece": {"experiments.tasks"},
    "babel": {"experiments.tasks"},
    "transformers": {"experiments.tasks"},
}


def height(room):
    (floor,) = [i for i, rooms in enumerate(FLOORS) if room.removeprefix("experiments.") in rooms]
    return -floor


def test_every_room_is_on_a_floor():
    names = {room.removeprefix("experiments.") for room in GRAPH.rooms}
    assert names - set.union(*FLOORS) == set()


def test_no_cycle_of_modules_or_rooms():
    assert import_graph.cycles(GRAPH.modules) == []
    assert import_graph.cycles(GRAPH.rooms) == []


def test_no_import_goes_up():
    up = {
        f"{module} -> {target}"
        for module, targets in GRAPH.modules.items()
        for target in targets
        if "experiments" not in (module, target)
        and height(import_graph.room_of(target)) > height(import_graph.room_of(module))
    }
    assert up == set()


def test_layers_import_one_way():
    layers = import_graph.LAYERS
    for module, targets in GRAPH.modules.items():
        allowed = layers[: layers.index(module.split(".")[0]) + 1]
        assert {target.split(".")[0] for target in targets} <= set(allowed), module


@pytest.mark.parametrize("package", HOMES)
def test_package_is_imported_in_one_room(package):
    users = {
        import_graph.room_of(module)
        for module, packages in GRAPH.foreign.items()
        if package in packages
    }
    assert users == HOMES[package]


def test_library_imports_torch_and_the_standard_library():
    allowed = {"torch", *sys.stdlib_module_names}
    extras = {
        "adahessian.jax": {"jax", "optax", "flax", "numpy"},
        "adahessian.keras": {"keras", "numpy"},
        "adahessian.keras.jax": {"jax"},
        "adahessian.keras.tensorflow": {"tensorflow"},
    }
    for module, packages in GRAPH.foreign.items():
        if module.startswith("adahessian"):
            more = {p for root, names in extras.items() if module.startswith(root) for p in names}
            assert packages <= allowed | more, module
            may_use_torch = not more or module == "adahessian.keras.torch"
            assert may_use_torch or "torch" not in packages, module


class TestGraph:
    """The tool itself, on a tree with every kind of import."""

    @pytest.fixture
    def graph(self, tmp_path):
        files = {
            "adahessian/__init__.py": "import torch",
            "adahessian/step.py": "from . import probes\nfrom .probes import draw",
            "adahessian/probes.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from adahessian.step import x",
            "experiments/__init__.py": "",
            "experiments/run.py": "def f():\n    from experiments.a.one import thing",
            "experiments/a/__init__.py": "",
            "experiments/a/one.py": "import adahessian.step\nimport experiments.b.two as two",
            "experiments/b/__init__.py": "",
            "experiments/b/two.py": "from experiments.a import one",
            "slurm/__init__.py": "from experiments import run",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text(text)
        return import_graph.read(tmp_path)

    def test_reads_every_kind_of_import(self, graph):
        assert graph.modules["adahessian.step"] == {"adahessian.probes"}
        assert graph.modules["adahessian.probes"] == set()
        assert graph.modules["experiments.run"] == {"experiments.a.one"}
        assert graph.modules["experiments.a.one"] == {"adahessian.step", "experiments.b.two"}
        assert graph.foreign["adahessian"] == {"torch"}

    def test_finds_cycles_and_floors(self, graph):
        cycle = {"experiments.a", "experiments.b"}
        assert import_graph.cycles(graph.rooms) == [cycle]
        assert import_graph.cycles(graph.modules) == [{"experiments.a.one", "experiments.b.two"}]
        floors = import_graph.floors(graph.rooms)
        assert floors["adahessian"] == 1 and floors["slurm"] == 5
        assert floors["experiments.a"] == floors["experiments.b"] == 3
