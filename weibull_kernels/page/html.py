"""The page itself: markup around the numbers and figures of the runs."""

from __future__ import annotations

import json
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .. import __version__
from .facts import facts, groups_table, runs_table, tensors_table
from .panels import Panel, comparison_panels, run_panels
from .runs import Run
from .theme import templates


def page_of(runs: list[Run], title: str | None = None) -> str:
    """The whole page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("weibull_kernels.page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=title or f"Forces of {' and '.join(run.name for run in runs)}",
        version=__version__,
        comparison=_comparison(runs) if len(runs) > 1 else None,
        runs=[_section(run) for run in runs],
        themes=as_json(templates()),
        plotly=Markup(get_plotlyjs()),
    )


def _comparison(runs: list[Run]) -> dict[str, Any]:
    label = next(
        (label for label in runs[0].groups if all(label in run.groups for run in runs)), "all weights"
    )
    return {
        "label": label,
        "table": runs_table(runs, label),
        "panels": [_panel(panel) for panel in comparison_panels(runs)],
    }


def _section(run: Run) -> dict[str, Any]:
    described = run.metadata
    settings = described.pop("run", {})
    return {
        "name": run.name,
        "facts": facts(run),
        "settings": {key: _as_text(value) for key, value in settings.items()},
        "metadata": {key.replace("_", " "): _as_text(value) for key, value in described.items()},
        "groups": groups_table(run),
        "panels": [_panel(panel) for panel in run_panels(run)],
        "tensors": tensors_table(run),
    }


def _panel(panel: Panel) -> dict[str, Any]:
    """With its figures as JSON, by the positions of the options chosen: names are anyone's."""
    places = [{value: i for i, (value, _) in enumerate(options)} for options in panel.choices.values()]
    figures = {
        ",".join(str(place[value]) for place, value in zip(places, key, strict=True)): figure
        for key, figure in panel.figures.items()
        if figure is not None
    }
    first = next(iter(figures.values()), None)
    return {
        "title": panel.title,
        "shows": panel.shows,
        "caption": panel.caption,
        "choices": {choice: [text for _, text in options] for choice, options in panel.choices.items()},
        "height": None if first is None else first.layout.height,
        "figures": as_json({key: figure.to_dict() for key, figure in figures.items()}),
    }


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_json(value: Any) -> Markup:
    """JSON that can stand inside a script element, whatever the names in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
