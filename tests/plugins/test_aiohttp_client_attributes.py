"""The plugin aiohttp-client: what a span says of a request, by the stable conventions and without secrets."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp_served import Served, in_loop
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.trace import StatusCode

from sw_agent.testing import installed
from sw_agent_plugins.aiohttp_client import plugin

KEYS = {
    http_attributes.HTTP_REQUEST_METHOD,
    http_attributes.HTTP_REQUEST_METHOD_ORIGINAL,
    http_attributes.HTTP_REQUEST_RESEND_COUNT,
    http_attributes.HTTP_RESPONSE_STATUS_CODE,
    server_attributes.SERVER_ADDRESS,
    server_attributes.SERVER_PORT,
    url_attributes.URL_FULL,
    network_attributes.NETWORK_PEER_ADDRESS,
    network_attributes.NETWORK_PEER_PORT,
    network_attributes.NETWORK_PROTOCOL_VERSION,
    error_attributes.ERROR_TYPE,
    f"{http_attributes.HTTP_REQUEST_HEADER_TEMPLATE}.accept",
    f"{http_attributes.HTTP_RESPONSE_HEADER_TEMPLATE}.x-answer",
}


@in_loop
async def test_every_key_is_one_of_the_stable_conventions():
    seen: set[str] = set()
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin, request_headers=["Accept"], response_headers=["X-Answer"]) as spans:
            await session.get(server.url("/redirect/1"))
            await session.get(server.url("/status/500"))
            await session.request("brew", server.url())
    for each in spans:
        seen |= set(each.attributes or {})
    assert seen == KEYS


@in_loop
async def test_the_attributes_say_where_the_request_went_and_what_came_back():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            await session.post(f"http://me:secret@127.0.0.1:{server.port}/a%20b?token=abc&page=2#part", data=b"x")
    assert dict(spans.named("POST").attributes or {}) == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "url.full": server.url("/a%20b"),
        "network.peer.address": "127.0.0.1",
        "network.peer.port": server.port,
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
    }


@in_loop
async def test_the_query_is_recorded_on_demand_without_its_secrets():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin, query=True) as spans:
            await session.get(server.url("/search?q=a&api_key=hunter2#part"), params={"sig": "x"})
    assert (spans.named("GET").attributes or {})["url.full"] == server.url("/search?q=a&api_key=REDACTED&sig=REDACTED")


@in_loop
async def test_headers_are_recorded_on_demand_without_their_secrets():
    wanted = {"request_headers": ["X-Mine", "authorization"], "response_headers": ["x-answer", "Set-Cookie", "None"]}
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin, **wanted) as spans:
            headers = [("X-Mine", "1"), ("X-Mine", "2"), ("Authorization", "Bearer hunter2")]
            await session.get(server.url(), headers=headers)
    attributes = spans.named("GET").attributes or {}
    assert {key: value for key, value in attributes.items() if ".header." in key} == {
        "http.request.header.x-mine": ("1", "2"),
        "http.request.header.authorization": ("REDACTED",),
        "http.response.header.x-answer": ("42",),
        "http.response.header.set-cookie": ("REDACTED",),
    }


@in_loop
async def test_an_unknown_method_is_no_span_name():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            await session.request("brew", server.url())
    attributes = spans.named("HTTP").attributes or {}
    assert attributes["http.request.method"] == "_OTHER"
    assert attributes["http.request.method_original"] == "BREW"


@pytest.mark.parametrize("status", [400, 404, 499, 500, 503])
@pytest.mark.parametrize("raising", [False, True])
@in_loop
async def test_a_response_that_says_error_is_one_whether_the_program_minds_or_not(status: int, raising: bool):
    async with Served() as server, aiohttp.ClientSession(raise_for_status=raising) as session:

        async def get() -> None:
            async with session.get(server.url(f"/status/{status}")) as response:
                assert not raising
                response.raise_for_status()

        with installed(plugin) as spans, pytest.raises(aiohttp.ClientResponseError, match=str(status)):
            await get()
    failed = spans.named("GET")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description is None
    assert (failed.attributes or {})["error.type"] == str(status)
    assert not failed.events
