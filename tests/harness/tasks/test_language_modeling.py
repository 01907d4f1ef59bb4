"""Language modelling, from its sequences to a run that is interrupted."""

import math
from functools import partial

import numpy
import pytest
import torch
from support.text import NO_DROPOUT, make_task, small_home, train_small

from experiments.errors import UserError
from experiments.plans.load import load
from experiments.runs.metrics import read_json, read_metrics
from experiments.tasks.language_modeling.task import stream
from experiments.tasks.text.prepared import Prepared
from experiments.tasks.text.vocabulary import END
from experiments.training import loop


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory)


@pytest.fixture
def make(home):
    return partial(make_task, home, "language")


def train(home, root, *overrides, optimizer="sgd"):
    return train_small(home, "language", root, *overrides, optimizer=optimizer)


def test_lines_are_one_text():
    flat, lengths = numpy.array([11, 12, 21, 31], dtype=numpy.int32), numpy.array([2, 1, 0, 1])
    assert stream(flat, lengths).tolist() == [11, 12, END, 21, END, END, 31, END]


def test_a_pass_predicts_every_token_of_whole_sequences_once(make):
    task = make("dataset.steps_per_epoch=0")
    text, length = task.streams["train"], task.config.dataset.length
    seen = torch.cat([batch.tokens for batch in task.training_batches(0, 0)])
    count = (len(text) - 1) // length
    assert len(seen) == count
    expected = [text[i * length : (i + 1) * length + 1].tolist() for i in range(count)]
    assert sorted(seen.tolist()) == sorted(expected)
    assert seen.tolist() != expected


def test_an_evaluated_split_predicts_every_token_but_its_first(make):
    task = make()
    text = task.streams["val"]
    assert (len(text) - 1) % task.config.dataset.length  # the last sequence is shorter
    targets = [row[1:].tolist() for b in task.evaluation_batches("val") for row in b.tokens]
    assert [token for row in targets for token in row] == text[1:].tolist()


def test_the_perplexity_is_that_of_every_token(make):
    """Computed here sequence by sequence and token by token; no label smoothing in it."""
    task = make("dtype=float64")
    torch.manual_seed(0)
    model = task.build_model().eval()
    measured = loop.evaluate(task, model, "val")
    text, length, total = task.streams["val"].long(), task.config.dataset.length, 0.0
    for start in range(0, len(text) - 1, length):
        piece = text[start : start + length + 1]
        for place in range(1, len(piece)):
            with torch.no_grad():
                logits = model.logits(model(piece[None, :place]))[0, -1]
            total -= logits.log_softmax(-1)[piece[place]].item()
        if start > 3 * length:
            break
    else:
        raise AssertionError("the split is too short for this test")
    batches = list(task.batches_of(task.streams["val"][: start + length + 1]))
    surprise = sum(task.loss(model, batch)[1]["surprise"].item() for batch in batches)
    assert surprise == pytest.approx(total)
    assert measured["perplexity"] > math.exp(0.8 * total / (start + length))


@pytest.mark.parametrize("cutoffs", [[], [20]])
def test_micro_batches_and_parts_are_the_batch(make, cutoffs):
    smoothing = "label_smoothing=0.0" if cutoffs else "label_smoothing=0.1"
    task = make(*NO_DROPOUT, "micro_batches=3", "dtype=float64", smoothing,
                f"model.adaptive_cutoffs={cutoffs}")  # fmt: skip
    torch.manual_seed(0)
    model = task.build_model()
    batch = next(task.training_batches(0, 0))
    whole, sums = task.loss(model, batch)
    parts = task.micro_batches(batch)
    weighted = sum(task.loss(model, part)[0] * share for part, share in parts)
    torch.testing.assert_close(weighted, whole)
    halves = [task.loss_alone(model, task.part(batch, at, at + 0.5)) for at in (0, 0.5)]
    mean = sum(loss * weight for loss, weight in halves) / sums["weight"]
    torch.testing.assert_close(mean, whole)
    assert task.part(batch, 0.0, 0.01) is None


def test_it_learns_and_says_its_perplexity(home, tmp_path):
    directory = train(home, tmp_path, "dataset.steps_per_epoch=25", optimizer="adahessian")
    rows, meta = read_metrics(directory.metrics_path), read_json(directory.path / "meta.json")
    assert rows[-1]["test/perplexity"] < 0.7 * rows[0]["test/perplexity"]
    baselines = meta["sessions"][0]["baselines"]
    assert baselines["unigram"] > baselines["trigram"] > rows[-1]["test/perplexity"] / 100
    assert meta["headline"] == "perplexity" and meta["data"]["tokens"] == 130
    assert read_json(directory.path / "DONE")["best_epoch"] == {
        key: value for key, value in rows[-1].items() if not key.startswith("time/")
    }


def test_a_text_is_measured(make):
    task = make()
    model = task.build_model().eval()
    lines = task.corpus.texts("val", "en")
    measured, count = task.measure_text(model, lines)
    assert measured == pytest.approx(loop.evaluate(task, model, "val"))
    assert count == len(task.streams["val"]) - 1
    with pytest.raises(UserError, match="the text is empty"):
        task.measure_text(model, [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.name=ptb"], "ptb is split into words or pieces already, set null"),
        (["model.adaptive_cutoffs=[40]"], "an adaptive softmax avoids; set 0"),
        (["model.adaptive_cutoffs=[40, 20]"], "adaptive_cutoffs [40, 20]: must rise"),
        (["model.adaptive_cutoffs=[4, 5, 6]"], "need a width of 64 or more"),
        (["dataset.length=0"], "dataset.length = 0"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, message, home):
    with pytest.raises(UserError) as caught:
        load(home / "language.yaml", overrides)
    assert message in str(caught.value)


def test_cutoffs_beyond_the_vocabulary_are_refused(make):
    task = make("model.adaptive_cutoffs=[500]", "label_smoothing=0.0")
    with pytest.raises(UserError, match=r"model.adaptive_cutoffs = \[500\] for 130 tokens"):
        task.build_model()


def test_an_adaptive_softmax_computes_beside_bfloat16(make):
    overrides = (*NO_DROPOUT, "model.adaptive_cutoffs=[20]", "label_smoothing=0.0")
    losses = []
    for more in ((), ("autocast=bfloat16",)):
        task = make(*overrides, *more)
        torch.manual_seed(0)
        model = task.build_model()
        loss, _ = task.loss(model, next(task.training_batches(0, 0)))
        loss.backward()
        losses.append(loss)
    assert losses[0] != losses[1] and losses[1].dtype == torch.float32
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


def test_a_split_in_which_nothing_is_predicted_is_refused(make, monkeypatch):
    tokens = Prepared.tokens
    nothing = numpy.zeros(0, numpy.int32), numpy.zeros(1, numpy.int64)
    monkeypatch.setattr(
        Prepared, "tokens",
        lambda corpus, split, language: nothing if split == "test"
        else tokens(corpus, split, language),
    )  # fmt: skip
    with pytest.raises(UserError, match="the test set of kjv is a single blank line"):
        make()


def test_a_text_shorter_than_a_sequence_is_refused(make):
    with pytest.raises(
        UserError, match=r"dataset.length = 100000: the training set has \d+ tokens"
    ):
        make("dataset.length=100000")
