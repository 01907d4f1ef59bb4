"""What every source of texts says of itself."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from experiments.tasks.text.pipeline import Example, Rules


@dataclass(frozen=True)
class Raw:
    """Raw texts.

    Attributes:
        examples: each a tuple of texts, see `experiments.tasks.text.pipeline`; where the source has
            no splits of its own.
        splits: the examples by split, taken as they are, where it has.
        rules: which of `examples` are kept.
        licence: of the texts.
        versions: of the packages or files that they are from.
    """

    licence: str
    examples: Iterable[Example] = ()
    splits: dict[str, list[Example]] = field(default_factory=dict)
    rules: Rules = Rules()
    versions: dict[str, str] = field(default_factory=dict)
