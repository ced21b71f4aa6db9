"""Episodes by seed, from files, and in the words of a sender LM."""

import json
import multiprocessing
from pathlib import Path

import pytest

from m2ray.config.task import Splits, TaskConfig, parse_seeds
from m2ray.receiver.episode_source import EpisodeSource, check_not_of_receiver
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.sender import Sender
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import Episode, draw_episode, episodes, part_of
from m2ray.tasks.held_out import HeldOut
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

    def test_only_confirm_messages_hold_what_is_held_out(self):
        config = TaskConfig(held_out=HeldOut(facts=0.15))
        for part in ("train", "search", "select", "confirm"):
            drawn = EpisodeSource(config).get(range(30), part)
            assert {config.held_out.holds(episode.sender) for episode in drawn} == {part == "confirm"}
            assert {episode.task for episode in drawn} == {config.name}


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


class TestTrainedOn:
    """Messages that codec or receiver may have been trained on are refused, in files by their content."""

    TRAIN, CONFIRM = episodes(EASY, range(30), "train"), episodes(EASY, range(30), "confirm")

    def source(self, folder: Path, drawn: list[Episode]) -> EpisodeSource:
        return EpisodeSource(TaskConfig(file=str(write_file(folder, drawn))))

    @pytest.mark.parametrize("name", ["search", "select", "confirm"])
    def test_a_line_that_the_embedded_receiver_may_have_seen_is_refused(self, tmp_path, name):
        """Training lines may be of any part: it is the receiver that must not have seen the evaluation lines."""
        mini, drawn = load_receiver("mini"), [*self.TRAIN[:4], *self.CONFIRM[:6]]
        self.source(tmp_path, drawn).check_receiver(mini, splits())
        at = splits().seeds(name).start
        drawn[at : at + 2] = self.TRAIN[4:6]
        match = (
            rf"episodes.jsonl: line {at + 1}: its message and those of 1 other are in the part of level easy that "
            rf"receiver mini was trained on; remove such lines from splits.{name}, or use another receiver"
        )
        with pytest.raises(UserError, match=match):
            self.source(tmp_path, drawn).check_receiver(mini, splits())

    def test_the_receivers_training_drew_such_messages_only(self):
        """The receiver's card names these seeds, and its training the part."""
        seeds = parse_seeds(load_receiver("mini").card["train_seeds"])
        drawn = {e.content for e in episodes(EASY, range(seeds.start, seeds.start + 2000), "train")}
        assert {part_of(content) for content in drawn} == {"train"}
        assert not drawn & {e.content for e in episodes(EASY, range(seeds.start, seeds.start + 300), "confirm")}

    def test_the_order_of_words_hides_no_message(self, tmp_path):
        drawn = [*self.TRAIN[:4], *self.CONFIRM[:6]]
        turned = "; ".join(self.TRAIN[9].message.split("; ")[::-1])
        lines = [line(e) for e in drawn]
        lines[8] = line(self.TRAIN[9], sender_context=turned, sender_message="Listen to this")
        (tmp_path / "e.jsonl").write_text("\n".join(lines))
        with pytest.raises(UserError, match=r"e.jsonl: line 9: its message is in the part of level easy"):
            EpisodeSource(TaskConfig(file=str(tmp_path / "e.jsonl"))).check_receiver(
                load_receiver("mini"), splits()
            )

    def test_receivers_that_were_trained_on_another_level_or_elsewhere_have_seen_no_line(self, tmp_path, tiny):
        source = self.source(tmp_path, self.TRAIN[:10])
        for receiver in (tiny, load_receiver("mini-arithmetic")):
            source.check_receiver(receiver, splits())
            check_not_of_receiver(receiver, self.TRAIN)

    def test_seeds_of_a_file_are_lines_and_not_compared_with_the_receivers_seeds(
        self, tmp_path, tiny, monkeypatch
    ):
        monkeypatch.setattr(tiny, "card", {"train_seeds": "0:100", "level": "easy"})
        self.source(tmp_path, self.CONFIRM[:10]).check_receiver(tiny, splits())
        with pytest.raises(UserError, match=r"line 3: .* remove such lines from --seeds"):
            self.source(tmp_path, [*self.CONFIRM[:2], *self.TRAIN]).check_receiver_lines(
                tiny, {"--seeds": range(1, 3)}
            )

    def test_drawn_messages_of_training_seeds_are_not_training_messages(self):
        """`m2ray.evaluate --seeds` draws from the part confirm, whatever the seeds."""
        source = EpisodeSource(TaskConfig())
        drawn = source.get(range(100_000, 100_300), "confirm")
        assert {part_of(e.content) for e in drawn} == {"confirm"}
        source.check_not_trained_on(drawn, Splits())
        assert not {e.content for e in drawn} & {e.content for e in source.get(range(100_000, 100_300), "train")}

    def test_a_codec_may_have_been_trained_on_any_message_of_the_part_train(self):
        source = EpisodeSource(TaskConfig())
        match = (
            "episodes: seed 3: its message is in the part that the codec was trained on; use episodes of another"
        )
        with pytest.raises(UserError, match=match):
            source.check_not_trained_on([*self.CONFIRM, self.TRAIN[3]], Splits())
        EpisodeSource(TaskConfig(level="hard")).check_not_trained_on(self.TRAIN, Splits())

    def test_a_codec_of_a_file_was_trained_on_its_training_lines(self, tmp_path):
        source = self.source(tmp_path, self.TRAIN[:10])
        source.check_not_trained_on(self.TRAIN[4:10], splits())
        with pytest.raises(UserError, match="seed 3: its message is in the part that the codec was trained on"):
            source.check_not_trained_on(self.TRAIN[3:10], splits())
        EpisodeSource(TaskConfig(file=str(tmp_path / "gone"))).check_not_trained_on(self.TRAIN, splits())


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
