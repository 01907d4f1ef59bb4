"""Translation, from its batches to a run that is interrupted."""

import json
from functools import partial

import numpy
import pytest
import torch
from support.text import NO_DROPOUT, make_task, small_home, train_small

from experiments.errors import UserError
from experiments.plans.load import load
from experiments.runs.metrics import read_json, read_metrics
from experiments.tasks.text.vocabulary import BEGIN, END, PAD
from experiments.tasks.translation.bleu import Bleu
from experiments.training.restore import restore


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory)


@pytest.fixture
def make(home):
    return partial(make_task, home, "translation")


def train(home, root, *overrides, optimizer="sgd"):
    return train_small(home, "translation", root, *overrides, optimizer=optimizer)


def restored(directory, home):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DATA_ROOT", str(home))
        return restore(directory.path, "cpu")


# --------------------------------------------------------------------------------------- batches


def test_a_pass_has_every_pair_once_and_an_epoch_goes_on_where_the_last_one_ended(make):
    task = make("dataset.steps_per_epoch=3")
    steps = task.steps_per_pass
    epochs = -(-steps // 3)
    seen = [
        number
        for epoch in range(epochs)
        for batch in task.training_batches(epoch, 0)
        for pack in batch.packs
        for number in pack.sentences
    ]
    of_a_pass = len(task.sides["train"][0])
    assert sorted(seen[:of_a_pass]) == list(range(of_a_pass))
    whole = make("dataset.steps_per_epoch=0")
    assert whole.steps_per_epoch == steps
    again = [n for batch in whole.training_batches(0, 0) for p in batch.packs for n in p.sentences]
    assert again == seen[:of_a_pass]
    assert [n for b in whole.training_batches(1, 0) for p in b.packs for n in p.sentences] != again


def test_an_epoch_may_be_a_number_of_tokens(make):
    task = make("dataset.steps_per_epoch=0", "dataset.tokens_per_epoch=1500")
    tokens = sum(batch.tokens for batch in task.training_batches(0, 0))
    assert tokens == pytest.approx(1500, rel=0.3)


def test_batches_depend_on_seed_epoch_and_position_alone(make):
    def sources(task, epoch, first=0):
        return [p.source for b in task.training_batches(epoch, first) for p in b.packs]

    task = make()
    whole, rest = sources(task, 1), sources(make(), 1, first=2)
    assert all(map(torch.equal, whole[-len(rest) :], rest))
    assert not all(map(torch.equal, whole, sources(make(seed=2), 1)))


def test_a_batch_holds_the_texts(make, home):
    task = make()
    for batch in task.evaluation_batches("val"):
        for pack in batch.packs:
            for row, number in enumerate(pack.sentences):
                texts = (task.corpus.texts("val", language)[number] for language in ("de", "en"))
                for tokens, text in zip((pack.source, pack.target), texts, strict=True):
                    (expected,) = task.vocabulary.encode([text])
                    begin = [BEGIN] if tokens is pack.target else []
                    assert [t for t in tokens[row].tolist() if t != PAD] == [*begin, *expected, END]


def test_the_loss_is_a_mean_over_the_tokens(make):
    """With label smoothing: the target's share, and all tokens' mean; padding counts nothing."""
    task = make(*NO_DROPOUT)
    torch.manual_seed(0)
    model = task.build_model().double()
    batch = next(task.training_batches(0, 0))
    assert len(batch.packs) == 2
    losses, surprises = [], []
    for pack in batch.packs:
        for source, target in zip(pack.source, pack.target, strict=True):
            source, target = source[source != PAD][None], target[target != PAD][None]
            log_probs = model(source, target[:, :-1])[0].log_softmax(-1)
            for place, token in enumerate(target[0, 1:].tolist()):
                surprises.append(-log_probs[place, token])
                losses.append(-0.9 * log_probs[place, token] - 0.1 * log_probs[place].mean())
    loss, sums = task.loss(model, batch)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    torch.testing.assert_close(sums["surprise"], torch.stack(surprises).sum())
    assert sums["weight"] == len(losses)
    alone, weight = task.loss_alone(model, batch)
    torch.testing.assert_close(alone, loss)
    assert weight == sums["weight"]


def test_micro_batches_are_the_batch(make):
    task = make(*NO_DROPOUT, "batch_size=5", "micro_batches=3", "dtype=float64")
    torch.manual_seed(0)
    model = task.build_model()
    for batch in task.training_batches(0, 0):
        parts = task.micro_batches(batch)
        assert len(parts) == min(3, len(batch.packs))
        whole, _ = task.loss(model, batch)
        weighted = sum(task.loss(model, part)[0] * share for part, share in parts)
        torch.testing.assert_close(weighted, whole)
        assert sum(share for _, share in parts) == pytest.approx(1)


def test_parts_are_sentences_of_every_pack(make):
    task = make()
    batch = next(task.training_batches(0, 0))
    halves = [task.part(batch, start, start + 0.5) for start in (0, 0.5)]
    for number, pack in enumerate(batch.packs):
        both = [half.packs[number].sentences for half in halves]
        assert numpy.concatenate(both).tolist() == pack.sentences.tolist()
    assert sum(half.tokens for half in halves) == batch.tokens
    assert task.part(batch, 0, 1e-6) is None


def test_a_pack_with_fewer_sentences_than_processes_is_refused(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "30")
    with pytest.raises(UserError, match=r"max_tokens = 400: a pack has \d+ sentences, too few"):
        make()


# ------------------------------------------------------------------------------------------ runs


def test_a_step_of_more_packs_than_there_are_is_refused(make):
    with pytest.raises(UserError, match=r"batch_size = 9999: the training set has \d+ packs of"):
        make("batch_size=9999")


def test_a_run_measures_bleu_where_it_is_due(home, tmp_path):
    directory = train(home, tmp_path)
    rows = read_metrics(directory.metrics_path)
    assert [("test/bleu" in row, "val/bleu" in row) for row in rows] == [
        (False, False), (True, True), (True, True)]  # fmt: skip
    assert all(row["test/perplexity"] > 1 for row in rows)
    done, meta = (read_json(directory.path / name) for name in ("DONE", "meta.json"))
    assert meta["headline"] == "bleu" and "version" in meta["sessions"][0]["bleu_signature"]
    assert done["best_epoch"]["val/bleu"] == max(row.get("val/bleu", -1) for row in rows)
    assert meta["data"]["tokens"] == 400
    task, model, _ = restored(directory, home)
    texts = [task.corpus.texts("test", language) for language in ("de", "en")]
    samples = done["samples"]
    assert len(samples) == 8 and samples[0]["source"] == texts[0][0]
    assert samples[-1]["reference"] == texts[1][-1]
    assert [x["translation"] for x in samples] == task.translate(
        model.eval(), [x["source"] for x in samples]
    )


def test_bleu_of_sums_is_sacrebleus_of_everything():
    import sacrebleu

    outputs = ["the cat sat on the mat", "a dog", "one two three four five", "Nothing alike"]
    references = ["the cat sat on a mat", "a dog barks", "one two three four five six", "at all"]
    for options in (
        {"tokenize": "13a", "lowercase": False},
        {"tokenize": "none", "lowercase": True},
    ):
        bleu, sums = Bleu(**options), {}
        for part in (slice(0, 1), slice(1, 4)):
            for name, count in bleu.counts(outputs[part], references[part]).items():
                sums[name] = sums.get(name, 0) + count
        whole = sacrebleu.corpus_bleu(outputs, [references], **options)
        assert bleu.score(sums) == pytest.approx(whole.score) and whole.score > 10
        assert f"tok:{options['tokenize']}" in bleu.signature


def test_bleu_of_a_run_is_that_of_its_translations(home, tmp_path):
    rates = ("optimizers.adahessian.lr=0.1", "dataset.steps_per_epoch=20", *NO_DROPOUT)
    directory = train(home, tmp_path, "epochs=2", *rates, optimizer="adahessian")
    task, model, _ = restored(directory, home)
    outputs = task.translate(model.eval(), task.corpus.texts("val", "de"))
    counts = task.bleu.counts(outputs, task.corpus.texts("val", "en"))
    measured = read_metrics(directory.metrics_path)[-1]["val/bleu"]
    assert counts["bleu_matches_1"] > 0
    assert measured == pytest.approx(task.bleu.score(counts))


def test_it_learns(home, tmp_path):
    overrides = ("dataset.steps_per_epoch=30", "average=null")
    directory = train(home, tmp_path, *overrides, optimizer="adahessian")
    rows = read_metrics(directory.metrics_path)
    assert rows[-1]["val/perplexity"] < 0.5 * rows[0]["val/perplexity"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.target=de"], "source and target are both 'de'"),
        (["dataset.vocabulary=null"], "cldr is plain text, set a number of pieces"),
        (["dataset.name=iwslt14"], "iwslt14 is split into words or pieces already"),
        (["dataset.name=cldrr"], "no corpus is called 'cldrr'"),
        (["dataset.tokens_per_epoch=9"], "set one of them to 0"),
        (["micro_batches=3"], "micro_batches 3: a step has 2 packs"),
        (["model.heads=3"], "must be a multiple of twice the heads, 6"),
        (["model.dropout=1.0"], "model.dropout = 1.0"),
        (["decoding.beam=9999"], "decoding.beam = 9999"),
        (["decoding.max_length=10001"], "decoding.max_length = 10001"),
        (["decoding.length_penalty=500.0"], "decoding.length_penalty = 500.0"),
        (
            ["schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, plateau: "
             "{metric: val/bleu, patience: 0, threshold: 0.0}}"],
            "is not measured after every epoch: take val/loss",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(overrides, message, home):
    with pytest.raises(UserError) as caught:
        load(home / "translation.yaml", overrides)
    assert message in str(caught.value)


def test_a_prepared_corpus_that_was_changed_is_another_one(home, tmp_path):
    directory = train(home, tmp_path, "epochs=2", "average=null")
    (folder,) = (home / "cldr").iterdir()
    meta = (folder / "meta.json").read_text(encoding="utf-8")
    (folder / "meta.json").write_text(
        json.dumps({**json.loads(meta), "sha256": "0" * 64}), encoding="utf-8"
    )
    (directory.path / "DONE").unlink()
    try:
        with pytest.raises(UserError, match="was trained on other data"):
            train(home, tmp_path, "epochs=2", "average=null")
    finally:
        (folder / "meta.json").write_text(meta, encoding="utf-8")
