"""Make the pictures of docs/images/ anew, in a temporary copy of the project: `python -m docs.screenshots`.

Needs what `make test` installs, Chromium and chromedriver. Takes ten minutes.
"""

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from rich.console import Console
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.project import ROOT, clean_environment, clone

IMAGES = ROOT / "docs/images"
PORT = 5057
SITE = f"http://127.0.0.1:{PORT}/#"
SECONDS = 60
EXPERIMENTS = {"shorter": "train.max_steps=1000", "wider": "model.d_model=96", "slower": "train.learning_rate=0.001"}
SWEEP = "train.learning_rate=0.016,0.008,0.002,0.0005"
COLOURS = 128
TERMINAL_WIDTH = 120


def main() -> None:
    """Train three experiments and a sweep in a copy, and photograph every page that the docs show."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "prompt-pipeline"
        clone(project)
        run(project, "python", "-m", "presets.use", "addition")  # it holds rows out, and makes mistakes worth a look
        run(project, "dvc", "repro", "--quiet")
        run(project, "dvc", "add", "--quiet", "data/addition.csv")
        run(project, "git", "add", "data/addition.csv.dvc")
        run(project, "git", "commit", "--quiet", "--all", "--message", "Learn to add")
        for name, change in EXPERIMENTS.items():
            run(project, "dvc", "exp", "run", "--quiet", "--name", name, "--set-param", change)
        run(project, "dvc", "plots", "diff", "main", "wider", "slower")
        said = verdict_in_colours(project, "main", "shorter")
        server = subprocess.Popen(
            [sys.executable, "-m", "stages.commands.ui", "--port", str(PORT)],
            cwd=project,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        camera = Camera(Path(temporary) / "chromium")
        try:
            pages = printed_addresses(server)
            wait_for_server()
            photograph_mlflow(camera, project, pages)
            photograph_files(camera, project)
            photograph_verdict(camera, project, said)
            sweep(project)
            photograph_sweep(camera, project)
        finally:
            camera.browser.quit()
            server.terminate()
            server.wait()


def run(project: Path, *command: str) -> None:
    """Run a command of the docs."""
    print("$", *command, flush=True)
    subprocess.run(command, cwd=project, env=clean_environment(), check=True, stdout=subprocess.DEVNULL)


def sweep(project: Path) -> None:
    """Train the values of a sweep in two workers, until all are done."""
    run(project, "dvc", "exp", "run", "--quiet", "--queue", "--set-param", SWEEP)
    run(project, "dvc", "queue", "start", "--quiet", "--jobs", "2")
    waiting = True
    while waiting:
        time.sleep(2)
        status = subprocess.run(
            ["dvc", "queue", "status"], cwd=project, env=clean_environment(), capture_output=True, text=True, check=True
        )
        waiting = "Queued" in status.stdout or "Running" in status.stdout
    if "Failed" in status.stdout:
        sys.exit(f"the sweep failed:\n{status.stdout}")


def printed_addresses(server: subprocess.Popen[str]) -> dict[str, str]:
    """Return the addresses that `make ui` prints, by what they show."""
    assert server.stdout
    lines = [server.stdout.readline().split() for _ in range(3)]
    return {line[0]: line[1] for line in lines}


def wait_for_server() -> None:
    """Return when MLflow answers."""
    for _ in range(2 * SECONDS):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health").close()
        except OSError:
            time.sleep(0.5)
        else:
            return


class Camera:
    """A headless Chromium that takes pictures of pages."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for argument in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
            # A mouse: without one each chart is covered by its toolbar.
            "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
            f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(argument)
        self.browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def open(self, address: str, *texts: str, width: int = 1200, height: int = 760, dark: bool = False) -> None:
        """Open a page and wait until it says ``texts``."""
        screen: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        self.browser.get("about:blank")
        self.browser.get(address)
        self.wait(*texts)

    def wait(self, *texts: str) -> None:
        """Wait until the page says ``texts`` and has come to rest."""
        for _ in range(2 * SECONDS):
            shown = self.browser.find_element(By.TAG_NAME, "body").text
            if all(text in shown for text in texts):
                break
            time.sleep(0.5)
        else:
            sys.exit(f"{self.browser.current_url} does not show {texts}")
        time.sleep(2)

    def make_room(self) -> None:
        """Close what stands around the runs in MLflow's pages: its assistant, its menu, its banner."""
        for label in ("Close", "Toggle sidebar", "Hide banner"):
            for button in self.browser.find_elements(By.CSS_SELECTOR, f"button[aria-label='{label}']"):
                button.click()
                time.sleep(1)

    def click(self, path: str) -> None:
        """Click all that this XPath finds."""
        for element in self.browser.find_elements(By.XPATH, path):
            element.click()
            time.sleep(1)
        # Clicking scrolls what is clicked into view.
        self.browser.execute_script("document.querySelectorAll('*').forEach(element => element.scrollTo(0, 0))")

    def take(self, name: str, height: int | None = None) -> None:
        """Keep what is on the screen, or as much of the page as ``height``, as docs/images/NAME.png."""
        clip = {"x": 0, "y": 0, "width": self.browser.execute_script("return innerWidth"), "height": height, "scale": 1}
        options: dict[str, Any] = {"format": "png"}
        if height is not None:
            options |= {"captureBeyondViewport": True, "clip": clip}
        shot = self.browser.execute_cdp_cmd("Page.captureScreenshot", options)
        image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        IMAGES.mkdir(parents=True, exist_ok=True)
        path = IMAGES / f"{name}.png"
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB", flush=True)


def photograph_mlflow(camera: Camera, project: Path, pages: dict[str, str]) -> None:
    """Take the list of runs, their curves, the compare page and one run."""
    camera.open(pages["runs"], *EXPERIMENTS, width=1300)
    camera.make_room()
    camera.take("mlflow-runs", 460)
    camera.open(pages["curves"], "Losses", *EXPERIMENTS, height=800)
    camera.make_room()
    camera.take("mlflow-charts")
    runs = newest_runs(project, 3)
    camera.open(compare_page(runs), "Comparing 3 Runs", height=1700)
    camera.make_room()
    camera.click("//button[contains(@aria-label, 'Show diff only')]")
    camera.take("mlflow-compare")
    camera.open(f"{SITE}/experiments/1/runs/{runs[1].info.run_id}", "Results on", width=1300, height=1300)
    camera.make_room()
    camera.click("//button[.='Show more']")
    camera.take("mlflow-run")


def photograph_sweep(camera: Camera, project: Path) -> None:
    """Take the sweep's runs as lines from the learning rate to the losses and scores."""
    camera.open(compare_page(newest_runs(project, 4)), "Comparing 4 Runs", height=900)
    camera.make_room()
    camera.click("(//input[@role='combobox'])[last()]")
    camera.browser.switch_to.active_element.send_keys("completion_exact_match", Keys.ENTER, Keys.ESCAPE)
    camera.wait()
    camera.take("sweep")


def newest_runs(project: Path, count: int) -> list[Run]:
    """Return the runs that began last."""
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    return list(client.search_runs(["1"], order_by=["attributes.start_time DESC"], max_results=count))


def compare_page(runs: list[Run]) -> str:
    """Return the address of the page that opens after ticking runs and pressing Compare."""
    query = {"runs": json.dumps([run.info.run_id for run in runs]), "experiments": '["1"]'}
    return f"{SITE}/compare-runs?{urllib.parse.urlencode(query)}"


def photograph_files(camera: Camera, project: Path) -> None:
    """Take the report, light and dark, and DVC's plots."""
    report = (project / "metrics/report.html").as_uri()
    camera.open(report, "Read along")
    camera.browser.execute_script("document.querySelectorAll('#tokens button')[3].focus()")
    camera.take("report", 1050)
    camera.open(report, "Read along", width=360, height=740, dark=True)
    camera.browser.execute_script("document.querySelectorAll('#tokens button')[3].focus()")
    camera.take("report-phone", 1200)
    camera.open((project / "dvc_plots/index.html").as_uri(), "Plots", height=1330)
    camera.take("plots")


def verdict_in_colours(project: Path, a: str, b: str) -> str:
    """Return what a verdict prints in a terminal, with its colours; metrics/verdict.html is then that page."""
    command = [sys.executable, "-m", "stages.commands.verdict", a, b]
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(TERMINAL_WIDTH)}
    print("$", *command, flush=True)
    done = subprocess.run(
        command, cwd=project, env=clean_environment() | colours, check=True, capture_output=True, text=True
    )
    return done.stdout


def photograph_verdict(camera: Camera, project: Path, said: str) -> None:
    """Take a verdict in the terminal and as a page."""
    console = Console(width=TERMINAL_WIDTH, record=True, file=io.StringIO())
    console.print(Text.from_ansi(said))
    terminal = project / "verdict-terminal.html"
    terminal.write_text(console.export_html(), encoding="utf-8")
    camera.open(terminal.as_uri(), "figure")
    camera.take("verdict-terminal", 20 * said.count("\n") + 20)
    camera.open((project / "metrics/verdict.html").as_uri(), "Figures")
    camera.take("verdict", 900)


if __name__ == "__main__":
    main()
