"""Muon beside torch's own and beside a singular value decomposition, and AdamW for what is no matrix of a block."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.transformer import Transformer
from stages.training.muon import COEFFICIENTS, ITERATIONS, MOMENTUM, Heads, MuonWithAdamW, orthogonalise, pieces
from stages.training.optimization import MUON_RATE, build_optimizer
from tests.training.conftest import network, train_parameters

RATE, DECAY = 0.01, 0.2
PARAMETERS = train_parameters(optimizer="muon", learning_rate=RATE, weight_decay=DECAY)


def model(**changed: Any) -> Transformer:
    return network(d_model=32, n_heads=1, d_ff=80, norm="rms", feed_forward="swiglu", **changed)


def set_gradients(network: Transformer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in network.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


def moved(network: Transformer, optimizers: list[torch.optim.Optimizer], steps: range = range(4)) -> dict[str, Tensor]:
    """Return how far each weight goes."""
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for step in steps:
        set_gradients(network, step)
        for optimizer in optimizers:
            optimizer.step()
    return {name: weight.detach() - before[name] for name, weight in network.named_parameters()}


def test_steps_equal_those_of_torchs_muon_and_adamw() -> None:
    """With one head of queries, keys and values in each matrix, so that ours takes nothing apart that torch's does not."""
    ours, theirs = model(), model()
    hidden = {f"blocks.{name}" for name, weight in theirs.blocks.named_parameters() if weight.ndim == 2}
    whole = {name for name in hidden if "queries_keys_values" not in name}
    rest: list[dict[str, Any]] = [
        {"params": [weight for name, weight in theirs.named_parameters() if name not in hidden and weight.ndim >= 2]},
        {"params": [weight for weight in theirs.parameters() if weight.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.99), weight_decay=DECAY)
    matrices = [theirs.get_parameter(name) for name in whole]
    muon = torch.optim.Muon(
        matrices, lr=MUON_RATE * RATE, weight_decay=DECAY, momentum=MOMENTUM, adjust_lr_fn="original"
    )
    found, expected = moved(ours, [build_optimizer(ours, PARAMETERS)]), moved(theirs, [muon, adamw])
    for name in found.keys() - (hidden - whole):
        # torch computes Muon in bfloat16, whose 8 bits are 0.4% a number.
        tolerance = 0.03 if name in whole else 1e-5
        assert (found[name] - expected[name]).norm() <= tolerance * expected[name].norm(), name


@pytest.mark.parametrize("heads", ["rows", "columns"])
def test_each_head_is_moved_as_torchs_muon_moves_a_matrix_of_its_own(heads: Heads) -> None:
    weight = torch.nn.Parameter(torch.randn(24, 24))
    own = [torch.nn.Parameter(piece.clone()) for piece in pieces(weight.detach(), heads, 8)]
    ours = MuonWithAdamW([{"params": [weight], "heads": heads, "head_dim": 8}], lr=0.1, weight_decay=0.0)
    theirs = torch.optim.Muon(own, lr=0.1, weight_decay=0.0, momentum=MOMENTUM, adjust_lr_fn="original")
    before = weight.detach().clone()
    for _ in range(3):
        weight.grad = torch.randn(24, 24)
        for matrix, gradient in zip(own, pieces(weight.grad, heads, 8), strict=True):
            matrix.grad = gradient.clone()
        ours.step()
        theirs.step()
    found, start = pieces(weight.detach(), heads, 8), pieces(before, heads, 8)
    for after, matrix, first in zip(found, own, start, strict=True):
        assert (after - matrix.detach()).norm() <= 0.03 * (matrix.detach() - first).norm()


def test_heads_are_rows_of_queries_keys_and_values_and_columns_of_the_projection() -> None:
    network = model()
    names = {weight: name for name, weight in network.named_parameters()}
    groups = build_optimizer(network, PARAMETERS).param_groups
    found = {
        group["heads"]: {names[weight].split(".", 2)[2] for weight in group["params"]}
        for group in groups
        if "heads" in group
    }
    assert found == {
        "rows": {"attention.queries_keys_values.weight"},
        "columns": {"attention.projection.weight"},
        "none": {f"feed_forward.{part}.weight" for part in ("gate", "up", "down")},
    }


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 20), (2, 30, 31)])
def test_each_singular_value_goes_through_the_paper_s_polynomial(shape: tuple[int, ...]) -> None:
    a, b, c = COEFFICIENTS
    matrices = torch.randn(shape, dtype=torch.double)
    left, values, right = torch.linalg.svd(
        matrices / torch.linalg.matrix_norm(matrices, keepdim=True), full_matrices=False
    )
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    expected = left @ torch.diag_embed(values) @ right
    torch.testing.assert_close(orthogonalise(matrices), expected)
    torch.testing.assert_close(orthogonalise(matrices.float()), expected.float(), atol=1e-3, rtol=1e-3)
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("width", [32, 128])
def test_a_step_has_the_same_size_for_what_a_layer_returns_in_every_width(width: int) -> None:
    """The root mean square of each matrix's step is the rate over the square root of its inputs."""
    wide = network(d_model=width, n_heads=2)
    parameters = train_parameters(optimizer="muon", learning_rate=RATE, weight_decay=0.0)
    steps = moved(wide, [build_optimizer(wide, parameters)], range(1))
    for name, weight in wide.blocks.named_parameters():
        if weight.ndim == 2:
            size = steps[f"blocks.{name}"].square().mean().sqrt() * weight.shape[1] ** 0.5
            assert 0.7 < size / (MUON_RATE * RATE) < 1.2, name


def test_a_saved_state_goes_on_as_if_it_never_stopped() -> None:
    whole, first, second = (model(n_kv_heads=1) for _ in range(3))
    moved(whole, [build_optimizer(whole, PARAMETERS)], range(6))
    optimizer = build_optimizer(first, PARAMETERS)
    moved(first, [optimizer], range(3))
    second.load_state_dict(first.state_dict())
    again = build_optimizer(second, PARAMETERS)
    again.load_state_dict(optimizer.state_dict())
    moved(second, [again], range(3, 6))
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), second.parameters(), strict=True))
