"""The plan: each (video, task) is in exactly one state, decided from the tables alone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs import planning
from ray_jobs.planning import DUE, STATES, Plan, Portion, make_plan
from ray_jobs.score_table import QUARANTINE, score_table

POLICY, SCORER = "policy-1", "scorer-1"


def write_catalog(folder: Path, *rows: dict[str, object]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names] + [["" if row.get(name) is None else str(row[name]) for name in names] for row in rows]
    path = folder / "catalog.csv"
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    return str(path)


def scored(
    folder: Path, video_id: str, etag: str | None, *, policy: str = POLICY, scorer: str = SCORER, days_ago: float = 0
) -> None:
    columns = {"video_id": video_id, "uri": f"/{video_id}.mp4", "etag": etag, "policy": policy, "scorer": scorer}
    _append(folder, score_table("fs2k"), columns, days_ago)


def quarantined(
    folder: Path, video_id: str, etag: str | None, reason: str, *, policy: str = POLICY, attempts: int = 1
) -> None:
    columns = {"video_id": video_id, "uri": f"/{video_id}.mp4", "etag": etag, "policy": policy, "reason": reason}
    retryable = reason.startswith("storage")
    _append(folder, QUARANTINE, columns | {"retryable": retryable, "attempts": attempts})


def _append(folder: Path, table: str, columns: dict[str, Any], days_ago: float = 0) -> None:
    store, at = DeltaStore(str(folder / "tables"), Storage()), datetime.now(UTC) - timedelta(days=days_ago)
    types = {"retryable": pa.bool_(), "attempts": pa.int32()}
    rows = pa.table({name: pa.array([value], types.get(name, pa.string())) for name, value in columns.items()})
    rows = rows.append_column("committed_at", pa.array([at], pa.timestamp("us", tz="UTC")))
    store.append(table, rows, run_id=f"run-{store.num_rows(table)}", sequence=1)


def plan(folder: Path, catalog: str, **options: Any) -> Plan:
    tables = str(folder / "tables")
    values: dict[str, Any] = {"policy": POLICY, "scorers": {"fs2k": SCORER}, "settings": Settings()}
    return make_plan(catalog, tables, **(values | options))


def states(found: Plan) -> dict[str, str]:
    return dict(
        found.connection.execute(
            "SELECT video_id, state FROM state_fs2k s JOIN catalog c ON c.rowid = s.row"
        ).fetchall()
    )


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
    assert due(found) == ["new", "changed", "policy", "scorer", "mended", "adult"]  # as the catalog has them
    assert found.examples["fs2k"]["new"] == ["new", "mended", "adult"]
    assert found.examples["fs2k"]["done"] == ["done"]
    assert found.reasons == {"truncated": 1}
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


def test_retryable_failures_stand_apart_and_come_back_with_their_attempts(tmp_path: Path) -> None:
    quarantined(tmp_path, "a", "1", "storage_timeout", attempts=3)
    quarantined(tmp_path, "a", "1", "storage_timeout", attempts=6)
    quarantined(tmp_path, "b", "1", "truncated")
    catalog = write_catalog(tmp_path, video("a", "1"), video("b", "1"), video("c", "1"))
    assert states(plan(tmp_path, catalog)) == {"a": "quarantined_retryable", "b": "quarantined", "c": "new"}
    again = plan(tmp_path, catalog, retry=frozenset({"retryable"}))
    assert states(again)["a"] == "retry"
    assert [(row["video_id"], row["attempts"]) for row in again.due().read_all().to_pylist()] == [("a", 6), ("c", 0)]


def test_the_newest_reason_of_a_video_counts(tmp_path: Path) -> None:
    quarantined(tmp_path, "a", "1", "storage_timeout")
    quarantined(tmp_path, "a", "1", "corrupt")
    catalog = write_catalog(tmp_path, video("a", "1"))
    assert due(plan(tmp_path, catalog, retry=frozenset({"storage_timeout"}))) == []
    assert due(plan(tmp_path, catalog, retry=frozenset({"corrupt"}))) == ["a"]


def test_a_failure_that_a_later_row_disproves_is_none(tmp_path: Path) -> None:
    """Else a video that failed once would be left out by every later champion."""
    quarantined(tmp_path, "a", "1", "storage_timeout")
    quarantined(tmp_path, "b", "1", "storage_timeout")
    scored(tmp_path, "a", "1", scorer="scorer-0")
    columns = {"video_id": "b", "uri": "/b.mp4", "etag": "1", "policy": POLICY, "scorer": "x"}
    _append(tmp_path, score_table("attractiveness"), columns)  # another task's, which this plan is not about
    quarantined(tmp_path, "c", "1", "corrupt")
    scored(tmp_path, "c", "0")
    scored(tmp_path, "c", "1", policy="policy-0")
    catalog = write_catalog(tmp_path, video("a", "1"), video("b", "1"), video("c", "1"))
    found = plan(tmp_path, catalog, all_tasks=("attractiveness", "fs2k", "another"))
    assert states(found) == {"a": "stale_scorer", "b": "new", "c": "quarantined"}
    assert found.reasons == {"corrupt": 1}


def test_whether_a_failure_may_pass_is_for_the_newest_to_say(tmp_path: Path) -> None:
    quarantined(tmp_path, "a", "1", "storage_timeout")
    quarantined(tmp_path, "a", "1", "corrupt")
    catalog = write_catalog(tmp_path, video("a", "1"))
    assert states(plan(tmp_path, catalog)) == {"a": "quarantined"}
    assert due(plan(tmp_path, catalog, retry=frozenset({"retryable"}))) == []


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ("video_id,uri\na,a.mp4\n", {"retry": frozenset({"not-found"})}, "--retry not-found: no such reason"),
        ("video_id,uri,opted_out\na,a.mp4,maybe\n", {}, "opted_out of 'a' is 'maybe'"),
        ("video_id,uri,Age\na,a.mp4,12\n", {}, "the column Age has to be called age"),
        ("video_id,uri,Opted_Out\na,a.mp4,true\n", {}, "the column Opted_Out has to be called opted_out"),
        ("video_id,uri,views,Views\na,a.mp4,1,2\n", {}, "views and Views differ only in case"),
        ("video_id,uri,rowid\na,a.mp4,1\n", {}, "the column rowid has the name of one that facereel writes"),
        ("video_id,uri,row\na,a.mp4,1\n", {}, "the column row has the name"),
        ("video_id,uri,Smile\na,a.mp4,1\n", {"reserved": frozenset({"smile"})}, "the column Smile has the name"),
    ],
)
def test_what_a_plan_cannot_be_made_of(tmp_path: Path, lines: str, options: dict[str, Any], words: str) -> None:
    path = tmp_path / "catalog.csv"
    path.write_text(lines)
    with pytest.raises(UserError, match=words):
        plan(tmp_path, str(path), **options)


def test_ids_on_an_opt_out_list_are_never_rounded(tmp_path: Path) -> None:
    """Pandas makes floats of whole numbers with gaps: 123.0 names nobody."""
    listed = tmp_path / "out.parquet"
    catalog = write_catalog(tmp_path, video("123", "1"), video("124", "1"))
    pq.write_table(pa.table({"video_id": pa.array([123.0, None])}), listed)
    with pytest.raises(UserError, match="video_id is double"):
        plan(tmp_path, catalog, opt_out=str(listed))
    pq.write_table(pa.table({"video_id": pa.array([123, None], pa.int64())}), listed)
    found = plan(tmp_path, catalog, opt_out=str(listed))
    assert states(found) == {"123": "opted_out", "124": "new"}
    assert found.opted_out == (1, 1)


def test_empty_names_of_content_are_none_and_digests_have_no_case(tmp_path: Path) -> None:
    table = pa.table({"video_id": ["a", "b"], "uri": ["/a.mp4", "/b.mp4"], "etag": ["", '"1"'], "sha256": ["", "ABCD"]})
    pq.write_table(table, tmp_path / "catalog.parquet")
    key = {"policy": POLICY, "scorer": SCORER, "etag": "1"}
    for name in ("a", "b"):
        _append(tmp_path, score_table("fs2k"), {"video_id": name, "uri": f"/{name}.mp4", "sha256": "abcd", **key})
    for content in ("etag", "sha256"):
        found = plan(tmp_path, str(tmp_path / "catalog.parquet"), content=content)
        assert states(found) == {"a": "done", "b": "done"}


def test_an_opt_out_list_leaves_out_videos_and_creators(tmp_path: Path) -> None:
    catalog = write_catalog(
        tmp_path, video("a", "1", creator_id="x"), video("b", "1", creator_id="y"), video("c", "1"), video("d", "1")
    )
    listed = tmp_path / "out.csv"
    listed.write_text("video_id,creator_id\nc,\n,x\n")
    assert states(plan(tmp_path, catalog, opt_out=str(listed))) == {
        "a": "opted_out",
        "b": "new",
        "c": "opted_out",
        "d": "new",
    }
    listed.write_text("name\nx\n")
    with pytest.raises(UserError, match="column video_id or creator_id; it has name"):
        plan(tmp_path, catalog, opt_out=str(listed))


def test_by_digest_the_etag_does_not_matter(tmp_path: Path) -> None:
    key = {"policy": POLICY, "scorer": SCORER}
    for name in ("copied", "changed"):
        _append(tmp_path, score_table("fs2k"), {"video_id": name, "uri": "/old", "etag": "1", "sha256": "d1", **key})
    catalog = write_catalog(
        tmp_path, video("copied", "2", sha256="d1"), video("changed", "1", sha256="d2"), video("new", "1", sha256="d3")
    )
    assert states(plan(tmp_path, catalog, content="sha256")) == {
        "copied": "done",
        "changed": "stale_content",
        "new": "new",
    }
    with pytest.raises(UserError, match="column sha256"):
        plan(tmp_path, write_catalog(tmp_path, video("a", "1")), content="sha256")


def test_the_due_list_is_written_as_files_and_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "DUE_ROWS_PER_FILE", 4)
    with plan(tmp_path, write_catalog(tmp_path, *(video(f"v{n:02}", "1", views=n) for n in range(10)))) as found:
        found.write_due(str(tmp_path / "due"), Storage())
        sample = found.sample(4, seed=1)
        assert found.sample(99, seed=1).num_rows == 10
    files = sorted((tmp_path / "due").iterdir())
    tables = [pq.read_table(file) for file in files]
    assert [table.num_rows for table in tables] == [4, 4, 2]
    rows = pa.concat_tables(tables).sort_by("video_id").to_pylist()
    assert [(row["video_id"], row["views"], row["due_tasks"], row["attempts"]) for row in rows] == [
        (f"v{n:02}", n, ["fs2k"], 0) for n in range(10)
    ]
    assert len(set(sample["video_id"].to_pylist())) == sample.num_rows == 4
    assert sample.schema.names == tables[0].schema.names


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


def test_a_portion_takes_the_most_viewed_first(tmp_path: Path) -> None:
    scored(tmp_path, "done", "1")
    views = {"a": 5, "done": 100, "b": 70, "c": None, "d": 5, "e": 8}
    catalog = write_catalog(tmp_path, *(video(name, "1", views=value) for name, value in views.items()))
    every = plan(tmp_path, catalog, portion=Portion(priority="views"))
    assert due(every) == ["b", "e", "a", "d", "c"]
    assert (every.num_due, every.num_later) == (5, 0)
    some = plan(tmp_path, catalog, portion=Portion(limit=2, priority="views"))
    assert due(some) == ["b", "e"]
    assert (some.num_due, some.num_later) == (2, 3)
    assert some.counts["fs2k"]["new"] == 5  # what is there, whatever the portion
    assert some.sample(9, 0)["video_id"].to_pylist() == ["b", "e"]
    assert due(plan(tmp_path, catalog, portion=Portion(limit=3))) == ["a", "b", "c"]
    unknown = write_catalog(tmp_path, video("a", "1", views="nan"), video("b", "1", views=0.5))
    assert due(plan(tmp_path, unknown, portion=Portion(priority="views"))) == ["b", "a"]
    with pytest.raises(UserError, match="--priority uri is text"):
        plan(tmp_path, unknown, portion=Portion(priority="uri"))
    catalog = write_catalog(tmp_path, video("a", "1", views=5))
    with pytest.raises(UserError, match=r"--priority likes: it has the columns video_id, uri.*views"):
        plan(tmp_path, catalog, portion=Portion(priority="likes"))


def test_what_was_scored_lately_for_another_scorer_can_wait(tmp_path: Path) -> None:
    scored(tmp_path, "old", "1", scorer="scorer-0", days_ago=40)
    scored(tmp_path, "lately", "1", scorer="scorer-0", days_ago=2)
    scored(tmp_path, "both", "1", scorer="scorer-0", days_ago=40)
    scored(tmp_path, "both", "1", scorer="scorer-9", days_ago=2)
    scored(tmp_path, "policy", "1", policy="policy-0", days_ago=2)
    scored(tmp_path, "changed", "0", days_ago=2)
    scored(tmp_path, "done", "1", days_ago=2)
    names = ("old", "lately", "both", "policy", "changed", "done", "new")
    catalog = write_catalog(tmp_path, *(video(name, "1") for name in names))
    assert due(plan(tmp_path, catalog)) == ["old", "lately", "both", "policy", "changed", "new"]
    found = plan(tmp_path, catalog, portion=Portion(stale_older_than_s=30 * 86400))
    assert states(found) == {
        "old": "stale_scorer",
        "lately": "stale_recent",
        "both": "stale_recent",
        "policy": "stale_recent",
        "changed": "stale_content",
        "done": "done",
        "new": "new",
    }
    assert due(found) == ["old", "changed", "new"]


def test_a_plan_writes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with plan(tmp_path, write_catalog(tmp_path, video("a"))) as found:
        folder = Path(found.folder.name)
        assert folder.is_dir()
    assert not folder.exists()
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
