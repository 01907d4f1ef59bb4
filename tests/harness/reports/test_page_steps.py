"""What the page shows of single steps."""

import json

import pytest
from support.harness import finish_run, small_config
from support.page_runs import step_row, write_runs

from experiments.errors import UserError
from experiments.reports import page
from experiments.reports.page import steps
from experiments.reports.sections import Figure, Grid
from experiments.results.tables import read_results


def figures_of(root):
    (section,) = steps.inside_epochs(read_results(root))
    return {block.title: block.plot for block in section.blocks if isinstance(block, Figure)}


def test_each_kind_of_number_has_a_plot_and_each_group_a_line(tmp_path):
    write_runs(tmp_path)
    found = figures_of(tmp_path)
    assert list(found) == [
        *steps.CURVES.values(), *steps.QUANTILES.values(),
        *(f"Update by layer, in units of its weights: {name}"
          for name in ("sgd", "adahessian", "sgd, seed 7 (killed)")),
    ]  # fmt: skip
    lines = found["Loss of single batches"].data
    assert [line.name for line in lines] == ["sgd", "adahessian", "sgd, seed 7 (killed)"]
    assert (lines[0].x, lines[0].y) == ((0.5, 1, 1.5), (2, 1, 0.6667))
    assert lines[2].line.dash == "dot" and lines[2].line.color == lines[0].line.color
    quantiles = found["What AdaHessian divides by"].data
    assert [line.y[0] for line in quantiles] == [10, 1, 100]
    assert [line.showlegend for line in quantiles] == [True, False, False]
    heat = found["Update by layer, in units of its weights: sgd"].data[0]
    assert heat.y == ("conv", "linear") and heat.z[0][0] == pytest.approx(-2.699, abs=1e-3)


def test_without_logged_steps_there_is_no_section(tmp_path):
    finish_run(tmp_path, small_config(), [0.5])
    assert list(steps.inside_epochs(read_results(tmp_path))) == []


def test_a_long_run_is_thinned_and_a_torn_file_read_as_far_as_it_goes(tmp_path):
    run = finish_run(tmp_path, small_config(), [0.5])
    with run.steps_path.open("a") as file:
        for step in range(1, 5001):
            file.write(json.dumps(step_row(step, "sgd")) + "\n")
        file.write('{"step": 5001, "epo')
    (section,) = steps.inside_epochs(read_results(tmp_path))
    assert "Of up to 5000 rows each line shows 250" in section.blocks[0].plain
    line = section.blocks[1].plot.data[0]
    assert (len(line.x), line.x[0], line.x[-1]) == (250, 0.01, 50)
    assert len(section.blocks[-1].plot.data[0].x) == 80


def test_a_run_in_its_first_epoch_has_curves(tmp_path):
    """Nothing is evaluated yet, of it or of any other run."""
    run = finish_run(tmp_path, small_config("epochs=4"), [0.5])
    (run.path / "DONE").unlink()
    run.metrics_path.write_text("")
    with pytest.raises(UserError, match="no finished run"):
        read_results(tmp_path)
    for step in (50, 100):
        run.append_step(step_row(step, "sgd"))
    sections = page.make(read_results(tmp_path))
    assert [section.title for section in sections][1:3] == [
        "digits resnet8", "Inside the epochs: digits resnet8",
    ]  # fmt: skip
    (row,) = next(block for block in sections[1].blocks if isinstance(block, Grid)).rows
    assert row[0] == "sgd, seed 1 (killed)" and row[3].text == "epoch 0 of 4"


def test_the_mean_is_of_steps_that_all_seeds_logged(tmp_path):
    """With another `log_every_steps` a line jumped between the seeds."""
    for seed, every in ((1, 50), (2, 75)):
        run = finish_run(tmp_path, small_config(seed=seed), [0.5])
        for step in range(every, 301, every):
            run.append_step({**step_row(step, "sgd"), "step/loss": float(seed)})
    line = figures_of(tmp_path)["Loss of single batches"].data[0]
    assert (line.x, line.y) == ((1.5, 3), (1.5, 1.5))


def test_values_that_are_no_numbers_are_passed_over(tmp_path):
    run = finish_run(tmp_path, small_config(), [0.5])
    run.append_step({**step_row(50, "sgd"), "step/loss": float("nan")})
    run.append_step({**step_row(100, "sgd"), "step/loss": "1"})
    run.append_step({**step_row(120, "sgd"), "step/loss": 10**400})
    run.append_step({**step_row(130, "sgd"), "epoch": None})
    run.append_step(step_row(150, "sgd"))
    assert figures_of(tmp_path)["Loss of single batches"].data[0].x == (1.5,)
