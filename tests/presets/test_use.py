"""Taking a preset makes its data, and never loses a params.yaml."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from presets.use import main
from stages.errors import UserError

ROOT = Path(__file__).parents[2]
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example.com")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project's folder, with the toy committed, as the working folder."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "data").mkdir()
    shutil.copy(tmp_path / "presets" / "toy.yaml", tmp_path / "params.yaml")
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--no-gpg-sign", "--message=toy"]):
        subprocess.run([*GIT, *arguments], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Call the command."""
    monkeypatch.setattr(sys, "argv", ["presets.use", *arguments])
    main()


def saved(project: Path) -> dict[str, str]:
    """Return what was saved, by name."""
    assert sorted(path.name for path in project.glob("params*")) in (["params.yaml"], ["params.saved", "params.yaml"])
    return {path.name: path.read_text() for path in sorted((project / "params.saved").glob("*"))}


def test_addition_with_its_data(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A params.yaml that a preset or the last commit has needs no copy."""
    use(monkeypatch, "addition")
    assert (project / "params.yaml").read_bytes() == (project / "presets" / "addition.yaml").read_bytes()
    assert (project / "data" / "addition.csv").exists()
    assert "params.yaml is now presets/addition.yaml" in capsys.readouterr().out
    use(monkeypatch, "toy")
    assert saved(project) == {}


def test_a_table_of_sums_that_was_edited_is_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "data" / "addition.csv").write_text("prompt,completion\n1+1=,2\n")
    use(monkeypatch, "addition")
    assert (project / "data" / "addition.csv").read_text() == "prompt,completion\n1+1=,2\n"
    assert "data/addition.csv is there already: kept" in capsys.readouterr().out


def test_each_content_of_the_users_is_saved_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirteen times back and forth leave no more files than there were contents."""
    for content in ("first: 1\n", "second: 2\n", "first: 1\n") * 13 + ("third: 3\n",):
        (project / "params.yaml").write_text(content)
        use(monkeypatch, "addition")
    assert saved(project) == {"1.yaml": "first: 1\n", "2.yaml": "second: 2\n", "3.yaml": "third: 3\n"}
    assert capsys.readouterr().out.endswith("to go back to yours: cp params.saved/3.yaml params.yaml\n")


@pytest.mark.parametrize(
    ("old", "new", "way_back"),
    [
        ("", "", "cp presets/toy.yaml params.yaml"),
        ("  # The highest learning rate.\n", "", "cp presets/toy.yaml params.yaml"),
        ("learning_rate: 0.1", "learning_rate: 1e-1", "cp presets/toy.yaml params.yaml"),
        ("The highest learning rate.", "0.2 was worse.", "cp params.saved/1.yaml params.yaml"),
        ("learning_rate: 0.1", "learning_rate: 0.1  # 0.2 was worse", "cp params.saved/1.yaml params.yaml"),
        ("learning_rate: 0.1", "learning_rate: 0.2", "cp params.saved/1.yaml params.yaml"),
        ("batch_size: 1\n", "batch_size: true\n", "cp params.saved/1.yaml params.yaml"),
        ("batch_size: 1\n", "batch_size: [1\n", "cp params.saved/1.yaml params.yaml"),
    ],
)
def test_the_way_back_brings_back_every_value_and_comment(
    old: str,
    new: str,
    way_back: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a preset has is not copied; what anyone wrote is."""
    mine = (project / "presets" / "toy.yaml").read_text().replace(old, new, 1)
    (project / "params.yaml").write_text(mine)
    use(monkeypatch, "addition")
    assert capsys.readouterr().out.endswith(f"; to go back to yours: {way_back}\n")
    assert saved(project) == ({"1.yaml": mine} if "saved" in way_back else {})


def test_a_committed_file_is_not_saved(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Git has it."""
    (project / "params.yaml").write_text("mine: 1\n")
    subprocess.run([*GIT, "commit", "--quiet", "--no-gpg-sign", "--all", "--message=mine"], cwd=project, check=True)
    use(monkeypatch, "addition")
    assert saved(project) == {}
    way_back = capsys.readouterr().out.partition("to go back to yours: ")[2].split()
    assert way_back[0] == "git"
    subprocess.run(way_back, cwd=project, check=True)
    assert (project / "params.yaml").read_text() == "mine: 1\n"


def test_without_git_and_without_a_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download without git has nothing committed: the file is saved; an absent one cannot be."""
    shutil.rmtree(project / ".git")
    (project / "params.yaml").write_text("mine: 1\n")
    use(monkeypatch, "addition")
    assert saved(project) == {"1.yaml": "mine: 1\n"}
    (project / "params.yaml").unlink()
    use(monkeypatch, "toy")
    assert (project / "params.yaml").read_bytes() == (project / "presets" / "toy.yaml").read_bytes()


def test_a_text_for_characters(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the error says what to type; once made, the CSV stays until another text is named."""
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=r"make repro PRESET=characters TEXT=path/to/input\.txt"):
        use(monkeypatch, "characters")
    assert (project / "params.yaml").read_bytes() == before
    (project / "input.txt").write_text("one\n\ntwo\n")
    use(monkeypatch, "characters", "--text", "input.txt")
    assert (project / "data" / "text.csv").read_text() == "text\none\ntwo\n"
    use(monkeypatch, "gpt2")
    assert (project / "data" / "text.csv").read_text() == "text\none\ntwo\n"
    assert (project / "params.yaml").read_bytes() == (project / "presets" / "gpt2.yaml").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["adition"], "no preset 'adition'; did you mean addition"),
        (["xyz"], "no preset 'xyz'; allowed: addition, characters, finetune, gpt2, text, toy"),
        (["toy", "--text", "input.txt"], "the preset toy reads no text"),
    ],
)
@pytest.mark.usefixtures("project")
def test_mistakes(monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str) -> None:
    """What was meant is guessed."""
    with pytest.raises(UserError, match=complaint):
        use(monkeypatch, *arguments)


def test_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the project nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run from the project's folder"):
        use(monkeypatch, "toy")
