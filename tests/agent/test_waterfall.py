"""The picture of a trace: which row is where, what it says, and how far its bar reaches."""

from __future__ import annotations

import io
import itertools
import random

import pytest
from rich.cells import cell_len
from rich.console import Console

from sw_agent.export.store import StoredSpan
from sw_agent.view.axis import BAR, WAIT, Axis
from sw_agent.view.tree import Fold, Row, arrange
from sw_agent.view.waterfall import Waterfall
from sw_agent.view.wording import duration, fit, printable, wrapped

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
T0 = 1_790_000_000_000_000_000
MS = 1_000_000


def span(number, parent, name, start_ms, end_ms, *, pid=100, thread="MainThread", service="shop", **fields):
    """Make a span; ids are numbers, times milliseconds from the trace's beginning, `wait` too."""
    attributes = {"thread.id": 1, "thread.name": thread, **fields.pop("attributes", {})}
    if wait := fields.pop("wait", None):
        attributes["sw.wait_ms"] = wait
    values = {
        "trace_id": TRACE,
        "span_id": f"{number:016x}",
        "parent_id": f"{parent:016x}" if parent else None,
        "name": name,
        "kind": "INTERNAL",
        "start_ns": T0 + round(start_ms * MS),
        "end_ns": T0 + round(end_ms * MS),
        "status": "UNSET",
        "status_description": "",
        "attributes": attributes,
        "events": [],
        "links": [],
        "resource": {"service.name": service, "process.pid": pid},
        "scope": "test",
        "run": None,
    }
    return StoredSpan(**{**values, **fields})


def exception(kind, message):
    attributes = {"exception.type": kind, "exception.message": message}
    return {"name": "exception", "time_ns": T0, "attributes": attributes}


def picture(spans, width=100, **options):
    """Return the lines of a waterfall, as they go into a pipe."""
    file = io.StringIO()
    Console(file=file, width=width).print(Waterfall(spans, **options))
    return file.getvalue().splitlines()


def line_of(name, lines):
    (line,) = [line for line in lines if name in line]
    return line


def names(rows):
    return [row.span.name if isinstance(row, Row) else row for row in rows]


def test_a_child_stands_under_its_parent_and_siblings_in_order_of_start():
    spans = [
        span(3, 1, "second", 50, 60),
        span(4, 2, "inside", 11, 20),
        span(1, None, "root", 0, 100),
        span(2, 1, "first", 10, 30),
    ]
    lines = picture(spans)[4:]
    assert [line.partition(" MainThread")[0].rstrip() for line in lines] == [
        "root",
        "├─ first",
        "│  └─ inside",
        "└─ second",
    ]


def test_the_header_says_what_the_trace_was():
    spans = [
        span(1, None, "root", 0, 1500, status="ERROR"),
        span(2, 1, "a", 1, 2, thread="worker"),
        span(3, 1, "b", 1, 2, pid=101, service="stock"),
    ]
    text = "\n".join(picture(spans)[:2])
    for part in ("shop, stock", "1.50 s", "3 spans", "1 error", "2 processes", "3 threads", TRACE, "2026-"):
        assert part in text


def test_bars_lie_on_one_axis():
    axis = Axis(T0, T0 + 100, 10)
    assert axis.bar(T0, T0 + 100) == [("█" * 10, BAR)]
    assert axis.bar(T0 + 20, T0 + 50) == [("  ", "rest"), ("███", BAR), ("     ", "rest")]
    assert axis.bar(T0 + 25, T0 + 50)[1] == ("▐██", BAR)
    assert axis.bar(T0, T0 + 5)[0] == ("▌", BAR)
    assert axis.bar(T0, T0 + 16)[0] == ("█▋", BAR)


def test_the_time_waited_is_a_thin_line_before_the_bar():
    parts = Axis(T0, T0 + 100, 10).bar(T0 + 50, T0 + 80, wait_ns=30)
    assert parts == [("  ", "rest"), ("───", WAIT), ("███", BAR), ("  ", "rest")]


@pytest.mark.parametrize("at", [-50, 0, 33, 99, 100, 400])
def test_a_span_without_length_or_off_the_axis_is_still_seen(at):
    parts = Axis(T0, T0 + 100, 10).bar(T0 + at, T0 + at)
    drawn = [text for text, part in parts if part == BAR]
    assert len(drawn) == 1
    assert drawn[0].strip()
    assert sum(len(text) for text, _ in parts) == 10


def test_every_bar_fills_the_axis_and_covers_what_it_should():
    random_numbers = random.Random(7)
    for _ in range(2000):
        width = random_numbers.randrange(4, 60)
        start, length = random_numbers.random() * 1000, random_numbers.random() ** 4 * 1000
        parts = Axis(0, 1000, width).bar(int(start), int(start + length), random_numbers.random() * 500)
        assert sum(len(text) for text, _ in parts) == width
        before = 0
        for text, part in parts:
            if part == BAR:
                assert abs(before - start / 1000 * width) <= 1.01
                assert before + len(text) <= min(start + length, 1000) / 1000 * width + 1.13
            before += len(text)


def test_the_marks_of_the_axis_are_round_times():
    assert [label for _, label in Axis(0, 1020 * MS, 30).marks()] == ["0", "500 ms", "1 s"]
    assert Axis(0, 0, 30).marks() == [(0, "0")]


def test_each_row_says_thread_time_and_time_waited():
    line = line_of("task", picture([span(1, None, "root", 0, 100), span(2, 1, "task", 40, 60, thread="w_1", wait=30)]))
    assert line.split()[2:7] == ["w_1", "20.0", "ms", "30.0", "ms"]
    assert "───" in line


def test_processes_have_a_column_where_there_are_several():
    root, task = span(1, None, "root", 0, 100), span(2, 1, "task", 40, 60)
    assert "pid" not in picture([root, task])[3]
    lines = picture([root, span(2, 1, "task", 40, 60, pid=4711)])
    assert "pid" in lines[3]
    assert " 100 " in line_of("root", lines)
    assert " 4711 " in line_of("task", lines)


def test_processes_are_named_by_their_service_where_there_are_several():
    lines = picture([span(1, None, "root", 0, 9), span(2, 1, "task", 4, 6, pid=7, service="stock")])
    assert "stock 7" in line_of("task", lines)


def test_an_exception_is_told_where_it_was_raised_and_marks_the_spans_it_came_through():
    fields = {"status": "ERROR", "events": [exception("app.Broken", "no\nmilk")]}
    lines = picture([span(1, None, "root", 0, 9, **fields), span(2, 1, "task", 4, 6, **fields)])
    assert lines[4].startswith("✗ root ")
    assert lines[5].startswith("└─ ✗ task ")
    assert lines[6].strip() == "Broken: no milk"
    assert len(lines) == 7


def test_the_tree_goes_on_beside_a_note():
    fields = {"status": "ERROR", "status_description": "no milk"}
    spans = [
        span(1, None, "root", 0, 9),
        span(2, 1, "task", 4, 6, **fields),
        span(3, 2, "x", 5, 6),
        span(4, 1, "y", 7, 8),
    ]
    lines = picture(spans)
    assert lines[6] == "│  │  no milk"
    assert lines[7].startswith("│  └─ x")


def test_other_events_are_no_notes():
    told = exception("ValueError", "no")
    spans = [span(1, None, "root", 0, 10, events=[{"name": "cache miss"}, told])]
    assert picture(spans) == picture([span(1, None, "root", 0, 10, events=[told])])


def test_an_exception_that_a_span_got_over_is_told_without_failing_it():
    lines = picture([span(1, None, "root", 0, 9, events=[exception("KeyError", "'x'")])])
    assert lines[4].startswith("root")
    assert lines[5].strip() == "! KeyError: 'x'"


def test_a_failed_span_without_exception_says_its_status():
    lines = picture([span(1, None, "root", 0, 9, status="ERROR", status_description="no milk")])
    assert lines[5].strip() == "no milk"


def test_a_long_message_is_broken_into_lines_and_then_cut():
    lines = picture([span(1, None, "root", 0, 9, status="ERROR", status_description="no milk " * 50)], width=60)
    notes = lines[lines.index(line_of("root", lines)) + 1 :]
    assert len(notes) == 3
    assert notes[-1].endswith("…")


def test_a_link_says_what_the_span_follows():
    links = [
        {"trace_id": TRACE, "span_id": f"{1:016x}", "attributes": {}},
        {"trace_id": "ab" * 16, "span_id": "cd" * 8, "attributes": {}},
    ]
    lines = picture([span(1, None, "publish", 0, 9), span(2, 1, "consume", 4, 6, links=links)])
    assert [line.strip() for line in lines[6:]] == ["↳ follows 'publish'", "↳ follows cdcdcdcd of trace abababab"]


def test_a_span_whose_parent_is_not_there_is_a_root_and_marked():
    lines = picture([span(1, None, "root", 0, 50), span(2, 77, "stray", 10, 20), span(3, 2, "below", 11, 12)])
    assert [line.split("  ")[0] for line in lines[4:7]] == ["root", "◌ stray", "└─ below"]
    assert "its parent is not in the store" in lines[-1]


def test_spans_that_are_their_own_ancestors_are_all_shown_once():
    spans = [span(1, 2, "a", 2, 9), span(2, 1, "b", 1, 9), span(3, 3, "self", 0, 1), span(4, 1, "c", 3, 4)]
    assert names(arrange(spans)) == ["self", "b", "a", "c"]


def test_two_spans_of_one_id_are_both_shown_and_children_once():
    spans = [span(1, None, "one", 0, 9), span(1, None, "two", 1, 9), span(2, 1, "child", 2, 3)]
    assert sorted(names(arrange(spans))) == ["child", "one", "two"]


def test_a_clock_that_differs_is_said_and_nothing_falls_off():
    lines = picture([span(1, None, "root", 0, 100), span(2, 1, "early", -40, -20, pid=2), span(3, 1, "back", 5, 4)])
    assert "clocks differ: spans begin up to 40.0 ms before their parents" in lines[-1]
    assert "█" in line_of("early", lines)
    assert "-1.00 ms" in line_of("back", lines)


def test_long_repetitions_are_folded_with_their_sums_and_the_failed_and_the_longest_stay():
    spans = [span(1, None, "root", 0, 10_000)]
    for number in range(2, 5002):
        failed, longest = number == 3000, number == 4000
        end = number + (60 if longest else 1)
        spans.append(span(number, 1, "f", number, end, status="ERROR" if failed else "UNSET"))
    rows = arrange(spans)
    assert len(rows) == 9
    assert names(rows[:6]) == ["root", "f", "f", "f", "f", "f"]
    assert rows[6].span.status == "ERROR"
    assert rows[7].span.end_ns - rows[7].span.start_ns == 60 * MS
    assert isinstance(rows[8], Fold)
    lines = picture(spans)
    assert "└─ … 4,993 more 'f' (total 4.99 s, max 1.00 ms)" in lines[12]
    assert lines[-1] == "… 4,993 spans folded; --all shows every one"


def test_names_that_differ_in_numbers_are_folded_with_what_is_under_them():
    spans = [span(1, None, "root", 0, 100)]
    for number in range(2, 42):
        spans += [
            span(number, 1, f"item {number}", number, number + 1),
            span(1000 + number, number, "x", number, number),
        ]
    (fold,) = [row for row in arrange(spans) if isinstance(row, Fold)]
    assert (fold.name, len(fold.spans), fold.spans_under) == ("item #", 35, 35)


def test_a_few_repetitions_are_not_folded():
    spans = [span(1, None, "root", 0, 100), *(span(number, 1, "f", number, number + 1) for number in range(2, 12))]
    assert len(arrange(spans)) == len(spans)


def test_children_of_many_names_beyond_the_first_two_hundred_are_one_row():
    names = ["".join(pair) for pair in itertools.product("abcdefghijklmnop", repeat=2)]
    spans = [span(1, None, "root", 0, 1000), *(span(n, 1, name, n, n + 1) for n, name in enumerate(names, 2))]
    spans += [span(n, 1, f"again {n}", n, n + 1) for n in range(300, 350)]
    _root, *rows, last = arrange(spans)
    assert [row.span.name for row in rows] == names[:200]
    assert isinstance(last, Fold)
    assert len(last.spans) == 56 + 50


def test_with_all_every_span_is_shown():
    spans = [span(1, None, "root", 0, 10_000), *(span(n, 1, "f", n, n + 1) for n in range(2, 2000))]
    assert len(picture(spans, show_all=True)) == 4 + len(spans)


@pytest.mark.parametrize("fold", [True, False])
def test_every_span_of_a_trace_is_shown_or_counted_in_a_fold(fold):
    random_numbers = random.Random(3)
    for _ in range(60):
        size = random_numbers.randrange(1, 400)
        spans = []
        for number in range(1, size + 1):
            parent = random_numbers.choice([None, number // 3, random_numbers.randrange(1, size + 5)])
            name = random_numbers.choice(["f", "g", f"h{number}", "".join(random_numbers.choices("abc", k=4))])
            spans.append(span(number, parent, name, random_numbers.random() * 50, 60))
        rows = arrange(spans, fold=fold)
        counted = sum(1 if isinstance(row, Row) else len(row.spans) + row.spans_under for row in rows)
        assert counted == size


def test_a_deep_tree_keeps_its_names_readable():
    spans = [span(number, number - 1, f"level {number}", number, 10_000 - number) for number in range(1, 2001)]
    lines = picture(spans, width=80)
    assert "level 2000" in lines[-1]
    assert lines[-1].startswith("⋯19")


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 110, 250])
def test_no_line_is_wider_than_the_terminal(width):
    spans = [
        span(1, None, "后端 " * 30, 0, 100, thread="線程" * 20),
        span(2, 1, "e\u0301" * 60, 1, 50, pid=12345, service="a-very-long-service-name", wait=3),
        span(3, 2, "👩‍💻 work", 2, 3, status="ERROR", status_description="名前" * 100),
        *(span(number, 1, f"some name {number}", 3, 4) for number in range(10, 40)),
    ]
    assert max(map(cell_len, picture(spans, width))) <= width


def test_the_bars_begin_in_one_column_whatever_the_width_of_the_characters():
    lines = picture([span(1, None, "后端", 0, 100), span(2, 1, "plain", 0, 100), span(3, 1, "e\u0301" * 5, 0, 100)])
    assert len({cell_len(line[: line.index("█")]) for line in lines[4:]}) == 1


def test_nothing_in_a_span_reaches_the_terminal_as_a_control_character():
    evil = "a\x1b[31mb\x1b]0;t\x07c\r\nd\x9be\u202ef\x00\u200b"
    fields = {"status": "ERROR", "events": [exception(evil, evil)], "thread": evil, "service": evil}
    text = "\n".join(picture([span(1, None, evil, 0, 9, **fields), span(2, 1, evil, 0, 9, pid=5, service="x")]))
    assert text.replace("\n", "").isprintable()


def test_in_a_terminal_errors_are_red_and_each_thread_has_a_colour():
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard", no_color=False)
    console.print(Waterfall([span(1, None, "root", 0, 9), span(2, 1, "bad", 1, 2, thread="w", status="ERROR")]))
    root, bad = file.getvalue().splitlines()[4:6]
    assert "\x1b[36mMainThread" in root
    assert "\x1b[32mw" in bad
    assert "\x1b[31m✗ bad" in bad
    assert "\x1b[31m▐█" in bad


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 µs"),
        (1, "0.00 µs"),
        (1_234, "1.23 µs"),
        (999_999, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (999_400_000, "999 ms"),
        (999_600_000, "1.00 s"),
        (59_400_000_000, "59.4 s"),
        (59_999_000_000, "1m 00s"),
        (3_723_000_000_000, "1h 02m"),
        (-2_000_000, "-2.00 ms"),
    ],
)
def test_durations_have_three_digits(nanoseconds, text):
    assert duration(nanoseconds) == text


def test_texts_fit_their_cells():
    assert fit("ThreadPoolExecutor-0_12", 12, keep_end=True) == "Thread…-0_12"
    assert fit("后端服务", 4) == "后… "
    assert fit("abc", 0) == ""
    assert wrapped("one two three", 8, most=3) == ["one two", "three"]
    assert wrapped("后端服务", 1, most=2)[-1] == "…"
    assert printable("a\tb\n c\x1b") == "a b c�"
