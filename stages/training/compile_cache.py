"""The libraries that torch.compile leaves in its cache."""

import contextlib
import struct
from pathlib import Path

from filelock import FileLock, Timeout

_SECTION_TABLE = struct.Struct(
    "<40x Q 10x HH"
)  # of a header of ELF, 64 bits: where it begins, size and number of its entries
_HEADER_SIZE = 64


def remove_incomplete_libraries() -> None:
    """Delete the libraries of which a killed process copied a part: torch would load them, and fail.

    torch holds a lock while it writes one, so that those which another process is writing stay.
    """
    from torch._inductor.codecache import get_lock_dir  # noqa: PLC0415 - takes a second, which only torch.compile needs
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # noqa: PLC0415

    for pattern in ("*/*.so", "*/*.o"):
        for path in Path(cache_dir()).glob(pattern):
            if not is_whole(path):
                lock = Path(get_lock_dir()) / f"{path.name.split('.')[0]}.lock"
                with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
                    path.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Return whether a file of ELF has all of its bytes; its last ones are its section table. Of other kinds: that it has any."""
    with path.open("rb") as file:
        header = file.read(_HEADER_SIZE)
    size = path.stat().st_size
    if not header.startswith(b"\x7fELF\x02\x01"):
        return size > 0 and not b"\x7fELF".startswith(header[:4])
    if size < _HEADER_SIZE:
        return False
    begin, entry_size, entries = _SECTION_TABLE.unpack_from(header)
    return bool(size >= begin + entry_size * entries)
