"""Byte pair encoding in memory, on all cores: this project beside the tokenizers library, in MB of text a second."""

import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from benchmarks.measuring import options, seconds_of, take_turns, write_table
from benchmarks.preparation import write_csv
from stages.core.rows import encode_rows
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary

MEGABYTES = 8
SIZE = 8000


def main() -> None:
    """Train, then encode with the same merges."""
    given = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.csv"
        write_csv(path, MEGABYTES)
        with path.open(encoding="utf-8", newline="") as file:
            texts = [cell for row in csv.reader(file) for cell in row]
    frame = pa.table({"prompt": texts, "completion": [""] * len(texts)})
    parameters = VocabularyParams(tokenizer="bpe", size=SIZE, unknown_token=False)
    vocabulary = build_vocabulary(parameters, [frame])
    theirs = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    calls: dict[str, Callable[[], object]] = {
        "training": lambda: build_vocabulary(parameters, [frame]),
        "encoding, this project": lambda: encode_rows(vocabulary, frame),
        "encoding, tokenizers' `encode_batch`": lambda: theirs.encode_batch(texts),
        "encoding, tokenizers' `encode`, text by text": lambda: [theirs.encode(text) for text in texts],
    }
    timings = take_turns({what: partial(seconds_of, call, 2) for what, call in calls.items()}, given.rounds)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rows = [[what, f"{megabytes / timing.median:.2f}"] for what, timing in timings.items()]
    caption = f"{len(texts):,} texts, {megabytes:.1f} MB, {vocabulary.size:,} tokens; {given.rounds} rounds"
    write_table("byte pairs", caption, ["", "MB a second"], rows)


if __name__ == "__main__":
    main()
