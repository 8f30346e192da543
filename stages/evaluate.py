"""Score the model on rows it has not seen, and show what it does: metrics/, with pictures and a report to read."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from stages import command_line
from stages.artifacts.atomic import atomic_file
from stages.artifacts.dataset import open_examples
from stages.artifacts.metrics_json import write_json
from stages.artifacts.model_weights import SavedModel, read_model
from stages.artifacts.provenance_json import read_provenance, stage_provenance
from stages.artifacts.table_csv import TRAIN_CURVE, VALIDATION_CURVE, read_numbers, write_table
from stages.artifacts.token_shards import DATASET_FOLDER, DatasetMetadata, SplitMetadata, read_metadata
from stages.core.evaluation import (
    bits_per_byte,
    count_correct,
    count_correct_by_position,
    count_pairs,
    perplexity,
    score_tokens,
)
from stages.core.examples import Examples
from stages.core.generation import generate
from stages.core.params_model import ParamsModel
from stages.core.split import SPLITS, Split
from stages.core.vocabulary import Vocabulary
from stages.core.windows import IGNORE_INDEX
from stages.errors import UserError
from stages.parameters import read_section
from stages.report.content import ReportContent, choose, inspect_row, show
from stages.report.markdown import describe_run
from stages.report.metric_labels import scored_rows
from stages.report.page import render
from stages.report.picture_files import write_pictures
from stages.report.pictures import Confusion, Curve, curve_pictures, model_pictures
from stages.report.token_labels import token_labels
from stages.tracking.registry import log_model
from stages.tracking.runs import Evaluation, log_evaluation
from stages.tracking.store import check_store
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams

LOG = logging.getLogger(__name__)

METRICS_FILE = Path("metrics/evaluate.json")
SAMPLES_FILE = Path("metrics/samples.csv")
POSITIONS_FILE = Path("metrics/plots/accuracy_by_position.csv")
CONFUSIONS_FILE = Path("metrics/plots/confusions.csv")
PICTURES_FOLDER = Path("metrics/pictures")
REPORT_FILE = Path("metrics/report.html")

# As many as can be read in one matrix.
CONFUSED_TOKENS = 16
# Figures are rounded where the order in which floating-point numbers are added up begins to show.
DECIMALS = 6


class EvaluateParams(ParamsModel):
    """How the model is scored."""

    batch_size: Annotated[int, Field(ge=1)]
    """Examples scored at once; changes no figure."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None
    """The longest completion that is generated; null: as long as the longest in the data."""
    samples: Annotated[int, Field(ge=0)]
    """Completions written to metrics/samples.csv."""


@dataclass
class Scores:
    """Sums over all examples of a split: the batch size changes none of them."""

    nats: float
    tokens: int
    correct: int
    completion_tokens: int
    completion_correct: int
    tokens_by_position: torch.Tensor
    """int64 [context_length]"""
    correct_by_position: torch.Tensor
    """int64 [context_length]"""
    pairs: Counter[tuple[int, int]]
    """How often each (target, prediction) occurred."""


@dataclass(frozen=True)
class Sample:
    """A prompt, what followed it in the data and what the model made of it, as token ids without <EOS>."""

    row: int
    prompt: list[int]
    expected: list[int]
    completion: list[int]
    exact: bool


def main() -> None:
    """Score the model of data/model/ as params.yaml says."""
    quiet = command_line.command_parser(__doc__).parse_args().quiet
    parameters = read_section("evaluate", EvaluateParams)
    register_as = read_section("train", TrainParams).register_as
    runtime = read_section("runtime", RuntimeParams)
    runtime.limit_threads()
    required = runtime.tracking == "required"
    if required:
        check_store()
    model, vocabulary = read_model()
    trained_from = read_provenance()
    metadata = read_metadata()
    split, examples = held_out(metadata, model.network.config.context_length)
    device = runtime.torch_device()
    LOG.info("scoring %s on %s, with %d threads", split, device, torch.get_num_threads())
    model.network.to(device)

    scores = score(model, examples, parameters.batch_size)
    samples = complete_rows(model, examples, vocabulary.eos_id, parameters)
    metrics = {"split": split, **summarise(scores, metadata.splits[split], samples)}
    labels = token_labels(vocabulary)
    completions_only = metadata.parameters.loss_on == "completion"
    shown = look_inside(model, examples, samples, vocabulary, labels, completions_only=completions_only)

    readable = decode_samples(samples[: parameters.samples], vocabulary)
    paths = write_results(metrics, readable, accuracy_by_position(scores), confusion_matrix(scores, labels), shown)

    evaluation = Evaluation(stage_provenance("evaluate"), metrics, describe_run(metrics, readable), paths)
    run = log_evaluation(trained_from, evaluation, DATASET_FOLDER, required=required)
    if run is not None:
        prompt = vocabulary.decode(samples[0].prompt) if samples else ""
        log_model(run, prompt, register_as, required=required)
    if not quiet:
        print(describe(metrics))


def held_out(metadata: DatasetMetadata, context_length: int) -> tuple[Split, Examples]:
    """Return the split to score: test, else validation, else (where nothing is held out) train.

    Raises:
        UserError: the dataset has no rows at all, or nothing in the split is scored.
    """
    for split in reversed(SPLITS):
        examples = open_examples(split, metadata, context_length)
        if examples is not None:
            return split, examples
    raise UserError("data/dataset/: no split has rows; type `dvc repro --force build_dataset`")


@torch.inference_mode()
def score(model: SavedModel, examples: Examples, batch_size: int) -> Scores:
    """Compare every target with the model's prediction."""
    network = model.network
    device = network.output.weight.device
    context_length = network.config.context_length
    by_position = torch.zeros(2, context_length, dtype=torch.int64)
    scores = Scores(0.0, 0, 0, 0, 0, by_position[0], by_position[1], Counter())
    windows = examples.windows()
    for first in range(0, len(windows), batch_size):
        batch = windows.select(slice(first, first + batch_size))
        input_ids, targets = (torch.from_numpy(array).to(device) for array in examples.gather(batch))
        nats, predictions = score_tokens(network.hidden_states(input_ids), network.output, targets)
        scored = targets != IGNORE_INDEX
        completion = scored & torch.from_numpy(examples.in_completion(batch)).to(device)
        correct, tokens = count_correct(predictions, targets, scored)
        completion_correct, completion_tokens = count_correct(predictions, targets, completion)
        position_correct, position_tokens = count_correct_by_position(predictions, targets, scored)
        scores.nats += float(nats.sum())
        scores.tokens += tokens
        scores.correct += correct
        scores.completion_tokens += completion_tokens
        scores.completion_correct += completion_correct
        scores.tokens_by_position[: position_tokens.shape[0]] += position_tokens.cpu()
        scores.correct_by_position[: position_correct.shape[0]] += position_correct.cpu()
        scores.pairs += count_pairs(predictions, targets, scored)
    return scores


def complete_rows(model: SavedModel, examples: Examples, eos_id: int, parameters: EvaluateParams) -> list[Sample]:
    """Complete the prompts of a split greedily: all of those that have a completion, else the first halves of some texts."""
    rows = examples.rows_with_completion()
    if len(rows) == 0:
        # White space has no words: such a text is <EOS> alone, without halves.
        rows = np.flatnonzero(np.diff(examples.spans.row_offsets) > 1)[: parameters.samples]
    pairs = [examples.prompt_and_rest(int(row)) for row in rows]
    longest = parameters.max_new_tokens or max((len(rest) for _, rest in pairs), default=1)
    # Prompts of like length share a batch, which saves padding.
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]))
    completions: dict[int, list[int]] = {}
    for first in range(0, len(order), parameters.batch_size):
        batch = order[first : first + parameters.batch_size]
        generated = generate(model.network, [pairs[index][0] for index in batch], eos_id, longest)
        completions |= zip(batch, generated, strict=True)
    return [
        Sample(
            int(rows[index]),
            _text(prompt, eos_id),
            _text(rest, eos_id),
            _text(completions[index], eos_id),
            completions[index] == rest,
        )
        for index, (prompt, rest) in enumerate(pairs)
    ]


def summarise(scores: Scores, metadata: SplitMetadata, samples: list[Sample]) -> dict[str, float]:
    """Return the figures of metrics/evaluate.json.

    Raises:
        UserError: the loss is infinite or not a number.
    """
    loss = scores.nats / scores.tokens
    figures = {"rows": metadata.rows, "tokens": scores.tokens, "loss": loss, "perplexity": perplexity(loss)}
    if metadata.scored_bytes:  # the <EOS> of a row of one word, its only target, stands for none
        figures["bits_per_byte"] = bits_per_byte(scores.nats, metadata.scored_bytes)
    figures["next_token_accuracy"] = scores.correct / scores.tokens
    if scores.completion_tokens:
        figures["completion_token_accuracy"] = scores.completion_correct / scores.completion_tokens
        figures["completion_exact_match"] = sum(sample.exact for sample in samples) / len(samples)
    return {name: round(value, DECIMALS) for name, value in figures.items()}


def decode_samples(samples: list[Sample], vocabulary: Vocabulary) -> list[tuple[str, str, str, bool]]:
    """Return what the model answers, as texts to be read by a person."""
    decode = vocabulary.decode
    return [
        (decode(sample.prompt), decode(sample.expected), decode(sample.completion), sample.exact) for sample in samples
    ]


def accuracy_by_position(scores: Scores) -> list[tuple[int, float, int]]:
    """Return (position from 1, share of right predictions, how many were scored there)."""
    counts = zip(scores.correct_by_position.tolist(), scores.tokens_by_position.tolist(), strict=True)
    return [
        (position, correct / tokens, tokens) for position, (correct, tokens) in enumerate(counts, start=1) if tokens
    ]


def confusion_matrix(scores: Scores, labels: list[str]) -> list[Confusion]:
    """Return how often each token was predicted in place of each, among the tokens that were mistaken most.

    Where there are few of them, those that were scored most often keep them company.
    """
    by_interest = sorted(scores.pairs.items(), key=lambda item: (item[0][0] == item[0][1], -item[1], item[0]))
    shown: set[int] = set()
    for pair, _ in by_interest:
        if len(shown) == CONFUSED_TOKENS:
            break
        if len(shown.union(pair)) <= CONFUSED_TOKENS:
            shown.update(pair)
    among_shown = [(pair, count) for pair, count in scores.pairs.items() if shown.issuperset(pair)]
    return [(labels[truth], labels[prediction], count) for (truth, prediction), count in sorted(among_shown)]


def look_inside(
    model: SavedModel,
    examples: Examples,
    samples: list[Sample],
    vocabulary: Vocabulary,
    labels: list[str],
    *,
    completions_only: bool,
) -> ReportContent:
    """Read some of the completed rows again, watching what the model does."""
    answers = model.prompts_end_with_eos
    texts = [
        inspect_row(
            model.network,
            examples.prompt_and_rest(sample.row),
            vocabulary.decode(sample.expected),
            vocabulary.decode(sample.completion),
            exact=sample.exact,
            completions_only=completions_only,
        )
        for sample in (samples[index] for index in choose([sample.exact or not answers for sample in samples]))
    ]
    return show(model.network, texts, labels, answers=answers)


def write_results(
    metrics: dict[str, Any],
    samples: list[tuple[str, str, str, bool]],
    accuracy: list[tuple[int, float, int]],
    confusions: list[Confusion],
    shown: ReportContent,
) -> list[Path]:
    """Write figures, tables, the page that a person opens, and pictures; return the files."""
    write_json(METRICS_FILE, metrics)
    write_table(SAMPLES_FILE, ["prompt", "expected", "completion", "exact_match"], samples)
    write_table(POSITIONS_FILE, ["position", "accuracy", "tokens"], accuracy)
    write_table(CONFUSIONS_FILE, ["truth", "prediction", "count"], confusions)
    with atomic_file(REPORT_FILE) as file:
        file.write(render(shown, metrics).encode())
    curves = draw_curves([(position, share) for position, share, _ in accuracy], confusions)
    pictures = write_pictures(PICTURES_FOLDER / "curves", curves)
    pictures += write_pictures(PICTURES_FOLDER / "model", model_pictures(shown))
    return [METRICS_FILE, SAMPLES_FILE, POSITIONS_FILE, CONFUSIONS_FILE, REPORT_FILE, *pictures]


def draw_curves(accuracy: Curve, confusions: list[Confusion]) -> dict[str, bytes]:
    """Draw the curves of the training and of this evaluation."""
    training, validation = read_numbers(TRAIN_CURVE), read_numbers(VALIDATION_CURVE)
    return curve_pictures(
        [(point["step"], point["train_loss"]) for point in training],
        [(point["step"], point["validation_loss"]) for point in validation],
        [(point["step"], point["learning_rate"]) for point in training],
        accuracy,
        confusions,
    )


def describe(metrics: dict[str, Any]) -> str:
    """Return the figures as a line for people."""
    names = ("loss", "next_token_accuracy", "completion_exact_match")
    figures = ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
    return f"scored {scored_rows(metrics)}: {figures} -> {METRICS_FILE}"


def _text(token_ids: list[int], eos_id: int) -> list[int]:
    return [token_id for token_id in token_ids if token_id != eos_id]


if __name__ == "__main__":
    command_line.run(main)
