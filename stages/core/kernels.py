"""What the machine asks for: which form of attention, in which type of numbers, and how dropout draws.

Nothing here changes what a model computes, beyond last digits; ``transformer`` says what that is. Shapes: B batch, T new
tokens, S tokens to attend to, N query heads, K heads of keys and values, H head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# ---------------------------------------------------------------------------------------------------------- dropout

_DRAWS = 1 << 16


class Dropout(nn.Module):
    """Zero numbers at random in training, and scale the others so that the mean stays: Srivastava et al. 2014."""

    def __init__(self, p: float) -> None:
        """Set the probability that a number becomes zero: 0 to 1, 1 excluded."""
        super().__init__()
        self.p = p

    @property
    def acts(self) -> bool:
        """Whether anything is zeroed now."""
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of its shape."""
        return drop(x, self.p) if self.acts else x


def drop(x: Tensor, dropout_p: float) -> Tensor:
    """Zero numbers with a probability, and scale the others.

    torch's own asks a CPU's generator, which knows no threads, for 64 bits a number. Here a CPU draws 16: the
    probability is rounded to a multiple of 2^-16, and a layer's dropout takes a quarter of the time.

    Args:
        x: of any shape.
        dropout_p: 0 to 1, 1 excluded.
    """
    if x.device.type != "cpu":
        return functional.dropout(x, dropout_p)
    dropped = min(round(dropout_p * _DRAWS), _DRAWS - 1)
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-x.numel() // 4),))
    draws = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(draws, dropped - _DRAWS // 2, out=torch.empty_like(x))
    return x * kept.mul_(_DRAWS / (_DRAWS - dropped))


# -------------------------------------------------------------------------------------------------------- attention

Definition = Callable[[Tensor, Tensor, Tensor, Dropout], tuple[Tensor, Tensor]]
"""``transformer.explicit_attention``, which defines what attention is."""

Attend = Callable[[Definition, Tensor, Tensor, Tensor, Dropout], Tensor]
"""Anything that computes the context of attention as ``attend`` does."""

_CPU_CAN = torch.cpu.get_capabilities()

CPU_COMPUTES_BFLOAT16 = any(_CPU_CAN.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
"""Whether this CPU, x86 or ARM, has instructions for bfloat16; without them, bfloat16 is imitated and slow."""

FEW_TOKENS = 512
"""The most tokens for which training in bfloat16 attends explicitly on a CPU; its memory grows with their square."""


def attend(definition: Definition, queries: Tensor, keys: Tensor, values: Tensor, dropout: Dropout) -> Tensor:
    """Return the context, [B, N, T, H], in whichever way is fastest; arguments as for ``explicit_attention``."""
    if _explicit_is_faster(queries, queries.shape[2], dropout):
        return definition(queries, keys, values, dropout)[0]
    return fused_attention(queries, keys, values, dropout_p=dropout.p if dropout.acts else 0.0)


def to_attention_dtype(qkv: Tensor, dropout: Dropout) -> Tensor:
    """Return queries, keys and values, [B, T, (N+2K)H], in the type of numbers in which ``attend`` is fast.

    A CPU's fused operation is slow in bfloat16, above all backward. Casting before the heads are taken apart makes one
    copy, where casting queries, keys and values by themselves makes three.
    """
    if _is_bfloat16_on_cpu(qkv) and not _explicit_is_faster(qkv, qkv.shape[1], dropout):
        return qkv.float()
    return qkv


def fused_attention(
    queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Attend in one fused operation (Dao et al. 2022), which needs memory in proportion to T instead of T^2.

    Args:
        queries: [B, N, T, H].
        keys: [B, K, S, H]; S = T, or T = 1.
        values: [B, K, S, H].
        attention_mask: bool [B, 1, T, S]: which tokens are attended to; None: every token up to the query's own.
        dropout_p: the probability that an attention weight becomes zero.

    Returns:
        the context, [B, N, T, H].
    """
    if torch.is_autocast_enabled("cpu") and queries.device.type == "cpu" and queries.dtype == torch.float32:
        with torch.autocast("cpu", enabled=False):  # it would cast back to bfloat16
            return fused_attention(queries, keys, values, attention_mask, dropout_p)
    return functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=attention_mask,
        dropout_p=dropout_p,
        is_causal=attention_mask is None and queries.shape[-2] > 1,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


def _is_bfloat16_on_cpu(like: Tensor) -> bool:
    return like.dtype == torch.bfloat16 and like.device.type == "cpu"


def _explicit_is_faster(like: Tensor, tokens: int, dropout: Dropout) -> bool:
    """Return whether training attends faster step by step than fused.

    On a CPU it does with dropout, for which torch has no fused operation there, and in bfloat16, where fusing takes
    float32.
    """
    if like.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return dropout.acts or (like.dtype == torch.bfloat16 and CPU_COMPUTES_BFLOAT16 and tokens <= FEW_TOKENS)


# ----------------------------------------------------------------------------------------------------- module calls

_Module = TypeVar("_Module", bound=nn.Module)

_OF_EACH_CLASS = ("__dict__", "__weakref__")
"""Members that Python makes anew for each class."""


def without_module_calls(module: _Module) -> _Module:
    """Return a twin that runs the same ``forward`` methods on the same weights, in less time for each call.

    For a small model at batch 1, what ``nn.Module`` does around a call and around the look-up of a part takes a good share
    of the time. In the twin, parameters, buffers and parts are plain attributes, and calling a part is calling its
    ``forward``. Hooks are not called, and what is later assigned to the module's attributes does not reach the twin.
    """
    if isinstance(module, nn.ModuleList):
        return cast("_Module", [without_module_calls(part) for part in module])
    kind: Any = type(module)
    twin: Any = object.__new__(_plain_class(kind))
    parts = {name: part and without_module_calls(part) for name, part in module._modules.items()}  # noqa: SLF001
    vars(twin).update(vars(module), **module._parameters, **module._buffers, **parts)  # noqa: SLF001
    return cast("_Module", twin)


@cache
def _plain_class(kind: type[nn.Module]) -> type:
    """Return a class with the methods of a module's class, but none of ``nn.Module``."""
    own = [each for each in reversed(kind.__mro__) if each not in nn.Module.__mro__]
    members = {name: member for each in own for name, member in vars(each).items() if name not in _OF_EACH_CLASS}
    return type(kind.__name__, (), members | {"__call__": kind.forward})
