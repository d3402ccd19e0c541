"""What the router and the replicas tell each other."""

from dataclasses import dataclass

# They concern a connection, not a message (RFC 9110, 7.6.1); lengths are those of the next connection.
HOP_BY_HOP = {
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


@dataclass(frozen=True)
class Request:
    """`target` is path and query, as they came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """`body` is None where it follows in pieces."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None


def end_to_end(headers):
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
