"""What people write by mistake: one line, what to write instead, and nothing is touched."""

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.harness import DIGITS, REPOSITORY, small_config

from experiments import run
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError
from experiments.plans.load import load, load_one
from experiments.plans.select import select
from experiments.plans.settings import split_words
from experiments.runtime.paths import data_root, runs_root
from experiments.training import loop, optimizers

SWEEP = REPOSITORY / "configs" / "sweeps" / "digits-lr.yaml"
TABLE = REPOSITORY / "configs" / "tables" / "table2.yaml"
KEYS = (REPOSITORY / "tests" / "harness" / "config" / "keys.txt").read_text("utf-8").splitlines()
PATHS = sorted({re.sub(r"\[\w+\]", "", line.split(": ")[1]) for line in KEYS})


def refused(*words, capsys):
    assert run.main([*map(str, words)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1, shown
    return shown


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr("warnings.showwarning", None)
    before = DIGITS.read_bytes()
    yield
    assert not (tmp_path / "runs").exists() and DIGITS.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr=0.1"], "'lr=0.1' is of an optimizer: write optimizer.lr=0.1 for whichever a run has"),
        (["momentum=hello"], "write optimizer.momentum=hello for whichever a run has, or optimi"),
        (
            ["--lr=0.1"],
            "--lr=0.1: a setting has no dashes, write lr=0.1 (in a sweep of wandb: ",
        ),
        (["--optimizers.sgd.lr=1"], "a setting has no dashes, write optimizers.sgd.lr=1"),
        (["schedule={name:cosine}"], "did you mean 'name: cosine'? YAML wants a space behind"),
        (["--drry-run"], "unknown option --drry-run; did you mean '--dry-run'?"),
        (
            ["--jobs", "many"],
            "argument --jobs: invalid int value: 'many'; --help lists",
        ),
        (["schedule=cosine"], "write schedule={name: cosine, warmup_epochs: 5}, say"),
        (["optimizer.betas=0.9"], "unknown key 'betas', no argument of torch.optim.SGD"),
        (["optimizer.momentum=hello"], "momentum is 'hello': torch.optim.SGD takes a number here"),
        (
            ["optimizers.adam.betas=[0.9, 0.99, 0.999]"],
            "betas is [0.9, 0.99, 0.999]: torch.optim.Adam takes a list here, as its default (0.9,",
        ),
        (["optimizers.adam.betas=['0.9', 0.99]"], "betas is ['0.9', 0.99]: torch"),
        (["optimizer.momentum=null"], "momentum is null: torch.optim.SGD takes a number here, as"),
        (["augmentation.mixup=1e-4"], "mixup = 0.0001: cannot be drawn from: 0, or 0.01 and more"),
        (
            ["checkpoint_every_steps=1" + "0" * 20],
            "should be less than or equal to 92233720368",
        ),
        (["optimizer.nesterov=1"], "nesterov is 1: torch.optim.SGD takes a truth value here"),
        (["epochs=[1"], "not valid YAML: line 1, column 3: expected ',' or ']'"),
        (["epochs={a: b: c}"], "not valid YAML: line 1, column"),
        (["batch_size=5000"], "batch_size = 5000: the training set has 1297 images"),
        (["seed=3-1"], "seed = '3-1': 1 is below 3"),
        (["seed=1-99999999999"], "99999999999 seeds, at most 10000"),
        (["optimizers.lion.betas=0.9"], "no optimizer 'lion'; known: sgd, adam, adamw, adahessian"),
        (["optimizers.sdg.lr=0.9"], "'optimizers.sdg.lr': no optimizer 'sdg'; did you mean 'sgd'?"),
        (["optimizers.sgd.constructor=..a"], "'..a' cannot be imported: no dotted path"),
        (["model={constructor: ViT}"], "'ViT' cannot be imported: write it with the module"),
        (["model={constructor: mylab.ViT}"], "cannot be imported: No module named 'mylab'"),
        (["task=.."], "task '..' cannot be imported: no dotted path"),
        (
            ["task=torch.nn"],
            "task 'torch.nn' cannot be imported: No module named 'torch.nn.config'",
        ),
        (
            ["dataset={name: digit, validation_size: 0, crop_padding: 0, flip: false}"],
            "no data set is called 'digit'",
        ),
        (["epochs"], "no configuration file epochs"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(words, message, capsys):
    words = [str(DIGITS), *words, "optimizer=sgd", "model.depth=8", "--dry-run"]
    assert message in refused(*words, capsys=capsys)


def test_a_home_that_no_shell_has_read(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, root in (("RUNS_ROOT", runs_root), ("DATA_ROOT", data_root)):
        monkeypatch.setenv(variable, "~/there")
        assert root() == tmp_path / "there"
        monkeypatch.setenv(variable, "~nobody-of-this-name/there")
        with pytest.raises(UserError, match=rf"{variable} = ~nobody.*: nobody here is called so"):
            root()
    assert "RUNS_ROOT = ~nobody" in refused(DIGITS, "optimizer=sgd", capsys=capsys)


def test_a_name_with_a_dot_is_overridden_as_any_other(tmp_path):
    text = DIGITS.read_text(encoding="utf-8").replace("  sgd:\n", "  sgd.v2:\n    # a row\n", 1)
    (tmp_path / "dots.yaml").write_text(text, encoding="utf-8")
    for key in ("optimizer.lr", "optimizers.sgd.v2.lr"):
        config = load_one(tmp_path / "dots.yaml", "sgd.v2", {key: 0.05})
        assert config.optimizer.lr == 0.05
    with pytest.raises(UserError, match="no optimizer 'sgd'; did you mean 'sgd.v2'"):
        load_one(tmp_path / "dots.yaml", "sgd.v2", {"optimizers.sgd.v3.lr": 0.05})


def test_quotes_that_a_shell_has_left(capsys):
    for seeds in ("1-3", "'1-3'", '"1,2,3"', "1 - 3"):
        runs = select([DIGITS], ["optimizer='sgd'", f"seed={seeds}"])
        assert [run.config.seed for run in runs] == [1, 2, 3]


def test_a_module_that_fails_is_named_with_the_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad_input_module.py").write_text("import math\n1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    said = "cannot be imported: ZeroDivisionError: division by zero (bad_input_module.py, line 2)"
    for setting in (
        "model={constructor: bad_input_module.Net}",
        "optimizers.sgd.constructor=bad_input_module.Mine",
    ):
        assert said in refused(DIGITS, "optimizer=sgd", setting, capsys=capsys)


def test_a_list_where_an_optimizer_wants_one(capsys):
    lion = ("{constructor: pytorch_optimizer.Lion, lr: 1.0e-4, weight_decay: 0, "
            "weight_decay_divided_by_lr: false, betas: 0.9}")  # fmt: skip
    shown = refused(DIGITS, "optimizer=sgd", f"optimizers.lion={lion}", capsys=capsys)
    assert "optimizers.lion: betas is 0.9: pytorch_optimizer.Lion takes a list here" in shown
    for key in ("after_epochs={1: {betas: 1}}", "groups=[{match: 1-D, betas: 1}]"):
        shown = refused(DIGITS, "optimizer=adam", f"optimizers.adam.{key}", capsys=capsys)
        assert "betas is 1: torch.optim.Adam takes a list here" in shown


@pytest.mark.parametrize(("path", "kind"), [(SWEEP, "a sweep"), (TABLE, "a table")])
def test_a_sweep_where_an_experiment_is_wanted(path, kind, tmp_path, capsys):
    with pytest.raises(UserError, match=f"is {kind}, and an experiment is wanted"):
        load(path)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"config: {path}\ngrid: {{optimizer: [sgd]}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"is {kind}, and an experiment is wanted"):
        select([sweep])


def test_a_file_that_is_no_yaml_is_named_with_the_place(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("task: image_classification\nmodel: {depth: 8\nepochs: 3\n", encoding="utf-8")
    shown = refused(path, capsys=capsys)
    assert f"{path}: not valid YAML: line 3, column" in shown and "unicode string" not in shown


def test_no_checkpoint_is_promised_where_there_is_none(tmp_path):
    config = small_config("optimizers.sgd.lr=1e38", "epochs=1")
    directory = loop.RunDirectory(tmp_path / "elsewhere", config)
    with pytest.raises(loop.NonFiniteLoss, match="nothing was saved before it"), directory.locked():
        loop.train(config, directory, tmp_path)


# ------------------------------------------------------------------------------------ fuzzing

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
YAMLISH = st.text(alphabet="ab:-[]{},'\"#&*!|>%@?~ \n\t01.eE+_x\x00é", max_size=40) | st.text()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.text(max_size=6) | st.sampled_from(["name", "constructor"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
WORDS = [
    "cosine", "drops", "sgd", "torch.optim.Adam", "torch.nn.Linear", "digits", "mnist", "resnet",
    "experiments.models.convnet.ConvNet", "1-D", "[0.5]", "{}", "[]", "null", "true", "0", "-1",
    "1e400", ".nan", "{name: linear}", "{constructor: torch}", "[{match: '*'}]", "{1: {lr: 2}}",
]  # fmt: skip


@QUICK
@given(YAMLISH)
@example("9" * 5000)
@example("[" * 3000)
@example("{[1]: 2}")
@example("&a [*a]")
@example("? {a: 1}\n: 2")
@example("!!python/object:os.system x")
@example("a: 1\na: 2")
def test_any_text_is_yaml_or_one_line(text):
    try:
        read_yaml(text)
    except UserError as error:
        assert "\n" not in str(error)


def check(words):
    """All that a command does before it touches a run; models are not built."""
    try:
        for planned in select(*split_words([str(DIGITS), *words]))[:3]:
            optimizers.check(planned.config)
    except UserError as error:
        assert str(error)


@QUICK
@given(
    st.sampled_from(PATHS), st.sampled_from(["sgd", "adahessian"]), st.sampled_from(WORDS) | YAMLISH
)
@example("optimizers.<name>", "sgd", "null")
@example("optimizers", "sgd", "[]")
@example("task", "sgd", "null")
@example("dataset", "sgd", "3")
@example("model", "sgd", "null")
def test_any_value_of_any_key_is_taken_or_refused(path, name, value):
    check([f"optimizer={name}", f"{path.replace('<name>', name).replace('<n>', '0')}={value}"])


@QUICK
@given(st.sampled_from(PATHS), VALUES)
def test_any_structure_at_any_key_is_taken_or_refused(path, value):
    path = path.replace("<name>", "sgd").replace("<n>", "0")
    try:
        optimizers.check(load_one(DIGITS, "sgd", {path: value}))
    except UserError as error:
        assert str(error)


@QUICK
@given(st.lists(st.text(alphabet="ab=.-,0 1*/:", max_size=12), max_size=4))
@example(["="])
@example(["a=1", "=b"])
@example(["..=1"])
@example(["optimizers..lr=1"])
@example(["optimizer="])
@example(["seed=-"])
def test_any_words_are_a_command_or_one_line(words):
    check(["optimizer=sgd", *words])
