"""Open MLflow's pages on the pipeline's own store, for this machine alone."""

import os
import socket
import sys
from pathlib import Path

from stages import command_line
from stages.errors import UserError
from stages.run_names import masked, tracking_uri

HOST = "127.0.0.1"


def main() -> None:
    """Become MLflow's server, until Ctrl-C."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument("--port", type=int, default=5000, help="listen there (default 5000)")
    options = parser.parse_args()
    uri = tracking_uri()
    if uri.startswith(("http://", "https://", "databricks")):
        print(f"The runs are at {masked(uri)} (MLFLOW_TRACKING_URI): open it in a browser.")
        return
    check_free(options.port)
    if not options.quiet:
        print(f"Starting at http://{HOST}:{options.port} on {masked(uri)}: some seconds. Ctrl-C ends it.", flush=True)
    program = Path(sys.executable).with_name("mlflow")
    # Without the pipeline's jobs and with one worker it starts in half the time and a sixth of the memory.
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument, which every user of the machine could read
    }
    arguments = ["ui", "--workers", "1", "--host", HOST, "--port", str(options.port)]
    os.execve(program, [str(program), *arguments], environment)  # noqa: S606 - the program of this environment


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
