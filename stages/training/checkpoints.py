"""Go on where a killed training stopped, and end with the bytes of one that was never killed.

A checkpoint is taken between two optimiser steps. What comes after it is a function of what is in it: the order of the
examples and dropout depend on the seed and the step alone, and the rest of a training's memory (weights, optimiser,
schedule, curves, best weights, patience, losses since the curve's last point) is saved.

Checkpoints lie beside the project, outside of what DVC tracks and deletes, in a folder named by the fingerprint of the
stage's inputs: a training never goes on from one with other inputs.
"""

import hashlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import psutil
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from stages.artifacts.atomic import PARTIAL_SUFFIX, atomic_file
from stages.errors import Stopped, UserError
from stages.tracking.workspace import project_root
from stages.training.data_module import Batch
from stages.training.plan import TrainingPlan

FOLDER = Path(".checkpoints")
KEPT = 2  # where the newest is damaged, the one before it serves
_LOOK_FOR_DVC_SECONDS = 1.0  # looking takes a fifth of what the pipeline adds to a step
_SHELLS = {"sh", "dash", "bash", "zsh"}
_SUFFIX = ".ckpt"
_HASH_SUFFIX = ".sha256"
_DEVICES_AGREE_EVERY = (
    10  # steps: devices that work together must stop at the same one, and asking each other costs time
)


class CheckpointFolder:
    """The checkpoints of the training with one fingerprint, and the id of its MLflow run."""

    def __init__(self, fingerprint: str) -> None:
        self.path = project_root() / FOLDER / fingerprint
        self._run = self.path / "run"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from training with the same inputs; the lock ends with the process, however it ends.

        Raises:
            UserError: another process holds the folder, such as a training whose `dvc repro` was killed.
        """
        if getattr(rank_zero_only, "rank", 0) != 0:  # another device of a training that holds it
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(self.path / "lock"), self.path / "pid"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = holder.read_text(encoding="utf-8") if holder.exists() else "unknown"
            message = (
                f"{self.path}: process {pid} is training with the same inputs; wait for it, or stop it with "
                f"`kill {pid}`: the next `dvc repro` goes on from its checkpoint"
            )
            raise UserError(message) from None
        with lock:
            try:
                holder.write_text(str(os.getpid()), encoding="utf-8")
                for unfinished in self.path.glob(f"*{PARTIAL_SUFFIX}"):  # of a process that was killed
                    unfinished.unlink()
                yield
            finally:
                if not self._all():
                    self.remove()

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole; None where there is none."""
        for path in self._all():
            if _hash(path) == _recorded_hash(path):
                return path
            print(f"{path}: damaged, as by a power cut; trying the one before it", file=sys.stderr)
        return None

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.path / f"{step:012d}{_SUFFIX}"

    def forget_old(self) -> None:
        """Delete all but the newest checkpoints."""
        for path in self._all()[KEPT:]:
            _delete(path)

    def restart(self) -> None:
        """Forget everything: the next training begins at its first step, in an MLflow run of its own."""
        for path in self._all():
            _delete(path)
        self._run.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder, when its training is done."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def run_id(self) -> str | None:
        """Return the MLflow run of the training that the checkpoints are of."""
        return self._run.read_text(encoding="utf-8") if self._run.exists() else None

    def remember_run(self, run_id: str) -> None:
        """Keep the id of the training's MLflow run, for a process that goes on with it."""
        with atomic_file(self._run) as file:
            file.write(run_id.encode())

    def _all(self) -> list[Path]:
        """Return all checkpoints, the newest first."""
        return sorted(self.path.glob(f"*{_SUFFIX}"), reverse=True)


class VerifiedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under its name only when it is whole, with its hash beside it; never unpickles one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; the file appears last, so that a hash without a file is no harm."""
        path = Path(path)
        with atomic_file(path) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # a full disk
                    raise error.__context__ from None
                raise
            file.flush()
            with atomic_file(path.with_suffix(_HASH_SUFFIX)) as beside:
                beside.write(f"{_hash(Path(file.name))}  {path.name}\n".encode())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,  # noqa: FBT001, FBT002
    ) -> dict[str, Any]:
        """Read tensors, numbers and text; whatever else a file holds is refused.

        Raises:
            UserError: the file is no such checkpoint.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: no checkpoint of this project ({reason}); delete {Path(path).parent}/") from error
        return state


class Checkpoints(lightning.Callback):
    """Saves the training every few minutes, and before it stops for Ctrl-C, SIGTERM or the end of its `dvc repro`."""

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

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on at the same step where the step is now cut into another number of micro-batches."""
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
            self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number, handler in self._handlers.items():
                if handler != signal.SIG_IGN:  # as nohup has it
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
        if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
            return  # the loss of the next steps will say so; the checkpoints before this one stay good
        self._saved_at = time.monotonic()
        try:
            trainer.save_checkpoint(self._folder.checkpoint(step))
        except OSError as error:
            print(f"{self._folder.path}: no checkpoint of step {step}: {error.strerror}", file=sys.stderr)
            return
        if trainer.is_global_zero:
            self._folder.forget_old()
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


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded_hash(path: Path) -> str | None:
    beside = path.with_suffix(_HASH_SUFFIX)
    return beside.read_text(encoding="utf-8").split(" ")[0] if beside.exists() else None


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(_HASH_SUFFIX).unlink(missing_ok=True)
