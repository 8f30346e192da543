"""metrics/verdict.html: a verdict as one page, without network and without a script."""

import base64
import hashlib
import html
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.report import page as report_page
from stages.verdict.judge import Flip, Verdict
from stages.verdict.words import FIGURE_COLUMNS, figure_cells, flips_title, group_cells, groups_title, notes, row_cell

TEMPLATE = Path(__file__).with_name("page.html")
STYLE = Path(__file__).with_name("page.css")
MOST_FLIPS = 200
MOST_GROUPS = 200
FLIP_COLUMNS = ("row", "prompt", "expected", "A", "B")


def render(verdict: Verdict) -> str:
    """Return the page; what comes from the data is text in it, never markup."""
    style = report_page.STYLE.read_text(encoding="utf-8") + STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    words = [difference.word if difference.word != "can't tell" else "" for difference in verdict.differences]
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'",
        style=style,
        headline=html.escape(verdict.headline),
        notes="".join(f'<p class="quiet">{html.escape(note)}</p>' for note in notes(verdict)),
        figures=_table(FIGURE_COLUMNS, map(figure_cells, verdict.differences), words),
        flips_title=html.escape(flips_title(verdict)),
        flips=_flips("Only B has right", verdict.gained) + _flips("Only A has right", verdict.lost),
        groups_title=html.escape(groups_title(verdict)),
        groups="".join(
            _table((by, "rows", "A", "B", "B - A"), map(group_cells, groups[:MOST_GROUPS]))
            for by, groups in verdict.groups.items()
            if len(groups) > 1
        ),
    )


def _flips(title: str, flips: Sequence[Flip]) -> str:
    if not flips:
        return ""
    lines = [(row_cell(flip), flip.prompt, flip.expected, flip.a, flip.b) for flip in flips[:MOST_FLIPS]]
    more = f", the {MOST_FLIPS} most certain ones" if len(flips) > MOST_FLIPS else ""
    return f'<h3>{html.escape(title)}: {len(flips):,} rows{more}</h3><div class="scroll">{_table(FLIP_COLUMNS, lines)}</div>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    lines = []
    for index, row in enumerate(rows):
        kind = f' class="{classes[index]}"' if index < len(classes) and classes[index] else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>")
    return f'<table class="lines"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
