"""The table of docs/implementations.md: which port passes which conformance vector.

Keras has an environment of its own, so each environment writes its own columns.
"""

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "implementations.md"
BEGIN, END = "<!-- conformance:begin -->\n", "\n<!-- conformance:end -->"
COLUMNS = ("torch", "JAX", "Keras", "torch_optimizer", "pytorch_optimizer", "timm")


def cell(outcome):
    """Return an outcome in few words."""
    if outcome.verdict == "fails":
        step, rest = outcome.remark.split(", ", 1)
        return f"fails: {step}, `{rest.split()[0]}`"
    return {"passes": "✓", "error": "error", "not implemented": "–"}[outcome.verdict]


def check(found, update):
    """Compare columns, cells by the name of their case, with the page; or write them there."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    _, cases = next(iter(found.items()))
    text = _text({**_columns(table), **found}, list(cases))
    if update:
        PAGE.write_text(before + BEGIN + text + END + after, encoding="utf-8")
    else:
        assert text == table


def _columns(table):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    names = [row[0].strip("`") for row in rows]
    return {column[0]: dict(zip(names, column, strict=True)) for column in zip(*rows, strict=True)}


def _text(columns, cases):
    rows = [["case", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for case in cases:
        rows.append([f"`{case}`", *(columns.get(name, {}).get(case, "?") for name in COLUMNS)])
    counts = (sum(row[i] == "✓" for row in rows) for i in range(1, 1 + len(COLUMNS)))
    rows.append([f"passed of {len(cases)}", *map(str, counts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
