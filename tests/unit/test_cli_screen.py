from __future__ import annotations

import io
import json

from rich.console import Console

from pipeline.cli.screen import Screen, printable

COLUMNS = {"id": "id", "name": "name", "created_at": "created (UTC)"}
UUID = "01890a5d-ac96-774b-bcce-b302099a8057"


def screen_on(*, terminal: bool, width: int = 100) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, markup=False)
    return Screen(console, Console(file=io.StringIO())), out


def test_a_table_in_a_pipe_is_one_plain_line_an_item() -> None:
    screen, out = screen_on(terminal=False, width=10_000)
    screen.table(
        [{"id": 1, "name": "n" * 300, "created_at": None}, {"id": 2, "name": "[bold]x[/]", "other": 3}],
        COLUMNS,
    )
    header, first, second = out.getvalue().splitlines()
    assert header.split() == ["id", "name", "created", "(UTC)"]
    assert first.split() == ["1", "n" * 300]
    assert second.split() == ["2", "[bold]x[/]"]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_there_are_colours_and_an_id_stays_in_one_piece() -> None:
    screen, out = screen_on(terminal=True, width=60)
    screen.table([{"id": UUID, "name": "a rather long name " * 5, "created_at": "2026-01-02"}], COLUMNS)
    assert "\x1b[" in out.getvalue()
    assert UUID in out.getvalue()


def test_times_are_to_the_second_and_in_utc() -> None:
    screen, out = screen_on(terminal=False)
    screen.table([{"created_at": "2026-01-02T03:04:05.678901+02:00"}, {"created_at": "soon"}], COLUMNS)
    assert "2026-01-02 01:04:05\n" in out.getvalue()
    assert "soon" in out.getvalue()


def test_a_card_shows_what_holds_something() -> None:
    screen, out = screen_on(terminal=False)
    screen.card(
        {
            "id": UUID,
            "name": "",
            "tags": ["a", "b"],
            "losses": 0,
            "cancel_requested": False,
            "reason": None,
            "errors": [{"at": "2026-01-02T03:04:05Z", "type": "ValueError"}],
            "payload": {"x": ["ä"]},
        }
    )
    lines = [line.split(maxsplit=1) for line in out.getvalue().splitlines()]
    assert lines[:5] == [
        ["id", lines[0][1]],
        ["tags", lines[1][1]],
        ["losses", lines[2][1]],
        ["cancel_requested", lines[3][1]],
        ["errors", lines[4][1]],
    ]
    assert lines[1][1].strip() == '["a", "b"]'
    assert lines[4][1].split() == ["at", "type"]
    assert "2026-01-02 03:04:05  ValueError" in out.getvalue()
    assert '"ä"' in out.getvalue()


def test_a_long_line_that_is_said_is_not_broken() -> None:
    screen, out = screen_on(terminal=False, width=20)
    screen.say("word " * 30)
    assert len(out.getvalue().splitlines()) == 1


def test_what_others_wrote_does_not_steer_the_terminal() -> None:
    hostile = "a\x1b[2J\x9b\u202eb\ud800\U000e0041\nc"
    shown = printable(hostile)
    assert shown == "a\\u001b[2J\\u009b\\u202eb\\ud800\\udb40\\udc41\nc"
    screen, out = screen_on(terminal=True)
    screen.table([{"name": hostile}], COLUMNS)
    screen.card({"name": hostile})
    screen.say(hostile)
    screen.script(hostile)
    assert "[2J" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert not {"\x9b", "\u202e", "\ud800"} & set(out.getvalue())


def test_json_for_scripts_is_the_same_json() -> None:
    value = {"x": "\x9b\u202e\U000e0041 ä 😀", "long": "word " * 100, "markup": "[bold]:smile:"}
    screen, out = screen_on(terminal=True, width=20)
    screen.script(json.dumps(value, ensure_ascii=False))
    assert json.loads(out.getvalue()) == value
    assert out.getvalue().count("\n") == 1
