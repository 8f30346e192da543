import re
from pathlib import Path
from typing import Any

import pytest

from stages.artifacts.metrics_json import write_json
from stages.artifacts.provenance_json import MODEL_FOLDER, PROVENANCE_FILE
from stages.commands.summary import (
    EVALUATE_METRICS,
    TRAIN_METRICS,
    data_differences,
    made,
    main,
    next_commands,
    parse_lock,
    read_metrics,
)
from stages.errors import UserError
from stages.tracking.workspace import remember_run_name

METRICS: dict[str, Any] = {"split": "test", "rows": 2000, "loss": 0.5}


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the provenance of a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    provenance = {"fingerprint": "f" * 16, "dependencies": {}, "parameters": {}}
    write_json(MODEL_FOLDER / PROVENANCE_FILE, provenance)


def lock(md5: str, csv: str = "data/prompts.csv", **params: Any) -> dict[str, Any]:
    return {
        "build_dataset": {
            "deps": [{"path": csv, "md5": "c"}, {"path": "stages/core/rows.py", "md5": md5}],
            "params": {"params.yaml": {"split": {"test": 0.1, "seed": 0}, **params}},
        },
        "evaluate": {"deps": [{"path": "data/dataset", "md5": md5}]},
    }


def test_a_model_without_a_run_is_not_said_to_come_from_elsewhere() -> None:
    """As after a training without its server, where tracking is optional."""
    assert dict(made(METRICS, {}, []))["MLflow run"] == "none recorded here"
    remember_run_name("f" * 16, "train-f")
    assert dict(made(METRICS, {}, []))["MLflow run"] == "train-f"


def test_figures_stand_beside_their_change() -> None:
    lines = dict(made(METRICS, METRICS | {"loss": 0.75}, []))
    assert lines["scored on"] == "2,000 test rows"
    assert lines["loss, nats per token"] == "0.5000        -0.2500 since the last commit"
    assert "last commit" not in lines


def test_what_controls_a_terminal_is_printed_as_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(EVALUATE_METRICS, METRICS)
    write_json(TRAIN_METRICS, {})
    remember_run_name("f" * 16, "train-f data.csv=\x1b[2J\u202e.csv")
    monkeypatch.setattr("sys.argv", ["summary", "--quiet"])
    main()
    assert r"train-f data.csv=\u001b[2J\u202e.csv" in capsys.readouterr().out


def test_figures_of_other_data_are_not_compared() -> None:
    differences = data_differences(
        lock("a", csv="data/addition.csv", vocabulary={"tokenizer": "bpe"}), lock("b", vocabulary={"tokenizer": "word"})
    )
    assert differences == ["vocabulary.tokenizer word -> bpe", "data/addition.csv", "data/prompts.csv"]
    lines = dict(made(METRICS, METRICS | {"loss": 0.75}, differences))
    assert lines["loss, nats per token"].strip() == "0.5000"
    assert lines["last commit"] == (
        "not compared: it has other data (vocabulary.tokenizer word -> bpe, data/addition.csv, data/prompts.csv)"
    )
    other_split = data_differences(lock("a", split={"test": 0.2, "seed": 0}), lock("b"))
    assert other_split == ["split.test 0.1 -> 0.2"]


def test_the_same_dataset_is_compared_whatever_made_it() -> None:
    assert data_differences(lock("a", tokenizer="bpe"), lock("a", tokenizer="word")) == []
    assert dict(made(METRICS, {}, ["data/dataset"])).get("last commit") is None  # nothing was committed


@pytest.mark.parametrize("rate", [0.1, 0.004, 3e-4])
def test_the_next_learning_rate_fits_the_preset(rate: float) -> None:
    def suggested(**train: float) -> float:
        (command,) = (command for command, _ in next_commands({"train": train}) if "learning_rate" in command)
        return float(command.split("=")[1])

    assert suggested(learning_rate=rate, min_learning_rate=0.0) == pytest.approx(rate / 2)
    assert suggested(learning_rate=rate, min_learning_rate=rate) == pytest.approx(rate * 2)


@pytest.mark.parametrize(("found", "message"), [
    ({}, "metrics/evaluate.json: split: found None, expected a str"),
    ({"split": 3, "rows": 1}, "metrics/evaluate.json: split: found 3, expected a str"),
    ({"split": "test", "rows": "many"}, "metrics/evaluate.json: rows: found 'many', expected a int"),
])  # fmt: skip
def test_an_odd_file_of_metrics_is_named(found: dict[str, Any], message: str) -> None:
    write_json(EVALUATE_METRICS, found)
    with pytest.raises(UserError, match=re.escape(message)):
        read_metrics()


@pytest.mark.parametrize("text", ["", "stages", "stages: 3", "a: [", "{}"])
def test_a_lock_that_is_none_compares_nothing(text: str) -> None:
    assert parse_lock(text) == {}
