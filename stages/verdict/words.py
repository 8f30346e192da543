"""What a verdict says, as cells of text that terminal, Markdown and page share."""

from stages.report.metric_labels import METRIC_LABELS, format_metric
from stages.verdict.comparison import CONFIDENCE, DRAWS, Difference
from stages.verdict.judge import Flip, Group, Verdict

FIGURE_COLUMNS = ("figure", "A", "B", "B - A", "95% interval", "B is", "found in 80% of cases")


def figure_cells(difference: Difference) -> tuple[str, ...]:
    """Return one line of the table of figures."""
    return (
        METRIC_LABELS[difference.name],
        format_metric(difference.a),
        format_metric(difference.b),
        signed(difference.difference),
        f"{signed(difference.low)} to {signed(difference.high)}",
        difference.word,
        f"from {format_metric(difference.detectable)}",
    )


def row_cell(flip: Flip) -> str:
    """Return where a row is in the data."""
    return f"{flip.row:,}" if flip.file is None else f"{flip.file} {flip.row:,}"


def group_cells(group: Group) -> tuple[str, ...]:
    """Return one line of a table of groups."""
    return (
        group.name,
        f"{group.rows:,}",
        format_metric(group.a),
        format_metric(group.b),
        signed(group.b - group.a),
    )


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{'-' if value < 0 else '+'}{format_metric(abs(value))}"


def notes(verdict: Verdict) -> list[str]:
    """Return what a reader must know to read the figures right."""
    notes = [
        f"A is {verdict.a}, B is {verdict.b}. Scored on {verdict.rows:,} {verdict.split} rows.",
        f"The intervals hold together with {CONFIDENCE:.0%}: paired bootstrap over rows, {DRAWS:,} draws.",
    ]
    if verdict.split == "train":
        notes.append("Nothing is held out: these are rows that the models were trained on.")
    if not verdict.same_tokens:
        notes.append("Their tokens differ, so that figures of a token do not compare: see bits per byte.")
    if verdict.runs == (1, 1):
        notes.append(
            "One training each: how much another seed alone changes is not known. Train some with "
            "`dvc exp run --queue -S 'train.seed=range(5)'` and compare the groups."
        )
    else:
        counts = "{} runs of A, {} of B".format(*verdict.runs)
        moves = ", ".join(
            f"{METRIC_LABELS[each.name]} {format_metric(each.seed_deviation)}"
            for each in verdict.differences
            if each.seed_deviation is not None
        )
        notes.append(f"{counts}. Another seed alone moves a run by (standard deviation): {moves}.")
    return notes


def groups_title(verdict: Verdict) -> str:
    """Return what the tables of groups compare, and what they do not say."""
    return f"{METRIC_LABELS[verdict.group_figure].capitalize()} by groups of rows (without intervals: in a small group, chance changes much)"


def flips_title(verdict: Verdict) -> str:
    """Return how many answers changed."""
    return f"{len(verdict.gained):,} completions only B has right, {len(verdict.lost):,} only A has right"
