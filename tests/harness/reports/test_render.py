"""One report through all renderers."""

import re
from html import unescape

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from experiments.plots.canvas import panels, save
from experiments.reports.page.figures import figure
from experiments.reports.render import html, latex, markdown, terminal
from experiments.reports.sections import (
    Cell,
    Code,
    Figure,
    Grid,
    Link,
    Section,
    Strong,
    Text,
)

ROWS = [["a|b [bold]", 1234, Cell("5 % & _x_", 5.0), ""], ["<c>", float("nan"), "", ""]]


@pytest.fixture
def section(tmp_path):
    empty, _ = panels(1, (1, 1))
    save(empty, tmp_path / "picture.png")
    return Section(
        "The <title>",
        [
            Text([Strong("best"), " of ", Link("The <title>"), ": ", Code("x < y")]),
            Grid("Grid & more", ["name", "count", "share", "empty"], ROWS, "n = 2"),
            Text("first", "command"),
            Text("second", "command"),
            Figure("A picture", picture=tmp_path / "picture.png"),
            Figure("For the page alone", figure("x", "y")),
        ],
    )


def test_a_picture_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "full.png").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*full.png'"):
        save(panels(1, (1, 1))[0], tmp_path / "full.png")


def test_terminal(section, capsys):
    console = terminal.make_console()
    terminal.show(section, console)
    text = capsys.readouterr().out
    assert text.startswith("The <title>\n\nbest of The <title>: x < y\n")
    assert "a|b [bold]" in text and "1,234" in text and "empty" not in text
    assert "\nn = 2\n  first\n  second\npicture: " in text
    assert "For the page alone" not in text
    assert max(len(line) for line in text.splitlines() if "picture" not in line) <= 80


@pytest.mark.parametrize("width", [20, 30, 80])
def test_the_terminal_loses_no_label(width, capsys):
    label = "adahessian after_epochs.5.update_interval=2"
    grid = Grid("", ["optimizer", "n"], [[label, "7"]])
    terminal.show(Section("", [grid]), Console(width=width, highlight=False))
    shown = "".join(sign for sign in capsys.readouterr().out if sign not in " \n─7")
    assert shown == "optimizern" + label.replace(" ", "")


def test_a_table_of_many_columns_loses_none(capsys):
    """The last one was cut off at 80 characters: that of a sweep's star."""
    keys = [f"key{place}" for place in range(12)]
    cells = ["sgd", *[f"value {place} of many" for place in range(12)], "★"]
    terminal.show(Section("", [Grid("", ["optimizer", *keys, "best"], [cells])]), Console(width=80))
    shown = capsys.readouterr().out
    heading = next(line for line in shown.splitlines() if "optimizer" in line)
    assert heading.split() == ["optimizer", *keys, "best"] and "★" in shown


def test_lines_stay_lines_in_markdown():
    """They name directories and errors, in which nothing is meant as Markdown."""
    found = markdown.render([Section("", [Text("a/__b__: <c>\nd: *e*", "lines"), Text("after")])])
    assert found == "    a/__b__: <c>\n    d: *e*\n\nafter\n"


def test_markdown(section):
    assert markdown.render([section]) == (
        "## The \\<title>\n"
        "\n**best** of The \\<title>: `x < y`\n"
        "\n### Grid & more\n"
        "\n| name | count | share |"
        "\n| --- | --- | --- |"
        "\n| a\\|b [bold] | 1,234 | 5 % & \\_x\\_ |"
        "\n| \\<c> |  |  |\n"
        "\nn = 2\n"
        "\n    first\n    second\n"
        "\n![A picture](picture.png)\n"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab *_`[]()!~<>\\|$&;#.'/-1", max_size=14))
@example("groups=[{'match': '*.bias'}, {'match': 'head.*'}]")
@example("*conv* [x](y) `a` ~~s~~ &lt; <b>")
def test_a_cell_of_markdown_is_shown_as_it_stands(text):
    text = " ".join(f"x{text}x".split())
    table = markdown.grid(Grid("", ["name", "n"], [[text, 1]]))
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table)
    assert unescape(re.search("<td>(.*?)</td>", shown)[1]) == text


def test_markdown_elsewhere_links_to_the_pictures_place(section, tmp_path):
    assert f"({tmp_path.name}/picture.png)" in markdown.render([section], tmp_path.parent)


def test_latex(section):
    text = latex.render([section])
    assert (
        r"\caption{Grid \& more}" in text
        and r"a\textbar{}b [bold] & 1,234 & 5 \% \& \_x\_ \\" in text
    )
    assert r"\begin{tabular}{lrr}" in text and r"best of The \textless{}title\textgreater{}" in text
    assert "first" not in text and "picture" not in text


def test_html(section, tmp_path):
    text = html.render("runs", [section])
    assert '<strong>best</strong> of <a href="#the-title">The &lt;title&gt;</a>' in text
    assert "<code>x &lt; y</code>" in text and "<p><code>first</code></p>" in text
    assert '<td class="number" data-value="5.0">5 % &amp; _x_</td>' in text
    assert 'src="data:image/png;base64,' in text and "For the page alone" in text
    assert "empty" not in text.partition("<main>")[2].partition("</main>")[0]


@pytest.mark.parametrize("render", [markdown.render, latex.render])
def test_nothing_is_a_report_too(render):
    assert render([]) == ""


def test_a_wide_grid_on_a_screen_keeps_its_names_and_all_columns(capsys):
    names = ["adahessian_quarter", "adahessian_quarter_clipped"]
    columns = ("optimizer", "reached", "gradients", "steps", "seconds", "final", "tuning")
    rows = [(n, "6 of 6", *["792.5 [792, 891]"] * 3, "4.2593", "4,455") for n in names]
    grid = Grid("Scores", columns, rows, "")
    terminal.show(Section("", [grid]), terminal.make_console())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 16
    (header,) = (line for line in lines if "optimizer" in line)
    assert header.split() == list(columns)
    assert sum(line.startswith(" adahessian") for line in lines) == 2
    assert sum("4.2593" in line and "4,455" in line for line in lines) == 2
