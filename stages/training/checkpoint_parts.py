"""Checkpoints of weights that are divided over devices: each device writes a part, its rows of every tensor, as safetensors.

The rest of the checkpoint, its outline, is saved as that of one device. Where the parts have the numbers, it has tensors
without numbers (torch's device "meta"), whose places in it are the names of the tensors in the parts. The rows of all parts, in
the order of the devices, are the whole tensor, so that any number of devices can read the rows that it needs.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from stages.artifacts.atomic import atomic_file
from stages.artifacts.regular_file import hash_file
from stages.training.checkpoint_folder import part_path

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_LENGTH_BYTES = 8  # of a safetensors header, in front of it; the header's length is a multiple of it too


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that one device has of a tensor that is divided over all devices."""

    own: Tensor
    """[R of this device, ...]"""
    shape: torch.Size
    """Of the whole tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the numbers."""
        return self.own.dtype


class Share(NamedTuple):
    """A device's share of every tensor."""

    rank: int
    devices: int

    def rows(self, count: int) -> slice:
        """Return which of ``count`` rows are this device's; FSDP divides them as ``torch.chunk`` does."""
        rows = -(-count // self.devices)
        return slice(min(self.rank * rows, count), min((self.rank + 1) * rows, count))

    def of(self, whole: Tensor) -> Rows:
        """Return this device's rows of a tensor, as a copy."""
        return Rows(whole[self.rows(len(whole))].clone(), whole.shape)


WHOLE = Share(0, 1)


def replace(value: Any, kind: type, change: Callable[[str, Any], Any]) -> Any:
    """Return what a checkpoint holds, with each object of one kind changed.

    Args:
        value: dictionaries, lists and tuples within each other, and what they hold.
        kind: of the objects to change.
        change: takes an object's place, such as ``state_dict/network.embedding.weight``, and the object. What is at several
            places, as tied weights are, is changed once.
    """
    changed: dict[int, Any] = {}

    def walk(value: Any, place: str) -> Any:
        if isinstance(value, kind):
            if id(value) not in changed:
                changed[id(value)] = change(place, value)
            return changed[id(value)]
        match value:
            case Mapping():
                return {key: walk(item, f"{place}/{key}" if place else str(key)) for key, item in value.items()}
            case list() | tuple():
                return type(value)(walk(item, f"{place}/{number}") for number, item in enumerate(value))
            case _:
                return value

    return walk(value, "")


def write_part(checkpoint: Path, state: Mapping[str, Any], share: Share) -> tuple[dict[str, Any], str]:
    """Write one device's part of a checkpoint, and return the outline and the part's SHA-256.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    tensors: dict[str, Tensor] = {}

    def without_numbers(place: str, rows: Rows) -> Tensor:
        tensors[place] = rows.own
        return torch.empty(rows.shape, dtype=rows.dtype, device="meta")

    outline: dict[str, Any] = replace(state, Rows, without_numbers)
    with atomic_file(part_path(checkpoint, share.rank, share.devices)) as file:
        _write_tensors(file, tensors)
        file.flush()
        digest = hash_file(Path(file.name))
    return outline | {"parts": share.devices}, digest


def _write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors, one tensor after the other: safetensors' own functions need all in memory, or sync nothing to the disk."""
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that all are aligned
    header, end = {}, 0
    for name, value in ordered.items():
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    for value in ordered.values():
        file.write(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def read_parts(checkpoint: Path, outline: Mapping[str, Any], share: Share) -> dict[str, Any]:
    """Return a checkpoint with its numbers: whole tensors if there is one device, else this device's rows.

    Raises:
        ValueError: the parts do not fit the outline.
        OSError: a part cannot be read.
        SafetensorError: a part is no safetensors file, or lacks a tensor.
    """
    with _opened(part_path(checkpoint, rank, outline["parts"]) for rank in range(outline["parts"])) as parts:

        def with_numbers(place: str, expected: Tensor) -> Tensor | Rows:
            if expected.device.type != "meta":
                return expected
            own = _read_rows(parts, place, expected, share)
            return own if share.devices == 1 else Rows(own, expected.shape)

        state: dict[str, Any] = replace(outline, Tensor, with_numbers)
    del state["parts"]
    return state


@contextmanager
def _opened(paths: Iterable[Path]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(safe_open(path, framework="pt")) for path in paths]


def _read_rows(parts: Sequence[Any], place: str, expected: Tensor, share: Share) -> Tensor:
    pieces = [part.get_slice(place) for part in parts]
    shapes = [piece.get_shape() for piece in pieces]
    _, *rest = expected.shape
    if any(shape[1:] != rest or not shape for shape in shapes) or sum(shape[0] for shape in shapes) != len(expected):
        raise ValueError(f"{place}: expected {list(expected.shape)}, found parts of {shapes}")
    wanted, first, found = share.rows(len(expected)), 0, []
    for piece, (rows, *_) in zip(pieces, shapes, strict=True):
        begin, end = max(wanted.start - first, 0), min(wanted.stop - first, rows)
        if begin < end:
            found.append(piece[begin:end])
        first += rows
    if any(rows.dtype != expected.dtype for rows in found):
        raise ValueError(f"{place}: expected {expected.dtype}, found another type")
    return torch.cat(found) if found else torch.empty((0, *rest), dtype=expected.dtype)
