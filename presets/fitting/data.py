"""A sample of the user's data, and what the pipeline will make of it: splits, vocabulary, examples, all in memory."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from presets.fitting.texts import Lengths, interleaved, measure_lengths
from stages.core.examples import Examples
from stages.core.rows import EncodedRows, encode_rows
from stages.core.split import SPLITS, Split, SplitParams, splits_of
from stages.core.vocabulary import Vocabulary, VocabularyParams, build_vocabulary
from stages.core.windows import DatasetParams, RowSpans
from stages.errors import UserError

SAMPLE_BYTES = 1 << 25
"""Read of each file; what there is more is counted by its size."""


@dataclass(frozen=True)
class Sample:
    """The first rows of every file, with all their columns as text."""

    frame: pd.DataFrame
    file_splits: "pd.Series[str]"
    """The split that a row's file says; empty where the data are one file."""
    bytes: int
    """Of all files."""
    scale: float
    """How many times as much there is as was read."""

    @property
    def comes_with(self) -> set[str]:
        """Return the splits that files of their own hold."""
        return set(self.file_splits) - {""}


@dataclass(frozen=True)
class Prepared:
    """Examples as the stages would make them, of the sample."""

    vocabulary: Vocabulary
    encoded: dict[Split, EncodedRows]
    seconds: float
    """What building the vocabulary and encoding took."""

    def lengths(self) -> Lengths:
        """Return how long the rows of all splits are."""
        parts = [rows for rows in self.encoded.values() if len(rows.row_lengths)]
        return measure_lengths(
            EncodedRows(
                np.concatenate([rows.token_ids for rows in parts]),
                np.concatenate([rows.row_lengths for rows in parts]),
                np.concatenate([rows.prompt_lengths for rows in parts]),
            )
        )

    def tokens(self, split: Split) -> int:
        """Return the tokens of a split."""
        return len(self.encoded[split].token_ids)

    def examples(self, split: Split, parameters: DatasetParams, context_length: int) -> Examples | None:
        """Return a split's examples; None where it has no rows."""
        rows = self.encoded[split]
        if not len(rows.row_lengths):
            return None
        offsets = np.concatenate([[0], np.cumsum(rows.row_lengths)])
        spans = RowSpans(offsets, offsets[:-1] + rows.prompt_lengths)
        return Examples(rows.token_ids, spans, parameters, context_length, self.vocabulary.eos_id)


def take_roles(sample: Sample, prompt: str, completion: str | None, split: SplitParams) -> pd.DataFrame:
    """Return the sample's rows as prompt, completion (empty where there is none) and split.

    Raises:
        UserError: no row is left to train on.
    """
    cells = sample.frame
    rows = pd.DataFrame({"prompt": cells[prompt], "completion": cells[completion] if completion else ""})
    if split.column is not None:
        return rows.assign(split=cells[split.column])
    remaining = split.model_copy(update={name: 0.0 for name in ("validation", "test") if name in sample.comes_with})
    keys = rows["prompt"].where(rows["prompt"] != "", rows["completion"])
    drawn = pd.Series(splits_of(keys.tolist(), remaining), index=rows.index, dtype="str")
    held_out = sample.file_splits.isin(["validation", "test"])
    rows = rows.assign(split=sample.file_splits.where(held_out, drawn))
    if not (rows["split"] == "train").any():
        raise UserError(f"no row is left to train on, of {len(rows):,}; add rows")
    return rows


def prepare(rows: pd.DataFrame, parameters: VocabularyParams, vocabulary: Vocabulary | None = None) -> Prepared:
    """Build the vocabulary of the training rows, unless one is given, and encode all rows.

    Raises:
        UserError: a row has a word that the vocabulary cannot encode.
    """
    began = time.perf_counter()
    texts = {name: interleaved(rows[rows["split"] == name]) for name in SPLITS}
    vocabulary = vocabulary or build_vocabulary(parameters, [texts["train"]])
    encoded = {name: encode_rows(vocabulary, texts[name]) for name in SPLITS}
    return Prepared(vocabulary, encoded, time.perf_counter() - began)


def read_sample(csv: str) -> Sample:
    """Read the first rows of a file, or of every file of a folder.

    Raises:
        UserError: there is nothing to read.
    """
    path = Path(csv)
    if not path.exists():
        raise UserError(f"{path}: not found; name a file or folder of prompts")
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    frames, splits, read = [], [], 0
    for file in files:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        frames.append(frame)
        split = next((name for name in SPLITS if path.is_dir() and file.stem.endswith(name)), "")
        splits += [split] * len(frame)
        read += file.stat().st_size
    frame = pd.concat(frames, ignore_index=True)
    return Sample(frame, pd.Series(splits, dtype="str"), read, 1.0)
