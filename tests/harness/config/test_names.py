"""Names that become folders, and files that are not what they seem."""

import codecs

import pytest
from support.harness import DIGITS

from experiments.errors import UserError
from experiments.plans import paper_tables, sweeps
from experiments.plans.load import load, resolve
from experiments.runs import layout

TEXT = DIGITS.read_text(encoding="utf-8")


def with_optimizer(tmp_path, name):
    path = tmp_path / "file.yaml"
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    path.write_text(TEXT.replace("\n  sgd:", f'\n  "{quoted}":'), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "~", "a/b", "sgd/nesterov", "a\\b", "a*", "a?", "[a]", "a\nb",
     "a\tb", " a", "a ", "a.", "a|b", "a:b", "$HOME", "x" * 101],
)  # fmt: skip
def test_a_name_that_is_no_folder_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"names a folder: letters, digits and"):
        load(with_optimizer(tmp_path, name))


@pytest.mark.parametrize(
    "name", ["a", "adahessian-fd", "lr=0.1", "sgd (nesterov)", "größer", "x" * 100]
)
def test_a_name_that_is_one_is_found_again(name, tmp_path):
    config = resolve(load(with_optimizer(tmp_path, name)), name, 1)
    place = tmp_path / layout.path_of(config)
    place.mkdir(parents=True)
    assert layout.find(tmp_path) == layout.find_seeds(tmp_path, config) == [place]


@pytest.mark.parametrize("name", ["../sweeps/digits", "", ".", "x/../../y"])
def test_a_name_of_a_sweep_or_table_is_no_path(name):
    with pytest.raises(UserError, match="no sweep '"):
        sweeps.find(name)
    with pytest.raises(UserError, match="no table '"):
        paper_tables.find(name, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "is not UTF-8"),
        ("# größer\n".encode("latin-1") + TEXT.encode(), "is not UTF-8: invalid .* at byte 4"),
        (b"\0" * 100, "not valid YAML"),
        (b"", "holds no mapping of keys"),
        (b"- 1", "holds no mapping of keys"),
        (TEXT.replace("torch.optim.SGD", "torch.optim").encode(), "'torch.optim' is no class"),
        (TEXT.replace("torch.optim.SGD", "torch.optim.sgd.").encode(), "cannot be imported"),
    ],
)
def test_a_file_of_another_kind_is_one_line(content, message, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "file.yaml" in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_bytes(codecs.BOM_UTF8 + TEXT.encode())
    assert load(path) == load(DIGITS)
