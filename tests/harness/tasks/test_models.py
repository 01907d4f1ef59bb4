"""Networks by constructor: their arguments, what they are given, what is refused."""

import random
import re
from pathlib import Path

import numpy
import pytest
import torch
from support.harness import interrupted, small_config, until_done
from support.training import assert_equal, result, train_here
from torch import nn

from experiments import run
from experiments.errors import UserError
from experiments.models.convnet import ConvNet
from experiments.runs.metrics import read_metrics
from experiments.tasks import registry
from experiments.training import loop, optimizers
from experiments.training.restore import restore

CPU = torch.device("cpu")
HERE = __name__


def build(model, *overrides):
    config = small_config(f"model={model}", *overrides)
    optimizers.check(config)
    torch.manual_seed(0)
    return registry.build_task(config, CPU, Path("unused")).build_model()


class Lazy(nn.Sequential):
    """Learns its sizes from the first batch; asks for classes by a name of its own."""

    def __init__(self, n_classes, hidden=8):
        super().__init__(
            nn.LazyConv2d(hidden, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(),
            nn.LazyLinear(n_classes),
        )  # fmt: skip


class Stubborn(nn.Module):
    """Asks for nothing."""

    def __init__(self, out=10, twice=False):
        super().__init__()
        self.linear, self.twice = nn.Linear(64, out), twice

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return (logits, logits) if self.twice else logits


class WithExtraState(Stubborn):
    """Has more in its state dict than tensors."""

    def get_extra_state(self):
        return {"scale": 2.0}

    def set_extra_state(self, state):
        assert state == {"scale": 2.0}


class Auxiliary(Stubborn):
    """Has a second head in training alone, as GoogLeNet does."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class Drawing(Stubborn):
    """Draws from every generator in training, and counts its images."""

    def __init__(self):
        super().__init__()
        self.normalize = nn.BatchNorm1d(10)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen = self.seen + len(x)
            torch.rand(3), random.random(), numpy.random.rand()
        return self.normalize(super().forward(x))


class Finished(Stubborn):
    """Does more than its part."""

    def __init__(self, end="softmax"):
        super().__init__()
        self.end = end

    def forward(self, x):
        logits = super().forward(x)
        return logits.detach() if self.end == "detach" else getattr(logits, self.end)(-1)


def test_probabilities_are_not_taken_for_logits_without_a_word():
    with pytest.warns(UserWarning, match="model Finished returns probabilities"):
        build(f"{{constructor: {HERE}.Finished}}")
    build(f"{{constructor: {HERE}.Finished, end: log_softmax}}")  # is as good as logits


def test_a_loss_without_a_gradient_is_one_line(tmp_path):
    config = small_config(f"model={{constructor: {HERE}.Finished, end: detach}}")
    with pytest.raises(UserError, match="the loss depends on no parameter that is trained"):
        train_here(tmp_path, config)


class Dropping(Stubborn):
    """Leaves out a part of its input, as Python and numpy have it."""

    def forward(self, x):
        kept = random.random() * numpy.random.rand() if self.training else 0.25
        return super().forward(kept * x)


def no_module(depth=1):
    return depth


class Optional(Stubborn):
    """Has arguments of every kind."""

    def __init__(self, out=10, bias=True, gated: bool | None = None, width=8, kind="no", size=3,
                 same: int | str = 0, **others):  # fmt: skip
        super().__init__(out)
        self.given = {"bias": bias, "kind": kind, "same": same, "size": size, **others}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("bias: no", "model.bias = 'no': {} takes a truth value here; write true or false"),
        ("bias: 'True'", "model.bias = 'True': {} takes a truth value"),
        ("gated: off", "model.gated = 'off': {} takes a truth value"),
        ("width: 1_000", "model.width = '1_000': {} takes a number here"),
        ("width: '1e-3'", "model.width = '1e-3': {} takes a number here"),
        ("bias: None", "model.bias = 'None': a text to YAML; write null"),
        ("more: None", "model.more = 'None': a text to YAML; write null"),
    ],
)
def test_a_text_that_is_true_to_python_is_not_taken_for_what_it_says(argument, said):
    path = f"{HERE}.Optional"
    with pytest.raises(UserError, match=re.escape(said.format(path))):
        build(f"{{constructor: {path}, {argument}}}")


def test_texts_reach_arguments_that_may_be_texts():
    given = build(
        f"{{constructor: {HERE}.Optional, bias: False, kind: no, same: '1', size: same, more: off}}"
    ).given
    wanted = {"bias": False, "kind": "no", "same": "1", "size": "same", "more": "off"}
    assert given.items() >= wanted.items()


def test_ours_by_name_and_by_constructor_are_the_same():
    named = build("{name: convnet, depth: 3}")
    path = "experiments.models.convnet.ConvNet"
    by_path = build(f"{{constructor: {path}, depth: 3}}")
    assert isinstance(by_path, ConvNet)
    for one, other in zip(named.parameters(), by_path.parameters(), strict=True):
        assert torch.equal(one, other)
    wide = build(f"{{constructor: {path}, depth: 3, width: 24}}")
    assert wide.linear.in_features == 24
    wide = build("{constructor: experiments.models.resnet_cifar.ResNetCifar, depth: 8, width: 4}")
    assert wide.linear.in_features == 16


@pytest.mark.parametrize(
    "model",
    [
        "{constructor: torchvision.models.VisionTransformer, image_size: 8, patch_size: 2, "
        "num_layers: 1, num_heads: 2, hidden_dim: 16, mlp_dim: 16}",
        "{constructor: torchvision.models.shufflenet_v2_x0_5}",
        "{constructor: torchvision.models.get_model, name: shufflenet_v2_x0_5}",
        "{constructor: timm.create_model, model_name: vit_tiny_patch16_224, img_size: 8, "
        "patch_size: 4, depth: 1}",
        f"{{constructor: {HERE}.Lazy}}",
    ],
)
def test_a_model_of_others_is_trained(model, tmp_path, monkeypatch):
    if "timm" in model:
        pytest.importorskip("timm", reason="needs an extra: make test installs it")
    grey = "torchvision" in model  # its networks take three channels
    overrides = ["dataset.channels=3"] * grey + ["epochs=1", "batch_size=800"]
    config = small_config(f"model={model}", *overrides, optimizer="adam")
    directory = train_here(tmp_path, config)
    (row,) = read_metrics(directory.metrics_path)
    assert row["test/accuracy"] >= 0 and directory.done
    last = model.partition("constructor: ")[2].partition(",")[0].strip("}").rpartition(".")[2]
    named = {"create_model": "vit_tiny_patch16_224", "get_model": "shufflenet_v2_x0_5"}
    label = named.get(last, last)
    assert directory.path.parts[-3] == label == config.model.label


def test_a_single_image_that_cannot_be_trained_on_is_refused_at_the_start():
    model = "{constructor: torchvision.models.shufflenet_v2_x0_5}"  # an image becomes a point
    for settings in (["batch_size=1296"], ["batch_size=500", "micro_batches=297"]):
        with pytest.raises(UserError, match="a single one, on which it cannot be trained"):
            build(model, "dataset.channels=3", *settings)
    build(model, "dataset.channels=3", "batch_size=1295")
    build("{name: convnet, depth: 2}", "batch_size=1296")


def test_a_lazy_network_is_there_before_its_optimizer_and_draws_no_more_than_its_weights():
    model = build(f"{{constructor: {HERE}.Lazy, hidden: 5}}", "dtype=float64", "channels_last=true")
    assert model[4].out_features == 10 and model[0].weight.dtype == torch.float64
    assert model[0].weight.shape == (5, 1, 3, 3)
    assert model[1].running_mean.abs().sum() == 0, "the batch has left no statistics"
    again = build(f"{{constructor: {HERE}.Lazy, hidden: 5}}", "dtype=float64", "channels_last=true")
    assert all(map(torch.equal, model.parameters(), again.parameters()))


@pytest.mark.parametrize("more", [(), ("autocast=bfloat16",)])
def test_what_a_network_returns_in_training_is_looked_at_as_well(more):
    message = "Auxiliary returns tuple in training for 2 images of 10 classes, not logits of shape"
    with pytest.raises(UserError, match=message):
        build(f"{{constructor: {HERE}.Auxiliary}}", *more)


def test_the_look_leaves_no_trace():
    def states():
        return torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())

    model = build(f"{{constructor: {HERE}.Drawing}}")
    after = states()
    torch.manual_seed(0)
    own = Drawing()  # draws its weights
    assert states()[0].equal(after[0]) and states()[1:] == after[1:]
    found, expected = dict(model.named_buffers()), dict(own.named_buffers())
    assert found.keys() == expected.keys() and model.training
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_network_that_draws_from_any_generator_is_a_function_of_the_seed(tmp_path, monkeypatch):
    """Python's and numpy's began anywhere, and a resumed training drew other numbers."""
    config = small_config(f"model={{constructor: {HERE}.Dropping}}", "checkpoint_every_steps=2")
    whole = train_here(tmp_path / "a", config)
    random.seed(5), numpy.random.seed(5)
    step = interrupted(loop.optimizer_step, lambda call: call % 9 == 0)
    monkeypatch.setattr(loop, "optimizer_step", step)
    parts, sessions = until_done(lambda: train_here(tmp_path / "b", config))
    assert sessions > 1
    assert_equal(result(parts), result(whole))


def test_a_grey_image_is_shown_in_three_channels():
    config = small_config("dataset.channels=3")
    task = registry.build_task(config, CPU, Path("unused"))
    inputs = next(iter(task.training_batches(0, 0))).inputs
    plain = registry.build_task(small_config(), CPU, Path("unused"))
    grey = next(iter(plain.training_batches(0, 0))).inputs
    assert torch.equal(inputs, grey.repeat(1, 3, 1, 1)) and inputs.is_contiguous()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{constructor: nothing.Here}", "model.constructor 'nothing.Here' cannot be imported"),
        ("{constructor: torch}", "model.constructor 'torch' cannot be imported"),
        ("{constructor: torch.nn}", "'torch.nn' is neither a class nor a function"),
        (
            "{constructor: experiments.models.convnet.ConvNet, depht: 3}",
            "model: unknown key 'depht', no argument of experiments.models.convnet.ConvNet; "
            "did you mean 'depth'?",
        ),
        (
            "{constructor: experiments.models.convnet.ConvNet}",
            "model.depth is missing: experiments.models.convnet.ConvNet needs it",
        ),
        (
            "{constructor: experiments.models.resnet_cifar.ResNetCifar, depth: 9}",
            "refuses depth=9, num_classes=10, in_channels=1: depth must be 6n+2",
        ),
        (
            "{constructor: experiments.models.convnet.ConvNet, depth: deep}",
            "ConvNet refuses depth='deep', num_classes=10",
        ),
        ("{constructor: torchvision.models.resnet18, wide: 3}", "unexpected keyword argument"),
        ("{constructor: torchvision.models.resnet18}", "unexpected keyword argument 'in_chans'"),
        ("{constructor: timm.create_model, model_name: vit_tny}", "Unknown model (vit_tny)"),
        (f"{{constructor: {HERE}.no_module}}", "returned no torch.nn.Module"),
        (f"{{constructor: {HERE}.Stubborn, out: 7}}", "returns (2, 7) for 2 images of 10 classes"),
        (f"{{constructor: {HERE}.Stubborn, twice: true}}", "returns tuple for 2 images"),
        (
            "{constructor: torchvision.models.VisionTransformer, image_size: 32, patch_size: 8, "
            "num_layers: 1, num_heads: 2, hidden_dim: 16, mlp_dim: 16}",
            "VisionTransformer cannot take images of shape (2, 1, 8, 8): Wrong image height",
        ),
        ("{constructor: timm.create_model, model_name: a/b}", "names a folder"),
        ("{constructor: 3}", "model.constructor = 3: Input should be a valid string"),
        ("{name: convnet, depht: 3}", "model: unknown key 'depht'; did you mean 'depth'?"),
    ],
)
def test_what_does_not_fit_is_one_line(model, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build(model)
    assert "\n" not in str(caught.value)


def test_a_wrong_argument_is_refused_before_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    config = small_config()
    model = "model={constructor: experiments.models.convnet.ConvNet, depht: 3}"
    path = "configs/digits/resnet20.yaml"
    assert run.main([path, "optimizer=sgd,adam", model]) == 2
    assert "did you mean 'depth'?" in capsys.readouterr().err
    assert not any(tmp_path.iterdir()) and config


def test_three_channels_are_for_grey_images(monkeypatch):
    from experiments.tasks.image_classification import datasets

    colour = datasets.Images(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40) % 10)
    monkeypatch.setitem(datasets.LOADERS, "digits", lambda root: (colour, colour))
    with pytest.raises(UserError, match="channels = 3: images of 3 channels are not grey"):
        build("{name: convnet, depth: 3}", "dataset.channels=3")


# ------------------------------------------------------------------------------ initial weights

CONVNET = ("model={name: convnet, depth: 3}", "epochs=1")


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    """With all but its head; the other run and its result stay as they are."""
    first = train_here(tmp_path / "a", small_config(*CONVNET))
    weights = torch.load(first.path / "checkpoint.pt", weights_only=True)["model"]
    before = result(first)
    more = (f"init_from={{path: {first.path}, skip: [linear.*]}}", "optimizers.sgd.lr=0")
    config = small_config(*CONVNET, *more)
    second = train_here(tmp_path / "b", config)
    found = torch.load(second.path / "checkpoint.pt", weights_only=True)["model"]
    assert {n for n in weights if torch.equal(weights[n], found[n])} == {
        n for n in weights if "linear" not in n
    }
    assert_equal(result(first), before)
    again = train_here(tmp_path / "c", config)
    assert_equal(result(again), result(second))


def named(prefix):
    return lambda state: {"state_dict": {f"{prefix}{name}": state[name] for name in state}}


@pytest.mark.parametrize("wrap", [dict, named("module."), named("_orig_mod.module.")])
def test_a_file_of_weights_in_the_forms_that_are_in_use(wrap, tmp_path):
    model = ConvNet(3, 10, 1)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pth")
    init = f"init_from={{path: {tmp_path / 'weights.pth'}}}"
    config = small_config(*CONVNET, init, "optimizers.sgd.lr=0")
    directory = train_here(tmp_path, config)
    found = torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "more",
    [
        ("average={decay: 0.9}",),
        (
            "optimizers.sgd.constructor=pytorch_optimizer.ScheduleFreeSGD",
            "optimizers.sgd.max_grad_norm=null",
            "schedule={name: constant}",
        ),
    ],
    ids=["averaged", "schedule-free"],
)
def test_extra_state_in_a_models_state_dict(more, tmp_path):
    settings = (f"model={{constructor: {HERE}.WithExtraState}}", "epochs=1", *more)
    directory = train_here(tmp_path, small_config(*settings))
    _, model, _ = restore(directory.path, "cpu")
    saved = torch.load(directory.path / "checkpoint.pt", weights_only=True)
    assert torch.equal(model.linear.weight, saved["evaluated"]["linear.weight"])
    assert not torch.equal(model.linear.weight, saved["model"]["linear.weight"])
    begun = train_here(tmp_path, small_config(*settings, f"init_from={{path: {directory.path}}}"))
    assert begun.done


def test_other_weights_are_another_identity(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(ConvNet(3, 10, 1).state_dict(), path)
    config = small_config(*CONVNET, f"init_from={{path: {path}}}")
    directory = train_here(tmp_path, config)
    (directory.path / "DONE").unlink()
    torch.manual_seed(5)
    torch.save(ConvNet(3, 10, 1).state_dict(), path)
    with pytest.raises(UserError, match="trained on other data: .* initial weights"):
        train_here(tmp_path, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{path: none.pth}", "init_from.path: none.pth cannot be read"),
        ("{path: FOLDER}", "has no checkpoint that can be read"),
        ("{path: FILE}", "it has linear.weight (7, 16) instead of (10, 16), linear.bias (7,) inst"),
        ("{path: FILE, skip: [liner.*]}", "init_from.skip: 'liner.*' matches no tensor"),
        ("{path: LIST}", "holds no state dict of a model"),
        ("{path: TEXT}", "cannot be read"),
        ("weights.pth", "init_from = 'weights.pth': Input should be a valid dictionary"),
        ("{file: x}", "init_from: unknown key 'file'"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(text, message, tmp_path):
    torch.save(ConvNet(3, 7, 1).state_dict(), tmp_path / "w.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for word, path in {
        "FOLDER": "",
        "FILE": "w.pth",
        "LIST": "list.pth",
        "TEXT": "text.pth",
    }.items():
        text = text.replace(word, str(tmp_path / path))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        train_here(tmp_path / "runs", small_config(*CONVNET, f"init_from={text}"))
    assert "\n" not in str(caught.value)
