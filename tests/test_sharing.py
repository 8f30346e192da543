"""docs/share.md, with real remotes and several clones."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import ROOT, Project
from tests.servers import S3_ACCOUNT, s3_client, s3_server

ANSWER = "Great\n"
PAGE = (ROOT / "docs/share.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


def cloned(origin: Path, folder: Path) -> Project:
    """Clone a repository as a colleague does."""
    Project(origin).run("git", "clone", "--quiet", ".", str(folder))
    project = Project(folder)
    project.run("git", "config", "user.name", "Colleague")
    project.run("git", "config", "user.email", "colleague@example.com")
    return project


def answer(project: Project) -> str:
    return project.run("python", "-m", "stages.generate", "what is CNN").stdout


def commands_under(heading: str) -> list[list[str]]:
    """Return the commands of the first block under a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2]
    block = re.search(r"```console\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


@pytest.fixture
def team(trained: Project, tmp_path: Path) -> tuple[Project, Path]:
    """A trained clone of an empty git remote."""
    remote = tmp_path / "origin.git"
    trained.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(remote))
    giver = cloned(trained.folder, tmp_path / "giver")
    giver.run("git", "remote", "set-url", "origin", str(remote))
    giver.run("git", "push", "--quiet", "origin", "main")
    giver.run("dvc", "cache", "dir", "--local", str(trained.folder / ".dvc/cache"))
    giver.run("dvc", "checkout")
    return giver, remote


def add_remote(giver: Project, url: str) -> None:
    giver.run("dvc", "remote", "add", "--default", "storage", url)
    giver.run("git", "commit", "--quiet", "--message", "Add a remote", ".dvc/config")
    giver.run("git", "push", "--quiet", "origin", "main")


def train_another(giver: Project, name: str) -> None:
    giver.run("dvc", "exp", "run", "--name", name, "-S", "train.learning_rate=0.05")
    giver.run("git", "reset", "--quiet", "--hard")
    giver.run("dvc", "checkout", "--quiet", "--force")


@pytest.mark.parametrize("made_before_the_remote", [True, False])
def test_an_experiment_arrives_with_its_model(
    made_before_the_remote: bool, team: tuple[Project, Path], tmp_path: Path
) -> None:
    giver, origin = team
    if made_before_the_remote:
        train_another(giver, "slower")
    add_remote(giver, str(tmp_path / "storage"))
    if not made_before_the_remote:
        train_another(giver, "slower")
    for command in commands_under("An experiment from before the remote"):
        giver.run(*(word.replace("NAME", "slower") for word in command))
    taker = cloned(origin, tmp_path / "taker")
    taker.run("dvc", "exp", "pull", "origin", "slower-shared")
    taker.run("dvc", "exp", "apply", "slower-shared")
    assert taker.stages_run("repro") == []
    assert answer(taker) == ANSWER
    assert "learning_rate: 0.05" in (taker.folder / "params.yaml").read_text(encoding="utf-8")
    assert taker.run("git", "diff", "HEAD", "--stat", "--", ".dvc/config").stdout == ""


def test_why_the_page_saves_the_experiment_again(team: tuple[Project, Path], tmp_path: Path) -> None:
    """Where DVC pushes the model of an older experiment as well, the page may be shorter."""
    giver, _ = team
    train_another(giver, "slower")
    add_remote(giver, str(tmp_path / "storage"))
    assert "Pushed experiment slower" in giver.run("dvc", "exp", "push", "origin", "slower").stdout
    assert not list((tmp_path / "storage").glob("**/*.dir"))


@pytest.fixture
def s3_team(
    team: tuple[Project, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Project, Path]]:
    """The same, whose artifacts are on S3; the account is in the environment alone."""
    giver, origin = team
    with s3_server(tmp_path, "team") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        add_remote(giver, "s3://team/artifacts")
        giver.run("dvc", "push", "--run-cache")
        yield giver, origin


def test_what_is_on_s3_is_pulled_and_nothing_runs(s3_team: tuple[Project, Path], tmp_path: Path) -> None:
    giver, origin = s3_team
    taker = cloned(origin, tmp_path / "taker")
    outputs = [taker.run("dvc", "pull", "--verbose"), taker.run("dvc", "repro", "--verbose")]
    outputs += [giver.run("dvc", "push", "--verbose"), giver.run("dvc", "remote", "list")]
    assert "Data and pipelines are up to date." in outputs[1].stdout
    assert answer(taker) == ANSWER
    assert not [done for done in outputs if S3_ACCOUNT["AWS_SECRET_ACCESS_KEY"] in done.stdout + done.stderr]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 200
    assert not [file for file in files if S3_ACCOUNT["AWS_SECRET_ACCESS_KEY"].encode() in file.read_bytes()]


def test_a_changed_stage_pulls_only_what_it_needs(s3_team: tuple[Project, Path], tmp_path: Path) -> None:
    _, origin = s3_team
    taker = cloned(origin, tmp_path / "taker")
    taker.replace("params.yaml", "learning_rate: 0.1", "learning_rate: 0.2")
    assert taker.stages_run("repro", "--pull", "--allow-missing", "--no-run-cache", "train") == ["train"]
    assert (taker.folder / "data/dataset").exists()
    lock = taker.run("git", "show", "HEAD:dvc.lock").stdout
    old_model = re.search(r"- path: data/model\n +hash: md5\n +md5: (\w+)\.dir", lock)
    assert old_model is not None
    cached = {file.parent.name + file.name for file in (taker.folder / ".dvc/cache/files").rglob("*") if file.is_file()}
    assert not [name for name in cached if name.startswith(old_model[1])]
    assert len(list((taker.folder / "data").glob("*.json"))) == 1


def test_what_a_colleague_trained_is_not_trained_again(s3_team: tuple[Project, Path], tmp_path: Path) -> None:
    giver, origin = s3_team
    for project in (giver, taker := cloned(origin, tmp_path / "taker")):
        project.replace("params.yaml", "learning_rate: 0.1", "learning_rate: 0.07")
    assert giver.stages_run("repro") == ["train", "evaluate"]
    giver.run("python", "-m", "stages.commands.share_results")
    taker.run("dvc", "pull", "--run-cache", "--allow-missing")
    assert taker.stages_run("repro", "--pull") == []
    assert answer(taker) == ANSWER
    model = "data/model/model.safetensors"
    assert (taker.folder / model).read_bytes() == (giver.folder / model).read_bytes()


def test_a_csv_on_s3_is_tracked(s3_team: tuple[Project, Path]) -> None:
    giver, _ = s3_team
    upload(b"prompt,completion\nwhat is RNN,Older\n")
    giver.run("dvc", "import-url", "s3://team/questions.csv", "data/mine.csv")
    giver.replace("params.yaml", "csv: data/prompts.csv", "csv: data/mine.csv")
    assert giver.stages_run("repro") == ["build_vocabulary", "build_dataset", "train", "evaluate"]
    assert "Older" in (giver.folder / "data/vocabulary.json").read_text(encoding="utf-8")
    upload(b"prompt,completion\nwhat is RNN,Oldest\n")
    giver.run("dvc", "update", "data/mine.csv.dvc")
    assert giver.stages_run("repro")[:2] == ["build_vocabulary", "build_dataset"]
    assert "Oldest" in (giver.folder / "data/vocabulary.json").read_text(encoding="utf-8")


def upload(content: bytes) -> None:
    s3_client(os.environ).put_object(Bucket="team", Key="questions.csv", Body=content)
