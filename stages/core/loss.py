"""The training loss: cross-entropy in nats, summed, so that the caller decides what it is an average over.

Shapes: B batch, T tokens, D d_model, V vocabulary size.
"""

from torch import Tensor, nn
from torch.nn import functional

IGNORE_INDEX = -100
"""The target of a place that is not scored."""


def summed_loss(hidden: Tensor, output: nn.Linear, targets: Tensor) -> Tensor:
    """Return the sum of -ln p(target) over all scored places, a float32 scalar in nats.

    Args:
        hidden: [B, T, D], what the output layer reads.
        output: the layer from D to V.
        targets: int64 [B, T]; IGNORE_INDEX: not scored.
    """
    logits = output(hidden)  # [B, T, V]
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
