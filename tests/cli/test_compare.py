"""`m2ray.compare`: two results, paired where they can be, with intervals, a picture and refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
from made_rows import GOOD, make_rows
from PIL import Image

from m2ray.cli.compare import main
from m2ray.evaluation.rows import write_rows
from m2ray.util.errors import UserError

RECIPE = Path(__file__).parents[2] / "results" / "recipe-mini"
BETTER = {**GOOD, "normal": 0.85}


@pytest.fixture
def results(tmp_path):
    """Folder `a` with one configuration over three seeds, `b` with a better one, beside others of it."""
    for name, shares in (("a", GOOD), ("b", BETTER)):
        parts = [make_rows(shares, name, seed) for seed in range(3)]
        parts += [make_rows(BETTER, f"{name}-other"), make_rows(BETTER, name, split="search")]
        rows = pd.concat(parts if name == "b" else parts[:3], ignore_index=True).drop_duplicates()
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "rows.parquet", rows)
    return tmp_path


def compared(capsys, *argv):
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def by_name(found):
    return {difference["condition"]: difference for difference in found["differences"]}


def refused(*argv):
    with pytest.raises(UserError) as error:
        main(list(map(str, argv)))
    return str(error.value)


def test_two_folders_on_the_same_episodes_are_paired(results, capsys):
    found = compared(capsys, f"{results}/b:b", results / "a")
    assert found["paired"]
    assert found["why"] == "the same receiver, task and 200 episodes"
    assert (found["a"]["n"], found["a"]["seeds"]) == (200, [0, 1, 2])
    normal = by_name(found)["normal"]
    assert (normal["a"], normal["b"], normal["difference"]) == (0.85, 0.75, 0.1)
    assert normal["ci_low"] < 0.1 < normal["ci_high"]
    assert by_name(found)["normal - P0"]["difference"] == 0.1
    assert by_name(found)["retention"]["difference"] == pytest.approx(0.1 / 0.6, abs=1e-6)
    assert found["same"] == ["null", "P0", "P1", "identity"]


def test_one_seed_each_is_tangos_paired_test(tmp_path, capsys):
    """12 and 2 discordant of 50: Newcombe (1998), table II."""
    lines = []
    for name, alone in (("x", range(12)), ("y", range(12, 14))):
        for i in range(50):
            lines.append({"id": i, "condition": "normal", "codec": name, "success": int(i in alone or i >= 40)})
    file = tmp_path / "both.csv"
    pd.DataFrame(lines).to_csv(file, index=False)
    normal = by_name(compared(capsys, f"{file}:x", f"{file}:y"))["normal"]
    assert normal["difference"] == 0.2
    assert [normal["ci_low"], normal["ci_high"]] == pytest.approx([0.0611, 0.3447], abs=5e-5)


def test_swapped_they_give_the_opposite(results, capsys):
    one = by_name(compared(capsys, f"{results}/b:b", results / "a"))["normal"]
    other = by_name(compared(capsys, results / "a", f"{results}/b:b"))["normal"]
    assert (other["difference"], other["p"]) == (-one["difference"], pytest.approx(one["p"]))
    assert (other["ci_low"], other["ci_high"]) == (-one["ci_high"], -one["ci_low"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"receiver": "other"}, "receiver other and r"),
        ({"task": "hard"}, "task hard and easy"),
        ({"message": "its number"}, None),
    ],
)
def test_another_receiver_or_task_is_not_paired(results, change, why, capsys):
    rows = pd.concat([make_rows(BETTER, "c", seed) for seed in range(3)], ignore_index=True).drop_duplicates()
    change = {"message": rows.episode.astype(str)} if why is None else change
    write_rows(results / "c.parquet", rows.assign(**change))
    found = compared(capsys, results / "c.parquet", results / "a")
    assert found["paired"] == (why is None)  # messages that only one of them names do not tell
    if why:
        assert found["why"] == why
        assert by_name(found)["P1"]["difference"] == 0  # of two samples, so it has an interval
        assert by_name(found)["P1"]["ci_low"] < 0


def test_other_episodes_or_messages_are_not_paired(results, capsys):
    rows = make_rows(BETTER, "c")
    write_rows(results / "moved.parquet", rows.assign(episode=rows.episode + 150))
    found = compared(capsys, results / "moved.parquet", results / "a")
    assert (found["paired"], found["why"]) == (False, "other episodes: 50 of 200 and 200 are the same")
    for name, prefix in (("one", "a"), ("two", "b")):
        write_rows(results / f"{name}.parquet", rows.assign(message=prefix + rows.episode.astype(str)))
    found = compared(capsys, results / "one.parquet", results / "two.parquet")
    assert not found["paired"]
    assert found["why"] == "other messages under the same numbers, as in episode 2000"


def test_what_a_grown_sweep_judged_later_is_compared_on_the_messages_of_its_look(results, capsys):
    """The split confirm holds the first look only, and both have rows on the search split."""
    later = make_rows(BETTER, "later")
    rows = [
        *(make_rows(GOOD, "first", seed) for seed in range(3)),
        *(make_rows(GOOD, name, split="search") for name in ("first", "later")),
        later.assign(split="confirm-2", episode=later.episode + 5000, partner=later.partner + 5000),
    ]
    (results / "grown").mkdir()
    write_rows(results / "grown" / "rows.parquet", pd.concat(rows, ignore_index=True).drop_duplicates())
    first, later = (f"{results}/grown:{name}" for name in ("first", "later"))
    found = compared(capsys, later, first)
    assert (found["paired"], found["a"]["n"], found["b"]["n"]) == (False, 200, 200)
    assert main([later, first]) == 0
    assert "split confirm-2, n = 200" in capsys.readouterr().out
    assert compared(capsys, later, first, "--split", "search")["paired"]
    assert compared(capsys, first, results / "a")["paired"]


def test_a_part_of_the_episodes_is_compared_on_that_part(results, capsys):
    rows = make_rows(BETTER, "c")
    write_rows(results / "part.parquet", rows[rows.episode < 2100])
    found = compared(capsys, results / "part.parquet", results / "a")
    assert (found["paired"], found["why"]) == (True, "the same receiver, task and 100 episodes of 100 and 200")
    assert found["a"]["n"] == found["b"]["n"] == 100


def test_two_samples_are_compared_nearly_as_by_welchs_test(tmp_path, capsys):
    """Banerjee's bound is a little wider than Welch's, which errs where one of two small samples varies little."""
    rng = np.random.default_rng(0)
    scores = [rng.uniform(0, 1, 40), rng.uniform(0.2, 1, 60)]
    for name, own in zip("xy", scores, strict=True):
        table = pd.DataFrame({"id": [f"{name}{i}" for i in range(len(own))], "condition": "normal", "score": own})
        table.to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    found = compared(capsys, tmp_path / "x.jsonl", tmp_path / "y.jsonl")
    expected = scipy.stats.ttest_ind(*scores, equal_var=False)
    interval = expected.confidence_interval()
    normal = by_name(found)["normal"]
    assert not found["paired"]
    assert expected.pvalue < normal["p"] < 1.05 * expected.pvalue
    assert interval.low - 0.002 < normal["ci_low"] < interval.low
    assert interval.high < normal["ci_high"] < interval.high + 0.002


def test_repeated_messages_are_clusters(tmp_path, capsys):
    """Sixteen times each message: as many independent outcomes as there are messages."""
    rows = make_rows(GOOD, "c")
    second = make_rows(BETTER, "d")
    messages = (rows.episode // 16).astype(str)
    write_rows(tmp_path / "c.parquet", rows.assign(message=messages))
    write_rows(tmp_path / "d.parquet", second.assign(message=messages))
    found = compared(capsys, tmp_path / "c.parquet", tmp_path / "d.parquet")
    assert found["a"]["clusters"] == found["b"]["clusters"] == 13


def test_the_table_names_both_says_how_it_compares_and_what_it_finds(results, capsys):
    assert main([f"{results}/b:b", str(results / "a"), "--conditions", "normal,P0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A: {results}/b:b, split confirm, n = 200, 3 training seeds"
    assert lines[2] == "Paired: the same receiver, task and 200 episodes."
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        *("condition", "normal", "normal - P0", "retention")
    ]
    assert "The same rows in both, so not compared: P0." in lines
    assert lines[-1].startswith("A solves more than B under normal: +10.0 [")


def test_a_result_beside_itself_or_a_copy_is_said_to_be_the_same_rows(results, capsys):
    """Of another name and in another order too, but not two codecs that answer alike."""
    rows = pd.concat([make_rows(GOOD, "a", seed) for seed in range(3)], ignore_index=True).drop_duplicates()
    write_rows(results / "copy.parquet", rows.replace({"config": {"a": "renamed"}}).sample(frac=1, random_state=0))
    write_rows(results / "alike.parquet", rows.assign(checkpoint=rows.checkpoint.replace("a", "c", regex=True)))
    line = "A and B are the same rows (n = 200, 3 training seeds), so there is nothing to compare.\n"
    for other in (results / "a", results / "copy.parquet"):
        assert main([str(results / "a"), str(other), "--figure", str(results / "none.png")]) == 0
        assert capsys.readouterr().out == line
        found = compared(capsys, results / "a", other)
        assert (found["differences"], "normal" in found["same"]) == ([], True)
    assert not (results / "none.png").exists()
    alike = compared(capsys, results / "a", results / "alike.parquet")
    assert by_name(alike)["normal"]["difference"] == 0
    assert "P0" in alike["same"]


def test_outcomes_beside_a_copy_are_the_same_rows_but_two_systems_that_solve_all_are_not(tmp_path, capsys):
    some = pd.DataFrame(
        {"id": range(60), "condition": ["normal", "P0", "P1"] * 20, "success": [1, 0, 1, 1, 0, 0] * 10}
    )
    some["id"] //= 3
    every = some.assign(success=1)
    for name, table in (("x", some), ("y", some.sample(frac=1, random_state=0)), ("all", every), ("full", every)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    for one, other in (("x", "x"), ("x", "y"), ("all", "all")):
        assert main([f"{tmp_path}/{one}.csv", f"{tmp_path}/{other}.csv"]) == 0
        assert capsys.readouterr().out == "A and B are the same rows (n = 20), so there is nothing to compare.\n"
    alike = by_name(compared(capsys, tmp_path / "all.csv", tmp_path / "full.csv"))["normal"]
    assert alike["ci_low"] < 0 == alike["difference"] < alike["ci_high"]


def test_published_configurations_are_compared_without_torch(tmp_path):
    figure = tmp_path / "figure.png"
    code = (
        "import sys; from m2ray.cli.compare import main; "
        f"main(['{RECIPE}:k16', '{RECIPE}:k8', '--figure', '{figure}']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "A solves more than B under normal: +12.5 [" in done.stdout
    assert done.stdout.endswith(f"figure: {figure}\n")
    assert Image.open(figure).size[0] > 800


def test_what_cannot_be_compared_is_one_line(results, tmp_path):
    file = tmp_path / "text.csv"
    file.write_text("id,condition,success\n1,P5,1\n2,P5,0\n")
    assert refused(results / "b", results / "a") == (
        f"{results}/b: holds 2 configurations; name one, such as {results}/b:b, of b, b-other"
    )
    assert refused(f"{results}/b:x", results / "a") == (
        f"{results}/b: no configuration 'x' on split confirm; choose from b, b-other"
    )
    assert refused(results / "a", file).startswith(f"{results}/a and {file} have no condition in common (")
    assert refused(results / "a", results / "gone").startswith(f"{results}/gone: no such file;")
    assert refused(results / "a", f"{results}/b:b", "--conditions", "near").startswith(
        f"--conditions: near: {results}/a does not have it; use some of P0, P1,"
    )
    assert refused(results / "a", f"{results}/b:b", "--split", "select") == (
        f"--split: {results}/a has none of that name; choose from confirm"
    )
    assert refused(results / "a", file, "--split", "confirm").startswith(
        "--split: goes with rows of m2ray.evaluate;"
    )
    assert refused(results / "a", f"{results}/b:b", "--figure", "x.txt").startswith("--figure x.txt: name it ")


def test_one_name_serves_both_folders(results, capsys):
    write_rows(
        results / "other.parquet", pd.concat([make_rows(GOOD, "b"), make_rows(GOOD, "z")]).drop_duplicates()
    )
    found = compared(capsys, results / "b", results / "other.parquet", "--config", "b")
    assert (found["a"]["name"], found["b"]["name"]) == (f"{results}/b:b", f"{results}/other.parquet:b")


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    for name in "xy":
        table = pd.DataFrame(
            {"id": range(20), "condition": "normal", "success": [name == "x", True] * 10, "gruop": 1}
        )
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    found = compared(capsys, tmp_path / "x.csv", tmp_path / "y.csv")
    assert f"{tmp_path}/x.csv: not read: column gruop" in found["notes"]


@pytest.mark.parametrize("file", ["leaderboard.csv", "leaderboard.md", "trials.jsonl"])
def test_a_file_of_a_sweep_that_holds_no_rows_points_to_the_folder(file):
    with pytest.raises(UserError, match=r"name its folder, results/held-out$"):
        main([f"results/held-out/{file}", "results/held-out"])
