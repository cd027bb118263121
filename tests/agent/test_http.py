"""What plugins for HTTP share: nothing secret in an attribute, and few values in a name."""

from __future__ import annotations

import pytest

from sw_agent import http


def test_an_unknown_method_is_no_span_name():
    assert http.span_name("GET", "/users/{id}") == "GET /users/{id}"
    assert http.span_name("BREW") == "HTTP"
    assert http.method_attributes("BREW") == {
        "http.request.method": "_OTHER",
        "http.request.method_original": "BREW",
    }


@pytest.mark.parametrize(
    "name", ["Authorization", "Set-Cookie", "X-API-Key", "x_auth_token", "AWSAccessKeyId", "sig", "X-Goog-Signature"]
)
def test_what_holds_a_secret_is_redacted_as_header_and_as_parameter(name: str):
    assert http.redacted_query(f"a=1&{name}=hunter2&b") == f"a=1&{name}=REDACTED&b"
    headers = http.CapturedHeaders("request", [name])
    assert headers.attributes(lambda _: ["hunter2"]) == {f"http.request.header.{name.lower()}": ("REDACTED",)}


@pytest.mark.parametrize("name", ["Accept", "X-Request-Id", "Keep-Alive", "design"])
def test_what_holds_none_is_recorded_with_all_its_values(name: str):
    assert http.redacted_query(f"{name}=a%20b") == f"{name}=a%20b"
    headers = http.CapturedHeaders("response", [name])
    assert headers.attributes(lambda _: ["a", "b"]) == {f"http.response.header.{name.lower()}": ("a", "b")}


def test_a_header_that_is_missing_gives_no_attribute():
    assert http.CapturedHeaders("request", ["Accept"]).attributes(lambda _: []) == {}
    assert not http.CapturedHeaders("request", [])


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("shop.test", ("shop.test", None)),
        ("shop.test:8080", ("shop.test", 8080)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:443", ("::1", 443)),
        ("[::1]", ("::1", None)),
        ("shop.test:", ("", None)),
        ("shop.test:99999", ("", None)),
        ("shop.test:\u0663", ("", None)),
        ("::1", ("", None)),
        ("a/b", ("", None)),
        ("caf\udce9", ("", None)),
        ("x" * 256, ("", None)),
    ],
)
def test_a_host_that_is_none_is_not_recorded(header: str, host: tuple[str, int | None]):
    assert http.host_and_port(header) == host


@pytest.mark.parametrize(("came", "is_shown"), [("plain", "plain"), ("café", "café"), ("caf\udce9", "caf?")])
def test_what_nothing_can_encode_is_not_recorded(came: str, is_shown: str):
    assert http.printable(came) == is_shown
