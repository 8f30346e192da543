"""The model as `mlflow models serve` runs it: prompts in, completions out.

MLflow copies this file beside the weights ("models from code") and runs it when the model is loaded: nothing is pickled.
"""

import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models.signature import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from stages.artifacts.model_weights import read_model
from stages.core.language_model import MOST_PROMPTS, LanguageModel
from stages.errors import UserError

PROMPT = "prompt"

# The input has no name, so that MLflow also takes a list of texts, as of `predict(["what is CNN"])`; it then calls it 0.
# A parameter that a request leaves out takes the value given here; 0 tokens: as many as the context is long.
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]),
    outputs=Schema([ColSpec(DataType.string, "completion")]),
    params=ParamSchema(
        [
            ParamSpec("max_tokens", DataType.long, 0),
            ParamSpec("temperature", DataType.double, 0.0),
            ParamSpec("top_k", DataType.long, 0),
            ParamSpec("top_p", DataType.double, 1.0),
            ParamSpec("seed", DataType.long, 0),
        ]
    ),
)


class CompletionModel(PythonModel):
    """Completes prompts in batches."""

    _model: LanguageModel

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights and the vocabulary that were logged."""
        model, vocabulary = (Path(context.artifacts[name]) for name in ("model", "vocabulary"))
        self._model = LanguageModel(*read_model(model, vocabulary))
        if "mlflow.pyfunc.scoring_server.app" in sys.modules:  # not in a notebook
            # Imported here because it takes time, and evaluate imports this file for the signature.
            from stages.tracking.scoring_server import StoppableOutput, guard_mlflow_server  # noqa: PLC0415

            guard_mlflow_server()
            self._model.saved.network.output.__class__ = StoppableOutput  # this layer runs once a token

    def predict(  # type: ignore[override] # MLflow passes the context only to who asks for it
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        """Complete each row's prompt, the text of its only column.

        Raises:
            MlflowException: a prompt or parameter cannot be used; the server answers with status 400.
            stages.tracking.scoring_server.RequestEndedError: nobody waits for the answer.
        """
        (column,) = model_input.columns
        if column not in (PROMPT, 0):
            raise _refusal(f"found the column {column!r} first, allowed: {PROMPT}, or a list of texts")
        texts = model_input[column].tolist()
        if len(texts) > MOST_PROMPTS:
            raise _refusal(f"found {len(texts):,} prompts, allowed: at most {MOST_PROMPTS:,} in one request")
        given = {name: value for name, value in (params or {}).items() if value is not None}
        chosen = {spec.name: spec.default for spec in SIGNATURE.params.params} | given
        longest = self._longest_completion(chosen["max_tokens"])
        try:
            completions = self._model.complete(
                texts,
                max_new_tokens=longest,
                temperature=chosen["temperature"],
                top_k=chosen["top_k"] or None,
                top_p=chosen["top_p"],
                seed=chosen["seed"],
            )
        except UserError as error:
            raise _refusal(str(error)) from None
        return [{"completion": completion} for completion in completions]

    def _longest_completion(self, max_tokens: int) -> int:
        most, context_length = self._model.most_tokens, self._model.context_length
        if not 0 <= max_tokens <= most:
            raise _refusal(
                f"max_tokens: found {max_tokens}, allowed: 1 to {most:,}, or 0 for the context length ({context_length:,})"
            )
        return max_tokens or context_length


def _refusal(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(CompletionModel())
