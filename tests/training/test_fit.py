import math

import pytest
import torch
from torch._dynamo.utils import counters

from stages.core.transformer import Transformer
from stages.errors import UserError
from stages.training import fit as fit_module
from stages.training.fit import fit
from stages.training.lightning_module import LanguageModel
from tests.training.conftest import examples, network, runtime_parameters, train, train_parameters


def largest_difference(one: Transformer, other: Transformer) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((first - second).detach().abs().max()) for first, second in pairs)


def test_training_again_gives_the_same_weights_and_another_seed_does_not() -> None:
    first, second, other = network(dropout=0.2), network(dropout=0.2), network(dropout=0.2)
    train(first)
    train(second)
    train(other, seed=2)
    assert largest_difference(first, second) == 0
    assert largest_difference(first, other) > 0


def test_gradient_accumulation_does_not_change_the_step() -> None:
    """Rows differ in length, so that means of micro-batches are not the mean over the batch's tokens."""
    whole, parts = network(dropout=0.2), network(dropout=0.2)
    one = train(whole)
    four = train(parts, runtime={"micro_batch_size": 1})
    assert largest_difference(whole, parts) < 1e-4
    assert [step for step, _ in one.curves.train_loss] == [step for step, _ in four.curves.train_loss]
    for (_, first), (_, second) in zip(one.curves.train_loss, four.curves.train_loss, strict=True):
        assert first == pytest.approx(second, abs=1e-4)


def test_a_compiled_network_learns_what_a_plain_one_does_and_compiles_one_shape() -> None:
    """Rows differ in length, and the last batch of a validation in size. One graph trains, one scores."""
    plain, compiled = network(n_layers=1), network(n_layers=1)
    one = train(plain, held_out=9, validate_every=5)
    counters.clear()
    other = train(compiled, held_out=9, validate_every=5, compile=True)
    assert counters["stats"]["unique_graphs"] == 2
    assert largest_difference(plain, compiled) < 1e-3
    for curve in ("train_loss", "validation_loss"):
        assert getattr(other.curves, curve) == [
            (step, pytest.approx(loss, abs=1e-4)) for step, loss in getattr(one.curves, curve)
        ]


def test_the_first_training_loss_is_that_of_the_untrained_model() -> None:
    model = network()
    from stages.core.windows import IGNORE_INDEX  # noqa: PLC0415
    from stages.training.data_module import TrainingBatches  # noqa: PLC0415
    from stages.training.plan import plan_training  # noqa: PLC0415

    batch = TrainingBatches(examples(), plan_training(20, train_parameters(), None, 1), rank=0)[0]
    logits = model(batch.input_ids).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORE_INDEX)
    assert train(model).curves.train_loss[0][1] == pytest.approx(float(expected.detach()), abs=1e-5)


def test_validation_happens_on_time_and_at_the_end() -> None:
    trained = train(network(), held_out=7, validate_every=4)
    assert [step for step, _ in trained.curves.validation_loss] == [4, 8, 10]


def test_validation_without_a_period_happens_once_a_pass() -> None:
    trained = train(network(), held_out=7)
    assert [step for step, _ in trained.curves.validation_loss] == [5, 10]


def test_the_best_weights_are_kept() -> None:
    """With this learning rate the loss first falls, then explodes."""
    model = network()
    trained = train(
        model, held_out=7, validate_every=1, keep="best", learning_rate=0.5, schedule="constant", warmup_steps=0, max_steps=20,
        min_learning_rate=0.0, gradient_clip=0.0,
    )  # fmt: skip
    losses = dict(trained.curves.validation_loss)
    assert losses[trained.kept_step] == min(losses.values())
    assert trained.kept_step < 20
    again = fit(model, examples(), examples(7, seed=1), train_parameters(max_steps=1, learning_rate=1e-12, min_learning_rate=0.0),
                runtime_parameters(), lambda _metrics, _step: None)  # fmt: skip
    assert again.curves.validation_loss[0][1] == pytest.approx(losses[trained.kept_step], abs=1e-5)


def test_patience_stops_a_training_that_no_longer_learns() -> None:
    trained = train(network(), held_out=7, validate_every=1, patience=2, learning_rate=0.5, min_learning_rate=0.0, max_steps=200,
                    schedule="constant")  # fmt: skip
    assert trained.steps < 200


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_step() -> None:
    model = network()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(UserError, match="step 1 of 10"):
        train(model)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_the_step_that_is_named_is_the_first_bad_one(
    micro_batch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.training.history.CURVE_POINTS", 1)
    model = network()

    class BadFrom(LanguageModel):
        def _eager_loss(self, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = super()._eager_loss(input_ids, targets)
            return loss * math.inf if self.trainer.global_step == 6 else loss

    monkeypatch.setattr(fit_module, "LanguageModel", BadFrom)
    with pytest.raises(UserError, match="loss became inf at step 7 of 10"):
        train(model, runtime={"micro_batch_size": micro_batch_size})


def test_memory_that_runs_out_is_told_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(LanguageModel):
        def _eager_loss(self, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.zeros(10**14)

    monkeypatch.setattr(fit_module, "LanguageModel", Huge)
    with pytest.raises(UserError, match=r"out of memory: 2 examples at once.* lower runtime\.micro_batch_size"):
        train(network(), runtime={"micro_batch_size": 2})


def test_another_error_of_torch_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(LanguageModel):
        def _eager_loss(self, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.zeros(2) @ torch.zeros(3)

    monkeypatch.setattr(fit_module, "LanguageModel", Wrong)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        train(network())


@pytest.mark.parametrize("accelerator", ["cuda", "gpu", "mps", "tpu"])
def test_an_accelerator_that_the_machine_lacks_is_told_in_one_line(
    accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    runtime = runtime_parameters(accelerator=accelerator)
    told = f"runtime.accelerator: found {accelerator}, which this machine lacks; allowed here: auto, cpu. Set auto"
    for use in (
        runtime.torch_device,
        lambda: fit(network(), examples(), None, train_parameters(), runtime, lambda *_: None),
    ):
        with pytest.raises(UserError, match=told):
            use()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has what Lightning must miss")
def test_what_lightning_misses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    with pytest.raises(
        UserError, match=r"cannot train with accelerator: cuda, devices: 1.*: `CUDAAccelerator` can not run"
    ):
        train(network(), runtime={"accelerator": "cuda"})


def test_bf16_learns_like_fp32() -> None:
    exact, mixed = train(network(), max_steps=60), train(network(), max_steps=60, precision="bf16-mixed")
    assert mixed.curves.train_loss[-1][1] == pytest.approx(exact.curves.train_loss[-1][1], abs=0.1)
    assert exact.curves.train_loss[-1][1] < exact.curves.train_loss[0][1] / 2


@pytest.mark.parametrize("computed", [True, False])
def test_bfloat16_that_a_cpu_imitates_is_told(
    computed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit_module, "CPU_COMPUTES_BFLOAT16", computed)
    for precision in ("32-true", "bf16-mixed"):
        train(network(), max_steps=1, precision=precision)
    assert capsys.readouterr().err.count("train.precision: bf16-mixed is slow on this CPU") == (not computed)


def test_a_training_keeps_the_memory_that_it_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(fit_module, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    train(network(), max_steps=1)
    assert kept
    assert torch.utils.deterministic.fill_uninitialized_memory is False  # type: ignore[attr-defined]


def test_a_precision_that_the_device_lacks_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="16-mixed"):
        train(network(), precision="16-mixed")
