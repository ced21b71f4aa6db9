"""What is trained next: points first, seeded suggestions, and a journal that a killed sweep goes on from."""

import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend

from m2ray.config.plan import Plan, config_name, load_plan
from m2ray.config.space import Space
from m2ray.engine.proposer import WAIT, OptunaProposer
from m2ray.util.errors import UserError
from m2ray.util.journal import Journal

COMPLETE, FAIL, RUNNING = (optuna.trial.TrialState[name] for name in ("COMPLETE", "FAIL", "RUNNING"))

SPACE = {
    "name": "s",
    "points": {"first": {}, "second": {"set": {"codec.k": 4}}},
    "axes": {
        "codec.k": {"choice": [4, 8, 12]},
        "training.lr": {"loguniform": [1e-4, 1e-2]},
        "codec.bottleneck": {"choice": ["none", "vq"]},
        "losses.commitment.weight": {"uniform": [0.1, 1.0], "when": {"codec.bottleneck": ["vq"]}},
    },
    "search": {"trials": 8, "startup": 3, "sampler_seed": 7},
}


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    return load_plan(file)


@pytest.fixture
def propose(plan, tmp_path):
    """A proposer over the journal of that name, as the next process after a kill would make it."""
    return lambda name="trials": OptunaProposer(
        plan, tmp_path / "checkpoints", Journal(tmp_path / f"{name}.jsonl")
    )


def score_of(settings) -> float:
    """Any function of a configuration that differs between configurations."""
    trial = json.loads(settings["trial"])
    return trial["training"]["lr"] * trial["codec"]["k"]


def run(proposer, count=100) -> list[str]:
    """Train, one after the other."""
    names = []
    while len(names) < count and (settings := proposer.propose()) is not None:
        proposer.finished(settings["config"], score_of(settings), "")
        names.append(settings["config"])
    return names


def states(proposer) -> list[tuple]:
    return [(t.number, t.params, t.value, t.state) for t in proposer.study.trials]


def test_points_come_first_then_as_many_suggestions_as_asked_for(propose):
    names = run(propose())
    assert names[:2] == ["first", "second"]
    assert len(names) == 10
    assert len(set(names)) == 10


def test_settings_say_all_that_a_trial_needs(propose, plan, tmp_path):
    proposer = propose()
    settings = [proposer.propose() for _ in range(3)]
    assert [s["point"] for s in settings] == [True, True, False]
    assert settings[1]["params"]["training.lr"] == 1e-3
    assert settings[2]["seeds"] == [0]
    assert settings[2]["root"] == str(tmp_path / "checkpoints")
    assert json.loads(settings[1]["trial"])["codec"]["k"] == 4
    assert "codec.k" not in settings[2]["params"]  # it has a column of its own
    json.dumps(settings)


def test_the_same_seed_and_order_suggest_the_same(propose):
    assert run(propose("a")) == run(propose("b"))


def test_another_sampler_seed_suggests_otherwise(propose, plan):
    space = plan.space.model_copy(update={"search": plan.space.search.model_copy(update={"sampler_seed": 8})})
    names = run(propose("a"))
    plan.space = space
    assert run(propose("b"))[2:] != names[2:]


def test_suggestions_turn_to_where_the_scores_are(propose, plan):
    plan.space = plan.space.model_copy(update={"search": plan.space.search.model_copy(update={"trials": 40})})
    proposer = propose()
    run(proposer)
    rates = [t.params["training.lr"] for t in proposer.study.trials]
    assert sum(rates[-20:]) > 2 * sum(rates[:10])


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 5, 7, 9, 10])
def test_a_killed_search_suggests_what_an_unbroken_one_does(propose, killed_after):
    whole = propose("whole")
    names = run(whole)
    first = run(propose("cut"), killed_after)
    resumed = propose("cut")
    assert first + run(resumed) == names
    assert states(resumed) == states(whole)


def test_what_was_running_is_trained_on_under_its_name_and_told_once(propose):
    whole = propose("whole")
    names = run(whole)
    cut = propose("cut")
    run(cut, 4)
    running = [cut.propose()["config"] for _ in range(2)]  # killed with both at work
    resumed = propose("cut")
    assert [state for *_, state in states(resumed)] == [COMPLETE] * 2 + [RUNNING] * 2
    again = run(resumed, 2)
    assert again == running
    assert running[0] == names[4]
    assert [state for *_, state in states(resumed)] == [COMPLETE] * 4
    assert len(run(resumed)) == 4
    assert [e["config"] for e in Journal(resumed._journal._file).entries() if e["event"] == "ended"].count(
        running[0]
    ) == 1


def test_a_point_that_was_running_goes_first_and_one_that_ended_does_not_come_again(propose):
    cut = propose()
    run(cut, 1)
    cut.propose()
    assert run(propose(), 1) == ["second"]


def test_failures_are_told_as_failures_and_remembered(propose):
    proposer = propose()
    run(proposer, 2)
    name = proposer.propose()["config"]
    proposer.finished(name, None, "loss nan at step 3; lower lr")
    run(proposer, 1)
    resumed = propose()
    for one in (proposer, resumed):
        assert [t.state for t in one.study.trials] == [FAIL, COMPLETE]
        assert one.failures == {name: "loss nan at step 3; lower lr"}
        assert one.ended == {"first", "second", *one._chosen}
    assert name not in run(resumed)


def space_plan(folder, **changes):
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({"name": "s", **changes}))
    return load_plan(file)


def test_a_setting_that_is_known_is_told_to_optuna_and_not_trained_again(tmp_path):
    axes = {"codec.k": {"choice": [4, 8, 12, 16]}}
    plan = space_plan(tmp_path, axes=axes, points={"p": {"set": {"codec.k": 4}}}, search={"trials": 3})
    proposer = OptunaProposer(plan, tmp_path, Journal(tmp_path / "trials.jsonl"))
    names = run(proposer)
    assert sorted(proposer.configs[name].codec.k for name in names) == [4, 8, 12, 16]
    trials = proposer.study.trials
    assert {trial.params["codec.k"] for trial in trials} == {4, 8, 12, 16} or len(trials) == 3
    for trial in trials:
        assert trial.state == COMPLETE
        assert trial.value == score_of({"trial": proposer.configs[trial.user_attrs["config"]].model_dump_json()})
        assert trial.params["codec.k"] == proposer.configs[trial.user_attrs["config"]].codec.k
    resumed = OptunaProposer(plan, tmp_path, Journal(tmp_path / "trials.jsonl"))
    assert states(resumed) == states(proposer)
    assert run(resumed) == []


def test_a_repeat_of_what_still_trains_is_told_when_that_has_ended(tmp_path):
    plan = space_plan(tmp_path, axes={"codec.k": {"choice": [4, 8, 12]}}, search={"trials": 3})
    proposer = OptunaProposer(plan, tmp_path, Journal(tmp_path / "trials.jsonl"))
    running = [proposer.propose()["config"] for _ in range(3)]
    assert proposer.propose() is None
    assert len(set(running)) == 3
    assert {state for *_, state in states(proposer)} == {RUNNING}
    for score, name in enumerate(running):
        proposer.finished(name, float(score), "")
    assert {state for *_, state in states(proposer)} == {COMPLETE}
    for trial in proposer.study.trials:
        assert trial.value == running.index(trial.user_attrs["config"])


@pytest.mark.parametrize("points", [{}, {"p": {"set": {"codec.k": 8}}}, {"p": {}, "q": {}}])
def test_a_space_without_further_configurations_ends(tmp_path, points):
    plan = space_plan(tmp_path, axes={"codec.k": {"choice": [4, 8]}}, points=points, search={"trials": 5})
    proposer = OptunaProposer(plan, tmp_path, Journal(tmp_path / "trials.jsonl"))
    names = run(proposer)
    assert names[: len(points)] == list(points)
    assert len(names) == len(set(names)) == proposer.total == {0: 2, 1: 2, 2: 3}[len(points)]
    assert sorted({config.codec.k for config in proposer.configs.values()}) == [4, 8]


def test_values_that_do_not_fit_together_are_a_failed_configuration(tmp_path):
    axes = {"training.batch_size": {"choice": [16, 32]}, "training.epoch_samples": {"choice": [16, 64]}}
    plan = space_plan(tmp_path, axes={"codec.k": {"choice": [8]}}, search={"trials": 1})
    plan = Plan(plan.space, plan.file)
    plan.space = Space.model_validate({"name": "s", "axes": axes, "search": {"trials": 4}})
    journal = Journal(tmp_path / "trials.jsonl")
    proposer = OptunaProposer(plan, tmp_path, journal)
    assert len(run(proposer)) == 3
    ((name, cause),) = proposer.failures.items()
    assert name.startswith("invalid-")
    assert "training.epoch_samples: smaller than a batch; raise it" in cause
    resumed = OptunaProposer(plan, tmp_path, journal)
    assert (resumed.failures, states(resumed)) == (proposer.failures, states(proposer))


@pytest.mark.parametrize("killed_after", [0, 3, 5])
def test_a_grid_trains_every_combination_once(tmp_path, killed_after):
    axes = {
        "codec.k": {"int": [4, 12], "step": 4},
        "codec.bottleneck": {"choice": ["none", "vq"]},
        "losses.commitment.weight": {"choice": [0.1, 0.2], "when": {"codec.bottleneck": ["vq"]}},
    }
    points = {"point": {"set": {"codec.k": 4}}}
    plan = space_plan(tmp_path, axes=axes, points=points, search={"sampler": "grid"})
    journal = Journal(tmp_path / "trials.jsonl")
    first = run(OptunaProposer(plan, tmp_path, journal), killed_after) if killed_after else []
    proposer = OptunaProposer(plan, tmp_path, journal)
    names = first + run(proposer)
    assert len(names) == len(set(names)) == proposer.total == 9
    found = {(c.codec.k, c.losses.commitment and c.losses.commitment.weight) for c in proposer.configs.values()}
    assert found == {(k, weight) for k in (4, 8, 12) for weight in (None, 0.1, 0.2)}
    assert {trial.state for trial in proposer.study.trials} == {COMPLETE}
    with pytest.raises(UserError, match=r"--add-trials: .*s.yaml is a grid, which has every combination"):
        plan.extended(2, [])


CHOICES = {
    "codec.k": st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    "training.batch_size": st.lists(st.sampled_from([8, 16, 32, 64]), min_size=1, max_size=3, unique=True),
    "training.epoch_samples": st.lists(st.sampled_from([16, 32, 64]), min_size=1, max_size=2, unique=True),
    "codec.bottleneck": st.just(["none", "vq"]),
    "losses.commitment.weight": st.lists(st.sampled_from([0.1, 0.2]), min_size=1, max_size=2, unique=True),
}


@st.composite
def spaces(draw):
    """Axes of choices, some of which apply only where another has a value; points; and any number of trials."""
    axes = {}
    for key, values in CHOICES.items():
        if key == "losses.commitment.weight":
            if "codec.bottleneck" in axes:
                axes[key] = {"choice": draw(values), "when": {"codec.bottleneck": ["vq"]}}
        elif draw(st.booleans()) or key == "codec.k":
            axes[key] = {"choice": draw(values)}
    points = {f"p{i}": {"set": {"codec.k": draw(st.integers(1, 9))}} for i in range(draw(st.integers(0, 2)))}
    search = {"trials": draw(st.integers(1, 20)), "startup": 2, "deterministic": draw(st.booleans())}
    return {"axes": axes, "points": points, "search": search, "resources": {"trials_at_once": 2}}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spaces(), st.integers(1, 3), st.integers(0, 10), st.randoms(use_true_random=False))
def test_any_space_of_choices_ends_with_each_of_its_configurations_once(tmp_path, space, at_once, stop, dice):
    """However many trials run at a time, whichever ends first, and wherever the sweep is stopped and resumed."""
    try:
        plan = space_plan(tmp_path, **space)
    except UserError:
        return  # a value that fits no other is refused before anything runs
    file = tmp_path / "trials.jsonl"
    file.unlink(missing_ok=True)
    journal = Journal(file)
    before = in_any_order(OptunaProposer(plan, tmp_path, journal), dice, at_once, stop=stop)
    proposer = OptunaProposer(plan, tmp_path, journal)
    trained = before | in_any_order(proposer, dice, at_once)
    assert proposer.propose() is None
    invalid = [name for name in proposer.failures if name.startswith("invalid-")]
    assert len(trained) + len(invalid) == proposer.total == len(plan.points) + plan.samples
    sampled = [config_name(plan.config(chosen)) for name, chosen in proposer._chosen.items() if name in trained]
    assert len(set(sampled)) == len(sampled)
    assert not set(sampled) & {config_name(config) for config in plan.points.values()}
    every = {plan.sampled(chosen).name for chosen in plan.combinations()}
    every -= {config_name(config) for config in plan.points.values()}
    assert plan.samples == min(plan.space.search.trials, len(every))
    assert {trial.state for trial in proposer.study.trials} <= {COMPLETE, FAIL}
    assert proposer.ended == {*trained, *invalid}


def test_a_withdrawn_point_is_not_resumed_nor_taken_for_a_sampled_configuration(plan, tmp_path):
    """Whether it had ended, had failed, or was running when the sweep was stopped."""
    journal = Journal(tmp_path / "trials.jsonl")
    for name, ending in (("ended", {"score": 1.0, "cause": ""}), ("broken", {"score": None, "cause": "loss nan"})):
        journal.append({"event": "began", "config": name, "chosen": {}})
        journal.append({"event": "ended", "config": name, **ending})
    journal.append({"event": "began", "config": "running", "chosen": {}})
    proposer = OptunaProposer(plan, tmp_path / "checkpoints", journal, ("ended", "broken", "running"))
    untouched = OptunaProposer(plan, tmp_path / "other" / "checkpoints", Journal(tmp_path / "other.jsonl"))
    assert (proposer.failures, proposer.ended) == ({}, set())
    assert run(proposer) == run(untouched)


# --- the journal ---------------------------------------------------------------------------------------------


def test_entries_come_back_in_order(tmp_path):
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    assert journal.entries() == []
    for i in range(3):
        journal.append({"i": i, "text": "x = 1 \u2260 2"})
    assert [entry["i"] for entry in journal.entries()] == [0, 1, 2]
    assert len(Path(tmp_path / "deep" / "j.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("keep", range(1, 40))
def test_a_torn_last_line_has_not_happened_and_swallows_nothing(tmp_path, keep):
    file = tmp_path / "j.jsonl"
    Journal(file).append({"config": "a", "score": 1.5})
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"config": "b", "score": 0.123456789, "cause": ""}\n'[:keep])
    (entry,) = Journal(file).entries()
    assert entry.items() >= {"config": "a", "score": 1.5}.items()
    Journal(file).append({"config": "c"})
    assert [entry["config"] for entry in Journal(file).entries()] == ["a", "c"]


def test_a_search_goes_on_from_a_torn_journal(propose, tmp_path):
    names = run(propose("whole"))
    first = run(propose("cut"), 5)
    file = tmp_path / "cut.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:17])  # the end of the fifth was not yet on disk
    assert run(propose("cut")) == names[4:]
    assert first == names[:5]


def shown(folder) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    return optuna.load_study(study_name=None, storage=storage).trials


def told(trials) -> list[tuple]:
    return [(t.params, t.value, t.state, t.user_attrs, t.datetime_start, t.datetime_complete) for t in trials]


def test_the_study_file_shows_points_what_runs_and_the_times_of_the_journal(propose, tmp_path):
    done = propose()
    run(done, 5)
    running = done.propose()["config"]
    trials = shown(tmp_path)
    assert [trial.state for trial in trials] == [COMPLETE] * 5 + [RUNNING]
    assert [trial.user_attrs["point"] for trial in trials] == [True] * 2 + [False] * 4
    assert trials[-1].user_attrs["config"] == running
    assert trials[1].params == {"codec.k": 4, "training.lr": 1e-3, "codec.bottleneck": "none"}
    sampled = [trial for trial in done.study.trials if trial.state.is_finished()]
    assert [(t.params, t.value) for t in trials[2:5]] == [(t.params, t.value) for t in sampled]
    at = {}
    for entry in Journal(tmp_path / "trials.jsonl").entries():
        at.setdefault((entry["config"], entry["event"]), entry["at"])
    for trial in trials[:5]:
        name = trial.user_attrs["config"]
        assert trial.datetime_start.timestamp() == pytest.approx(at[name, "began"], abs=1)
        assert trial.datetime_complete.timestamp() == pytest.approx(at[name, "ended"], abs=1)


def test_a_resumed_sweep_rewrites_the_study_file_with_the_same_times(propose, tmp_path):
    done = propose()
    run(done, 5)
    file = tmp_path / "trials.jsonl"
    entries = [json.loads(line) | {"at": 1.7e9 + 60 * i} for i, line in enumerate(file.read_text().splitlines())]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    again = propose()
    trials = shown(tmp_path)
    assert [trial.datetime_start.timestamp() for trial in trials] == [1.7e9 + 120 * i for i in range(5)]
    assert {trial.duration.total_seconds() for trial in trials} == {60}
    run(again)
    assert told(shown(tmp_path)[:5]) == told(trials)
    assert [trial.state for trial in shown(tmp_path)] == [COMPLETE] * 10


def test_optuna_dashboard_opens_the_study(propose, tmp_path):
    pytest.importorskip("optuna_dashboard")
    run(propose())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    command = [program, str(tmp_path / "optuna.log"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:

            def get(path):
                for _ in range(200):
                    try:
                        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                            return json.loads(answer.read())
                    except urllib.error.URLError:  # it is starting
                        assert server.poll() is None
                        time.sleep(0.1)
                pytest.fail("the server does not answer")

            (summary,) = get("/api/studies")["study_summaries"]
            assert summary["study_name"] == "s"
            trials = get(f"/api/studies/{summary['study_id']}")["trials"]
        finally:
            server.terminate()
    assert [trial["state"] for trial in trials] == ["Complete"] * 10


def in_any_order(proposer, dice, at_once, stop=None) -> dict[str, dict]:
    """Train up to `at_once` at a time, which end in any order; the choices of each, by name."""
    running, chosen = {}, {}
    while True:
        said = proposer.propose() if len(running) < at_once else WAIT
        if isinstance(said, dict):
            running[said["config"]] = said
            chosen[said["config"]] = json.loads(said["trial"])
        elif running and (stop is None or stop > 0):
            name = dice.choice(sorted(running))
            proposer.finished(name, score_of(running.pop(name)), "")
            stop = None if stop is None else stop - 1
        else:
            assert said is None or stop == 0, "it waits for what does not run"
            return chosen


@pytest.mark.parametrize(("at_once", "pack"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_a_deterministic_search_suggests_the_same_whatever_ends_first(propose, plan, at_once, pack):
    search = plan.space.search.model_copy(update={"trials": 14, "deterministic": True})
    resources = plan.space.resources.model_copy(update={"trials_at_once": at_once, "pack": pack})
    plan.space = plan.space.model_copy(update={"search": search, "resources": resources})
    wanted = in_any_order(propose("first"), random.Random(0), at_once * pack)
    assert len(wanted) == 16
    for seed in range(1, 6):
        proposer = propose(f"again-{seed}")
        assert in_any_order(proposer, random.Random(seed), at_once * pack) == wanted
        assert {trial.state for trial in proposer.study.trials} == {COMPLETE}
        cut = propose(f"cut-{seed}")
        before = in_any_order(cut, random.Random(seed), at_once * pack, stop=2 * seed)
        after = in_any_order(propose(f"cut-{seed}"), random.Random(-seed), at_once * pack)
        assert before | after == wanted


@pytest.mark.parametrize("at_once", [1, 3])
def test_8_and_8_more_trials_are_what_16_would_have_been(plan, tmp_path, at_once):
    search = plan.space.search.model_copy(update={"deterministic": True})
    resources = plan.space.resources.model_copy(update={"trials_at_once": at_once})
    plan.space = plan.space.model_copy(update={"search": search, "resources": resources})

    def train(trials, name, seed):
        proposer = OptunaProposer(plan.extended(trials, []), tmp_path, Journal(tmp_path / name))
        return proposer, in_any_order(proposer, random.Random(seed), at_once)

    whole, wanted = train(8, "whole", 0)
    assert len(wanted) == 2 + 16
    _, first = train(0, "grown", 1)
    grown, second = train(8, "grown", 2)
    assert (len(first), len(second)) == (10, 8)
    assert first | second == wanted
    assert states(grown) == states(whole)


def test_a_search_that_is_not_deterministic_does_not_wait(propose):
    proposer = propose()
    assert all(isinstance(proposer.propose(), dict) for _ in range(10))
    assert proposer.propose() is None


def test_a_deterministic_search_is_not_pruned(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(SPACE | {"search": SPACE["search"] | {"pruner": "asha"}}))
    says = "search: deterministic: a pruner's decisions depend on which trials ended before; set pruner to none$"
    with pytest.raises(UserError, match=says):
        load_plan(file, {}, {"deterministic": True})
