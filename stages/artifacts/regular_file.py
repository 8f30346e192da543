"""Regular files: what is none is refused before it is opened (a pipe would be waited for), and what is one has a hash."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from stages.errors import UserError


def check_file(path: Path, fix: str) -> None:
    """Check that a path is that of a regular file.

    Raises:
        UserError: there is none, or it is a folder, a pipe, a socket or a device; the message ends with ``fix``.
        OSError: the path cannot be followed: no permission, too long, links in a circle.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; {fix}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: expected a file; {fix}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and in those below it; one that is deleted meanwhile, or cannot be read, has nothing."""
    for parent, _, names in os.walk(folder):  # Path.rglob fails where a folder goes away
        yield from (Path(parent, name) for name in names)
