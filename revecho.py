# SPDX-License-Identifier: 0BSD
"""revecho: a threaded TCP server that answers every line with its reverse, and a client for it.

One file, standard library only; copy it wherever you need it.  Run it:

    python revecho.py server                   # listens on 127.0.0.1:2002 until Ctrl-C
    python revecho.py client hello             # prints olleh
    python revecho.py client < a_file          # prints it with every line reversed

Embed it, here with the client in the same program:

    >>> with running_server() as server:
    ...     host, port = server.server_address[:2]
    ...     request("hello", host, port)
    'olleh'

Extend it: subclass the handler and override one method.

    >>> class ShoutingHandler(ReverseHandler):
    ...     def respond(self, lines):
    ...         return lines.upper()
    >>> with running_server(RequestHandlerClass=ShoutingHandler) as server:
    ...     request("hello", *server.server_address[:2])
    'HELLO'
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import itertools
import logging
import os
import queue
import re
import selectors
import signal
import socket
import socketserver
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Callable

__all__ = ["HOST", "PORT", "ReplyError", "ReverseHandler", "ReverseServer", "main", "request"]
__all__ += ["reverse_lines", "reverse_text", "running_server", "stream"]
__version__ = "1.0"

HOST = "127.0.0.1"
PORT = 2002
MAX_CONNECTIONS = 1000
MAX_LINE = 65536  # bytes, the ending not counted
IDLE_TIMEOUT = 60.0  # seconds
GRACE = 5.0  # seconds

_BLOCK = 65536  # bytes asked for in one receive
_SMALL = 1024  # bytes asked for from those who send little; saves 2 of 26 KiB for each that waits
_DRAIN = 1 << 30  # bytes read and dropped, at most, from a peer that goes on sending at the end
_QUIET = 0.5  # seconds without input after which a peer is taken to have stopped sending
_LOOK = 0.5  # seconds between two looks over all connections
_CR, _LF = b"\r\n"  # as numbers, which are found in bytes in a quarter of the time
_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)  # Windows has none

log = logging.getLogger("revecho")


# Reversing: text and bytes, no sockets

# Can any character here join another?  Text that consists of these bytes alone, Latin, Greek and
# Cyrillic, has none, and that takes a tenth of the time to find out.  Both questions are coarse: a
# class of several ranges above U+FFFF would take 200 times as long as one.
_ALONE = bytes({*range(0xD2)} - {0xCC, 0xCD})
_JOINING = re.compile(
    "[\r\u0300-\u036f\u0483-\u0489\u0590-\u1dff\u200c\u200d\u20d0-\u20ff\u2cef-\u2cf1\u2d7f"
    "\u2de0-\u2dff\u302a-\u302f\u3099\u309a\ua66f-\uabff\ud7b0-\ud7ff\ufb1e\ufe00-\ufe2f\uff9e\uff9f"
    "\U00010000-\U0010ffff]"
)


def reverse_text(text: str) -> str:
    r"""Return the user-perceived characters of *text* in reverse order.

    These are the extended grapheme clusters of Unicode Standard Annex #29, by the character data
    of the running Python.

    >>> reverse_text("drawer"), reverse_text("ne\u0301e") == "ee\u0301n"
    ('reward', True)
    """
    if (text.isascii() and "\r" not in text) or not _JOINING.search(text):
        return text[::-1]
    if backwards := _short_way(text):
        return backwards
    if sys.version_info >= (3, 15):
        # A surrogate stands for a byte that is not UTF-8, and nothing joins it.
        parts = re.split("([\ud800-\udfff])", text)
        clusters = itertools.chain.from_iterable(map(unicodedata.iter_graphemes, parts))
        return "".join(reversed([*map(str, clusters)]))
    *_, rare, every = _clusters()
    parts = rare.split(text)
    others = "\uffff".join(parts[::2])  # without the rare ones a short way may do
    backwards = _short_way(others)
    if not backwards:
        pieces = every.split(others)
        pieces[1::3] = [single and single[::-1] for single in pieces[1::3]]
        backwards = "".join(reversed(pieces))
    parts[::2] = backwards.split("\uffff")
    parts[1::2] = parts[-2::-2]
    return "".join(parts)


def _short_way(text: str) -> str:
    """Reverse *text* whole, then its clusters back; return "" if that is not enough."""
    *ways, _, _ = _clusters()
    for beyond, joined in zip(ways[::2], ways[1::2]):
        if not beyond.search(text):
            parts = joined.split(text[::-1])
            parts[1::2] = [cluster[::-1] for cluster in parts[1::2]]
            return "".join(parts)
    return ""


@functools.cache
def _clusters() -> tuple[re.Pattern[str], ...]:
    """Compile the rules of UAX #29, table 1c.

    All but two are pairs.  Text in which the first of a pair finds nothing takes half the time: the
    second matches its clusters, of conjuncts and marks or of marks above U+FFFF, in the text
    reversed.  The last pattern but one matches U+FFFF and what it can stand for meanwhile: jamo,
    flags, emoji, digits after a number sign.  The last matches every cluster that there is then,
    in text as it stands: one group for characters that join no other, and one for the cluster
    after.
    """
    prepend = "\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e"
    high_prepend = (
        "\U000110bd\U000110cd\U000111c2\U000111c3\U000113d1\U0001193f\U00011941"
        "\U00011a84-\U00011a89\U00011d46\U00011f02"
    )
    not_spacing = (
        "\u102b\u102c\u1038\u1062-\u1064\u1067-\u106d\u1083\u1087-\u108c\u108f\u109a-\u109c\u1a61"
        "\u1a63\u1a64\uaa7b\uaa7d\U00011720\U00011721"
    )
    jamo_l, jamo_t = "\u1100-\u115f\ua960-\ua97c", "\u11a8-\u11ff\ud7cb-\ud7fb"
    jamo_v = "\u1160-\u11a7\ud7b0-\ud7c6"
    high_vowel = "\U00016d63\U00016d67-\U00016d6a"  # of Kirat Rai
    vowel = f"[{jamo_v}{high_vowel}]"
    jamo = jamo_l + jamo_v + jamo_t
    lv = "".join(map(chr, range(0xAC00, 0xD7A4, 28)))
    linker = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d"
    consonant = (
        "\u0915-\u0939\u0958-\u095f\u0978-\u097f\u0995-\u09b9\u09dc-\u09df\u09f0\u09f1\u0a95-\u0ab9"
        "\u0af9\u0b15-\u0b39\u0b5c-\u0b5f\u0b71\u0c15-\u0c39\u0c58-\u0c5a\u0d15-\u0d3a"
    )
    high_pictogram = "\U0001f400-\U0001fffd\U0001f200-\U0001f3fa\U0001f000-\U0001f1e5"
    pictogram = (
        "\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u23ff\u24c2\u25a0-\u27ff\u2934\u2935\u2b00-\u2bff"
        f"\u3030\u303d\u3297\u3299{high_pictogram}"
    )
    tones = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
    tags = "".join(map(chr, range(0xE0020, 0xE0080)))
    flag = "\U0001f1e6-\U0001f1ff"
    am, voicing = "\u0e33\u0eb3", "\uff9e\uff9f"  # letters that join the one before
    frequent = f"{high_pictogram}\U00020000-\U000dffff"  # above U+FFFF: emoji and Han
    high = "\U00010000-\U0001efff\U0001f3fb-\U0001f3ff\U000e0000-\U0010ffff"  # the others

    chars = "".join(map(chr, itertools.chain(range(0x20000), range(0xE0000, 0xE1000))))
    by_category: dict[str, list[str]] = collections.defaultdict(list)
    for char in chars:
        by_category[unicodedata.category(char)].append(char)

    def pick(*categories: str, but: str = "\0") -> str:
        picked = "".join("".join(by_category[category]) for category in categories)
        return re.sub(f"[{but}]", "", picked)

    def ranges(runs: Iterable[Sequence[str]]) -> str:
        return "".join(f"{run[0]}-{run[-1]}" for run in runs)

    def without(odd: str) -> str:
        """Return the ranges of all below U+1F000 but these: a class of them begins with ASCII."""
        return ranges(re.findall(f"[^{odd}]+", chars[:0x1F000]))

    def split(mixed: str) -> tuple[str, str]:
        """Return the ranges of those up to U+FFFF, and the ranges of the others."""
        ordered = sorted(mixed, key=lambda char: (char not in tones, char))  # tones are frequent
        groups = itertools.groupby(enumerate(ordered), lambda pair: pair[0] - ord(pair[1]))
        runs = [[char for _, char in group] for _, group in groups]
        low = [run for run in runs if run[0] <= "\uffff"]
        return ranges(low), ranges(run for run in runs if run[0] > "\uffff")

    extending = pick("Mn", "Me") + tags + tones + voicing + "\u200c"
    extend, high_extend = split(extending)
    join, high_join = split(extending + pick("Mc", but=not_spacing) + am + "\u200d")
    control, high_control = split(
        pick("Cc", "Cf", "Cs", "Zl", "Zp", but=f"\u200c\u200d{tags}{prepend}{high_prepend}")
    )
    no_linker = split(re.sub(f"[{linker}\u200c]", "", extending) + "\u200d")[0]
    conjunct = f"(?:[{no_linker}]*[{linker}][{no_linker}{linker}]*[{consonant}])"
    marked = (
        f"([{join}{consonant}](?:"
        f"(?<=[{join}])[{join}]*(?:[^{control}{consonant}]|[{consonant}]{conjunct}*)"
        f"|{conjunct}+))"
    )
    # To ask first whether it is a letter or frequent, in one class, takes a third of the time.
    single = without(f"{join}\U00010000-\U0010ffff")
    mark = f"[^{single}{frequent}\\w](?<=[{join}{high_join}])"
    high_marked = f"({mark}(?:{mark})*[^{control}])"
    # A joiner counts only before a pictogram.  To begin with one class is a quarter faster.
    counts = f"(?!(?<=\u200d)[^{pictogram}])"
    odd = f"\r\u200d{prepend}{jamo}"
    astral = "\U00010000-\U0001d3ff\U0001d800-\U0001efff"  # all but letters of mathematics
    high_odd = f"{consonant}{am}{voicing}{high_prepend}{high_vowel}{high_control}"
    ways = {
        f"[^{without(odd + astral)}{frequent}]{counts}": marked,
        f"[^{frequent}{tones}{without(odd + high_odd)}]{counts}": high_marked,
    }
    if sys.version_info >= (3, 15):  # all but accents; unicodedata may know newer rules
        ways = {_JOINING.pattern.replace("\u0300-\u036f", ""): marked}
    high_extending = f"[{high}](?<=[{high_extend}])"
    plain = without(f"{jamo_l}{pictogram}{prepend}\uffff")
    hangul = f"[{jamo_l}]*(?:{vowel}+|[{lv}]{vowel}*|[\uac00-\ud7a3])[{jamo_t}]*|[{jamo_l}]+"
    rare = (
        f"([^{plain}\U00020000-\U0010ffff](?:"
        f"(?<=[{jamo_l}])(?:{hangul})"
        f"|(?<=[{flag}])[{flag}]"
        f"|(?<=[{pictogram}])(?:[{extend}]|{high_extending}|\u200d[{pictogram}])+"
        f"|(?<=[{prepend}])\\d"
        f"|(?<=\uffff)))"
    )
    high_joining = f"[{high}](?<=[{high_join}])"
    linking = f"(?:[{no_linker}]|{high_extending})"
    special = f"\r{jamo}{prepend}{join}{high}"
    every = (
        f"([^{special}]+(?![{jamo_v}{jamo_t}{join}{high}])|)("
        f"[{prepend}{high_prepend}]*(?:"
        f"{hangul}|[{jamo_t}]+"
        f"|[{consonant}](?:{linking}*[{linker}](?:[{linker}]|{linking})*[{consonant}])*"
        f"|(?![{control}]|[{high}](?<=[{high_control}])).)"
        f"[{join}]*(?:{high_joining}(?:[{join}]|{high_joining})*|)"
        f"|\r\n|.|$)"
    )
    patterns = itertools.chain(*ways.items(), (rare, every))
    return tuple(re.compile(pattern, re.DOTALL) for pattern in patterns)


def reverse_lines(lines: bytes) -> bytes:
    r"""Return what the server answers to *lines*: each line reversed, with its own ending.

    A line ends in LF or CRLF; the last may have no ending.  The lines are UTF-8, and a byte that
    is not valid UTF-8 counts as one character.  The answer is as long as *lines*, in bytes.

    >>> reverse_lines(b"one\ntwo\r\nthree")
    b'eno\nowt\r\neerht'
    """
    if _CR in lines and b"\r\n" in lines:  # to ask for one byte first is 50 times as fast
        return b"\r\n".join(map(reverse_lines, lines.split(b"\r\n")))
    # To reverse a block and then the order of its lines costs less than to reverse line by line.
    if lines.isascii():
        backwards = lines[::-1]
    else:
        text = lines.decode("utf-8", "surrogateescape")
        text = reverse_text(text) if lines.translate(None, _ALONE) else text[::-1]
        backwards = text.encode("utf-8", "surrogateescape")
    reversed_lines = backwards.split(b"\n")
    reversed_lines.reverse()
    return b"\n".join(reversed_lines)


# The handler: one connection


def _address(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the peer may have been faster
        connection.shutdown(how)


class _LimitError(Exception):
    """What a peer is told that has reached a limit."""


class ReverseHandler(socketserver.StreamRequestHandler):
    """Answers the lines of one connection.

    Override respond() to answer something else.  Who overrides handle() instead sets rbufsize, as
    rfile has no buffer here, and sees to the limits: to the server a connection is idle until its
    entry in answered_at is set.
    """

    server: ReverseServer
    request: socket.socket
    disable_nagle_algorithm = True  # a reply shall not wait until the one before is acknowledged
    rbufsize = 0  # _lines() receives by itself; a buffer would be memory for nothing
    answered = 0  # bytes
    ended = False  # has everything been received that will ever come?

    def __str__(self) -> str:
        return _address(self.client_address)

    def respond(self, lines: bytes) -> bytes:
        """Return the answer to *lines*: one or more whole lines, each with its ending.

        Only the last line before the peer ends its side can lack one.  What this raises is logged,
        and closes the connection.
        """
        return reverse_lines(lines)

    def setup(self) -> None:
        """Prepare the connection."""
        super().setup()
        log.info("%s connected", self)

    def handle(self) -> None:
        """Answer line after line, until the peer ends its side or a limit or the server ends it."""
        try:
            for lines in self._lines():
                try:
                    reply = self.respond(lines)
                except OSError as error:  # must not pass for an error of this connection
                    raise RuntimeError("respond() failed") from error
                self._send(reply)
                self.answered += len(reply)
                del lines, reply  # large, perhaps, and the next ones long in coming
        except _LimitError as error:
            log.info("%s: %s", self, error)
            self._send(f"error: {error}\n".encode())

    def finish(self) -> None:
        """See to it that the last reply arrives."""
        super().finish()
        if not self.ended:
            self._drain()
        log.info("%s gone, %d bytes answered", self, self.answered)

    def _send(self, data: bytes) -> None:
        self.request.sendall(data)
        self.server.answered_at[self.request] = time.monotonic()

    def _lines(self) -> Iterator[bytes]:
        """Yield all that the peer sends, in blocks of whole lines, wherever TCP has cut it."""
        server, receive = self.server, self.request.recv
        large = min(_BLOCK, server.max_line)
        size = small = min(_SMALL, large)
        pending = bytearray()  # the beginning of a line
        while data := self._receive_rest(size) if server.stopping else receive(size):
            size = large if len(data) >= small else small
            if not pending and data[-1] == _LF:  # saves 5 % of a short exchange
                yield data
            else:
                if len(pending) + len(data) > server.max_line:
                    # Only the first line can be too long, as no more than max_line comes at a time.
                    line = (pending + data).partition(b"\n")[0]
                    self._check(len(line) - line.endswith(b"\r"))
                end = data.rfind(b"\n") + 1
                if end:
                    yield bytes(pending) + data[:end]
                    pending.clear()
                pending += data[end:]
            del data  # it may be large, and the next long in coming
        self.ended = not server.stopping
        if pending and self.ended:
            if self.request in server.cut:
                raise _LimitError(f"line not finished within {server.idle_timeout:g} seconds")
            self._check(len(pending))
            yield bytes(pending)

    def _check(self, length: int) -> None:
        if length > self.server.max_line:
            raise _LimitError(f"line longer than {self.server.max_line} bytes")

    def _receive_rest(self, size: int) -> bytes:
        """Receive what has arrived though the server stops; nothing when there is no time left."""
        with contextlib.suppress(BlockingIOError):
            if time.monotonic() < self.server.deadline:
                return self.request.recv(size, _DONTWAIT)
        return b""

    def _drain(self) -> None:
        """End our side, then for a while read and drop what the peer still sends.

        To close with input unread would reset the connection, and destroy replies on their way.
        """
        with contextlib.suppress(OSError):  # it may be gone already
            self.request.shutdown(socket.SHUT_WR)
            self.request.settimeout(_QUIET)
            deadline, left = time.monotonic() + self.server.grace, _DRAIN
            while left > 0 and time.monotonic() < deadline and (data := self.request.recv(_BLOCK)):
                left -= len(data)


# The server: all connections


class ReverseServer(socketserver.ThreadingTCPServer):
    """Serves every connection on a thread of its own, within limits.

    *server_address* is a host and a port; the host is an IPv4 or IPv6 address or a name.  Port 0
    takes any free one; the attribute server_address then tells which.

    Call serve_forever(), and server_close() (or leave the ``with`` block) to stop: every complete
    line that has been received is answered, and no thread and no descriptor is left.

    The limits are attributes too:

    max_connections  connections served at a time; the others wait in the listen queue
    max_line         bytes in a line, its ending not counted
    idle_timeout     seconds that a connection may stay open with no line answered; 0 means for ever
    grace            seconds for finishing what has been received when the server stops

    Raises OSError if it cannot listen there, ValueError for a limit out of range.

    Three kinds of threads meet here: the one in serve_forever() accepts, one for each connection
    serves, and another may close the server.

    answered_at      by connection, the time.monotonic() at which it last had a line answered: added
                     by the accepting thread, set by the connection's own, and removed by that under
                     the lock
    cut              connections that were idle for too long: nothing more is received from them
    a connection     is used by its own thread, and closed by it under the lock; others only shut it
                     down, under the lock, as its descriptor could be another's by then
    _idle, _workers  belong to the accepting thread, and when that has ended to the closing one; but
                     a worker that goes idle adds itself to _idle
    stopping         is set once
    """

    allow_reuse_address = os.name == "posix"  # elsewhere it would let another program take the port
    allow_reuse_port = False
    request_queue_size = 4096  # the kernel takes it down to its own limit

    def __init__(
        self,
        server_address: tuple[Any, ...] = (HOST, PORT),
        RequestHandlerClass: Callable[..., socketserver.BaseRequestHandler] = ReverseHandler,
        bind_and_activate: bool = True,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_line: int = MAX_LINE,
        idle_timeout: float = IDLE_TIMEOUT,
        grace: float = GRACE,
    ) -> None:
        self.max_connections = _limit("max_connections", max_connections, 1)
        self.max_line = _limit("max_line", max_line, 1)
        self.idle_timeout = _limit("idle_timeout", idle_timeout, 0)
        self.grace = _limit("grace", grace, 0)
        self.stopping = False
        self.deadline = 0.0  # for answering what has been received; set before `stopping`
        self.answered_at: dict[socket.socket, float] = {}
        self._ended = threading.Condition()  # a connection has
        self._accepting = threading.Lock()  # held while serve_forever() runs
        self._workers: dict[queue.SimpleQueue[Any], threading.Thread] = {}  # by their inboxes
        self._idle: list[queue.SimpleQueue[Any]] = []
        self.cut: set[socket.socket] = set()
        self._crowded = False  # full, or so recently that it is the same crowd
        self._next_look = self._next_warning = 0.0
        host, port = server_address[:2]
        found = socket.getaddrinfo(host or None, 0, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
        self.address_family, _, _, _, (host, _, *rest) = found[0]
        super().__init__((host, port, *rest), RequestHandlerClass, bind_and_activate)

    def server_bind(self) -> None:
        """Bind the listening socket."""
        if self.allow_reuse_port:  # socketserver does it itself from Python 3.11 on
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.setblocking(False)  # a client may be gone again before accept()
        super().server_bind()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept connections until shutdown() or server_close() is called on another thread."""
        with self._accepting:
            if not self.stopping:
                super().serve_forever(poll_interval)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, when there is room and a thread for it.

        Else raises an OSError, which makes serve_forever() go on and try again.
        """
        if not self._has_room():
            with self._ended:
                if not self._ended.wait_for(self._has_room, _LOOK):
                    raise BlockingIOError
        try:
            if not self._idle:
                self._start_worker()
            connection, client_address = super().get_request()
        except (BlockingIOError, ConnectionAbortedError):
            raise
        except (OSError, RuntimeError, MemoryError) as error:  # RuntimeError: no more threads
            self._wait_for_resources(error)
            raise BlockingIOError from error
        if sys.platform != "linux":  # elsewhere it may take after the listening socket
            connection.setblocking(True)
        self.answered_at[connection] = time.monotonic()
        if len(self.answered_at) == self.max_connections and not self._crowded:
            self._crowded = True
            log.warning("%d connections: others wait until one ends", self.max_connections)
        return connection, client_address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection to the thread that went idle last, so that others may end."""
        self._idle.pop().put((request, client_address))

    def shutdown_request(self, request: Any) -> None:
        """Close the connection, which its handler has ended."""
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Close the connection and make room for another."""
        with self._ended:
            self.answered_at.pop(request, None)
            self.cut.discard(request)
            super().close_request(request)
            self._ended.notify_all()

    def service_actions(self) -> None:
        """Every now and then, cut the connections that are idle and end the threads that are."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        self._crowded = self._crowded and not self._has_room()
        if self.idle_timeout:
            with self._ended:
                since = now - self.idle_timeout
                for connection, answered_at in self.answered_at.items():
                    if answered_at <= since:  # end a receive; if it is a send that hangs, next time
                        again = connection in self.cut
                        self.cut.add(connection)
                        _shut(connection, socket.SHUT_RDWR if again else socket.SHUT_RD)
        while self._idle:
            log.debug("%s ends", self._workers[self._idle[-1]].name)
            self._idle.pop().put(None)
        self._workers = {inbox: w for inbox, w in self._workers.items() if w.is_alive()}

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log an exception, in one line if it is only that the connection broke."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            log.info("%s: %s", _address(client_address), error.strerror or error)
        else:
            log.error("%s: the handler failed", _address(client_address), exc_info=error)

    def server_close(self) -> None:
        """Stop listening, answer every line that has been received, and close everything."""
        self.deadline = time.monotonic() + self.grace * 0.9  # the rest is to end in good order
        self.stopping = True
        now = time.monotonic()  # whoever answers a line from now on sees that the server stops
        _shut(self.socket, socket.SHUT_RDWR)  # wakes the accepting thread
        with self._ended:
            self._ended.notify_all()
        if self._accepting.locked():
            self.shutdown()
        with self._accepting:
            super().server_close()
        with self._ended:
            # Handlers at work end by themselves; those that wait for input have to be woken.
            self._ended.wait_for(lambda: not self.answered_at, min(0.1, self.grace))
            for connection, answered_at in self.answered_at.items():
                if answered_at <= now:
                    _shut(connection, socket.SHUT_RD)
            self._ended.wait_for(lambda: not self.answered_at, self.grace)
            for connection in self.answered_at:
                _shut(connection, socket.SHUT_RDWR)
        for inbox in self._workers:
            inbox.put(None)
        deadline = time.monotonic() + 1  # a respond() that hangs is left behind
        for worker in self._workers.values():
            worker.join(max(0, deadline - time.monotonic()))

    def _has_room(self) -> bool:
        return self.stopping or len(self.answered_at) < self.max_connections

    def _start_worker(self) -> None:
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        worker = threading.Thread(target=self._work, args=(inbox,), daemon=True)
        worker.start()
        log.debug("%s started", worker.name)
        self._workers[inbox] = worker
        self._idle.append(inbox)

    def _work(self, inbox: queue.SimpleQueue[Any]) -> None:
        while accepted := inbox.get():  # None ends the thread
            self.process_request_thread(*accepted)
            self._idle.append(inbox)

    def _wait_for_resources(self, error: BaseException) -> None:
        now = time.monotonic()
        if now >= self._next_warning and not self.stopping:
            self._next_warning = now + 10
            log.warning("cannot accept, others wait: %s", error)
        with self._ended:
            self._ended.wait_for(lambda: self.stopping, 0.1)


def _limit(name: str, value: Any, least: int) -> Any:
    if not least <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name} must be at least {least}")
    return value


@contextlib.contextmanager
def running_server(
    server_address: tuple[Any, ...] = (HOST, 0), **options: Any
) -> Iterator[ReverseServer]:
    """Serve on a thread of its own for as long as the ``with`` block lasts.

    Takes what ReverseServer takes, and yields the server.

    >>> with running_server(max_line=100) as server:
    ...     request("stressed", *server.server_address[:2])
    'desserts'
    """
    with ReverseServer(server_address, **options) as server:
        accepting = threading.Thread(target=server.serve_forever, daemon=True)
        accepting.start()
        try:
            yield server
        finally:
            server.server_close()
            accepting.join()


# The client


class ReplyError(ConnectionError):
    """The server closed the connection too early, or answered with an error."""


def request(text: str, host: str = HOST, port: int = PORT, timeout: float = 10.0) -> str:
    """Send *text* as one line and return the reply to it.

    *timeout* is in seconds, for connecting and for each wait for a part of the reply.

    Raises ValueError if *text* holds a line ending, ReplyError if the reply is not one line as
    long as the one sent, and OSError if the connection fails or takes too long.

    >>> with running_server() as server:
    ...     request("raw", *server.server_address[:2])
    'war'
    """
    line = text.encode("utf-8", "surrogateescape") + b"\n"
    if b"\n" in line[:-1] or line.endswith(b"\r\n"):
        raise ValueError("a line ending within the text")
    reply = b""
    with _connect(host, port, timeout) as connection:
        with contextlib.suppress(ConnectionError):  # a server that refuses it will have said why
            connection.sendall(line)
        while len(reply) < len(line) and not reply.endswith(b"\n"):
            data = connection.recv(_BLOCK)
            if not data:
                break
            reply += data
    if len(reply) != len(line) or not reply.endswith(b"\n"):
        raise _reply_error(len(line), len(reply), reply)
    return reply[:-1].decode("utf-8", "surrogateescape")


def stream(
    source: BinaryIO, sink: BinaryIO, host: str = HOST, port: int = PORT, timeout: float = 10.0
) -> int:
    r"""Send all of *source* and write the replies to *sink*, both at the same time.

    Both are binary files.  Returns how many bytes went there and came back.  *timeout* is in
    seconds, for connecting and for each wait for a reply that is owed; *source* may take its time.

    Raises ReplyError if the server does not answer every byte, OSError if the connection fails or
    takes too long, and whatever *source* and *sink* raise.

    >>> with running_server() as server:
    ...     sink = io.BytesIO()
    ...     stream(io.BytesIO(b"live\nstar\n"), sink, *server.server_address[:2])
    ...     sink.getvalue()
    10
    b'evil\nrats\n'
    """
    connection = _connect(host, port, timeout)
    connection.settimeout(None)
    sender = _Sender(source, connection)
    received = 0  # bytes
    tail = b""  # of what has been received
    waited = 0  # tenths of the timeout
    try:
        sender.start()
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            while not sender.finished or received < sender.sent:  # sent is final only then
                if selector.select(timeout / 10):
                    data = _receive(connection)
                    if not data:
                        break
                    sink.write(data)
                    sink.flush()
                    received += len(data)
                    tail = (tail + data)[-_BLOCK:]
                    waited = 0
                elif received < sender.owed:
                    waited += 1
                    if waited == 10:
                        raise TimeoutError(f"no reply within {timeout:g} seconds")
    finally:
        sender.close()
    if not sender.finished or received != sender.sent:
        raise _reply_error(sender.sent, received, tail) from sender.failure
    if sender.failure:
        raise sender.failure
    return received


class _Sender(threading.Thread):
    """Sends a file on a connection.

    Its attributes are for others to read; `sent` is final once `finished` is true.
    """

    def __init__(self, source: BinaryIO, connection: socket.socket) -> None:
        super().__init__(daemon=True)  # nobody can end a read of, say, a terminal
        self.read = getattr(source, "read1", source.read)  # what there is, not a full block
        self.connection = connection
        self.using = threading.Lock()  # else the descriptor might be closed, and another's, by then
        self.sent = 0  # bytes
        self.owed = 0  # bytes of lines that have been finished, so that a reply is owed
        self.finished = False
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while data := self.read(_BLOCK):
                if b"\n" in data:
                    self.owed = self.sent + data.rindex(b"\n") + 1
                self.sent += len(data)
                with self.using:
                    self.connection.sendall(data)
        except Exception as error:
            self.failure = error
        self.owed = self.sent  # the end of our side finishes the last line
        self.finished = True
        with self.using:
            _shut(self.connection, socket.SHUT_WR)

    def close(self) -> None:
        _shut(self.connection, socket.SHUT_RDWR)  # ends a send
        with self.using:
            self.connection.close()


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    if not 0 <= port <= 65535:  # getaddrinfo() would take it modulo 65536
        raise ValueError("port must be 0-65535")
    if not timeout > 0:
        raise ValueError("timeout must be above 0")
    return socket.create_connection((host, port), timeout)


def _receive(connection: socket.socket) -> bytes:
    """Receive what there is; nothing also where the connection has broken."""
    try:
        return connection.recv(_BLOCK)
    except ConnectionError:
        return b""


def _reply_error(sent: int, received: int, tail: bytes) -> ReplyError:
    """Say how a reply fell short; the server's own words may be the last line of what came."""
    last = tail[tail.rfind(b"\n", 0, -1) + 1 :]
    if last.startswith(b"error: "):
        received -= len(last)
        why = last.decode("utf-8", "replace").rstrip()
    else:
        why = "the server closed the connection"
    if received > sent:
        return ReplyError(f"{received - sent} bytes more than the reply to {sent} has")
    return ReplyError(f"{why}; {sent - received} bytes left unanswered")


# The command line


def main(argv: list[str] | None = None) -> int:
    """Run the command line *argv*, or sys.argv, and return the exit status.

    0 done; 1 the connection failed or ended early; 2 wrong usage; 130 interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read standard output has had enough
        return 0
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        print(f"revecho: {_address((args.host, args.port))}: {why}", file=sys.stderr)
        return 1 if isinstance(error, OSError) else 2


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--host", default=HOST, help="address or name (default: %(default)s)")
    common.add_argument("--port", type=int, default=PORT, help="(default: %(default)s)")
    parser = argparse.ArgumentParser(
        prog="revecho", description="Answer every line with its reverse, over TCP."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    server = commands.add_parser("server", parents=[common], help="answer lines until Ctrl-C")
    server.set_defaults(run=_serve)
    option = server.add_argument
    option("--max-connections", metavar="N", type=int, default=MAX_CONNECTIONS,
           help="connections at a time; others wait (default: %(default)s)")
    option("--max-line", metavar="BYTES", type=int, default=MAX_LINE,
           help="length of a line (default: %(default)s)")
    option("--idle-timeout", metavar="SECONDS", type=float, default=IDLE_TIMEOUT,
           help="time without a line answered; 0 for no end (default: %(default)g)")
    option("--grace", metavar="SECONDS", type=float, default=GRACE,
           help="time to finish in when stopped (default: %(default)g)")
    option("--reuse-port", action="store_true", help="share the port with other processes")
    loudness = server.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", dest="level", action="store_const",
                          const=logging.WARNING, default=logging.INFO, help="log only warnings")
    loudness.add_argument("-v", "--verbose", dest="level", action="store_const",
                          const=logging.DEBUG, help="log more")

    client = commands.add_parser("client", parents=[common], help="send lines, print the replies")
    client.set_defaults(run=_talk)
    client.add_argument("--timeout", metavar="SECONDS", type=float, default=10.0,
                        help="for connecting and for each reply (default: %(default)g)")
    client.add_argument("--ask", action="store_true", help="ask whether to send again")
    client.add_argument("message", metavar="MESSAGE", nargs="*",
                        help="a line to send; without any, standard input is sent")
    return parser


def _serve(args: argparse.Namespace) -> int:
    caught: queue.SimpleQueue[int] = queue.SimpleQueue()

    def stop(number: int, _: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once
        caught.put(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    logging.basicConfig(level=args.level, format="%(asctime)s %(message)s")
    ReverseServer.allow_reuse_port = args.reuse_port
    with running_server(
        (args.host, args.port),
        max_connections=args.max_connections,
        max_line=args.max_line,
        idle_timeout=args.idle_timeout,
        grace=args.grace,
    ) as server:
        print("listening on", _address(server.server_address), flush=True)
        while True:
            with contextlib.suppress(queue.Empty):
                caught.get(timeout=1)  # Windows lets no Ctrl-C through in a wait without an end
                break
    return 0


def _talk(args: argparse.Namespace) -> int:
    server = args.host, args.port, args.timeout
    if args.ask and not args.message:
        raise ValueError("--ask needs a MESSAGE")
    for file in (sys.stdin, sys.stdout):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="surrogateescape")
    if args.message:
        _say(args.message, server)
        for answer in _typed("Do you want to continue (y/n)? ") if args.ask else ():
            if answer.strip().lower() != "y":
                break
            _say(args.message, server)
    elif sys.stdin and sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() line editing
        _connect(*server).close()  # if nobody listens, say so before anything is typed
        for line in _typed("> "):
            _say([line], server)
    else:
        with open(0, "rb", 0, closefd=False) as source, open(1, "wb", closefd=False) as sink:
            stream(source, sink, *server)
    return 0


def _say(texts: list[str], server: tuple[str, int, float]) -> None:
    for text in texts:
        print(request(text, *server), flush=True)


def _typed(prompt: str) -> Iterator[str]:
    """Yield the lines that a person types, until Ctrl-D."""
    while True:
        try:
            line = input(prompt)
        except (EOFError, KeyboardInterrupt) as end:
            print()  # leaves the prompt's line
            if isinstance(end, EOFError):
                return
            raise
        yield line


if __name__ == "__main__":
    sys.exit(main())
