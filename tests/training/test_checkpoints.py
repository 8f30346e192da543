"""A training that is broken off at any step, and goes on from a checkpoint, ends as one that never was."""

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from stages.artifacts.regular_file import hash_file
from stages.core.transformer import Transformer
from stages.errors import Stopped, UserError
from stages.training.checkpoint_files import VerifiedCheckpoints
from stages.training.checkpoint_folder import CheckpointFolder, part_path, write_hashes
from stages.training.checkpoint_parts import Share, write_part
from stages.training.fit import TrainingResult, fit
from tests.training.conftest import divided, examples, network, runtime_parameters, train_parameters

EVERY_STEP = 1e-9
STEPS = 12
# A point every seven steps, so that losses wait for the next one when the training is saved, which devices do every ten.
FEW_POINTS = 6
MANY_STEPS: dict[str, Any] = {"max_steps": 40, "optimizer": "muon", "batch_size": 6}
ROOT = Path(__file__).parents[2]


class BrokenOffError(Exception):
    pass


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(
    folder: CheckpointFolder | None,
    stop_at: int | None = None,
    stop: Any = None,
    runtime: dict[str, Any] | None = None,
    dropout: float = 0.2,
    **changed: Any,
) -> tuple[Transformer, TrainingResult]:
    """Train; after step ``stop_at``, call ``stop``, by default an error."""

    def log(metrics: dict[str, float], step: int) -> None:
        if step == stop_at and "train_loss" in metrics:
            if stop is None:
                raise BrokenOffError
            stop()

    model = network(dropout=dropout)
    parameters = train_parameters(**{"max_steps": STEPS, "validate_every": 3, "keep": "best"} | changed)
    settings = runtime_parameters(**{"checkpoint_minutes": EVERY_STEP} | (runtime or {}))
    return model, fit(model, examples(), examples(7, seed=1), parameters, settings, log, folder)


def assert_same(one: tuple[Transformer, TrainingResult], other: tuple[Transformer, TrainingResult]) -> None:
    for (name, first), second in zip(one[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert one[1] == other[1]


def broken_off(stop_at: int, **settings: Any) -> CheckpointFolder:
    folder = CheckpointFolder("f" * 16)
    with pytest.raises(BrokenOffError), folder.locked():
        train(folder, stop_at, **settings)
    return folder


@pytest.mark.parametrize("stop_at", [2, 3, 6, 12])
def test_a_resumed_training_ends_with_the_same_bytes(stop_at: int, capsys: pytest.CaptureFixture[str]) -> None:
    expected = train(None)
    folder = broken_off(stop_at)
    assert_same(train(folder), expected)
    assert f"resumed at step {stop_at - 1}/{STEPS}" in capsys.readouterr().out


SETTINGS: dict[str, dict[str, Any]] = {
    "accumulation": {"runtime": {"micro_batch_size": 2}},
    "last weights": {"keep": "last"},
    "patience": {"patience": 2, "learning_rate": 0.5, "min_learning_rate": 0.0, "schedule": "constant", "validate_every": 1},
    "linear schedule": {"schedule": "linear"},
    "muon": {"optimizer": "muon", "schedule": "cooldown"},
    "muon in bf16": {"optimizer": "muon", "precision": "bf16-mixed"},
    "adam in bf16": {"optimizer": "adam", "precision": "bf16-mixed"},
    "a curve with few points": {"runtime": {"micro_batch_size": 2}, "keep": "last"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), SETTINGS.items(), ids=SETTINGS.keys())
def test_a_resumed_training_ends_with_the_same_bytes_whatever_its_settings(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "few points" in name
    if few:  # steps 5, 10 and the last: losses wait for the curve's next point when the training breaks off
        monkeypatch.setattr("stages.training.history.CURVE_POINTS", 3)
        settings = settings | {"max_steps": 14}
    expected = train(None, **settings)
    folder = broken_off(10 if few else 3, **settings)
    assert_same(train(folder, **settings), expected)


@pytest.mark.parametrize("name", [None, "last weights", "patience", "adam in bf16", "accumulation"])
def test_a_finished_training_whose_result_was_refused_is_not_trained_again(
    name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS[name] if name else {}
    folder = CheckpointFolder("f" * 16)
    with folder.locked():
        first = train(folder, **settings | {"runtime": settings.get("runtime", {}) | {"checkpoint_minutes": None}})
    capsys.readouterr()
    assert_same(train(folder, **settings), first)
    assert f"resumed at step {first[1].steps}/{STEPS}" in capsys.readouterr().out
    assert_same(train(None, **settings), first)


def test_processes_that_read_different_inputs_do_not_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder("f" * 16)
    strategy = lightning.pytorch.strategies.SingleDeviceStrategy
    monkeypatch.setattr(strategy, "broadcast", lambda _self, _fingerprint: "e" * 16)  # as the first process has it
    with pytest.raises(UserError, match="read different inputs; type `dvc repro` again"), folder.locked():
        train(folder)
    assert not folder.path.exists()


def test_a_training_may_be_broken_off_many_times() -> None:
    expected = train(None)
    for stop_at in (2, 5, 6, 9):
        folder = broken_off(stop_at)
    assert_same(train(folder), expected)


def test_out_of_memory_the_step_may_be_cut_into_smaller_micro_batches() -> None:
    folder = broken_off(5)
    _, trained = train(folder, runtime={"micro_batch_size": 1})
    _, expected = train(None)
    assert [step for step, _ in trained.curves.train_loss] == [step for step, _ in expected.curves.train_loss]
    assert trained.curves.train_loss[-1][1] == pytest.approx(expected.curves.train_loss[-1][1], abs=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_more_devices_or_fewer_go_on_with_a_training(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.training.history.CURVE_POINTS", FEW_POINTS)
    _, whole = train(None, **MANY_STEPS)
    folder = broken_off(14, **MANY_STEPS)
    assert folder.newest() == folder.checkpoint(13)
    for devices, step, stop_at in (
        (2, 20, 28),
        (3, 30, 35),
    ):  # saved every ten steps, broken off at a point of the curve
        go_on(strategy, devices, stop_at)
        assert folder.newest() == folder.checkpoint(step)
        sizes = [path.stat().st_size for path in folder.path.glob(f"{step:012d}.*.safetensors")]
        assert len(sizes) == (devices if strategy == "fsdp" else 0)
        assert max(sizes, default=0) < 1.2 * sum(sizes) / devices or strategy == "ddp"  # each wrote its share
    _, trained = train(folder, runtime={"micro_batch_size": 1}, **MANY_STEPS)
    for name in ("train_loss", "validation_loss"):
        one, other = (torch.tensor(getattr(curves, name)) for curves in (trained.curves, whole.curves))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def go_on(strategy: str, devices: int, stop_at: int, *, full_disk: bool = False) -> str:
    """Go on with a training on several devices, break it off, and return what it says on stderr."""
    command = [sys.executable, "-m", "tests.training.on_devices", strategy, str(devices), str(stop_at), str(full_disk)]
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=here, check=True, stderr=subprocess.PIPE, text=True).stderr


@pytest.mark.slow
def test_a_device_that_cannot_write_its_part_costs_a_checkpoint_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.training.history.CURVE_POINTS", FEW_POINTS)
    folder = broken_off(14, **MANY_STEPS)
    said = go_on("fsdp", 2, stop_at=28, full_disk=True)
    assert said.count("no checkpoint of step 20: No space left on device") == 1
    assert folder.newest() == folder.checkpoint(13)
    assert list(folder.path.glob("*.safetensors")) == []


def into_parts(checkpoint: Path, devices: int) -> list[Path]:
    """Write a whole checkpoint again, in parts; return their paths."""
    state = torch.load(checkpoint, weights_only=True)
    digests = []
    for share in [Share(rank, devices) for rank in range(devices)]:
        own = {name: divided(state[name], share) for name in ("state_dict", "optimizer_states", "callbacks")}
        outline, digest = write_part(checkpoint, state | own, share)
        digests.append(digest)
    VerifiedCheckpoints().save_outline(outline, checkpoint, digests)
    return [part_path(checkpoint, rank, devices) for rank in range(devices)]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}])
def test_one_device_goes_on_from_the_parts_of_many_with_the_same_bytes(settings: dict[str, Any]) -> None:
    folder = broken_off(6, **settings)
    into_parts(folder.checkpoint(5), 3)
    assert folder.newest() == folder.checkpoint(5)
    assert_same(train(folder, **settings), train(None, **settings))


@pytest.mark.parametrize("damage", ["cut short", "flipped", "absent"])
@pytest.mark.parametrize("rank", [0, 2])
def test_where_a_part_is_damaged_the_checkpoint_before_serves(
    damage: str, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken_off(6)
    part = into_parts(folder.checkpoint(5), 3)[rank]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data if damage == "flipped" else data[:-100])
    if damage == "absent":
        part.unlink()
    assert folder.newest() == folder.checkpoint(4)
    assert f"{folder.checkpoint(5)}: damaged" in capsys.readouterr().err


def test_parts_without_their_checkpoint_are_nothing_and_are_deleted_at_the_next_start() -> None:
    folder = broken_off(6)
    parts = into_parts(folder.checkpoint(5), 2)
    folder.checkpoint(5).unlink()  # as if all processes were killed before it was written
    assert folder.newest() == folder.checkpoint(4)
    with folder.locked():
        assert not any(part.exists() for part in parts)
    assert folder.newest() == folder.checkpoint(4)


def test_the_parts_of_old_checkpoints_are_deleted_with_them() -> None:
    folder = broken_off(6)
    old, new = into_parts(folder.checkpoint(4), 2), into_parts(folder.checkpoint(5), 3)
    folder.forget_old(kept=1)
    assert not any(part.exists() for part in old)
    assert folder.newest() == folder.checkpoint(5)
    folder.restart()
    assert not any(part.exists() for part in new)


ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGPWR, signal.SIGUSR1)


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_saves_the_step_and_stops_with_the_shells_code(number: signal.Signals) -> None:
    folder = CheckpointFolder("f" * 16)
    with pytest.raises(Stopped) as stopped, folder.locked():
        train(folder, 5, lambda: os.kill(os.getpid(), number), runtime={"checkpoint_minutes": None})
    assert stopped.value.code == 128 + number
    assert stopped.value.message == f"stopped by {number.name} at step 5/12; `dvc repro` goes on from step 5"
    assert_same(train(folder), train(None))


def test_the_last_two_checkpoints_are_kept_and_a_torn_one_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken_off(6)
    kept = sorted(folder.path.glob("*.ckpt"))
    assert [int(path.stem) for path in kept] == [4, 5]
    kept[1].write_bytes(kept[1].read_bytes()[:-1000])
    assert folder.newest() == kept[0]
    assert f"{kept[1]}: damaged" in capsys.readouterr().err
    assert_same(train(folder), train(None))


@pytest.mark.parametrize("damage", ["flipped", "no hash", "empty", "a pipe for a hash"])
def test_a_damaged_checkpoint_is_told_by_its_hash(damage: str) -> None:
    folder = broken_off(6)
    before, newest = sorted(folder.path.glob("*.ckpt"))
    match damage:
        case "flipped":
            data = bytearray(newest.read_bytes())
            data[len(data) // 2] ^= 1
            newest.write_bytes(data)
        case "no hash":
            newest.with_suffix(".sha256").unlink()
        case "empty":
            newest.write_bytes(b"")
        case _:
            newest.with_suffix(".sha256").unlink()
            os.mkfifo(newest.with_suffix(".sha256"))
    assert folder.newest() == before


def test_a_pipe_in_place_of_a_small_file_is_not_waited_for() -> None:
    folder = broken_off(6)
    for name in ("run", "pid"):
        (folder.path / name).unlink(missing_ok=True)
        os.mkfifo(folder.path / name)
    assert folder.run_id is None
    with folder.locked():
        assert (folder.path / "pid").read_text() == str(os.getpid())


def test_a_process_that_trains_keeps_others_out() -> None:
    folder = CheckpointFolder("f" * 16)
    with (
        folder.locked(),
        pytest.raises(UserError, match=f"process {os.getpid()} is training"),
        CheckpointFolder("f" * 16).locked(),
    ):
        pass
    with CheckpointFolder("f" * 16).locked():
        pass
    assert not folder.path.exists()


def test_a_checkpoint_that_was_never_finished_is_deleted_at_the_next_start() -> None:
    folder = broken_off(6)
    kept = list(folder.path.glob("*.ckpt"))
    unfinished = folder.path / "000000000006.ckpt.partial"
    unfinished.touch()
    with folder.locked():
        assert not unfinished.exists()
    assert sorted(folder.path.glob("*.ckpt")) == sorted(kept)


def test_signals_that_are_ignored_or_lightnings_own_do_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    requeued: list[int] = []
    for number, handler in ((signal.SIGHUP, signal.SIG_IGN), (signal.SIGUSR1, lambda *_: requeued.append(1))):
        before = signal.signal(number, handler)
        try:
            _, trained = train(
                CheckpointFolder(f"{number:016x}"), 5, lambda number=number: os.kill(os.getpid(), number)
            )
        finally:
            signal.signal(number, before)
        assert trained.steps == STEPS
    assert requeued == [1]


def test_a_finished_training_is_kept_until_dvc_has_its_result() -> None:
    first, second, running = (CheckpointFolder(letter * 16) for letter in "abc")
    for folder in (first, second, running):
        folder.path.mkdir(parents=True)
        for step in (1, 2):
            folder.checkpoint(step).touch()
    running.remove_finished()
    assert running.path.exists()
    first.finish()
    assert first.newest() is None  # without its hash
    assert [path.name for path in first.path.glob("*.ckpt")] == [first.checkpoint(2).name]
    with first.locked():
        second.finish()
        assert first.path.exists()
    second.finish()
    assert not first.path.exists()
    second.remove_finished()
    assert not second.path.exists()
    assert running.path.exists()


@pytest.mark.parametrize("other", ["the same shape", "another shape", "a tensor"])
def test_a_checkpoint_of_another_training_is_refused(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = CheckpointFolder("a" * 16)
    broken_off(6).path.rename(here.path)
    newest = here.newest()
    assert newest is not None
    if other == "another shape":
        monkeypatch.setattr(sys.modules[__name__], "network", partial(network, n_layers=3))
    if other == "a tensor":
        torch.save(torch.zeros(3), newest)
        write_hashes(newest, {newest: hash_file(newest)})
    with pytest.raises(UserError, match="aaa/: holds a checkpoint of another training; delete that folder"):
        train(here)


@pytest.mark.parametrize("word", ["1; rm -rf ~", "../../x", "", "\n", "\ud55c"])
def test_what_stands_in_a_file_goes_into_no_command_and_no_address(word: str) -> None:
    folder = CheckpointFolder("f" * 16)
    with folder.locked():
        for name in ("pid", "run"):
            (folder.path / name).write_text(word)
        assert folder.run_id is None
        with pytest.raises(UserError, match="`kill unknown`"), CheckpointFolder("f" * 16).locked():
            pass


def test_restart_forgets_the_checkpoints_and_the_run() -> None:
    folder = broken_off(6)
    folder.remember_run("abc")
    assert folder.run_id == "abc"
    folder.restart()
    assert folder.newest() is None
    assert folder.run_id is None


def test_a_training_that_diverges_keeps_its_last_good_checkpoint() -> None:
    folder = CheckpointFolder("f" * 16)
    wild: dict[str, Any] = {
        "learning_rate": 1e30,
        "min_learning_rate": 0.0,
        "schedule": "constant",
        "warmup_steps": 4,
        "gradient_clip": 0.0,
    }
    with (
        pytest.raises(
            UserError, match=r"loss became (nan|inf) at step \d+ of 12: in params.yaml lower train.learning_rate"
        ),
        folder.locked(),
    ):
        train(folder, **wild)
    newest = folder.newest()
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in state["state_dict"].values())


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch payload-ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_checkpoint_is_refused_and_its_payload_does_not_run(project: Path) -> None:
    folder = broken_off(6)
    newest = folder.newest()
    assert newest is not None
    for data in (pickle.dumps(Payload()), b"junk"):
        newest.write_bytes(data)
        newest.with_suffix(".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {newest.name}\n")
        with pytest.raises(UserError, match="no checkpoint of this project"):
            train(folder)
    torch.save({"state_dict": Payload()}, newest)
    newest.with_suffix(".sha256").write_text(f"{hashlib.sha256(newest.read_bytes()).hexdigest()}  {newest.name}\n")
    with pytest.raises(UserError, match="no checkpoint of this project"):
        train(folder)
    assert not (project / "payload-ran").exists()


def _put(state: Any, place: str, change: Any) -> None:
    """Replace what stands at a dotted place by what ``change`` makes of it, or delete it where that is None."""
    *outer, last = place.split("/")
    for name in outer:
        state = state[int(name) if isinstance(state, list) or name.isdigit() else name]
    key = int(last) if isinstance(state, list) or last.isdigit() else last
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key])


EARLY = "callbacks/EarlyStopping{'monitor': 'validation_loss', 'mode': 'min'}"
WEIGHT = "state_dict/network.embedding.weight"
OPTIMIZER = "optimizer_states/0/state/1/exp_avg"
PROGRESS = "loops/fit_loop/epoch_loop.automatic_optimization.optim_progress/optimizer/step/total/completed"
FORGED: dict[str, tuple[str, Any]] = {
    "no weights": ("state_dict", None),
    "a weight less": (WEIGHT, None),
    "weights that are none": ("state_dict", lambda _: 3),
    "another shape": (WEIGHT, lambda value: value[:-1].clone()),
    "another type": (WEIGHT, lambda value: value.long()),
    "more digits": (WEIGHT, lambda value: value.double()),
    "huge": (WEIGHT, lambda _: torch.zeros(1).expand(10**12)),
    "one number for all": (WEIGHT, lambda value: torch.zeros(1, 1).expand(value.shape)),
    "a sparse tensor": (WEIGHT, lambda value: value.to_sparse()),
    "a tensor without memory": (WEIGHT, lambda value: value.to("meta")),
    "a text": (WEIGHT, lambda _: "x"),
    "no optimiser": ("optimizer_states", None),
    "two optimisers": ("optimizer_states", lambda states: states * 2),
    "an average less": (OPTIMIZER, None),
    "an average of another shape": (OPTIMIZER, lambda value: value.T.clone()),
    "an average of one number": (OPTIMIZER, lambda value: torch.zeros(1, 1).expand(value.shape)),
    "a state less": ("optimizer_states/0/state/1", None),
    "groups of nothing": ("optimizer_states/0/param_groups", lambda _: []),
    "a rate that is none": ("optimizer_states/0/param_groups/0/lr", lambda _: "0.1"),
    "no rates": ("lr_schedulers", None),
    "a schedule of nothing": ("lr_schedulers/0/base_lrs", lambda _: []),
    "a schedule's step that is none": ("lr_schedulers/0/last_epoch", lambda _: None),
    "no callbacks": ("callbacks", lambda _: {}),
    "no curve": ("callbacks/TrainingHistory/curves/train_loss", None),
    "a curve of texts": ("callbacks/TrainingHistory/curves/train_loss", lambda _: [("1", "2")]),
    "best weights of another shape": ("callbacks/BestWeights/weights/output.weight", lambda value: value[1:].clone()),
    "a best loss that is none": ("callbacks/BestWeights/loss", lambda _: None),
    "patience without a score": (f"{EARLY}/best_score", lambda _: 3),
    "patience that is none": (f"{EARLY}/wait_count", lambda _: "x"),
    "no loops": ("loops", None),
    "a loop less": ("loops/fit_loop", None),
    "a count that is none": (PROGRESS, lambda _: 1.5),
    "another count": (PROGRESS, lambda _: 3),
    "a count beyond all integers": (PROGRESS, lambda _: 10**30),
    "another step": ("global_step", lambda _: 3),
    "a step that is none": ("global_step", lambda _: "5"),
    "data of another step": ("TokenDataModule/step", lambda _: 10**9),
    "no data": ("TokenDataModule", lambda _: {}),
    "losses of another shape": ("step_losses", lambda _: torch.zeros(2, 2)),
    "more losses than steps": ("step_losses", lambda _: torch.zeros(100, dtype=torch.float64)),
    "no losses": ("step_losses", None),
    "a version that is none": ("pytorch-lightning_version", lambda _: "x; y"),
}  # fmt: skip


@pytest.fixture(scope="module")
def forgeable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was broken off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DVC_ROOT", raising=False)
        patch.chdir(tmp_path_factory.mktemp("forgeable"))
        return broken_off(6, patience=5).path.absolute()


def forge(forgeable: Path, change: Any) -> tuple[CheckpointFolder, Path]:
    """Copy the folder, and change what its newest checkpoint holds, with the hash that belongs to it."""
    folder = CheckpointFolder("f" * 16)
    shutil.copytree(forgeable, folder.path)
    newest = folder.newest()
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    change(state)
    torch.save(state, newest)
    write_hashes(newest, {newest: hash_file(newest)})
    return folder, newest


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_refused_in_one_line(name: str, forgeable: Path) -> None:
    folder, newest = forge(forgeable, lambda state: _put(state, *FORGED[name]))
    with pytest.raises(UserError) as refused:
        train(folder, patience=5)
    message = str(refused.value)
    assert message.startswith(f"{newest}: no checkpoint of this project (")
    assert message.endswith(f"); delete {folder.path}/")
    assert "\n" not in message
    assert len(message) < 600


def test_a_checkpoint_that_nobody_changed_is_gone_on_with(forgeable: Path) -> None:
    folder, _ = forge(forgeable, lambda _: None)
    assert_same(train(folder, patience=5), train(None, patience=5))


def test_a_checkpoint_of_a_step_that_is_not_its_name_is_refused(forgeable: Path) -> None:
    folder, newest = forge(forgeable, lambda _: None)
    renamed = newest.rename(folder.checkpoint(10**6))
    write_hashes(renamed, {renamed: hash_file(renamed)})
    with pytest.raises(UserError, match=r"global_step: expected 1000000 of 12 throughout, found \[5\]"):
        train(folder, patience=5)


def test_a_small_file_that_would_fill_the_memory_is_refused(forgeable: Path) -> None:
    folder, newest = forge(forgeable, lambda state: state.update(more=torch.zeros(10**6)))
    with zipfile.ZipFile(newest) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(newest, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    write_hashes(newest, {newest: hash_file(newest)})
    with pytest.raises(UserError, match=r"no checkpoint of this project \(it unpacks to 4,\d{3},\d{3} bytes\)"):
        train(folder, patience=5)
