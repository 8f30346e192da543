"""The base of every section of params.yaml."""

import pydantic


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
