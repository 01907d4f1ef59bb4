"""README and the pages of docs/ as tests read them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*?) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: what stands behind the fence; empty where nothing does.
        text: the code.
        line: of the page, the first of the code.
        not_run: the reason in a comment `<!-- not run: reason -->` above it; empty without one.
    """

    language: str
    text: str
    line: int
    not_run: str


def blocks(text: str) -> list[Block]:
    """The blocks of a page."""
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        comment = NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[1], match[2], line, comment["reason"] if comment else ""))
    return found
