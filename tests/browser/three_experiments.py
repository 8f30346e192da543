"""Fill the store of the working folder with three experiments: `python three_experiments.py`."""

import math
import os
import subprocess
from pathlib import Path

from stages.artifacts.provenance_json import Provenance
from stages.artifacts.table_csv import write_table
from stages.tracking.runs import Evaluation, log_evaluation, start_training_run

DATASET = Path("data/dataset")
SAMPLES = Path("metrics/samples.csv")
EXPERIMENTS = {"baseline": 0.1, "faster": 0.3, "slower": 0.03}
# What the commit holds on which they are run: a run is named by what differs from it.
LOCK = """\
stages:
  build_dataset:
    outs: [{path: data/dataset}]
  train:
    deps: [{path: data/dataset, md5: dddddddddddddddddddddddddddddddd}]
    params:
      params.yaml: {model: {d_model: 2}, train: {learning_rate: 0.1}}
"""


def main() -> None:
    """Commit a result, then log a training and its evaluation under each name."""
    Path("dvc.lock").write_text(LOCK)
    for arguments in (["init", "--quiet"], ["add", "dvc.lock"], ["commit", "--quiet", "--message=Start"]):
        subprocess.run(["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments], check=True)
    (DATASET).mkdir(parents=True)
    (DATASET / "metadata.json").write_text("{}")
    for name, learning_rate in EXPERIMENTS.items():
        Path("params.yaml").write_text(f"model:\n  d_model: 2\ntrain:\n  learning_rate: {learning_rate}\n")
        os.environ["DVC_EXP_NAME"] = name
        inputs = {str(DATASET): "d" * 32}
        model = Provenance(fingerprint=name, dependencies=inputs, parameters={})
        with start_training_run(model, DATASET) as run:
            for step in range(1, 31):
                run.log_metrics({"train_loss": math.exp(-learning_rate * step)}, step)
                run.log_metrics({"validation_loss": math.exp(-learning_rate * step) + 0.1}, step)
        metrics = {"split": "test", "rows": 10, "loss": 1 - learning_rate, "next_token_accuracy": learning_rate}
        evaluated = Provenance(fingerprint="evaluation", dependencies=inputs, parameters={})
        write_table(SAMPLES, ["prompt", "expected", "completion"], [("2+3=", "5", f"answer of {name}")])
        log_evaluation(model, Evaluation(evaluated, metrics, "### Results on 10 test rows", [SAMPLES]), DATASET)


if __name__ == "__main__":
    main()
