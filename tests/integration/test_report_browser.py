"""The report in headless Chromium: what data cannot do in it, what its one script does, and how it is laid out."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from suite.report import write_report
from tests.suite.fake_sweep import DEMO, fake_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

RAN = "document.documentElement.dataset.ran = 'yes'"
EVIL = f"""<script>{RAN}</script><img src="x" onerror="{RAN}"></summary></details><svg onload="{RAN}"></svg>"""


def dom(page: Path, profile: Path) -> str:
    """The document as it stands after its scripts have run."""
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--virtual-time-budget=3000", f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "</html>" in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> Path:
    points = tuple(replace(p, label=p.label + EVIL, poison=EVIL) for p in DEMO[:3])
    return write_report(fake_sweep(tmp_path_factory.mktemp("evil"), points))


def test_a_completion_with_a_script_does_not_run_and_the_pages_own_does(evil, tmp_path):
    assert evil.read_text().count("dataset.ran") > 100
    after = dom(evil, tmp_path)
    assert "data-ran" not in re.search(r"<html[^>]*>", after)[0]
    boxes = re.findall(r"<input type=\"search\"[^>]*>", after)
    assert len(boxes) == 2
    assert not any("hidden" in box for box in boxes)  # the script showed them


def test_even_unescaped_it_would_not_run(evil, tmp_path):
    """The policy's part: the page's escaping is taken away here; with the policy away too, the same script runs."""
    page = evil.read_text().replace("<main>", f"<main>{EVIL}", 1)
    raw, bare = tmp_path / "raw.html", tmp_path / "bare.html"
    raw.write_text(page)
    bare.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page))
    assert "data-ran" not in re.search(r"<html[^>]*>", dom(raw, tmp_path / "a"))[0]
    assert 'data-ran="yes"' in re.search(r"<html[^>]*>", dom(bare, tmp_path / "b"))[0]


PROBE = """
<script>
addEventListener("load", () => {
  const shown = () => [...document.querySelectorAll("#samples [data-find]")].filter((row) => !row.hidden).length;
  const box = document.querySelector("#samples input[type=search]");
  const say = (name, value) => { document.documentElement.dataset[name] = value; };
  say("all", shown());
  box.value = "thing 7 BRIEFLY"; box.dispatchEvent(new Event("input"));
  say("found", shown());
  say("open", [...document.querySelectorAll("#samples details")].filter((fold) => fold.open).length);
  box.value = ""; box.dispatchEvent(new Event("input"));
  say("again", shown());
  say("wide", document.documentElement.scrollWidth > window.innerWidth ? "yes" : "no");
});
</script></body>"""

PHONE = """<html><body></body><script>
const frame = document.createElement("iframe");
frame.style = "width: 390px; height: 800px";
frame.srcdoc = PAGE;
frame.onload = () => Object.assign(document.documentElement.dataset, frame.contentDocument.documentElement.dataset);
document.body.append(frame);
</script></html>"""


def test_searching_and_the_width_of_a_phone(tmp_path):
    page = write_report(fake_sweep(tmp_path, DEMO, n_samples=30)).read_text()
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    inner = tmp_path / "inner.html"
    inner.write_text(page.replace("</body>", PROBE))
    phone = tmp_path / "phone.html"  # a window of Chromium is not to be had this narrow, but a frame is
    phone.write_text(PHONE.replace("PAGE", json.dumps(inner.read_text()).replace("</", "<\\/")))
    found = dict(re.findall(r'data-(\w+)="(\w+)"', re.search(r"<html[^>]*>", dom(phone, tmp_path / "p"))[0]))
    # 30 samples at the two ends of two rankings; "Explain thing 7 briefly." stands once in each.
    assert found == {"all": "60", "found": "2", "open": "2", "again": "60", "wide": "no"}
