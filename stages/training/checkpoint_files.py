"""Checkpoints as files: written under their name only when they are whole, with their hashes beside them, and never unpickled."""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from stages.artifacts.atomic import atomic_file
from stages.artifacts.regular_file import hash_file
from stages.errors import UserError
from stages.training.checkpoint_folder import part_path, write_hashes
from stages.training.checkpoint_parts import WHOLE, Share, read_parts, replace

_DIVIDED = ("state_dict", "optimizer_states", "callbacks")
"""What in a checkpoint has tensors of the weights' shapes."""


class VerifiedCheckpoints(TorchCheckpointIO):
    """Writes and reads the checkpoints of a training, whole or in one part for each device."""

    def __init__(self) -> None:
        super().__init__()
        self.check: Callable[[dict[str, Any], int], None] | None = None
        """Raises a ValueError where the training cannot go on with what a checkpoint, of this step by its name, holds."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a whole checkpoint."""
        self.save_outline(checkpoint, Path(path), ())

    def save_outline(self, checkpoint: Mapping[str, Any], path: Path, part_digests: Sequence[str]) -> None:
        """Write what is not in parts, when the parts are written: without this file they are nothing.

        The file appears last, so that hashes without it are no harm.

        Args:
            checkpoint: from ``write_part``, or a whole checkpoint.
            path: of the checkpoint.
            part_digests: the SHA-256 of each device's part; none of a whole checkpoint.

        Raises:
            OSError: it cannot be written, as on a full disk.
        """
        parts = {part_path(path, rank, len(part_digests)): digest for rank, digest in enumerate(part_digests)}
        with atomic_file(path) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # a full disk
                    raise error.__context__ from None
                raise
            file.flush()
            write_hashes(path, {path: hash_file(Path(file.name))} | parts)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,  # noqa: FBT001, FBT002
    ) -> dict[str, Any]:
        """Read a checkpoint, with whole tensors.

        Raises:
            UserError: the file is no such checkpoint, or that of another training.
        """
        return self._load(Path(path), WHOLE)

    def load_share(self, path: Path, share: Share) -> dict[str, Any]:
        """Read one device's rows of the weights and of all that has their shapes.

        Raises:
            UserError: the file is no such checkpoint, or that of another training.
        """
        state = self._load(path, share)
        return state | {
            name: replace(state[name], Tensor, lambda _, value: share.of(value) if value.ndim else value)
            for name in _DIVIDED
        }

    def _load(self, path: Path, share: Share) -> dict[str, Any]:
        with _refusals(path):
            state: dict[str, Any] = _read(path, mapped=share != WHOLE)
        # Here, before Lightning looks at the weights, which may have other shapes.
        if not isinstance(state, dict) or state.get("fingerprint") != path.parent.name:
            raise UserError(f"{path.parent}/: holds a checkpoint of another training; delete that folder")
        with _refusals(path):
            if "parts" in state:
                state = read_parts(path, state, share)
            if self.check is not None:
                self.check(state, int(path.stem))
        return state


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn all errors of reading a file into one line: it may hold anything.

    Raises:
        UserError: something went wrong.
    """
    try:
        yield
    except Exception as error:
        raise refused_checkpoint(path, (str(error).splitlines() or [type(error).__name__])[0]) from error


def _read(path: Path, *, mapped: bool) -> Any:
    """Read what torch saved, without unpickling anything.

    Args:
        path: of the file.
        mapped: True leaves the tensors in the file, which must stay as it is, until they are used.

    Raises:
        Exception: the file is no such thing; of many kinds. A small file that unpacks to more than it is could take all memory.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it unpacks to {unpacked:,} bytes")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def refused_checkpoint(path: Path, reason: str) -> UserError:
    """Return the error of a checkpoint that no training can go on from."""
    return UserError(f"{path}: no checkpoint of this project ({reason}); delete {path.parent}/")
