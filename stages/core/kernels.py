"""What the machine asks for: which form of attention, in which type of numbers, and how dropout draws.

Nothing here changes what a model computes, beyond last digits; ``transformer`` says what that is. Shapes: B batch, T new
tokens, S tokens to attend to, N query heads, K heads of keys and values, H head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# --------------------------------------------------------------------------------------------------- random numbers

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""SplitMix64's constants, 0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9 and 0x94D0_49BB_1331_11EB, as signed numbers."""

_WORDS_AT_ONCE = 1 << 15
"""256 KiB: what one thread of a CPU mixes at once without leaving its cache."""


def random_words(seeds: Tensor, numbers: Tensor) -> Tensor:
    """Return for each seed its random words of 64 bits with some numbers, int64 [R, ...].

    A word is a function of its seed and its number alone, on every device: SplitMix64 (Steele et al. 2014, figure 14), but
    for its last step, which adds, where torch has no shift of unsigned numbers.

    Args:
        seeds: int64 [R].
        numbers: int64 [...], of the words; a seed's first word has the number 1.
    """
    # A compiler knows how large indices are, takes these numbers for some, and would multiply such ones in 32 bits, or
    # beforehand, without wrapping. It knows nothing of them after these two operations, which change none.
    numbers = (numbers ^ _GOLDEN) ^ _GOLDEN
    words = seeds.view(-1, *[1] * numbers.dim()) + numbers * _GOLDEN
    for some in words.split(_rows_at_once(words)):
        _mix(some)
    return words


def _mix(words: Tensor) -> None:
    """Mix each word's bits in place."""
    words ^= words >> 30
    words *= _FIRST
    words ^= words >> 27
    words *= _SECOND
    words += words >> 32


def _rows_at_once(words: Tensor) -> int:
    if torch.compiler.is_compiling() or words.device.type != "cpu":
        return len(words)
    return max(1, _WORDS_AT_ONCE * torch.get_num_threads() // max(1, words[:1].numel()))


# ---------------------------------------------------------------------------------------------------------- dropout

_DRAWS = 1 << 16
_WORDS_APART = 1 << 20
"""Random words for what dropout draws at one token: more than a row's width, or than the longest context."""


class Dropout(nn.Module):
    """Zero numbers at random in training, and scale the others so that the mean stays: Srivastava et al. 2014."""

    row_seeds: Tensor | None
    """int64 [B], the seed of each row of the next batch; None: torch's global generator draws them."""

    def __init__(self, p: float) -> None:
        """Set the probability that a number becomes zero: 0 to 1, 1 excluded."""
        super().__init__()
        self.p = p
        self.row_seeds = None

    @property
    def acts(self) -> bool:
        """Whether anything is zeroed now."""
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] to the same shape."""
        if not self.acts:
            return x
        seeds = self.row_seeds
        return drop(x, self.p, torch.randint(1 << 62, (len(x),), device=x.device) if seeds is None else seeds)


def drop(x: Tensor, dropout_p: float, row_seeds: Tensor) -> Tensor:
    """Zero numbers with a probability, and scale the others.

    What is zeroed in a row depends on its seed alone, whatever other rows are in the batch, and whatever padding follows
    its own tokens. Each number takes 16 random bits, so that the probability is rounded to a multiple of 2^-16.

    Args:
        x: [B, T, D], or weights of attention, [B, N, T, S].
        dropout_p: 0 to 1, 1 excluded.
        row_seeds: int64 [B].
    """
    dropped = min(round(dropout_p * _DRAWS), _DRAWS - 1)
    *places, width = x.shape[1:]
    # Inductor's vectors of int64 write beyond other ends.
    words_wide = 16 * -(-width // 64) if torch.compiler.is_compiling() else -(-width // 4)  # 4 draws to a word
    # Token by token and, of one, head by head, each far from the next: neither T nor S moves a number.
    begins = torch.arange(math.prod(places), device=x.device).view(places[::-1]).permute(list(range(len(places)))[::-1])
    numbers = begins[..., None] * _WORDS_APART + torch.arange(1, words_wide + 1, device=x.device)  # [T, W] or [N, T, W]
    draws = random_words(row_seeds, numbers).view(torch.int16)[..., :width]
    kept = torch.ge(draws, dropped - _DRAWS // 2, out=torch.empty_like(x))
    return x * kept.mul_(_DRAWS / (_DRAWS - dropped))


def seed_dropout(network: nn.Module, row_seeds: Tensor) -> None:
    """Make all dropout of the next forward pass a function of the rows' seeds, int64 [B], on the network's device."""
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    numbers = torch.arange(1, len(layers) + 1, device=row_seeds.device)
    for layer, seeds in zip(layers, random_words(row_seeds, numbers).unbind(1), strict=True):
        layer.row_seeds = seeds


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
    """Return the context, [B, N, T, H], in whichever way is fastest; arguments as for ``explicit_attention``.

    With dropout that is step by step: the fused operation draws for the batch as a whole, so that what it drops in a row
    would depend on how rows are shared out to devices.
    """
    if dropout.acts or _is_bfloat16_on_cpu(queries):
        return definition(queries, keys, values, dropout)[0]
    return fused_attention(queries, keys, values)


def to_attention_dtype(qkv: Tensor, dropout: Dropout) -> Tensor:
    """Return queries, keys and values, [B, T, (N+2K)H], in the type of numbers in which ``attend`` is fast.

    A CPU's fused operation is slow in bfloat16, above all backward. There a training attends step by step in bfloat16,
    where the CPU computes it and the tokens are few; else the fused operation takes float32. Casting before the heads are
    taken apart makes one copy, where casting queries, keys and values by themselves makes three.
    """
    if not _is_bfloat16_on_cpu(qkv) or dropout.acts:
        return qkv
    explicit_is_faster = torch.is_grad_enabled() and CPU_COMPUTES_BFLOAT16 and qkv.shape[1] <= FEW_TOKENS
    return qkv if explicit_is_faster else qkv.float()


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Attend in one fused operation (Dao et al. 2022), which needs memory in proportion to T instead of T^2.

    Args:
        queries: [B, N, T, H].
        keys: [B, K, S, H]; without a mask S = T, or T = 1.
        values: [B, K, S, H].
        attention_mask: bool [B, 1, T, S] or [T, S]: which tokens are attended to; None: every token up to the query's own.

    Returns:
        the context, [B, N, T, H].
    """
    if torch.is_autocast_enabled("cpu") and queries.device.type == "cpu" and queries.dtype == torch.float32:
        with torch.autocast("cpu", enabled=False):  # it would cast back to bfloat16
            return fused_attention(queries, keys, values, attention_mask)
    return functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=attention_mask,
        is_causal=attention_mask is None and queries.shape[-2] > 1,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


def _is_bfloat16_on_cpu(like: Tensor) -> bool:
    return like.dtype == torch.bfloat16 and like.device.type == "cpu"


# ------------------------------------------------------------------------------------------- norms and activations


class _RootMeanSquareNorm(torch.autograd.Function):
    """RMSNorm in few passes over the memory: torch's own on a CPU is made of many, most of them backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x w / sqrt(mean(x^2) + eps), [..., D]."""
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and w: for x, scale (g w - x scale^2 mean(g w x))."""
        x, weight, scale = ctx.saved_tensors
        products = (gradient * x).flatten(0, -2)  # [rows, D]
        scales = scale.flatten()  # [rows]
        means = products @ weight / x.shape[-1]  # [rows]
        of_x = torch.mul(gradient, weight).mul_(scale).addcmul_(x, (-means * scales**3).view_as(scale))
        return of_x, products.T @ scales, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x w / sqrt(mean(x^2) + eps) in the type of ``x``: RMSNorm (Zhang & Sennrich 2019) of the last dimension.

    Args:
        x: [..., D], two dimensions or more.
        weight: [D].
        eps: added to the mean square.
    """
    if _trains_on_cpu(x) and x.dtype == weight.dtype == torch.float32:
        normalised: Tensor = _RootMeanSquareNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return normalised
    return functional.rms_norm(x, weight.shape, weight.type_as(x), eps).type_as(x)


class _SquaredRelu(torch.autograd.Function):
    """max(0, x)^2, which keeps one tensor for its gradient, where relu and square keep two and take more passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return max(0, x)^2."""
        positive = functional.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return 2 max(0, x) g."""
        (positive,) = ctx.saved_tensors
        return torch.mul(gradient, positive).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """Return max(0, x)^2: So et al. 2021, section 3.2."""
    if _trains_on_cpu(x):
        squared: Tensor = _SquaredRelu.apply(x)  # type: ignore[no-untyped-call]
        return squared
    return functional.relu(x).square()


def _trains_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


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
