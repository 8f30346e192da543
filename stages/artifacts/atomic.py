"""Write a file so that its name never stands for half of it."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LOG = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its name when the block ends, and is deleted if the block fails.

    A killed process leaves ``path`` as it was; what it left under the temporary name, the next write of ``path`` replaces. When
    the block has ended, a power cut leaves the whole file too.
    """
    make_folder(path.parent)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
        LOG.info("wrote %s", path)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's names to the disk: without it a power cut may take a new file's name, whatever is in the file."""
    if os.name == "nt":  # which opens no folder
        return
    with contextlib.suppress(OSError):  # a file system that cannot do so, such as some of networks
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
