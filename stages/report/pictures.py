"""metrics/pictures/: PNG files, the same bytes whenever the same things are drawn.

Tokens are never read as mathematics (`$`), and a character that the font lacks is drawn as a box.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from stages.artifacts.atomic import atomic_file
from stages.report.content import InspectedRow, ReportContent

Curve = Sequence[tuple[float, float]]
Confusion = tuple[str, str, int]
"""A true token, the one that was predicted, and how often."""

# Fewer than in the report, where one can point at a token.
ROWS = 3
LAYERS = 4
HEADS = 4
TOKENS = 24
LIKELY = 5
POSITIONS = 256

_BLUE, _ORANGE, _GREY = "#2563eb", "#d97706", "#6b7280"
_STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.prop_cycle": cycler(color=[_BLUE, _ORANGE]),
    "text.parse_math": False,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
}


def model_pictures(content: ReportContent) -> dict[str, bytes]:
    """Draw what is inside the model: file name -> PNG."""
    drawings: dict[str, Callable[[], Figure]] = {
        "token_embeddings.png": partial(_embeddings, content),
        "position_encodings.png": partial(_positions, content),
    }
    for number, row in enumerate(content.rows[:ROWS], start=1):
        drawings[f"attention_{number}.png"] = partial(_attention, content, row)
        drawings[f"next_tokens_{number}.png"] = partial(_next_tokens, content, row)
    return _draw(drawings)


def evaluation_pictures(accuracy: Curve, confusions: Sequence[Confusion]) -> dict[str, bytes]:
    """Draw what ``dvc plots`` draws of an evaluation: file name -> PNG."""
    return _draw(
        {
            "accuracy_by_position.png": partial(_accuracy, accuracy),
            "confusions.png": partial(_confusions, confusions),
        }
    )


def write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> list[Path]:
    """Write each picture under its name and delete those of an earlier evaluation; return the files."""
    paths = [folder / name for name in pictures]
    for old in set(folder.glob("*.png")) - set(paths):
        old.unlink()
    for path, picture in zip(paths, pictures.values(), strict=True):
        with atomic_file(path) as file:
            file.write(picture)
    return paths


def _draw(drawings: dict[str, Callable[[], Figure]]) -> dict[str, bytes]:
    with _style():
        return {name: _png(drawing()) for name, drawing in sorted(drawings.items())}


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's own matplotlibrc would change the bytes
        mpl.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # The default metadata names matplotlib's version.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _attention(content: ReportContent, row: InspectedRow) -> Figure:
    """Draw a heat map for each layer (down) and head (across)."""
    layers, heads = content.layers[:LAYERS], content.heads[:HEADS]
    tokens = min(TOKENS, len(row.token_ids) - 1)
    names = [content.labels[token_id] for token_id in row.token_ids[:tokens]]
    longest = max(map(len, names))
    margin = 0.5 + 0.075 * longest
    side = max(1.9, tokens * (0.42 if len(layers) * len(heads) == 1 else 0.19))
    size = (max(4.8, margin + len(heads) * (side + 0.25) + 0.9), 0.9 + len(layers) * (side + 0.35) + margin)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Attention: each row's token looks at the tokens in the columns", fontsize=10, x=0.02, ha="left")
    panels = figure.subplots(len(layers), len(heads), squeeze=False, sharex=True, sharey=True)
    for down, layer in enumerate(layers):
        for across, head in enumerate(heads):
            axes: Axes = panels[down, across]
            weights = row.inspection.attention[layer, head, :tokens, :tokens].numpy()
            causal_mask = np.triu(np.ones_like(weights, dtype=bool), k=1)
            image = axes.imshow(np.ma.array(weights, mask=causal_mask), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8, fontweight="normal")
            # Only the outer panels name the tokens. Ticks are most of the drawing, also those that are hidden.
            axes.xaxis.set_visible(down == len(layers) - 1)
            axes.yaxis.set_visible(across == 0)
            if axes.xaxis.get_visible():
                axes.set_xticks(range(tokens), names, rotation=90)
            if axes.yaxis.get_visible():
                axes.set_yticks(range(tokens), names)
            axes.tick_params(length=0, labelsize=8)
            axes.spines[:].set_visible(False)
            if tokens <= 12 and len(layers) * len(heads) == 1:
                for query in range(tokens):
                    for key in range(query + 1):
                        share = weights[query, key]
                        axes.text(
                            key, query, f"{share:.0%}", ha="center", va="center", fontsize=6.5,
                            color="white" if share > 0.6 else "#1f2937",
                        )  # fmt: skip
    figure.colorbar(image, ax=panels, shrink=0.6, format=lambda share, _: f"{share:.0%}", pad=0.02)
    return figure


def _next_tokens(content: ReportContent, row: InspectedRow) -> Figure:
    """Draw a table: at each step the token read, the true next one, and the likeliest with their probabilities."""
    inspection = row.inspection
    steps = min(TOKENS, len(row.token_ids) - 1)
    likely = min(LIKELY, inspection.likely_ids.shape[1])
    figure = Figure(figsize=(3.2 + 1.25 * likely, 0.95 + 0.28 * steps), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_title("Next token at each step: likeliest first, the true one outlined")
    probabilities = inspection.likely_probabilities[:steps, :likely].numpy()
    axes.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xlim(-2.1, likely - 0.5)
    for step in range(steps):
        read, truth = row.token_ids[step : step + 2]
        hit = int(inspection.likely_ids[step, 0]) == truth
        axes.text(-2.05, step, content.labels[read], va="center", fontweight="bold")
        truth_text = f"{content.labels[truth]} · {float(inspection.target_probabilities[step]):.0%}"
        axes.text(-0.6, step, truth_text, va="center", ha="right", color=_GREY if hit else "#b91c1c")
        for rank in range(likely):
            token_id, probability = int(inspection.likely_ids[step, rank]), float(probabilities[step, rank])
            axes.text(
                rank, step, f"{content.labels[token_id]} · {probability:.0%}", ha="center", va="center", fontsize=8,
                color="white" if probability > 0.6 else "#1f2937",
            )  # fmt: skip
            if token_id == truth:
                axes.add_patch(Rectangle((rank - 0.48, step - 0.46), 0.96, 0.92, fill=False, color=_ORANGE, lw=1.6))
    axes.text(-2.05, -0.75, "reads", color=_GREY, fontsize=8)
    axes.text(-0.6, -0.75, "true next", color=_GREY, fontsize=8, ha="right")
    axes.set_ylim(steps - 0.5, -1.1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def _embeddings(content: ReportContent) -> Figure:
    figure = Figure(figsize=(6.2, 4.6), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_title("Token embeddings, in the two directions in which they differ most")
    named = [point for point in content.points if point.named]
    others = [point for point in content.points if not point.named]
    axes.scatter([point.x for point in others], [point.y for point in others], s=6, color="#cbd5e1")
    axes.scatter([point.x for point in named], [point.y for point in named], s=22, color=_BLUE)
    for point in named:
        axes.annotate(point.label, (point.x, point.y), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.margins(0.12)
    axes.axhline(0, color="#e5e7eb", lw=0.8, zorder=0)
    axes.axvline(0, color="#e5e7eb", lw=0.8, zorder=0)
    return figure


def _positions(content: ReportContent) -> Figure:
    table = content.positions[:POSITIONS].numpy()
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes: Axes = figure.subplots()
    kind = content.network.config.positions
    name = {"sinusoidal": "fixed sines and cosines", "learned": "learned", "rotary": "cosines of the rotary angles"}[
        kind
    ]
    axes.set_title(f"Position encodings: {name}")
    limit = max(1e-9, float(np.abs(table).max()))
    image = axes.imshow(table, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_xlabel("dimension")
    axes.set_ylabel("position")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[:].set_visible(False)
    figure.colorbar(image, shrink=0.8)
    return figure


def _accuracy(accuracy: Curve) -> Figure:
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_title("Next-token accuracy by position")
    axes.set_xlabel("position")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_axisbelow(True)
    axes.grid(visible=True, color="#e5e7eb")
    axes.bar([x for x, _ in accuracy], [y for _, y in accuracy], color=_BLUE, width=0.8)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return figure


def _confusions(confusions: Sequence[Confusion]) -> Figure:
    """Draw a matrix of counts, as dark as their share of the row."""
    tokens = list(dict.fromkeys(token for *pair, _ in confusions for token in pair))
    counts = np.zeros((len(tokens), len(tokens)), dtype=np.int64)
    for truth, prediction, count in confusions:
        counts[tokens.index(truth), tokens.index(prediction)] += count
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 1.6 + 0.36 * max(4, len(tokens))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_title("Confusion of tokens")
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_xticks(range(len(tokens)), tokens, rotation=90)
    axes.set_yticks(range(len(tokens)), tokens)
    axes.spines[:].set_visible(False)
    if not tokens:
        return figure
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for truth, prediction in zip(*counts.nonzero(), strict=True):
        axes.text(
            prediction, truth, f"{counts[truth, prediction]}", ha="center", va="center", fontsize=7,
            color="white" if shares[truth, prediction] > 0.6 else "#1f2937",
        )  # fmt: skip
    return figure
