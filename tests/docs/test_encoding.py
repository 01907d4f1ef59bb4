"""Text is UTF-8 wherever the harness runs: ruff's rule sees only what it knows to be a path."""

import ast

import pytest

from tools.import_graph import ROOT

FILES = [path for room in ("experiments", "slurm", "tools") for path in (ROOT / room).rglob("*.py")]


def says_no_encoding(call):
    """Whether a call reads or writes text as the machine's locale has it."""
    keys = {keyword.arg for keyword in call.keywords}
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if name in ("read_text", "write_text"):
        return "encoding" not in keys and "utf-8" not in texts
    if name in ("run", "Popen", "check_output"):
        return "text" in keys and "encoding" not in keys
    modes = [text for text in texts if set(text) <= set("rwaxtb+")]
    of_others = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in (
        "os", "Image", "gzip", "wandb",
    )  # fmt: skip
    if name != "open" or of_others or any("b" in mode for mode in modes):
        return False
    return "encoding" not in keys


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_has_its_encoding(path):
    calls = (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call))
    assert [call.lineno for call in calls if says_no_encoding(call)] == []
