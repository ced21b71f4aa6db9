"""Sweeps that grow: trials and training seeds are added, and are judged on messages that nobody has looked at."""

import functools
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import scipy
import yaml
from scripted_sweep import SPACE, ScriptedSweep

from m2ray.config.gate_file import load_gate
from m2ray.config.sweep_record import read_sweep_record
from m2ray.engine.growing.confirm_looks import read_seeds, write_seeds
from m2ray.evaluation.confirm_ledger import FOLDER_VARIABLE, looks_of
from m2ray.evaluation.row_selection import configuration_rows
from m2ray.evaluation.rows import RowStore
from m2ray.judging import false_pass
from m2ray.judging.arms import ScoreArms
from m2ray.judging.false_pass import NULLS, draw_outcomes
from m2ray.judging.gate import holm_levels, joint_p_value, judge_arms
from m2ray.judging.holm import holm
from m2ray.judging.row_arms import RowArms
from m2ray.judging.verdict import FAIL, PART, PASSES
from m2ray.receiver import episode_source
from m2ray.tasks.text_episodes import read_text_episodes
from m2ray.tasks.text_splits import clusters, part_of_group
from m2ray.util.errors import UserError

NOTHING = next(world for world in NULLS if world.name == "wrong hurts, right does not help").rates(0.37)
# The codec that the gate passes most often of all that it must not pass: a single criterion is at its margin.
AT_THE_MARGIN = next(world for world in NULLS if world.name == "at the margin of no message alone").rates(0.37)
GOOD = {**NOTHING, "normal": 0.9, "shuffle": 0.1, "near": 0.1}


FEW = {"splits": {**SPACE["trial"]["splits"], "confirm": "2000:2040"}}


def few(tmp_path, **space) -> ScriptedSweep:
    """A sweep with few episodes, for what does not depend on the verdict."""
    return ScriptedSweep(tmp_path, GOOD, trial={**SPACE["trial"], **FEW}, **space)


def looks(sweep) -> list[dict]:
    return read_sweep_record(sweep.root)["looks"]


def messages(rows, split) -> set[str]:
    return set(rows.message[rows.split == split])


def test_added_trials_are_judged_on_fresh_messages_and_nothing_is_done_again(tmp_path, monkeypatch):
    sweep = few(tmp_path)
    sweep.run(monkeypatch)
    before, first = RowStore(sweep.root).read(), list(sweep.trained)
    assert len(first) == 3
    board = sweep.leaderboard()
    assert set(board[board.split == "confirm"].config) == {"control", looks(sweep)[0]["configurations"][1]}

    for extension in (2, 3):
        known = set(sweep.trained)
        sweep.run(monkeypatch, trials=3)
        assert len(sweep.trained) == 3 + 3 * (extension - 1)
        assert not known & set(sweep.trained[len(known) :])
    after = RowStore(sweep.root).read()
    kept = after.merge(before, how="inner")
    assert len(kept) == len(before), "every row is as it was"
    taken = looks(sweep)
    assert len(taken) == 3
    splits = [look["split"] for look in taken]
    assert splits == ["confirm", *(f"confirm-{i}" for i in range(2, len(taken) + 1))]
    judged = list(itertools.chain(*(look["configurations"] for look in taken)))
    assert len(judged) == len(set(judged)), "nothing is judged twice"
    for one, other in itertools.combinations(splits, 2):
        assert not messages(after, one) & messages(after, other)
    for split in splits[1:]:
        assert len(messages(after, split)) == after[after.split == split].episode.nunique() == 40
    board = sweep.leaderboard()
    assert set(board[board.split.isin(splits)].config) == set(judged)
    summary = looks_of(sweep.root)[0]
    assert summary.startswith(f"{len(taken)} looks at confirm: ")
    assert f"all {len(judged)} verdicts" in summary
    assert summary in (sweep.root / "leaderboard.md").read_text().splitlines()


def test_a_resumed_sweep_takes_no_further_look(tmp_path, monkeypatch):
    sweep = few(tmp_path)
    sweep.run(monkeypatch)
    sweep.run(monkeypatch, trials=4)
    record, rows, trained = read_sweep_record(sweep.root), RowStore(sweep.root).read(), list(sweep.trained)
    sweep.run(monkeypatch)
    assert sweep.evaluated == []
    assert (read_sweep_record(sweep.root), sweep.trained) == (record, trained)
    pd.testing.assert_frame_equal(RowStore(sweep.root).read(), rows)


def test_a_sweep_killed_in_its_look_continues_it(tmp_path, monkeypatch):
    sweep = few(tmp_path)
    sweep.run(monkeypatch)
    while len(looks(sweep)) < 2:
        sweep.run(monkeypatch, trials=2)
    record, rows = read_sweep_record(sweep.root), RowStore(sweep.root).read()
    store = RowStore(sweep.root)
    store.whole.unlink()
    store.append(rows[(rows.split != "confirm-2") | (rows.condition == "P0")])
    sweep.run(monkeypatch)
    assert read_sweep_record(sweep.root) == record
    pd.testing.assert_frame_equal(RowStore(sweep.root).read(), rows)
    write_sweep = {**record, "looks": record["looks"][:1]}  # killed between ledger and record
    (sweep.root / "sweep.yaml").write_text(yaml.safe_dump(write_sweep))
    sweep.run(monkeypatch)
    assert looks(sweep)[1]["seeds"] == record["looks"][1]["seeds"]


def test_added_seeds_judge_points_and_winners_anew_with_all_of_them(tmp_path, monkeypatch):
    sweep = few(tmp_path)
    sweep.run(monkeypatch)
    winner = looks(sweep)[0]["configurations"][1]
    sweep.run(monkeypatch, seeds=(3, 4))
    assert sweep.trained[3:] == [("control", 3), ("control", 4), (winner, 3), (winner, 4)]
    assert looks(sweep)[1]["training_seeds"] == [0, 3, 4]
    now = sweep.leaderboard()
    own = now[now.config == winner]
    assert own.seeds.tolist() == ["0 3 4", "0", "3", "4"]
    assert (own.split == "confirm-2").all()
    assert re.search(r"INVALID SETTING on confirm\)", own.reason.iloc[0])
    rows = RowStore(sweep.root).read()
    assert set(rows[(rows.config == winner) & (rows.split == "confirm")].seed) == {0}
    sweep.run(monkeypatch, trials=3)
    assert {seed for name, seed in sweep.trained if name == looks(sweep)[-1]["configurations"][0]} == {0, 3, 4}


def test_another_space_after_the_look_is_judged_on_fresh_messages_too(tmp_path, monkeypatch):
    """More trials by --resume --accept-changes, and back again."""
    sweep = few(tmp_path)
    sweep.run(monkeypatch)
    sweep.write(search={"trials": 9})
    sweep.run(monkeypatch)
    assert [look["split"] for look in looks(sweep)] == ["confirm", "confirm-2"]
    sweep.write()
    sweep.run(monkeypatch, seeds=(1,))
    assert [look["split"] for look in looks(sweep)] == ["confirm", "confirm-2", "confirm-3"]
    rows = RowStore(sweep.root).read()
    assert len(messages(rows, "confirm") | messages(rows, "confirm-2") | messages(rows, "confirm-3")) == 3 * 40


def test_a_part_without_fresh_messages_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    trial = {**SPACE["trial"], "task": {"level": "lookup-4x5"}}
    splits = {**trial["splits"], "confirm": "2000:2150"}
    sweep = ScriptedSweep(tmp_path, GOOD, trial={**trial, "splits": splits})
    sweep.run(monkeypatch)
    trained = list(sweep.trained)
    says = r"a further look at confirm needs 150 messages that nobody has looked at, and level lookup-4x5 has \d+;"
    with pytest.raises(UserError, match=says):
        sweep.run(monkeypatch, trials=2)
    assert sweep.trained == trained
    assert "extensions" not in read_sweep_record(sweep.root)
    sweep.run(monkeypatch)  # as it was


def write_lines(file, groups, questions=2):
    """Write a text task: each group has a paragraph of its own in two wordings, with a question on either."""
    names = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(groups)]
    lines = [
        {
            "id": f"{name}-{question}",
            "message": f"{name * 9} keeps {name[::-1] * 7} in box {question}.",
            "prompt": "Which box?",
            "target": str(question),
            "group": name,
        }
        for first in range(0, groups, 100)
        for question in range(questions)  # the lines of a group are apart in the file
        for name in names[first : first + 100]
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def text_sweep(tmp_path, confirm, groups=600):
    write_lines(tmp_path / "mine.jsonl", groups)
    task = {"file": str(tmp_path / "mine.jsonl"), "scorer": "contains"}
    splits = {"train": "0:40", "search": "0:20", "select": "0:20", "confirm": confirm}
    return ScriptedSweep(tmp_path, GOOD, trial={**SPACE["trial"], "task": task, "splits": splits})


@pytest.mark.parametrize("added", [{"trials": 2}, {"seeds": (3,)}])
def test_a_text_file_has_fresh_groups_for_what_is_added(tmp_path, monkeypatch, added):
    """Neither lines of a group that was looked at, nor near-duplicates of it."""
    sweep = text_sweep(tmp_path, "0:30")
    sweep.run(monkeypatch)
    before = RowStore(sweep.root).read()
    sweep.run(monkeypatch, **added)
    after = RowStore(sweep.root).read()
    assert len(after.merge(before, how="inner")) == len(before), "every row is as it was"
    lines = read_text_episodes(tmp_path / "mine.jsonl")
    names = clusters(lines)
    first, second = ({*after.episode[after.split == split]} for split in ("confirm", "confirm-2"))
    assert len(first) == len(second) == 30
    assert not {names[line] for line in first} & {names[line] for line in second}
    assert {part_of_group(names[line]) for line in second} == {"confirm"}


def test_a_text_file_without_fresh_groups_says_so_and_what_helps(tmp_path, monkeypatch):
    sweep = text_sweep(tmp_path, "0:40", groups=300)
    sweep.run(monkeypatch)
    trained = list(sweep.trained)
    says = (
        r"a further look at confirm needs 40 episodes of groups that nobody has looked at, and .*mine.jsonl has "
        r"\d+; start a new sweep with a larger file, or with fewer in splits.confirm$"
    )
    for added in ({"trials": 2}, {"seeds": (3,)}):
        with pytest.raises(UserError, match=says):
            sweep.run(monkeypatch, **added)
    assert sweep.trained == trained
    sweep.run(monkeypatch)  # as it was


def test_what_cannot_be_added_is_refused(tmp_path, monkeypatch):
    axes = {"codec.k": {"choice": [4, 8]}}
    sweep = few(tmp_path, axes=axes)
    sweep.run(monkeypatch)
    with pytest.raises(UserError, match=r"--add-trials: the axes of .* have no further combination; widen them"):
        sweep.run(monkeypatch, trials=2)
    with pytest.raises(UserError, match=r"--add-seeds: 0 is a training seed already; give others"):
        sweep.run(monkeypatch, seeds=(0,))
    with pytest.raises(UserError, match=r"--add-seeds: 3 is a training seed already"):
        sweep.run(monkeypatch, seeds=(3, 3))


def test_seeds_are_written_as_ranges():
    for seeds in ([5], [5, 6, 7], [5, 7, 8, 11]):
        assert read_seeds(write_seeds(seeds)) == seeds
    with pytest.raises(UserError, match=r"sweep.yaml: looks.seeds: 'x' are not seeds"):
        read_seeds("x")


# --- how often nothing passes --------------------------------------------------------------------------------


def grown(folder, monkeypatch, rates, seed, extensions) -> ScriptedSweep:
    """Run a sweep and its extensions, each of which has a winner of its own."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "ledger"))
    search = {"trials": 1, "startup": 1000}
    sweep = ScriptedSweep(
        folder, rates, seed, points={}, search=search, judge={"select": 1, "confirm": 1, "diagnose": 0}
    )
    sweep.run(monkeypatch)
    for _ in range(extensions):
        sweep.run(monkeypatch, trials=1)
    assert len(looks(sweep)) == 1 + extensions
    return sweep


def passes(sweep) -> bool:
    return bool(sweep.leaderboard().verdict.isin([*PASSES, PART]).any())


def test_a_sweep_of_codecs_that_carry_nothing_shows_no_pass_when_it_has_grown(tmp_path, monkeypatch):
    sweep = grown(tmp_path, monkeypatch, NOTHING, seed=1, extensions=2)
    assert not passes(sweep)
    assert sweep.leaderboard().verdict.tolist() == [FAIL] * 3
    sweep.rates = GOOD
    sweep.run(monkeypatch, trials=1)
    assert passes(sweep), "what carries the message is found all the same"


def expected(sweep) -> list[str]:
    """Return the verdict of each look by the gate itself, with Holm's correction over all looks."""
    rows = RowStore(sweep.root).read()
    cells = [(look["configurations"][0], look["split"]) for look in looks(sweep)]
    arms = [RowArms(configuration_rows(rows, *cell)) for cell in cells]
    return judged_together(arms, 8, sweep.gate)


def judged_together(arms, k, gate) -> list[str]:
    p_values = [joint_p_value(own, k, gate) for own in arms]
    return [
        judge_arms(own, k, gate, level, "rows").verdict
        for own, level in zip(arms, holm_levels(p_values, gate.alpha), strict=True)
    ]


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_after_ten_extensions_every_verdict_is_corrected_for_all_eleven_looks(tmp_path, monkeypatch):
    # The same episodes are drawn, and not twice.
    monkeypatch.setattr(episode_source, "draw_episode", functools.cache(episode_source.draw_episode))
    for seed, rates in enumerate((AT_THE_MARGIN, {**AT_THE_MARGIN, "normal": 0.55})):
        sweep = grown(tmp_path / str(seed), monkeypatch, rates, 1000 + seed, extensions=10)
        board = sweep.leaderboard().set_index("config").verdict
        assert [board[look["configurations"][0]] for look in looks(sweep)] == expected(sweep)


@pytest.mark.slow
def test_at_most_one_sweep_in_twenty_shows_a_pass_after_ten_extensions(monkeypatch):
    """Of codecs at the margin of one criterion, and far beyond it in all others: the worst that must not pass.

    The looks of a sweep are at different messages, so that each has outcomes of its own, and a correction over all
    (the test before this one): that is what is drawn here. No training is luckier than the margin.
    """
    monkeypatch.setattr(false_pass, "SPREAD", 0.0)
    sweeps, shown, ever, rng = 1000, 0, 0, np.random.default_rng(0)
    gate = load_gate("content")
    for _ in range(sweeps):
        drawn = [draw_outcomes(AT_THE_MARGIN, 1, 1, 300, rng)[0] for _ in range(11)]
        arms = [ScoreArms(own, [0]) for own in drawn]
        p_values = [joint_p_value(own, None, gate) for own in arms]
        if min(p_values) <= gate.alpha:
            shown += not {*PASSES, PART}.isdisjoint(judged_together(arms, None, gate))
            ever += any(min(holm(p_values[:count])) <= gate.alpha for count in range(1, 12))
    print(f"{shown} of {sweeps} show a PASS or PART after ten extensions, {ever} did at some time")
    assert scipy.stats.binom.sf(shown - 1, sweeps, 0.05) > 0.01
