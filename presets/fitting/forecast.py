"""How long, how much memory and how much disk a whole pipeline will take: arithmetic on what was measured."""

from dataclasses import dataclass

from presets.fitting.machine import Rehearsal

# Fixed costs of the stages, as multiples of the time that a training's imports take here: measured on the toy, of which the
# pipeline consists of nothing else.
_PREPARATION = 0.35
_TRAINING_ENDS = 0.25
_EVALUATION = 1.6
_COMMANDS = 0.35
# What the pictures of longer rows and more heads take more, in the same unit.
_PICTURES = 0.3
_ATTENTION_MAP = 0.04


@dataclass(frozen=True)
class Workload:
    """What the pipeline has to do, beside what was rehearsed."""

    steps: int
    validations: int
    scale: float
    """How many times the rehearsed validation and scored rows there are."""
    preparation_seconds: float
    """Reading, building the vocabulary and encoding, of all rows."""
    parameters: int
    tokens: int
    token_bytes: int
    rows: int
    attention_maps: int
    """In a picture."""
    drawn_share: float
    """Of the most tokens of a picture, those that half of the rows have."""


@dataclass(frozen=True)
class Forecast:
    """What to expect."""

    training_seconds: float
    """From the first step to the last, validations included."""
    train_stage_seconds: float
    pipeline_seconds: float
    peak_bytes: int
    model_bytes: int
    dataset_bytes: int


def forecast(work: Workload, measured: Rehearsal, peak_bytes: int) -> Forecast:
    """Return what a pipeline takes."""
    validations = work.validations * work.scale * measured.validation_seconds
    training = work.steps * measured.step_seconds + validations
    train_stage = measured.import_seconds * (1 + _TRAINING_ENDS) + measured.start_seconds + training
    evaluation = (measured.score_seconds + measured.generation_seconds) * work.scale
    pictures = work.drawn_share * (_PICTURES + _ATTENTION_MAP * work.attention_maps)
    evaluate_stage = (_EVALUATION + pictures) * measured.import_seconds + evaluation
    preparation = _PREPARATION * measured.import_seconds + work.preparation_seconds
    return Forecast(
        training_seconds=training,
        train_stage_seconds=train_stage,
        pipeline_seconds=preparation + train_stage + evaluate_stage + _COMMANDS * measured.import_seconds,
        peak_bytes=peak_bytes,
        model_bytes=4 * work.parameters,
        dataset_bytes=work.tokens * work.token_bytes + 16 * work.rows,
    )


def steps_within(seconds: float, work: Workload, measured: Rehearsal) -> int:
    """Return how many steps fit into a budget for the whole pipeline; at least half of it is for training."""
    rest = forecast(work, measured, 0).pipeline_seconds - work.steps * measured.step_seconds
    return max(1, int(max(seconds - rest, seconds / 2) / measured.step_seconds))


def in_words(seconds: float) -> str:
    """Return a duration for people: 42 s, 9 min 30 s, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min"


def in_bytes(count: float) -> str:
    """Return a size for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} bytes"
