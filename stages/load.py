"""Open a trained model in a notebook or program: `from stages.load import load`, then `load().complete(["what is CNN"])`."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.artifacts.model_weights import read_model
from stages.artifacts.provenance_json import MODEL_FOLDER
from stages.artifacts.vocabulary_json import VOCABULARY_FILE
from stages.core.language_model import LanguageModel
from stages.errors import UserError
from stages.exports.read_huggingface import is_huggingface, read_huggingface

_IN_MLFLOW = re.compile(r"(?:runs|models):/")


def load(source: str | Path = MODEL_FOLDER) -> LanguageModel:
    """Return a model that can be asked.

    Args:
        source: a folder such as data/model/, with vocabulary.json in it or beside it; a Hugging Face folder; or, in MLflow, the model of a run
            ("runs:/ID") or a model ("models:/ID", "models:/NAME/VERSION").

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    if not _IN_MLFLOW.match(str(source)):
        folder = Path(source)
        refuse_absent(folder)
        if is_huggingface(folder):
            return LanguageModel(*read_huggingface(folder))
        return LanguageModel(*read_model(folder, vocabulary_of(folder)))
    from stages.tracking.exports import fetch_model  # noqa: PLC0415 - MLflow takes seconds, and most models are files

    with TemporaryDirectory() as copied:
        return LanguageModel(*read_model(*fetch_model(str(source), Path(copied))))


def refuse_absent(folder: Path) -> None:
    """Name what to do where there is no model.

    Raises:
        UserError: there is no such folder, or it is an export for another program.
    """
    if not folder.is_dir():
        fix = "make it with `dvc repro`" if folder == MODEL_FOLDER else "name a folder such as data/model/"
        raise UserError(
            f"{folder}: no folder there; {fix}, or name a model in MLflow as runs:/ID or models:/NAME/VERSION"
        )
    for name in ("model.gguf", "model.onnx"):
        if (folder / name).exists():
            raise UserError(
                f"{folder / name}: for another program; load the export of kind huggingface, or data/model/"
            )


def vocabulary_of(folder: Path) -> Path:
    """Return where the vocabulary of a model's folder is: in it, else beside it."""
    inside = folder / VOCABULARY_FILE.name
    return inside if inside.exists() else folder.parent / VOCABULARY_FILE.name
