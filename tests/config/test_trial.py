"""Configurations: valid values, and the one-line errors for invalid ones."""

import json
import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2ray.config.objectives import Losses
from m2ray.config.task import parse_seeds
from m2ray.config.trial import CodecConfig, EvaluationConfig, TrialConfig
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import load_yaml, read_yaml, validate


def write(tmp_path, text):
    path = tmp_path / "trial.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(tmp_path, text):
    """Return the one-line error for a configuration, without the file's name."""
    path = write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_yaml(TrialConfig, path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400
    return message.removeprefix(f"{path}: ")


# --- values --------------------------------------------------------------------------------------------------


def test_an_empty_mapping_is_the_documented_default():
    config = validate(TrialConfig, {}, "test")
    assert config == TrialConfig()
    assert (config.receiver, config.task.level, config.codec.encoder, config.codec.k) == (
        "mini",
        "easy",
        "segments",
        8,
    )
    assert set(config.losses.terms()) == {"ce"}


def test_splits_of_a_text_file_that_are_not_named_are_all_of_it():
    task = {"file": "mine.jsonl", "scorer": "exact"}
    rest = {"train": "all", "search": "all", "select": "all"}
    for named in ({}, {"confirm": "0:300"}):
        splits = validate(TrialConfig, {"task": task, "splits": named}, "test").splits
        assert splits.model_dump() == {**rest, "confirm": "all", **named}
    assert validate(TrialConfig, {"task": task}, "test").splits.confirm == "all"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("reciever: mini", "reciever: unknown key; did you mean `receiver`?"),
        ("codec: {encodr: segments}", "codec.encodr: unknown key; did you mean `codec.encoder`?"),
        (
            "losses: {contrast: {margn: 1}}",
            "losses.contrast.margn: unknown key; did you mean `losses.contrast.margin`?",
        ),
        ("losses: {L_help: {}}", "losses.L_help: unknown key; did you mean `losses.help`?"),
        ("training: {anneal: {begin: 20}}", "training.anneal.begin: unknown key; remove it"),
        ("k: 8", "k: unknown key; did you mean `codec.k`?"),
        ("codec: {lr: 0.1}", "codec.lr: unknown key; did you mean `training.lr`?"),
        (
            "codec: {k: 010}",
            "not valid YAML (line 1: 010 starts with 0, so that YAML reads it in base 8; leave the 0",
        ),
        ("codec: {k: -08_1}", "codec.k: '-08_1' is not a"),
        ("a: {<<: {k: 8}}", "not valid YAML (line 1: merge keys (<<) are not supported; write the keys out)"),
        (
            "receiver: no",
            "receiver: False is not text; write text, in quotes if YAML reads it as another type; quote",
        ),
        (
            "codec: {cut: on}",
            "codec.cut: True does not exist; use 'tokens' or 'clauses'; quote a name that YAML reads",
        ),
        ("codec: {zzz: 1}", "codec.zzz: unknown key; remove it"),
        ("codec: 5", "codec: expected a mapping of keys, not 5"),
        ("codec: [k, 4]", "codec: expected a mapping of keys, not ['k', 4]"),
        ("codec: {k: '4'}", "codec.k: '4' is not a whole number; write one"),
        ("codec: {k: 4.0}", "codec.k: 4.0 is not a whole number; write one"),
        ("codec: {k: true}", "codec.k: True is not a whole number; write one"),
        ("codec: {k: null}", "codec.k: None is not a whole number; write one"),
        ("codec: {k: 0}", "codec.k: 0 is below 1; write 1 or more"),
        ("codec: {k: -4}", "codec.k: -4 is below 1; write 1 or more"),
        ("codec: {k: 5000}", "codec.k: 5000 is above 4096; write 4096 or less"),
        ("codec: {width: 30}", "codec.width: 30 is not a multiple of 4; write one"),
        ("codec: {scale_gate: 0}", "codec.scale_gate: 0 is not above 0; write a larger number"),
        ("codec: {encoder: lasttoken}", "codec.encoder: 'lasttoken' does not exist; use 'last_token', "),
        (
            "losses: {contrast: {margin: -0.1}}",
            "losses.contrast.margin: -0.1 is below 0; write 0 or more",
        ),
        ("losses: {contrast: {weight: -1}}", "losses.contrast.weight: -1 is below 0"),
        ("losses: {ce: {weight: .nan}}", "losses.ce.weight: nan is not finite; write a finite number"),
        ("training: {lr: .inf}", "training.lr: inf is not finite; write a finite number"),
        ("training: {lr: 1e400}", "training.lr: inf is not finite; write a finite number"),
        ("training: {lr: 0}", "training.lr: 0 is not above 0; write a larger number"),
        ("training: {lr: fast}", "training.lr: 'fast' is not a number; write one such as 0.001"),
        ("training: {precision: fp16}", "training.precision: 'fp16' does not exist; use 'float32' or 'bfloat16'"),
        (
            "training: {anneal: {deadline: 1.5}}",
            "training.anneal.deadline: ",
        ),
        (
            "evaluation: {conditions: [normal, nul]}",
            "evaluation.conditions: condition 'nul' does not exist; use some",
        ),
        (
            "evaluation: {confirm_conditions: [fact]}",
            "evaluation.confirm_conditions: condition 'fact' does not exist; use some",
        ),
        ("evaluation: {conditions: normal}", "evaluation.conditions: 'normal' is not a list; write one such as"),
        ("evaluation: {temperature: -1}", "evaluation.temperature: -1 is below 0"),
        ("evaluation: {text_bytes: [0]}", "evaluation.text_bytes.0: 0 is below 1; write 1 or more"),
        ("task: {level: eazy}", "task.level: level 'eazy' does not exist; use one of easy, medium, hard"),
        ("splits: {train: 5}", "splits.train: 5 is not text; write text"),
        ("splits: {train: '42-541'}", "splits.train: '42-541' is not a range of seeds; write it as 1000:1100"),
        ("splits: {train: '50:50'}", "splits.train: '50:50' is not a range of seeds"),
        ("workers: 0", "workers: 0 is below 1; write 1 or more"),
        ("1: 2", "1: Keys should be strings"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_and_fix(tmp_path, text, line):
    assert refused(tmp_path, text).startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "codec: {bottleneck: vq}",
            "codec.bottleneck: vq needs losses.commitment; add it, for example with weight",
        ),
        ("losses: {ce: {}, commitment: {}}", "losses.commitment: needs codec.bottleneck: vq; set that or remove"),
        ("losses: {ce: {}, code_information: {}}", "losses.code_information: needs codec.bottleneck: vq"),
        ("losses: {}", "losses: no objective has a weight above 0; add one, such as ce"),
        ("losses: {ce: {weight: 0}, kl: null}", "losses: no objective has a weight above 0"),
        ("{codec: {encoder: resampler}, training: {anneal: {}}}", "training.anneal: only the encoder segments"),
        ("{codec: {encoder: resampler, start: states}}", "codec.start: only the encoder segments uses it"),
        (
            "{codec: {k: 24}, training: {anneal: {start: 20}}}",
            "training.anneal.start: below codec.k = 24; start at 24",
        ),
        (
            "{workers: 3, training: {batch_size: 64}}",
            "training.batch_size: not a multiple of 3 workers; change either",
        ),
        (
            "training: {epoch_samples: 32, batch_size: 64}",
            "training.epoch_samples: smaller than a batch; raise it",
        ),
        ("splits: {search: '2500:2600'}", "splits: search 2500:2600 overlaps confirm 2000:3000; keep them apart"),
        ("splits: {confirm: '42:100', train: '99:200'}", "splits: train 99:200 overlaps confirm 42:100"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_a_fix(tmp_path, text, line):
    assert refused(tmp_path, text).startswith(line)


def test_a_huge_wrong_value_does_not_flood_the_line(tmp_path):
    assert len(refused(tmp_path, "receiver: [" + "1, " * 10_000 + "1]")) < 200


def test_whole_numbers_are_accepted_as_numbers(tmp_path):
    assert load_yaml(TrialConfig, write(tmp_path, "training: {lr: 1}")).training.lr == 1.0


def test_an_unquoted_null_among_conditions_is_the_condition_of_that_name(tmp_path):
    config = load_yaml(TrialConfig, write(tmp_path, "evaluation: {conditions: [normal, null, P0]}"))
    assert config.evaluation.conditions == ["normal", "null", "P0"]


def test_the_search_sees_few_conditions_and_confirm_all_that_the_verdict_needs():
    config = TrialConfig(codec={"k": 4}, evaluation={"text_bytes": [8], "scale_gates": [0.0, 1.5]})
    few = ["normal", "null", "random", "shuffle", "P0", "P1"]
    last = ["text-8", "scale_gate=0", "scale_gate=1.5"]
    assert config.conditions_on("search") == config.conditions_on("select") == [*few, *last]
    more = ["constant", "mean", "matched", "init", "near", "identity", "facts-1", "facts-2", "facts-3", "tokens-4"]
    for split in ("confirm", "5000:6000"):
        assert config.conditions_on(split) == [*few, *more, *last]


@pytest.mark.parametrize(
    ("task", "words", "names"),
    [
        ({}, ["facts", "facts-1", "P0"], ["P0", "facts-1", "facts-2", "facts-3"]),
        ({"level": "lookup-6x10"}, ["facts"], ["P0", "facts-1", "facts-2"]),
        ({"level": "lookup-2x10"}, ["facts", "near"], ["P0", "near"]),
        ({"level": "arithmetic"}, ["facts", "drop"], ["P0", "facts-1", "facts-2", "facts-3", "drop-1", "drop-2"]),
        ({"messages": "mini"}, ["near", "facts", "tokens"], ["P0", "tokens-2"]),
        ({"file": "episodes.jsonl"}, ["near", "facts", "facts-2"], ["P0", "near", "facts-2"]),
        ({}, ["noise-1", "drop-2", "rotate", "text-16"], ["P0", "noise-1", "drop-2", "rotate", "text-16"]),
        (
            {"level": "easy", "held_out": {"lengths": [2], "trained_lengths": [4]}},
            ["facts"],
            ["P0", "facts-1"],
        ),
    ],
)
def test_words_stand_for_what_the_task_and_the_codec_allow(task, words, names):
    evaluation = {"conditions": ["P0"], "confirm_conditions": words, "text_bytes": [], "scale_gates": []}
    config = TrialConfig(task=task, codec={"k": 2}, evaluation=evaluation)
    assert config.conditions_on("confirm") == names


def test_a_training_is_the_same_whatever_is_evaluated_and_tracked():
    one, other = TrialConfig(), TrialConfig(evaluation={"conditions": ["P0"]}, trackers=["tensorboard"])
    assert one.training_settings == other.training_settings
    assert one.training_settings != TrialConfig(evaluation={"score": "success"}).training_settings
    assert one.training_settings != TrialConfig(training={"lr": 0.5}).training_settings


def test_configurations_cannot_be_changed_behind_a_sweep():
    with pytest.raises(ValueError, match="frozen"):
        TrialConfig().workers = 2


def test_rows_distinguish_greedy_decoding_and_temperatures():
    assert EvaluationConfig().decoding == "greedy"
    assert EvaluationConfig(temperature=0.3).decoding == "t=0.3"


trees = st.fixed_dictionaries(
    {},
    optional={
        "receiver": st.text(min_size=1),
        "codec": st.fixed_dictionaries(
            {"k": st.integers(1, 64)},
            optional={"encoder": st.sampled_from(["last_token", "resampler"]), "scale_gate": st.floats(1e-6, 1e6)},
        ),
        "losses": st.fixed_dictionaries(
            {"ce": st.just({"weight": 1.0})},
            optional={"contrast": st.fixed_dictionaries({"margin": st.floats(0, 1e300)}), "kl": st.none()},
        ),
        "training": st.fixed_dictionaries({"lr": st.floats(1e-300, 1e300)}),
    },
)


@settings(deadline=None)
@given(trees)
@example({"receiver": "\x85"})
def test_a_configuration_survives_json_and_yaml_unchanged(tmp_path_factory, tree):
    config = validate(TrialConfig, tree, "test")
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config
    assert validate(TrialConfig, json.loads(json.dumps(config.model_dump())), "test") == config
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    escaped, unicode = (yaml.safe_dump(config.model_dump(), allow_unicode=allow) for allow in (False, True))
    # Unescaped, PyYAML writes U+0085 as a plain line break, which it does not read back.
    for text in (escaped, unicode) if yaml.safe_load(unicode) == yaml.safe_load(escaped) else (escaped,):
        path.write_text(text, encoding="utf-8")
        assert load_yaml(TrialConfig, path) == config


# --- seeds and splits ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10**14), st.integers(1, 10**6))
def test_a_range_of_seeds_is_read_as_it_is_written(start, count):
    assert parse_seeds(f"{start}:{start + count}") == range(start, start + count)


@settings(deadline=None)
@given(st.text() | st.from_regex(r"-?[0-9]{0,20}:[0-9]{0,20}"))
def test_any_other_text_is_not_a_range_of_seeds(text):
    try:
        seeds = parse_seeds(text)
    except ValueError:
        return
    assert len(seeds) > 0
    assert seeds.start >= 0


bounds = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: range(pair[0], pair[0] + pair[1]))


@settings(deadline=None)
@given(st.lists(bounds, min_size=4, max_size=4))
def test_splits_are_refused_exactly_where_two_share_a_seed(ranges):
    names = ("train", "search", "select", "confirm")
    given_ = {name: f"{r.start}:{r.stop}" for name, r in zip(names, ranges, strict=True)}
    disjoint = sum(map(len, ranges)) == len(set().union(*ranges))
    if not disjoint:
        with pytest.raises(UserError, match="overlaps"):
            validate(TrialConfig, {"splits": given_}, "trial")
        return
    splits = validate(TrialConfig, {"splits": given_}, "trial").splits
    assert [splits.seeds(name) for name in names] == ranges


# --- YAML ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.0e-3", "0.001", "1.e-3", "10e-4"])
def test_learning_rates_may_be_written_as_papers_write_them(tmp_path, text):
    assert load_yaml(TrialConfig, write(tmp_path, f"training: {{lr: {text}}}")).training.lr == pytest.approx(1e-3)


@pytest.mark.parametrize("seeds", ["10:50", "1:20", "190:259", "0:5"])
def test_an_unquoted_range_of_seeds_is_not_a_number_in_base_60(tmp_path, seeds):
    config = load_yaml(TrialConfig, write(tmp_path, f"splits: {{train: {seeds}}}"))
    assert config.splits.train == seeds


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x 1", "line 1: anchors and aliases (& and *) are not supported; write it out"),
        ("receiver: mini\ncodec: *x", "line 2: anchors and aliases (& and *) are not supported"),
        ("a: &x [1]\n", "line 1: anchors and aliases"),
        ("a: &x {b: *x}", "line 1: anchors and aliases"),
        ("codec:\n  k: 4\n  k: 5", "line 3: key 'k' is given twice; keep one"),
        ("codec: {}\nreceiver: mini\ncodec: {}", "line 3: key 'codec' is given twice; keep one"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "line 1: tags (tag:yaml.org,2002:python/object/apply:os.system)",
        ),
        ("a: !!int ''", "line 1: tags (tag:yaml.org,2002:int) are not supported"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: " + "1" * 5000, "Exceeds the limit"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("? [1]\n: 2", "found unhashable key"),
        ("[" * 5000, "recursion"),
        ("a: \x07", "special characters are not allowed"),
        (b"a: \xff", "invalid start byte"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(tmp_path, text, line):
    message = refused(tmp_path, text)
    assert message.startswith("not valid YAML (")
    assert message.endswith("; fix the syntax")
    assert line in message


@pytest.mark.parametrize(
    ("text", "found"), [("", "nothing"), ("- 1", "a list"), ("mini", "a str"), ("# x", "nothing")]
)
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text, found):
    message = f"expected a mapping of keys at the top level, found {found}; write `key: value` lines"
    assert refused(tmp_path, text) == message


def test_a_bomb_of_aliases_is_refused_before_it_expands(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "anchors and aliases" in refused(tmp_path, "\n".join(lines))


def test_a_file_over_a_megabyte_is_refused_unread(tmp_path):
    message = "larger than 1000000 bytes; give a configuration file (a few kilobytes)"
    assert refused(tmp_path, "#" * 1_000_001) == message
    assert read_yaml(write(tmp_path, "a: 1\n#" + "x" * 999_994)) == {"a": 1}


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml: no such file; check the path"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="a folder; give a YAML file in it"):
        read_yaml(tmp_path)


@settings(deadline=None, max_examples=300)
@given(
    st.text(max_size=80)
    | st.text(alphabet="ab:-[]{}&*!? \n'\"|>%@#.0123456789", max_size=60)
    | st.binary(max_size=60)
    | st.lists(st.sampled_from(["codec:", " k:", " 1", "\n", "{", "}", "losses: ", "ce", ", ", "<<: "])).map(
        "".join
    )
)
def test_any_file_is_a_configuration_or_a_user_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        config = load_yaml(TrialConfig, path)
    except UserError:
        return
    assert config.codec.k >= 1


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted({*TrialConfig.model_fields, *CodecConfig.model_fields})), inner)
        | st.dictionaries(st.sampled_from(sorted(Losses.model_fields)), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(anything)
def test_any_data_is_a_configuration_of_finite_numbers_or_a_user_error(data):
    try:
        config = validate(TrialConfig, data, "test")
    except UserError:
        return
    json.dumps(config.model_dump(), allow_nan=False)
    assert config.codec.k >= 1
    assert all(math.isfinite(term.weight) and term.weight >= 0 for term in config.losses.terms().values())
