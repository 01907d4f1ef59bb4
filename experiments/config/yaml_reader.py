"""YAML by the rules of version 1.2 for plain scalars; a repeated key is an error.

Read and written alike: what PyYAML writes by the rules of 1.1, its own reading of a text such as
`5e-4`, is a number here.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import UserError


class _Rules(yaml.constructor.SafeConstructor):
    """YAML with the 1.2 rules for plain scalars, and no repeated key.

    By the 1.1 rules, which PyYAML follows, `5e-4` is a string, `no` is False, `010` is 8 and `1:30`
    is 90. Of 1.1 there is the key `<<`, without which an anchor is of little use: the keys of
    another mapping, of which the own ones win.
    """

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [
            "<<" if key.tag == _MERGE else self.construct_object(key, deep=True)
            for key, _ in node.value
        ]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        """A text of whole characters: JSON, which is YAML, spells an emoji as two halves."""
        value = super().construct_scalar(node)
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            said = f"{value!r} has half a character (a surrogate)"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from None


class _Loader(_Rules, yaml.SafeLoader):
    """Decides what YAML is, and says what is wrong with a text."""


_libyaml: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _FastLoader(_Rules, _libyaml):
    """libyaml, where PyYAML was built with it: a report of 2,000 runs need not wait for them.

    It differs in what `_BOTH` leaves out (tabs, tags, marks of byte order), and refuses `[a:]`.
    """


_BOTH = re.compile(r"""[\w \n:\[\]{},.'"~+<=()/-]*""")


class _Dumper(yaml.SafeDumper):
    """Puts texts into quotes that `_Loader` would take for something else."""


_MERGE = "tag:yaml.org,2002:merge"
for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    for _side in (_Loader, _FastLoader, _Dumper):
        _side.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^({_pattern})$"), _first
        )


def read_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        UserError: it is no valid YAML.
    """
    if _BOTH.fullmatch(text):
        with suppress(yaml.YAMLError, ValueError, RecursionError):
            return yaml.load(text, _FastLoader)
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {_one_line(error)}") from None
    except ValueError as error:  # a number of too many digits
        raise UserError(f"not valid YAML: {error}") from None
    except RecursionError:
        raise UserError("not valid YAML: it is nested too deeply") from None


def write_yaml(value: Any) -> str:
    """Plain values as a text that `read_yaml` reads as the same values, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _one_line(error: yaml.YAMLError) -> str:
    """What is wrong, and where, without the excerpt."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        context = f" {error.context}" if error.context else ""
        return f"{where}{error.problem}{context}"
    return " ".join(str(error).split()).replace(' in "<unicode string>",', "")


def read_yaml_file(path: Path) -> Any:
    """Parse a YAML file, which is UTF-8 wherever it is read.

    Raises:
        UserError: naming the file, which is no YAML or no UTF-8.
        OSError: it cannot be read.
    """
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
