"""The example notebook runs from the first cell to the last."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

from m2ray.util.plotting import use_file_backend

ROOT = Path(__file__).parents[2]


def test_the_example_notebook_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    use_file_backend()
    cells = json.loads((ROOT / "docs" / "example.ipynb").read_text())["cells"]
    names = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{names['verdict'].verdict}: ")
    assert printed[1].startswith("solved of n = 100: normal ")
    assert len(names["figure"].axes) == 1
    assert not any(cell.get("outputs") for cell in cells)
    plt.close("all")
