"""Folders that appear complete or not at all, however many processes make them at the same time."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import UserError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the place of `folder`, moved there when the body has filled it.

    Where another process was faster its folder stays: both must have made the same.

    Raises:
        UserError: it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; set DATA_ROOT to a folder that can "
            "be written"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
