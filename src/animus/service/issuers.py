"""The issuers whose JWT are taken, and where their keys come from: a file, or an address of the issuer's.

Keys rotate without a restart. A file is looked at again at most once a second; an address every five minutes, and when
a token names a key that is not known, then at most once in ten seconds. While neither gives good keys the last good
ones stand: those of an address for a day, for by then nobody can say what its issuer has withdrawn.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httptools
import structlog

from animus.domain.errors import Invalid, Unavailable
from animus.service.jwt import URL, Issuer, Key, Subject, load_issuers, load_keys, prove, read

LOOK_SECONDS = 1.0
RENEW_SECONDS = 300.0
RETRY_SECONDS = 10.0
KEEP_SECONDS = 24 * 3_600.0
FETCH_SECONDS = 5.0
MAX_FILE_BYTES = 1 << 20

log = structlog.get_logger("animus.issuers")
Clock = Callable[[], float]  # seconds that only ever grow


class IssuersRefused(Exception):
    """The issuers cannot be served; its text is one line that says what to change."""


class FileKeys:
    """The keys of a file."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises OSError or Invalid."""
        self._path, self._clock = path, clock
        self._looked = clock()
        self._seen = _state(path)  # before the reading, so that a change meanwhile is seen
        self._keys = load_keys(_content(path))

    async def keys(self, kid: str | None) -> tuple[Key, ...]:
        """The keys of the file as it is, or of the last that was good."""
        if self._clock() >= self._looked + LOOK_SECONDS:
            self._looked = self._clock()
            self._look()
        return self._keys

    def _look(self) -> None:
        state = _state(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._keys = load_keys(_content(self._path))
        except (OSError, Invalid) as error:
            log.error("a file of keys is not good, and those before stand", path=str(self._path), reason=_text(error))
        else:
            log.info("the keys of an issuer were read again", path=str(self._path), keys=len(self._keys))


class UrlKeys:
    """The keys that an address gives."""

    def __init__(self, issuer: Issuer, clock: Clock) -> None:
        """Raises OSError where the file of its certificate authority is not good."""
        self._issuer, self._clock = issuer, clock
        tls = issuer.jwks_url.startswith("https:")
        self._context = ssl.create_default_context(cafile=issuer.ca_file or None) if tls else None
        self._keys: tuple[Key, ...] = ()
        self._until = float("-inf")  # so long the keys stand
        self._asked = float("-inf")  # when a token last made us look
        self._problem = ""
        self._fetching: asyncio.Task[None] | None = None

    async def keys(self, kid: str | None) -> tuple[Key, ...]:
        """The keys, with the one of this id if the issuer has it. Raises Unavailable ISSUER_UNAVAILABLE."""
        known = self._keys and (kid is None or any(key.kid == kid for key in self._keys))
        if not known and (self._is_fetching or self._clock() >= self._asked + RETRY_SECONDS):
            if not self._is_fetching:
                self._asked = self._clock()
            await self.renew()
        if self._clock() >= self._until:
            raise Unavailable("ISSUER_UNAVAILABLE", "the keys of the token's issuer cannot be had now: repeat later")
        return self._keys

    @property
    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    async def renew_forever(self) -> None:
        """Fetches the keys now and from then on."""
        try:
            while True:
                await self.renew()
                await asyncio.sleep(RETRY_SECONDS if self._problem else RENEW_SECONDS)
        finally:
            if self._fetching is not None:
                self._fetching.cancel()
                await asyncio.gather(self._fetching, return_exceptions=True)

    async def renew(self) -> None:
        """Fetches the keys, once for all who ask meanwhile."""
        task = self._fetching
        if task is None or task.done():
            task = self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(task)  # whose call ends before does not end it for the others

    async def _fetch(self) -> None:
        try:
            self._keys = load_keys(await fetch(self._issuer.jwks_url, self._context))
        except (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade, Invalid, ValueError) as error:
            if self._problem != _text(error):
                self._problem = _text(error)
                log.error("the keys of an issuer cannot be had", issuer=self._issuer.id, reason=self._problem)
            return
        self._until = self._clock() + KEEP_SECONDS
        if self._problem:
            self._problem = ""
            log.info("the keys of an issuer are here", issuer=self._issuer.id, keys=len(self._keys))


class Issuers:
    """The issuers that this server takes tokens of; without any, it takes none."""

    def __init__(self, issuers: tuple[Issuer, ...], clock: Clock) -> None:
        """Raises IssuersRefused where a file of keys or of certificates is not good."""
        self._issuers = issuers
        self._sources: dict[str, FileKeys | UrlKeys] = {}
        for index, issuer in enumerate(issuers):
            field = "jwksFile" if issuer.jwks_file else "caFile"
            try:
                self._sources[issuer.id] = (
                    FileKeys(Path(issuer.jwks_file), clock) if issuer.jwks_file else UrlKeys(issuer, clock)
                )
            except (OSError, Invalid) as error:
                raise IssuersRefused(f"[{index}].{field}: {_text(error)}") from None

    async def subject(self, token: str, now: float) -> Subject:
        """Whom a token is proof of, at a time in seconds since 1970. Raises Untrusted or Unavailable."""
        unproven = read(token, self._issuers, now)
        return prove(unproven, await self._sources[unproven.issuer.id].keys(unproven.kid))

    @asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        """Keeps the keys of addresses fresh for as long as the context lasts."""
        tasks = [
            asyncio.create_task(source.renew_forever())
            for source in self._sources.values()
            if isinstance(source, UrlKeys)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def open_issuers(path: Path | None, clock: Clock) -> Issuers:
    """The issuers of a file, with the keys of those whose keys are in files. Raises IssuersRefused."""
    if path is None:
        return Issuers((), clock)
    try:
        return Issuers(load_issuers(_content(path)), clock)
    except (OSError, Invalid, IssuersRefused) as error:
        raise IssuersRefused(f"ANIMUS_ISSUERS_FILE {path}: {_text(error)}") from None


async def fetch(url: str, context: ssl.SSLContext | None) -> bytes:
    """What an address answers with 200, within a time and a size.

    One request on a connection of its own: no proxy, no redirect, no name or password. Raises OSError, ValueError or
    an error of httptools. An answer that was cut off is no JSON either.
    """
    parts = URL.fullmatch(url)
    assert parts, "issuers have checked addresses"
    host = parts["host"] or parts["local"]
    port = int(parts["port"] or (443 if context else 80))
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    received = 0
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), port, ssl=context)
            try:
                request = f"GET {parts['path'] or '/'} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: application/json\r\n"
                writer.write(f"{request}Connection: close\r\n\r\n".encode())
                while not answer.complete and (part := await reader.read(64 << 10)):
                    received += len(part)
                    if received > MAX_FILE_BYTES:
                        raise ValueError(f"{url} answered with more than {MAX_FILE_BYTES} bytes")
                    parser.feed_data(part)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise OSError(f"{url} did not answer within {FETCH_SECONDS:g} s") from None
    if not received or parser.get_status_code() != 200:
        raise ValueError(f"{url} answered {parser.get_status_code() if received else 'nothing'}")
    return answer.body


class _Answer:
    """The body of an HTTP answer, as its parser finds it."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file does; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return data


def _text(error: Exception) -> str:
    if isinstance(error, Invalid):
        first, more = error.violations[0], len(error.violations) - 1
        text = f"{first.field}: {first.description}" if first.field else first.description
        return f"{text} (and {more} more)" if more else text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
