"""Which runs a command line asks for."""

from collections.abc import Sequence

from experiments.config.experiment import Config
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError
from experiments.plans.load import load, resolve


def select(path: str, settings: Sequence[str]) -> list[Config]:
    """The resolved configurations that a command line asks for, optimizer by optimizer."""
    chosen = {"optimizer": None, "seed": None}
    overrides = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in chosen:
            chosen[key] = [item.strip() for item in value.split(",")]
        else:
            overrides.append(setting)
    config = load(path, overrides)
    names = chosen["optimizer"] or list(config.optimizers)
    if chosen["optimizer"] is None and len(names) > 1:
        raise UserError(f"which optimizer? add optimizer=NAME[,NAME] with {', '.join(names)}")
    seeds = [_seed(text) for text in chosen["seed"]] if chosen["seed"] else [config.seed]
    return [resolve(config, name, seed) for name in names for seed in seeds]


def _seed(text: str) -> int:
    seed = read_yaml(text)
    if type(seed) is not int or seed < 0:
        raise UserError(f"seed = '{text}': must be a whole number, 0 or more")
    return seed
