"""A search says how sure it is of its best, and draws what mattered."""

import math
from pathlib import Path

import optuna

from stages.search.outcome import describe, draw
from tests.search.made_trials import add_trial


def test_the_best_is_named_with_its_noise(study: optuna.Study) -> None:
    assert "no trial is complete" in describe(study, "search", "loss", None, None)
    for value, rate in ((1.0, 0.1), (0.51, 0.2), (0.5, 0.3), (2.0, 0.9)):
        add_trial(study, value, rate)
    said = describe(study, "search", "loss", 0.02, None)
    assert "4 complete; best: search-2 with loss 0.5000" in said
    assert "WARNING: the second, search-1, is 0.0100 worse, and another seed changes the best by 0.0200" in said
    assert said.endswith("take the best: dvc exp apply search-2")
    assert "WARNING" not in describe(study, "search", "loss", 0.005, None)
    assert "not known" in describe(study, "search", "loss", None, None)


def test_a_picture_of_what_mattered(study: optuna.Study) -> None:
    path = Path("what mattered.png")
    assert draw(study, path) is None
    for number in range(6):
        add_trial(study, math.sin(number), 0.01 * 2**number)
    assert draw(study, path) == path
    assert path.read_bytes().startswith(b"\x89PNG")
