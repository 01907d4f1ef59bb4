"""What wandb is told of a run: its id, name, group, tags and configuration."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from experiments.plans.differences import changes

NAME_LIMIT, TAG_LIMIT = 110, 64  # characters; wandb takes 128 of a name, with the seed


def describe(directory: Path, meta: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What a run is called and configured by, as arguments of `wandb.init`.

    The id is made of what stays the same over all sessions of a run's directory, and differs
    where a directory was removed and trained anew, or trained by two people. The name has whatever
    sets the run apart from its experiment's file, so that the runs of a sweep are told apart.
    """
    first, latest = meta["sessions"][0], meta["sessions"][-1]
    optimizer = meta["optimizer"]
    identity = json.dumps([directory.parts[-4:], first.get("started"), first.get("host")])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    changed = changes(meta, config)
    label = " ".join([optimizer, *(f"{key}={value}" for key, value in changed.items())])
    return {
        "id": re.sub(r"[^\w-]", "-", f"{optimizer}-s{meta['seed']}-{digest}"),
        "name": f"{_cut(label, NAME_LIMIT)} seed {meta['seed']}",
        "group": "-".join([meta["dataset"], meta["model"], optimizer, meta["signature"]]),
        "job_type": "train",
        "tags": [_cut(tag, TAG_LIMIT) for tag in (meta["dataset"], meta["model"], optimizer)],
        "notes": latest.get("command"),
        "config": {
            **{key: value for key, value in config.items() if key != "optimizers"},
            "optimizer": {"name": optimizer, **config["optimizers"][optimizer]},
            "changed": changed,
            "signature": meta["signature"],
            "protocol": meta["protocol"],
            "parameters": meta.get("parameters"),
            "session": latest,  # commit, versions, device
        },
    }


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
