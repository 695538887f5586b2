"""Where a run came from."""

import datetime
import sys

import jax

from jaxmlic import provenance


def test_a_start_names_everything(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/jaxmlic", "train", "--config=x.py:a b"])
    start = provenance.start(7)
    assert start["command"] == "jaxmlic train '--config=x.py:a b'"
    assert start["step"] == 7 and start["hosts"] == 1 and start["host"]
    assert start["devices"]["number"] == jax.device_count()
    assert datetime.datetime.fromisoformat(start["time"]).tzinfo is not None
    assert start["versions"]["jax"] == jax.__version__
    assert set(start["versions"]) == {"python", "jaxmlic", *provenance.PACKAGES}


def test_commit_of_a_checkout(monkeypatch, tmp_path):
    answers = {"rev-parse": "abc", "status": ""}
    monkeypatch.setattr(provenance, "_git", lambda folder, name, *_: answers[name])
    package = tmp_path / "jaxmlic" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(package))
    assert provenance.commit() is None  # installed: no .git beside it
    (tmp_path / ".git").mkdir()
    assert provenance.commit() == "abc"
    answers["status"] = " M x.py"
    assert provenance.commit() == "abc-dirty"
    answers["rev-parse"] = None  # no git here
    assert provenance.commit() is None
