"""A table of the paper: `python -m experiments.paper_table NAME [--dataset DATASET]`.

Prints the paper's figures, which runs there are and how to get the others, and then ours: mean and
spread, differences with intervals and verdicts, costs, and where the figures come from. Writes the
same as Markdown, LaTeX, a page and a picture below `RUNS_ROOT/report/`. Nothing is trained. With
`--docs PAGE.md`, ours also go between the marks of `NAME-DATASET` there (see `experiments.tables`).
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import page, paper_table_pictures, paper_table_text
from experiments.config import UserError
from experiments.page.paper_tables import section
from experiments.paper_table_results import TableResults, read
from experiments.paper_table_schema import find, names
from experiments.tables import insert, latex, make_console, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.paper_table", description=__doc__)
    parser.add_argument("name", help=f"{', '.join(names())}, or a YAML file")
    parser.add_argument("--dataset", help="where; default: the paper's, with its figures beside")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="a page whose tables to replace")
    parsed = parser.parse_args(arguments)
    try:
        results = read(find(parsed.name, parsed.dataset))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    picture = write(results, results.request.root / "report")
    if parsed.docs:
        document(results, picture, parsed.docs)
    return 0


def write(results: TableResults, folder: Path) -> Path | None:
    """Print a table with everything that belongs to it; write it in all formats.

    Returns:
        Its picture, where it has one.
    """
    request = results.request
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{request.name}-{request.dataset}"
    commands, source = paper_table_text.commands(results), paper_table_text.provenance(results)
    picture = paper_table_pictures.draw(results, path.with_suffix(".png"))

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


if __name__ == "__main__":
    sys.exit(main())
