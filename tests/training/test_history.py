from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.training import fit as fit_module
from stages.training.data_module import Batch, TrainingBatches
from stages.training.fit import fit
from stages.training.lightning_module import LanguageModel
from stages.training.plan import plan_training
from tests.training.conftest import examples, network, runtime_parameters, train, train_parameters

NO_LONGER_LEARNS: dict[str, Any] = {
    "held_out": 7, "validate_every": 2, "patience": 1, "learning_rate": 0.5, "min_learning_rate": 0.0, "max_steps": 200,
    "schedule": "constant",
}  # fmt: skip


@pytest.mark.parametrize("points", [1, 50])
def test_a_training_that_ends_early_has_a_last_point(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    every_step = train(network(), **NO_LONGER_LEARNS)
    monkeypatch.setattr("stages.training.history.CURVE_POINTS", points)
    trained = train(network(), **NO_LONGER_LEARNS)
    every = 200 // points
    assert trained.steps == every_step.steps < 200
    assert trained.steps % every
    assert [step for step, _ in trained.curves.train_loss] == [*range(every, trained.steps, every), trained.steps]
    assert trained.curves.learning_rate == [(step, 0.5) for step, _ in trained.curves.train_loss]
    last = [loss for step, loss in every_step.curves.train_loss if step > trained.steps // every * every]
    assert min(last) <= trained.curves.train_loss[-1][1] <= max(last)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
@pytest.mark.parametrize("points", [4, 500])
def test_each_learning_rate_is_that_of_its_step(
    points: int, micro_batch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the optimiser has it while it steps."""
    used: list[float] = []
    step = torch.optim.AdamW.step

    def note(optimizer: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        used.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    monkeypatch.setattr("stages.training.history.CURVE_POINTS", points)
    trained = train(network(), warmup_steps=3, schedule="linear", runtime={"micro_batch_size": micro_batch_size})
    assert len(set(used)) == len(used) == trained.steps == 10
    assert trained.curves.learning_rate == [(step, used[step - 1]) for step, _ in trained.curves.train_loss]


def test_the_speed_of_training_leaves_validation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step takes a second, and scoring a batch an hour."""
    seconds = 0.0

    class Timed(LanguageModel):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            nonlocal seconds
            seconds += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            nonlocal seconds
            seconds += 3600
            super().validation_step(batch, batch_idx)

    monkeypatch.setattr(fit_module, "LanguageModel", Timed)
    monkeypatch.setattr("stages.training.history.time", SimpleNamespace(perf_counter=lambda: seconds))
    monkeypatch.setattr("stages.training.history.CURVE_POINTS", 2)
    speeds: list[float] = []

    def log(metrics: dict[str, float], _step: int) -> None:
        speeds.extend(value for name, value in metrics.items() if name == "tokens_per_second")

    parameters = train_parameters(validate_every=3)
    fit(network(), examples(), examples(7, seed=1), parameters, runtime_parameters(), log)
    batches = TrainingBatches(examples(), plan_training(20, parameters, None, 1), rank=0)
    tokens = [batches[index].input_ids.numel() for index in range(10)]
    assert speeds == [sum(tokens[:5]) / 5, sum(tokens[5:]) / 5]
