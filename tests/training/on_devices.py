"""Goes on with a training on several devices, until it is broken off: a command, as Lightning starts it again for each of them.

Arguments: the strategy, the number of devices, the step to break off at, and whether the second device's disk is full.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from stages.training import history, sharding
from stages.training.checkpoint_folder import CheckpointFolder
from stages.training.checkpoint_parts import Share, write_part
from tests.training import test_checkpoints


def write_part_on_a_full_disk(checkpoint: Path, state: Mapping[str, Any], share: Share) -> Any:
    if share.rank == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write_part(checkpoint, state, share)


if __name__ == "__main__":
    strategy, devices, stop_at, full_disk = sys.argv[1:]
    history.CURVE_POINTS = test_checkpoints.FEW_POINTS
    disk = patch.object(sharding, "write_part", write_part_on_a_full_disk)
    with (
        disk if full_disk == "True" else contextlib.nullcontext(),
        contextlib.suppress(test_checkpoints.BrokenOffError),
    ):
        test_checkpoints.train(
            CheckpointFolder("f" * 16),
            stop_at=int(stop_at),
            runtime={"devices": int(devices), "strategy": strategy},
            **test_checkpoints.MANY_STEPS,
        )
