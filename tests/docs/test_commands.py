"""What README, CONTRIBUTING and docs/ print works: make targets, modules, paths, names."""

import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
import warnings

import pytest
from docs.pages import PAGES, ROOT, blocks
from support.patience import PATIENCE

from tools.reference import commands


def code(page):
    """The lines of a page that are code: its blocks, and what stands between backticks."""
    text = page.read_text("utf-8")
    for block in blocks(text):
        if block.language in {"", "yaml"}:
            yield from re.sub(r"\\\n\s*", "", block.text).splitlines()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(inline.split()) for inline in re.findall(r"`([^`]+)`", prose))


CODE = {page: list(code(page)) for page in PAGES}


def lines_with(pattern):
    """(page, line) of each command that begins with the pattern, comments and prompts cut off."""
    found = {}
    for page, lines in CODE.items():
        for line in lines:
            for command in re.split(r"\s+#\s|&&|\|", line):
                if match := re.search(rf"(?:^|(?<=\s)){pattern}.*", command.strip()):
                    found[match.group()] = page.name
    return [pytest.param(command, id=f"{page}: {command}") for command, page in found.items()]


@pytest.mark.parametrize("command", lines_with(r"make [a-z]"))
def test_make_command_works_as_printed(command):
    """`make -n` knows the target and accepts its variables."""
    words = [word for word in shlex.split(command) if word != "..."]
    result = subprocess.run(
        [words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr


def test_pages_with_python_commands_say_how_to_get_there():
    """`python -m ...` needs the environment: said on the page, or on the one about the harness."""
    for page, lines in CODE.items():
        if any(re.match(r"python -m (experiments|slurm)", line) for line in lines):
            text = page.read_text("utf-8")
            assert "source .venv/bin/activate" in text, f"{page.name} does not say it"


def modules():
    found = {}
    for page, lines in CODE.items():
        for line in lines:
            for match in re.finditer(
                r"python -m ((?:experiments|slurm|tools)[\w.]*)([^#|&]*)", line
            ):
                flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", match[2]))
                found.setdefault(match[1], {}).update(dict.fromkeys(flags, page.name))
    return found


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_exists_and_has_the_printed_options(module, capsys, monkeypatch):
    assert importlib.util.find_spec(module), f"no module {module}"
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
        warnings.simplefilter("ignore")  # it may have been imported already
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not end.value.code
    text = capsys.readouterr().out
    missing = {flag: page for flag, page in MODULES[module].items() if flag not in text}
    assert not missing, f"{module} --help does not know {missing}"


def test_modules_are_found():
    assert "experiments.run" in MODULES and len(MODULES) > 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_names_of_ours_exist(page):
    """Such as `experiments/run.py`, `configs/tables/`, `adahessian.AdaHessian`."""
    missing = []
    for line in CODE[page]:
        for path in re.findall(
            r"(?<![\w/.-])(?:adahessian|experiments|slurm|tests|configs|tools|docs)/[\w./-]*", line
        ):
            if not re.search(r"[A-Z]{4}", path) and not (ROOT / path.rstrip(".")).exists():
                missing.append(path)
        for name in re.findall(
            r"(?<![\w/.@-])(?:adahessian|experiments|slurm|tools)(?:\.[A-Za-z_]\w*)+", line
        ):
            if not name.endswith((".md", ".py", ".yaml")) and not exists(name):
                missing.append(name)
    assert not missing


def exists(name):
    """Whether a dotted name is a module, or an attribute of one."""
    module, attributes = name, []
    while module:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found:
            break
        module, _, last = module.rpartition(".")
        attributes.insert(0, last)
    value = importlib.import_module(module) if attributes else None
    for attribute in attributes:
        if not hasattr(value, attribute):
            return False
        value = getattr(value, attribute)
    return True


def test_every_command_has_a_docstring_that_names_it():
    for module, text in commands():
        assert text.split("\n")[0], module
