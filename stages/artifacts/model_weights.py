"""data/model/: model.safetensors, config.json, and provenance.json, which says what the model was made from.

model.safetensors is deleted first and appears last: a model without its weights is unfinished.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from stages.artifacts.atomic import atomic_file
from stages.artifacts.metrics_json import read_json, write_json
from stages.artifacts.provenance_json import MODEL_FOLDER, PROVENANCE_FILE, Provenance, md5, read_provenance
from stages.artifacts.regular_file import check_file, hash_file
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, read_vocabulary
from stages.core.saved_model import SavedModel
from stages.core.transformer import Transformer, TransformerConfig
from stages.core.vocabulary import Vocabulary
from stages.errors import UserError

LOG = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.safetensors", "config.json"

# With tied embeddings the output layer's weight is the embedding's, which is stored once.
TIED = "output.weight"
_TRAIN_AGAIN = "type `dvc repro --force train`, or `dvc checkout --force` where its cache is whole"


class ModelConfig(pydantic.BaseModel):
    """config.json: what is needed to use the weights."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    architecture: TransformerConfig
    prompts_end_with_eos: bool
    """True where the model learnt to answer prompts; false where it learnt plain text, which it continues."""
    weights_sha256: str | None = None
    """Of model.safetensors; None in models from before this was written."""


def write_model(folder: Path, model: SavedModel, provenance: Provenance) -> None:
    """Write a model; a process killed meanwhile leaves the old one, or none that can be read.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    network = model.network
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if network.config.tie_embeddings:
        del weights[TIED]
    data = save(weights)
    config = ModelConfig(
        architecture=network.config,
        prompts_end_with_eos=model.prompts_end_with_eos,
        weights_sha256=hashlib.sha256(data).hexdigest(),
    )
    with atomic_file(folder / WEIGHTS) as file:
        file.write(data)
        file.flush()  # a full disk is told while the old model is whole
        (folder / WEIGHTS).unlink(missing_ok=True)
        write_json(folder / CONFIG, config.model_dump())
        write_json(folder / PROVENANCE_FILE, provenance.model_dump())


def read_model(folder: Path = MODEL_FOLDER, vocabulary_file: Path = VOCABULARY_FILE) -> tuple[SavedModel, Vocabulary]:
    """Read a model, in evaluation mode, on the CPU, and the vocabulary that it was trained with.

    Raises:
        UserError: a file is absent, damaged, or does not fit the others.
    """
    model, vocabulary = read_network(folder), read_vocabulary(vocabulary_file)
    provenance = read_provenance(folder)
    _check_architecture(folder, model.network.config, provenance)
    if provenance.dependencies.get(str(VOCABULARY_FILE)) != md5(vocabulary_file):
        here = (folder, vocabulary_file) == (MODEL_FOLDER, VOCABULARY_FILE)
        fix = "type `dvc repro`" if here else "give the model's own with --vocabulary"
        raise UserError(f"{vocabulary_file}: different from the one that {folder}/ was trained with; {fix}")
    return model, vocabulary


def read_network(folder: Path) -> SavedModel:
    """Read a model without its vocabulary.

    Raises:
        UserError: a file is absent or damaged.
    """
    try:
        config = ModelConfig.model_validate(read_json(folder / CONFIG))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{folder / CONFIG}: not a model's configuration: {key}: {first['msg']}; {_TRAIN_AGAIN}"
        ) from None
    path = folder / WEIGHTS
    LOG.info("reading %s", path)
    check_file(path, "make it with `dvc repro`")
    if config.weights_sha256 is not None and hash_file(path) != config.weights_sha256:
        raise UserError(f"{path}: damaged: its SHA-256 is not that of {CONFIG}; {_TRAIN_AGAIN}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); {_TRAIN_AGAIN}") from None
    if config.architecture.tie_embeddings and "embedding.weight" in weights:
        weights[TIED] = weights["embedding.weight"]
    try:
        _check_shapes(config.architecture, weights)
        network = Transformer(config.architecture)
    except (ValueError, RuntimeError) as error:  # torch has the latter for sizes that overflow, or that no memory has
        raise UserError(f"{path}: does not fit {CONFIG} beside it: {str(error).splitlines()[0]}") from None
    network.load_state_dict(weights)
    network.eval().requires_grad_(requires_grad=False)
    return SavedModel(network, config.prompts_end_with_eos)


def _check_architecture(folder: Path, architecture: TransformerConfig, provenance: Provenance) -> None:
    """Compare a configuration with what was trained: what has no weights, such as the context's length, changes figures too.

    Raises:
        UserError: they differ.
    """
    trained = provenance.parameters.get("model")
    for name, found in architecture.model_dump().items():
        if isinstance(trained, dict) and trained.get(name, found) != found:
            raise UserError(
                f"{folder / CONFIG}: architecture.{name}: found {found!r}, but {PROVENANCE_FILE} beside it has "
                f"{trained[name]!r}; {_TRAIN_AGAIN}"
            )


def _check_shapes(architecture: TransformerConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Compare what a configuration describes with the weights, before memory is taken for it.

    Raises:
        ValueError: they differ.
        RuntimeError: the sizes are beyond those of a tensor.
    """
    if architecture.n_layers > len(weights):
        raise ValueError(f"{architecture.n_layers:,} layers, but {len(weights)} weights")
    with torch.device("meta"):
        expected = {name: value.shape for name, value in Transformer(architecture).state_dict().items()}
    for name in sorted({*expected, *weights}):
        found = tuple(weights[name].shape) if name in weights else "absent"
        wanted = tuple(expected[name]) if name in expected else "absent"
        if found != wanted:
            raise ValueError(f"{name}: expected {wanted}, found {found}")
