"""The training loss: cross-entropy in nats, summed, so that the caller decides what it is an average over.

Shapes: B batch, T tokens, D d_model, V vocabulary size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.windows import IGNORE_INDEX

_MOST_LOGITS = 2**25
"""Logits held at once on CPU, 128 MiB in float32; fewer than that are faster in one piece."""


def summed_loss(hidden: Tensor, output: nn.Linear, targets: Tensor) -> Tensor:
    """Return the sum of -ln p(target) over all scored places, a scalar in nats: float32, float64 where logits are.

    On CPU, where all logits together would be large, they are computed piece by piece in its type, each piece with its
    gradients, so that memory does not grow with B T V. On other devices they are computed at once.

    Args:
        hidden: [B, T, D], what the output layer reads.
        output: the layer from D to V.
        targets: int64 [B, T]; IGNORE_INDEX: not scored.
    """
    rows = hidden.flatten(0, 1)  # [B, T, D] -> [B T, D]
    row_targets = targets.flatten()  # [B, T] -> [B T]
    if hidden.device.type == "cpu" and len(rows) * output.out_features > _MOST_LOGITS:
        return functional.linear_cross_entropy(
            _at_least_float32(rows),
            _at_least_float32(output.weight),
            row_targets,
            linear_bias=None if output.bias is None else _at_least_float32(output.bias),
            reduction="sum",
            ignore_index=IGNORE_INDEX,
            options=nn.LinearCrossEntropyOptions(
                batch_chunk_size=max(1, _MOST_LOGITS // output.out_features),
                chunking_method=None,
                allow_retain_graph=torch.compiler.is_compiling(),
            ),
        )
    logits = output(rows)  # [B T, V]
    return functional.cross_entropy(_at_least_float32(logits), row_targets, ignore_index=IGNORE_INDEX, reduction="sum")


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
