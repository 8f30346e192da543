"""The table of experiments, at every width, with presets that have little in common."""

from typing import Any

import pytest
from rich.console import Console

from stages.commands import compare
from stages.commands.compare import Trial, build_table, default_sort, group_trials, near_best, read_trials, sort_trials
from stages.core.score_table import ScoreTable
from tests.verdict.tables import Truth


def line(name: str | None, rev: str, **values: Any) -> dict[str, Any]:
    """What ``dvc.api.exp_show`` gives for one experiment."""
    usual = {
        "Experiment": name, "rev": rev, "State": None, "split": "test", "rows": 200.0, "loss": 1.0,
        "bits_per_byte": 0.5, "completion_exact_match": 0.9, "next_token_accuracy": 0.8, "validation_loss": 1.1,
        "data.csv": "data/addition.csv", "split.test": 0.1, "split.validation": 0.1, "split.seed": 0.0,
        "split.column": "None", "vocabulary.tokenizer": "character", "vocabulary.size": 8000.0, "train.schedule": "linear", "train.cooldown_fraction": 0.4,
        "train.learning_rate": 0.1, "model.d_model": 64.0, "train.compile": "False", "runtime.devices": 1.0,
        "evaluate.samples": 20.0, "stages/train.py": "md5",
    }  # fmt: skip
    return usual | values


def printed(trials: list[Trial], width: int, near: set[str] | None = None) -> str:
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        sort = default_sort(trials)
        console.print(build_table(sort_trials(trials, sort), sort, near or set(), width))
    return captured.get()


def thirty() -> list[Trial]:
    """Of four presets: other sizes of everything."""
    lines = [
        line(f"exp-{index:02d}", f"{index:07x}", loss=1 + index / 100, completion_exact_match=0.9 - index / 100)
        | {f"model.setting_{index % 4}_{key}": float(index) for key in range(8)}
        for index in range(30)
    ]
    return read_trials([line(None, "workspace", completion_exact_match=0.1), *lines])


@pytest.mark.parametrize("width", [80, 120, 200])
def test_exact_match_and_loss_are_never_hidden(width: int) -> None:
    text = printed(thirty(), width)
    assert max(map(len, text.splitlines())) <= width
    heading, best, *_ = text.splitlines()
    assert heading.split()[:5] == ["experiment", "exact", "match", "▾", "loss"]
    assert best.split()[:3] == ["exp-00", "0.9000", "1.0000"]
    assert "a wider terminal also shows: " in text


def test_what_controls_a_terminal_is_printed_as_its_code() -> None:
    text = printed(
        read_trials(
            [line(None, "workspace"), line("\x1b]0;title\x07", "1", **{"data.prompt_column": "\x1b[31m\u202e"})]
        ),
        200,
    )
    assert r"\u001b]0;title\u0007" in text
    assert r"\u001b[31m\u202e" in text
    assert not set("\x1b\x07\u202e") & set(text)


def test_only_parameters_that_differ_are_shown_and_only_those_with_an_effect() -> None:
    trials = read_trials([
        line(None, "workspace"),
        line("wider", "1", **{"model.d_model": 96.0, "vocabulary.size": 1.0, "runtime.devices": 2.0,
                             "train.cooldown_fraction": 0.1}),
        line("slower", "2", **{"train.learning_rate": 0.01, "evaluate.samples": 3.0}),
    ])  # fmt: skip
    heading = printed(trials, 200).splitlines()[0].split()
    assert heading == ["experiment", "exact", "match", "▾", "loss", "next", "token", "validation",
                       "learning_rate", "d_model"]  # fmt: skip
    assert "96" in printed(trials, 200)


@pytest.mark.parametrize("state", ["Queued", "Running", "Failed"])
def test_an_experiment_that_is_not_done_has_no_figures_of_its_parent(state: str) -> None:
    trials = read_trials([line(None, "workspace", loss=2.0), line("next", "1", State=state, loss=0.001)])
    (group,) = group_trials(trials)
    text = printed(group, 120)
    assert "0.0010" not in text
    assert text.splitlines()[2].split()[:3] == ["next", state.lower(), state.lower()]


def test_other_data_stand_in_another_table() -> None:
    trials = read_trials([
        line(None, "workspace"),
        line("text", "1", **{"data.csv": "data/text.csv", "rows": 90.0}),
        line("more", "2", rows=400.0),
    ])  # fmt: skip
    assert [[trial.name for trial in group] for group in group_trials(trials)] == [["workspace"], ["text"], ["more"]]
    assert [compare.title_of(group) for group in group_trials(trials)] == [
        "data/addition.csv: 200 test rows",
        "data/text.csv: 90 test rows",
        "data/addition.csv: 400 test rows",
    ]


def test_a_workspace_that_is_its_commit_is_left_out() -> None:
    assert [trial.name for trial in read_trials([line(None, "workspace"), line(None, "main")])] == ["main"]
    assert len(read_trials([line(None, "workspace", loss=2.0), line(None, "main")])) == 2


@pytest.mark.parametrize(("figure", "order"), [
    ("loss", ["b", "a", "c", "queued"]),
    ("completion_exact_match", ["c", "b", "a", "queued"]),
])  # fmt: skip
def test_the_best_comes_first_and_what_is_not_done_last(figure: str, order: list[str]) -> None:
    trials = read_trials([
        line("queued", "0", State="Queued"),
        line("a", "1", loss=2.0, completion_exact_match=0.1),
        line("b", "2", loss=1.0, completion_exact_match=0.2),
        line("c", "3", loss=3.0, completion_exact_match=0.3),
    ])  # fmt: skip
    assert [trial.name for trial in sort_trials(trials, figure)] == order


def test_vocabularies_are_compared_by_bytes() -> None:
    trials = read_trials([line("a", "1"), line("b", "2", **{"vocabulary.tokenizer": "bpe"})])
    assert default_sort(trials) == "bits_per_byte"
    assert "bits/byte ▾" in printed(trials, 120)
    assert "bits/byte" not in printed(read_trials([line("a", "1"), line("b", "2")]), 120)


def test_what_is_within_noise_of_the_best_is_marked() -> None:
    truth = Truth(200, 0)
    scores: dict[str, ScoreTable] = {"1": truth.model(), "2": truth.model(), "3": truth.model(gain=-0.8)}
    trials = read_trials(
        [line("a", "1", loss=1.0), line("b", "2", loss=1.01), line("c", "3", loss=2.0), line("d", "4")]
    )
    near = near_best(sort_trials(trials, "loss"), "loss", scores)
    assert near == {"2"}
    text = printed(trials, 120, near)
    assert text.count("≈") == 1
