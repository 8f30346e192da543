"""How much every command prints, and how it ends."""

import itertools
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages import command_line
from stages.errors import UserError
from tests.project import ROOT, Project, clean_environment

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("stages", "presets")
    for path in (ROOT / folder).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)


def call(module: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a command in this process, which has imported what it needs, and return its exit code."""
    monkeypatch.setattr("sys.argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, module, raising=False)  # or runpy warns
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return ended.value.code


@pytest.mark.parametrize("module", MODULES)
def test_every_command_has_help_quiet_and_verbose(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(module, "--help", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr().out
    assert f"usage: python -m {module} [-h] [-q | -v]" in " ".join(told.split())
    assert call(module, "-q", "-v", monkeypatch=monkeypatch) == 2
    assert "-v/--verbose: not allowed with argument -q/--quiet" in capsys.readouterr().err


def test_an_error_has_no_control_characters_of_what_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("data.csv, row 1: '\x1b]0;title\x07\u202e' (word 3)\nfix it")

    with pytest.raises(SystemExit) as ended:
        command_line.run(fail)
    assert ended.value.code == "error: data.csv, row 1: '\\u001b]0;title\\u0007\\u202e' (word 3)\nfix it"


@pytest.mark.parametrize("name", ["x" * 5000, "loop"])
def test_a_path_that_cannot_be_followed_is_told_in_a_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit) as ended:
        command_line.run((tmp_path / name).read_bytes)  # type: ignore[arg-type]  # what it returns is not asked for
    assert str(ended.value.code).startswith("error: /")
    assert str(ended.value.code).endswith(("; give a shorter path", "; its links lead in a circle"))
    assert len(str(ended.value.code)) < 300


# Each command's arguments, what it prints with --quiet as well, and what --verbose logs.
COMMANDS = {
    "stages.build_vocabulary": ([], "", ["reading data/prompts.csv", "wrote data/vocabulary.json", "vocabulary: {"]),
    "stages.build_dataset": ([], "", ["reading data/vocabulary.json", "wrote data/dataset/train.safetensors"]),
    "stages.train": ([], "", ["mapping data/dataset/train.safetensors", "training on cpu", "MLflow at sqlite:///",
                              "wrote metrics/train.json", "`Trainer.fit` stopped"]),
    "stages.evaluate": ([], "", ["scoring train on cpu, with", "wrote metrics/evaluate.json"]),
    "stages.generate": (["what is CNN"], "Great\n", ["reading data/model/model.safetensors"]),
    "stages.commands.summary": ([], "model                       data/model/\n", ["reading metrics/train.json"]),
    "stages.commands.send_metrics": ([], "", ["MLflow at sqlite:///"]),
    "presets.addition": ([], "", ["wrote data/addition.csv"]),
    "presets.text_to_csv": (["README.md"], "", ["wrote data/text.csv"]),
    "presets.use": (["toy"], "", []),
}  # fmt: skip


# These need a server, a remote, several runs or minutes: their own tests look at what they print.
TESTED_APART = {
    *(f"stages.commands.{name}" for name in ("compare", "export", "search", "serve", "share_results", "ui", "verdict")),
    "presets.fit",
}


def test_the_table_has_every_other_command() -> None:
    assert COMMANDS.keys() | TESTED_APART == set(MODULES)


LONG_COMMANDS = ("stages.train", "stages.evaluate")


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG_COMMANDS else []) for name in COMMANDS]
)
def test_quiet_leaves_results_and_verbose_adds_a_log(module: str, trained: Project) -> None:
    arguments, result, logged = COMMANDS[module]
    quiet = trained.run("python", "-m", module, "--quiet", *arguments)
    assert quiet.stderr == ""
    assert quiet.stdout.strip().startswith(result.strip())
    assert bool(quiet.stdout) == bool(result)
    verbose = trained.run("python", "-m", module, "--verbose", *arguments)
    assert verbose.stdout
    for line in ("Python 3.", "torch 2.", *logged, " ms  stages.command_line: done"):
        assert line in verbose.stderr


PROGRAM = """
import errno, os, signal, sys
from stages import command_line
from stages.errors import UserError

def main():
    command_line.command_parser(None).parse_args()
    {body}

command_line.run(main)
"""


def start(body: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("body", "code", "told"), [
    ("raise UserError('a.csv: row 3: found 2 cells')", 1, "error: a.csv: row 3: found 2 cells\n"),
    ("raise UserError('found ' + 'x' * 100_000 + '; delete it')", 1,
     f"error: found {'x' * 1494} [...] {'x' * 1489}; delete it\n"),
    ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", 1,
     "error: No space left on device; free some space, for example with `dvc gc --workspace`\n"),
    ("raise OSError(errno.EROFS, 'Read-only file system', 'data/model')", 1,
     "error: data/model: Read-only file system; the project must lie where it can be written\n"),
    ("raise OSError(errno.EIO, 'Input/output error')", 1,
     "error: Input/output error; the disk, or the network that it is on, fails\n"),
    ("os.rmdir('stages')", 1,
     "error: stages: Directory not empty; put that right, then type the same again; with --verbose it says where it arose\n"),
    ("os.kill(os.getpid(), signal.SIGTERM)", 143, "stopped by SIGTERM\n"),
    ("os.kill(os.getpid(), signal.SIGHUP)", 129, "stopped by SIGHUP\n"),
    ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted\n"),
    ("print('done')", 0, ""),
])  # fmt: skip
def test_an_expected_end_is_told_in_a_line(body: str, code: int, told: str) -> None:
    process = start(body)
    assert process.communicate()[1] == told
    assert process.returncode == code


# As pybind11 does it, and torchmetrics, which then imports SciPy a second time.
SWALLOWED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("initialization failed")
"""


@pytest.mark.parametrize("code", ["raise KeyboardInterrupt", SWALLOWED], ids=["told", "swallowed"])
@pytest.mark.parametrize("module", ["stages.train", "stages.evaluate", "stages.generate"])
def test_an_interruption_of_a_slow_import_is_told_in_a_word(module: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "interrupted\n"
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize("end", ["run", "run_stage"])
def test_a_terminal_of_one_alphabet_gets_other_letters_as_their_codes(end: str) -> None:
    body = "print('na\\u00efve \\U0001f642'); raise UserError('\\U0001f642 \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body).replace("command_line.run(", f"command_line.{end}(")],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"na\xefve \\U0001f642\n"
    assert done.stderr == b"error: \\U0001f642 \\udcff\n"


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    process = start("[print('line ' * 100) for _ in range(10_000)]")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 1


STAGE = PROGRAM.replace("command_line.run(main)", "command_line.run_stage(main)")
GOING_ON = (
    "import time; print('a line', flush=True); time.sleep(0.5); "
    "[print('step', number, flush=True) for number in range(5)]; print('the end', file=sys.stderr)"
)


@pytest.mark.parametrize(("redirection", "told"), [
    ("> /dev/full", "standard output: No space left on device; going on without it\nthe end\n"),
    ("| head -n 1", "standard output: Broken pipe; going on without it\nthe end\n"),
    (">&-", "the end\n"),
])  # fmt: skip
def test_a_stage_goes_on_without_an_output_that_cannot_be_written(redirection: str, told: str) -> None:
    program = shlex.join([sys.executable, "-c", STAGE.format(body=GOING_ON)])
    script = f"{{ {program}; echo ended with $? >&2; }} {redirection}"  # head ends as soon as it has a line
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == f"{told}ended with 0\n"


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-", "> /dev/full 2>&1", ">&- 2>&-"])
def test_a_stage_goes_on_without_standard_error(redirection: str, tmp_path: Path) -> None:
    body = f"{GOING_ON}; open({str(tmp_path / 'ended')!r}, 'w').close()"
    script = f"{shlex.join([sys.executable, '-c', STAGE.format(body=body)])} {redirection}"
    assert subprocess.run(["bash", "-c", script], cwd=ROOT, check=False).returncode == 0
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_experiment_is_told_with_the_way_back(number: signal.Signals, tmp_path: Path) -> None:
    body = f"os.kill(os.getpid(), {int(number)})"
    for folder, told in ((ROOT, True), (tmp_path, False)):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body=body)],
            cwd=ROOT,
            env=clean_environment() | {"DVC_EXP_NAME": "flown-damn", "DVC_ROOT": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ("`git reset --quiet && git checkout HEAD -- dvc.lock metrics`" in done.stderr) == told


def test_where_an_error_arose_is_told_with_verbose_and_where_it_was_not_expected() -> None:
    told = start("raise UserError('no such file')", "--verbose").communicate()[1]
    assert "where the error arose\nTraceback" in told
    assert told.endswith("\nerror: no such file\n")
    assert "ZeroDivisionError" in start("1 / 0").communicate()[1]


QUICK = ("stages.build_vocabulary", "stages.commands.summary", "presets.use", "presets.addition")


@pytest.mark.parametrize("module", QUICK)
def test_a_file_that_is_run_by_its_path_prints_how_to_run_it(module: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / f"{module.replace('.', '/')}.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: run it as a module, in the project's folder: python -m {module}\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_in_a_log_is_a_line_now_and_then_with_an_estimate(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(step=6.0)  # each batch takes six seconds
    monkeypatch.setattr("stages.command_line.time.monotonic", lambda: next(clock))
    assert list(command_line.track(range(5), name="scores", quiet=quiet)) == [0, 1, 2, 3, 4]
    lines = "" if quiet else "scores: 40%, 18 s left\nscores: 80%, 6 s left\n"
    assert capsys.readouterr().err == lines


def test_every_folder_with_a_command_says_how_to_run_it() -> None:
    for module in MODULES:
        *folders, _ = module.split(".")
        guard = ROOT.joinpath(*folders, "stages.py").read_text(encoding="utf-8")
        assert f"python -m {'.'.join(folders)}.{{" in guard
