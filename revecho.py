# SPDX-License-Identifier: 0BSD
"""revecho: a threaded TCP server that answers every line with its reverse, and a client for it.

One file, standard library only; copy it wherever you need it.  Run it:

    python3 revecho.py server                  # listens on 127.0.0.1:2002 until Ctrl-C
    python3 revecho.py client hello            # prints olleh
    python3 revecho.py client < a_file         # prints it with every line reversed
    python3 revecho.py ping                    # tells whether lines come back reversed, how fast

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

What is where, each part made of those above it (the appendix aside):

    Reversing          reverse_text(), reverse_lines(): bytes in, bytes out
    Lines              cutting bytes into lines, and how to end a connection from within
    Sockets            addresses, and waiting until one is ready
    Worker threads     each serves one connection after the other
    One connection     ReverseHandler: all that happens to it, on a thread that it has for itself
    All connections    which are open; ReverseServer: accepting, the limits, stopping
    The client         request(), stream()
    The command line   main(): server, client, ping
    Appendix           grapheme clusters for Python before 3.15

Three kinds of threads run in the server.  One accepts, in serve_forever().  A worker serves each
connection; nobody else receives, sends or closes there, and what it waits for is its peer or
stop_signal.  The thread that calls server_close() tells both to stop, waits for them, and cuts the
connections that are left when the grace is over.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import io
import itertools
import logging
import math
import os
import queue
import random
import re
import selectors
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Callable

with contextlib.suppress(ImportError):  # Windows has neither
    import fcntl
    import termios
if TYPE_CHECKING:  # else it is imported when it is used: that takes time, and not all have it
    import ssl

__all__ = ["HOST", "PORT", "CloseConnection", "ProtocolError", "ReplyError", "ReverseHandler"]
__all__ += ["ReverseServer", "main", "request", "reverse_lines", "reverse_text", "running_server"]
__all__ += ["stream"]
__version__ = "1.0"

HOST = "127.0.0.1"
PORT = 2002
MAX_CONNECTIONS = 1000
MAX_LINE = 65536  # bytes, the ending not counted
IDLE_TIMEOUT = 60.0  # seconds
GRACE = 5.0  # seconds

_LONGEST_WAIT = 1_000_000  # seconds; a socket can wait for little more
_BOUNDS = {
    "max_connections": (1, 1_000_000),
    "max_line": (1, 1 << 30),
    "idle_timeout": (0, _LONGEST_WAIT),
    "grace": (0, _LONGEST_WAIT),
    "timeout": (0.001, _LONGEST_WAIT),
    "port": (1, 65535),
}
_BLOCK = 65536  # bytes asked for in one receive

log = logging.getLogger("revecho")


def _limit(name: str, value: Any) -> Any:
    least, most = _BOUNDS[name]
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}")
    return value


def _quantity(number: float, unit: str) -> str:
    """Return, say, 1 byte or 60 seconds."""
    return f"{number:.15g} {unit}{'s' * (number != 1)}"


def _printable(text: str) -> str:
    """Return it with escapes for control characters and for bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# ---- Reversing -----------------------------------------------------------------------------------

# A text without any of these is reversed character by character: most Latin, Greek, Cyrillic, Han,
# kana and Hangul.  The class is coarse: one with several ranges above U+FFFF would take 200 times
# as long.
_JOINING = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0590-\u1dff\u200c\u200d\u20d0-\u20ff\u2c00-\u2dff\u302a-\u302f"
    "\u3099\u309a\ua640-\uabff\ud7b0-\ud7ff\ufb1e-\ufe2f\uff9e\uff9f\U00010000-\U0010ffff]"
)
# So is a text that consists of these bytes in UTF-8: most Latin, Greek and Cyrillic.  To find that
# out takes a tenth of the time.  (CC and CD begin the accents.)
_ALONE = bytes({*range(0xD2)} - {0xCC, 0xCD})


def reverse_text(text: str) -> str:
    """Return the user-perceived characters of *text* in reverse order.

    These are the extended grapheme clusters of Unicode Standard Annex #29.

    >>> reverse_text("drawer 🇩🇪")
    '🇩🇪 reward'
    """
    if "\r\n" not in text and (text.isascii() or not _JOINING.search(text)):
        return text[::-1]
    if sys.version_info >= (3, 15):
        # A surrogate stands for a byte that is not UTF-8, and nothing joins it.
        parts = re.split("([\ud800-\udfff])", text)
        clusters = map(str, itertools.chain.from_iterable(map(unicodedata.iter_graphemes, parts)))
    else:
        clusters = _iter_graphemes(text)
    return "".join(reversed([*clusters]))


def reverse_lines(lines: bytes) -> bytes:
    r"""Return what the server answers to *lines*: each line reversed, with its own ending.

    A line ends in LF or CRLF; the last may have no ending.  The lines are UTF-8, and a byte that
    is not valid UTF-8 counts as one character.  The answer is as long as *lines*, in bytes.

    >>> reverse_lines(b"one\ntwo\r\nthree")
    b'eno\nowt\r\neerht'
    """
    if 13 in lines and b"\r\n" in lines:  # to ask for one byte, as a number, is far faster
        return b"\r\n".join(map(reverse_lines, lines.split(b"\r\n")))
    # To reverse a block and then the order of its lines costs less than to reverse line by line.
    if lines.isascii():
        backwards = lines[::-1]
    else:
        text = lines.decode("utf-8", "surrogateescape")
        text = reverse_text(text) if lines.translate(None, _ALONE) else text[::-1]
        backwards = text.encode("utf-8", "surrogateescape")
    if lines.find(b"\n") + 1 == len(lines) > 0:  # a single one, in half of the time for a long one
        return backwards[1:] + b"\n"
    reversed_lines = backwards.split(b"\n")
    reversed_lines.reverse()
    return b"\n".join(reversed_lines)


# ---- Lines ---------------------------------------------------------------------------------------


class CloseConnection(Exception):  # noqa: N818  it asks for an end, and need not be an error
    r"""What a handler raises to end the connection, in respond() say: *reply* is its last words.

    *reply* is what has not been sent yet, in bytes; *why* is for the log.

    >>> class Polite(ReverseHandler):
    ...     def respond(self, lines):
    ...         before, quit, _ = lines.partition(b"quit\n")
    ...         if quit:
    ...             raise CloseConnection(reverse_lines(before) + b"bye\n")
    ...         return reverse_lines(lines)
    >>> with running_server(RequestHandlerClass=Polite) as server:
    ...     request("quit", *server.server_address[:2])
    'bye'
    """

    def __init__(self, reply: bytes = b"", why: str = "the handler ended it") -> None:
        super().__init__(why)
        self.reply, self.why = reply, why


class ProtocolError(CloseConnection):
    """The same, but the peer is also told what is wrong: ``error: `` and *message* come last.

    *message* is one line of text.  *reply* is sent before it: the answers to the lines before.
    """

    def __init__(self, message: str, reply: bytes = b"") -> None:
        error = f"error: {message}\n".encode("utf-8", "surrogateescape")
        super().__init__(reply + error, message)


class _Lines:
    """The lines in what comes bit by bit, none of them longer than *max_line* bytes."""

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self.begun = bytearray()  # a line that is not whole yet

    def add(self, data: bytes) -> bytes:
        """Return the lines that *data*, at most max_line bytes, makes whole."""
        if not self.begun and data.endswith(b"\n"):
            return data
        end = data.rfind(b"\n") + 1
        if len(self.begun) + len(data) > self.max_line:  # only the first can be too long
            first = data[: data.find(b"\n")] if end else data
            cr = (first or self.begun).endswith(b"\r")  # it belongs to the ending, or may do so yet
            self._check_length(len(self.begun) + len(first) - cr)
        whole = bytes(self.begun) + data[:end] if end else b""
        if end:
            self.begun.clear()
        self.begun += data[end:]
        return whole

    def last(self) -> bytes:
        """Return the line that the end makes whole, if there is one."""
        self._check_length(len(self.begun))
        return bytes(self.begun)

    def _check_length(self, length: int) -> None:
        if length > self.max_line:
            raise ProtocolError(f"line longer than {_quantity(self.max_line, 'byte')}")


# ---- Sockets -------------------------------------------------------------------------------------


def _resolve(host: str, port: int) -> tuple[int, Any]:
    """Return the address family and the address to listen on; any, if *host* is empty."""
    try:
        found = socket.getaddrinfo(host or None, 0, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except UnicodeError as error:  # no host can have this name
        raise OSError(str(error)) from error
    family, _, _, _, address = found[0]
    return family, (address[0], port, *address[2:])


def _address(address: Any) -> str:
    """Return host:port; any other address, such as the path of a Unix socket, as it is."""
    if isinstance(address, tuple) and len(address) > 1:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return address if isinstance(address, str) else repr(address)


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the peer may have been faster
        socket.socket.shutdown(connection, how)  # SSLSocket's own would take the TLS layer away


_MOMENT = 0.05  # seconds between looks for acknowledgements, which nothing announces


def _unacknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the peer has yet to acknowledge, if the system tells."""
    with contextlib.suppress(NameError, OSError, ValueError):  # no fcntl, or it is closed
        return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return None


def _sent_again(connection: socket.socket) -> int:
    """Return how many segments had to be sent again; 0 where the system does not tell."""
    with contextlib.suppress(AttributeError, OSError):
        if sys.platform == "linux":
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return int.from_bytes(info[100:], sys.byteorder)  # tcp_info.tcpi_total_retrans
    return 0


def _tls_context(
    server_side: bool, cert: str | None, key: str | None, ca: str | None
) -> ssl.SSLContext:
    """Return a context with these files, or without those that are None.

    Without *ca* a client trusts the authorities that the system trusts, and a server asks for no
    certificate.  Raises an OSError that names the option of the command line, and the file that is
    wrong, or ImportError where Python has no TLS.
    """
    import ssl

    purpose = ssl.Purpose.CLIENT_AUTH if server_side else ssl.Purpose.SERVER_AUTH
    try:
        for option, file in ("--tls-cert", cert), ("--tls-key", key), ("--tls-ca", ca):
            options = f"{option} {file}"
            if file:
                open(file, "rb").close()  # TLS could not say which is missing
        context = ssl.create_default_context(purpose, cafile=ca)
        if ca:
            context.verify_mode = ssl.CERT_REQUIRED
        options = f"--tls-cert {cert}" + f" --tls-key {key}" * bool(key)
        if cert:
            context.load_cert_chain(cert, key)
    except OSError as error:
        why = _in_words(error)
        if not error.filename and "PEM" in str(error):
            why = f"no certificate{' with its key' * options.startswith('--tls-cert')}, in PEM"
        raise OSError(f"{options}: {why}") from error
    return context


def _in_words(error: OSError) -> str:
    """Return why something failed, for TLS in words as well."""
    words: str = getattr(error, "verify_message", "")  # of a certificate that is not accepted
    code = getattr(error, "reason", None) or ""
    if code in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
        words = "what came is no TLS"
    return words or code.replace("_", " ").lower() or error.strerror or str(error)


# Of the errors of accept, these say that the socket is closed, or does not listen ...
_BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
# ... and these that the system has no room for one more.  All others are about one connection.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def _ready(wanted: dict[socket.socket, int], seconds: float | None) -> dict[Any, int]:
    """Wait until a socket is ready for what is wanted of it; tell which are, and for what."""
    # Windows has no poll, and epoll would take a descriptor.
    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
        for connection, events in wanted.items():
            selector.register(connection, events)
        return {key.fileobj: events for key, events in selector.select(seconds)}


# ---- Worker threads ------------------------------------------------------------------------------


class _Workers(dict[threading.Thread, queue.SimpleQueue[Any]]):
    """The threads that serve connections, each one after the other, and their inboxes.

    Starting a thread costs more than everything else that a short connection needs.  The public
    methods are for the thread that accepts, and for the one that closes the server after that.  A
    worker itself only appends its inbox to _idle, and a list needs no lock for append() and pop().
    """

    def __init__(self, serve: Callable[[Any, Any], None]) -> None:
        self._serve = serve
        self._idle: list[queue.SimpleQueue[Any]] = []  # the inboxes of those that are

    def reserve(self) -> None:
        """Have one that is idle; RuntimeError if the system has no more threads."""
        if not self._idle:
            inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(inbox,), daemon=True)
            self[thread] = inbox  # first, so that end() ends it whenever Ctrl-C comes
            thread.start()
            log.debug("%s started", thread.name)
            self._idle.append(inbox)

    def hand_over(self, request: Any, client_address: Any) -> None:
        """Let the one that went idle last serve a connection."""
        self._idle.pop().put((request, client_address))

    def end_idle(self) -> None:
        """End all that are idle now, so that a crowd leaves none; forget those that have ended."""
        while self._idle:
            self._idle.pop().put(None)
        for thread in [thread for thread in self if not thread.is_alive()]:
            del self[thread]

    def end(self, deadline: float) -> None:
        """End all, each when it has served its connection; wait for that until the deadline."""
        for inbox in self.values():
            inbox.put(None)
        for thread in filter(threading.Thread.is_alive, self):
            thread.join(max(0, deadline - time.monotonic()))

    def _work(self, inbox: queue.SimpleQueue[Any]) -> None:
        while accepted := inbox.get():
            self._serve(*accepted)
            self._idle.append(inbox)


# ---- One connection ------------------------------------------------------------------------------


class _IdleError(CloseConnection):
    """The peer has sent no line for too long; it can be told."""

    def __init__(self) -> None:
        super().__init__(why="idle")


class _StoppingError(CloseConnection):
    """The server stops, and all that had arrived has been answered."""

    def __init__(self) -> None:
        super().__init__(why="stopping")


class ReverseHandler(socketserver.StreamRequestHandler):
    r"""Answers the lines of one connection.  All of it runs on the connection's own thread.

    Override respond() to answer something else; the limits and the way of stopping stay.  They are
    also in force in a handle() of your own that uses receive() and send():

        >>> class Greeting(ReverseHandler):
        ...     def handle(self):
        ...         self.send(b"hello\n")
        ...         super().handle()

    A handle() may use request, rfile and wfile instead, but not both: then it waits for as long as
    the peer likes, and is cut when the server has been stopped and the grace is over.  For a buffer
    of rfile set rbufsize.
    """

    server: ReverseServer
    request: socket.socket
    disable_nagle_algorithm = True  # a reply shall not wait until the one before is acknowledged
    rbufsize = 0  # handle() does not use rfile, the buffer of which would be memory for nothing
    patience = 0.25  # seconds that a receive or a send waits in the kernel before _wait() does
    drain_quiet, drain_time, drain_limit = 0.5, 5.0, 1 << 30  # seconds, seconds, bytes: _drain()
    _socket: socket.socket | None = None  # request, once it has been made patient
    _sent = _late = 0  # bytes that were sent; that were received after _idle_at, since a send()
    _why = "the handler ended it"  # why the connection ended, for the log; empty if the peer did it
    _nothing_to_drain = False  # true when the peer has ended, or can get nothing any more

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        """Live the whole life of the connection, as in socketserver, but through every error."""
        self._opened_at = time.monotonic()
        self._idle_timeout = server.idle_timeout or math.inf
        self._idle_at = self._opened_at + self._idle_timeout  # by then a line has to be answered
        # Bytes to receive at a time, for _Lines at most max_line.  To ask for more takes memory.
        self._size = min(1024, server.max_line)
        self.request, self.client_address, self.server = request, client_address, server
        log.info("%s connected", _address(client_address))
        try:
            if self._lives_through(self.setup):
                self._lives_through(self.handle)
                self._lives_through(self.finish)
        finally:
            self._leave()

    def _lives_through(self, step: Callable[[], None]) -> bool:
        """Take a step; tell whether nothing has ended the connection in it."""
        try:
            try:
                step()
                return True
            except CloseConnection as end:
                self._why = end.why
                if end.reply:
                    self.send(end.reply)
        except CloseConnection:
            pass  # the last bytes cannot be sent; why it ends is known
        except Exception:
            self._why = "the handler failed"
            self.server.handle_error(self.request, self.client_address)
        return False

    def handle(self) -> None:
        """Answer line after line, until the peer ends its side, or a limit or the server does."""
        lines = _Lines(self.server.max_line)
        try:
            while data := self.receive():
                if whole := lines.add(data):
                    self.send(self.respond(whole))
                del data, whole  # large, perhaps, and the next ones long in coming
        except _IdleError:
            if not lines.begun:
                raise
            limit = _quantity(self.server.idle_timeout, "second")
            raise ProtocolError(f"line not finished within {limit}") from None
        if last := lines.last():
            self.send(self.respond(last))

    def respond(self, lines: bytes) -> bytes:
        """Return the answer to *lines*: one or more whole lines, each with its ending.

        Only the last line before the peer ends its side can lack one.  How many come at a time is
        chance.  Only LF ends a line, so splitlines() would cut too often; this is how to do it:

            def respond(self, lines):
                return b"".join(line.upper() for line in io.BytesIO(lines))

        Raise CloseConnection to end the connection, ProtocolError to tell the peer what is wrong
        as well.  Any other exception is logged with its traceback, and ends the connection too.
        """
        return reverse_lines(lines)

    def receive(self) -> bytes:
        """Return what the peer sends next: some bytes, or none when it has ended its side.

        Raises CloseConnection, to be let through, when the connection has to end: it broke; the
        idle timeout has passed since the last send(); or the server stops, and all that had arrived
        has been received.
        """
        connection = self._socket or self._be_patient()
        while True:
            over = self._over()
            if over:
                connection.setblocking(False)  # for what has arrived, and no more
                # A peer that never lets us wait shall not go on for ever.
                most = self.server.max_line + _BLOCK
                if time.monotonic() >= self.server.receive_until or self._late >= most:
                    raise over
            try:
                data = connection.recv(self._size)
                break
            except OSError as error:
                self._wait(self._awaited(error, _READ), over)
        if not data:
            if time.monotonic() >= self.server.receive_until:  # the server may have cut it
                raise _StoppingError
            self._nothing_to_drain, self._why = True, ""
        elif len(data) == self._size:
            self._size = min(_BLOCK, self.server.max_line)
        if over is _IdleError:
            self._late += len(data)
        return data

    def send(self, data: bytes) -> None:
        """Send all of *data*; the peer has the idle timeout to take it.

        Raises CloseConnection, as receive() does, if that is not enough, or the connection broke.
        A stop of the server shortens that to the grace.
        """
        connection, unsent = self._socket or self._be_patient(), memoryview(data)
        self._idle_at = time.monotonic() + self._idle_timeout  # what has passed was ours
        over = None
        while unsent:
            try:
                count = connection.send(unsent)
            except OSError as error:
                self._wait(self._awaited(error, _WRITE), over)
                over = self._over()  # TLS may have to receive something first
                continue
            unsent = unsent[count:]
            self._sent += count
            if unsent:
                self._raise_if_idle()
        self._idle_at, self._late = time.monotonic() + self._idle_timeout, 0

    def _leave(self) -> None:
        """See to it that what was sent last arrives, and say that the connection is over."""
        if hasattr(self.request, "unwrap"):
            with contextlib.suppress(CloseConnection, OSError, ValueError):
                self._say_farewell(self.request)
        # In a stop we do not know whether the last replies have arrived.
        if not self._nothing_to_drain or (self.server.stopping and _unacknowledged(self.request)):
            self._drain()
        took, why = time.monotonic() - self._opened_at, self._why and f": {_printable(self._why)}"
        peer = _address(self.client_address)
        log.info("%s gone after %.1f s, %d bytes sent%s", peer, took, self._sent, why)

    def _say_farewell(self, connection: Any) -> None:
        """Send TLS's own end; do not wait for that of the peer."""
        connection.setblocking(False)
        event = _WRITE
        while event == _WRITE:
            try:
                connection.unwrap()
                return
            except OSError as error:
                event = self._awaited(error, _WRITE)
            if event == _WRITE:
                self._wait(event, None)

    def _be_patient(self) -> socket.socket:
        """Return the socket, which from now on leaves all long waits to _wait()."""
        # To poll before each receive would cost up to a fifth of a small exchange.
        if self.patience and sys.platform == "linux" and type(self.request) is socket.socket:
            timeval = struct.pack("ll", *divmod(round(self.patience * 1e6), 1_000_000))
            self.request.settimeout(None)  # with one of Python's own it would wait for that
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self.request.setsockopt(socket.SOL_SOCKET, option, timeval)
        else:
            self.request.setblocking(False)
        self._socket = self.request
        return self.request

    def _awaited(self, error: OSError, event: int) -> int:
        """Return what to wait for before another try, if that is all that *error* says."""
        # By their names, as ssl is imported only where it is used.
        events = {"BlockingIOError": event, "SSLWantReadError": _READ, "SSLWantWriteError": _WRITE}
        try:
            return events[type(error).__name__]
        except KeyError:
            if isinstance(error, ConnectionError):
                self._nothing_to_drain = True
            cut = time.monotonic() >= self.server.open_until  # by the server
            raise CloseConnection(why="stopping" if cut else _in_words(error)) from error

    def _over(self) -> type[CloseConnection] | None:
        """Return what ends the connection if nothing is there to receive, or None if nothing does.

        To be asked before the receive.  A thread can be held up after it, for longer than its time,
        and what comes meanwhile is not to be dropped.
        """
        if time.monotonic() >= self._idle_at:
            return _IdleError
        return _StoppingError if self.server.stopping else None

    def _wait(self, event: int, over: type[CloseConnection] | None) -> None:
        """Wait until the peer has sent something (_READ) or has room (_WRITE).

        For something to receive, only until the server stops.  *over* is what _over() said before
        the try that has just failed.
        """
        wanted = {self.request: event}
        if event == _WRITE:
            self._raise_if_idle()
        elif over:  # and all that had arrived has been answered
            self._nothing_to_drain = self.server.stopping
            raise over
        else:
            wanted[self.server.stop_signal] = _READ
        seconds = min(max(0, self._idle_at - time.monotonic()), _LONGEST_WAIT)
        with contextlib.suppress(ValueError):  # one of them is closed: the next try will tell
            _ready(wanted, seconds)

    def _raise_if_idle(self) -> None:
        """Raise CloseConnection if the peer's time to take what is sent is over."""
        if time.monotonic() >= self._idle_at:
            self._nothing_to_drain = True  # what the peer does not take it need not be spared
            raise CloseConnection(why="idle")

    def _drain(self) -> None:
        """End our side; read and drop what comes until the peer ends, or is quiet and has it all.

        To close with input unread, or before more comes in, would reset the connection, and destroy
        replies that are on their way.
        """
        now = time.monotonic()
        end, left = now + self.drain_time, self.drain_limit
        quiet_at = now + (0 if self._nothing_to_drain else self.drain_quiet)
        _shut(self.request, socket.SHUT_WR)
        with contextlib.suppress(OSError, ValueError):  # it may be broken, or closed by a handle()
            while left > 0 and now < end:
                if now >= quiet_at and not _unacknowledged(self.request):
                    break
                if _ready({self.request: _READ}, _MOMENT):
                    data = socket.socket.recv(self.request, _BLOCK)  # below TLS
                    if not data:
                        break
                    left -= len(data)
                    if not self.server.stopping:  # then nobody gets more time by sending on
                        quiet_at = time.monotonic() + self.drain_quiet
                now = time.monotonic()


# ---- All connections -----------------------------------------------------------------------------


class _Connections(set[socket.socket]):
    """The open connections, and the lock that guards them.

    Only under the lock is a connection added, cut or closed.  So nobody cuts a descriptor that is
    another's by now.
    """

    def __init__(self) -> None:
        super().__init__()
        # Not to be taken by `with self.changed`: that is Python code, in the midst of which Ctrl-C
        # would leave it locked.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)

    def open(self, connection: socket.socket) -> None:
        with self.lock:
            self.add(connection)

    def close(self, connection: socket.socket) -> None:
        with self.lock:
            self.discard(connection)
            # close() would leave it open for as long as rfile is, perhaps because of an exception.
            descriptor = connection.detach()
            if descriptor >= 0:
                socket.close(descriptor)
            self.look_again()

    def look_again(self) -> None:
        """Let those who wait look at their conditions."""
        with self.lock:
            self.changed.notify_all()

    def cut(self) -> None:
        with self.lock:
            for connection in self:
                _shut(connection, socket.SHUT_RDWR)

    def wait(self, condition: Callable[[], bool], until: float) -> None:
        """Wait for *condition*, but no longer than until then, by time.monotonic()."""
        with self.lock:
            self.changed.wait_for(condition, max(0, until - time.monotonic()))


def _held(lock: Any) -> bool:
    """Tell whether this thread holds an RLock."""
    with contextlib.suppress(RuntimeError):  # if it does not
        threading.Condition(lock).notify()
        return True
    return False


class _NotAcceptingError(Exception):
    """Ends serve_forever(), which an OSError would not do."""


class ReverseServer(socketserver.ThreadingTCPServer):
    """Serves each connection on one thread, within limits.

    *server_address* is a host and a port; the host is an IPv4 or IPv6 address or a name.  Port 0
    takes any free one; the attribute server_address then tells which.

    Call serve_forever(); to stop, server_close() on another thread, or leave the ``with`` block.

    Its attributes, of which it takes the first five by name:

    max_connections  connections served at a time; the others wait in the listen queue
    max_line         bytes in a line, its ending not counted
    idle_timeout     seconds that a connection may stay open with no line answered; 0 means for ever
    grace            seconds for finishing what has been received when the server stops
    ssl_context      an ssl.SSLContext for all connections; None means no TLS
    connections      those that are open; len(server.connections) tells how many
    stop_signal      a socket that is readable from the moment when the server stops, until it is
                     closed at the end of that

    Raises OSError if it cannot listen there, or with that context, OverflowError for a port and
    ValueError for a limit out of range.
    """

    server_address: tuple[str, int]  # and two numbers more for IPv6
    allow_reuse_address = os.name == "posix"  # elsewhere it would let another program take the port
    request_queue_size = 4096  # the kernel takes it down to its own limit
    look_interval = 0.5  # seconds between looks for idle threads, and for room that was missing
    stopping = False
    receive_until = open_until = math.inf  # by time.monotonic(), for connections; a stop sets them

    def __init__(
        self,
        server_address: tuple[str, int] = (HOST, PORT),
        RequestHandlerClass: Callable[..., socketserver.BaseRequestHandler] = ReverseHandler,
        bind_and_activate: bool = True,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_line: int = MAX_LINE,
        idle_timeout: float = IDLE_TIMEOUT,
        grace: float = GRACE,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.max_connections = _limit("max_connections", max_connections)
        self.max_line = _limit("max_line", max_line)
        self.idle_timeout = _limit("idle_timeout", idle_timeout)
        self.grace = _limit("grace", grace)
        self.ssl_context = ssl_context
        if ssl_context:  # one for a client would fail at each connection
            import ssl

            ssl_context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
            # Python 3.9 sets it, and takes an end without a farewell for that of a line.
            ssl_context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 1 << 7)
        self.connections = _Connections()
        self._accepting, self._closing = threading.RLock(), threading.RLock()  # held by who does
        self._next_look = 0.0
        self._crowded_at = -math.inf  # when others last had to wait
        self.address_family, address = _resolve(*server_address[:2])
        super().__init__(address, RequestHandlerClass, bind_and_activate=False)
        with contextlib.ExitStack() as if_it_fails:
            if_it_fails.callback(super().server_close)
            self._own()
            if_it_fails.callback(self._close_sockets)
            if bind_and_activate:
                self.server_bind()
                self.server_activate()
            if_it_fails.pop_all()

    def _own(self) -> None:
        """Make what a forked child that serves cannot have in common with its parent."""
        self._process = os.getpid()
        self._workers = _Workers(self.process_request_thread)
        self.stop_signal, self._far_end = socket.socketpair()  # it is readable when that is shut

    def server_activate(self) -> None:
        """Listen; a client may be gone again before accept(), which shall not wait for another."""
        super().server_activate()
        self.socket.setblocking(False)

    # On the thread that accepts

    def serve_forever(self, poll_interval: float = 0.05) -> None:
        """Accept connections until shutdown() or server_close() is called on another thread.

        It looks for that every *poll_interval* seconds.  Raises OSError if the listening socket is
        broken.
        """
        self._accept(super().serve_forever, poll_interval)

    def handle_request(self) -> None:
        """Serve one connection; call handle_timeout() if none comes for `timeout` seconds."""
        self._accept(self._accept_one)

    def _accept_one(self) -> None:
        # The inherited method takes the timeout of the listener, 0, for the one that is meant.
        ready = _ready({self.socket: _READ, self.stop_signal: _READ}, self.timeout)
        if self.socket in ready:
            self._handle_request_noblock()
        elif not ready:
            self.handle_timeout()
        self.service_actions()

    def _accept(self, accept: Callable[..., None], *arguments: Any) -> None:
        """Call *accept*, for the end of which server_close() waits."""
        try:
            with self._accepting:
                if self.stopping:
                    return
                if self._process != os.getpid():
                    self._own()
                accept(*arguments)
        except _NotAcceptingError as error:
            if not self.stopping and error.__cause__:
                raise error.__cause__ from None

    def service_actions(self) -> None:
        """Between two connections: look for a stop (call this) and, now and then, idle threads."""
        if self.stopping:
            raise _NotAcceptingError
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + self.look_interval
            self._workers.end_idle()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, when there is room and a thread for it (call this); else OSError."""
        while True:
            count = len(self.connections)
            try:
                self._reserve(count)
                connection, client_address = super().get_request()
            except (OSError, RuntimeError, MemoryError) as error:
                number = getattr(error, "errno", errno.ENOMEM)  # RuntimeError: no more threads
                if number in _BROKEN:
                    raise _NotAcceptingError from error
                if number in _EXHAUSTED and self._wait_for_room(count, str(error)):
                    continue
                raise BlockingIOError from error  # over which socketserver passes
            connection.settimeout(None)  # whatever socket.setdefaulttimeout() says
            if self.ssl_context:  # the handshake comes with the first receive or send
                with connection:  # closes it, unless wrap_socket() has taken it over
                    # If it is reset this raises; so would wrap_socket(), but leave its own open.
                    connection.getpeername()
                    connection = self.ssl_context.wrap_socket(
                        connection,
                        server_side=True,
                        do_handshake_on_connect=False,
                        suppress_ragged_eofs=False,  # an end without a farewell ends no line
                    )
            return connection, client_address

    def _reserve(self, count: int) -> None:
        """Have a place and a thread for another than the *count* there are; RuntimeError if not."""
        if count >= self.max_connections:
            raise RuntimeError(f"the limit max_connections={self.max_connections} is reached")
        self._workers.reserve()

    def _wait_for_room(self, count: int, why: str) -> bool:
        """Wait for fewer than the *count* there are; tell whether that came true."""
        if self.stopping:
            if not count:
                raise _NotAcceptingError  # nobody can make room
            self.connections.wait(
                lambda: len(self.connections) < count or time.monotonic() >= self.receive_until,
                self.receive_until,
            )
        else:
            if time.monotonic() > self._crowded_at + 1:  # once for as long as it goes on
                log.warning("cannot accept, others wait: %s", why)
            self.connections.wait(
                lambda: self.stopping or len(self.connections) < count,
                time.monotonic() + self.look_interval,
            )
            self._crowded_at = time.monotonic()
        return len(self.connections) < count

    def _handle_request_noblock(self) -> None:
        """As in socketserver, but a verify_request() that raises costs only that connection."""
        try:
            request, client_address = self.get_request()
        except OSError:
            return
        handed_over = False
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
                handed_over = True
        except Exception:
            log.exception("%s: not served", _address(client_address))
        finally:
            if not handed_over:
                self.shutdown_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a worker serve the connection, which is open from now on (call this)."""
        self.connections.open(request)
        self._workers.hand_over(request, client_address)

    # On the connection's own thread, mostly; it begins in process_request_thread() of socketserver

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log an exception of the handler's own."""
        log.error("%s: the handler failed", _address(client_address), exc_info=sys.exc_info())

    def close_request(self, request: Any) -> None:
        """Close the connection, and make room for another (call this)."""
        self.connections.close(request)

    # On the thread that closes the server, which is none of those

    def server_close(self) -> None:
        """Stop listening, answer every line that has been received, and close everything.

        Takes as long as that takes, at most little more than the grace and the poll_interval of
        serve_forever(), if get_request() and verify_request() do not hang.  Any number of calls,
        also by several threads, do no harm.  Raises RuntimeError on a thread that it would wait
        for: in respond(), say.
        """
        if self._process != os.getpid():  # a forked child has none of the threads
            self.stopping = True
            self._close_sockets()
            return
        if _held(self._closing):  # a signal's handler calls this in the midst of it
            return
        if _held(self._accepting) or threading.current_thread() in self._workers:
            raise RuntimeError("server_close() would wait for the thread that calls it")
        with self._closing:
            self._stop()

    def _stop(self) -> None:
        """Do what server_close() says; what has been done already takes no time."""
        try:
            self._tell_all_to_stop(self.grace)
            with self._accepting:  # when serve_forever() is out
                self._serve_the_listen_queue()
                super().server_close()  # newcomers are refused from now on
            self.connections.wait(lambda: not self.connections, self.open_until)
        finally:  # also where Ctrl-C interrupts this; what another one leaves is for another call
            self._tell_all_to_stop(0)
            self._close_sockets()
            with self._accepting:  # now nobody accepts any more
                self.connections.cut()
                self._workers.end(self.open_until + 0.5)  # a handler may hang

    def _tell_all_to_stop(self, grace: float) -> None:
        self.open_until = min(self.open_until, time.monotonic() + grace)
        # The rest is for sending and draining.
        self.receive_until = min(self.receive_until, self.open_until - 0.1 * grace)
        self.stopping = True
        _shut(self._far_end, socket.SHUT_RDWR)  # it could be open in a forked child, too
        self.connections.look_again()

    def _serve_the_listen_queue(self) -> None:
        """Accept those who wait there, as room becomes free; at most as many as can wait."""
        with contextlib.suppress(_NotAcceptingError, ValueError):  # it may be closed already
            for _ in range(self.request_queue_size + 1):
                if time.monotonic() >= self.receive_until or not _ready({self.socket: _READ}, 0):
                    break
                self._handle_request_noblock()

    def _close_sockets(self) -> None:
        super().server_close()
        for end in (self.stop_signal, self._far_end):
            end.close()


@contextlib.contextmanager
def running_server(
    server_address: tuple[str, int] = (HOST, 0),
    RequestHandlerClass: Callable[..., socketserver.BaseRequestHandler] = ReverseHandler,
    *,
    server_class: type[ReverseServer] = ReverseServer,
    max_connections: int = MAX_CONNECTIONS,
    max_line: int = MAX_LINE,
    idle_timeout: float = IDLE_TIMEOUT,
    grace: float = GRACE,
    ssl_context: ssl.SSLContext | None = None,
) -> Iterator[ReverseServer]:
    """Serve on a thread of its own for as long as the ``with`` block lasts.

    Takes what ReverseServer takes, and a subclass of that as *server_class*; yields the server.
    Raises what ReverseServer does, and at the end what has ended serve_forever() before.

    >>> with running_server(max_line=100) as server:
    ...     request("stressed", *server.server_address[:2])
    'desserts'
    """
    errors: list[BaseException] = []

    def accept() -> None:
        try:
            server.serve_forever()
        except BaseException as error:
            errors.append(error)

    with server_class(
        server_address,
        RequestHandlerClass,
        max_connections=max_connections,
        max_line=max_line,
        idle_timeout=idle_timeout,
        grace=grace,
        ssl_context=ssl_context,
    ) as server:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield server
        finally:
            server.server_close()
            accepting.join()
    for error in errors:
        raise error


# ---- The client ----------------------------------------------------------------------------------

# _Connection never blocks once it is open.  _Owed counts the lines and bytes that are sent and that
# come back.  One loop, _exchange(), moves the bytes.

# Bytes unanswered at which no more is sent, but for the rest of a line; also the most in the reply
# to a shorter line.
_LARGE = 1 << 26
_LACKING = {*_EXHAUSTED, errno.EADDRNOTAVAIL}  # errors of this end, not of the path


class ReplyError(ConnectionError):
    """The connection ended before the whole reply, or what came is not the reply."""


class _WrongReplyError(ReplyError):
    """What came cannot be the reply, and is no error of the server's own either."""


class _Connection:
    """A connection to a server.

    *timeout* is in seconds, for all addresses of the host together; a look-up has no limit.
    """

    def __init__(
        self, host: str, port: int, timeout: float, ssl_context: Any = None, family: int = 0
    ) -> None:
        self.host, self.ssl_context, self.family = host, ssl_context, family
        self.port, self.timeout = _limit("port", port), _limit("timeout", timeout)
        self.undone = "not resolved"  # the step that is not done yet; empty when all are
        self.times: dict[str, float] = {}  # seconds that each step took
        self.address = ""  # the one that is tried, or used
        self.failed: list[str] = []  # those tried before it, and why they failed
        self.socket: Any = None  # until there is an address to try
        self.tls: Any = None  # an ssl.SSLObject between the socket and us
        self.more = False  # may TLS have more for us than the socket, which has given it all?
        self.unsent = memoryview(b"")  # what the socket has not taken yet
        self.broken = ""  # how, if it is

    def open(self) -> None:
        """Connect; raise an OSError that says which step failed."""
        self._step_began = time.perf_counter()
        try:
            found = socket.getaddrinfo(self.host, self.port, self.family, socket.SOCK_STREAM)
            if found[0][4][0] != self.host:  # else there was nothing to look up
                self._done("lookup")
            self.undone = "not connected"
            deadline = time.monotonic() + self.timeout
            self._connect(found, deadline)
            self._done("connect")
            if self.ssl_context:
                self.undone = "no TLS handshake"
                self._shake_hands(deadline)
                self._done("tls")
            self.undone = ""
        except OSError as error:
            if isinstance(error, TimeoutError) and not error.errno:  # we waited no longer
                raise TimeoutError(f"{self.undone}: {error}") from None
            error.strerror = f"{self.undone}: {_in_words(error)}"
            raise
        except ValueError as error:  # no host can have this name
            raise OSError(f"{self.undone}: {error}") from error
        self.socket.setblocking(False)

    def _done(self, step: str) -> None:
        now = time.perf_counter()
        self.times[step], self._step_began = now - self._step_began, now

    def _connect(self, found: list[Any], deadline: float) -> None:
        """Try the addresses in turn, each for an even share of the time that is left."""
        for number, (family, kind, protocol, _, address) in enumerate(found):
            seconds = max(0.001, (deadline - time.monotonic()) / (len(found) - number))
            self.address = _address(address)
            try:
                self.socket = socket.socket(family, kind, protocol)
                # Else the first line would wait for what acknowledges the handshake of TLS.
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.socket.settimeout(seconds)
                self.socket.connect(address)
                return
            except OSError as error:
                failure = error
            self.close()
            why = failure.strerror or f"no answer within {round(seconds, 3):g} s"
            lacking = "this end lacks something: " if failure.errno in _LACKING else ""
            named = "" if address[0] == self.host else f"{self.address}: "
            self.failed.append(f"{named}{lacking}{why}")
        failure.strerror = "; ".join(self.failed)
        raise failure if failure.errno else TimeoutError(failure.strerror)

    def _shake_hands(self, deadline: float) -> None:
        import ssl

        # TLS has the socket's bytes from us, and gives us those to send.  With a socket of its own
        # it could not end our side without a look for the other's end, in which a reply gets lost.
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = self.ssl_context.wrap_bio(
            self._received, self._to_send, server_hostname=self.host
        )
        self.more = True  # the server may say something with the end of the handshake
        while True:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError(f"no answer within {self.timeout:g} s")
            self.socket.settimeout(left)
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                pass
            finally:  # an alert may have to be sent, too
                with contextlib.suppress(OSError):  # the next receive tells more
                    self.socket.sendall(self._to_send.read())
            try:
                data = self.socket.recv(_BLOCK)
            except socket.timeout:
                continue
            if not data:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the connection ended")
            self._received.write(data)

    def give(self, data: bytes) -> None:
        """Take what is to be sent, when nothing is unsent, and send as much as goes now."""
        self.unsent = memoryview(data)
        if self.tls:
            self._try(self.tls.write, data, 0)
            self.unsent = memoryview(self._to_send.read())
        self.send()

    def send(self) -> None:
        """Send of what is unsent as much as goes now."""
        # If the connection is broken, receive() tells, after what the server has said before.
        count = self._try(self.socket.send, self.unsent, len(self.unsent))
        self.unsent = self.unsent[count or 0 :]

    def receive(self) -> bytes | None:
        """Return what has come, b"" at the end, or None if nothing has."""
        data: bytes | None = self._try(self.socket.recv, _BLOCK, b"")
        return self._decrypt(data) if self.tls else data

    def _decrypt(self, data: bytes | None) -> bytes | None:
        import ssl

        self._received.write(data or b"")
        text = b""
        try:
            while some := self.tls.read(_BLOCK):
                text += some
            data = b""  # TLS has ended
        except ssl.SSLWantReadError:
            data = None if data else data  # b"" is the end of the connection
        except ssl.SSLError as error:
            # TLS has ended on both sides; or an error before this one has been told already.
            told = ssl.SSLZeroReturnError, ssl.SSLEOFError, ssl.SSLSyscallError
            if not isinstance(error, told):
                self._break(error)
            data = b""
        self.more = bool(text)  # then the end may stand behind it
        return text or data

    def _try(self, call: Callable[[Any], Any], argument: Any, if_broken: Any) -> Any:
        try:
            return call(argument)
        except BlockingIOError:
            return None
        except OSError as error:
            self._break(error)
            return if_broken

    def _break(self, error: OSError) -> None:
        reset = isinstance(error, ConnectionError)
        how = "was reset" if reset else f"broke: {_in_words(error)}"
        self.broken = f"the connection {how}"

    def end(self) -> None:
        """End our side."""
        if not self.tls:
            _shut(self.socket, socket.SHUT_WR)
            return
        with contextlib.suppress(OSError):  # that the other side has not ended
            self.tls.unwrap()
        self.unsent = memoryview(self._to_send.read())
        self.send()

    def close(self) -> None:
        if self.tls and not self.unsent:
            self.end()
        if self.socket:
            self.socket.close()


class _Owed:
    """What goes there and what comes back, counted.

    For a single *line* one line has to come, of any length.  Without it any lines can be added,
    and just as many bytes have to come.
    """

    def __init__(self, line: bytes = b"") -> None:
        self.line = line
        self._there, self._last_sent = _Lines(sys.maxsize), b""
        self.sent = 0  # bytes
        self.owed_lines = self.owed_bytes = 0  # of that what has to be answered: not half a line
        self.ended = False  # has the other side ended?
        self.replies = bytearray()  # that are due, where they are known: see _Compared
        # What has come: lines, bytes, bytes that can be right, and the last line, whole or not
        self.lines = self.came = self.right = 0
        self.last = bytearray()
        self.add(line)

    def add(self, data: bytes) -> bool:
        """Take what is going to be sent, b"" at its end; tell if that leaves a line unfinished."""
        self.sent += len(data)
        self._expect(self._there.add(data) if data else self._there.last())
        return bool(self._there.begun)

    def _expect(self, lines: bytes) -> None:
        self.owed_lines += lines.count(b"\n")
        self.owed_bytes += len(lines)
        self._last_sent = lines[lines.rfind(b"\n", 0, -1) + 1 :] or self._last_sent

    def due(self) -> bool:
        """Tell whether more has to come: a reply, or the rest of what may be an error."""
        if self.line:
            return not self.lines
        if (self.lines, self.came) != (self.owed_lines, self.owed_bytes):
            return True
        # An error can be as long as the reply, or begin like one that has no ending.
        like_error = self.last.startswith(b"error: ") if self.ended else self._like_error()
        return like_error and self.last != reverse_lines(self._last_sent)

    def take(self, data: bytes) -> None:
        """Take what has come; raise a ReplyError at the first byte that cannot be right."""
        if self.right == self.came:
            self.right += self._match(data)
        wrong = self.came + len(data) - self.right
        if wrong:  # let the line in which that begins be the last
            data = data[: data.find(b"\n", max(len(data) - wrong, 0)) + 1 or len(data)]
        begin = data.rfind(b"\n", 0, -1) + 1
        if begin or not self.unfinished():
            self.last.clear()
        self.last += data[begin:]
        self.lines += data.count(b"\n")
        self.came += len(data)
        if wrong and not (self.unfinished() and self._like_error()):
            raise self.error(self._describe(), _WrongReplyError)

    def _match(self, data: bytes) -> int:
        """Return how many bytes of *data* can be right."""
        most = max(len(self.line), _LARGE) if self.line else self.owed_bytes
        return min(len(data), most - self.came)

    def unfinished(self) -> bool:
        """Tell whether the last line that came has no ending yet."""
        return not self.last.endswith(b"\n") and self.came > 0

    def _like_error(self) -> bool:
        """Tell whether the last line that came begins like an error of the server."""
        return len(self.last) < _BLOCK and b"error: ".startswith(self.last[:7])

    def _describe(self) -> str:
        """Say what is wrong, from some bytes before it so that one can recognize it."""
        at = len(self.last) - (self.came - self.right)
        line = "" if self.line else f", line {self.lines + self.unfinished()}"
        place = f"at byte {self.right + 1}{line}: {_quote(self.last, at)} came"
        if not self.replies:
            return f"more than the reply {place}"
        due = bytes(self.last[:at] + self.replies[: self.replies.find(b"\n") + 1 or None])
        # Is what came, reversed, all of the reply or its end?  40 bytes would not be so by chance.
        came, reply = bytes(self.last).rstrip(b"\r\n"), due.rstrip(b"\r\n")
        mirrored = reverse_lines(came)
        echo = reply.endswith(mirrored) and len(mirrored) >= min(len(reply), 40)
        kind = "an echo" if echo and mirrored != came else "not the reverse"
        return f"{kind} {place}, {_quote(due, at)} should have come"

    def error(self, what: str, kind: type[OSError] = ReplyError) -> OSError:
        """Return an error that says *what* is wrong; or the server's own, if it has sent one."""
        lines, came = self.lines, self.came
        if self.last.startswith(b"error: "):
            what = _printable(self.last[:200].partition(b"\n")[0].decode("utf-8", "replace"))
            kind, came = ReplyError, came - len(self.last)
            lines -= not self.unfinished()
        if kind is _WrongReplyError or (kind is TimeoutError and self.line and not came):
            return kind(what)  # which says it all
        if not self.line:
            return kind(f"{what}; lines answered: {lines}, bytes answered: {came}")
        only = f", only {_quote(self.last)} came" if came else ""
        return kind(f"{what}; bytes left unanswered: {max(len(self.line) - came, 1)}{only}")


class _Compared(_Owed):
    """The same where each reply has to be the reverse of its line, byte by byte."""

    def _expect(self, lines: bytes) -> None:
        super()._expect(lines)
        self.replies += reverse_lines(lines)

    def _match(self, data: bytes) -> int:
        due, right = self.replies[: len(data)], len(data)
        if data != due:
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(data, due))
            right = sum(1 for _ in same)
        del self.replies[:right]
        return right


def _quote(data: bytes | bytearray, at: int = 0) -> str:
    """Return what stands there in *data*, and some bytes before it, as one can show them."""
    shown = bytes(data[max(at - 8, 0) :])
    return repr(shown[:60])[1:] + "..." * (len(shown) > 60)


def _no_reply(connection: _Connection, owed: _Owed, within: str = "") -> str:
    """Say so, and how much of the lines has reached the other end's system, if ours tells."""
    text = f"no {'end of the ' if owed.unfinished() else ''}reply{within}"
    left = _unacknowledged(connection.socket)
    if left is None:
        return text
    left += len(connection.unsent)
    size = len(owed.line) or owed.sent - owed.came
    share = "all" if not left else "some of" if left < size else "none of"
    what = _quantity(size, "byte") if owed.line else "the unanswered bytes"
    return f"{text}; {share} {what} acknowledged"


class _Feed:
    """What *source* has, read on a thread of its own.

    So one can wait for it and for the server at the same time, whatever kind of file it is.
    """

    def __init__(self, source: BinaryIO) -> None:
        # Not to wait for a full block, where possible:
        self._read = source.read1 if hasattr(source, "read1") else source.read
        self._failure: BaseException | None = None
        self._far_end, self.socket = socket.socketpair()
        self._far_end.settimeout(None)  # whatever socket.setdefaulttimeout() says
        threading.Thread(target=self._copy, daemon=True).start()  # a read may never end

    def _copy(self) -> None:
        with self._far_end:
            try:
                while data := self._read(_BLOCK):
                    self._far_end.sendall(data)
                if data is None:
                    self._failure = BlockingIOError(errno.EAGAIN, "the source has no input now")
            except BaseException as error:
                self._failure = error

    def receive(self) -> bytes:
        """Return what was read, b"" at the end; raise what the source has raised instead."""
        data = self.socket.recv(_BLOCK)
        if not data and self._failure:
            raise self._failure
        return data

    def close(self) -> None:
        self.socket.close()


def _exchange(
    connection: _Connection,
    owed: _Owed,
    write: Callable[[bytes], Any],
    feed: _Feed | None = None,
) -> None:
    """Send the one line, or what *feed* has, and *write* what comes, until nothing is owed.

    The time limit is for the whole reply to the one line; else for each wait for more.
    """
    if owed.line:
        connection.give(owed.line)
    late_at = time.monotonic() + connection.timeout
    while (due := owed.due()) or feed:
        wanted: dict[Any, int] = {connection.socket: _READ | _WRITE * bool(connection.unsent)}
        if feed and not connection.unsent and owed.owed_bytes - owed.came < _LARGE:
            wanted[feed.socket] = _READ
        # While nothing is expected of the server, the feed may take its time.
        left = max(0, late_at - time.monotonic()) if due or connection.unsent else None
        ready = _ready(wanted, 0 if connection.more else left)
        in_vain = not (ready or connection.more)
        if feed and feed.socket in ready:
            feed = feed if _pass_on(feed, connection, owed) else None
        elif connection.unsent:
            connection.send()
        readable = connection.more or ready.get(connection.socket, 0) & _READ
        came = connection.receive() if readable else None
        owed.ended = came == b""
        if came:
            write(came)
            owed.take(came)
        elif owed.ended and (owed.due() or feed):
            ended = "the connection ended" + " before the input did" * (not owed.due())
            raise owed.error(connection.broken or ended)
        if in_vain or (left == 0 and (not came or (owed.line and owed.due()))):
            within = f" within {connection.timeout:g} s"
            raise owed.error(_no_reply(connection, owed, within), TimeoutError)
        if not owed.line and (came or not due):
            late_at = time.monotonic() + connection.timeout


def _pass_on(feed: _Feed, connection: _Connection, owed: _Owed) -> bool:
    """Pass on what *feed* has; tell whether it had not ended."""
    data = feed.receive()
    unfinished = owed.add(data)
    if data:
        connection.give(data)
    elif unfinished:  # else not: many relays take the end of one side for the end of both
        connection.end()
    return bool(data)


def _write(sink: BinaryIO, data: bytes) -> None:
    """Write all of *data*: a raw file may take a part of it."""
    while data:
        count = sink.write(data)
        if count is None and isinstance(sink, io.RawIOBase):
            raise BlockingIOError(errno.EAGAIN, "the sink takes no output now")
        data = b"" if count is None else data[count:]
    sink.flush()


def _line_of(text: str) -> bytes:
    line = text.encode("utf-8", "surrogateescape") + b"\n"
    if b"\n" in line[:-1]:
        raise ValueError("a line ending within the text")
    if line.endswith(b"\r\n"):
        raise ValueError("a CR at the end would become part of the line's ending")
    return line


def _talk(
    connection: _Connection,
    owed: _Owed,
    write: Callable[[bytes], Any],
    source: BinaryIO | None = None,
) -> None:
    """Open the connection, exchange what is owed, and close it."""
    with contextlib.closing(connection):
        connection.open()
        feeding = contextlib.nullcontext() if source is None else contextlib.closing(_Feed(source))
        with feeding as feed:
            _exchange(connection, owed, write, feed)


def _ask(connection: _Connection, text: str, compare: bool = False) -> str:
    """Send *text* as a line over a connection, opened and closed here; return the reply."""
    line, reply = _line_of(text), bytearray()
    owed = _Compared(line) if compare else _Owed(line)
    _talk(connection, owed, reply.extend)
    if reply.find(b"\n") + 1 < len(reply):
        raise ReplyError(f"more than one line came: {_quote(reply)}")
    if reply.startswith(b"error: ") and reply != reverse_lines(line):
        raise owed.error("")
    return reply[:-1].decode("utf-8", "surrogateescape")


def request(
    text: str, host: str = HOST, port: int = PORT, timeout: float = 10.0,
    *, ssl_context: ssl.SSLContext | None = None,
) -> str:
    """Send *text* as one line and return the reply to it, through TLS if there is a context.

    *timeout* is in seconds, for connecting and then for the whole reply.

    Raises ValueError if *text* holds a line ending; ReplyError if the reply is an error, missing,
    more than one line (where they come at once), or one of more than 64 MiB that is also longer
    than *text*; and OSError if the connection fails or takes too long.

    >>> with running_server() as server:
    ...     request("raw", *server.server_address[:2])
    'war'
    """
    return _ask(_Connection(host, port, timeout, ssl_context), text)


def stream(
    source: BinaryIO, sink: BinaryIO, host: str = HOST, port: int = PORT, timeout: float = 10.0,
    *, ssl_context: ssl.SSLContext | None = None,
) -> int:
    r"""Send all of *source* and write the replies to *sink*, both at the same time.

    Both are binary files that block.  TLS is used if there is a context.  Returns how many bytes
    went there and came back.  *timeout* is in seconds, for connecting and for each wait for a reply
    that is owed; *source* may take its time.

    *source* is read on a thread of its own, which may be waiting for input still when all else has
    failed.  So pass ``open(0, "rb", 0, closefd=False)`` for standard input: Python aborts a program
    that ends during a read of ``sys.stdin.buffer``.

    Raises ReplyError if the server does not answer every byte, OSError if the connection fails or
    takes too long, and whatever *source* and *sink* raise.

    >>> with running_server() as server:
    ...     sink = io.BytesIO()
    ...     stream(io.BytesIO(b"live\nstar\n"), sink, *server.server_address[:2])
    ...     sink.getvalue()
    10
    b'evil\nrats\n'
    """
    owed = _Owed()
    write = functools.partial(_write, sink)
    _talk(_Connection(host, port, timeout, ssl_context), owed, write, source)
    return owed.came


# ---- The command line ----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command line *argv*, or sys.argv, and return the exit status.

    0 done; 1 the connection failed or ended early, or what came was wrong; 130 interrupted, but
    for ping, which sums up then.
    Raises SystemExit with 2 for wrong usage, as argparse does.
    """
    if sys.stderr is None:  # it is closed, and without it print() takes standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    args, unknown = _parser().parse_known_args(argv)
    if unknown:  # argparse itself would show how to use revecho, not the command
        args.error(f"unrecognized arguments: {' '.join(unknown)}")
    serves, files = args.run is _run_server, (args.tls_cert, args.tls_key, args.tls_ca)
    for option, needs_it in ("--tls-key", args.tls_key), ("--tls-ca", serves and args.tls_ca):
        if needs_it and not args.tls_cert:
            args.error(f"{option} needs a --tls-cert")
    try:
        _require(sys.stdout, "standard output")
        if args.tls or any(files):
            args.ssl_context = _tls_context(serves, *files)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except (OSError, UnicodeError, ImportError) as error:  # what cannot be printed; no TLS
        if isinstance(error, BrokenPipeError) and not serves:
            return 0  # whoever read standard output has had enough
        _complain(args, error)
        return 1


def _require(file: Any, name: str) -> None:
    if file is None:
        raise OSError(f"{name} is closed")


def _complain(args: argparse.Namespace, error: Exception) -> None:
    address = _address((args.host, args.port))
    try:
        print(f"revecho: {address}: {_reason(error)}", file=sys.stderr, flush=True)
    except OSError:
        _forget(sys.stderr)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revecho", description="Answer every line with its reverse, over TCP."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    server = commands.add_parser("server", help="answer lines until Ctrl-C")
    client = commands.add_parser("client", help="send lines, print the replies")
    ping = commands.add_parser("ping", help="see whether lines come back reversed, and how fast")
    for command, run in (server, _run_server), (client, _run_client), (ping, _run_ping):
        command.set_defaults(run=run, error=command.error, tls=False, ssl_context=None)
        command.add_argument("--host", type=_host, default=HOST,
                             help="address or name (default: %(default)s)")
    timeout = float, _BOUNDS["timeout"], 10.0, "SECONDS"
    for command, names, kind, bounds, default, unit, what in (
        (server, "--port", int, (0, 65535), PORT, "PORT", "0: any free one"),
        (server, "--max-connections", int, _BOUNDS["max_connections"], MAX_CONNECTIONS, "N",
         "connections at a time; others wait"),
        (server, "--max-line", int, _BOUNDS["max_line"], MAX_LINE, "BYTES", "length of a line"),
        (server, "--idle-timeout", float, _BOUNDS["idle_timeout"], IDLE_TIMEOUT, "SECONDS",
         "time with no line answered; 0: for ever"),
        (server, "--grace", float, _BOUNDS["grace"], GRACE, "SECONDS",
         "time to finish in when stopped"),
        (client, "--port", int, _BOUNDS["port"], PORT, "PORT", ""),
        (client, "-W --timeout", *timeout, "for connecting, and for each wait for a reply"),
        (ping, "--port", int, _BOUNDS["port"], PORT, "PORT", ""),
        (ping, "-W --timeout", *timeout, "for connecting, and for each reply"),
        (ping, "-c --count", int, (1, 10**9), None, "N", "lines to send; without it until Ctrl-C"),
        (ping, "-i --interval", float, (0, _LONGEST_WAIT), 1.0, "SECONDS", "from line to line"),
        (ping, "-s --size", int, (2, 1 << 30), 64, "BYTES", "length of a line without its ending"),
    ):
        shown = " (default: %(default)g)" if default is not None else ""
        command.add_argument(*names.split(), type=_number(kind, *bounds), default=default,
                             metavar=unit, help=what + shown)

    option = server.add_argument
    option("--reuse-port", action="store_true", help="share the port with other processes")
    loudness = server.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", dest="level", action="store_const",
                          const=logging.WARNING, default=logging.INFO, help="log only warnings")
    loudness.add_argument("-v", "--verbose", dest="level", action="store_const",
                          const=logging.DEBUG, help="log more")

    for command, ours in (server, "of the server"), (client, "to show"), (ping, "to show"):
        option = command.add_argument_group("TLS").add_argument
        if command is not server:
            option("--tls", action="store_true", help="implied by each of the following")
        for name, what in (
            ("--tls-cert", f"certificate {ours}"),
            ("--tls-key", "its key, if not in the same file"),
            ("--tls-ca", "authority of the other's certificate"),
        ):
            option(name, type=_file, metavar="FILE", help=what)
    for command in client, ping:
        versions = command.add_mutually_exclusive_group()
        for version, family in ("4", socket.AF_INET), ("6", socket.AF_INET6):
            versions.add_argument(f"-{version}", dest="family", action="store_const", const=family,
                                  default=0, help=f"use IPv{version} only")
    option = client.add_argument
    option("--check", action="store_true", help="end at a reply that is not the reverse")
    option("--ask", action="store_true", help="ask whether to send again")
    option("message", metavar="MESSAGE", nargs="*",
           help="a line to send; without any, standard input is sent")
    option = ping.add_argument
    option("-q", "--quiet", action="store_true", help="print nothing but the summary")
    option("--keep", action="store_true", help="send all lines over one connection")
    option("target", metavar="HOST[:PORT]", nargs="?", type=_target, help="as --host and --port")
    return parser


def _target(text: str) -> tuple[str, Any]:
    """Return the host and, if there is one, the port of HOST[:PORT]."""
    if not (found := re.fullmatch(r"(\[.*\]|[^:]+):([^:]*)", text)):
        return text.strip("[]"), None
    return found[1].strip("[]"), _number(int, *_BOUNDS["port"])(found[2])


def _host(text: str) -> str:
    host, port = _target(text)
    if port:
        raise argparse.ArgumentTypeError(f"{text!r} has a port in it, which --port takes")
    return host


def _file(name: str) -> str:
    if not name:  # of a variable that is not set, say: that shall not mean no TLS
        raise argparse.ArgumentTypeError("the name of the file is empty")
    return name


def _number(kind: type[float], least: float, most: float) -> Callable[[str], float]:
    """Return a type for an option of argparse: a number within bounds."""

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            number = kind(text)
            if least <= number <= most:
                return number
        what = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} from {least} to {most}")

    return convert


@contextlib.contextmanager
def _handling(handler: Any, *numbers: int) -> Iterator[None]:
    """Handle signals within the block; on another than the main thread nobody can do that."""
    before = {}
    try:
        with contextlib.suppress(ValueError):
            for number in numbers:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before or signal.SIG_DFL)


# ---- The command line: server --------------------------------------------------------------------


def _run_server(args: argparse.Namespace) -> int:
    if args.reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        args.error("--reuse-port is not supported on this system")
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()  # safe in a signal's handler, unlike Event

    def stop(*_: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, kill)
        ended.put(None)

    def kill(number: int, _: Any) -> None:  # Python complains if it is SIG_DFL when both have come
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        os._exit(128 + number)  # process 1 of a container does not die of it

    logging.basicConfig(level=args.level, format="%(asctime)s %(levelname)s %(message)s")

    class Server(ReverseServer):
        def server_bind(self) -> None:
            if args.reuse_port:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            super().server_bind()

        def serve_forever(self, *arguments: Any) -> None:
            try:
                super().serve_forever(*arguments)
            finally:
                ended.put(None)  # if nobody has stopped it, the listening socket is broken

    signals = _handling(stop, signal.SIGINT, signal.SIGTERM)
    with signals, _on_one_processor() as where, running_server(
        (args.host, args.port),
        server_class=Server,
        max_connections=args.max_connections,
        max_line=args.max_line,
        idle_timeout=args.idle_timeout,
        grace=args.grace,
        ssl_context=args.ssl_context,
    ) as server:
        address = _address(server.server_address)
        log.info("listening on %s%s", address, where)
        with _writing():
            print("listening on", address, flush=True)
        while True:
            with contextlib.suppress(queue.Empty):
                ended.get(timeout=1)  # Windows lets no Ctrl-C through in a wait without an end
                break
        log.info("stopping")
    log.info("stopped")
    return 0


@contextlib.contextmanager
def _on_one_processor() -> Iterator[str]:
    """Stay on a processor that no other server has taken; yield words for the log that tell which.

    Only on Linux, and where Python has its lock: threads that take turns with it, on several
    processors, spend most of their time on handing it over.
    """
    where, has_lock = "", getattr(sys, "_is_gil_enabled", lambda: True)()
    can = has_lock and hasattr(os, "sched_getaffinity")  # PyPy on Linux can not
    allowed = os.sched_getaffinity(0) if can else set()
    with contextlib.ExitStack() as until_the_end:
        if allowed:
            with contextlib.suppress(OSError):  # where the system forbids it
                name = until_the_end.enter_context(socket.socket(socket.AF_UNIX))
                # In a random order: the servers in other containers do not see these names.
                order = random.sample(sorted(allowed), len(allowed))
                for turn, processor in itertools.product(range(100), order):
                    with contextlib.suppress(OSError):  # another process has this name
                        name.bind(f"\0revecho/{processor}/{turn}")
                        break
                os.sched_setaffinity(0, {processor})
                until_the_end.callback(os.sched_setaffinity, 0, allowed)
                where = f", on processor {processor} alone"
        yield where


# ---- The command line: client --------------------------------------------------------------------


def _connection(args: argparse.Namespace) -> _Connection:
    return _Connection(args.host, args.port, args.timeout, args.ssl_context, args.family)


def _run_client(args: argparse.Namespace) -> int:
    if args.ask and not args.message:
        args.error("--ask needs a MESSAGE")
    try:
        for text in args.message:
            _line_of(text)
    except ValueError as error:
        args.error(f"argument MESSAGE: {text!r}: {error}")
    for file in (sys.stdin, sys.stdout):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="surrogateescape")
    if args.message:
        _send_messages(args)
    elif sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
        _prompt(args)
    else:
        _filter(args)
    return 0


def _send_messages(args: argparse.Namespace) -> None:
    answers = _typed("Do you want to continue (y/n)? ") if args.ask else ()
    for answer in itertools.chain(["yes"], answers):
        if answer.strip().lower() in ("n", "no"):
            break
        if answer.strip().lower() in ("y", "yes"):
            for text in args.message:
                _show(_ask(_connection(args), text, args.check))


def _filter(args: argparse.Namespace) -> None:
    _require(sys.stdin, "standard input")
    owed = _Compared() if args.check else _Owed()
    with _Input(0, closefd=False) as source, open(1, "wb", 0, closefd=False) as sink:

        def write(data: bytes) -> None:
            with _writing():
                _write(sink, data)

        with _progress(owed):
            _talk(_connection(args), owed, write, source)


class _Input(io.FileIO):
    """Lets an error of standard input not pass for one of the connection."""

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            data = super().read(size)
        except OSError as error:
            error.strerror = f"standard input: {error.strerror}"
            raise
        if data is None:
            raise BlockingIOError(errno.EAGAIN, "standard input has nothing now")
        return data


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Let an error of standard output not pass for one of the connection; then print no more."""
    try:
        yield
    except OSError as error:
        error.strerror = f"standard output: {error.strerror}"
        _forget(sys.stdout)
        raise


def _forget(file: Any) -> None:
    """Drop what a standard stream cannot write: at exit Python would try again, and complain."""
    with contextlib.suppress(OSError, AttributeError), open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), file.fileno())


def _prompt(args: argparse.Namespace) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() line editing
    with contextlib.closing(_connection(args)) as connection:
        connection.open()  # if nobody listens, say so before anything is typed
    for line in _typed("> "):
        try:
            reply = _ask(_connection(args), line, args.check)
        except (OSError, ValueError) as error:
            if args.check and isinstance(error, _WrongReplyError):
                raise
            _complain(args, error)
            continue
        _show(reply)


def _show(text: str) -> None:
    with _writing():
        print(text, flush=True)


@contextlib.contextmanager
def _progress(owed: _Owed) -> Iterator[None]:
    """Show each second how much has come back, and how fast, where that disturbs nobody."""
    done, width = threading.Event(), 40

    def show() -> None:
        before, text = 0, ""
        with contextlib.suppress(OSError):
            while not done.wait(1):
                came = owed.came
                text = f"{came / 1e6:,.1f} MB, {(came - before) / 1e6:,.1f} MB/s"
                print(f"\r{text:{width}}", end="", file=sys.stderr, flush=True)
                before = came
            print(f"\r{'':{width}}\r" if text else "", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show)
    try:
        if sys.stderr.isatty() and not sys.stdout.isatty() and not sys.stdin.isatty():
            thread.start()
        yield
    finally:
        done.set()
        if thread.ident:
            thread.join()


def _typed(prompt: str) -> Iterator[str]:
    """Yield the lines that a person types, until Ctrl-D."""
    shown_in = sys.stdout if sys.stdout.isatty() else sys.stderr
    if sys.stdin is None:  # closed
        sys.stdin = io.StringIO()
    with contextlib.suppress(EOFError):
        while True:
            with contextlib.redirect_stdout(shown_in):
                try:
                    line = input(prompt)
                except (EOFError, KeyboardInterrupt):
                    print()  # leaves the prompt's line
                    raise
            yield line


# ---- The command line: ping ----------------------------------------------------------------------


def _run_ping(args: argparse.Namespace) -> int:
    if args.target:
        args.host, args.port = args.target[0], args.target[1] or args.port
    probes, due_at = _Probes(args), time.monotonic()
    interrupting = _handling(signal.default_int_handler, signal.SIGTERM)
    with contextlib.suppress(BrokenPipeError), interrupting:  # nobody may read all of the output
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(probes):
            while not probes.waiting and probes.sent() != args.count:
                time.sleep(max(0, due_at - time.monotonic()))
                due_at = time.monotonic() + args.interval
                probes.send()
        probes.sum_up()
    return 0 if probes.good() and not probes.failed else 1


class _Probes:
    """The lines that a ping sends, and what came of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.connection = args, _connection(args)
        self.target = _address((args.host, args.port))
        self.failed = self.waiting = self.sent_again = 0
        self.times: dict[str, list[float]] = {}  # milliseconds of each step, where all went well

    def close(self) -> None:
        self.connection.close()

    def good(self) -> int:
        return len(self.times.get("reply", ()))

    def sent(self) -> int:
        return self.good() + self.failed + self.waiting

    def send(self) -> None:
        """Send a line, and print what comes of it."""
        args, connection = self.args, self.connection
        owed, started = _Compared(_random_line(args.size)), time.perf_counter()
        sent_again = 0 if connection.undone else _sent_again(connection.socket)
        try:
            if connection.undone:
                connection.open()
            asked = time.perf_counter()
            _exchange(connection, owed, lambda _: None)
            connection.times["reply"] = time.perf_counter() - asked
        except (OSError, KeyboardInterrupt) as error:
            after = f"after {(time.perf_counter() - started) * 1000:.2f} ms"
            if isinstance(error, OSError):
                self.failed += 1
                outcome = f"failed {after}: {_reason(error)}"
            else:
                self.waiting += 1
                outcome = f"waiting {after}: {connection.undone or _no_reply(connection, owed)}"
        else:
            for name, seconds in connection.times.items():
                self.times.setdefault(name, []).append(seconds * 1000)
            times = (f"{name}={self.times[name][-1]:.2f} ms" for name in connection.times)
            outcome = f"{args.size} bytes reversed, {' '.join(times)}"
        again = 0 if connection.undone else _sent_again(connection.socket) - sent_again
        self.sent_again += again
        if again:
            outcome += f", segments sent again: {again}"
        if (failed := "; ".join(connection.failed)) not in outcome:
            outcome += f", after {failed}"
        if not args.quiet:
            address = self.target if connection.undone else connection.address
            _show(f"{address}: seq={self.sent()} {outcome}")
        if args.keep and "reply" in connection.times:
            connection.times.clear()
            connection.failed.clear()
        else:
            connection.close()
            self.connection = _connection(args)

    def sum_up(self) -> None:
        share = f"({100 * self.failed / max(self.sent(), 1):.3g}%)"
        text = f"{self.sent()} sent, {self.good()} reversed, {self.failed} failed {share}"
        text += f", {self.waiting} waiting" if self.waiting else ""
        text += f", segments sent again: {self.sent_again}" if self.sent_again else ""
        text = f"\n--- {self.target} ---\n{text}"
        for name, times in self.times.items():
            times.sort()
            least, most = times[0], times[-1]
            median, high = (times[(len(times) * share - 1) // 100] for share in (50, 95))
            figures = "/".join(f"{figure:.2f}" for figure in (least, median, high, most))
            text += f"\n{name} min/median/95%/max = {figures} ms"
        _show(text)


def _random_line(size: int) -> bytes:
    """Return a line of ASCII and of bytes that are no part of any UTF-8, so each is a character.

    From a size of 26 on it has all of those.  A path that is not clean for eight bits does not
    bring them back.
    """
    others = bytes([0xC0, 0xC1, *range(0xF5, 0x100)])
    table = 2 * (bytes({*range(128)} - {*b"\r\n"}) + others)
    line = b""
    while line == line[::-1]:  # else an echo would pass
        line = others[: size // 2]
        line += os.urandom(size - len(line)).translate(table[:256])
    return line + b"\n"


# ---- Appendix ------------------------------------------------------------------------------------

# Grapheme clusters for Python before 3.15.  When none of those is in use, delete it.

# The break classes of UAX #29, a letter for each: a small one for those that join others, a capital
# for those that stand alone unless one of them is beside.  The general category tells most of them:
# e Extend, s SpacingMark, C Control; all others are O, Other.
_BY_CATEGORY = {
    "Mn": "e", "Me": "e", "Mc": "s", "Cc": "C", "Cf": "C", "Cs": "C", "Zl": "C", "Zp": "C"
}
# What it does not tell, from the files of Unicode 17.0.  Extend of the category Mc is left out: it
# differs from SpacingMark only between the parts of a conjunct or of an emoji.
_BY_CODE_POINT = {
    # GraphemeBreakProperty.txt: p Prepend, c CR, F LF, w ZWNJ (Extend that ends a conjunct), z ZWJ,
    # r Regional_Indicator, s SpacingMark, e Extend, l v t H Hangul, O what is Other though Mc
    "p": "0600-0605 06DD 070F 0890-0891 08E2 0D4E 110BD 110CD 111C2-111C3 113D1 1193F 11941 "
         "11A84-11A89 11D46 11F02",
    "c": "000D", "F": "000A", "w": "200C", "z": "200D", "r": "1F1E6-1F1FF", "s": "0E33 0EB3",
    "e": "FF9E-FF9F 1F3FB-1F3FF E0020-E007F", "l": "1100-115F A960-A97C",
    "v": "1160-11A7 D7B0-D7C6 16D63 16D67-16D6A", "t": "11A8-11FF D7CB-D7FB", "H": "AC00-D7A3",
    "O": "102B-102C 1038 1062-1064 1067-106D 1083 1087-108C 108F 109A-109C 1A61 1A63-1A64 AA7B "
         "AA7D 11720-11721",
    # DerivedCoreProperties.txt: n Linker, K Consonant, with what is unassigned in between
    "n": "094D 09CD 0ACD 0B4D 0C4D 0D4D 1039 17D2 1A60 1B44 1BAB A9C0 AAF6 10A3F 11133 113D0 1193E "
         "11A47 11A99 11F42",
    "K": "0915-0939 0958-095F 0978-097F 0995-09B9 09DC-09DF 09F0-09F1 0A95-0AB9 0AF9 0B15-0B39 "
         "0B5C-0B5F 0B71 0C15-0C39 0C58-0C5A 0D15-0D3A 1000-102A 103F 1050-1055 105A-105D 1061 "
         "1065-1066 106E-1070 1075-1081 108E 1780-17B3 1A20-1A54 1B0B-1B0C 1B13-1B33 1B45-1B4C "
         "1B83-1BA0 1BAE-1BAF 1BBB-1BBD A989-A98B A98F-A9B2 A9E0-A9E4 A9E7-A9EF A9FA-A9FE "
         "AA60-AA6F AA71-AA73 AA7A AA7E-AA7F AAE0-AAEA ABC0-ABDA 10A00 10A10-10A35 11103-11126 "
         "11144 11147 11380-113B5 11900-1192F 11A00 11A0B-11A32 11A50 11A5C-11A83 11F04-11F33",
    # emoji-data.txt: X Extended_Pictographic, with symbols in between that nobody joins to others
    "X": "00A9 00AE 203C 2049 2122 2139 2194-21AA 231A-23FA 24C2 25AA-26FD 2702-27BF 2934-2935 "
         "2B05-2B55 3030 303D 3297 3299 1F004-1F1E5 1F201-1F3FA 1F400-1FFFD",
}
_RANGES = [
    (range(int(first, 16), int(last or first, 16) + 1), letter)
    for letter, ranges in _BY_CODE_POINT.items()
    for first, last in re.findall(r"(\w+)-?(\w*)", ranges)
]


class _BreakClasses(dict[int, str]):
    """The letters of the characters met so far, for str.translate().

    Threads share it: the worst that one can do to another is to make it look up a character again.
    """

    def __missing__(self, code: int) -> str:
        by_category = _BY_CATEGORY.get(unicodedata.category(chr(code)), "O")
        letter = next((letter for codes, letter in _RANGES if code in codes), by_category)
        if letter == "H":  # the number of its jamo, 2 or 3, tells LV from LVT
            letter = str(len(unicodedata.normalize("NFD", chr(code))))
        if len(self) >= 1 << 14:  # a peer can send every character that there is
            self.clear()
        self[code] = letter
        return letter


_break_classes = _BreakClasses()
# A grapheme cluster in those letters: table 1c of UAX #29.
_CLUSTER = re.compile(
    r"""
    [CFKOX]+ (?! [enswz] )                     # or a run of those that stand alone, for speed
    | c F | [CFc]                              # GB3, GB4, GB5
    | p* (?:                                   # GB9b
        l* (?: v+ | 2 v* | 3 ) t* | l+ | t+    # GB6, GB7, GB8
        | r r                                  # GB12, GB13
        | X (?: [enw]* z X )*                  # GB11
        | K (?: [ez]* n [enz]* K )*            # GB9c
        | [^CFc]
      ) [enswz]*                               # GB9, GB9a
    """,
    re.VERBOSE,
)


def _iter_graphemes(text: str) -> Iterator[str]:
    """Yield the grapheme clusters of *text*; a surrogate is one of its own."""
    start = 0
    for letters in _CLUSTER.findall(text.translate(_break_classes)):
        end = start + len(letters)
        if letters.isupper():  # each stands alone
            yield from text[start:end]
        else:
            yield text[start:end]
        start = end


if __name__ == "__main__":
    sys.exit(main())
