"""Every key of every task's configuration, with its type and default, against a committed list.

A key that goes, or whose default changes, breaks people's files and the directories of finished
runs: `experiments.config.sections` has the rules. After a change that is meant:

    python tests/harness/config/test_keys.py
"""

import difflib
import inspect
import sys
import types
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

REPOSITORY = Path(__file__).parents[3]
KEYS = Path(__file__).with_name("keys.txt")


def lines():
    """`task: key.path: type = default`, sorted."""
    from experiments.tasks import registry

    return sorted(
        f"{task}: {line}" for task in registry.TASKS for line in keys(registry.config_class(task))
    )


def keys(section, prefix=""):
    for name, field in section.model_fields.items():
        default = "" if field.is_required() else f" = {field.default!r}"
        found = find_sections(field.annotation)
        if not found:
            yield f"{prefix}{name}: {text(field.annotation)}{default}"
        elif not field.is_required() and not isinstance(field.default, BaseModel):
            kinds = " | ".join(kind.__name__ for kind, _ in found)
            yield f"{prefix}{name}: {kinds} or absent{default}"
        for kind, end in found:
            choice = f"[{kind.__name__}]" if len(found) > 1 else ""
            yield from keys(kind, f"{prefix}{name}{choice}{end}.")


def find_sections(annotation):
    """The sections in an annotation, each with what its path has behind the key."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return [(kind, ".<name>") for kind, _ in find_sections(arguments[1])]
    if origin is list:
        return [(kind, ".<n>") for kind, _ in find_sections(arguments[0])]
    if origin is typing.Annotated:
        return find_sections(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return [found for argument in arguments for found in find_sections(argument)]
    return []


def text(annotation):
    """A type without the checks of its values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is types.NoneType:
        return "None"
    if origin is typing.Annotated:
        return text(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(text, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(text, arguments))}]"
    return getattr(annotation, "__name__", str(annotation))


def test_the_keys_are_those_of_the_list():
    difference = list(difflib.unified_diff(KEYS.read_text().splitlines(), lines(), lineterm=""))
    if difference:
        pytest.fail("\n".join([*difference, "", __doc__.split("\n\n", 1)[1]]), pytrace=False)


def test_every_key_of_every_task_is_described():
    """By the text below it: the documentation's reference is made of these."""
    from experiments.tasks import registry

    def undescribed(section, prefix=""):
        for name, field in section.model_fields.items():
            if not field.description:
                yield f"{section.__name__}.{name}"
            for kind, _ in find_sections(field.annotation):
                yield from undescribed(kind)

    for task in registry.TASKS:
        assert not list(undescribed(registry.config_class(task)))


def test_a_new_a_lost_and_a_changed_key_are_noticed(tmp_path, monkeypatch):
    here = lines()
    changed = [line.replace("k: int = 5", "k: int = 4") for line in here[1:]]
    (tmp_path / "keys.txt").write_text("\n".join([*changed, "x: new: int"]) + "\n")
    monkeypatch.setattr(sys.modules[__name__], "KEYS", tmp_path / "keys.txt")
    with pytest.raises(pytest.fail.Exception) as caught:
        test_the_keys_are_those_of_the_list()
    shown = str(caught.value).splitlines()
    assert f"+{here[0]}" in shown and "-x: new: int" in shown
    assert "+image_classification: spectrum.k: int = 5" in shown


def test_loading_a_schema_imports_no_torch():
    import subprocess

    script = (
        "import sys\n"
        "from experiments.config import signature\n"
        "from experiments.plans import load\n"
        "from experiments.tasks import registry\n"
        "[registry.config_class(name) for name in registry.TASKS]\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    KEYS.write_text("\n".join(lines()) + "\n")
    print(f"{KEYS.relative_to(REPOSITORY)}: {len(lines())} keys")
