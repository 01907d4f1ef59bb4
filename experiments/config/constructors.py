"""What a dotted path in a configuration names, and the arguments that it takes."""

import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.errors import UserError, nearest

# What the data know and a constructor may ask for, under the names that are in use.
CLASSES = ("num_classes", "classes", "n_classes", "num_labels")
# What a constructor raises of arguments that it does not take.
# The last one: weights that cannot be fetched, a file that is not there.
REFUSALS = (
    TypeError, ValueError, RuntimeError, LookupError, AssertionError, ArithmeticError, OSError,
    AttributeError,
)  # fmt: skip
# What people write for a truth value, and YAML 1.2 reads as a text.
TRUTHS = ("yes", "no", "on", "off", "y", "n", "true", "false")
CHANNELS = ("in_channels", "in_chans", "channels", "num_channels")


def load(path: str, where: str) -> Callable[..., Any]:
    """Import what a dotted path names.

    Raises:
        UserError: there is nothing of that name, or it cannot be called.
    """
    try:
        found = find(path)
    except ImportError as error:
        raise UserError(f"{where} '{path}' cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{where} '{path}' is neither a class nor a function")
    return found


def find(path: str) -> Any:
    """What a dotted path names.

    Raises:
        ImportError: there is nothing of that name, or `module` raises it.
    """
    place, _, name = path.rpartition(".")
    if not place:
        raise ImportError("write it with the module that it is in, as in torch.optim.SGD")
    found = _module_or_class(place)
    try:
        return getattr(found, name)
    except AttributeError as error:
        raise ImportError(str(error)) from error


def _module_or_class(path: str) -> Any:
    """A module, or a class in one: its methods are constructors, too."""
    outer, _, name = path.rpartition(".")
    if outer and name[:1].isupper() and hasattr(owner := module(outer), name):
        return getattr(owner, name)
    return module(path)


def module(path: str) -> Any:
    """Import a module.

    Raises:
        ImportError: it cannot be imported, whatever it raises; in one line with the place.
    """
    if not all(part.isidentifier() for part in path.split(".")):
        raise ImportError("no dotted path, such as torch.optim.SGD")
    try:
        return importlib.import_module(path)
    except Exception as error:
        said = " ".join(str(error).split())
        if not isinstance(error, ImportError) or not said:
            said = f"{type(error).__name__}: {said}".rstrip(": ")
        ours = (__file__, importlib.__file__, "<frozen importlib")
        frames = [frame for frame in traceback.extract_tb(error.__traceback__)
                  if not frame.filename.startswith(ours)]  # fmt: skip
        if frames:
            said += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
        raise ImportError(said) from error


def names(constructor: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """The arguments that can be given by name, each with whether it must be; whether any can."""
    parameters = inspect.signature(constructor).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {p.name: p.default is p.empty for p in parameters if p.kind in by_name}
    return found, any(p.kind is p.VAR_KEYWORD for p in parameters)


def own_name(path: str, name: str, where: str) -> dict[tuple[str, ...], str]:
    """A section's `name`, to be offered to a constructor that cannot do without one.

    `torchvision.models.get_model` is such a one; to others the name of a folder means nothing.
    """
    known, _ = names(load(path, f"{where}.constructor"))
    return {("name",): name} if name and known.get("name") else {}


def check(
    path: str, given: Mapping[str, Any], where: str, offered: tuple[tuple[str, ...], ...] = ()
) -> None:
    """Refuse arguments that a constructor does not take, as far as its signature says.

    That is their names, and texts where it wants something else (`meant_otherwise`).

    Args:
        path: of the constructor.
        given: the arguments.
        where: the configuration's key, for the message.
        offered: names of what is given besides, where it is asked for.

    Raises:
        UserError: naming the argument, and the nearest that there is.
    """
    known, open_ended = names(load(path, f"{where}.constructor"))
    for key, value in given.items():
        if key not in known and not open_ended:
            raise UserError(
                f"{where}: unknown key '{key}', no argument of {path}; {nearest(key, known)}"
            )
        if said := meant_otherwise(path, key, value):
            raise UserError(f"{where}.{key} = {value!r}: {said}")
    ours = {name for aliases in offered for name in aliases}
    for name, needed in known.items():
        if needed and name not in given and name not in ours:
            raise UserError(f"{where}.{name} is missing: {path} needs it")


def meant_otherwise(path: str, key: str, value: Any) -> str:
    """What to write instead of a text that an argument does not mean; empty for all else.

    Nobody's code would notice: `no`, which YAML 1.1 reads as false, is true to Python's `if`, and
    so is `None`, which YAML has no such word for.
    """
    if not isinstance(value, str):
        return ""
    if value == "None":
        return "a text to YAML; write null"
    parameter = inspect.signature(load(path, "constructor")).parameters.get(key)
    if parameter is None:
        return ""
    told, default = str(parameter.annotation), parameter.default
    if re.search(r"\bstr\b", told):
        return ""
    takes_truth = isinstance(default, bool) or re.search(r"\bbool\b", told)
    if takes_truth and value.lower() in TRUTHS:
        return f"{path} takes a truth value here; write true or false"
    if not takes_truth and isinstance(default, int | float) and _reads_as_number(value):
        return f"{path} takes a number here, and this is a text; write it as in 1000 or 1e-3"
    return ""


def _reads_as_number(text: str) -> bool:
    """Whether a text is a number to Python, or to YAML 1.1: `1_000`, `0x10`, "1e-3"."""
    for read in (float, lambda text: int(text, 0)):
        try:
            read(text)
        except ValueError:
            continue
        return True
    return False


def call(
    path: str, given: Mapping[str, Any], where: str, offered: Mapping[tuple[str, ...], Any]
) -> Any:
    """Call a constructor with what is given, and with what it asks for of what is offered.

    One that takes any name, and hands it on, is offered the first of each.

    Raises:
        UserError: it refuses, in one line with the place.
    """
    check(path, given, where, tuple(offered))
    constructor = load(path, f"{where}.constructor")
    known, open_ended = names(constructor)
    asked = dict(given)
    for aliases, value in offered.items():
        if not any(name in given for name in aliases):
            taken = [name for name in aliases if name in known] or list(aliases[:1]) * open_ended
            asked |= {name: value for name in taken[:1]}
    try:
        return constructor(**asked)
    except REFUSALS as error:
        raise UserError(f"{where}: {refusal(path, asked, error)}") from error


def refusal(path: str, given: Mapping[str, Any], error: Exception) -> str:
    """Say in one line what a constructor did not take, and where it says so."""
    return f"{path} refuses {_words(given)}: {raised(error)}"


def raised(error: Exception) -> str:
    """What an error of others' code says, in one line with its place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split()) or type(error).__name__
    return f"{said} ({Path(place.filename).name}, line {place.lineno})"


def is_said_by(package: ModuleType, error: Exception) -> bool:
    """Whether a package refuses something in words of its own."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    inside = Path(last.filename).is_relative_to(Path(package.__path__[0]))
    return inside and (last.line or "").startswith("raise ")


def is_said(error: Exception) -> bool:
    """Whether others' code refuses a value in words of its own, rather than stumbles over it."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return isinstance(error, TypeError | ValueError) and line.lstrip().startswith("raise ")


def _words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
