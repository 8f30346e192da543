"""Texts as 64-bit keys, by which copies are counted without keeping any text: equal texts have equal keys.

That two different ones of 100 million texts share a key has a chance of 1 in 3,000.

Shapes: R rows.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.core.frames import Frame, text_column, text_data, text_offsets, text_sizes
from stages.core.text_cuts import has_unicode_space

Keys = npt.NDArray[np.int64]
TextKey = Callable[[bytes], int]
"""A key of 64 bits of a text in UTF-8: ``hash``, which differs between processes (PYTHONHASHSEED), or ``digest_key``."""

_SPACES_TO_SPACE = bytes(ord(" ") if byte in b"\t\n\v\f\r\x1c\x1d\x1e\x1f" else byte for byte in range(256))
_SPACES = r"[ \x{85}\p{Z}]+"
_ODD = np.int64(0x2545F4914F6CDD1D)  # so that no two keys become one


def digest_key(text: bytes) -> int:
    """Return a key that is the same in every process; it takes three times as long as ``hash``."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def text_keys(texts: pa.StringArray, text_key: TextKey) -> Keys:
    """Return a key of each text, [R]."""
    return np.fromiter(map(text_key, texts.cast(pa.binary()).to_pylist()), np.int64, len(texts))


def prompt_keys(frame: Frame, text_key: TextKey) -> Keys:
    """Return a key of each row's prompt, or of its completion where the prompt is empty, as splits are drawn, [R]."""
    prompts, completions = text_column(frame, "prompt"), text_column(frame, "completion")
    keys = text_keys(prompts, text_key)
    empty = np.flatnonzero(text_sizes(prompts) == 0)
    keys[empty] = text_keys(completions.take(pa.array(empty)), text_key)
    return keys


def row_keys(frame: Frame, text_key: TextKey) -> Keys:
    """Return a key of each row's prompt and completion together, whatever their case and white space, [R]."""
    prompts, completions = (
        text_keys(normalise(text_column(frame, name)), text_key) for name in ("prompt", "completion")
    )
    return prompts * _ODD ^ completions


def normalise(texts: pa.StringArray) -> pa.StringArray:
    """Return texts in small letters, with one space for all white space between words, and none around them."""
    from pyarrow import compute  # noqa: PLC0415 - takes a while

    # Few copies are alive at once: a text may be of 60 MB.
    data = bytes(text_data(texts)).translate(_SPACES_TO_SPACE)
    if data.isascii():
        data, offsets = data.lower(), text_offsets(texts) - text_offsets(texts)[0]
    else:
        texts = compute.utf8_lower(texts)
        data, offsets = (
            bytes(text_data(texts)).translate(_SPACES_TO_SPACE),
            text_offsets(texts) - text_offsets(texts)[0],
        )
    texts = pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(data))
    there = np.diff(offsets) > 0
    edges = np.concatenate([offsets[:-1][there], offsets[1:][there] - 1])
    at_edges = np.frombuffer(data, np.uint8)[edges] == ord(" ")
    if has_unicode_space(data) or at_edges.any() or b"  " in data:
        texts = compute.utf8_trim(compute.replace_substring_regex(texts, _SPACES, " "), " ")
    return texts
