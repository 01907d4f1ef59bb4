import json
import shutil
import subprocess

import pytest
from support.harness import DIGITS, REPOSITORY, finish_run, say_in_meta

from experiments import export, paper_table
from experiments.config.signature import signature
from experiments.errors import UserError
from experiments.plans import paper_tables as plans_paper_tables
from experiments.plans.select import select
from experiments.reports import paper_table_text
from experiments.reports.page import paper_tables as page_paper_tables
from experiments.results import committed, paper_tables
from experiments.results.statistics import Sample, welch
from experiments.results.tables import read_results
from experiments.runs.directory import RunDirectory
from slurm import submit

OPTIONS = "optimizers.adahessian"
TABLE = f"""
title: "Table 1: small"
source: the paper, Table 1
paper_metric: test accuracy in %
paper_dataset: digits
tolerance: 1.0
subject: AdaHessian
reference: SGD
x: n
axis: linear
base: 1
note: A note with 5 % & more_than_that.
lines:
  - {{series: SGD, set: {{optimizer: sgd}}, theory: 1.0,
     paper: {{A: {{mean: 51, std: 1.0, n: 5}}}}}}
  - {{series: AdaHessian, x: 1, set: {{optimizer: adahessian}}, theory: 2.0, paper_cost: {{A: 2.5}},
     paper: {{A: {{mean: 40, std: 0.5, n: 5}}, B: {{mean: 70}}}}}}
  - {{series: AdaHessian, x: 2, theory: 1.5,
     set: {{optimizer: adahessian, optimizer.after_epochs.1.update_interval: 2}}}}
datasets:
  digits:
    title: digits
    blocks:
      A: {{config: {DIGITS}, seeds: 1-3, set: {{model.depth: 8, epochs: 3}}}}
      B: {{config: nowhere.yaml, seeds: [1]}}
  other:
    title: other data
    blocks: {{A: {{config: {DIGITS}, seeds: 1-3, set: {{model.depth: 8}}}}}}
"""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr(committed, "FOLDER", tmp_path / "results")
    monkeypatch.setattr("warnings.showwarning", None)


@pytest.fixture
def small(tmp_path):
    """The file of a small table."""
    path = tmp_path / "small.yaml"
    path.write_text(TABLE)
    return path


def train(request, accuracy):
    """Files of finished runs; `accuracy(label, seed)` is the last of three epochs, or None."""
    for cell in request.cells:
        label = request.table.label(cell.line)
        for one in cell.runs:
            if (last := accuracy(label, one.config.seed)) is not None:
                finish_run(request.root, one.config, [0.1, last + 0.01, last])


def diverge(directory, reason="NonFiniteLoss: the loss is nan at step 7"):
    """Turn a finished run into one that was given up."""
    (directory.path / "DONE").unlink()
    started = {"attempt": 1, "started": "2026", "host": "h", "job": None, "checkpoint": None}
    lines = [started, {"attempt": 1, "ended": "2026", "reason": reason}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory.path / "attempts.jsonl").write_text(text)


def spread(label, seed):
    return {"SGD": 0.5, "AdaHessian n=1": 0.6, "AdaHessian n=2": 0.6}[label] + seed / 200


def show(path, capsys, *arguments):
    assert paper_table.main([str(path), *arguments]) == 0
    return capsys.readouterr().out


def rows(table):
    names = list(table.columns).index("difference") if "difference" in table.columns else -2
    return {tuple(row[:names]): tuple(row[names:]) for row in table.rows}


def tables(request):
    read = paper_tables.read(request)
    made = [*paper_table_text.beforehand(read), *paper_table_text.ours(read)]
    return {table.title.partition(", ")[0]: table for table in made}


def directory_of(request, planned):
    return RunDirectory(request.root, planned.config)


@pytest.mark.parametrize(
    ("name", "count"), [("table2", 32), ("table6", 72), ("table7", 30), ("table8", 36)]
)
def test_the_tables_of_the_repository_on_the_digits(name, count):
    request = plans_paper_tables.find(name, "digits")
    runs = [one.place for cell in request.cells for one in cell.runs]
    assert len(runs) == len(set(runs)) == count
    assert ("shortened to 40 of 160 epochs" in request.title) == (name in ("table6", "table7"))
    assert not request.comparable


@pytest.mark.parametrize("name", ["table2", "table6", "table7", "table8"])
@pytest.mark.parametrize("dataset", ["cifar10", "fashion-mnist"])
def test_the_tables_of_the_repository_elsewhere(name, dataset):
    request = plans_paper_tables.find(name, dataset)
    assert {cell.runs[0].config.dataset.name for cell in request.cells} <= {dataset, "imagenet"}
    assert request.comparable == (dataset == "cifar10" and name in ("table2", "table8"))


ON_TEXT = ("iwslt14", "catalogues", "debian", "cldr")


@pytest.mark.parametrize(
    ("name", "datasets", "count"),
    [
        ("table3", ON_TEXT, 9),
        ("table4", ("ptb", "kjv", "austen"), 9),
        ("table6", ON_TEXT, 72),
        ("table7", ON_TEXT, 27),
    ],
)
def test_the_tables_on_text(name, datasets, count):
    for dataset in datasets:
        request = plans_paper_tables.find(name, dataset)
        runs = [one.place for cell in request.cells for one in cell.runs]
        columns, seeds = len(request.variant.blocks), {"iwslt14": 5, "ptb": 5}.get(dataset, 3)
        expected = count // 3 * seeds if columns == 1 else count // 3 * (seeds + 1)
        assert len(runs) == len(set(runs)) == expected
        assert request.name == name
        assert request.comparable == (dataset == "iwslt14")


def test_a_scaled_setting_is_a_multiple_of_the_configurations_own():
    for dataset, own in (("iwslt14", 0.047), ("cldr", 0.1)):
        found = {
            cell.line.x: cell.runs[0].config.optimizers["adahessian"].lr
            for cell in plans_paper_tables.find("table6", dataset).cells
            if cell.line.series == "AdaHessian"
        }
        assert found == {x: pytest.approx(x * own) for x in (0.5, 1, 2, 3, 4, 5, 6, 10)}
    assert found[3] == 0.3  # as one would type it
    cldr = plans_paper_tables.find("table6", "cldr").cells
    (plain,) = select([REPOSITORY / "configs/cldr/transformer.yaml"], ["optimizer=adamw"])
    once = next(one for one in cldr if (one.line.series, one.line.x) == ("AdamW", 1))
    assert signature(once.runs[0].config) == signature(plain.config)


def test_an_unknown_data_set_is_refused_with_those_of_text_too():
    for asked, said in (("cldrr", "did you mean 'cldr'"), ("kjv", "known: cifar10, .*, cldr")):
        with pytest.raises(UserError, match=said):
            plans_paper_tables.find("table6", asked)


def test_scales_are_of_the_optimizers_own_settings():
    for scale in ({"epochs": 2}, {"optimizer.lr": 0}):
        with pytest.raises(ValueError, match="scale"):
            plans_paper_tables.Line(series="A", set={}, scale=scale)


def test_a_table_on_text_is_there_before_any_run(capsys):
    text = show("table3", capsys)
    assert "35.79 ± 0.06" in text and "28.52" in text and "0 of 5 (5 new)" in text
    assert "18 of 18 runs are missing" in text
    assert "\n  make table3 DATASET=iwslt14 CLUSTER=slurm\n" in text
    text = show("table6", capsys, "--dataset", "cldr")
    assert "\n  make table6 DATASET=cldr CLUSTER=local\n" in text
    text = " ".join(show("table4", capsys).split())
    assert "not causal" in text and "51.5" not in text and "18 of 18 runs are missing" in text


@pytest.mark.parametrize(
    ("name", "label", "settings"),
    [
        ("table2", "Adam", ["optimizer=adam"]),
        ("table8", "AdaHessian n=2", [f"{OPTIONS}.after_epochs={{5: {{update_interval: 2}}}}"]),
        ("table6", "AdaHessian × 3", ["epochs=40", f"{OPTIONS}.lr=0.45"]),
        ("table6", "SGD × 10", ["optimizer=sgd", "epochs=40", "optimizers.sgd.lr=1.0"]),
        ("table7", "AdaHessian block=8", ["epochs=40", f"{OPTIONS}.block_size=8"]),
        ("table7", "AdaHessian block=kernel", ["epochs=40"]),
    ],
)  # fmt: skip
def test_a_cell_is_the_run_of_the_command_line(name, label, settings):
    (planned,) = select([DIGITS], ["optimizer=adahessian", *settings])
    request = plans_paper_tables.find(name, "digits")
    (line,) = [line for line in request.table.lines if request.table.label(line) == label]
    cell = next(cell for cell in request.cells if cell.line is line)
    assert signature(cell.runs[0].config) == signature(planned.config)


def test_before_any_run_there_are_the_papers_figures_and_what_is_missing(capsys, tmp_path):
    text = show("table2", capsys)
    assert "92.13 ± 0.18" in text and "70.08" in text and "0 of 5 (5 new)" in text
    assert "44 of 44 runs are missing" in text
    assert "\n  make table2 DATASET=cifar10 CLUSTER=slurm\n" in text
    assert max(len(line) for line in text.splitlines() if "written:" not in line) <= 80
    folder = tmp_path / "runs" / "report"
    assert {path.suffix for path in folder.glob("table2-cifar10.*")} >= {".md", ".tex", ".html"}


def test_a_missing_configuration_is_named_and_its_column_left_out(small, capsys):
    text = show(small, capsys)
    words = paper_table_text.advice(paper_tables.read(plans_paper_tables.find(str(small), None)))
    assert words.startswith("B: ") and "nowhere.yaml is not there, so this column" in words
    assert "9 of 9 runs are missing" in words and "no config" in text
    assert f".venv/bin/python -m slurm.submit {small} dataset=digits --profile local" in text


def test_a_table_that_no_paper_has(small, capsys):
    lines = "lines: [{series: SGD, set: {optimizer: sgd}}]\n"
    start, _, rest = TABLE.partition("lines:\n")
    small.write_text(start.replace("subject: AdaHessian", "subject: SGD") + lines
                     + rest[rest.index("datasets:"):])  # fmt: skip
    text = show(small, capsys)
    assert "The paper's figures" not in text and "3 of 3 runs are missing" in text


def test_the_report_has_the_tables_that_count_a_run(tmp_path):
    root = tmp_path / "runs"
    finish_run(root, select([DIGITS], ["optimizer=sgd", "epochs=2"])[0].config, [0.5, 0.6])
    assert list(page_paper_tables.tables(read_results(root))) == []
    finish_run(root, select([DIGITS], ["optimizer=sgd"])[0].config, [0.5, 0.6])
    titles = [section.title for section in page_paper_tables.tables(read_results(root))]
    assert [title.partition(":")[0] for title in titles] == ["Table 2", "Table 8"]


def test_ours_beside_the_papers_with_intervals_and_verdicts(small, capsys):
    request = plans_paper_tables.find(str(small), None)
    train(request, spread)
    made = tables(request)
    assert made["A: accuracy"].columns == ["optimizer", "n", "last epoch", "best epoch", "paper"]
    assert made["A: accuracy"].rows[0] == [
        "SGD",
        "3",
        "51.00 ± 0.50",
        "52.00 ± 0.50",
        "51.00 ± 1.00",
    ]
    low, high = welch(Sample(51.0, 0.5, 3), Sample(51.0, 1.0, 5))
    against = rows(made["A: ours minus the paper's"])
    difference = f"+0.00 ({low:.2f} to {high:.2f})".replace("-", "−")
    assert against[("SGD", "last")] == (difference, "cannot be told apart")
    assert against[("AdaHessian n=1", "last")][1] == "above"
    others = rows(made["A: AdaHessian minus the others"])
    assert others[("AdaHessian n=1", "SGD")][-1] == "above"
    assert others[("AdaHessian n=2", "SGD")][0].startswith("+10.00 (")
    difference, at_once, _ = others[("AdaHessian n=2", "SGD")]
    own = difference.partition("(")[2].strip(")")
    assert width(at_once) > 1.2 * width(own) > 0, "of three pairs at once"
    base = rows(made["A: compared with the same at n = 1"])
    assert list(base) == [("AdaHessian n=2",)]
    text = show(small, capsys)
    assert "No run is missing." in text and "Source: 9 runs; commit cccccccccc; cpu" in text


def width(span):
    low, high = (float(bound.replace("−", "-")) for bound in span.split(" to "))
    return high - low


def test_elsewhere_the_papers_figures_stand_apart(small, capsys):
    request = plans_paper_tables.find(str(small), "other")
    train(request, spread)
    made = tables(request)
    assert "paper" not in made["A: accuracy"].columns
    assert not any("minus the paper" in title for title in made)
    assert "paper, measured" not in made["A: cost"].columns
    assert "nothing there may be compared with it" in made["The paper's figures"].note


def test_one_run_gives_no_interval_and_says_why(small):
    request = plans_paper_tables.find(str(small), None)
    train(request, lambda label, seed: 0.5 if seed == 1 else None)
    made = tables(request)
    why = "n = 1 and 5: no interval"
    assert rows(made["A: ours minus the paper's"])[("SGD", "last")] == ("−1.00", why)
    assert made["A: accuracy"].rows[0][1:3] == ["1 of 3", "50.00"]


def test_diverged_runs_are_counted_and_not_missing(small, capsys):
    request = plans_paper_tables.find(str(small), None)
    train(request, spread)
    directories = {
        (c.line.x, r.config.seed): directory_of(request, r) for c in request.cells for r in c.runs
    }
    for seed in (1, 2, 3):
        diverge(directories[2, seed])
    diverge(directories[1, 2])
    diverge(directories[None, 3], "RuntimeError: the disk is on fire")
    results = paper_tables.read(request)
    assert [request.root / run.place for run in results.missing] == [directories[None, 3].path]
    made = tables(request)
    assert made["A: accuracy"].rows[1][1:3] == ["2", "61.00 ± 0.71; diverges (1 of 3)"]
    assert made["A: accuracy"].rows[2][1:4] == ["0", "diverges (3 of 3)", ""]
    others = rows(made["A: AdaHessian minus the others"])
    assert others[("AdaHessian n=2", "SGD")] == ("", "", "AdaHessian n=2 diverges")
    assert (
        rows(made["A: compared with the same at n = 1"])[("AdaHessian n=2",)][-1] == "both diverge"
    )
    assert "diverges" in show(small, capsys)


def test_committed_runs_fill_in_and_count_once(small, tmp_path, capsys):
    request = plans_paper_tables.find(str(small), None)
    train(request, spread)
    diverge(directory_of(request, next(c for c in request.cells if c.line.x == 2).runs[0]))
    before = tables(request)
    assert export.main([]) == 0
    shutil.rmtree(request.root / request.cells[0].runs[0].place)
    shutil.rmtree(request.root / next(c for c in request.cells if c.line.x == 2).runs[0].place)
    text = show(small, capsys)
    assert "8 runs, 1 of them in results/" in text and "No run is missing." in text
    assert tables(request) == before
    shutil.rmtree(request.root)
    text = show(small, capsys)
    assert "8 runs, 8 of them in results/" in text and tables(request) == before


def test_cost_is_a_mean_step_after_the_warm_up_on_the_same_machine(small):
    request = plans_paper_tables.find(str(small), None)
    train(request, spread)
    for cell in request.cells:
        for one in cell.runs:
            path = directory_of(request, one).metrics_path
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line, seconds in zip(lines, (9.0, 3.0, 3.0) if cell.line.x == 2 else (2.0,) * 3,
                                     strict=True):  # fmt: skip
                line["time/epoch_seconds"] = 100 * seconds  # an epoch has a hundred steps
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = tables(request)["A: cost"]
    assert cost.columns[3:] == ["× SGD", "theory", "paper, measured"]
    assert cost.rows[0][2:] == ["0.500", "1.00", "1.00", ""]
    assert cost.rows[1][2:] == ["0.500", "1.00", "2.00", "2.50"]
    assert cost.rows[2][2:] == ["0.333", "1.50", "1.50", ""]
    meta = request.root / request.cells[0].runs[0].place / "meta.json"
    meta.write_text(meta.read_text().replace('"device": "cpu"', '"device": "another"'))
    assert tables(request)["A: cost"].rows[1][3] == "", "SGD ran elsewhere"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference: SGD", "reference: SDG", "did you mean 'SGD'?"),
        ("subject: AdaHessian", "subject: Ada", "subject 'Ada'"),
        ("x: 2, theory", "x: 1, theory", "two lines have the same series and x"),
        ("paper: {A: {mean: 51", "paper: {C: {mean: 51", "no block 'C'"),
        ("{mean: 70}", "{mean: 70, n: 3}", "a std is of several runs"),
        ("tolerance: 1.0", "tolerence: 1.0", "did you mean 'tolerance'?"),
        ("{optimizer: sgd}", "{optimizer: sdg}", "did you mean 'sgd'?"),
    ],
)
def test_mistakes_in_a_table_are_named(small, capsys, old, new, message):
    assert old in TABLE
    small.write_text(TABLE.replace(old, new))
    assert paper_table.main([str(small)]) == 2
    error = capsys.readouterr().err
    assert "small.yaml" in error and message in error


def test_unknown_tables_and_data_sets_are_refused():
    with pytest.raises(UserError, match="no table 'tabel2'.* did you mean 'table2'?"):
        plans_paper_tables.find("tabel2", None)
    with pytest.raises(UserError, match="table2 on 'digit'. did you mean 'digits'?"):
        plans_paper_tables.find("table2", "digit")


@pytest.mark.filterwarnings("default:B of .* is left out")
def test_submit_sends_the_missing_runs_and_no_others(small, capsys, monkeypatch):
    monkeypatch.setattr("warnings.showwarning", None)  # `main` sets it; put back afterwards
    request = plans_paper_tables.find(str(small), None)
    train(request, lambda label, seed: None if label == "SGD" and seed > 1 else 0.5)
    assert submit.main([str(small), "--profile", "local", "--dry-run"]) == 0
    output, errors = capsys.readouterr()
    sent = [line for line in output.splitlines() if line.startswith("would send")]
    assert [line.rpartition("-s")[2] for line in sent] == ["2", "3"] and "/sgd/" in sent[0]
    assert f"B of {small} is left out: no file" in errors
    assert submit.main([str(DIGITS), "dataset=digits", "--profile", "local"]) == 2
    assert "chooses where a table is made" in capsys.readouterr().err


@pytest.mark.parametrize("axis", ["linear", "log", "category"])
def test_pictures_and_pages_hold_the_table(small, capsys, tmp_path, axis):
    small.write_text(TABLE.replace("axis: linear", f"axis: {axis}"))
    request = plans_paper_tables.find(str(small), None)
    train(request, spread)
    diverge(directory_of(request, request.cells[1].runs[0]))
    show(small, capsys)
    folder = tmp_path / "runs" / "report"
    assert (folder / "small-digits.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "small-digits.html").read_text()
    assert "data:image/png;base64," in page and "diverges (1 of 3)" in page
    assert (
        "![Table 1: small; digits, shortened to 3 of 160 epochs](small-digits.png)"
        in (folder / "small-digits.md").read_text()
    )


def test_ours_on_a_page_of_documentation(small, tmp_path):
    train(plans_paper_tables.find(str(small), None), spread)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    page = tmp_path / "docs" / "results.md"
    page.write_text(
        "before\n<!-- small-digits:begin -->\nstale\n<!-- small-digits:end -->\nafter\n"
    )
    assert paper_table.main([str(small), "--docs", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert "minus the others" in text and "Source: " in text and "What there is" not in text
    picture = page.parent / "images" / "small-digits.png"
    assert f"(images/{picture.name})" in text and picture.read_bytes().startswith(b"\x89PNG")


def test_latex_is_escaped_and_compiles(small, capsys, tmp_path):
    train(plans_paper_tables.find(str(small), None), spread)
    show(small, capsys)
    text = (tmp_path / "runs" / "report" / "small-digits.tex").read_text()
    assert r"A note with 5 \% \& more\_than\_that." in text and r"51.00 $\pm$ 0.50" in text
    assert text.isascii() and r"\toprule" in text
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex to compile it with")
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"
    (tmp_path / "a.tex").write_text(document % text)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_run_of_another_problem_is_in_no_cell_and_is_named(tmp_path):
    path = tmp_path / "table1.yaml"
    path.write_text(TABLE)
    request = plans_paper_tables.find(str(path), "digits")
    for run in request.cells[0].runs:
        made = finish_run(request.root, run.config, [0.5])
        say_in_meta(made, data={"digest": "b" if run.config.seed == 2 else "a"})
    results = paper_tables.read(request)
    assert len(results.found[0].finished) == 2
    assert "-s2 is left out, as not comparable: data b" in paper_table_text.advice(results)
