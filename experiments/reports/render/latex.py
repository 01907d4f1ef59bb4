"""Sections as LaTeX, to be included in a document that uses the package booktabs."""

from collections.abc import Sequence

from experiments.reports.sections import Grid, Section, Text


def render(sections: Sequence[Section]) -> str:
    """Texts and grids of the sections; figures and commands are left out."""
    lines = []
    for section in sections:
        lines += [f"% {section.title}", "% needs \\usepackage{booktabs}", ""]
        for block in section.blocks:
            if isinstance(block, Grid):
                lines.append(grid(block))
            elif isinstance(block, Text) and block.kind != "command":
                lines += [escape(block.plain), ""]
    return "\n".join(lines)


def grid(block: Grid) -> str:
    """A floating table."""
    columns, *rows = (" & ".join(map(escape, row)) + r" \\" for row in block.texts())
    width = len(block.texts()[0])
    note = rf"\par\smallskip\footnotesize {escape(block.note)}"
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{escape(block.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            r"\toprule",
            columns,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([note] if block.note else []),
            r"\end{table}",
            "",
        ]
    )


_ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "²": r"\textsuperscript{2}",
    "∞": r"$\infty$",
    "–": "--",
}


def escape(text: str) -> str:
    """A text with what LaTeX reads as commands escaped, for any engine."""
    return "".join(_ESCAPED.get(character, character) for character in text)
