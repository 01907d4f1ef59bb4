"""The documentation's site: what it is made of, and what does not build."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs.pages import PAGES
from pydantic import BaseModel
from support.patience import PATIENCE

from tools import reference, site
from tools.docstrings import markdown

ROOT = Path(__file__).parents[2]
ZENSICAL = Path(sys.executable).with_name("zensical")


class Base(BaseModel):
    # Above.
    first: int  # And behind.
    second: int = 1
    """Below,
    on two lines."""


class Derived(Base):
    second: int = 2  # anew
    third: int = 3


def test_meaning_of_a_key_is_what_stands_beside_it():
    assert reference.meanings(Base) == {
        "first": "Above. And behind.",
        "second": "Below, on two lines.",
    }
    assert reference.meanings(Derived) == {
        "first": "Above. And behind.", "second": "anew", "third": ""
    }  # fmt: skip


def test_pages_of_keys_hold_every_key():
    pages = reference.pages()
    for schema in reference.schemas().values():
        for path, section in reference.sections(schema):
            for name in section.model_fields:
                assert f"| `{path}{name}` |" in pages["config.md"]
    assert "| `loss` | smaller |" in pages["metrics.md"]
    assert "`hessian/top_eigenvalue`" in pages["metrics.md"]
    assert "## experiments.run\n" in pages["commands.md"]
    assert "## slurm.status\n" in pages["commands.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_text_begins_a_list_by_accident(page):
    """A sentence that wraps before "15. " is an item to Markdown; a real list counts up from 1."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    counts: dict[str, int] = {}
    for line in prose.splitlines():
        if match := re.match(r"( *)(\d+)\. ", line):
            indent, number = match[1], int(match[2])
            assert number in (1, counts.get(indent, 0) + 1), line
            counts[indent] = number


def test_metric_keys_are_those_of_the_code():
    assert reference.written_keys() == set(reference.KEYS)


MODULE = '''
from dataclasses import dataclass

__all__ = ["Told", "Untold", "Data", "told", "untold"]

class Told:
    """Yes."""
    def method(self): """Yes."""
    def silent(self): ...
    @property
    def value(self): ...
    def _private(self): ...

class Untold: ...

@dataclass
class Data:
    x: int

def told(): """Yes."""
def untold(): ...
def other(): ...
'''


def test_undocumented_names_are_found(tmp_path, monkeypatch):
    (tmp_path / "some_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    assert reference.undocumented("some_module") == [
        "some_module.Told.silent", "some_module.Told.value", "some_module.Untold",
        "some_module.Data", "some_module.untold",
    ]  # fmt: skip
    monkeypatch.setattr(reference, "LIBRARY", {"x.md": ("x", ["some_module"])})
    with pytest.raises(reference.Undocumented, match="some_module.untold"):
        reference.pages()


def test_links_lead_where_the_pages_are(tmp_path):
    site.assemble(tmp_path / "docs")
    index = (tmp_path / "docs" / "index.md").read_text()
    assert "](curvature.md)" in index and "](docs/" not in index and "](contributing.md)" in index
    assert "](images/digits-resnet20.png)" in index
    assert "https://arxiv.org/abs/2006.00719" in index


def test_page_outside_of_the_navigation_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "pages", lambda: {"lost.md": "# Lost"})
    with pytest.raises(ValueError, match="navigation lacks reference/lost.md"):
        site.assemble(tmp_path / "docs")


def test_restructured_text_becomes_markdown():
    text = "See :func:`a.b`.\n\n.. code-block:: text\n\n    x\n\nExample::\n\n    a::b"
    assert markdown(text) == "See `a.b`.\n\n\n    x\n\nExample:\n\n    a::b"


@pytest.mark.slow
def test_site_builds_and_shows_every_public_name():
    subprocess.run([sys.executable, "-m", "tools.site"], cwd=ROOT, check=True)
    for name, (_, modules) in reference.LIBRARY.items():
        page = (ROOT / "build/site/reference" / name.replace(".md", ".html")).read_text()
        for module in modules:
            for public in reference.public_names(module):
                assert public in page, f"{module}.{public}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](nowhere.md)", "page does not exist"),
        ("[a](other.md#nowhere)", "anchor"),
        ("::: adahessian.nothing", "Could not collect 'adahessian.nothing'"),
        ("[a](other.md#there)", None),
    ],
)
def test_broken_pages_do_not_build(text, complaint, tmp_path):
    settings = (ROOT / "mkdocs.yml").read_text()
    before, _, rest = settings.partition("\nnav:")
    after = rest.partition("\nmarkdown_extensions:")[2]
    settings = f"{before}\nmarkdown_extensions:{after}".replace("paths: [.]", f"paths: [{ROOT}]")
    settings = settings.replace("tools/docstrings.py", str(ROOT / "tools/docstrings.py"))
    (tmp_path / "mkdocs.yml").write_text(settings)
    folder = tmp_path / "build" / "docs"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "site.css", folder)
    (folder / "index.md").write_text(f"# Page\n\n{text}\n")
    (folder / "other.md").write_text("# Other\n\n## There\n")
    result = subprocess.run(
        [ZENSICAL, "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    output = result.stdout + result.stderr
    assert (result.returncode == 0) == (complaint is None), output
    assert complaint is None or complaint in output
