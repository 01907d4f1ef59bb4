import errno
import random
import subprocess
import time
import warnings
from collections import defaultdict, deque

import numpy
import pytest
import torch
from support.harness import complete, interrupted, small_config, start, until_done
from support.nightly import NIGHTLY
from support.training import OVERRIDES, assert_equal, result, train_here

from experiments.errors import UserError
from experiments.runs import attempts, checkpoint, storage
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
    assert not path.exists() and len(list(tmp_path.glob("checkpoint.damaged-*.pt"))) == 1
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
        StorageError, match="full/checkpoint.pt: No space left on device. What was saved"
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


KILLS = 12 if NIGHTLY else 2


def test_killed_at_random_moments_the_same_command_gives_the_uninterrupted_run(tmp_path):
    """The real command in a process of its own, killed with SIGKILL again and again."""
    arguments = ("optimizer=adahessian", f"epochs={2 * KILLS}", *OVERRIDES)
    config = small_config(*arguments[1:], optimizer="adahessian")
    whole = RunDirectory(tmp_path / "whole", config)
    complete(tmp_path / "whole", *arguments)

    killed = RunDirectory(tmp_path / "killed", config)
    moments = random.Random(0)
    inside_an_epoch = 0
    for _ in range(KILLS):
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
    assert len(killed.meta()["sessions"]) == KILLS + 1


def modified(directory):
    path = directory.path / "checkpoint.pt"
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # also for the moment between the two renames
        return None


class Foreign:
    """An object in an optimizer's state that torch does not load again without being told to."""


@pytest.fixture
def two(tmp_path):
    """A directory with two sound checkpoints, and what is in it."""
    for number in (1, 2):
        checkpoint.save(tmp_path, {"number": number})
    return tmp_path, contents(tmp_path)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def failing_read(error):
    """`_Readable.read`, whose own reading of the file fails."""

    def read(self, size=-1):
        with storage.reading(self.path):
            raise error

    return read


def fail_with(error):
    def fail(*arguments, **named):
        raise error

    return fail


@pytest.mark.parametrize("way", [checkpoint.load, checkpoint.look])
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
     OSError(errno.EIO, "Input/output error"), ModuleNotFoundError("No module named 'foreign'"),
     RuntimeError("anything at all")],
)  # fmt: skip
def test_a_readers_failure_is_no_damage(error, way, two, monkeypatch):
    directory, before = two
    monkeypatch.setattr(torch, "load", fail_with(error))
    with pytest.raises(UserError, match=r"\S+/checkpoint.pt"):
        way(directory)
    assert contents(directory) == before


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_disk_that_does_not_answer_is_no_damage(error, sealed, two, monkeypatch):
    directory, _ = two
    if not sealed:
        torch.save({"number": 3}, directory / "checkpoint.pt")
    before = contents(directory)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_checksum", fail_with(error))
        patched.setattr(checkpoint._Readable, "read", failing_read(error))
        with pytest.raises(StorageError, match="cannot read .*checkpoint.pt"):
            checkpoint.load(directory)
    assert contents(directory) == before


def test_an_object_that_torch_refuses_is_no_damage(two):
    """As an earlier version saved it, which did not ask."""
    directory, _ = two
    torch.save({"number": 2, "state": Foreign()}, directory / "checkpoint.pt")
    before = contents(directory)
    with pytest.raises(UserError, match="is complete, but torch does not load it"):
        checkpoint.load(directory)
    assert contents(directory) == before


def test_who_only_looks_moves_nothing(two):
    directory, _ = two
    (directory / "checkpoint.pt").write_bytes(b"damaged")
    before = contents(directory)
    with pytest.warns(UserWarning, match="is damaged .*; passed over"):
        assert checkpoint.look(directory)["number"] == 1
    assert contents(directory) == before


def test_what_is_set_aside_is_never_overwritten(two):
    directory, _ = two
    for number in (1, 2):
        (directory / "checkpoint.pt").write_bytes(b"damage %d" % number)
        with pytest.warns(UserWarning, match="it is kept as checkpoint.damaged-"):
            assert checkpoint.load(directory)["number"] == 1
    aside = [path.read_bytes() for path in directory.glob("checkpoint.damaged-*")]
    assert sorted(aside) == [b"damage 1", b"damage 2"]


def test_who_has_lost_the_lease_sets_nothing_aside(two):
    directory, _ = two
    (directory / "checkpoint.pt").write_bytes(b"damaged")
    before = contents(directory)
    with pytest.raises(KeyError):
        checkpoint.load(directory, fail_with(KeyError()))
    assert contents(directory) == before


@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_bit_is_damage_or_changes_nothing(seed, tmp_path):
    """Also in the archive's directory, which has no checksum of its own, and in the seal."""
    state = {"data": torch.arange(40), "more": {"x": 1.5, "y": "text"}}
    checkpoint.save(tmp_path, state)
    path = tmp_path / "checkpoint.pt"
    sound = path.read_bytes()
    places = [*random.Random(seed).sample(range(len(sound)), 50), len(sound) - 1 - seed]
    for place in places:
        flipped = bytearray(sound)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            found = checkpoint.look(tmp_path)
        assert found is None or torch.equal(found["data"], state["data"])
        assert found is None or found["more"] == state["more"]
        assert found is None or place >= len(sound) - checkpoint.SEAL_LENGTH


def test_a_checkpoint_of_an_earlier_version_has_no_seal(tmp_path):
    torch.save({"number": 1, "data": torch.arange(100)}, tmp_path / "checkpoint.pt")
    assert checkpoint.look(tmp_path)["number"] == 1
    content = (tmp_path / "checkpoint.pt").read_bytes()
    for offset, bit in ((8, 1), (34, 2)):  # "encrypted", "on another disk": no checksum covers it
        flipped = bytearray(content)
        flipped[content.index(b"PK\1\2") + offset] ^= bit
        (tmp_path / "checkpoint.pt").write_bytes(flipped)
        with pytest.warns(UserWarning, match="passed over"):
            assert checkpoint.look(tmp_path) is None


def test_the_first_checkpoint_is_read_back_before_it_counts(two, monkeypatch):
    directory, before = two
    seal = checkpoint._seal

    def written_to_a_bad_block(file):
        seal(file)
        file.seek(100)
        file.write(b"else")

    monkeypatch.setattr(checkpoint, "_seal", written_to_a_bad_block)
    with pytest.raises(StorageError, match="what was written is not what is there"):
        checkpoint.save(directory, {"number": 3}, read_back=True)
    assert contents(directory) == before


@pytest.mark.parametrize(
    ("entry", "value"),
    [("a.0.b", {"a": [{"b": Foreign()}]}), ("a.1", {"a": (1, deque())}),
     ("a", {"a": numpy.int64(3)}), ("a.x", {"a": {"x": len}}),
     ("a.key <.*>", {"a": {Foreign(): 1}}), ("a", {"a": defaultdict(dict)})],
)  # fmt: skip
def test_what_could_not_be_loaded_again_is_not_saved(entry, value, two):
    directory, before = two
    with pytest.raises(UserError, match=f"^{entry} of the training's state is a "):
        checkpoint.save(directory, {"fine": torch.ones(3), **value})
    assert contents(directory) == before
