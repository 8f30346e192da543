"""Compare experiments in the terminal, the best first: their figures, then the parameters in which they differ."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dvc.api
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages import command_line
from stages.command_line import visible
from stages.core.score_table import RATIOS, ScoreTable
from stages.errors import UserError
from stages.report.metric_labels import format_metric
from stages.tracking.baseline import has_effect
from stages.verdict.comparison import compare
from stages.verdict.judge import check_same_rows
from stages.verdict.sources import WORKSPACE, cached_scores

# The first two are shown however narrow the terminal is.
FIGURES = {
    "completion_exact_match": "exact match",
    "loss": "loss",
    "bits_per_byte": "bits/byte",
    "next_token_accuracy": "next token",
    "validation_loss": "validation",
}
LOWER_IS_BETTER = {"loss", "bits_per_byte", "validation_loss"}
# Trials of one table have the same data and split, and were scored on the same rows.
DATA_KEYS = ("data.csv", "split.test", "split.validation", "split.seed", "split.column")
SCORED_KEYS = ("split", "rows")
WITHOUT_EFFECT = ("runtime.", *(f"evaluate.{key}" for key in ("batch_size", "samples", "group_column", "register_as")))
VOCABULARY_KEYS = ("vocabulary.tokenizer", "vocabulary.size")
UNFINISHED = {"Queued", "Running", "Failed"}
NOISE = "≈"
GAP = 2


@dataclass(frozen=True)
class Trial:
    """One line: an experiment, a commit or the workspace."""

    name: str
    revision: str
    state: str
    """Queued, Running or Failed; empty where it is done."""
    figures: dict[str, float]
    """Empty while it is not done: DVC then has those of the experiment's parent."""
    parameters: dict[str, str]
    data: tuple[Any, ...]
    """What its data are."""
    scored: tuple[Any, ...] | None
    """Which rows were scored; None while it is not done."""


def main() -> None:
    """Print a table for each set of rows that experiments were scored on."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument("--sort", metavar="FIGURE", help=f"the figure by which to sort: {', '.join(FIGURES)}")
    parser.add_argument("--num", type=int, default=1, metavar="N", help="show those of the last N commits (default 1)")
    options = parser.parse_args()
    if options.sort and options.sort not in FIGURES:
        raise UserError(f"--sort: found {options.sort!r}, allowed: {', '.join(FIGURES)}")
    trials = read_trials(dvc.api.exp_show(num=options.num))
    scores = cached_scores([trial.revision for trial in trials if not trial.state])
    console = Console(highlight=False)
    for group in group_trials(trials):
        sort = options.sort or default_sort(group)
        members = sort_trials(group, sort)
        console.print(_plain(title_of(members)), style="bold")
        console.print(build_table(members, sort, near_best(members, sort, scores), console.width))
    if not options.quiet:
        console.print(
            f"{NOISE} within noise of the best of its table; `make verdict A=NAME B=NAME` says more", style="dim"
        )


def read_trials(lines: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Return the lines of ``dvc.api.exp_show``, without a workspace that is the same as its commit."""
    trials = [_read_trial(line) for line in lines]
    first, *others = trials
    same = any(
        (first.figures, first.parameters, first.scored) == (other.figures, other.parameters, other.scored)
        for other in others
    )
    return others if first.name == WORKSPACE and same else trials


def _read_trial(line: Mapping[str, Any]) -> Trial:
    state = line.get("State") if line.get("State") in UNFINISHED else ""
    figures = {name: float(line[name]) for name in FIGURES if isinstance(line.get(name), int | float)}
    values = {name: None if str(value) == "None" else value for name, value in line.items()}  # DVC's word for null
    parameters = {
        name: _as_yaml(value)
        for name, value in line.items()
        if "." in name
        and "/" not in name
        and value is not None
        and not name.startswith(WITHOUT_EFFECT)
        and has_effect(name, values)
    }
    return Trial(
        str(line.get("Experiment") or line["rev"]),
        str(line["rev"]),
        str(state or ""),
        {} if state else figures,
        parameters,
        tuple(line.get(key) for key in DATA_KEYS),
        tuple(line.get(key) for key in SCORED_KEYS) if figures and not state else None,
    )


def group_trials(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trials of each table; those that are not done join the first with their data."""
    groups: list[list[Trial]] = []
    for trial in sorted(trials, key=lambda trial: trial.scored is None):
        for group in groups:
            first = group[0]
            if trial.data == first.data and trial.scored in (None, first.scored):
                group.append(trial)
                break
        else:
            groups.append([trial])
    return groups


def default_sort(trials: Sequence[Trial]) -> str:
    """Return the figure by which trials are sorted where nobody asks: the first that all have that are done."""
    done = [trial for trial in trials if trial.figures]
    if len({tuple(map(trial.parameters.get, VOCABULARY_KEYS)) for trial in done}) > 1:
        return "bits_per_byte"  # nats of other tokens do not compare
    return next((name for name in FIGURES if done and all(name in trial.figures for trial in done)), "loss")


def sort_trials(trials: Sequence[Trial], figure: str) -> list[Trial]:
    """Return trials with the best first; those without the figure come last."""
    sign = 1 if figure in LOWER_IS_BETTER else -1
    return sorted(trials, key=lambda trial: sign * trial.figures.get(figure, sign * math.inf))


def near_best(trials: Sequence[Trial], figure: str, scores: Mapping[str, ScoreTable]) -> set[str]:
    """Return the revisions that cannot be told from the best one; none where their rows' scores are not here.

    Args:
        trials: the best first.
        figure: by which they are sorted.
        scores: of revisions.
    """
    if figure not in RATIOS or not trials or trials[0].revision not in scores:
        return set()
    best = scores[trials[0].revision]
    near = set()
    for trial in trials[1:]:
        other = scores.get(trial.revision)
        if other is None:
            continue
        try:
            check_same_rows("", best, "", other)
        except UserError:
            continue
        words = {each.name: each.word for each in compare([best], [other], same_tokens=True)}
        if words.get(figure) == "can't tell":
            near.add(trial.revision)
    return near


def build_table(trials: Sequence[Trial], sort: str, near: set[str], width: int) -> Table:
    """Return the table of one group, as wide as the terminal at most.

    Args:
        trials: its lines.
        sort: the figure by which they are sorted.
        near: the revisions that are within noise of the best.
        width: of the terminal, in characters.
    """
    one_vocabulary = len({tuple(map(trial.parameters.get, VOCABULARY_KEYS)) for trial in trials}) == 1
    figures = [
        name
        for name in FIGURES
        if any(name in trial.figures for trial in trials)
        and (name != "bits_per_byte" or sort == name or not one_vocabulary)
    ] or list(FIGURES)[:2]
    differing = [
        name
        for name in dict.fromkeys(name for trial in trials for name in trial.parameters)
        if len({trial.parameters.get(name) for trial in trials}) > 1
    ]
    columns: list[tuple[str, list[str]]] = [
        (FIGURES[name] + (" ▾" if name == sort else ""), [_figure(trial, name, sort, near) for trial in trials])
        for name in figures
    ]
    columns += [
        (short_name(name, differing), [visible(trial.parameters.get(name, "")) for trial in trials])
        for name in differing
    ]
    widths = [max(len(cell) for cell in [title, *cells]) for title, cells in columns]
    room = width - max(len(name) for name in ["experiment", *(trial.name for trial in trials)])
    fitting = 0
    while fitting < len(columns) and (fitting < 2 or sum(widths[: fitting + 1]) + GAP * (fitting + 1) <= room):
        fitting += 1
    hidden = [title for title, _ in columns[fitting:]]
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, GAP, 0, 0),
        caption=_plain(f"a wider terminal also shows: {', '.join(hidden)}") if hidden else None,
        caption_justify="left",
    )
    table.add_column("experiment", overflow="fold")
    for title, _ in columns[:fitting]:
        table.add_column(_plain(title), justify="right", no_wrap=True)
    for index, trial in enumerate(trials):
        table.add_row(_plain(trial.name), *(_plain(cells[index]) for _, cells in columns[:fitting]))
    return table


def short_name(name: str, names: Sequence[str]) -> str:
    """Return a parameter's name without its section, where no other one of ``names`` has the same."""
    last = name.rpartition(".")[2]
    return last if sum(each.rpartition(".")[2] == last for each in names) == 1 else name


def _figure(trial: Trial, name: str, sort: str, near: set[str]) -> str:
    if trial.state:
        return trial.state.lower()
    if name not in trial.figures:
        return "-"
    return (f"{NOISE} " if name == sort and trial.revision in near else "") + format_metric(trial.figures[name])


def title_of(trials: Sequence[Trial]) -> str:
    """Return what the trials of a table were scored on."""
    scored = next((trial.scored for trial in trials if trial.scored), None)
    if scored is None:
        return f"{trials[0].data[0]}: not scored yet"
    split, rows = scored
    return f"{trials[0].data[0]}: {int(rows or 0):,} {split} rows"


def _plain(text: str) -> str:
    """Return a text that neither rich nor a terminal takes for a command."""
    return escape(visible(text))


def _as_yaml(value: Any) -> str:
    """Return a parameter as params.yaml has it: DVC gives floats for whole numbers, and words for null, true and false."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


if __name__ == "__main__":
    command_line.run(main)
