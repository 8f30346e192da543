"""The base of every section of params.yaml."""

from typing import Any

import pydantic

LARGEST = 10**12
"""The largest integer of any parameter: no count of this project comes near it, and beyond 2**63 a tensor's size overflows."""


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
        if isinstance(value, int) and abs(value) > LARGEST:
            message = f"expected at most {LARGEST:,}"
            raise ValueError(message)
        return value
