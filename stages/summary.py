"""Say what the pipeline has made, and what to type next."""

from pathlib import Path

from stages import command_line
from stages.artifacts.metrics_json import read_json
from stages.provenance import MODEL_FOLDER, read_provenance
from stages.run_names import run_name

FIGURES = {
    "loss": "loss, nats per token",
    "bits_per_byte": "bits per byte of text",
    "next_token_accuracy": "next-token accuracy",
    "completion_exact_match": "completion accuracy",
}


def main() -> None:
    """Print the summary."""
    command_line.command_parser(__doc__).parse_args()
    metrics = read_json(Path("metrics/evaluate.json"))
    fingerprint = read_provenance().fingerprint
    lines = [("model", f"{MODEL_FOLDER}/"), ("scored on", f"{metrics['rows']:,} {metrics['split']} rows")]
    lines += [(label, f"{metrics[name]:.4f}") for name, label in FIGURES.items() if name in metrics]
    lines += [("MLflow run", run_name(fingerprint) or "trained elsewhere")]
    print("\n" + "\n".join(f"  {label:<24}{value}" for label, value in lines))
    print("""
Next:
  make ui                                      compare runs in MLflow
  python -m stages.generate "PROMPT"           ask the model
  dvc exp run -S train.learning_rate=0.05      train with another value, beside this one
  dvc exp show                                 compare all experiments in the terminal""")


if __name__ == "__main__":
    command_line.run(main)
