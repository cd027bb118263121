r"""Where secrets stand in free text, such as an exception's message, a dump of headers or a command line.

Known are credentials in URLs, sensitive parameters of URLs, and the headers that authorize or are cookies, as they are
on the wire, in JSON and in what Python's `repr` makes of them. Where it is doubtful how far a secret goes, it goes
farther. Every rule takes time in proportion to the text, whatever that holds.
"""

from __future__ import annotations

import re

from .http import REDACTED, SENSITIVE, is_sensitive

_SLASHES = re.compile(r"(//|\\/\\/)")  # the second is JSON's of those who escape them
_AUTHORITY = re.compile(r'[^\s/?"]*')
_WORD = re.compile(r"\S*")
_IN_PARAMETER = re.compile(r'(%3A%2F%2F)[^\s&"%]*(?:%(?!2F|40)[^\s&"%]*)*(?=%40)', re.IGNORECASE)
_PARAMETER = re.compile(r"""(?:^|[?&#])([^\s?&=#"'<>]+)=([^\s&#"<>]+)""")
_PARAMETERS = (*SENSITIVE, "sig=")
_HEADERS = ("authorization", "cookie", "apikey", "authtoken")
# `outer` is the quote before a whole header, `closed` the one after a name, `quote` the one before a value, where they
# are; in text that was quoted twice with backslashes. Followed by None or by nothing, the name is only mentioned.
_HEADER = re.compile(
    r"""
    (?P<outer>["'])? (?:proxy-|set-)? (?:authorization|cookies?|api[-_]?key|auth[-_]?token)
    (?:
        (?P<closed>\\{0,3}["']) \]? [ \t]* (?: [:=] | ,[ \t]*(?:value=)?(?=[bfru]{0,2}\\{0,3}["']) )
        | [ \t]*: | (?P<argument>=)(?=\S) | [ \t]*=(?=[ \t]*[bfru]{0,2}["'])
        | [ \t]+(?=[^\s=:]+=)   # <Cookie name=value for host>
        | \((?=version=)        # Cookie(version=0, name='name', value='value'
    )
    (?! [ \t]* (?:none|null|true|false|\{\}|\[\]|\(\)) (?![\w=-]) )
    [ \t]* (?:[bfru]{0,2}(?P<quote>\\{0,3}["']))?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_END_OF_LINE = re.compile(r"[\r\n]|\\r\\{1,4}n|\Z")
_ARGUMENT = re.compile(
    r"(?:[\[({<]|(?:digest|oauth|hawk|aws|signature)[\w-]*[ \t])[^\r\n]*"
    r"|(?:(?:bearer|basic|token|negotiate|ntlm)[ \t]+)?[^\s,;&)\]}]*(?:;[ \t]*[^\s,;&)\]}]+)*",
    re.IGNORECASE,
)
_SCHEME = re.compile(
    r"(authorization\b[^\r\n]{0,80}?)?\b(?:bearer|basic)(?:[ \t]|%20)+"
    r"(?!(?:auth|authentication|tokens?|scheme)\b)([\w.~+/=-]+)",
    re.IGNORECASE,
)
_LIKE_A_TOKEN = re.compile(r"\d|[a-z][A-Z]|=\Z")
SHORTEST_TOKEN = 12  # characters, of what stands after "Bearer" with no word of authorization before


def without_secrets(text: str) -> str:
    """Return the text with what is secret REDACTED, equal to itself where there is nothing."""
    if "@" in text or "%40" in text:
        text = _without_credentials(text)
    if "=" in text or ":" in text or " " in text or "," in text:
        plain = text.lower().replace("-", "").replace("_", "")
        if _holds(plain, _HEADERS):
            text = _without_headers(text)
        if "bearer" in plain or "basic" in plain:
            text = _SCHEME.sub(_hide_token, text)
        if "=" in text and _holds(plain, _PARAMETERS):
            text = _PARAMETER.sub(_hide_parameter, text)
    return text


def is_secret_key(key: str) -> bool:
    """Return whether what an attribute, or an item of a mapping, of that name holds is secret: a header's value."""
    for mark in (".header.", ".metadata."):  # of OpenTelemetry's conventions for HTTP and for RPC
        if mark in key:
            return is_sensitive(key.rpartition(mark)[2])
    plain = key.lower().replace("-", "").replace("_", "")
    return plain.endswith((*_HEADERS, "cookies"))


def _holds(text: str, words: tuple[str, ...]) -> bool:
    for word in words:  # noqa: SIM110  `any` of a generator takes twice the time, and this is asked of every new text
        if word in text:
            return True
    return False


def _without_credentials(text: str) -> str:
    pieces = _SLASHES.split(text)
    for index in range(2, len(pieces), 2):
        credentials = _credentials(pieces[index], of_url=pieces[index - 2].endswith(":"))
        if credentials:
            pieces[index] = f"{REDACTED}:{REDACTED}{pieces[index][len(credentials) :]}"
    return _IN_PARAMETER.sub(rf"\1{REDACTED}", "".join(pieces))


def _credentials(text: str, of_url: bool) -> str:
    """Return what is before the "@" of a URL's authority, which the text begins with; without a scheme, with a ":"."""
    authority = _AUTHORITY.match(text)[0]  # type: ignore[index]  # it matches everything
    credentials = authority.rpartition("@")[0]
    if not credentials and of_url and not _is_host(authority):
        # Passwords with "/" or "?" in them belong encoded, but most clients of databases take them as they are.
        word = _WORD.match(text)[0]  # type: ignore[index]
        at = word.find("@")
        if at > 0:
            credentials = text[: _AUTHORITY.match(text, at).end()].rpartition("@")[0]  # type: ignore[union-attr]
    return credentials if of_url or ":" in credentials else ""


def _is_host(authority: str) -> bool:
    name, colon, port = authority.partition(":")
    return not colon or "[" in name or (port.isdecimal() and len(port) <= 5) or (not port and bool(name))


def _hide_parameter(found: re.Match[str]) -> str:
    name, value = found.groups()
    if not is_sensitive(name):
        return found[0]
    return found[0][: -len(value)] + REDACTED + value[len(value.rstrip("'),;]}")) :]


def _without_headers(text: str) -> str:
    pieces: list[str] = []
    done = 0
    while head := _HEADER.search(text, done):
        start, end = head.end(), _end_of_value(text, head)
        pieces += text[done:start], REDACTED if end > start else ""
        done = end
    return "".join((*pieces, text[done:]))


def _end_of_value(text: str, head: re.Match[str]) -> int:
    start, quote = head.end(), head["quote"]
    if quote:
        end = text.find(quote, start)
        while end > start and text[end - 1] == "\\":
            end = text.find(quote, end + 1)
        if end >= 0:
            return end
    whole = head["outer"] and not head["closed"]
    limit = text.find(head["outer"], start) if whole else -1
    limit = limit if limit >= 0 else len(text)
    if head["argument"] or head["closed"]:
        return _ARGUMENT.match(text, start, limit).end()  # type: ignore[union-attr]  # it matches everything
    return _END_OF_LINE.search(text, start, limit).start()  # type: ignore[union-attr]  # it is found in everything


def _hide_token(found: re.Match[str]) -> str:
    after_authorization, token = found.groups()
    if after_authorization or (len(token) >= SHORTEST_TOKEN and _LIKE_A_TOKEN.search(token)):
        return found[0][: -len(token)] + REDACTED
    return found[0]
