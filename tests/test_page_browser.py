"""The report page in a browser: drawn whole, in both themes, on a desk and on a phone, without a network."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from recorded_runs import write_run

from weibull_kernels.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

if BROWSER is None:
    # Said at the end of the run by conftest.py.
    pytest.skip(f"the report page was not tried: no {' or '.join(NAMES[:3])} here", allow_module_level=True)

SCREENS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    long = "gpt_neox.layers.2." + "a_module_with_a_long_name." * 4 + "weight"
    runs = [write_run(folder / "a.parquet"), write_run(folder / "b<i>.parquet", seed=1, names=("0.w", long))]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def opened(browser, page_file):
    """Opens the page; at the end there must have been no message, error or request but for the file."""
    contexts, wrong = [], []

    def open_page(width=1280, theme="light"):
        phone = width < 600
        context = browser.new_context(
            viewport={"width": width, "height": 850},
            color_scheme=theme,
            is_mobile=phone,
            has_touch=phone,
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url)
            ),
        )
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def plots(page):
    """Every figure, once it is drawn: they are when one scrolls near."""
    found = page.query_selector_all(".plot")
    for plot in found:
        plot.scroll_into_view_if_needed()
        plot.wait_for_selector(".main-svg .xtick text, .main-svg .xaxislayer-above text")
    return found


def luminance(colour):
    """Of rgb(…), from 0 to 255."""
    numbers = colour[colour.index("(") + 1 : -1].split(",")
    return sum(map(float, numbers[:3])) / 3


@pytest.mark.parametrize(("width", "theme"), SCREENS)
def test_every_figure_is_drawn_and_the_page_is_not_wider_than_the_screen(opened, width, theme):
    page = opened(width, theme)
    found = plots(page)
    assert len(found) == 3 + 5 + 5
    for plot in found:
        titles = plot.eval_on_selector_all(
            "[class*=title] text, text[class*=title]", "all => all.map(t => t.textContent)"
        )
        assert any(titles), plot.get_attribute("aria-label")
        box = plot.query_selector(".main-svg").bounding_box()
        assert box["width"] <= width
        marks = plot.eval_on_selector_all(
            ".scatterlayer path, .scatterlayer .point, .heatmaplayer image", "all => all.length"
        )
        assert marks > 0, plot.get_attribute("aria-label")
        ink = plot.eval_on_selector(
            ".xtick text, .xaxislayer-above text", "text => getComputedStyle(text).fill"
        )
        assert (luminance(ink) > 128) == (theme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.body.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 128) == (theme == "dark")


def test_the_figures_follow_the_theme(opened):
    page = opened()
    plots(page)
    button = page.locator("#theme")

    text = page.locator(".plot .xtick text").first
    expect(text).to_have_css("fill", "rgb(31, 35, 40)")
    button.click()
    assert button.text_content() == "theme: light"
    button.press("Enter")
    assert button.text_content() == "theme: dark"
    expect(text).to_have_css("fill", "rgb(227, 230, 234)")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 128
    button.click()
    assert button.text_content() == "theme: as the system"
    page.emulate_media(color_scheme="dark")
    expect(text).to_have_css("fill", "rgb(227, 230, 234)")


def test_no_button_sends_anything_anywhere(opened):
    page = opened()
    plots(page)
    buttons = page.locator(".plot").first.locator(".modebar-btn")
    titles = buttons.evaluate_all("all => all.map(button => button.dataset.title)")
    assert len(titles) == 6
    assert not [title for title in titles if "share" in title.lower() or "cloud" in title.lower()]
    with page.expect_download() as download:
        buttons.first.click()
    assert download.value.suggested_filename.endswith(".png")


def test_choosing_draws_another_figure(opened):
    page = opened()
    plots(page)
    panel = page.locator("#run-1 .panel").first

    def drawn():
        return panel.locator(".plot").evaluate("plot => plot.querySelector('.js-line').getAttribute('d')")

    before = drawn()
    panel.locator("select").select_option("embedding")
    assert drawn() != before
    maps = page.locator("#run-2 .panel", has_text="Layers over the run")
    assert maps.locator(".plot .ytick text").all_text_contents() == ["0"]
    maps.locator("select").nth(0).select_option("σ over σ at the start")
    assert "×1" in maps.locator(".cbaxis").text_content()


def test_tables_sort_by_click_and_by_key_and_filter(opened):
    page = opened()
    table = page.locator("#run-1 .filtered table")

    def column(i):
        return table.locator(f"tbody tr:visible td:nth-child({i})").all_text_contents()

    names = column(1)
    heading = table.locator("th", has_text="entries")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    entries = [int(text.replace(",", "")) for text in column(3)]
    assert entries == sorted(entries, reverse=True)
    assert sorted(column(1)) == sorted(names)
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [int(text.replace(",", "")) for text in column(3)] == sorted(entries)
    rounding = table.locator("th", has_text="rounding")
    rounding.locator("button").press("Space")
    values = [
        float(text.replace("−", "-"))
        for text in column(table.locator("th").all_text_contents().index("rounding") + 1)
    ]
    assert values == sorted(values, reverse=True)
    assert heading.get_attribute("aria-sort") is None
    page.locator("#run-1 .filter").fill("LAYERS.1.")
    assert {name.split(".")[2] for name in column(1)} == {"1"}
    assert page.locator("#run-1 .count").text_content() == "3 of 7"


def test_a_wide_table_scrolls_inside_its_box_on_a_phone(opened):
    page = opened(390)
    box = page.locator("#run-1 .filtered .scroll")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    assert box.evaluate("box => { box.scrollLeft = 100; return box.scrollLeft; }") == 100
