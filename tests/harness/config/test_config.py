import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.harness import DIGITS, REPOSITORY, small_config

from experiments.config import yaml_reader
from experiments.config.experiment import write_yaml
from experiments.config.signature import protocol, signature
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError
from experiments.plans.load import load, resolve
from experiments.tasks.image_classification.config import ImageClassificationConfig
from experiments.training.schedule import GroupSchedule

CONFIGS = sorted((REPOSITORY / "configs").glob("*/resnet*.yaml"))  # not sweeps
CIFAR10 = REPOSITORY / "configs" / "cifar10" / "resnet20.yaml"
IMAGENET = REPOSITORY / "configs" / "imagenet"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_is_complete_and_compares_four_optimizers(path):
    config = load(path)
    assert list(config.optimizers) == ["sgd", "adam", "adamw", "adahessian"]
    assert (config.dataset.name, config.model.label) == (path.parent.name, path.stem)
    assert set(config.model_fields_set) >= {
        name for name, field in type(config).model_fields.items() if field.is_required()
    }


def test_the_cifar_files_hold_the_released_protocol():
    config = load(CIFAR10)
    assert (config.epochs, config.batch_size) == (160, 256)
    arguments = {name: spec.arguments() for name, spec in config.optimizers.items()}
    assert arguments["sgd"] == {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    assert arguments["adam"] == {"lr": 0.001, "weight_decay": 5e-4}
    assert arguments["adamw"] == pytest.approx({"lr": 0.01, "weight_decay": 0.05})
    assert arguments["adahessian"] == pytest.approx({"lr": 0.15, "weight_decay": 0.0033333333})


def test_the_imagenet_files_hold_what_their_headers_say():
    paper, sassha = (load(IMAGENET / f"resnet{depth}.yaml") for depth in (18, 50))
    for config in (paper, sassha):
        assert (config.epochs, config.batch_size) == (90, 256)
        arguments = {name: spec.arguments() for name, spec in config.optimizers.items()}
        assert arguments["sgd"] == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
        assert arguments["adahessian"] == pytest.approx({"lr": 0.15, "weight_decay": 1e-4 / 0.15})
        schedule = resolve(config, "adahessian", 1).learning_rate_schedule
        plateau = schedule.plateau.model_dump()
        assert plateau == {"metric": "test/accuracy", "patience": 3, "threshold": 1e-3}
        assert schedule.factor == 0.5
    schedule = GroupSchedule(resolve(sassha, "sgd", 1), steps_per_epoch=5)
    rates = [schedule.values(5 * epoch)["lr"] for epoch in range(90)]
    assert rates == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30)
    assert resolve(paper, "adamw", 1).learning_rate_schedule == paper.schedule


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("dataset.flips=true", "dataset: unknown key 'flips'; did you mean 'flip'?"),
        ("optimizers.sgd.momentun=0.9", "did you mean 'momentum'?"),
        ("optimizers.adahessian.update_intervall=2", "did you mean 'update_interval'?"),
        ("epochs=0", "epochs = 0: Input should be greater than or equal to 1"),
        ("epochs=2.5", "epochs = 2.5: Input should be a valid integer"),
        ("epochs='2'", "epochs = '2': Input should be a valid integer"),
        ("dataset.flip=1", "dataset.flip = 1: Input should be a valid boolean"),
        ("dataset.flip=yes", "dataset.flip = 'yes': Input should be a valid boolean"),
        (
            "dataset.name=cifar",
            "called 'cifar'; did you mean 'cifar10'? One of your own needs root",
        ),
        ("optimizers.sgd.lr=-1", "optimizers.sgd.lr = -1: Input should be greater than or equal"),
        ("optimizers.sgd.lr=.nan", "optimizers.sgd.lr = nan: Input should be a finite number"),
        ("optimizers.adamw.lr=0", "weight_decay_divided_by_lr needs lr > 0"),
        ("optimizers.sgd.constructor=torch.optim.Foo", "cannot be imported"),
        ("optimizers.sgd.foreach=no", "foreach is 'no': torch.optim.SGD takes a truth value here"),
        ("optimizers.sgd.foreach=None", "foreach is 'None': a text to YAML; write null"),
        ("optimizers.sgd.constructor=SGD", "cannot be imported"),
        ("model.depth=21", "depth 21: a CIFAR ResNet has 6n+2 layers"),
        ("schedule.drops=[0.5, 80]", "schedule.drops.1 = 80: Input should be less than 1"),
        ("model.name=imagenet-resnet", "depth 20: an ImageNet ResNet has 18, 34 or 50 layers"),
        ("dataset.resize_size=32", "resize_size is for folders: digits has images of one size"),
        ("dataset.name=imagenet", "image_size 0, resize_size 0: imagenet needs both"),
        ("micro_batches=0", "micro_batches = 0: Input should be greater than or equal to 1"),
        ("autocast=float16", "autocast = 'float16': Input should be 'bfloat16'"),
        ("schedule.plateau={metric: test/loss, patience: 3, threshold: 0}", "drops []"),
        (
            "schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, plateau: "
            "{metric: test/acuracy, patience: 3, threshold: 0}}",
            "schedule.plateau.metric 'test/acuracy': no such metric; did you mean 'test/accuracy'?",
        ),
        (
            "optimizers.adam.schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, "
            "plateau: {metric: val/accuracy, patience: 3, threshold: 0}}",
            "optimizers.adam.schedule.plateau.metric 'val/accuracy' needs dataset.validation_size",
        ),
        ("task=image_clasification", "no such task; did you mean 'image_classification'?"),
        ("task=[1]", "task = [1]: no such task; known: image_classification"),
        ("optimizers.adam.constructor=torch.optim", "constructor 'torch.optim' is no class"),
        (
            "schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, plateau: "
            "{metric: val/loss, patience: 3, threshold: 0}}",
            "'val/loss' needs dataset.validation",
        ),
        ("best_epoch_split=val", "needs dataset.validation_size > 0"),
        ("optimizers.sgd.after_epochs={5: {lr: 1}}", "lr belongs to the schedule"),
        ("epochs.x=1", "'epochs' has no keys inside"),
        ("epochs", "write key.path=value"),
        ("epochs=[", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_key_value_and_what_is_allowed(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(DIGITS, [override])


def test_a_missing_key_and_a_missing_file_are_named(tmp_path):
    document = yaml.safe_load(DIGITS.read_text())
    del document["batch_size"]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match="Field required") as caught:
        load(path)
    assert "batch_size" in str(caught.value)
    with pytest.raises(UserError, match="no configuration file"):
        load(tmp_path / "none.yaml")


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError, match="(?s)epochs = 0.*batch_size = 0"):
        load(DIGITS, ["epochs=0", "batch_size=0"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        (".inf", float("inf")),
        ("12", 12),
        ("-3", -3),
        ("true", True),
        ("null", None),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("True", True),
        ("FALSE", False),
        ("Null", None),
        (".Inf", float("inf")),
        ("None", "None"),
        ("2020-01-01", "2020-01-01"),
    ],
)
def test_plain_words_follow_yaml_1_2(text, value):
    parsed = read_yaml(text)
    assert parsed == value and type(parsed) is type(value)


def test_a_key_given_twice_is_refused():
    with pytest.raises(UserError, match="key 'a' is there twice"):
        read_yaml("{a: 1, a: 2}")


def test_the_keys_of_an_anchor_are_merged_and_the_own_ones_win():
    text = "a: &a {p: 1, q: 2}\nb: {<<: *a, q: 3}\nc: {q: 3, <<: [*a, {r: 4}]}"
    merged = read_yaml(text)
    assert merged["b"] == {"p": 1, "q": 3} and merged["c"] == {"p": 1, "q": 3, "r": 4}
    assert merged["a"] == {"p": 1, "q": 2}
    for text in ("{<<: {a: 1}, <<: {b: 2}}", "{<<: 1}", "{<<: {a: 1}, b: 1, b: 2}"):
        with pytest.raises(UserError, match="not valid YAML"):
            read_yaml(text)


def test_json_is_yaml_whatever_characters_it_spells_out():
    """`json.dumps` writes an emoji as two halves, which no file can hold one by one."""
    assert read_yaml(json.dumps({"a": "😀 é", "😀": 1})) == {"a": "😀 é", "😀": 1}
    with pytest.raises(UserError, match="has half a character"):
        read_yaml(r'{a: "\ud83d"}')


@pytest.mark.parametrize(
    "value",
    ["5e-4", "1e3", "12", "no", "True", "Null", "None", "<<", "1_000", "0x10", "1:30", "~", "",
     ".inf", "2020-01-01", "a: b", "é 😀", "a\nb", 5e-4, 1e22, 1.0, True, None, 12, ["1", 1]],
)  # fmt: skip
def test_what_is_written_reads_back_equal_in_value_and_kind(value):
    found = read_yaml(yaml_reader.write_yaml({"key": value}))["key"]
    assert found == value and type(found) is type(value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-[]{},.'\"~+<=()/\n 01eE_é", max_size=20))
def test_what_the_fast_reader_reads_the_other_reads_alike(text):
    """Of other characters it is not asked, and what it refuses the other one reads."""
    assert yaml_reader._BOTH.fullmatch(text)
    try:
        found = yaml.load(text, yaml_reader._FastLoader)
    except (yaml.YAMLError, ValueError):
        return
    assert repr(found) == repr(yaml.load(text, yaml_reader._Loader))


def test_resolving_picks_one_optimizer():
    config = small_config(optimizer="adam", seed=7)
    assert (config.optimizer_name, config.seed) == ("adam", 7)
    with pytest.raises(UserError, match="unknown optimizer 'addam'; did you mean 'adam'?"):
        resolve(load(DIGITS), "addam", 1)


def test_the_resolved_configuration_reads_back_equal(tmp_path):
    config = small_config("optimizers.sgd.after_epochs={1: {momentum: 0.5}}")
    path = tmp_path / "config.yaml"
    path.write_text(write_yaml(config))
    assert load(path) == config


# ------------------------------------------------------------------------------------ identity


def test_signatures_never_change():
    """Finished runs are found by these: a change of the schema must keep them."""
    marks = [signature(resolve(load(CIFAR10), name, 1)) for name in load(CIFAR10).optimizers]
    assert marks == ["333bb304", "2f44d4a0", "ead8eeb3", "98be7458"]


@pytest.mark.parametrize(
    "override",
    [
        "optimizers.sgd.momentum=0.90",
        "optimizers.sgd.nesterov=false",  # the constructor's default
        "optimizers.sgd.dampening=0.0",  # likewise, in another type
        "optimizers.sgd.after_epochs={}",
        "optimizers.adam.lr=0.5",  # another optimizer's
        "schedule.factor=1e-1",
        "device=cpu",
        "workers=3",
        "micro_batches=1",
        "autocast=null",
        "channels_last=false",
        "schedule.plateau=null",
        "dataset.image_size=0",
        "optimizers.sgd.schedule=null",
        "checkpoint_every_steps=5",
        "checkpoint_every_epochs=10",
        "seed=9",
    ],
)
def test_spelling_and_what_has_no_effect_do_not_enter_the_signature(override):
    assert signature(small_config(override)) == signature(small_config())


@pytest.mark.parametrize(
    "override",
    [
        "optimizers.sgd.momentum=0.8",
        "optimizers.sgd.nesterov=true",
        "optimizers.sgd.after_epochs={1: {momentum: 0.5}}",
        "schedule.stepped_at_epoch_start=false",
        "micro_batches=2",
        "autocast=bfloat16",
        "optimizers.sgd.schedule={drops: [], factor: 0.1, stepped_at_epoch_start: false}",
        "dataset.validation_size=100",
        "epochs=3",
    ],
)
def test_what_changes_a_result_enters_the_signature(override):
    assert signature(small_config(override)) != signature(small_config())


def test_the_protocol_is_what_optimizers_share():
    assert protocol(small_config(optimizer="sgd")) == protocol(small_config(optimizer="adam"))
    assert protocol(small_config("epochs=3")) != protocol(small_config())


def test_a_key_added_later_enters_the_signature_only_where_it_departs_from_its_default():
    class Later(ImageClassificationConfig):
        label_smoothing: float = 0.0

    old = small_config()
    new = Later.model_validate(old.model_dump())
    assert signature(new) == signature(old)
    assert signature(new.model_copy(update={"label_smoothing": 0.1})) != signature(old)
