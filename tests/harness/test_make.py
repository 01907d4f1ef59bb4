"""What `make` does with the words on its command line; nothing is trained."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from support.harness import REPOSITORY
from support.patience import PATIENCE


def make(*words):
    return subprocess.run(["make", "-n", *words], cwd=REPOSITORY, capture_output=True, text=True)


def last_line(*words):
    done = make(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].strip()


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["SEED=5"], ["unknown variable SEED; did you mean 'SEEDS'?"]),
        (["DATAROOT=/x"], ["unknown variable DATAROOT; did you mean 'DATA_ROOT'?"]),
        (["epochs=1"], ["unknown variable epochs", 'settings go into ARGS="epochs=1"']),
        (["epochs=1", "SEED=5"], ["did you mean 'SEEDS'?", 'settings go into ARGS="epochs=1"']),
    ],
)
def test_what_would_have_no_effect_is_refused(words, messages):
    done = make("digits-resnet20", *words)
    assert done.returncode == 2 and all(message in done.stderr for message in messages)


def test_targets_speak_the_grammar_of_the_commands():
    words = ["digits-resnet20", "OPT=sgd adam", "SEEDS=1 2", "ARGS=epochs=1 batch_size=64"]
    settings = "configs/digits/resnet20.yaml optimizer=sgd,adam seed=1,2 epochs=1 batch_size=64"
    assert last_line(*words) == f".venv/bin/python -m experiments.run {settings}"
    assert last_line(*words, "CLUSTER=slurm") == (
        f".venv/bin/python -m slurm.submit --profile slurm {settings}"
    )
    assert last_line("sweep", "SWEEP=a.yaml") == ".venv/bin/python -m experiments.run a.yaml"
    assert last_line("table6", "DATASET=digits", "CLUSTER=local") == (
        ".venv/bin/python -m slurm.submit --profile local configs/tables/table6.yaml dataset=digits"
    )


def test_help_lists_every_target():
    help_text = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True)
    listed = set(re.findall(r"^  ([a-z0-9-]+) ", help_text.stdout, flags=re.MULTILINE))
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = makefile.rpartition(".PHONY:")[2].split()
    named = {name for name in phony if not name.startswith("$")}
    assert named <= listed


UV = """#!/bin/sh
echo begin >>log
sleep 0.5
echo end >>log
"""


def test_two_makes_in_a_fresh_clone_install_once(tmp_path):
    """The second one waits for the first. What they install with is no uv but notes its calls."""
    clone = tmp_path / "a cloné"
    (clone / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, clone)
    (clone / "bin" / "uv").write_text(UV, encoding="utf-8")
    (clone / "bin" / "uv").chmod(0o755)
    environment = os.environ | {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}"}
    words = ["make", "setup", f"PYTHON={sys.executable}"]
    both = [
        subprocess.Popen(words, cwd=clone, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = "".join(one.communicate(timeout=PATIENCE)[0] for one in both)
    assert [one.returncode for one in both] == [0, 0]
    assert said.count("Installing") == said.count("waiting") == 1
    assert (clone / "log").read_text(encoding="utf-8") == "begin\nend\n"
    assert (clone / ".venv/.ready").exists() and (clone / ".venv/bin/python").exists()
