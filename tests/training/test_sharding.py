"""FSDP on two processes: the curve of one process, checkpoints that any number of devices goes on from, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.errors import UserError
from tests.servers import HOST, free_port
from tests.training.conftest import network, train
from tests.training.devices_together import outcome

ROOT = Path(__file__).parents[2]
SECONDS = 900  # at most; a busy machine takes its time

SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"network": {"d_model": 18, "n_heads": 2, "n_layers": 3}},  # 11 tokens and 3 x 18 rows do not divide evenly
    "adam": {"train": {"optimizer": "adam"}, "network": {"tie_embeddings": False, "output_bias": True}},
    "muon, accumulation, dropout": {
        "train": {"optimizer": "muon"}, "network": {"dropout": 0.2}, "runtime": {"micro_batch_size": 1},
    },
    "rotary, norms of heads, grouped queries": {
        "train": {"optimizer": "muon"},
        "network": {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "qk_norm": True, "n_kv_heads": 1},
    },
    "the best of many weights": {"train": {"keep": "best", "validate_every": 2, "learning_rate": 0.02, "warmup_steps": 0}},
    "bfloat16": {"train": {"precision": "bf16-mixed"}},
    "compile, dropout": {"train": {"compile": True, "max_steps": 3}, "network": {"dropout": 0.2}},
}  # fmt: skip


def on_two_processes(settings: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    """Return what comes out of trainings on two processes that start once."""
    runtime = {"strategy": "fsdp", "devices": 2}
    lines = "".join(json.dumps(each | {"runtime": runtime | each.get("runtime", {})}) + "\n" for each in settings)
    (tmp_path / "settings").write_text(lines)
    rendezvous = {"MASTER_ADDR": HOST, "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    rendezvous |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": str(ROOT)}
    processes = []
    for rank in ("0", "1"):
        with (tmp_path / "settings").open() as stdin, (tmp_path / f"output{rank}").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.training.devices_together"], cwd=tmp_path, stdin=stdin, stdout=output,
                stderr=subprocess.STDOUT, env=os.environ | rendezvous | {"RANK": rank, "LOCAL_RANK": rank},
            )  # fmt: skip
        processes.append(process)
    try:
        for number, process in enumerate(processes):
            assert process.wait(SECONDS) == 0, (tmp_path / f"output{number}").read_text()
    finally:
        for process in processes:
            process.kill()
    found = (tmp_path / "output0").read_text().splitlines()
    return [json.loads(line.removeprefix("outcome ")) for line in found if line.startswith("outcome ")]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    outcomes = on_two_processes(list(SETTINGS.values()), tmp_path_factory.mktemp("two"))
    return dict(zip(SETTINGS, outcomes, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_with_half_the_weights_each_learn_what_one_learns(
    name: str, sharded: dict[str, dict[str, Any]]
) -> None:
    one, two = outcome(SETTINGS[name]), sharded[name]
    tolerance = 0.02 if name == "bfloat16" else 1e-4
    assert two["kept_step"] == one["kept_step"]
    for curve, points in one["curves"].items():
        torch.testing.assert_close(
            torch.tensor(two["curves"][curve]), torch.tensor(points), atol=tolerance, rtol=0, msg=curve
        )
    assert one["weights"].keys() == two["weights"].keys()
    for weight, numbers in one["weights"].items():
        difference = (torch.tensor(two["weights"][weight]) - torch.tensor(numbers)).abs().max()
        assert difference < 20 * tolerance, weight


@pytest.mark.parametrize("precision", ["16-mixed", "64-true"])
def test_a_precision_that_cannot_be_divided_is_named(precision: str) -> None:
    with pytest.raises(UserError, match=f"train.precision: found {precision}.*fsdp.*allowed: 32-true, bf16-mixed"):
        train(network(), runtime={"strategy": "fsdp"}, precision=precision)
