"""A griffe extension: what is reStructuredText in our docstrings, as Markdown."""

import re

import griffe

_RULES = (
    (re.compile(r":(?:mod|class|func|meth|attr):`~?([^`]+)`"), r"`\1`"),  # :func:`name`
    (re.compile(r"^[ \t]*\.\. code-block:: \w+\n", re.MULTILINE), ""),
    (re.compile(r"::$", re.MULTILINE), ":"),  # what announces an indented block
)


class Markdown(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object that was loaded."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring's text with roles as code and blocks that Markdown knows."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
