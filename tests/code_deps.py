"""Write into dvc.yaml which source files each stage imports: `make deps`, and the pre-commit hook."""

import re

from tests.test_dvc_deps import ROOT, import_closure

DVC_FILE = ROOT / "dvc.yaml"
_STAGE = re.compile(r"^  (\w+):\n    desc:.*?(?=^  \w|\Z)", re.MULTILINE | re.DOTALL)
_CODE_DEP = re.compile(r"^    - stages/\S+\.py\n", re.MULTILINE)


def with_code_deps(text: str) -> str:
    """Return the text of dvc.yaml with each stage's import closure among its deps, in place of what was listed."""
    return _STAGE.sub(_rewrite, text)


def _rewrite(stage: re.Match[str]) -> str:
    files = sorted(import_closure(ROOT / f"stages/{stage[1]}.py"))
    before, *after = _CODE_DEP.split(stage[0])
    return before + "".join(f"    - {file}\n" for file in files) + "".join(after)


def main() -> None:
    """Rewrite dvc.yaml where an import was added, moved or removed."""
    before = DVC_FILE.read_text(encoding="utf-8")
    after = with_code_deps(before)
    if after != before:
        DVC_FILE.write_text(after, encoding="utf-8")
        print(f"{DVC_FILE.name}: code deps rewritten; run `dvc repro` and commit dvc.lock with it")


if __name__ == "__main__":
    main()
