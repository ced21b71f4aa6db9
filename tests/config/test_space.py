"""Search spaces: axes, points and names; what is refused before anything is trained."""

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2ray.config import plan as plans
from m2ray.config.axis import Axis
from m2ray.config.plan import load_plan
from m2ray.config.space import Search
from m2ray.config.trial import TrialConfig
from m2ray.util.errors import UserError
from m2ray.util.trees import get_key

OTHER = """
name: other
trial:
  codec: {encoder: last_token, k: 4, width: 32}
  losses: {ce: {}, help: {margin: 0.2}}
points: {only: {}}
"""
CONDITIONAL = """
name: conditional
trial: {training: {anneal: {start: 40}}}
axes:
  codec.bottleneck: {choice: [none, vq]}
  losses.commitment.weight: {uniform: [0.1, 0.5], when: {codec.bottleneck: [vq]}}
  codec.codebook: {choice: [64, 128], when: {codec.bottleneck: [vq]}}
  codec.groups: {int: [1, 4], when: {codec.bottleneck: [vq], codec.codebook: [64]}}
  codec.k: {choice: [8, 16]}
  training.anneal.start: {int: [20, 30], when: {codec.encoder: [segments], codec.k: [16]}}
search: {trials: 4}
"""


def plan_of(tmp_path, text, **kwargs):
    (tmp_path / "other.yaml").write_text(OTHER)
    path = tmp_path / "space.yaml"
    path.write_text(text if text.lstrip().startswith("name:") else "name: test\n" + text)
    return load_plan(path, **kwargs)


def refused(tmp_path, text, **kwargs):
    with pytest.raises(UserError) as raised:
        plan_of(tmp_path, text, **kwargs)
    message = str(raised.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path}/")


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return plan_of(tmp_path_factory.mktemp("space"), CONDITIONAL)


def random_study(seed=0):
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


# --- axes ----------------------------------------------------------------------------------------------------

numbers = st.floats(1e-6, 1e6)
axes = st.one_of(
    st.lists(st.none() | st.booleans() | st.integers(2) | st.text(), min_size=1, unique=True).map(
        lambda values: {"choice": values}
    ),
    st.tuples(st.integers(-99, 0), st.integers(1, 99)).map(lambda pair: {"int": list(pair)}),
    st.tuples(numbers, numbers)
    .filter(lambda pair: pair[0] != pair[1])
    .flatmap(lambda pair: st.sampled_from([{"uniform": sorted(pair)}, {"loguniform": sorted(pair)}])),
)


@settings(deadline=None)
@given(axes, st.integers(0, 10**6))
@example({"uniform": [1e-06, 1.0000000000000002e-06]}, 0)
def test_suggestions_are_of_the_kind_and_within_the_bounds_written(data, seed):
    ((kind, values),) = data.items()
    axis, study = Axis.model_validate(data), random_study(seed)
    for _ in range(5):
        value = axis.suggest(study.ask(), "key")
        if kind == "choice":
            assert any(value is other or value == other for other in values)
        else:
            assert type(value) is (int if kind == "int" else float)
            assert values[0] <= value <= values[1]


def test_a_logint_axis_is_whole_numbers_uniform_over_orders_of_magnitude():
    axis, study = Axis(logint=(1, 1000)), random_study()
    drawn = [axis.suggest(study.ask(), "key") for _ in range(400)]
    assert {type(value) for value in drawn} == {int}
    assert 100 < sum(value <= 10 for value in drawn) < 180  # a third of the orders of magnitude
    assert list(Axis(logint=(3, 6)).values()) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("data", "values"),
    [
        ({"int": [4, 16], "step": 4}, [4, 8, 12, 16]),
        ({"int": [4, 18], "step": 4}, [4, 8, 12, 16]),  # as in Optuna, the upper bound is the last step
        ({"uniform": [0.1, 0.4], "step": 0.1}, [0.1, 0.2, 0.3, 0.4]),
        ({"uniform": [0.0, 1.0], "step": 0.3}, [0.0, 0.3, 0.6, 0.9]),
    ],
)
def test_an_axis_in_steps_has_these_values_and_suggests_no_others(data, values):
    axis, study = Axis.model_validate(data), random_study()
    assert list(axis.values()) == values
    assert axis.size == len(values)
    assert {axis.suggest(study.ask(), "key") for _ in range(60)} == set(values)
    assert axis.choices_or_bounds() == [values[0], values[-1]]
    assert all(axis.contains(value) for value in values)
    assert not axis.contains(values[0] + data["step"] / 2)
    for value in axis.values():
        study.enqueue_trial({"key": value})
        assert axis.suggest(study.ask(), "key") == value


def test_axes_and_searches_without_new_keys_are_recorded_as_before():
    assert set(Axis(int=(4, 8)).model_dump(by_alias=True)) == {"choice", "int", "uniform", "loguniform", "when"}
    assert not {"sampler", "max_hours", "max_core_hours"} & set(Search().model_dump())


def test_a_log_axis_is_uniform_over_orders_of_magnitude():
    axis, study = Axis(loguniform=(1e-4, 1.0)), random_study()
    drawn = [axis.suggest(study.ask(), "key") for _ in range(400)]
    assert 150 < sum(value < 1e-2 for value in drawn) < 250


@pytest.mark.parametrize(
    ("axis", "line"),
    [
        ("{}", "axes.codec.k: give exactly one of choice, int, logint, uniform, loguniform"),
        ("{int: [4, 8], choice: [4]}", "axes.codec.k: give exactly one of"),
        ("{when: {codec.place: [before]}}", "axes.codec.k: give exactly one of"),
        ("{ints: [4, 8]}", "axes.codec.k.ints: unknown key; did you mean `axes.codec.k.int`?"),
        (
            "{log_uniform: [4, 8]}",
            "axes.codec.k.log_uniform: unknown key; did you mean `axes.codec.k.loguniform`?",
        ),
        ("[4, 8]", "axes.codec.k: expected a mapping of keys, not [4, 8]"),
        ("{int: [8, 4]}", "axes.codec.k: int: the range [8, 4] is empty; write [low, high] with low < high"),
        ("{int: [4, 4]}", "axes.codec.k: int: the range [4, 4] is empty"),
        ("{int: [4]}", "axes.codec.k.int.1: missing; add it"),
        ("{int: [4, 8, 16]}", "axes.codec.k.int: [4, 8, 16] is too long; write at most 2"),
        ("{int: [4, 8.5]}", "axes.codec.k.int.1: 8.5 is not a whole number; write one"),
        ("{int: ['4', 8]}", "axes.codec.k.int.0: '4' is not a whole number; write one"),
        ("{int: 4}", "axes.codec.k.int: 4 is not a list; write one such as [1, 2]"),
        ("{uniform: [0, .inf]}", "axes.codec.k.uniform.1: inf is not finite; write a finite number"),
        ("{uniform: [.nan, 1]}", "axes.codec.k.uniform.0: nan is not finite; write a finite number"),
        ("{uniform: [0.5, 0.1]}", "axes.codec.k: uniform: the range [0.5, 0.1] is empty"),
        ("{loguniform: [0, 1]}", "axes.codec.k: loguniform: low must be above 0; use uniform or raise it"),
        ("{logint: [0, 8]}", "axes.codec.k: logint: low must be above 0; use int or raise it"),
        ("{logint: [8, 4]}", "axes.codec.k: logint: the range [8, 4] is empty"),
        ("{logint: [4, 8.5]}", "axes.codec.k.logint.1: 8.5 is not a whole number; write one"),
        ("{logint: [4, 8], step: 2}", "axes.codec.k: step: only int and uniform have one; remove it, or list"),
        ("{int: [4, 8], step: 0}", "axes.codec.k.step: 0 is not above 0; write a larger number"),
        ("{int: [4, 8], step: 1.5}", "axes.codec.k: step: 1.5 is not a whole number, as the values of int are"),
        ("{int: [4, 8], step: 5}", "axes.codec.k: step: 5 is more than the range from 4 to 8; lower it"),
        ("{choice: []}", "axes.codec.k.choice: [] is too short; write at least 1"),
        ("{choice: 4}", "axes.codec.k.choice: 4 is not a list; write one such as [a, b]"),
        ("{choice: [4, 4]}", "axes.codec.k: choice: a value is given twice; keep one"),
        (
            "{choice: [[4]]}",
            "axes.codec.k.choice.0: [4] is not text, a finite number, true, false or null; write one",
        ),
        ("{choice: [.nan]}", "axes.codec.k.choice.0: nan is not text, a finite number, true, false or null"),
        (
            "{choice: [4], when: {codec.place: before}}",
            "axes.codec.k.when.codec.place: 'before' is not a list",
        ),
        # well formed, but no training accepts the value
        ("{choice: [4, 0]}", "axes codec.k = 0: codec.k: 0 is below 1; write 1 or more"),
        ("{int: [0, 8]}", "axes codec.k = 0: codec.k: 0 is below 1; write 1 or more"),
        ("{uniform: [1, 8]}", "axes codec.k = 1.0: codec.k: 1.0 is not a whole number; write one"),
        ("{choice: [null]}", "axes codec.k = None: codec.k: None is not a whole number; write one"),
    ],
)
def test_a_bad_axis_is_refused_with_its_key_and_fix(tmp_path, axis, line):
    assert refused(tmp_path, f"axes: {{codec.k: {axis}}}\nsearch: {{trials: 1}}").startswith(f"space.yaml: {line}")


def test_a_misspelt_axis_is_refused_with_the_right_spelling(tmp_path):
    message = refused(tmp_path, "axes: {codec.encodr: {choice: [segments]}}\nsearch: {trials: 1}")
    assert message.endswith("codec.encodr: unknown key; did you mean `codec.encoder`?")


# --- when ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_conditional_axes_are_suggested_exactly_where_they_apply(conditional, seed):
    plan = conditional
    chosen = plan.suggest(random_study(seed).ask())
    config = plan.config(chosen)
    vq = config.codec.bottleneck == "vq"
    assert ("losses.commitment.weight" in chosen) == ("codec.codebook" in chosen) == vq
    assert ("codec.groups" in chosen) == (vq and config.codec.codebook == 64)
    assert ("training.anneal.start" in chosen) == (config.codec.k == 16), "segments is the default encoder"
    assert all(get_key(config.model_dump(), key) == value for key, value in chosen.items())


def test_every_choice_and_bound_is_tried_before_anything_runs(tmp_path):
    plan = plan_of(tmp_path, CONDITIONAL)
    for key, axis in plan.space.axes.items():
        tried = {get_key(config.model_dump(), key) for config in plan.checked}
        assert set(axis.choices_or_bounds()) <= tried, key


def test_a_value_that_is_only_wrong_under_a_condition_is_found(tmp_path):
    text = """
axes:
  codec.encoder: {choice: [resampler, segments]}
  codec.place: {choice: [message, before]}
  training.anneal.start: {choice: [20, 4], when: {codec.encoder: [segments], codec.place: [before]}}
search: {trials: 1}
"""
    assert refused(tmp_path, text) == (
        "space.yaml: axes codec.encoder = segments, codec.place = before, training.anneal.start = 4: "
        "training.anneal.start: below codec.k = 8; start at 8 or above"
    )


def test_a_condition_on_a_value_between_the_bounds_of_an_axis_can_hold(tmp_path):
    text = """
axes:
  codec.k: {int: [1, 1000]}
  training.lr: {loguniform: [1e-4, 1e-3], when: {codec.k: [500]}}
search: {trials: 1}
"""
    assert 500 in {config.codec.k for config in plan_of(tmp_path, text).checked}


@pytest.mark.parametrize("when", ["{codec.encoder: [last_token]}", "{codec.encodr: [segments]}", "{codec.k: []}"])
def test_an_axis_that_never_applies_is_refused(tmp_path, when):
    text = f"axes: {{training.lr: {{loguniform: [1e-4, 1e-3], when: {when}}}}}\nsearch: {{trials: 1}}"
    assert refused(tmp_path, text) == (
        "space.yaml: axes.training.lr.when: never holds; fix the keys or values it names"
    )


def test_a_condition_on_an_axis_further_down_is_refused(tmp_path):
    text = """
axes:
  training.anneal.start: {int: [20, 30], when: {codec.encoder: [segments]}}
  codec.encoder: {choice: [segments, resampler]}
search: {trials: 1}
"""
    assert refused(tmp_path, text) == (
        "space.yaml: axes.training.anneal.start.when.codec.encoder: comes later in the file; "
        "move codec.encoder above training.anneal.start"
    )


GRID = """
axes:
  codec.k: {int: [4, 12], step: 4}
  codec.bottleneck: {choice: [none, vq]}
  losses.commitment.weight: {uniform: [0.1, 0.2], step: 0.1, when: {codec.bottleneck: [vq]}}
search: {sampler: grid}
"""


def test_a_grid_is_counted_beforehand(tmp_path):
    assert plan_of(tmp_path, GRID).samples == 3 + 3 * 2
    assert plan_of(tmp_path, GRID + "points: {one: {set: {codec.k: 4, codec.bottleneck: none}}}").samples == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GRID.replace("grid}", "grid, trials: 4}"), "space.yaml: search: trials: a grid has every combination of"),
        ("search: {sampler: grid}", "space.yaml: search.sampler: there are no axes for a grid; add axes or leave"),
        (GRID.replace(", step: 0.1", ""), "space.yaml: axes.losses.commitment.weight: a grid needs values to"),
        (GRID.replace("[none, vq]", "[none]"), "space.yaml: axes.losses.commitment.weight.when: never holds; fix"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path, text, says):
    assert refused(tmp_path, text).startswith(says)


def test_a_grid_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "MAX_GRID", 8)
    assert refused(tmp_path, GRID).startswith("space.yaml: search.sampler: a grid of more than 8 combinations;")


# --- points --------------------------------------------------------------------------------------------------


def test_a_point_takes_its_recipe_from_another_space_and_the_rest_from_its_own(tmp_path):
    plan = plan_of(
        tmp_path,
        """
trial:
  receiver: here
  codec: {k: 16, scale_gate: 3.0}
  training: {epochs: 3}
  splits: {confirm: "5000:6000"}
points:
  own: {}
  theirs: {use: other.yaml}
  changed: {use: other.yaml, set: {codec.k: 8, losses.help: null, losses.contrast.weight: 2.0}}
""",
    )
    own, theirs, changed = plan.points.values()
    assert list(plan.points) == ["own", "theirs", "changed"]
    assert (own.codec.k, own.codec.scale_gate, own.training.epochs) == (16, 3.0, 3)
    assert (theirs.codec.encoder, theirs.codec.k, theirs.codec.width) == ("last_token", 4, 32)
    assert theirs.codec.scale_gate == TrialConfig().codec.scale_gate, "no key of the space's own codec is mixed in"
    assert theirs.training == TrialConfig().training, "keys that the other space leaves out have their defaults"
    assert set(theirs.losses.terms()) == {"ce", "help"}
    assert (changed.codec.k, changed.codec.width) == (8, 32)
    assert set(changed.losses.terms()) == {"ce", "contrast"}
    assert {config.receiver for config in plan.points.values()} == {"here"}
    assert {config.splits.confirm for config in plan.points.values()} == {"5000:6000"}
    assert plan.example == own


def test_a_recipe_without_losses_has_the_default_ones(tmp_path):
    (tmp_path / "bare.yaml").write_text("name: bare\ntrial: {codec: {k: 4}}\npoints: {a: {}}")
    plan = plan_of(tmp_path, "trial: {losses: {kl: {}}}\npoints: {a: {use: bare.yaml}}")
    assert set(plan.points["a"].losses.terms()) == {"ce"}


def test_the_command_line_overrides_every_configuration_and_the_search(tmp_path):
    text = "trial: {receiver: here}\npoints: {a: {}, b: {use: other.yaml}}\naxes: {codec.k: {choice: [4, 8]}}"
    plan = plan_of(tmp_path, text, overrides={"receiver": "there"}, search={"trials": 3, "seeds": [1, 2]})
    assert {config.receiver for config in [*plan.points.values(), *plan.checked]} == {"there"}
    assert (plan.space.search.trials, plan.space.search.seeds, plan.space.search.startup) == (3, [1, 2], 4)


def test_a_space_without_points_has_an_example_that_satisfies_its_axes(tmp_path):
    text = """
trial: {task: {level: medium}, codec: {bottleneck: vq}}
axes: {losses.commitment.weight: {uniform: [0.1, 0.5]}, losses.ce.weight: {choice: [1]}}
search: {trials: 1}
"""
    assert plan_of(tmp_path, text).example.task.level == "medium"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "points: nothing to run; add a point, or axes and search.trials"),
        ("search: {trials: 3}", "search.trials: there are no axes to sample; add axes or set it to 0"),
        ("points: {a: {}}\njudge: {select: 1, confirm: 2}", "judge.confirm: more than judge.select; lower it"),
        ("name: ../up\npoints: {a: {}}", "name: '"),
        ("name: ''\npoints: {a: {}}", "name: '"),
        ("points: {../up: {}}", "points.../up: '../up' is not a plain name; use letters, digits, ., - and _"),
        ("points: {'': {}}", "points.: '' is not a plain name"),
        ("pionts: {a: {}}", "pionts: unknown key; did you mean `points`?"),
        ("k: 8", "k: unknown key; did you mean `trial.codec.k`?"),
        ("training: {lr: 1e-3}", "training: unknown key; did you mean `trial.training`?"),
        ("points: {a: {sets: {}}}", "points.a.sets: unknown key; did you mean `points.a.set`?"),
        (
            "points: {a: {set: {codec.k: 0}}}",
            "points.a: codec.k: 0 is below 1; write 1 or more",
        ),
        (
            "points: {a: {set: {codec.scale: 1}}}",
            "points.a: codec.scale: unknown key; did you mean `codec.scale_gate`?",
        ),
        (
            "points: {a: {set: {codec.k.x: 1}}, b: {set: {codec.k: 1}}}",
            "points.a: codec.k: ",
        ),
        (
            "trial: {codec: {k: 4}}\npoints: {a: {set: {codec.k.x: 1}}}",
            "points.a: codec.k.x: k is 4, expected a mapping",
        ),
        ("trial: {codec: 5}\npoints: {a: {}}", "trial: codec: expected a mapping of keys, not 5"),
        (
            "trial: {codec: 5}\naxes: {codec.k: {choice: [4]}}\nsearch: {trials: 1}",
            "trial: codec.k: codec is 5, expected",
        ),
        ("trial: {wrokers: 2}\npoints: {a: {}}", "trial: wrokers: unknown key; did you mean `workers`?"),
        (
            "points: {a: {set: {task.level: medium}}}",
            "points.a.set.task.level: the same for all configurations of a sweep",
        ),
        (
            "points: {a: {set: {receiver: x}}}",
            "points.a.set.receiver: the same for all configurations of a sweep; move it",
        ),
        (
            "axes: {evaluation.temperature: {choice: [0, 1]}}\nsearch: {trials: 1}",
            "axes.evaluation.temperature: the same for all configurations of a sweep; move it to trial",
        ),
        ("points: {a: {}}\nsearch: {seeds: []}", "search.seeds: [] is too short; write at least 1"),
        ("points: {a: {}}\nsearch: {seeds: [0, 0]}", "search.seeds: a seed is given twice; keep one"),
        (
            "points: {a: {}}\nsearch: {seeds: [-1]}",
            "search.seeds.0: -1 is below 0; write 0 or more",
        ),
        (
            "points: {a: {}}\nsearch: {sampler_seed: -1}",
            "search.sampler_seed: -1 is below 0",
        ),
        (
            "points: {a: {}}\nsearch: {trials: -1}",
            "search.trials: -1 is below 0; write 0 or more",
        ),
        (
            "points: {a: {}}\nsearch: {pruner: hyperband}",
            "search.pruner: 'hyperband' does not exist; use 'none', 'asha' or 'wilcoxon'",
        ),
        (
            "points: {a: {}}\nresources: {cpus_per_worker: 0}",
            "resources.cpus_per_worker: 0 is not above 0; write a larger number",
        ),
        (
            "points: {a: {}}\nresources: {evaluators: 0}",
            "resources.evaluators: 0 is below 1; write 1 or more",
        ),
    ],
)
def test_a_bad_space_is_refused_with_its_key_and_fix(tmp_path, text, line):
    assert refused(tmp_path, text).startswith(f"space.yaml: {line}")


def test_a_point_that_uses_a_missing_file_or_another_kind_of_file_is_refused(tmp_path):
    where = f"space.yaml: points.a.use: {tmp_path}"
    message = refused(tmp_path, "points: {a: {use: none.yaml}}")
    assert message == f"{where}/none.yaml: no such file; check the path"
    (tmp_path / "gate.yaml").write_text("name: reference\ncriteria: []")
    message = refused(tmp_path, "points: {a: {use: gate.yaml}}")
    assert message.startswith(f"{where}/gate.yaml: criteria: unknown key")
