"""Decide from its text alone which split a row belongs to, so that a row never moves when others are added."""

import hashlib
from collections.abc import Sequence
from typing import Literal, Self, get_args

import pydantic

from stages.core.params_model import ParamsModel

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_FRACTION_BITS = 53  # as many as a float holds exactly


class SplitParams(ParamsModel):
    """Which rows are held out: fractions of them, or what a column says."""

    validation: float = pydantic.Field(ge=0, lt=1)
    """The fraction of rows held out to choose by while training."""
    test: float = pydantic.Field(ge=0, lt=1)
    """The fraction of rows held out to report on."""
    seed: int = pydantic.Field(ge=0, lt=2**63)
    """Another seed holds out other rows."""
    column: str | None
    """The column that says train, validation or test for each row; the fractions then do not apply. null: no column."""

    @pydantic.model_validator(mode="after")
    def _leave_rows_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"split.validation ({self.validation}) and split.test ({self.test}) leave no rows to train on; "
                "their sum must be less than 1"
            )
        return self


def splits_of(texts: Sequence[str], parameters: SplitParams) -> list[Split]:
    """Give the split of each row, known by its text: its prompt, or its completion if the prompt is empty.

    Rows with the same text share a split. The result depends on the text, the seed and the fractions alone: it is the
    same on every platform and whatever other rows there are.
    """
    if parameters.validation + parameters.test == 0:
        return ["train"] * len(texts)
    keyed = hashlib.blake2b(digest_size=8, key=parameters.seed.to_bytes(8, "little"))
    splits: list[Split] = []
    for text in texts:
        drawn = keyed.copy()
        drawn.update(text.encode())
        fraction = (int.from_bytes(drawn.digest(), "little") >> 64 - _FRACTION_BITS) / 2**_FRACTION_BITS
        if fraction < parameters.validation:
            splits.append("validation")
        elif fraction < parameters.validation + parameters.test:
            splits.append("test")
        else:
            splits.append("train")
    return splits
