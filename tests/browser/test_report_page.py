"""The report as a person uses it: by keyboard, on a phone, in the dark, without a network."""

from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from stages.report.page import render
from tests.browser.conftest import Browser
from tests.report.conftest import METRICS, make_content


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(make_content(), METRICS), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def report(browser: Browser, address: str) -> Browser:
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(address)
    return browser


def said(report: Browser) -> str:
    return report.find_element(By.ID, "said").text


def press(report: Browser, *keys: str) -> None:
    ActionChains(report).send_keys(*keys).perform()


@pytest.mark.parametrize("completions_only", [False, True])
def test_it_opens_on_the_first_token_that_was_taught(browser: Browser, tmp_path: Path, completions_only: bool) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(make_content(completions_only=completions_only), METRICS), encoding="utf-8")
    browser.get(path.as_uri())
    for row in ("0", "1", "0"):
        Select(browser.find_element(By.ID, "text")).select_by_value(row)
        browser.execute_script("document.getElementById('text').dispatchEvent(new Event('change'))")
        assert "not taught" not in said(browser)
        following = browser.find_elements(By.CSS_SELECTOR, "#tokens [aria-current] + .completion")
        assert bool(following) == completions_only


def test_a_person_steps_by_keyboard(report: Browser) -> None:
    report.find_element(By.CSS_SELECTOR, "#tokens button").send_keys("")
    assert "“what”" in said(report)
    press(report, Keys.ARROW_RIGHT)
    assert "“is”" in said(report)
    assert report.switch_to.active_element.get_attribute("aria-label") == "token 2: is, " + looked(report, 1)
    press(report, Keys.END)
    assert "“Great”" in said(report)
    press(report, Keys.ARROW_RIGHT)
    assert "“Great”" in said(report)
    press(report, Keys.HOME)
    assert "“what”" in said(report)
    press(report, Keys.TAB, Keys.ENTER)  # Back is disabled at the first token: this is Next
    assert "“is”" in said(report)


def looked(report: Browser, place: int) -> str:
    share = report.find_elements(By.CSS_SELECTOR, "#tokens small")[place].text.removesuffix(" %")
    return f"looked at with {share} per cent, not what the model expected"


def test_pointing_at_a_token_shows_what_it_attends_to_and_what_is_expected(report: Browser) -> None:
    ActionChains(report).move_to_element(report.find_elements(By.CSS_SELECTOR, "#tokens button")[2]).perform()
    assert "“CNN”" in said(report)
    shares = [share.text for share in report.find_elements(By.CSS_SELECTOR, "#tokens small")]
    assert all(share.endswith("%") for share in shares[:3])
    assert not any(shares[3:])
    assert len(report.find_elements(By.CSS_SELECTOR, "#likely li")) == 8
    assert len(report.find_elements(By.CSS_SELECTOR, "#map tbody tr.current")) == 1


def test_another_head_looks_elsewhere(report: Browser) -> None:
    def weights() -> list[str]:
        return [cell.text for cell in report.find_elements(By.CSS_SELECTOR, "#map td")]

    first = weights()
    Select(report.find_element(By.ID, "head")).select_by_visible_text("2")
    assert weights() != first


def test_a_script_in_a_prompt_stays_text(report: Browser) -> None:
    Select(report.find_element(By.ID, "text")).select_by_index(1)
    assert "<script>" in report.find_element(By.ID, "tokens").text
    assert report.title == "What the model does"
    assert len(report.find_elements(By.TAG_NAME, "script")) == 2


def test_where_the_model_was_wrong_leads_there(report: Browser) -> None:
    wrong = report.find_elements(By.CSS_SELECTOR, "#wrong button")
    wrong[2].click()
    assert report.find_element(By.ID, "place").text.startswith("token 3")
    assert "wrong" in said(report)


def test_what_was_not_taught_is_not_called_wrong(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(make_content(completions_only=True), METRICS), encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.find_elements(By.CSS_SELECTOR, "#tokens .missed.completion")
    assert not browser.find_elements(By.CSS_SELECTOR, "#tokens .missed:not(.completion)")
    browser.find_element(By.CSS_SELECTOR, "#tokens button").send_keys("")
    assert "which it was not taught: it is" in said(browser)


def test_nothing_is_loaded_and_nothing_complains(report: Browser, address: str) -> None:
    requested = [entry["message"] for entry in report.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert all(address in message for message in requested)
    assert report.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert report.get_log("browser") == []


def test_every_control_has_a_name(report: Browser) -> None:
    for control in report.find_elements(By.CSS_SELECTOR, "button, select"):
        assert control.accessible_name, control.get_attribute("outerHTML")


def test_it_fits_a_phone_and_is_dark_where_asked(report: Browser, address: str) -> None:
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    background = "return getComputedStyle(document.body).backgroundColor"
    light = report.execute_script(background)
    report.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    report.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        report.get(address)
        for index in range(3):
            Select(report.find_element(By.ID, "text")).select_by_index(index)
            assert report.execute_script("return document.documentElement.scrollWidth") <= 360
        assert light == "rgb(255, 255, 255)"
        assert report.execute_script(background) == "rgb(17, 21, 28)"
    finally:
        report.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
