"""MLflow's own pages on a run's database, in a real browser."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.shared_task.server import serve_mlflow
from yolo_distill.components.compare.comparison import Role
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.register_model.register import register
from yolo_distill.components.shared.lineage import DEFAULT_EXPERIMENT
from yolo_distill.components.shared.task import task_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1500,1000",
)

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: install chromium and chromedriver (Debian: chromium chromium-driver)"
)


class Browser:
    """A browser that waits for what a page shall say."""

    def __init__(self, driver: webdriver.Chrome, address: str, pictures: Path) -> None:
        self.driver = driver
        self._address = address
        self._pictures = pictures

    def open(self, page: str) -> None:
        self.driver.get(f"{self._address}/#/{page}")

    def shows(self, *texts: str) -> None:
        """Wait until all texts are on the page, and keep a picture of it."""
        self._wait(lambda: all(text in self.driver.find_element(By.TAG_NAME, "body").text for text in texts), texts)
        self.driver.save_screenshot(str(self._pictures / f"{texts[0].replace('/', ' ')}.png"))

    def click(self, xpath: str) -> None:
        def clicked() -> bool:
            self.driver.find_element(By.XPATH, xpath).click()
            return True

        self._wait(clicked, xpath)

    def _wait(self, done: Callable[[], bool], wanted: object) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if done():
                    return
            except (NoSuchElementException, StaleElementReferenceException):
                pass
            time.sleep(0.2)
        self.driver.save_screenshot(str(self._pictures / "missing.png"))
        pytest.fail(f"{self.driver.current_url} lacks {wanted}, see {self._pictures / 'missing.png'}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture
def browser(store: Path, tmp_path: Path, pictures: Path) -> Iterator[Browser]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for option in (*OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(option)
    with serve_mlflow(store / "mlflow.db") as address, webdriver.Chrome(options, Service(str(DRIVER))) as driver:
        yield Browser(driver, address, pictures)


def record_pipeline_run(
    models: dict[Role, Path], evaluations: dict[Role, Path], digits: DetectionDataset, output: Path
) -> str:
    """Record what the tasks of a pipeline run do, and return the experiment."""
    with task_run("distill-train", "distilled", {"epochs": 1}) as run:
        run.log_dataset(digits, "training")
        run.log_model(models["distilled"])
    with task_run("quantize", "int8") as run:
        run.log_dataset(digits, "calibration")
        run.log_model(models["quantized"])
    with task_run("register-model") as run:
        register(models["quantized"], evaluations["quantized"], digits, "student-int8", output, run)
    experiment = mlflow.get_experiment_by_name(DEFAULT_EXPERIMENT)
    assert experiment
    return str(experiment.experiment_id)


def test_parent_children_dataset_and_registered_model_are_shown(
    models: dict[Role, Path],
    evaluations: dict[Role, Path],
    digits: DetectionDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setenv("YOLO_DISTILL_PIPELINE_RUN_ID", "run-1")
    monkeypatch.setenv("YOLO_DISTILL_PIPELINE_RUN_NAME", "digits at noon")
    experiment = record_pipeline_run(models, evaluations, digits, tmp_path / "registration")
    browser: Browser = request.getfixturevalue("browser")

    browser.open(f"experiments/{experiment}/runs?workflowType=machine_learning")
    browser.shows("digits at noon")
    browser.click("//span[text()='digits at noon']/ancestor::div[@role='gridcell']//button")
    browser.shows("quantize int8", "distill-train distilled", "register-model", "digits at noon")

    browser.click("//span[text()='quantize int8']")
    browser.shows("quantize int8", "Parent run", "digits at noon", digits.digest[:36], "Calibration")
    browser.open(f"experiments/{experiment}/models?workflowType=machine_learning")
    browser.shows("plain-int8", "quantize int8")

    browser.open("models")
    browser.shows("student-int8", "Registered Models")
    browser.open("models/student-int8/versions/1")
    browser.shows("Version 1", "champion", "challenger", digits.digest, "lineage.parent")
