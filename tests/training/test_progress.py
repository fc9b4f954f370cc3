"""What is seen of a run on a narrow terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from caat.training.progress import RunProgress


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_time_left_is_never_cut(tmp_path, width):
    progress = RunProgress(30010, 0, tmp_path / "log.txt")
    status = "loss 6.2668  1,273,000 tokens/s  lr 8.33e-04  validation 6.8892"
    progress.step(1000, status)
    console = Console(width=width)
    with console.capture() as shown:
        console.print(progress._bar.get_renderable())
    progress.close()
    (line,) = shown.get().splitlines()
    assert "1000/30010 left -:--:-- loss 6.26" in line
    assert (status in line) == (width == 200)
