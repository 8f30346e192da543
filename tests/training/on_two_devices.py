"""Goes on with a training on two devices, until it is broken off: a command, as Lightning starts it again for the second."""

import contextlib

from stages.training import history
from stages.training.resume import CheckpointFolder
from tests.training import test_resume

if __name__ == "__main__":
    history.CURVE_POINTS = test_resume.FEW_POINTS
    with contextlib.suppress(test_resume.BrokenOffError):
        test_resume.train(CheckpointFolder("f" * 16), stop_at=28, runtime={"devices": 2}, **test_resume.MANY_STEPS)
