"""The ledger of looks at confirm messages: what is the same look, what is a second one, and what a line says."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps import write_space

from m2ray.config.plan import load_plan
from m2ray.config.sweep_record import read_sweep_record, write_sweep_record
from m2ray.engine.growing.confirm_looks import ConfirmLooks
from m2ray.evaluation.confirm_ledger import (
    FOLDER_VARIABLE,
    LISTED_LOOKS,
    ConfirmLedger,
    Look,
    ledger_folder,
    look_key,
    looks_of,
    message_digest,
    new_look,
)
from m2ray.tasks.episodes import draw_episode, episodes
from m2ray.tasks.registry import level
from m2ray.util.files import cache_root

EASY = level("easy")


def look(messages, key="", command="c", date="2026-01-01 00:00:00", split="confirm") -> Look:
    return Look(date, command, "s", split, len(messages), tuple(messages), key)


@pytest.fixture
def ledger() -> ConfirmLedger:
    return ConfirmLedger("easy", "r1")


# --- what counts as looked at --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "looked_at", "line"),
    [
        ([], False, "first look at these messages"),
        (["xy"], False, "first look at these messages"),
        (["ab"], False, "first look at this split; 2 of 4 messages were looked at before, by 2026-01-01"),
        (["abc"], True, "look 2 at these messages; earlier: 2026-01-01"),
        (["abcd", "abcxyz", "ax"], True, "look 3 at these messages; earlier: 2026-01-01"),
        (["ab", "bc"], True, "3 of 4 messages were looked at before, by 2026-01-01"),
        (
            ["ab", "ab", "ab"],
            False,
            "first look at this split; 2 of 4 messages were looked at before, by 2026-01-01",
        ),
    ],
)
def test_messages_count_as_looked_at_when_more_than_half_of_them_were(ledger, earlier, looked_at, line):
    for messages in earlier:
        ledger.record(look(messages))
    found = ledger.earlier(look("abcd"))
    assert found.looked_at == looked_at
    assert found.line.startswith(line)


def test_a_line_names_the_latest_looks_and_counts_the_others(ledger):
    for day in range(1, LISTED_LOOKS + 3):
        ledger.record(look("ab", date=f"2026-01-0{day} 00:00:00", command="python -m m2ray.evaluate " + "x" * 500))
    line = ledger.earlier(look("ab")).line
    assert line.startswith(f"look {LISTED_LOOKS + 3} at these messages; earlier: 2026-01-05")
    assert line.endswith("; and 2 more")
    assert len(line) < 600


def test_task_and_receiver_have_looks_of_their_own(ledger):
    ledger.record(look("ab"))
    for task, receiver in (("easy", "r2"), ("hard", "r1"), ("ea/sy", "r1"), ("ea_sy", "r1"), ("../easy", "r1")):
        other = ConfirmLedger(task, receiver)
        assert other.looks() == []
        assert other.file.parent == ledger.file.parent
        other.record(look("x"))
    assert len(list(ledger_folder().iterdir())) == 6


def test_a_message_is_its_content_whatever_its_wording_order_and_receiver_half():
    episode = draw_episode(EASY, 3)
    turned = replace(episode, seed=9, sender=episode.sender[::-1], receiver=(), message="in other words")
    assert message_digest(turned) == message_digest(episode)
    assert message_digest(draw_episode(EASY, 4)) != message_digest(episode)
    free = replace(episode, sender=())
    assert message_digest(free) != message_digest(replace(free, message="another"))


def test_a_look_has_each_different_message_once():
    drawn = episodes(EASY, range(10))
    found = new_look([*drawn, *drawn], "c", "s", "0:10")
    assert (found.n, len(found.messages)) == (20, len({e.content for e in drawn}))


# --- the file ------------------------------------------------------------------------------------------------


def test_it_lies_in_the_users_cache_or_where_a_group_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "shared"))
    assert ConfirmLedger("easy", "r1").file == tmp_path / "shared" / "easy-r1.jsonl"
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ConfirmLedger("easy", "r1").file == cache_root() / "confirm-looks" / "easy-r1.jsonl"


def append_many(word: str) -> None:
    for i in range(50):
        ConfirmLedger("easy", "r1").record(look([f"{word}{i}-{j}" for j in range(1000)]))


def test_several_processes_write_at_the_same_time(ledger):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(append_many, "abcd")
    lines = ledger.file.read_bytes().splitlines()
    assert len(lines) == len(ledger.looks()) == 200
    assert len({recorded.messages[0] for recorded in ledger.looks()}) == 200


def test_damaged_lines_are_skipped_and_do_not_damage_the_next(ledger):
    ledger.record(look("ab"))
    whole = ledger.file.read_bytes()
    others = [b"\xff\xfe", b"[]", b"{}", b'{"messages": 3}', b"[" * 5000, json.dumps({"messages": []}).encode()]
    wrong = json.loads(whole) | {"n": "many"}
    ledger.file.write_bytes(b"\n".join([*others, json.dumps(wrong).encode(), whole[:-30]]))
    assert ledger.looks() == []
    ledger.record(look("cd"))
    assert [recorded.messages for recorded in ledger.looks()] == [("c", "d")]


def test_a_cache_that_cannot_be_written_or_read_costs_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file"))
    ConfirmLedger("easy", "r1").record(look("ab"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/file/easy-r1.jsonl: ")
    assert line.endswith("; this look at confirm messages is not recorded")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "easy-r1.jsonl").mkdir()
    assert ConfirmLedger("easy", "r1").earlier(look("ab")).line == "first look at these messages"
    assert "earlier looks at confirm messages are not known" in capsys.readouterr().err


def test_reading_it_needs_no_torch():
    code = "import sys, m2ray.evaluation.confirm_ledger; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- sweeps --------------------------------------------------------------------------------------------------


class Sweep:
    """A sweep's folder with its record, and its confirm stage."""

    def __init__(self, folder: Path, **record) -> None:
        self.folder = folder
        fresh = {"id": "i1", "date": "2026-01-01", "command": f"python -m m2ray.sweep --name {folder.name}"}
        write_sweep_record(folder, {**fresh, **record})

    def confirms(self, where: Path, name: str = "control", **space) -> str:
        where.mkdir(exist_ok=True)
        looks = ConfirmLooks(self.folder, load_plan(write_space(where, **space)))
        return looks.open([name]).line if looks.pending([name]) else looks.taken()[-1].line


FIRST, SECOND = "first look at these messages", "look 2 at these messages; earlier: "


def test_a_resumed_sweep_continues_its_look_also_with_other_code(tmp_path):
    sweep = Sweep(tmp_path / "a")
    assert sweep.confirms(tmp_path) == FIRST
    (entry,) = read_sweep_record(sweep.folder)["looks"]
    assert sweep.confirms(tmp_path) == FIRST
    write_sweep_record(sweep.folder, {**read_sweep_record(sweep.folder), "code": "c2"})
    assert sweep.confirms(tmp_path) == FIRST
    assert read_sweep_record(sweep.folder)["looks"] == [entry]
    assert looks_of(sweep.folder) == [f"confirm: {FIRST}"]


def test_a_sweep_killed_between_ledger_and_record_continues_its_look(tmp_path):
    sweep = Sweep(tmp_path / "a")
    before = read_sweep_record(sweep.folder)
    sweep.confirms(tmp_path)
    write_sweep_record(sweep.folder, before)
    assert sweep.confirms(tmp_path) == FIRST
    (file,) = ledger_folder().iterdir()
    assert len(file.read_text().splitlines()) == 1


def test_another_name_a_copied_folder_and_a_rerun_look_again(tmp_path):
    first = Sweep(tmp_path / "a")
    assert first.confirms(tmp_path) == FIRST
    line = Sweep(tmp_path / "b", id="i2").confirms(tmp_path)
    assert line.startswith(SECOND)
    assert line.endswith("`python -m m2ray.sweep --name a` (sweep a, confirm)")
    copied = Sweep(tmp_path / "c")  # the registration of a, elsewhere
    assert copied.confirms(tmp_path).startswith("look 3 at these messages; earlier: ")
    shutil.rmtree(first.folder)
    assert Sweep(tmp_path / "a", id="i4").confirms(tmp_path).startswith("look 4 at these messages; earlier: ")


def test_a_sweep_that_has_changed_looks_at_other_messages(tmp_path):
    sweep = Sweep(tmp_path / "a")
    sweep.confirms(tmp_path)
    assert sweep.confirms(tmp_path, "sampled-later", search={"trials": 3}) == FIRST
    summary, *looks = looks_of(sweep.folder)
    assert summary.startswith("2 looks at confirm: ")
    assert looks == [f"confirm: {FIRST}", f"confirm-2: {FIRST}"]


def test_a_sweep_of_an_earlier_version_is_known_by_date_and_command(tmp_path):
    old = {"date": "2026-01-01", "command": "c"}
    assert look_key(tmp_path, old, []) == look_key(tmp_path, dict(old), [])
    assert look_key(tmp_path, old, []) != look_key(tmp_path, {**old, "date": "2026-01-02"}, [])
    assert look_key(tmp_path, old, []) != look_key(tmp_path, {**old, "id": "i1"}, [])


def test_a_folder_without_looks_lists_none(tmp_path):
    assert looks_of(tmp_path) == []
    Sweep(tmp_path / "a")
    assert looks_of(tmp_path / "a") == []
