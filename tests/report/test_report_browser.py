"""The report in a real browser, after its script has run."""

import re
import shutil
import subprocess

import pytest

from wsi_dbps.metrics.metrics import MetricsConfig, evaluate
from wsi_dbps.report.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")


@pytest.fixture
def dom(tmp_path, make_predictions):
    """The page's elements as the browser has them, opened at an address."""
    predictions = make_predictions(60)
    write_report(
        tmp_path / "report.html",
        predictions,
        evaluate(predictions, MetricsConfig(num_bootstrap=10)),
        title="t",
        facts={},
    )

    def opened(address=""):
        url = (tmp_path / "report.html").as_uri() + address
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        done = subprocess.run(
            [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", url],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    opened.predictions = predictions
    return opened


def rows(text):
    """(whether it is seen, its cells) of each row of the table of slides."""
    table = text.partition('id="slide-table"')[2].partition("</table>")[0].partition("<tbody>")[2]
    found = re.findall(r"<tr([^>]*)>(.*?)</tr>", table, re.S)
    return [("hidden" not in attrs, re.findall(r"<td[^>]*>([^<]*)", cells)) for attrs, cells in found]


def test_the_browser_finds_every_part_and_the_script_makes_the_table_sortable(dom):
    text = dom()
    for name in ("cohort", "metrics", "curves", "confusion", "slides"):
        assert f'<section id="{name}">' in text
    assert len(re.findall(r'<th scope="col" data-key="\w+"[^>]*><button type="button">', text)) == 9
    assert '<div id="slide-tools">' in text  # no longer hidden
    assert '<th scope="col" data-key="rank" aria-sort="ascending">' in text
    num = len(dom.predictions.slides)
    assert f">30 of {num} slides shown<" in text
    assert f">Show all {num}<" in text
    found = rows(text)
    assert [seen for seen, _ in found] == [True] * 30 + [False] * (num - 30)
    assert [int(cells[0]) for _, cells in found] == list(range(1, num + 1))


@pytest.mark.parametrize(("key", "column", "kind"), [("probability", 7, float), ("slide", 1, str)])
@pytest.mark.parametrize("way", ["ascending", "descending"])
def test_the_address_sorts_by_a_column(dom, key, column, kind, way):
    text = dom(f"#sort={key},{way}")
    values = [kind(cells[column]) for _, cells in rows(text)]
    assert len(values) == len(dom.predictions.slides)
    assert values == sorted(values, reverse=way == "descending")
    assert re.findall(r'data-key="(\w+)" aria-sort="(\w+)"', text) == [(key, way)]
