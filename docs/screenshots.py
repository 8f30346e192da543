"""Make the pictures of docs/images/ anew, in a temporary copy of the project: `python -m docs.screenshots`.

Needs what `make test` installs, Chromium and chromedriver. Takes some minutes.
"""

import base64
import io
import json
import os
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
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
PORT = 5057
SECONDS = 60
EXPERIMENTS = {"wider": "model.d_model=4", "two-heads": "model.n_heads=2", "slower": "train.learning_rate=0.03"}
COLOURS = 128


def main() -> None:
    """Train three experiments in a copy, and photograph every page that the docs show."""
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "prompt-pipeline"
        copy_project(project)
        run(project, "dvc", "repro", "--quiet")
        run(project, "git", "add", "--all")
        run(project, "git", "commit", "--quiet", "--allow-empty", "--message", "Train the toy")
        for name, change in EXPERIMENTS.items():
            run(project, "dvc", "exp", "run", "--quiet", "--name", name, "--set-param", change)
        run(project, "dvc", "plots", "diff", "main", "wider", "slower")
        server = subprocess.Popen(
            [sys.executable, "-m", "stages.ui", "--port", str(PORT)],
            cwd=project,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        camera = Camera(Path(temporary) / "chromium")
        try:
            wait_for_server()
            photograph_mlflow(camera, project)
            photograph_files(camera, project)
        finally:
            camera.browser.quit()
            server.terminate()
            server.wait()


def copy_project(project: Path) -> None:
    """Copy every file that git knows into a repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, project / name)
    run(project, "git", "init", "--quiet", "--initial-branch=main")
    run(project, "git", "config", "user.name", "Student")
    run(project, "git", "config", "user.email", "student@example.com")
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", "Start")


def environment() -> dict[str, str]:
    """Return a new user's environment, with this Python first in PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"DVC_NO_ANALYTICS": "true"}


def run(project: Path, *command: str) -> None:
    """Run a command of the docs."""
    print("$", *command, flush=True)
    subprocess.run(command, cwd=project, env=environment(), check=True, stdout=subprocess.DEVNULL)


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

    def close_assistant(self) -> None:
        """Close the panel that MLflow opens at the right of its pages."""
        for button in self.browser.find_elements(By.CSS_SELECTOR, "button[aria-label*='lose']"):
            if button.is_displayed():
                button.click()
                time.sleep(1)
                return

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


def photograph_mlflow(camera: Camera, project: Path) -> None:
    """Take the list of runs, their curves, the compare page and one run."""
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    site = f"http://127.0.0.1:{PORT}/#"
    camera.open(f"{site}/experiments/1/runs", *EXPERIMENTS)
    camera.close_assistant()
    camera.take("mlflow-runs")
    camera.open(f"{site}/experiments/1/runs?compareRunsMode=CHART", "learning_rate", *EXPERIMENTS, height=1100)
    camera.close_assistant()
    camera.take("mlflow-charts")
    query = urllib.parse.urlencode({"runs": json.dumps([run.info.run_id for run in runs]), "experiments": '["1"]'})
    camera.open(f"{site}/compare-runs?{query}", "Comparing", height=900)
    camera.close_assistant()
    camera.take("mlflow-compare")
    newest = next(run for run in runs if run.info.run_name.startswith("wider"))
    camera.open(f"{site}/experiments/1/runs/{newest.info.run_id}", "Results on", height=900)
    camera.close_assistant()
    camera.take("mlflow-run")


def photograph_files(camera: Camera, project: Path) -> None:
    """Take the report, light and dark, and DVC's plots."""
    report = (project / "metrics/report.html").as_uri()
    camera.open(report, "Read along")
    camera.browser.execute_script("document.querySelectorAll('#tokens button')[3].focus()")
    camera.take("report", 1000)
    camera.open(report, "Read along", width=360, height=740, dark=True)
    camera.browser.execute_script("document.querySelectorAll('#tokens button')[3].focus()")
    camera.take("report-phone", 1200)
    camera.open((project / "dvc_plots/index.html").as_uri(), "Plots", height=900)
    camera.take("plots")


if __name__ == "__main__":
    main()
