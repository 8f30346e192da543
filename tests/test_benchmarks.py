"""The benchmarks run, at sizes of a second, and what docs/performance.md says of memory holds."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from benchmarks import measuring
from benchmarks.loss import at_once, measure
from benchmarks.measuring import Options
from benchmarks.peers import Shape
from benchmarks.training import measure as measure_training
from stages.core.loss import summed_loss

TINY = Shape(layers=1, heads=2, d_model=16, context_length=8, batch_size=2, vocabulary_size=11)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with one table, in place of docs/performance.md."""
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- training tiny -->\nold\n<!-- end of training tiny -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(measuring, "PAGE", page)
    return page


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
