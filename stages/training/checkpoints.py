"""Resume a killed training where it stopped, and end with the bytes of one that was never killed.

A checkpoint is taken between two optimiser steps. What comes after it is a function of what is in it: the order of the
examples and dropout depend on the seed and the step alone, and the rest of a training's memory (weights, optimiser,
schedule, curves, best weights, patience, losses since the curve's last point) is saved.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import lightning
import psutil
import torch

from stages.errors import Stopped, UserError
from stages.training.checkpoint_folder import CheckpointFolder
from stages.training.data_module import Batch
from stages.training.plan import TrainingPlan
from stages.training.sharding import own_part

_LOOK_FOR_DVC_SECONDS = 1.0  # looking takes a fifth of what the pipeline adds to a step
_SHELLS = {"sh", "dash", "bash", "zsh"}
# What a process can notice of its end. A signal that the machine lacks, as Windows does most of them, is left out.
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGPWR", "SIGUSR1", "SIGUSR2", "SIGBREAK")
_OF_SLURM = {getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)}
# Devices that train together must stop at the same step, and asking each other costs time.
_DEVICES_AGREE_EVERY = 10  # steps


class Checkpoints(lightning.Callback):
    """Saves the training every few minutes, at its end, and before it stops for a signal or the end of its `dvc repro`."""

    def __init__(self, folder: CheckpointFolder, plan: TrainingPlan, minutes: float | None) -> None:
        self._folder = folder
        self._plan = plan
        self._seconds = float("inf") if minutes is None else 60 * minutes
        self._saved_at = time.monotonic()
        self._saved_step = 0
        # DVC that is killed leaves the stage running, for nothing: DVC would delete what it made.
        self._dvc = _dvc_process() if "DVC_STAGE" in os.environ else None
        self._looked_at = 0.0
        self._signal: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Name the training that the checkpoint is of."""
        checkpoint["fingerprint"] = self._folder.path.name

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue at the same step, which may now be cut into another number of micro-batches."""
        step = self._saved_step = checkpoint["global_step"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, step * self._plan.micro_batches))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over the signals that end a process, until Lightning gives them back.

        Raises:
            UserError: processes that train together have different inputs.
        """
        fingerprint = self._folder.path.name
        first = trainer.strategy.broadcast(fingerprint)
        if not trainer.strategy.reduce_boolean_decision(first == fingerprint, all=True):
            raise UserError("the processes that train together read different inputs; type `dvc repro` again")
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _ENDING if hasattr(signal, name)):
                handler = signal.getsignal(number)
                # Ignored, as nohup has SIGHUP; or Lightning's own, with which it asks SLURM to start it again.
                if handler == signal.SIG_IGN or (number in _OF_SLURM and handler != signal.SIG_DFL):
                    continue
                self._handlers[number] = handler
                signal.signal(number, self._note)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Save, where it is time, before a step begins: what the step before it led to, validation included, is done.

        Raises:
            Stopped: a signal asked the training to end, or the `dvc repro` that started it is gone.
        """
        step, part = divmod(batch_idx, self._plan.micro_batches)
        if part or (trainer.world_size > 1 and step % _DEVICES_AGREE_EVERY):
            return
        cause = self._cause_to_stop()
        due = cause is not None or time.monotonic() - self._saved_at >= self._seconds
        if trainer.world_size > 1:
            cause, due = trainer.strategy.broadcast((cause, due))
        if due and step > self._saved_step:
            self._save(trainer, pl_module, step)
        if cause is not None:
            where = f"step {self._saved_step}" if self._saved_step else "the beginning"
            raise Stopped(f"{cause} at step {step}/{self._plan.steps}; `dvc repro` goes on from {where}", self._code())

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the finished training: should its result be refused, it is not trained again."""
        if trainer.global_step > self._saved_step:
            self._save(trainer, pl_module, trainer.global_step)

    def _save(self, trainer: lightning.Trainer, module: lightning.LightningModule, step: int) -> None:
        finite = all(bool(torch.isfinite(own_part(parameter)).all()) for parameter in module.parameters())
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            return  # the loss of the next steps will say so; the checkpoints before this one stay good
        self._saved_at = time.monotonic()
        saved = True
        try:
            trainer.save_checkpoint(self._folder.checkpoint(step))
        except OSError as error:
            if trainer.is_global_zero:
                print(f"{self._folder.path}: no checkpoint of step {step}: {error.strerror}", file=sys.stderr)
            saved = False
            trainer.strategy.barrier()  # where the other devices wait for this one, if it alone failed
        saved = trainer.strategy.broadcast(saved)
        if trainer.is_global_zero:
            self._folder.forget_old()
        if saved:
            self._saved_step = step

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal until the step is done; a second one ends the process at once."""
        self._signal = signal.Signals(number)
        signal.signal(number, self._handlers[number])

    def _cause_to_stop(self) -> str | None:
        if self._signal is not None:
            return f"stopped by {self._signal.name}"
        now = time.monotonic()
        if self._dvc is not None and now - self._looked_at >= _LOOK_FOR_DVC_SECONDS:
            self._looked_at = now
            if _is_gone(self._dvc):
                return "stopped because the `dvc repro` that started it is gone"
        return None

    def _code(self) -> int:
        return 128 + (self._signal or signal.SIGTERM)  # as shells have it


def _dvc_process() -> psutil.Process | None:
    """Return the process that started this stage; some shells stay between the two."""
    parent = psutil.Process().parent()
    return parent.parent() if parent is not None and parent.name() in _SHELLS else parent


def _is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    except psutil.NoSuchProcess:
        return True
