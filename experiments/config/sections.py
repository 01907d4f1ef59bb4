"""The base of every section of a configuration, and the errors of its validation.

A YAML file describes an experiment (dataset x model) with its optimizers side by side.
`experiments.plans.load.load` reads it, applies `key.path=value` overrides and validates it by the
`Config` of its task; `resolve` picks one optimizer and one seed. The result is again a `Config`,
with a single optimizer, so a run's own `config.yaml` is a configuration file like any other.

Two rules for whoever adds a key, to `experiments.config.experiment` or to a task's `config.py`:

- A key of the first version (of the harness, or of a new task) has no default: the files are
  complete. A key added later has one, and that default must be the value that reproduces what was
  done before the key existed: the signature (`experiments.config.signature`) leaves out every key
  that equals its default, so finished runs keep their directories. Such a default must never change
  afterwards.
- A key that cannot change a result (where, how fast, how often it is saved) belongs to
  `WITHOUT_EFFECT`, and so never enters the signature.

The text below a key is its description, in the documentation too.
"""

from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from experiments.errors import UserError, nearest

# ------------------------------------------------------------------------------------- schema

LARGEST = 2**63 - 1  # what torch takes as a whole number
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
NotNegative = Annotated[int, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """Base of every section: no unknown key, no silent conversion (`"1"` is not 1), immutable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if isinstance(values, dict) and cls.model_config["extra"] == "forbid":
            for key in values:
                if key not in cls.model_fields:
                    refuse(f"unknown key '{key}'; {nearest(str(key), cls.model_fields)}")
        return values


def refuse(message: str) -> NoReturn:
    """Refuse a value inside a validator, with pydantic's key path but without its preamble."""
    raise PydanticCustomError("refused", "{message}", {"message": message})


# ------------------------------------------------------------------------------------ reading


def validate(schema: type[Section], document: Any, path: Path) -> Any:
    """A document as an instance of its schema.

    Raises:
        UserError: naming the file, each offending key path, its value and what is allowed.
    """
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        # An error about a mapping does not repeat the whole mapping.
        value = "" if isinstance(item["input"], dict) else f" = {item['input']!r}"
        # In brackets: a mapping's key, and which of several sections one is.
        where = ".".join(part for part in map(str, item["loc"]) if part[:1] + part[-1:] != "[]")
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{where}{value}: {message}" if where else message)
    return lines[0] if len(lines) == 1 else "\n  ".join(["", *lines])
