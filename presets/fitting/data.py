"""A sample of the user's data, and what the pipeline will make of it: splits, vocabulary, examples, all in memory."""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from presets.fitting.texts import Lengths, measure_lengths
from stages.artifacts.prompts_table import DataParams, read_prompts
from stages.core.examples import Examples
from stages.core.frames import drawn_splits
from stages.core.rows import EncodedRows, encode_rows
from stages.core.split import SPLITS, Split, SplitParams
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.core.windows import DatasetParams, RowSpans
from stages.errors import UserError

SAMPLE_BYTES = 1 << 25
"""Of text, kept of each split; what there is more is only counted."""


@dataclass(frozen=True)
class Sample:
    """Rows as prompt, completion (empty where there is none) and split; the first ones of each split, or all."""

    rows: pd.DataFrame
    counts: dict[Split, int]
    """Of all rows of each split."""
    scale: float
    """How many times as many rows there are as were kept."""
    seconds: float
    """For reading all of them once."""


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


def read_sample(data: DataParams, split: SplitParams) -> Sample:
    """Read every row, and keep those that are enough to measure.

    Raises:
        UserError: a row or file is at fault, as for the stages.
    """
    began = time.perf_counter()
    counts = dict.fromkeys(SPLITS, 0)
    kept_bytes = dict.fromkeys(SPLITS, 0)
    kept = []
    for table in read_prompts(data, split):
        frame = table.select(["prompt", "completion", "split"]).to_pandas()
        for name in SPLITS:
            rows = frame[frame["split"] == name]
            counts[name] += len(rows)
            if len(rows) and kept_bytes[name] < SAMPLE_BYTES:
                kept.append(rows)
                kept_bytes[name] += int(rows["prompt"].str.len().sum() + rows["completion"].str.len().sum())
    rows = pd.concat(kept, ignore_index=True).astype("str")
    return Sample(rows, counts, sum(counts.values()) / len(rows), time.perf_counter() - began)


def hold_out(sample: Sample, split: SplitParams) -> Sample:
    """Return the sample with training rows drawn for validation and test, as ``read_prompts`` draws them.

    Raises:
        UserError: none is left to train on.
    """
    training = sample.rows["split"] == "train"
    codes = drawn_splits(sample.rows[training], split)
    splits = sample.rows["split"].copy()
    splits[training] = np.array(SPLITS)[codes]
    counts = dict(sample.counts)
    for code, name in enumerate(SPLITS):
        drawn = round(float((codes == code).mean()) * sample.counts["train"])
        counts[name] = drawn if name == "train" else counts[name] + drawn
    if not (splits == "train").any():
        raise UserError(f"no row is left to train on, of {len(splits):,}; add rows")
    return Sample(sample.rows.assign(split=splits), counts, sample.scale, sample.seconds)


def prepare(rows: pd.DataFrame, parameters: VocabularyParams) -> Prepared:
    """Build the vocabulary of the training rows and encode all rows.

    Raises:
        UserError: a row has a word that the vocabulary cannot encode.
    """
    began = time.perf_counter()
    parts = {name: rows[rows["split"] == name] for name in SPLITS}
    vocabulary = build_vocabulary(parameters, [parts["train"]])
    encoded = {name: encode_rows(vocabulary, part) for name, part in parts.items()}
    return Prepared(vocabulary, encoded, time.perf_counter() - began)
