"""The report page's structure; `test_page_in_browser.py` looks at it in a browser."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy
import pytest
from support.harness import REPOSITORY, finish_run, small_config
from support.page_runs import HOSTILE, write_hostile_run, write_runs

from experiments.reports import page, sections
from experiments.reports.page import curvature, figures
from experiments.reports.page.comparisons import verdict
from experiments.reports.render import html
from experiments.reports.sections import Cell, Figure, Grid, Section, Text
from experiments.results.tables import Results, read_results

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """What a page consists of; fails on an element that is not closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.ids = [], [], [], []
        self.specs, self.references = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.ids += [values["id"]] if "id" in values else []
        self.references += [v for k, v in attributes if k in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append((tag, values))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, values = self.open[-1] if self.open else ("", {})
        if values.get("type") == "application/json":
            self.specs.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def outline(root):
    text = page.write_page(read_results(root), root / "report.html").read_text()
    return Outline(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root)
    return root


@pytest.fixture(scope="module")
def shown(root):
    return outline(root)


# ------------------------------------------------------------------------------------- structure


def test_the_verdict_says_who_is_best_and_how_certain_that_is(shown):
    assert "adahessian has the best mean last-epoch test accuracy: 97.00 ± 1.00 % (n = 3)." in (
        shown.text.replace("adahessian  has", "adahessian has")
    )
    assert re.search(r"It is ahead of sgd \(by 5\.00, \d\.\d\d to \d\.\d\d\) and adam", shown.text)
    assert "A step costs, in steps of sgd: adam 1.10 and adahessian 3.00." in shown.text


def test_a_single_seed_claims_nothing(tmp_path):
    finish_run(tmp_path, small_config(), [0.5])
    finish_run(tmp_path, small_config(optimizer="adam"), [0.9])
    (table,) = read_results(tmp_path).tables
    assert "".join(verdict(table)) == (
        "adam has the best mean last-epoch test accuracy: 90.00 % (n = 1). "
        "One seed, or no spread, is too little to judge its lead over sgd (by 40.00)."
    )


def test_another_headline_metric_of_which_less_is_better(tmp_path):
    for seed in (1, 2):
        for optimizer, accuracies in (("adam", [0.5, 0.6]), ("adamw", [0.5, 0.6, 0.7, 0.8])):
            path = finish_run(tmp_path, small_config(optimizer=optimizer, seed=seed), accuracies)
            meta = json.loads((path.path / "meta.json").read_text())
            (path.path / "meta.json").write_text(json.dumps({**meta, "headline": "loss"}))
    text = outline(tmp_path).text
    assert "adamw has the best mean last-epoch test loss: 0.2500 ± 0.0000 (n = 2)." in text
    assert "to judge its lead over adam (by 0.2500)" in text and "points" not in text


@pytest.mark.parametrize(
    "text",
    [
        "chosen on the test set itself, which flatters every row",
        "95% intervals (Games and Howell's: all 3 pairs of 3 groups at once)",
        "at 1 commit (cccccccccc), on 1 host (node1 (cpu))",
        "1 killed run(s) shown as far as they have come, and in no mean",
        "sgd, seed 7 (killed)",
        "epoch 1 of 2",
        "1 damaged line(s) in metrics.jsonl",
        "Spectral density: adahessian, seed 1",
        "Spectral density: sgd, seed 1",
        "Top eigenvalues",
        "Running trace, from training",
        "Traces of the layers: sgd",
        "Signal-to-noise by block size",
        "Negative curvature",
        "Time spent on curvature",
    ],
)
def test_the_page_holds(text, shown):
    assert text in shown.text


def test_time_passes_in_epochs_without_the_metric_too(tmp_path):
    run = finish_run(tmp_path, small_config("epochs=4"), [0.1, 0.2, 0.3, 0.4], step_seconds=0.6)
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    for row in (rows[0], rows[2]):
        del row["test/accuracy"]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (table,) = read_results(tmp_path).tables
    (line,) = figures.headline_by_time(table).data
    assert list(line.x) == [2.0, 4.0], "minutes, of which each epoch took one"


def test_at_equal_price_a_line_is_as_long_as_its_gradients_are_many(tmp_path):
    """No line for an optimizer that is not to be had here, no plot where all cost alike."""
    every_fourth = "optimizers.adahessian.update_interval=4"
    for config in (small_config(), small_config(optimizer="adam")):
        finish_run(tmp_path, config, [0.1, 0.2])
    (table,) = read_results(tmp_path).tables
    assert figures.headline_by_gradients(table) is None
    finish_run(tmp_path, small_config(every_fourth, optimizer="adahessian"), [0.1, 0.2])
    gone = finish_run(tmp_path, small_config(optimizer="adamw"), [0.1, 0.2]).path / "config.yaml"
    gone.write_text(gone.read_text().replace("torch.optim.AdamW", "gone.AdamW"))
    (table,) = read_results(tmp_path).tables
    lines = {line.name: list(line.x) for line in figures.headline_by_gradients(table).data}
    steps = list(next(iter(table.groups.values()))[0].series("step").values())
    refreshes = [-(-step // 4) for step in steps]
    assert [x for name, x in lines.items() if name in ("sgd", "adam")] == [steps] * 2
    (dear,) = (x for name, x in lines.items() if name.startswith("adahessian"))
    assert dear == [s + 2 * r for s, r in zip(steps, refreshes, strict=True)]
    assert len(lines) == 3


def test_groups_without_curvature_have_no_curvature_plots(shown, tmp_path):
    assert "Spectral density: adam" not in shown.text
    finish_run(tmp_path, small_config(), [0.5])
    assert "Curvature" not in outline(tmp_path).text


def test_every_plot_names_its_axes(shown):
    assert len(shown.specs) == 27
    for spec in shown.specs:
        layout = spec["layout"]
        titles = [layout[axis]["title"].get("text") for axis in ("xaxis", "yaxis")]
        names_of_groups = all(isinstance(y, str) for y in layout["yaxis"].get("ticktext", [1]))
        names_of_layers = spec["data"][0].get("y") == ["conv", "linear"]
        # The heading of a plot of groups says what is measured: on a phone there is no room below.
        assert titles[0] or names_of_groups, titles
        assert titles[1] or names_of_groups or names_of_layers, titles


def test_nothing_is_loaded_from_elsewhere(shown):
    assert all(reference.startswith("#") for reference in shown.references)
    assert {tag for tag, _ in shown.tags} & {"link", "img", "iframe", "object"} == set()
    (policy,) = (v["content"] for t, v in shown.tags if "http-equiv" in v)
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_links_lead_somewhere(shown):
    assert max(Counter(shown.ids).values()) == 1
    assert {reference[1:] for reference in shown.references} <= set(shown.ids)
    labels = [v["aria-labelledby"] for _, v in shown.tags if "aria-labelledby" in v]
    assert labels and set(labels) <= set(shown.ids)


def test_tables_can_be_read_aloud_and_sorted(shown):
    tags = [tag for tag, _ in shown.tags]
    headings = [values for tag, values in shown.tags if tag == "th"]
    assert all(values["scope"] in ("col", "row") for values in headings)
    columns = sum(values["scope"] == "col" for values in headings)
    assert tags.count("button") == columns > 20
    plots = [values for _, values in shown.tags if values.get("class") == "plot"]
    assert all(values["role"] == "img" and len(values["aria-label"]) > 15 for values in plots)


def test_what_files_say_is_text_and_never_markup(tmp_path):
    write_hostile_run(tmp_path)
    found = outline(tmp_path)
    assert found.text.count(" ".join(HOSTILE.split())) >= 8
    assert [tag for tag, _ in found.tags].count("script") == 2 + len(found.specs)
    assert "img" not in {tag for tag, _ in found.tags}
    for spec in found.specs:
        names = [trace.get("name", "") for trace in spec["data"]]
        assert not any("<" in name for name in names), "plotly takes names for HTML"


# -------------------------------------------------------------------------------------- building


def test_a_new_section_is_one_function(root, monkeypatch):
    def mine(results):
        table = Grid("my table", ("a", "b"), [["x", 1], [Cell("<y>", 0), Cell("", float("nan"))]])
        plot = figures.figure("p", "q")
        plot.add_scatter(x=[1, 2], y=[3, 4])
        yield Section("Mine", [Text("some <b>text</b>"), table, Figure("my plot", plot, "a note")])

    monkeypatch.setattr(page, "SECTIONS", (mine, mine))
    found = outline(root)
    assert "some <b>text</b>" in found.text and "<y>" in found.text
    assert found.ids.count("mine") == 1 and "mine-more" in found.ids
    assert len(found.specs) == 2


def test_the_section_of_the_documentation_works(root, monkeypatch):
    (code,) = re.findall(
        r"```python\n(.*?)```", (REPOSITORY / "docs" / "report.md").read_text(), re.S
    )
    names = {**vars(sections), "Results": Results, "Iterator": Iterator, "figure": figures.figure}
    exec(code, names)
    monkeypatch.setattr(page, "SECTIONS", (names["seeds"],))
    found = outline(root)
    assert "All runs." in found.text and len(found.specs) == 1


def test_sections_with_plots_begin_folded_far_down_the_page(root, monkeypatch):
    def make(results):
        for place in range(5):
            plots = [Figure(f"{place}, {one}", figures.figure("x", "y")) for one in range(4)]
            yield Section(f"Plots {place}", plots)
        yield Section("Words", [Text("Few.")])

    def sections(count):
        monkeypatch.setattr(page, "PLOTS", count)
        return {made.title: made.folded for made in page.make(read_results(root), [make])}

    assert [title for title, folded in sections(10).items() if not folded] == [
        "Plots 0", "Plots 1", "Plots 2", "Words",
    ]  # fmt: skip
    assert not any(sections(20).values()), "a page of few plots is open"


def test_without_plots_the_page_is_small():
    text = html.render("runs", [Section("Only text", [Text("nothing")])])
    assert len(text) < 20_000 and "Plotly.newPlot" in text


def test_columns_of_numbers_are_known_and_empty_ones_left_out():
    grid = Grid("", ("a", "b", "c", "d"), [["x", 1, Cell("2 %", 2.0), ""], ["y", "", 3.5, ""]])
    columns, rows = grid.filled()
    assert (columns, html.numeric(rows, 3)) == (["a", "b", "c"], [False, True, True])
    columns, rows = Grid("", ("a",), []).filled()
    assert (columns, rows, html.numeric(rows, 1)) == (["a"], [], [False])


def test_groups_have_looks_of_their_own():
    looks = [tuple(figures.style(place).values()) for place in range(24)]
    assert len(set(looks)) == 24


def test_the_axis_of_eigenvalues_keeps_order_and_reaches_the_ends():
    grid = numpy.linspace(-2, 300, 500)
    axis = curvature.EigenvalueAxis([{0: {"grid": grid, "density": numpy.ones(500)}}])
    assert axis.values[0] == pytest.approx(-2) and axis.values[-1] == pytest.approx(300)
    assert (numpy.diff(axis.values) > 0).all()
    assert axis.ticks == sorted(axis.ticks) and 0 in axis.ticks and 100 in axis.ticks
    assert axis.position(axis.values) == pytest.approx(axis.positions)


def test_a_heat_map_shows_the_largest_eigenvalue_where_it_is(root):
    run = next(run for run in read_results(root).runs if run.spectra())
    spectra = run.spectra()
    axis = curvature.EigenvalueAxis([spectra])
    plot = curvature.density(spectra, axis, curvature.density_limits([spectra]))
    heat, tops = plot.data
    assert heat.x == ("0", "1", "3") and numpy.shape(heat.z) == (160, 3)
    column = numpy.array(heat.z)[:, 0]
    filled = axis.values[numpy.isfinite(column)]
    assert filled.max() == pytest.approx(6, rel=0.1), "the bump of the single eigenvalue"
    assert numpy.nanmax(column) == pytest.approx(numpy.log10(spectra[0]["density"].max()), abs=0.1)
    assert tops.y[0] == pytest.approx(axis.position(6.0), rel=1e-3)


def test_thinning_keeps_the_ends():
    assert curvature.thin([1, 2]) == [1, 2]
    chosen = curvature.thin(list(range(1000)))
    assert (len(chosen), chosen[0], chosen[-1]) == (60, 0, 999) and chosen == sorted(set(chosen))


def test_the_error_of_a_mean_of_estimates():
    results = [{1: 3.0, 2: 1.0}, {1: 4.0}]
    runs = [type("R", (), {"series": lambda self, key, found=found: found})() for found in results]
    assert figures._standard_errors(runs, "key", [1, 2, 3]) == [2.5, 1.0, 0.0]


def test_spectra_that_were_not_measured_alike_are_named(tmp_path):
    """What measures cannot change a training: seeds of one signature may differ in it."""
    for seed, settings in ((1, "{}"), (2, "{mode: eval, on_host: true}")):
        config = small_config(f"spectrum={settings}", seed=seed)
        finish_run(tmp_path, config, [0.5], **{"hessian/trace": 3.0})
    (section,) = curvature.spectra(read_results(tmp_path))
    doubts = [b.plain for b in section.blocks if isinstance(b, Text) and b.kind == "warning"]
    assert len(doubts) == 1 and "with spectrum.mode = train and eval:" in doubts[0]
