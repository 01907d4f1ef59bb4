import statistics

import pytest
from support.harness import REPOSITORY, finish_run

from experiments import figures
from experiments.errors import UserError
from experiments.plans import paper_tables
from experiments.plans.load import load, resolve
from experiments.results import published

RESNET20, RESNET32, RESNET18 = published.FIGURES


def run_of(optimizer, seed, *overrides):
    return resolve(load(REPOSITORY / RESNET20.config, overrides), optimizer, seed)


@pytest.mark.parametrize("figure", published.FIGURES, ids=lambda figure: figure.name)
def test_the_papers_curves_are_complete(figure):
    for quantity in ("train_loss", "test_acc"):
        curves = published.paper_curves(figure, quantity)
        assert list(curves) == ["sgd", "adam", "adamw", "adahessian"]
        for curve in curves.values():
            assert [epoch for epoch, _ in curve] == list(range(1, len(curve) + 1))
            assert len(curve) == (90 if figure is RESNET18 else 160)


def test_the_best_epochs_of_the_curves_agree_with_table_2():
    """Its ImageNet numbers are these runs; on CIFAR-10 they are means of five others."""
    best = {
        figure: {
            name: max(value for _, value in curve)
            for name, curve in published.paper_curves(figure, "test_acc").items()
        }
        for figure in published.FIGURES
    }
    table = {"sgd": 70.03, "adam": 64.53, "adamw": 67.41, "adahessian": 70.08}
    assert best[RESNET18] == pytest.approx(table, abs=0.03)
    for line in paper_tables.find("table2", None).table.lines:
        for figure, block in ((RESNET20, "ResNet-20"), (RESNET32, "ResNet-32")):
            mean = line.paper[block].mean
            assert best[figure][line.set["optimizer"]] == pytest.approx(mean, abs=0.4)


def test_runs_of_the_protocol_and_no_others_stand_beside_the_paper(tmp_path):
    for seed, last in ((1, 0.5), (2, 0.7)):
        finish_run(tmp_path, run_of("adahessian", seed), [0.4, last])
    finish_run(tmp_path, run_of("adahessian", 3, "epochs=3"), [0.9])
    finish_run(tmp_path, run_of("sgd", 1, "optimizers.sgd.lr=0.2"), [0.9])
    (finish_run(tmp_path, run_of("adam", 1), [0.9]).path / "DONE").unlink()
    runs = published.our_runs(RESNET20, tmp_path)
    assert list(runs) == ["adahessian"] and len(runs["adahessian"]) == 2
    curves = published.our_curves(runs["adahessian"], "test_acc")
    assert statistics.mean(curve[-1][1] for curve in curves) == pytest.approx(60)
    losses = published.our_curves(runs["adahessian"], "train_loss")
    assert losses[0] == [(1, 1.0), (2, 0.5)]


def test_the_caption_says_whether_there_are_runs_of_ours(tmp_path):
    alone = figures.curves(RESNET20, tmp_path, tmp_path / "alone.png")
    assert "alone: no finished run of ours" in alone
    for seed in (1, 2):
        finish_run(tmp_path, run_of("sgd", seed), [0.4, 0.5, 0.6])
    both = figures.curves(RESNET20, tmp_path, tmp_path / "both.png")
    assert "ours: SGD n=2" in both
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "alone.png").read_bytes()


def test_damaged_metrics_are_an_error_that_names_the_file(tmp_path, monkeypatch, capsys):
    directory = finish_run(tmp_path, run_of("sgd", 1), [0.4])
    directory.metrics_path.write_text('{"epoch": 1, "train')
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="metrics.jsonl cannot be read .* train this run anew"):
        published.our_runs(RESNET20, tmp_path)
    assert figures.main([]) == 2
    assert "metrics.jsonl cannot be read" in capsys.readouterr().err
