"""The README's own code runs."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_blocks_of_code_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 6
    names: dict = {}
    for block in blocks:
        exec(block, names)  # the second goes on from the first
    printed = capsys.readouterr().out
    for role in ("attention_output", "ffn", "qkv", "norm", "transmission", "rise"):
        assert role in printed
