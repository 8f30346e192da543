"""What fit prints: what it saw and chose, and the forecast."""

from presets.fitting.advisor import Fitted, Forecasted
from presets.fitting.forecast import Forecast, in_bytes, in_words


def describe_fit(fitted: Fitted) -> str:
    """Return what was seen and chosen, and the forecast, a line each."""
    value = {name: choice.value for name, choice in fitted.choices.items()}
    reason = {name: choice.reason for name, choice in fitted.choices.items()}
    rows = ", ".join(f"{count:,} {name}" for name, count in fitted.rows.items() if count)
    completion = value["data.completion_column"]
    answers = (
        f"completion: {completion} ({reason['data.completion_column']})" if completion else "no completion: plain text"
    )
    unused = f"; not used: {', '.join(fitted.unused)}" if fitted.unused else ""
    size = f" of {value['vocabulary.size']:,}" if "vocabulary.size" in value else ""
    lines = [
        ("data", f"{fitted.csv}: rows: {rows}"),
        ("columns", f"prompt: {value['data.prompt_column']} ({reason['data.prompt_column']}), {answers}{unused}"),
    ]
    if fitted.classes:
        beat = f"always saying {fitted.classes.majority!r} is right in {fitted.classes.share:.1%}: the baseline to beat"
        lines.append(("classes", f"{fitted.classes.distinct} different completions; {beat}"))
    lines += [
        ("tokens", f"{value['vocabulary.tokenizer']}{size}: {reason['vocabulary.tokenizer']}"),
        ("context", f"{value['model.context_length']} tokens: {reason['model.context_length']}"),
        ("model", reason["model.d_model"]),
        (
            "training",
            f"{value['train.max_steps']:,} steps of {value['train.batch_size']} examples: {reason['train.max_steps']}",
        ),
    ]
    return _table(lines + _forecast_lines(fitted.forecast, fitted.free_bytes))


def describe_forecast(asked: Forecasted) -> str:
    """Return the forecast of a params.yaml."""
    lines = [("training", f"{asked.steps:,} steps of a model with {asked.parameters:,} parameters, on {asked.csv}")]
    return _table(lines + _forecast_lines(asked.forecast, asked.free_bytes))


def _forecast_lines(result: Forecast, free: int) -> list[tuple[str, str]]:
    return [
        (
            "time",
            f"about {in_words(result.training_seconds)} of training, {in_words(result.pipeline_seconds)} for all stages",
        ),
        ("memory", f"about {in_bytes(result.peak_bytes)} at most; {in_bytes(free)} are free"),
        ("disk", f"model {in_bytes(result.model_bytes)}, dataset {in_bytes(result.dataset_bytes)}"),
    ]


def _table(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines)
