"""Tasks in free text: the puzzles of a level, exported as text, give the same answers and scores."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2ray.config.task import Splits, TaskConfig
from m2ray.config.trial import EvaluationConfig, TrialConfig
from m2ray.evaluation.runner import evaluate
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.scoring import choose_answers, reference_nll, value_nll
from m2ray.tasks import text_splits
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import validate

EASY = level("easy")
PUZZLES = episodes(EASY, range(24), "search")


@pytest.fixture(scope="module")
def mini():
    return load_receiver("mini")


@pytest.fixture
def exported(tmp_path) -> Path:
    """The puzzles as a stranger would write them: prompts in the wording of the receiver, answers as text."""
    lines = [
        {
            "nr": episode.seed,
            "says": episode.message,
            "asks": f"A {{message}} B {episode.context} ?",
            "answer": write_answer(EASY, episode.solution, "values"),
        }
        for episode in PUZZLES
    ]
    file = tmp_path / "puzzles.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


FIELDS = {"id": "nr", "message": "says", "prompt": "asks", "target": "answer"}


def text_episodes(file: Path, **settings):
    config = TaskConfig(file=str(file), fields=FIELDS, **settings)
    return open_source(config).get(range(len(PUZZLES)), "confirm")


@pytest.mark.parametrize("stop", [None, []])
def test_puzzles_exported_as_text_give_the_same_answers_row_by_row(mini, exported, stop):
    names = ["P0", "P1", "text-16"]
    settings = EvaluationConfig(max_new_tokens=12, batch_size=7)
    puzzles = evaluate(mini, PUZZLES, "search", names, settings)
    texts = evaluate(mini, text_episodes(exported, scorer="exact", stop=stop), "search", names, settings)
    for column in ("condition", "episode", "answer", "truncated"):
        assert puzzles[column].tolist() == texts[column].tolist()
    # Of several right answers, a text names one.
    assert (puzzles.success | ~texts.success).all()


def test_the_nats_of_a_text_are_those_of_its_tokens(mini, exported):
    batch = [
        replace(e, targets=(target,))
        for e, target in zip(text_episodes(exported), ["0 1 2", "1", "2 2 2 2"], strict=False)
    ]
    texts = [episode.message for episode in batch]
    references = mini.references(batch)
    assert references.mask_BA.sum(1).tolist() == [4, 2, 5]
    decoded = mini.generate_and_score(batch, texts, max_new_tokens=12)
    together = value_nll(mini, batch, texts, None, "message")
    torch.testing.assert_close(decoded.nll_B, together, atol=1e-5, rtol=1e-5)
    for i, (episode, text) in enumerate(zip(batch, texts, strict=True)):
        before, after = mini.prompt_ids(episode)
        answer = mini.tokens(episode.targets[0])
        ids = [*before, *mini.tokens(text), *after, *answer]
        with torch.no_grad():
            log_probs_TW = mini.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = -sum(log_probs_TW[len(ids) - len(answer) - 1 + j, token] for j, token in enumerate(answer))
        assert float(together[i]) == pytest.approx(float(own) / len(answer), rel=1e-4)
        assert mini.decode([episode], [text], max_new_tokens=12) == [decoded.texts[i]]


def test_padding_behind_a_shorter_answer_costs_nothing(mini, exported):
    batch = [
        replace(e, targets=(target,))
        for e, target in zip(text_episodes(exported), ["0 1 2 0 1 2", "1"], strict=False)
    ]
    references = mini.references(batch)
    layout = mini.layout(batch, [episode.message for episode in batch])
    nll_BA = reference_nll(mini.logits(layout, None, references.length), references)
    assert not nll_BA[1, 2:].any()
    assert nll_BA[0, :6].all()


def test_a_choice_is_the_likeliest_answer(mini, exported):
    records = [json.loads(line) for line in exported.read_text().splitlines()]
    for record in records:
        record["choices"] = sorted({record["answer"], "0 0 0 0", "2 1 0 2"})
    exported.write_text("".join(json.dumps(record) + "\n" for record in records))
    batch = text_episodes(exported, scorer="choice")
    texts = [episode.message for episode in batch]
    chosen = choose_answers(mini, batch, texts, None, "message")
    for i, episode in enumerate(batch):
        each = [
            float(value_nll(mini, [replace(episode, targets=(choice,))], [texts[i]], None, "message"))
            for choice in episode.choices
        ]
        assert chosen.texts[i] == episode.choices[each.index(min(each))]
    rows = evaluate(mini, batch, "search", ["P0", "P1"], EvaluationConfig(max_new_tokens=12))
    assert rows[rows.condition == "P1"].success.mean() > 0.9
    assert rows[rows.condition == "P1"].answer.tolist() == chosen.texts


def test_settings_and_texts_that_a_receiver_cannot_have_are_one_line(mini, exported):
    def layout_of(batch):
        mini.layout(batch, [episode.message for episode in batch])

    with pytest.raises(UserError, match=r"^task.system: receiver mini is prompted without a chat template"):
        layout_of(text_episodes(exported, system="Be brief."))
    batch = text_episodes(exported)
    long = replace(batch[2], message="; ".join([batch[2].message] * 60))
    with pytest.raises(UserError, match=r"episode '2' \(line 3\): receiver mini: .* exceed its context of 512"):
        layout_of([*batch[:2], long])
    broken = replace(batch[3], targets=("1 1\n1 1",))
    with pytest.raises(
        UserError, match=r"episode '3' \(line 4\): target .* holds '\\n', which ends an answer; set"
    ):
        layout_of([*batch[:3], broken])


def test_the_length_of_answers_is_that_of_the_shortest_right_one(mini, exported):
    batch = [replace(e, targets=("1 2 0 1 1", "0 1")) for e in text_episodes(exported)[:2]]
    assert mini.answer_lengths(batch) == [3, 3]
    assert mini.answer_lengths(PUZZLES[:2]) == [5, 5]
    patterns = [replace(e, setting=TaskConfig(file=str(exported), scorer="regex").text_setting()) for e in batch]
    assert mini.answer_lengths(patterns) == [0, 0]


class TestSplits:
    def test_a_files_splits_are_disjoint_parts_and_all_of_them_by_default(self, tmp_path):
        file = tmp_path / "many.jsonl"
        file.write_text(
            "".join(
                json.dumps({"id": i, "message": f"m{i} {i * i}", "prompt": "q", "target": str(i)}) + "\n"
                for i in range(300)
            )
        )
        trial = validate(TrialConfig, {"task": {"file": str(file), "scorer": "exact"}}, "trial")
        assert trial.splits.train == "all"
        source = open_source(trial.task)
        seeds = [list(source.seeds(trial.splits, name)) for name in Splits.model_fields]
        assert sorted(itertools.chain(*seeds)) == list(range(300))
        some = Splits(train="0:20", search="0:5", select="0:5", confirm="3:9")
        assert list(source.seeds(some, "confirm")) == seeds[3][3:9]
        with pytest.raises(UserError, match=r"splits.search: 0:5000: .*use a larger file, or fewer"):
            source.seeds(some.model_copy(update={"search": "0:5000"}), "search")

    def test_a_codec_of_a_file_was_trained_on_its_training_part_and_of_a_file_that_is_gone_nothing_is_known(
        self, tmp_path
    ):
        """As of puzzles from a file."""
        file = tmp_path / "task.jsonl"
        lines = [{"id": i, "message": f"m {i}", "prompt": "{message}?", "target": f"t{i}"} for i in range(40)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        splits = Splits(train="all", search="all", select="all", confirm="all")
        source = open_source(validate(TaskConfig, {"file": str(file), "scorer": "exact"}, "test"))
        parts = {name: source.get(source.seeds(splits, name), name) for name in ("train", "confirm")}
        source.check_not_trained_on(parts["confirm"], splits)
        with pytest.raises(UserError, match="of the part that the codec was trained on; use episodes of another"):
            source.check_not_trained_on([*parts["confirm"], parts["train"][0]], splits)
        gone = validate(TaskConfig, {"file": str(tmp_path / "gone.jsonl"), "scorer": "exact"}, "test")
        open_source(gone).check_not_trained_on(parts["train"], splits)

    def test_parts_are_found_only_where_they_are_needed_and_kept_of_a_large_file(self, tmp_path, monkeypatch):
        calls = []

        def counted(episodes):
            calls.append(len(episodes))
            return ["search"] * len(episodes)

        monkeypatch.setattr(text_splits, "assign_parts", counted)
        monkeypatch.setattr(text_splits, "_KEPT_LINES", 10)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        all_of_it = Splits(train="all", search="all", select="all", confirm="all")
        for lines, kept in ((9, 0), (10, 1)):
            file = tmp_path / f"{lines}.jsonl"
            line = {"message": "m", "prompt": "q", "target": "t"}
            file.write_text("".join(json.dumps({**line, "id": i}) + "\n" for i in range(lines)))
            config = TaskConfig(file=str(file), scorer="exact")
            open_source(config).get([0], "search")
            assert calls == []
            for _ in range(2):
                assert len(open_source(config).seeds(all_of_it, "search")) == lines
            assert calls == [lines]
            text_splits._in_memory.clear()  # another process
            assert len(open_source(config).seeds(all_of_it, "search")) == lines
            assert len(calls) == 2 - kept
            calls.clear()
            text_splits._in_memory.clear()
        for damaged in ("search\n" * 3, "nonsense\n" * 9 + "x"):
            (kept_file,) = (tmp_path / "cache" / "m2ray" / "text-parts").iterdir()
            kept_file.write_text(damaged)
            assert len(open_source(config).seeds(all_of_it, "search")) == 10
            assert calls == [10]
            calls.clear()
            text_splits._in_memory.clear()

    def test_sentences_are_drawn_by_seed_and_part(self):
        trial = validate(TrialConfig, {"task": {"level": "sentences"}}, "trial")
        source = open_source(trial.task)
        drawn = {part: source.get(range(5), part) for part in ("train", "confirm")}
        assert all(f"/{part}/" in episode.id for part in drawn for episode in drawn[part])
        assert drawn["train"][0].message != drawn["confirm"][0].message
        assert source.get([3], "train") == [drawn["train"][3]]
