"""sweep.yaml: what may not change unnoticed under a sweep's name, and what is noted when it is changed."""

import hashlib
import os
import time

import pytest
import yaml
from made_episodes import write_episodes
from sweeps import SPACE, write_space

from m2ray.cli import sweep
from m2ray.cli.runner import DONE
from m2ray.cli.sweep import main
from m2ray.config.gate_file import load_plan_gate
from m2ray.config.plan import load_plan
from m2ray.config.sweep_record import read_sweep_record, record_file, write_sweep_record
from m2ray.engine import cluster
from m2ray.engine.record import describe_sweep, lock_results_folder, settle_changes
from m2ray.reporting.provenance import provenance
from m2ray.util.errors import UserError

ABOUT = {
    "command": "python -m m2ray.sweep space.yaml",
    "date": "2026-11-01",
    "receiver": {"name": "mini", "digest": "a1"},
    "space": {"name": "small", "search": {"trials": 2, "seeds": [0]}},
    "points": {},
    "gate": {"alpha": 0.05},
    "code": "c0",
    "packages": {"torch": "2.13.0", "ray": "2.60.0"},
}


def changed(**values):
    """ABOUT with dotted keys set, written with __."""
    tree = yaml.safe_load(yaml.safe_dump(ABOUT))
    for key, value in values.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "now", "says"),
    [
        ("space__search__trials", 5, "space.search.trials: differs from what this sweep began with (was 2, is 5)"),
        (
            "space__search__seeds",
            [0, 1],
            "space.search.seeds: differs from what this sweep began with (was [0], is",
        ),
        ("receiver__digest", "b2", "receiver.digest: differs from what this sweep began with (was 'a1', is 'b2')"),
        ("code", "c1", "code: differs from what this sweep began with (was 'c0', is 'c1')"),
        ("packages__torch", "2.14.0", "packages.torch: differs from what this sweep began with (was '2.13.0', is"),
        ("gate__alpha", 0.01, "gate.alpha: differs"),
    ],
)
def test_a_change_is_refused_with_what_it_was_and_is_or_recorded_where_it_is_accepted(tmp_path, key, now, says):
    write_sweep_record(tmp_path, ABOUT)
    with pytest.raises(UserError) as raised:
        settle_changes(tmp_path, changed(**{key: now}), accept=False)
    assert str(raised.value).startswith(f"{tmp_path}/sweep.yaml: {says}")
    assert read_sweep_record(tmp_path) == ABOUT, "a refusal changes nothing"

    settle_changes(tmp_path, changed(date="2026-11-24", command="other", **{key: now}), accept=True)
    noted = read_sweep_record(tmp_path)
    (change,) = noted.pop("changes")
    assert noted == changed(**{key: now}), "how and when it began stays"
    assert (change["date"], change["now"]) == ("2026-11-24", now)
    assert any(
        f"Resumed on 2026-11-24 with changed settings: {change['key']}; their values before" in line
        for line in provenance({**noted, "changes": [change]})
    )
    settle_changes(tmp_path, changed(**{key: now}), accept=False)  # nothing differs from now on


def test_a_budget_may_change_between_runs(tmp_path):
    write_sweep_record(tmp_path, ABOUT)
    for hours in (2, 5, None):
        now = changed(space__search__max_hours=hours)
        settle_changes(tmp_path, now, accept=False)
        record = read_sweep_record(tmp_path)
        assert record["space"] == now["space"]
        assert "changes" not in record


def test_another_file_of_episodes_is_never_accepted(tmp_path):
    write_sweep_record(tmp_path, {**ABOUT, "task_file": "d0"})
    for now in ({"task_file": "d1"}, {}):
        for accept in (False, True):
            with pytest.raises(UserError) as raised:
                settle_changes(tmp_path, {**ABOUT, **now}, accept)
            assert str(raised.value).startswith(
                f"{tmp_path}/sweep.yaml: task_file: the episodes of task.file differ from those that this sweep "
                f"began with (digest {now.get('task_file')}, was d0); restore the file"
            )
    settle_changes(tmp_path, {**ABOUT, "task_file": "d0"}, accept=False)


def test_the_record_of_a_sweep_has_the_digest_of_its_file_of_episodes(tmp_path):
    episodes_file = tmp_path / "episodes.jsonl"
    write_episodes(episodes_file, 4)
    plan = load_plan(write_space(tmp_path, trial={"task": {"file": str(episodes_file)}}))
    gate = load_plan_gate(plan)
    digests = [describe_sweep(plan, gate, [])["task_file"] for _ in range(2)]
    episodes_file.write_text(episodes_file.read_text() + "\n")
    assert digests == [hashlib.sha256(episodes_file.read_bytes()[:-1]).hexdigest()[:16]] * 2
    assert describe_sweep(plan, gate, [])["task_file"] != digests[0]


def test_a_second_sweep_in_a_folder_is_refused_with_the_first_ones_process(tmp_path, monkeypatch, capsys):
    """A resumed one at once, before Ray starts, and a new one where the first has begun since it looked."""
    monkeypatch.setattr(cluster, "start", lambda *args, **named: None)
    monkeypatch.setattr(cluster, "check_resources", lambda *args, **named: None)
    monkeypatch.chdir(tmp_path)
    file, folder = write_space(tmp_path), tmp_path / "results" / "small"
    plan = load_plan(file)
    says = (
        rf"results/small: another sweep runs there \(process {os.getpid()} on \S+, since .*\); wait for it, stop"
    )
    with lock_results_folder(folder):
        with pytest.raises(UserError, match=says):
            main([str(file)])
        record = describe_sweep(plan, load_plan_gate(plan), [str(file)])
        write_sweep_record(folder, record)
        with pytest.raises(UserError, match=says):
            main([str(file), "--resume"])
    monkeypatch.setattr(sweep, "run_sweep", lambda *rest: DONE)
    assert main([str(file), "--resume"]) == DONE
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]
    assert capsys.readouterr().err == ""


def test_several_changes_are_counted_and_later_ones_come_behind_earlier_ones(tmp_path):
    write_sweep_record(tmp_path, ABOUT)
    with pytest.raises(UserError, match=r"space.search.trials: .*\(was 2, is 3; 1 more\); restore it"):
        settle_changes(tmp_path, changed(space__search__trials=3, code="c1"), accept=False)
    settle_changes(tmp_path, changed(space__search__trials=3, code="c1"), accept=True)
    settle_changes(tmp_path, changed(space__search__trials=4, code="c1"), accept=True)
    noted = [(c["key"], c["before"], c["now"]) for c in read_sweep_record(tmp_path)["changes"]]
    assert noted == [("space.search.trials", 2, 3), ("code", "c0", "c1"), ("space.search.trials", 3, 4)]


def test_points_that_are_taken_out_stay_in_the_record_as_withdrawn(tmp_path):
    points = {"a": {"k": 4}, "b": {"k": 8}, "c": {"k": 16}}
    write_sweep_record(tmp_path, {**ABOUT, "points": points})

    def resume(date, *names):
        settle_changes(tmp_path, changed(date=date, points={name: points[name] for name in names}), accept=True)
        return read_sweep_record(tmp_path)

    with pytest.raises(
        UserError, match=r"points.a: differs from what this sweep began with \(was {'k': 4}, is None"
    ):
        settle_changes(tmp_path, ABOUT, accept=False)
    record = resume("2026-11-02", "b", "c")
    assert record["withdrawn"] == {"a": "2026-11-02"}
    assert record["changes"] == [{"date": "2026-11-02", "key": "points.a", "before": {"k": 4}, "now": None}]
    assert record["points"].keys() == {"b", "c"}
    assert resume("2026-11-03", "c")["withdrawn"] == {"a": "2026-11-02", "b": "2026-11-03"}
    assert resume("2026-11-04", "a", "c")["withdrawn"] == {"b": "2026-11-03"}, "a is a point again"
    assert "withdrawn" not in resume("2026-11-05", "a", "b", "c")


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ({"a": {"codec": {"k": 4}}, "new": {}}, "points.new: was added"),
        ({"a": {"codec": {"k": 8}}}, "points.a: has other settings"),
        ({"a": {"codec": {"k": 4}, "training": {"epochs": 3}}}, "points.a: has other settings"),
    ],
)
def test_points_cannot_be_added_or_changed_after_the_start(tmp_path, points, says):
    write_sweep_record(tmp_path, {**ABOUT, "points": {"a": {"codec": {"k": 4}}}})
    with pytest.raises(UserError, match=f"sweep.yaml: {says}; points are fixed when a sweep starts: restore it"):
        settle_changes(tmp_path, changed(points=points), accept=True)
    others = {"a": {"codec": {"k": 4, "width": 256}, "receiver": "moved", "evaluation": {"batch_size": 8}}}
    settle_changes(tmp_path, changed(points=others), accept=True)  # what a point is trained with is the same


@pytest.mark.parametrize(
    "text",
    [
        *("receiver: 5", "gate: []", "points: [a]"),
        *("changes: {}", "changes: [1]", "changes: [{key: a, before: 1, now: 2}]"),
        *("looks: {}", "looks: [first]", "looks: [{date: a, key: b}]", "extensions: 3"),
        *("withdrawn: [a]", "withdrawn: {a: [1]}"),
    ],
)
def test_a_file_that_no_sweep_wrote_is_refused(tmp_path, text):
    record_file(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"sweep.yaml: \w+: not what a sweep writes there; restore the file"):
        read_sweep_record(tmp_path)


def test_the_command_line_records_what_it_is_told_to_accept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sweep, "run_sweep", lambda plan, gate, root, *rest: root.mkdir(parents=True, exist_ok=True) or DONE
    )
    monkeypatch.setattr(cluster, "start", lambda *args, **named: None)
    monkeypatch.chdir(tmp_path)
    file = write_space(tmp_path)
    assert main([str(file)]) == DONE
    plan = load_plan(file)
    write_sweep_record(tmp_path / "results" / "small", describe_sweep(plan, load_plan_gate(plan), [str(file)]))
    assert main([str(file), "--resume"]) == DONE
    write_space(tmp_path, search={**SPACE["search"], "trials": 3})
    with pytest.raises(UserError, match=r"space.search.trials: differs .*\(was 2, is 3\)"):
        main([str(file), "--resume"])
    assert main([str(file), "--resume", "--accept-changes"]) == DONE
    (change,) = read_sweep_record(tmp_path / "results" / "small")["changes"]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert change == {"date": today, "key": "space.search.trials", "before": 2, "now": 3}
    assert main([str(file), "--resume"]) == DONE
