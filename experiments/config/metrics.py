"""What a metric is called, which way is better, and how it is shown.

A task declares its metrics once; a run's `meta.json` holds them. Status, tables, plots, the page
and wandb read them from there and know nothing else about any metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One number that a task measures on a split.

    Attributes:
        name: as in the rows of `metrics.jsonl`, behind `train/`, `val/` or `test/`.
        direction: whether a smaller or a larger value is better.
        unit: of the value as it is shown; empty where there is none.
        scale: a recorded value times this is the value as it is shown.
        digits: decimals of the value as it is shown.
        bounds: what a recorded value cannot leave, as an interval drawn around it must not either;
            None where there is none.
        log: whether its axis is logarithmic, because ratios count.

    Raises:
        ValueError: one of these is nothing of the kind. A direction such as "maximize" would make
            the worst epoch the best, and others would fail when a result is shown.
    """

    name: str
    direction: Literal["min", "max"]
    unit: str = ""
    scale: float = 1
    digits: int = 4
    bounds: tuple[float, float] | None = None
    log: bool = False

    def __post_init__(self) -> None:
        for key, fits, wanted in (
            ("name", isinstance(self.name, str) and self.name != "", "a text"),
            ("direction", self.direction in ("min", "max"), '"min" or "max"'),
            ("unit", isinstance(self.unit, str), 'a text, "" for none'),
            ("scale", _is_number(self.scale) and 0 < self.scale < math.inf, "a number above 0"),
            ("digits", type(self.digits) is int and self.digits >= 0, "a whole number, 0 or more"),
            ("bounds", _are_bounds(self.bounds), "(lowest, highest), or None"),
        ):
            if not fits:
                raise ValueError(
                    f"the metric {self.name!r} has {key}={getattr(self, key)!r}: write {wanted}"
                )

    @property
    def title(self) -> str:
        """The name and the unit, as an axis shows them."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def sign(self) -> int:
        """1 where larger is better, else -1: `sign * value` is always to be maximized."""
        return 1 if self.direction == "max" else -1

    @property
    def difference_unit(self) -> str:
        """What a difference of two values as they are shown is in; empty where there is no unit."""
        return "percentage points" if self.unit == "%" else self.unit

    def clipped(self, interval: tuple[float, float]) -> tuple[float, float]:
        """An interval of recorded values within the metric's bounds."""
        if self.bounds is None:
            return interval
        low, high = interval
        return max(low, self.bounds[0]), min(high, self.bounds[1])

    def text(self, value: float) -> str:
        """A recorded value as it is shown, without its unit."""
        shown = self.scale * value
        # Of a perplexity that has diverged, hundreds of digits would say nothing.
        return f"{shown:.3g}" if 1e15 <= abs(shown) < math.inf else f"{shown:.{self.digits}f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_bounds(value: Any) -> bool:
    if value is None:
        return True
    pair = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    return pair and value[0] < value[1]


LOSS = Metric("loss", "min")
ACCURACY = Metric("accuracy", "max", unit="%", scale=100, digits=2, bounds=(0.0, 1.0))

# Runs of earlier versions, those in `results/` among them, recorded names and directions alone.
_OF_EARLIER_VERSIONS = {metric.name: metric for metric in (LOSS, ACCURACY)}


def dump(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """The metrics as `meta.json` holds them."""
    return [asdict(metric) for metric in metrics]


def result_key(meta: Mapping[str, Any]) -> str:
    """The key of a run's result in its rows: `test/accuracy`, say.

    Raises:
        KeyError, TypeError: its `meta.json` names no headline.
    """
    headline = meta["headline"]
    return f"{meta.get('result_split', 'test')}/{headline}"


def read(meta: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics that a run's `meta.json` declares, by name.

    Raises:
        KeyError, TypeError, ValueError: it declares none, or in no known form.
    """
    declared = meta["metrics"]
    if isinstance(declared, Mapping):
        return {
            name: _OF_EARLIER_VERSIONS.get(name, Metric(name, direction))
            for name, direction in declared.items()
        }
    return {fields["name"]: _metric(fields) for fields in declared}


def _metric(fields: Mapping[str, Any]) -> Metric:
    """A metric from JSON, which has lists for tuples."""
    plain: dict[str, Any] = dict(fields)
    if plain.get("bounds"):
        low, high = plain["bounds"]
        plain["bounds"] = (low, high)
    return Metric(**plain)
