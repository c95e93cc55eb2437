"""Pages (AIP-158): sizes, filters, orders, and tokens that are opaque, authenticated and bound to one query.

A token is an HMAC and the place where the page before ended. It holds no right: the next page is read with the
caller's own. It cannot be made up, or moved to another query, method or project.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import orjson

from animus.domain.errors import Invalid, Violation, invalid
from animus.domain.filter import Filter, parse_filter, parse_order
from animus.store.filter import FIELDS, Order, order_of
from animus.store.records import Stored
from animus.store.unit_of_work import View

DEFAULT_SIZE = 50
MAX_SIZE = 1_000
MAC_BYTES = 16

Place = tuple[str | int, ...]
Value = TypeVar("Value")


class PageRequest(Protocol):
    """Any request for a page."""

    page_token: str


class SizedRequest(PageRequest, Protocol):
    """A request for a page of a list."""

    page_size: int


class ListRequest(SizedRequest, Protocol):
    """A request for a page of a list that can be filtered and ordered."""

    filter: str
    order_by: str


@dataclass(frozen=True, slots=True)
class Page(Generic[Value]):
    """One page of records, and how to make the token of the next."""

    items: list[Stored[Value]]
    more: bool
    last: Place  # of the last item, where an order or a filter was asked for; else empty
    token: Callable[[Place], str]

    def next_token(self, place_of: Callable[[Stored[Value]], Place]) -> str:
        """The token after the last item; empty on the last page."""
        return self.token(self.last or place_of(self.items[-1])) if self.more else ""


class Pages:
    """Reads and makes page tokens with one key, which replicas share."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def size(self, request: SizedRequest) -> int:
        """How many items to return. Raises Invalid for a negative size."""
        if request.page_size < 0:
            raise invalid("pageSize", "is negative; give 0 for the default")
        return min(request.page_size or DEFAULT_SIZE, MAX_SIZE)

    def place(self, request: PageRequest, *query: str) -> Place:
        """Where the page starts; empty for the first. Raises Invalid for a token that is not of this query."""
        if not request.page_token:
            return ()
        refused = Invalid(
            [Violation("pageToken", "was not issued for this query: start from the first page")], "PAGE_TOKEN_INVALID"
        )
        try:
            data = base64.b64decode(request.page_token.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise refused from None
        mac, place = data[:MAC_BYTES], data[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(place, query)):
            raise refused
        return tuple(orjson.loads(place))

    def token(self, place: Place, *query: str) -> str:
        """The token of the page that starts after a place."""
        data = orjson.dumps(place)
        return base64.urlsafe_b64encode(self._mac(data, query) + data).decode()

    async def read(
        self, view: View, kind: type[Value], order: tuple[str, ...], request: ListRequest, method: str, **where: str
    ) -> Page[Value]:
        """The page of records that a request asks for. Raises Invalid for its filter or order."""
        query = (
            method,
            view.project_id,
            *(f"{key}={value}" for key, value in sorted(where.items())),
            *asked_of(request),
        )
        size, place = self.size(request), self.place(request, *query)
        selected = selected_by(kind, request, order)
        if selected is None:
            found = await view.page(kind, order, place, size + 1, **where)
            places: list[Place] = []
        else:
            tree, by = selected
            rows = await view.select(kind, tree, by, place, size + 1, **where)
            found, places = [stored for stored, _ in rows], [place for _, place in rows]
        last = places[:size][-1] if places else ()
        return Page(found[:size], len(found) > size, last, lambda place: self.token(place, *query))

    def _mac(self, place: bytes, query: tuple[str, ...]) -> bytes:
        return hmac.digest(self._key, orjson.dumps([*query]) + b"\x00" + place, hashlib.sha256)[:MAC_BYTES]


def asked_of(request: ListRequest) -> tuple[str, str]:
    """What a token is bound to beside the rest of its query."""
    return f"filter {request.filter}", f"order {request.order_by}"


def selected_by(kind: type, request: ListRequest, key: tuple[str, ...]) -> tuple[Filter | None, Order] | None:
    """The filter and the order that a request asks for; None where it asks for neither. Raises Invalid."""
    fields = FIELDS[kind]
    found, order_by = parse_filter(request.filter, fields), parse_order(request.order_by, fields)
    return (found, order_of(kind, order_by, key)) if found or order_by else None
