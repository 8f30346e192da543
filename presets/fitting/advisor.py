"""From data and a budget to a whole params.yaml and its forecast; and the forecast of one that stands already."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from presets.fitting import rules, texts
from presets.fitting.choice import Choice
from presets.fitting.columns import choose_roles, is_label
from presets.fitting.data import Prepared, hold_out, prepare, read_sample
from presets.fitting.forecast import Forecast, Workload, forecast, in_bytes, steps_within
from presets.fitting.machine import (
    Rehearsal,
    TrainingSample,
    count_parameters,
    free_bytes,
    needed_bytes,
    peak_bytes,
    rehearse,
    time_step,
)
from presets.fitting.peek import choose_delimiter, peek
from stages.artifacts.prompts_table import DataParams
from stages.core.examples import Examples
from stages.core.params_model import ParamsModel
from stages.core.split import SPLITS, Split, SplitParams
from stages.core.transformer import ModelParams, TransformerConfig
from stages.core.vocabulary import VocabularyParams
from stages.core.windows import DatasetParams, pass_lengths
from stages.errors import UserError
from stages.parameters import read_all, read_section
from stages.report.pictures import HEADS, LAYERS, TOKENS
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams

Choices = dict[str, Choice[Any]]
Section = TypeVar("Section", bound=ParamsModel)

FIRST_BATCH_TOKENS = 2048
"""Of a step by which candidates are timed, before the best batch is known."""
STEP_SECONDS = 1.5
"""For timing one candidate, and at most this share of the budget:"""
STEP_SHARE = 0.01
REHEARSAL_SECONDS = 6.0
"""For rehearsing the training that was chosen, and at most this share of the budget:"""
REHEARSAL_SHARE = 0.02
_MARGIN = 0.9  # of the free memory
_BATCHES = 100  # of which the one with the most tokens counts


@dataclass(frozen=True)
class Fitted:
    """What to write and what to tell."""

    csv: str
    choices: Choices
    unused: tuple[str, ...]
    rows: Mapping[Split, int]
    classes: rules.Classes | None
    forecast: Forecast
    free_bytes: int


@dataclass(frozen=True)
class Forecasted:
    """What a params.yaml asks for."""

    csv: str
    parameters: int
    steps: int
    forecast: Forecast
    free_bytes: int


def fit(
    csv: str, minutes: float, prompt: str | None, completion: str | None, template: Path, machine: Mapping[str, Any]
) -> Fitted:
    """Look at the data, measure the machine, decide.

    Args:
        csv: as data.csv takes it.
        minutes: for the whole pipeline.
        prompt: the column, if it is not to be guessed.
        completion: likewise.
        template: a complete params.yaml, for what no rule decides.
        machine: the section runtime to take over.

    Raises:
        UserError: the data cannot be read, their columns are a tie, or no candidate fits into memory.
    """
    defaults = read_all(template)
    runtime = RuntimeParams.model_validate(machine)
    runtime.limit_threads()
    delimiter = choose_delimiter(csv)
    roles = choose_roles(peek(csv, delimiter.value), prompt, completion)
    plain = roles.completion.value is None
    choices: Choices = {
        "data.csv": Choice(csv, "as you named it"),
        "data.prompt_column": roles.prompt,
        "data.completion_column": roles.completion,
        "data.delimiter": delimiter,
        "split.column": roles.split,
        "split.validation": Choice(0.0, ""),
        "split.test": Choice(0.0, ""),
    }
    sample = read_sample(
        section("data", DataParams, defaults, choices), section("split", SplitParams, defaults, choices)
    )
    choices |= {
        f"split.{name}": rules.choose_held_out(sum(sample.counts.values()), comes_split=sample.counts[name] > 0)
        for name in ("validation", "test")
    }
    if roles.split.value is None:
        sample = hold_out(sample, section("split", SplitParams, defaults, choices))
    vocabulary_choices, prepared = choose_vocabulary(sample.rows, defaults)
    lengths = prepared.lengths()
    packing = rules.choose_packing(lengths, plain=plain)
    choices |= vocabulary_choices
    choices |= {
        "dataset.packing": packing,
        "dataset.loss_on": rules.choose_loss_on(choices["vocabulary.tokenizer"].value, lengths, plain=plain),
        "model.context_length": rules.choose_context(lengths, packing.value, minutes),
    }
    choices |= rules.ARCHITECTURE
    choices |= {
        f"runtime.{name}": Choice(value, "as in your params.yaml")
        for name, value in machine.items()
        if value != defaults["runtime"][name]
    }
    dataset = section("dataset", DatasetParams, defaults, choices)
    training, validation, scored = open_splits(prepared, dataset, choices["model.context_length"].value)
    data = DataAtHand(
        prepared, training, validation, scored, sample.scale, 2 * sample.seconds / sample.scale + prepared.seconds
    )
    chosen, result = choose_model_and_training(data, 60 * minutes, defaults, choices, runtime)
    choices |= chosen
    return Fitted(
        csv,
        choices,
        roles.unused,
        sample.counts,
        find_classes(sample.rows),
        result,
        free_bytes(runtime),
    )


@dataclass(frozen=True)
class DataAtHand:
    """The sample as examples, and how much more there is."""

    prepared: Prepared
    training: Examples
    validation: Examples | None
    scored: Examples
    scale: float
    seconds: float
    """What reading and encoding the sample took."""

    def padded_tokens(self, batch_size: int, runtime: RuntimeParams, *, compiled: bool = False) -> int:
        """Return the inputs of an example, padding included: on a CPU, where short rows have passes of their own, a batch's mean."""
        windows = self.training.windows()
        lengths = windows.ends - windows.starts
        if compiled or runtime.torch_device() != "cpu":
            return int(lengths.max())
        draw = np.random.default_rng(0)
        batches = [pass_lengths(draw.choice(lengths, batch_size)) for _ in range(_BATCHES)]
        return max(math.ceil(float(batch.mean())) for batch in batches)

    @property
    def training_tokens(self) -> float:
        """Return the tokens of the whole training split."""
        return self.prepared.tokens("train") * self.scale


def choose_vocabulary(rows: pd.DataFrame, defaults: Mapping[str, Any]) -> tuple[Choices, Prepared]:
    """Return the vocabulary's parameters, and the rows encoded with it."""
    training = rows[rows["split"] == "train"]
    held_out = rows[rows["split"] != "train"]
    figures = texts.text_figures(training, held_out)
    tokenizer = texts.choose_tokenizer(figures)
    choices: Choices = {"vocabulary.tokenizer": tokenizer}
    if tokenizer.value == "bpe":
        choices["vocabulary.size"] = texts.choose_pairs(training)
    choices["vocabulary.unknown_token"] = Choice(tokenizer.value != "bpe", "")
    prepared = prepare(rows, section("vocabulary", VocabularyParams, defaults, choices))
    unknown = texts.choose_unknown(tokenizer.value, prepared.vocabulary, held_out)
    choices["vocabulary.unknown_token"] = unknown
    return choices, prepared


def choose_model_and_training(
    data: DataAtHand, seconds: float, defaults: Mapping[str, Any], choices: Choices, runtime: RuntimeParams
) -> tuple[Choices, Forecast]:
    """Time candidates, choose one, and plan its training within the budget; forecast it."""
    validates = data.validation is not None
    chosen = dict(choices)
    examples = data.training.examples_per_epoch()
    windows = data.training.full_windows(0)
    mean_tokens = float((windows.ends - windows.starts).mean())
    first_batch = max(1, min(examples, round(FIRST_BATCH_TOKENS / mean_tokens)))
    padded_tokens = data.padded_tokens(first_batch, runtime)
    candidates = []
    for n_layers, d_model in rules.SHAPES:
        config = shape_config(defaults, chosen, n_layers, d_model, data.prepared.vocabulary.size)
        if needed_bytes(config, first_batch, padded_tokens) > _MARGIN * free_bytes(runtime):
            break
        parameters = section("train", TrainParams, defaults, chosen | rules.timing_choices(first_batch))
        step_seconds = time_step(config, data.training, parameters, min(STEP_SECONDS, seconds * STEP_SHARE))
        candidates.append(
            rules.Candidate(n_layers, d_model, count_parameters(config), first_batch * mean_tokens / step_seconds)
        )
        if rules.is_past_the_best(candidates, seconds, data.training_tokens):
            break
    if not candidates:
        smallest = shape_config(defaults, chosen, *rules.SHAPES[0], data.prepared.vocabulary.size)
        raise UserError(refusal(smallest, first_batch, padded_tokens, free_bytes(runtime)))
    shape = rules.choose_shape(candidates, seconds, data.training_tokens)
    best = shape.value
    tokens = best.tokens_per_second * seconds
    passes = tokens / data.training_tokens
    reason = shape.reason
    chosen |= {
        "model.n_layers": Choice(best.n_layers, reason),
        "model.d_model": Choice(best.d_model, reason),
        "model.n_heads": Choice(best.d_model // rules.HEAD_DIM, f"{rules.HEAD_DIM} numbers a head"),
        "model.dropout": rules.choose_dropout(passes, choices["vocabulary.tokenizer"].value),
        "train.batch_size": rules.choose_batch(tokens, mean_tokens, round(examples * data.scale)),
    }
    chosen |= rules.choose_training(passes, 1, validates=validates)
    config = config_of(defaults, chosen, data.prepared.vocabulary.size)
    measured = rehearsal_of(data, defaults, chosen, config, runtime, min(REHEARSAL_SECONDS, seconds * REHEARSAL_SHARE))
    batch_size = chosen["train.batch_size"].value
    for _ in range(2):  # the second time with the validations of about as many steps
        steps = steps_within(seconds, workload_of(data, defaults, chosen, config), measured)
        passes = steps * batch_size / (examples * data.scale)
        chosen |= rules.choose_training(passes, steps, validates=validates)
    peak = peak_bytes(config, batch_size, data.padded_tokens(batch_size, runtime), measured)
    return chosen, forecast(workload_of(data, defaults, chosen, config), measured, peak)


def expect(data: DataAtHand, values: Mapping[str, Any], choices: Choices, runtime: RuntimeParams) -> Forecast:
    """Rehearse what was chosen, and forecast.

    Raises:
        UserError: it would not fit into memory.
    """
    config = config_of(values, choices, data.prepared.vocabulary.size)
    parameters = section("train", TrainParams, values, choices)
    batch_size = runtime.micro_batch_size or parameters.batch_size
    padded_tokens = data.padded_tokens(batch_size, runtime, compiled=parameters.compile)
    needed, free = needed_bytes(config, batch_size, padded_tokens), free_bytes(runtime)
    if needed > free:
        raise UserError(refusal(config, batch_size, padded_tokens, free))
    measured = rehearsal_of(data, values, choices, config, runtime, REHEARSAL_SECONDS)
    peak = peak_bytes(config, batch_size, padded_tokens, measured)
    return forecast(workload_of(data, values, choices, config), measured, peak)


def forecast_of(parameters: Path) -> Forecasted:
    """Forecast what a params.yaml asks for.

    Raises:
        UserError: it is not valid, its data cannot be read, or it would not fit into memory.
    """
    data_parameters = read_section("data", DataParams, parameters)
    split = read_section("split", SplitParams, parameters)
    vocabulary = read_section("vocabulary", VocabularyParams, parameters)
    dataset = read_section("dataset", DatasetParams, parameters)
    model = read_section("model", ModelParams, parameters)
    train = read_section("train", TrainParams, parameters)
    runtime = read_section("runtime", RuntimeParams, parameters)
    runtime.limit_threads()
    sample = read_sample(data_parameters, split)
    prepared = prepare(sample.rows, vocabulary)
    data = DataAtHand(
        prepared,
        *open_splits(prepared, dataset, model.context_length),
        scale=sample.scale,
        seconds=2 * sample.seconds / sample.scale + prepared.seconds,
    )
    values = read_all(parameters)
    result = expect(data, values, {}, runtime)
    config = config_of(values, {}, prepared.vocabulary.size)
    steps = train.total_steps(round(data.training.examples_per_epoch() * sample.scale))
    return Forecasted(data_parameters.csv, count_parameters(config), steps, result, free_bytes(runtime))


def find_classes(rows: pd.DataFrame) -> rules.Classes | None:
    """Return the classes, where completions are labels; the share is of the split that will be scored."""
    if not is_label(rows["completion"]):
        return None
    majority = str(rows.loc[rows["split"] == "train", "completion"].mode()[0])
    scored = next(part for name in reversed(SPLITS) if len(part := rows[rows["split"] == name]))
    return rules.Classes(rows["completion"].nunique(), majority, float((scored["completion"] == majority).mean()))


def section(name: str, model: type[Section], values: Mapping[str, Any], choices: Choices) -> Section:
    """Return one section of params.yaml as it will be with these choices."""
    chosen = {key.partition(".")[2]: choice.value for key, choice in choices.items() if key.startswith(f"{name}.")}
    return model.model_validate({**values[name], **chosen})


def config_of(values: Mapping[str, Any], choices: Choices, vocabulary_size: int) -> TransformerConfig:
    """Return the network's configuration."""
    shape = section("model", ModelParams, values, choices).model_dump()
    return TransformerConfig(vocabulary_size=vocabulary_size, **shape)


def shape_config(
    values: Mapping[str, Any], choices: Choices, n_layers: int, d_model: int, vocabulary_size: int
) -> TransformerConfig:
    """Return the configuration of a candidate."""
    shape = {"n_layers": n_layers, "d_model": d_model, "n_heads": d_model // rules.HEAD_DIM}
    candidate = {f"model.{name}": Choice(value, "") for name, value in shape.items()}
    return config_of(values, choices | candidate, vocabulary_size)


def open_splits(
    prepared: Prepared, dataset: DatasetParams, context_length: int
) -> tuple[Examples, Examples | None, Examples]:
    """Return the examples to train on, to watch and to score."""
    training = prepared.examples("train", dataset, context_length)
    assert training is not None  # noqa: S101 - take_roles leaves rows to train on
    validation = prepared.examples("validation", dataset, context_length)
    return training, validation, prepared.examples("test", dataset, context_length) or validation or training


def rehearsal_of(
    data: DataAtHand,
    values: Mapping[str, Any],
    choices: Choices,
    config: TransformerConfig,
    runtime: RuntimeParams,
    seconds: float,
) -> Rehearsal:
    """Rehearse the training of these choices for some seconds."""
    evaluate = values["evaluate"] | {
        name.partition(".")[2]: choice.value for name, choice in choices.items() if name.startswith("evaluate.")
    }
    sample = TrainingSample(
        config,
        data.training,
        data.validation,
        data.scored,
        section("train", TrainParams, values, choices),
        runtime,
        evaluate["batch_size"],
        evaluate["max_new_tokens"] or data.prepared.lengths().longest_completion,
    )
    return rehearse(sample, seconds)


def workload_of(data: DataAtHand, values: Mapping[str, Any], choices: Choices, config: TransformerConfig) -> Workload:
    """Return what the whole pipeline has to do."""
    train = section("train", TrainParams, values, choices)
    examples = round(data.training.examples_per_epoch() * data.scale)
    steps = train.total_steps(examples)
    every = train.validate_every or max(1, round(examples / train.batch_size))
    lengths = data.prepared.lengths()
    vocabulary_size = data.prepared.vocabulary.size
    return Workload(
        steps=steps,
        validations=-(-steps // every) if data.validation else 0,
        scale=data.scale,
        preparation_seconds=data.seconds * data.scale,
        parameters=count_parameters(config),
        tokens=round(lengths.tokens * data.scale),
        token_bytes=np.min_scalar_type(vocabulary_size - 1).itemsize,
        rows=round(lengths.rows * data.scale),
        attention_maps=min(config.n_layers, LAYERS) * min(config.n_heads, HEADS),
        drawn_share=min(1.0, lengths.median / TOKENS),
    )


def refusal(config: TransformerConfig, batch_size: int, tokens: int, free: int) -> str:
    """Return the error for a training that does not fit into memory, with the largest that does."""
    found = (
        f"this training needs about {in_bytes(needed_bytes(config, batch_size, tokens))} of memory, and "
        f"{in_bytes(free)} are free"
    )
    for size in (batch_size >> halvings for halvings in range(1, batch_size.bit_length())):
        if needed_bytes(config, size, tokens) <= free:
            return f"{found}; set runtime.micro_batch_size: {size}, which changes no result, or lower train.batch_size"
    heads = config.n_heads
    for head_dim in range(config.head_dim - 2, 0, -2):
        smaller = config.model_copy(update={"d_model": heads * head_dim})
        if needed_bytes(smaller, 1, tokens) <= free:
            return f"{found}, even with one example at once; the largest that fits has model.d_model: {smaller.d_model}"
    return f"{found}, however narrow the model is: lower model.context_length and model.n_layers"
