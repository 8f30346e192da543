"""Open MLflow's pages on the pipeline's own store, for this machine alone."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages import command_line
from stages.errors import Stopped, UserError
from stages.tracking.store import keep_view
from stages.tracking.workspace import masked, tracking_uri

HOST = "127.0.0.1"
PROJECT = Path(__file__).parents[2]
PLUGIN = PROJECT / "stages/tracking/plugin"  # where MLflow finds stages.tracking.pages
SECONDS_TO_END = 5.0

VIEW_KEY = "pipeline"
VIEW_NAME = "Losses and scores"
COLUMNS = (
    "metrics.`loss`",
    "metrics.`next_token_accuracy`",
    "metrics.`completion_exact_match`",
    "metrics.`train_loss`",
    "metrics.`validation_loss`",
    "params.`train.learning_rate`",
)
# What MLflow calls the sections of the charts that it draws by itself, one for each other metric.
MLFLOW_SECTIONS = ("Model metrics", "System metrics")


def main() -> None:
    """Run MLflow's server until Ctrl-C."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument("--port", type=int, default=5000, help="listen there (default 5000)")
    options = parser.parse_args()
    uri = tracking_uri()
    if uri.startswith("databricks"):
        print(f"The runs are at {uri} (MLFLOW_TRACKING_URI): open it in a browser.")
        return
    if uri.startswith(("http://", "https://")):
        print(f"The runs are on the server that MLFLOW_TRACKING_URI names:\n{pages(masked(uri).rstrip('/'))}")
        return
    check_free(options.port)
    addresses = pages(f"http://{HOST}:{options.port}")
    if not options.quiet:
        print(f"Starting on {masked(uri)}: some seconds. Ctrl-C ends it.\n{addresses}", flush=True)
    program = Path(sys.executable).with_name("mlflow")
    # Without the pipeline's jobs and with one worker it starts in half the time and a sixth of the memory.
    level = "info" if options.verbose else "warning"
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": level,
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument, which every user of the machine could read
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), str(PROJECT), os.environ.get("PYTHONPATH")])),
    }
    arguments = ["ui", "--workers", "1", "--host", HOST, "--port", str(options.port)]
    arguments += ["--app-name", "pipeline", "--uvicorn-opts", f"--log-level {level}"]
    serve([str(program), *arguments], environment)


def serve(command: list[str], environment: Mapping[str, str]) -> None:
    """Run a server until it ends, or until this process is told to: then the server and all that it started end as well.

    Raises:
        Stopped: the server failed.
    """
    # In a session of its own Ctrl-C does not reach it, which it would answer with a traceback.
    server = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603
    try:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # a closed terminal
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        end(server)
    if code:
        raise Stopped(f"MLflow's server ended with {code}", code)


def end(server: subprocess.Popen[bytes]) -> None:
    """End a server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(SECONDS_TO_END)


def pages(site: str) -> str:
    """Return where to look, after the view that these addresses open is kept in the store."""
    # Without workflowType MLflow's menu is that of language model applications, in which little is of use here.
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW_KEY}"
    page = f"{site}/#/experiments/{keep_view(VIEW_KEY, view())}/runs?{query}"
    return f"  runs    {page}\n  curves  {page}&compareRunsMode=CHART"


def view() -> str:
    """Write, as MLflow's page does for "Save as new view", which columns and charts of the runs are shown."""
    names = ("Losses", *MLFLOW_SECTIONS)
    sections: list[dict[str, Any]] = [
        {"uuid": name, "name": name, "display": True, "isReordered": False} for name in names
    ]
    sections[0] |= {"columns": 1, "cardHeight": 420}
    state = {
        "selectedColumns": COLUMNS,
        "compareRunSections": sections,
        "compareRunCharts": [
            chart("losses", "Losses", "train_loss") | {"selectedMetricKeys": ["train_loss", "validation_loss"]},
            # Without a chart of its own, even a deleted one, a metric would get a new one.
            chart("validation_loss", MLFLOW_SECTIONS[0], "validation_loss") | {"deleted": True},
        ],
    }
    return json.dumps({"name": VIEW_NAME, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def chart(uuid: str, section: str, metric: str) -> dict[str, Any]:
    """Describe a chart of a metric by step, as MLflow's page does."""
    return {
        "uuid": uuid,
        "type": "LINE",
        "metricSectionId": section,
        "metricKey": metric,
        "deleted": False,
        "isGenerated": False,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def check_free(port: int) -> None:
    """Refuse a port that is taken.

    Raises:
        UserError: another program listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise UserError(
                f"port {port} cannot be used, perhaps it is taken: try make ui PORT={port % 65535 + 1}"
            ) from None


if __name__ == "__main__":
    command_line.run(main)
