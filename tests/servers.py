"""Servers that the tests start on this machine's loopback, and stop."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.project import clean_environment

HOST = "127.0.0.1"
START_SECONDS = 300  # at most; a busy machine takes its time


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def program(name: str, *folders: Path) -> str:
    """Return the path of a program, which lies beside this Python, in PATH or in ``folders``; skip the test without it."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", *map(str, folders)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def running(
    *command: str, port: int, log: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a server, wait until it listens, and stop it at the end; its output goes to the end of ``log``."""
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, env=clean_environment() | dict(environment or {}), cwd=cwd, stdout=output, stderr=output
        )
    try:
        wait_until_listening(server, port, log)
        yield server
    finally:
        server.terminate()
        server.wait(timeout=START_SECONDS)


def wait_until_listening(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Return when something accepts connections on ``port``; fail the test if the server ends before."""
    for _ in range(START_SECONDS * 5):
        if server.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"port {port}: {server.args!r} does not listen:\n{log.read_text(errors='replace')[-3000:]}")


# Drawn, so that no file of a clone holds them unless one was leaked.
DATABASE_PASSWORD = secrets.token_hex(16)
# An account as a cloud gives them, with characters that an address would have to escape.
S3_ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "AKIA7TESTACCOUNT",
    "AWS_SECRET_ACCESS_KEY": f"{secrets.token_hex(16)}/+=",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[dict[str, str]]:
    """Run an S3 server with an empty bucket; yield the environment that gives access to it."""
    port = free_port()
    environment = S3_ACCOUNT | {"AWS_ENDPOINT_URL": f"http://{HOST}:{port}"}
    with running(program("moto_server"), "--host", HOST, "--port", str(port), port=port, log=folder / "s3.log"):
        s3_client(environment).create_bucket(Bucket=bucket)
        yield environment


def s3_client(environment: Mapping[str, str]) -> Any:
    """Return a client of the S3 server, for what a test does beside the pipeline."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: make test installs it")
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def postgresql_server(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL server with an empty database; yield its address, with the password."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    initdb, postgres, createdb = (program(name, *places) for name in ("initdb", "postgres", "createdb"))
    port = free_port()
    # PostgreSQL refuses to be root, and no other user may look into a test's own folder.
    data = Path(tempfile.mkdtemp(prefix="runs-database-"))
    owner: dict[str, Any] = {}
    if os.getuid() == 0:
        owner = {"user": "postgres", "cwd": data}
        shutil.chown(data, "postgres")
    try:
        password = data / "password"
        password.write_text(DATABASE_PASSWORD)
        password.chmod(0o644)
        made: list[str | Path] = [
            initdb,
            "--pgdata",
            data / "db",
            "--username",
            "mlflow",
            "--auth",
            "scram-sha-256",
            "--pwfile",
            password,
        ]
        subprocess.run(made, check=True, capture_output=True, env=clean_environment(), **owner)
        password.unlink()
        server = [postgres, "-D", f"{data}/db", "-p", str(port), "-c", f"listen_addresses={HOST}", "-k", str(data)]
        with (folder / "postgresql.log").open("ab") as log:
            running_server: subprocess.Popen[bytes] = subprocess.Popen(
                server, stdout=log, stderr=log, env=clean_environment(), **owner
            )
        try:
            wait_until_listening(running_server, port, folder / "postgresql.log")
            command = [createdb, "--host", HOST, "--port", str(port), "--username", "mlflow", "runs"]
            subprocess.run(command, check=True, env=clean_environment() | {"PGPASSWORD": DATABASE_PASSWORD})
            yield f"postgresql://mlflow:{DATABASE_PASSWORD}@{HOST}:{port}/runs"
        finally:
            running_server.send_signal(signal.SIGINT)  # at once, without waiting for clients
            running_server.wait(timeout=START_SECONDS)
    finally:
        shutil.rmtree(data)
