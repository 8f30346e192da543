"""What Lightning, MLflow and the stage's callbacks add to a training step, beside a bare loop over the same steps."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import Options, options, summarise, write_table
from stages.artifacts.dataset import DATASET_FOLDER
from stages.artifacts.provenance_json import Provenance
from stages.core.examples import Examples
from stages.core.loss import summed_loss
from stages.core.transformer import ModelParams, Transformer, TransformerConfig
from stages.core.windows import DatasetParams, Int64s, Integers, RowSpans, Windows
from stages.parameters import PARAMETERS_FILE, read_section
from stages.tracking.runs import start_training_run
from stages.tracking.system_metrics import record_system_metrics
from stages.training.checkpoint_folder import CheckpointFolder
from stages.training.data_module import TrainingBatches
from stages.training.fit import fit
from stages.training.optimization import TrainParams, build_optimizer
from stages.training.plan import plan_training
from stages.training.runtime import RuntimeParams

PRESET = Path(__file__).parents[1] / "presets/characters.yaml"
VOCABULARY_SIZE = 65
STEPS_A_TURN = 10
TURNS_A_ROUND = 8


class Turns:
    """Lets the bare loop do some steps between those of the training, and times both."""

    def __init__(self, bare_steps: Callable[[int], None], threads: int) -> None:
        self._bare_steps = bare_steps
        # What the pipeline's other threads do, at any time, is charged to the pipeline.
        clocks = (time.process_time, time.thread_time) if threads == 1 else (time.perf_counter, time.perf_counter)
        self._clock, self._bare_clock = clocks
        self._step = 0
        self._since = 0.0
        self._bare: list[float] = []
        self._pipeline: list[float] = []

    def begin_step(self) -> None:
        """Do the bare loop's turn where it is due: the training is between two steps."""
        if self._step % STEPS_A_TURN == 0:
            now = self._clock()
            if self._step > 0:
                self._pipeline.append((now - self._since) / STEPS_A_TURN - self._bare[-1])
            self._since, start = now, self._bare_clock()
            self._bare_steps(STEPS_A_TURN)
            self._bare.append((self._bare_clock() - start) / STEPS_A_TURN)
        self._step += 1

    def seconds_a_step(self) -> tuple[list[float], list[float]]:
        """Return the bare loop's and the pipeline's times, turn by turn, without the first one, which warms up."""
        return self._bare[1 : len(self._pipeline)], self._pipeline[1:]


class WatchedExamples(Examples):
    """Examples that notice that a step begins by what is read."""

    def __init__(self, turns: Turns, context_length: int) -> None:
        super().__init__(*random_text(context_length))
        self._turns = turns

    def gather(self, windows: Windows) -> tuple[Int64s, Int64s]:
        """Read windows, as ever."""
        self._turns.begin_step()
        return super().gather(windows)


def random_text(context_length: int) -> tuple[Integers, RowSpans, DatasetParams, int, int]:
    """Return the arguments of ``Examples``: one long row."""
    token_ids = np.random.default_rng(0).integers(VOCABULARY_SIZE, size=200_000, dtype=np.uint8)
    spans = RowSpans(np.array([0, len(token_ids)]), np.array([len(token_ids)]))
    return token_ids, spans, DatasetParams(packing="stream", loss_on="all", stride=None), context_length, 0


def bare_loop(network: Transformer, batches: TrainingBatches, parameters: TrainParams) -> Callable[[int], None]:
    """Return what does as many steps as it is told to, the next ones each time."""
    optimizer = build_optimizer(network, parameters)
    numbers = iter(range(len(batches)))

    def steps(count: int) -> None:
        for _ in range(count):
            batch = batches[next(numbers)]
            loss = summed_loss(network.hidden_states(batch.input_ids), network.output, batch.targets)
            (loss * (1 / batch.scored_in_step)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), parameters.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()

    return steps


@contextlib.contextmanager
def workspace() -> Iterator[Provenance]:
    """Work in a folder like a stage's under `dvc repro`, with an MLflow store of its own."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        os.environ |= {"DVC_ROOT": name, "DVC_STAGE": "train", "MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db"}
        PARAMETERS_FILE.write_bytes(PRESET.read_bytes())
        DATASET_FOLDER.mkdir(parents=True)
        (DATASET_FOLDER / "metadata.json").write_text("{}", encoding="utf-8")
        yield Provenance(fingerprint="benchmark", dependencies={str(DATASET_FOLDER): "0" * 32}, parameters={})


def main() -> None:
    """Train the preset `characters` on random tokens, in both loops, to the same weights."""
    given = options(__doc__)
    shape = read_section("model", ModelParams, PRESET)
    # A constant learning rate, which the bare loop has too.
    changed = {
        "schedule": "constant",
        "warmup_steps": 0,
        "max_steps": (given.rounds * TURNS_A_ROUND + 2) * STEPS_A_TURN,
    }
    parameters = read_section("train", TrainParams, PRESET).model_copy(update=changed)
    here = {"accelerator": "cpu", "threads": given.threads}
    runtime = read_section("runtime", RuntimeParams, PRESET).model_copy(update=here)
    config = TransformerConfig(vocabulary_size=VOCABULARY_SIZE, **shape.model_dump())
    bare, ours = Transformer(config), Transformer(config)
    ours.load_state_dict(bare.state_dict())
    examples = Examples(*random_text(shape.context_length))
    plan = plan_training(examples.examples_per_epoch(), parameters, None, 1)
    turns = Turns(bare_loop(bare, TrainingBatches(examples, plan, rank=0), parameters), given.threads)
    watched = WatchedExamples(turns, shape.context_length)
    with (
        workspace() as provenance,
        start_training_run(provenance, DATASET_FOLDER) as run,
        record_system_metrics(run.log_sample, wanted=runtime.system_metrics),
    ):
        fit(ours, watched, None, parameters, runtime, run.log_metrics, CheckpointFolder(provenance.fingerprint))
    for one, other in zip(bare.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    report(turns, given)


def report(turns: Turns, given: Options) -> None:
    """Write the table; the last row is the median of the turns' own ratios."""
    bare, pipeline = turns.seconds_a_step()
    ratios = summarise([ours / theirs - 1 for theirs, ours in zip(bare, pipeline, strict=True)])
    rows = [
        [who, f"{timing.median * 1e3:.2f} ({timing.low * 1e3:.2f} to {timing.high * 1e3:.2f})"]
        for who, timing in (("bare loop", summarise(bare)), ("`python -m stages.train`", summarise(pipeline)))
    ]
    rows.append(["more, turn by turn", f"{ratios.median:.1%} ({ratios.low:.1%} to {ratios.high:.1%})"])
    caption = f"presets/characters.yaml; {given.threads} thread(s), {len(bare)} turns of {STEPS_A_TURN} steps"
    write_table("overhead", caption, ["", "ms a step (middle half)"], rows)


if __name__ == "__main__":
    main()
