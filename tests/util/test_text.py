"""Progress of loops that may take long."""

from m2ray.util import text
from m2ray.util.text import with_progress


def test_progress_is_printed_where_it_takes_long(monkeypatch, capsys):
    assert list(with_progress("abc", "letters: {}")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(text, "SILENT_S", -1.0)
    list(with_progress(range(1200), "a{0}{b}.jsonl: {} lines"))
    assert capsys.readouterr().err.splitlines()[1199] == "a{0}{b}.jsonl: 1,200 of 1,200 lines"
