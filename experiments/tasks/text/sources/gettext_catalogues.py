"""Messages and their translations, from gettext's two kinds of files."""

import re
import struct
from collections.abc import Iterator
from typing import IO

from experiments.errors import UserError
from experiments.tasks.text.pipeline import Example

_ACCELERATOR = re.compile(r"[_~](?=\w)")  # before the letter of a menu's entry that calls it


def read_catalogue(file: IO[bytes], name: str) -> Iterator[Example]:
    """Translation and message, singular and plural apart; what is not translated is left out.

    Args:
        file: compiled if `name` contains ".mo", else as translators write it.
        name: for the message of an error.

    Raises:
        UserError: it is damaged, or not in the encoding that it says.
    """
    from babel.messages.mofile import read_mo
    from babel.messages.pofile import PoFileError, read_po

    try:
        if ".mo" in name.split(" ")[0]:
            catalogue = read_mo(file)
        else:
            catalogue = read_po(file, abort_invalid=True)
        messages = list(catalogue)
    except (OSError, ValueError, LookupError, struct.error, PoFileError) as error:
        raise UserError(f"{name} is damaged: {error or type(error).__name__}") from None
    for message in messages:
        if message.id and not message.fuzzy:
            sides = [side if isinstance(side, tuple | list) else (side,)
                     for side in (message.string, message.id)]  # fmt: skip
            for translation, text in zip(*sides, strict=False):  # some languages have more plurals
                if translation and text:
                    yield _without_accelerator((translation, text))


def _without_accelerator(example: Example) -> Example:
    if all(len(_ACCELERATOR.findall(text)) == 1 for text in example):
        return tuple(_ACCELERATOR.sub("", text) for text in example)
    return example
