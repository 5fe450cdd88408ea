"""What long work shows in a log: few lines, true ones."""

import pytest

from pipeline.console import Plain, progress, say


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: `clock(seconds)`."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_a_line_goes_to_standard_error(capsys):
    say("so it is")
    assert capsys.readouterr() == ("", "so it is\n")


def test_short_work_is_one_line(clock, capsys):
    with progress("training", 1000) as bar:
        for step in range(1000):
            clock(step / 200)
            bar.advance(note=f"loss {step}")
    assert capsys.readouterr().err == "training: 1,000 steps in 5.0 s, loss 999\n"


def test_long_work_is_a_line_every_ten_seconds_with_the_time_left(clock, capsys):
    with progress("harvest", 60, "rows") as bar:
        for second in range(1, 31):
            clock(second)
            bar.advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "harvest: 20 / 60 rows, 20 s left",
        "harvest: 40 / 60 rows, 10 s left",
        "harvest: 60 / 60 rows, 0 s left",
        "harvest: 60 rows in 30.0 s",
    ]


def test_a_note_stays_until_the_next(clock, capsys):
    plain = Plain("training", 10, "steps")
    plain.advance(note="loss 3")
    clock(12)
    plain.advance()
    assert capsys.readouterr().err == "training: 2 / 10 steps, 48 s left, loss 3\n"


def test_a_note_before_the_first_unit_is_done(clock, capsys):
    """SAE training notes the loss of a step before it counts it, and the first may take long."""
    plain = Plain("training", 10, "steps")
    clock(11)
    plain.advance(0, "loss 3")
    clock(12)
    plain.advance()
    assert "0 s left" not in capsys.readouterr().err


def test_work_that_fails_does_not_say_that_it_is_done(clock, capsys):
    with pytest.raises(RuntimeError), progress("training", 10):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("training", 3) as bar:
        for step in range(3):
            bar.advance(note=f"loss {step}")
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "loss 2" in shown
