import random
import subprocess
import time

import pytest
import torch
from support.harness import complete, interrupted, small_config, start, until_done
from support.training import OVERRIDES, assert_equal, result, train_here

from experiments.errors import UserError
from experiments.runs import attempts, checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runs.storage import StorageError
from experiments.training import loop


def test_a_saved_state_comes_back(tmp_path):
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, {"a": torch.arange(3), "b": [1, 2.5, "x"]})
    state = checkpoint.load(tmp_path)
    assert state["a"].tolist() == [0, 1, 2] and state["b"] == [1, 2.5, "x"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def damage_cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_flip(content: bytes) -> bytes:
    """One bit in the middle of a tensor's data: torch.load alone would not notice."""
    at = content.index(b"\x07" * 1000) + 500
    return content[:at] + b"\x06" + content[at + 1 :]


def damage_empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_empty])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(damage, tmp_path):
    for number in (1, 2):
        state = {"number": number, "data": torch.full((5000,), 7, dtype=torch.uint8)}
        checkpoint.save(tmp_path, state)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="checkpoint.pt is damaged"):
        assert checkpoint.load(tmp_path)["number"] == 1
    # Out of the way of the next save, which keeps what was the current one as the previous.
    assert not path.exists() and (tmp_path / "checkpoint.damaged.pt").exists()
    assert checkpoint.load(tmp_path)["number"] == 1  # as when killed between the two renames
    checkpoint.save(tmp_path, {"number": 3})
    path.unlink()
    assert checkpoint.load(tmp_path)["number"] == 1


def test_with_nothing_left_to_read_a_run_starts_from_the_beginning(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.load(tmp_path) is None


@pytest.fixture
def full_disk(tmp_path):
    """A real file system that overflows: root is not kept out by permissions, nor by quotas."""
    path = tmp_path / "full"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", path]).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_named_and_leaves_the_checkpoint(full_disk):
    checkpoint.save(full_disk, {"number": 1})
    too_much = {"number": 2, "data": torch.zeros(100_000)}
    with pytest.raises(
        StorageError, match="full/checkpoint.pt: No space left on device; the last good"
    ):
        checkpoint.save(full_disk, too_much)
    assert [path.name for path in full_disk.iterdir()] == ["checkpoint.pt"]
    assert checkpoint.load(full_disk) == {"number": 1}


def test_a_disk_that_fills_up_stops_the_run_which_goes_on_when_there_is_room(full_disk, tmp_path):
    config = small_config("epochs=3", *OVERRIDES, optimizer="adahessian")
    subprocess.run(["mount", "-o", "remount,size=3m", full_disk], check=True)
    (full_disk / "ballast").write_bytes(bytes(1_700_000))  # room for one checkpoint, not for two
    with pytest.raises(StorageError, match="No space left on device"):
        train_here(full_disk, config)
    directory = RunDirectory(full_disk, config)
    assert checkpoint.load(directory.path)["position"]["step"] > 0
    assert not list(directory.path.glob("*tmp*"))
    assert "No space left" in attempts.read(directory.path)[-1].reason
    (full_disk / "ballast").unlink()
    train_here(full_disk, config)
    assert_equal(result(directory), result(train_here(tmp_path / "whole", config)))


def test_a_read_only_directory_is_named(full_disk):
    config = small_config()
    RunDirectory(full_disk, config).path.mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", full_disk], check=True)
    with pytest.raises(StorageError, match=r"cannot write \S+: Read-only file system"):
        train_here(full_disk, config)


def test_a_checkpoint_that_cannot_be_read_at_all_is_not_taken_for_damaged(tmp_path):
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(StorageError, match="cannot read .*checkpoint.pt: Is a dir"):
        checkpoint.load(tmp_path)


def test_the_random_state_comes_back():
    state = checkpoint.random_state()
    first = torch.rand(3)
    checkpoint.restore_random_state(state)
    assert torch.equal(torch.rand(3), first)


# ----------------------------------------------------------------------------- stop and resume


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    config = small_config(*OVERRIDES, optimizer="adahessian")
    return result(train_here(tmp_path_factory.mktemp("whole"), config))


@pytest.mark.parametrize("place", ["optimizer_step", "evaluate", "_note", "save"])
def test_resumed_from_anywhere_it_is_bitwise_the_uninterrupted_run(
    place, uninterrupted, tmp_path, monkeypatch
):
    """Stopped now before, now after each part of the loop, also between refreshes."""
    config = small_config(*OVERRIDES, optimizer="adahessian")
    part = interrupted(getattr(loop, place), lambda n: n % 7 == 1, after=lambda n: n % 7 == 4)
    monkeypatch.setattr(loop, place, part)
    directory, _ = until_done(lambda: train_here(tmp_path, config))
    assert_equal(result(directory), uninterrupted)


def test_going_back_to_the_previous_checkpoint_changes_nothing(uninterrupted, tmp_path):
    config = small_config(*OVERRIDES, optimizer="adahessian")
    directory = train_here(tmp_path, config)
    (directory.path / "DONE").unlink()
    (directory.path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        train_here(tmp_path, config)
    assert_equal(result(directory), uninterrupted)


def test_killed_at_random_moments_the_same_command_gives_the_uninterrupted_run(tmp_path):
    """The real command in a process of its own, killed with SIGKILL again and again."""
    arguments = ("optimizer=adahessian", "epochs=5", *OVERRIDES)
    config = small_config("epochs=5", *OVERRIDES, optimizer="adahessian")
    whole = RunDirectory(tmp_path / "whole", config)
    complete(tmp_path / "whole", *arguments)

    killed = RunDirectory(tmp_path / "killed", config)
    moments = random.Random(0)
    inside_an_epoch = 0
    for _ in range(4):
        process = start(tmp_path / "killed", *arguments)
        seen = modified(killed)
        while process.poll() is None and modified(killed) == seen:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        _, errors = process.communicate()
        assert "Traceback" not in errors
        inside_an_epoch += checkpoint.load(killed.path)["position"]["step"] > 0
    assert not killed.done, "killed too late to be a test"
    assert inside_an_epoch
    complete(tmp_path / "killed", *arguments)
    assert_equal(result(killed), result(whole))
    assert len(killed.meta()["sessions"]) == 5


def modified(directory):
    path = directory.path / "checkpoint.pt"
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # also for the moment between the two renames
        return None


class Foreign:
    """An object in an optimizer's state that torch does not load again without being told to."""


@pytest.mark.parametrize("fault", ["refused", "no memory"])
def test_what_is_sound_and_cannot_be_loaded_is_not_taken_for_damaged(fault, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"number": 1})
    checkpoint.save(tmp_path, {"number": 2, "state": Foreign()} if fault == "refused" else {})

    def full(*arguments, **named):
        raise MemoryError

    if fault == "no memory":
        monkeypatch.setattr(torch, "load", full)
    error = MemoryError if fault == "no memory" else UserError
    with pytest.raises(error) as caught:
        checkpoint.load(tmp_path)
    assert fault == "no memory" or "is complete, but torch does not load it" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint.prev.pt"}
