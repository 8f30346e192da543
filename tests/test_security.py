"""No pickle, no shell, no open port, no secret on disk: held over the whole source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "stages").rglob("*.py"), *(ROOT / "presets").rglob("*.py")])
# What unpickles, or runs text, unless it is told otherwise.
FORBIDDEN = {
    "pickle.load", "pickle.loads", "dill.load", "joblib.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load",
    "eval", "exec", "os.system", "os.popen", "torch.jit.load", "torch.hub.load", "mlflow.pyfunc.load_model",
}  # fmt: skip


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(item.value) for item in call.keywords if item.arg == name), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled_and_no_text_is_run(path: Path) -> None:
    for call in calls(path):
        name = ast.unparse(call.func)
        assert name not in FORBIDDEN, f"{path}:{call.lineno}"
        if name == "torch.load":
            assert keyword(call, "weights_only") == "True", f"{path}:{call.lineno}"
        assert keyword(call, "shell") in (None, "False"), f"{path}:{call.lineno}"


def test_servers_listen_on_this_machine_alone() -> None:
    texts = [path.read_text(encoding="utf-8") for path in [*SOURCES, ROOT / "Makefile"]]
    assert not [text for text in texts if "0.0.0.0" in text]


def test_every_dependency_is_pinned() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        packages = [line for line in lines if line and not line.startswith(("#", "-", " "))]
        assert packages
        assert not [line for line in packages if "==" not in line and " @ " not in line]
