"""A table of the paper as files: Markdown, LaTeX, a page and a picture."""

import shutil
from pathlib import Path

from experiments.reports import paper_table_plots
from experiments.reports.paper_table_text import published_section, section
from experiments.reports.publish import insert
from experiments.reports.render import html, latex, markdown, terminal
from experiments.results.paper_tables import TableResults


def write(results: TableResults, folder: Path) -> Path | None:
    """Print a table with everything that belongs to it; write it in all formats.

    Returns:
        Its picture, where it has one.
    """
    request = results.request
    path = folder / f"{request.name}-{request.dataset}"
    folder.mkdir(parents=True, exist_ok=True)
    picture = paper_table_plots.draw(results, path.with_suffix(".png"))
    made, root = section(results, picture), request.root.resolve().name
    console = terminal.make_console()
    terminal.show(made, console)
    texts = {
        ".md": markdown.render([made]),
        ".tex": latex.render([published_section(results, picture, paper=True)]),
        ".html": html.render(root, [made]),
    }
    for ending, text in texts.items():
        path.with_suffix(ending).write_text(text, encoding="utf-8")
    written = ", ".join(f"{path}{ending}" for ending in texts)
    console.print(f"written: {written}", soft_wrap=True)
    return picture


def document(results: TableResults, picture: Path | None, target: Path) -> None:
    """Replace ours on a page of documentation, and the picture in the folder `images` beside it."""
    if picture:
        picture = Path(shutil.copy(picture, target.parent / "images"))
    made = published_section(results, picture, paper=False)
    made.title = ""
    text = markdown.render([made], target.parent).removesuffix("\n")
    insert(target, f"{results.request.name}-{results.request.dataset}", text)
