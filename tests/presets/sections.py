"""Every section of params.yaml, and the model that checks it."""

from stages.artifacts.prompts_table import DataParams
from stages.core.params_model import ParamsModel
from stages.core.split import SplitParams
from stages.core.transformer import ModelParams
from stages.core.vocabulary import VocabularyParams
from stages.core.windows import DatasetParams
from stages.evaluate import EvaluateParams
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams

SECTIONS: dict[str, type[ParamsModel]] = {
    "data": DataParams,
    "split": SplitParams,
    "vocabulary": VocabularyParams,
    "dataset": DatasetParams,
    "model": ModelParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "runtime": RuntimeParams,
}
