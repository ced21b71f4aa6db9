"""Episodes by seed, from files, and in the words of a sender LM."""

import json
import multiprocessing
from pathlib import Path

import pytest

from m2ray.config.trial import Splits, TaskConfig
from m2ray.receiver.episode_source import EpisodeSource
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.sender import Sender
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import Episode, draw_episode, episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError
from m2ray.util.files import cache_root

EASY = level("easy")
EPISODES = episodes(EASY, range(5), "train")


def line(episode: Episode, **changes: str) -> str:
    """An episode in the reference's fields."""
    fields = {
        "receiver_context": episode.context,
        "sender_message": episode.message,
        "receiver_output": write_answer(episode.level, episode.solution, "json"),
    }
    return json.dumps({**fields, **changes})


def write_file(folder: Path, drawn: list[Episode]) -> Path:
    file = folder / "episodes.jsonl"
    file.write_text("\n".join(line(e) for e in drawn) + "\n")
    return file


def splits(train="0:4", search="4:6", select="6:8", confirm="8:10") -> Splits:
    return Splits(train=train, search=search, select=select, confirm=confirm)


class TestDrawn:
    def test_a_seed_and_a_part_name_one_episode(self):
        source = EpisodeSource(TaskConfig(level="hard"))
        for part in ("train", "search", "select", "confirm"):
            assert source.get([7, 3, 7], part) == [draw_episode(level("hard"), seed, part) for seed in (7, 3, 7)]

    def test_parts_share_no_message_even_on_the_same_seeds(self):
        source = EpisodeSource(TaskConfig())
        contents = [
            {e.content for e in source.get(range(300), p)} for p in ("train", "search", "select", "confirm")
        ]
        assert sum(map(len, contents)) == len(set.union(*contents))
        source.check_disjoint(Splits())
        source.check_unseen(range(100_000, 100_100), Splits())


class TestFile:
    def different(self, count: int) -> list[Episode]:
        """Episodes with different contents."""
        found = {e.content: e for e in episodes(EASY, range(3 * count), "train")}
        assert len(found) >= count
        return list(found.values())[:count]

    def source(self, folder: Path, drawn: list[Episode]) -> EpisodeSource:
        return EpisodeSource(TaskConfig(file=str(write_file(folder, drawn))))

    def test_a_line_is_an_episode_and_its_number_the_seed(self, tmp_path):
        drawn = self.different(10)
        found = self.source(tmp_path, drawn).get([3, 0, 9], "train")
        assert [e.seed for e in found] == [3, 0, 9]
        for episode, number in zip(found, (3, 0, 9), strict=True):
            wanted = drawn[number]
            assert (episode.message, episode.context) == (wanted.message, wanted.context)
            assert (episode.solution, episode.content) == (wanted.solution, wanted.content)

    def test_a_message_in_free_words_keeps_the_content_of_its_constraints(self, tmp_path):
        file = tmp_path / "free.jsonl"
        file.write_text(line(EPISODES[0], sender_context=EPISODES[0].message, sender_message="Listen: ünïcode 😀"))
        (episode,) = EpisodeSource(TaskConfig(file=str(file))).get([0], "confirm")
        assert episode.message == "Listen: ünïcode 😀"
        assert episode.content == EPISODES[0].content

    def test_seeds_beyond_the_file_are_refused(self, tmp_path):
        source = self.source(tmp_path, self.different(10))
        with pytest.raises(
            UserError, match=r"jsonl: has lines 0 to 9, but splits.search needs line 10; shorten splits"
        ):
            source.get(range(4, 11), "search")
        with pytest.raises(UserError, match=r"splits.train needs line 999999; shorten splits.train"):
            source.check_disjoint(Splits())
        with pytest.raises(UserError, match=r"--seeds needs line 11; shorten --seeds"):
            source.check_unseen(range(8, 12), splits())

    def test_a_file_with_all_messages_apart_passes(self, tmp_path):
        source = self.source(tmp_path, self.different(10))
        source.check_disjoint(splits())
        source.check_unseen(range(4, 10), splits())

    @pytest.mark.parametrize(
        ("one", "other", "names"),
        [
            (1, 5, ("train", "search")),
            (0, 9, ("train", "confirm")),
            (4, 7, ("search", "select")),
            (5, 8, ("search", "confirm")),
        ],
    )
    def test_a_message_in_two_splits_is_refused_whatever_its_order(self, tmp_path, one, other, names):
        """The episodes that select a codec must not be among those that judge it, either."""
        drawn = self.different(10)
        turned = "; ".join(drawn[one].message.split("; ")[::-1])
        lines = [line(e) for e in drawn]
        lines[other] = line(drawn[one], sender_message=turned)
        (tmp_path / "e.jsonl").write_text("\n".join(lines))
        match = (
            rf"line {other + 1}: .* in splits.{names[1]} and, from line {one + 1}, in splits.{names[0]}; remove"
        )
        with pytest.raises(UserError, match=match):
            EpisodeSource(TaskConfig(file=str(tmp_path / "e.jsonl"))).check_disjoint(splits())

    def test_the_same_message_twice_in_one_split_is_fine(self, tmp_path):
        drawn = self.different(10)
        drawn[1] = drawn[0]
        self.source(tmp_path, drawn).check_disjoint(splits())

    def test_evaluation_on_training_lines_is_refused(self, tmp_path):
        source = self.source(tmp_path, self.different(10))
        with pytest.raises(
            UserError, match=r"line 4: its message is in --seeds and, from line 4, in splits.train"
        ):
            source.check_unseen(range(3, 6), splits())

    def test_a_broken_line_is_named(self, tmp_path):
        file = tmp_path / "e.jsonl"
        file.write_text(line(EPISODES[0]) + "\n" + line(EPISODES[1], receiver_output='{"x1": 9}'))
        with pytest.raises(UserError, match=r"e.jsonl: line 2: receiver_output"):
            EpisodeSource(TaskConfig(file=str(file))).get([0], "train")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "m2ray"


@pytest.fixture
def generated(tiny, monkeypatch) -> list[int]:
    """The number of messages that each call of the sender LM wrote."""
    counts, generate = [], Receiver.generate
    monkeypatch.setattr(
        Receiver, "generate", lambda self, *a, **k: counts.append(len(a[0])) or generate(self, *a, **k)
    )
    return counts


def write_with(name: str, start: int, count: int) -> list[str]:
    return Sender(load_receiver(name)).write(episodes(EASY, range(start, start + count), "train"))


class TestSender:
    def test_messages_are_written_once_and_then_read(self, tiny, cache, generated):
        source = EpisodeSource(TaskConfig(messages=tiny.name))
        first = source.get(range(5), "train")
        (file,) = cache.glob("messages/*.jsonl")
        assert (file.stem, generated) == (tiny.digest, [5])
        before = file.read_bytes()
        again = EpisodeSource(
            TaskConfig(messages=tiny.name)
        )  # as in another process: nothing but the file is shared
        assert again.get(range(5), "train") == first
        assert again.get([4, 0, 0], "train") == [first[4], first[0], first[0]]
        assert generated == [5]
        assert file.read_bytes() == before

    def test_only_what_is_missing_is_written(self, tiny, cache, generated):
        sender = Sender(tiny)
        first = sender.write(EPISODES[:3])
        assert sender.write([EPISODES[4], *EPISODES[:3], EPISODES[4]])[1:4] == first
        assert generated == [3, 1]

    def test_the_message_is_all_that_changes(self, tiny, cache):
        for written, drawn in zip(
            EpisodeSource(TaskConfig(messages=tiny.name)).get(range(3), "train"), EPISODES, strict=False
        ):
            assert written.message != drawn.message
            assert (written.sender, written.receiver) == (drawn.sender, drawn.receiver)
            assert written.solution == drawn.solution

    def test_a_message_is_the_senders_greedy_answer_to_the_constraints_of_a(self, tiny, cache):
        (message,) = Sender(tiny).write(EPISODES[:1])
        prompt = Sender(tiny)._prompt(EPISODES[0])
        assert EPISODES[0].message in prompt
        assert EPISODES[0].context not in prompt
        ids = tiny.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        out = tiny.model.generate(**ids, max_new_tokens=128, do_sample=False)
        text = tiny.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert message == " ".join(text.split())

    @pytest.mark.parametrize(
        "junk",
        [
            b'{"key": "abc", "mess',
            b"\xff\xfe\x00",
            b"[]",
            b"null",
            b'{"key": 1, "message": "m"}',
            b"[" * 100_000,
            b"",
        ],
    )
    def test_a_torn_or_foreign_line_costs_only_itself(self, tiny, cache, generated, junk):
        """After a crash in the middle of an append the message is written again, on a new line."""
        first = Sender(tiny).write(EPISODES[:3])
        (file,) = cache.glob("messages/*.jsonl")
        lines = [part for part in file.read_bytes().split(b"\n") if part]
        file.write_bytes(lines[0] + b"\n" + lines[1] + b"\n" + junk)
        assert Sender(tiny).write(EPISODES[:3]) == first
        assert generated == [3, 1]
        assert Sender(tiny).write(EPISODES[:3]) == first
        assert generated == [3, 1]

    def test_writers_at_the_same_time_agree_with_the_first(self, tiny, cache, monkeypatch):
        sender = Sender(tiny)
        generate = sender._generate

        def slow(prompts: list[str]) -> list[str]:
            texts = generate(prompts)
            sender._append({key: "another process was first" for key in keys})
            return texts

        Sender(tiny).write(EPISODES[:2])
        keys = [json.loads(row)["key"] for row in sender.file.read_text().splitlines() if row]
        sender.file.unlink()
        monkeypatch.setattr(sender, "_generate", slow)
        assert sender.write(EPISODES[:2]) == ["another process was first"] * 2
        assert Sender(tiny).write(EPISODES[:2]) == ["another process was first"] * 2

    @pytest.mark.slow
    def test_many_processes_write_one_whole_cache(self, tiny, cache, generated):
        jobs = [(tiny.name, start, 8) for start in (0, 4, 8)]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            written = pool.starmap(write_with, jobs)
        (file,) = cache.glob("messages/*.jsonl")
        assert all(set(json.loads(row)) == {"key", "message"} for row in file.read_text().splitlines() if row)
        assert [write_with(*job) for job in jobs] == written
        assert not generated

    def test_a_sender_without_a_chat_template_is_refused(self, cache):
        with pytest.raises(UserError, match=r"task.messages: mini has no chat template; name an instruct model"):
            EpisodeSource(TaskConfig(messages="mini")).get([0], "train")

    def test_a_sender_that_writes_nothing_is_refused_and_nothing_is_kept(self, tiny, cache, monkeypatch):
        monkeypatch.setattr(Receiver, "generate", lambda self, rows, *a: ["words"] * (len(rows) - 1) + [" \n"])
        with pytest.raises(UserError, match="wrote an empty message; use another"):
            Sender(tiny).write(EPISODES[:2])
        assert not list(cache.rglob("*.jsonl"))

    def test_the_cache_is_the_users(self, cache, monkeypatch):
        assert cache_root() == cache
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_root() == Path.home() / ".cache" / "m2ray"
