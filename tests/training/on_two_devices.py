"""Goes on with a training on two devices, until it is broken off: a command, as Lightning starts it again for the second."""

import contextlib
import sys

from stages.training import history
from stages.training.checkpoint_folder import CheckpointFolder
from tests.training import test_checkpoints

if __name__ == "__main__":
    history.CURVE_POINTS = test_checkpoints.FEW_POINTS
    with contextlib.suppress(test_checkpoints.BrokenOffError):
        test_checkpoints.train(
            CheckpointFolder("f" * 16),
            stop_at=28,
            runtime={"devices": 2, "strategy": sys.argv[1]},
            **test_checkpoints.MANY_STEPS,
        )
