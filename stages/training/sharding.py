"""Training whose weights, gradients and optimiser state are divided over the devices: FSDP (Zhao et al. 2023), torch's second form.

Each device keeps the same rows of a weight, of its gradient and of its optimiser state, gathers a block's whole weights only
while it computes that block, and writes its own part of a checkpoint. Only the finished model is gathered, one tensor after the
other, in the first device's machine's memory. torch's own sharded checkpoints have an index that is a pickle.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from stages.core.transformer import Transformer
from stages.core.windows import Int64s
from stages.training.checkpoint_files import VerifiedCheckpoints
from stages.training.checkpoint_parts import Rows, Share, replace, write_part
from stages.training.data_module import Batch
from stages.training.lightning_module import LanguageModel

SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
"""What this strategy has of Lightning's precisions: float16's scaled gradients would need sharding too."""


class ShardedLanguageModel(LanguageModel):
    """A LanguageModel whose network is divided over the devices when the training begins."""

    device_mesh: DeviceMesh

    def configure_model(self) -> None:
        """Replace the network by this device's part of it."""
        if not isinstance(self.network, FSDPModule):  # Lightning calls this again before a validation
            self.network = sharded_network(
                self.network, self.device_mesh["data_parallel"], compiled=self._optimization.compile
            )

    def weights(self) -> dict[str, Any]:
        """Return a copy of this device's rows of the weights, on the CPU."""
        copies: dict[str, Any] = replace(
            self.own_weights(), Rows, lambda _, rows: Rows(rows.own.cpu().clone(), rows.shape)
        )
        return copies

    def own_weights(self) -> dict[str, Rows]:
        """Return this device's rows of the weights: of tied weights the same ones, under both names."""
        for part in self.network.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # after a validation some weights are whole
        rows = {weight: own_rows(weight) for weight in self.network.parameters()}
        return {name: rows[weight] for name, weight in self.network.named_parameters(remove_duplicate=False)}

    def gather(self, weights: Mapping[str, Rows]) -> dict[str, Tensor]:
        """Return whole weights, on the CPU of the first device; on others tensors without numbers."""
        return {name: self._gathered(rows) for name, rows in weights.items()}

    def _gathered(self, rows: Rows) -> Tensor:
        whole = divided(rows, self.device_mesh["data_parallel"], self.device).full_tensor()
        return whole.cpu() if self.global_rank == 0 else whole.new_empty(0)

    def _passes(self, batch: Batch) -> Iterable[tuple[Int64s | slice, int]]:
        return [
            (slice(None), batch.input_ids.shape[1])
        ]  # all devices take part in each pass, and have rows of other lengths

    def _make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self._eager_loss  # only the blocks are compiled, when they are divided


def sharded_network(network: Transformer, mesh: DeviceMesh, *, compiled: bool) -> Transformer:
    """Return the same network with each weight divided over the devices of ``mesh``; ``network`` gives its numbers away.

    Args:
        network: whole, with the same weights on each device.
        mesh: the devices, in one dimension.
        compiled: whether blocks are compiled, each by itself: gathering its weights stays outside.
    """
    sharded = copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})  # of the same weights
    for block in sharded.blocks:
        if compiled:
            block.forward = torch.compile(block.forward, dynamic=False)
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    register_fsdp_forward_method(sharded, "hidden_states")
    for weight in network.parameters():
        weight.data = weight.data.new_empty(0)
    return sharded


def fill(network: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Give a network its numbers back that ``sharded_network`` took."""
    for name, weight in network.named_parameters():
        weight.data = weights[name]


def own_part(value: Tensor) -> Tensor:
    """Return this device's part of a tensor; the whole where it is not divided."""
    return value.to_local() if isinstance(value, DTensor) else value


def own_rows(value: Tensor) -> Rows:
    """Return this device's rows of a tensor that is divided over the devices."""
    assert isinstance(value, DTensor)  # noqa: S101 - a whole one would be written by each device
    return Rows(value.to_local().detach(), value.shape)


def divided(rows: Rows, mesh: DeviceMesh, device: torch.device) -> DTensor:
    """Return the tensor that is divided over the devices of ``mesh``, of each one's rows."""
    stride = torch.empty(rows.shape, device="meta").stride()
    return DTensor.from_local(rows.own.to(device), mesh, [Shard(0)], run_check=False, shape=rows.shape, stride=stride)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all devices, with checkpoints of which each device writes its part."""

    lightning_restore_optimizer = True

    def setup_environment(self) -> None:
        """Join the processes, in one dimension."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return this device's rows of the weights."""
        return {f"network.{name}": rows for name, rows in self._module.own_weights().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return this device's rows of the optimiser's state."""
        state: dict[str, Any] = replace(optimizer.state_dict(), DTensor, lambda _, value: own_rows(value))
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write this device's part; when all are written, the first device makes them a checkpoint.

        Raises:
            OSError: a part cannot be written, on each device the same error; or, on the first, what is not in parts.
        """
        path, outline = Path(filepath), checkpoint
        written: str | OSError
        try:
            outline, written = write_part(path, checkpoint, self._share)
        except OSError as error:
            written = error
        of_all: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(of_all, written)
        for failed in of_all:
            if isinstance(failed, OSError):
                raise failed
        if self.is_global_zero:
            self._files.save_outline(outline, path, of_all)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: FBT001
        """Read this device's rows, of however many parts."""
        return self._files.load_share(Path(checkpoint_path), self._share)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:  # noqa: FBT001, FBT002
        """Take this device's rows of the weights."""
        with torch.no_grad():
            for name, weight in self._module.named_parameters():
                own_part(weight).copy_(checkpoint["state_dict"][name].own)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this device's rows of the optimiser's state."""
        mesh = self.device_mesh["data_parallel"]
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(replace(saved, Rows, lambda _, rows: divided(rows, mesh, self.root_device)))

    @property
    def _module(self) -> ShardedLanguageModel:
        assert isinstance(self.lightning_module, ShardedLanguageModel)  # noqa: S101 - tells the type checker
        return self.lightning_module

    @property
    def _files(self) -> VerifiedCheckpoints:
        assert isinstance(self.checkpoint_io, VerifiedCheckpoints)  # noqa: S101 - tells the type checker
        return self.checkpoint_io

    @property
    def _share(self) -> Share:
        return Share(self.global_rank, self.world_size)
