"""What sets runs apart, and where an experiment's optimizers stand."""

import pytest
from support.harness import DIGITS, small_config

from experiments.plans import experiments
from experiments.plans.differences import (
    changes,
    flatten,
    optimizer_defaults,
    protocol,
    protocol_defaults,
    words_apart,
)
from experiments.plans.experiments import optimizer_order


def plain(*overrides, optimizer="adahessian"):
    """A run's configuration, as read from its file."""
    return small_config(*overrides, optimizer=optimizer).model_dump(mode="json")


def changed(*overrides, optimizer="adahessian", model="resnet8"):
    meta = {"dataset": "digits", "model": model, "optimizer": optimizer}
    return changes(meta, plain(*overrides, optimizer=optimizer))


def older(config, *keys):
    """The configuration as it was before some keys existed."""
    left = {key: value for key, value in config.items() if key not in keys}
    dataset = {key: value for key, value in config["dataset"].items() if key not in keys}
    return {**left, "dataset": dataset}


def test_a_key_added_later_is_no_difference_where_it_has_its_default():
    new = plain()
    old = older(new, "channels_last", "micro_batches", "autocast", "image_size", "resize_size")
    assert old != new
    settings = [protocol(old), protocol(new), protocol({**new, "micro_batches": 4})]
    words = [words_apart(own, settings, protocol_defaults(new)) for own in settings]
    assert words == [[], [], ["micro_batches=4"]]


def test_every_key_with_a_default_is_among_the_defaults():
    """A configuration that leaves out what it may has the defaults, whatever keys there are."""
    full, defaults = protocol(plain()), protocol_defaults(plain())
    without = {key: value for key, value in full.items() if value != defaults.get(key, object())}
    rest = {key: defaults[key] for key in full if key not in without}
    assert without | rest == full
    assert {"dataset.image_size", "channels_last", "schedule.plateau"} <= rest.keys()


def test_a_task_that_is_not_there_has_the_defaults_of_all_tasks():
    defaults = protocol_defaults({"task": "cooking"})
    assert defaults["channels_last"] is False and "dataset.image_size" not in defaults


def test_an_argument_left_out_is_the_constructors_default():
    given = flatten(plain("optimizers.adam.betas=[0.9, 0.999]", optimizer="adam")["optimizers"])
    assert given["adam.betas"] == optimizer_defaults("torch.optim.Adam")["betas"]
    kernel, row = ({"lr": 0.1}, {"lr": 0.1, "block_size": "row"})
    defaults = optimizer_defaults("adahessian.AdaHessian")
    assert words_apart(row, [kernel, row], defaults) == ["block_size=row"]
    same = {"lr": 0.1, "block_size": defaults["block_size"]}
    assert words_apart(same, [kernel, row, same], defaults) == []
    assert optimizer_defaults("not.Installed")["after_epochs"] == {}
    assert optimizer_defaults("not.Installed")["lr"] is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["epochs=160"], {}),
        (["epochs=160", "optimizers.adahessian.lr=0.3"], {"lr": 0.3}),
        (["epochs=40", "optimizers.adahessian.block_size=row"],
         {"block_size": "row", "epochs": 40}),
        (["epochs=160", "optimizers.adahessian.after_epochs={5: {update_interval: 2}}"],
         {"after_epochs.5.update_interval": 2}),
        (["epochs=160", "dataset.crop_padding=0"], {"dataset.crop_padding": 0}),
        (["epochs=160", "device=cpu", "checkpoint_every_steps=7"], {}),
    ],
)  # fmt: skip
def test_what_a_run_has_otherwise_than_its_experiments_file(overrides, expected):
    assert changed(*overrides) == expected


def test_the_model_counts_where_the_file_is_the_models_own():
    """Its depth is in the name of the model, so another depth has no file of its own."""
    assert changed("epochs=160", "model.depth=8") == {}
    assert changed("epochs=160", "model.depth=8", model="resnet20") == {"model.depth": 8}


def test_an_unknown_optimizer_has_nothing_to_be_compared_with():
    config = plain()
    config["optimizers"] = {"mine": config["optimizers"]["adahessian"]}
    assert changes({"dataset": "digits", "model": "resnet8", "optimizer": "mine"}, config) == {}


# ----------------------------------------------------------------------------------------- order


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Experiments' files of two data sets."""

    def write(place, text):
        path = tmp_path / f"{place}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    write("a/one", "optimizers: {lion: {lr: 1}, adam: {lr: 2}}")
    write("a/two", "optimizers: {adam: {lr: 3}, sgd: {lr: 4}}")
    write("b/one", "optimizers: {sgd: {lr: 5}, soap: {lr: 6}}")
    write("sweeps/x", "config: ../a/one.yaml")
    write("b/broken", "optimizers: {")
    write("b/latin", "")
    (tmp_path / "b" / "latin.yaml").write_bytes(b"a: \xe9")
    monkeypatch.setattr(experiments, "FOLDER", tmp_path)
    experiments._read.cache_clear()
    yield
    experiments._read.cache_clear()


@pytest.mark.parametrize(
    ("dataset", "model", "order"),
    [
        ("a", "one", ["lion", "adam", "sgd", "soap"]),
        ("a", "two", ["adam", "sgd", "lion", "soap"]),
        ("a", "three", ["lion", "adam", "sgd", "soap"]),
        ("b", "one", ["sgd", "soap", "lion", "adam"]),
        ("c", "two", ["adam", "sgd", "lion", "soap"]),
        ("c", "five", ["lion", "adam", "sgd", "soap"]),
    ],
)
def test_the_order_is_that_of_the_file_then_of_the_nearest_files(files, dataset, model, order):
    assert optimizer_order(dataset, model) == order


def test_the_committed_experiments_begin_with_their_reference():
    order = optimizer_order("digits", "resnet20")
    assert order[:4] == ["sgd", "adam", "adamw", "adahessian"]
    assert optimizer_order("digits", "resnet32") == order
    assert DIGITS.parent.parent == experiments.FOLDER
