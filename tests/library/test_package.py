"""What is shipped: the wheel holds the library alone, and its front ends are extras."""

import contextlib
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

STEP = """
import sys
import adahessian
assert "torch" not in sys.modules, "import adahessian must not import torch (PEP 562)"
assert adahessian.__file__.startswith(sys.prefix), adahessian.__file__
import torch
x = torch.ones(3, requires_grad=True)
optimizer = adahessian.AdaHessian([x])
optimizer.step(lambda: ((x**2).sum().backward(create_graph=optimizer.needs_graph)))
assert x[0] != 1 and set(adahessian.__all__) <= set(dir(adahessian))
for name in adahessian.__all__:
    getattr(adahessian, name)
"""


def run(*command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy (setuptools leaves a build folder), without the network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(
        ROOT / "adahessian", tree / "adahessian", ignore=shutil.ignore_patterns("__pycache__")
    )
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "out", cwd=tree)
    return next(tree.glob("out/adahessian-*.whl"))


def test_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"adahessian"} and "adahessian/py.typed" in names
    vectors = {str(path.relative_to(ROOT)) for path in (ROOT / "adahessian").rglob("*.json")}
    assert len(vectors) > 2 and vectors <= set(names)
    text = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA")))
    lines = text.decode().splitlines()
    requires = [r for r in lines if r.startswith("Requires-Dist")]
    assert [r for r in requires if "extra ==" not in r] == []
    assert 'Requires-Dist: torch>=2.11; extra == "torch"' in requires
    assert "License-Expression: MIT" in lines and any(n.endswith("LICENSE") for n in names)


def closure_of_requirements(name):
    """Return the distributions that ``name`` needs, itself included, without extras."""
    found, todo = {}, [name]
    while todo:
        distribution = metadata.distribution(todo.pop())
        key = canonicalize_name(distribution.name)
        if key not in found:
            found[key] = distribution
            requirements = [Requirement(r) for r in distribution.requires or ()]
            for r in requirements:
                # torch asks for its CUDA libraries through extras of one package
                environments = [{"extra": e} for e in ("", *r.extras)]
                if not r.marker or any(r.marker.evaluate(e) for e in environments):
                    with contextlib.suppress(metadata.PackageNotFoundError):
                        metadata.distribution(r.name)
                        todo.append(r.name)
    return found.values()


def test_wheel_alone_takes_a_step(wheel, tmp_path):
    """In an environment of torch and what torch needs, and nothing else.

    Torch is linked from this environment, not installed again: it is 5 GB.
    """
    venv.create(tmp_path / "env", symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    for distribution in closure_of_requirements("torch"):
        for top in {f.parts[0] for f in distribution.files} - {"..", "__pycache__"}:
            source = Path(distribution.locate_file(top))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    assert not (site / "yaml").exists() and not (site / "torchvision").exists()
    run(tmp_path / "env/bin/python", "-I", "-c", STEP, cwd=tmp_path)


WITHOUT_TORCH = """
import adahessian
try:
    adahessian.AdaHessian
except ImportError as error:
    assert "pip install 'adahessian[torch]'" in str(error), error
else:
    raise AssertionError("there is torch")
import adahessian.keras
try:
    adahessian.keras.AdaHessian
except ImportError as error:
    assert error.name == "keras", error
else:
    raise AssertionError("there is Keras")
from adahessian.conformance import __main__, cases
assert cases() and __main__.main([]) == 2
"""


def test_wheel_without_any_front_end_says_what_to_install(wheel, tmp_path):
    """In an environment of its own, with nothing else."""
    venv.create(tmp_path / "env", symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    run(tmp_path / "env/bin/python", "-I", "-c", WITHOUT_TORCH, cwd=tmp_path)


def test_unknown_name_is_an_attribute_error():
    import adahessian

    with pytest.raises(AttributeError, match="AdaHesian"):
        adahessian.AdaHesian  # noqa: B018
