"""The plan: each (video, task) is in exactly one state, decided from the tables alone."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs.planning import DUE, STATES, Plan, make_plan
from ray_jobs.score_table import QUARANTINE, score_table

POLICY, SCORER = "policy-1", "scorer-1"


def write_catalog(folder: Path, *rows: dict[str, object]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names] + [["" if row.get(name) is None else str(row[name]) for name in names] for row in rows]
    path = folder / "catalog.csv"
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    return str(path)


def scored(folder: Path, video_id: str, etag: str | None, *, policy: str = POLICY, scorer: str = SCORER) -> None:
    columns = {"video_id": video_id, "uri": f"/{video_id}.mp4", "etag": etag, "policy": policy, "scorer": scorer}
    _append(folder, score_table("fs2k"), columns)


def quarantined(folder: Path, video_id: str, etag: str | None, reason: str, *, policy: str = POLICY) -> None:
    columns = {"video_id": video_id, "uri": f"/{video_id}.mp4", "etag": etag, "policy": policy, "reason": reason}
    _append(folder, QUARANTINE, columns)


def _append(folder: Path, table: str, columns: dict[str, str | None]) -> None:
    store = DeltaStore(str(folder / "tables"), Storage())
    rows = pa.table({name: pa.array([value], pa.string()) for name, value in columns.items()})
    store.append(table, rows, run_id=f"run-{store.num_rows(table)}", sequence=1)


def plan(folder: Path, catalog: str, *, retry: frozenset[str] = frozenset()) -> Plan:
    return make_plan(
        catalog, str(folder / "tables"), policy=POLICY, scorers={"fs2k": SCORER}, settings=Settings(), retry=retry
    )


def states(found: Plan) -> dict[str, str]:
    return dict(found.connection.execute("SELECT video_id, state FROM state_fs2k").fetchall())


def due(found: Plan) -> list[str]:
    return [row["video_id"] for row in found.due().read_all().to_pylist()]


def video(name: str, etag: str | None = None, **more: object) -> dict[str, object]:
    return {"video_id": name, "uri": f"/{name}.mp4", "etag": etag, **more}


def test_each_state(tmp_path: Path) -> None:
    catalog = write_catalog(
        tmp_path,
        video("new", "1"),
        video("done", "1"),
        video("changed", "2"),
        video("policy", "1"),
        video("scorer", "1"),
        video("broken", "1"),
        video("mended", "2"),
        video("minor", "1", age=17.9),
        video("adult", "1", age=18),
        video("out", "1", opted_out="true"),
    )
    scored(tmp_path, "done", "1")
    scored(tmp_path, "done", "0")
    scored(tmp_path, "changed", "1")
    scored(tmp_path, "policy", "1", policy="policy-0")
    scored(tmp_path, "scorer", "1", scorer="scorer-0")
    scored(tmp_path, "minor", "1", scorer="scorer-0")
    quarantined(tmp_path, "broken", "1", "truncated")
    quarantined(tmp_path, "mended", "1", "truncated")
    found = plan(tmp_path, catalog)
    assert states(found) == {
        "new": "new",
        "done": "done",
        "changed": "stale_content",
        "policy": "stale_policy",
        "scorer": "stale_scorer",
        "broken": "quarantined",
        "mended": "new",
        "minor": "minor",
        "adult": "new",
        "out": "opted_out",
    }
    assert due(found) == ["adult", "changed", "mended", "new", "policy", "scorer"]
    assert sum(found.counts["fs2k"].values()) == found.num_videos == 10
    assert found.num_due == 6


def test_without_etags_the_uri_stands_for_the_content(tmp_path: Path) -> None:
    scored(tmp_path, "same", "1")
    scored(tmp_path, "moved", "1")
    quarantined(tmp_path, "gone", None, "not_found")
    catalog = write_catalog(tmp_path, video("same"), {"video_id": "moved", "uri": "/elsewhere.mp4"}, video("gone"))
    assert states(plan(tmp_path, catalog)) == {"same": "done", "moved": "stale_content", "gone": "quarantined"}


def test_retry_plans_the_named_reason_again(tmp_path: Path) -> None:
    quarantined(tmp_path, "a", None, "not_found")
    quarantined(tmp_path, "b", "1", "truncated")
    catalog = write_catalog(tmp_path, video("a", "1"), video("b", "1"))
    assert due(plan(tmp_path, catalog)) == []
    assert due(plan(tmp_path, catalog, retry=frozenset({"not_found"}))) == ["a"]
    assert due(plan(tmp_path, catalog, retry=frozenset({"all"}))) == ["a", "b"]


def test_what_was_scored_after_its_quarantine_is_done(tmp_path: Path) -> None:
    quarantined(tmp_path, "a", "1", "storage_timeout")
    scored(tmp_path, "a", "1")
    assert states(plan(tmp_path, write_catalog(tmp_path, video("a", "1")), retry=frozenset({"all"}))) == {"a": "done"}


def test_two_tasks_are_due_each_for_itself(tmp_path: Path) -> None:
    scored(tmp_path, "a", "1")
    catalog = write_catalog(tmp_path, video("a", "1", views=3), video("b", "1", views=4))
    found = make_plan(
        catalog,
        str(tmp_path / "tables"),
        policy=POLICY,
        scorers={"fs2k": SCORER, "attractiveness": "x"},
        settings=Settings(),
    )
    assert [(row["video_id"], row["due_tasks"], row["views"]) for row in found.due().read_all().to_pylist()] == [
        ("a", ["attractiveness"], 3),
        ("b", ["attractiveness", "fs2k"], 4),
    ]
    assert found.counts["fs2k"]["done"] == 1
    assert found.counts["attractiveness"]["new"] == 2


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    plan(tmp_path, write_catalog(tmp_path, video("a")))
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.csv"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["none", "same", "content", "policy", "scorer"]), min_size=1, max_size=6),
    st.booleans(),
)
def test_every_video_is_in_one_state_whatever_the_history(
    tmp_path_factory: pytest.TempPathFactory, history: list[str], broken: bool
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    for event in history:
        if event != "none":
            scored(
                folder,
                "a",
                "0" if event == "content" else "1",
                policy="policy-0" if event == "policy" else POLICY,
                scorer="scorer-0" if event == "scorer" else SCORER,
            )
    if broken:
        quarantined(folder, "a", "1", "corrupt")
    found = plan(folder, write_catalog(folder, video("a", "1")))
    (state,) = states(found).values()
    assert state in STATES
    assert (state == "done") == ("same" in history)
    assert (due(found) == ["a"]) == (state in DUE)
    if broken and "same" not in history:
        assert state == "quarantined"
