"""The version stands in one place; what repeats it agrees."""

import re
from pathlib import Path

import yaml

import adahessian

ROOT = Path(__file__).parents[2]


def test_citation_and_changelog_have_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(
        r"^## (?:Unreleased|(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d))$", changelog, re.M
    )
    assert sections[0] == ("", ""), "the first section is Unreleased"
    version, date = sections[1]
    assert adahessian.__version__ == citation["version"] == version
    assert str(citation["date-released"]) == date
    assert len(sections) == changelog.count("\n## "), "a section without a version or a date"


def test_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]][0] == "Yao"
    assert "2006.00719" in paper["url"]
