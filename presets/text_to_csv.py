"""Turn a plain text file into a CSV with the column ``text``: a row a paragraph, split at blank lines.

A row is the smallest piece that is held out as a whole, and ends with <EOS> where the text has blank lines.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from stages.artifacts.atomic import atomic_file
from stages.command_line import command_parser, run
from stages.errors import UserError

TEXT_FILE = Path("data/text.csv")
COLUMN = "text"

_LONGEST = 1 << 25  # bytes of a paragraph; half of what the pipeline reads as one cell
_FEWEST_ROWS = 2  # one to train on and one to hold out
_UTF8_MARK = b"\xef\xbb\xbf"


def main() -> None:
    """Convert the file that is named."""
    parser = command_parser(__doc__)
    parser.add_argument("text", type=Path, help="the text file, UTF-8")
    parser.add_argument("csv", type=Path, nargs="?", default=TEXT_FILE, help="where to write (default: %(default)s)")
    arguments = parser.parse_args()
    rows = write_text_csv(arguments.text, arguments.csv)
    if not arguments.quiet:
        print(f"{arguments.text}: {rows:,} paragraphs -> {arguments.csv}")


def write_text_csv(text: Path, path: Path) -> int:
    """Write the paragraphs of ``text`` to ``path``, with one of them in memory at a time; return how many there are.

    Raises:
        UserError: the text cannot be read, is not UTF-8, or has fewer than two paragraphs.
    """
    try:
        file = text.open("rb")
    except OSError as error:
        raise UserError(f"{text}: {error.strerror}; name a plain text file") from None
    rows = 0
    with file, atomic_file(path) as written:
        for paragraph in paragraphs(text, file):
            written.write(_csv_lines([COLUMN, paragraph] if rows == 0 else [paragraph]))
            rows += 1
        if rows < _FEWEST_ROWS:
            raise UserError(
                f"{text}: found {rows} paragraph(s), allowed: at least {_FEWEST_ROWS}, because a paragraph is held out "
                "as a whole; put blank lines where the text may be split"
            )
    return rows


def paragraphs(text: Path, lines: BinaryIO) -> Iterator[str]:
    r"""Yield what stands between blank lines, its own lines joined by ``\n``.

    Args:
        text: the file's name, for errors.
        lines: the file.

    Raises:
        UserError: a line is not UTF-8 or has a NUL byte, or a paragraph is too long to be a row.
    """
    paragraph: list[str] = []
    length = 0
    for number, line in enumerate(_bounded_lines(lines), start=1):
        length += len(line)
        if length > _LONGEST:
            raise UserError(
                f"{text}, line {number:,}: a paragraph of more than {_LONGEST:,} bytes; put blank lines where it may be "
                "split"
            )
        decoded = _decode(text, number, line.removeprefix(_UTF8_MARK) if number == 1 else line)
        if decoded.strip():
            paragraph.append(decoded.rstrip("\r\n"))
            continue
        if paragraph:
            yield "\n".join(paragraph)
        paragraph, length = [], 0
    if paragraph:
        yield "\n".join(paragraph)


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines; one that is too long comes in pieces, the first of which is too long already."""
    while line := file.readline(_LONGEST + 1):
        yield line


def _decode(text: Path, number: int, line: bytes) -> str:
    if b"\0" in line:
        raise UserError(f"{text}, line {number:,}: a NUL byte; save the file as plain text in UTF-8")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{text}, line {number:,}: not UTF-8: byte 0x{line[error.start]:02x}; save the file as UTF-8"
        ) from None


def _csv_lines(cells: Iterable[str]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows([cell] for cell in cells)
    return lines.getvalue().encode()


if __name__ == "__main__":
    run(main)
