import json
import math

import matplotlib
import pytest
import torch
from support.harness import REPOSITORY

from adahessian import AdaHessian
from experiments import figures
from experiments.errors import UserError
from experiments.landscapes import illustrations, quadratics, search
from experiments.landscapes.descent import descend
from experiments.landscapes.functions import LANDSCAPES, quadratic, rastrigin, ripples, rosenbrock

ROSENBROCK, RASTRIGIN = LANDSCAPES


@pytest.mark.parametrize("landscape", LANDSCAPES, ids=lambda landscape: landscape.name)
def test_the_minimum_is_where_it_is_said_to_be(landscape):
    minimum = torch.tensor(landscape.minimum, dtype=torch.float64, requires_grad=True)
    value = landscape.function(minimum)
    (grad,) = torch.autograd.grad(value, minimum)
    hessian = torch.autograd.functional.hessian(landscape.function, minimum)
    assert value.item() == 0 and grad.abs().max() == 0
    assert torch.linalg.eigvalsh(hessian).min() > 0


def test_functions_at_known_points():
    points = torch.tensor([[-2.0, 2.0], [0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(rosenbrock(points), points.new_tensor([409.0, 56.5]))
    torch.testing.assert_close(rastrigin(points), points.new_tensor([8.0, 21.25]))
    x = torch.tensor([[2.9]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(ripples(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(grad.sum(), x)
    newton = (grad / curvature).item()
    assert newton == pytest.approx((5.8 + 5.8 * math.pi) / (2 + 4 * math.pi), rel=1e-9)


@pytest.mark.parametrize("name", search.SPACES)
def test_descents_side_by_side_are_those_alone(name):
    space = search.SPACES[name]
    region = search.around(space, (1e-3, 0.1, 0.1)[: len(space.bounds)])
    settings = [space.arguments(*point) for point in search.candidates(region, 3, 0)]
    # On a separable function a probe has no effect: z · Hz is the diagonal whatever z.
    start = torch.tensor([[-2.0, 3.5], [1.3, 0.2]], dtype=torch.float64)
    together = path(rastrigin, start, space.constructor, settings, 20)
    for i, setting in enumerate(settings):
        for j in range(len(start)):
            alone = path(rastrigin, start[j], space.constructor, [setting], 20)
            torch.testing.assert_close(together[:, i, j], alone[:, 0], rtol=1e-9, atol=1e-12)


def path(function, start, constructor, settings, steps):
    points = descend(function, start, constructor, settings)
    return torch.stack([next(points) for _ in range(steps + 1)])


def test_points_in_many_dimensions_are_not_averaged():
    hessian = torch.tensor([[1.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    start = torch.ones(2, 3, 4, 2, dtype=torch.float64)
    last = path(quadratic(hessian), start, AdaHessian, [{"lr": 1.0, "eps": 0.0}], 1)[-1]
    assert last.shape == (1, 2, 3, 4, 2) and last.abs().max() == 0


def test_figure_1_is_reproduced_exactly():
    paths = illustrations.bowl_paths()
    descent, newton = paths["gradient descent"], paths["AdaHessian"]
    assert newton.tolist() == [[8.0, 8.0], [0.0, 0.0]]
    assert len(descent) == 61
    factors = descent[1:20] / descent[:19]
    torch.testing.assert_close(factors, factors.new_tensor([14 / 15, 1 / 3]).expand_as(factors))
    assert descent[-1, 0].item() == pytest.approx(0.127, abs=5e-4)
    assert descent[-1, 1].item() == pytest.approx(0, abs=1e-6)


def test_figure_3_comes_close_to_the_published_points():
    fit = search.found()["ripples"]["with"]
    points = illustrations.ripple_paths([fit["setting"]], 6)[:, 0]
    distance = (points - points.new_tensor(illustrations.PUBLISHED)).abs().max().item()
    assert distance == pytest.approx(fit["largest_distance"], abs=1e-4)
    assert distance < 0.006
    without = {**fit["setting"], "betas": (fit["setting"]["betas"][0], 0.0)}
    assert illustrations.ripple_paths([without], 6)[-1].item() > 2


def test_figure_3_without_the_average_rests_where_the_papers_does():
    fit = search.found()["ripples"]["without"]
    points = illustrations.ripple_paths([fit["setting"]], 300)[:, 0]
    assert points[1].item() == pytest.approx(2.405, abs=1e-3)
    assert points[-1].item() == pytest.approx(illustrations.PUBLISHED_REST, abs=1e-3)


def test_averages_from_zero_cannot_give_the_published_second_step():
    betas = [(b1 / 10, b2) for b1 in range(10) for b2 in (0.0, 0.5, 0.9, 0.99, 0.999, 0.99999)]
    settings = [{"lr": 0.45, "betas": pair, "eps": 0.0} for pair in betas]
    points = illustrations.ripple_paths(settings, 2, seeded=False)
    first, second = points[1] - points[0], points[2] - points[1]
    published = torch.tensor(illustrations.PUBLISHED).diff()
    assert (second / first).abs().max() < 0.05 < (published[1] / published[0])


def test_the_search_is_deterministic_and_better_than_its_worst_candidate():
    space = search.SPACES["AdaHessian"]
    arguments = {"budget": 8, "number": 2, "steps": 15}
    first, second = (search.search(ROSENBROCK, space, **arguments) for _ in range(2))
    assert first == second
    assert first != search.search(ROSENBROCK, space, **arguments, seed=1)
    settings = [space.arguments(*point) for point in search.candidates(space, 4, search.SEED)]
    distances = search.final_distances(
        ROSENBROCK, space, settings, search.starts(ROSENBROCK, 2, search.SEED), 15
    )
    scores = distances.clamp(1e-6, 100).log10().mean(1)
    assert first["score"] <= round(scores.min().item(), 3) < scores.max().item()


def test_a_descent_that_diverges_is_a_bad_one_and_leaves_the_others_alone():
    space = search.SPACES["SGD"]
    good, bad = {"lr": 1e-3, "momentum": 0.0}, {"lr": 10.0, "momentum": 0.9}
    start = search.starts(ROSENBROCK, 2, 0)
    distances = search.final_distances(ROSENBROCK, space, [good, bad], start, 50)
    alone = search.final_distances(ROSENBROCK, space, [good], start, 50)
    assert distances[1].isinf().all()
    assert torch.equal(distances[:1], alone)


def test_what_was_found_is_what_the_search_says():
    document = search.found()
    assert document["budget"] == {
        "candidates": search.BUDGET, "starts": search.STARTS,
        "steps": search.STEPS, "seed": search.SEED,
    }  # fmt: skip
    result = document["rosenbrock"]["SGD"]
    start = search.starts(ROSENBROCK, search.STARTS, search.SEED)
    distances = search.final_distances(
        ROSENBROCK, search.SPACES["SGD"], [result["setting"]], start, search.STEPS
    )
    score = distances.clamp(1e-6, 100).log10().mean().item()
    assert score == pytest.approx(result["score"], abs=2e-3)


def test_a_damaged_file_of_findings_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    damaged = tmp_path / "found.json"
    damaged.write_text('{"budget": ')
    monkeypatch.setattr(search, "FOUND", damaged)
    with pytest.raises(UserError, match="make it again with python -m experiments.landscapes"):
        search.found()


def test_quadratics_have_the_eigenvalues_and_the_diagonal_that_is_said():
    eigenvalues = torch.linalg.eigvalsh(quadratics.hessians())
    expected = eigenvalues.new_tensor([[1.0, c] for c in quadratics.CONDITIONS])
    torch.testing.assert_close(eigenvalues, expected.expand_as(eigenvalues))
    conditions = quadratics.jacobi_conditions()
    torch.testing.assert_close(conditions[0], torch.ones_like(conditions[0]))
    torch.testing.assert_close(conditions[-1], expected[:, 1])


def test_a_diagonal_helps_along_the_axes_and_not_across_them(monkeypatch):
    monkeypatch.setattr(quadratics, "ANGLES", (0, 45))
    monkeypatch.setattr(quadratics, "CONDITIONS", (1, 30))
    monkeypatch.setattr(quadratics, "LEARNING_RATES", (0.03, 0.06, 0.3, 1.0))
    monkeypatch.setattr(quadratics, "MAX_STEPS", 200)
    sgd, adahessian = (
        quadratics.steps_needed(quadratics.METHODS[i])[0].tolist() for i in (0, 2)
    )  # fmt: skip
    assert sgd[0][0] == sgd[1][0] == adahessian[0][0] == 1
    assert adahessian[0][1] == 1, "on the axes the diagonal is the Hessian"
    assert adahessian[1][1] > 50 and sgd[1][1] > 50


def test_the_command_writes_the_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setattr(quadratics, "ANGLES", (0, 45))
    monkeypatch.setattr(quadratics, "CONDITIONS", (1, 10))
    monkeypatch.setattr(quadratics, "LEARNING_RATES", (0.1, 1.0))
    monkeypatch.setattr(quadratics, "MAX_STEPS", 30)
    assert figures.main(["--vector"]) == 0
    output = capsys.readouterr().out
    names = {"fig1", "fig3", "rosenbrock", "rastrigin", "quadratics", "paper_resnet20_cifar10",
             "paper_resnet32_cifar10", "paper_resnet18_imagenet"}  # fmt: skip
    for name in names:
        picture = tmp_path / "figures" / f"{name}.png"
        assert str(picture) in output
        pixels = matplotlib.image.imread(picture)
        assert pixels.shape[1] > 500 and pixels[..., :3].std() > 0.03
        assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert "<svg " in picture.with_suffix(".svg").read_text("utf-8")
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == names
    assert "AdaHessian ends at (0.000, 0.000)" in output


def test_findings_are_small_and_plain():
    assert search.FOUND.stat().st_size < 4000
    assert json.loads(search.FOUND.read_text()) and REPOSITORY in search.FOUND.parents
