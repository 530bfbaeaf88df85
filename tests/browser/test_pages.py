"""Reports in a real browser, Debian's Chromium without a window: `python -m pytest tests/browser`.

With `SCREENSHOTS` set to a folder, what was seen is kept there.
"""

import base64
import functools
import http.server
import os
import threading
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from jax_uda import comparison, page, report, run
from tests.test_comparison import make_run
from tests.tiny import tiny

WIDTHS = (390, 1440)  # pixels of a phone and of a desk
LOOK = """
const images = [...document.images];
return {
  scroll: document.documentElement.scrollWidth,
  images: images.length, broken: images.filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
  unnamed: images.filter(image => !image.alt).length,
  wide: images.filter(image => image.getBoundingClientRect().right > arguments[0] + 1
    && !image.closest('.scroll')).map(image => image.alt),
  small: [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && one.textContent.trim()
    && !one.children.length && parseFloat(getComputedStyle(one).fontSize) < 12).map(one => one.tagName),
};
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two runs' reports and the comparison of both, which between them have every part that a page may have."""
  folder = tmp_path_factory.mktemp("pages")
  run.run(tiny("adversarial"), folder / "adversarial")
  make_run(folder / "self_training", 10, images=page.names(folder / "adversarial/pictures/image"))
  report.write_report(folder / "self_training")
  comparison.write([folder / "adversarial", folder / "self_training"], folder / "comparison.html")
  return folder


@pytest.fixture(scope="module")
def address(folder):
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module", params=WIDTHS)
def browser(request):
  options = webdriver.ChromeOptions()
  options.binary_location = "/usr/bin/chromium"
  for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
    options.add_argument(flag)
  screen = {"width": request.param, "height": 900, "pixelRatio": 1.0, "mobile": request.param < 800}
  options.add_experimental_option("mobileEmulation", {"deviceMetrics": screen})
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
  browser.width = request.param  # which the window itself gives up for what is wider
  yield browser
  browser.quit()


@pytest.mark.parametrize("path", ["adversarial/report.html", "self_training/report.html", "comparison.html"])
def test_a_page_is_whole_at_every_width(browser, address, path):
  browser.get(f"{address}/{path}")
  browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
  seen = browser.execute_script(LOOK, browser.width)
  if place := os.environ.get("SCREENSHOTS"):
    height = browser.execute_script("return document.documentElement.scrollHeight")
    area = {"x": 0, "y": 0, "width": browser.width, "height": min(height, 8000), "scale": 1}
    shot = {"captureBeyondViewport": True, "clip": area}
    png = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
    Path(place, f"{path.replace('/', '_')}_{seen['window']}.png").write_bytes(png)
  assert seen["images"] >= 5 and seen["broken"] == [] and seen["unnamed"] == 0
  assert seen["scroll"] <= browser.width and seen["wide"] == [] and seen["small"] == []
  assert browser.get_log("browser") == []


def test_what_the_checks_would_find(browser, address, folder):
  wrong = '<body><img src="none.png"><p style="width: 1500px; font-size: 6px">x'
  (folder / "wrong.html").write_text(f'<meta name="viewport" content="width=device-width, initial-scale=1">{wrong}')
  browser.get(f"{address}/wrong.html")
  seen = browser.execute_script(LOOK, browser.width)
  assert seen["broken"] == [""] and seen["unnamed"] == 1 and seen["scroll"] > browser.width and seen["small"] == ["P"]
  assert browser.get_log("browser")


def test_the_report_is_written_again_from_files_alone(folder):
  before = (folder / "adversarial/report.html").read_bytes()
  assert report.write_report(folder / "adversarial").read_bytes() == before
