"""A text becomes a CSV without losing a character, or a clear error."""

import csv
from pathlib import Path

import pytest

from presets import text_to_csv
from presets.text_to_csv import write_text_csv
from stages.errors import UserError


def convert(folder: Path, content: bytes) -> list[str]:
    """Convert ``content``, and return the cells that were written below the header."""
    (folder / "input.txt").write_bytes(content)
    count = write_text_csv(folder / "input.txt", folder / "text.csv")
    with (folder / "text.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["text"]
    assert len(rows) == count
    return [cell for (cell,) in rows]


def test_a_row_a_paragraph(tmp_path: Path) -> None:
    """Blank lines, however many and with white space in them, part paragraphs."""
    content = b'First:\nWe, are.\n\nSecond\n \n\n\nThird "quoted"\n'
    assert convert(tmp_path, content) == ["First:\nWe, are.", "Second", 'Third "quoted"']


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    """What Windows writes reads the same; indentation stays."""
    content = b"\xef\xbb\xbfeins\r\n  zwei\r\n\r\ndr\xc3\xa4i"
    assert convert(tmp_path, content) == ["eins\n  zwei", "dräi"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "found 0 paragraph"),
        (b"one\ntwo\n", "found 1 paragraph"),
        (b"one\n\ntwo \xff", "line 3: not UTF-8: byte 0xff"),
        (b"one\n\nt\0wo", "line 3: a NUL byte"),
    ],
)
def test_what_cannot_be_a_text(tmp_path: Path, content: bytes, complaint: str) -> None:
    """The error says where and what, and leaves an earlier file as it was."""
    (tmp_path / "text.csv").write_text("earlier")
    (tmp_path / "input.txt").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        write_text_csv(tmp_path / "input.txt", tmp_path / "text.csv")
    assert (tmp_path / "text.csv").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.txt", "text.csv"]


def test_a_paragraph_larger_than_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused here, where the text's line can be named."""
    monkeypatch.setattr(text_to_csv, "_LONGEST", 20)
    (tmp_path / "input.txt").write_text("short\n\n" + "far too long for a cell")
    with pytest.raises(UserError, match="line 3: a paragraph of more than 20 bytes"):
        write_text_csv(tmp_path / "input.txt", tmp_path / "text.csv")


def test_absent(tmp_path: Path) -> None:
    """The name that was given is told."""
    with pytest.raises(UserError, match=r"absent.txt: No such file"):
        write_text_csv(tmp_path / "absent.txt", tmp_path / "text.csv")
