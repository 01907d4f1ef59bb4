"""Hugging Face's Trainer, extended as docs/trainers.md says, is the plain loop."""

import copy
import re
from functools import partial

import pytest
import torch
from support.digits import CURVATURES, assert_same_parameters
from support.harness import REPOSITORY
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from adahessian import AdaHessian

pytestmark = pytest.mark.slow

WORDS = torch.randint(50, (128, 12), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": ids, "labels": int(ids[0] >= 25)} for ids in WORDS]
BATCH = 32


def documented():
    """The class of the page, word for word."""
    text = (REPOSITORY / "docs" / "trainers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^class SecondOrderTrainer.*?(?=^\w)", text, re.MULTILINE | re.DOTALL)
    found = {"Trainer": Trainer}
    exec(code, found)
    return found["SecondOrderTrainer"]


class Recorded(documented()):
    """Keeps the batches in the order in which they were trained on."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen.append(copy.deepcopy(dict(inputs)))
        return super().training_step(model, inputs, num_items_in_batch)


def build_model(dropout=0.0):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(
        vocab_size=50, intermediate_size=32, attn_implementation="eager", **size, **rates
    )
    return BertForSequenceClassification(config)


def trainer(model, folder, curvature, micro_batches=1, kind=Recorded, fraction=0.25, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH // micro_batches,
        gradient_accumulation_steps=micro_batches, lr_scheduler_type="constant", use_cpu=True,
        report_to="none", disable_tqdm=True,
        **{"num_train_epochs": 2, "save_strategy": "no", **options},
    )  # fmt: skip
    optimizer = AdaHessian(
        model.parameters(), lr=0.1, curvature=curvature, curvature_fraction=fraction
    )
    made = kind(model=model, args=arguments, train_dataset=DATA, optimizers=(optimizer, None))
    made.seen = []
    return made


def train_plainly(model, curvature, seen, micro_batches):
    """The same batches in a loop of one's own, the gradient clipped as the Trainer does."""
    optimizer = AdaHessian(model.parameters(), lr=0.1, curvature=curvature, curvature_fraction=0.25)
    model.train()
    for first in range(0, len(seen), micro_batches):
        parts = seen[first : first + micro_batches]
        optimizer.zero_grad()
        for batch in parts:
            (model(**batch).loss / len(parts)).backward()

        def loss_of(start, stop, batch=parts[-1]):
            rows = slice(round(start * BATCH), round(stop * BATCH))
            return model(**{key: value[rows] for key, value in batch.items()}).loss

        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(curvature_closure=loss_of)


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_trainer_is_the_plain_loop(curvature, micro_batches, tmp_path):
    theirs, ours = build_model(), build_model()
    run = trainer(theirs, tmp_path, curvature, micro_batches)
    run.train()
    assert len(run.seen) == 8 * micro_batches
    train_plainly(ours, curvature, run.seen, micro_batches)
    assert_same_parameters(theirs, ours)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_in_bfloat16_with_dropout_it_learns(curvature, tmp_path):
    model = build_model(dropout=0.1)
    run = trainer(model, tmp_path, curvature, bf16=True, num_train_epochs=25)
    run.train()
    model.eval()
    with torch.no_grad():
        found = model(WORDS).logits.argmax(1)
    assert (found == (WORDS[:, 0] >= 25)).float().mean() > 0.9


@pytest.mark.parametrize("curvature", CURVATURES)
def test_resumed_from_its_checkpoint_it_goes_on_bitwise(curvature, tmp_path):
    whole, parts = build_model(dropout=0.1), build_model(dropout=0.1)
    start = partial(trainer, curvature=curvature, save_strategy="epoch")
    start(whole, tmp_path / "whole").train()
    start(parts, tmp_path / "parts").train()
    again = build_model(dropout=0.1)
    start(again, tmp_path / "parts").train(
        resume_from_checkpoint=str(tmp_path / "parts/checkpoint-4")
    )
    assert_same_parameters(whole, parts)
    assert_same_parameters(whole, again)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_plain_trainer_is_told_the_way_out(curvature, tmp_path):
    run = trainer(build_model(), tmp_path, curvature, kind=Trainer, fraction=1.0)
    with pytest.raises(RuntimeError, match="curvature_fraction"):
        run.train()
