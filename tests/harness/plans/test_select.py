import pytest
from support.harness import DIGITS, small_config

from experiments.errors import UserError
from experiments.plans.select import select
from experiments.plans.settings import parse_seeds, split_words
from experiments.runs import layout

CONFIGS = DIGITS.parent.parent
SWEEP, TABLE = CONFIGS / "sweeps" / "digits-lr.yaml", CONFIGS / "tables" / "table6.yaml"


def chosen(planned):
    return [(run.config.optimizer_name, run.config.seed) for run in planned]


def test_an_experiment_gives_every_optimizer_with_every_seed():
    runs = select([DIGITS], ["optimizer=sgd,adam", "seed=1-2,7", "epochs=4"])
    assert chosen(runs) == [(name, seed) for name in ("sgd", "adam") for seed in (1, 2, 7)]
    assert {run.config.epochs for run in runs} == {4}
    assert runs[-1].settings == {"optimizer": "adam", "seed": 7} and runs[-1].source == DIGITS
    (one,) = select([DIGITS], ["optimizer=sgd"])
    assert one.config.seed == 1 and one.place == layout.path_of(one.config)


def test_a_key_of_whichever_optimizer_a_run_has():
    runs = select([DIGITS], ["optimizer=sgd,adam", "optimizer.lr=0.3"])
    assert [run.config.optimizer.lr for run in runs] == [0.3, 0.3]
    named = select([DIGITS], ["optimizer=sgd", "optimizers.sgd.lr=0.3"])
    assert named[0].place == runs[0].place


def test_settings_of_a_sweep_choose_among_its_runs_or_are_the_same_for_all():
    whole = select([SWEEP])
    assert len(whole) == 12
    some = select([SWEEP], ["optimizer=sgd", "seed=7", "epochs=2"])
    assert chosen(some) == [("sgd", 7), ("sgd", 7)]
    assert [run.settings["optimizer.lr"] for run in some] == [0.03, 0.1]
    assert {run.config.epochs for run in some} == {2}


def test_a_sweep_that_names_no_optimizer_takes_those_of_the_command_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {DIGITS}\ngrid: {{batch_size: [64, 128]}}\n", encoding="utf-8")
    assert chosen(select([path], ["optimizer=sgd,adam"])) == [
        ("sgd", 1), ("adam", 1), ("sgd", 1), ("adam", 1)
    ]  # fmt: skip
    with pytest.raises(UserError, match="which optimizer"):
        select([path])


def test_settings_of_a_table():
    assert len(select([TABLE], ["dataset=digits"])) == 72
    runs = select([TABLE], ["dataset=digits", "optimizer=sgd,adamw", "seed=5", "epochs=1"])
    assert {run.config.optimizer_name for run in runs} == {"sgd", "adamw"}
    assert {(run.config.dataset.name, run.config.seed, run.config.epochs) for run in runs} == {
        ("digits", 5, 1)
    }


def test_a_run_of_several_files_is_there_once():
    one = select([SWEEP, SWEEP, DIGITS], ["optimizer=sgd"])
    assert len(one) == len({run.place for run in one}) == 7


def test_keys_that_are_numbers_stay_numbers(tmp_path):
    """`after_epochs` has them; JSON would make them strings, which the schema refuses."""
    path = tmp_path / "sweep.yaml"
    value = "{5: {update_interval: 4}}"
    path.write_text(
        f"config: {DIGITS}\nlist: [{{optimizer: adahessian, optimizer.after_epochs: {value}}}]\n",
        encoding="utf-8",
    )
    (swept,) = select([path])
    (typed,) = select([DIGITS], ["optimizer=adahessian", f"optimizer.after_epochs={value}"])
    assert swept.config.optimizer.after_epochs == {5: {"update_interval": 4}}
    assert swept.place == typed.place


def test_an_override_changes_one_of_two_sections_that_share_an_anchor(tmp_path):
    text = DIGITS.read_text(encoding="utf-8").replace("  sgd:\n", "  sgd: &it\n")
    path = tmp_path / "shared.yaml"
    path.write_text(text + "  twin: *it\n", encoding="utf-8")
    first, twin = select([path], ["optimizer=sgd,twin", "optimizers.sgd.lr=0.7"])
    assert (first.config.optimizer.lr, twin.config.optimizer.lr) == (0.7, 0.1)


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ([], [], "name a file: an experiment"),
        (
            [DIGITS],
            [],
            "which optimizer.? add .* sgd, adam, adamw, adahessian; all: optimizer=sgd,",
        ),
        ([DIGITS], ["optimizer=addam"], "did you mean 'adam'?"),
        ([DIGITS], ["optimizer="], "'optimizer=' has no value"),
        ([DIGITS], ["optimizer=sgd", "=3"], "'=3' is no setting: write key.path=value"),
        ([DIGITS], ["optimizer=sgd", "dataset=digits"], "dataset=digits chooses where a table is"),
        ([DIGITS], ["optimizer=sgd", "optimizer.momentun=1"], "did you mean 'momentum'?"),
        ([SWEEP], ["optimizer=adam"], "digits-lr.yaml has no run of 'adam'"),
        ([SWEEP], ["optimizer.lr=1"], "optimizer.lr cannot be set for .* which varies it"),
        ([SWEEP], ["optimizers.sgd.lr=1"], "optimizers.sgd.lr cannot be set for .* varies it"),
        ([SWEEP], ["dataset=digits"], "dataset=digits chooses where a table is made"),
        ([TABLE], ["dataset=digit"], "did you mean 'digits'?"),
        (["nowhere.yaml"], [], "no configuration file nowhere.yaml"),
    ],
)
def test_mistakes_are_one_message(files, settings, message):
    with pytest.raises(UserError, match=message):
        select(files, settings)


@pytest.mark.parametrize("content", ["größe: 1".encode("latin-1"), "a: 1".encode("utf-16")])
def test_a_file_of_another_encoding_is_named(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="config.yaml is not UTF-8"):
        select([path])


@pytest.mark.parametrize(
    ("text", "seeds"), [("1-5", [1, 2, 3, 4, 5]), ("1,2,7", [1, 2, 7]), ("0, 3-4,3", [0, 3, 4])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "2-1", "1,,2", "1-"])
def test_what_is_no_seed(text):
    with pytest.raises(UserError, match="seed = "):
        parse_seeds(text)


def test_a_word_with_an_equals_sign_is_a_setting_unless_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.yaml").touch()
    assert split_words(["lr=1.yaml", "a=b", "c.yaml"]) == (["lr=1.yaml", "c.yaml"], ["a=b"])


def test_no_run_is_looked_at(monkeypatch):
    """A plan is what could be; what there is, only the commands ask."""
    from experiments.runs import states

    def refuse(*arguments):
        raise AssertionError("a run's files were read")

    monkeypatch.setattr(states, "read_state", refuse)
    monkeypatch.setattr(layout, "find", refuse)
    assert len(select([SWEEP, TABLE], ["optimizer=sgd"])) > 6


def test_a_finished_runs_own_configuration_is_the_same_run(tmp_path):
    from experiments.config.experiment import write_yaml

    config = small_config(seed=3)
    path = tmp_path / "config.yaml"
    path.write_text(write_yaml(config), encoding="utf-8")
    (run,) = select([path])
    assert run.place == layout.path_of(config)


@pytest.mark.parametrize(
    ("words", "undone"),
    [
        (["schedule.warmup_epochs=1", "schedule={name: cosine}"], "schedule.warmup_epochs= before"),
        (["optimizers.sgd.lr=0.2", "optimizer.lr=0.5"], "optimizers.sgd.lr= before"),
        (["optimizers.sgd.lr=0.2", "optimizers.sgd={lr: 0.5}"], "optimizers.sgd.lr= before"),
    ],
)
def test_a_setting_that_undoes_another_is_refused(words, undone):
    with pytest.raises(UserError, match=undone):
        select([DIGITS], ["optimizer=sgd", *words])


def test_what_comes_later_says_more():
    (one,) = select([DIGITS], ["optimizer=sgd", "optimizer.lr=0.5", "optimizers.sgd.lr=0.2"])
    assert one.config.optimizer.lr == 0.2
    (one,) = select([DIGITS], ["optimizer=sgd", "epochs=1", "epochs=2"])
    assert one.config.epochs == 2
