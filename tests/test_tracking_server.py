"""A team's MLflow server as deploy/ starts it: PostgreSQL, artifacts on S3, logins; several clones train at once."""

import base64
import json
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.project import ROOT, Project, clean_environment
from tests.servers import (
    DATABASE_PASSWORD,
    HOST,
    S3_ACCOUNT,
    free_port,
    postgresql_server,
    program,
    running,
    s3_client,
    s3_server,
)

pytestmark = pytest.mark.slow

CLONES = 4
LEARNING_RATES = ("0.02", "0.05")  # one after the other in each clone: eight trainings
EPOCHS = 400  # of two steps: some seconds, in which the server is restarted
PATIENCE_SECONDS = 1800
ADMIN_PASSWORD = secrets.token_hex(16)
USER, USER_PASSWORD = "ada", f"{secrets.token_hex(16)} /@"


class Team:
    """The services, and a clone for each colleague."""

    def __init__(self, folder: Path, database: str, s3: dict[str, str], clones: list[Project]) -> None:
        self.folder = folder
        self.database = database
        self.s3 = s3
        self.clones = clones
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def account(self) -> dict[str, str]:
        """All that a colleague's shell needs: no access to S3 or to the database."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": USER_PASSWORD,
        }

    @contextmanager
    def mlflow(self) -> Iterator[None]:
        """Run the server by deploy/mlflow.sh."""
        program("mlflow")
        environment = self.s3 | {
            "MLFLOW_BACKEND_STORE_URI": self.database,
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://team/mlflow",
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "any text",
            "PORT": str(self.port),
        }
        script, log = str(ROOT / "deploy/mlflow.sh"), self.folder / "mlflow.log"
        with running(script, port=self.port, log=log, environment=environment, cwd=self.folder):
            self.wait_until_healthy()
            yield

    def wait_until_healthy(self) -> None:
        for _ in range(1500):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).read()
            except OSError:
                time.sleep(0.2)
            else:
                return
        pytest.fail("the server does not answer")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: make test installs it")
        with psycopg.connect(self.database) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def call(self, path: str, body: dict[str, Any], user: str, password: str) -> dict[str, Any]:
        """Post to the server's API as a user."""
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {login}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            result: dict[str, Any] = json.load(answer)
        return result


@pytest.fixture(scope="module")
def team(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Services that run, and clones in which the dataset is there."""
    folder = tmp_path_factory.mktemp("team")
    clones = []
    for number in range(CLONES):
        shutil.copytree(trained.folder, folder / f"clone-{number}", symlinks=True)
        clones.append(Project(folder / f"clone-{number}"))
    with postgresql_server(folder) as database, s3_server(folder, "team") as s3:
        yield Team(folder, database, s3, clones)


def train_all(team: Team, clone: Project) -> "subprocess.Popen[str]":
    """Train once for each learning rate, and evaluate; where a stage finds no server at its start, do as it says."""
    commands = [
        f"sed -i 's/^  learning_rate: .*/  learning_rate: {rate}/; s/^  epochs: .*/  epochs: {EPOCHS}/' params.yaml\n"
        "tries=0; until dvc repro; do tries=$((tries + 1)); [ $tries -lt 60 ]; sleep 1; done"
        for rate in LEARNING_RATES
    ]
    return subprocess.Popen(
        ["/bin/sh", "-e", "-c", "\n".join(commands)],
        cwd=clone.folder,
        env=clean_environment() | team.account,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_eight_trainings_from_four_clones_lose_nothing_when_the_server_is_restarted(team: Team) -> None:
    with team.mlflow():
        team.call("users/create", {"username": USER, "password": USER_PASSWORD}, "admin", ADMIN_PASSWORD)
        # The clones share one server but not their parameters, so that all runs differ.
        for number, clone in enumerate(team.clones):
            clone.replace("params.yaml", "  seed: 42\n", f"  seed: {number}\n")
        trainings = [train_all(team, clone) for clone in team.clones]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while team.query("select count(distinct run_uuid) from metrics where key = 'train_loss'") != [(CLONES,)]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    with team.mlflow():
        outputs = [training.communicate(timeout=PATIENCE_SECONDS)[0] for training in trainings]
        assert [training.returncode for training in trainings] == [0] * CLONES, "\n".join(outputs)
        assert not [output for output in outputs if "Traceback" in output], "\n".join(outputs)
        for clone in team.clones:
            clone.run("python", "-m", "stages.commands.send_metrics", environment=team.account)
        runs = team.query("select run_uuid, status, artifact_uri from runs")
        assert len(runs) == CLONES * len(LEARNING_RATES)
        assert {status for _, status, _ in runs} == {"FINISHED"}
        points = team.query("select run_uuid, count(*) from metrics where key = 'train_loss' group by run_uuid")
        expected = len((team.clones[0].folder / "metrics/plots/train_loss.csv").read_text().splitlines()) - 1
        assert sorted(count for _, count in points) == [expected] * len(runs)
        accuracies = team.query("select count(*) from metrics where key = 'completion_exact_match'")
        assert accuracies == [(len(runs),)]
        check_artifacts(team, [run for run, _, _ in runs])
        check_logins(team)
    check_secrets(team, outputs)


def check_artifacts(team: Team, runs: list[str]) -> None:
    """Every run has its model and report in the bucket, by way of the server."""
    pages = s3_client(team.s3).get_paginator("list_objects_v2").paginate(Bucket="team")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    for run in runs:
        assert any(run in key and key.endswith("report.html") for key in keys), run
    assert len([key for key in keys if key.endswith("model.safetensors")]) >= len(runs)


def check_logins(team: Team) -> None:
    """Nobody reads without a login, and a wrong password stops a training at its start, in a line."""
    search = {"experiment_ids": ["0"], "max_results": 1}
    for user, password in (("nobody", ""), (USER, "wrong")):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            team.call("runs/search", search, user, password)
    wrong = team.account | {"MLFLOW_TRACKING_PASSWORD": "wrong"}
    failed = team.clones[0].run("python", "-m", "stages.train", check=False, environment=wrong)
    assert failed.returncode != 0
    assert "Traceback" not in failed.stderr


def check_secrets(team: Team, outputs: list[str]) -> None:
    """No password is in a clone's files, in what was printed, or in the server's log."""
    passwords = (DATABASE_PASSWORD, ADMIN_PASSWORD, USER_PASSWORD, S3_ACCOUNT["AWS_SECRET_ACCESS_KEY"])
    files = [file for file in team.folder.rglob("*") if file.is_file()]
    assert len(files) > 100
    texts = [*outputs, *(file.read_bytes().decode(errors="replace") for file in files)]
    for password in passwords:
        assert not [text for text in texts if password in text], password


def test_compose_starts_the_same_script_with_all_that_it_asks_for() -> None:
    services = YAML(typ="safe").load(ROOT / "deploy/compose.yaml")["services"]
    script = (ROOT / "deploy/mlflow.sh").read_text(encoding="utf-8")
    asked = {line.split()[1] for line in script.splitlines() if line.startswith("#   MLFLOW_")}
    assert len(asked) == 4
    assert asked <= set(services["mlflow"]["environment"])
    assert all(port.startswith("127.0.0.1:") for port in services["mlflow"]["ports"])
    assert 'CMD ["/srv/mlflow.sh"]' in (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
