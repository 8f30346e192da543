"""The progress of a training: a bar in a terminal, a few lines elsewhere."""

import sys
import time
from typing import Any

import lightning
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stages.training.data_module import Batch
from stages.training.history import Curves
from stages.training.plan import TrainingPlan

LINES = 10
REFRESHES_A_SECOND = 4


def progress_callback(plan: TrainingPlan, curves: Curves) -> lightning.Callback:
    """Return a bar where standard output is a terminal, lines elsewhere."""
    return ProgressBar(plan, curves) if sys.stdout.isatty() else ProgressLines(plan, curves)


class _Watch(lightning.Callback):
    """Counts steps and tokens, and calls ``show`` after each step."""

    def __init__(self, plan: TrainingPlan, curves: Curves) -> None:
        self._plan = plan
        self._curves = curves
        self._step = 0
        self._first_step = 0
        self._tokens = 0
        self._since = 0.0

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Print where a resumed training continues, be it at its end."""
        if trainer.is_global_zero:
            print(f"resumed at step {checkpoint['global_step']}/{self._plan.steps}", flush=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock; a resumed training does not start at step 0."""
        self._step = self._first_step = trainer.global_step
        self._since = time.perf_counter()
        if trainer.is_global_zero:
            self.begin()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count, and show each step once: a step may be several micro-batches."""
        self._tokens += int(batch.lengths.sum()) * trainer.world_size
        if trainer.is_global_zero and trainer.global_step > self._step:
            self._step = trainer.global_step
            self.show()

    def begin(self) -> None:
        """Prepare to show steps."""

    def show(self) -> None:
        """Show the present step."""
        raise NotImplementedError

    def epochs(self) -> str:
        """Return the epochs that are done, of how many."""
        done, total = self._plan.epochs(self._step), self._plan.epochs(self._plan.steps)
        return f"epoch {done:.1f}/{total:.1f}" if total < 10 else f"epoch {done:.0f}/{total:.0f}"

    def figures(self) -> str:
        """Return the newest losses, each with its step where that is not the present one, and the speed."""
        named = {"train_loss": self._curves.train_loss, "validation_loss": self._curves.validation_loss}
        newest = {name: points[-1] for name, points in named.items() if points}
        losses = [
            f"{name} {loss:.4f}{f' at step {step}' if step != self._step else ''}"
            for name, (step, loss) in newest.items()
        ]
        speed = self._tokens / max(1e-9, time.perf_counter() - self._since)
        return ", ".join([*losses, f"{speed:,.0f} tokens/s"])

    def seconds_left(self) -> float:
        """Return how long the rest takes at the speed so far."""
        each = (time.perf_counter() - self._since) / max(1, self._step - self._first_step)
        return each * (self._plan.steps - self._step)


class ProgressBar(_Watch):
    """One line that moves: epoch, step, losses, speed, time left."""

    _progress: Progress | None = None
    _task = TaskID(0)

    def begin(self) -> None:
        """Draw the bar."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("step {task.completed:,}/{task.total:,}"),
            TextColumn("[dim]{task.fields[figures]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            refresh_per_second=REFRESHES_A_SECOND,
            expand=True,
        )
        self._task = self._progress.add_task(
            self.epochs(), total=self._plan.steps, completed=self._step, figures=self.figures()
        )
        self._progress.start()

    def show(self) -> None:
        """Move the bar; it is drawn a few times a second, however fast the steps are."""
        if self._progress is not None:
            self._progress.update(self._task, description=self.epochs(), completed=self._step, figures=self.figures())

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the new loss."""
        self.show()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Stop the bar where it is."""
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop the bar where it is: after an exception Lightning calls this instead, and the message needs a line of its own."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class ProgressLines(_Watch):
    """Plain text for a log file: few lines, each complete."""

    _pending = False  # the step is done; a validation may follow it
    _printed_step = 0

    def show(self) -> None:
        """Print a line every tenth of the way, and for the last step, when what belongs to the step is known."""
        self._pending = self._step % max(1, self._plan.steps // LINES) == 0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Print the line of the step before, validated or not."""
        self._print()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the line of the last step, unless its validation comes yet."""
        validations = self._curves.validation_loss
        self._pending = trainer.is_global_zero and self._printed_step < self._step
        if not trainer.enable_validation or (validations and validations[-1][0] == self._step):
            self._print()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the line of the step that was validated."""
        self._print()

    def _print(self) -> None:
        if self._pending:
            left = f"{self.seconds_left():,.0f} s left"
            print(f"step {self._step}/{self._plan.steps}, {self.epochs()}: {self.figures()}, {left}", flush=True)
            self._printed_step = self._step
        self._pending = False
