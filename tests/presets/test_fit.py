"""The whole command: real data in, a whole params.yaml and a forecast out, nothing of the user's lost."""

import shutil
import sys
from pathlib import Path

import pytest

from presets.addition import write_addition
from presets.fit import main
from stages.errors import UserError
from stages.parameters import read_all, read_section
from tests.presets.sections import SECTIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with sums, and a params.yaml of the user's, as the working folder."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "data").mkdir()
    toy = (tmp_path / "presets/toy.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(toy.replace("threads: null", "threads: 1"), encoding="utf-8")
    write_addition(tmp_path / "data/sums.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["presets.fit", *arguments])
    main()


def test_sums_from_the_command_to_a_forecast(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project / "params.yaml").read_bytes()
    fit(monkeypatch, "data/sums.csv", "--minutes", "0.5")
    printed = capsys.readouterr().out
    assert "8,0" in printed  # about 8,000 training rows
    assert "prompt: prompt (by its name), completion: completion (by its name)" in printed
    assert "to go back to yours: cp params.saved/1.yaml params.yaml" in printed
    assert (project / "params.saved/1.yaml").read_bytes() == before

    for name, model in SECTIONS.items():
        read_section(name, model)
    values = read_all()
    assert list(values) == list(SECTIONS)
    assert values["data"]["csv"] == "data/sums.csv"
    assert values["vocabulary"]["tokenizer"] == "character"
    assert values["dataset"]["loss_on"] == "completion"
    assert values["split"]["test"] > 0
    assert values["runtime"]["threads"] == 1
    assert "threads: 1" in (project / "params.yaml").read_text()

    fit(monkeypatch, "--forecast")
    forecast = capsys.readouterr().out
    assert f"{values['train']['max_steps']:,} steps" in forecast
    assert "data/sums.csv" in forecast


def test_a_forecast_of_what_no_memory_holds_names_what_would_fit(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (project / "params.yaml").read_text()
    toy, shape = "csv: data/prompts.csv", "csv: data/sums.csv"
    text = text.replace(toy, shape).replace("tokenizer: word", "tokenizer: character")
    text = text.replace("d_model: 2", "d_model: 65536").replace("n_heads: 1", "n_heads: 1024")
    (project / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"needs about .* GB of memory.*the largest that fits has model\.d_model: \d+"):
        fit(monkeypatch, "--forecast")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name your data"),
        (["data/absent.csv"], "data/absent.csv: not found"),
        (["data/sums.csv", "--minutes", "0"], "--minutes 0: allowed"),
        (["data/sums.csv", "--minutes", "nan"], "--minutes nan: allowed"),
        (["data/sums.csv", "--prompt", "question"], "no column.*'question'; found: 'prompt', 'completion'"),
        (["data/sums.csv", "--forecast"], "leave the data out"),
    ],
)
def test_mistakes_change_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=complaint):
        fit(monkeypatch, *arguments)
    assert (project / "params.yaml").read_bytes() == before
