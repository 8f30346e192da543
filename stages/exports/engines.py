"""What every foreign engine does for a proof, and how one that is not installed is named."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from stages.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

INSTALL = "install the engines with `pip install '.[export]'`"


class Engine(Protocol):
    """A program of others that has opened an export."""

    @property
    def name(self) -> str:
        """The program and its version."""

    @property
    def tolerance(self) -> float:
        """How far a log-probability may be from ours, as a share of the largest logit."""

    @property
    def spare(self) -> int:
        """How many tokens of the context it keeps free when it is asked for logits."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt by the export's own tokenizer, ended as the model was taught."""

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the logits, each row up to a constant, after all tokens of a text or only the last: [T or 1, V]."""

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Return the greedy completions of prompts of one length, each up to <EOS> and with it."""


def require(package: str, purpose: str) -> Any:
    """Import a package of the optional extra ``export``.

    Args:
        package: its name.
        purpose: what it is needed for, to complete "transformers is needed ...".

    Raises:
        UserError: it is not installed.
    """
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{package} is needed {purpose}, and cannot be imported ({error}); {INSTALL}") from None
    if package == "transformers":  # its progress bars and advice are about models of others
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
    return module


def named(package: str) -> str:
    """Return a package's name with its version."""
    return f"{package} {version(package)}"


def cut_at_eos(token_ids: Sequence[int], eos_id: int) -> list[int]:
    """Return token ids up to the first <EOS>, and with it."""
    ids = [int(token_id) for token_id in token_ids]
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids
