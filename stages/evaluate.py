"""Score the model on held-out rows and show what it does: data/scores.parquet and metrics/, with pictures and a report."""

import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from stages import command_line
from stages.artifacts.atomic import atomic_file
from stages.artifacts.dataset import DATASET_FOLDER, open_held_out, read_metadata
from stages.artifacts.metrics_json import write_json
from stages.artifacts.model_weights import read_model
from stages.artifacts.prompts_table import ColumnName, DataParams
from stages.artifacts.provenance_json import check_trained_from, read_provenance, stage_provenance
from stages.artifacts.row_places import read_places
from stages.artifacts.scores_parquet import SCORES_FILE, write_scores
from stages.artifacts.stage_inputs import StageInputs, unchanged_inputs
from stages.artifacts.table_csv import write_table
from stages.core.evaluation import (
    Completion,
    Scores,
    accuracy_by_position,
    complete_rows,
    confusion_matrix,
    score,
    summarise,
)
from stages.core.examples import Examples
from stages.core.params_model import ParamsModel
from stages.core.saved_model import SavedModel
from stages.core.score_table import build_score_table
from stages.core.split import SplitParams
from stages.core.vocabulary import Vocabulary
from stages.errors import UserError
from stages.parameters import read_section
from stages.report.content import ReportContent, Sample, build_content, choose, inspect_row
from stages.report.markdown import describe_run
from stages.report.metric_labels import scored_rows
from stages.report.page import render
from stages.report.pictures import evaluation_pictures, model_pictures, write_pictures
from stages.report.token_labels import token_labels
from stages.tracking.registry import log_model
from stages.tracking.runs import Evaluation, log_evaluation
from stages.tracking.store import check_store
from stages.training.checkpoint_folder import CheckpointFolder
from stages.training.runtime import RuntimeParams, memory_errors

LOG = logging.getLogger(__name__)

METRICS_FILE = Path("metrics/evaluate.json")
SAMPLES_FILE = Path("metrics/samples.csv")
POSITIONS_FILE = Path("metrics/plots/accuracy_by_position.csv")
CONFUSIONS_FILE = Path("metrics/plots/confusions.csv")
PICTURES_FOLDER = Path("metrics/pictures")
REPORT_FILE = Path("metrics/report.html")


class EvaluateParams(ParamsModel):
    """How the model is scored."""

    batch_size: Annotated[int, Field(ge=1)]
    """Examples scored at once; changes no figure."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None
    """The longest completion that is generated; null: as long as the longest in the data, at most model.context_length."""
    samples: Annotated[int, Field(ge=0)]
    """Completions written to metrics/samples.csv."""
    group_column: ColumnName | None
    """The column of the data whose values group the rows in data/scores.parquet and in a verdict; null: none."""
    register_as: Annotated[str, Field(pattern=r"^[\w .-]+$", max_length=250)] | None
    """The name in MLflow's registry of which each model that is evaluated becomes the next version; null registers nothing."""


def main() -> None:
    """Score the model of data/model/ as params.yaml says."""
    quiet = command_line.command_parser(__doc__).parse_args().quiet
    with unchanged_inputs("evaluate") as inputs:
        evaluate(inputs, quiet=quiet)


def evaluate(inputs: StageInputs, *, quiet: bool) -> None:
    """Read the model and the rows, score, write the results and add them to the run."""
    params = read_section("evaluate", EvaluateParams)
    runtime = read_section("runtime", RuntimeParams)
    runtime.limit_threads()
    required = runtime.tracking == "required"
    if required:
        check_store()
    model, vocabulary = read_model()
    trained_from = read_provenance()
    check_trained_from(trained_from)
    if "DVC_STAGE" in os.environ:  # then DVC has recorded the training
        CheckpointFolder(trained_from.fingerprint).remove_finished()
    network = model.network.to(runtime.torch_device())
    metadata = read_metadata()
    split, examples = open_held_out(metadata, network.config.context_length)
    data, split_params = read_section("data", DataParams), read_section("split", SplitParams)
    places = read_places(data, split_params, split, metadata.splits[split].rows, params.group_column)
    LOG.info("scoring %s on %s, with %d threads", split, network.output.weight.device, torch.get_num_threads())

    with memory_errors(f"{params.batch_size:,} rows at once are too many: lower evaluate.batch_size in params.yaml"):
        scores = score(network, examples, params.batch_size, partial(command_line.track, name="scores", quiet=quiet))
        check_finite(scores.loss)
        completions = complete_rows(
            network,
            examples,
            scores.rows,
            eos_id=vocabulary.eos_id,
            batch_size=params.batch_size,
            max_new_tokens=params.max_new_tokens,
            texts=params.samples,
            watch=partial(command_line.track, name="completions", quiet=quiet),
        )
    table = build_score_table(split, places, examples, metadata.parameters, vocabulary, scores.rows, completions)
    metrics = {"split": split, **summarise(scores, metadata.splits[split].scored_bytes, completions)}
    labels = token_labels(vocabulary)
    completions_only = metadata.parameters.loss_on == "completion"
    content = inspect_model(model, examples, completions, vocabulary, labels, completions_only=completions_only)
    samples = decode_samples(completions[: params.samples], vocabulary)
    write_scores(SCORES_FILE, table)
    paths = [*write_results(metrics, samples, scores, content), SCORES_FILE]

    inputs.check()  # before MLflow has the figures
    # Naming a model for the registry does not evaluate it anew.
    provenance = stage_provenance("evaluate", apart_from="evaluate.register_as")
    evaluation = Evaluation(provenance, metrics, describe_run(metrics, samples), paths)
    run = log_evaluation(trained_from, evaluation, DATASET_FOLDER, required=required)
    if run is not None:
        prompt = vocabulary.decode(completions[0].prompt) if completions else ""
        log_model(run, prompt, params.register_as, required=required)
    if not quiet:
        print(describe(metrics))


def check_finite(loss: float) -> None:
    """Refuse a loss that is no number.

    Raises:
        UserError: it is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss}: training diverged; lower train.learning_rate or set train.gradient_clip in params.yaml"
        )


def decode_samples(completions: Sequence[Completion], vocabulary: Vocabulary) -> list[Sample]:
    """Return completions as texts."""
    return [
        Sample(
            vocabulary.decode(completion.prompt),
            vocabulary.decode(completion.expected),
            vocabulary.decode(completion.generated),
            completion.exact,
            completion.cut,
        )
        for completion in completions
    ]


def inspect_model(
    model: SavedModel,
    examples: Examples,
    completions: Sequence[Completion],
    vocabulary: Vocabulary,
    labels: list[str],
    *,
    completions_only: bool,
) -> ReportContent:
    """Return what the report shows: some of the completed rows, and what the model does at each of their tokens."""
    answers = model.prompts_end_with_eos
    rows = [
        inspect_row(
            model.network,
            examples.prompt_and_rest(completions[index].row),
            vocabulary.decode(completions[index].expected),
            vocabulary.decode(completions[index].generated),
            exact=completions[index].exact,
            completions_only=completions_only,
        )
        for index in choose([completion.exact or not answers for completion in completions])
    ]
    return build_content(model.network, rows, labels, answers=answers)


def write_results(metrics: dict[str, Any], samples: list[Sample], scores: Scores, content: ReportContent) -> list[Path]:
    """Write figures, tables, the page that a person opens, and pictures; return the files."""
    accuracy = accuracy_by_position(scores)
    confusions = [
        (content.labels[target], content.labels[prediction], count)
        for target, prediction, count in confusion_matrix(scores)
    ]
    write_json(METRICS_FILE, metrics)
    write_table(SAMPLES_FILE, Sample._fields, samples)
    write_table(POSITIONS_FILE, ["position", "accuracy", "tokens"], accuracy)
    write_table(CONFUSIONS_FILE, ["truth", "prediction", "count"], confusions)
    with atomic_file(REPORT_FILE) as file:
        file.write(render(content, metrics).encode())
    curves = evaluation_pictures([(position, share) for position, share, _ in accuracy], confusions)
    pictures = write_pictures(PICTURES_FOLDER / "curves", curves)
    pictures += write_pictures(PICTURES_FOLDER / "model", model_pictures(content))
    return [METRICS_FILE, SAMPLES_FILE, POSITIONS_FILE, CONFUSIONS_FILE, REPORT_FILE, *pictures]


def describe(metrics: dict[str, Any]) -> str:
    """Return the figures for people, and what limits them."""
    names = ("loss", "next_token_accuracy", "completion_exact_match")
    figures = ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
    line = f"scored {scored_rows(metrics)}: {figures} -> {METRICS_FILE}"
    if "completions_cut" not in metrics:
        return line
    return (
        f"{line}\n{metrics['completions_cut']:,} completions were cut by evaluate.max_new_tokens (null: at most "
        "model.context_length) while all was right; whether they end right is judged by their next tokens"
    )


if __name__ == "__main__":
    command_line.run_stage(main)
