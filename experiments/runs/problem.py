"""The identity of a run's problem: what runs must share for their results to be compared.

The protocol (a hash of the settings that optimizers share), the data, and the result as the task
declares it: headline, split, direction, unit and scale. An own task can change any of these, and
data can change below DATA_ROOT, with no change to a run's signature. What the files of a run do
not say, because an earlier version wrote them, agrees with anything.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from experiments.config import metrics
from experiments.runs import data

Item = TypeVar("Item")

# Data that are meant to be others have other settings here.
OF_DATA = ("dataset", "init_from")


def identity(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's `meta.json` says of its problem, by name; without what it does not say.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is damaged.
    """
    headline = metrics.read(meta)[meta["headline"]]
    found: dict[str, Any] = {
        "protocol": meta["protocol"],
        "headline": headline.name,
        "split": metrics.result_key(meta).partition("/")[0],
        "direction": headline.direction,
    }
    if not isinstance(meta["metrics"], Mapping):  # which has names and directions alone
        found |= {"unit": headline.unit, "scale": headline.scale}
    if isinstance(known := meta.get(data.KEY), Mapping):
        found["data"] = dict(known)
    return found


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are equal in all that both say."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def sort(
    items: Sequence[Item], identities: Sequence[Mapping[str, Any]]
) -> list[tuple[dict[str, Any], list[Item]]]:
    """Sort items by their problem, each with its identity, in the order of their first items.

    An item whose identity leaves something open is among the first that it agrees with.
    """
    found: list[tuple[dict[str, Any], list[int]]] = []
    for place in sorted(range(len(items)), key=lambda place: -len(identities[place])):
        mine = dict(identities[place])
        for known, places in found:
            if agree(known, mine):
                known.update(mine)
                places.append(place)
                break
        else:
            found.append((mine, [place]))
    found = [(known, sorted(places)) for known, places in found]
    found.sort(key=lambda one: one[1][0])
    return [(known, [items[place] for place in places]) for known, places in found]


def apart(
    items: Sequence[Item], metas: Sequence[Mapping[str, Any]], configs: Sequence[Mapping[str, Any]]
) -> list[tuple[Item, str]]:
    """Of the runs of one plan, those that must not be compared with the others, each with why.

    A plan may change the protocol, and name several data sets. Of runs that name the same one, the
    problem that most of them have is the plan's.

    Args:
        items: of each run, whatever stands for it.
        metas, configs: contents of its `meta.json` and its configuration.
    """
    named: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        mark = json.dumps([config.get(key) for key in OF_DATA], sort_keys=True, default=str)
        named.setdefault(mark, []).append(place)
    found = []
    for places in named.values():
        own = [identity(metas[place]) for place in places]
        for one in own:
            del one["protocol"]
        problems = sort(places, own)
        known, _ = most = max(problems, key=lambda problem: len(problem[1]))
        for other, members in problems:
            if members is most[1]:
                continue
            why = f"not comparable: {words(other, [known])}, the others {words(known, [other])}"
            found += [(items[place], why) for place in members]
    return found


def words(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """In what an identity differs from others, in words: `data 0123456789abcdef, scale 1`."""
    differing = [
        key for key in own if any(key in other and other[key] != own[key] for other in others)
    ]
    return ", ".join(f"{key} {_text(key, own[key], others)}" for key in differing)


def _text(key: str, value: Any, others: Sequence[Mapping[str, Any]]) -> str:
    if key != "data":
        return str(value) or "none"
    digests = [other[key].get("digest") for other in others if other.get(key, value) != value]
    own = value.get("digest")
    return data.words(value) if own is None or own in digests else str(own)


def mark(known: Mapping[str, Any]) -> str:
    """Eight hex digits of an identity's hash, for names of files."""
    text = json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
