import numpy as np
import pytest
import torch

from stages.core.windows import IGNORE_INDEX
from stages.errors import UserError
from stages.training.data_module import Batch, ScoringBatches, TrainingBatches
from stages.training.plan import TrainingPlan, plan_training
from tests.training.conftest import CONTEXT_LENGTH, EOS_ID, examples, train_parameters


def plan(batch_size: int = 4, micro_batch_size: int | None = None, devices: int = 1, rows: int = 20) -> TrainingPlan:
    return plan_training(
        rows, train_parameters(batch_size=batch_size, epochs=2, max_steps=None), micro_batch_size, devices
    )


def texts(batch: Batch) -> list[tuple[int, ...]]:
    """The scored targets of each example: what tells it from the others, whatever it is padded to."""
    return [tuple(row[row != IGNORE_INDEX].tolist()) for row in batch.targets]


@pytest.mark.parametrize("listed", [True, False])
def test_every_pass_sees_every_example_once(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not listed:
        monkeypatch.setattr("stages.training.data_module.MOST_LISTED", 0)
    batches = TrainingBatches(examples(), plan(), rank=0)
    seen = [text for index in range(len(batches)) for text in texts(batches[index])]
    everything = texts(ScoringBatches(examples(), 20)[0])
    assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(everything)
    assert seen[:20] != seen[20:]


def test_a_batch_is_a_function_of_its_number_alone() -> None:
    batches = TrainingBatches(examples(), plan(), rank=0)
    forwards = [batches[index].input_ids for index in range(len(batches))]
    again = TrainingBatches(examples(), plan(), rank=0)
    backwards = [again[index].input_ids for index in reversed(range(len(batches)))]
    assert all(torch.equal(one, other) for one, other in zip(forwards, reversed(backwards), strict=True))


@pytest.mark.parametrize(("micro_batch_size", "devices"), [(2, 1), (1, 1), (None, 2), (1, 2)])
def test_devices_and_micro_batches_share_a_step_without_changing_it(micro_batch_size: int | None, devices: int) -> None:
    whole = TrainingBatches(examples(), plan(), rank=0)
    shared = plan(micro_batch_size=micro_batch_size, devices=devices)
    ranks = [TrainingBatches(examples(), shared, rank) for rank in range(devices)]
    for step in range(len(whole)):
        parts = [
            ranks[rank][step * shared.micro_batches + part]
            for rank in range(devices)
            for part in range(shared.micro_batches)
        ]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), whole[step].input_ids)
        assert {part.scored_in_step for part in parts} == {whole[step].scored_in_step}


def test_a_step_may_reach_into_the_next_pass() -> None:
    batches = TrainingBatches(examples(6), plan(batch_size=4, rows=6), rank=0)
    assert len(batches) == 3
    assert all(len(batches[index].input_ids) == 4 for index in range(3))


@pytest.mark.parametrize("listed", [True, False])
def test_a_stream_is_cut_anew_in_each_pass_into_full_contexts(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not listed:
        monkeypatch.setattr("stages.training.data_module.MOST_LISTED", 0)
    stream = examples(40, packing="stream")
    rows = stream.examples_per_epoch()
    batches = TrainingBatches(stream, plan(batch_size=rows, rows=rows), rank=0)
    first, second = (batches[index].input_ids for index in range(2))
    assert first.shape == second.shape == (rows, CONTEXT_LENGTH)
    assert {tuple(row) for row in first.tolist()} != {tuple(row) for row in second.tolist()}


@pytest.mark.parametrize("packing", ["rows", "stream"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_scoring_covers_every_target_once(packing: str, world_size: int) -> None:
    split = examples(17, packing=packing)
    scored = [
        batch.scored_in_step
        for rank in range(world_size)
        for batch in (
            ScoringBatches(split, 4, rank, world_size)[index]
            for index in range(len(ScoringBatches(split, 4, rank, world_size)))
        )
    ]
    tokens = int(split.spans.row_offsets[-1])
    assert sum(scored) == tokens - (17 if packing == "rows" else 1)


def test_a_split_shorter_than_one_context_is_one_example() -> None:
    stream = examples(1, packing="stream")
    assert stream.examples_per_epoch() == 1
    assert TrainingBatches(stream, plan(batch_size=1, rows=1), rank=0)[0].input_ids[0, -1] != EOS_ID


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "devices", "told"),
    [(21, None, 1, "allowed: 1 to 20"), (5, None, 2, "multiple of 2"), (6, 4, 1, "does not divide")],
)
def test_a_batch_that_does_not_fit_is_refused(
    batch_size: int, micro_batch_size: int | None, devices: int, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        plan(batch_size, micro_batch_size, devices)


def test_order_differs_between_seeds() -> None:
    def first(seed: int) -> list[int]:
        chosen = plan_training(20, train_parameters(seed=seed), None, 1)
        return TrainingBatches(examples(), chosen, rank=0)[0].input_ids.flatten().tolist()

    assert first(1) != first(2)
    assert np.array_equal(first(1), first(1))
