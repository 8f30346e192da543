"""Open one split of data/dataset/ as examples for a model."""

from typing import Any

from stages.artifacts.token_shards import DATASET_FOLDER, DatasetMetadata, open_shard, shard_path, verify_shard
from stages.core.examples import Examples
from stages.core.split import SPLITS, Split
from stages.errors import UserError


class SplitExamples(Examples):
    """The examples of one split, read as they are needed.

    They travel to another process as their name: it maps the file again instead of receiving every token.
    """

    def __init__(self, split: Split, metadata: DatasetMetadata, context_length: int) -> None:
        """Map the split's file.

        Raises:
            UserError: the file is absent or damaged.
        """
        shard = open_shard(shard_path(DATASET_FOLDER, split))
        super().__init__(shard.token_ids, shard.row_spans, metadata.parameters, context_length, metadata.eos_id)
        self._name = (split, metadata, context_length)

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitExamples, self._name


def open_examples(split: Split, metadata: DatasetMetadata, context_length: int) -> Examples | None:
    """Return the examples of a split, whose file is compared with its hash; None where it has no rows.

    Raises:
        UserError: the split or its file is absent or damaged, or nothing in it is scored: its loss would be 0, as if all
            were right.
    """
    held = metadata.splits.get(split)
    if held is None:
        raise UserError(
            f"{DATASET_FOLDER}/metadata.json: splits: {split} is missing; type `dvc repro --force build_dataset`"
        )
    if not held.rows:
        return None
    if not held.scored_tokens:
        fix = {
            "completion": "give these rows completions (data.completion_column), or set dataset.loss_on: all in params.yaml",
            "all": "give these rows words",
        }[metadata.parameters.loss_on]
        raise UserError(
            f"{DATASET_FOLDER}/: none of the {held.rows:,} {split} rows has a token to score with dataset.loss_on: "
            f"{metadata.parameters.loss_on}; {fix}"
        )
    verify_shard(
        shard_path(DATASET_FOLDER, split),
        rows=held.rows,
        tokens=held.tokens,
        vocabulary_size=metadata.vocabulary_size,
        sha256=held.sha256,
    )
    return SplitExamples(split, metadata, context_length)


def open_held_out(metadata: DatasetMetadata, context_length: int) -> tuple[Split, Examples]:
    """Return the split to score: test, else validation, else (where nothing is held out) train.

    Raises:
        UserError: a file is absent or damaged, no split has rows, or nothing in the split is scored.
    """
    for split in reversed(SPLITS):
        examples = open_examples(split, metadata, context_length)
        if examples is not None:
            return split, examples
    raise UserError(f"{DATASET_FOLDER}/: no split has rows; type `dvc repro --force build_dataset`")
