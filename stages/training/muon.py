"""Muon for the matrices inside the blocks, AdamW for all other weights, as one optimiser.

Shapes: R rows (outputs), C columns (inputs), H head_dim; a matrix is P pieces of S rows and L columns, S at most L.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTUM = 0.9
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7

Heads = Literal["rows", "columns", "none"]
"""What belongs to one head of attention: some rows of a matrix, some columns, or nothing."""


class MuonWithAdamW(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the groups that have the keys ``heads`` and ``head_dim``, AdamW for the others.

    Muon replaces a matrix's averaged gradient by the nearest matrix with orthogonal rows or columns, scaled so that the root
    mean square of its numbers is 1 / sqrt(C). Such a step changes what a layer returns by as much in a wide model as in a
    narrow one (Bernstein & Newhouse 2024, section 4). The heads of attention are orthogonalised one by one.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if "heads" not in group]
            super().step()
        finally:
            self.param_groups = groups
        self._step_muon([group for group in groups if "heads" in group])
        return loss

    def _step_muon(self, groups: list[dict[str, Any]]) -> None:
        """Move the matrices; pieces of one shape are orthogonalised at once, those of matrices divided over devices matrix by matrix."""
        moves_of_shape = defaultdict(list)
        for group in groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if isinstance(matrix, DTensor):
                    self._move([(matrix, group)])  # so that a device holds one matrix whole, not all
                else:
                    shape = pieces(matrix, group["heads"], group["head_dim"]).shape[1:]
                    moves_of_shape[shape].append((matrix, group))
        for moves in moves_of_shape.values():
            self._move(moves)

    def _move(self, moves: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """Move matrices whose pieces have one shape, each with its group."""
        updates = [
            pieces(_whole(self._update_average(matrix)), group["heads"], group["head_dim"]) for matrix, group in moves
        ]
        orthogonal = orthogonalise(torch.cat(updates))
        for (matrix, group), step in zip(moves, orthogonal.split([len(update) for update in updates]), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            alpha = -group["lr"] * (step.shape[2] / matrix.shape[1]) ** 0.5
            if isinstance(matrix, DTensor):
                whole = torch.empty(matrix.shape, dtype=step.dtype, device=step.device)
                pieces(whole, group["heads"], group["head_dim"]).copy_(step)
                own = distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)
                matrix.add_(own, alpha=alpha)
            else:
                pieces(matrix, group["heads"], group["head_dim"]).add_(step, alpha=alpha)

    def _update_average(self, matrix: Tensor) -> Tensor:
        """Return the average of the gradients, with Nesterov's look ahead: [R, C]."""
        assert matrix.grad is not None  # noqa: S101 - tells the type checker
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
            state["step"] = torch.zeros(())  # AdamW looks for it when it loads a state
        average = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(average, MOMENTUM)


def _whole(matrix: Tensor) -> Tensor:
    """Return a matrix that may be divided over devices, whole: its singular values are those of all of it."""
    return matrix.full_tensor() if isinstance(matrix, DTensor) else matrix


def pieces(matrix: Tensor, heads: Heads, head_dim: int) -> Tensor:
    """Return a view of a matrix, [R, C], as its heads or as one piece: [P, S, L]."""
    view: Tensor
    match heads:
        case "rows":
            view = matrix.unflatten(0, (-1, head_dim))  # [R, C] -> [P, H, C]
        case "columns":
            view = matrix.unflatten(1, (-1, head_dim)).transpose(0, 1)  # [R, C] -> [R, P, H] -> [P, R, H]
        case "none":
            view = matrix[None]
    return view.mT if view.shape[1] > view.shape[2] else view


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices, [P, S, L], with their singular values brought near to 1, by Newton-Schulz (Jordan et al. 2024).

    Each iteration takes X to (a + b G + c G^2) X, with G = X X^T. All of them are functions of the first G, which is
    small, so that X is multiplied once, at the end. In float32 on a CPU; a GPU multiplies in TF32, which has 10 bits of each
    factor, where the original has bfloat16 with its 7.
    """
    if not matrices.is_cuda:
        return _newton_schulz(matrices)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _newton_schulz(matrices)
    finally:
        torch.set_float32_matmul_precision(precision)


def _newton_schulz(matrices: Tensor) -> Tensor:
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)
    gram = x @ x.mT  # [P, S, S]
    product = factor = _factor(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    orthogonal: Tensor = product @ x
    return orthogonal.type_as(matrices)


def _factor(gram: Tensor) -> Tensor:
    """Return a + b G + c G^2."""
    a, b, c = COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
