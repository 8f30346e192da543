"""The page of `dvc plots show`, with tokens that try to run as a script."""

import shutil
import subprocess

import pytest
from selenium.webdriver.common.by import By

from stages.artifacts.table_csv import write_table
from tests.browser.conftest import ROOT, Browser
from tests.project import clean_environment

HOSTILE = [
    "</script><script>document.title='run'</script>",
    "</SCRIPT ><img src=x onerror=\"document.title='run'\">",
    "<!--<script>",
    "<b>bold</b>",
]
DVC = """
plots:
- loss:
    template: curves
    x: step
    y:
      metrics/train_loss.csv: train_loss
      metrics/validation_loss.csv: validation_loss
- metrics/train_loss.csv:
    template: from_zero
    x: step
    y: train_loss
- metrics/confusions.csv:
    template: confusion_counts
    x: prediction
    y: truth
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's address, of a project with the plots of this one."""
    folder = tmp_path_factory.mktemp("plots") / "project"
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    for name in ("config", "plots.html"):
        shutil.copy2(ROOT / ".dvc" / name, folder / ".dvc" / name)
    (folder / "dvc.yaml").write_text(DVC)
    curve = [(step, 1 / step) for step in range(1, 9)]
    write_table(folder / "metrics/train_loss.csv", ["step", "train_loss"], curve)
    write_table(folder / "metrics/validation_loss.csv", ["step", "validation_loss"], curve)
    pairs = [(truth, prediction, 1) for truth in HOSTILE for prediction in HOSTILE]
    write_table(folder / "metrics/confusions.csv", ["truth", "prediction", "count"], pairs)
    for command in (["git", "init", "--quiet"], ["dvc", "plots", "show", "--quiet"]):
        subprocess.run(command, cwd=folder, env=clean_environment(), check=True, capture_output=True)
    return (folder / "dvc_plots/index.html").as_uri()


def test_tokens_are_drawn_and_never_run_and_nothing_complains(browser: Browser, page: str) -> None:
    browser.get_log("browser")
    browser.get(page)
    browser.implicitly_wait(10)
    charts = browser.find_elements(By.CSS_SELECTOR, "main .vega-embed > .chart-wrapper")
    browser.implicitly_wait(0)
    assert len(charts) == 3
    assert browser.title == "Plots"
    assert browser.find_elements(By.CSS_SELECTOR, "main b, main img") == []
    assert browser.get_log("browser") == []
