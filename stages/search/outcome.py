"""What came out of a search: the words for a terminal, and the picture of what mattered."""

from pathlib import Path

import optuna
from matplotlib.figure import Figure

from stages.search.space import format_value
from stages.search.study import ranked_trials

_FEWEST_TO_DRAW = 4


def draw(study: optuna.Study, path: Path) -> Path | None:
    """Draw what mattered: how much of the differences each parameter explains, and each parameter's values."""
    ranked = ranked_trials(study)
    if len(ranked) < _FEWEST_TO_DRAW or len({trial.value for trial in ranked}) == 1:
        return None
    names = sorted(ranked[0].params)
    importances = optuna.importance.get_param_importances(study) if len(names) > 1 else dict.fromkeys(names, 1.0)
    figure = Figure(figsize=(3.2 * (len(names) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names) + 1)
    axes[0].barh(list(importances)[::-1], list(importances.values())[::-1])
    axes[0].set_xlabel("share of the differences")
    for axis, name in zip(axes[1:], names, strict=True):
        values = [trial.params[name] for trial in ranked]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        axis.plot(values if numbers else list(map(str, values)), [trial.value for trial in ranked], "o")
        axis.set_xlabel(name)
        axis.set_ylabel(study.user_attrs["metric"])
        if getattr(ranked[0].distributions[name], "log", False):
            axis.set_xscale("log")
    figure.savefig(path, dpi=120)
    return path


def describe(study: optuna.Study, name: str, metric: str, noise: float | None, picture: Path | None) -> str:
    """Return what came out, and what to type next."""
    ranked = ranked_trials(study)
    states = [trial.state.name.lower() for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {word}" for state, word in
                       (("complete", "complete"), ("pruned", "stopped early"), ("fail", "failed")) if state in states)  # fmt: skip
    if not ranked:
        return f"{name}: no trial is complete ({counts or 'none was begun'})"
    best = ranked[0]
    lines = [f"{name}: {counts}; best: {best.user_attrs['experiment']} with {metric} {best.value:.4f}"]
    lines += [f"  {key}: {format_value(value)}" for key, value in sorted(best.params.items())]
    if len(ranked) > 1:
        gap = abs(float(ranked[1].value or 0) - float(best.value or 0))
        second = f"the second, {ranked[1].user_attrs['experiment']}, is {gap:.4f} worse"
        if noise is None:
            lines.append(f"{second}; how much another seed changes is not known")
        elif gap <= noise:
            lines.append(
                f"WARNING: {second}, and another seed changes the best by {noise:.4f}: within noise of each other"
            )
        else:
            lines.append(f"{second}, and another seed changes the best by {noise:.4f}")
    if picture:
        lines.append(f"what mattered: {picture}")
    lines.append(f"take the best: dvc exp apply {best.user_attrs['experiment']}")
    return "\n".join(lines)
