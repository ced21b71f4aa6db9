"""The cache folder of a user, also of one without a home directory."""

import os
import tempfile
from pathlib import Path

import pytest

from m2ray.util.files import cache_root


@pytest.mark.parametrize("home", ["/no/such/home", "relative"])
def test_without_a_home_directory_the_cache_is_in_tmpdir(home, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_root() == tmp_path / f"m2ray-cache-{os.getuid()}"


def test_the_cache_is_in_the_home_directory_or_where_it_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (None, ""):
        if unset is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_root() == tmp_path / ".cache" / "m2ray"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_root() == Path("/elsewhere/m2ray")
