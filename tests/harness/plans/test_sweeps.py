import pytest
from support.harness import DIGITS

from experiments.errors import UserError
from experiments.plans import sweeps
from experiments.plans.select import is_sweep, select
from experiments.runs.directory import RunDirectory


def write(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {DIGITS}\n" + text)
    return path


def settings(runs):
    return [run.settings for run in runs]


def test_grid_zip_list_and_seeds_multiply(tmp_path):
    path = write(
        tmp_path,
        """
seeds: 1-2
set: {model.depth: 8, epochs: 3}
grid: {optimizer: [sgd, adahessian], optimizer.lr: [0.1, 0.2]}
zip: {batch_size: [64, 128], crop: [0, 1]}
""".replace("crop:", "dataset.crop_padding:"),
    )
    runs = sweeps.expand(path)
    assert len(runs) == 2 * 2 * 2 * 2 and len({run.place for run in runs}) == 16
    last = runs[-1]
    assert last.settings == {
        "optimizer": "adahessian", "optimizer.lr": 0.2, "batch_size": 128,
        "dataset.crop_padding": 1, "seed": 2,
    }  # fmt: skip
    assert last.config.optimizer.lr == 0.2 and last.config.seed == 2
    assert last.config.dataset.crop_padding == 1 and last.config.epochs == 3
    assert RunDirectory(tmp_path, last.config).path == tmp_path / last.place
    assert last.source == path
    assert [run.config.seed for run in runs[:2]] == [1, 2]


def test_a_list_and_seeds_one_by_one(tmp_path):
    text = "seeds: [3, 5]\nlist: [{optimizer: sgd}, {optimizer: adam, optimizer.lr: 0.01}]"
    runs = sweeps.expand(write(tmp_path, text))
    assert settings(runs) == [
        {"optimizer": "sgd", "seed": 3},
        {"optimizer": "sgd", "seed": 5},
        {"optimizer": "adam", "optimizer.lr": 0.01, "seed": 3},
        {"optimizer": "adam", "optimizer.lr": 0.01, "seed": 5},
    ]


def test_values_reach_the_configuration_as_they_are(tmp_path):
    text = "list: [{optimizer: adam, optimizer.betas: [0.8, 0.9], device: cpu, optimizer.lr: 5e-4}]"
    (run,) = sweeps.expand(write(tmp_path, text))
    assert run.config.optimizer.arguments()["betas"] == (0.8, 0.9)
    assert run.config.device == "cpu" and run.config.optimizer.lr == 5e-4


def test_the_same_run_is_there_once(tmp_path):
    """0.1 is the configuration's own value, so both combinations are one run."""
    text = "list: [{optimizer: sgd}, {optimizer: sgd, optimizer.lr: 0.1}]"
    assert len(sweeps.expand(write(tmp_path, text))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gird: {}", "unknown key 'gird'; did you mean 'grid'?"),
        ("zip: {a: [1, 2], b: [1]}", "zip pairs lists of one length, not a 2, b 1"),
        ("grid: {optimizer: []}", "optimizer: the list is empty"),
        ("seeds: 5-2", "2 is below 5"),
        ("seeds: 3", "seeds = 3: write [3] for this one seed, or 1-3 for several"),
        ("seeds: a", "seed = 'a': write whole numbers, 0 or more: 1-5"),
        ("seeds: []", "seeds: the list is empty, so there would be no run"),
        ("set: {optimizer: [sgd]}", "unknown optimizer '['sgd']'; did you mean 'sgd'?"),
        ("grid: {epochs: [1]}", "which optimizer? add optimizer=NAME[,NAME] with sgd, adam"),
        ("grid: {optimizer: [sgd], seed: [1]}", "seed belongs to `seeds`"),
        ("grid: {optimizer: [sgd], optimizer.momentun: [1]}", "did you mean 'momentum'?"),
        ("grid: {optimizer: [sgd], epochs: [1, x]}", "at {'optimizer': 'sgd', 'epochs': 'x'}"),
    ],
)
def test_mistakes_are_named_with_their_file(text, message, tmp_path):
    with pytest.raises(UserError) as caught:
        sweeps.expand(write(tmp_path, text))
    assert message in str(caught.value)
    assert "sweep.yaml" in str(caught.value)


def test_every_sweep_of_the_repository_expands():
    files = sorted((DIGITS.parent.parent / "sweeps").glob("*.yaml"))
    assert files
    for path in files:
        assert is_sweep(path) and sweeps.expand(path)
    assert not is_sweep(DIGITS)


@pytest.mark.parametrize(
    "text",
    [
        "grid: {optimizer.lr: [0.1], optimizers.sgd.lr: [0.2]}",
        "grid: {epochs: [1]}\nlist: [{epochs: 2}]",
        "grid: {schedule: [{name: cosine}]}\nzip: {schedule.warmup_epochs: [1]}",
        "grid: {optimizers.sgd.lr: [0.2]}\n"
        "search: {trials: 2, space: {optimizer.lr: {choices: [0.1]}}}",
    ],
)
def test_two_sections_that_vary_one_value_are_refused(text, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {DIGITS}\n{text}\n", encoding="utf-8")
    with pytest.raises(UserError, match="vary the same value"):
        sweeps.expand(path)


@pytest.mark.parametrize("setting", ["optimizers.sgd.lr=0.3", "optimizer.lr=0.3"])
def test_a_setting_within_what_a_sweep_varies_is_refused(setting, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {DIGITS}\ngrid: {{optimizers.sgd.lr: [0.2]}}\n", encoding="utf-8")
    with pytest.raises(UserError, match="which varies it"):
        select([path], [setting])
