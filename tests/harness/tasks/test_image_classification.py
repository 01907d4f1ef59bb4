import hashlib

import pytest
import torch
from support.harness import small_config

from experiments.errors import UserError
from experiments.tasks.image_classification.task import ImageClassification

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task():
    return ImageClassification(small_config(), CPU, None)


def test_batches_depend_on_seed_epoch_and_position_alone(task):
    first = list(task.training_batches(3, 0))
    torch.rand(7)  # somebody else draws from the global generator
    list(task.training_batches(5, 0))
    again = list(task.training_batches(3, 4))
    assert len(first) == task.steps_per_epoch == 11 and len(again) == 7
    for a, b in zip(first[4:], again, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)
    other = next(task.training_batches(4, 0))
    assert not torch.equal(first[0].labels, other.labels)
    seeded = ImageClassification(small_config(seed=2), CPU, None)
    assert not torch.equal(first[0].labels, next(seeded.training_batches(3, 0)).labels)


def test_an_epoch_shows_every_image_once():
    config = small_config("dataset.crop_padding=0")
    task = ImageClassification(config, CPU, None)
    seen = torch.cat([batch.inputs for batch in task.training_batches(0, 0)])
    expected = task._normalize(task.data.train.pixels)
    assert torch.equal(seen.flatten(1).unique(dim=0), expected.flatten(1).unique(dim=0))
    assert len(seen) == len(expected)


# --------------------------------------------------------------------------------------- splits


def test_digits_are_split_evenly_and_always_alike(task):
    test = task.data.splits["test"]
    assert len(task.data.train) == 1297 and len(test) == 500
    assert test.labels.bincount().tolist() == [50] * 10
    assert task.data.train.pixels.shape[1:] == (1, 8, 8) and task.data.train.pixels.max() == 16
    digest = hashlib.sha256(test.pixels.numpy().tobytes()).hexdigest()[:16]
    assert digest == "f01f27f364748301"


def test_the_configured_mean_and_std_are_those_of_the_training_images(task):
    scaled = task.data.train.pixels.float() / 16
    assert task.config.dataset.mean == [round(scaled.mean().item(), 4)]
    assert task.config.dataset.std == [round(scaled.std().item(), 4)]
    normalized = task._normalize(task.data.train.pixels)
    assert normalized.mean().abs() < 1e-3 and abs(normalized.std() - 1) < 1e-3


def test_a_validation_split_comes_out_of_the_training_set(task):
    config = small_config("dataset.validation_size=200")
    split = ImageClassification(config, CPU, None)
    assert split.evaluation_splits == ("val", "test")
    assert len(split.data.splits["val"]) == 200 and len(split.data.train) == 1097
    assert split.data.splits["val"].labels.bincount().tolist() == [20] * 10
    assert torch.equal(split.data.splits["test"].pixels, task.data.splits["test"].pixels)
    with pytest.raises(UserError, match="dataset.validation_size = 1297: must be below 1297"):
        ImageClassification(small_config("dataset.validation_size=1297"), CPU, None)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(UserError, match="dataset.mean = .*needs 1 values, one per channel"):
        ImageClassification(small_config("dataset.mean=[0.1, 0.2]"), CPU, None)


# ------------------------------------------------------------------------------------- measures


def test_loss_and_sums(task):
    batch = next(task.evaluation_batches("test"))
    model = task.build_model().eval()
    loss, sums = task.loss(model, batch)
    logits = model(batch.inputs)
    assert loss.requires_grad and not sums["correct"].requires_grad
    assert sums["weight"] == 500
    assert sums["correct"] == (logits.argmax(1) == batch.labels).sum()
    totals = {"loss": 4.0, "weight": 8, "correct": 6}
    assert task.summarize(totals) == {"loss": 0.5, "accuracy": 0.75}


def test_evaluation_shows_every_image_once_in_order(task):
    labels = torch.cat([batch.labels for batch in task.evaluation_batches("test")])
    assert torch.equal(labels, task.data.splits["test"].labels)
