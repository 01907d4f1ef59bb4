"""The learning rate, against torch's own schedulers and the released code's loop."""

import math
import re

import pytest
import torch
from support.harness import small_config
from torch.optim import lr_scheduler

from experiments.config.schedules import SCHEDULES
from experiments.config.signature import signature
from experiments.errors import UserError
from experiments.plots import terminal
from experiments.training.preview import picture
from experiments.training.schedule import GroupSchedule

EPOCHS, STEPS = 6, 10


def rates(*overrides: str) -> list[float]:
    config = small_config(*overrides)
    schedule = GroupSchedule(config, steps_per_epoch=3)
    return [schedule.values(3 * epoch)["lr"] for epoch in range(config.epochs)]


def test_drops_scale_with_the_number_of_epochs():
    on_time = "schedule.stepped_at_epoch_start=false"
    assert rates("epochs=160", on_time) == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 40)
    assert rates("epochs=8", on_time) == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_the_released_code_drops_one_epoch_early():
    assert rates("epochs=160") == pytest.approx([0.1] * 79 + [0.01] * 40 + [0.001] * 41)
    # The loop of the released main.py, with torch's own scheduler.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 120], gamma=0.1)
    released = []
    for _ in range(160):
        optimizer.step()
        scheduler.step()
        released.append(optimizer.param_groups[0]["lr"])
    assert rates("epochs=160") == pytest.approx(released)


def test_a_drop_comes_with_the_first_step_of_its_epoch():
    config = small_config("epochs=8", "schedule.stepped_at_epoch_start=false")
    schedule = GroupSchedule(config, steps_per_epoch=11)
    assert [schedule.values(step)["lr"] for step in (43, 44)] == pytest.approx([0.1, 0.01])


def test_the_first_epoch_has_the_full_rate():
    assert rates("epochs=1") == [0.1]
    assert rates("epochs=2")[0] == 0.1


# --------------------------------------------------------------------------- the other shapes


def shape(text: str, epochs: int = EPOCHS, optimizer: str = "sgd") -> list[float]:
    """The rates of all steps; SGD's `lr` is 0.1."""
    config = small_config(f"schedule={text}", f"epochs={epochs}", optimizer=optimizer)
    schedule = GroupSchedule(config, STEPS)
    return [schedule.values(step)["lr"] for step in range(epochs * STEPS)]


def of_torch(make, steps: int = EPOCHS * STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def warm(optimizer, behind):
    """Eight steps from a fifth of the rate, then another scheduler."""
    first = lr_scheduler.LinearLR(optimizer, 0.2, 1.0, total_iters=8)
    return lr_scheduler.SequentialLR(optimizer, [first, behind], milestones=[8])


WARMUP = "warmup_steps: 8, warmup_start: 0.2"


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("{name: constant}", lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        ("{name: linear}", lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, EPOCHS * STEPS)),
        ("{name: linear, floor: 0.1}", lambda o: lr_scheduler.LinearLR(o, 1, 0.1, EPOCHS * STEPS)),
        ("{name: cosine}", lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS)),
        (
            "{name: cosine, floor: 0.1}",
            lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.01),
        ),
        (
            f"{{name: cosine, {WARMUP}}}",
            lambda o: warm(o, lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS - 8)),
        ),
        (
            f"{{name: linear, floor: 0.1, {WARMUP}}}",
            lambda o: warm(o, lr_scheduler.LinearLR(o, 1.0, 0.1, EPOCHS * STEPS - 8)),
        ),
        (f"{{name: constant, {WARMUP}}}", lambda o: warm(o, lr_scheduler.ConstantLR(o, 1.0))),
        (
            f"{{drops: [0.5], factor: 0.1, stepped_at_epoch_start: false, {WARMUP}}}",
            lambda o: warm(o, lr_scheduler.MultiStepLR(o, [30 - 8], 0.1)),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_a_shape_is_that_of_torchs_scheduler(text, make):
    assert shape(text) == pytest.approx(of_torch(make), rel=1e-9, abs=1e-12)


def test_inverse_sqrt_is_fairseqs():
    """Its scheduler: a warm-up by equal steps, then lr * sqrt(warm-up / updates)."""
    rates = shape("{name: inverse_sqrt, warmup_steps: 8, warmup_start: 1e-4}")
    step_size = (0.1 - 1e-5) / 8
    assert rates[:8] == pytest.approx([1e-5 + step * step_size for step in range(8)])
    assert rates[8:] == pytest.approx([0.1 * math.sqrt(8 / step) for step in range(8, 60)])
    assert min(shape("{name: inverse_sqrt, warmup_steps: 8, floor: 0.5}")[8:]) == 0.05


def test_a_warmup_may_be_told_in_epochs_and_never_starts_at_zero():
    text = "{{name: cosine, {}}}"
    assert shape(text.format("warmup_epochs: 1.5")) == shape(text.format("warmup_steps: 15"))
    assert shape(text.format("warmup_epochs: 0.01"))[0] == 0.1  # a step at least, of full rate
    assert shape(text.format("warmup_steps: 8"))[0] == pytest.approx(0.1 / 8)
    assert shape(text.format("warmup_steps: 8, warmup_start: 0.0"))[0] == 0


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_training_shorter_than_its_warmup_only_warms_up(name, epochs):
    more = ", drops: [0.5], factor: 0.1, stepped_at_epoch_start: true" if name == "drops" else ""
    rates = shape(f"{{name: {name}, warmup_epochs: 3{more}}}", epochs)
    assert rates == pytest.approx([0.1 * (1 / 30 + 29 / 30 * s / 30) for s in range(epochs * 10)])


def test_the_rate_depends_on_the_step_alone():
    config = small_config("schedule={name: cosine, warmup_epochs: 1}", "epochs=5")
    forth = [GroupSchedule(config, 7).values(step) for step in range(35)]
    schedule = GroupSchedule(config, 7)
    assert [schedule.values(step) for step in reversed(range(35))] == forth[::-1]


def test_a_schedule_may_be_one_optimizers():
    config = small_config(
        "optimizers.adam.schedule={name: linear, floor: 0.5}", "epochs=4", optimizer="adam"
    )
    rates = [GroupSchedule(config, 1).values(step)["lr"] for step in range(4)]
    assert rates == pytest.approx([0.001, 0.000875, 0.00075, 0.000625])


def test_only_what_is_said_of_a_shape_enters_the_signature():
    drops = "drops: [0.5, 0.75], factor: 0.1, stepped_at_epoch_start: true"
    plain = signature(small_config())
    assert signature(small_config(f"schedule={{name: drops, {drops}, floor: 0}}")) == plain
    marks = [
        signature(small_config(f"schedule={{{text}}}"))
        for text in (f"{drops}, floor: 0.1", "name: cosine", "name: linear", "name: constant",
                     "name: cosine, warmup_steps: 5", "name: cosine, warmup_epochs: 5")
    ]  # fmt: skip
    assert len({plain, *marks}) == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule=linear", "schedule = 'linear': is no section: write schedule={name: linear"),
        ("schedule=null", "schedule = None: is no section: write schedule={name: cosine"),
        ("schedule={name: cosin}", "no schedule is called 'cosin'; did you mean 'cosine'?"),
        ("schedule={name: [1]}", "schedule: no schedule is called '[1]'"),
        ("schedule=[1]", "schedule = [1]: "),
        ("schedule={name: cosine, warmup: 5}", "unknown key 'warmup'; did you mean 'warmup"),
        ("schedule={name: cosine, drops: [0.5]}", "schedule: unknown key 'drops'"),
        ("schedule={name: cosine, floor: 2}", "schedule.floor = 2: Input should be less than"),
        ("schedule={name: inverse_sqrt}", "set warmup_steps"),
        ("schedule={name: cosine, warmup_steps: 5, warmup_epochs: 1}", "is given twice"),
        ("schedule={name: cosine, warmup_epochs: 1e308}", "less than or equal to 1000000"),
        ("schedule={name: cosine, warmup_start: 0.1}", "warmup_start needs warmup_steps"),
        ("optimizers.sgd.schedule={name: cosine, floors: 1}", "optimizers.sgd.schedule: unknown"),
        (
            "schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, floor: 0.1, plateau: "
            "{metric: test/loss, patience: 3, threshold: 0}}",
            "a plateau has no warm-up and no floor",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(override, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        small_config(override)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- its picture


def test_the_picture_falls_where_the_rate_falls():
    lines = terminal.curve([0.0, 1.0, 2.0, 3.0, 4.0], width=5, height=2)
    columns = list(zip(*(line.split("┤")[1].ljust(5) for line in lines), strict=True))
    heights = [sum(terminal.EIGHTHS.index(c) for c in column) for column in columns]
    assert heights == [0, 4, 8, 12, 16]


def test_a_picture_is_that_of_the_runs_own_schedule():
    shown = picture(small_config("schedule={name: linear}", "epochs=50"), 10)
    assert shown[0] == "learning rate: linear, from 0.1 to 0.0002 in the last step"
    assert all(len(line) <= 72 for line in shown)
    many = picture(small_config("schedule={name: linear}", f"epochs={10**9}"), 10)
    assert many[0] == "learning rate: linear, from 0.1 to 1e-11 in the last step"
    assert many[1:] == shown[1:]
    assert terminal.curve([0.0] * 10) and len(terminal.curve([1.0])) == 6
