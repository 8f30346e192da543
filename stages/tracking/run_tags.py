"""What a run says of itself in MLflow: its name, its tags, its parameters, and the way back to it."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Param, Run

from stages.artifacts.provenance_json import Provenance
from stages.tracking.baseline import as_yaml, changed_files, differences, flatten, git, read_baseline
from stages.tracking.workspace import masked

FINGERPRINT_TAG = "fingerprint"
EXPERIMENT_TAG = "dvc.experiment"
COMMIT_TAG = "git.commit"
CHANGED_TAG = "git.changed_files"
INPUTS_TAG = "inputs.md5"

# A running pipeline changes these itself.
WRITTEN_BY_DVC = ("dvc.lock", "metrics/")

# The most characters that a database of MLflow's takes.
LONGEST_NAME = 250
LONGEST_TAG = 8000
LONGEST_PARAMETER = 6000


def name_run(provenance: Provenance, parameters: Mapping[str, Any]) -> str:
    """Return a name of DVC's experiment and what differs from its baseline, whatever was trained in between."""
    name = os.environ.get("DVC_EXP_NAME") or f"train-{provenance.fingerprint[:7]}"
    baseline = read_baseline()
    changed = differences(provenance, parameters, baseline) if baseline else []
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return fitted(masked(" ".join([name, *changed[:3]]) + more), LONGEST_NAME)


def run_tags(provenance: Provenance) -> dict[str, str]:
    """Return what leads from a run to its inputs, code and experiment."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or git("rev-parse", "HEAD")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    # An experiment's commit holds its changes.
    changed = [] if experiment else changed_files(provenance.dependencies)
    tags = {
        FINGERPRINT_TAG: provenance.fingerprint,
        EXPERIMENT_TAG: experiment,
        COMMIT_TAG: commit,
        CHANGED_TAG: _listed([name for name in changed if not name.startswith(WRITTEN_BY_DVC)]),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "dvc exp run" if experiment else "dvc repro",
        INPUTS_TAG: _json_that_fits(provenance.dependencies),
    }
    return {name: fitted(value, LONGEST_TAG) for name, value in tags.items() if value}


def way_back(run: Run, model_id: str | None) -> str:
    """Return the commands that bring a run's code, parameters and model back, as Markdown."""
    tags = run.data.tags
    commands = []
    if COMMIT_TAG in tags:
        commands.append(f"git checkout {tags[COMMIT_TAG]}")
    if EXPERIMENT_TAG in tags:
        commands.append(f"dvc exp apply {shlex.quote(tags[EXPERIMENT_TAG])}")
    elif CHANGED_TAG not in tags:
        commands.append("dvc repro")
    if model_id is not None:
        commands.append(f"mlflow models serve -m models:/{model_id} --env-manager local --port 5001")
    changed = f"\nNot in that commit: changes of {_first_of(tags[CHANGED_TAG])}.\n" if CHANGED_TAG in tags else ""
    return "### Back to this run\n\n" + "\n".join(f"    {command}" for command in commands) + "\n" + changed


def run_parameters(values: Mapping[str, Any]) -> list[Param]:
    """Return the values of params.yaml under their dotted names, as MLflow takes them."""
    named = {_allowed_name(name): value for name, value in flatten(values).items()}
    return [Param(name, fitted(masked(as_yaml(value)), LONGEST_PARAMETER)) for name, value in named.items()]


def fitted(text: str, longest: int) -> str:
    """Return a text that every database takes: not too long, and without the character that PostgreSQL refuses."""
    text = text.replace("\0", "�")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _allowed_name(name: str) -> str:
    """Return a name of which MLflow takes every character."""
    name = re.sub(r"[^\w. :-]", "_", name)[:LONGEST_NAME]
    return name if name.strip(".") else f"_{name}"


def _listed(names: Sequence[str]) -> str:
    """Return as many names as a tag takes, and how many there are more."""
    kept = len(names)
    while len(", ".join(names[:kept])) > LONGEST_TAG - 30:
        kept -= 1 + kept // 20
    more = f" and {len(names) - kept} more" if kept < len(names) else ""
    return ", ".join(names[:kept]) + more


def _first_of(listed: str) -> str:
    """Return the first three names of such a list."""
    listed, more = re.fullmatch(r"(.*?)(?: and (\d+) more)?", listed, re.DOTALL).groups(default="0")  # type: ignore[union-attr]
    names = listed.split(", ")
    left_out = len(names[3:]) + int(more)
    return ", ".join(names[:3]) + (f" and {left_out} more files" if left_out else "")


def _json_that_fits(values: Mapping[str, str]) -> str:
    """Return as many values as a tag takes, as JSON."""
    kept = dict(values)
    while len(json.dumps(kept)) > LONGEST_TAG:
        kept.popitem()
    return json.dumps(kept)
