"""Cut text into words, chunks and characters, with a step of Python's for each distinct one alone.

Text is UTF-8, as Arrow holds it.
"""

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

END = "\0"
"""Ends each text of several; no text of a table has a NUL."""
CODE_POINTS = 0x110000
"""All that Unicode has."""
FIRST_NOT_ASCII = 0x80
# Python's str.split takes these four for white space; Unicode and the tokenizers library do not.
_ONLY_PYTHON_SPACES = "\x1c\x1d\x1e\x1f"
WORD = re.compile(rf"(?:\S|[{_ONLY_PYTHON_SPACES}])+")
# How GPT-2, and so the tokenizers library's ByteLevel, cuts text before merging bytes.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_PIECE_BYTES = 1 << 21  # of text encoded at once, so that a cell of 60 MB takes little more memory than its tokens
_ASCII_SPACES_TO_SPACE = bytes(ord(" ") if byte in b"\t\n\v\f\r" else byte for byte in range(256))
_UNICODE_SPACE = re.compile(
    rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)|\xe3\x80\x80"  # U+85, A0, 1680, 2000 to 200A, ...
)
_UNICODE_SPACES_BEGIN = (b"\xc2\x85", b"\xc2\xa0", b"\xe1\x9a\x80", b"\xe2\x80", b"\xe2\x81\x9f", b"\xe3\x80\x80")
_CUT = re.compile(rb"[!-~] (?=[!-~])")  # between two words: no token of any tokenizer crosses it


def split_words(text: str) -> list[str]:
    """Split text at white space exactly as the tokenizers library's WhitespaceSplit does."""
    if any(space in text for space in _ONLY_PYTHON_SPACES):
        return WORD.findall(text)
    return text.split()


def cut_pieces(texts: memoryview) -> Iterator[memoryview]:
    """Cut long text between two words, wherever that leaves all tokens as they are."""
    begin = 0
    while len(texts) - begin > _PIECE_BYTES and (cut := _CUT.search(texts, begin + _PIECE_BYTES)):
        yield texts[begin : cut.start() + 1]
        begin = cut.start() + 1
    yield texts[begin:]


def cut_characters(texts: memoryview) -> Iterator[memoryview]:
    """Cut long text between two characters, for what looks at each by itself."""
    begin = 0
    while begin < len(texts):
        end = begin + _PIECE_BYTES
        while end < len(texts) and 0x80 <= texts[end] < 0xC0:  # continues a character
            end += 1
        yield texts[begin:end]
        begin = end


def distinct_words(texts: memoryview) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Cut text into words as ``split_words`` does, each with a space behind it; see ``_distinct``.

    A space alone is no word: between two spaces.
    """
    spaced = bytes(texts).translate(_ASCII_SPACES_TO_SPACE) + b" "
    if has_unicode_space(spaced):
        spaced = _UNICODE_SPACE.sub(b" ", spaced)
    return _distinct(spaced, np.frombuffer(b" " + spaced[:-1], np.uint8) == ord(" "))


def distinct_chunks(texts: memoryview) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Cut text at spaces between which ``GPT2_PATTERN`` cuts it as well, and around each ``END``; see ``_distinct``."""
    data = np.frombuffer(texts, np.uint8)
    before = np.concatenate([[0], data[:-1]]).astype(np.uint8)
    # Every token ends before a space, but one of white space, which may go on.
    ends_token = before > ord(" ")
    if has_unicode_space(bytes(texts)):
        ends_token &= before < FIRST_NOT_ASCII
    return _distinct(texts, ((data == ord(" ")) & ends_token) | (data == 0) | (before == 0))


def _distinct(text: bytes | memoryview, begins: npt.NDArray[np.bool_]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Cut a text in UTF-8 at the bytes with which a piece ``begins``, the first one among them.

    Returns:
        the distinct pieces, by their first appearance, and for each piece which of these it is.
    """
    offsets = np.append(np.flatnonzero(begins), len(text)).astype(np.int32)
    pieces = pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(text)
    ).dictionary_encode()
    return pieces.dictionary.to_pylist(), pieces.indices.to_numpy()


def has_unicode_space(text: bytes) -> bool:
    """Return whether a text has white space that is not ASCII."""
    # One byte is found ten times as fast as several.
    may_have = any(space[:1] in text and space in text for space in _UNICODE_SPACES_BEGIN)
    return may_have and _UNICODE_SPACE.search(text) is not None


def to_code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code point of each character, [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
