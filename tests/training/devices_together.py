"""Trains on each of two processes, as torchrun starts them, with settings from standard input; the first prints what came out."""

import json
import os
import sys
from typing import Any

from tests.training.conftest import network, train


def outcome(settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and return the curves with the weights' names and numbers."""
    model = network(**settings.get("network", {}))
    trained = train(model, held_out=7, runtime=settings.get("runtime"), **settings.get("train", {}))
    return {
        "curves": vars(trained.curves),
        "kept_step": trained.kept_step,
        "weights": {name: value.flatten().tolist() for name, value in model.state_dict().items()},
    }


if __name__ == "__main__":
    for line in sys.stdin:
        result = outcome(json.loads(line))
        if os.environ["RANK"] == "0":
            print("outcome " + json.dumps(result), flush=True)
