"""The report page in headless Chromium, as a reader has it. `make browser` installs Chromium."""

import os
import re
import shutil
import time

import pytest
from support.harness import DIGITS, finish_run, small_config
from support.page_runs import write_hostile_run, write_runs
from support.patience import PATIENCE

from experiments.plans.sweeps import expand
from experiments.reports.page import SECTIONS_OF_A_SWEEP, write_page
from experiments.results import committed
from experiments.results.sweeps import read_sweep
from experiments.results.tables import read_results

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
DRAWN = "[...document.querySelectorAll('.plot')].filter(plot => plot.dataset.drawn).length"
COLORS = """() => {
    const style = element => getComputedStyle(element);
    return [style(document.body).backgroundColor, style(document.body).color,
            style(document.querySelector('.plot .xtitle')).fill];
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = f"no Chromium ({', '.join(NAMES)}) on the PATH: run `make browser`"
        # CI is to notice; a person without one still gets the other tests.
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root)
    return write_page(read_results(root), root / "report.html")


@pytest.fixture
def visit(browser):
    """Open a page in a new window; fails at the end on anything that went wrong in it."""
    contexts, wrong = [], []

    def visit(path, **options):
        context = browser.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        requests: list[str] = []
        page.goto(path.as_uri())
        assert requests == [path.as_uri()]
        page.requests = requests
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def until(page, expression):
    """Wait for an expression; playwright's own way needs eval, which the page forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(50)


def read_through(page):
    """Open and scroll to the end like a reader, so that all plots are drawn."""
    folded = page.locator("section > details:not([open]) > summary")
    while folded.count():
        folded.first.click()
    total = page.locator(".plot").count()
    for place in range(total):
        page.locator(".plot").nth(place).scroll_into_view_if_needed()
    until(page, f"{DRAWN} === {total}")
    assert len(page.requests) == 1, "nothing is loaded later either"


def channels(color):
    return [int(part) for part in re.findall(r"\d+", color)[:3]]


def contrast(one, other):
    """The contrast of two colors by WCAG 2.2: 4.5 is enough for text."""

    def luminance(color):
        parts = [value / 255 for value in channels(color)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_all_plots_are_drawn_and_name_their_axes(visit, report):
    page = visit(report)
    read_through(page)
    for plot in page.locator(".plot").all():
        text = plot.inner_text()
        if {"sgd", "adam", "adahessian"} <= set(text.split()):
            continue  # a plot of groups: its heading says what is measured
        axes = ("epoch", "block size", "time", "gradients evaluated")
        assert any(axis in text for axis in axes), text
    drawn = " ".join(page.locator(".plot").all_inner_texts())
    for title in ("test accuracy (%)", "training loss", "trace (loss / parameter²)", "negative"):
        assert title in drawn


@pytest.mark.parametrize("values", ["[0.1, 0.01]", "[0.1, 0.01], batch_size: [32, 64]"])
def test_a_sweep_is_drawn_over_its_keys(values, visit, tmp_path):
    """One key as lines, two as heat maps; the last combination was never begun."""
    path = tmp_path / "rates.yaml"
    grid = f"grid: {{optimizer: [sgd, adam], optimizer.lr: {values}}}"
    path.write_text(f"config: {DIGITS}\nset: {{model.depth: 8}}\n{grid}\n")
    for run in expand(path)[:-1]:
        finish_run(tmp_path, run.config, [0.5])
    written = write_page(read_sweep(path, tmp_path), tmp_path / "report.html", SECTIONS_OF_A_SWEEP)
    page = visit(written, **PHONE)
    read_through(page)
    drawn = " ".join(page.locator("#sweep-rates .plot").all_inner_texts())
    assert "lr" in drawn and "0.01" in drawn
    assert ("1 new" in drawn and "★ 50.00" in drawn) == ("batch_size" in values)
    assert page.get_by_text("1 of").is_visible(), "how many runs are missing"


def test_plots_wait_until_they_are_near(visit, report):
    page = visit(report, **PHONE)
    page.locator(".plot").first.scroll_into_view_if_needed()
    until(page, f"{DRAWN} > 0")
    page.wait_for_timeout(300)
    assert page.evaluate(DRAWN) < page.locator(".plot").count() / 2
    read_through(page)


def test_the_verdict_is_on_the_first_screen(visit, report):
    page = visit(report, **PHONE)
    verdict = page.get_by_text("has the best mean last-epoch test accuracy")
    assert verdict.bounding_box()["y"] < 400
    page.get_by_role("link", name="Runs").first.click()
    assert page.evaluate("location.hash") == "#runs"


UNDER_WAY = "sgd, seed 7 (killed)"  # a run that is not done has a row of its own, and a line


def column(table, number):
    cells = table.locator("tbody tr").all()
    return [row.locator("th, td").nth(number).inner_text() for row in cells]


def test_tables_sort_by_click_and_by_key(visit, report):
    page = visit(report)
    table = page.get_by_role("table", name="Test accuracy: mean ± sample standard deviation")
    assert column(table, 0) == ["sgd", "adam", "adahessian", UNDER_WAY]
    heading = table.get_by_role("columnheader", name="last epoch")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [name for name in column(table, 0) if name != UNDER_WAY] == ["adam", "sgd", "adahessian"]
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [name for name in column(table, 0) if name != UNDER_WAY] == ["adahessian", "sgd", "adam"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert column(table, 0) == ["adahessian", "adam", "sgd", UNDER_WAY], "by name"
    assert table.locator("[aria-sort]").count() == 1


def visible(page):
    """Names of the lines of the first plot that are shown, and its limits."""
    return page.evaluate(
        """() => {
            const plot = document.querySelector('.plot');
            const lines = plot.data.filter(trace => trace.mode && trace.mode.includes('lines'));
            return [lines.filter(line => line.visible !== false).map(line => line.name),
                    plot.layout.yaxis.range];
        }"""
    )


def test_the_table_is_the_legend_of_its_plots(visit, report):
    page = visit(report)
    until(page, f"{DRAWN} > 0")
    names, limits = visible(page)
    assert names == ["sgd", "adam", "adahessian", UNDER_WAY]
    page.get_by_label("Show sgd in the plots").first.uncheck()
    names, narrower = visible(page)
    assert names == ["adam", "adahessian", UNDER_WAY] and narrower != limits
    page.get_by_label("Show sgd in the plots").first.check()
    assert visible(page) == [["sgd", "adam", "adahessian", UNDER_WAY], limits]


def test_rows_are_filtered_and_curves_smoothed(visit, tmp_path):
    values = [0.2, 0.8] * 4
    for rate in range(1, 11):
        finish_run(tmp_path, small_config(f"optimizers.sgd.lr={rate}"), values)
    page = visit(write_page(read_results(tmp_path), tmp_path / "report.html"))
    until(page, f"{DRAWN} > 0")
    page.get_by_role("searchbox").fill("lr=7")
    assert visible(page)[0] == ["sgd lr=7.0"]
    assert page.locator("tbody tr:visible").filter(has_text="lr=").count() == 1
    spread = "(() => { const y = document.querySelector('.plot').data.find(t => t.visible).y;"
    spread += " return Math.max(...y) - Math.min(...y); })()"
    rough = page.evaluate(spread)
    page.get_by_label("Smooth the curves below").select_option("5")
    assert page.evaluate(spread) < rough / 2
    page.get_by_label("Smooth the curves below").select_option("1")
    assert page.evaluate(spread) == rough


def test_a_link_opens_a_folded_section(visit, report):
    page = visit(report)
    heading = page.get_by_role("heading", name="Runs")
    heading.click()
    assert not page.locator("#runs details").first.evaluate("element => element.open")
    for _ in range(2):  # the second time, the address stays as it is
        page.get_by_role("link", name="Runs").first.click()
        until(page, "document.querySelector('#runs details').open")
        heading.click()
        until(page, "!document.querySelector('#runs details').open")


def test_all_committed_results_are_a_page_that_one_can_read_and_send(visit, tmp_path):
    results = read_results(tmp_path, more=committed.read(committed.FOLDER, tmp_path).values())
    path = write_page(results, tmp_path / "report.html")
    assert path.stat().st_size < 6e6
    page = visit(path)
    assert page.evaluate("document.documentElement.scrollHeight") < 10_000
    read_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_paper_shows_what_is_folded_and_what_the_screen_has_not_reached(visit, report):
    page = visit(report, viewport={"width": 1280, "height": 100})
    page.get_by_role("heading", name="Runs").click()
    until(page, "window.Plotly !== undefined")
    # A browser prints as soon as this has returned: nothing may be left for later.
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('section > details:not([open])').length") == 0
    assert page.evaluate("document.querySelectorAll('.plot:not(:has(svg))').length") == 0


def test_numbers_sort_as_numbers_and_what_is_missing_comes_last(visit, tmp_path):
    for optimizer, seconds in (("sgd", 0.009), ("adam", 0.1), ("adamw", 0.02)):
        finish_run(tmp_path, small_config(optimizer=optimizer), [0.5], seconds)
    bare = finish_run(tmp_path, small_config(optimizer="adahessian"), [0.5])
    bare.metrics_path.write_text('{"epoch": 1, "test/accuracy": 0.5}\n')
    page = visit(write_page(read_results(tmp_path), tmp_path / "report.html"))
    table = page.get_by_role("table", name="Test accuracy")
    button = table.get_by_role("button", name="step, ms")
    button.click()
    assert column(table, 0) == ["sgd", "adamw", "adam", "adahessian"]
    button.click()
    assert column(table, 0) == ["adam", "adamw", "sgd", "adahessian"]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(width, visit, report):
    page = visit(report, viewport={"width": width, "height": 740})
    read_through(page)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    right = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.plot svg.main-svg')]"
        ".map(plot => plot.getBoundingClientRect().right))"
    )
    assert right <= width


def test_on_a_phone_no_words_of_a_plot_are_cut_off(visit, tmp_path):
    """Long names leave little room for the axis below them."""
    for every in (1, 2, 3):
        changed = f"optimizers.adahessian.after_epochs={{5: {{update_interval: {every}}}}}"
        for seed in (1, 2, 3):
            config = small_config(changed, "epochs=8", optimizer="adahessian", seed=seed)
            finish_run(tmp_path, config, [0.5, 0.6 + seed / 10])
    page = visit(write_page(read_results(tmp_path), tmp_path / "report.html"), **PHONE)
    read_through(page)
    cut = page.evaluate(
        "[...document.querySelectorAll('.plot')].flatMap(plot => [...plot.querySelectorAll('text')]"
        ".filter(text => { const box = text.getBoundingClientRect(), "
        "all = plot.getBoundingClientRect();"
        "return box.width && (box.right > all.right + 1 || box.left < all.left - 1) })"
        ".map(text => text.textContent))"
    )
    assert cut == []


def test_plots_follow_the_width_of_the_window(visit, report):
    page = visit(report, viewport={"width": 800, "height": 740})
    read_through(page)
    width = "document.querySelector('.plot svg.main-svg').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.set_viewport_size({"width": 360, "height": 740})
    until(page, f"{width} < 330")
    assert before > 330
    size = "getComputedStyle(document.querySelector('.plot .xtitle')).fontSize"
    assert float(page.evaluate(size).removesuffix("px")) >= 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_can_be_read(scheme, visit, report):
    page = visit(report, color_scheme=scheme)
    read_through(page)
    background, text, plot = page.evaluate(COLORS)
    assert (sum(channels(background)) < 200) == (scheme == "dark")
    assert contrast(background, text) > 10 and contrast(background, plot) > 10
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p class=warning>!</p>')")
    for name in ("note", "warning"):
        color = page.evaluate(f"getComputedStyle(document.querySelector('.{name}')).color")
        assert contrast(background, color) > 4.5, name


def test_plots_change_with_the_scheme(visit, report):
    page = visit(report, color_scheme="light")
    read_through(page)
    page.emulate_media(color_scheme="dark")
    until(
        page,
        "getComputedStyle(document.querySelector('.plot .xtitle')).fill === "
        "getComputedStyle(document.body).color",
    )
    background, _, plot = page.evaluate(COLORS)
    assert contrast(background, plot) > 10


def test_without_scripts_the_tables_can_be_read(visit, report):
    page = visit(report, java_script_enabled=False)
    assert page.get_by_role("cell", name="97.00 ± 1.00 %").first.is_visible()


def test_markup_from_files_does_nothing(visit, tmp_path):
    write_hostile_run(tmp_path)
    page = visit(write_page(read_results(tmp_path), tmp_path / "report.html"))
    read_through(page)
    assert page.locator("img").count() == 0
    assert page.get_by_text("onerror=alert(1)").count() >= 8


def test_two_hundred_runs(visit, tmp_path):
    """A sweep of 50 settings with four seeds: written within seconds, drawn, and sorted."""
    for place in range(50):
        for seed in (1, 2, 3, 4):
            config = small_config(f"optimizers.sgd.lr={0.01 * (place + 1):.2f}", seed=seed)
            accuracies = [0.5 + place / 200 + epoch / 500 + seed / 1000 for epoch in range(12)]
            finish_run(tmp_path, config, accuracies)
    start = time.perf_counter()
    path = write_page(read_results(tmp_path), tmp_path / "report.html")
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s for 200 runs, {path.stat().st_size / 1e6:.1f} MB")
    assert seconds < 60
    page = visit(path, **PHONE)
    read_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    folded = page.get_by_text(re.compile("All runs.*200 rows"))
    folded.click()
    assert page.locator("details details tbody tr").count() == 200
