"""What a training differs in from its baseline: the result that the commit holds on which it is run."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.artifacts.provenance_json import Provenance

_LOCK = Path("dvc.lock")
_NOT_OF_A_TRAINING = "evaluate"
_LONGEST_VALUE = 40  # characters in a name

Values = Mapping[str, Any]


def _own_vocabulary(values: Values) -> bool:
    return values.get("vocabulary.file") is None


def _drawn_split(values: Values) -> bool:
    return values.get("split.column") is None


# When a key of params.yaml changes what is trained; every other key always does.
_HAS_EFFECT: Mapping[str, Callable[[Values], bool]] = {
    "split.seed": lambda values: (
        _drawn_split(values) and bool(values.get("split.validation") or values.get("split.test"))
    ),
    "split.validation": _drawn_split,
    "split.test": _drawn_split,
    "vocabulary.size": lambda values: _own_vocabulary(values) and values.get("vocabulary.tokenizer") == "bpe",
    "vocabulary.unknown_token": lambda values: _own_vocabulary(values) and values.get("vocabulary.tokenizer") != "bpe",
    "model.d_ff": lambda values: values.get("model.feed_forward") != "none",
    "model.zero_init_projections": lambda values: values.get("train.start_from") is None,
    "train.min_learning_rate": lambda values: values.get("train.schedule") != "constant",
    "train.cooldown_fraction": lambda values: values.get("train.schedule") == "cooldown",
    "train.register_as": lambda _: False,
}


@dataclass(frozen=True)
class Baseline:
    """The inputs of a committed result, as dvc.lock has them."""

    parameters: Values
    """Dotted name -> value."""
    files: Mapping[str, str]
    """Path -> md5, of the data and the code."""
    made: frozenset[str]
    """What a stage makes for the next one."""


def read_baseline() -> Baseline | None:
    """Return the result of the experiment's baseline commit, or else of the last one; None where there is none."""
    return parse_lock(git("show", f"{os.environ.get('DVC_EXP_BASELINE_REV') or 'HEAD'}:./{_LOCK}"))


def parse_lock(text: str) -> Baseline | None:
    """Return what a dvc.lock says of the stages up to the training; None where it says nothing that can be read."""
    parameters: dict[str, Any] = {}
    files: dict[str, str] = {}
    try:
        stages = YAML(typ="safe").load(text)["stages"]
        made = frozenset(out["path"] for stage in stages.values() for out in stage.get("outs", []))
        for name, stage in stages.items():
            if name != _NOT_OF_A_TRAINING:
                parameters |= flatten(stage.get("params", {}).get("params.yaml", {}))
                files |= {dep["path"]: dep["md5"] for dep in stage.get("deps", []) if dep["path"] not in made}
    except (YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    parameters["data.csv"] = next((path for path in files if not path.endswith(".py")), None)
    return Baseline(parameters, files, made)


def differences(provenance: Provenance, parameters: Values, baseline: Baseline) -> list[str]:
    """Return what differs from the baseline: parameters that have an effect, else the data and the code.

    Args:
        provenance: what the training is made from.
        parameters: the sections of params.yaml.
        baseline: what its baseline was made from.
    """
    values = flatten(parameters)
    changed = [
        f"{name}={_short(as_yaml(value))}"
        for name, value in values.items()
        if value != baseline.parameters.get(name, value) and has_effect(name, values)
    ]
    before = parse_lock(_LOCK.read_text(encoding="utf-8")) if _LOCK.exists() else None  # DVC keeps it up to date
    files = {**(before.files if before else {}), **provenance.dependencies}
    return changed or [
        f"{'other' if path in baseline.files else 'new'} {Path(path).name}"
        for path, md5 in files.items()
        if path not in baseline.made and md5 != baseline.files.get(path)
    ]


def has_effect(name: str, values: Values) -> bool:
    """Return whether a key of params.yaml changes what is trained, with the values of the others.

    Args:
        name: such as train.seed.
        values: dotted name -> value; None where it is null.
    """
    return name not in _HAS_EFFECT or _HAS_EFFECT[name](values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections under their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def changed_files(paths: Iterable[str]) -> list[str]:
    """Return the files of the project that differ from the last commit, and which of ``paths`` git does not have."""
    changed = git("diff", "--name-only", "--relative", "-z", "HEAD")
    untracked = git("ls-files", "--others", "--exclude-standard", "-z", "--", *paths)
    return [name for name in f"{changed}\0{untracked}".split("\0") if name]


def git(*arguments: str) -> str:
    """Return git's answer about the project; empty where this is no git repository or git is not installed."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.decode(errors="replace").strip("\0\n")


def as_yaml(value: Any) -> str:
    """Return a value as params.yaml has it: null and true, not Python's None and True."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
