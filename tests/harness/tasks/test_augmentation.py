"""Policies, erasing, mixing, label smoothing and averages: equal draws, and what they are."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.harness import interrupted, small_config, until_done
from support.photographs import small_config as folder_config
from support.photographs import write_imagenet
from support.training import assert_equal, result, train_here
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from experiments.errors import UserError
from experiments.runs.metrics import read_metrics
from experiments.runtime import distributed
from experiments.tasks import registry
from experiments.tasks.image_classification import augmentation
from experiments.tasks.image_classification.augmentation import Mix, Transform, draw_mix
from experiments.tasks.image_classification.config import Augmentation
from experiments.training import loop
from experiments.training.evaluation import build_average, update_average
from experiments.training.restore import restore

CPU = torch.device("cpu")
CONVNET = ("model={name: convnet, depth: 3}", "epochs=1")
FEW = "dataset.validation_size=900"  # 397 images are left, in four steps: policies take their time
EVERYTHING = "augmentation={policy: randaugment, erasing: 0.5, mixup: 0.4, cutmix: 1.0}"


def task_of(*overrides):
    return registry.build_task(small_config(*CONVNET, *overrides), CPU, Path("unused"))


def as_rank(rank, world, function, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(distributed, "world_size", lambda: world)
        patched.setattr(distributed, "rank", lambda: rank)
        return function()


def joined(batches):
    """The shards of a step, put together again."""
    mixed = batches[0].partners is not None
    partners = torch.cat([b.partners for b in batches]) if mixed else None
    inputs, labels = (torch.cat([getattr(b, k) for b in batches]) for k in ("inputs", "labels"))
    return inputs, labels, partners, {b.share for b in batches}


@pytest.mark.parametrize("text", [EVERYTHING, "augmentation={policy: trivialaugment}"])
def test_every_number_of_processes_sees_the_same_images(text, monkeypatch):
    whole = joined([list(task_of(text, FEW).training_batches(3, 0))[2]])
    for world in (2, 3):
        shards = [
            as_rank(r, world, lambda: next(task_of(text, FEW).training_batches(3, 2)), monkeypatch)
            for r in range(world)
        ]
        found = joined(shards)
        assert torch.equal(found[0], whole[0]) and torch.equal(found[1], whole[1])
        assert found[3] == whole[3]
        assert whole[2] is None or torch.equal(found[2], whole[2])
    resumed = next(task_of(text, FEW).training_batches(3, 2))
    assert torch.equal(resumed.inputs, whole[0])
    other = next(task_of(text, FEW).training_batches(4, 2))
    assert not torch.equal(other.inputs, whole[0])


def test_images_from_files_are_mixed_and_changed_in_the_same_way(tmp_path, monkeypatch):
    write_imagenet(tmp_path)
    config = folder_config(EVERYTHING, "epochs=1")

    def third():
        return next(registry.build_task(config, CPU, tmp_path).training_batches(1, 2))

    whole = joined([third()])
    shards = joined([as_rank(r, 2, third, monkeypatch) for r in range(2)])
    assert torch.equal(shards[0], whole[0]) and torch.equal(shards[2], whole[2])
    assert train_here_with_data(tmp_path, config).done


def train_here_with_data(root, config):
    directory = loop.RunDirectory(root / "runs", config)
    with directory.locked():
        loop.train(config, directory, root)
    return directory


def test_nothing_is_drawn_and_nothing_changed_without_augmentation():
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    transform = Transform(Augmentation(), 1, 255, None)
    assert transform(pixels, 0, torch.arange(5)) is pixels


@pytest.mark.parametrize("white", [255, 16])
def test_a_policy_is_torchvisions_from_the_positions_seed(white):
    torch.manual_seed(0)
    pixels = torch.randint(0, white + 1, (4, 1, 8, 8), dtype=torch.uint8)
    settings = Augmentation(policy="randaugment", num_ops=3, magnitude=12)
    before = torch.get_rng_state()
    found = Transform(settings, 7, white, None)(pixels, 2, torch.tensor([9, 4, 0, 1]))
    assert torch.equal(torch.get_rng_state(), before)
    assert found.max() <= white and not torch.equal(found, pixels)
    for image, position, mine in zip(pixels, (9, 4, 0, 1), found, strict=True):
        seed = augmentation.draw_seed(7, 2, f"policy {position}")
        torch.default_generator.manual_seed(seed)
        expected = v2.RandAugment(3, 12)((image / white * 255).round().to(torch.uint8))
        assert torch.equal(mine, (expected / 255 * white).round().to(torch.uint8))


def test_what_is_erased_has_the_mean_and_every_second_image_has_it():
    pixels = torch.full((400, 3, 16, 16), 100, dtype=torch.uint8)
    settings = Augmentation(erasing=0.5)
    found = Transform(settings, 1, 255, [0.2, 0.4, 0.6])(pixels, 0, torch.arange(400))
    changed = (found != 100).flatten(1).any(1)
    assert 160 < changed.sum() < 240
    values = found[changed].transpose(0, 1).flatten(1)
    assert [set(v.tolist()) for v in values] == [{100, 51}, {100, 102}, {100, 153}]


def test_two_images_are_mixed_as_torchvision_mixes_them():
    torch.manual_seed(0)
    images = torch.rand(6, 3, 10, 12)
    partners = images.roll(1, 0)
    blended = Mix(0.3)(images, partners)
    torch.testing.assert_close(blended, 0.3 * images + 0.7 * partners)
    mixed = Mix(1 - 20 / 120, (2, 3, 6, 8))(images, partners)
    inside = torch.zeros(10, 12, dtype=torch.bool)
    inside[2:6, 3:8] = True
    assert torch.equal(mixed, torch.where(inside, partners, images))


def test_shares_are_betas_and_areas():
    """Beta(a, a) has mean 1/2 and variance 1 / (8 a + 4)."""
    draws = [draw_mix(Augmentation(mixup=0.5), 1, 0, step, (8, 8)) for step in range(2000)]
    shares = torch.tensor([draw.share for draw in draws])
    assert all(draw.box is None for draw in draws)
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / 8) < 0.01
    both = [draw_mix(Augmentation(mixup=1, cutmix=1), 1, 0, s, (16, 8)) for s in range(400)]
    cut = [draw for draw in both if draw.box]
    assert 150 < len(cut) < 250
    for draw in cut:
        top, left, bottom, right = draw.box
        assert 0 <= top <= bottom <= 16 and 0 <= left <= right <= 8
        assert draw.share == 1 - (bottom - top) * (right - left) / 128


def test_the_loss_of_a_mixed_batch_is_that_of_soft_labels():
    task = task_of("augmentation={mixup: 1.0}", "label_smoothing=0.1", "dtype=float64")
    torch.manual_seed(0)
    model, batch = task.build_model(), next(task.training_batches(0, 0))
    soft = batch.share * F.one_hot(batch.labels, 10) + (1 - batch.share) * F.one_hot(
        batch.partners, 10
    )
    logits = model(batch.inputs)
    expected = F.cross_entropy(logits, soft.double(), label_smoothing=0.1)
    loss, sums = task.loss(model, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(task.loss_alone(model, batch)[0], expected)
    assert sums["correct"].item() == pytest.approx(
        (soft * F.one_hot(logits.argmax(1), 10)).sum().item()
    )
    evaluated = task.evaluate(model, next(task.evaluation_batches("test")))
    plain = task_of("dtype=float64")
    batch = next(plain.evaluation_batches("test"))
    torch.testing.assert_close(evaluated["loss"], plain.loss(model, batch)[0] * len(batch.labels))


@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
def test_a_mixed_batch_in_parts_gives_the_same_training(way, tmp_path):
    """Micro-batches and a part of the batch carry partners and shares along."""
    settings = (*CONVNET, "dtype=float64", "augmentation={mixup: 0.3, cutmix: 1.0}",
                "label_smoothing=0.1", f"optimizers.adahessian.curvature={way}")  # fmt: skip
    rows = [
        read_metrics(
            train_here(tmp_path / parts, small_config(*settings, f"micro_batches={parts}",
                                                      optimizer="adahessian")).metrics_path
        )[0] for parts in ("1", "4")
    ]  # fmt: skip
    assert rows[0]["train/loss"] == pytest.approx(rows[1]["train/loss"], rel=1e-4)
    assert rows[0]["train/accuracy"] == pytest.approx(rows[1]["train/accuracy"], abs=1e-3)
    config = small_config(*settings, "optimizers.adahessian.curvature_fraction=0.5",
                          optimizer="adahessian")  # fmt: skip
    assert train_here(tmp_path / "part", config).done


AVERAGES = ["average={decay: 0.9}", "average={last_epochs: 2}"]


@pytest.mark.parametrize("text", [EVERYTHING, *AVERAGES])
def test_interrupted_it_ends_as_uninterrupted(text, tmp_path, monkeypatch):
    config = small_config(*CONVNET, text, FEW, "epochs=3", "checkpoint_every_steps=3")
    whole = train_here(tmp_path / "whole", config)
    step = interrupted(loop.optimizer_step, lambda call: call % 5 == 4)
    monkeypatch.setattr(loop, "optimizer_step", step)
    directory, sessions = until_done(lambda: train_here(tmp_path / "cut", config))
    assert sessions > 2
    assert_equal(result(directory), result(whole))
    ends = [torch.load(d.path / "checkpoint.pt", weights_only=True) for d in (whole, directory)]
    if "average" in text:
        assert all(map(torch.equal, *(end["evaluated"].values() for end in ends)))


def test_an_average_is_that_of_its_formula_and_is_what_is_evaluated(tmp_path, monkeypatch):
    states, step = [], loop.optimizer_step

    def spy(training, batch):
        sums = step(training, batch)
        states.append({n: t.clone() for n, t in training.model.state_dict().items()})
        return sums

    monkeypatch.setattr(loop, "optimizer_step", spy)
    kept = {}
    for text in AVERAGES:
        states.clear()
        config = small_config("model.depth=8", text, "epochs=3")
        directory = train_here(tmp_path, config)
        kept[text] = torch.load(directory.path / "checkpoint.pt", weights_only=True)
        expected = states[0]["linear.weight"]
        for state in states[1:]:
            expected = 0.9 * expected + 0.1 * state["linear.weight"]
        if "last" in text:
            expected = (states[21]["linear.weight"] + states[32]["linear.weight"]) / 2
        torch.testing.assert_close(kept[text]["evaluated"]["linear.weight"], expected)
        assert torch.equal(kept[text]["model"]["linear.weight"], states[-1]["linear.weight"])
        task, model, _ = restore(directory.path, "cpu")
        last = read_metrics(directory.metrics_path)[-1]
        assert loop.evaluate(task, model, "test")["loss"] == last["test/loss"]
    plain = train_here(tmp_path, small_config("model.depth=8", "epochs=3"))
    weights = torch.load(plain.path / "checkpoint.pt", weights_only=True)["model"]
    for state in kept.values():
        assert all(map(torch.equal, weights.values(), state["model"].values()))


def test_the_average_is_bitwise_torchs():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model.register_buffer("short", torch.ones(3, dtype=torch.float16))
    config = small_config(AVERAGES[0])
    average = build_average(config, model, torch.optim.SGD(model.parameters()))
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(1, 8):
        with torch.no_grad():
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                tensor += (torch.randn(tensor.shape) * 5).to(tensor.dtype)
        update_average(average, model, config, step, 10)
        expected.update_parameters(model)
        found = average.state_dict()
        assert found.keys() == expected.state_dict().keys()
        assert all(map(torch.equal, found.values(), expected.state_dict().values()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("average={}", "average: write one of decay and last_epochs"),
        ("average={decay: 0.9, last_epochs: 2}", "average: write one of decay and last_epochs"),
        ("average={decay: 1}", "average.decay = 1: Input should be less than 1"),
        ("augmentation={policy: autoaugment}", "augmentation.policy = 'autoaugment': Input should"),
        ("augmentation={mix_up: 1}", "augmentation: unknown key 'mix_up'; did you mean 'mixup'?"),
        ("augmentation={mixup: -1}", "augmentation.mixup = -1: Input should be greater than"),
        ("label_smoothing=1.0", "label_smoothing = 1.0: Input should be less than 1"),
    ],
)
def test_what_does_not_fit_is_one_line(text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        small_config(text)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_averages_is_not_averaged_again(tmp_path):
    text = ("optimizers.sgd={constructor: pytorch_optimizer.ScheduleFreeSGD, lr: 0.1, "
            "weight_decay: 0, weight_decay_divided_by_lr: false}")  # fmt: skip
    with pytest.raises(UserError, match="average: sgd has an average of its own"):
        train_here(tmp_path, small_config(*CONVNET, text, AVERAGES[0]))
