"""The files of a log below `/logs/{project_id}/`, in the layout of C2SP tlog-tiles: each is one call of LogService.

They are `checkpoint`, `tile/<level>/<index>` and `tile/entries/<index>`, the latter two with `.p/<width>` at the end
where they are not full. An index is split into elements of three digits, with an `x` before all but the last:
`x001/x234/067` is 1,234,067. A path has one spelling; only the project id in it is percent-decoded.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping

from google.protobuf.message import Message
from google.rpc import code_pb2

from animus.v1 import log_pb2
from animus_gateway.routes import Content, FieldPath, Match, Route, field_path, percent_decode
from animus_gateway.status import Refusal, refusal, wrong_method

LEVELS = 8  # of the 64 that the layout has: the others would take more leaves than the contract can count
WIDTH = 256
_MAX_INDEX = 2**55 - 1
_METHODS = ("GET", "HEAD")
_PREFIX = "/logs/"
_PATH = re.compile(
    r"/logs/(?P<project>[^/]+)/(?:checkpoint|tile/(?P<level>entries|[0-7])"
    r"/(?P<index>(?:x(?!000)[0-9]{3}/(?:x[0-9]{3}/){0,4})?[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?)"
)
_NO_GZIP = re.compile(r"\s*q\s*=\s*0(?:\.0*)?\s*")


def _route(method: str, template: str, fields: str, content: Content) -> Route:
    rpc = log_pb2.DESCRIPTOR.services_by_name["LogService"].methods_by_name[method]
    segments: tuple[FieldPath, ...] = tuple(field_path(rpc.input_type, name) for name in fields.split())
    return Route(rpc, "GET", segments, "", None, f"{_PREFIX}{{projectId}}/{template}", content)


_NOTE = Content("note", "text/plain; charset=utf-8", compressible=False)
_HASHES = Content("hashes", "application/octet-stream", compressible=False)
_ENTRIES = Content("entries", "application/octet-stream", compressible=True)
_CHECKPOINT = _route("GetCheckpoint", "checkpoint", "project_id", _NOTE)
_TILE = _route("GetTile", "tile/{level}/{index}", "project_id level index width", _HASHES)
_PARTIAL_TILE = _route("GetTile", "tile/{level}/{index}.p/{width}", "project_id level index width", _HASHES)
_BUNDLE = _route("GetEntryBundle", "tile/entries/{index}", "project_id index width", _ENTRIES)
_PARTIAL_BUNDLE = _route("GetEntryBundle", "tile/entries/{index}.p/{width}", "project_id index width", _ENTRIES)
FILE_ROUTES = (_CHECKPOINT, _TILE, _PARTIAL_TILE, _BUNDLE, _PARTIAL_BUNDLE)


def match_file(http_method: str, raw_path: str) -> Match | None:
    """The match of a file's path as it was sent, still percent-encoded; None for what is not below `/logs/`.

    Raises a Refusal: 400 for an undecodable project id, 404 for a path that no file has, 405 with `Allow`.
    """
    if not raw_path.startswith(_PREFIX):
        return None
    found = _PATH.fullmatch(raw_path)
    if found is None:
        raise _no_file()
    if http_method not in _METHODS:
        raise wrong_method(_METHODS)
    project, level, index, width = found.group("project", "level", "index", "width")
    project = percent_decode(project)
    if index is None:
        return Match(_CHECKPOINT, (project,))
    number = int(index.replace("/", "").replace("x", ""))
    if number > _MAX_INDEX:
        raise _no_file()
    place = (str(number), width or str(WIDTH))
    if level == "entries":
        return Match(_PARTIAL_BUNDLE if width else _BUNDLE, (project, *place))
    return Match(_PARTIAL_TILE if width else _TILE, (project, level, *place))


def _no_file() -> Refusal:
    return refusal(code_pb2.NOT_FOUND, "REQUEST_MALFORMED", "no file of a log has this path")


def encode_file(content: Content, reply: Message, accept_encoding: str) -> tuple[bytes, Mapping[str, str]]:
    """The body that a reply gives, compressed where that helps and the client takes it, and the headers about it."""
    body: bytes = getattr(reply, content.field)
    headers = {"Content-Type": content.media_type}
    if content.compressible:
        headers["Vary"] = "Accept-Encoding"
        if _accepts_gzip(accept_encoding):
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1, mtime=0)
    return body, headers


def _accepts_gzip(accept_encoding: str) -> bool:
    """Whether `Accept-Encoding` names gzip (RFC 9110, 12.5.3). A `*` does not: identity will do for it."""
    for part in accept_encoding.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "x-gzip"):
            return not _NO_GZIP.fullmatch(weight)
    return False
