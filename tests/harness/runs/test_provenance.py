import shlex
import sys

import torch

from experiments.runs import provenance


def test_a_command_can_be_given_again(monkeypatch):
    words = ["my lab/vit.yaml", "model={constructor: mylab.vit.ViT}", "seed=1-3"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    for variable, job in ({}, None), ({"SLURM_JOB_ID": "12"}, "12"):
        for name, value in variable.items():
            monkeypatch.setenv(name, value)
        session = provenance.session(torch.device("cpu"))
        assert session["job"] == job
        assert shlex.split(session["command"]) == ["python", "-m", "experiments.run", *words]
