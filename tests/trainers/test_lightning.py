"""Lightning's Trainer, used as its documentation says, is the plain loop bit for bit.

With automatic optimization Lightning runs ``training_step`` and ``backward`` in the closure that it
passes to ``optimizer.step``: one method of the module, ``backward``, is all that has to be said.
"""

import lightning as L
import pytest
import torch
from support.digits import (
    CURVATURES,
    accuracy,
    assert_same_parameters,
    build_model,
    build_optimizer,
    chunks,
    train_loader,
    train_plainly,
)
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    # One core, and a loader without worker processes: both on purpose.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval:UserWarning"),
]


class Digits(L.LightningModule):
    """The module of docs/trainers.md, with seeds that make it comparable."""

    def __init__(self, curvature, **options):
        super().__init__()
        self.curvature, self.options = curvature, options
        self.network = build_model()
        self.num_forwards = 0
        self.metric = None
        self.skipped = ()

    def training_step(self, batch, batch_idx):
        if batch_idx in self.skipped:
            return None
        images, labels = batch
        self.num_forwards += 1
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.log("loss", loss)
        if self.metric is not None:
            self.metric(logits, labels)
            self.log("accuracy", self.metric, on_step=False, on_epoch=True)
        return loss

    def backward(self, loss):
        loss.backward(create_graph=self.optimizers().needs_graph)

    def configure_optimizers(self):
        return build_optimizer(self.parameters(), self.curvature, **self.options)

    def on_train_epoch_start(self):
        torch.manual_seed(self.current_epoch)  # of the dropout; Lightning saves no random states


class ManualDigits(Digits):
    """Manual optimization: the closure sums over micro-batches itself."""

    def __init__(self, curvature, **options):
        super().__init__(curvature, **options)
        self.automatic_optimization = False
        self.micro_batches = 4

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        images, labels = batch

        def closure():
            optimizer.zero_grad()
            for x, y in zip(images.split(16), labels.split(16), strict=True):
                loss = F.cross_entropy(self.network(x), y) / self.micro_batches
                self.manual_backward(loss)
            return loss

        optimizer.step(closure)


def fit(module, epochs=3, loader=None, ckpt_path=None, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader or train_loader(), ckpt_path=ckpt_path)
    return trainer


def plain(curvature, dtype=torch.float32, **options):
    """Train with the loop of digits.py, with the module's random numbers."""
    training = {k: options.pop(k) for k in ("epochs", "accumulate", "amp") if k in options}
    model = build_model().to(dtype)
    optimizer = build_optimizer(model.parameters(), curvature, **options)
    train_plainly(model, optimizer, **training)
    return model


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("options", [{}, {"update_interval": 3, "lr": 0.05}], ids=["", "interval"])
def test_automatic_optimization_is_the_plain_loop(curvature, options):
    module = Digits(curvature, **options)
    trainer = fit(module)
    assert_same_parameters(module.network, plain(curvature, **options))
    assert accuracy(module.network) > 0.93
    assert trainer.global_step == 60  # a closure that runs twice is still one step
    assert module.num_forwards == 60  # further evaluations leave a module's counts alone


def test_the_logged_loss_is_the_first_evaluations():
    logged = {}
    for curvature in CURVATURES:
        module = Digits(curvature)
        logged[curvature] = fit(module, max_steps=1).callback_metrics["loss"].item()
    assert logged["finite_difference"] == pytest.approx(logged["double_backward"], rel=1e-6)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_metric_in_the_training_step(curvature):
    """It sees a batch as often as the closure runs: its mean is nearly what it was."""
    module = Digits(curvature)
    module.metric = MulticlassAccuracy(10, average="micro")
    trainer = fit(module)
    assert trainer.callback_metrics["accuracy"] > 0.9


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_training_step_that_skips_its_batch(curvature):
    """Lightning's way to do so is to return None, from a closure that then has no gradient."""
    module = Digits(curvature)
    module.skipped = (0, 3)
    fit(module, max_steps=6)
    steps = [s["step"].item() for s in module.trainer.optimizers[0].state.values()]
    assert set(steps) == {4.0} and module.trainer.optimizers[0].param_groups[0]["step"] == 6


@pytest.mark.parametrize("curvature", CURVATURES)
def test_clipping_by_the_optimizer(curvature):
    module = Digits(curvature, max_grad_norm=0.5)
    fit(module, epochs=1)
    assert_same_parameters(module.network, plain(curvature, epochs=1, max_grad_norm=0.5))


def test_clipping_by_lightning_leaves_the_exact_curvature_alone():
    module, ours = Digits("double_backward"), Digits("double_backward", max_grad_norm=0.5)
    fit(module, epochs=1, gradient_clip_val=0.5)
    fit(ours, epochs=1)
    torch.testing.assert_close(
        module.trainer.optimizers[0].state_dict()["state"],
        ours.trainer.optimizers[0].state_dict()["state"],
        rtol=0,
        atol=0,
    )


def test_clipping_by_lightning_is_refused_by_the_finite_difference():
    """It happens inside the closure, and would scale both gradients, each by another factor."""
    with pytest.raises(RuntimeError, match="max_grad_norm"):
        fit(Digits("finite_difference"), gradient_clip_val=0.5)


def test_clipping_by_lightning_in_mixed_precision_is_refused():
    """Lightning reads from us that we undo a loss scale ourselves, and leaves it at that."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Digits("double_backward"), gradient_clip_val=0.5, precision="bf16-mixed")


@pytest.mark.parametrize("curvature", CURVATURES)
def test_bfloat16_autocast(curvature):
    module = Digits(curvature)
    fit(module, precision="bf16-mixed")
    assert_same_parameters(module.network, plain(curvature, amp=torch.bfloat16))
    assert accuracy(module.network) > 0.93


def test_bfloat16_parameters_are_refused():
    with pytest.raises(ValueError, match="bfloat16: keep the parameters in float32"):
        fit(Digits("double_backward"), precision="bf16-true")


def test_accumulation_through_double_backward():
    """Lightning runs the closure of all micro-batches but the last outside of the step."""
    module = Digits("double_backward")
    fit(module, epochs=1, precision="64-true", accumulate_grad_batches=4)
    expected = plain("double_backward", torch.float64, epochs=1, accumulate=4)
    for p, q in zip(module.network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


def test_accumulation_by_lightning_is_refused_by_the_finite_difference():
    """Its closure sees one micro-batch of several, on top of gradients that it does not clear."""
    with pytest.raises(RuntimeError, match="the closure clear the gradients itself"):
        fit(Digits("finite_difference"), accumulate_grad_batches=4)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_accumulation_in_a_closure_of_ones_own(curvature):
    module = ManualDigits(curvature)
    trainer = fit(module, epochs=1)
    assert trainer.global_step == 20

    model = build_model()
    optimizer = build_optimizer(model.parameters(), curvature)
    micro = [
        (x, y)
        for images, labels in train_loader()
        for x, y in zip(images.split(16), labels.split(16), strict=True)
    ]
    torch.manual_seed(0)
    for batches in chunks(micro, 4):

        def closure(batches=batches):
            optimizer.zero_grad()
            for images, labels in batches:
                loss = F.cross_entropy(model(images), labels) / 4
                loss.backward(create_graph=optimizer.needs_graph)
            return loss

        optimizer.step(closure)
    assert_same_parameters(module.network, model)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_resume_from_a_trainers_checkpoint(curvature, tmp_path):
    """20 steps are no multiple of the interval: the run stops between two refreshes."""
    options = {"update_interval": 3, "lr": 0.05}
    whole = Digits(curvature, **options)
    fit(whole, epochs=2)

    first = Digits(curvature, **options)
    fit(first, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Digits(curvature, **options)
    fit(resumed, epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert_same_parameters(resumed.network, whole.network)


class PartOfBatch(Digits):
    """The curvature from a part of the batch: the step sets the attribute."""

    def training_step(self, batch, batch_idx):
        images, labels = batch

        def curvature_closure(start, stop):
            rows = slice(round(start * len(labels)), round(stop * len(labels)))
            return F.cross_entropy(self.network(images[rows]), labels[rows])

        self.optimizers().optimizer.curvature_closure = curvature_closure
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_curvature_from_a_part_of_the_batch(curvature, tmp_path):
    module = PartOfBatch(curvature, curvature_fraction=0.5)
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, train_loader())
    assert accuracy(module.network) > 0.8
    (group,) = trainer.optimizers[0].param_groups
    assert group["last_refresh"] == group["step"] - 1
