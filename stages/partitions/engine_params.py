"""Where the rows of the table are prepared: the part of the section ``runtime`` of params.yaml that says it."""

from typing import Annotated

import pydantic

from stages.core.params_model import ParamsModel

LOCAL = "local"
"""Processes of this machine."""
Scheduler = Annotated[str, pydantic.Field(pattern=rf"^({LOCAL}|tcp://[^\s/]+:\d{{1,5}})$")]


class EngineParams(ParamsModel, extra="ignore"):
    """What the preparation of the data reads of the section ``runtime``."""

    dask: Scheduler | None
    """null: in this process; local: in processes of this machine; tcp://host:8786: by the workers of a Dask scheduler."""
