"""data/dataset/: a file of token_ids for each split (token_shards), and metadata.json, which says how they were made.

metadata.json is deleted first and written last: a dataset without one is unfinished.
"""

from pathlib import Path
from typing import Annotated, Any, Self

import pydantic

from stages.artifacts.atomic import atomic_file
from stages.artifacts.regular_file import check_file, hash_file
from stages.artifacts.token_shards import METADATA_FILE, REBUILD, open_shard, shard_path, verify_shard
from stages.artifacts.vocabulary_json import VOCABULARY_FILE
from stages.core.examples import Examples
from stages.core.params_model import ParamsModel
from stages.core.split import SPLITS, Split
from stages.core.windows import DatasetParams
from stages.errors import UserError

DATASET_FOLDER = Path("data/dataset")


Natural = Annotated[int, pydantic.Field(ge=0)]


class SplitMetadata(ParamsModel):
    """What one split holds."""

    rows: Natural
    """Rows of the CSV."""
    tokens: Natural
    """All tokens, <EOS> included."""
    scored_tokens: Natural
    """Targets that carry loss."""
    scored_bytes: Natural
    """UTF-8 bytes of the text that those targets stand for; <EOS> stands for none."""
    sha256: str
    """Of the split's file: metadata.json stands for the whole folder where a fingerprint is taken of it."""


class DatasetMetadata(ParamsModel):
    """What was made of which text: all that a reader of the token shards has to know."""

    vocabulary_size: Annotated[int, pydantic.Field(ge=1, le=2**24)]
    """How many tokens the vocabulary has."""
    eos_id: Natural
    """The id of <EOS>."""
    vocabulary_sha256: str
    """Of data/vocabulary.json: ids of another one would be learnt as other words, in silence."""
    parameters: DatasetParams
    """How its tokens become windows, and which targets carry loss."""
    splits: dict[Split, SplitMetadata]
    """Each split by its name."""

    @pydantic.model_validator(mode="after")
    def _agree(self) -> Self:
        if self.eos_id >= self.vocabulary_size:
            raise ValueError(f"eos_id {self.eos_id:,} in a vocabulary of {self.vocabulary_size:,}")
        return self


def read_metadata(folder: Path = DATASET_FOLDER) -> DatasetMetadata:
    """Read metadata.json.

    Raises:
        UserError: the dataset is absent or unfinished, or the file is not as ``write_metadata`` writes it.
    """
    path = folder / METADATA_FILE
    check_file(path, f"without it the dataset is unfinished; {REBUILD}")
    try:
        return DatasetMetadata.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key}: {first['msg']}; {REBUILD}".replace(" : ", " ")) from None


def check_vocabulary(metadata: DatasetMetadata) -> None:
    """Compare data/vocabulary.json with the one that the dataset was made with.

    Raises:
        UserError: they differ, as where one stage alone was run, or the vocabulary is absent.
    """
    check_file(VOCABULARY_FILE, "build it with: dvc repro build_vocabulary")
    if hash_file(VOCABULARY_FILE) != metadata.vocabulary_sha256:
        raise UserError(f"{VOCABULARY_FILE}: not the one that {DATASET_FOLDER}/ was made with; {REBUILD}")


def write_metadata(metadata: DatasetMetadata, folder: Path = DATASET_FOLDER) -> None:
    """Write metadata.json: the dataset is finished."""
    with atomic_file(folder / METADATA_FILE) as file:
        file.write(metadata.model_dump_json(indent=2).encode() + b"\n")


def make_folder(folder: Path = DATASET_FOLDER) -> None:
    """Make the dataset's folder; what is in it stays until all rows are read, so that a bad row loses nothing."""
    folder.mkdir(parents=True, exist_ok=True)


def start_writing(folder: Path = DATASET_FOLDER) -> None:
    """Mark what is in the folder as unfinished."""
    (folder / METADATA_FILE).unlink(missing_ok=True)


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
