"""A table of the paper as files: Markdown, LaTeX, JSON and a picture."""

import shutil
from pathlib import Path

from experiments.reports import page, paper_table_plots, paper_table_text
from experiments.reports.page.paper_tables import section
from experiments.reports.publish import insert
from experiments.reports.text_table import latex, make_console, show
from experiments.results.paper_tables import TableResults


def write(results: TableResults, folder: Path) -> Path | None:
    """Print a table with everything that belongs to it; write it in all formats.

    Returns:
        Its picture, where it has one.
    """
    request = results.request
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{request.name}-{request.dataset}"
    commands, source = paper_table_text.commands(results), paper_table_text.provenance(results)
    picture = paper_table_plots.draw(results, path.with_suffix(".png"))

    console = make_console()
    console.print(f"{request.title}\n", markup=False, style="bold")
    if request.table.note:
        console.print(f"{request.table.note}\n", markup=False)
    show(paper_table_text.beforehand(results), console)
    for command in commands:
        console.print(f"  {command}", markup=False, soft_wrap=True)
    console.print()
    show(paper_table_text.ours(results), console)
    if source:
        console.print(source, markup=False)
    path.with_suffix(".md").write_text(_markdown(results, picture))
    path.with_suffix(".tex").write_text(_latex(results))
    path.with_suffix(".html").write_text(
        page.render(request.root.resolve().name, [section(results, picture)]), encoding="utf-8"
    )
    written = [f"{path}{ending}" for ending in (".md", ".tex", ".html")]
    console.print(f"written: {', '.join([*written, *([str(picture)] if picture else [])])}",
                  markup=False, soft_wrap=True)  # fmt: skip
    return picture


def document(results: TableResults, picture: Path | None, target: Path) -> None:
    """Replace ours on a page of documentation, and the picture in the folder `images` beside it."""
    request = results.request
    parts = [f"{request.table.note}\n"] if request.table.note else []
    parts += [table.markdown() for table in paper_table_text.ours(results)]
    if picture:
        shutil.copy(picture, target.parent / "images")
        parts.append(f"![{request.title}](images/{picture.name})\n")
    parts.append(paper_table_text.provenance(results))
    insert(target, f"{request.name}-{request.dataset}", "\n".join(parts))


def _markdown(results: TableResults, picture: Path | None) -> str:
    request = results.request
    parts = [f"## {request.title}\n"]
    if request.table.note:
        parts.append(f"{request.table.note}\n")
    parts += [table.markdown() for table in paper_table_text.beforehand(results)]
    parts += [f"    {command}" for command in paper_table_text.commands(results)] + [""]
    parts += [table.markdown() for table in paper_table_text.ours(results)]
    if picture:
        parts.append(f"![{request.title}]({picture.name})\n")
    if source := paper_table_text.provenance(results):
        parts.append(f"{source}\n")
    return "\n".join(parts)


def _latex(results: TableResults) -> str:
    """Tables to be included in a document; what is missing is no part of them."""
    (*of_paper, _) = paper_table_text.beforehand(results)
    request = results.request
    head = [f"% {request.title}", "% needs \\usepackage{booktabs}", ""]
    text = " ".join(
        part for part in (request.table.note, paper_table_text.provenance(results)) if part
    )
    parts = [table.latex() for table in (*of_paper, *paper_table_text.ours(results))]
    return "\n".join([*head, *parts, *([latex(text), ""] if text else [])])
