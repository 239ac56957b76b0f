"""README and the pages of docs/: their code runs, their commands work, their links lead somewhere."""

import inspect
import re
import shlex
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.distributed.run import parse_args
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels.cli import app
from weibull_kernels.records import COLUMNS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """What stands between fences: its language, where it begins, its text."""

    language: str
    line: int
    text: str


def blocks_of(page):
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    text = page.read_text()
    return [Block(m[1], text.count("\n", 0, m.start()) + 2, m[2]) for m in found]


def commands_of(block):
    """Words of each command, without comments; a backslash goes on with the next line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


class Wandb:
    """What an example needs of wandb, which is not installed: what comes with an older step is dropped."""

    def __init__(self):
        self.step, self.rows, self.axes = 0, [], {}

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, metrics, step=None):
        if step is None or step >= self.step:
            self.rows.append(metrics)
            self.step = self.step + 1 if step is None else step


Wandb.__module__ = "wandb.sdk.wandb_run"


def leave_processes():
    """A page that failed may not have come to its end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_python(block, page, names, monkeypatch):
    with monkeypatch.context() as patch:
        if "import wandb\n" in block.text:  # no longer than that: others ask whether it is installed
            module = types.ModuleType("wandb")
            module.init = lambda **settings: Wandb()
            patch.setitem(sys.modules, "wandb", module)
        exec(compile(block.text, f"{page.name}, from line {block.line}", "exec"), names)


# What torch says of itself, and Lightning of the small data of an example.
@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # of torch 2.10, writing a checkpoint
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys, request):
    """In an empty folder. Python blocks go on from those before; `text` is what the one before it printed."""
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(leave_processes)
    names, printed = {}, ""
    for block in blocks_of(page):
        if block.language == "python":
            run_python(block, page, names, monkeypatch)
            printed = capsys.readouterr().out
        elif block.language == "bash":
            for command in commands_of(block):
                run_command(command)
        elif block.language == "text":
            assert without_ends(block.text) == without_ends(printed), f"{page.name}:{block.line}"
    assert not torch.distributed.is_initialized()


def without_ends(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def run_command(words):
    """Our own command is run, here; of others it is checked that what they name is there."""
    program, *rest = words
    if program == "torchrun":
        given = parse_args(rest)
        if given.training_script == "weibull_kernels.cli":
            run_command(["weibull-kernels", *given.training_script_args])
    elif program == "weibull-kernels":
        result = CliRunner().invoke(app, rest)
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output} {result.exception!r}"
    elif program == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        asked = re.search(r"\[(.*)\]", words[-1])
        assert rest[0] == "install"
        assert asked is None or set(asked[1].split(",")) <= set(extras), words
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    else:
        raise AssertionError(f"nothing checks the command {shlex.join(words)}")


def anchors_of(page):
    """Those that GitHub gives to headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M), re.M
    )
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors_of(found), f"{page.name} links to {target}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert all(f"]({page.name})" in index for page in PAGES[1:] if page.name != "README.md")


def test_every_public_name_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [name for name in wk.__all__ if f"`wk.{name}`" not in index] == []


def test_every_column_of_a_record_is_explained():
    page = (ROOT / "docs" / "numbers.md").read_text()
    assert [
        name for name in (*COLUMNS, "lr", "weight_decay", "k", "scale") if f"| `{name}` |" not in page
    ] == []


def test_every_argument_of_attach_is_explained():
    page = (ROOT / "docs" / "training-loop.md").read_text()
    arguments = list(inspect.signature(wk.attach).parameters)[1:]
    assert [name for name in arguments if f"| `{name}` |" not in page] == []
