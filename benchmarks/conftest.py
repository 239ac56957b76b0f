"""Gathers what the benchmarks measured and writes it when the run is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import results

Record = Callable[[str, str, dict[str, Any]], None]


@pytest.fixture(scope="session")
def record() -> Iterator[Record]:
    """A function of section, name and entry that keeps the entry for the result file."""
    sections: dict[str, dict[str, Any]] = {}
    yield lambda section, name, entry: sections.setdefault(section, {}).update({name: entry})
    machine = results.cpu_machine()
    # Processors of one name may differ in what they run.
    name = f"{machine['machine']}-{machine['cores']}core-{machine['instruction_set']}"
    path = results.FOLDER / results.file_name("cpu", name)
    for section, entries in sections.items():
        results.save(path, machine, section, entries)
        print(f"\n{section} written to {path}")
