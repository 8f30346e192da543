"""The benchmarks run, at sizes of a second, and what docs/performance.md says of memory holds."""

import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import measuring
from benchmarks.ladder import KEPT, read_trials, rungs, try_rung
from benchmarks.loss import at_once, measure
from benchmarks.measuring import Options
from benchmarks.peers import Shape, of_transformers
from benchmarks.preparation import STAGES
from benchmarks.preparation_memory import peak_megabytes, write_shape
from benchmarks.tasks import read_task
from benchmarks.time_to_loss import begin_ours, begin_theirs, read_texts, train
from benchmarks.training import loss_from_logits
from benchmarks.training import measure as measure_training
from benchmarks.widths import loss_at
from presets.text_to_csv import write_text_csv
from stages.core.loss import summed_loss

TINY = Shape(layers=1, heads=2, d_model=16, context_length=8, batch_size=2, vocabulary_size=11)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with one table, in place of docs/performance.md."""
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- training tiny -->\nold\n<!-- end of training tiny -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(measuring, "PAGE", page)
    return page


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_training_is_measured_beside_the_peers_that_are_here(page: Path, device: str) -> None:
    measure_training("tiny", TINY, Options(threads=1, rounds=2, nanogpt=None), steps=1, device=device)
    before, _, *table, end, after = page.read_text(encoding="utf-8").splitlines()
    assert (before, end, after) == ("before", "<!-- end of training tiny -->", "after")
    rows = {line.split("|")[1].strip(): line for line in table if line.startswith("| ")}
    assert {"this project, bf16-mixed, compiled", "transformers GPT-2"} <= set(rows)
    assert rows["transformers GPT-2"].split("|")[4].strip() == "1.00"


def test_the_loss_at_a_large_vocabulary_takes_a_fraction_of_the_memory() -> None:
    added, nats = {}, {}
    for loss_of in (summed_loss, at_once):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            added[loss_of], _, nats[loss_of] = process.apply(measure, (loss_of, 1, 1))
    assert added[summed_loss] < added[at_once] / 4
    assert nats[summed_loss] == pytest.approx(nats[at_once], rel=1e-6)


TEXT = "".join(f"{number} and {number + 1} are {2 * number + 1}\n\n" for number in range(200))


def test_time_to_loss_trains_and_scores_each_as_long_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text(TEXT, encoding="utf-8")
    texts = read_texts(path)
    assert (len(texts.training) + len(texts.held_out), texts.size) == (len(TEXT), len(set(TEXT)))
    for begin in (partial(begin_ours, {}), partial(begin_theirs, of_transformers, loss_from_logits)):
        curve = train(begin, texts, TINY, steps=30, every=10, seed=0, threads=1)
        assert [step for step, *_ in curve] == [10, 20, 30]
        assert curve[0][1] < curve[1][1] < curve[2][1]
        assert curve[2][2] < curve[0][2] < 5


def test_a_rung_of_the_ladder_is_trained_for_some_seconds(tmp_path: Path) -> None:
    text, classes = tmp_path / "input.txt", tmp_path / "classes"
    text.write_text(TEXT, encoding="utf-8")
    classes.mkdir()
    for split, rows in (("train", 300), ("test", 20)):
        lines = [
            "text,category",
            *(f"what is {number} ?,{'even' if number % 2 == 0 else 'odd'}" for number in range(rows)),
        ]
        (classes / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    small = {"model.d_model": 16, "model.n_layers": 1, "model.n_heads": 2, "train.batch_size": 4}
    names = list(rungs())
    assert names[0].startswith("nanoGPT")
    assert names[-1].endswith("(not kept)")
    for trial in read_trials(tmp_path, text, classes).values():
        for changes in (rungs()[names[0]], rungs()[names[len(KEPT) - 1]]):
            figure, steps = try_rung(trial, changes | small, seconds=0.3, seed=0)
            assert steps >= 25
            assert 0 <= figure < 5


def test_a_learning_rate_is_tried_at_a_width(tmp_path: Path) -> None:
    text = tmp_path / "input.txt"
    text.write_text(TEXT, encoding="utf-8")
    write_text_csv(text, tmp_path / "text.csv")
    task = read_task("characters", csv=tmp_path / "text.csv")
    losses = {loss_at(task, d_model, rate, steps=8) for d_model in (32, 64) for rate in (0.001, 0.004)}
    assert len(losses) == 4
    assert max(losses) < 5


@pytest.mark.parametrize("shape", ["short rows", "quoted paragraphs"])
def test_preparation_takes_no_more_memory_for_a_larger_table(tmp_path: Path, shape: str) -> None:
    table = tmp_path / "data/prompts.csv"
    table.parent.mkdir()
    write_shape(table, shape, 2)
    header, _, rows = table.read_text(encoding="utf-8").partition("\n")
    peaks = []
    for times in (3, 15):
        table.write_text(f"{header}\n{rows * times}", encoding="utf-8")
        peaks.append(peak_megabytes(tmp_path, "character", held_out=0.1))
    for stage in STAGES:
        assert peaks[1][stage] - peaks[0][stage] < 12, peaks  # of 24 MB more
