"""What a person sees who opens `make ui`, ticks runs and presses Compare."""

import json
import sqlite3
import urllib.parse
from pathlib import Path

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait

from stages.commands.ui import COLUMNS
from tests.browser.conftest import Browser
from tests.browser.three_experiments import EXPERIMENTS

SECONDS = 90


def run_ids(store: Path) -> list[str]:
    with sqlite3.connect(store / "mlflow.db") as database:
        return [row[0] for row in database.execute("select run_uuid from runs order by start_time")]


def open_page(browser: Browser, address: str, *texts: str) -> None:
    """Open a page and wait until it says all of ``texts``."""
    browser.get("about:blank")
    browser.get(address)

    def missing(page: WebDriver) -> list[str]:
        shown = page.find_element(By.TAG_NAME, "body").text
        return [text for text in texts if text not in shown]

    try:
        WebDriverWait(browser, SECONDS).until_not(missing)
    except TimeoutException:
        pytest.fail(f"{address}: {missing(browser)} not in:\n{browser.find_element(By.TAG_NAME, 'body').text}")


@pytest.fixture
def experiment(server: str) -> str:
    return f"{server}/#/experiments/1/runs"


def printed(store: Path, name: str) -> str:
    """The address of a page as `make ui` prints it."""
    lines = (store / "server.log").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.split()[:1] == [name])


@pytest.mark.usefixtures("server")
def test_the_list_of_runs_shows_their_scores(browser: Browser, store: Path) -> None:
    open_page(browser, printed(store, "runs"), *EXPERIMENTS, "next_token_accuracy", "0.97")
    headers = browser.find_elements(By.CSS_SELECTOR, "[role=columnheader]")
    shown = {header.get_attribute("col-id") for header in headers}
    # A score that no run has gets no column.
    assert set(COLUMNS) - shown == {"metrics.`completion_exact_match`"}


@pytest.mark.usefixtures("server")
def test_training_and_validation_loss_share_one_chart_over_steps(browser: Browser, store: Path) -> None:
    lines = [
        f"{name} ({loss})"
        for name in ("baseline", "faster train.learning_rate=0.3")
        for loss in ("train_loss", "validation_loss")
    ]
    open_page(browser, printed(store, "curves"), "Losses\n(1)", "train_loss vs validation_loss", "Step", *lines)
    text = browser.find_element(By.TAG_NAME, "body").text
    # The others are those of loss, next_token_accuracy and rows.
    assert "Model metrics\n(3)" in text


def test_the_experiment_page_names_each_run_by_what_changed(browser: Browser, experiment: str) -> None:
    open_page(browser, experiment, "baseline", "faster train.learning_rate=0.3", "slower train.learning_rate=0.03")


def test_the_curves_of_all_runs_are_charts(browser: Browser, experiment: str) -> None:
    open_page(browser, f"{experiment}?compareRunsMode=CHART", "train_loss", "validation_loss", *EXPERIMENTS)
    WebDriverWait(browser, SECONDS).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".js-plotly-plot svg"))


def test_the_compare_page_shows_names_parameters_and_a_chart(browser: Browser, server: str, store: Path) -> None:
    query = urllib.parse.urlencode({"runs": json.dumps(run_ids(store)), "experiments": '["1"]'})
    names = ["baseline", "faster train.learning_rate=0.3", "slower train.learning_rate=0.03"]
    open_page(browser, f"{server}/#/compare-runs?{query}", "Comparing 3 Runs", *names, "train.learning_rate", "0.03")
    WebDriverWait(browser, SECONDS).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".js-plotly-plot svg"))


@pytest.mark.usefixtures("server")
def test_a_run_opens_under_training_not_among_pages_of_genai(browser: Browser, store: Path) -> None:
    open_page(browser, printed(store, "runs"), "faster")
    browser.find_element(By.PARTIAL_LINK_TEXT, "faster").click()
    WebDriverWait(browser, SECONDS).until(lambda page: "Results on 10 test rows" in page.page_source)
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "Runs\nModels" in text
    assert "Judges" not in text


def test_the_answers_of_several_runs_are_side_by_side(browser: Browser, experiment: str) -> None:
    """As a table of what was asked; which column is compared, a person chooses: here it is ``expected``."""
    query = "workflowType=machine_learning&compareRunsMode=ARTIFACT"
    open_page(browser, f"{experiment}?{query}", "Table:\nsamples.json", "Group by:\nprompt", "2+3=")


def test_a_run_tells_its_results_and_the_way_back(browser: Browser, experiment: str, store: Path) -> None:
    open_page(browser, f"{experiment}/{run_ids(store)[1]}", "faster", "Results on 10 test rows", "next_token_accuracy")
    query = "select value from tags where key = 'mlflow.note.content' and run_uuid = ?"
    with sqlite3.connect(store / "mlflow.db") as database:
        (note,) = database.execute(query, run_ids(store)[1:2]).fetchone()
    assert "dvc exp apply faster" in note
