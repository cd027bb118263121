"""Redaction: no secret in any span that leaves, nothing else changed, and no span lost by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, StatusCode, TraceFlags
from opentelemetry.trace.status import Status

from compiled import needs_a_compiler
from sw_agent._secrets import without_secrets
from sw_agent.export.redaction import MOST_SHARED, Redaction
from sw_agent.export.rows import cleaned_row, resource_text
from sw_agent.export.secret_values import LONGEST_REMEMBERED, MOST_REMEMBERED

SECRET = "hunter2Xyz"
CONTEXT = SpanContext(1, 2, False, TraceFlags(1))

# With {} for the secret, and what is left.
URLS = [
    ("postgresql+psycopg2://bob:{}@db/x", "postgresql+psycopg2://REDACTED:REDACTED@db/x"),
    ("redis://:{}@h:6379/0", "redis://REDACTED:REDACTED@h:6379/0"),
    ("see amqp://bob:{}@h// and amqp://eve:{}@g", "see amqp://REDACTED:REDACTED@h// and amqp://REDACTED:REDACTED@g"),
    ("amqp://a:{}@h;amqp://b:{}@g", "amqp://REDACTED:REDACTED@h;amqp://REDACTED:REDACTED@g"),
    ("https://{}@github.com/x", "https://REDACTED:REDACTED@github.com/x"),
    ("http://a:{}@[::1]:80/x@y", "http://REDACTED:REDACTED@[::1]:80/x@y"),
    ("http://bob%40x:{}%2F@h", "http://REDACTED:REDACTED@h"),
    ("mysql://root:{}/x?y@h/db", "mysql://REDACTED:REDACTED@h/db"),
    ("mysql://root:123456/{}@h/db", "mysql://REDACTED:REDACTED@h/db"),
    ("mysql://root:p#{}@h/db", "mysql://REDACTED:REDACTED@h/db"),
    ("mysql://root:p@{}@h/db", "mysql://REDACTED:REDACTED@h/db"),
    ("mysql://root:it's{}@h/db", "mysql://REDACTED:REDACTED@h/db"),
    (r'{{"url":"http:\/\/u:{}@h\/x"}}', r'{"url":"http:\/\/REDACTED:REDACTED@h\/x"}'),
    ("http://h/?next=http%3A%2F%2Fu%3A{}%40g%2Fa", "http://h/?next=http%3A%2F%2FREDACTED%40g%2Fa"),
    ("//bob:{}@h", "//REDACTED:REDACTED@h"),
    ("GET /x?a=1&access-token={}&b=2 HTTP/1.1", "GET /x?a=1&access-token=REDACTED&b=2 HTTP/1.1"),
    ("['http://h?sig={}', 'x']", "['http://h?sig=REDACTED', 'x']"),
    ("http://h/cb#access_token={}", "http://h/cb#access_token=REDACTED"),
    ("password={}&x=1", "password=REDACTED&x=1"),
]
HEADERS = [
    ("Authorization: Bearer {}", "Authorization: REDACTED"),
    ("Authorization: Bearer {}\nHost: h", "Authorization: REDACTED\nHost: h"),
    ('Authorization: Digest username="x", response="{}"', "Authorization: REDACTED"),
    ('"Authorization": "Basic {}=="', '"Authorization": "REDACTED"'),
    ("{{'Authorization': 'Digest a=\"x\", b=\"{}\"', 'X': 1}}", "{'Authorization': 'REDACTED', 'X': 1}"),
    (r'{{"authorization": "Digest a=\"x\", b=\"{}\"", "X": 1}}', '{"authorization": "REDACTED", "X": 1}'),
    (r"{{\"Cookie\": \"a={}\", \"x\": 1}}", r"{\"Cookie\": \"REDACTED\", \"x\": 1}"),
    ("authorization={}", "authorization=REDACTED"),
    ("get(authorization=Bearer {}, x=1)", "get(authorization=REDACTED, x=1)"),
    ("authorization=Digest a=1, b={}", "authorization=REDACTED"),
    ("Proxy-Authorization: Basic {}", "Proxy-Authorization: REDACTED"),
    ("curl -H 'Authorization: Bearer {}' http://h", "curl -H 'Authorization: REDACTED' http://h"),
    ('curl -H "Cookie: a={}; b={}" http://h', 'curl -H "Cookie: REDACTED" http://h'),
    ("('Cookie', 'a={}')", "('Cookie', 'REDACTED')"),
    ("(b'cookie', b'a={}'), (b'x', b'y')", "(b'cookie', b'REDACTED'), (b'x', b'y')"),
    ("b'Cookie': b'a={}; b={}'", "b'Cookie': b'REDACTED'"),
    ("Set-Cookie: a={}; Path=/", "Set-Cookie: REDACTED"),
    (r"b'GET / HTTP/1.1\r\nCookie: a={}; b={}\r\nHost: h'", r"b'GET / HTTP/1.1\r\nCookie: REDACTED\r\nHost: h'"),
    ("{{'Set-Cookie': ['a={}', 'b={}']}}", "{'Set-Cookie': REDACTED"),
    ("cookies={{'a': '{}'}}", "cookies=REDACTED"),
    ("cookie=a=1; b={}", "cookie=REDACTED"),
    ("HTTP_COOKIE=a={}", "HTTP_COOKIE=REDACTED"),
    ("'HTTP_AUTHORIZATION': 'Bearer {}'", "'HTTP_AUTHORIZATION': 'REDACTED'"),
    ('headers["Authorization"] = f"Bearer {}"', 'headers["Authorization"] = f"REDACTED"'),
    ("_Metadatum(key='authorization', value='Bearer {}')", "_Metadatum(key='authorization', value='REDACTED')"),
    ("<Cookie a={} for host/>", "<Cookie REDACTED"),
    ("Cookie(version=0, name='a', value='{}')", "Cookie(REDACTED"),
    ("<SimpleCookie: a='{}'>", "<SimpleCookie: REDACTED"),
    ("X-Api-Key: {}", "X-Api-Key: REDACTED"),
    ("the authorization header was Bearer {}", "the authorization header was Bearer REDACTED"),
    ("refused: Bearer eyJhbGciOi{}", "refused: Bearer REDACTED"),
    ("refused: Basic dXNlcjpwYXNz{}==", "refused: Basic REDACTED"),
    ("Cookie: 'a={}", "Cookie: 'REDACTED"),
]
CLEAN = [
    "",
    "cookie",
    "no cookie for you",
    "the authorization failed",
    "Authorization:",
    "authorization uses Basic auth",
    "Basic authentication",
    "bearer of bad news",
    "Vary: Cookie, Accept",
    "a@b.example://",
    "user a@b wrote to http://x",
    "http://host:8080/@scope/package",
    "https://example.com/@user",
    "http://[::1]:80/a@b",
    "file:///a//b@c",
    "git@github.com:a/b.git",
    "http://host?next=/@me",
    '{"url":"http://host:8080","mail":"a@b"}',
    'token = headers.get("Cookie", default)',
    'cookie = request.cookies.get("session")',
    "get(url, cookies=None, timeout=3)",
    "{'cookie': None, 'x': 1}",
    "SELECT a, b FROM t WHERE x = ?",
    "?a=1&b=2",
]
HOSTILE = [
    "://", "://a:", "//a:b", "://a:b/", "://u::", "@", "://@", "@://", "http://u:p@h ", '"@', "%40%", "%3A%2F%2F",
    "cookie:", 'cookie:"', "'cookie: a\\n", "'cookie: a' ", "cookie=", "cookie=a; ", "cookie ", "cookie\t",
    'cookie:\\"', "cookie',", "cookie='", "cookie=[", "cookie: none", "cookie a", "authorization ", "bearer ",
    "Authorization: Bearer ", "\\", "\\r\\", "?a=", "?", "&", "=", " ", "?token='", "authorization=", "aws", "basic%20",
]  # fmt: skip
WITH_ALL = "?token=1 ://a:b%40@c cookie: authorization: bearer "


def span(name: str = "work", **fields: Any) -> ReadableSpan:
    fields = {"context": CONTEXT, "resource": Resource({}), "start_time": 1, "end_time": 2, **fields}
    return ReadableSpan(name, **fields)


def redacted(given: ReadableSpan, *patterns: str) -> ReadableSpan:
    (found,) = Redaction(patterns).spans([given])
    return found


def attribute(key: str, value: Any, *patterns: str) -> Any:
    attributes: Mapping[str, Any] = redacted(span(attributes={key: value}), *patterns).attributes or {}
    return attributes[key]


def everything_in(given: ReadableSpan) -> str:
    return f"{encode_spans([given])}{cleaned_row(given, 1, None)}{resource_text(given.resource)}"


# Text


@pytest.mark.parametrize(("text", "left"), [*URLS, *HEADERS])
def test_a_secret_in_a_text_is_replaced_and_the_rest_stays(text: str, left: str) -> None:
    assert without_secrets(text.format(*[SECRET] * 3)) == left


@pytest.mark.parametrize(("text", "left"), [*URLS, *HEADERS])
def test_what_is_redacted_stays_as_it_is(text: str, left: str) -> None:
    assert Redaction().text(left) is left


@pytest.mark.parametrize("text", CLEAN)
def test_a_text_without_secrets_is_the_very_same(text: str) -> None:
    redaction = Redaction(["hunter"])
    assert redaction.text(text) is text
    assert redaction.text(text) is text


RAW = st.text("abcXYZ089!$&'()*+,;=:@#._~-", min_size=4)
NAMES = st.text("abcxyz09_-.", min_size=1, max_size=9)
HOSTS = st.sampled_from(["db", "localhost:5432", "[::1]:80", "10.0.0.1", "a.example.com", "[fe80::1]"])
SCHEMES = st.sampled_from(["http", "postgresql+psycopg2", "redis", "amqp", "mongodb+srv", "ftp"])
SURROUNDINGS = st.sampled_from(
    ["{}", "cannot connect to {}", "'{}'", '{{"url": "{}"}}', "({})", "{}\nmore", "a@b {} c@d"]
)


@given(SCHEMES, NAMES, st.one_of(RAW, st.text(min_size=4).map(lambda text: quote(text, safe=""))), HOSTS, SURROUNDINGS)
def test_no_password_of_a_url_is_left(scheme: str, user: str, password: str, host: str, around: str) -> None:
    marked = f"Q{password}Q"  # nothing else in the text can look like it
    text = around.format(f"{scheme}://{user}:{marked}@{host}/path")
    found = Redaction().text(text)

    assert marked not in found
    assert host in found
    assert Redaction().text(found) is found


@given(st.text("abcXYZ089_-.~+/=", min_size=1), st.sampled_from([text for text, _ in HEADERS]))
def test_no_token_of_a_header_is_left(token: str, text: str) -> None:
    marked = f"Q{token}9Q"
    found = Redaction().text(text.format(*[marked] * 3))

    assert marked not in found
    assert Redaction().text(found) is found


@given(st.text())
def test_any_text_is_redacted_once_and_for_all(text: str) -> None:
    once = Redaction().text(text)
    assert Redaction().text(once) is once


def seconds(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("place", ["{}", f"{WITH_ALL}{{}}{WITH_ALL}"], ids=["alone", "between"])
def test_the_time_grows_with_the_text_and_no_faster(unit: str, place: str) -> None:
    """Sixteen times the text takes about sixteen times as long; 256 times if it were quadratic."""
    short, long = (place.format(unit * (size // len(unit))) for size in (1 << 16, 1 << 20))
    # A pause of the machine only makes it longer: the shortest of several counts.
    for _ in range(5):
        ratio = seconds(lambda: without_secrets(long)) / min(seconds(lambda: without_secrets(short)) for _ in range(3))
        if ratio < 64:
            return
    pytest.fail(f"{ratio:.0f} times as long")


def test_what_is_remembered_is_bounded() -> None:
    redaction = Redaction()
    for number in range(3 * MOST_REMEMBERED):
        redaction.attributes({f"key {number}": f"text {number}", "long": f"{number}" * LONGEST_REMEMBERED})

    assert len(redaction._clean_texts) <= MOST_REMEMBERED
    assert len(redaction._clean_keys) <= MOST_REMEMBERED
    assert max(map(len, redaction._clean_texts)) <= LONGEST_REMEMBERED


# Spans


def test_spans_without_secrets_are_the_very_sequence() -> None:
    spans = [span(attributes={"a": 1, "b": ("x", "y"), "c": b"z", "d": 1.5}, events=[Event("e")]) for _ in range(3)]
    redaction = Redaction(["hunter"])

    assert redaction.spans(spans) is spans
    assert redaction.spans(spans) is spans


URL = f"http://u:{SECRET}@h"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": URL},
        {"attributes": {"a": URL}},
        {"attributes": {URL: "a"}},
        {"attributes": {"a": (URL, "b")}},
        {"attributes": {"a": URL.encode() + b"\xff"}},
        {"attributes": {"a": {"b": [{"c": URL}]}}},
        {"attributes": {"http.request.header.authorization": ("Bearer", SECRET)}},
        {"events": [Event(URL)]},
        {"events": [Event("exception", {"exception.message": URL, "exception.stacktrace": f"ValueError: {URL}"})]},
        {"links": [Link(CONTEXT, {"a": URL})]},
        {"status": Status(StatusCode.ERROR, URL)},
        {"resource": Resource({"process.command_args": ("app", URL)})},
    ],
    ids=" ".join,
)
def test_no_part_of_a_span_keeps_a_secret_and_the_programs_own_span_is_untouched(fields: dict[str, Any]) -> None:
    given = span(**fields)
    before = everything_in(given)
    spans = [span("first"), given, span("last")]

    found = Redaction().spans(spans)

    assert found[0] is spans[0]
    assert found[2] is spans[2]
    assert SECRET in before
    assert SECRET not in everything_in(found[1])
    assert "REDACTED" in everything_in(found[1])
    assert spans[1] is given
    assert everything_in(given) == before
    assert (found[1].context, found[1].start_time, found[1].end_time) == (CONTEXT, 1, 2)


def test_a_span_of_the_sdk_keeps_all_that_is_no_secret() -> None:
    limits = SpanLimits(max_attributes=2, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1)
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), span_limits=limits, shutdown_on_exit=False)
    two = {"a": 1, "b": URL}
    links = [Link(CONTEXT, two), Link(CONTEXT, two)]
    with provider.get_tracer("scope", "1").start_as_current_span("work", links=links) as given:
        given.set_attributes({"x": 1, "y": 2, "url.full": URL})
        given.add_event("first")
        given.add_event("second", two, timestamp=7)
    assert isinstance(given, ReadableSpan)

    found = redacted(given)

    assert dict(found.attributes or {}) == {"y": 2, "url.full": "http://REDACTED:REDACTED@h"}
    assert [(event.name, event.timestamp) for event in found.events] == [("second", 7)]
    for field in ("dropped_attributes", "dropped_events", "dropped_links"):
        assert getattr(found, field) == getattr(given, field) == 1
    assert found.events[0].dropped_attributes == given.events[0].dropped_attributes == 1
    assert found.links[0].dropped_attributes == given.links[0].dropped_attributes
    for field in ("context", "parent", "kind", "resource", "instrumentation_scope", "start_time", "end_time"):
        assert getattr(found, field) is getattr(given, field)
    assert given.attributes is not None
    assert given.attributes["url.full"] == URL


def test_spans_of_one_resource_and_scope_still_share_them() -> None:
    provider = TracerProvider(resource=Resource({"a": URL}, "schema"), shutdown_on_exit=False)
    tracer = provider.get_tracer("scope", "1", "schema", {"a": URL})
    redaction = Redaction()
    found = [redaction.spans([tracer.start_span("work")])[0] for _ in range(3)]  # type: ignore[list-item]

    assert len({id(it.resource) for it in found}) == len({id(it.instrumentation_scope) for it in found}) == 1
    assert found[0].resource == Resource({"a": "http://REDACTED:REDACTED@h"}, "schema")
    scope = found[0].instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version, scope.schema_url) == ("scope", "1", "schema")
    assert dict(scope.attributes or {}) == {"a": "http://REDACTED:REDACTED@h"}


@pytest.mark.parametrize(
    "key",
    [
        "http.request.header.authorization",
        "http.request.header.proxy-authorization",
        "http.request.header.cookie",
        "http.response.header.set-cookie",
        "http.request.header.x-api-key",
        "http.request.header.x_auth_token",
        "http.response.header.x-session-id",
        "rpc.grpc.request.metadata.authorization",
        "headers.Cookie",
        "HTTP_AUTHORIZATION",
        "Set-Cookie",
        "openai.api_key",
    ],
)
def test_the_value_of_a_sensitive_header_is_hidden_in_the_type_that_it_has(key: str) -> None:
    assert attribute(key, "x") == "REDACTED"
    assert attribute(key, ["x", "y"]) == ("REDACTED",)
    assert attribute("headers", {key: "x", "accept": "y"}) == {key: "REDACTED", "accept": "y"}
    assert attribute("headers", [(key, "x"), ("accept", "y")]) == [[key, "REDACTED"], ("accept", "y")]
    already = span(attributes={key: ("REDACTED",)})
    assert redacted(already) is already


@pytest.mark.parametrize(
    "key", ["http.request.header.accept", "session.id", "gen_ai.usage.input_tokens", "cookie.count"]
)
def test_the_value_of_another_key_is_shown(key: str) -> None:
    assert attribute(key, "x") == "x"


# Patterns of the configuration


def test_what_a_pattern_matches_is_replaced_wherever_it_stands() -> None:
    given = span(
        "pay 4111111111111111",
        attributes={"a": "card 4111111111111111!", "b": 4111111111111111, "c": [b"4111111111111111"], "d": 7},
        events=[Event("exception", {"exception.message": "4111111111111111 refused"})],
    )
    found = redacted(given, r"\d{13,16}")

    assert found.name == "pay REDACTED"
    assert found.attributes == {"a": "card REDACTED!", "b": "REDACTED", "c": [b"REDACTED"], "d": 7}
    assert found.events[0].attributes == {"exception.message": "REDACTED refused"}


def test_the_value_of_a_key_that_a_pattern_matches_is_hidden_and_the_key_stays() -> None:
    found = redacted(span(attributes={"user.email": "a@b", "user.id": 7, "mails": 3}), "(?i)E?MAIL")

    assert found.attributes == {"user.email": "REDACTED", "user.id": 7, "mails": "REDACTED"}


@pytest.mark.parametrize("pattern", ["x*", "RED", "ED", "[A-Z]+", "(?:)", r"\b"])
def test_a_pattern_that_matches_nothing_or_the_mark_itself_changes_nothing(pattern: str) -> None:
    already = "a REDACTED b"
    assert Redaction([pattern]).text(already) is already
    assert attribute("key", "value", pattern) == "value"


def test_a_pattern_takes_away_no_mark_by_which_another_secret_is_known() -> None:
    assert Redaction(["Authorization", "://"]).text(f"Authorization: {SECRET}") == "REDACTED: REDACTED"
    assert SECRET not in Redaction(["://"]).text(URL)


# What cannot be looked at


class Wordless:
    def __str__(self) -> str:
        raise RuntimeError


class Telling:
    def __str__(self) -> str:
        return URL


class Disguised(str):
    def __str__(self) -> str:
        return "harmless"

    def __contains__(self, _part: str) -> bool:
        return False


class Keyed:
    def keys(self) -> list[str]:
        return ["cookie"]

    def __getitem__(self, key: str) -> str:
        return SECRET


@pytest.mark.parametrize(
    "value", [Wordless(), 10**5000, "\udc80 lone", float("nan"), None, range(3), frozenset()], ids=type
)
def test_what_has_no_text_or_a_strange_one_is_left_to_the_encoder(value: Any) -> None:
    given = span(attributes={"a": value, "b": 1})

    assert redacted(given, "hunter") is given
    assert cleaned_row(redacted(given, "hunter"), 1, None)


@pytest.mark.parametrize("value", [Telling(), Disguised(URL), Keyed(), {"a": Telling()}, {URL}], ids=type)
def test_the_text_that_an_object_will_become_is_looked_at(value: Any) -> None:
    found = redacted(span(attributes={"a": value}))

    assert SECRET not in f"{cleaned_row(found, 1, None)}"
    assert "REDACTED" in f"{cleaned_row(found, 1, None)}"


def test_a_value_that_cannot_be_looked_at_to_its_end_is_hidden() -> None:
    endless: list[Any] = [SECRET]
    endless.append(endless)
    found = redacted(span(attributes={"a": endless, "b": "shown"}))

    assert found.attributes == {"a": "REDACTED", "b": "shown"}


class Unreadable(BoundedAttributes):
    def copy(self) -> Any:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    "fields",
    [
        {"attributes": Unreadable(attributes={"a": 1})},
        {"events": [Event("e", Unreadable(attributes={"a": 1}))]},
        {"links": [object()]},
    ],
    ids=["attributes", "events", "links"],
)
def test_of_a_span_that_cannot_be_looked_at_only_place_and_time_are_left(fields: dict[str, Any]) -> None:
    given = span(SECRET, status=Status(StatusCode.ERROR, SECRET), parent=CONTEXT, **fields)
    fine = span("fine")

    found, other = Redaction(["nothing"]).spans([given, fine])

    assert other is fine
    assert (found.context, found.parent, found.start_time, found.end_time) == (CONTEXT, CONTEXT, 1, 2)
    assert found.status.status_code is StatusCode.ERROR
    assert found.attributes == {"sw.redaction": f"failed: {'AttributeError' if 'links' in fields else 'RuntimeError'}"}
    assert SECRET not in everything_in(found)


WORDS = st.sampled_from(["plain", "other", SECRET, f"token={SECRET}", "x" * (LONGEST_REMEMBERED + 1), ""])
VALUES = WORDS | st.sampled_from([None, True, 3, 2.5, 10**30, b"plain", ("plain", SECRET), [1], {"password": SECRET}])
KEYS = st.sampled_from(["key", "password", f"key {SECRET}", "api_key", "k" * (LONGEST_REMEMBERED + 1)])
RESOURCES = [Resource({"service.name": "shop"}), Resource({"url": f"http://a:{SECRET}@h"})]
SCOPES = [None, InstrumentationScope("plain"), InstrumentationScope(f"token={SECRET}")]
SPANS = st.builds(
    lambda resource, scope, name, attributes, events, links, status: span(
        name,
        resource=resource,
        instrumentation_scope=scope,
        attributes=BoundedAttributes(None, attributes, False),
        events=events,
        links=links,
        status=status,
    ),
    st.sampled_from(RESOURCES),
    st.sampled_from(SCOPES),
    WORDS,
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.sampled_from([(), (), (), (Event("plain", {"key": SECRET}),)]),
    st.sampled_from([(), (), (), (Link(CONTEXT, {"password": "x"}),)]),
    st.sampled_from([Status(), Status(StatusCode.ERROR), Status(StatusCode.ERROR, SECRET)]),
)


def texts_of(found: ReadableSpan) -> tuple[Any, ...]:
    of_others = [dict(other.attributes or {}) for other in (*found.events, *found.links)]
    of_all = dict(found.resource.attributes), found.instrumentation_scope and found.instrumentation_scope.name
    return found.name, dict(found.attributes or {}), of_others, found.status.description, of_all


@settings(max_examples=200, deadline=None)
@given(st.lists(SPANS, max_size=8), st.sampled_from([(), ("hunter.",), ("key",), ("[23]",)]))
def test_what_is_compiled_finds_every_secret_that_the_python_code_finds(
    batch: list[ReadableSpan], patterns: tuple[str, ...]
) -> None:
    spans = [*batch, *batch]  # known at the second time
    compiled = Redaction(patterns).spans(spans)
    with patch("sw_agent.export.redaction.is_known", return_value=False):
        python = Redaction(patterns).spans(spans)
    assert list(map(texts_of, compiled)) == list(map(texts_of, python))
    assert [found is given for found, given in zip(compiled, spans, strict=True)] == [
        found is given for found, given in zip(python, spans, strict=True)
    ]


@pytest.mark.parametrize("number", [13, 1.3])
def test_a_number_that_a_pattern_matches_is_hidden_each_time(number: float) -> None:
    redaction = Redaction(["3"])
    for _ in range(2):
        (found,) = redaction.spans([span("work", attributes=BoundedAttributes(None, {"key": number}, False))])
        assert dict(found.attributes or {}) == {"key": "1REDACTED" if number == 13 else "1.REDACTED"}


@needs_a_compiler
def test_a_span_of_which_all_is_known_is_looked_at_by_what_is_compiled_alone() -> None:
    given = span("work", attributes=BoundedAttributes(None, {"key": "plain", "n": 1, "none": None}, False))
    redaction = Redaction()
    assert list(redaction.spans([given])) == [given]
    with patch.object(redaction, "attributes", side_effect=AssertionError):
        assert list(redaction.spans([given])) == [given]


def test_secrets_in_many_resources_are_hidden_in_each() -> None:
    secret = Resource({"url": "http://me:hunter2@host"})
    spans = [
        ReadableSpan(name="work", context=CONTEXT, resource=secret.merge(Resource({"n": n})))
        for n in range(MOST_SHARED + 10)
    ]
    redacted = Redaction().spans(spans)
    assert [span.resource.attributes["n"] for span in redacted] == list(range(MOST_SHARED + 10))
    assert not any("hunter2" in str(span.resource.attributes["url"]) for span in redacted)
