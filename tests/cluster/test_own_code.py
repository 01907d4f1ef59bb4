"""A user's own model, optimizer, data and task, each on a real Slurm; and jobs that cannot begin.

The user starts commands in a folder with a space in its name, and has the YAML files in another
one. What is theirs is what docs/adding.md prints, and Fashion-MNIST: its first images where
Debian's dataset-fashion-mnist is installed, or torchvision has put it into DATA_ROOT.
"""

import os
import shlex
import subprocess
import sys

import pytest
import yaml
from support.fashion_mnist import write_few
from support.harness import DIGITS, REPOSITORY, SMALL
from support.own_code import names, write_lab, write_pets

from experiments.runs import attempts
from experiments.runs.metrics import read_json, read_metrics
from slurm.jobs import submitted
from slurm.status import collect

pytestmark = pytest.mark.slow

SETUP = "[export OMP_NUM_THREADS=1, cd /]"
TIMM = (
    "{constructor: timm.create_model, model_name: vit_tiny_patch16_224, img_size: 8, "
    "patch_size: 4, depth: 2}"
)


FASHION = """\
task: image_classification
dataset:
  name: fashion
  constructor: torchvision.datasets.FashionMNIST
  validation_size: 0
  crop_padding: 2
  flip: true
  channels: 3
model:
  constructor: torchvision.models.VisionTransformer
  image_size: 28
  patch_size: 7
  num_layers: 2
  num_heads: 2
  hidden_dim: 32
  mlp_dim: 64
epochs: 1
batch_size: 64
schedule: {name: cosine}
best_epoch_split: test
optimizers:
  sign:
    constructor: mylab.sign.SignDescent
    lr: 0.001
    weight_decay: 0.01
    weight_decay_divided_by_lr: false
  adahessian:
    constructor: adahessian.AdaHessian
    lr: 0.15
    weight_decay: 5e-4
    weight_decay_divided_by_lr: true
    curvature: finite_difference
"""
CLOTHES = (
    "{name: clothes, root: clothes, validation_size: 0, crop_padding: 0, flip: true, "
    "image_size: 24, resize_size: 28}"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "my lab"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DATA_ROOT", "data")
    return folder


def send(lab, *words, setup=SETUP):
    """Submit as the user does: in a process of its own, in their folder."""
    profile = lab.root.parent / "profile.yaml"
    text = f"cluster: slurm\ntimeout_minutes: 60\nmemory_gb: 1\nsetup: {setup}\n"
    profile.write_text(text, encoding="utf-8")
    words = [*map(str, words), "--profile", str(profile)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-m", "slurm.submit", *words], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def wait_for_states(lab, *states):
    """Wait until the runs are in these states; returns their rows in `status`."""

    def all_there():
        return sorted(row.state for row in collect(lab.root, None)[0]) == sorted(states)

    try:
        lab.wait_for(all_there, f"{states}")
    except TimeoutError as error:
        shown = "\n".join(map(str, collect(lab.root, None)[0]))
        raise AssertionError(f"{error}\n{shown}") from error
    rows, note = collect(lab.root, None)
    assert note == ""
    return rows


def test_what_is_ones_own_is_trained_there(lab, folder, tmp_path):
    files = write_lab(folder)
    write_pets(folder / "data")
    elsewhere = tmp_path / "my files"
    elsewhere.mkdir()
    for path in files.values():
        path.rename(elsewhere / path.name)
    line, pets, stripes, vit = (elsewhere / f"{name}.yaml" for name in sorted(files))
    both = f"optimizer={','.join(names(yaml.safe_load(vit.read_text('utf-8'))))}"
    send(lab, line, "epochs=1", setup="[]")
    send(lab, vit, both, "epochs=1")
    send(lab, pets, stripes, "optimizer=sign", "epochs=1", "batch_size=64")
    send(lab, vit, "optimizer=sign", "epochs=1", f"model={TIMM}", "dataset.channels=3")
    # What happens to the folder now does not reach them.
    (folder / "mylab" / "vit.py").write_text("raise SystemExit('edited while the jobs waited')\n")
    rows = wait_for_states(lab, *["done"] * 6)
    for copied in lab.root.glob(".slurm/code-*/mylab/vit.py"):
        assert "class ViT" in copied.read_text("utf-8")
    for row in rows:
        (attempt,) = attempts.read(lab.root / row.run)
        assert attempt.reason == "done"
        (session,) = read_json(lab.root / row.run / "meta.json")["sessions"]
        assert session["job"] == row.job
        config = lab.root / row.run / "config.yaml"
        assert shlex.split(session["command"])[2:] == ["experiments.run", str(config)]


def test_fashion_mnist_by_a_vit_and_by_timm_and_as_a_folder(lab, tmp_path, monkeypatch):
    write_few(tmp_path / "data")  # before DATA_ROOT is another
    folder = tmp_path / "my lab"
    folder.mkdir()
    write_lab(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    vit, timm, clothes = (tmp_path / f"{name}.yaml" for name in ("vit", "timm", "clothes"))
    base = yaml.safe_load(FASHION)
    for path, more in {
        vit: {},
        timm: {"model": {"constructor": "timm.create_model", "model_name": "resnet10t"}},
        clothes: {
            "dataset": yaml.safe_load(CLOTHES),
            "model": base["model"] | {"image_size": 24, "patch_size": 6},
        },
    }.items():
        path.write_text(yaml.safe_dump(base | more), encoding="utf-8")
    send(lab, vit, "optimizer=sign,adahessian")
    send(lab, timm, "optimizer=adahessian")
    send(lab, clothes, "optimizer=sign")
    rows = wait_for_states(lab, *["done"] * 4)
    assert sorted(row.run.rsplit("/", 1)[0] for row in rows) == [
        "clothes/VisionTransformer/sign",
        "fashion/VisionTransformer/adahessian",
        "fashion/VisionTransformer/sign",
        "fashion/resnet10t/adahessian",
    ]
    for row in rows:
        (metrics,) = read_metrics(lab.root / row.run / "metrics.jsonl")
        assert metrics["step"] == 512 / 64
        assert (128 * metrics["test/accuracy"]).is_integer()


def test_a_setup_that_fails_says_which_line(lab):
    setups = {
        1: ("[module load nothing, 'true']", "exit code 127, at: module load nothing"),
        2: ("['true', 'false', echo never]", "exit code 1, at: false"),
        3: ("[source /nowhere/bin/activate]", "exit code 1, at: source /nowhere/bin/activate"),
        4: ("[set -e, 'false', echo never]", "exit code 1, at: false"),
        5: ("[exit 0]", "exit code 0, at: exit 0"),
        6: ("[export PYTHONHOME=/nowhere]", "No module named 'encodings'"),
    }
    words = [str(DIGITS), "optimizer=sgd", *SMALL, "epochs=1"]
    for seed, (setup, _) in setups.items():
        assert lab.submit(*words, f"seed={seed}", setup=setup) == 0
    rows = wait_for_states(lab, *["failed"] * 6)
    reasons = {int(row.run.rpartition("-s")[2]): row.reason for row in rows}
    for seed, (_, said) in setups.items():
        assert said in reasons[seed], (said, reasons)
    assert reasons[1].startswith("the profile's setup ended the job")
    # The same run, sent again, is trained; entries may be parts of one command.
    assert lab.submit(*words, "seed=1", setup="['if true; then', 'export A=1', fi]") == 0
    wait_for_states(lab, "done", *["failed"] * 5)


def test_a_module_that_cannot_be_imported_there_says_so(lab, folder):
    """Here it can be; there, one finds no module whose name nobody could read, and one no host."""
    texts = {
        "hidden": "import importlib\nimportlib.import_module('not' + 'copied')\n",
        "host": "import os\n'SLURM_JOB_ID' in os.environ and 1 / 0\n",
    }
    (folder / "broken").mkdir()
    (folder / "notcopied.py").write_text("", encoding="utf-8")
    for kind, text in texts.items():
        text += "import torch\nclass Mine(torch.optim.SGD):\n    pass\n"
        (folder / "broken" / f"{kind}.py").write_text(text, encoding="utf-8")
    more = "lr: 1, weight_decay: 0, weight_decay_divided_by_lr: false"
    rows = [f"optimizers.{kind}={{constructor: broken.{kind}.Mine, {more}}}" for kind in texts]
    send(lab, DIGITS, "optimizer=hidden,host", *rows, *SMALL, "epochs=1")
    found = {row.run.split("/")[2]: row for row in wait_for_states(lab, "failed", "failed")}
    assert "No module named 'notcopied' (hidden.py, line 2)" in found["hidden"].reason
    assert "ZeroDivisionError: division by zero (host.py, line 2)" in found["host"].reason
    sent = [submitted(lab.root / row.run).job for row in found.values()]
    lab.wait_for(lambda: {lab.cluster.jobs()[job] for job in sent} == {"FAILED"}, "end")
    assert {row.attempts for row in collect(lab.root, None)[0]} == {"1"}  # and not begun again
