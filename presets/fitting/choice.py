"""A value that was chosen, with the reason that becomes its comment in params.yaml."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """What a rule decided."""

    value: Value
    reason: str
    """Why, as one short sentence with the figures that decided."""
