import pytest
import torch

from stages.training.muon import MuonWithAdamW
from stages.training.optimization import build_optimizer, learning_rate_factor
from tests.training.conftest import network, train_parameters


def test_warm_up_then_cosine_down_to_the_minimum() -> None:
    parameters = train_parameters(warmup_steps=10, learning_rate=1e-3, min_learning_rate=1e-4)
    factors = [learning_rate_factor(step, parameters, 100) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == max(factors) == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx((1 + 0.1) / 2)
    assert factors[100] == pytest.approx(0.1)


def test_linear_is_halfway_down_at_half_time_and_constant_stays() -> None:
    linear = train_parameters(schedule="linear", warmup_steps=0, min_learning_rate=0.0)
    assert learning_rate_factor(50, linear, 100) == pytest.approx(0.5)
    constant = train_parameters(schedule="constant", warmup_steps=0, min_learning_rate=0.0)
    assert {learning_rate_factor(step, constant, 100) for step in range(200)} == {1.0}


def test_torch_agrees_with_the_cosine() -> None:
    parameters = train_parameters(warmup_steps=0, learning_rate=0.02, min_learning_rate=0.005)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.005)
    for step in range(50):
        assert 0.02 * learning_rate_factor(step, parameters, 50) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("muon", MuonWithAdamW)]
)
def test_weights_decay_and_biases_and_norms_do_not(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = build_optimizer(model, train_parameters(optimizer=name))
    assert type(optimizer) is kind
    decayed = {
        id(parameter) for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    for parameter_name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim >= 2), parameter_name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_cooldown_is_constant_and_then_linear() -> None:
    parameters = train_parameters(
        schedule="cooldown", cooldown_fraction=0.4, warmup_steps=10, learning_rate=1e-3, min_learning_rate=1e-4
    )
    factors = [learning_rate_factor(step, parameters, 100) for step in range(101)]
    assert factors[:10] == sorted(factors[:10])
    assert set(factors[10:61]) == {1.0}
    assert factors[80] == pytest.approx((1 + 0.1) / 2)
    assert factors[100] == pytest.approx(0.1)
    whole = train_parameters(schedule="cooldown", cooldown_fraction=1.0, warmup_steps=0, min_learning_rate=0.0)
    linear = train_parameters(schedule="linear", warmup_steps=0, min_learning_rate=0.0)
    for step in range(101):
        assert learning_rate_factor(step, whole, 100) == pytest.approx(learning_rate_factor(step, linear, 100))


def test_steps_come_from_epochs_or_are_given() -> None:
    assert train_parameters(epochs=30, max_steps=None, batch_size=1).total_steps(2) == 60
    assert train_parameters(epochs=1.5, max_steps=None, batch_size=4).total_steps(10) == 4
    assert train_parameters(max_steps=7).total_steps(1000) == 7


@pytest.mark.parametrize("changed", [{"epochs": 1}, {"max_steps": None}, {"min_learning_rate": 1.0}])
def test_contradictions_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="found"):
        train_parameters(**changed)
