# SPDX-License-Identifier: 0BSD
"""revecho: a threaded TCP server that answers every line with its reverse, and a client for it.

One file, standard library only; copy it wherever you need it.  Run it:

    python3 revecho.py server                  # listens on 127.0.0.1:2002 until Ctrl-C
    python3 revecho.py client hello            # prints olleh
    python3 revecho.py client < a_file         # prints it with every line reversed
    python3 revecho.py ping                    # whether lines come back reversed, and how fast

Embed it; here the client runs in the same program:

    >>> with running_server() as server:
    ...     host, port = server.server_address[:2]
    ...     request("hello", host, port)
    'olleh'

Extend it: subclass the handler and override one method.

    >>> class ShoutingHandler(LineHandler):
    ...     def answer(self, line):
    ...         return line.upper()
    >>> with running_server(RequestHandlerClass=ShoutingHandler) as server:
    ...     request("hello", *server.server_address[:2])
    'HELLO'

The parts of this file, each built on those above it (except for the appendix):

    Reversing          reverse_text(), reverse_lines(): bytes in, bytes out
    Lines              splitting bytes into lines, and ending a connection from a handler
    Sockets            addresses, waiting, TLS, and what the system knows of a connection
    Worker threads     each serves one connection after another
    One connection     LineHandler, ReverseHandler: serving a connection, on a thread of its own
    All connections    ReverseServer: the open connections, accepting, limits, stopping
    The client         request(), stream(): whole lines there, as many lines back
    The command line   main(): server, client, ping
    Appendix           grapheme clusters for Python before 3.15

The server runs three kinds of threads.  One accepts, in serve_forever(): it waits for room, then
for a client or stop_signal.  A worker serves each connection; no other thread receives or sends on
it.  While the handler runs, a worker waits only in LineHandler._wait(): for its peer or stop_signal
when it receives, for its peer when it sends.  The thread that calls server_close() tells the others
to stop, accepts the clients still in the listen queue, waits for all connections to end, and cuts
those that are left when the grace period is over.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import functools
import io
import itertools
import json
import logging
import math
import operator
import os
import queue
import random
import re
import select
import signal
import socket
import socketserver
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, NamedTuple, TypeVar, overload

with contextlib.suppress(ImportError):  # Windows has neither
    import fcntl
    import termios
if TYPE_CHECKING:  # imported only where used: it takes time, and not every Python has it
    import ssl

__all__ = ["HOST", "PORT", "CloseConnection", "LineHandler", "ProtocolError", "ReplyError"]
__all__ += ["ReverseHandler", "ReverseServer", "main", "request", "reverse_lines", "reverse_text"]
__all__ += ["running_server", "stream"]
__version__ = "1.0"

HOST = "127.0.0.1"
PORT = 2002
MAX_CONNECTIONS = 1000
MAX_LINE = 65536  # bytes, not counting the ending
IDLE_TIMEOUT = 60.0  # seconds
GRACE = 5.0  # seconds

_LONGEST_WAIT = 1_000_000  # seconds; a socket cannot wait much longer
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
_Server = TypeVar("_Server", bound="ReverseServer")
_Write = Callable[[bytes], Any]


def _limit(name: str, value: Any) -> Any:
    least, most = _BOUNDS[name]
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}")
    return value


def _quantity(number: float, unit: str) -> str:
    """Return, say, 1 byte or 60 seconds."""
    return f"{number:.15g} {unit}{'s' * (number != 1)}"


def _printable(text: str) -> str:
    """Return *text* with escapes for control characters and for bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _date(seconds: float, utc: bool = False) -> str:
    """Format seconds since the epoch as a local date and time, or in UTC as ISO 8601."""
    date = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc if utc else None)
    return date.isoformat("T" if utc else " ", "milliseconds")


def _quote(data: bytes | bytearray, at: int = 0) -> str:
    """Return a printable excerpt of *data* that begins a few bytes before index *at*.

    A long excerpt also shows the end of *data*: in a reply, the start of the line comes last.
    """
    shown = bytes(data[max(at - 8, 0) :])
    parts = [shown] if len(shown) <= 20 else [shown[:12], shown[-8:]]
    return "...".join(repr(part)[1:] for part in parts)


def _changed_byte(came: bytes, right: bytes, at: int) -> str:
    """Return what became of the byte at which the two differ first, if that is clear."""
    if right.isascii() or not came.endswith(b"\n"):  # for text, the excerpt says enough
        return ""
    if len(came) == len(right) and 3 * sum(map(operator.eq, came, right)) >= len(right):
        return f"0x{right[at]:02x} came back as 0x{came[at]:02x}: "
    for number, what in (right[at], "is missing"), (came[at], "came twice"):
        byte = bytes([number])
        if came.replace(byte, b"") == right.replace(byte, b""):
            return f"0x{number:02x} {what}: "
    return ""


# ---- Reversing -----------------------------------------------------------------------------------

# Text without any of these is reversed code point by code point: most Latin, Greek, Cyrillic, Han,
# kana and Hangul.  The class is coarse: searching for one with several ranges above U+FFFF would
# take 200 times as long.
_JOINING = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0590-\u1dff\u200c\u200d\u20d0-\u20ff\u2c00-\u2dff\u302a-\u302f"
    "\u3099\u309a\ua640-\uabff\ud7b0-\ud7ff\ufb1e-\ufe2f\uff9e\uff9f\U00010000-\U0010ffff]"
)
# So is text whose UTF-8 has only these bytes: most Latin, Greek and Cyrillic.  Checking for that
# takes a tenth of the time.  (CC and CD begin the combining accents.)
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
        # A surrogate stands for a byte that is not UTF-8, and never joins another character.
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
    if 13 in lines and b"\r\n" in lines:  # searching for one byte, as a number, is far faster
        return b"\r\n".join(map(reverse_lines, lines.split(b"\r\n")))
    # Reversing a block and then the order of its lines costs less than reversing line by line.
    if lines.isascii():
        backwards = lines[::-1]
    else:
        text = lines.decode("utf-8", "surrogateescape")
        text = reverse_text(text) if lines.translate(None, _ALONE) else text[::-1]
        backwards = text.encode("utf-8", "surrogateescape")
    if lines.find(b"\n") + 1 == len(lines) > 0:  # a single line: half the time if it is long
        return backwards[1:] + b"\n"
    reversed_lines = backwards.split(b"\n")
    reversed_lines.reverse()
    return b"\n".join(reversed_lines)


_CONTINUING = bytes(range(0x80, 0xC0))
_NOT_CONTINUING = bytes({*range(256)} - {*_CONTINUING})


def _random_line(size: int) -> bytes:
    """Return a line of *size* bytes plus its ending, which reverse_lines() reverses byte by byte.

    From 255 bytes up, it holds every byte but LF, to expose a path that loses or changes one.
    """
    values = random.sample([*range(10), *range(11, 256)], min(size, 255))
    data = bytes(values) + os.urandom(size - len(values)).replace(b"\n", b"x")
    # UTF-8 continuation bytes come before the bytes that begin a character.  So each byte counts
    # as one character, whatever its neighbours and the version of Unicode.
    line = data.translate(None, _NOT_CONTINUING) + data.translate(None, _CONTINUING)
    if line.endswith(b"\r"):  # it would belong to the ending
        line = b"\r" + line[:-1]
    return line + b"\n"


# ---- Lines ---------------------------------------------------------------------------------------


class CloseConnection(Exception):  # noqa: N818  it asks for an end, and need not be an error
    r"""Raise this in a handler, for example in answer(), to end the connection cleanly.

    *reply*, bytes that have not been sent yet, is sent first.  *why* is for the log.

    >>> class Polite(LineHandler):
    ...     def answer(self, line):
    ...         if line == b"quit\n":
    ...             raise CloseConnection(b"bye\n")
    ...         return line.upper()
    >>> with running_server(RequestHandlerClass=Polite) as server:
    ...     request("quit", *server.server_address[:2])
    'bye'
    """

    def __init__(self, reply: bytes = b"", why: str = "the handler ended it") -> None:
        super().__init__(why)
        self.reply, self.why = reply, why


class ProtocolError(CloseConnection):
    """Raise this to end the connection and tell the peer why: ``error: `` and *message* come last.

    *message* is one line of text.  *reply*, the answers to earlier lines, is sent before it.
    """

    def __init__(self, message: str, reply: bytes = b"") -> None:
        error = f"error: {message}\n".encode("utf-8", "surrogateescape")
        super().__init__(reply + error, message)


class _Lines:
    """Splits incoming data into lines of at most *max_line* bytes."""

    def __init__(self, max_line: int = sys.maxsize) -> None:
        self.max_line = max_line
        self.unfinished = bytearray()  # the start of an incomplete line

    def add(self, data: bytes) -> bytes:
        """Add *data*, at most max_line bytes; return the lines that it completes."""
        if not self.unfinished and data.endswith(b"\n"):
            return data
        end = data.rfind(b"\n") + 1
        if len(self.unfinished) + len(data) > self.max_line:  # only the first can be too long
            first = data[: data.find(b"\n")] if end else data
            cr = (first or self.unfinished).endswith(b"\r")  # part of the ending, or may become so
            self._check_length(len(self.unfinished) + len(first) - cr)
        whole = bytes(self.unfinished) + data[:end] if end else b""
        if end:
            self.unfinished.clear()
        self.unfinished += data[end:]
        return whole

    def last(self) -> bytes:
        """Return the last line, which has no ending, if there is one."""
        self._check_length(len(self.unfinished))
        return bytes(self.unfinished)

    def _check_length(self, length: int) -> None:
        if length > self.max_line:
            raise ProtocolError(f"line longer than {_quantity(self.max_line, 'byte')}")


def _error_among(replies: bytes, lines: bytes, first: int) -> bytes:
    """Return the end of *replies*, starting with the server's own error, or nothing.

    *replies* answer *lines* from index *first* on.  A reply that begins with ``error: `` is not an
    error if it is the reverse of its line.
    """
    at = len(replies)
    pairs = zip(io.BytesIO(replies), itertools.islice(io.BytesIO(lines), first, None))
    for reply, line in reversed([*pairs] if b"error: " in replies else []):
        at -= len(reply)
        if reply.startswith(b"error: ") and reply != reverse_lines(line):
            return replies[at:]
    return b""


def _line_of(text: str) -> bytes:
    line = text.encode("utf-8", "surrogateescape") + b"\n"
    if b"\n" in line[:-1]:
        raise ValueError("a line ending within the text")
    if line.endswith(b"\r\n"):
        raise ValueError("a CR at the end would become part of the line's ending")
    return line


# ---- Sockets -------------------------------------------------------------------------------------


def _resolve(host: str, port: int) -> tuple[int, Any]:
    """Return the address family and the address to bind; an empty *host* means any address."""
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
        if len(address) == 4 and address[3]:  # the zone of a link-local address
            host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return address if isinstance(address, str) else repr(address)


def _set_options(connection: socket.socket) -> None:
    """Send without delay, and detect a peer that has vanished; neither is essential."""
    with contextlib.suppress(OSError):  # a Unix socket has no TCP_NODELAY
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the peer may have closed it first
        socket.socket.shutdown(connection, how)  # SSLSocket.shutdown() would drop the TLS layer


def _close(connection: socket.socket) -> None:
    # close() leaves it open while a file made from it is open; a traceback may keep one alive.
    descriptor = connection.detach()
    if descriptor >= 0:
        socket.close(descriptor)


# Where there is no poll(), as on Windows, its two flags only have to differ.
_READ, _WRITE = getattr(select, "POLLIN", 1), getattr(select, "POLLOUT", 4)
# On Windows Ctrl-C cannot interrupt a wait, so there the main thread waits in slices.
_SLICE = 0.5 if os.name == "nt" else _LONGEST_WAIT  # seconds
_MOMENT = 0.05  # seconds between checks for acknowledgements, which raise no event


class _SelectPoll:
    """The part of select.poll() that is used here, for systems that have none."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, connection: Any, events: int) -> None:
        if connection.fileno() < 0:
            raise ValueError("the socket is closed")
        self._wanted[connection.fileno()] = events

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        readers = [number for number, events in self._wanted.items() if events & _READ]
        writers = [number for number, events in self._wanted.items() if events & _WRITE]
        end = math.inf if milliseconds is None else time.monotonic() + milliseconds / 1000
        while True:
            left = max(0, min(end - time.monotonic(), _SLICE))
            readable, *writable = select.select(readers, writers, writers, left)
            ready = dict.fromkeys(readable, _READ)
            for number in itertools.chain(*writable):  # a failed connect is in the second of them
                ready[number] = ready.get(number, 0) | _WRITE
            if ready or time.monotonic() >= end:
                return list(ready.items())


def _poll_of(wanted: dict[Any, int]) -> Any:
    """Return a poll object for the *wanted* events; raise ValueError if a socket is closed."""
    poll = getattr(select, "poll", _SelectPoll)()
    for connection, events in wanted.items():
        poll.register(connection, events)
    return poll


def _ready(wanted: dict[Any, int], seconds: float | None) -> dict[Any, int]:
    """Wait for any of the *wanted* events; return the sockets that are ready, and for what."""
    poll = _poll_of(wanted)
    sockets = {connection.fileno(): connection for connection in wanted}
    ready = poll.poll(None if seconds is None else seconds * 1000)
    both = _READ | _WRITE  # a broken socket is ready for both: the next call on it raises
    return {sockets[number]: events & both or both for number, events in ready}


def _awaited(error: OSError, event: int) -> int:
    """Return what to wait for before another try, or 0 if *error* is a real failure."""
    # By name, as ssl is imported only where it is used.
    events = {"BlockingIOError": event, "SSLWantReadError": _READ, "SSLWantWriteError": _WRITE}
    return events.get(type(error).__name__, 0)


def _unacknowledged(connection: socket.socket, not_sent: bool = False) -> int | None:
    """Return how many bytes the peer has yet to acknowledge, if the system can tell.

    With *not_sent*, return how many of them are still unsent (only Linux can tell).
    """
    with contextlib.suppress(NameError, OSError, ValueError):  # no fcntl, or it is closed
        if sys.platform != "win32" and connection.family != socket.AF_UNIX:  # counts differently
            request = 0x894B if not_sent else termios.TIOCOUTQ  # SIOCOUTQNSD
            return int.from_bytes(fcntl.ioctl(connection, request, bytes(4)), sys.byteorder)
    return None


def _acknowledged(connection: socket.socket, size: int, unsent: int) -> str:
    """Say how much of *size* bytes has reached the peer's system, if ours can tell.

    Our system has taken all of them but the last *unsent* ones.
    """
    if (left := _unacknowledged(connection)) is None:
        return ""
    if (_unacknowledged(connection, not_sent=True) or 0) + unsent >= size:
        return "; nothing could be sent"  # the other end leaves no room
    share = "none of" if left + unsent >= size else "some of" if left + unsent else "all"
    return f"; {share} {_quantity(size, 'byte')} acknowledged"


def _sent_again(connection: socket.socket) -> int | None:
    """Return how many segments had to be sent again, if the system can tell."""
    with contextlib.suppress(AttributeError, OSError):
        if sys.platform == "linux":
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return int.from_bytes(info[100:], sys.byteorder)  # tcp_info.tcpi_total_retrans
    return None


_ICMP = {
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 9): "network prohibited",
    (3, 10): "host prohibited",
    (3, 13): "administratively prohibited",
    (11, 0): "time to live exceeded",
}


def _icmp(connection: socket.socket) -> str:
    """Say which ICMP message ended an attempt to connect, and who sent it (Linux, IPv4 only).

    The IP_RECVERR option would reveal more, but with it, such a message ends even a connection that
    could have survived.
    """
    with contextlib.suppress(OSError):  # there was none
        if sys.platform == "linux":
            # Python has no names for MSG_ERRQUEUE (0x2000) and IP_RECVERR (11).  They give a
            # 16-byte struct sock_extended_err, with origin (2 is ICMP), type and code from byte 4
            # on, and then the sender's address.
            for level, kind, data in connection.recvmsg(0, 512, 0x2000)[1]:
                if (level, kind, data[4]) == (socket.IPPROTO_IP, 11, 2):
                    what = _ICMP.get((data[5], data[6]), f"type {data[5]} code {data[6]}")
                    return f" (ICMP {what} from {socket.inet_ntoa(data[20:24])})"
    return ""


def _connect_to(connection: socket.socket, address: Any, seconds: float, source: Any) -> None:
    """Connect to *address*, from *source* if there is one; leave the socket non-blocking."""
    _set_options(connection)
    connection.setblocking(False)
    if source:
        connection.bind(source)
    code = connection.connect_ex(address)
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        if not _ready({connection: _WRITE}, max(0, seconds)):
            raise TimeoutError(f"no answer within {round(seconds, 2 - (seconds > 1)):g} s")
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if not code and connection.getsockname()[:2] == address[:2]:
        code = errno.ECONNREFUSED  # nobody listens; by chance, TCP has connected to itself
    if code:
        words = getattr(socket, "errorTab", {}).get(code)  # Windows has messages only here
        raise OSError(code, (words or os.strerror(code)).rstrip(".") + _icmp(connection))


def _tls_context(
    server_side: bool, cert: str | None, key: str | None, ca: str | None
) -> ssl.SSLContext:
    """Return a context that uses these files, except those that are None.

    Without *ca*, a client trusts the authorities that the system trusts, and a server asks for no
    certificate.  Raises an OSError that names the command-line option and the faulty file, or
    ImportError if Python has no TLS.
    """
    import ssl

    purpose = ssl.Purpose.CLIENT_AUTH if server_side else ssl.Purpose.SERVER_AUTH
    try:
        for option, file in ("--tls-cert", cert), ("--tls-key", key), ("--tls-ca", ca):
            options = f"{option} {file}"
            if file:
                open(file, "rb").close()  # ssl would not say which one is missing
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


def _any_tls() -> ssl.SSLContext:
    """Return a context for a client that only finds out whether a server speaks TLS."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _server_context(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return *context*; raise OSError if it is for clients, as no handshake would succeed.

    A connection that ends without a close_notify must not end a line; in Python 3.9 it would.
    """
    import ssl

    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        raise OSError("ssl_context is for clients (PROTOCOL_TLS_CLIENT)")
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 1 << 7)
    return context


def _with_tls(connection: socket.socket, context: ssl.SSLContext) -> socket.socket:
    """Return a socket that speaks TLS over this one; the handshake happens on first use."""
    try:
        with connection:  # closes it, unless wrap_socket() has taken it over
            connection.getpeername()  # raises after a reset, where wrap_socket() would leak
            return context.wrap_socket(
                connection,
                server_side=True,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,  # an end without a close_notify must not end a line
            )
    except OSError as error:
        raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error


def _say_farewell(connection: Any, seconds: float) -> None:
    """Send a TLS close_notify, if there is room for it in time; do not wait for the peer's."""
    connection.setblocking(False)
    event = _WRITE
    while event == _WRITE and _ready({connection: _WRITE}, seconds):
        event = 0
        try:
            connection.unwrap()
        except OSError as error:
            event = _awaited(error, _READ)


def _in_words(error: Exception) -> str:
    """Return in words why something failed, in TLS as well."""
    ends = "SSLEOFError", "SSLSyscallError", "SSLZeroReturnError"  # with a close_notify or without
    if type(error).__name__ in ends or "UNEXPECTED_EOF" in str(error):
        return "the connection ended"
    if words := getattr(error, "verify_message", ""):  # why a certificate was rejected
        return str(words)
    # ssl puts the error's name before the words, and a line number of its C source after them.
    words = str(getattr(error, "strerror", None) or error)
    words = re.sub(r"^\[[\w: ]+\] | \(_ssl\.c:\d+\)$", "", words)
    no_tls = words in ("wrong version number", "packet length too long", "record layer failure")
    return "what came is not TLS" if no_tls else words


def _how_it_ended(error: OSError) -> str:
    why = "the connection was reset" if isinstance(error, ConnectionError) else _in_words(error)
    return why if why.startswith("the connection") else f"the connection broke: {why}"


def _numbers(names: str) -> set[int | None]:
    return {getattr(errno, name) for name in names.split() if hasattr(errno, name)}


# These errors of accept() say that the system lacks something, or forbids accepting ...
_LACKING = _numbers("EMFILE ENFILE ENOBUFS ENOMEM EPERM")
# ... and these concern one connection, or none; so does an error without an errno.
_PASSING = {None} | _numbers(
    "EAGAIN EINTR ECONNABORTED ECONNRESET ENOTCONN EPROTO ENOPROTOOPT EOPNOTSUPP ENETDOWN "
    "ENETUNREACH EHOSTDOWN EHOSTUNREACH ENONET ETIMEDOUT"
)
# These errors of connect() are not the fault of the network path.
_LACKING_HERE = {*_LACKING, errno.EADDRNOTAVAIL}


# ---- Worker threads ------------------------------------------------------------------------------


_TIME_TO_END = 0.5  # seconds for a thread to end once its connection is cut; it may hang


def _join(thread: threading.Thread, deadline: float) -> None:
    """Wait for a thread to end, but not past *deadline*, a time.monotonic() value."""
    while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
        thread.join(min(left, _SLICE))


class _Workers:
    """Threads that each serve one connection after another.

    Starting a thread costs more than everything else that a short connection needs.  So a worker
    that has served a connection waits for another, but for no longer than a second.  The worker
    that has waited least is next, so that the others can end after a rush.
    """

    def __init__(self, serve: Callable[[Any, Any], None]) -> None:
        self._serve = serve
        self._next: queue.SimpleQueue[Any] | None = None  # the inbox of the reserved worker
        self._lock = threading.Lock()  # guards the rest
        self._idle: list[queue.SimpleQueue[Any]] = []  # inboxes of idle workers, in order
        self._ending = False
        self.threads: set[threading.Thread] = set()

    # On the thread that accepts

    def reserve(self) -> None:
        """Reserve a worker for the next connection; RuntimeError if no thread can be started."""
        with self._lock:
            if not self._next and self._idle:
                self._next = self._idle.pop()
        if not self._next:
            inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(inbox,), daemon=True)
            with self._lock:
                self.threads.add(thread)
            try:
                thread.start()
            finally:  # even if Ctrl-C interrupts it
                if thread.is_alive():
                    self._next = inbox
                else:
                    self._forget(thread)
            log.debug("%s started", thread.name)

    def give(self, request: Any, client_address: Any) -> None:
        """Let the reserved worker serve a connection."""
        assert self._next
        self._next.put((request, client_address))
        self._next = None

    def end(self, deadline: float) -> None:
        """End each worker once it has served its connection; wait for them until *deadline*."""
        with self._lock:
            self._ending = True
            for inbox in filter(None, [self._next, *self._idle]):
                inbox.put(None)
            self._next, threads = None, [*self.threads]
        for thread in threads:
            _join(thread, deadline)

    # On the worker's own thread, unless that could not start

    def _work(self, inbox: queue.SimpleQueue[Any]) -> None:
        try:
            connection = inbox.get()
            while connection:
                self._serve(*connection)
                del connection  # the next one may be long in coming
                connection = self._wait_for_another(inbox)
        finally:
            self._forget(threading.current_thread())

    def _wait_for_another(self, inbox: queue.SimpleQueue[Any]) -> Any:
        """Return the next connection, or None if the worker is to end."""
        with self._lock:
            if self._ending:
                return None
            self._idle.append(inbox)
        try:
            return inbox.get(timeout=1)
        except queue.Empty:
            with self._lock:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    return None
        return inbox.get()  # it has been reserved meanwhile

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self.threads.discard(thread)


# ---- One connection ------------------------------------------------------------------------------


class LineHandler(socketserver.StreamRequestHandler):
    r"""Serves one connection, line by line, on a thread of its own.

    Override answer(), or respond() to answer several lines at once, or handle() if there are no
    lines.  Limits and stopping work wherever receive() and send() are used:

        >>> class Greeting(ReverseHandler):
        ...     def handle(self):
        ...         self.send(b"hello\n")
        ...         super().handle()

    handle() may use request, rfile and wfile instead, but not mix them with receive() and send().
    With the former, only the peer can end a wait, or a stopped server after its grace period.
    """

    server: ReverseServer
    request: Any  # a socket.socket, or an ssl.SSLSocket
    rbufsize = 0  # handle() does not use rfile, so a buffer would waste memory
    _sent = 0  # bytes
    _why = ""  # why the connection ended, for the log; empty if the peer ended it
    _poll: Any = None  # waits for input or a stop; created when first needed

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        """Run the steps of socketserver: setup(), handle() and finish()."""
        began, peer = time.monotonic(), _address(client_address)
        self.request, self.client_address, self.server = request, client_address, server
        self._idle_timeout = server.idle_timeout or math.inf
        self._idle_at = began + self._idle_timeout  # from then on the peer is idle
        log.info("%s connected", peer)
        try:
            if self._run_step(self.setup):
                try:
                    self._run_step(self.handle)
                finally:
                    self._run_step(self.finish)
        except Exception:
            self._why = "the handler failed"
            raise
        finally:
            took, why = time.monotonic() - began, self._why and f": {_printable(self._why)}"
            log.info("%s gone after %.1f s, %d bytes sent%s", peer, took, self._sent, why)

    def _run_step(self, step: Callable[[], None]) -> bool:
        """Run a step; return true, or false if it raised CloseConnection."""
        try:
            step()
            return True
        except CloseConnection as end:
            self._why = self._why or end.why
            if end.reply:
                with contextlib.suppress(CloseConnection):  # why it ends is known
                    self.send(end.reply)
            return False

    def handle(self) -> None:
        """Answer line after line, until the peer ends its side."""
        lines = _Lines(self.server.max_line)
        try:
            while data := self.receive():
                if whole := lines.add(data):
                    self.send(self.respond(whole))
                del data, whole  # perhaps large, and more may be long in coming
        except CloseConnection as end:
            if end.why != "idle" or not lines.unfinished:
                raise
            limit = _quantity(self.server.idle_timeout, "second")
            raise ProtocolError(f"line not finished within {limit}") from None
        if last := lines.last():
            self.send(self.respond(last))

    def respond(self, lines: bytes) -> bytes:
        """Return the answer to *lines*: one or more whole lines, however many have come.

        Override this instead of answer() for speed.  Split only at LF, not with splitlines().
        """
        answers = bytearray()
        try:
            for line in io.BytesIO(lines):
                answers += self.answer(line)
        except CloseConnection as end:
            raise CloseConnection(bytes(answers) + end.reply, end.why) from end
        return bytes(answers)

    def answer(self, line: bytes) -> bytes:
        """Return the answer to *line*, which includes its ending; only the last may lack one.

        Raise CloseConnection to end the connection, or ProtocolError to tell the peer why as well.
        Any other exception is logged with its traceback, and ends the connection too.
        """
        raise NotImplementedError("override answer() or respond()")

    def receive(self) -> bytes:
        """Return what the peer sends next: some bytes, or none once it has ended its side.

        Raises CloseConnection if the connection broke, if the idle timeout has passed since the
        last send(), or if the server stops and nothing is left to receive.  Let it propagate.
        """
        if not self._poll:
            self._be_ready_to_wait()
        self._wait(_READ)
        while True:
            try:
                data: bytes = self.request.recv(self._most)
                break
            except OSError as error:
                self._wait_after(error, _READ)
        if time.monotonic() >= self.server.receive_deadline:  # the server itself may have cut it
            raise CloseConnection(why="stopping")
        return data

    def send(self, data: bytes) -> None:
        """Send all of *data*; the peer must take it within the idle timeout.

        Raises CloseConnection, as receive() does, if it does not, or if the connection broke.
        """
        if not self._poll:
            self._be_ready_to_wait()
        self._idle_at = time.monotonic() + self._idle_timeout  # the handler's time does not count
        unsent = memoryview(data)
        while unsent:
            count = 0
            try:
                count = self.request.send(unsent)
            except OSError as error:
                self._wait_after(error, _WRITE)
            self._sent += count
            unsent = unsent[count:]
        self._idle_at = time.monotonic() + self._idle_timeout

    def _be_ready_to_wait(self) -> None:
        """Make the socket non-blocking, so that from now on only _wait() blocks."""
        self._most = min(_BLOCK, self.server.max_line)  # bytes to receive at a time, for _Lines
        try:
            self.request.setblocking(False)
            # Kept, as creating one costs as much as using it.
            self._poll = _poll_of({self.request: _READ, self.server.stop_signal: _READ})
        except (OSError, ValueError) as error:  # one of them is closed
            raise CloseConnection(why=str(error)) from error

    def _wait_after(self, error: OSError, event: int) -> None:
        """Wait for *event*, or for what TLS needs first; raise if *error* is a real failure."""
        if awaited := _awaited(error, event):
            self._wait(awaited)
        else:
            cut = time.monotonic() >= self.server.deadline  # by the server
            raise CloseConnection(why="stopping" if cut else _in_words(error)) from error

    def _wait(self, event: int) -> None:
        """Wait until the peer has sent something (_READ), or has room for more (_WRITE).

        Checks the time before the socket: nothing that came in time is lost, however late this
        thread runs.  Raises CloseConnection if time was up and the socket is not ready: if the peer
        was idle for too long or, when receiving, if the server stops.
        """
        if event == _READ and self.server.ssl_context and self.request.pending():
            return  # poll() cannot see what TLS has buffered
        while (number := self.request.fileno()) >= 0:  # if it is closed, the next call on it raises
            left, over = self._idle_at - time.monotonic(), ""
            if event == _READ and self.server.stopping:
                over = "stopping"
            elif left <= 0:
                over = "idle"
            seconds = 0 if over else min(left, _LONGEST_WAIT)
            if event == _WRITE:
                ready = self.request in _ready({self.request: _WRITE}, seconds)
            else:
                found = self._poll.poll(seconds * 1000)
                ready = found and found[0][0] == number  # it was registered first
            if ready:
                return
            if over:
                if event == _WRITE:  # no need to deliver what the peer does not take
                    _shut(self.request, socket.SHUT_RDWR)
                raise CloseConnection(why=over)


class ReverseHandler(LineHandler):
    """Answers each line with its reverse."""

    def respond(self, lines: bytes) -> bytes:
        """Return the reverse of each line."""
        return reverse_lines(lines)


# ---- All connections -----------------------------------------------------------------------------


class ReverseServer(socketserver.ThreadingTCPServer):
    """Serves each connection on one thread, within limits.

    *server_address* is a host and a port; the host is an IPv4 or IPv6 address or a name.  Port 0
    means any free port; the server_address attribute tells which.  Call serve_forever() to serve.
    To stop, call server_close() on another thread, or leave the ``with`` block; after that, a
    server cannot serve again.  The process must not fork while it serves.

    max_connections  connections served at a time; the others wait in the listen queue
    max_line         bytes in a line, not counting its ending
    idle_timeout     seconds that a connection may stay open with no line answered; 0 means for ever
    grace            seconds for finishing what has been received when the server stops
    ssl_context      an ssl.SSLContext for all connections; None means no TLS

    These are also attributes.  So are connections, the set of open connections, and stop_signal, a
    socket that becomes readable when the server stops.  Raises OSError if it cannot listen,
    OverflowError if the port is out of range, and ValueError if a limit is.
    """

    server_address: tuple[str, int]  # and two more numbers for IPv6
    allow_reuse_address = os.name == "posix"  # elsewhere it would let another program take the port
    request_queue_size = 4096  # the kernel lowers it to its own limit
    drain_quiet, drain_time, drain_limit = 0.5, 5.0, 1 << 30  # seconds, seconds, bytes: _drain()
    stopping = False
    _poll: Any = None  # waits for a client or a stop; created when first needed
    # time.monotonic() values, set by a stop.  The time between is for sending and draining.
    receive_deadline = deadline = math.inf

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
        self.ssl_context = ssl_context and _server_context(ssl_context)
        self.connections: set[socket.socket] = set()
        # Guards connections and _acceptor.  It is notified when a connection is closed, when
        # nobody accepts any more, and when the server stops.
        self._changed = threading.Condition()
        self._acceptor: threading.Thread | None = None
        self._workers = _Workers(self.process_request_thread)
        self._crowded_at = -math.inf  # when accepting last had to wait
        if self.address_family in (socket.AF_INET, socket.AF_INET6):
            self.address_family, server_address = _resolve(*server_address[:2])
        super().__init__(server_address, RequestHandlerClass, bind_and_activate=False)
        try:
            if bind_and_activate:
                self.server_bind()
                self.server_activate()
            self.stop_signal, self._stopper = socket.socketpair()  # readable once _stopper is shut
        except BaseException:
            self.socket.close()
            raise

    def server_bind(self) -> None:
        """Bind the address, for this server alone."""
        if sys.platform == "win32":  # other systems do so by default
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        super().server_bind()

    # On the thread that accepts: in serve_forever(), then in server_close()

    def serve_forever(self, poll_interval: float = 0) -> None:  # noqa: ARG002  nothing is polled
        """Accept connections until server_close() is called; *poll_interval* is ignored.

        Raises OSError if the listening socket is broken.
        """
        with self._accepting():
            while not self.stopping:
                self._accept_next()

    def handle_request(self) -> None:
        """Raise NotImplementedError: call serve_forever()."""
        raise NotImplementedError("handle_request() is not supported; call serve_forever()")

    @contextlib.contextmanager
    def _accepting(self) -> Iterator[None]:
        """Become the only thread that accepts; do not wait forever for one that hangs at a stop."""
        this = threading.current_thread()
        try:
            with self._changed:
                self._wait_until(lambda: not self._acceptor, self.deadline + _TIME_TO_END)
                self._acceptor = this
            yield
        finally:
            with self._changed:
                if self._acceptor is this:
                    self._acceptor = None
                self._changed.notify_all()

    def _accept_next(self) -> bool:
        """Wait for room, then for a client, and hand it to a worker; return false if none came.

        During a stop, do not wait for clients, and wait for room only until receive_deadline.
        """
        why = f"the limit max_connections={self.max_connections} is reached"
        if not self._wait_for_room(self.max_connections - 1, why):
            return False
        if not self._poll:
            self.socket.setblocking(False)  # a client may be gone again before it is accepted
            self._poll = _poll_of({self.socket: _READ, self.stop_signal: _READ})
        if self._poll.poll()[0][0] != self.socket.fileno():  # it was registered first
            return False
        try:
            self._workers.reserve()  # first, so that whoever is accepted gets served
            request, client_address = self.get_request()
        except (OSError, RuntimeError, MemoryError) as error:
            # Python raises RuntimeError if the system cannot start a thread.
            number = error.errno if isinstance(error, OSError) else errno.ENOMEM
            if number in _LACKING:
                open_now = len(self.connections)
                self._wait_for_room(open_now - 1, str(error), 0.5)
                return open_now > 0  # with none open, waiting is no use at a stop
            if number in _PASSING:
                return True
            raise
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
                request = None  # a worker has it
        except Exception:
            self.handle_error(request, client_address)
        finally:
            if request:
                self.close_request(request)  # not drained: that would hold up waiting clients
        return True

    def _wait_for_room(self, most: int, why: str, seconds: float = math.inf) -> bool:
        """Wait until no more than *most* connections are open, or a stop begins."""
        if len(self.connections) <= most:
            return True
        before = self.stopping  # if this is true, receive_deadline has been set
        until = min(self.receive_deadline, time.monotonic() + seconds)
        if time.monotonic() > self._crowded_at + 1:  # once per rush
            log.warning("cannot accept, others wait: %s", why)
        self._wait_until(lambda: len(self.connections) <= most or self.stopping > before, until)
        self._crowded_at = time.monotonic()
        return len(self.connections) <= most

    def _wait_until(self, condition: Callable[[], bool], until: float) -> None:
        """Wait for *condition*, but not past *until*, a time.monotonic() value."""
        with self._changed:
            while not condition() and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, _SLICE))

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; the TLS handshake happens on its first receive or send."""
        connection, client_address = super().get_request()
        connection.settimeout(None)  # whatever the listener has, or socket.setdefaulttimeout() says
        _set_options(connection)
        if self.ssl_context:
            connection = _with_tls(connection, self.ssl_context)
        return connection, client_address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the connection, which now counts as open, to a worker; overrides must call this."""
        with self._changed:
            self.connections.add(request)
        self._workers.give(request, client_address)

    # On the connection's own thread: process_request_thread() of socketserver calls these

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log an exception that the handler or verify_request() raised."""
        log.exception("%s: exception while serving it", _address(client_address))  # noqa: LOG004

    def shutdown_request(self, request: Any) -> None:
        """Half-close the connection, drain what the peer still sends, and close it.

        Closing it with input unread, or before more comes, would reset it and destroy replies.
        """
        try:
            with contextlib.suppress(OSError, ValueError):  # it is broken, or the handler closed it
                if self.ssl_context:
                    _say_farewell(request, self.drain_time)
                _shut(request, socket.SHUT_WR)
                self._drain(request)
        finally:
            self.close_request(request)

    def _drain(self, request: socket.socket) -> None:
        """Read and discard input until the peer ends, or is quiet and has acknowledged all."""
        heard_at = now = time.monotonic()
        end, left = now + self.drain_time, self.drain_limit
        while left > 0 and now < min(end, self.deadline):
            quiet = self.stopping or now >= heard_at + self.drain_quiet
            if quiet and not _unacknowledged(request):
                break
            if _ready({request: _READ}, _MOMENT):
                if not (data := socket.socket.recv(request, _BLOCK)):  # below TLS
                    break
                heard_at, left = time.monotonic(), left - len(data)
            now = time.monotonic()

    def close_request(self, request: Any) -> None:
        """Close the connection, and make room for another; overrides must call this."""
        with self._changed:  # else server_close() could cut a connection that reuses the descriptor
            self.connections.discard(request)
            _close(request)
            self._changed.notify_all()

    # On the thread that closes the server

    def shutdown(self) -> None:
        """Do what server_close() does."""
        self.server_close()

    def server_close(self) -> None:
        """Stop: answer every line received, as far as the grace period allows; close everything.

        Takes at most half a second longer.  May be called again, and by several threads.  On a
        thread that it would wait for, such as a handler's, it only tells all to stop, and returns.
        """
        self._tell_all_to_stop(self.grace)
        this = threading.current_thread()
        if this is self._acceptor or this in self._workers.threads:
            return
        try:
            with self._accepting(), contextlib.suppress(OSError, ValueError):  # it does not listen
                for _ in range(self.request_queue_size + 1):  # as many as can wait
                    if time.monotonic() >= self.receive_deadline or not self._accept_next():
                        break
            super().server_close()  # newcomers are refused from now on
            self._wait_until(lambda: not self.connections, self.deadline)
        finally:
            self._tell_all_to_stop(0)
            with self._accepting(), self._changed:  # so none is added any more
                super().server_close()  # again, if an exception has come before
                for connection in self.connections:
                    _shut(connection, socket.SHUT_RDWR)
            self._workers.end(self.deadline + _TIME_TO_END)
            self.stop_signal.close()
            self._stopper.close()

    def _tell_all_to_stop(self, grace: float) -> None:
        with self._changed:
            self.deadline = min(self.deadline, time.monotonic() + grace)
            self.receive_deadline = min(self.receive_deadline, self.deadline - 0.1 * grace)
            self.stopping = True
            _shut(self._stopper, socket.SHUT_RDWR)
            self._changed.notify_all()


@overload
def running_server(
    server_address: tuple[str, int] = ...,
    RequestHandlerClass: Callable[..., socketserver.BaseRequestHandler] = ...,
    *,
    max_connections: int = ...,
    max_line: int = ...,
    idle_timeout: float = ...,
    grace: float = ...,
    ssl_context: ssl.SSLContext | None = ...,
) -> contextlib.AbstractContextManager[ReverseServer]: ...


@overload
def running_server(
    server_address: tuple[str, int] = ...,
    RequestHandlerClass: Callable[..., socketserver.BaseRequestHandler] = ...,
    *,
    server_class: type[_Server],
    max_connections: int = ...,
    max_line: int = ...,
    idle_timeout: float = ...,
    grace: float = ...,
    ssl_context: ssl.SSLContext | None = ...,
) -> contextlib.AbstractContextManager[_Server]: ...


@contextlib.contextmanager
def running_server(
    server_address: tuple[str, int] = (HOST, 0),
    RequestHandlerClass: Callable[..., socketserver.BaseRequestHandler] = ReverseHandler,
    *,
    server_class: type[Any] = ReverseServer,
    max_connections: int = MAX_CONNECTIONS,
    max_line: int = MAX_LINE,
    idle_timeout: float = IDLE_TIMEOUT,
    grace: float = GRACE,
    ssl_context: ssl.SSLContext | None = None,
) -> Iterator[Any]:
    """Serve on a separate thread for as long as the ``with`` block lasts.

    Takes what ReverseServer takes, and a subclass of it as *server_class*; yields the server.
    Raises what ReverseServer raises and, at the end, whatever made serve_forever() fail.

    >>> with running_server(max_line=100) as server:
    ...     request("stressed", *server.server_address[:2])
    'desserts'
    """
    if isinstance(server_address, type):
        raise TypeError(f"say RequestHandlerClass={server_address.__name__}: the address is first")
    errors: list[BaseException] = []

    def accept() -> None:
        try:
            server.serve_forever()
        except BaseException as error:
            errors.append(error)

    with server_class(
        server_address, RequestHandlerClass,
        max_connections=max_connections, max_line=max_line, idle_timeout=idle_timeout,
        grace=grace, ssl_context=ssl_context,
    ) as server:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield server
        finally:
            server.server_close()
            _join(accepting, server.deadline + _TIME_TO_END)
    for error in errors:
        raise error


# ---- The client ----------------------------------------------------------------------------------

# The client counts one reply for each line.  So it need not half-close to know that it has all.

_LONGEST_LINE = 1 << 26  # bytes in a line of a stream, or in a reply unless its line is longer
_CHUNK = 1 << 20  # bytes of a stream that are read at a time


class _ClientError(OSError):
    """An error of some *kind*, with a fixed *reason*, and *details* that differ each time."""

    def __init__(self, reason: str, details: str = "", kind: str = "wrong-reply") -> None:
        super().__init__(reason + details)
        self.reason, self.details, self.kind = reason, details, kind


class ReplyError(_ClientError, ConnectionError):
    """The connection ended before the reply was complete, or what came is not the reply."""


class _LateReplyError(_ClientError, TimeoutError):
    """The reply, or part of it, did not come in time."""


class _Connection:
    """A connection to a server; *timeout* limits all of open(), and then each reply."""

    def __init__(
        self, host: str, port: int, timeout: float, ssl_context: Any = None,
        server_hostname: str | None = None, family: int = 0, source: Any = None,
    ) -> None:
        self.host, self.family, self.source = host, family, source
        self.port, self.timeout = _limit("port", port), _limit("timeout", timeout)
        self.ssl_context, self.server_hostname = ssl_context, server_hostname
        self.undone = "not resolved"  # the step that is not done yet; empty when all are
        self.times: dict[str, float] = {}  # seconds that each step took
        self.address = ""  # the one that is tried, or used
        self.failed: list[str] = []  # those tried before it, and why they failed
        self.socket: Any = None  # until there is an address to try
        self.unsent = memoryview(b"")  # what the socket has not taken yet
        self._to_send = 0  # what to wait for before it can take more
        self.unsendable = ""  # why it cannot take any more, if so
        self.ended = ""  # how the connection has ended, if it has
        self.lines = self.bytes = 0  # answered so far
        self.last = b"", b"", 0  # the last replies, the lines sent, index of the first answered
        self.received_at = 0.0  # when data last came

    def open(self) -> None:
        """Look up the host, connect, shake hands; raise an OSError that says which step failed."""
        deadline, self._began = time.monotonic() + self.timeout, time.perf_counter()
        try:
            found = self._look_up(deadline)
            if found[0][4][0] != self.host:  # else there was nothing to look up
                self._done("lookup")
            self.undone = "not connected"
            self._connect(found, deadline)
            self._done("connect")
            if self.ssl_context:
                self.undone = "no TLS handshake"
                self._shake_hands(deadline)
                self._done("tls")
        except (OSError, ValueError, RuntimeError) as error:  # an impossible name; no more threads
            why = f"{self.undone}: {_in_words(error)}"
            if isinstance(error, OSError) and error.errno:
                error.strerror = why
                raise
            raise (TimeoutError if isinstance(error, TimeoutError) else OSError)(why) from error
        self.undone = ""

    def _done(self, step: str) -> None:
        now = time.perf_counter()
        self.times[step], self._began = now - self._began, now

    def _look_up(self, deadline: float) -> list[Any]:
        arguments = self.host, self.port, self.family, socket.SOCK_STREAM
        with contextlib.suppress(socket.gaierror):  # raised if the host is a name
            return socket.getaddrinfo(*arguments, flags=socket.AI_NUMERICHOST)
        found: list[Any] = []
        failure: OSError = TimeoutError(f"no answer within {self.timeout:g} s")

        def look_up() -> None:
            nonlocal failure
            try:
                found.extend(socket.getaddrinfo(*arguments))
            except OSError as error:
                failure = error

        # getaddrinfo() heeds neither a time limit nor Ctrl-C, so it may have to be left to itself.
        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        _join(thread, deadline)
        if not found:
            raise failure
        return found

    def _connect(self, found: list[Any], deadline: float) -> None:
        """Try the addresses in turn, each for an even share of the time that is left."""
        failure: Any = None  # the last one; preferably one of the network path
        for number, (family, kind, protocol, _, address) in enumerate(found):
            seconds = (deadline - time.monotonic()) / (len(found) - number)
            self.address, self._began = _address(address), time.perf_counter()
            try:
                self.socket = socket.socket(family, kind, protocol)
                _connect_to(self.socket, address, seconds, self.source)
                return
            except OSError as error:
                lacking = error.errno in _LACKING_HERE
                failure = failure if failure and lacking else error
                why = "this end lacks something: " * lacking + _in_words(error)
                named = "" if address[0] == self.host else f"{self.address}: "
                self.failed.append(named + why)
            self.close()
        failure.strerror = "; ".join(self.failed)
        raise failure

    def _shake_hands(self, deadline: float) -> None:
        # Names in certificates have neither an IPv6 zone nor a trailing dot.
        name = self.server_hostname or self.host.partition("%")[0].rstrip(".")
        self.socket = self.ssl_context.wrap_socket(
            self.socket, server_hostname=name, do_handshake_on_connect=False
        )
        while True:
            try:
                self.socket.do_handshake()
                return
            except OSError as error:
                if not (event := _awaited(error, _READ)):
                    raise
            if not _ready({self.socket: event}, max(0, deadline - time.monotonic())):
                raise TimeoutError(f"no answer within {self.timeout:g} s")

    def send(self) -> None:
        """Send as much of what is unsent as the socket takes now."""
        self._to_send = 0
        try:
            while self.unsent and not (self.unsendable or self.ended):
                # In blocks, as TLS does not tell how much of a block it has sent.
                self.unsent = self.unsent[self.socket.send(self.unsent[:_BLOCK]) :]
        except OSError as error:
            self._to_send = _awaited(error, _WRITE)
            if not self._to_send:
                self.unsendable = _how_it_ended(error)

    def receive(self, until: float) -> bytes:
        """Return what has come, and send what the socket takes.

        If nothing has come, wait until something does or more can be sent; then return nothing.
        """
        data = b""
        try:
            while not self.ended and len(data) < _BLOCK:
                some = self.socket.recv(_BLOCK)
                data += some
                self.received_at = time.monotonic()
                if not some:  # perhaps only send() reported a reset
                    self.ended = self.unsendable or "the connection ended"
                if not self.ssl_context:  # TLS gives 16 KiB at most: go on
                    break
        except OSError as error:
            if not (to_receive := _awaited(error, _READ)):
                self.ended = _how_it_ended(error)
            elif not data and (left := until - time.monotonic()) > 0:
                _ready({self.socket: to_receive | self._to_send}, left)
        self.send()
        return data

    def count(self, replies: bytes, lines: bytes, first: int) -> int:
        """Count *replies*, whole lines that answer *lines* from index *first* on."""
        self.last, count = (replies, lines, first), replies.count(b"\n")
        self.lines, self.bytes = self.lines + count, self.bytes + len(replies)
        return count

    def expect_nothing(self, until: float = 0) -> None:
        """Raise an error if data that nobody asked for has come, or comes before *until*."""
        while True:
            if data := self.receive(until):
                raise _error_in(self, data)
            if self.ended or time.monotonic() >= until:
                return

    def close(self) -> None:
        if self.ssl_context and not self.undone:
            _say_farewell(self.socket, 0)  # if there is room for it
        if self.socket:
            self.socket.close()


def _exchange(connection: _Connection, lines: bytes, write: _Write, compare: bool = False) -> None:
    """Send whole *lines*; *write* the replies as they come, until there is one for each line.

    Each reply must come within connection.timeout seconds of the one before.  With *compare*, stop
    at the first byte that differs from the reverse of *lines*.
    """
    connection.expect_nothing()
    connection.unsent = memoryview(lines)
    connection.send()
    expected = reverse_lines(lines) if compare else b""  # only now, so that both ends work at once
    owed = total = lines.count(b"\n")  # replies that have not come
    done = 0  # bytes of those that have
    equal = True  # so far
    replies, error = _Lines(), None
    late_at = time.monotonic() + connection.timeout
    while owed or connection.unsent:
        data = connection.receive(late_at)  # which sends, too
        at = done + len(replies.unfinished)  # where *data* belongs in *expected*
        equal = equal and (not compare or expected.startswith(data, at))
        whole, begun = replies.add(data), replies.unfinished
        if not equal:
            whole, begun, error = _compare(connection, whole + begun, expected[done:], lines[done:])
        if whole.count(b"\n") > owed:
            surplus = b"\n".join(whole.split(b"\n")[owed:])
            whole, begun = whole[: -len(surplus)], bytearray(surplus) + begun
        if whole:
            write(whole)
            owed -= connection.count(whole, lines, total - owed)
            done += len(whole)
            late_at = time.monotonic() + connection.timeout
        elif (connection.ended and not data) or time.monotonic() >= late_at:
            raise _missing(connection, begun, owed, at + len(data), len(lines))
        elif len(begun) > max(len(lines), _LONGEST_LINE):
            raise ReplyError("a reply without end", f": {_quote(begun)} came")
        if begun and not owed:
            raise _error_in(connection, begun)
        if error:
            raise error
    connection.expect_nothing()


def _compare(
    connection: _Connection, text: bytes, expected: bytes, lines: bytes
) -> tuple[bytes, bytearray, ReplyError | None]:
    """Return the lines of *text* that are as *expected*, the rest, and the error in the rest.

    The error is None as long as the rest may yet become the server's own error message.
    """
    pairs = enumerate(zip(text, expected))
    at = next((at for at, (came, right) in pairs if came != right), min(len(text), len(expected)))
    begin = text.rfind(b"\n", 0, at) + 1
    came, reply, line = (
        each[begin : each.find(b"\n", begin) + 1 or None] for each in (text, expected, lines)
    )
    error: ReplyError | None = None
    if came.startswith(b"error: "):
        error = _error_in(connection, came) if came.endswith(b"\n") else None
    elif came.endswith(b"\n") or not b"error: ".startswith(came):
        echo = line.startswith(came) and len(came) >= min(len(line), 20)  # less may be chance
        column = at - begin
        change = "" if echo else _changed_byte(came, reply, column)
        place = f" at byte {connection.bytes + at + 1}"
        if connection.lines or line != lines:
            place += ", line " + str(connection.lines + text.count(b"\n", 0, at) + 1)
        shown = f"{change}{_quote(came, column)} came"
        if column or reply.isascii():  # else none of it came, and random bytes say nothing
            shown += f", {_quote(reply, column)} should have come"
        error = ReplyError("an echo" if echo else "not the reverse", f"{place}: {shown}")
    return text[:begin], bytearray(text[begin:]), error


def _missing(
    connection: _Connection, begun: bytes | bytearray, owed: int = 0, came: int = 0, size: int = 0
) -> OSError:
    """Return an error that says why only *came* bytes came; *begun* is an incomplete line."""
    if connection.ended or not owed:
        if begun.startswith(b"error: "):
            return _error_in(connection, begun)
        if own := _error_among(*connection.last):
            connection.lines -= own.count(b"\n")  # an error is no answer
            connection.bytes -= len(own)
            return _error_in(connection, own)
    part = ""
    if begun:
        ago = time.monotonic() - connection.received_at
        part = f"; {came} of {size} bytes came, the last {ago:.1f} s ago: {_quote(begun)}"
    if connection.ended:
        kind = "reset" if "reset" in connection.ended else "ended"
        return ReplyError(connection.ended, part, kind)
    # If no reply is owed, the server has answered before it had everything.
    what = "no end of the reply" if begun else "no reply" if owed else "not all was sent"
    what += f" within {connection.timeout:g} s"
    what += _acknowledged(connection.socket, size, len(connection.unsent))
    return _LateReplyError(what, part, "partial-reply" if begun else "no-reply")


def _error_in(connection: _Connection, data: bytes | bytearray) -> ReplyError:
    """Return an error for *data*, which is not a reply: the server's own, if it begins like one."""
    if data.startswith(b"error: "):
        words = data[:200].partition(b"\n")[0].rstrip(b"\r").decode("utf-8", "replace")
        return ReplyError("error", _printable(words)[5:], "server-error")
    if data == connection.last[0]:
        return ReplyError("the reply came twice", kind="unasked")
    return ReplyError("more came than was asked for", f": {_quote(data)}", "unasked")


def _ask(connection: _Connection, text: str, compare: bool = False) -> str:
    """Send *text* as a line over an open connection, and return the reply."""
    line, replies = _line_of(text), [b""]
    _exchange(connection, line, replies.append, compare)
    reply = b"".join(replies)
    if reply.startswith(b"error: ") and reply != reverse_lines(line):
        raise _error_in(connection, reply)
    return reply[:-1].decode("utf-8", "surrogateescape")


def request(
    text: str, host: str = HOST, port: int = PORT, timeout: float = 10.0,
    *, ssl_context: ssl.SSLContext | None = None, server_hostname: str | None = None,
) -> str:
    """Send *text* as one line and return the reply to it.

    *timeout* is in seconds, for connecting, including the look-up, and then for the whole reply.
    *ssl_context* turns on TLS; the certificate must match *server_hostname*, or *host* by default.

    Raises ValueError if *text* holds a line ending; ReplyError if the reply is missing, an error
    (begins with ``error: `` and is not the reverse), more than one line, or longer than both *text*
    and 64 MiB; and OSError if the connection fails or takes too long.

    >>> with running_server() as server:
    ...     request("raw", *server.server_address[:2])
    'war'
    """
    connection = _Connection(host, port, timeout, ssl_context, server_hostname)
    with contextlib.closing(connection):
        connection.open()
        return _ask(connection, text)


def stream(
    source: BinaryIO, sink: BinaryIO, host: str = HOST, port: int = PORT, timeout: float = 10.0,
    *, ssl_context: ssl.SSLContext | None = None, server_hostname: str | None = None,
) -> int:
    r"""Send the lines of *source*, write the replies to *sink*, and return their size in bytes.

    Both are blocking binary files; *source* may be slow.  If the last line has no ending,
    one is added, and removed from the reply.  The other arguments are those of request().

    Raises ReplyError if the server does not answer each line with one; OSError if the connection
    fails or takes too long, or a line is longer than 64 MiB; and what *source* and *sink* raise.
    Once connected, every OSError says how much was answered before it.

    >>> with running_server() as server:
    ...     sink = io.BytesIO()
    ...     stream(io.BytesIO(b"live\nstar\n"), sink, *server.server_address[:2])
    ...     sink.getvalue()
    10
    b'evil\nrats\n'
    """
    read = source.read1 if hasattr(source, "read1") else source.read  # what there is, if possible
    connection = _Connection(host, port, timeout, ssl_context, server_hostname)
    return _pass_through(connection, read, functools.partial(_write, sink))


def _pass_through(
    connection: _Connection, read: Callable[[int], Any], write: _Write, compare: bool = False
) -> int:
    """Send what *read* returns, as it comes, and *write* the replies; return their length."""
    ended = True
    with contextlib.closing(connection):
        connection.open()
        try:
            for lines, ended in _whole_lines(read):
                write_reply = write if ended else lambda reply: write(reply[:-1])
                _exchange(connection, lines, write_reply, compare)
            if _error_among(*connection.last).count(b"\n") == 1:  # an answer, unless it ends now
                connection.expect_nothing(time.monotonic() + 1)
                if connection.ended:
                    raise _missing(connection, b"")
        except OSError as error:
            counts = f"; lines answered: {connection.lines}, bytes answered: {connection.bytes}"
            if error.strerror:
                error.strerror += counts
            else:
                error.args = (f"{error}{counts}",)
            raise
    return connection.bytes - (not ended)  # the ending that was added


def _whole_lines(read: Callable[[int], Any]) -> Iterator[tuple[bytes, bool]]:
    """Yield what *read* returns, in whole lines, and whether the last of them had its ending."""
    lines = _Lines()
    while data := read(_CHUNK):
        if whole := lines.add(data):
            yield whole, True
        elif len(lines.unfinished) > _LONGEST_LINE:
            raise OSError(f"a line is longer than {_LONGEST_LINE} bytes")
    if data is None:
        raise BlockingIOError(errno.EAGAIN, "the input is non-blocking, and has no data now")
    if lines.unfinished:
        yield bytes(lines.unfinished) + b"\n", False


def _write(sink: BinaryIO, data: bytes) -> None:
    """Write all of *data*: a raw file may take a part of it."""
    while data:
        count = sink.write(data)
        if count is None and isinstance(sink, io.RawIOBase):
            raise BlockingIOError(errno.EAGAIN, "the sink takes no output now")
        data = b"" if count is None else data[count:]
    sink.flush()


# ---- The command line ----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command line *argv*, or sys.argv, and return the exit status.

    0: done; 1: the connection failed or ended early, or what came was wrong; 130: interrupted,
    except for ping, which then prints its summary.
    Raises SystemExit with 2 for wrong usage, as argparse does.
    """
    if sys.stderr is None:  # it is closed, and print() would use standard output instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    args, unknown = _parser().parse_known_args(argv)
    if unknown:  # argparse would show the usage of revecho, not of the command
        args.error(f"unrecognized arguments: {' '.join(unknown)}")
    serves, files = args.run is _run_server, (args.tls_cert, args.tls_key, args.tls_ca)
    if not serves:
        _set_target(args)
    for option, needs_it in ("--tls-key", args.tls_key), ("--tls-ca", serves and args.tls_ca):
        if needs_it and not args.tls_cert:
            args.error(f"{option} needs a --tls-cert")
    try:
        if args.tls or args.tls_name or any(files):
            args.ssl_context = _tls_context(serves, *files)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except (OSError, UnicodeError, ImportError) as error:  # what cannot be printed; no TLS
        if isinstance(error, _ReaderGoneError) and not serves:
            return 0
        _complain(args, error)
        return 1


def _complain(args: argparse.Namespace, error: Exception) -> None:
    with contextlib.suppress(OSError):
        address = _address((args.host, args.port))
        print(f"revecho: {address}: {_reason(error)}", file=sys.stderr, flush=True)


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
    ping = commands.add_parser(
        "ping", help="see whether lines come back reversed, and how fast",
        epilog="Exit status: 0 if lines came back reversed and none failed (with -c and -w: if "
        "that many came back); 1 if not; 2 for wrong usage.",
    )
    for command, run in (server, _run_server), (client, _run_client), (ping, _run_ping):
        command.set_defaults(run=run, error=command.error, tls=False, tls_name=None)
        command.set_defaults(ssl_context=None, target=None, source=None)
    server.add_argument("--host", type=_host, default=HOST,
                        help="address or name (default: %(default)s)")
    for command in client, ping:
        command.add_argument("--host", type=_target, metavar="HOST[:PORT]",
                             help=f"address or name (default: {HOST})")
    timeout = float, _BOUNDS["timeout"], 10.0, "SECONDS"
    for command, names, kind, bounds, default, unit, what in (
        (server, "--port", int, (0, 65535), PORT, "PORT", "0: any free one"),
        (server, "--max-connections", int, _BOUNDS["max_connections"], MAX_CONNECTIONS, "N",
         "connections at a time; others wait"),
        (server, "--max-line", int, _BOUNDS["max_line"], MAX_LINE, "BYTES", "length of a line"),
        (server, "--idle-timeout", float, _BOUNDS["idle_timeout"], IDLE_TIMEOUT, "SECONDS",
         "time with no line answered; 0: for ever"),
        (server, "--grace", float, _BOUNDS["grace"], GRACE, "SECONDS",
         "time to finish when stopped"),
        (client, "--port", int, _BOUNDS["port"], None, "PORT", f"(default: {PORT})"),
        (client, "-W --timeout", *timeout, "for connecting, and for each reply"),
        (ping, "--port", int, _BOUNDS["port"], None, "PORT", f"(default: {PORT})"),
        (ping, "-W --timeout", *timeout, "for connecting, and for each reply"),
        (ping, "-c --count", int, (1, 10**9), None, "N",
         "lines to send (with -w: that have to come back); without it until Ctrl-C"),
        (ping, "-w --deadline", float, (0.001, _LONGEST_WAIT), None, "SECONDS",
         "for the whole run"),
        (ping, "-i --interval", float, (0, _LONGEST_WAIT), 1.0, "SECONDS", "from line to line"),
        (ping, "-s --size", int, (2, _LONGEST_LINE), 256, "BYTES",
         "length of a line without its ending"),
    ):
        shown = " (default: %(default)g)" if default is not None else ""
        command.add_argument(*names.split(), type=_number(kind, *bounds), default=default,
                             metavar=unit, help=what + shown)

    option = server.add_argument
    option("--reuse-port", action="store_true", help="share the port with other processes")
    option("--all-processors", action="store_true",
           help="let the system choose a processor for each thread")
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
            ("--tls-ca", "authority for the peer's certificate"),
        ):
            option(name, type=_not_empty, metavar="FILE", help=what)
        if command is not server:
            option("--tls-name", type=_not_empty, metavar="NAME",
                   help="name that the peer's certificate must have, if not the host")
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
    option("-I", dest="source", type=_source, metavar="ADDRESS", help="address to connect from")
    option("-q", "--quiet", action="store_true", help="print nothing but the summary")
    option("-D", dest="date", action="store_true", help="print the date and time of each line")
    option("--json", action="store_true", help="print a JSON object for each line, and a summary")
    option("--keep", action="store_true", help="send all lines over one connection")
    option("target", metavar="HOST[:PORT]", nargs="?", type=_target, help="as --host")
    return parser


def _target(text: str) -> tuple[str, Any]:
    """Return the host and, if there is one, the port of HOST[:PORT]."""
    if "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is a URL or a path; HOST[:PORT] is wanted")
    found = re.fullmatch(r"(\[.*\]|[^:]*)(?::([^:]*))?", text)
    host, port = found.groups() if found else (text, None)  # an IPv6 address
    if not (host := host.strip("[]")):
        raise argparse.ArgumentTypeError(f"{text!r} has no host in it")
    return host, None if port is None else _number(int, *_BOUNDS["port"])(port)


def _set_target(args: argparse.Namespace) -> None:
    """Set the host and the port, which the command line may give in up to three places.

    The address to connect from, if there is one, determines the version of IP.
    """
    given = [target for target in (args.host, args.target) if target]
    hosts = {host for host, _ in given} or {HOST}
    ports = {port for port in (args.port, *(port for _, port in given)) if port} or {PORT}
    for what, values in ("host", hosts), ("port", ports):
        if len(values) > 1:
            args.error(f"more than one {what} is given")
    [args.host], [args.port] = hosts, ports
    if args.source:
        family, args.source = args.source
        if args.family not in (0, family):
            args.error("argument -I: the address is of the other version of IP")
        args.family = family


def _host(text: str) -> str:
    host, port = _target(text)
    if port:
        raise argparse.ArgumentTypeError(f"{text!r} has a port in it; use --port instead")
    return host


def _not_empty(text: str) -> str:
    if not text:  # from an unset variable, say; that must not turn off TLS
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _source(text: str) -> tuple[int, Any]:
    """Return the family and the address to connect from."""
    try:
        family, address = _resolve(_not_empty(text), 0)
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind(address)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {_in_words(error)}") from error
    return family, address


def _number(kind: type[float], least: float, most: float) -> Callable[[str], float]:
    """Return an argparse type for a number within bounds."""

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
    """Handle signals within the block, if this is the main thread: no other can."""
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
    share = getattr(socket, "SO_REUSEPORT", None) if args.reuse_port else None
    if args.reuse_port and not share:
        args.error("--reuse-port is not supported on this system")

    class Server(ReverseServer):
        def server_bind(self) -> None:
            if share:
                self.socket.setsockopt(socket.SOL_SOCKET, share, 1)
            super().server_bind()

        def serve_forever(self, poll_interval: float = 0) -> None:
            try:
                super().serve_forever(poll_interval)
            finally:
                end()  # if nobody has stopped it, the listening socket is broken

    binding = contextlib.nullcontext("") if args.all_processors else _on_one_processor()
    with binding as where, _logging_to_standard_error(args.level), _signals() as (wait, end):
        with running_server(
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
            wait()
            log.info("stopping")
            # Many threads waking up at once would spend seconds requesting the interpreter lock.
            sys.setswitchinterval(0.1)
        log.info("stopped")
    return 0


@contextlib.contextmanager
def _signals() -> Iterator[tuple[Callable[[], None], Callable[[], Any]]]:
    """Handle the signals that stop the server; the second one ends the process at once.

    Yields a function that waits for the first, and one that ends that wait.
    """
    names = "SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"  # no system has all of them
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)  # as under nohup

    def stop(*_: Any) -> None:
        for number in numbers:
            signal.signal(number, kill)

    def kill(number: int, _: Any) -> None:  # with SIG_DFL, Python complains if both have come
        if os.name == "posix":
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        os._exit(128 + number)  # a signal does not kill process 1 of a container

    def wait() -> None:
        number = -1
        while number not in (0, *numbers):  # the program may handle other signals, too
            _ready({ended: _READ}, None)
            number = ended.recv(1)[0]

    # Python writes the number of each signal to waker.  Without that, a signal just before the
    # wait begins, or one that the system delivers to another thread, would not end the wait.
    ended, waker = socket.socketpair()
    waker.setblocking(False)
    with ended, waker, _handling(stop, *numbers):
        before = None
        try:
            with contextlib.suppress(ValueError):  # not on the main thread
                before = signal.set_wakeup_fd(waker.fileno())
            yield wait, lambda: waker.send(b"\0")
        finally:
            if before is not None:
                signal.set_wakeup_fd(before)


@contextlib.contextmanager
def _logging_to_standard_error(level: int) -> Iterator[None]:
    writer, level_before = _LogWriter(sys.stderr.fileno()), log.level
    log.addHandler(writer)
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(level_before)
        log.removeHandler(writer)
        writer.close()


class _LogWriter(logging.Handler):
    """Passes the log to a thread that writes it, so that no other thread waits for its reader.

    Otherwise a pipe that nobody reads would hold up every connection, and at exit the program, as
    logging and print() hold a lock while they write.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._descriptor = descriptor
        self._queue: queue.Queue[str] = queue.Queue(1000)
        self._dropped = 0  # records, since the queue last had room
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; drop it if the writer has made no progress for a second."""
        try:
            self._report_dropped()
            self._queue.put(self.format(record) + "\n", timeout=1)
        except queue.Full:
            self._dropped += 1

    def _report_dropped(self) -> None:
        if self._dropped:
            text = f"{self._dropped} messages dropped, as nobody read the log"
            record = logging.makeLogRecord({"msg": text, "levelname": "WARNING"})
            self._queue.put_nowait(self.format(record) + "\n")
            self._dropped = 0

    def close(self) -> None:
        """Wait until all is written, for a second at most."""
        deadline = time.monotonic() + 1
        with contextlib.suppress(queue.Full):
            self._report_dropped()
            self._queue.put("", timeout=1)
        _join(self._thread, deadline)
        super().close()

    def _write(self) -> None:
        for text in iter(self._queue.get, ""):
            data = text.encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError):  # nobody can read it any more
                while data:
                    written = 0
                    try:
                        written = os.write(self._descriptor, data)
                    except BlockingIOError:  # another process made the shared file non-blocking
                        time.sleep(_MOMENT)
                    data = data[written:]


@contextlib.contextmanager
def _on_one_processor() -> Iterator[str]:
    """Stay on a processor that no other server has taken; yield text for the log that says which.

    Only on Linux, and if Python has its global lock: threads that pass it between processors spend
    most of their time handing it over.
    """
    where, name = "", None
    allowed: set[int] = set()
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    try:
        if sys.platform == "linux" and has_lock:
            with contextlib.suppress(AttributeError, OSError):  # as on PyPy; where it is forbidden
                allowed = os.sched_getaffinity(0)
                # A bound name that contains the number is a lock; the kernel releases it at exit.
                name = socket.socket(socket.AF_UNIX)
                # In a random order: the servers in other containers do not see these names.
                order = random.sample(sorted(allowed), len(allowed))
                for turn, processor in itertools.product(range(100), order):
                    with contextlib.suppress(OSError):  # another process has this name
                        name.bind(f"\0revecho/{processor}/{turn}")
                        break
                os.sched_setaffinity(0, {processor})
                where = f", on processor {processor} alone"
        yield where
    finally:
        if name:
            name.close()
        if sys.platform == "linux" and where:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, allowed)


# ---- The command line: client --------------------------------------------------------------------


def _connection(args: argparse.Namespace) -> _Connection:
    return _Connection(
        args.host, args.port, args.timeout, args.ssl_context, args.tls_name, args.family,
        args.source,
    )


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
            # Lines are UTF-8 everywhere; only a terminal may be different.
            encoding = file.encoding if file.isatty() else "utf-8"
            file.reconfigure(encoding=encoding, errors="surrogateescape")
    if args.message:
        _send_messages(args)
    elif all(file and file.isatty() for file in (sys.stdin, sys.stdout)):
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
                _show(_ask_once(args, text))


def _ask_once(args: argparse.Namespace, text: str) -> str:
    with contextlib.closing(_connection(args)) as connection:
        connection.open()
        return _ask(connection, text, args.check)


def _filter(args: argparse.Namespace) -> None:
    connection = _connection(args)
    if sys.platform == "linux":
        # A larger pipe gathers more meanwhile; Python 3.9 has no name for F_SETPIPE_SZ.
        with contextlib.suppress(OSError):
            fcntl.fcntl(0, 1031, _CHUNK)
    with contextlib.ExitStack() as stack:
        with _naming("standard input"):
            source = stack.enter_context(open(0, "rb", 0, closefd=False))
        with _writing():
            sink = stack.enter_context(open(1, "wb", 0, closefd=False))

        def read(size: int) -> bytes:
            with _naming("standard input"):
                return source.read(size)

        def write(data: bytes) -> None:
            with _writing():
                _write(sink, data)

        stack.enter_context(_progress(connection))
        _pass_through(connection, read, write, args.check)


@contextlib.contextmanager
def _naming(stream: str) -> Iterator[None]:
    """Name *stream* in its errors, so that they are not mistaken for the connection's."""
    try:
        yield
    except OSError as error:
        error.strerror = f"{stream}: {error.strerror}"
        raise


class _ReaderGoneError(BrokenPipeError):
    """The reader of standard output has gone: not an error of the connection, nor of ours."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Name standard output in its errors; raise _ReaderGoneError where its reader has gone."""
    try:
        with _naming("standard output"):
            if sys.stdout is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # noqa: TRY301
            yield
    except OSError as error:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)  # at exit Python would try again, and complain
        if error.errno == (errno.EINVAL if os.name == "nt" else errno.EPIPE):
            raise _ReaderGoneError(error.errno, error.strerror) from None
        raise


def _prompt(args: argparse.Namespace) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() line editing
    with contextlib.closing(_connection(args)) as connection:
        connection.open()  # if nobody listens, say so before anything is typed
    for line in _typed("> "):
        try:
            reply = _ask_once(args, line)
        except (OSError, ValueError) as error:
            if args.check and getattr(error, "kind", "") in ("wrong-reply", "unasked"):
                raise
            _complain(args, error)
            continue
        _show(reply)


def _show(text: str) -> None:
    with _writing():
        print(text, flush=True)


@contextlib.contextmanager
def _progress(connection: _Connection) -> Iterator[None]:
    """Show every second how much has come back, and how fast, unless it would be in the way."""
    done, width = threading.Event(), 40

    def show() -> None:
        before, text = 0, ""
        with contextlib.suppress(OSError):
            while not done.wait(1):
                came = connection.bytes
                text = f"{came / 1e6:,.1f} MB, {(came - before) / 1e6:,.1f} MB/s"
                print(f"\r{text:{width}}", end="", file=sys.stderr, flush=True)
                before = came
            print(f"\r{'':{width}}\r" if text else "", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show)
    try:
        if sys.stderr and sys.stderr.isatty() and not os.isatty(1) and not os.isatty(0):
            thread.start()
        yield
    finally:
        done.set()
        if thread.ident:
            thread.join()


def _typed(prompt: str) -> Iterator[str]:
    """Yield the lines that the user types, until Ctrl-D; none if standard input is closed."""
    shown_in = sys.stdout if sys.stdout and sys.stdout.isatty() else sys.stderr
    with contextlib.suppress(EOFError, RuntimeError):
        while True:
            with contextlib.redirect_stdout(shown_in):
                try:
                    line = input(prompt)
                except (EOFError, KeyboardInterrupt):
                    print()  # leaves the prompt's line
                    raise
            yield line


# ---- The command line: ping ----------------------------------------------------------------------

# A probe is the record of one line.  A _Pinger makes probes, and a _Summary adds them up.  Both can
# be shown as text or as JSON.

_STEPS = "lookup", "connect", "tls", "reply"
_OUTAGES_SHOWN = 10  # the longest
_FOR_PERCENTILES = 20  # times; of fewer, percentiles would say nothing


class _Probe(NamedTuple):
    seq: int
    sent: float  # seconds since the epoch
    began: float  # the same by time.perf_counter(), which nobody sets back
    target: str
    address: str | None  # in use, or tried last
    size: int  # bytes
    state: str
    kind: str | None  # of a failure
    reason: str  # in words; for a good line, why another address of the host is not used
    details: str  # words after the reason, which differ each time
    after_ms: float
    times: dict[str, float]  # milliseconds of each step that was done
    sent_again: int | None  # segments

    def as_text(self, dated: bool) -> str:
        outcome = f"{self.state} after {self.after_ms:.2f} ms: "
        if self.state == "reversed":
            times = " ".join(f"{step}={took:.2f} ms" for step, took in self.times.items())
            outcome = f"{self.size} bytes reversed, {times}" + ", " * bool(self.reason)
        outcome += self.reason + self.details
        if self.sent_again:
            outcome += f", segments sent again: {self.sent_again}"
        date = f"{_date(self.sent)} " if dated else ""
        return f"{date}{self.address or self.target}: seq={self.seq} {outcome}"

    def as_json(self) -> str:
        shown = {"type": "probe", **self._asdict(), "sent": _date(self.sent, utc=True)}
        shown["reason"] = self.reason + self.details or None
        shown.update({f"{step}_ms": self.times.get(step) for step in _STEPS})
        del shown["began"], shown["details"], shown["times"]
        return json.dumps(shown)


def _run_ping(args: argparse.Namespace) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for errors in a server's own words
    pinger, summary = _Pinger(args), _Summary(_address((args.host, args.port)))

    def sum_up() -> str:
        return summary.as_json() if args.json else summary.as_text(args.quiet)

    def sum_up_so_far(*_: Any) -> None:
        with contextlib.suppress(OSError):  # it may interrupt a print(), so it cannot use one
            os.write(sys.stderr.fileno(), f"{sum_up()}\n".encode("utf-8", "replace"))

    interrupting = _handling(signal.default_int_handler, signal.SIGTERM)
    asking = _handling(sum_up_so_far, *(it for it in signal.Signals if it.name == "SIGQUIT"))
    with contextlib.suppress(_ReaderGoneError), interrupting, asking:
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(pinger):
            if not (args.quiet or args.json):
                _show(f"PING {summary.target}: {args.size} bytes every {args.interval:g} s")
            while not summary.is_enough(args) and (probe := pinger.probe(summary)):
                summary.add(probe)
                if not args.quiet:
                    _show(probe.as_json() if args.json else probe.as_text(args.date))
        _show(sum_up())
    return summary.status(args)


class _Pinger:
    """Sends each line when it is due, and finds out what becomes of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.connection = args, _connection(args)
        self.due_at = time.monotonic()
        self.ends_at = self.due_at + (args.deadline or math.inf)
        self.replied_at = 0.0  # when the last good reply came, by time.perf_counter()
        self.speaks_tls: bool | None = None  # whether the port does; None until tried

    def close(self) -> None:
        self.connection.close()

    def probe(self, summary: _Summary) -> _Probe | None:
        """Send a line when it is due; return None if the run ends before that."""
        connection, kept = self.connection, not self.connection.undone
        again_before = (kept and _sent_again(connection.socket)) or 0
        error: BaseException | None = self._wait()
        if time.monotonic() >= self.ends_at:
            return None
        sent, began = time.time(), time.perf_counter()
        idle = f" {began - self.replied_at:.1f} s after the last reply" * kept
        if not error:
            idle = "; sent" * kept + idle
            try:
                self._send()
            except (OSError, KeyboardInterrupt) as caught:
                error = caught
        times = {step: round(took * 1000, 3) for step, took in connection.times.items()}
        ended = self.replied_at if "reply" in times else time.perf_counter()
        after_ms = round((ended - began) * 1000, 3)
        again = _sent_again(connection.socket) if connection.socket else None
        state, kind, reason, details = self._outcome(error, after_ms <= summary.slowest)
        probe = _Probe(
            seq=sum(summary.counts.values()) + 1, sent=sent, began=began, target=summary.target,
            address=connection.address or None, size=self.args.size,
            state=state, kind=kind, reason=reason, details=(idle if kind else "") + details,
            after_ms=after_ms, times=times,
            sent_again=None if again is None else again - again_before,
        )
        if self.args.keep and state == "reversed":
            connection.times.clear()
            connection.failed.clear()
        else:
            connection.close()
            self.connection = _connection(self.args)
        if isinstance(error, KeyboardInterrupt):
            self.ends_at = 0
        return probe

    def _wait(self) -> OSError | None:
        """Wait until a line is due; return the error if a kept connection fails meanwhile."""
        until = min(self.due_at, self.ends_at)
        try:
            if not self.connection.undone:
                self.connection.expect_nothing(until)
                if self.connection.ended:
                    return _missing(self.connection, b"")
        except OSError as error:
            return error
        time.sleep(max(0, until - time.monotonic()))
        self.due_at = time.monotonic() + self.args.interval
        return None

    def _send(self) -> None:
        """Send a line, and wait until it has come back."""
        connection, line = self.connection, _random_line(self.args.size)
        connection.lines = connection.bytes = 0
        if connection.undone:
            connection.timeout = self._patience()
            connection.open()
        connection.timeout = self._patience()
        began = time.perf_counter()
        _exchange(connection, line, lambda _: None, compare=True)
        self.replied_at = time.perf_counter()
        took = connection.times["reply"] = self.replied_at - began
        if not self.args.keep:  # a second copy of the reply would come within another round trip
            connection.expect_nothing(min(time.monotonic() + min(took, 1), self.ends_at))

    def _patience(self) -> float:
        left = max(0.1, round(self.ends_at - time.monotonic() + 0.05, 1))  # rounded for messages
        return float(min(self.args.timeout, left))

    def _outcome(self, error: BaseException | None, usual: bool) -> tuple[str, Any, str, str]:
        """Return the state, the kind, the reason and its details.

        With *usual*, some good reply has taken longer than this line has waited.
        """
        connection, kind = self.connection, None
        state, reason, details = "reversed", "", ""
        if isinstance(error, OSError):
            kind = _kind_of(error, connection.undone)
            state = "not sent" if kind == "local" else "failed"
            reason = _reason(error)
            if isinstance(error, _ClientError):
                reason, details = error.reason, error.details
            if kind in ("ended", "reset") and not details:
                reason += self._tls_hint()
            if isinstance(error, TimeoutError) and usual and time.monotonic() >= self.ends_at:
                state, kind = "waiting", None
        elif "reply" not in connection.times:  # interrupted
            size, unsent = self.args.size + 1, len(connection.unsent)
            state, reason = "waiting", connection.undone
            reason = reason or "no reply" + _acknowledged(connection.socket, size, unsent)
        if (failed := "; ".join(connection.failed)) not in reason:
            reason += "; " * bool(reason) + f"after {failed}"
        return state, kind, reason, details

    def _tls_hint(self) -> str:
        """Return a hint if the port speaks TLS; try that only once."""
        if self.speaks_tls is None and not (self.args.ssl_context or self.replied_at):
            self.speaks_tls, trial = False, _connection(self.args)
            with contextlib.suppress(ImportError), contextlib.closing(trial):
                trial.ssl_context, trial.timeout = _any_tls(), min(self._patience(), 2)
                try:
                    trial.open()
                    self.speaks_tls = True
                except OSError as error:
                    self.speaks_tls = "alert" in str(error)
                except KeyboardInterrupt:
                    self.ends_at = 0
        return "; the port speaks TLS: try --tls" if self.speaks_tls else ""


def _kind_of(error: OSError, undone: str) -> str:
    if isinstance(error, _ClientError):
        return error.kind
    if undone != "not connected":
        return "lookup" if undone == "not resolved" else "tls"
    if error.errno in _LACKING_HERE:
        return "local"
    kinds = {ConnectionRefusedError: "refused", TimeoutError: "connect-timeout"}
    return {**kinds, ConnectionResetError: "reset"}.get(type(error), "unreachable")


class _Outage:
    """The time from the sending of the first line that failed to the next good reply."""

    def __init__(self, first: _Probe) -> None:
        self.first, self.lines = first, 0
        self.seconds, self.goes_on = 0.0, True

    def add(self, probe: _Probe) -> None:
        self.seconds = probe.began + probe.after_ms / 1000 - self.first.began
        self.goes_on = probe.state == "failed"
        self.lines += self.goes_on

    def as_fields(self) -> dict[str, Any]:
        began, seconds = _date(self.first.sent, utc=True), round(self.seconds, 3)
        return {"from": began, "seconds": seconds, "lines": self.lines}

    def as_text(self) -> str:
        answered = self.first.kind in ("wrong-reply", "unasked", "server-error", "partial-reply")
        what, since = "nothing right" if answered else "nothing", _date(self.first.sent)[:19]
        lines = f"{_quantity(self.lines, 'line')}: {self.first.reason}"
        going_on = ", and it goes on" * self.goes_on
        return f"{what} came back for {self.seconds:.1f} s from {since} ({lines}){going_on}"


class _Summary:
    """The totals of all probes so far."""

    def __init__(self, target: str) -> None:
        self.target, self.sent_again = target, 0
        self.counts = {"reversed": 0, "failed": 0, "waiting": 0, "not sent": 0}
        self.times: dict[str, list[float]] = {step: [] for step in _STEPS}  # of good lines
        self.slowest = 0.0  # milliseconds until a good reply, with all steps before it
        # For each kind and reason: the first probe, the count, and the last sequence number.
        self.reasons: dict[tuple[str | None, str], tuple[_Probe, int, int]] = {}
        self.outages: list[_Outage] = []
        self.not_sent = 0  # lines in a row

    def sent(self) -> int:
        return sum(self.counts.values()) - self.counts["not sent"]

    def is_enough(self, args: argparse.Namespace) -> bool:
        """Return whether --count is reached, or that many lines in a row could not be sent."""
        if args.deadline:
            return bool(args.count == self.counts["reversed"])
        return args.count in (self.sent(), self.not_sent)

    def status(self, args: argparse.Namespace) -> int:
        if args.count and (args.deadline or args.count == self.not_sent):
            return int(self.counts["reversed"] < args.count)
        return int(self.counts["failed"] > 0 or not self.counts["reversed"])

    def add(self, probe: _Probe) -> None:
        self.counts[probe.state] += 1
        self.not_sent = self.not_sent + 1 if probe.state == "not sent" else 0
        self.sent_again += probe.sent_again or 0
        if probe.reason and probe.state != "waiting":
            first, count, _ = self.reasons.get((probe.kind, probe.reason), (probe, 0, 0))
            self.reasons[probe.kind, probe.reason] = first, count + 1, probe.seq
        goes_on = bool(self.outages) and self.outages[-1].goes_on
        if probe.state == "failed" and not goes_on:
            self.outages.append(_Outage(probe))
        if probe.state == "failed" or (goes_on and probe.state == "reversed"):
            self.outages[-1].add(probe)
        if probe.state == "reversed":
            self.slowest = max(self.slowest, probe.after_ms)
            for step, took in probe.times.items():
                self.times[step].append(took)

    def as_json(self) -> str:
        fields: dict[str, Any] = {"type": "summary", "target": self.target, "sent": self.sent()}
        for state, count in self.counts.items():
            fields[state.replace(" ", "_")] = count
        fields["sent_again"] = self.sent_again
        fields["reasons"] = [
            {
                "kind": first.kind, "reason": first.reason, "count": count,
                "first_seq": first.seq, "last_seq": last,
            }
            for first, count, last in self.reasons.values()
        ]
        fields["outages"] = [outage.as_fields() for outage in self.outages]
        for step, times in self.times.items():
            fields[f"{step}_ms"] = {**_figures(times), "count": len(times)} if times else None
        return json.dumps(fields)

    def as_text(self, quiet: bool) -> str:
        sent, counts = self.sent(), self.counts
        text = f"{self.target}: " if quiet else f"\n--- {self.target} ---\n"
        text += f"{sent} sent, {counts['reversed']} reversed, {counts['failed']} failed"
        text += f" ({100 * counts['failed'] / max(sent, 1):.3g}%)"
        for what in "waiting", "not sent":
            text += f", {counts[what]} {what}" if counts[what] else ""
        text += f", segments sent again: {self.sent_again}" if self.sent_again else ""
        for first, count, last in self.reasons.values():
            seq = f"{first.seq}-{last}" if count > 1 else first.seq
            text += f"\n{count} x {'' if first.kind else 'reversed '}{first.reason} (seq {seq})"
            if details := first.details.lstrip(" ;:"):
                text += f", {'first ' * (count > 1)}{details}"
        if len(self.outages) > 1:
            in_all = sum(outage.seconds for outage in self.outages)
            text += f"\n{len(self.outages)} outages, {in_all:.1f} s in all"
        longest = sorted(self.outages, key=operator.attrgetter("seconds"))[-_OUTAGES_SHOWN:]
        for outage in self.outages:
            if outage in longest and outage.seconds > 0.05:
                text += f"\n{outage.as_text()}"
        for step, times in self.times.items():
            if times:
                figures = _figures(times).items()
                shown = {name: f"{it:.2f}" for name, it in figures if it is not None}
                text += f"\n{step} {'/'.join(shown)} = {'/'.join(shown.values())} ms"
        return text


def _figures(times: list[float]) -> dict[str, float | None]:
    """Return statistics of *times*, in milliseconds; percentiles only if there are enough times."""
    ordered, count = sorted(times), len(times)
    median, p95 = (
        None if count < _FOR_PERCENTILES else ordered[(count * share - 1) // 100]
        for share in (50, 95)
    )
    mean = math.fsum(times) / count
    stdev = math.sqrt(math.fsum((took - mean) ** 2 for took in times) / count)
    figures = {"min": ordered[0], "median": median, "p95": p95, "max": ordered[-1]}
    return {**figures, "mean": round(mean, 3), "stdev": round(stdev, 3)}


# ---- Appendix ------------------------------------------------------------------------------------

# Grapheme clusters for Python before 3.15.  Delete this when no such version is in use.

# The break classes of UAX #29, one letter each: lowercase for those that join others, uppercase for
# those that stand alone unless next to a lowercase one.  The general category tells most of them:
# e Extend, s SpacingMark, C Control; all others are O, Other.
_BY_CATEGORY = {
    "Mn": "e", "Me": "e", "Mc": "s", "Cc": "C", "Cf": "C", "Cs": "C", "Zl": "C", "Zp": "C"
}
# What it does not tell, from the data files of Unicode 17.0.  Extend characters of category Mc are
# left out: they differ from SpacingMark only between the parts of a conjunct or of an emoji.
_BY_CODE_POINT = {
    # GraphemeBreakProperty.txt: p Prepend, c CR, F LF, w ZWNJ (Extend that ends a conjunct), z ZWJ,
    # r Regional_Indicator, s SpacingMark, e Extend, l v t H Hangul, O Other despite Mc
    "p": "0600-0605 06DD 070F 0890-0891 08E2 0D4E 110BD 110CD 111C2-111C3 113D1 1193F 11941 "
         "11A84-11A89 11D46 11F02",
    "c": "000D", "F": "000A", "w": "200C", "z": "200D", "r": "1F1E6-1F1FF", "s": "0E33 0EB3",
    "e": "FF9E-FF9F 1F3FB-1F3FF E0020-E007F", "l": "1100-115F A960-A97C",
    "v": "1160-11A7 D7B0-D7C6 16D63 16D67-16D6A", "t": "11A8-11FF D7CB-D7FB", "H": "AC00-D7A3",
    "O": "102B-102C 1038 1062-1064 1067-106D 1083 1087-108C 108F 109A-109C 1A61 1A63-1A64 AA7B "
         "AA7D 11720-11721",
    # DerivedCoreProperties.txt: n Linker, K Consonant, including unassigned ones in between
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

    Threads share it: at worst, one thread makes another look up a character again.
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
    """Yield the grapheme clusters of *text*; each surrogate is a cluster of its own."""
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
