"""Training whose weights, gradients and optimiser state are divided over the devices: FSDP (Zhao et al. 2023), torch's second form.

Each device keeps a part of every weight, and gathers a block's whole weights only while it computes that block. A
checkpoint has the form of one device's training: the first device gathers it, one tensor after the other, in the computer's
memory, so that any number of devices goes on from it. torch's own sharded checkpoints have an index that is a pickle.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from stages.core.transformer import Transformer
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

    def weights(self) -> dict[str, Tensor]:
        """Return the whole weights on the CPU, on the first device; on others tensors without numbers."""
        return {name: gathered(value, self.global_rank) for name, value in self.network.state_dict().items()}

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


def gathered(value: Tensor, rank: int) -> Tensor:
    """Return the whole of a tensor that is divided over the devices: on the CPU of the first, of no size elsewhere."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor().detach()
    return whole.cpu() if rank == 0 else whole.new_empty(0)


def own_part(value: Tensor) -> Tensor:
    """Return this device's part of a tensor; the whole where it is not divided."""
    return value.to_local() if isinstance(value, DTensor) else value


def divided_as(whole: Tensor, like: Tensor) -> Tensor:
    """Return this device's part of a tensor that all devices have, divided as ``like`` is; unchanged where that is whole."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all devices, with checkpoints in the form of one device's training."""

    lightning_restore_optimizer = True

    def setup_environment(self) -> None:
        """Join the processes, in one dimension."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights on the first device."""
        assert isinstance(self.lightning_module, ShardedLanguageModel)  # noqa: S101 - tells the type checker
        return {f"network.{name}": value for name, value in self.lightning_module.weights().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimiser on the first device."""
        saved = optimizer.state_dict()
        state = {
            index: {name: gathered(value, self.global_rank) for name, value in values.items()}
            for index, values in saved["state"].items()
        }
        return {"state": state, "param_groups": saved["param_groups"]}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the checkpoint as one device does."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: FBT001
        """Read the checkpoint as one device does."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:  # noqa: FBT001, FBT002
        """Take this device's part of the weights."""
        assert self.lightning_module is not None  # noqa: S101 - tells the type checker
        with torch.no_grad():
            for name, weight in self.lightning_module.named_parameters():
                weight.copy_(divided_as(checkpoint["state_dict"][name], weight))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this device's part of the optimiser's state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            indices = [index for group in saved["param_groups"] for index in group["params"]]
            state = {
                index: {
                    name: divided_as(value, weight) if value.shape == weight.shape else value
                    for name, value in saved["state"].get(index, {}).items()
                }
                for index, weight in zip(indices, weights, strict=True)
            }
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
