"""Mistakes of the user, and the exit codes of the commands."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: shown as one message without a traceback, exit code 2."""


def nearest(word: object, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word: the nearest known one, or all of them."""
    known = [str(name) for name in known]
    word = str(word)  # YAML may have had a list there
    key, colon, value = word.partition(":")
    if colon and value and key in known:
        return f"did you mean '{key}: {value}'? YAML wants a space behind the colon"
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130
