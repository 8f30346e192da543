"""One training, from a network with random weights to the one that is kept. Needs neither DVC nor MLflow."""

import logging
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import EarlyStopping

from stages.core.examples import Examples
from stages.core.kernels import CPU_COMPUTES_BFLOAT16
from stages.core.transformer import Transformer
from stages.errors import UserError
from stages.training.checkpoint_contents import check_contents, expected_contents
from stages.training.checkpoint_files import VerifiedCheckpoints
from stages.training.checkpoint_folder import CheckpointFolder
from stages.training.checkpoints import Checkpoints
from stages.training.compile_cache import remove_incomplete_libraries
from stages.training.data_module import TokenDataModule
from stages.training.history import BestWeights, Curves, Log, TrainingHistory
from stages.training.lightning_module import LanguageModel
from stages.training.memory import check_batch
from stages.training.optimization import TrainParams
from stages.training.plan import plan_training
from stages.training.progress import progress_callback
from stages.training.runtime import RuntimeParams, keep_freed_memory, memory_errors, peer_errors
from stages.training.sharding import SHARDED_PRECISIONS, ShardedLanguageModel, ShardedStrategy, fill

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training, beside the weights."""

    steps: int
    """Optimiser steps done."""
    epochs: float
    """Passes over the training examples."""
    kept_step: int
    """The step whose weights the network has: the best or the last, as train.keep says."""
    curves: Curves


def fit(
    network: Transformer,
    training: Examples,
    validation: Examples | None,
    parameters: TrainParams,
    runtime: RuntimeParams,
    log: Log,
    checkpoints: CheckpointFolder | None = None,
    *,
    quiet: bool = False,
) -> TrainingResult:
    """Train ``network`` in place.

    Args:
        network: random weights; the kept ones afterwards, with the strategy fsdp only on the first device.
        training: the examples to learn from.
        validation: the examples to watch the loss on; None where nothing is held out.
        parameters: how to train.
        runtime: on what to train.
        log: takes each point of each curve as it comes, with its step.
        checkpoints: where to save the training now and then, and to go on from where it was saved; None does neither.
        quiet: True shows no progress.

    Raises:
        UserError: the batch does not suit the data or the devices, the device does not know the precision, memory runs
            out, or the loss is infinite or not a number.
        Stopped: a signal asked the training to end.
    """
    _silence_warnings()
    runtime.limit_threads()
    keep_freed_memory()
    # On a GPU, whose operations are to be deterministic, torch would write each new tensor once before it is computed.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch makes it at run time
    runtime.torch_device()  # refuses an absent accelerator, each in the same words
    checkpoint_io = VerifiedCheckpoints()
    trainer = _build_trainer(runtime, parameters, checkpoint_io)
    plan = plan_training(training.examples_per_epoch(), parameters, runtime.micro_batch_size, trainer.world_size)
    history = TrainingHistory(plan, log)
    best = BestWeights()
    callbacks: list[lightning.Callback] = [history]
    if not quiet:
        callbacks.append(progress_callback(plan, history.curves))
    if validation is not None and parameters.keep == "best":
        callbacks.append(best)
    if validation is not None and parameters.patience is not None:
        patience = EarlyStopping("validation_loss", patience=parameters.patience, check_on_train_epoch_end=False)
        callbacks.append(patience)
    if checkpoints is not None:
        callbacks.append(Checkpoints(checkpoints, plan, runtime.checkpoint_minutes))
    # What depends on the plan, and so on the number of devices, which the Trainer alone knows.
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]  # Lightning sets it elsewhere
    trainer.accumulate_grad_batches = plan.micro_batches
    trainer.limit_val_batches = 0 if validation is None else 1.0
    trainer.val_check_interval = min(parameters.validate_every or plan.steps_per_epoch, plan.steps) * plan.micro_batches
    LOG.info("training on %s, with %d threads: %s", trainer.strategy.root_device, torch.get_num_threads(), plan)
    if not quiet and trainer.is_global_zero and _imitates_bfloat16(trainer.strategy.root_device, parameters):
        print(
            f"params.yaml: train.precision: {parameters.precision} is slow on this CPU, which has no instructions for "
            "bfloat16; 32-true is faster",
            file=sys.stderr,
        )
    if parameters.compile:
        remove_incomplete_libraries()
    parts = trainer.world_size if runtime.strategy == "fsdp" else 1
    check_batch(network, training, plan, parameters, trainer.strategy.root_device, parts)
    data = TokenDataModule(training, validation, plan, runtime.loader_workers)
    module = (ShardedLanguageModel if runtime.strategy == "fsdp" else LanguageModel)(network, parameters, plan)
    newest = checkpoints.newest() if checkpoints is not None else None
    contents = expected_contents(trainer, module, parameters.precision)
    checkpoint_io.check = lambda state, step: check_contents(state, contents, step, plan)
    smaller = (
        f"{plan.micro_batch_size} examples at once are too many: lower runtime.micro_batch_size in params.yaml, which changes "
        "no result; `dvc repro` goes on from the last checkpoint"
    )
    with memory_errors(smaller), peer_errors():
        trainer.fit(module, datamodule=data, ckpt_path=newest, weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        steps = trainer.global_step
        if validation is not None and history.last_validated != steps:
            trainer.validate(module, datamodule=data, verbose=False)
        _take_kept(network, module, best)
    return TrainingResult(steps, plan.epochs(steps), best.step or steps, history.curves)


def _take_kept(network: Transformer, module: LanguageModel, best: BestWeights) -> None:
    """Give ``network`` the weights to keep: the best, where they were looked for, else the last."""
    if isinstance(module, ShardedLanguageModel):
        fill(network, module.gather(module.own_weights() if best.step is None else best.weights))
    elif best.step is not None:
        network.load_state_dict(best.weights)


def _build_trainer(
    runtime: RuntimeParams, parameters: TrainParams, checkpoint_io: VerifiedCheckpoints
) -> lightning.Trainer:
    """Return Lightning's Trainer for this machine, without what the plan adds to it.

    Raises:
        UserError: this machine lacks what a setting asks for.
    """
    machine: dict[str, Any] = {
        "accelerator": runtime.accelerator,
        "devices": runtime.devices,
        "num_nodes": runtime.num_nodes,
        "strategy": ShardedStrategy() if runtime.strategy == "fsdp" else runtime.strategy,
        "precision": parameters.precision,
    }
    settings = (
        f"accelerator: {runtime.accelerator}, devices: {runtime.devices}, strategy: {runtime.strategy}, precision: "
        f"{parameters.precision}"
    )
    if runtime.strategy == "fsdp" and parameters.precision not in SHARDED_PRECISIONS:
        message = (
            f"params.yaml: train.precision: found {parameters.precision}, which runtime.strategy: fsdp does not have; allowed: "
            f"{', '.join(SHARDED_PRECISIONS)}, or runtime.strategy: ddp"
        )
        raise UserError(message)
    try:
        trainer = lightning.Trainer(
            **machine,
            plugins=[checkpoint_io],
            max_epochs=1,  # for Lightning all epochs are one: the loader has every step
            gradient_clip_val=parameters.gradient_clip or None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # each device picks its own share of a batch
            deterministic="warn" if torch.cuda.is_available() else False,
            # Curves, checkpoints and progress are callbacks of this project.
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError, RuntimeError) as error:
        raise UserError(f"params.yaml: this machine cannot train with {settings}: {error}") from None
    if parameters.precision == "16-mixed" and isinstance(trainer.accelerator, CPUAccelerator):
        message = f"params.yaml: this machine cannot train with {settings}: a CPU has bf16-mixed instead of 16-mixed"
        raise UserError(message)
    return trainer


def _imitates_bfloat16(device: torch.device, parameters: TrainParams) -> bool:
    """Return whether the device is a CPU that computes bfloat16 in software."""
    return device.type == "cpu" and parameters.precision.startswith("bf16") and not CPU_COMPUTES_BFLOAT16


def _silence_warnings() -> None:
    """Silence Lightning's warnings about choices that were made on purpose, except with --verbose."""
    if LOG.isEnabledFor(logging.INFO):
        return
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*AMP with fp16 is not supported on CPU.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    warnings.filterwarnings("ignore", ".*dataloader is not resumable.*")
    warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
