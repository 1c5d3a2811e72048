"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[IO[bytes]]:
    """A binary file to write to, which takes the place of `path` when all went well.

    Until then `path` is what it was. The file is on the disk before it is renamed, and
    has the permissions that the umask gives.

    Args:
        path: where the file shall be; its folder is made if there is none.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(
            f"{target} is a folder, which no file replaces. Choose another path."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        _sync(target.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def replace_folder(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """A folder that `fill` makes under another name takes the place of `path`.

    Two folders cannot change places at once: who looks between the two renames finds
    none, and the earlier one beside it.

    Args:
        path: where the folder shall be.
        fill: gets a path at which nothing is, and makes the folder there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(room / "new")
        if target.exists():
            target.rename(room / "old")
        (room / "new").rename(target)
        _sync(target.parent)
    finally:
        if not target.exists() and (room / "old").exists():
            (room / "old").rename(target)
        shutil.rmtree(room, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """A text file, whole or not at all.

    Args:
        path: where the file shall be.
        text: what it shall hold.
    """
    with replacing(path) as file:
        file.write(text.encode())


def _sync(folder: Path) -> None:
    """Has the folder's new entry on the disk, where folders can be opened."""
    with suppress(OSError, AttributeError):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
