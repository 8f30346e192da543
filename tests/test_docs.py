"""What the docs say of the project's own files is true."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.test_dvc_deps import imported_modules

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return the names by which the headings of a page are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_core_is_read_in_an_order_in_which_each_file_needs_only_those_before_it() -> None:
    order = re.findall(r"^\| \d+ \| `(\w+)\.py` \|", ARCHITECTURE, re.MULTILINE)
    assert sorted(order) == sorted(path.stem for path in (ROOT / "stages/core").glob("*.py"))
    for place, name in enumerate(order):
        modules = imported_modules(ROOT / f"stages/core/{name}.py")
        imported = {module.split(".")[2] for module in modules if module.startswith("stages.core.")}
        assert imported <= {*order[:place], "kernels"}, name


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [re.split(r"[<>=\[]", line, maxsplit=1)[0] for line in project["dependencies"]]
    table = ARCHITECTURE.partition("## Dependencies")[2]
    explained = {name for cell in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for name in cell.split(", ")}
    assert set(required) <= explained


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        named = re.findall(r"`((?:stages|tests|presets|benchmarks)/[\w/]+\.\w+)`", page.read_text(encoding="utf-8"))
        assert [name for name in named if not (ROOT / name).exists()] == [], page.name
