"""Settings by their dotted path, `{"schedule.factor": 0.1}`, and the defaults of keys."""

import importlib
import inspect
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from experiments.config.optimizers import Optimizer

LONGEST = 100  # characters of a value, as it is shown
MISSING = object()  # the value of a key that is neither set nor has a default


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shown(value: Any) -> str:
    """A value in one line: what cannot be printed is spelt out, and what is long is cut off."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


@cache
def schema_defaults(schema: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a schema's keys and of the sections in it, flat."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            found |= flatten({name: value})
        else:  # of a choice between sections, a key means the same in each of them
            for section in _sections(field.annotation):
                inner = schema_defaults(section)
                found |= {f"{name}.{key}": value for key, value in inner.items()}
    return found


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section that an annotation is, or those of a choice."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _sections(argument)


@cache
def optimizer_defaults(constructor: str | None) -> dict[str, Any]:
    """The defaults of an optimizer's keys, flat; the schema's alone where it is not installed."""
    module, _, name = (constructor or "").rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except Exception:  # whatever importing others' code raises, a label is not worth an error
        parameters = {}
    arguments = {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in parameters.items()
        if p.default is not inspect.Parameter.empty and name not in Optimizer.model_fields
    }
    return arguments | schema_defaults(Optimizer)
