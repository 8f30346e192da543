"""The base of every section of params.yaml."""

import math
from typing import Any

import pydantic

LARGEST_INTEGER = 10**12
"""Of any parameter: no count of this project comes near it, and beyond 2**63 a tensor's size overflows."""
LARGEST_FLOAT = 1e38
"""Of any parameter: float32 ends at 3.4e38."""
LONGEST_TEXT = 1000
"""Characters of any parameter: of a path, or of a column's name."""


class ParamsModel(pydantic.BaseModel):
    """A frozen, strictly typed group of parameters: no unknown keys, no silent conversions, no NaN or infinity.

    Each section's model lives with the code that uses it, so that a new training parameter does not rerun the
    vocabulary.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        message = None
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            message = f"expected at most {LARGEST_INTEGER:,}"
        elif isinstance(value, float) and LARGEST_FLOAT < abs(value) < math.inf:
            message = f"expected at most {LARGEST_FLOAT:g}"
        elif isinstance(value, str) and (len(value) > LONGEST_TEXT or "\0" in value):
            message = f"expected at most {LONGEST_TEXT:,} characters, none of them NUL"
        if message:
            raise ValueError(message)
        return value
