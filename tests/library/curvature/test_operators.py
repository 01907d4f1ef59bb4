"""Every operator that torch can differentiate: smooth, frozen, or refused with a warning.

``operators.txt`` is the table, a line for each operator of torch's registry: its class, and places
at which the two ways to H·z are not compared, with the reason. "none": nothing can be compared, for
want of a real output or of a second derivative.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from support.nightly import NIGHTLY
from support.torch_operators import PLACES, compare, differentiable, samples_of

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's of its samples

OPERATORS = differentiable()
FILE = Path(__file__).with_name("operators.txt")


def read_table():
    table = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, kind, *rest = line.split(maxsplit=2)
        places = rest[0].split(":")[0].split(",") if rest else []
        table[name] = (kind, set(PLACES) if places == ["all"] else set(places))
    return table


TABLE = read_table()
# torch's second derivatives that no difference of gradients confirms, and the reason.
NOT_A_DIFFERENCE = {
    "linalg.norm.subgradients_at_zero": "at a kink by intent",
    "nn.functional.cosine_embedding_loss": "its samples have targets for parameters",
    "nn.functional.hinge_embedding_loss": "its samples have targets for parameters",
}


@pytest.mark.skipif(
    torch.__version__ < torch.torch_version.TorchVersion("2.15"), reason="the table is of 2.15"
)
def test_every_operator_is_classified():
    """A new one in a new torch is a failure here, not silence."""
    assert not OPERATORS.keys() - TABLE.keys(), "classify these in operators.txt"


def test_the_table_counts_what_the_docs_say():
    docs = Path(__file__).parents[3] / "docs" / "curvature.md"
    counts = Counter(kind for kind, _ in TABLE.values())
    text = " ".join(docs.read_text(encoding="utf-8").split())
    for kind in ("smooth", "frozen", "refused"):
        assert f"{counts[kind]} {kind}" in text, counts


def check(name, number):
    kind, skipped = TABLE[name]
    for sample in samples_of(OPERATORS[name], number):
        for place in PLACES.keys() - skipped:
            found = compare(OPERATORS[name], sample, place)
            if found is None:
                continue
            if found.refused:
                assert kind == "refused", found.refused
                continue
            assert found.finite_difference < 2e-3, (place, found)
            assert kind != "smooth" or not found.frozen, (place, found)
            if place == "sample" and name not in NOT_A_DIFFERENCE:
                assert not found.double_backward > 2e-3, found


WITH_PIECES = sorted(n for n in OPERATORS if TABLE.get(n, "?")[0] == "frozen")


@pytest.mark.parametrize("name", WITH_PIECES[::8])
def test_some_operators_with_pieces(name):
    check(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPERATORS.keys() & TABLE.keys()))
def test_all_operators(name):
    check(name, 5 if NIGHTLY else 2)
