"""A short history of kills; ``make chaos`` plays long ones, and test_nodes.py loses nodes."""

from pathlib import Path

import pytest


@pytest.mark.ray
def test_nothing_is_lost_twice_or_wrong_whatever_is_killed(tmp_path: Path) -> None:
    from tests.chaos.history import History

    history = History(tmp_path, seed=3, num_videos=120)
    try:
        report = history.run(["worker", "second driver", "driver", "full disk", "sleeping driver"])
    finally:
        history.close()
    print(report)
    assert report.kills.total() >= 4  # five where a tmpfs may be mounted
    assert report.account.num_rows >= 2 * 120
    assert report.is_clean, str(report)
