"""The report: a run, or several side by side, as one page that needs nothing else to be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    import pyarrow as pa

    from .runs import Run

    Source: TypeAlias = str | os.PathLike[str] | pa.Table


def write_report(
    runs: Source | Iterable[Source] | Mapping[str, Source],
    path: str | os.PathLike[str] = "report.html",
    *,
    title: str | None = None,
) -> None:
    """Write an HTML page of one run, or of several side by side.

    The forces, σ and λ over the run, maps of the layers, rounding and closure, and a table of the
    tensors. Everything is in the one file, which makes no request to any network.

    Args:
        runs: a record file, or records from `read_records`; several of them; or a mapping from
            what they are called on the page.
        path: of the page; one that is there is replaced.
        title: of the page; names the runs by default.

    Raises:
        ImportError: plotly or jinja2 is not installed.
        FileNotFoundError: there is no such record file.
        ValueError: a file is not one of ours, a run has no records, or there is no run.

    >>> import tempfile
    >>> from weibull_kernels import ForceBudget, ParquetSink
    >>> budget = ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ParquetSink(folder + "/run.parquet") as sink:
    ...         sink.write(1, budget)
    ...     write_report(folder + "/run.parquet", folder + "/report.html")
    """
    try:
        from .html import page_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("plotly", "jinja2"):
            raise
        raise ImportError(
            f"a report needs plotly and jinja2: pip install 'weibull-kernels[report]' ({error})"
        ) from error
    text = page_of(_opened(runs), title)
    Path(path).write_text(text, encoding="utf-8")


def _opened(runs: Source | Iterable[Source] | Mapping[str, Source]) -> list[Run]:
    from ..records import read_records
    from .runs import make_run

    if isinstance(runs, Mapping):
        named = dict(runs)
    else:
        sources: list[Any] = [runs] if _is_source(runs) else [*cast("Iterable[Source]", runs)]
        named = dict(zip(_names(sources), sources, strict=True))
    if not named:
        raise ValueError("there is no run to report; give at least one record file")
    return [
        make_run(name, read_records(source) if isinstance(source, (str, os.PathLike)) else source)
        for name, source in named.items()
    ]


def _is_source(given: object) -> bool:
    import pyarrow as pa

    return isinstance(given, (str, os.PathLike, pa.Table))


def _names(sources: list[Any]) -> list[str]:
    """The last parts of each path, two and more if it takes more to tell them apart; numbers for tables."""
    paths = [
        Path(source).parts if isinstance(source, (str, os.PathLike)) else (f"run {i}",)
        for i, source in enumerate(sources, 1)
    ]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"{Path(*twice[0])} is given twice; give each run once")
    for parts in range(2, max([2, *map(len, paths)]) + 1):
        tails = [str(Path(*path[-parts:])) for path in paths]
        names = [tail.removesuffix(".parquet").removesuffix(".jsonl") for tail in tails]
        if len(set(names)) == len(names):
            return names
    return [str(Path(*path)) for path in paths]
