"""Write data/addition.csv: every sum of two numbers from 0 to 99, such as ``27+35=`` with the completion ``62``.

The bytes are always the same. ``python -m presets.use addition`` calls this; which sums are held out, the stage
build_dataset decides by their hash.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from stages.artifacts.table_csv import write_table
from stages.command_line import command_parser, run

ADDITION_FILE = Path("data/addition.csv")

_NUMBERS = range(100)
_SEED = 0


def main() -> None:
    """Write the file."""
    quiet = command_parser(__doc__).parse_args().quiet
    write_addition(ADDITION_FILE)
    if not quiet:
        print(f"{len(_NUMBERS) ** 2:,} sums -> {ADDITION_FILE}")


def write_addition(path: Path) -> None:
    """Write all sums to ``path``."""
    write_table(path, ["prompt", "completion"], sums())


def sums() -> Iterator[tuple[str, str]]:
    """Yield each sum's prompt and completion, in a random order that is always the same.

    Shuffled, so that a look at the first rows of the file shows what it holds.
    """
    pairs = [(first, second) for first in _NUMBERS for second in _NUMBERS]
    random.Random(_SEED).shuffle(pairs)
    for first, second in pairs:
        yield f"{first}+{second}=", str(first + second)


if __name__ == "__main__":
    run(main)
