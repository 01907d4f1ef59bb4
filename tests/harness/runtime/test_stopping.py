import os
import signal
import time

import pytest
import torch
from support.harness import complete, small_config, start
from support.patience import PATIENCE
from support.training import OVERRIDES, assert_equal, result, train_here

from experiments.runs import attempts, checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runtime import stopping
from experiments.tasks.registry import build_task
from experiments.training import loop


@pytest.fixture(autouse=True)
def without_nohup():
    """Below `nohup make test` SIGHUP is ignored, and a run keeps it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_signal_is_a_request_and_leaves_no_handler_behind():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    assert stopping.requested() is None
    with pytest.raises(stopping.Stopped, match="stopped by SIGUSR2") as caught:
        with stopping.listening():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stopping.requested() == signal.SIGUSR2
            os.kill(os.getpid(), signal.SIGTERM)  # does not take back that the job may go on
            assert stopping.requested() == signal.SIGUSR2
    assert caught.value.exit_code == 140
    assert stopping.requested() is None
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_what_nohup_has_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopping.requested() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stopping.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.requested() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def test_stopped_by_each_signal_a_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    """Also at an epoch's last step; the only checkpoints are those of the signals."""
    config = small_config(*OVERRIDES[:1], "checkpoint_every_epochs=2", optimizer="adahessian")
    whole = result(train_here(tmp_path / "whole", config))
    directory = RunDirectory(tmp_path / "stopped", config)
    step, calls = loop.optimizer_step, []
    moments = dict(zip((4, train_steps(config), 17, 19, 20, 21), stopping.SIGNALS, strict=True))

    def interrupted(*arguments):
        calls.append(1)
        if number := moments.get(len(calls)):
            os.kill(os.getpid(), number)
        return step(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", interrupted)
    for number in stopping.SIGNALS:
        with pytest.raises(stopping.Stopped, match=number.name), stopping.listening():
            train_here(tmp_path / "stopped", config)
        assert not (directory.path / "lease.json").exists()
    train_here(tmp_path / "stopped", config)
    assert len(calls) == 2 * train_steps(config)  # no step was done twice
    assert_equal(result(directory), whole)
    reasons = [attempt.reason for attempt in attempts.read(directory.path)]
    assert reasons == [*(f"stopped by {number.name}" for number in stopping.SIGNALS), "done"]


def train_steps(config):
    return build_task(config, torch.device("cpu"), None).steps_per_epoch


@pytest.mark.slow
def test_the_real_command_stopped_by_sigterm_goes_on_with_the_same_command(tmp_path):
    arguments = ("optimizer=adahessian", "epochs=20", "checkpoint_every_epochs=20")
    config = small_config(*arguments[1:], optimizer="adahessian")
    whole = result(train_here(tmp_path / "whole", config))

    stopped = RunDirectory(tmp_path / "stopped", config)
    process = start(tmp_path / "stopped", *arguments)
    while not stopped.metrics_size():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, errors
    assert errors == "stopped by SIGTERM; the same command goes on from here\n"
    assert 1 <= checkpoint.load(stopped.path)["position"]["epoch"] < 20
    complete(tmp_path / "stopped", *arguments)
    assert_equal(result(stopped), whole)
