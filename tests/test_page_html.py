"""The report page as a file: names that are safe, nothing that it loads, and how it is written."""

import base64
import html
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from recorded_runs import run_of, write_run

import weibull_kernels as wk
from weibull_kernels.page import write_report
from weibull_kernels.page.figures import forces_figure
from weibull_kernels.page.html import as_json, page_of
from weibull_kernels.page.runs import make_run
from weibull_kernels.page.theme import log_axis, rows, symlog, symlog_axis, templates
from weibull_kernels.records import read_records


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path)


class Page(HTMLParser):
    """The elements of a page as a browser sees them: their tags, and the texts in them by tag."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._open = [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *sorted(name for name, _ in attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        self._open = self._open[: len(self._open) - self._open[::-1].index(tag) - 1]

    def handle_data(self, data):
        self.text.setdefault(self._open[-1] if self._open else "", []).append(data)


@pytest.mark.parametrize(
    "name", ['<script>alert("x")</script>', 'a&b\'s "quoted" </style>', "%{y} $x$ {{ 1 }}"]
)
def test_names_are_safe(tmp_path, name):
    def pages():
        for label in (name, "a"):
            path = write_run(
                tmp_path / f"{label == name}.parquet", names=(f"h.0.{label}", label), run={label: label}
            )
            records = read_records(path)
            yield Page(page_of([make_run(label, records), make_run("b" + label, records)], title=label))

    page, plain = pages()
    assert page.tags == plain.tags
    assert page.text["title"] == page.text["h1"] == [name]
    assert page.text["h2"] == ["Comparison of 2 runs", name, "b" + name]
    assert page.text["td"].count(name) == 3  # as a run and, in each of the two, as a tensor
    assert name in page.text["option"]
    figures = [json.loads(one) for one in page.text["script"] if one.startswith('{"0')]
    legends = {trace.get("name") for one in figures for figure in one.values() for trace in figure["data"]}
    assert html.escape(name, quote=False) in legends


def test_the_page_loads_nothing(run):
    page = page_of([run])
    without_scripts = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", without_scripts)
    assert not re.search(r"<(link|img|iframe|script\s+src)", without_scripts)
    assert "url(" not in without_scripts
    assert "default-src 'none'" in page
    assert page.count("<h1") == 1
    assert "<title>Forces of a run</title>" in page
    labels = re.findall(r'class="plot" role="img" aria-label="([^"]+)"', page)
    assert len(labels) == page.count('class="plot"') == 5
    assert len(page.encode()) < 8e6


def test_numbers_are_sent_as_four_bytes(run):
    sent = forces_figure(run.main).to_dict()["data"][1]
    y = np.frombuffer(base64.b64decode(sent["y"]["bdata"]), "<f4")
    assert sent["y"]["dtype"] == "f4"
    assert len(y) == 40


def test_json_stands_in_a_script():
    text = as_json({"a": "</script><!--\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json(float("nan"))


def test_the_symmetric_logarithm():
    assert symlog(np.array([-100.0, -1, 0, 0.5, 1, 10]), 1.0).tolist() == [-3, -1, 0, 0.5, 1, 2]
    axis = symlog_axis(0.01, 0.5)
    assert axis["tickvals"] == [-3, -2, -1, 0, 1, 2, 3]
    assert axis["ticktext"][3:] == ["0", *(f"10<sup>{power}</sup>" for power in ("−2", "−1", "0"))]


def test_both_themes_set_the_same_things():
    light, dark = templates().values()
    assert light["layout"].keys() == dark["layout"].keys()
    assert light != dark
    figure = rows([1], 300)
    log_axis(figure, 1, "nothing drawn")
    assert figure.layout.yaxis.type == "log"


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    for folder in ("x/a", "y/a", "y/b"):
        (tmp_path / folder).mkdir(parents=True)
        write_run(tmp_path / folder / "records.parquet", records=2)
    paths = [tmp_path / folder / "records.parquet" for folder in ("x/a", "y/a", "y/b")]
    page = tmp_path / "report.html"
    write_report(paths[1:], page)
    assert "Forces of a/records and b/records</title>" in page.read_text()
    write_report(paths, page, title="Three & more")
    assert "<title>Three &amp; more</title>" in page.read_text()
    assert all(f"<h2>{name}/records</h2>" in page.read_text() for name in ("x/a", "y/a", "y/b"))
    write_report({"mine": paths[0], "yours": read_records(paths[1])}, page)
    assert "Forces of mine and yours</title>" in page.read_text()
    write_report(read_records(paths[0]), str(page))
    assert "Forces of run 1</title>" in page.read_text()


def test_errors(tmp_path, monkeypatch):
    path = tmp_path / "run.parquet"
    with wk.ParquetSink(path):
        pass
    with pytest.raises(ValueError, match="has no records to show; was the sink ever written to"):
        write_report(path, tmp_path / "report.html")
    with pytest.raises(ValueError, match="there is no run to report"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"run\.parquet is given twice"):
        write_report([path, path], tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match="no records at"):
        write_report(tmp_path / "none.parquet", tmp_path / "report.html")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.delitem(sys.modules, "weibull_kernels.page.html")
    with pytest.raises(ImportError, match=r"pip install 'weibull-kernels\[report\]'"):
        write_report(path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
