"""What a recipe is measured on: a preset and real data as examples in memory, trained by the project's own loop.

One thread computes, and seconds are the processor's, which other programs disturb least.
"""

import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from stages.artifacts.prompts_table import DataParams, read_prompts
from stages.core.evaluation import complete_rows, score
from stages.core.examples import Examples
from stages.core.frames import Frame, rows_of
from stages.core.rows import encode_rows
from stages.core.split import Split, SplitParams
from stages.core.transformer import ModelParams, Transformer, TransformerConfig
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.core.windows import DatasetParams, RowSpans
from stages.parameters import read_all
from stages.training.fit import fit
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams

PRESETS = Path(__file__).parents[1] / "presets"
TIMED = (5, 25)
"""Steps of the two trainings that say how long a step takes."""
BATCH = 256
"""Rows that are scored at once."""

Values = dict[str, Any]
"""Sections of params.yaml."""


@dataclass(frozen=True)
class Task:
    """Data that a recipe is tried on."""

    values: Values
    vocabulary: Vocabulary
    frames: list[Frame]

    def examples(self, split: Split) -> Examples:
        """Return one split, cut by the preset's own context."""
        parts = [encode_rows(self.vocabulary, rows_of(frame, split)) for frame in self.frames]
        lengths = np.concatenate([part.row_lengths for part in parts])
        prompts = np.concatenate([part.prompt_lengths for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Examples(
            np.concatenate([part.token_ids for part in parts]),
            RowSpans(offsets, offsets[:-1] + prompts),
            DatasetParams(**self.values["dataset"]),
            self.values["model"]["context_length"],
            self.vocabulary.eos_id,
        )


@dataclass(frozen=True)
class Trained:
    """A model and what it took."""

    network: Transformer
    steps: int
    seconds: float
    """The processor's."""


def read_task(preset: str, **data: Any) -> Task:
    """Read a table as a preset does; ``data`` changes the preset's section of that name."""
    values = read_all(PRESETS / f"{preset}.yaml")
    values["data"] |= {name: str(value) if isinstance(value, Path) else value for name, value in data.items()}
    frames = list(read_prompts(DataParams(**values["data"]), SplitParams(**values["split"])))
    parameters = VocabularyParams(**values["vocabulary"])
    vocabulary = build_vocabulary(parameters, (rows_of(frame, "train") for frame in frames))
    return Task(values, vocabulary, frames)


def changed(values: Values, changes: Mapping[str, Any]) -> Values:
    """Return parameters with some changed, named as ``train.learning_rate``."""
    result = deepcopy(values)
    for name, value in changes.items():
        section, key = name.split(".")
        result[section][key] = value
    return result


def train(task: Task, changes: Mapping[str, Any]) -> Trained:
    """Train a network from its first weights by the loop of the stage train, without validation."""
    values = changed(task.values, {"train.keep": "last", "train.patience": None} | dict(changes))
    parameters = TrainParams(**values["train"])
    lightning.seed_everything(parameters.seed, verbose=False)
    shape = ModelParams(**values["model"]).model_dump()
    network = Transformer(TransformerConfig(vocabulary_size=task.vocabulary.size, **shape))
    runtime = RuntimeParams(**values["runtime"] | {"accelerator": "cpu", "threads": 1, "micro_batch_size": None})
    began = time.process_time()
    fit(network, task.examples("train"), None, parameters, runtime, lambda _metrics, _step: None, quiet=True)
    seconds = time.process_time() - began
    return Trained(network.eval().requires_grad_(requires_grad=False), parameters.total_steps(1), seconds)


def train_for(task: Task, changes: Mapping[str, Any], seconds: float) -> Trained:
    """Train for some of the processor's seconds: two short trainings say how many steps these are."""
    short, longer = (
        train(task, dict(changes) | {"train.max_steps": steps, "train.warmup_steps": 0}) for steps in TIMED
    )
    step = (longer.seconds - short.seconds) / (longer.steps - short.steps)
    return train(task, dict(changes) | {"train.max_steps": max(TIMED[1], round(seconds / step))})


def one_thread_each(processes: int) -> ProcessPoolExecutor:
    """Return what runs trainings side by side, each with one thread."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,))


def loss_of(task: Task, trained: Trained, split: Split) -> float:
    """Return the mean loss over the scored targets of a split, in nats."""
    return score(trained.network, task.examples(split), BATCH).loss


def exact_share(task: Task, trained: Trained, split: Split) -> float:
    """Return the share of completions of a split that are exactly right."""
    examples = task.examples(split)
    scores = score(trained.network, examples, BATCH)
    completions = complete_rows(
        trained.network,
        examples,
        scores.rows,
        eos_id=task.vocabulary.eos_id,
        batch_size=BATCH,
        max_new_tokens=None,
        texts=0,
    )
    return sum(completion.exact for completion in completions) / len(completions)
