"""A verdict in the terminal, and in Markdown."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.command_line import visible
from stages.report.markdown import cell
from stages.verdict.judge import Flip, Verdict
from stages.verdict.words import FIGURE_COLUMNS, figure_cells, flips_title, group_cells, groups_title, notes, row_cell

MOST_FLIPS = 5
MOST_GROUPS = 10
COLOURS = {"better": "green", "worse": "red", "can't tell": "dim"}
FLIP_COLUMNS = ("row", "prompt", "expected", "A", "B")
GROUP_COLUMNS = ("rows", "A", "B", "B - A")


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print a verdict: the sentence first, then figures, rows and groups."""
    console.print(f"[bold]{escape(visible(verdict.headline))}[/bold]\n")
    figures = _table(FIGURE_COLUMNS)
    for difference in verdict.differences:
        figures.add_row(*map(escape, figure_cells(difference)), style=COLOURS[difference.word])
    console.print(figures)
    for note in notes(verdict):
        console.print(escape(visible(note)), style="dim")
    if verdict.gained or verdict.lost:
        console.print(f"\n[bold]{flips_title(verdict)}[/bold]")
        for title, flips in (("Only B has right", verdict.gained), ("Only A has right", verdict.lost)):
            if flips:
                console.print(_some(title, flips))
                rows = _table(FLIP_COLUMNS)
                for flip in flips[:MOST_FLIPS]:
                    rows.add_row(*map(escape, flip_cells(flip)))
                console.print(rows)
    _print_groups(verdict, console)


def _print_groups(verdict: Verdict, console: Console) -> None:
    several = {by: groups for by, groups in verdict.groups.items() if len(groups) > 1}
    if several:
        console.print(f"\n[bold]{escape(groups_title(verdict))}[/bold]")
        for by, groups in several.items():
            table = _table((escape(_short(by)), *GROUP_COLUMNS))
            for group in groups[:MOST_GROUPS]:
                table.add_row(*(escape(_short(text)) for text in group_cells(group)))
            console.print(table)
            if len(groups) > MOST_GROUPS:
                console.print(f"and {len(groups) - MOST_GROUPS:,} more, which changed no more than these", style="dim")


def to_markdown(verdict: Verdict) -> str:
    """Return a verdict to paste into a pull request."""
    lines = [f"### {cell(verdict.headline)}", ""]
    lines += _markdown_table(FIGURE_COLUMNS, map(figure_cells, verdict.differences))
    lines += ["", *(f"{cell(note)}  " for note in notes(verdict))]
    for title, flips in (("Only B has right", verdict.gained), ("Only A has right", verdict.lost)):
        if flips:
            lines += ["", f"#### {_some(title, flips)}", ""]
            lines += _markdown_table(FLIP_COLUMNS, map(flip_cells, flips[:MOST_FLIPS]))
    several = {by: groups for by, groups in verdict.groups.items() if len(groups) > 1}
    if several:
        lines += ["", f"#### {groups_title(verdict)}"]
        for by, groups in several.items():
            lines += ["", *_markdown_table((cell(by), *GROUP_COLUMNS), map(group_cells, groups[:MOST_GROUPS]))]
    return "\n".join(lines)


def flip_cells(flip: Flip) -> tuple[str, ...]:
    """Return one line of a table of rows."""
    return (row_cell(flip), *(_short(text) for text in (flip.prompt, flip.expected, flip.a, flip.b)))


def _some(title: str, flips: Sequence[Flip]) -> str:
    limit = f", the {MOST_FLIPS} most certain ones" if len(flips) > MOST_FLIPS else ""
    return f"{title}: {len(flips):,} rows{limit}"


def _short(text: str, most: int = 60) -> str:
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name in ("A", "B", "B - A", "rows", "row") else "left", overflow="fold"
        )
    return table


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(map(cell, row))} |" for row in rows]
