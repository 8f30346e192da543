"""What data/dataset/ holds: metadata, the examples of a split, and how they come to processes that prepare batches ahead."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.artifacts.dataset import (
    DATASET_FOLDER,
    DatasetMetadata,
    SplitMetadata,
    make_folder,
    open_examples,
    read_metadata,
    start_writing,
    write_metadata,
)
from stages.artifacts.token_shards import open_shard_writer, shard_path
from stages.core.windows import DatasetParams
from stages.errors import UserError
from stages.training.data_module import TrainingBatches
from stages.training.plan import plan_training
from tests.training.conftest import train_parameters

TOKENS = 1_000_000
CONTEXT_LENGTH = 100
METADATA = DatasetMetadata(
    vocabulary_size=5,
    eos_id=4,
    vocabulary_sha256="0",
    parameters=DatasetParams(packing="rows", loss_on="all", stride=None),
    splits={"train": SplitMetadata(rows=2, tokens=12, scored_tokens=10, scored_bytes=25, sha256="0")},
)


def test_batches_travel_to_another_process_without_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a loader sends them where processes are not forked: macOS and Windows."""
    monkeypatch.chdir(tmp_path)
    make_folder()
    with open_shard_writer(shard_path(DATASET_FOLDER, "train"), 11) as writer:
        token_ids = np.random.default_rng(0).integers(10, size=TOKENS)
        writer.append(token_ids, np.array([TOKENS]), np.array([TOKENS]))
    metadata = DatasetMetadata(
        vocabulary_size=11,
        eos_id=10,
        vocabulary_sha256="0",
        parameters=DatasetParams(packing="stream", loss_on="all", stride=None),
        splits={
            "train": SplitMetadata(
                rows=1, tokens=TOKENS, scored_tokens=TOKENS - 1, scored_bytes=0, sha256=writer.sha256
            ),
            "validation": SplitMetadata(rows=0, tokens=0, scored_tokens=0, scored_bytes=0, sha256="0"),
        },
    )
    assert open_examples("validation", metadata, CONTEXT_LENGTH) is None
    examples = open_examples("train", metadata, CONTEXT_LENGTH)
    assert examples is not None
    plan = plan_training(examples.examples_per_epoch(), train_parameters(), None, 1)
    batches = TrainingBatches(examples, plan, rank=0)
    first = batches[0]
    pickled = pickle.dumps(batches)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled)[0].input_ids, first.input_ids)

    path = shard_path(DATASET_FOLDER, "train")
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"train\.safetensors: damaged: its SHA-256"):
        open_examples("train", metadata, CONTEXT_LENGTH)


@pytest.mark.parametrize(
    ("loss_on", "fix"), [("completion", "set dataset.loss_on: all"), ("all", "give these rows words")]
)
def test_a_split_without_a_target_is_refused(loss_on: str, fix: str) -> None:
    dataset = DatasetMetadata.model_validate(
        {
            "vocabulary_size": 5,
            "eos_id": 4,
            "vocabulary_sha256": "0",
            "parameters": {"packing": "rows", "loss_on": loss_on, "stride": None},
        }
        | {"splits": {"test": {"rows": 9, "tokens": 9, "scored_tokens": 0, "scored_bytes": 0, "sha256": "0"}}}
    )
    with pytest.raises(UserError, match=rf"none of the 9 test rows has .* dataset.loss_on: {loss_on}; .*{fix}"):
        open_examples("test", dataset, CONTEXT_LENGTH)


def test_a_split_that_is_absent_is_named() -> None:
    dataset = DatasetMetadata.model_validate(
        {
            "vocabulary_size": 5,
            "eos_id": 4,
            "vocabulary_sha256": "0",
            "parameters": {"packing": "rows", "loss_on": "all", "stride": None},
        }
        | {"splits": {}}
    )
    with pytest.raises(UserError, match=r"^data/dataset/metadata.json: splits: test is missing; type `dvc repro"):
        open_examples("test", dataset, CONTEXT_LENGTH)


def test_metadata_round_trips_and_an_unfinished_dataset_has_none(tmp_path: Path) -> None:
    write_metadata(METADATA, tmp_path)
    assert read_metadata(tmp_path) == METADATA
    start_writing(tmp_path)
    with pytest.raises(UserError, match=r"metadata\.json: not found; without it the dataset is unfinished"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("content", [
    "", "{", "[]", "{}", '{"vocabulary_size": "5"}', "[" * 100_000, METADATA.model_dump_json().replace('"rows":2', '"rows":-2'),
    METADATA.model_dump_json().replace('"eos_id":4', '"eos_id":5'),
    METADATA.model_dump_json().replace('"vocabulary_size":5', '"vocabulary_size":' + "9" * 5000),
])  # fmt: skip
def test_foreign_metadata_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(UserError, match=r"metadata\.json: .*dvc repro build_dataset"):
        read_metadata(tmp_path)
