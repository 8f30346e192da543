"""Frames of pandas, as tests make them."""

from collections.abc import Iterable

import pandas as pd


def frame_of(pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Return rows of a prompt and a completion, empty where there is none."""
    return pd.DataFrame(list(pairs), columns=["prompt", "completion"], dtype="str")


def frame_of_texts(texts: Iterable[str]) -> pd.DataFrame:
    """Return rows of prompts alone."""
    return frame_of([(text, "") for text in texts])
