"""A model or batch that memory cannot hold is refused before memory is taken for it, and nothing else is."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.transformer import Transformer, TransformerConfig
from stages.errors import UserError
from stages.training import memory as memory_module
from stages.training.memory import check_batch, check_model, count_numbers
from stages.training.optimization import TrainParams, build_optimizer
from stages.training.plan import plan_training
from stages.training.runtime import available_memory
from tests.training.conftest import examples, network, runtime_parameters, train, train_parameters

LARGEST: dict[str, tuple[dict[str, int], str, str]] = {
    "wide and deep": ({"d_model": 2**16, "n_layers": 96, "n_heads": 64}, "n_layers 96", "model.n_layers or d_ff"),
    "many layers": ({"d_model": 2**14, "n_layers": 1024, "n_heads": 64}, "n_layers 1024", "model.n_layers or d_ff"),
    "a wide feed-forward": ({"d_model": 2**16, "d_ff": 2**18}, "d_ff 262144", "model.n_layers or d_ff"),
    "many tokens": ({"vocabulary_size": 2**24, "d_model": 2**13}, "16,777,216 tokens", "the vocabulary"),
    "a long context": ({"context_length": 2**20, "d_model": 2**14}, "context_length 1048576", "model.context_length"),
}


def shape(**changed: Any) -> TransformerConfig:
    return TransformerConfig(**network().config.model_dump() | changed)


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("name", LARGEST)
def test_a_model_that_can_never_fit_is_refused_before_memory_is_taken(
    name: str, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, found, fix = LARGEST[name]
    if name == "a long context" and positions == "rotary":
        pytest.skip("a rotary table is as wide as a head")
    monkeypatch.setattr(memory_module, "available_memory", lambda: 24 * 10**9)
    before = resident_bytes()
    with pytest.raises(UserError) as refused:
        check_model(shape(positions=positions, **changed), train_parameters(), runtime_parameters())
    assert resident_bytes() - before < 10**9
    message = str(refused.value)
    assert message.startswith("params.yaml: model.d_model ")
    assert "\n" not in message
    assert found in message
    assert "weights" in message
    assert "this machine has 24.0 GB" in message
    assert message.endswith(f"lower model.d_model or {fix}" + (" (vocabulary.size)" if "vocabulary" in fix else ""))


def kept_by_a_training(model: Transformer, parameters: TrainParams) -> int:
    """Return the bytes of all weights, gradients, states and tables after a real step."""
    optimizer = build_optimizer(model, parameters)
    model(torch.zeros(2, 3, dtype=torch.int64)).sum().backward()
    optimizer.step()
    tensors = [*model.parameters(), *model.buffers(), *(weight.grad for weight in model.parameters())]
    tensors += [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@given(
    tied=st.booleans(), layers=st.integers(1, 3), norm=st.sampled_from(["none", "layer", "rms"]), qk_norm=st.booleans(),
    feed_forward=st.sampled_from(["none", "gelu", "swiglu"]), positions=st.sampled_from(["learned", "sinusoidal", "rotary"]),
)  # fmt: skip
def test_what_is_counted_is_what_a_step_keeps(
    optimizer: str, tied: bool, layers: int, norm: str, qk_norm: bool, feed_forward: str, positions: str
) -> None:
    model = network(
        tie_embeddings=tied, n_layers=layers, norm=norm, qk_norm=qk_norm, feed_forward=feed_forward, positions=positions
    )
    parameters = train_parameters(optimizer=optimizer)
    parts = count_numbers(model.config, parameters)
    assert sum(part.kept for part in parts.values()) * 4 == kept_by_a_training(model, parameters)


def test_the_exact_size_fits_and_a_byte_less_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = train_parameters()
    needed = sum(part.kept for part in count_numbers(shape(), parameters).values()) * 4
    monkeypatch.setattr(memory_module, "available_memory", lambda: needed)
    check_model(shape(), parameters, runtime_parameters())
    half = train_parameters(precision="bf16-true")
    monkeypatch.setattr(memory_module, "available_memory", lambda: needed - 1)
    check_model(shape(), half, runtime_parameters())
    with pytest.raises(UserError, match="gradients and the states of adamw"):
        check_model(shape(), parameters, runtime_parameters())


def test_on_a_gpu_the_weights_must_fit_the_computer_and_the_rest_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    needed = sum(part.kept for part in count_numbers(shape(), train_parameters()).values()) * 4
    for computer, gpu, refused in (
        (needed, needed, None),
        (needed, needed - 1, "its GPU has"),
        (9, needed, "alone.*this machine has"),
    ):
        monkeypatch.setattr(memory_module, "available_memory", lambda computer=computer: computer)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu=gpu: (0, gpu))
        if refused is None:
            check_model(shape(), train_parameters(), runtime_parameters(accelerator="auto"))
        else:
            with pytest.raises(UserError, match=refused):
                check_model(shape(), train_parameters(), runtime_parameters(accelerator="auto"))


def test_a_batch_that_can_never_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    kept = sum(part.kept for part in count_numbers(model.config, train_parameters()).values()) * 4
    monkeypatch.setattr(memory_module, "available_memory", lambda: kept + 1000)
    with pytest.raises(UserError) as refused:
        train(model)
    message = str(refused.value)
    assert message.startswith("params.yaml: 4 examples at once, of ")
    assert "2 layers of d_model 16" in message
    assert message.endswith("lower runtime.micro_batch_size, which changes no result")
    train(model, runtime={"micro_batch_size": 1})


def test_devices_that_divide_a_model_need_their_share_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = train_parameters(batch_size=2)
    needed = sum(part.kept for part in count_numbers(shape(), parameters).values()) * 4
    monkeypatch.setattr(memory_module, "available_memory", lambda: needed // 2 + 4000)
    check_model(shape(), parameters, runtime_parameters(strategy="fsdp"))
    with pytest.raises(UserError, match="gradients and the states of adamw"):
        check_model(shape(), parameters, runtime_parameters(strategy="ddp"))
    plan, device = plan_training(20, parameters, 1, world_size=2), torch.device("cpu")
    check_batch(network(), examples(), plan, parameters, device, parts=2)
    with pytest.raises(UserError, match="2 layers of d_model 16"):
        check_batch(network(), examples(), plan, parameters, device)


LIMITS: dict[str, tuple[dict[str, str], int]] = {
    "no limit": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"}, 1000),
    "of a container, which sees itself as the root": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "600"}, 600),
    "of the group around it": (
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/memory.max": "700", "sys/fs/cgroup/a/b/memory.max": "max"}, 700,
    ),
    "more than there is": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "2000"}, 1000),
    "of version 1": (
        {"proc/self/cgroup": "5:cpu:/a\n4:memory:/a", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "500"}, 500,
    ),
    "of version 1, none": (
        {"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 1000,
    ),
    "unreadable": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "?"}, 1000),
    "another system": ({}, 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_memory_is_as_much_as_the_process_may_use(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, expected = LIMITS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 1000}))
    assert available_memory(tmp_path) == expected


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs POSIX")
def test_the_computers_memory_is_what_the_system_says() -> None:
    assert 0 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
