"""Decide from its text alone which split a row belongs to, so that a row never moves when others are added."""

import hashlib
from collections.abc import Iterable
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt
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

    @property
    def holds_out(self) -> bool:
        """Return whether rows may be held out."""
        return self.column is not None or self.validation + self.test > 0

    @pydantic.model_validator(mode="after")
    def _leave_rows_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"split.validation ({self.validation}) and split.test ({self.test}) leave no rows to train on; "
                "their sum must be less than 1"
            )
        return self


def splits_of(texts: Iterable[bytes], parameters: SplitParams) -> npt.NDArray[np.int8]:
    """Return the split of each row, as its place in ``SPLITS``, by its text in UTF-8: its prompt, or completion if that is empty.

    Rows with the same text share a split. The result depends on the text, the seed and the fractions alone: it is the
    same on every platform and whatever other rows there are.
    """
    keyed = hashlib.blake2b(digest_size=8, key=parameters.seed.to_bytes(8, "little"))

    def draw(text: bytes) -> bytes:
        drawn = keyed.copy()
        drawn.update(text)
        return drawn.digest()

    drawn = np.frombuffer(b"".join(map(draw, texts)), "<u8")
    fractions = (drawn >> np.uint64(64 - _FRACTION_BITS)) / 2.0**_FRACTION_BITS
    held_out = np.where(fractions < parameters.validation, SPLITS.index("validation"), SPLITS.index("test"))
    return np.where(fractions < parameters.validation + parameters.test, held_out, SPLITS.index("train")).astype(
        np.int8
    )
