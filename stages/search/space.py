"""The space of a search: which parameters it may change, and between which values."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import UserError

_RANGE = re.compile(r"(log|float|int|choice)\((.+)\)")
_NAME = re.compile(r"[A-Za-z][\w-]*")
_SETTING = re.compile(r"([a-z_]+\.[a-z0-9_]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Space:
    """What a search may change."""

    ranges: dict[str, optuna.distributions.BaseDistribution]
    """By the dotted name of a parameter."""
    fixed: dict[str, str]
    """Settings of every trial, as they were typed."""


def parse_space(settings: list[str]) -> Space:
    """Read ``train.learning_rate=log(0.0003,0.03)`` and the like.

    Raises:
        UserError: a setting is no such thing, or none is a range.
    """
    ranges: dict[str, optuna.distributions.BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for setting in settings:
        match = _SETTING.fullmatch(setting)
        if match is None:
            raise UserError(f"-S {setting}: expected section.key=value, such as 'train.learning_rate=log(0.0003,0.03)'")
        name, value = match.groups()
        if name in ranges or name in fixed:
            raise UserError(f"-S {setting}: {name} is given twice; leave one out")
        if found := _RANGE.fullmatch(value.strip()):
            ranges[name] = _distribution(setting, *found.groups())
        else:
            fixed[name] = value
    if not ranges:
        raise UserError(
            "no parameter has a range; give at least one, such as -S 'train.learning_rate=log(0.0003,0.03)', "
            "-S 'model.n_layers=int(2,6)' or -S 'model.norm=choice(layer,rms)'"
        )
    return Space(ranges, fixed)


def _distribution(setting: str, kind: str, inner: str) -> optuna.distributions.BaseDistribution:
    parts = [part.strip() for part in inner.split(",")]
    if kind == "choice":
        try:
            return optuna.distributions.CategoricalDistribution([YAML(typ="safe").load(part) for part in parts])
        except YAMLError:
            raise UserError(f"-S {setting}: a choice is not a value of YAML") from None
    try:
        low, high = (int(part) if kind == "int" else float(part) for part in parts)
    except ValueError:
        numbers = "whole numbers" if kind == "int" else "numbers"
        raise UserError(f"-S {setting}: expected two {numbers}, as in {kind}(1,8)") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (kind != "log" or low > 0)):
        above = " above 0" if kind == "log" else ""
        raise UserError(f"-S {setting}: expected two numbers{above}, the smaller one first")
    if kind == "int":
        return optuna.distributions.IntDistribution(int(low), int(high))
    return optuna.distributions.FloatDistribution(low, high, log=kind == "log")


def check_space(space: Space, name: str, metric: str, parameters: dict[str, Any]) -> None:
    """Refuse what would fail in every trial.

    Raises:
        UserError: a name is unknown, or the metric will not be there.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--name {name}: allowed: a letter, then letters, digits, - and _")
    known = {f"{section}.{key}" for section, keys in parameters.items() if isinstance(keys, dict) for key in keys}
    for setting in (*space.ranges, *space.fixed):
        if setting not in known:
            raise UserError(f"-S {setting}: params.yaml has no such key")
    split = parameters["split"]
    nothing_held_out = not split["validation"] and not split["column"] and Path(parameters["data"]["csv"]).is_file()
    if metric == "validation_loss" and nothing_held_out and "split.validation" not in space.fixed:
        raise UserError(
            "--metric validation_loss needs validation rows, of which params.yaml holds none out; add -S split.validation=0.1"
        )


def as_setting(value: Any) -> str:
    """Return a value as DVC's ``--set-param`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def format_value(value: Any) -> str:
    """Return a value for a person."""
    return f"{value:.4g}" if isinstance(value, float) else as_setting(value)
