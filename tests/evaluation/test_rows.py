"""The row store: nothing torn, lost or counted twice; rows are paired as a hand calculation pairs them."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_rows import assert_same_rows, episode_rows, rows_with

from m2ray.evaluation.rows import ADDED_LATER, FAILED, SCHEMA, RowStore, failure_row, read_rows, write_rows
from m2ray.util.errors import UserError

# --- one file ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(6)), st.text(max_size=20))
def test_rows_are_read_back_as_written_in_a_fixed_order(tmp_path_factory, order, answer):
    rows = episode_rows(6, answer=answer.encode("utf-8", "ignore").decode(), params="{}")
    rows.loc[0, "nll"] = float("nan")
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    write_rows(path, rows.iloc[list(order)])
    assert_same_rows(read_rows(path), rows)
    assert list(read_rows(path).columns) == SCHEMA.names


def test_a_key_written_twice_counts_once_and_the_last_counts(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, rows_with({"success": False}, {"episode": 2001}, {"success": True}))
    assert read_rows(path)[["episode", "success"]].to_numpy().tolist() == [[2000, True], [2001, True]]


def test_extra_columns_are_left_out_and_a_folder_is_read_as_a_file_is(tmp_path):
    path = tmp_path / "seed=1" / "rows.parquet"  # a name that some tools would read a column from
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pandas(episode_rows(2).assign(extra=1)), path)
    assert_same_rows(read_rows(path), episode_rows(2))
    assert_same_rows(read_rows(path.parent), episode_rows(2))


@pytest.mark.parametrize("name", [name for name in SCHEMA.names if name not in ADDED_LATER])
def test_a_missing_column_is_named_in_one_line(tmp_path, name):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pandas(episode_rows(2).drop(columns=name)), path)
    line = f"{path}: column {name}: missing; write rows with m2ray.evaluate or m2ray.sweep"
    for source in (path, tmp_path):
        with pytest.raises(UserError) as raised:
            read_rows(source)
        assert str(raised.value) == line
    with pytest.raises(UserError, match=f"column {name}: missing"):
        RowStore(tmp_path / "new").append(episode_rows(2).drop(columns=name))
    assert not (tmp_path / "new").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("name", "values", "fault"),
    [
        ("k", [4.5, 4.0], "k with type"),
        ("k", ["four", "4"], "k with type"),
        ("k", np.array([2**63, 4], dtype="uint64"), "k with type"),
        ("k", [[4], [4]], "k with type"),
        ("success", ["yes", "no"], "success with type"),
        ("nll", ["low", "high"], "nll with type"),
        ("config", [1, 2], "config with type"),
        ("answer", [b"\xff", b"\xfe"], "answer with type"),
        (
            "success",
            [True, None],
            "column success: holds empty cells; fill them, only nll and truncated may be unknown",
        ),
        ("seed", [0, None], "column seed: holds empty cells"),
        ("condition", ["normal", None], "column condition: holds empty cells"),
        ("partial", [1.0, float("nan")], "column partial: holds empty cells"),
    ],
)
def test_a_column_of_another_type_is_named_in_one_line(tmp_path, name, values, fault):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pandas(episode_rows(2).assign(**{name: values})), path)
    with pytest.raises(UserError, match=fault) as raised:
        read_rows(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


PUBLISHED = Path(__file__).parents[2] / "results" / "recipe-qwen" / "rows.parquet"


@pytest.mark.parametrize("lacking", [ADDED_LATER, ADDED_LATER[:1], ADDED_LATER[1:]])
def test_columns_that_a_file_lacks_are_read_as_unknown(tmp_path, lacking):
    path = tmp_path / "rows.parquet"
    rows = episode_rows(3, truncated=True, facts="10-")
    pq.write_table(pa.Table.from_pandas(rows.drop(columns=[*lacking])), path)
    found = read_rows(path)
    unknown = {"truncated": pd.array([pd.NA] * 3, dtype="boolean"), "facts": "", "message": ""}
    assert_same_rows(found, rows.assign(**{name: unknown[name] for name in lacking}))
    write_rows(path, found)
    assert pq.read_schema(path).names == SCHEMA.names
    assert_same_rows(read_rows(path), found)


def test_a_published_file_from_before_is_read_and_guarded_by_its_checksum(tmp_path):
    table = pq.read_table(PUBLISHED)
    assert not {*ADDED_LATER} & {*table.column_names}, "this test needs a file from before the columns"
    rows = read_rows(PUBLISHED)
    assert rows.truncated.isna().all()
    assert set(rows.facts) == {""}
    changed, path = table.to_pandas(), tmp_path / "rows.parquet"
    changed.loc[7, "success"] = not changed.success[7]
    pq.write_table(pa.Table.from_pandas(changed).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(UserError, match="damaged"):
        read_rows(path)


def test_older_parts_and_wholes_mix_with_new_ones(tmp_path):
    store = RowStore(tmp_path)
    shutil.copy(PUBLISHED, store.whole)
    old = pq.read_table(PUBLISHED).slice(0, 2).to_pandas().assign(config="old")
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(old), data)
    store.parts.mkdir()
    name = hashlib.sha256(data.getvalue()).hexdigest()[:32]
    (store.parts / f"{name}.parquet").write_bytes(data.getvalue())
    store.append(episode_rows(2, config="new", truncated=True, facts="1"))
    for _ in range(2):
        rows = store.read()
        assert rows.truncated.isna().sum() == len(read_rows(PUBLISHED)) + 2
        assert rows.groupby("config").facts.unique()["new"].tolist() == ["1"]
        assert rows[rows.config == "new"].truncated.all()
        store.compact()


def test_numbers_of_another_width_get_the_columns_own_types(tmp_path):
    path = tmp_path / "rows.parquet"
    narrow = episode_rows(2).astype({"k": "int8", "episode": "int32", "nll": "float32", "condition": "category"})
    pq.write_table(pa.Table.from_pandas(narrow), path)
    assert_same_rows(read_rows(path), episode_rows(2))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"config,seed\na,0\n", "cut"])
def test_a_file_that_is_not_parquet_or_was_cut_short_is_refused(tmp_path, content):
    path = tmp_path / "rows.parquet"
    if content == "cut":
        write_rows(path, episode_rows(50))
        content = path.read_bytes()[:-20]
    path.write_bytes(content)
    with pytest.raises(UserError, match="not an intact Parquet file") as raised:
        read_rows(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).endswith("; remake it, or give rows or a results folder")
    assert "\n" not in str(raised.value)


def test_a_path_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file; give a rows file or a results folder"):
        read_rows(tmp_path / "none.parquet")


# --- the store -----------------------------------------------------------------------------------------------


def test_an_empty_store_has_the_columns_and_no_rows(tmp_path):
    rows = RowStore(tmp_path).read()
    assert list(rows.columns) == SCHEMA.names
    assert rows.empty


def test_what_is_read_does_not_depend_on_the_order_of_appends_or_on_compaction(tmp_path):
    parts = [episode_rows(5, condition=name) for name in ("normal", "null", "shuffle", "P0")]
    stores = [RowStore(tmp_path / name) for name in ("one", "other")]
    for store, order in zip(stores, (parts, parts[::-1]), strict=True):
        for part in order:
            store.append(part)
        store.append(parts[0])  # the same again
    one, other = (store.read() for store in stores)
    assert_same_rows(one, other)
    assert len(one) == 20
    for _ in range(2):
        stores[0].compact()
        assert_same_rows(stores[0].read(), one)
        assert not stores[0].parts.exists()
    stores[0].append(episode_rows(5, condition="P1"))
    assert len(stores[0].read()) == 25
    stores[0].compact()
    assert len(read_rows(stores[0].whole)) == 25


def test_a_crash_in_the_middle_of_compaction_loses_and_doubles_nothing(tmp_path):
    store = RowStore(tmp_path)
    for name in ("normal", "null"):
        store.append(episode_rows(5, condition=name))
    before = store.read()
    shutil.copytree(store.parts, tmp_path / "kept")
    store.compact()
    shutil.copytree(tmp_path / "kept", store.parts)  # as if it had died before it removed them
    assert_same_rows(store.read(), before)
    store.compact()
    assert_same_rows(store.read(), before)


def test_foreign_files_beside_the_parts_are_left_alone(tmp_path):
    store = RowStore(tmp_path)
    store.append(episode_rows(5))
    for name in ("notes.txt", "zz.parquet", ".0abc.parquet.77.tmp"):
        (store.parts / name).write_bytes(b"half a file")
    assert len(store.read()) == 5
    store.compact()
    assert len(store.read()) == 5
    assert {file.name for file in store.parts.iterdir()} == {"notes.txt", "zz.parquet", ".0abc.parquet.77.tmp"}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "renamed"])
def test_a_damaged_part_is_named_and_never_read(tmp_path, damage):
    store = RowStore(tmp_path)
    store.append(episode_rows(5))
    (file,) = store.parts.iterdir()
    data = file.read_bytes()
    if damage == "renamed":
        file = file.rename(file.with_name("backup.parquet"))
    else:
        file.write_bytes({"cut": data[:-9], "changed": data[:60] + b"?" + data[61:], "empty": b""}[damage])
    for act in (store.read, store.compact):
        with pytest.raises(UserError) as raised:
            act()
        assert str(raised.value) == (
            f"{file}: damaged (its checksum is not its name); run the sweep with --resume, which runs its "
            "evaluations again"
        )
    assert file.is_file(), "nothing is removed behind the user's back"


@pytest.mark.parametrize("compacted", [False, True])
def test_damaged_rows_are_set_aside_and_count_as_missing(tmp_path, compacted):
    store = RowStore(tmp_path)
    store.append(episode_rows(5))
    if compacted:
        store.compact()
    store.append(episode_rows(3, condition="null"))
    (file,) = [store.whole] if compacted else [f for f in store.parts.iterdir() if len(read_rows(f)) == 5]
    data = bytearray(file.read_bytes())
    place = pq.ParquetFile(file).metadata.row_group(0).column(SCHEMA.names.index("nll"))
    data[place.data_page_offset + place.total_compressed_size - 9] ^= 1
    file.write_bytes(data)
    (line,) = store.set_aside()
    assert line.startswith(f"{file}: ")
    assert line.endswith(f"; it is now {file.name}.damaged")
    assert len(store.read()) == 3
    assert store.set_aside() == []
    store.append(episode_rows(5))
    store.compact()
    assert len(store.read()) == 8
    assert file.with_name(f"{file.name}.damaged").read_bytes() == bytes(data)


@pytest.mark.parametrize("signed", [False, True])
def test_rows_of_a_sweep_that_another_program_has_saved_are_damaged(tmp_path, signed):
    """Outside a sweep's folder they are not: rows may come from anywhere."""
    store = RowStore(tmp_path)
    store.append(episode_rows(5))
    store.compact()
    metadata = pq.read_schema(store.whole).metadata
    table = pq.read_table(store.whole).to_pandas().assign(success=False)
    pq.write_table(pa.Table.from_pandas(table).replace_schema_metadata(metadata if signed else None), store.whole)
    if not signed:
        assert not store.read().success.any()
    (tmp_path / "sweep.yaml").write_text("id: 1\n")
    cause = "its rows do not match its checksum" if signed else "no checksum: not as the sweep wrote it"
    for read in (store.read, store.compact, lambda: read_rows(tmp_path), lambda: read_rows(store.whole)):
        with pytest.raises(UserError) as raised:
            read()
        assert str(raised.value) == (
            f"{store.whole}: damaged ({cause}); restore it, or run the sweep with --resume, which runs its "
            "evaluations again"
        )
    assert store.set_aside() == [f"{store.whole}: damaged ({cause}); it is now rows.parquet.damaged"]
    assert store.read().empty


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 7))
@example(at=567, bit=7)  # text that is not UTF-8
def test_no_changed_bit_of_a_rows_file_changes_what_is_read(tmp_path_factory, at, bit):
    path = tmp_path_factory.getbasetemp() / "bits.parquet"
    rows = episode_rows(20, answer="0 1 2 0")
    write_rows(path, rows)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert_same_rows(read_rows(path), rows)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017


def test_a_failure_is_a_row_that_can_be_stored_and_read(tmp_path):
    store = RowStore(tmp_path)
    store.append(episode_rows(2))
    store.append(failure_row("b", 8, "easy", "loss nan at step 3; lower lr"))
    failed = store.read().query("condition == @FAILED")
    assert failed[["config", "k", "task", "answer"]].to_numpy().tolist() == [
        ["b", 8, "easy", "loss nan at step 3; lower lr"]
    ]
    assert FAILED == "failed"


@pytest.mark.parametrize("reader", ["pandas", "duckdb", "polars"])
def test_published_rows_can_be_read_with_common_tools(reader):
    file = Path(__file__).parents[2] / "results" / "recipe-mini" / "rows.parquet"
    own = read_rows(file)
    own = own[(own.condition != FAILED) & (own.split == "confirm")]
    wanted = own.groupby("condition").success.agg(["size", "sum"])
    if reader == "pandas":
        rows = pd.read_parquet(file)
        rows = rows[(rows.condition != FAILED) & (rows.split == "confirm")]
        found = {name: (len(part), int(part.success.sum())) for name, part in rows.groupby("condition")}
    elif reader == "duckdb":
        import duckdb

        query = f"""
            SELECT condition, count(*), sum(success::INT) FROM '{file}'
            WHERE condition != '{FAILED}' AND split = 'confirm' GROUP BY condition
        """
        found = {name: (count, solved) for name, count, solved in duckdb.sql(query).fetchall()}
    else:
        import polars

        lazy = polars.scan_parquet(file)
        lazy = lazy.filter((polars.col("condition") != FAILED) & (polars.col("split") == "confirm"))
        counts = lazy.group_by("condition").agg(polars.len(), polars.col("success").sum().alias("solved"))
        found = {name: (count, solved) for name, count, solved in counts.collect().iter_rows()}
    assert found == {name: (int(line["size"]), int(line["sum"])) for name, line in wanted.iterrows()}
    assert found["normal"][0] >= 1000
