"""Every Python example of README, CONTRIBUTING and docs/ runs, as it stands there.

Those of a page run one after another in one namespace. A block that cannot run here has a comment
above it, `<!-- not run: reason -->`.
"""

import warnings
from pathlib import Path

import pytest
from docs.pages import PAGES, ROOT, Block, blocks

# Pages that take long, each with the packages it needs.
SLOW = {
    "jax.md": ["flax"],
    "keras.md": ["keras", "tensorflow"],
    "trainers.md": ["lightning", "accelerate", "timm", "skorch"],
}
# Of Lightning, about our small data.
IGNORED = (
    ".*LeafSpec.* is deprecated",
    ".*does not have many workers",
    ".*is smaller than the logging interval",
)


def python_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text("utf-8")) if block.language == "python"]


def with_marks(page: Path):
    marks = [pytest.mark.slow] if page.name in SLOW else []
    return pytest.param(page, marks=marks, id=page.name)


@pytest.mark.parametrize("page", [with_marks(p) for p in PAGES if python_blocks(p)])
def test_examples_run(page, tmp_path, monkeypatch):
    for package in SLOW.get(page.name, []):
        pytest.importorskip(package, reason="needs an extra: make test installs it")
    keep_registry_of_timm(monkeypatch)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"example of {page.name}"}
    with warnings.catch_warnings():
        for message in IGNORED:
            warnings.filterwarnings("ignore", message)
        for block in python_blocks(page):
            if not block.not_run:
                code = "\n" * (block.line - 1) + block.text  # tracebacks name the page's line
                exec(compile(code, page.relative_to(ROOT), "exec"), names)


def keep_registry_of_timm(monkeypatch):
    """An example registers our class there; other tests must not see it."""
    try:
        from timm.optim._optim_factory import default_registry
    except ImportError:
        return
    monkeypatch.setattr(default_registry, "_optimizers", {**default_registry._optimizers})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_python_is_marked_as_such(page):
    """A block that another word hides from this test is a mistake."""
    for block in blocks(page.read_text("utf-8")):
        assert block.language in {"", "python", "yaml"}, f"{page.name}:{block.line}"


def test_blocks_are_found():
    text = (
        "A page\n\n```python\nx = 1\n```\n\n<!-- not run: it needs\ntwo processes -->\n"
        "```python\nraise Error\n```\n\n```\nmake test\n```\n"
    )
    first, second, third = blocks(text)
    assert first == Block("python", "x = 1\n", 4, "")
    assert second.not_run == "it needs\ntwo processes" and second.line == 10
    assert third == Block("", "make test\n", 14, "")
