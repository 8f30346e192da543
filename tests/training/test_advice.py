"""A params.yaml that does not fit its data is named in a line before the first step; one that fits in none."""

import pytest
import torch

from stages.training.advice import misfits, print_advice
from tests.training.conftest import examples, network, runtime_parameters, train_parameters


def test_what_fits_is_not_mentioned() -> None:
    assert misfits(d_model=64, rows=2000, seconds=3600) == []
    assert misfits(d_model=2, rows=2, seconds=1) == []


def test_each_misfit_has_its_figures() -> None:
    assert misfits(d_model=2, rows=2000, seconds=3 * 3600) == [
        "model.d_model 2 is the toy's, for 2,000 rows",
        "this training takes about 3 h on this machine",
    ]


def test_one_line_for_the_toy_on_thousands_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    toy = network(d_model=2, n_heads=1, positions="sinusoidal")
    print_advice(toy, examples(1200), train_parameters(max_steps=4_000_000), runtime_parameters())
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "d_model 2 is the toy's, for 1,200 rows; this training takes about 1 h" in said
    assert "python -m presets.fit" in said


def test_a_large_training_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    parameters = train_parameters(max_steps=10**9)
    print_advice(network(), examples(), parameters, runtime_parameters())
    hours = float(capsys.readouterr().err.split("about ")[1].split(" h")[0].replace(",", ""))
    assert hours > 10**9 * 0.001 / 3600
    assert torch.get_num_threads() == threads
    print_advice(network(), examples(), train_parameters(), runtime_parameters())
    assert capsys.readouterr().err == ""


def test_the_rate_of_a_first_training_is_named_where_weights_came_in(capsys: pytest.CaptureFixture[str]) -> None:
    for rate, named in ((0.01, True), (0.0001, False)):
        parameters = train_parameters(learning_rate=rate, min_learning_rate=0.0, start_from="pretrained/models/first")
        print_advice(network(), examples(), parameters, runtime_parameters())
        assert ("train.learning_rate 0.01 is that of a first training" in capsys.readouterr().err) == named
