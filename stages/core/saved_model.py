"""A trained network, and how it reads a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.core.transformer import Transformer


@dataclass(frozen=True)
class SavedModel:
    """A model as it was trained."""

    network: Transformer
    prompts_end_with_eos: bool

    def prompt_ids(self, token_ids: Sequence[int], eos_id: int) -> list[int]:
        """Return what the network reads for a prompt, as it did in training; an empty one begins with <EOS>."""
        return [*token_ids, eos_id] if self.prompts_end_with_eos or not token_ids else list(token_ids)
