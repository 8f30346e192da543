"""Checkpoints in parts: any number of devices reads what any other number wrote, nothing is unpickled, and damage is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stages.training.checkpoint_folder import part_path
from stages.training.checkpoint_parts import WHOLE, Rows, Share, read_parts, write_part
from tests.training.conftest import divided

DEVICES = 3
WEIGHTS = {"odd": (7, 4), "few rows": (2, 3), "vector": (5,), "matrices": (3, 2, 2)}


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def state() -> dict[str, Any]:
    """What a training saves: weights, of which two are one, in two types, and numbers beside them."""
    weights = {name: numbers(*shape) for name, shape in WEIGHTS.items()} | {
        "short": numbers(4, 3, dtype=torch.bfloat16)
    }
    averages = {
        number: {"step": torch.tensor(5.0), "average": value + 1} for number, value in enumerate(weights.values())
    }
    return {"state_dict": weights | {"tied": weights["odd"]}, "states": [averages], "step": 5, "curve": [(1, 0.5)]}


def write(checkpoint: Path, devices: int = DEVICES, whole: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write all parts, and return the outline."""
    for share in [Share(rank, devices) for rank in range(devices)]:
        outline, _ = write_part(checkpoint, divided(whole or state(), share), share)
    return outline


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), before=st.integers(1, 5), after=st.integers(1, 5))
def test_any_number_of_devices_reads_what_any_other_wrote(
    shape: list[int], before: int, after: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = tmp_path_factory.mktemp("parts") / "000000000005.ckpt"
    whole = {"weight": numbers(*shape)}
    outline = write(checkpoint, before, whole)
    found = [read_parts(checkpoint, outline, Share(rank, after))["weight"] for rank in range(after)]
    assert_same(found[0] if after == 1 else torch.cat([rows.own for rows in found]), whole["weight"])


def test_one_device_reads_all_that_others_wrote(tmp_path: Path) -> None:
    checkpoint = tmp_path / "000000000005.ckpt"
    assert_same(read_parts(checkpoint, write(checkpoint), WHOLE), state())


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 16])
@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_rows_are_divided_as_torch_divides_them(count: int, devices: int) -> None:
    shares = [torch.arange(count)[Share(rank, devices).rows(count)] for rank in range(devices)]
    expected = [*torch.arange(count).chunk(devices), *[torch.arange(0)] * devices][:devices]
    assert_same(shares, expected)


def test_a_part_has_a_devices_rows_and_tied_weights_once(tmp_path: Path) -> None:
    checkpoint = tmp_path / "000000000005.ckpt"
    outline = write(checkpoint)
    part = load_file(part_path(checkpoint, 1, DEVICES))
    assert part.keys() == {
        *(f"state_dict/{name}" for name in state()["state_dict"] if name != "tied"),
        *(f"states/0/{number}/average" for number in range(5)),
    }
    assert_same(part["state_dict/odd"], state()["state_dict"]["odd"][3:6])
    assert outline["state_dict"]["odd"].is_meta
    first = read_parts(checkpoint, outline, Share(0, 2))["state_dict"]
    assert isinstance(first["odd"], Rows)
    assert first["tied"] is first["odd"]


def test_reading_parts_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "000000000005.ckpt"
    outline = write(checkpoint)

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert_same(read_parts(checkpoint, outline, WHOLE), state())


def change_tensor(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def of_part(part: Path) -> None:
        tensors = load_file(part)
        change(tensors)
        save_file(tensors, part)

    return of_part


ODD = "state_dict/odd"
DAMAGE: dict[str, Callable[[Path], object]] = {
    "absent": Path.unlink,
    "empty": lambda part: part.write_bytes(b""),
    "a pickle": lambda part: part.write_bytes(pickle.dumps({ODD: 1})),
    "cut short": lambda part: part.write_bytes(part.read_bytes()[:-8]),
    "a tensor less": change_tensor(lambda tensors: tensors.pop(ODD)),
    "a row less": change_tensor(lambda tensors: tensors.update({ODD: tensors[ODD][1:].clone()})),
    "a column less": change_tensor(lambda tensors: tensors.update({ODD: tensors[ODD][:, 1:].clone()})),
    "a dimension less": change_tensor(lambda tensors: tensors.update({ODD: tensors[ODD][:, 0].clone()})),
    "no dimension": change_tensor(lambda tensors: tensors.update({ODD: torch.tensor(1.0)})),
    "another type": change_tensor(lambda tensors: tensors.update({ODD: tensors[ODD].double()})),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("share", [WHOLE, Share(0, 2)])
def test_parts_that_do_not_fit_the_outline_are_refused(damage: str, rank: int, share: Share, tmp_path: Path) -> None:
    checkpoint = tmp_path / "000000000005.ckpt"
    outline = write(checkpoint)
    DAMAGE[damage](part_path(checkpoint, rank, DEVICES))
    with pytest.raises(Exception, match=r".") as refused:
        read_parts(checkpoint, outline, share)
    assert type(refused.value).__name__ in {"ValueError", "SafetensorError", "FileNotFoundError"}


@pytest.mark.parametrize("parts", [0, -1, 2, 4, 10**9, "2", None, 2.5])
def test_a_wrong_number_of_parts_is_refused(parts: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "000000000005.ckpt"
    outline = write(checkpoint) | {"parts": parts}
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        read_parts(checkpoint, outline, WHOLE)
