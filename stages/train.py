"""Train the model: data/dataset/ -> data/model/, metrics/train.json and the curves, as one MLflow run."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import lightning
from lightning.pytorch.utilities import rank_zero_only

from stages import command_line
from stages.artifacts.dataset import DATASET_FOLDER, check_vocabulary, open_examples, read_metadata
from stages.artifacts.metrics_json import write_json
from stages.artifacts.model_weights import write_model
from stages.artifacts.pretrained import MODELS, check_tracked
from stages.artifacts.provenance_json import MODEL_FOLDER, Provenance, stage_provenance
from stages.artifacts.stage_inputs import StageInputs, unchanged_inputs
from stages.artifacts.table_csv import TRAIN_CURVE, VALIDATION_CURVE, write_table
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, read_vocabulary
from stages.core.saved_model import SavedModel
from stages.core.transformer import ModelParams, Transformer, TransformerConfig
from stages.errors import UserError
from stages.exports.read_huggingface import start_weights
from stages.parameters import read_section
from stages.tracking.data_figures import log_data_figures
from stages.tracking.runs import TrainingRun, UnrecordedRun, start_training_run
from stages.tracking.system_metrics import record_system_metrics
from stages.training.advice import print_advice
from stages.training.checkpoint_folder import CheckpointFolder
from stages.training.fit import TrainingResult, fit
from stages.training.history import Curves
from stages.training.memory import check_model
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams, memory_errors

METRICS_FILE = Path("metrics/train.json")


def main() -> None:
    """Train as params.yaml says."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument(
        "--restart", action="store_true", help="do not go on from a checkpoint: train from the first step"
    )
    options = parser.parse_args()
    with unchanged_inputs("train") as inputs:
        train(inputs, restart=options.restart, quiet=options.quiet)


def train(inputs: StageInputs, *, restart: bool, quiet: bool) -> None:
    """Read the inputs, train, and write the model with its figures."""
    model_parameters = read_section("model", ModelParams)
    parameters = read_section("train", TrainParams)
    runtime = read_section("runtime", RuntimeParams)
    refuse_lone_rank(runtime)
    metadata = read_metadata()
    check_vocabulary(metadata)
    config = TransformerConfig(vocabulary_size=metadata.vocabulary_size, **model_parameters.model_dump())
    training = open_examples("train", metadata, config.context_length)
    validation = open_examples("validation", metadata, config.context_length)
    if training is None:
        raise UserError("data/dataset/: no training rows; lower split.validation and split.test in params.yaml")
    if validation is None and not quiet and is_first_device():
        for line in without_validation(parameters):
            print(line, file=sys.stderr)
    check_model(config, parameters, runtime)
    lightning.seed_everything(parameters.seed, verbose=False)
    with memory_errors("lower model.context_length, d_model or n_layers in params.yaml"):
        network = Transformer(config)
    if parameters.start_from is not None:
        network.load_state_dict(start_weights(start_folder(parameters.start_from), config, read_vocabulary()))
    provenance = stage_provenance("train")
    checkpoints = CheckpointFolder(provenance.fingerprint)
    with locked(checkpoints), untouched_data(inputs, checkpoints):
        if restart and is_first_device():
            checkpoints.restart()
        with start_run(provenance, checkpoints, runtime) as run:
            inputs.check()  # what was read is what the provenance says
            log_data_figures(run)
            if is_first_device() and not quiet:
                print(f"MLflow run: {command_line.visible(str(run.name))}", flush=True)
                print_advice(network, training, parameters, runtime)
            with record_system_metrics(run.log_sample, wanted=runtime.system_metrics and is_first_device()):
                trained = fit(
                    network, training, validation, parameters, runtime, run.log_metrics, checkpoints, quiet=quiet
                )
            if not is_first_device():
                return
            check_inputs(inputs, checkpoints)
            write_curves(trained.curves)
            metrics = summarise(trained, network)
            write_json(METRICS_FILE, metrics)
            answers_prompts = len(training.rows_with_completion()) > 0
            write_model(MODEL_FOLDER, SavedModel(network, prompts_end_with_eos=answers_prompts), provenance)
            run.log_files([VOCABULARY_FILE, METRICS_FILE, TRAIN_CURVE, VALIDATION_CURVE])
            check_inputs(inputs, checkpoints)
        # DVC records the result after this process; where it cannot, the next one ends at once. The evaluation deletes it.
        if "DVC_STAGE" in os.environ:
            checkpoints.finish()
        else:
            checkpoints.remove()
    if not quiet:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss"))
        print(f"{trained.steps} steps of {metrics['parameters']:,} parameters: {figures} -> {MODEL_FOLDER}/")


def start_folder(start_from: str) -> Path:
    """Return the folder that train.start_from names.

    Raises:
        UserError: there is none, or it is elsewhere.
    """
    folder = Path(start_from)
    check_tracked(folder, MODELS, "train.start_from")
    if not folder.is_dir():
        raise UserError(
            f"params.yaml: train.start_from: {folder}: no folder there; put it there, or set null to begin with random weights"
        )
    return folder


def without_validation(parameters: TrainParams) -> list[str]:
    """Return what cannot work where no row is held out for validation, one line for each parameter."""
    effects = {
        "keep": "the last weights are kept" if parameters.keep == "best" else None,
        "patience": "nothing stops early" if parameters.patience is not None else None,
        "validate_every": "nothing is validated" if parameters.validate_every is not None else None,
    }
    return [
        f"params.yaml: train.{name}: {getattr(parameters, name)} needs validation rows, and there are none: {effect}; raise "
        "split.validation"
        for name, effect in effects.items()
        if effect
    ]


@contextmanager
def untouched_data(inputs: StageInputs, checkpoints: CheckpointFolder) -> Iterator[None]:
    """Delete the checkpoints of a training whose data were overwritten in place while it read them, however it ends."""
    try:
        yield
    finally:
        if inputs.overwritten(DATASET_FOLDER):
            checkpoints.restart()


def check_inputs(inputs: StageInputs, checkpoints: CheckpointFolder) -> None:
    """Refuse the result of a training whose inputs changed, and keep its weights for when they are put back.

    Raises:
        UserError: an input changed.
    """
    if inputs.overwritten(DATASET_FOLDER):
        inputs.check("the training read both; `dvc repro` trains from the first step")
    inputs.check(
        f"the weights are kept in {checkpoints.path}/: put that back and type `dvc repro`, which ends in seconds, in the "
        "same MLflow run. `dvc exp run --temp` trains in a copy, whose inputs you do not edit"
    )


def is_first_device() -> bool:
    """Return whether this process writes the results: Lightning starts one for each device, all with this command."""
    return getattr(rank_zero_only, "rank", 0) == 0


def refuse_lone_rank(runtime: RuntimeParams) -> None:
    """Refuse to train alone under another number than 0, as a shell within a job may have it: nobody would write the result.

    Raises:
        UserError: the environment has such a number, and params.yaml one device.
    """
    if not is_first_device() and runtime.devices == runtime.num_nodes == 1:
        raise UserError(
            "RANK, LOCAL_RANK or SLURM_PROCID in the environment says that this is not the first process of a training, which "
            "writes the result, but params.yaml has one device (runtime.devices and runtime.num_nodes are 1); unset it, or "
            "set these to what trains together"
        )


def locked(checkpoints: CheckpointFolder) -> AbstractContextManager[None]:
    """Lock the checkpoints in the first process of a training; the others belong to it."""
    return checkpoints.locked() if is_first_device() else nullcontext()


def start_run(
    provenance: Provenance, checkpoints: CheckpointFolder, runtime: RuntimeParams
) -> TrainingRun | UnrecordedRun:
    """Return the training's MLflow run: a new one, or that of the checkpoints. Other devices than the first have none."""
    if not is_first_device():
        return UnrecordedRun()
    required = runtime.tracking == "required"
    run = start_training_run(provenance, DATASET_FOLDER, checkpoints.run_id, required=required)
    if run.id is not None:
        checkpoints.remember_run(run.id)
    return run


def summarise(trained: TrainingResult, network: Transformer) -> dict[str, float]:
    """Return the figures of metrics/train.json; losses are means in nats per target."""
    figures = {
        "steps": trained.steps,
        "epochs": round(trained.epochs, 4),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "train_loss": trained.curves.train_loss[-1][1],
    }
    if trained.curves.validation_loss:
        figures |= {"validation_loss": dict(trained.curves.validation_loss)[trained.kept_step]}
        figures |= {"best_step": trained.kept_step}
    return figures


def write_curves(curves: Curves) -> None:
    """Write the curves that ``dvc plots`` draws."""
    rows = [(step, loss, rate) for (step, loss), (_, rate) in zip(curves.train_loss, curves.learning_rate, strict=True)]
    write_table(TRAIN_CURVE, ["step", "train_loss", "learning_rate"], rows)
    write_table(VALIDATION_CURVE, ["step", "validation_loss"], curves.validation_loss)


if __name__ == "__main__":
    command_line.run_stage(main)
