"""A training that is killed, refused or loses its power at any call that changes its directory.

`docs/reliability.md` has the figures of the slow ones.
"""

import errno
import json
import os
import random
import shutil
import warnings

import pytest
from support import faults
from support.nightly import NIGHTLY
from support.regression import FILE, LINE
from support.training import assert_equal, result

from experiments.plans.load import load, resolve
from experiments.runs import lease
from experiments.runs.directory import RunDirectory
from experiments.tasks import registry
from experiments.training import loop

SETTINGS = (
    "epochs=2",
    "batch_size=25",
    "checkpoint_every_steps=1",
    "log_every_steps=1",
    "optimizers.sgd.momentum=0.9",
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two epochs of two steps, each of them logged and saved: milliseconds."""
    monkeypatch.setitem(registry.TASKS, "regression", LINE)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.1)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.01)
    path = tmp_path / "line.yaml"
    path.write_text(FILE)
    return resolve(load(path, SETTINGS), "sgd", 1)


def train(root, config):
    directory = RunDirectory(root, config)
    if not directory.done:
        with warnings.catch_warnings(), directory.locked(wait=True):
            warnings.simplefilter("ignore")
            loop.train(config, directory, root)
    return directory


def train_with(root, config, at=0, interfere=None, power=None):
    """In a process of its own, with a fault at a call; its exit code."""

    root.mkdir(exist_ok=True)

    def session():
        calls = faults.Calls(root, at, interfere)
        if power:
            calls.happen = faults.Disk(calls).cut(*power)
        with calls.watched():
            train(root, config)
        if at == 0:
            (root.parent / "calls.json").write_text(json.dumps(calls.names))

    return faults.in_child(session)


def calls_of(root, config):
    """The names of all calls of a session, and a copy of the directory that it leaves."""
    assert train_with(root, config) == 0
    return json.loads((root.parent / "calls.json").read_text())


@pytest.fixture
def whole(tmp_path, config):
    train(tmp_path / "here", config)  # what is imported once is imported before the forks
    names = calls_of(tmp_path / "whole", config)
    assert {"open", "write", "fsync", "replace", "link", "unlink", "close"} <= set(names)
    return names, result(RunDirectory(tmp_path / "whole", config))


def check(root, config, whole):
    """The same command again: nothing is lost, nothing is there twice."""
    assert faults.in_child(lambda: train(root, config)) == 0
    directory = RunDirectory(root, config)
    assert_equal(result(directory), whole[1])
    left = {path.name for path in directory.path.iterdir()}
    assert left <= {"DONE", "attempts.jsonl", "checkpoint.pt", "checkpoint.prev.pt", "config.yaml",
                    "meta.json", "metrics.jsonl", "steps.jsonl"} | aside(left)  # fmt: skip
    shutil.rmtree(root)


def aside(names):
    """What may be there besides: what was damaged, and the lease of who was killed at the end."""
    return {name for name in names if ".damaged-" in name or name.startswith("lease.")}


POWER = [("now", "lost"), ("now", "zeros"), ("synced", "now"), ("synced", "lost")]
EVERY = 41  # of the calls, in the fast tests
# In the slow ones; each call is a process of its own, and all of them take half an hour.
MANY = 1 if NIGHTLY else 17


def places(total, stride, offset=0):
    return range(1 + offset, total + 1, stride)


@pytest.mark.parametrize("stride", [EVERY, pytest.param(MANY, marks=pytest.mark.slow)])
def test_killed_at_a_call_it_goes_on_as_if_nothing_had_been(stride, tmp_path, config, whole):
    kills = 0
    for at in places(len(whole[0]), stride):
        root = tmp_path / "killed"
        kills += train_with(root, config, at, faults.kill) == faults.KILLED
        check(root, config, whole)
    assert kills == len(places(len(whole[0]), stride))
    print(f"{len(whole[0])} calls, {kills} kills")


@pytest.mark.parametrize("stride", [EVERY, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_refused_at_a_call_it_says_so_and_goes_on(number, stride, tmp_path, config, whole):
    refused = 0
    for at in places(len(whole[0]), stride, 3 if stride > 1 else 0):
        root = tmp_path / "refused"
        code = train_with(root, config, at, faults.fail(number))
        assert code in (0, faults.REFUSED), f"call {at}, {whole[0][at - 1]}"
        refused += code == faults.REFUSED
        check(root, config, whole)
    print(f"{len(whole[0])} calls, {refused} trainings refused, the others went on")


@pytest.mark.parametrize("stride", [3 * EVERY, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("power", POWER, ids="-".join)
def test_after_a_power_cut_at_a_call_it_goes_on(power, stride, tmp_path, config, whole):
    for at in places(len(whole[0]), stride, 5 if stride > 1 else 0):
        root = tmp_path / "cut"
        assert train_with(root, config, at, power=power) == faults.KILLED
        check(root, config, whole)
    print(f"{len(whole[0])} calls, the power was cut at every {stride}th")


@pytest.mark.slow
def test_faults_during_what_goes_on_after_faults(tmp_path, config, whole):
    """Several, of all kinds, at random calls of one run."""
    draw, ways = random.Random(0), [{"interfere": faults.kill}, {"interfere": faults.fail(28)}]
    ways += [{"power": power} for power in POWER]
    for _ in range(60 if NIGHTLY else 12):
        root = tmp_path / "many"
        for _ in range(4):
            train_with(root, config, draw.randint(1, len(whole[0])), **draw.choice(ways))
        check(root, config, whole)


def test_a_full_disk_stays_full(tmp_path, config, whole):
    """Every write from a call on fails, as it does until somebody makes room."""
    root = tmp_path / "full"
    for at in places(len(whole[0]), 3 * EVERY):

        def session(at=at):
            calls = faults.Calls(root, 0)
            full = faults.fail(errno.ENOSPC)
            made = calls.made

            def made_until(name, place):
                if len(calls.names) >= at and name in ("open", "write", "flush", "mkdir", "link"):
                    full(name)
                return made(name, place)

            calls.made = made_until
            with calls.watched():
                train(root, config)

        assert faults.in_child(session) in (0, faults.REFUSED)
        check(root, config, whole)
    assert not os.path.exists(root)
