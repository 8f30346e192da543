"""What a run says of itself in MLflow: its name, its tags, its parameters, and the way back to it."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Param, Run

from stages.artifacts.provenance_json import Provenance

FINGERPRINT_TAG = "fingerprint"
EXPERIMENT_TAG = "dvc.experiment"
COMMIT_TAG = "git.commit"
CHANGED_TAG = "git.changed_files"
INPUTS_TAG = "inputs.md5"
MODEL_NAME = "model"

# A running pipeline changes these itself.
WRITTEN_BY_DVC = ("dvc.lock", "metrics/")


def name_run(provenance: Provenance, parameters: list[Param], before: Run | None) -> str:
    """Name a run by DVC's experiment and by what differs from the training before: parameters, else data and code."""
    name = os.environ.get("DVC_EXP_NAME") or f"train-{provenance.fingerprint[:7]}"
    if before is None:
        return name
    old, tags = before.data.params, before.data.tags
    tracked = [item for item in parameters if not item.key.startswith("runtime.")]
    inputs = json.loads(tags.get(INPUTS_TAG, "{}"))
    changed = [f"{item.key}={item.value}" for item in tracked if old.get(item.key) != item.value] or [
        f"other {Path(path).name}" for path, digest in provenance.dependencies.items() if inputs.get(path) != digest
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return " ".join([name, *changed[:3]]) + more


def run_tags(provenance: Provenance) -> dict[str, str]:
    """Return what leads from a run to its inputs, code and experiment."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    changed = [name for name in _git("diff", "--name-only", "HEAD").splitlines() if not name.startswith(WRITTEN_BY_DVC)]
    tags = {
        FINGERPRINT_TAG: provenance.fingerprint,
        EXPERIMENT_TAG: experiment,
        COMMIT_TAG: commit,
        CHANGED_TAG: "" if experiment else ", ".join(changed),  # an experiment's commit holds its changes
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "dvc exp run" if experiment else "dvc repro",
        INPUTS_TAG: json.dumps(provenance.dependencies),
    }
    return {name: value for name, value in tags.items() if value}


def way_back(run: Run) -> str:
    """Write the commands that bring a run's code, parameters and model back, as Markdown."""
    tags = run.data.tags
    commands = []
    if COMMIT_TAG in tags:
        commands.append(f"git checkout {tags[COMMIT_TAG]}")
    if EXPERIMENT_TAG in tags:
        commands.append(f"dvc exp apply {tags[EXPERIMENT_TAG]}")
    elif CHANGED_TAG not in tags:
        commands.append("dvc repro")
    commands.append(f"mlflow models serve -m runs:/{run.info.run_id}/{MODEL_NAME} --env-manager local --port 5001")
    files = tags.get(CHANGED_TAG, "").split(", ")
    more = f" and {len(files) - 3} more files" if len(files) > 3 else ""
    changed = f"\nNot in that commit: changes of {', '.join(files[:3])}{more}.\n" if CHANGED_TAG in tags else ""
    return "### Back to this run\n\n" + "\n".join(f"    {command}" for command in commands) + "\n" + changed


def run_parameters(values: Mapping[str, Any]) -> list[Param]:
    """Return the values of params.yaml under their dotted names."""
    return [Param(name, _as_yaml(value)) for name, value in _flatten(values)]


def _git(*arguments: str) -> str:
    """Ask git about the workspace; empty where it is no git repository or git is not installed."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.strip()


def _as_yaml(value: Any) -> str:
    """Write a value as params.yaml has it: null and true, not Python's None and True."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
