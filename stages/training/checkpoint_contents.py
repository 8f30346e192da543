"""What a checkpoint of a training must hold: a file with a right hash may still be anyone's.

Each number in it goes into the training unseen, so that a wrong shape, type or count would end it much later, with a traceback.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeGuard

import lightning
import torch

from stages.training.checkpoint_parts import Rows
from stages.training.lightning_module import LanguageModel
from stages.training.plan import TrainingPlan

_WEIGHT_TYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
"""By train.precision; float32 where it is absent."""
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
_LARGEST_COUNT = 2**62
_VERSION = re.compile(r"\d+\.\d+\.\d+(\.?(post|dev|rc)\d+)?", re.ASCII)


class ListOf(NamedTuple):
    """A list of any length."""

    item: Any


class OneOf(NamedTuple):
    """One of several things."""

    options: tuple[Any, ...]


def expected_contents(trainer: lightning.Trainer, module: LanguageModel, precision: str) -> dict[str, Any]:
    """Return an example of each thing that a checkpoint of this training holds; its tensors take no memory."""
    made = module.configure_optimizers()
    weights = {name: _like(value, precision) for name, value in module.network.state_dict().items()}
    curve = ListOf((0, 0.0))
    # What an example that has just been made lacks.
    of_callbacks: dict[str, dict[str, Any]] = {
        "TrainingHistory": {"curves": dict.fromkeys(("train_loss", "learning_rate", "validation_loss"), curve)},
        "BestWeights": {"step": OneOf((None, 0)), "weights": OneOf(({}, weights))},
        "EarlyStopping": {"stopping_reason_message": OneOf((None, ""))},
    }
    callbacks = {
        callback.state_key: state | of_callbacks.get(type(callback).__name__, {})
        for callback in trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if (state := callback.state_dict())
    }
    precision_state = trainer.precision_plugin.state_dict()
    return ({type(trainer.precision_plugin).__qualname__: precision_state} if precision_state else {}) | {
        "fingerprint": "",
        "global_step": 0,
        "pytorch-lightning_version": "",
        "state_dict": {f"network.{name}": value for name, value in weights.items()},
        "loops": {name: getattr(trainer, name).state_dict() for name in _LOOPS},
        "callbacks": callbacks,
        "optimizer_states": [_expected_optimizer(made["optimizer"], precision)],
        "lr_schedulers": [made["lr_scheduler"]["scheduler"].state_dict()],
        "TokenDataModule": {"step": 0},
    }


def check_contents(state: Mapping[str, Any], expected: Mapping[str, Any], step: int, plan: TrainingPlan) -> None:
    """Check what a training would go on with.

    Args:
        state: the checkpoint; what it holds beside ``expected`` is Lightning's to read.
        expected: from ``expected_contents``.
        step: the one that its file is named by.
        plan: of the training.

    Raises:
        ValueError: something cannot be gone on with; the message names it.
    """
    for name, example in expected.items():
        if name not in state:
            raise ValueError(f"{name}: absent")
        _check(state[name], example, name)
    progress = state["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    steps = {state["global_step"], state["TokenDataModule"]["step"], progress["total"]["completed"]}
    if steps != {step} or step > plan.steps:
        raise ValueError(f"global_step: expected {step} of {plan.steps} throughout, found {sorted(steps)}")
    losses = state.get("step_losses")
    if not _is_plain(losses) or losses.dtype != torch.float64 or losses.ndim != 1 or len(losses) > step:
        raise ValueError(f"step_losses: expected float64 [at most {step}], found {_kind(losses)}")
    if not _VERSION.fullmatch(state["pytorch-lightning_version"]):
        raise ValueError("pytorch-lightning_version: expected a version")


def _expected_optimizer(optimizer: torch.optim.Optimizer, precision: str) -> dict[str, Any]:
    groups = optimizer.param_groups
    weights = [(weight, "heads" in group) for group in groups for weight in group["params"]]
    states = {}
    for number, (weight, is_muon) in enumerate(weights):
        averages = ("momentum_buffer",) if is_muon else ("exp_avg", "exp_avg_sq")
        states[number] = {"step": torch.zeros(())} | dict.fromkeys(averages, _like(weight, precision))
    return optimizer.state_dict() | {"state": states}


def _like(value: torch.Tensor, precision: str) -> torch.Tensor:
    return torch.empty_like(value, device="meta", dtype=_WEIGHT_TYPES.get(precision, torch.float32))


def _check(found: Any, expected: Any, place: str) -> None:
    """Compare a thing with an example of what it must be, and all that is in it.

    Raises:
        ValueError: it is another kind of thing.
    """
    match expected:
        case OneOf(options):
            _check_options(found, options, place)
        case torch.Tensor():
            plain = _is_plain(found.own if isinstance(found, Rows) else found)
            same = plain and (found.shape, found.dtype) == (expected.shape, expected.dtype)
            _require(found, expected, place, same=same)
        case Mapping():
            _require(found, expected, place, same=isinstance(found, Mapping))
            for key in [*expected, *found]:
                if key not in found or key not in expected:
                    raise ValueError(f"{place}.{key}: {'absent' if key in expected else 'unexpected'}")
                _check(found[key], expected[key], f"{place}.{key}")
        case list() | tuple() | ListOf():
            items = [expected.item] * len(found) if isinstance(expected, ListOf) and type(found) is list else expected
            _require(found, items, place, same=type(found) is type(items) and len(found) == len(items))
            for number, (one, example) in enumerate(zip(found, items, strict=True)):
                _check(one, example, f"{place}[{number}]")
        case _:
            too_large = type(found) is int and abs(found) > _LARGEST_COUNT
            _require(found, expected, place, same=type(found) is type(expected) and not too_large)


def _check_options(found: Any, options: tuple[Any, ...], place: str) -> None:
    """Check that a thing is one of several; the error is that of the last one."""
    for option in options[:-1]:
        with suppress(ValueError):
            return _check(found, option, place)
    return _check(found, options[-1], place)


def _require(found: Any, expected: Any, place: str, *, same: bool) -> None:
    if not same:
        raise ValueError(f"{place}: expected {_kind(expected)}, found {_kind(found)}")


def _is_plain(value: Any) -> TypeGuard[torch.Tensor]:
    """Return whether it is a tensor with memory of its own for each of its numbers."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.is_contiguous()
    )


def _kind(value: Any) -> str:
    """Return what a thing is, in a few words."""
    if isinstance(value, torch.Tensor | Rows):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list | tuple | Mapping):
        return f"{type(value).__name__} of {len(value)}"
    return "null" if value is None else type(value).__name__
