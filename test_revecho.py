"""Tests of revecho: real sockets, real threads, real processes.  Run by `make test`."""

import ast
import concurrent.futures
import contextlib
import datetime
import doctest
import errno
import faulthandler
import functools
import gc
import importlib
import importlib.util
import io
import itertools
import json
import logging
import os
import pathlib
import queue
import random
import re
import select
import selectors
import shlex
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import unicodedata
import unittest
import warnings
import weakref
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import revecho

with contextlib.suppress(ImportError):  # Windows has no terminals of this kind
    import pty

HERE = pathlib.Path(__file__).resolve().parent
README = (HERE / "README.md").read_text(encoding="utf-8")
LIMIT = 30  # seconds after which something hangs; no test takes nearly as long
LONG = 10 * LIMIT
EVERY_LINE = "EVERY_LINE" in os.environ  # make hold: what is done before some lines else
EACH = 1 if EVERY_LINE else 4
MODULE = "-m", "revecho"  # which Python has compiled once, unlike the revecho.py of a command
SETTINGS = "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"  # of this machine, that are not for tests
# A shell lets what it starts in the background ignore Ctrl-C, and that would be inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)


def has_ipv6():
    with contextlib.suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True
    return False


def has_localhost():
    with contextlib.suppress(OSError):
        return bool(socket.getaddrinfo("localhost", None))
    return False


LINUX, POSIX = sys.platform == "linux", os.name == "posix"
CPYTHON = sys.implementation.name == "cpython"
# It is not Windows: shutdown() wakes nobody there, and a reset looks like an end.
WINE = not POSIX and hasattr(importlib.import_module("ctypes").windll.ntdll, "wine_get_version")
RESET = "the connection (was reset|ended)" if WINE else "the connection was reset"
PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {}
needs_linux = unittest.skipUnless(LINUX, "needs Linux")
needs_allocator = unittest.skipUnless(
    # without the GIL CPython has another allocator, which keeps far more
    LINUX and CPYTHON and not sysconfig.get_config_var("Py_GIL_DISABLED"),
    "needs /proc, and the allocator of CPython with a GIL",
)
needs_kill = unittest.skipUnless(POSIX, "needs signals from other processes")
needs_even_speed = unittest.skipUnless(
    CPYTHON and POSIX, "needs a fine clock, and no compiler that changes times"
)
needs_wake = unittest.skipIf(WINE, "in Wine shutdown() wakes nobody")
needs_resets = unittest.skipIf(WINE, "in Wine a reset looks like an end")
needs_iter_graphemes = unittest.skipUnless(
    hasattr(unicodedata, "iter_graphemes"), "needs Python 3.15"
)


def until(condition):
    """Wait for something that another thread or process does; return it."""
    deadline = time.perf_counter() + LIMIT
    while not (result := condition()):
        if time.perf_counter() > deadline:
            raise AssertionError("waited too long")
        time.sleep(0.002)
    return result


def at_once(function, rows):
    """Call it with each of the rows, all at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
        list(pool.map(lambda row: function(*row), rows))


@functools.lru_cache(None)
def interruptible():
    """The numbers of the lines of revecho.py before which Ctrl-C is to leave nothing behind.

    Not those of what clears up after another one.  And between the end of a block and what ends
    its `with` a trace function can raise, no signal.
    """
    source = pathlib.Path(revecho.__file__).read_text(encoding="utf-8")
    numbers = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if not line.strip().startswith("with ")
    }
    for node in ast.walk(ast.parse(source)):
        for last in getattr(node, "finalbody", ()):
            numbers -= {*range(last.lineno, last.end_lineno + 1)}
    return numbers


def interrupt_at_line(number, function):
    """Call it; raise KeyboardInterrupt before a line of revecho.py, as if the signal came then.

    Returns what the function does if that is over before so many lines.
    """
    lines = itertools.count(1)

    def trace(frame, event, _):
        if frame.f_code.co_filename != revecho.__file__:
            return None
        if event == "line" and frame.f_lineno in interruptible() and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        return function()
    finally:
        sys.settrace(None)


def subclass(base, **members):
    return type(base.__name__, (base,), members)


def receive(connection, size=1 << 40):
    """Receive exactly *size* bytes, or all there is until the end."""
    data = bytearray()
    try:
        while len(data) < size and (block := connection.recv(min(size - len(data), 65536))):
            data += block
    except OSError as error:
        if type(error).__name__ != "SSLZeroReturnError":  # both sides have ended, as they should
            raise
    return bytes(data)


def receive_until_gone(connection):
    """Receive all there is, whether the connection is ended or reset."""
    try:
        return receive(connection)
    except OSError as error:
        if not isinstance(error, ConnectionError) and type(error).__name__ != "SSLEOFError":
            raise
        return b""


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def shut(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def half_close(connection):
    if hasattr(connection, "unwrap"):  # TLS has an end of its own
        timeout = connection.gettimeout()
        connection.setblocking(False)  # not to wait for that of the peer
        with contextlib.suppress(OSError):
            connection.unwrap()
        connection.settimeout(timeout)
    else:
        connection.shutdown(socket.SHUT_WR)


def readable(*connections, seconds=0):
    return select.select(connections, [], [], seconds)[0]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def at(server):
    """The host and the port of a server: one of ours, a process, or an address."""
    return getattr(server, "server_address", server)[:2]


def to(server):
    """The option of the command line that says where a server is."""
    return f"--port {at(server)[1]}"


def held():
    """How many threads and descriptors this process holds."""
    return threading.active_count(), len(os.listdir("/dev/fd")) if POSIX else 0


def given_back(before):
    """Does this process hold no more than before?"""
    return all(now <= then for now, then in zip(held(), before))


def seconds(function, *arguments, times=5):
    """Processor time that the fastest of some calls takes."""
    taken = []
    for _ in range(times):
        started = time.thread_time()  # what others on this machine do is no part of it
        function(*arguments)
        taken.append(time.thread_time() - started)
    return min(taken)


def processor_seconds(pid):
    """Processor time that a process has used; not a number where the system does not tell."""
    if not LINUX:
        return float("nan")
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """Memory of a process in KiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", status)[1])


def none_sent_again(shown):
    """A busy machine can acknowledge so late that the kernel sends again what has arrived."""
    return re.sub(r", segments sent again: \d+", "", shown)


class Program(subprocess.Popen):
    """A command line in the words of a shell, in which "$@" stands for Python and the program.

    It follows the *start*; *env* is what the environment has besides.
    """

    def __init__(self, line="", program=MODULE, start='exec "$@" ', env=None, **keywords):
        # -S: there is nothing but the standard library
        command = [sys.executable, "-S", "-W", "error", *program]
        if POSIX:
            command = ["sh", "-c", start + line, "sh", *command]
        elif {*"<>|&'"} & {*line} or "=" in start:
            raise unittest.SkipTest("needs a POSIX shell")
        else:
            command += line.split()
        env = {**os.environ, **dict.fromkeys(SETTINGS, ""), **(env or {})}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        super().__init__(command, cwd=HERE, env=env, bufsize=0, **{**pipes, **keywords})

    def send_signal(self, number):
        if not POSIX:
            raise unittest.SkipTest("needs signals from other processes")
        super().send_signal(number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    @functools.cached_property
    def server_address(self):
        """Where a server says that it listens."""
        line = self.stdout.readline().decode()
        host, _, port = line.replace("listening on ", "").rpartition(":")
        return host.strip("[]"), int(port)


class Handler(revecho.ReverseHandler):
    """As it is; tests change a member or two."""


class Server(revecho.ReverseServer):
    """Hears a peer out for less long, so that tests need not wait for it."""

    drain_quiet = 0.05


def running_server(server_address=("127.0.0.1", 0), **changes):
    """Like revecho's, with other limits, or other members of the handler or the server."""

    def changed(base):
        return subclass(base, **{n: changes.pop(n) for n in list(changes) if hasattr(base, n)})

    handler, server_class = changed(changes.pop("handler", Handler)), changed(Server)
    return revecho.running_server(server_address, handler, server_class=server_class, **changes)


class Gate:
    """A place at which threads wait until it is opened."""

    def __init__(self):
        self._reached, self._opened = threading.Semaphore(0), threading.Event()
        self.until_reached, self.open = self._reached.acquire, self._opened.set

    def wait(self):
        self._reached.release()
        self._opened.wait()


class Case(unittest.TestCase):
    def setUp(self):
        # A test that hangs ends the run, and shows where each thread is.
        faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        self.records, self.gates = [], []
        handler = logging.Handler()
        handler.emit = self.records.append
        log = logging.getLogger("revecho")
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        self.addCleanup(log.removeHandler, handler)

    def logged(self, level=logging.INFO):
        return [
            record.getMessage() + " Traceback" * bool(record.exc_info)
            for record in self.records
            if record.levelno >= level
        ]

    def until_logged(self, text):
        """Return the messages up to one that holds the text, and forget what has been logged."""
        until(lambda: any(text in message for message in self.logged()))
        messages = self.logged()
        self.records.clear()
        return messages

    def warned(self):
        return self.logged(logging.WARNING)

    def stack(self, manager):
        """Enter a context manager until the test ends."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def on_thread(self, function, *arguments):
        """Run it on a thread of its own, which is waited for at the end of the test."""
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        self.addCleanup(self.join, thread)
        self.addCleanup(lambda: [gate.open() for gate in self.gates])
        return thread

    def join(self, thread):
        thread.join(LIMIT)
        self.assertFalse(thread.is_alive(), thread)

    # Servers

    def serve(self, server_address=("127.0.0.1", 0), **changes):
        return self.stack(running_server(server_address, **changes))

    def gate(self):
        gate = Gate()
        self.gates.append(gate)
        self.addCleanup(gate.open)
        return gate

    def busy(self, data=b"hello\n", step="respond", **changes):
        """Return a server whose first client waits in a step, that client, and a gate to open."""
        gate = self.gate()
        waits = [gate.wait]  # of the first; others do not wait
        go_on = changes.get(step) or getattr(Handler, step, None) or getattr(Server, step)

        def wait_and_go_on(*arguments):
            if waits:
                waits.pop()()
            return go_on(*arguments)

        server = self.serve(**{"grace": LONG, **changes, step: wait_and_go_on})
        connection = self.connect(server, data)
        gate.until_reached()
        return server, connection, gate

    def serve_one_who_does_not_read(self, **limits):
        """Return a server that hangs in a send of 64 MiB, and the client."""
        # More than fits in any buffers:
        server = self.serve(respond=lambda *_: b"x" * (64 << 20), **limits)
        connection = self.connect(server, b"hello\n")
        until(lambda: readable(connection))
        return server, connection

    def closing(self, server):
        """Close the server on a thread of its own; return that when it has begun."""
        thread = self.on_thread(server.server_close)
        until(lambda: server.stopping)
        return thread

    def other_server(self, serve):
        """Start a server that does with one connection after the other what *serve* does.

        Returns its address.  Where *serve* returns true the connection stays open to the end.
        """

        def accept():
            with contextlib.suppress(OSError), contextlib.ExitStack() as kept:
                while readable(listener, stopped, seconds=LONG) == [listener]:
                    connection = listener.accept()[0]
                    connection.settimeout(LIMIT)
                    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
                        stack.enter_context(connection)
                        if serve(connection):
                            kept.push(stack.pop_all())

        listener = self.stack(socket.create_server(("127.0.0.1", 0)))
        stopped, stop = map(self.stack, socket.socketpair())
        self.on_thread(accept)
        self.addCleanup(stop.send, b"x")
        return listener.getsockname()

    # Clients

    def connect(self, server, data=b""):
        connection = self.stack(socket.create_connection(at(server), LIMIT))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(data)
        return connection

    def crowd(self, count, server, data=b"hello\n"):
        return [self.connect(server, data) for _ in range(count)]

    def ask(self, connection, line=b"hello\n"):
        connection.sendall(line)
        self.assertEqual(receive(connection, len(line)), revecho.reverse_lines(line))

    def exchange(self, server, *parts):
        """Send the parts, end our side, and return everything that comes back."""
        with self.connect(server) as connection:
            for part in parts:
                connection.sendall(part)
            half_close(connection)
            return receive(connection)

    def flood(self, connection, data):
        """Send without end, on a thread of its own."""

        def send():
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(data)

        self.on_thread(send)
        self.addCleanup(shut, connection)  # TCP might not tell it for a minute that all is over

    def stream(self, source, server, **options):
        """Return what stream() writes; *source* is a file, or what is in it."""
        source = io.BytesIO(source) if isinstance(source, bytes) else source
        sink = io.BytesIO()
        count = revecho.stream(source, sink, *at(server), **options)
        self.assertEqual(count, len(sink.getvalue()))
        return sink.getvalue()

    # Processes

    def start(self, line="", kind=Program, **keywords):
        """Start a program, which is ended with the test."""
        program = self.stack(kind(line, **keywords))
        self.addCleanup(program.kill)
        return program

    def start_server(self, options="", stderr=subprocess.DEVNULL, **keywords):
        return self.start(f"server --port 0 {options}", stderr=stderr, **keywords)

    def assert_ends(self, program, stdout=b"", status=0, stderr="", stdin=b""):
        """What it prints on standard error is to match a pattern."""
        out, err = program.communicate(stdin, LIMIT)
        if not POSIX:  # text ends its lines in another way there
            texts = out, err, stdout
            out, err, stdout = (text and text.replace(b"\r\n", b"\n") for text in texts)
        self.assertEqual((out, program.returncode), (stdout, status), err)
        self.assertRegex((err or b"").decode(), rf"\A{stderr}\Z")

    def assert_all(self, *rows, **keywords):
        """Run commands at the same time; a row has one, and what assert_ends() takes."""
        programs = [self.start(line, **keywords) for line, *_ in rows]
        for program, (line, *expected) in zip(programs, rows):
            with self.subTest(line):
                self.assert_ends(program, *expected)

    def main(self, line):
        """Run a command in this process; return the status, the output and the errors."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = revecho.main(shlex.split(line))
            except SystemExit as end:
                status = end.code
        return status, none_sent_again(out.getvalue()), err.getvalue()


class HeartCase(Case):
    """Runs as here, and ELSEWHERE as well."""


class Elsewhere:
    """As on Windows, where there is no poll()."""

    def setUp(self):
        if hasattr(select, "poll"):
            self.addCleanup(setattr, select, "poll", select.poll)
            del select.poll
        super().setUp()


@functools.lru_cache(None)
def tls_contexts():
    """Return one for a server, with a certificate made for it, and one for its clients."""
    try:
        import ssl
    except ImportError:
        raise unittest.SkipTest("this Python has no ssl") from None
    if not shutil.which("openssl"):
        raise unittest.SkipTest("needs openssl to make a certificate")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(str(certificates() / "ours"))
    server_side.num_tickets = 0  # a ticket would make a client readable that gets no reply
    return server_side, ssl.create_default_context(cafile=str(certificates() / "ours"))


class Tls:
    """The same, with TLS."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server_side, cls.client_side = tls_contexts()

    def serve(self, *arguments, **changes):
        return super().serve(*arguments, ssl_context=self.server_side, **changes)

    def connect(self, server, data=b""):
        connection = self.stack(
            self.client_side.wrap_socket(
                super().connect(server), server_hostname="127.0.0.1", suppress_ragged_eofs=False
            )
        )
        connection.sendall(data)
        return connection


# Reversing

CLASSES = {  # of UAX #29, each with characters that every Python has known since 3.9
    "CR": "\r",
    "LF": "\n",
    "Control": "\0\x1b\xad\u200b\u2028\u2029\u2060\udc80\U0001d173\U000e0001",
    "ZWNJ": "\u200c",
    "Extend": "\u0300\u0301\u0489\u05b0\u0e34\u20dd\ufe0f\uff9e\U0001f3fd\U000e0041\U00010a0f",
    "ZWJ": "\u200d",
    "Regional_Indicator": "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
    "Prepend": "\u0600\u06dd\u070f\u0d4e\U000110bd",
    "SpacingMark": "\u0903\u093e\u0e33\u0eb3\u1031\U00011002",
    "L": "\u1100\u1112\ua960",
    "V": "\u1161\u1175\ud7b0",
    "T": "\u11a8\u11c2\ud7cb",
    "LV": "\uac00\ud788",
    "LVT": "\uac01\ud7a3",
    "Pictogram": "\xa9\u263a\u2764\U0001f468\U0001f469\U0001f525\U0001f6f8",
    "Consonant": "\u0915\u0937\u0995\u0a95\u0b15\u0c15\u0d15\u1780\U00011103",
    "Linker": "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d\u17d2\U00011133",
    "Other": "a1é日я\u05d0\u102b\uffff\U0001d4d0",
}
CLASS = {char: name for name, chars in CLASSES.items() for char in chars}
BREAKS = {"Control", "CR", "LF"}
MARKS = {"Extend", "ZWNJ", "ZWJ", "Linker", "SpacingMark"}
HANGUL = {"L": {"L", "V", "LV", "LVT"}, "LV": {"V", "T"}, "V": {"V", "T"}, "LVT": {"T"}, "T": {"T"}}


def joined(kinds, after):
    """Does UAX #29 join a character of the class *after* to the last of those before it?"""
    before = kinds[-1]
    if before in BREAKS or after in BREAKS:
        return (before, after) == ("CR", "LF")  # GB3, GB4, GB5
    if after in HANGUL.get(before, ()) or after in MARKS or before == "Prepend":
        return True  # GB6, GB7, GB8, GB9, GB9a, GB9b
    if after == "Consonant":  # GB9c
        marks = {"Extend", "ZWJ", "Linker"}
        marks = list(itertools.takewhile(marks.__contains__, reversed(kinds)))
        return "Linker" in marks and kinds[: -len(marks)][-1:] == ["Consonant"]
    if (before, after) == ("ZWJ", "Pictogram"):  # GB11
        start = itertools.dropwhile({"Extend", "ZWNJ", "Linker"}.__contains__, kinds[-2::-1])
        return next(start, None) == "Pictogram"
    flags = len(list(itertools.takewhile("Regional_Indicator".__eq__, reversed(kinds))))
    return after == "Regional_Indicator" and flags % 2 == 1  # GB12, GB13


def reverse(text):
    """Reverse the grapheme clusters of a text that consists of CLASSES, by the rules above."""
    kinds = [CLASS[char] for char in text]
    found = []
    for i, char in enumerate(text):
        if i and joined(kinds[:i], kinds[i]):
            found[-1] += char
        else:
            found.append(char)
    return "".join(reversed(found))


def reverse_by_python(text):
    return "".join(reversed([*map(str, unicodedata.iter_graphemes(text))]))


def random_texts():
    rng = random.Random(4)
    names = list(CLASSES)
    for size in (2, 3):
        for combination in itertools.product(names, repeat=size):
            yield "".join(rng.choice(CLASSES[name]) for name in combination)
    for _ in range(2000):
        few = rng.sample(names, rng.randint(1, 6))
        yield "".join(rng.choice(CLASSES[rng.choice(few)]) for _ in range(rng.randint(1, 40)))


class ReversingTest(Case):
    def as_before_3_15(self):
        # There the way of the older Pythons cannot be reached but by the version.
        return mock.patch.object(sys, "version_info", (3, 14))

    def test_lines(self):
        for lines, answer in (
            (b"", b""),
            (b"\n\n\r\n\n", b"\n\n\r\n\n"),
            (b"ab\ncd\r\nef\ngh\r\nij", b"ba\ndc\r\nfe\nhg\r\nji"),
            (b"ab\r", b"\rba"),  # no ending: the CR belongs to the line
            (b"\ra\n", b"a\r\n"),
            (b"a\rb\r\r\n", b"\rb\ra\r\n"),
            (b"\r\r\r\n\r", b"\r\r\r\n\r"),
            (b"a\0b\x0bc\x0cd\n", b"d\x0cc\x0bb\0a\n"),
            ("a\u2028b\x85c\u2029d\n".encode(), "d\u2029c\x85b\u2028a\n".encode()),
            ("aé\nbü\r\n".encode(), "éa\nüb\r\n".encode()),
            # What is not UTF-8 is characters too.
            (b"\xc3\xa9\xff\xe2\x82\n", b"\x82\xe2\xff\xc3\xa9\n"),  # é, a stray byte, a cut €
            (b"\xe2\x82\r\n\xac", b"\x82\xe2\r\n\xac"),  # an ending in the middle of €
            (b"\xed\xb2\x80\n", b"\x80\xb2\xed\n"),  # a surrogate is not UTF-8
            (b"\xf4\x90\x80\x80\n", b"\x80\x80\x90\xf4\n"),  # beyond U+10FFFF
            (b"a\xff\xcc\x81b\n", b"b\xcc\x81\xffa\n"),  # and nothing joins it
        ):
            self.assertEqual(revecho.reverse_lines(lines), answer, lines)

    def test_any_bytes(self):
        """They keep their length and their endings; where none joins another we know the rest."""
        rng = random.Random(1)
        alone = bytes({*range(256)} - {*range(0xCC, 0xF5)})  # in UTF-8 all below U+0300
        for size in range(300):
            alphabet = rng.choice((b"ab\r\n", b"a\xff\xc3\xa9\n\r", alone, bytes(range(256))))
            lines = bytes(rng.choices(alphabet, k=size))
            answer = revecho.reverse_lines(lines)
            endings = [len(line) for line in lines.split(b"\n")]
            self.assertEqual([len(line) for line in answer.split(b"\n")], endings)
            if 0xCC not in alphabet:
                parts = re.split("(\r?\n)", lines.decode("utf-8", "surrogateescape"))
                backwards = "".join(p if "\n" in p else p[::-1] for p in parts)
                self.assertEqual(answer, backwards.encode("utf-8", "surrogateescape"), lines)

    def test_scripts(self):
        """Each word is written as its clusters, with a bar between."""
        for script, words in {
            "Latin": "n|é|e n|e\u0301|e a\u0323\u0302|b a\u200d|b V|i|ê\u0323|t",
            "Greek, Cyrillic": "α\u0313\u0301|β и\u0306|ж",
            "Hebrew": "ש\u05c1\u05b8|ל|ו\u05b9|ם",
            "Arabic": "م\u064f|ح\u064e|م\u0651\u064e|د \u06001|2",
            "Kaithi, Kirat Rai": "\U000110bd1|2 \U00016d63\U00016d67|x",
            "Devanagari": "हि|न्दी क्ष|त्रि|य क्\u200dष|a क्\u200c|ष क\U00010a0f्ष|क्\U00010a0fष|a",
            "Bengali, Gujarati, Oriya, Telugu": "বাং|লা ગુ|જ|રા|તી ଓ|ଡ଼ି|ଆ తె|లు|గు",
            "Malayalam, Tamil, Kannada, Sinhala": "മ|ല|യാ|ളം த|மி|ழ் ಕ|ನ್|ನ|ಡ සිං|හ|ල",
            "Thai, Lao, Burmese, Tibetan": "ไ|ท|ย น้ำ ນ້ຳ မြ|န်|မ|ာ བོ|ད",
            "Hangul": "한|글 가\u11a8|나",
            "jamo": "\u1112\u1161\u11ab|\u1100\u1173\u11af \u1112\u1161\u0301|\u1100\u1161|b\u0301",
            "jamo of old": "\u1107\u1109\u1161|\u1112\u119e\u11ab|\u1100",
            "Japanese, Chinese": "ｶ\uff9e|ﾊ\uff9f は\u3099|な|カ\u3099 漢|字",
            "Chakma": "𑄌|𑄋𑄴|𑄟|𑄦|𑄃𑄧 𑄋𑄴|👍🏽|a|𑄃𑄧",
            "Adlam": "\U0001e928\U0001e946|\U0001e925\U0001e944|\U0001e922",
            "flags": "🇩🇪|🇫🇷|🇯🇵 🇩🇪|🇫 🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e007f|x",
            "emoji": "👍🏽|👍 1\ufe0f\u20e3|2 👨|👩 \uffff|🇩🇪|\uffff\u0301|👨\u200d👩\u0903",
            "emoji, joined": "👨\u200d👩|x ❤\ufe0f\u200d🔥 👩🏽\u200d🔬|x 🏳\ufe0f\u200d🌈|🏳\ufe0f",
            "joined, below U+FFFF": "☺\u200d❤|☺ ☺\u200c\u200d❤|☺\u094d\u200d❤|☺",
            "number signs": "\u0600👨\u200d👩|\u06001|\u0600\u06002\u0301",
            "marks": "a\u0300\u0301\U00010a0f|b\u0300\u0301\u200d|c",
            "control": "a|\u200b|\u0301|b a|\U000e0001|\u0301|b a|\r\n|b a|\r|\r\n|\n|b",
        }.items():
            for word in words.split(" "):
                text, backwards = word.replace("|", ""), "".join(reversed(word.split("|")))
                with self.subTest(script):
                    self.assertEqual(revecho.reverse_text(text), backwards)
                    if not re.search("[\r\n]", word):
                        answer = revecho.reverse_lines(text.encode() + b"\n")
                        self.assertEqual(answer, backwards.encode() + b"\n")

    def test_random_text(self):
        for text in random_texts():
            self.assertEqual(revecho.reverse_text(text), reverse(text), ascii(text))
            answer = "".join(map(reverse, re.split("(\r?\n)", text)))
            lines, answer = (t.encode("utf-8", "surrogateescape") for t in (text, answer))
            self.assertEqual(revecho.reverse_lines(lines), answer, lines)

    @needs_iter_graphemes
    def test_agreement_with_unicodedata(self):
        for manager in (self.as_before_3_15(), contextlib.nullcontext()):
            with manager:
                for text in random_texts():
                    if not re.search("[\ud800-\udfff]", text):
                        backwards = reverse_by_python(text)
                        self.assertEqual(revecho.reverse_text(text), backwards, ascii(text))

    @needs_iter_graphemes
    def test_each_character(self):
        """Without the branch for 3.15, each stands with those that show what it is."""
        self.stack(self.as_before_3_15())
        for char in map(chr, range(0x110000)):
            category = unicodedata.category(char)
            script = unicodedata.name(char, "").split()[:1]
            if category in ("Cn", "Co", "Cs") or script in (["CJK"], ["TANGUT"], ["EGYPTIAN"]):
                continue
            text = "a?\n?a\n?\u0301\n\u1100?\n?\u1175\n?\u11a8\n?\U0001f1e9\n??"
            if category[0] not in "NPS" or unicodedata.extended_pictographic(char):
                text += "\n?\u200d\u2764\n\u2764\u200d?"
            if category != "Mc" or unicodedata.indic_conjunct_break(char) == "Linker":
                text += "\n\u0915?\u0915\n\u0915\u094d?\n?\u094d\u0915\n\u0915\u094d?\u0915"
            text = text.replace("?", char)
            self.assertEqual(revecho.reverse_text(text), reverse_by_python(text), ascii(char))

    def test_no_question_asked_first_makes_a_difference(self):
        """Text with CR LF is not asked whether it has clusters."""
        for char in map(chr, (*range(0x3000), *range(0x3000, 0x10000, 16))):
            text = f"a{char}b{char}{char}"
            backwards = revecho.reverse_text(text)
            self.assertEqual(revecho.reverse_text(f"\r\n{text}"), f"{backwards}\r\n", ascii(char))
            if "\x80" <= char < "\u0800":  # two bytes
                answer = revecho.reverse_lines(text.encode())
                self.assertEqual(answer.decode(), backwards, ascii(char))

    @needs_even_speed
    def test_each_question_asked_first_saves_time(self):
        text, accented = "Zoe, " * 20_000, "Zoë, " * 20_000
        asked = seconds(revecho.reverse_text, accented, times=50)
        self.assertLess(seconds(revecho.reverse_text, text, times=50), asked / 2)
        self.assertLess(seconds(revecho.reverse_lines, accented.encode(), times=50), asked)
        self.assertLess(asked, seconds(revecho.reverse_text, f"{accented}\u0301") / 2)

    @needs_even_speed
    def test_time_is_in_proportion_to_length(self):
        units = """
            \u0301 \U0001f1e9 \u200d \u094d \u0915\u094d \u0915\u094d\U00010a0f \u094d\U00010a0f
            \u0915\u0301 \u0600 \u1100 \u1161 \u11a8 \u1112\u1161 \U00011100 \U00011103\U00011127
            \U0001f468\u200d \U0001f468\u0301 \U000e0041 \u200b \U0001f468\U000e0041
            \U0001f468\u200d\u0301 \U0001f1e9\u0301 \u06001 \uffff\u0301 a\u0301 a\u200d \uac00
            \udcff
        """
        ends = ("", ""), ("\U0001f468", "a"), ("\u0915", "\n"), ("\u1100", "\u200b")
        for unit, (start, end) in itertools.product(["\r", *units.split()], ends):
            n = 1000 // len(unit)
            ratio = seconds(revecho.reverse_text, start + unit * 4 * n + end, times=3)
            ratio /= seconds(revecho.reverse_text, start + unit * n + end, times=3)
            self.assertLess(ratio, 10, ascii(start + unit + end))  # 16 if it were quadratic

    @unittest.skipUnless(CPYTHON, "needs tracemalloc, which CPython has")
    def test_characters_are_remembered_within_bounds(self):
        import tracemalloc

        self.stack(self.as_before_3_15())
        private = "".join(map(chr, range(0xF0000, 0xF1000)))
        first = seconds(revecho.reverse_text, private, times=1)
        self.assertLess(seconds(revecho.reverse_text, private), first / 2)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for start in range(0x20000, 0x25000, 0x1000):
            revecho.reverse_text("".join(map(chr, range(start, start + 0x1000))))
        self.assertLess(tracemalloc.get_traced_memory()[0], 1_200_000)  # 2 million for all


# Cutting bytes into lines


class LinesTest(Case):
    SESSION = "né\r\nb\n\n€\rc\r\n".encode() + b"\xff\0x\nlast\r"
    ANSWER = "én\r\nb\n\nc\r€\r\n".encode() + b"x\0\xff\n\rtsal"

    def test_every_cut_in_two(self):
        server = self.serve()
        for cut in range(len(self.SESSION) + 1):
            until(lambda: not server.connections)
            with self.connect(server) as connection:
                (inside,) = until(lambda: list(server.connections))
                connection.sendall(self.SESSION[:cut])
                until(lambda inside=inside: not readable(inside))  # it has received that
                connection.sendall(self.SESSION[cut:])
                half_close(connection)
                self.assertEqual(receive(connection), self.ANSWER, cut)

    def test_every_size_of_receive(self):
        for size in range(5, len(self.SESSION) + 1):  # max_line is also the most that is received
            with running_server(max_line=size) as server:
                self.assertEqual(self.exchange(server, self.SESSION), self.ANSWER, size)

    def test_random_sessions_in_random_pieces(self):
        server, rng = self.serve(max_line=3000), random.Random(2)
        self.assertEqual(self.exchange(server, *map(bytes, zip(self.SESSION))), self.ANSWER)
        for _ in range(30):
            session = b""
            for _ in range(50):
                session += bytes(rng.choices(b"ab\r\xc3\xa9\xff", k=rng.choice((0, 1, 5, 900))))
                session += rng.choice((b"\n", b"\r\n"))
            session += rng.choice((b"", b"end", b"end\r"))
            cuts = sorted({0, *rng.choices(range(len(session)), k=rng.choice((3, 300)))})
            parts = [session[start:end] for start, end in zip(cuts, [*cuts[1:], None])]
            self.assertEqual(self.exchange(server, *parts), revecho.reverse_lines(session))

    def test_longest_line(self):
        """Its length alone decides, wherever it is cut."""
        for limit in (1, 2, 3, 100, 65536, 150_000):
            server = self.serve(max_line=limit)
            before, unit = b"\n" + b"a\n" * 5, b"bytes" if limit > 1 else b"byte"
            error = b"error: line longer than %d %s\n" % (limit, unit)
            line = (b"abcdefg" * limit)[:limit]
            odd = line[:-1] + b"\r"
            for last in (line, line + b"\n", line + b"\r\n", odd, odd + b"\r\n"):
                good, bad = before + last, before + b"x" + last
                more = before if last.endswith(b"\n") else b""
                for cut in (len(before), len(before) + limit // 2, len(good) - 1, len(good)):
                    answer = self.exchange(server, good[:cut], good[cut:])
                    self.assertEqual(answer, revecho.reverse_lines(good), (limit, last[-3:], cut))
                    answer = self.exchange(server, bad[:cut], bad[cut:], more)
                    self.assertEqual(answer, before + error, (limit, last[-3:], cut))


# One connection


class ConnectionTest(HeartCase):
    def test_reply_comes_at_once(self):
        connection = self.connect(self.serve())
        for line in (b"one\n", b"two\r\n", b"\n"):
            self.ask(connection, line)
        connection.sendall(b"pending\nhalf")  # what is whole is answered, what is not waits
        self.assertEqual(receive(connection, 8), b"gnidnep\n")
        connection.sendall(b" a line\n")
        self.assertEqual(receive(connection, 12), b"enil a flah\n")

    def test_pipelining_without_end(self):
        lines = b"".join(b"%d %s\n" % (n, b"x" * (n % 97)) for n in range(100_000))
        connection = self.connect(self.serve())
        self.on_thread(connection.sendall, lines)
        self.assertEqual(receive(connection, len(lines)), revecho.reverse_lines(lines))

    def test_answer_can_be_overridden(self):
        """It gets one line at a time, with its ending; what it raises loses no answer before."""

        def answer(_, line):
            seen.append(line)
            if line == b"quit\n":
                raise revecho.CloseConnection(b"bye\n")
            if line == b"-1\n":
                raise revecho.ProtocolError("none below 0")
            return b"%d " % len(line) + line

        seen = []
        server = self.serve(handler=subclass(revecho.LineHandler, answer=answer))
        self.assertEqual(self.exchange(server, b"a\rb\x0bc\r\n\nd"), b"7 a\rb\x0bc\r\n1 \n1 d")
        self.assertEqual(seen, [b"a\rb\x0bc\r\n", b"\n", b"d"])
        self.assertEqual({*map(type, seen)}, {bytes})
        for last, answered in ((b"quit\n", b"bye\n"), (b"-1\n", b"error: none below 0\n")):
            want = b"2 a\n2 b\n" + answered
            self.assertEqual(self.exchange(server, b"a\nb\n" + last + b"c\n"), want)
            self.assertEqual(self.exchange(server, b"a\n", b"b\n", last), want)
        self.assertEqual(self.warned(), [])

    def test_an_end_that_is_raised_again_and_again(self):
        """No client gets answers that were for another one."""

        def answer(_, line):
            if line == b"quit\n":
                raise bye
            return line

        bye = revecho.CloseConnection(b"bye\n")
        server = self.serve(handler=subclass(revecho.LineHandler, answer=answer))
        for line in (b"one\n", b"two\n"):
            self.assertEqual(self.exchange(server, line + b"quit\n"), line + b"bye\n")

    def test_nothing_overridden(self):
        server = self.serve(handler=revecho.LineHandler)
        self.assertEqual(self.exchange(server, b"hello\n"), b"")
        self.until_logged("serving it Traceback")

    def test_respond_can_be_overridden(self):
        """It gets whole lines, as bytes; to loop over them works as the documentation shows."""
        seen = []

        def respond(_, lines):
            seen.append(lines)
            return b"".join(b"%d " % len(line) + line for line in io.BytesIO(lines))

        server = self.serve(respond=respond)
        self.assertEqual(self.exchange(server, b"a\rb\x0bc\n\nd"), b"6 a\rb\x0bc\n1 \n1 d")
        self.assertEqual(seen, [b"a\rb\x0bc\n\n", b"d"])
        self.assertEqual({*map(type, seen)}, {bytes})

    def test_handle_can_be_overridden(self):
        def handle(handler):
            for line in handler.rfile:
                handler.wfile.write(line.upper())

        self.assertEqual(self.exchange(self.serve(handle=handle), b"a\nb\n"), b"A\nB\n")

    def test_a_handler_that_raises(self):
        """The client gets the end, and no reset; the exception is logged with its traceback."""

        def fail(*_):
            raise ConnectionResetError("of something else")

        for step, data in (("setup", b""), ("respond", b"a\n" + b"x" * 100_000), ("finish", b"")):
            before = held()
            with running_server(**{step: fail}) as server:
                self.assertEqual([self.exchange(server, data) for _ in "12"], [b""] * 2)
            self.assertTrue(given_back(before))
            gone = [message for message in self.logged() if " gone " in message]
            self.assertEqual(len(gone), 2)
            for message in gone:
                self.assertRegex(message, " gone .* 0 bytes sent: the handler failed$")
            for message in self.warned():
                self.assertRegex(message, r"^127\.0\.0\.1:\d+: exception while .* Traceback$")
            failures = [record.exc_info[0] for record in self.records if record.exc_info]
            self.assertEqual(failures, [ConnectionResetError] * 2)
            self.records.clear()

    def test_a_failure_is_logged_before_the_peer_is_heard_out(self):
        server = self.serve(respond=lambda *_: 1 / 0, drain_quiet=LONG, drain_time=LONG)
        with self.connect(server, b"hello\n"):
            self.until_logged("Traceback")
            self.assertEqual(len(server.connections), 1)

    def test_finish_comes_after_everything(self):
        """After the last reply, and after a failure, which it does not hide."""

        def finish(handler):
            handler.send(b"bye\n")
            Handler.finish(handler)
            raise revecho.CloseConnection(b"really\n")

        for respond, answer in (
            (revecho.reverse_lines, b"olleh\n"),
            (lambda _: revecho.CloseConnection(b"last\n"), b"last\n"),
            (lambda _: revecho.CloseConnection("no bytes"), b""),
            (lambda _: ZeroDivisionError(), b""),
        ):

            def respond_or_raise(_, lines, respond=respond):
                reply = respond(lines)
                if isinstance(reply, Exception):
                    raise reply
                return reply

            server = self.serve(respond=respond_or_raise, finish=finish)
            self.assertEqual(self.exchange(server, b"hello\n"), answer + b"bye\nreally\n")
            self.until_logged("gone" if answer else "Traceback")

    def test_close_connection(self):
        """The last bytes arrive, also when raised in a handle() and though the peer sends on."""

        def respond(_, lines):
            before, quit_line, _ = lines.partition(b"quit\n")
            if quit_line:
                raise revecho.CloseConnection(before + b"bye\n", why="it was asked to")
            return lines

        def handle(handler):
            Handler.handle(handler)
            raise revecho.CloseConnection(b"served\n")

        server = self.serve(respond=respond, handle=handle)
        self.assertEqual(self.exchange(server, b"1\nquit\n", b"2\n" * 100_000), b"1\nbye\n")
        self.assertRegex(self.until_logged(" gone ")[-1], "6 bytes sent: it was asked to$")
        self.assertEqual(self.exchange(server, b"1\n2\n"), b"1\n2\nserved\n")
        self.assertEqual(self.warned(), [])

    def test_an_end_in_setup(self):
        """It is as polite there; and a server that stops is no failure of the handler."""

        def setup(handler):
            Handler.setup(handler)
            handler.send(b"name?\n")
            if handler.receive() != b"me\n":
                raise revecho.ProtocolError("go away")
            handler.send(b"hello, me\n")

        server = self.serve(setup=setup)
        self.assertEqual(self.exchange(server, b"you\n"), b"name?\nerror: go away\n")
        connection = self.connect(server, b"me\n")
        self.assertEqual(receive(connection, 16), b"name?\nhello, me\n")
        with self.connect(server) as connection:
            self.assertEqual(receive(connection, 6), b"name?\n")
            server.server_close()
            self.assertEqual(receive(connection), b"")
        self.assertRegex(self.logged()[-1], " gone .*: stopping$")
        self.assertEqual(self.warned(), [])

    def test_an_end_of_what_is_closed(self):
        """Though it says something, or receives; by then the descriptor may be another's."""

        def say(_):
            raise revecho.CloseConnection(b"bye\n", why="done")

        def receive_more(handler):
            self.assertEqual(handler.receive(), b"x")
            handler.rfile.close()
            handler.request.close()
            with contextlib.ExitStack() as others:  # never readable
                for _ in range(20):
                    others.enter_context(reading.dup())
                handler.receive()

        reading, writing = socket.socketpair()
        self.stack(reading), self.stack(writing)
        for step, why in ((say, "done"), (receive_more, r"\S.*")):

            def handle(handler, step=step):
                if step is say:
                    handler.rfile.close()
                    handler.request.close()
                step(handler)

            receive_until_gone(self.connect(self.serve(handle=handle), b"x"))
            self.assertRegex(self.until_logged(" gone ")[-1], f"sent: {why}$")
            self.assertEqual(self.warned(), [])

    def test_an_error_for_a_peer_that_has_gone(self):
        def refuse(*_):
            raise revecho.ProtocolError("no")

        server, connection, gate = self.busy(respond=refuse)
        reset(connection)
        gate.open()
        until(lambda: not server.connections)
        self.assertEqual(self.warned(), [])

    def test_an_end_though_a_file_is_open(self):
        """The client gets it, though the handler has left files, or another process has it."""

        def setup(handler):
            files.append(handler.request.makefile("rb"))
            self.stack(handler.request.dup())  # as a fork does
            Handler.setup(handler)

        files, before = [], held()
        server = self.serve(setup=setup)
        self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")
        server.server_close()
        until(lambda: held()[1] <= before[1] + 1)  # the duplicate

    def test_greeting(self):
        """It comes before anything is asked, and at a stop like everything else."""

        def handle(handler):
            handler.send(b"welcome\n")
            Handler.handle(handler)

        server = self.serve(handle=handle)
        connection = self.connect(server)
        self.assertEqual(receive(connection, 8), b"welcome\n")
        self.ask(connection)
        with self.connect(server) as other:
            server.server_close()
            self.assertEqual(receive(other), b"welcome\n")
        self.assertEqual(receive(connection), b"")

    def frames(self, **limits):
        """Serve frames that begin with a byte for their length, and come back reversed."""

        def handle(handler):
            data = b""
            while more := handler.receive():
                data += more
                while data and len(data) > data[0]:
                    handler.send(data[:1] + data[data[0] : 0 : -1])
                    data = data[1 + data[0] :]

        return self.serve(handle=handle, **limits)

    def test_binary_frames(self):
        """By a handle() of one's own; a stop answers what has arrived, as for lines."""
        frames, answer = b"\3abc\2xy\0\1a", b"\3cba\2yx\0\1a"
        server = self.frames()
        for cut in range(len(frames)):
            self.assertEqual(self.exchange(server, frames[:cut], frames[cut:]), answer)
        idle, half = self.connect(server, frames), self.connect(server, frames + b"\4ab")
        for connection in (idle, half):
            self.assertEqual(receive(connection, len(answer)), answer)
        server.server_close()
        self.assertEqual((receive(idle), receive(half)), (b"", b""))

    def test_protocol_error(self):
        """The peer is told, after the answers to the lines before, wherever TCP cut them."""

        def respond(_, lines):
            before, minus, _ = lines.partition(b"-")
            if minus:
                raise revecho.ProtocolError("none below 0\udcff", before)
            return lines

        server = self.serve(respond=respond)
        error = b"error: none below 0\xff\n"
        self.assertEqual(self.exchange(server, b"1\n2\n-3\n4\n"), b"1\n2\n" + error)
        connection = self.connect(server)
        self.ask(connection, b"1\n")
        connection.sendall(b"2\n-3\n" + b"4\n" * 100_000)
        self.assertEqual(receive(connection), b"2\n" + error)
        until(lambda: not server.connections)
        self.assertEqual("".join(self.logged()).count(r", 25 bytes sent: none below 0\udcff"), 2)
        self.assertEqual(self.warned(), [])

    def test_log_of_a_connection(self):
        server = self.serve(max_line=5)
        for data, end in (
            (b"hello\nyou", "9 bytes sent"),
            (b"hello\ntoo long\n", "38 bytes sent: line longer than 5 bytes"),
        ):
            self.exchange(server, data)
            first, last = self.until_logged(" gone ")
            self.assertRegex(first, r"^127\.0\.0\.1:\d+ connected$")
            self.assertRegex(last, rf"^127\.0\.0\.1:\d+ gone after \d+\.\d s, {end}$")
        if not WINE:
            reset(self.connect(server))
            why = os.strerror(errno.ECONNRESET) if POSIX else r"\S.*"
            self.assertRegex(self.until_logged(" gone ")[-1], f"sent: {why}$")
        self.connect(server)
        self.until_logged("connected")
        server.server_close()
        self.assertRegex(self.until_logged(" gone ")[-1], "sent: stopping$")

    def test_socket_of_a_connection(self):
        """No reply waits for an acknowledgement, and a peer that vanishes does not stay for ever.

        The program's default timeout is no matter.
        """
        self.addCleanup(socket.setdefaulttimeout, None)
        socket.setdefaulttimeout(0.001)
        server = self.serve()
        self.ask(self.connect(server))
        (inside,) = server.connections
        self.assertTrue(inside.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(inside.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertIn(inside.gettimeout(), (None, 0))

    def test_no_option_of_a_connection_is_essential(self):
        class Refusing(socket.socket):
            def setsockopt(self, *_):
                asked.append(self)
                raise OSError(errno.EINVAL, "refused")

        def get_request(server):
            request, address = Server.get_request(server)
            return Refusing(fileno=request.detach()), address

        class Listener(socket.socket):
            def accept(self):
                connection, address = super().accept()
                return Refusing(fileno=connection.detach()), address

        def server_bind(server):
            kind = server.socket.family, server.socket.type, server.socket.proto
            server.socket = Listener(*kind, server.socket.detach())
            Server.server_bind(server)

        asked = []
        for changes in ({"server_bind": server_bind}, {"get_request": get_request}):
            server = self.serve(idle_timeout=LONG, **changes)
            self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")
        self.assertTrue(asked)
        self.assertEqual(self.warned(), [])

    @needs_linux
    def test_error_arrives_though_the_client_goes_on_sending(self):
        process = self.start_server("--max-line 1000")
        connection = self.connect(process, b"hello\n" * 1000)
        self.assertEqual(receive(connection, 6000), b"olleh\n" * 1000)
        memory, block = resident(process.pid), b"x" * (1 << 20)
        for _ in range(200):
            connection.sendall(block)
        self.assertEqual(receive(connection), b"error: line longer than 1000 bytes\n")
        self.assertLess(resident(process.pid) - memory, 20_000)

    def test_drain(self):
        """It ends our side at once.  Though the client does not close, it ends, for any reason."""
        error, patient = b"error: line longer than 10 bytes\n", {"drain_quiet": LONG}

        def gone(server, connection, more=b""):
            with contextlib.suppress(ConnectionError):
                connection.sendall(more)
            return not server.connections

        for limits, more in (
            ({}, b""),  # no input for some time
            ({**patient, "drain_time": 0.2}, b"x"),  # time altogether
            ({**patient, "drain_time": LONG, "drain_limit": 1 << 20}, b"x" * (1 << 20)),  # amount
        ):
            server = self.serve(max_line=10, **limits)
            connection = self.connect(server, b"x" * 11)
            self.assertEqual(receive(connection), error)
            until(functools.partial(gone, server, connection, more))
        server = self.serve(max_line=10, **patient)
        with self.connect(server, b"x" * 11) as connection:  # need not wait for anything else
            self.assertEqual(receive(connection), error)

    @needs_allocator
    def test_memory(self):
        """None for what has been answered; a line that never ends is held once only."""
        process = self.start_server(f"--max-line {1 << 30}")
        self.ask(self.connect(process))
        memory = resident(process.pid)
        crowd = self.crowd(200, process, b"x" * 60_000 + b"\n")
        for connection in crowd:
            self.assertEqual(len(receive(connection, 60_001)), 60_001)
        self.assertLess((resident(process.pid) - memory) / len(crowd), 180)  # KiB
        memory = resident(process.pid)
        crowd[0].sendall(b"x" * (40 << 20))
        until(lambda: resident(process.pid) - memory > 25_000)  # the rest is what was free again
        self.assertLess(resident(process.pid) - memory, 60_000)


class ConnectionsTest(Case):
    def test_many_at_the_same_time(self):
        server = self.serve()
        connections = self.crowd(200, server, b"")
        until(lambda: len(server.connections) == 200)
        lines = [b"line %d\n" % number for number in range(200)]
        for _ in range(2):
            for line, connection in zip(lines, connections):
                connection.sendall(line)
            for line, connection in zip(lines[::-1], connections[::-1]):
                self.assertEqual(receive(connection, len(line)), revecho.reverse_lines(line))

    @needs_resets
    def test_resets_at_any_time(self):
        server = self.serve()
        before = held()
        other = self.connect(server)
        for number in range(400):
            data = (b"", b"half", b"whole\n", b"long\n" * 10_000)[number % 4]
            connection = self.connect(server, data)
            if number % 8 > 5:
                connection.recv(1)
            reset(connection)
        until(lambda: len(server.connections) == 1)
        self.ask(other)
        other.close()
        until(lambda: given_back(before))
        messages = self.logged()
        self.assertEqual([m for m in messages if "Traceback" in m or "\n" in m], [])
        self.assertTrue(any("reset" in m for m in messages))


class IdleTest(HeartCase):
    IDLE = 0.3  # seconds, in which no test client is held up on a busy machine

    def serve(self, *arguments, **changes):
        return super().serve(*arguments, **{"idle_timeout": self.IDLE, **changes})

    def test_silent_client(self):
        """It is closed, but not one that gets a line answered now and then."""
        server = self.serve()
        silent, talking = self.crowd(2, server, b"")
        until(lambda: self.ask(talking) or readable(silent))
        self.assertEqual(silent.recv(1), b"")
        self.assertRegex(self.until_logged(" gone ")[-1], "after 0.[3-9] s, 0 bytes sent: idle$")
        until(lambda: len(server.connections) == 1)
        self.ask(talking)

    def test_client_that_drips(self):
        """Its drops give it no more time, and it is told, though it goes on."""
        connection = self.connect(self.serve(drain_quiet=0.3))
        self.ask(connection)
        began = time.monotonic()
        until(lambda: connection.sendall(b"x") or readable(connection))
        self.assertLess(time.monotonic() - began, LIMIT / 2)
        connection.sendall(b"x")
        self.assertEqual(receive(connection), b"error: line not finished within 0.3 seconds\n")

    def test_client_that_floods_after_its_time(self):
        """It is told, too, if its line is not too long before."""
        error = b"error: line (not finished within 0.3 seconds|longer than 1000000000 bytes)\n"
        connection = self.connect(self.serve(max_line=10**9), b"half")
        self.flood(connection, b"x" * 1000)
        self.assertRegex(receive(connection), error)

    def test_words_for_one_second(self):
        connection = self.connect(self.serve(idle_timeout=1), b"half")
        self.assertEqual(receive(connection), b"error: line not finished within 1 second\n")

    def test_respond_that_takes_longer_than_the_idle_timeout(self):
        """The peer did nothing wrong; the rest of its line has its time from then on."""

        def respond(_, lines):
            time.sleep(1.2 * self.IDLE)
            return revecho.reverse_lines(lines)

        connection = self.connect(self.serve(respond=respond), b"whole\nhalf")
        self.assertEqual(receive(connection, 6), b"elohw\n")
        connection.sendall(b" a line\nhalf")
        self.assertEqual(receive(connection, 12), b"enil a flah\n")
        self.assertEqual(receive(connection), b"error: line not finished within 0.3 seconds\n")

    def test_client_that_does_not_read(self):
        """It is cut, and only then; if it reads in time, its time begins again."""
        server, connection = self.serve_one_who_does_not_read(idle_timeout=LONG, grace=0)
        receive(connection, 64 << 20)
        server.server_close()
        self.serve_one_who_does_not_read(drain_time=LONG)
        shown = self.until_logged(" bytes sent: idle")[-1]
        self.assertRegex(shown, r"after (0\.[3-9]|\d+\.\d) s, \d+ b")

    def test_a_peer_that_reads_a_large_reply_slowly(self):
        """It has the same time, however much of that it has read; the log tells how much."""
        connection = self.connect(self.serve(respond=lambda *_: b"x" * (64 << 20)), b"hello\n")
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                received += len(data)
                if received < 1 << 22:  # until it is cut; then what is on its way comes
                    time.sleep(0.01)
        self.assertLess(received, 64 << 20)
        message = self.until_logged(" gone ")[-1]
        self.assertRegex(message, " [0-9]+ bytes sent: idle$")
        sent = int(message.split()[-4])
        self.assertTrue(received <= sent < 64 << 20, message)

    def test_a_handle_of_ones_own(self):
        """Its time begins again with each send(), and a peer that drips does not extend it."""

        def handle(handler):
            while data := handler.receive():
                if b"?" in data:
                    handler.send(b"!")

        connection = self.connect(self.serve(handle=handle))
        for _ in range(3):
            time.sleep(0.4 * self.IDLE)
            connection.sendall(b"?")
            self.assertEqual(receive(connection, 1), b"!")

        def drips_until_the_end():
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"x")
            return readable(connection)

        until(drips_until_the_end)
        self.assertEqual(receive_until_gone(connection), b"")
        self.assertRegex(self.until_logged(" gone ")[-1], "3 bytes sent: idle$")

    def late(self, data, **changes):
        """Return a client whose handler looks for what it has sent when its time is over."""

        def handle(handler):
            handler.send(b"hello\n")
            gate.wait()
            time.sleep(1.2 * self.IDLE)
            Handler.handle(handler)

        gate = self.gate()
        connection = self.connect(self.serve(handle=handle, **changes), data)
        self.assertEqual(receive(connection, 6), b"hello\n")
        gate.until_reached()
        return connection, gate

    def test_a_thread_that_is_late(self):
        """What has come meanwhile has come in time: a long line, lines in pieces, an end."""
        line = b"x" * 50_000 + b"\n"
        for drip in (b"", b"half"):
            connection, gate = self.late(line + drip)
            gate.open()
            self.assertEqual(receive(connection, len(line)), line)
        connection, gate = self.late(b"half")
        half_close(connection)
        gate.open()
        self.assertEqual(receive(connection), b"flah")

    def test_idle_clients_give_way_at_the_limit(self):
        server = self.serve(max_connections=1)
        silent, waiting = self.connect(server), self.connect(server, b"hello\n")
        self.assertEqual(receive(waiting, 6), b"olleh\n")
        self.assertEqual(silent.recv(1), b"")

    def test_timeout_of_socketserver(self):
        """It does not get in the way."""
        connection = self.connect(self.serve(timeout=LONG))
        self.ask(connection)
        self.assertEqual(receive(connection), b"")

    @unittest.skipUnless(CPYTHON, "needs reference counts")
    def test_an_end_leaves_nothing_for_the_garbage_collector(self):
        def setup(handler):
            handlers.add(handler)
            Handler.setup(handler)

        gc.disable()
        self.addCleanup(gc.enable)
        handlers = weakref.WeakSet()
        server = self.serve(setup=setup)
        receive(self.connect(server, b"half"))
        until(lambda: not handlers)
        self.connect(server, b"half")
        until(lambda: server.connections)
        server.server_close()
        until(lambda: not handlers)

    def test_no_idle_timeout(self):
        connection = self.connect(self.serve(idle_timeout=0), b"hel")
        self.until_logged("connected")
        connection.sendall(b"lo\n")
        self.assertEqual(receive(connection, 6), b"olleh\n")


# All connections: workers


class WorkersTest(Case):
    def test_threads_are_reused(self):
        names = set()

        def respond(_, lines):
            names.add(threading.current_thread().name)
            return lines

        server = self.serve(respond=respond)
        for _ in range(20):
            self.exchange(server, b"hello\n")
            until(lambda: not server.connections)
        self.assertLess(len(names), 10)

    def test_nothing_stays_behind_after_a_crowd(self):
        """Neither threads nor what is known of them, though others come now and then."""

        def respond(_, lines):
            threads.add(threading.current_thread())
            return lines

        threads = weakref.WeakSet()
        server = self.serve(respond=respond)
        before = held()
        crowd = self.crowd(300, server)
        for connection in crowd:
            receive(connection, 6)
        self.assertGreater(threading.active_count(), 300)
        for connection in crowd:
            connection.close()

        def are_few():
            for _ in range(10):  # at the same time as the others could serve them
                self.exchange(server, b"hello\n")
            return threading.active_count() < before[0] + 10

        until(are_few)
        until(lambda: given_back(before))
        until(lambda: (gc.collect(), not threads)[1])

    def test_no_room_for_another_thread(self):
        start, room = threading.Thread.start, threading.active_count() + 4

        def start_if_there_is_room(thread):
            if threading.active_count() >= room:
                raise RuntimeError("can't start new thread")
            start(thread)

        server = self.serve()
        # This process is not to run out of threads in earnest.
        with mock.patch.object(threading.Thread, "start", start_if_there_is_room):
            crowd = self.crowd(10, server)
            until(self.warned)
            for connection in crowd:
                self.assertEqual(receive(connection, 6), b"olleh\n")
                connection.close()
        self.assertEqual(self.warned(), ["cannot accept, others wait: can't start new thread"])

    def test_a_handler_that_hangs_does_not_keep_the_program(self):
        program = """if True:
            import revecho, threading
            class Hanging(revecho.ReverseHandler):
                def respond(self, lines):
                    begun.set()
                    threading.Event().wait()
            begun = threading.Event()
            with revecho.running_server(RequestHandlerClass=Hanging, grace=0) as server:
                connection = revecho.socket.create_connection(server.server_address)
                connection.sendall(b"hello\\n")
                begun.wait()
            connection.close()
        """
        self.assert_ends(self.start(program=("-c", program)))

    def test_a_handler_that_exits_its_thread(self):
        """Another thread serves the next connection."""
        server = self.serve(respond=lambda *_: sys.exit())
        for _ in range(3):
            self.assertEqual(self.exchange(server, b"hello\n"), b"")
        server.server_close()
        self.assertEqual(self.warned(), [])


# All connections: the server


class ServerTest(Case):
    def test_bad_arguments(self):
        limits = ("max_connections", 0), ("max_line", 0), ("idle_timeout", -1), ("grace", -0.1)
        for name, value in (*limits, ("idle_timeout", float("nan")), ("grace", float("inf"))):
            with self.assertRaisesRegex(ValueError, rf"^{name} must be from [01] to \d+$"):
                revecho.ReverseServer(("127.0.0.1", 0), **{name: value})
        with self.assertRaises(OverflowError):
            revecho.ReverseServer(("127.0.0.1", 70000))

    def test_what_cannot_listen_leaves_nothing(self):
        def fail(*_, **__):
            raise OSError("no more sockets")

        server = self.serve()
        before = held()
        for host in ("127.0.0.1", "192.0.2.1", "x" * 64):  # in use, not of this machine, no name
            with self.assertRaises(OSError):
                revecho.ReverseServer((host, at(server)[1]))
        for function in ("socket", "socketpair"):
            with mock.patch.object(socket, function, fail), self.assertRaises(OSError):
                revecho.ReverseServer(("127.0.0.1", 0))
        self.assertTrue(given_back(before))
        logging.getLogger("revecho").setLevel(logging.DEBUG)
        with self.assertRaises(OSError):
            revecho.ReverseServer(at(server))
        self.assertNotIn("started", "".join(self.logged(logging.DEBUG)))

    def test_handle_request_is_not_supported(self):
        server = self.stack(Server(("127.0.0.1", 0)))
        with self.assertRaisesRegex(NotImplementedError, "call serve_forever"):
            server.handle_request()

    def test_shutdown(self):
        """It is another name of server_close(), also where nobody serves, and for a subclass."""

        class Store(Server):
            closed = 0

            def server_close(self):
                self.closed += 1
                super().server_close()

        for serving in (False, True):
            server = Store(("127.0.0.1", 0))
            if serving:
                thread = self.on_thread(server.serve_forever)
                self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")
            server.shutdown()
            self.assertEqual((server.closed, server.socket.fileno()), (1, -1))
            if serving:
                self.join(thread)
            server.shutdown()

    @needs_linux
    def test_an_idle_server_makes_no_wake_up(self):
        """Nor does the command around it; so nothing of them looks at a clock."""

        def switches():
            texts = [task.read_text() for task in tasks.glob("*/status")]
            return sorted(int(re.search(r"\nvol.*:\s*(\d+)", text)[1]) for text in texts)

        process = self.start_server("--idle-timeout 0")
        tasks = pathlib.Path(f"/proc/{process.pid}/task")
        gone, idle = self.connect(process), self.connect(process)
        self.ask(gone)
        self.ask(idle)
        gone.close()
        before = len(os.listdir(tasks))  # its worker waits for a second, and then ends
        until(lambda: len(os.listdir(tasks)) < before)
        before = switches()
        time.sleep(0.3)  # to see that nothing happens
        self.assertEqual(switches(), before)
        self.ask(idle)

    def test_idle_time_counts_from_the_end_of_a_reply(self):
        """A peer that takes its time to read a reply has all of it again before the next line."""
        unit = 2 if POSIX else 3  # seconds; Wine is slow
        server = self.serve(max_line=1 << 25, idle_timeout=unit)
        connection, line = self.connect(server), b"x" * (1 << 25) + b"\n"
        self.on_thread(connection.sendall, line)
        self.assertEqual(receive(connection, 1), b"x")
        time.sleep(0.6 * unit)
        self.assertEqual(receive(connection, len(line) - 1), line[1:])
        time.sleep(0.6 * unit)
        self.ask(connection)

    def test_verify_request(self):
        """Who is refused is closed at once, so that nobody else waits."""

        def verify_request(_, request, __):
            question = request.recv(2)
            if question == b"?\n":
                raise OSError("the client is gone, say")
            return question == b"y\n"

        patient = {"drain_quiet": LONG, "drain_time": LONG}
        server = self.serve(verify_request=verify_request, **patient)
        for question in (b"n\n", b"?\n"):
            silent, flooding = self.connect(server, question), self.connect(server, question)
            self.flood(flooding, b"x" * 1000)
            self.assertEqual(self.exchange(server, b"y\nhello\n"), b"olleh\n")
            self.assertEqual(receive(silent), b"")
        (failure, *_) = self.warned()
        self.assertRegex(failure, r"^127\.0\.0\.1:\d+: exception while serving it Traceback")
        until(lambda: not server.connections)

    def test_close_request(self):
        """It is the hook for the end of each connection."""

        def close_request(server, request):
            closed.append(request)
            Server.close_request(server, request)

        closed = []
        server = self.serve(close_request=close_request, verify_request=lambda *_: not closed)
        self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")
        until(lambda: closed)
        receive_until_gone(self.connect(server))
        until(lambda: len(closed) == 2)

    @unittest.skipIf(WINE, "in Wine another connection takes its place")
    def test_a_connection_that_is_gone_before_accept(self):
        """The listener does not wait for another one: the server stops though none comes."""

        def get_request(server):
            if not robbed.is_set():
                server.socket.accept()[0].close()
                robbed.set()
            return Server.get_request(server)

        robbed = threading.Event()
        server = self.serve(get_request=get_request)
        self.connect(server)
        self.assertTrue(robbed.wait(LIMIT))
        server.server_close()

    def failing(self, errors=()):
        """Return a server whose accept() raises these errors in turn, and its thread's outcome."""

        class Listener(socket.socket):
            def accept(self):
                if error := next(errors, None):
                    raise error
                return super().accept()

        def server_bind(server):
            kind = server.socket.family, server.socket.type, server.socket.proto
            server.socket = Listener(*kind, server.socket.detach())
            Server.server_bind(server)

        def serve():
            try:
                outcome.put(server.serve_forever())
            except OSError as error:
                outcome.put(error.errno)

        errors, outcome = iter(errors), queue.SimpleQueue()
        server = subclass(Server, server_bind=server_bind)(("127.0.0.1", 0), Handler)
        self.on_thread(serve)
        self.addCleanup(server.server_close)
        return server, outcome

    def test_errors_of_accept(self):
        """Those of one connection, and a lack of room, are got over; the second is told, once."""
        passing = "EAGAIN", "EINTR", "ECONNABORTED", "ECONNRESET", "ENOTCONN", "EPROTO", "EHOSTDOWN"
        numbers = (getattr(errno, name) for name in passing)
        lacking = errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM
        server, _ = self.failing([*(OSError(n, "") for n in numbers), OSError("of a subclass")])
        self.ask(self.connect(server))
        self.assertEqual(self.warned(), [])
        errors = [MemoryError(), *(OSError(number, "") for number in lacking)]
        for connection in [self.connect(self.failing([error] * 2)[0]) for error in errors]:
            self.ask(connection)
        self.assertEqual(len(self.warned()), len(errors))

    def test_a_lack_that_lasts(self):
        """It costs no processor time, and does not keep the server from its stop."""
        server, _ = self.failing(itertools.repeat(OSError(errno.EMFILE, "")))
        server.grace = LONG
        self.connect(server)
        until(self.warned)
        before = time.process_time()
        time.sleep(0.3)  # in which nothing happens
        self.assertLess(time.process_time() - before, 0.1)
        self.join(self.closing(server))

    def test_those_in_the_listen_queue_get_room(self):
        """Also in the course of a stop."""

        def errors():
            while True:
                yield OSError(errno.EMFILE, "") if len(server.connections) > 1 else None

        server, _ = self.failing(errors())
        crowd = self.crowd(6, server)
        until(self.warned)
        server.server_close()
        self.assertEqual([receive(each) for each in crowd], [b"olleh\n"] * 6)

    def test_a_stop_is_seen_by_who_waits_for_room(self):
        server, *_ = self.busy(max_connections=1, grace=0)
        self.connect(server)
        until(self.warned)
        self.join(self.closing(server))

    @needs_wake
    def test_a_stop_while_the_log_is_slow(self):
        """It is seen by who is about to wait for room, too."""

        def stop(record):
            if "others wait" in record.getMessage():
                self.closing(server)

        logging.getLogger("revecho").handlers[0].emit = stop
        server = self.serve(max_connections=1, idle_timeout=0, grace=0.2)
        server.RequestHandlerClass = subclass(Handler, handle=lambda it: it.rfile.read())
        threads = threading.active_count()
        self.crowd(2, server, b"")
        until(lambda: server.stopping)
        until(lambda: threading.active_count() < threads)

    def test_a_broken_listener(self):
        """It ends serve_forever() with the error."""
        for number in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT):
            server, outcome = self.failing([OSError(number, "")])
            self.connect(server)
            self.assertEqual(outcome.get(timeout=LIMIT), number)
        if POSIX:  # elsewhere this does nothing to a listener
            server, outcome = self.failing()
            self.ask(self.connect(server))
            shut(server.socket)
            self.assertIsInstance(outcome.get(timeout=LIMIT), int)

    def test_an_interrupt_at_any_line(self):
        """Ctrl-C in a program whose main thread serves leaves nothing behind."""

        def interrupted(count):
            server = self.stack(Server(("127.0.0.1", 0), Handler, grace=LIMIT))
            with socket.create_connection(at(server), LIMIT) as connection:
                with warnings.catch_warnings(), self.assertRaises(KeyboardInterrupt):
                    warnings.simplefilter("ignore", ResourceWarning)
                    interrupt_at_line(count, server.serve_forever)
                gc.collect()
                server.server_close()
                self.assertEqual(receive_until_gone(connection), b"")

        before = held()
        for count in range(1, 55, EACH):  # then it waits for another client
            with self.subTest(count):
                interrupted(count)
        until(lambda: given_back(before))

    def test_an_interrupt_at_any_line_of_a_stop(self):
        """Then another call does what is left to do."""
        before = held()
        for number in itertools.count(1, EACH):
            faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)
            with running_server() as server, socket.create_connection(at(server)):
                until(lambda server=server: server.connections)
                try:
                    interrupt_at_line(number, server.server_close)
                    break
                except KeyboardInterrupt:
                    server.server_close()
            with self.subTest(number):
                self.assertEqual((server.socket.fileno(), server.stop_signal.fileno()), (-1, -1))
                until(lambda: given_back(before))
        self.assertGreater(number, 30)

    def test_crowd_waits_at_the_limit(self):
        server = self.serve(max_connections=3)
        for pause in 0, 1.1:  # after a second the next crowd is another
            time.sleep(pause)
            crowd = self.crowd(12, server)
            until(lambda: len(server.connections) == 3)
            self.assertLessEqual(len(readable(*crowd)), 3)
            while crowd:
                for connection in readable(*crowd, seconds=LIMIT):
                    self.assertLessEqual(len(server.connections), 3)
                    self.assertEqual(receive(connection, 6), b"olleh\n")
                    crowd.remove(connection)
                    connection.close()
            until(lambda: not server.connections)
            self.assertEqual(
                self.warned(),
                ["cannot accept, others wait: the limit max_connections=3 is reached"],
            )
            self.records.clear()

    def exhaust(self, message, kind, limit, prepare):
        """Run a server short of something; see that it serves everyone and stops on a signal.

        *kind* is the folder in /proc that shows the *limit* of them when no more are to be had.
        """
        program = f"""if True:
            import contextlib, encodings.idna, io, os, resource, sys
            import revecho
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                revecho.main(["--help"])  # imports what it needs
            {prepare}
            sys.exit(revecho.main())
        """

        def crowd():
            connections = self.crowd(150, process)
            until(lambda: len(os.listdir(f"/proc/{process.pid}/{kind}")) == limit)
            return connections

        log = self.stack(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        process = self.start_server(program=("-c", program), stderr=log)
        waiting = crowd()
        before = processor_seconds(process.pid)
        time.sleep(0.3)
        self.assertLess(processor_seconds(process.pid) - before, 0.15)  # it does not spin
        while waiting:
            for connection in readable(*waiting, seconds=LIMIT):
                self.assertEqual(receive(connection, 6), b"olleh\n")
                waiting.remove(connection)
                connection.close()
        crowd()
        process.terminate()
        self.assertEqual(process.wait(LIMIT), 0)
        log.seek(0)
        text = log.read()
        self.assertNotIn("Traceback", text)
        self.assertIn(text.count("cannot accept, others wait: " + message), (1, 2, 3), text[-500:])

    @needs_linux
    def test_no_more_descriptors(self):
        limits = "resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))"
        self.exhaust("[Errno 24]", "fd", 60, limits)

    @unittest.skipUnless(LINUX and os.getuid() == 0, "needs /proc and an account of its own")
    def test_no_more_threads(self):
        limits = "resource.setrlimit(resource.RLIMIT_NPROC, (30, 30))"
        account = "account = 60000 + os.getpid() % 5000"  # nobody else's
        account += "; os.setgroups([]); os.setgid(account); os.setuid(account)"
        self.exhaust("can't start new thread", "task", 30, f"{account}; {limits}")


class ListenerTest(Case):
    """Where a server can listen."""

    def test_addresses(self):
        rows = [("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1")]
        rows += [("localhost", "localhost")] if has_localhost() else []
        rows += [("::1", "::1"), ("::", "::1")] if has_ipv6() else []
        for host, here in rows:
            with self.subTest(host):
                server = self.serve((host, 0))
                self.assertEqual(revecho.request("hello", here, at(server)[1]), "olleh")

    def test_any_address_of_a_client(self):
        """Whatever get_request() calls the client stands in the log."""
        addresses = []
        server = self.serve(get_request=lambda it: (Server.get_request(it)[0], addresses[-1]))
        rows = [
            (("192.0.2.1", 5), "192.0.2.1:5"),
            (("2001:db8::1", 5, 0, 0), "[2001:db8::1]:5"),
            ("/a/path", "/a/path"),
            (b"\0abstract", r"b'\x00abstract'"),
            ("", ""),
            (None, "None"),
        ]
        with contextlib.suppress(OSError):  # a zone, by its name
            zone = socket.getnameinfo(("fe80::1", 5, 0, 1), socket.NI_NUMERICHOST)[0]
            rows.append((("fe80::1", 5, 0, 1), f"[{zone}]:5"))
            self.assertIn("%", zone)
        for address, shown in rows:
            addresses.append(address)
            self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")
            self.assertEqual(self.until_logged(" gone ")[0], f"{shown} connected")

    @unittest.skipUnless(hasattr(socket, "AF_UNIX"), "needs Unix sockets")
    def test_a_path(self):
        folder = self.stack(tempfile.TemporaryDirectory())

        class UnixServer(Server):
            address_family = socket.AF_UNIX

        path = f"{folder}/socket"
        self.stack(revecho.running_server(path, Handler, server_class=UnixServer))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT)
            connection.connect(path)
            connection.sendall(b"hello\nlast")
            connection.shutdown(socket.SHUT_WR)
            self.assertEqual(receive(connection), b"olleh\ntsal")
        self.assertRegex(self.until_logged("gone")[-1], "^ gone after .* 10 bytes sent$")
        self.assertEqual(self.warned(), [])

    def test_a_listener_that_is_passed_in(self):
        """server_bind() is all that it takes; it need not have been made for us."""
        listener = socket.create_server(("127.0.0.1", 0))

        def server_bind(server):
            server.socket.close()
            server.socket, server.server_address = listener, listener.getsockname()

        server = self.serve(server_bind=server_bind)
        self.assertEqual(self.exchange(listener.getsockname(), b"hello\n"), b"olleh\n")
        server.server_close()
        self.assertEqual(listener.fileno(), -1)


class StoppingTest(HeartCase):
    def close_until_asked(self, server):
        """Close the server on another thread; return when it has asked all to end."""
        other = self.connect(server)
        until(lambda: len(server.connections) == 2)
        self.closing(server)
        self.assertEqual(receive(other), b"")

    def test_received_lines_are_answered(self):
        """Also those that the kernel holds and the handler has not seen."""
        lines = b"".join(b"line %d\n" % number for number in range(20_000))
        for rest, ended, answer in (
            (b"c\r\n", False, b"c\r\n"),
            (b"half", False, b""),
            (b"", False, b""),
            (b"last", True, b"tsal"),
        ):
            server, connection, gate = self.busy()
            connection.sendall(lines + rest)
            if ended:
                half_close(connection)
            self.closing(server)
            gate.open()
            want = b"olleh\n" + revecho.reverse_lines(lines) + answer
            self.assertEqual(receive(connection), want)

    def test_received_lines_are_answered_to_a_client_that_reads_late(self):
        server, connection, gate = self.busy()
        connection.setblocking(False)
        sent = 6
        with contextlib.suppress(BlockingIOError):  # until no more fits
            while True:
                sent += connection.send((b"hello\n" * 1000)[sent % 6 :])
        connection.settimeout(LIMIT)
        gate.open()
        until(lambda: readable(connection))
        self.closing(server)
        self.assertEqual(receive(connection), b"olleh\n" * (sent // 6))

    def test_those_in_the_listen_queue_are_answered(self):
        """Whether serve_forever() has never run, or is busy with another."""
        with Server(("127.0.0.1", 0), Handler) as never_served:
            crowd = self.crowd(20, never_served)
        server, connection, gate = self.busy(
            step="verify_request", verify_request=lambda *_: True
        )
        crowd += [connection, *self.crowd(20, server)]
        self.closing(server)
        gate.open()
        self.assertEqual([receive(each) for each in crowd], [b"olleh\n"] * 41)

    def test_idle_clients_hold_nothing_up(self):
        server = self.serve(grace=LONG)
        crowd = self.crowd(50, server, b"")
        crowd[0].sendall(b"whole\nhalf")
        self.assertEqual(receive(crowd[0], 6), b"elohw\n")
        until(lambda: len(server.connections) == 50)
        self.closing(server)
        for connection in crowd:
            self.assertEqual(receive(connection), b"")  # nor is a line cut short answered

    def test_between_two_steps_of_an_exchange(self):
        """No handler waits for input that it does not get, whatever it was about to do."""

        def ask_until_the_end(connection):
            with contextlib.suppress(OSError):
                while connection.recv(100):
                    connection.sendall(b"hello\n")

        for _ in range(5):
            server = self.serve(grace=LONG)
            for connection in self.crowd(8, server):
                self.on_thread(ask_until_the_end, connection)
            until(lambda server=server: len(server.connections) == 8)
            self.join(self.closing(server))

    @unittest.skipUnless(POSIX, "needs a system that tells what has arrived")
    def test_client_that_goes_on_sending(self):
        """What has been taken from it is answered, then comes the end, in nine tenths of grace.

        In the last tenth all replies arrive that are on their way to a client that reads slowly.
        """

        def respond(_, lines):
            taken.append(lines)
            time.sleep(0.001)  # so that there is always more
            return revecho.reverse_lines(lines)

        def listen(server):
            server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
            Server.server_activate(server)

        def read_slowly():
            data = bytearray()
            with contextlib.suppress(ConnectionError):
                while block := connection.recv(100_000):
                    data += block
                    time.sleep(0.005)
            received.put(bytes(data))

        taken, received = [], queue.SimpleQueue()
        server = self.serve(respond=respond, grace=1, server_activate=listen)
        connection = self.stack(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        connection.connect(at(server))
        self.flood(connection, b"hello\n" * 10_000)
        self.on_thread(read_slowly)
        until(lambda: taken)
        began = time.monotonic()
        server.server_close()
        self.assertGreater(time.monotonic() - began, 0.9)  # there was always more
        answer, answers = received.get(timeout=LIMIT), revecho.reverse_lines(b"".join(taken))
        self.assertTrue(answer == answers, (len(answer), len(answers)))

    def test_client_that_sends_small_lines_and_reads(self):
        """As soon as it has paused it is ended; it holds the stop up no more, though it goes on."""
        server = self.serve(grace=LONG, drain_time=LONG)
        connection = self.connect(server)
        self.flood(connection, b"hello\n")
        self.assertEqual(receive(connection, 6), b"olleh\n")
        self.on_thread(receive_until_gone, connection)
        self.join(self.closing(server))

    def test_client_that_does_not_read_is_cut(self):
        threads = threading.active_count()
        server, _ = self.serve_one_who_does_not_read(grace=0.1)
        server.server_close()
        self.assertRegex(self.until_logged(" gone ")[-1], " bytes sent: stopping$")
        until(lambda: threading.active_count() <= threads)

    @needs_wake
    def test_threads_of_what_is_cut_are_waited_for(self):
        """Nothing of them is left when server_close() returns."""

        def handle(handler):
            handler.wfile.write(handler.rfile.readline())
            handler.rfile.readline()

        before = held()
        server = self.serve(handle=handle, grace=0.1)
        crowd = self.crowd(20, server)
        for connection in crowd:
            receive(connection, 6)
        server.server_close()
        for connection in crowd:
            self.assertEqual(receive_until_gone(connection), b"")
            connection.close()
        self.assertTrue(given_back(before), (held(), before))

    def test_those_in_the_listen_queue_wait_for_a_slow_respond(self):
        """Not for so many tries, but for as long as the grace lets them."""

        def respond(_, lines):
            time.sleep(0.1)
            return revecho.reverse_lines(lines)

        server = self.serve(
            respond=respond, max_connections=1, request_queue_size=1, grace=LONG
        )
        first, second = self.crowd(2, server)
        until(lambda: server.connections)
        server.server_close()
        self.assertEqual([receive(first), receive(second)], [b"olleh\n"] * 2)

    def test_silent_clients_in_the_listen_queue(self):
        """They hold nobody up who waits behind them."""
        server = self.serve(max_connections=1, grace=LONG)
        first = self.connect(server)
        self.ask(first)
        self.crowd(5, server, b"")
        last = self.connect(server, b"hello\n")
        closing = self.closing(server)
        half_close(first)
        self.assertEqual(receive(last), b"olleh\n")
        self.join(closing)

    def test_newcomers_do_not_prolong_it(self):
        """Though one comes after the other, and each is served."""

        def come_again_and_again():
            with contextlib.suppress(OSError):
                while True:
                    self.exchange(server, b"hello\n")
                    served.set()

        served = threading.Event()
        server = self.serve(grace=LONG, request_queue_size=5)
        self.on_thread(come_again_and_again)
        self.assertTrue(served.wait(LIMIT))
        self.join(self.closing(server))

    def test_at_the_limit(self):
        """It does not wait for those who have their replies to become quiet."""
        patient = dict.fromkeys(("drain_quiet", "drain_time", "grace"), LONG)
        server = self.serve(max_connections=1, request_queue_size=7, **patient)
        first, *others = self.crowd(8, server)
        receive(first, 6)
        self.until_logged("others wait")
        self.closing(server)
        self.assertEqual([receive(each) for each in others], [b"olleh\n"] * 7)

    def test_one_who_is_heard_out(self):
        """Nor for those who have had an error before."""
        server = self.serve(max_line=5, drain_quiet=LONG, drain_time=LONG, grace=LONG)
        connection = self.connect(server, b"too long\n")
        self.assertEqual(receive(connection), b"error: line longer than 5 bytes\n")
        self.join(self.closing(server))

    def test_replies_that_are_acknowledged_late(self):
        """Whoever has paused is drained no longer than until then: others wait for the place."""
        server = self.serve(max_connections=1, drain_quiet=LONG, drain_time=LONG, grace=LONG)
        first = self.connect(server)
        self.ask(first)
        line = b"x" * 60_000 + b"\n"
        crowd = self.crowd(10, server, line)
        received = queue.SimpleQueue()
        for connection in crowd:
            self.on_thread(lambda it=connection: received.put(receive(it) == line))
        self.join(self.closing(server))
        self.assertEqual([received.get(timeout=LIMIT) for _ in crowd], [True] * 10)

    def answered_but_not_read(self, last=b"", **changes):
        """Return a server whose 50,000 replies are on their way, and their client."""
        answered = []

        def respond(_, lines):
            answered.append(lines)
            return revecho.reverse_lines(lines)

        server = self.serve(respond=respond, **changes)
        connection = self.stack(socket.socket())
        connection.settimeout(LIMIT)
        # In a window so small that they are long on their way:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(at(server))
        connection.sendall(b"hello\n" * 50_000 + last)
        until(lambda: sum(map(len, answered)) == 300_000)
        return server, connection

    @needs_linux
    def test_replies_on_their_way_arrive(self):
        """Though the client has not read them, and sends on after the stop, or a line too long."""
        for last, error in ((b"", b""), (b"x" * 2000, b"error: line longer than 1000 bytes\n")):
            server, connection = self.answered_but_not_read(last, max_line=1000, grace=LONG)
            self.closing(server)
            until(lambda server=server: server.socket.fileno() < 0)
            for _ in range(2):  # while it drains, what comes gives it no more time
                connection.sendall(b"more\n")
                time.sleep(0.1)
            answer = b"olleh\n" * 50_000 + error
            self.assertEqual(receive(connection, len(answer)), answer)
            connection.close()

    def test_replies_on_their_way_have_no_longer_than_the_grace(self):
        threads = threading.active_count()
        server, _ = self.answered_but_not_read(grace=0.2, drain_time=LONG)
        server.server_close()
        until(lambda: threading.active_count() <= threads)

    def test_large_replies_are_sent_in_full(self):
        """Also if the handler sends a part itself, and when it has no more to receive."""

        def respond(handler, lines):
            handler.send(lines * 5000)
            return lines * 5000

        def handle(handler):
            with contextlib.suppress(revecho.CloseConnection):
                Handler.handle(handler)
            handler.send(b"x" * 10_000_000)

        server, connection, gate = self.busy(respond=respond, handle=handle)
        connection.sendall(b"hello\n" * 1000)
        self.closing(server)
        gate.open()
        self.assertEqual(len(receive(connection)), 1001 * 6 * 10_000 + 10_000_000)

    def test_a_line_that_the_stop_has_cut_is_not_answered(self):
        """Also if there is no grace."""
        seen = []
        server = self.serve(respond=lambda _, lines: seen.append(lines) or lines, grace=0)
        connection = self.connect(server, b"half")
        (inside,) = until(lambda: list(server.connections))
        until(lambda: not readable(inside))
        server.server_close()
        self.assertEqual((receive_until_gone(connection), seen), (b"", []))

    def test_end_of_the_clients_side_is_not_taken_for_the_servers(self):
        """Where a handler is about to receive, and the end has arrived by then."""
        server, connection, gate = self.busy(b"line\nlast", step="setup")
        half_close(connection)
        self.close_until_asked(server)
        gate.open()
        self.assertEqual(receive(connection), b"enil\ntsal")

    def test_by_a_thread_that_it_would_wait_for(self):
        """It tells all to stop, and returns; whoever has started the server waits for the end."""

        def close(server):
            server.server_close()
            self.assertTrue(readable(server.stop_signal))
            server.shutdown()
            closed.put(threading.current_thread())

        def respond(handler, lines):
            close(handler.server)
            return lines

        def verify_request(server, *_):
            close(server)
            return True

        closed, before = queue.SimpleQueue(), held()
        for changes in ({"respond": respond}, {"verify_request": verify_request}):
            with running_server(grace=LONG, **changes) as server:
                idle, connection = self.connect(server), self.connect(server, b"hello\n")
                closed.get(timeout=LIMIT)
            answer = b"hello\n" if "respond" in changes else b"olleh\n"
            self.assertEqual((receive(idle), receive(connection)), (b"", answer))
            idle.close()
            connection.close()
            until(lambda: given_back(before))

    def test_in_the_midst_of_itself(self):
        """As by a signal's handler."""
        closing = subclass(Server, verify_request=lambda server, *_: server.server_close() or True)
        with closing(("127.0.0.1", 0), Handler) as server:
            connection = self.connect(server, b"hello\n")
        self.assertEqual(receive(connection), b"olleh\n")

    @unittest.skipUnless(hasattr(signal, "setitimer"), "needs a signal")
    def test_by_the_handler_of_a_signal_at_any_time(self):
        """On the thread that accepts, or closes the server."""

        def serve_until_the_signal(seconds):
            with Server(("127.0.0.1", 0), Handler, grace=LONG) as server:
                crowd = self.crowd(5, server)
                signal.signal(signal.SIGALRM, lambda *_: server.server_close())
                signal.setitimer(signal.ITIMER_REAL, seconds, 0.02)  # again, if that came too soon
                if seconds > 0.01:
                    server.serve_forever()
            self.assertEqual([receive(each) for each in crowd], [b"olleh\n"] * 5)
            for connection in crowd:
                connection.close()

        self.addCleanup(signal.signal, signal.SIGALRM, signal.SIG_DFL)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        before = held()
        for number in range(0, 40, EACH - EACH // 4):
            faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)
            serve_until_the_signal(0.0003 * (number + 1) if number % 2 else 0.011 + 0.0003 * number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        until(lambda: given_back(before))

    def test_interrupted(self):
        """By Ctrl-C: then it cuts at once what is left, and waits for nobody who hangs."""
        threads, gate = threading.active_count(), self.gate()

        def handle(handler):
            handler.request.recv(6)
            gate.wait()

        server = Server(("127.0.0.1", 0), subclass(Handler, handle=handle), grace=LONG)
        server.verify_request = mock.Mock(side_effect=[True, KeyboardInterrupt])
        hanging, other = self.crowd(2, server)
        with self.assertRaises(KeyboardInterrupt):
            server.server_close()
        self.assertEqual(server.socket.fileno(), -1)
        self.assertEqual([receive_until_gone(each) for each in (hanging, other)], [b""] * 2)
        gate.open()
        until(lambda: threading.active_count() <= threads)

    @needs_kill
    def test_interrupted_while_it_waits(self):
        """For a handler that hangs; for another thread that accepts, or that waits for room."""

        def interrupt():
            until(lambda: server.stopping)
            time.sleep(0.1)  # by now it waits; if not yet, this shows less
            os.kill(os.getpid(), signal.SIGINT)

        for changes in (
            {},
            {"step": "verify_request", "verify_request": lambda *_: True},
            {"max_connections": 1},
        ):
            server, connection, gate = self.busy(grace=LONG, **changes)
            others = self.crowd(2, server)
            self.on_thread(interrupt)
            with self.assertRaises(KeyboardInterrupt):
                server.server_close()
            self.assertEqual(server.socket.fileno(), -1)
            gate.open()
            for each in (connection, *others):
                receive_until_gone(each)
            until(lambda server=server: not server.connections)
            self.records.clear()

    def test_of_a_handle_that_waits_by_itself(self):
        """It is cut when the grace is over."""

        def handle(handler):
            for line in handler.rfile:
                handler.wfile.write(line)

        server = self.serve(handle=handle, grace=0.1)
        connection = self.connect(server, b"hello\n")
        self.assertEqual(receive(connection, 6), b"hello\n")
        self.join(self.closing(server))
        self.assertEqual(receive_until_gone(connection), b"")

    def test_of_a_handler_that_has_closed_its_connection(self):
        gate = self.gate()

        def handle(handler):
            handler.rfile.close()
            handler.request.close()
            gate.wait()

        server = self.serve(handle=handle, grace=0.1)
        self.connect(server)
        gate.until_reached()
        self.closing(server)

    def test_what_hangs_is_left_behind(self):
        """It costs the grace once, however often and by whomever the server is closed."""
        for step in ("respond", "verify_request"):
            server, *_ = self.busy(grace=0.1, step=step, verify_request=lambda *_: True)
            self.join(self.closing(server))
            started = time.monotonic()
            for _ in range(100):
                server.server_close()  # would take a minute if it waited
            self.assertLess(time.monotonic() - started, LIMIT)
            self.assertEqual(server.socket.fileno(), -1)

    def test_the_port_is_free_at_once(self):
        server = self.serve()
        with self.connect(server) as connection:
            self.ask(connection)
            server.server_close()  # ends it first, so that the kernel remembers the port
            self.assertEqual(receive(connection), b"")
        self.serve(at(server))

    def test_at_any_time(self):
        """Also by several threads, and of a server that does not serve, or not yet."""
        for serving in (False, True, True):
            server = Server(("127.0.0.1", 0))
            threads = [self.on_thread(server.serve_forever)] if serving else []
            threads += [self.on_thread(server.server_close) for _ in range(4)]
            for thread in threads:
                self.join(thread)
            self.assertEqual(server.socket.fileno(), -1)
            server.serve_forever()  # returns at once
        with Server(("127.0.0.1", 0), bind_and_activate=False):
            pass
        for _ in range(10):
            with revecho.running_server(server_class=Server):
                pass  # perhaps before the accepting thread has begun


def only(case, *names):
    """Leave all other tests of the case out: they would show what it shows already."""
    kept = {f"test_{name}" for name in names}
    return type("Only", (), {n: None for n in dir(case) if n.startswith("test_") and n not in kept})


class ConnectionElsewhereTest(Elsewhere, ConnectionTest):
    pass


class IdleElsewhereTest(
    only(IdleTest, "silent_client", "client_that_does_not_read"),
    Elsewhere,
    IdleTest,
):
    pass


class StoppingElsewhereTest(
    only(
        StoppingTest,
        "received_lines_are_answered",
        "those_in_the_listen_queue_are_answered",
        "idle_clients_hold_nothing_up",
        "client_that_does_not_read_is_cut",
        "large_replies_are_sent_in_full",
    ),
    Elsewhere,
    StoppingTest,
):
    pass


class ConnectionTlsTest(
    only(
        ConnectionTest,
        "reply_comes_at_once",
        "greeting",
        "an_error_for_a_peer_that_has_gone",
        "a_failure_is_logged_before_the_peer_is_heard_out",
    ),
    Tls,
    ConnectionTest,
):
    pass


class TlsServerTest(Tls, HeartCase):
    """What there is with TLS alone."""

    def test_openssl_s_client(self):
        """It gets its reply and, at the stop, a proper end."""
        server = self.serve()
        command = "openssl s_client -quiet -verify_return_error -CAfile ours -connect"
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        client = self.stack(
            subprocess.Popen(
                [*command.split(), "{}:{}".format(*at(server))], cwd=certificates(), **pipes
            )
        )
        self.addCleanup(client.kill)
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        self.assertEqual(client.stdout.readline(), b"olleh\n")
        server.server_close()
        _, errors = client.communicate(timeout=LIMIT)
        self.assertEqual((client.returncode, b"error" in errors), (0, False), errors)

    def test_silent_clients_hold_no_stop_up(self):
        """Also those that have not begun a handshake."""
        server = self.serve(grace=LONG, drain_quiet=LONG, drain_time=LONG)
        silent = self.plain(server)
        self.until_logged("connected")
        self.join(self.closing(server))
        self.assertEqual(receive_until_gone(silent), b"")

    def test_the_farewell_waits_for_room(self):
        """Where it does not fit beside the last reply into what the kernel holds."""

        def listen(server):
            server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            Server.server_activate(server)

        def respond(_, lines):
            raise revecho.CloseConnection(b"x" * int(lines))

        def finish(handler):
            Handler.finish(handler)
            sent.set()

        def fits(size):
            """Can it be sent to a client that does not read?"""
            sent.clear()
            client = self.stack(socket.socket())
            client.settimeout(LIMIT)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(at(server))
            client = self.client_side.wrap_socket(
                client, server_hostname="127.0.0.1", suppress_ragged_eofs=False
            )
            client.sendall(b"%d\n" % size)
            fitted = sent.wait(0.05)
            self.assertEqual(len(receive(client)), size)  # and no error
            client.close()
            return fitted

        sent = threading.Event()
        server = self.serve(respond=respond, finish=finish, server_activate=listen)
        least, most = 1000, 60_000
        while most - least > 1:
            size = (least + most) // 2
            least, most = (size, most) if fits(size) else (least, size)
        for size in range(least - 10, least + 2):
            fits(size)

    @unittest.skipIf(sys.version_info < (3, 10), "older ones do not tell them apart")
    def test_a_context_for_a_client(self):
        """It is refused at once, not at each connection."""
        before = held()
        with self.assertRaisesRegex(OSError, "for clients"):
            revecho.ReverseServer(("127.0.0.1", 0), ssl_context=self.client_side)
        self.assertTrue(given_back(before))

    def plain(self, server, data=b""):
        return HeartCase.connect(self, server, data)

    def test_noise_on_the_port(self):
        """It costs a line in the log, with the reason."""
        server = self.serve()
        for data, why in ((b"GET / HTTP/1.0\r\n\r\n", "http request"), (b"x" * 1000, "")):
            with self.plain(server, data) as connection:
                receive_until_gone(connection)
            self.assertRegex(self.until_logged(" gone ")[-1], f"0 bytes sent: .*{why}")
        with self.plain(server):
            pass
        self.until_logged("0 bytes sent")
        with self.connect(server) as connection:
            self.ask(connection)  # and nobody else
        self.assertEqual(self.warned(), [])

    def test_resets_before_accept(self):
        """Nothing is left of them, nor for the garbage collector."""
        unclosed = []
        gc.collect()  # what other tests have left is not meant
        self.stack(mock.patch.object(sys, "unraisablehook", unclosed.append))
        self.stack(warnings.catch_warnings())
        warnings.simplefilter("error", ResourceWarning)
        server = self.stack(Server(("127.0.0.1", 0), Handler, ssl_context=self.server_side))
        for _ in range(9):
            reset(self.plain(server))
        self.on_thread(server.serve_forever)
        self.addCleanup(server.server_close)
        self.ask(self.connect(server))
        self.assertEqual(unclosed, [])

    def test_a_stalled_handshake_delays_nobody(self):
        """Nor the stop."""
        server = self.serve(grace=LONG)
        self.plain(server)
        self.plain(server, b"\x16\x03\x01")  # the beginning of one
        until(lambda: len(server.connections) == 2)
        connection = self.connect(server)
        self.ask(connection)
        self.closing(server)
        self.assertEqual(receive(connection), b"")

    def test_a_stalled_handshake_is_idle(self):
        for greet in (False, True):  # it comes with the first receive, or send

            def handle(handler, greet=greet):
                if greet:
                    handler.send(b"welcome\n")
                Handler.handle(handler)

            self.plain(self.serve(handle=handle, idle_timeout=0.3), b"\x16\x03\x01")
            self.assertRegex(self.until_logged(" gone ")[-1], "0 bytes sent: idle$")

    def test_a_handle_that_does_nothing(self):
        """The end comes with TLS's farewell, and waits for no other."""
        for handle in (lambda _: None, lambda _: 1 / 0, lambda it: it.request.do_handshake()):
            server = self.serve(handle=handle, grace=LONG)
            with contextlib.suppress(OSError):
                self.connect(server)
            self.until_logged(" gone ")
            self.closing(server)
        server = self.serve(handle=lambda it: it.request.recv(1))
        connection = self.connect(server, b"x")
        self.assertEqual(receive(connection), b"")

    def test_a_client_without_a_certificate(self):
        """With TLS 1.3 it hears of that only after it has sent: a reset must not overtake it."""
        import ssl

        self.addCleanup(setattr, self.server_side, "verify_mode", ssl.CERT_NONE)
        self.server_side.verify_mode = ssl.CERT_REQUIRED
        server = self.serve()
        connection = self.connect(server, b"hello\n" * 10_000)
        with self.assertRaisesRegex(ssl.SSLError, "alert"):
            receive(connection)
        self.assertRegex(self.until_logged(" gone ")[-1], "0 bytes sent: .*certificate")

    def test_an_end_without_farewell(self):
        """It may be anybody's, so the line that it cuts is not answered."""
        seen = []
        server = self.serve(respond=lambda _, lines: seen.append(lines) or lines)
        connection = self.connect(server, b"whole\nhalf")
        self.assertEqual(receive(connection, 6), b"whole\n")
        socket.socket.shutdown(connection, socket.SHUT_WR)
        self.assertRegex(self.until_logged(" gone ")[-1], "6 bytes sent: the connection ended$")
        self.assertEqual(seen, [b"whole\n"])


class IdleTlsTest(
    only(
        IdleTest,
        "silent_client",
        "client_that_does_not_read",
        "a_thread_that_is_late",
        "an_end_leaves_nothing_for_the_garbage_collector",
    ),
    Tls,
    IdleTest,
):
    pass


class StoppingTlsTest(
    only(
        StoppingTest,
        "received_lines_are_answered",
        "idle_clients_hold_nothing_up",
        "between_two_steps_of_an_exchange",
        "client_that_does_not_read_is_cut",
        "large_replies_are_sent_in_full",
        "a_line_that_the_stop_has_cut_is_not_answered",
        "at_any_time",
    ),
    Tls,
    StoppingTest,
):
    pass


class InterleavingTest(HeartCase):
    """One thread is held before a line of revecho.py, for each of its lines in turn.

    Meanwhile the others go on.  There are three kinds of threads; which one a thread is tells the
    first function of revecho.py that it calls.
    """

    KINDS: ClassVar = {"serve_forever": "acceptor", "server_close": "closer"}  # others: worker
    STEP = 1 if EVERY_LINE else 89

    def hold(self, kind, number):
        """Return a trace function, and what tells that a thread of the kind is held.

        It is held until self.go_on is set.
        """
        held, mine = threading.Event(), threading.local()
        lines, first = itertools.count(1), []

        def trace_line(_, event, __):
            if event == "line" and next(lines) == number:
                held.set()
                self.go_on.wait(LIMIT)
                time.sleep(0.005)  # the others go on; if they do not, this shows less
            return trace_line

        def trace(frame, _, __):
            if frame.f_code.co_filename != revecho.__file__:
                return None
            if not hasattr(mine, "kind"):
                mine.kind = self.KINDS.get(frame.f_code.co_name, "worker")
                if mine.kind == kind and not first:
                    first.append(threading.current_thread())
            return trace_line if threading.current_thread() in first else None

        return trace, held

    def stop_while_held(self, kind, number, last):
        """Tell whether a thread came to that line."""
        self.go_on = threading.Event()
        trace, held = self.hold(kind, number)
        server = Server(("127.0.0.1", 0), Handler, max_connections=1, grace=LONG)
        threading.settrace(trace)
        try:
            # Held before its first line, it has not begun.
            accepting = self.on_thread(server.serve_forever)
            with self.connect(server, b"one\ntwo\n") as served, self.connect(server) as waiting:
                waiting.sendall(b"three\n" + last)
                if last:
                    waiting.shutdown(socket.SHUT_WR)
                until(lambda: held.is_set() or readable(served))
                served.sendall(b"four\n" + last)
                if last:
                    served.shutdown(socket.SHUT_WR)
                closing = self.on_thread(server.server_close)
                until(lambda: held.is_set() or server.stopping)
                self.go_on.set()
                answers = [receive(served), receive(waiting)]
            self.join(closing)
            self.join(accepting)
        finally:
            threading.settrace(None)
        where = f"the {kind} was held before its line number {number}"
        self.assertEqual(answers, [b"eno\nowt\nruof\n" + last, b"eerht\n" + last], where)
        self.assertNotIn("Traceback", "".join(self.logged()), where)
        return held.is_set()

    def test_a_stop_before_any_line(self):
        threads = threading.active_count()
        for kind, last in itertools.product(("worker", "acceptor", "closer"), (b"", b"level")):
            numbers = itertools.count(1, self.STEP)
            while self.stop_while_held(kind, next(numbers), last):
                faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)
            self.assertGreater(next(numbers), 40)
        until(lambda: threading.active_count() <= threads)

    def late_at_line(self, number):
        """Tell whether a worker that is late there has answered what came in time."""
        self.go_on = threading.Event()
        trace, held = self.hold("worker", number)
        with running_server(idle_timeout=0.2) as server:
            threading.settrace(trace)
            try:
                connection = self.connect(server, b"one\n")
                until(lambda: held.is_set() or readable(connection))
                connection.sendall(b"two\n")
                if held.is_set():
                    time.sleep(0.25)  # now its time is over
                self.go_on.set()
                where = f"the worker was held before its line number {number}"
                self.assertEqual(receive(connection, 8), b"eno\nowt\n", where)
            finally:
                threading.settrace(None)
            connection.close()
        return held.is_set()

    def test_a_late_look_before_any_line(self):
        numbers = itertools.count(1, self.STEP // 8 + 1)
        while self.late_at_line(next(numbers)):
            faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)
        self.assertGreater(next(numbers), 40)


class RunningServerTest(Case):
    def test_it_leaves_nothing(self):
        """Also when the block ends with an exception."""
        before = held()
        with self.assertRaises(KeyError), revecho.running_server() as server:
            self.assertEqual(revecho.request("hello", *at(server)), "olleh")
            idle = self.connect(server)
            self.ask(idle)
            raise KeyError
        self.assertEqual((idle.recv(1), server.socket.fileno()), (b"", -1))
        idle.close()
        self.assertTrue(given_back(before))
        with self.assertRaises(ConnectionRefusedError):
            revecho.request("hello", *at(server))

    def test_a_handler_in_the_place_of_the_address(self):
        with self.assertRaisesRegex(TypeError, "RequestHandlerClass=Handler"):
            self.stack(revecho.running_server(Handler))

    def test_it_waits_for_serve_forever_and_raises_its_error(self):
        class Failing(Server):
            def serve_forever(self, poll_interval=0):
                super().serve_forever(poll_interval)
                closed.wait(LIMIT)
                raise ZeroDivisionError

            def server_close(self):
                super().server_close()
                closed.set()

        closed = threading.Event()
        with self.assertRaises(ZeroDivisionError), revecho.running_server(server_class=Failing):
            pass


# The client: what other servers, and paths to ours, can do


def answer_with(reply, stay=False):
    """For other_server(): one answer to whatever comes first, then the end."""

    def serve(connection):
        connection.recv(65536)
        connection.sendall(reply)
        return stay

    return serve


def end(_):
    """For other_server(): nothing but the end."""


def reset_at_once(connection):
    connection.recv(1)
    reset(connection)


def never_answer(connection):
    return connection.recv(65536) or True


def mirror(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def relay(server, there=bytes, back=bytes):
    """For other_server(): a path to *server* that changes a line and its reply."""

    def serve(connection):
        line = connection.recv(65536)
        with socket.create_connection(at(server), LIMIT) as far:
            far.sendall(there(line))
            far.shutdown(socket.SHUT_WR)
            connection.sendall(back(receive(far)))

    return serve


def half_close_ends_both(server):
    """For other_server(): a relay like many, to which the end of one side is the end of all."""

    def serve(connection):
        with socket.create_connection(at(server), LIMIT) as far:
            while True:
                for ready in readable(connection, far, seconds=LIMIT):
                    data = ready.recv(65536)
                    if not data:
                        return
                    (far if ready is connection else connection).sendall(data)

    return serve


def by_turns(*serves):
    """For other_server(): what to do with the first connection, the second, and so on."""
    serve = iter(serves)
    return lambda connection: next(serve)(connection)  # noqa: PLW0108


def flip(data):
    return bytes([data[0] ^ 1]) + data[1:]


def drip(connection):
    """For other_server(): a reply that never ends, and of which too little comes at a time."""
    connection.recv(65536)
    while True:
        connection.sendall(b"\r")
        time.sleep(0.001)


def bad_paths(server):
    """What to give to other_server(), a timeout in seconds, and how the client calls the path."""
    return (
        (mirror, LIMIT, r"an echo at byte \d+"),
        (relay(server, there=flip), LIMIT, r"not the reverse at byte \d+"),
        (relay(server, back=flip), LIMIT, r"not the reverse at byte 1"),
        (relay(server, back=lambda it: it + b"x"), LIMIT, "more came than was asked for: 'x'"),
        (answer_with(b"00000\n"), LIMIT, r"not the reverse at byte \d+: '00000\\n' came"),
        (answer_with(b"00000"), LIMIT, r"not the reverse at byte \d+: '00000' came"),
        (answer_with(b"\r", stay=True), LIMIT, r"not the reverse at byte 1: '\\r' came"),
        (answer_with(b"\r" * 99, stay=True), LIMIT, r"not the reverse at byte 1: '(\\r)+'"),
        (drip, LIMIT, r"not the reverse at byte 1: '(\\r)+' came"),
        (relay(server, back=lambda reply: reply[:-2]), LIMIT, r"the connection ended; \d+ of"),
        (never_answer, 0.05, r"no reply within 0\.05 s"),
        (end, LIMIT, "the connection (ended|was reset)"),
        (reset_at_once, LIMIT, RESET),
        (lambda it: it.sendall(b"SSH-2.0-x\r\n") or 1, LIMIT, r"(not|more) .*'SSH-2\.0-x\\r\\n'"),
        (answer_with(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"), LIMIT, "'HTTP/1.1 400'"),
        (answer_with(b"error: too late\n"), LIMIT, "error: too late"),
        (answer_with(b"error: too late"), LIMIT, "error: too late"),
        (answer_with(b"errare"), LIMIT, "not the reverse at byte 1: 'errare' came"),
    )


class ClientCase(Case):
    def request(self, text, server, **options):
        return revecho.request(text, *at(server), **options)

    def hello(self):
        """The two functions of the client, each saying hello to a server."""
        return (
            lambda server, **options: self.request("hello", server, **options),
            lambda server, **options: self.stream(b"hello\n", server, **options),
        )

    def crowded_listener(self):
        """Start a listener that has no room for one more to wait."""
        if not LINUX:
            self.skipTest("elsewhere the listen queue has other limits")
        listener = self.stack(socket.create_server(("127.0.0.1", 0), backlog=0))
        self.crowd_before = [self.stack(socket.socket()) for _ in "123"]
        for waiting in self.crowd_before:
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        return listener

    def unanswered(self, listener):
        """How many who try to connect to it have no answer."""
        # The table is not read in one piece: where others come and go a line can be missing.
        tables = [pathlib.Path("/proc/net/tcp").read_text() for _ in range(9)]
        syn_sent = f":{listener.getsockname()[1]:04X} 02 "
        return max(table.count(syn_sent) for table in tables)

    def pipe(self):
        """Return a source that is a pipe, and the file that feeds it."""
        reading, writing = os.pipe()
        return self.stack(open(reading, "rb")), self.stack(open(writing, "wb", 0))


class ClientTest(ClientCase):
    """What request() and stream() have in common."""

    def test_bad_replies(self):
        """A filter also says how much was answered before."""
        more = "more came than was asked for: '%s'"
        ended = r"the connection ended; %d of 6 bytes came, the last \d\.\d s ago: '%s'"
        for reply, message, lines, count in (
            (b"", "the connection ended", 0, 0),
            (b"oll", ended % (3, "oll"), 0, 0),
            (b"ollehh", ended % (6, "ollehh"), 0, 0),
            (b"x" * 21, ended % (21, r"x{12}'\.\.\.'x{8}"), 0, 0),
            (b"a\nb\n", more % r"b\\n", 1, 2),
            (b"olleh\nx", more % "x", 1, 6),
            (b"olleh\nerror: enough\n", "error: enough", 1, 6),
            (b"x" * 70_000_000, r"a reply without end: 'x{12}'\.\.\.'x{8}' came", 0, 0),
            (b"error: no\r\n", "error: no", 0, 0),
            (b"error: " + b"x" * 300 + b"\n", "error: x{193}", 0, 0),
            (b"error: a\x1b\xff", r"error: a\\x1b\ufffd", 0, 0),
        ):
            address = self.other_server(answer_with(reply))
            counts = f"; lines answered: {lines}, bytes answered: {count}"
            for hello, so_far in zip(self.hello(), ("", counts)):
                with self.assertRaisesRegex(revecho.ReplyError, f"^{message}{so_far}$"):
                    hello(address)

    def test_timeouts_say_which_step(self):
        """And how much was answered, and acknowledged; the limit is for a whole reply."""

        def time_out(hello, address, timeout, message):
            start = time.monotonic()
            with self.assertRaisesRegex(TimeoutError, message):
                hello(address, timeout=timeout)
            self.assertGreaterEqual(time.monotonic() - start, timeout)

        silent, full = self.other_server(never_answer), self.crowded_listener().getsockname()
        partial = self.other_server(answer_with(b"oll", stay=True))
        late, so_far = r"within 0\.5 s; all 6 bytes acknowledged", "; lines .*: 0, bytes .*: 0"
        part = r"3 of 6 bytes came, the last 0\.[45] s ago: 'oll'"
        for_request, for_stream = self.hello()
        at_once(time_out, (
            (for_request, silent, 0.5, f"^no reply {late}$"),
            (for_stream, silent, 0.5, f"^no reply {late}{so_far}$"),
            (for_request, partial, 0.5, f"^no end of the reply {late}; {part}$"),
            (for_stream, partial, 0.5, f"^no end of the reply {late}; {part}{so_far}$"),
            (for_request, self.other_server(drip), 0.1, "^no end of the reply within "),
            (for_request, full, 0.1, r"^not connected: no answer within 0\.\d+ s$"),
            (for_stream, full, 0.1, r"^not connected: no answer within 0\.\d+ s$"),
        ))

    def test_look_up_that_takes_its_time(self):
        """The time limit is for it as well; an address needs none."""

        def look_up(host, *arguments, flags=0):
            if not flags:
                gate.wait()
            return getaddrinfo(host, *arguments, flags=flags)

        getaddrinfo, gate, server = socket.getaddrinfo, self.gate(), self.serve()
        with mock.patch.object(socket, "getaddrinfo", look_up):
            self.assertEqual(self.request("hello", server), "olleh")
            for hello in self.hello():
                with self.assertRaisesRegex(TimeoutError, "^not resolved: no answer within 0.1 s"):
                    hello(("name.invalid", 1), timeout=0.1)

    def test_where_there_is_no_poll(self):
        """As on Windows."""
        server, refusing = self.serve(), ("127.0.0.1", free_port())
        with contextlib.ExitStack() as stack:
            if hasattr(select, "poll"):
                stack.enter_context(mock.patch.object(select, "poll"))
                del select.poll
            for hello in self.hello():
                self.assertIn(hello(server), ("olleh", b"olleh\n"))
                with self.assertRaises(ConnectionRefusedError):
                    hello(refusing)
                with self.assertRaises(TimeoutError):
                    hello(self.other_server(never_answer), timeout=0.1)

    @needs_linux
    def test_acknowledged_or_not(self):
        """By a peer with small buffers that does not read: some of much, of a little all."""

        def time_out(length, share):
            with self.assertRaisesRegex(TimeoutError, f"^no reply within .* s; {share} acknowl"):
                self.request("x" * length, self.other_server(lambda _: True), timeout=0.3)

        at_once(time_out, ((1000, "all 1001 bytes"), (50_000_000, "some of 50000001 bytes")))

    def test_reset(self):
        """While a part is still to be sent."""
        address = self.other_server(reset_at_once)
        for send, data, so_far in (
            (self.request, "x" * 50_000_000, ""),
            (self.stream, b"x" * 50_000_000, "; lines answered: 0, bytes answered: 0"),
        ):
            message = f"^the connection was reset{so_far}$"
            with self.assertRaisesRegex(revecho.ReplyError, message):
                send(data, address)

    def test_reply_before_its_line_is_sent(self):
        """It is that, and not the reply to the next line as well."""

        def serve(connection):
            connection.recv(1)
            connection.sendall(b"early\n")
            receive(connection, 30_000_000)
            connection.sendall(revecho.reverse_lines(receive(connection, 4)))

        text = "x" * 30_000_000
        self.assertEqual(self.request(text, self.other_server(serve)), "early")
        source = mock.Mock(read1=mock.Mock(side_effect=[text.encode() + b"\n", b"two\n", b""]))
        self.assertEqual(self.stream(source, self.other_server(serve)), b"early\nowt\n")

    def test_reply_before_its_line_is_sent_and_no_more_room(self):
        for reply, error, message in (
            (b"early\n", TimeoutError, r"^not all was sent within 0\.3 s"),
            (b"error: no\n", revecho.ReplyError, "^error: no$"),
        ):
            address = self.other_server(answer_with(reply, stay=True))
            with self.assertRaisesRegex(error, message):
                self.request("x" * 50_000_000, address, timeout=0.3)

    def test_more_lines_than_were_sent(self):
        """What has come by the end of the last reply is seen, however the stream was cut."""
        for length in (6, 4096, 65536, 131072):
            sent, lines = threading.Event(), b"x" * (length - 1) + b"\n"

            def serve(connection, sent=sent, lines=lines):
                connection.sendall(receive(connection, len(lines)) + b"one too many\n")
                sent.set()

            def write(data, sent=sent):
                self.assertTrue(sent.wait(LIMIT))
                return len(data)

            sink = SimpleNamespace(write=write, flush=lambda: None)
            with self.assertRaisesRegex(revecho.ReplyError, r"asked for: 'one too many\\n'"):
                revecho.stream(io.BytesIO(lines), sink, *at(self.other_server(serve)))

    def test_each_reply_has_its_own_time(self):
        def serve(connection):
            connection.recv(100)
            for part in (b"a\n", b"b\n", b"c\n"):
                time.sleep(0.3)
                connection.sendall(part)

        lines = b"a\nb\nc\n"
        self.assertEqual(self.stream(lines, self.other_server(serve), timeout=0.7), lines)

    @needs_linux
    def test_a_connection_to_itself(self):
        """TCP makes one, when it chooses for this end the port to which it connects."""
        connect = socket.socket.connect_ex

        def connect_from_there(connection, address):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(address)
            return connect(connection, address)

        with mock.patch("socket.socket.connect_ex", connect_from_there):
            for hello in self.hello():
                with self.assertRaisesRegex(ConnectionRefusedError, "not connected: "):
                    hello(("127.0.0.1", free_port()))

    def test_a_flood_that_is_no_reply(self):
        """It does not put off the end of the time."""
        address = self.other_server(lambda it: it.recv(6) and not self.flood(it, b"x" * 65536))
        with self.assertRaises(TimeoutError):
            self.request("hello", address, timeout=0.01)

    def test_nobody_listens(self):
        for hello in self.hello():
            with self.assertRaisesRegex(ConnectionRefusedError, "not connected: "):
                hello(("127.0.0.1", free_port()))

    def test_bad_arguments(self):
        inf, nan = float("inf"), float("nan")
        for port, timeout in ((-1, 1), (0, 1), (65536, 1), (1, 0), (1, -1), (1, nan), (1, inf)):
            for hello in self.hello():
                with self.assertRaises(ValueError):
                    hello(("127.0.0.1", port), timeout=timeout)

    def test_socket_of_a_connection(self):
        """No line waits until what was sent before it, in TLS say, is acknowledged."""

        class Socket(socket.socket):
            def connect_ex(self, address):
                options.append(self.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                return super().connect_ex(address)

        options, server = [], self.serve()
        with mock.patch.object(socket, "socket", Socket):
            for hello in self.hello():
                hello(at(server))
        self.assertEqual([*map(bool, options)], [True, True])

    def test_types_and_defaults(self):
        for function, returned in ((revecho.request, "str"), (revecho.stream, "int")):
            types, *text = (function.__annotations__, "str", "int", "float")
            self.assertEqual([types["host"], types["port"], types["timeout"]], text)
            self.assertEqual(types["return"], returned)
            self.assertEqual(function.__defaults__, ("127.0.0.1", 2002, 10))


class RequestTest(ClientCase):
    def test_request(self):
        server = self.serve()
        for text, reply in (
            ("hello", "olleh"),
            ("", ""),
            ("añ€", "€ña"),
            ("a\rb", "b\ra"),
            ("\ra", "a\r"),
            ("\0\u2028", "\u2028\0"),
            ("a\udcff", "\udcffa"),  # how Python hands over a byte that is not UTF-8
            (" :rorre", "error: "),  # a reply like any other
            ("x" * 65535 + "y", "y" + "x" * 65535),
        ):
            self.assertEqual(self.request(text, server), reply)
        for text in ("a\n", "a\nb", "\n", "a\r", "a\r\n", "\ud800"):
            with self.assertRaises(ValueError):
                self.request(text, server)

    def test_service_whose_answers_begin_like_an_error(self):
        """For request() they are errors; stream() takes only the one for it that comes last."""
        server = self.serve(respond=lambda _, lines: b"error: no such key\n" * lines.count(b"\n"))
        with self.assertRaisesRegex(revecho.ReplyError, "^error: no such key$"):
            self.request("hello", server)
        self.assertEqual(self.stream(b"a\nb\n", server), b"error: no such key\n" * 2)
        for more in (b"", b"bye\n", b"by"):
            address = self.other_server(answer_with(b"error: no such key\nerror: stop\n" + more))
            message = "^error: stop; lines answered: 1, bytes answered: 19$"
            with self.assertRaisesRegex(revecho.ReplyError, message):
                self.stream(b"a\nb\nc\nd\n", address)

    def test_right_answers_that_begin_like_an_error(self):
        """If the connection ends early, they are not to blame, and they count."""
        lines, answers = b"ksid :rorre\nko\r\nenif\nmore\n", b"error: disk\nok\r\nfine\n"
        message = "^the connection ended; lines answered: 3, bytes answered: 21$"
        with self.assertRaisesRegex(revecho.ReplyError, message):
            self.stream(lines, self.other_server(answer_with(answers)))
        for line in (b"x :rorre\n", b"x :rorre\r\n"):
            answer = revecho.reverse_lines(line)
            self.assertEqual(self.stream(line, self.other_server(answer_with(answer))), answer)

    def test_service_whose_answers_have_another_length(self):
        server = self.serve(respond=lambda _, lines: lines[:-1] * 3 + b"\n")
        self.assertEqual(self.request("ab", server), "ababab")
        self.assertEqual(self.request("", server), "")

    def test_refused(self):
        """By an error of 32 bytes; and before all is sent, even with a reset after the error."""
        for server, message, lengths in (
            (self.serve(max_line=10), "line longer than 10 bytes", (11, 31, 32, 33, 10_000_000)),
            (self.other_server(lambda it: it.sendall(b"error: no\n")), "no", (20_000_000,)),
        ):
            for length in lengths:
                with self.assertRaisesRegex(revecho.ReplyError, f"^error: {message}$"):
                    self.request("x" * length, server)

    def test_long_replies_take_time_in_proportion(self):
        """Little more than it takes to receive them."""

        def receive_hello(address):
            with socket.create_connection(address, LIMIT) as connection:
                connection.sendall(b"hello\n")
                receive(connection)

        address = self.other_server(answer_with(b"x" * 20_000_000 + b"\n"))
        received = seconds(receive_hello, address, times=2)
        self.assertLess(seconds(self.request, "hello", address, times=3), 12 * received)


class StreamTest(ClientCase):
    def test_stream(self):
        server = self.serve()
        for lines in (
            b"",
            b"a",
            b"ab\n",
            b"ab\r\n\rcd",
            b"a\n :rorre\n :rorre",
            os.urandom(20_000).replace(b"\n", b"\n\n") + b"x",
            b"".join(b"line %d\r\n \xc3\xa9\xff\n" % number for number in range(10_000)) + b"end",
        ):
            self.assertEqual(self.stream(lines, server), revecho.reverse_lines(lines))
        self.assertEqual(self.stream(b"ab\r", server), b"ba\r")  # as part of the ending it lacks

    def test_paths_that_need_patience(self):
        """A relay that ends both sides, and a server that reads a block before it writes."""
        lines = b"hello\n" * 150_000
        for serve in (
            half_close_ends_both(self.serve()),
            lambda other: other.sendall(revecho.reverse_lines(receive(other, len(lines)))),
        ):
            answer = self.stream(lines, self.other_server(serve))
            self.assertEqual(answer, b"olleh\n" * 150_000)

    def test_pauses_longer_than_the_timeout(self):
        """Of the source, between lines and within one, and of the sink: no reply is late."""

        def pause_in_source(first, rest):
            def read(_):
                if len(parts) == 1:
                    self.assertEqual(shown.get(timeout=LIMIT), b"eno\n")  # it went at once
                    time.sleep(0.7)
                return parts.pop(0) if parts else b""

            parts, written, shown = [first, rest], [], queue.SimpleQueue()
            sink = mock.Mock(write=written.append, flush=lambda: shown.put(written.pop()))
            source = SimpleNamespace(read=read)
            self.assertEqual(revecho.stream(source, sink, *server, timeout=0.5), 8)

        def pause_in_sink(lines):
            pauses = iter([0.7])  # no room to send either
            sink = mock.Mock(write=lambda _: time.sleep(next(pauses, 0)))
            count = revecho.stream(io.BytesIO(lines), sink, *server, timeout=0.5)
            self.assertEqual(count, len(lines))

        server = at(self.serve())
        calls = (
            (pause_in_source, b"one\n", b"two\n"),
            (pause_in_source, b"one\ntw", b"o\n"),
            (pause_in_sink, b"hello\n" * 2_000_000),
        )
        at_once(lambda function, *arguments: function(*arguments), calls)

    def test_sink_that_takes_a_part(self):
        """A raw file; and one that takes nothing now."""

        class Sink(io.RawIOBase):
            taken = b""

            def write(self, data):
                self.taken += data[:2]
                return min(len(data), 2)

        server, sink = self.serve(), Sink()
        self.assertEqual(revecho.stream(io.BytesIO(b"hello\nyou"), sink, *at(server)), 9)
        self.assertEqual(sink.taken, b"olleh\nuoy")
        full = subclass(io.RawIOBase, write=lambda *_: None)()
        with self.assertRaises(BlockingIOError):
            revecho.stream(io.BytesIO(b"hello\n"), full, *at(server))

    def test_refused(self):
        """By an error shorter than the line, as long, and longer; whether it is finished or not."""
        server = self.serve(max_line=10)
        for before, length, ending in itertools.product(
            (b"hello\nyou\n", b"\n\n"), (11, 31, 32, 33, 100_000), (b"", b"\n")
        ):
            message = "^error: line longer than 10 bytes; lines answered: 2, bytes answered: "
            message += f"{len(before)}$"
            with self.assertRaisesRegex(revecho.ReplyError, message):
                self.stream(before + b"x" * length + ending, server)

    def test_refused_in_pieces(self):
        """The error can come cut in two, and begin as if it were the reply to the last line."""

        def serve(connection):
            receive(connection, 10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"olleh\ner")
            gate.wait()
            connection.sendall(b"ror: no\n")

        gate = self.gate()
        sink = mock.Mock(write=lambda _: gate.open())
        message = "^error: no; lines answered: 1, bytes answered: 6$"
        with self.assertRaisesRegex(revecho.ReplyError, message):
            revecho.stream(io.BytesIO(b"hello\nyou\n"), sink, *self.other_server(serve))

    def test_what_comes_while_the_source_pauses(self):
        """It is no reply to the next line, but an error, as is the end."""

        def read(_):
            if not pauses:
                pauses.append(1)
                return b"hello\n"
            self.assertTrue(come.wait(LIMIT))
            return b"you\n"

        pauses, come, written = [], threading.Event(), threading.Event()
        for comes, why in (
            (b"olleh\n", "the reply came twice"),
            (b"oll", "more came than was asked for: 'oll'"),
            (b"error: stopping\n", "error: stopping"),
            (b"", "the connection (ended|was reset)"),
        ):

            def serve(connection, comes=comes):
                connection.sendall(revecho.reverse_lines(receive(connection, 6)))
                written.wait(LIMIT)
                connection.sendall(comes)
                half_close(connection)
                come.set()
                connection.recv(6)

            source, sink = SimpleNamespace(read=read), mock.Mock(write=lambda _: written.set())
            for each in (pauses, come, written):
                each.clear()
            message = f"^{why}; lines answered: 1, bytes answered: 6$"
            with self.assertRaisesRegex(revecho.ReplyError, message):
                revecho.stream(source, sink, *self.other_server(serve))

    def test_server_that_does_not_write(self):
        """It is not sent more than a block."""

        def only_read(connection):
            while data := connection.recv(1 << 20):
                received.append(len(data))

        received = []
        source = SimpleNamespace(read=lambda size: b"hello\n" * (size // 6))
        message = r"^no reply within 0\.2 s(; (all|some of) .* bytes .*)?; lines answered: 0, "
        with self.assertRaisesRegex(TimeoutError, message):
            self.stream(source, self.other_server(only_read), timeout=0.2)
        self.assertLessEqual(sum(received), 1 << 20)

    def test_line_without_end(self):
        source = SimpleNamespace(read=lambda size: b"x" * size)
        message = "^a line is longer than 67108864 bytes; lines answered: 0, bytes answered: 0$"
        with self.assertRaisesRegex(OSError, message):
            self.stream(source, self.serve())

    def test_sending_gives_no_more_time(self):
        """Where a reply is owed, and the server reads as slowly as it likes."""

        def read(connection):
            while connection.recv(1 << 16):
                time.sleep(0.02)

        with self.assertRaisesRegex(TimeoutError, "^no reply within 0.3 s; "):
            self.stream(b"hello\n" * 10_000_000, self.other_server(read), timeout=0.3)

    def test_source_that_fails(self):
        server = self.serve(idle_timeout=0)
        for source, error in (
            (io.StringIO("hello\n"), TypeError),
            (SimpleNamespace(read1=lambda: b""), TypeError),
            (object(), AttributeError),
            (SimpleNamespace(read=lambda _: None), BlockingIOError),
            *(
                (SimpleNamespace(read1=mock.Mock(side_effect=[b"he", b"llo\nyo", error])), error)
                for error in (ZeroDivisionError, SystemExit, KeyboardInterrupt)
            ),
        ):
            with self.assertRaises(error):
                self.stream(source, server)

    def test_source_that_fails_within_a_line(self):
        """That is no end of the line; and how much was answered before is told."""
        source = SimpleNamespace(read=mock.Mock(side_effect=[b"hello\nyo", OSError(5, "broken")]))
        sink = io.BytesIO()
        with self.assertRaisesRegex(OSError, "broken; lines answered: 1, bytes answered: 6$"):
            revecho.stream(source, sink, *at(self.serve()))
        self.assertEqual(sink.getvalue(), b"olleh\n")

    def test_sink_that_fails(self):
        threads = threading.active_count()
        server = self.serve()
        for error in (ZeroDivisionError, KeyboardInterrupt):
            sink = mock.Mock(write=mock.Mock(side_effect=error))
            with self.assertRaises(error):
                revecho.stream(io.BytesIO(b"hello\n" * 10_000_000), sink, *at(server))
        server.server_close()
        until(lambda: threading.active_count() <= threads)


# The command line

COMPLAINT = r"revecho: 127\.0\.0\.1:\d+: "


class CommandLineTest(Case):
    """What the commands have in common."""

    def test_version_and_help(self):
        self.assertEqual(self.main("--version"), (0, f"revecho {revecho.__version__}\n", ""))
        options = "--host --port --max-connections --max-line --idle-timeout --grace --reuse-port"
        of_both = "--host --port --tls-name -4 -6 -W --timeout"
        of_ping = f"{of_both} -c --count -i --interval -s --size -q --keep -w --json -D -I"
        for command, words in (
            ("server", f"{options} 127.0.0.1 2002 1000 65536 60 5 --quiet --verbose"),
            ("client", f"{of_both} --check --ask 127.0.0.1 2002 10"),
            ("ping", f"{of_ping} 127.0.0.1 2002 10 1 256"),
        ):
            status, out, err = self.main(f"{command} --help")
            self.assertEqual((status, err), (0, ""))
            for word in words.split():
                default = rf"\(default:\s+{re.escape(word)}\)"
                self.assertRegex(out, rf" {word}\b" if word.startswith("-") else default)
        self.assertRegex(out, r"\nExit status: 0 if .*\n?.*; 1 if not; 2 for wrong usage\.\n\Z")

    def test_wrong_usage(self):
        """In the words of argparse, with what may be given."""
        for command, values, why in (
            ("client --ask", "", "--ask needs a MESSAGE"),
            (r"client 'a\nb'", "", r"argument MESSAGE: 'a\\nb': a line ending within the text"),
            ("client 'a\r'", "", r"argument MESSAGE: 'a\\r': .* CR at the end .*"),
            ("client --no-such-option", "", "unrecognized arguments: --no-such-option"),
            ("ping a b", "", "unrecognized arguments: b"),
            ("ping -4 -6", "", "argument -6: not allowed with argument -4"),
            ("ping localhost:0", "", ".* '0' is not a whole number from 1 to 65535"),
            ("ping [::1]:x", "", ".* 'x' is not a whole number from 1 to 65535"),
            ("server -q -v", "", ".* not allowed with argument -q/--quiet"),
            ("", "", "the following arguments are required: COMMAND"),
            ("server --host h:2002", "", "argument --host: 'h:2002' .* --port .*"),
            ("client --host tcp://h:1", "", r"argument --host: .* is a URL .* HOST\[:PORT\] .*"),
            ("client --host h:1 --port 2", "", "more than one port is given"),
            ("client --host :1", "", "argument --host: ':1' has no host in it"),
            ("client --tls-name ''", "", "argument --tls-name: it is empty"),
            ("ping --host a b", "", "more than one host is given"),
            ("ping --host a:1 a:2", "", "more than one port is given"),
            ("client --port", "65536 0 x", "whole number from 1 to 65535"),
            ("client -W/--timeout", "0 nan inf x", "number from 0.001 to 1000000"),
            ("ping --port", "0", "whole number from 1 to 65535"),
            ("ping -c/--count", "0 1.5", "whole number from 1 to 1000000000"),
            ("ping -s/--size", "1", "whole number from 2 to 67108864"),
            ("ping -i/--interval", "-1", "number from 0 to 1000000"),
            ("ping -W/--timeout", "1000001", "number from 0.001 to 1000000"),
            ("server --port", "65536 -1", "whole number from 0 to 65535"),
            ("server --max-connections", "0", "whole number from 1 to 1000000"),
            ("server --max-line", "0 99999999999", "whole number from 1 to 1073741824"),
            ("server --idle-timeout", "-1", "number from 0 to 1000000"),
            ("server --grace", "nan inf", "number from 0 to 1000000"),
        ):
            for value in values.split() or [""]:
                name, _, option = command.partition(" ")
                number = f"argument {option}: '{value}' is not a {why}" if value else why
                line = f"{name} {option.rpartition('/')[2]}={value}" if value else command
                with self.subTest(line):
                    status, out, err = self.main(line.replace(r"\n", "\n"))
                    self.assertEqual((status, out), (2, ""))
                    self.assertRegex(err, rf"\Ausage: revecho {name}(.*\n)*.*error: {number}\n\Z")

    def test_signal_handlers_are_given_back(self):
        """Those of a program that calls main(), on its main thread; on another none are set."""

        def status_of(line, on_thread):
            statuses = queue.SimpleQueue()
            if not on_thread:
                return self.main(line)[0]
            self.join(self.on_thread(lambda: statuses.put(self.main(line)[0])))
            return statuses.get()

        server = self.serve()
        ours = {signal.SIGINT: lambda *_: None, signal.SIGTERM: signal.SIG_IGN}
        for number, handler in ours.items():
            self.addCleanup(signal.signal, number, signal.signal(number, handler))
        for line, on_thread in itertools.product(
            (f"ping {to(server)} -c 1", f"server {to(server)}"), (False, True)
        ):
            self.assertEqual(status_of(line, on_thread), int(line.startswith("server")))
            for number, handler in ours.items():
                self.assertIs(signal.getsignal(number), handler)

    def test_standard_output_closed_by_its_reader_or_full(self):
        """The first ends a client quietly; but a server has to say where it listens."""
        port, lines = to(self.serve()), b"hello\n" * 1_000_000
        reading, writing = os.pipe()
        os.close(reading)
        broken = self.stack(open(writing, "wb"))  # noqa: SIM115
        clients = f"client {port}", f"client {port} a b c", f"ping {port} -qc1"
        nothing_sent = f"ping {port}"
        rows = [(nothing_sent, None, 1), *((line, None, 0, "", lines) for line in clients)]
        self.assert_all(*rows, stdout=broken)
        server = self.start_server("--quiet", stdout=broken, stderr=subprocess.PIPE)
        self.assert_ends(server, None, 1, COMPLAINT + "standard output: (Broken|Inval).*\n")
        if os.path.exists("/dev/full"):
            why = COMPLAINT + "standard output: No space left .*\n"
            rows = ((f"{line} >/dev/full", b"", 1, why, lines) for line in clients)
            self.assert_all(*rows)

    def test_standard_streams_that_are_closed(self):
        port, why = to(self.serve()), COMPLAINT + "standard output: Bad file .*\n"
        clients = [(f"client {port} {more} >&-", b"", 1, why, b"hello\n") for more in ("", "hello")]
        self.assert_all(
            *clients,
            (f"ping {port} -c1 >&-", b"", 1, why),
            (f"client {port} >&- 2>&-", b"", 1, "", b"hello\n"),
            (f"client {port} --ask hello <&-", b"olleh\n"),
        )

    def test_host_with_port(self):
        """As the server prints it; the same can be said twice."""
        host, port = at(self.serve())
        for options in (f"--host {host}:{port}", f"--host [{host}]:{port} --port {port}"):
            self.assertEqual(self.main(f"client {options} hello")[:2], (0, "olleh\n"))
        for target in (f"{host}:{port}", f"--host {host}:{port} {host}", f"{host} --port {port}"):
            status, out, _ = self.main(f"ping -c 1 {target}")
            self.assertEqual(status, 0)
            self.assertIn(f"--- {host}:{port} ---\n", out)
        if has_ipv6():
            host, port = at(self.serve(("::1", 0)))
            for target in (f"[::1]:{port}", f"::1 --port {port}", f"[::1] --port {port}"):
                self.assertIn(f"--- [::1]:{port} ---\n", self.main(f"ping -c 1 {target}")[1])
                self.assertEqual(self.main(f"client --host {target} hello")[:2], (0, "olleh\n"))

    def test_look_up_that_does_not_end(self):
        """Ctrl-C ends it at once."""
        code = """if True:
            import os, socket, sys, threading
            import revecho
            def look_up(*_, flags=0):
                if flags:
                    raise socket.gaierror
                os.write(1, b"looking\\n")
                threading.Event().wait()
            socket.getaddrinfo = look_up
            sys.exit(revecho.main())
        """
        waiting = r"a:5: seq=1 waiting after .* ms: not resolved\n\n--- a:5 ---\n1 sent, (.*\n)+"
        for line, out, status in (("client --host a:5 hi", "", 130), ("ping a:5", waiting, 1)):
            program = self.start(f"{line} --timeout 1000", program=("-c", code))
            if line.startswith("ping"):
                self.assertRegex(program.stdout.readline(), b"^PING a:5: ")
            self.assertEqual(program.stdout.readline(), b"looking\n")
            program.send_signal(signal.SIGINT)
            shown, err = program.communicate(timeout=LIMIT)
            self.assertEqual((program.returncode, err), (status, b""))
            self.assertRegex(shown.decode(), rf"\A{out}\Z")


class ServerCommandTest(Case):
    def test_log(self):
        lines = r"listening on A(, on processor \d+ alone)?", "A connected", "A gone .*6 bytes sent"
        lines = (*lines, "stopping", "stopped")
        line = r"\d+-\d\d-\d\d \d\d:\d\d:\S+ INFO %s\n"
        lines = "".join(line % text.replace("A", r"127\.0\.0\.1:\d+") for text in lines)
        detailed = "(.*\n)*.*Thread-.* started\n.* connected\n.* gone.*\n(.*\n)*"
        options = {"": lines, "--quiet": "", "-q": "", "-v": detailed}
        servers = [self.start_server(each, stderr=subprocess.PIPE) for each in options]
        for server, expected in zip(servers, options.values()):
            self.exchange(server, b"hello\n")
            server.terminate()
            self.assert_ends(server, stderr=expected)

    @needs_kill
    def test_signals(self):
        """The first stops it, the second ends it at once."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            options = f"--grace 60 --max-line {1 << 30}"
            servers = [self.start_server(options, stderr=subprocess.PIPE) for _ in "12"]
            idle, busy = map(self.connect, servers)
            self.ask(idle)
            busy.sendall(b"x" * (20 << 20) + b"\n")  # the reply to which fits in no buffers
            until(lambda busy=busy: readable(busy))
            for server in servers:
                server.send_signal(number)
            self.assertEqual(receive(idle), b"")
            self.assert_ends(servers[0], stderr="(.* INFO .*\n)*.* INFO stopped\n")
            until(lambda server=servers[1]: b"stopping" in server.stderr.readline())
            self.assertIsNone(servers[1].poll())
            servers[1].send_signal(number)
            self.assertEqual(servers[1].wait(LIMIT), -number)

    @needs_linux
    def test_a_signal_with_a_crowd(self):
        """The threads that wait leave the processor to the one that is to handle it."""
        server = self.start_server("--idle-timeout 0")
        crowd = self.crowd(500, server)
        for connection in crowd:
            receive(connection, 6)
        before = processor_seconds(server.pid)
        server.terminate()
        _, status, usage = os.wait4(server.pid, 0)
        server.returncode = status
        self.assertEqual(status, 0)
        self.assertLess(usage.ru_utime + usage.ru_stime - before, 1)

    @unittest.skipUnless(hasattr(signal, "SIGUSR1"), "needs SIGUSR1")
    def test_other_signals_of_the_program(self):
        """They neither stop the server nor cost anything later; what it had is given back."""
        program = """if True:
            import os, signal, sys
            import revecho
            signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"handled\\n"))
            status = revecho.main(["server", "--port", "0", "-q"])
            assert signal.set_wakeup_fd(-1) == -1
            sys.exit(status)
        """
        server = self.start(program=("-c", program), stderr=subprocess.PIPE)
        self.assertEqual(revecho.request("hello", *at(server)), "olleh")
        for _ in range(3):
            server.send_signal(signal.SIGUSR1)
            self.assertEqual(server.stdout.readline(), b"handled\n")
        before = processor_seconds(server.pid)
        self.assertEqual(revecho.request("hello", *at(server)), "olleh")
        time.sleep(0.3)  # in which nothing happens
        self.assertFalse(processor_seconds(server.pid) - before > 0.1)
        server.terminate()
        self.assert_ends(server)

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "needs SIGHUP")
    def test_a_terminal_that_is_closed_under_nohup(self):
        server = self.start_server(start="trap '' HUP; exec \"$@\" ")
        connection = self.connect(server)
        self.ask(connection)
        server.send_signal(signal.SIGHUP)
        time.sleep(0.1)  # in which it could stop
        self.ask(connection)
        server.terminate()
        self.assertEqual(server.wait(LIMIT), 0)

    def test_a_log_that_nobody_reads(self):
        """It holds up neither connections nor the stop; later it tells what it lacks."""

        def fill(server):
            for _ in range(1150):  # the pipe and what waits for it have room for fewer
                self.assertEqual(revecho.request("hello", *at(server)), "olleh")

        server, unread = (self.start_server(stderr=subprocess.PIPE) for _ in "12")
        at_once(fill, [[server], [unread]])
        unread.terminate()
        self.assertEqual(unread.wait(LIMIT), 0)
        server.terminate()
        log = server.communicate(timeout=LIMIT)[1].decode()
        self.assertEqual(server.returncode, 0)
        dropped = sum(map(int, re.findall(r" WARNING (\d+) messages dropped, as nobody ", log)))
        self.assertGreater(dropped, 100)
        told = log.count("\n") - len(re.findall("dropped", log))
        self.assertEqual(told + dropped, 2303)

    def test_a_log_that_is_read(self):
        """It lacks nothing, in its order, though its reader is slow."""
        server = self.start_server(stderr=subprocess.PIPE)

        def read():
            while data := server.stderr.read(20_000):
                log.append(data)
                time.sleep(0.01)

        log, reader = [], threading.Thread(target=read)
        at(server)
        reader.start()
        for _ in range(1000):
            revecho.request("hello", *at(server))
        server.terminate()
        self.assertEqual(server.wait(LIMIT), 0)
        self.join(reader)
        lines = b"".join(log).decode().splitlines()
        self.assertEqual(len(lines), 2003)
        peers = {}
        for line in lines:
            if " connected" in line or " gone " in line:
                peers.setdefault(line.split()[3], []).append(line.split()[4])
        self.assertEqual({*map(tuple, peers.values())}, {("connected", "gone")})

    @unittest.skipUnless(
        shutil.which("unshare") and not subprocess.call(["unshare", "-pf", "true"], stderr=-3),
        "needs unshare, and the right to use it",
    )
    def test_a_second_signal_to_process_1(self):
        """As in a container, where the kernel lets no signal kill it."""
        unshare = 'exec unshare -pf --kill-child "$@" '
        server = self.start_server(f"--grace {LONG} --max-line {1 << 30}", start=unshare)
        busy = self.connect(server)
        busy.sendall(b"x" * (20 << 20) + b"\n")  # the reply to which fits in no buffers
        until(lambda: readable(busy))
        pid = server.pid
        (child,) = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for _ in "12":
            os.kill(int(child), signal.SIGTERM)
            time.sleep(0.1)  # so that these are two
        self.assertEqual(server.wait(LIMIT), 128 + signal.SIGTERM)

    def test_two_signals_at_once(self):
        """Each is taken for the first or for the second, and neither for an error."""
        server = self.start_server(stderr=subprocess.PIPE)
        at(server)
        for number in (signal.SIGINT, signal.SIGTERM):
            server.send_signal(number)
        _, errors = server.communicate(timeout=LIMIT)
        self.assertNotIn(b"Traceback", errors)
        self.assertIn(server.returncode, (0, -signal.SIGINT, -signal.SIGTERM))

    @unittest.skipUnless(has_ipv6(), "needs IPv6")
    def test_ipv6(self):
        server = self.start_server("--host ::1")
        self.assertEqual(at(server)[0], "::1")
        self.assertEqual(self.main(f"client {to(server)} --host ::1 hello"), (0, "olleh\n", ""))

    def test_that_cannot_listen(self):
        broken = """if True:
            import socket, sys
            import revecho
            class Broken(revecho.ReverseServer):
                def server_activate(self):
                    super().server_activate()
                    self.socket.shutdown(socket.SHUT_RDWR)
            revecho.ReverseServer = Broken
            sys.exit(revecho.main())
        """
        why = r"revecho: .*:\d+: "
        self.assert_all(
            (f"server {to(self.serve())}", b"", 1, f"{why}.*{'in use' * POSIX}\n"),
            ("server --host no.such.host.invalid", b"", 1, f"{why}.+\n"),
        )
        program = self.start("server -q --port 0 >/dev/null", program=("-c", broken))
        self.assert_ends(program, b"", 1, f"{why}.*\n")

    @unittest.skipUnless(len(PROCESSORS) > 1, "needs two processors, and Linux")
    def test_processor(self):
        """Each server takes one that no other has, where Python has its lock; else it takes all."""

        def others():
            names = pathlib.Path("/proc/net/unix").read_text().count("@revecho/")
            return names > sum(server.poll() is None for server in servers)

        def start_on(allowed):
            self.addCleanup(os.sched_setaffinity, 0, PROCESSORS)
            os.sched_setaffinity(0, allowed)  # which the server inherits
            servers.append(self.start_server(stderr=subprocess.PIPE))
            at(servers[-1])  # one after the other
            return os.sched_getaffinity(servers[-1].pid)

        allowed, servers = {*sorted(PROCESSORS)[:2]}, []
        narrow = {min(allowed)}  # as by `taskset`
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            self.assertEqual([start_on(narrow), start_on(allowed)], [narrow, allowed])
            return
        for _ in range(3):  # a server of another test may be there for a moment
            for server in servers:
                server.kill()
                server.wait(LIMIT)
            first, second, third = (start_on(each) for each in (narrow, allowed, allowed))
            if not others() and (first, second) == (narrow, allowed - narrow):
                break
        if others():
            self.skipTest("servers that are no part of this test run on this machine")
        self.assertEqual((first, second, len(third)), (narrow, allowed - narrow, 1))
        servers[-2].terminate()
        (processor,) = second
        self.assert_ends(servers[-2], stderr=f".*, on processor {processor} alone\n(.*\n)*")
        self.assertEqual(start_on(allowed), second)

    @unittest.skipUnless(len(PROCESSORS) > 1, "needs two processors, and Linux")
    def test_processor_of_a_program_that_embeds_it(self):
        """main() gives back what it had, and the class leaves it alone."""
        program = """if True:
            import os, sys, threading
            import revecho
            allowed = os.sched_getaffinity(0)
            with revecho.running_server() as server:
                assert os.sched_getaffinity(0) == allowed
                revecho.main(["server", "--port", str(server.server_address[1])])
            assert os.sched_getaffinity(0) == allowed
        """
        self.assert_ends(self.start(program=("-c", program)), stderr=f"{COMPLAINT}.*in use\n")

    @needs_linux
    def test_where_no_processor_can_be_taken(self):
        """Unwanted, or because the system refuses some step of it: it serves all the same."""
        refuse = """if True:
            import os, socket, sys
            import revecho
            def refuse(*_):
                raise PermissionError
            class Socket(socket.socket):
                def bind(self, address):
                    if self.family == socket.AF_UNIX:
                        raise PermissionError
                    super().bind(address)
            {}
            sys.exit(revecho.main())
        """
        for options, step in (
            ("--all-processors", ""),
            ("", "os.sched_getaffinity = refuse"),
            ("", "os.sched_setaffinity = refuse"),
            ("", "del os.sched_getaffinity"),
            (None, "socket.socket = Socket"),  # then there is nobody to keep away from
        ):
            program = ("-c", refuse.format(step))
            server = self.start_server(options or "", program=program, stderr=subprocess.PIPE)
            self.assertEqual(revecho.request("hello", *at(server)), "olleh")
            if options is not None:
                self.assertEqual(os.sched_getaffinity(server.pid), PROCESSORS)
            server.terminate()
            alone = "" if options is not None else "(, on processor .* alone)?"
            self.assert_ends(server, stderr=rf".* listening on \S+:\d+{alone}\n(.*\n)*")

    @unittest.skipUnless(hasattr(socket, "SO_REUSEPORT") and LINUX, "needs SO_REUSEPORT")
    def test_reuse_port(self):
        one = self.start_server("--reuse-port", stderr=subprocess.PIPE)
        two = self.start(f"server {to(one)} --reuse-port")
        self.assertEqual(at(one), at(two))
        for _ in range(50):
            self.assertEqual(revecho.request("hello", *at(one)), "olleh")
        for server in (one, two):
            server.terminate()
            self.assert_ends(server, stderr="(.* INFO .*\n)*.* connected\n(.* INFO .*\n)*")


class ClientCommandTest(Case):
    LINES = b"".join(b"line %d\r\n \xc3\xa9\xff\n" % number for number in range(5000))

    def test_messages(self):
        client = f"client {to(self.serve())}"
        self.assert_all(
            (f"{client} hello '' 'two words' añ -- -n", "olleh\n\nsdrow owt\nña\nn-\n".encode()),
            (f"{client} '\udcff\udcc3' hi", b"\xc3\xff\nih\n"),
            (f"{client} --timeout 1000000 hello", b"olleh\n"),
            (f"{client} --check '\ra' né level", "a\r\nén\nlevel\n".encode()),
            env={"PYTHONIOENCODING": "ascii:strict"},
        )
        self.assertNotEqual(self.main("client --port 65535 hello")[0], 2)

    def test_ask(self):
        """The question goes to where a person sees it."""
        client, question = f"client {to(self.serve())} --ask ab cd", r"Do .* continue \(y/n\)\? "
        self.assert_all(
            (client, b"ba\ndc\n" * 3, 0, question * 3, b"y\nYes\nn\n"),
            (client, b"ba\ndc\n" * 2, 0, question * 4, b"maybe\n\nyes\nNO\ny\n"),
            (client, b"ba\ndc\n", 0, question, b"n\n"),
            (client, b"ba\ndc\n" * 2, 0, question * 2 + "\n", b"y\n"),
        )

    def test_filter(self):
        client = f"client {to(self.serve())}"
        self.assert_all(*(
            (f"{client} {options}", revecho.reverse_lines(lines), 0, "", lines)
            for options in ("", "--check")
            for lines in (b"", self.LINES, self.LINES + b" :rorre")
        ))

    @needs_allocator
    def test_filter_holds_what_is_under_way(self):
        """27 MB, checked or not."""
        port = to(self.serve())
        block, reply = b"0123456789\n" * 100_000, b"9876543210\n" * 100_000
        for client in [self.start(f"client {port} {option}") for option in ("", "--check")]:
            self.on_thread(lambda stdin=client.stdin: [stdin.write(block) for _ in range(25)])
            with io.BufferedReader(client.stdout) as replies:
                for _ in range(25):
                    self.assertEqual(replies.read(len(reply)), reply)
                self.assertLess(resident(client.pid), 40_000)
                client.stdin.close()

    def test_filter_is_live(self):
        client = self.start(f"client {to(self.serve())}")
        for line in (b"one\n", b"two\n"):
            client.stdin.write(line)
            self.assertEqual(client.stdout.readline(), revecho.reverse_lines(line))

    @unittest.skipUnless(hasattr(os, "set_blocking"), "needs non-blocking pipes")
    def test_filter_of_input_that_does_not_wait(self):
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with open(reading, "rb") as stdin, open(writing, "wb"):
            client = self.start(f"client {to(self.serve())}", stdin=stdin)
            self.assert_ends(client, b"", 1, COMPLAINT + "the input is non-blocking, .*\n")

    def test_progress(self):
        """Shown after a second at a terminal, if the replies go elsewhere, and wiped at the end."""

        def answer_and_wait(connection):
            connection.sendall(revecho.reverse_lines(receive(connection, 6)))
            gate.wait()

        gate, ends = self.gate(), "the connection .*; lines answered: 3, bytes answered: 6\n"
        streams = {"kind": AtTerminal, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        client = self.start(f"client {to(self.other_server(answer_and_wait))}", **streams)
        client.stdin.write(b"1\n2\n3\n")
        client.expect(b"\r0.0 MB, 0.0 MB/s")
        gate.open()
        client.stdin.write(b"4\n")
        client.expect(b"\r" + b" " * 40 + b"\rrevecho: ")
        self.assertRegex(client.rest()[0].decode(), ends)
        quick = self.start(f"client {to(self.serve())}", **streams)
        quick.stdin.close()
        self.assertEqual(quick.rest(), (b"", 0))

    def test_failures(self):
        names = "x" * 64, "127.0.0.1 -6"
        hosts = {name: (re.escape(name.partition(" ")[0]), "resolved") for name in names}
        hosts |= {"127.0.0.1": (r"127\.0\.0\.1", "connected"), "::1": (r"\[::1\]", "connected")}
        port, refusing = free_port(), answer_with(b"error: no\n")
        rows = [
            (f"client --host {host} --port {port} {message}", b"", 1,
             f"revecho: {shown}:{port}: not {step}: .+\n")
            for host, (shown, step) in hosts.items()
            for message in ("hello", "")
        ]
        for message, out, so_far in (
            ("hello", b"", ""),
            ("", b"error: no\n", "; lines answered: 0, bytes answered: 0"),
        ):
            client = f"client {to(self.other_server(refusing))} {message}"
            rows.append((client, out, 1, f"{COMPLAINT}error: no{so_far}\n", b"hello\n"))
        for closed in ("<&-", "0>/dev/null"):
            client = f"client {to(self.serve())} {closed}"
            rows.append((client, b"", 1, COMPLAINT + "standard input: Bad file .*\n"))
        self.assert_all(*rows)

    def test_interrupt(self):
        for message in ("hello", ""):
            gate = self.gate()
            address = self.other_server(lambda it, gate=gate: it.recv(6) and gate.wait())
            client = self.start(f"client {to(address)} {message}")
            client.stdin.write(b"hello\n")
            gate.until_reached()
            client.send_signal(signal.SIGINT)
            self.assertEqual(client.wait(LIMIT), 130)
            self.assert_ends(client, b"", 130)
            gate.open()


class CheckTest(Case):
    """client --check"""

    def test_messages(self):
        for serve, timeout, message in bad_paths(self.serve()):
            port = to(self.other_server(serve))
            with self.subTest(message):
                status, _, err = self.main(f"client {port} --timeout {timeout} --check hello")
                self.assertEqual(status, 1)
                self.assertRegex(err, rf"\A{COMPLAINT}.*{message}.*\n\Z")

    def test_filter(self):
        """The lines before the first that differs are printed."""
        server = self.serve()

        def wrong(number, change):  # the reply to one line of many
            def back(replies):
                lines = replies.splitlines(True)
                lines[number - 1] = change(lines[number - 1])
                return b"".join(lines)

            return relay(server, back=back)

        lines = b"".join(b"line %d\n" % number for number in range(1, 10))
        olleh = r"came, 'olleh\\n' should have come"
        digits, shown = b"0123456789abcdef\n", "'ba987654-210.*' came, 'ba9876543210.*"
        cases = (
            (lines, wrong(1, flip), "not the reverse at byte 1, line 1: .*"),
            (lines, wrong(3, flip), r"not .* byte 15, line 3: '2 enil\\n' came, '3 enil\\n' .*"),
            (lines, wrong(9, lambda _: b"9 enix\n"), "not the reverse at byte 62, line 9: .*"),
            (lines, wrong(2, lambda _: b"line 2\n"), "an echo at byte 8, line 2: 'line 2.*"),
            (lines, wrong(2, lambda _: b"2 eni\nl"), "not the reverse at byte 13, line 2: .*"),
            (lines, wrong(2, lambda _: b""), "not the reverse at byte 8, line 2: '3 enil.*"),
            (lines, wrong(9, lambda _: b"error: no\n"), "error: no"),
            (lines, wrong(3, lambda _: b"error: no\n"), "error: no"),
            (lines, wrong(9, lambda _: b"error: no\r"), "error: no"),
            (lines, relay(server, there=flip), "not the reverse at byte 6, line 1: .*"),
            (lines, mirror, "an echo at byte 1, line 1: 'line 1.*"),
            (b"\n", answer_with(b"\r\n"), r"not the reverse at byte 1: '\\r\\n' came, .*"),
            (b"level\n", answer_with(b"level\r\n"), "not the reverse at byte 6: .*"),
            (lines, answer_with(b"0" * 10), "not the reverse at byte 1, line 1: '0{10}' came, .*"),
            (digits, answer_with(b"fedcba987654-210\n"), f"not .* byte 13: {shown}"),
            (b"hello", answer_with(b"hello\n"), rf"an echo at byte 1: 'hello\\n' {olleh}"),
            (b"hello\n", answer_with(b"olleh\nx"), "more came than was asked for: 'x'"),
        )
        servers = [self.other_server(serve) for _, serve, _ in cases]
        clients = [self.start(f"client --check {to(server)}") for server in servers]
        for (text, _, message), client in zip(cases, clients):
            with self.subTest(message):
                out, err = client.communicate(text, LIMIT)
                counts = f"lines answered: {out.count(10)}, bytes answered: {len(out)}"
                self.assertRegex(err.decode(), rf"\A{COMPLAINT}{message}; {counts}\r?\n\Z")
                self.assertEqual(client.returncode, 1)
                self.assertEqual(out, revecho.reverse_lines(text)[: len(out)])

    def test_filter_counts_from_the_beginning(self):
        def serve(connection):
            connection.sendall(revecho.reverse_lines(receive(connection, 10)))
            mirror(connection)

        client = self.start(f"client --check {to(self.other_server(serve))}")
        client.stdin.write(b"hello\nyou\n")
        self.assertEqual(client.stdout.readline() + client.stdout.readline(), b"olleh\nuoy\n")
        client.stdin.write(b"again\n")
        self.assertEqual(client.wait(LIMIT), 1)
        why = COMPLAINT + r"an echo at byte 11, line 3: 'again\\n' came, .*\n"
        self.assert_ends(client, b"", 1, why)


# A network of its own: in it nobody is at 10.0.0.2, but a router at 10.0.0.9 says so, by an ICMP
# message with the port as its code; in the place of a port above 99 it says that there is no room.
ROUTER = """
import fcntl, os, socket, struct, sys, threading
import revecho

def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)

def route():
    while packet := os.read(tun, 2000):
        ours, far, port = packet[12:16], packet[16:20], int.from_bytes(packet[22:24], "big")
        if packet[9:10] != b"\\6" or not packet[33] & 2:  # TCP's SYN
            continue
        if port < 100:
            sender, kind = socket.inet_aton("10.0.0.9"), 1
            body = struct.pack(">BBHI", 3, port, 0, 0) + packet[:28]
            body = body[:2] + checksum(body) + body[4:]
        else:
            sender, kind, number = far, 6, int.from_bytes(packet[24:28], "big") + 1 & 0xFFFFFFFF
            window = 0
            body = packet[22:24] + packet[20:22] + struct.pack(">II", 1, number)
            body += struct.pack(">HHI", 0x5012, window, 0)  # SYN and ACK
            check = checksum(far + ours + struct.pack(">HH", 6, len(body)) + body)
            body = body[:16] + check + body[18:]
        head = struct.pack(">HHIBB", 0x4500, 20 + len(body), 0, 64, kind)
        check = checksum(head + sender + ours)
        os.write(tun, head + check + sender + ours + body)

def set_up(request, *value):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, request, struct.pack("16sHH4s16x", b"tun0", *value))

def ping(port):
    revecho.main(["ping", f"10.0.0.2:{port}", "-c", "1", "-W", "0.5"])

tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))  # TUNSETIFF
set_up(0x8916, socket.AF_INET, 0, socket.inet_aton("10.0.0.1"))  # SIOCSIFADDR
set_up(0x891C, socket.AF_INET, 0, socket.inet_aton("255.255.255.0"))  # SIOCSIFNETMASK
set_up(0x8914, 0x41, 0, bytes(4))  # SIOCSIFFLAGS: up and running
threading.Thread(target=route, daemon=True).start()
"""


class PingTest(ClientCase):
    def ping(self, server, options="--count 1"):
        """Return the status, what is shown after the first line, and the errors."""
        status, out, err = self.main(f"ping {to(server)} --interval 0 {options}")
        first = re.match(rf"PING 127\.0\.0\.1:{at(server)[1]}: \d+ bytes every 0 s\n", out)
        self.assertEqual(bool(first), not {"-q", "--json"} & {*options.split()}, out)
        return status, out[first.end() if first else 0 :], err

    def probe(self, path, options="", outcome="failed"):
        """Ping a bad path, an address or what other_server() does; return what the line says."""
        address = path if isinstance(path, tuple) else self.other_server(path)
        status, out, err = self.ping(address, f"--count 1 {options}")
        self.assertEqual((status, err), (1, ""))
        shown = re.fullmatch(
            rf"127\.0\.0\.1:\d+: seq=1 {outcome} after \d+\.\d\d ms: (.*)\n\n--- .* ---\n"
            r"(?:1 sent, 0 reversed, 1 failed \(100%\)|0 sent, .*, 1 not sent)\n"
            r"1 x (.*) \(seq 1\)(?:, (.*))?\n"
            r"((?:nothing|nothing right) came back for .*, and it goes on\n)?",
            out,
        )
        self.assertTrue(shown, out)
        self.assertTrue(shown[1].startswith(shown[2]) and shown[1].endswith(shown[3] or ""), out)
        return shown[1]

    def probes(self, server, options="--count 1"):
        """Return the status, and what --json shows: the probes, and the summary."""
        status, out, err = self.main(f"ping {to(server)} -i 0 --json {options}")
        self.assertEqual(err, "")
        *probes, summary = map(json.loads, out.splitlines())
        types = [record.pop("type") for record in (*probes, summary)]
        self.assertEqual(types, ["probe"] * len(probes) + ["summary"])
        return status, probes, summary

    def test_good_path(self):
        server = self.serve()
        for options, size in (("", 256), ("--size 2", 2), ("-s 65536", 65536), ("-W 9 -4", 256)):
            status, out, err = self.ping(server, f"-c 3 {options}")
            self.assertEqual((status, err), (0, ""))
            probes = "".join(
                rf"127\.0\.0\.1:\d+: seq={number} {size} bytes reversed, "
                r"connect=(\d+\.\d\d) ms reply=(\d+\.\d\d) ms\n"
                for number in (1, 2, 3)
            )
            names, times = "min/max/mean/stdev", "/".join([r"(\d+\.\d\d)"] * 4) + r" ms\n"
            shown = re.fullmatch(
                rf"{probes}\n--- 127\.0\.0\.1:\d+ ---\n3 sent, 3 reversed, 0 failed \(0%\)\n"
                rf"connect {names} = {times}reply {names} = {times}",
                out,
            )
            figures = [float(figure) for figure in shown.groups()]
            for ours, theirs in ((figures[:6:2], figures[6:10]), (figures[1:6:2], figures[10:])):
                expected = min(ours), max(ours), statistics.mean(ours), statistics.pstdev(ours)
                for figure, other in zip(theirs, expected):
                    self.assertAlmostEqual(figure, other, delta=0.011)

    def test_summary_alone(self):
        status, out, err = self.ping(self.serve(), "-c 40 -q")
        self.assertEqual((status, err), (0, ""))
        counts = r"127\.0\.0\.1:\d+: 40 sent, 40 reversed, 0 failed \(0%\)"
        self.assertRegex(out, rf"\A{counts}\nconnect min/median/p95/max/mean.*\nreply.*\n\Z")
        port = free_port()
        _, out, _ = self.ping(("", port), "-c 3 -q")
        why = f"127.0.0.1:{port}: 3 sent, 0 reversed, 3 failed (100%)\n3 x not connected: "
        self.assertEqual(out, f"{why}Connection refused (seq 1-3)\n")

    def test_percentile(self):
        """Of 20 replies of which one takes long, nineteen times out of twenty: not that one."""
        slow = iter([0.3] + [0] * 19)

        def respond(_, lines):
            time.sleep(next(slow))
            return revecho.reverse_lines(lines)

        _, _, summary = self.probes(self.serve(respond=respond), "-q -c 20")
        times = summary["reply_ms"]
        self.assertGreaterEqual(times["max"], 300)
        self.assertLess(times["p95"], times["max"])
        self.assertLessEqual(times["min"], times["median"])
        self.assertGreaterEqual(times["p95"], times["median"])
        self.assertEqual(times["count"], 20)
        _, _, summary = self.probes(self.serve(), "-q -c 19")
        self.assertEqual((summary["reply_ms"]["median"], summary["reply_ms"]["p95"]), (None, None))

    def test_json(self):
        """The names and what they hold, for a good line, and for one of each kind of failure."""
        (status, [probe, _], summary), now = self.probes(self.serve(), "-c 2"), time.time()
        self.assertEqual(status, 0)
        steps = ["lookup_ms", "connect_ms", "tls_ms", "reply_ms"]
        names = ["seq", "sent", "target", "address", "size", "state", "kind", "reason", "after_ms"]
        self.assertEqual({*probe}, {*names, *steps, "sent_again"})
        self.assertEqual((probe["seq"], probe["size"], probe["state"]), (1, 256, "reversed"))
        self.assertEqual(probe["target"], probe["address"])
        self.assertEqual(probe["sent_again"], 0 if LINUX else None)
        for name in "kind", "reason", "lookup_ms", "tls_ms":
            self.assertIsNone(probe[name])
        self.assertLessEqual(probe["connect_ms"] + probe["reply_ms"], probe["after_ms"] + 0.002)
        sent = datetime.datetime.fromisoformat(probe["sent"])
        self.assertEqual((sent.utcoffset(), sent.microsecond % 1000), (datetime.timedelta(0), 0))
        self.assertLess(abs(sent.timestamp() - now), LIMIT)
        counts = {"sent": 2, "reversed": 2, "failed": 0, "waiting": 0, "not_sent": 0}
        counts.update(sent_again=0, reasons=[], outages=[])
        self.assertEqual([*summary], ["target", *counts, *steps])
        self.assertEqual({name: summary[name] for name in counts}, counts)
        figures = ["min", "median", "p95", "max", "mean", "stdev", "count"]
        self.assertEqual([*summary["reply_ms"]], figures)
        self.assertIsNone(summary["tls_ms"])

        full = self.crowded_listener().getsockname() if LINUX else None
        for path, options, kind in (
            (("", free_port()), "", "refused"),
            (("", free_port()), "--host " + "x" * 64, "lookup"),
            (full, "-W 0.05", "connect-timeout"),
            (never_answer, "-W 0.05", "no-reply"),
            (answer_with(b"", stay=True), "-W 0.05", "no-reply"),
            (relay(self.serve(), back=lambda it: it[:9]), "", "ended"),
            (end, "", "ended|reset"),
            (reset_at_once, "", "reset|ended" if WINE else "reset"),
            (mirror, "", "wrong-reply"),
            (relay(self.serve(), back=lambda it: it * 2), "", "unasked"),
            (relay(self.serve(max_line=63)), "", "server-error"),
            (answer_with(b"x"), "--tls", "tls"),
        ):
            if path:
                address = path if isinstance(path, tuple) else self.other_server(path)
                status, [probe], summary = self.probes(address, f"-c 1 {options}")
                self.assertEqual((status, probe["state"]), (1, "failed"))
                self.assertRegex(probe["kind"], rf"\A({kind})\Z")
                self.assertGreater(probe["after_ms"], 0)
                [reason], [outage] = summary["reasons"], summary["outages"]
                self.assertTrue(probe["reason"].startswith(reason.pop("reason")))
                self.assertEqual(reason.pop("kind"), probe["kind"])
                self.assertEqual(reason, {"count": 1, "first_seq": 1, "last_seq": 1})
                self.assertEqual((outage["from"], outage["lines"]), (probe["sent"], 1))

    def test_addresses_of_a_name(self):
        """Each has its share of the time; those that failed, and the time of the look-up, show."""

        def found(*_, **__):
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", it) for it in addresses]

        addresses = []
        good, refusing = at(self.serve()), ("127.0.0.2", free_port())
        full = self.crowded_listener().getsockname()
        shown = {address: f"{address[0]}:{address[1]}" for address in (good, refusing, full)}
        refused = f"{shown[refusing]}: Connection refused"
        unanswered = f"{shown[full]}: no answer within 0.2 s"
        self.stack(mock.patch.object(socket, "getaddrinfo", found))
        # What connecting took is told of the one that answered: less than the 200 ms of another.
        good_line = rf"{shown[good]}: seq=1 256 .*connect=1?\d?\d\.\d\d ms reply=.* ms, after"
        bad_line = rf"{shown[refusing]}: seq=1 failed .* ms: not connected:"
        for tried, line, reason, status in (
            ([refusing, good], f"{good_line} {refused}", f"reversed after {refused}", 0),
            ([full, refusing, good], f"{good_line} {unanswered}; {refused}", "reversed .*", 0),
            ([full, refusing], f"{bad_line} {unanswered}; {refused}", "not connected: .*", 1),
        ):
            addresses[:] = tried
            for quiet in False, True:
                options = f"--timeout {0.2 * len(tried)}{' -q' * quiet}"
                result, out, _ = self.main(f"ping -c 1 {options} a:5")
                self.assertEqual(result, status, out)
                before = "a:5: " if quiet else rf"PING .*\n{line}\n\n--- a:5 ---\n"
                self.assertRegex(out, rf"\A{before}1 sent.*\n1 x {reason} \(seq 1\)\n")
        addresses[:] = [good]
        _, out, _ = self.main("ping -c 1 a:5")
        self.assertRegex(out, r"\A.*\n.*reversed, lookup=.* ms connect=.* ms reply=.* ms\n\n---.*\n"
                              r".*\nlookup min.*\nconnect min.*\nreply min.*\n\Z")

    def test_each_line_is_another(self):
        """That is not its own reverse; from 255 bytes on it holds them all, but for LF."""
        lines = []

        def respond(_, line):
            lines.append(line)
            return revecho.reverse_lines(line)

        server = self.serve(respond=respond)
        for size in (2, 255, 256, 300):
            lines.clear()
            options = "" if size == 256 else f"-s {size}"
            self.assertEqual(self.ping(server, f"-c 20 {options}")[0], 0)
            self.assertGreater(len(set(lines)), len(lines) // 2)
            for line in lines:
                self.assertRegex(line, rb"(?s)\A[^\n]{%d}[^\r\n]\n\Z" % (size - 1))
                self.assertEqual(revecho.reverse_lines(line), line[-2::-1] + b"\n")
                self.assertNotEqual(line[-2::-1], line[:-1])
                if size > 2:
                    self.assertEqual({*line}, {*range(256)})

    def test_paths_that_spoil_a_byte(self):
        """Whichever it is, a single line finds out, and says what has become of it."""

        def respond(_, line):
            return spoilt(revecho.reverse_lines(spoilt(line)))

        def spoilt(line):
            return line.replace(*change)

        server = self.serve(respond=respond)
        for number in {*range(256)} - {*b"\n?"}:
            byte, shown = bytes([number]), f"0x{number:02x}"
            for replacement, said in (
                (b"", f"{shown} is missing"),
                (b"?", f"{shown} came back as 0x3f"),
                (byte * 2, f"{shown} came twice"),
            )[: 3 if number % 8 == 5 else 1]:
                change = byte, replacement
                status, out, _ = self.ping(server, "-c 1")
                self.assertEqual(status, 1)
                self.assertRegex(out, rf" ms: not the reverse at byte \d+: {said}: .*\n")
                self.assertRegex(out, rf"\n1 x not the reverse \(seq 1\), at byte \d+: {said}: ")

    def test_bad_paths(self):
        """The rest of what bad_paths() has is not sent, or not waited for."""
        limited = relay(self.serve(max_line=63))
        eaten = relay(self.serve(), there=lambda line: line.replace(b"\xff", b""))
        cut = lambda line: line.replace(b"\r", b"\n")  # noqa: E731
        header = b"PROXY TCP4 192.168.100.100 192.168.100.200 54321 2002\r\n".__add__
        twice = relay(self.serve(), back=lambda reply: reply * 2)
        for serve, timeout, message in (
            *bad_paths(self.serve()),
            (limited, LIMIT, r"error: line longer than 63 bytes\Z"),
            (eaten, LIMIT, r"not the reverse at byte \d+: 0xff is missing: "),
            (relay(self.serve(), there=cut), LIMIT, r"not the reverse at byte 1: ['\"].* came"),
            (answer_with(b"\r\n"), LIMIT, r"not the reverse at byte 1: '\\r\\n' came"),
            (twice, LIMIT, "the reply came twice"),
            (relay(self.serve(), there=header), LIMIT, r"not the reverse at byte .*YXORP\\r\\n'"),
            (lambda it: self.flood(it, b"\r" * 65536) or 1, LIMIT, r"(1|for): '(\\r){12}'\.\.\."),
        ):
            with self.subTest(message):
                outcome = self.probe(serve, f"--timeout {timeout}")
                self.assertRegex(outcome, rf"\A{message}|: {message}| {message}")

    def test_quotations_are_short(self):
        """And tell what should have come only where something right came before."""
        for change, quoted in (
            (lambda it: b"x" * 30 + it[30:], r"at byte 1: .*'x{12}'\.\.\.['\"].*\\n['\"] came"),
            (lambda it: it[:99] + b"xx" + it[101:], r"byte 100: .*xx.*\.\.\..* have come"),
        ):
            outcome = self.probe(relay(self.serve(), back=change))
            self.assertRegex(outcome, rf"{quoted}\Z")
            for quotation in re.findall(r"""(?s)(b?['"].*?['"]) (?:came|should)""", outcome):
                self.assertLess(len(quotation), 20 * 4 + len("''...''"))

    def test_mirror_of_a_long_line(self):
        """Of which a part has to do."""
        outcome = self.probe(lambda it: it.sendall(it.recv(100)) or True, "--size 60000")
        self.assertRegex(outcome, "an echo at byte ")

    def test_reply_of_which_a_part_comes(self):
        """In time; and when the whole does not, though some comes all the time."""

        def dripping(connection):
            for byte in revecho.reverse_lines(connection.recv(65536)):
                connection.sendall(bytes([byte]))
                gate.wait(0.01)

        part = relay(self.serve(), back=lambda reply: reply[:20])
        gate = threading.Event()
        for serve, came in (
            (lambda it: part(it) or True, r"20 of 257 bytes came, the last 0\.\d s ago: "),
            (dripping, r"\d+ of 257 bytes came, the last 0\.\d s ago: "),
        ):
            outcome = self.probe(serve, "--timeout 0.3")
            self.assertRegex(outcome, rf"\Ano end of the reply within 0\.3 s.*; {came}")

    @unittest.skipUnless(CPYTHON and POSIX, "others may need more descriptors themselves")
    def test_lack_at_this_end(self):
        """It is no failure of the path, and counts for nothing, unless there is nothing else."""
        import resource

        def lacking():
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, limits[1]))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)

        def respond(_, line):
            # The next two lines find no descriptor, and then there are some again.
            lacking()
            threading.Timer(0.15, resource.setrlimit, (resource.RLIMIT_NOFILE, limits)).start()
            return revecho.reverse_lines(line)

        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        address, changing = at(self.serve()), self.serve(respond=respond)
        with open(os.devnull) as lowest:
            number = lowest.fileno()
        lacking()
        why = f"not connected: this end lacks something: {os.strerror(errno.EMFILE)}"
        self.assertEqual(self.probe(address, outcome="not sent"), why)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        status, out, _ = self.main(f"ping {to(changing)} -c 2 -i 0.1")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"\n2 sent, 2 reversed, 0 failed \(0%\), [12] not sent\n. x not conn")
        # So many tries in a row are enough, also after a line that was sent.
        lacking()
        status, out, _ = self.main(f"ping {to(address)} -c 3 -i 0")
        self.assertEqual(status, 1)
        self.assertRegex(out, r"\n0 sent, .*, 3 not sent\n")
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        lacks_from_now_on = self.serve(respond=lambda _, line: (lacking(), line[-2::-1] + b"\n")[1])
        status, out, _ = self.main(f"ping {to(lacks_from_now_on)} -c 3 -i 0")
        self.assertEqual(status, 1)
        self.assertRegex(out, r"\n1 sent, 1 reversed, .*, 3 not sent\n")

    def test_full_server(self):
        server = self.serve(max_connections=1)
        acknowledged = "; all 257 bytes acknowledged" * LINUX
        with self.connect(server) as first:
            self.ask(first)
            outcome = self.probe(at(server), "--timeout 0.05")
            self.assertRegex(outcome, rf"\Ano reply within 0\.05 s{acknowledged}\Z")
        self.assertEqual(self.ping(server)[0], 0)
        outcome = self.probe(self.crowded_listener().getsockname(), "--timeout 0.05")
        self.assertRegex(outcome, r"\Anot connected: no answer within 0\.05 s\Z")

    def test_a_failure_does_not_end_it(self):
        good = relay(self.serve())
        address = self.other_server(by_turns(good, mirror, good))
        status, out, _ = self.ping(address, "--count 3")
        self.assertEqual(status, 1)
        self.assertEqual(re.findall(r"seq=(\d) (\w+)", out)[1], ("2", "failed"))
        self.assertIn("3 sent, 2 reversed, 1 failed (33.3%)\n1 x an echo (seq 2), at byte 1: ", out)

    def test_outages(self):
        """Each is from the sending of the first line that failed to the next good reply."""
        good, gate = relay(self.serve()), threading.Event()
        wait = lambda it: gate.wait(0.1) or good(it)  # noqa: E731
        paths = good, mirror, mirror, wait, good, wait, end, wait, mirror
        status, probes, summary = self.probes(self.other_server(by_turns(*paths)), "-c 9")
        self.assertEqual((status, summary["failed"]), (1, 4))
        outages = summary["outages"]
        self.assertEqual([outage["lines"] for outage in outages], [2, 1, 1])
        for outage, first, after in zip(outages, (1, 6), (3, 7)):
            sent, back = (
                datetime.datetime.fromisoformat(probes[number]["sent"]).timestamp()
                for number in (first, after)
            )
            self.assertEqual(outage["from"], probes[first]["sent"])
            lasted = back + probes[after]["after_ms"] / 1000 - sent
            self.assertAlmostEqual(outage["seconds"], lasted, delta=0.0021)
        groups = [tuple(reason.values()) for reason in summary["reasons"]]
        self.assertEqual(groups[0], ("wrong-reply", "an echo", 3, 2, 9))
        self.assertEqual(groups[1][2:], (1, 7, 7))

        server = self.other_server(by_turns(*paths))
        for options, shown in (("-c 9", r"\n--- .*\n"), ("-q -c 9", "127.*: ")):
            if options == "-q -c 9":
                server = self.other_server(by_turns(*paths))
            _, out, _ = self.ping(server, options)
            self.assertRegex(
                out,
                rf"{shown}9 sent, 5 reversed, 4 failed \(44\.4%\)\n"
                r"3 x an echo \(seq 2-9\), first at .*\n"
                r"1 x the connection (ended|was reset) \(seq 7\)\n3 outages, 0\.\d s in all\n"
                r"(nothing right came back for 0\.\d s from \d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
                r"\(2 lines: an echo\)\n"
                r"|nothing right came back for 0\.\d s from .* \(1 line: an echo\), and it go.*\n"
                r"|nothing came back for 0\.\d s from .* \(1 line: the connection .*\)\n){2,3}conn",
            )

    def test_clock_that_is_set_back(self):
        """It makes no outage shorter, and no line."""
        now = itertools.count(10**9, -3600)
        with mock.patch.object(time, "time", lambda: next(now)):
            paths = by_turns(mirror, relay(self.serve()))
            _, probes, summary = self.probes(self.other_server(paths), "-c 2")
        self.assertTrue(all(probe["after_ms"] >= 0 for probe in probes))
        self.assertTrue(0 <= summary["outages"][0]["seconds"] < LIMIT)

    def test_date(self):
        before = datetime.datetime.now()
        for options, date in (("-D", r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) "), ("", "()")):
            _, out, _ = self.ping(self.serve(), f"-c 1 {options}")
            shown = re.match(rf"{date}127\.0\.0\.1:\d+: seq=1 ", out)
            if options:
                sent = datetime.datetime.fromisoformat(shown[1])
                self.assertLess(abs(sent - before), datetime.timedelta(seconds=LIMIT))

    def test_deadline(self):
        """It ends the run; what waits then has failed if it is later than any good reply was."""
        start, good = time.monotonic(), relay(self.serve())
        status, _, summary = self.probes(self.serve(), "-w 0.3 -q")
        self.assertEqual((status, summary["failed"]), (0, 0))
        self.assertGreater(summary["reversed"], 1)
        self.assertGreaterEqual(time.monotonic() - start, 0.3)
        silent = [never_answer] * 99
        path = self.other_server(by_turns(good, *silent))
        status, [*_, probe], summary = self.probes(path, "-w 0.4")
        self.assertEqual((status, probe["state"], probe["kind"]), (1, "failed", "no-reply"))
        self.assertEqual((summary["reversed"], summary["failed"]), (1, 1))
        slow = lambda it: time.sleep(0.5) or good(it)  # noqa: E731
        path = self.other_server(by_turns(slow, *silent))
        status, [*_, probe], summary = self.probes(path, "-w 1.1")
        self.assertEqual((status, probe["state"], probe["kind"]), (1, "failed", "no-reply"))
        path = self.other_server(by_turns(slow, *silent))
        status, [*_, probe], summary = self.probes(path, "-w 0.9 -i 0.6")
        self.assertEqual((status, probe["state"], probe["kind"]), (0, "waiting", None))
        self.assertRegex(probe["reason"], r"\Ano reply within 0\.\d+ s")
        self.assertEqual((summary["reversed"], summary["waiting"]), (1, 1))
        self.assertEqual((summary["reasons"], summary["outages"]), ([], []))

    def test_deadline_while_a_second_copy_is_awaited(self):
        """It ends that wait, too: the copy comes later, but within a round trip."""

        def twice(connection):
            reply = revecho.reverse_lines(receive(connection, 257))
            for pause in 0.5, 0.45:
                time.sleep(pause)
                connection.sendall(reply)

        for options, status in (("-w 0.8", 0), ("-c 1", 1)):
            self.assertEqual(self.probes(self.other_server(twice), options)[0], status)

    def test_deadline_and_count(self):
        """As many lines have to come back; how many have failed before makes no difference."""
        good = relay(self.serve())
        paths = mirror, mirror, good, mirror, good, good
        status, probes, _ = self.probes(self.other_server(by_turns(*paths)), f"-w {LIMIT} -c 2")
        states = [probe["state"] for probe in probes]
        self.assertEqual(states, ["failed", "failed", "reversed", "failed", "reversed"])
        self.assertEqual(status, 0)
        status, probes, _ = self.probes(("", free_port()), "-w 0.3 -c 1 -i 0.1")
        self.assertEqual((status, {probe["state"] for probe in probes}), (1, {"failed"}))
        self.assertGreater(len(probes), 1)

    def test_source_address(self):
        server = self.serve()
        if not LINUX:
            self.skipTest("elsewhere 127.0.0.5 may be no address of this machine")
        self.assertEqual(self.ping(server, "-c 1 -I 127.0.0.5")[0], 0)
        self.assertIn("127.0.0.5:", self.until_logged(" connected")[0])
        for options, why in (
            ("-I ''", "it is empty"),
            ("-I 192.0.2.1", f"'192.0.2.1': {re.escape(os.strerror(errno.EADDRNOTAVAIL))}"),
            ("-I 127.0.0.1 -6", "the address is of the other version of IP"),
        ):
            status, _, err = self.main(f"ping {options}")
            self.assertEqual(status, 2)
            self.assertRegex(err, f"error: argument -I: {why}\n")

    def test_keep(self):
        """One connection; when it ends a probe fails, and the next has another."""
        server = self.serve()
        status, out, _ = self.ping(server, "--count 3 --keep")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"\A.*connect=.*ms reply=.* ms\n(.* reversed, reply=.* ms\n){2}\n"
                              r"--- .*\n.*\nconnect min/.*\nreply min/.*\n\Z")
        self.assertEqual(sum(" connected" in message for message in self.logged()), 1)

        def twice(connection):
            for _ in "12":
                connection.sendall(revecho.reverse_lines(receive(connection, 257)))

        _, out, _ = self.ping(self.other_server(twice), "--count 5 --keep")
        self.assertRegex(out, r"\A.* connect=.*\n.* reversed, reply=.*\n.*seq=3 failed .*: the "
                              r"connection (ended|was reset).* 0.0 s after the last reply\n"
                              r".*connect=.*\n.*, reply")

    def test_kept_connection_is_watched(self):
        """It is told how long it was silent, and what came meanwhile, as that."""

        def answer(connection):
            connection.sendall(revecho.reverse_lines(receive(connection, 257)))
            return connection

        def copied(connection):
            reply = revecho.reverse_lines(receive(connection, 257))
            connection.sendall(reply)
            gate.wait(0.1)
            connection.sendall(reply)
            return True

        def then(step):
            return lambda it: (answer(it), gate.wait(0.1)) and step(it)

        gate, after = threading.Event(), r"0\.\d s after the last reply"
        for path, options, outcome in (
            (then(end), "", f"ms: the connection ended {after}"),
            (then(reset), "", f"{RESET} {after}"),
            (then(lambda it: it.sendall(b"x") or True), "", f"for {after}: 'x'"),
            (copied, "", f"ms: the reply came twice {after}"),
            (answer, "-W 0.5", r"no reply within 0\.5 s.*; sent 0\.\d s after the last reply"),
        ):
            with self.subTest(outcome):
                address = self.other_server(by_turns(path, relay(self.serve())))
                status, out, _ = self.main(f"ping {to(address)} -c 3 -i 0.3 --keep {options}")
                self.assertEqual(status, 1)
                self.assertRegex(out, rf"seq=1 256 .*\n.*seq=2 failed .* {outcome}\n.*seq=3 256 ")

    def test_signals(self):
        """A probe that is under way counts as sent, and how far it has come is told."""
        good, one = [relay(self.serve())], "2 sent, 1 reversed, 0 failed (0%), 1 waiting"
        # An acknowledgement can be late by 40 ms, and Ctrl-C come before a send has returned.
        acknowledged = "; (((all|none of) 257 bytes ackn|nothing could be s).*)" * LINUX
        for number, before, options, shown, status in (
            (signal.SIGINT, good, "", one, 0),
            (signal.SIGTERM, good, "", one, 0),
            (signal.SIGINT, [], "", "1 sent, 0 reversed, 0 failed (0%), 1 waiting", 1),
            (signal.SIGINT, [], "-q", "1 sent, 0 reversed, 0 failed (0%), 1 waiting", 1),
        ):
            gate = self.gate()
            paths = by_turns(*before, lambda it, gate=gate: receive(it, 257) and gate.wait())
            ping = self.start(f"ping {to(self.other_server(paths))} --interval 0.001 {options}")
            if not options:
                self.assertRegex(ping.stdout.readline(), b"^PING ")  # at once
            if before:
                self.assertRegex(ping.stdout.readline(), rb"seq=1 256 bytes reversed")
            gate.until_reached()
            ping.send_signal(number)
            out, err = ping.communicate(timeout=LIMIT)
            waiting = rf"127.*: seq=\d waiting after .* ms: no reply{acknowledged}\n\n--- .*\n"
            rest = rf"{re.escape(shown)}\n(.* ms\n)*"
            text = none_sent_again(out.decode())
            self.assertRegex(text, rf"\A{'127.*: ' if options else waiting}{rest}\Z")
            self.assertEqual((ping.returncode, err), (status, b""))
            gate.open()

    def test_signal_at_any_time(self):
        """The first that comes after the first line leads to the summary, without a traceback."""
        server = self.serve()
        for wait in range(0, 20, 2):
            ping = self.start(f"ping {to(server)} --interval 0.003")
            ping.stdout.readline()
            time.sleep(wait / 1000)
            ping.send_signal(signal.SIGINT)
            out, err = ping.communicate(timeout=LIMIT)
            self.assertNotIn(b"revecho", err)  # Python may complain of a socket that it was making
            self.assertRegex(out.decode(), r"\n--- 127.*\n\d+ sent, \d+ reversed, 0 failed")

    @unittest.skipUnless(hasattr(signal, "SIGQUIT"), "needs SIGQUIT")
    def test_summary_so_far(self):
        """At once, on standard error; and it goes on."""
        gate = self.gate()
        for options, summary in (("", r"\n--- 127.*\n1 sent.*\n.*\n.*\n"), ("--json", r"\{.*\}\n")):
            paths = by_turns(relay(self.serve()), lambda it: receive(it, 257) and gate.wait())
            ping = self.start(f"ping {to(self.other_server(paths))} -i 0 -c 3 {options}")
            gate.until_reached()
            ping.send_signal(signal.SIGQUIT)
            shown = b""
            while not re.fullmatch(summary, shown.decode()):
                shown += os.read(ping.stderr.fileno(), 1000)
            ping.send_signal(signal.SIGINT)
            out, err = ping.communicate(timeout=LIMIT)
            self.assertEqual((ping.returncode, err), (0, b""))
            self.assertIn(b"waiting", out)
        gate.open()

    @unittest.skipUnless(hasattr(signal, "SIGQUIT"), "needs SIGQUIT")
    def test_summary_so_far_without_standard_error(self):
        """It does not go to the server, whose connection has got that descriptor."""
        gate = self.gate()

        def serve(connection):
            line = receive(connection, 257)
            gate.wait()
            if not readable(connection):
                connection.sendall(revecho.reverse_lines(line))

        ping = self.start(f"ping {to(self.other_server(serve))} -c 1 <&- 2>&-")
        gate.until_reached()
        ping.send_signal(signal.SIGQUIT)
        time.sleep(0.1)  # by now it is handled; if not yet, this shows less
        gate.open()
        self.assertIn(b"1 sent, 1 reversed", ping.communicate(timeout=LIMIT)[0])

    def test_error_that_standard_output_cannot_show(self):
        address = self.other_server(answer_with("error: \u00e9\n".encode()))
        ping = self.start(f"ping {to(address)} -c 1", env={"PYTHONIOENCODING": "ascii"})
        out, err = ping.communicate(timeout=LIMIT)
        self.assertEqual(err, b"")
        self.assertIn(b" ms: error: \\xe9", out)

    def test_signal_while_connecting(self):
        """Of two addresses, the second of which does not answer."""
        full, refusing = self.crowded_listener(), ("127.0.0.1", free_port())
        code = f"""if True:
            import socket, sys
            import revecho
            tried = [{refusing!r}, {full.getsockname()!r}]
            socket.getaddrinfo = lambda *_, **__: [(2, 1, 0, "", address) for address in tried]
            sys.exit(revecho.main())
        """
        before = self.unanswered(full)
        ping = self.start("ping a:5", program=("-c", code))
        until(lambda: self.unanswered(full) > before)
        ping.send_signal(signal.SIGINT)
        refused = f"after {refusing[0]}:{refusing[1]}: Connection refused"
        line = rf"127.*:{full.getsockname()[1]}: seq=1 waiting .* ms: not connected; {refused}\n"
        out = none_sent_again(ping.communicate(timeout=LIMIT)[0].decode())
        self.assertRegex(out, rf"\A.*\n{line}\n--- a:5 ---\n1 sent, .*, 1 waiting\n\Z")
        self.assertEqual(ping.returncode, 1)

    @needs_linux
    def test_what_a_router_says(self):
        """ICMP, and who sent it; and a far end that leaves no room for a single byte."""
        with contextlib.suppress(OSError):
            command = ["unshare", "-rn", "test", "-w", "/dev/net/tun"]
            if not subprocess.call(command, stderr=subprocess.DEVNULL):
                ports = {13: "administratively prohibited", 3: "port unreachable"}
                ports[7] = "type 3 code 7"
                code = f"{ROUTER}\nfor port in {[*ports, 200]}: ping(port)"
                command = ["unshare", "-rn", sys.executable, "-W", "error", "-c", code]
                out = subprocess.run(command, cwd=HERE, capture_output=True, check=True).stdout
                for port, what in ports.items():
                    said = rf"\(ICMP {what} from 10\.0\.0\.9\)\n"
                    self.assertRegex(out.decode(), rf"0\.2:{port}: .* not connected: .* {said}")
                self.assertIn(b"no reply within 0.5 s; nothing could be sent\n", out)
                return
        self.skipTest("needs unshare, and the right to make a network of its own")

    def test_segments_sent_again(self):
        """Here the first, as the listen queue is full when it comes; then no more."""

        def answer():
            while True:
                connection = self.stack(listener.accept()[0])
                if line := connection.recv(65536):  # it is no one who only filled the queue
                    connection.sendall(revecho.reverse_lines(line))
                    connection.sendall(revecho.reverse_lines(receive(connection, len(line))))
                    return

        listener = self.crowded_listener()
        before = self.unanswered(listener)
        ping = self.start("ping {}:{} -i 0 -c 2 --keep".format(*listener.getsockname()))
        until(lambda: self.unanswered(listener) > before)
        for connection in self.crowd_before:
            connection.close()
        self.on_thread(answer)
        again = r", segments sent again: \d+\n"
        out = ping.communicate(timeout=LIMIT)[0].decode()
        lines = rf".* reply=.* ms{again}.* reply=.* ms\n"
        self.assertRegex(out, rf"\A.*\n{lines}\n.*\n2 .* \(0%\){again}")

    def test_standard_output_closed_before_the_summary(self):
        ping = self.start(f"ping {to(self.serve())} --interval 100")
        ping.stdout.readline()
        ping.stdout.readline()
        ping.stdout.close()
        ping.send_signal(signal.SIGINT)
        self.assertEqual((ping.wait(LIMIT), ping.stderr.read()), (0, b""))

    def test_interval(self):
        start = time.monotonic()
        self.assertEqual(self.main(f"ping {to(self.serve())} --count 3 --interval 0.1")[0], 0)
        self.assertGreaterEqual(time.monotonic() - start, 0.2)


class AtTerminal(Program):
    """A program that has a terminal for those standard streams that are not given."""

    def __init__(self, line, **keywords):
        try:
            ours, theirs = pty.openpty()
        except (NameError, OSError) as error:
            raise unittest.SkipTest(f"needs a terminal: {error}") from None
        self.terminal = open(ours, "r+b", 0)  # noqa: SIM115
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        keywords = {"env": {"TERM": "dumb"}, "start_new_session": True, **streams, **keywords}
        super().__init__(line, **keywords)
        os.close(theirs)

    def __exit__(self, *details):
        super().__exit__(*details)
        self.terminal.close()

    def expect(self, text):
        """Read until *text* has come."""
        shown = b""
        while text not in shown:
            if not readable(self.terminal, seconds=LIMIT):
                raise AssertionError(shown)
            shown += self.terminal.read(1)

    def type(self, line):
        self.terminal.write(line + b"\n")
        self.expect(line + b"\r\n")

    def rest(self):
        """What is shown until the end, and the status."""
        shown = b""
        with contextlib.suppress(OSError):  # EIO is the end
            while readable(self.terminal, seconds=LIMIT) and (data := self.terminal.read(1000)):
                shown += data
        return shown.replace(b"\r", b""), self.wait(LIMIT)


class PromptTest(Case):
    """The client at a terminal."""

    def start_client(self, server, options="", **keywords):
        return self.start(f"client {to(server)} {options}", kind=AtTerminal, **keywords)

    def test_lines(self):
        client = self.start_client(self.serve())
        for typed in (b"hello", b"", "añ".encode()):
            client.expect(b"> ")
            client.type(typed)
            client.expect(revecho.reverse_lines(typed + b"\r\n"))
        client.expect(b"> ")
        client.terminal.write(b"\x04")
        self.assertEqual(client.rest(), (b"\n", 0))

    def test_a_line_that_fails(self):
        """It is told in one line, and the prompt goes on; with --check it ends."""
        server = self.serve(max_line=10)
        paths = by_turns(end, relay(server), relay(server), mirror)
        client = self.start_client(self.other_server(paths), "--check")
        client.expect(b"> ")
        for typed, shown in (
            (b"x" * 11, b"error: line longer than 10 bytes\r\n"),
            (b"hello", b"olleh\r\n"),
        ):
            client.type(typed)
            client.expect(shown)
            client.expect(b"> ")
        client.type(b"hello")
        shown, status = client.rest()
        self.assertRegex(shown, rb"\Arevecho: .*: an echo at byte 1: .*\n\Z")
        self.assertEqual(status, 1)

    def test_interrupt(self):
        for options, prompt in (("", b"> "), ("--ask hello", b"? ")):
            client = self.start_client(self.serve(), options)
            client.expect(prompt)
            client.send_signal(signal.SIGINT)
            while not readable(client.terminal, seconds=0.5):
                client.send_signal(signal.SIGINT)  # readline can miss one just after its prompt
            self.assertEqual(client.rest(), (b"\n", 130))

    def test_nobody_listens(self):
        shown, status = self.start_client(("127.0.0.1", free_port())).rest()
        self.assertRegex(shown.decode(), rf"\A{COMPLAINT}not connected: .*\n\Z")
        self.assertEqual(status, 1)

    def test_standard_output_in_a_file(self):
        """Then it is a filter, and the question of --ask goes to standard error."""
        server = self.serve()
        client = self.start_client(server, stdout=subprocess.PIPE)
        asking = self.start_client(server, "--ask hello", stdout=subprocess.PIPE)
        client.type(b"hello")
        self.assertEqual(client.stdout.readline(), b"olleh\n")
        client.terminal.write(b"\x04")
        self.assertEqual(client.rest(), (b"", 0))
        asking.expect(b"(y/n)? ")
        until(lambda: readable(asking.stdout))  # before the answer
        asking.type(b"n")
        self.assertEqual((client.stdout.read(), asking.stdout.read()), (b"", b"olleh\n"))
        self.assertEqual(asking.wait(LIMIT), 0)

    def test_standard_input_of_another_program(self):
        client = self.start_client(self.serve(), stdin=subprocess.PIPE)
        client.stdin.write(b"hello\n")
        client.stdin.close()
        self.assertEqual(client.rest(), (b"olleh\n", 0))


# TLS


@functools.lru_cache(None)
def certificates():
    """Return a folder with certificates, each its own authority, and their keys."""
    folder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(folder.cleanup)
    for name, valid_for in (
        ("ours", "DNS:localhost,IP:127.0.0.1"),
        ("stranger", "DNS:localhost,IP:127.0.0.1"),
        ("elsewhere", "DNS:elsewhere.invalid"),
    ):
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        command += f"-subj /CN={name} -addext subjectAltName={valid_for} -keyout {name} -out {name}"
        subprocess.run(command.split(), cwd=folder.name, check=True, capture_output=True)
    path = pathlib.Path(folder.name)
    command = "openssl x509 -in ours -signkey ours -days 0"
    expired = subprocess.run(command.split(), cwd=folder.name, check=True, capture_output=True)
    key, begin, certificate = (path / "ours").read_text().partition("-----BEGIN CERT")
    (path / "expired").write_text(key + expired.stdout.decode())
    import ssl

    tampered = bytearray(ssl.PEM_cert_to_DER_cert(begin + certificate))
    tampered[-1] ^= 1  # a bit of the signature
    (path / "tampered").write_text(key + ssl.DER_cert_to_PEM_cert(tampered))
    (path / "nonsense").write_text("nonsense")
    (path / "broken").write_text((begin + certificate)[:200])
    return path


def answer_lines(connection):
    """For other_server(): what ours does."""
    begun = b""
    while data := connection.recv(65536):
        lines, ending, begun = (begun + data).rpartition(b"\n")
        connection.sendall(revecho.reverse_lines(lines + ending))
    connection.sendall(revecho.reverse_lines(begun))


def through_tls(serve, certificate="ours", ca="", **changes):
    """For other_server(): TLS, and in it what *serve* does."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(certificates() / certificate))
    if ca:
        context.load_verify_locations(str(certificates() / ca))
        context.verify_mode = ssl.CERT_REQUIRED
    for name, value in changes.items():
        setattr(context, name, value)

    def serve_through_tls(connection):
        with context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False) as tls:
            serve(tls)
            if tls.fileno() >= 0:
                tls.unwrap()  # raises an error if the client does not say farewell

    return serve_through_tls


@unittest.skipUnless(
    importlib.util.find_spec("_ssl") and shutil.which("openssl"), "needs ssl and openssl"
)
class TLSClientTest(ClientCase):
    def ours(self, command, server=None, options=""):
        address = at(server or self.other_server(through_tls(answer_lines)))
        return f"{command} --port {address[1]} --tls-ca {certificates() / 'ours'} {options}"

    def context(self):
        import ssl

        return ssl.create_default_context(cafile=str(certificates() / "ours"))

    def test_functions(self):
        """With lines of every length, and a last one without an ending."""
        lines = b"".join(b"%d\r\n" % 3**number for number in range(1000)) + b"end"
        for text in (b"", b"a", b"hello\n", lines, b"x" * 1_000_000 + b"\n" + lines):
            server = self.other_server(through_tls(answer_lines))
            reply = self.stream(text, server, ssl_context=self.context())
            self.assertEqual(reply, revecho.reverse_lines(text))
        server = self.other_server(through_tls(answer_lines))
        self.assertEqual(self.request("hello", server, ssl_context=self.context()), "olleh")
        with self.assertRaisesRegex(OSError, "^.*no TLS handshake: .*self.signed certificate"):
            import ssl

            self.request("hello", server, ssl_context=ssl.create_default_context())

    def test_commands(self):
        text, name = b"hello\nyou", "localhost" if has_localhost() else "127.0.0.1"
        self.assert_all(
            (self.ours("client", options="hello"), b"olleh\n"),
            (self.ours("client"), b"olleh\nuoy", 0, "", text),
            (self.ours("client", options="--check"), b"olleh\nuoy", 0, "", text),
            (self.ours("client", options=f"--host {name} hello"), b"olleh\n"),
        )
        for options, second in (("", "connect=.* ms tls=.* ms "), ("--keep", "")):
            _, out, _ = self.main(self.ours("ping", options=f"-i 0 -c 2 {options}"))
            lines = rf".*connect=.* ms tls=.* ms reply=.*\n.* reversed, {second}reply=.* ms\n"
            times = "connect min/.*\ntls min/.*\nreply min/.*\n"
            self.assertRegex(out, rf"\A.*\n{lines}\n.*\n2 sent, 2 reversed.*\n{times}\Z")

    def test_client_certificate(self):
        """In one file or two, of an authority that the server knows, or not, or none."""
        import ssl

        ours, stranger = certificates() / "ours", certificates() / "stranger"
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            serve = through_tls(answer_lines, ca="stranger", maximum_version=version)
            for options, shown in (
                (f"--tls-cert {stranger}", "256 bytes reversed"),
                (f"--tls-cert {stranger} --tls-key {stranger}", "256 bytes reversed"),
                (f"--tls-cert {ours}", "failed .* alert unknown ca"),
                ("", "failed .* alert (certificate required|handshake failure)"),
            ):
                server = self.other_server(serve)
                _, out, _ = self.main(self.ours("ping", server, f"-c 1 {options}"))
                self.assertRegex(out, rf"\A.*\n.*: seq=1 {shown}")

    def test_failures(self):
        """Of the handshake, in words; of the other side that speaks no TLS; and of ours."""
        hello = b"SSH-2.0-x\r\n"
        for serve, why in (
            (through_tls(end, "stranger"), "self.signed certificate"),
            (through_tls(end, "elsewhere"), "self.signed certificate"),
            (through_tls(end, "tampered"), "certificate signature failure|self.signed certificate"),
            (lambda it: it.sendall(hello) or True, "what came is not TLS"),
            (lambda it: it.recv(65536) and None, "the connection ended"),
            (reset_at_once, "Connection reset by peer"),
            (never_answer, r"no answer within 0\.3 s"),
        ):
            server = self.other_server(serve)
            status, out, err = self.main(self.ours("ping", server, "-c 1 -W 0.3"))
            self.assertRegex(out, rf"\A.*\n127.*failed after .* ms: no TLS handshake: ({why})\n\n")
            self.assertEqual((status, err), (1, ""))
            status, out, err = self.main(self.ours("client", server, "-W 0.3 hello"))
            self.assertRegex(err, rf"\A{COMPLAINT}no TLS handshake: ({why})\n\Z")
            self.assertEqual((status, out), (1, ""))

    def test_a_farewell_alone(self):
        """It is the end, though the TCP connection stays open; and it is no part of a reply."""
        server = self.other_server(through_tls(lambda it: it.recv(6)))
        with self.assertRaisesRegex(revecho.ReplyError, "^the connection ended$"):
            self.request("hello", server, ssl_context=self.context())
        server = self.other_server(through_tls(lambda it: it.recv(10)))
        with self.assertRaisesRegex(revecho.ReplyError, "^the connection ended; lines .*: 0$"):
            self.stream(b"hello\nyou", server, ssl_context=self.context())

    def test_no_tls_after_the_handshake(self):
        def serve(connection):
            connection.recv(6)
            connection.sendall(b"oll")
            socket.socket.send(connection, b"HTTP/1.1 400 Bad Request\r\n\r\n")

        why = "^the connection broke: what came is not TLS; 3 of 6 bytes came, the last .*: 'oll'$"
        with self.assertRaisesRegex(revecho.ReplyError, why):
            server = self.other_server(through_tls(serve))
            self.request("hello", server, ssl_context=self.context())

    @unittest.skipIf(sys.version_info < (3, 10), "older ones do not tell them apart")
    def test_a_context_for_a_server(self):
        import ssl

        server = self.other_server(end)
        with self.assertRaisesRegex(OSError, "PROTOCOL_TLS_SERVER") as outcome:
            self.request("hello", server, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self.assertNotIsInstance(outcome.exception, TimeoutError)

    def test_what_comes_with_something_else(self):
        """An error with the end of the handshake, a farewell with a part of the reply."""
        import ssl

        def speak(connection, context, text):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_side=True)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536))
            tls.write(text)
            with contextlib.suppress(ssl.SSLError):  # the line may have come, too
                tls.unwrap()
            connection.sendall(outgoing.read())
            return True

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificates() / "ours"))
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context.maximum_version = version
            for text, why in (
                (b"error: busy\n", "^error: busy$"),
                (b"oll", "^(more|the connection ended; 3 of) .*'oll'"),
            ):
                serve = functools.partial(speak, context=context, text=text)
                with self.assertRaisesRegex(revecho.ReplyError, why):
                    self.request("hello", self.other_server(serve), ssl_context=self.context())

    def test_expired(self):
        server = self.other_server(through_tls(end, "expired"))
        _, out, _ = self.main(f"ping {to(server)} -c 1 --tls-ca {certificates() / 'expired'}")
        self.assertIn(" ms: no TLS handshake: certificate has expired\n", out)

    def test_name(self):
        """It is the host's, or another that is given, that the certificate has to be for."""
        import ssl

        server, ca = self.other_server(through_tls(end, "elsewhere")), certificates() / "elsewhere"
        reasons = {"127.0.0.1": "IP address mismatch"}
        reasons |= {"localhost": "Hostname mismatch"} if has_localhost() else {}
        for host, why in reasons.items():
            _, out, _ = self.main(f"ping {host}:{at(server)[1]} -4 -c 1 --tls-ca {ca}")
            self.assertRegex(out, f"no TLS handshake: {why}, .* not valid for '{host}'")
        server = self.other_server(through_tls(answer_lines, "elsewhere"))
        client = f"client {to(server)} --tls-ca {ca} --tls-name elsewhere.invalid"
        self.assertEqual(self.main(f"{client} hello")[:2], (0, "olleh\n"))
        context = ssl.create_default_context(cafile=str(ca))
        names = {"ssl_context": context, "server_hostname": "elsewhere.invalid"}
        self.assertEqual(self.request("hello", server, **names), "olleh")
        self.assertEqual(self.stream(b"hello\n", server, **names), b"olleh\n")

    def test_host_with_a_dot_or_a_zone(self):
        """Which no certificate has."""

        def look_up(*_, flags=0):
            if flags:
                raise socket.gaierror
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", at(server))]

        server = self.other_server(through_tls(answer_lines))
        with mock.patch.object(socket, "getaddrinfo", look_up):
            for host in ("localhost.", "127.0.0.1%lo"):
                reply = self.request("hello", (host, 1), ssl_context=self.context())
                self.assertEqual(reply, "olleh")

    def test_no_certificates_of_the_system_are_trusted_beside(self):
        status, out, _ = self.main(f"ping {to(self.other_server(through_tls(end)))} -c 1 --tls")
        self.assertEqual(status, 1)
        self.assertIn("no TLS handshake: self", out)

    def test_plain_ping_to_tls(self):
        """Once in a run it is found out that the port speaks TLS, or that it does not."""
        tls = "; the port speaks TLS: try --tls"
        for path, hint in (
            (through_tls(end), tls),
            (through_tls(end, ca="stranger"), tls),
            (end, ""),
            (lambda it: it.recv(9) and it.sendall(b"HTTP/1.0 400\r\n"), ""),
        ):
            paths = iter([path] * 4)  # three lines, and one look
            address = self.other_server(lambda it, paths=paths: next(paths)(it))
            _, out, _ = self.main(f"ping {to(address)} -i 0 -c 3")
            why = rf"(the connection (ended|was reset){hint}|(not|more) .*)\n"
            self.assertRegex(out, rf"\A.*\n(127.*: seq=\d failed after .* ms: {why}){{3}}\n")

    def test_openssl_s_server(self):
        """Which reverses lines, too."""
        port = free_port()
        command = f"openssl s_server -accept 127.0.0.1:{port} -rev -cert ours -key ours"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        server = self.stack(subprocess.Popen(command.split(), cwd=certificates(), **pipes))
        self.addCleanup(server.kill)
        until(lambda: b"ACCEPT" in server.stdout.readline())
        status, out, err = self.main(self.ours("client", ("", port), "hello 'two words'"))
        self.assertEqual((status, out, err), (0, "olleh\nsdrow owt\n", ""))

    def test_broken_within_the_handshake(self):
        """Not to be able to write to the server is not taken for a reader that has gone."""
        import ssl

        def serve(connection):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(str(certificates() / "ours"))
            received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(received, to_send, server_side=True)
            received.write(connection.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            connection.sendall(to_send.read())
            connection.shutdown(socket.SHUT_WR)
            reset(connection)

        rows = []
        for message in ("", "hello"):
            address = to(self.other_server(serve))
            client = f"client {address} --tls-ca {certificates() / 'ours'} {message}"
            rows.append((client, b"", 1, COMPLAINT + "(no TLS|the conn).*\n", b"hello\n"))
        self.assert_all(*rows)

    def test_broken_after_the_handshake(self):
        """While a part is to be sent; and by a server that says no farewell of TLS."""
        server = self.other_server(through_tls(lambda it: it.recv(1) and reset(it)))
        with self.assertRaisesRegex(revecho.ReplyError, "^the connection (was reset|ended)$"):
            self.request("x" * 10_000_000, server, ssl_context=self.context())
        server = self.other_server(through_tls(lambda it: receive(it, 6) and shut(it)))
        message = "^the connection ended; lines answered: 0, bytes answered: 0$"
        with self.assertRaisesRegex(revecho.ReplyError, message):
            self.stream(b"hello\nyou", server, ssl_context=self.context())

    def test_interrupt(self):
        gate = self.gate()
        server = self.other_server(lambda it: it.recv(1) and gate.wait())
        ping = self.start(self.ours("ping", server))
        gate.until_reached()
        ping.send_signal(signal.SIGINT)
        out, _ = ping.communicate(timeout=LIMIT)
        gate.open()
        line = r"\A.*\n127.* seq=1 waiting after .* ms: no TLS handshake\n\n.*\n1 sent"
        self.assertRegex(none_sent_again(out.decode()), line)

    def test_options(self):
        """A file that is missing or wrong is named, with its option."""
        names = "none", "nonsense", "broken", "ours", "stranger"
        none, nonsense, broken, ours, stranger = (certificates() / name for name in names)
        missing = "No such file or directory"
        serve = f"server --port 0 --tls-cert {ours}"
        for command in ("client hello", "ping", "client", serve):
            for options, named, why in (
                (f"--tls-ca {none}", "", missing),
                (f"--tls-ca {none}.PEM", "", missing),
                (f"--tls-ca {nonsense}", "", "no certificate or crl found"),
                (f"--tls-cert {none}", "", missing),
                (f"--tls-cert {nonsense}", "", "no certificate with its key, in PEM"),
                (f"--tls-cert {ours} --tls-key {none}", f"--tls-key {none}", missing),
                (f"--tls-cert {ours} --tls-key {stranger}", "", "key values mismatch"),
                (f"--tls-ca {broken}", "", "no certificate, in PEM"),
            ):
                status, out, err = self.main(f"{command} {options}")
                self.assertEqual((status, out), (1, ""))
                self.assertRegex(err, rf"\Arevecho: \S+: {named or options}: {why}\n\Z")
        self.assertEqual(self.main("client --tls-ca '' hello")[0], 2)  # as of an unset variable
        for command in ("client", "ping", "server"):
            result, _, err = self.main(f"{command} --tls-key {ours}")
            self.assertEqual(result, 2)
            why = "--tls-key needs a --tls-cert"
            self.assertRegex(err, rf"\Ausage: revecho {command} (.*\n)*.*: {why}\n")
        self.assertEqual(self.main(f"server --tls-ca {ours}")[0], 2)


class WithoutTLSTest(Case):
    def test_ssl_is_not_imported(self):
        """Unless it is used; and a Python that has none says so."""
        code = """if True:
            import sys
            import revecho
            with revecho.running_server() as server:
                port = str(server.server_address[1])
                assert revecho.main(["client", "--port", port, "hello"]) == 0
                assert revecho.main(["ping", "--port", port, "-q", "-c", "1"]) == 0
            assert "ssl" not in sys.modules
            sys.modules["ssl"] = None
            sys.exit(revecho.main(["client", "--tls", "hello"]))
        """
        program = self.start(program=("-c", code), stdout=subprocess.DEVNULL)
        self.assert_ends(program, None, 1, COMPLAINT + ".* ssl .*\n")


# The documentation


class DocumentationTest(Case):
    def test_docstrings(self):
        results = doctest.testmod(revecho)
        self.assertEqual((results.failed, results.attempted > 6), (0, True))

    def test_readme_python(self):
        examples = "\n".join(re.findall(r"```python\n(>>>.*?)```", README, re.DOTALL))
        test = doctest.DocTestParser().get_doctest(
            examples, vars(revecho).copy(), "README", None, 0
        )
        runner = doctest.DocTestRunner()
        runner.run(test)
        self.assertEqual(runner.failures, 0)
        self.assertGreater(runner.tries, 4)
        for program in re.findall(r"```python\n([^>].*?)```", README, re.DOTALL):
            compile(program, "README", "exec")
            if "TestCase" in program:
                program = self.start(program=("-c", f"{program}\nunittest.main()"))  # noqa: PLW2901
                self.assert_ends(program, stderr=r"(.*\n)*OK\n")

    @unittest.skipUnless(POSIX, "needs a POSIX shell")
    def test_readme_commands(self):
        """Every command in the README whose output it shows; the port is one of ours."""
        port = str(at(self.serve())[1])
        blocks = "".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
        of_openbsd = b"OpenBSD" in self.start("nc -h", start="").communicate(timeout=LIMIT)[1]
        rows = []
        for shown, output in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)+)", blocks, re.MULTILINE):
            ours = "revecho.py client" in shown and "--tls" not in shown
            if ours or ("nc -N" in shown and of_openbsd):  # of nc there are several
                command = re.sub(r"revecho\.py client", rf"\g<0> --port {port}", shown)
                command = re.sub(r"\bpython3\b", '"$@"', re.sub(r"\b2002\b", port, command))
                rows.append((command, output.encode()))
        self.assertGreater(len(rows), 1)
        env = {"LC_ALL": "C.UTF-8"}
        self.assert_all(*rows, start="", program=(), stderr=subprocess.STDOUT, env=env)

    @unittest.skipUnless(POSIX, "needs a POSIX shell")
    def test_harsh_surroundings(self):
        """No locale, no home, a folder that is read-only, no standard input, no IPv6."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(HERE / "revecho.py", folder)
            os.chmod(folder, 0o500)
            start = f'cd {shlex.quote(folder)} && exec env -i "$@" <&- '
            server = self.start_server(program=("revecho.py",), start=start)
            client = f"client {to(server)} h\u00e9!"
            client = self.start(client, program=("revecho.py",), start=start)
            self.assert_ends(client, "!\u00e9h\n".encode())
            server.terminate()
            self.assertEqual(server.wait(LIMIT), 0)
            os.chmod(folder, 0o700)
        host, port = at(self.serve())
        kinds = 255, socket.AF_INET  # the first is not supported
        found = [(kind, socket.SOCK_STREAM, 0, "", (host, port)) for kind in kinds]
        with mock.patch.object(socket, "getaddrinfo", lambda *_, **__: found):
            self.assertEqual(revecho.request("hello", "name.invalid", port), "olleh")

    def test_one_file_is_enough(self):
        folder = self.stack(tempfile.TemporaryDirectory())
        shutil.copy(HERE / "revecho.py", folder)
        code = f"""if True:
            import logging, sys, threading
            sys.path.insert(0, {folder!r})
            from revecho import *
            assert not logging.getLogger().handlers
            assert not logging.getLogger("revecho").handlers
            assert threading.active_count() == 1
            with running_server() as server:
                print(request("hello", *server.server_address))
        """
        self.assert_ends(self.start(program=("-I", "-c", code)), b"olleh\n")

    def test_bench(self):
        bench = self.start(program=("-c", "import test_revecho; test_revecho.bench(1, 0.01)"))
        out, err = bench.communicate(timeout=LIMIT)
        figures = r"\A.*\n([\w ,]+\n(    \w+ +\d+ .+\n){3}){4}\Z"
        self.assertRegex("\n".join([*out.decode().splitlines(), ""]), figures, err)


# make bench: revecho beside the two servers that Python's documentation shows

RECIPE = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.rstrip(b"\\r\\n")[::-1] + b"\\n")
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 1024
with Server(("127.0.0.1", 0), Handler) as server:
    print("listening on 127.0.0.1:%d" % server.server_address[1], flush=True)
    server.serve_forever()
"""
STREAMS = """
import asyncio
async def handle(reader, writer):
    while line := await reader.readline():
        writer.write(line.rstrip(b"\\r\\n")[::-1] + b"\\n")
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
    print("listening on 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
CELLS = {  # name: connections, lines sent at a time, connections ended after each
    "one line at a time": (1, 1, False),
    "one line at a time, 50 clients": (50, 1, False),
    "1000 lines at a time, 8 clients": (8, 1000, False),
    "a connection for each line, 8 clients": (8, 1, True),
}


def drive(address, count, batch, fresh, seconds):
    """Be *count* clients for a while, checking each reply; return how many lines were answered."""
    lines = b"".join(b"%062d\n" % number for number in range(batch))
    want = b"".join(line[::-1] + b"\n" for line in lines.split(b"\n")[:-1])
    done, deadline = 0, time.perf_counter() + seconds
    with selectors.DefaultSelector() as selector:

        def connect():
            connection = socket.create_connection(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ)
            connection.sendall(lines)

        for _ in range(count):
            connect()
        while not done or time.perf_counter() < deadline:
            for key, _ in selector.select():
                connection = key.fileobj
                if receive(connection, len(want)) != want:
                    raise AssertionError("a wrong reply")
                done += batch
                if fresh:
                    selector.unregister(connection)
                    connection.close()
                    connect()
                else:
                    connection.sendall(lines)
        for key in list(selector.get_map().values()):
            key.fileobj.close()
    return done


def bench(rounds=9, seconds=0.5):
    """As people start them: nothing is bound to a processor but by itself."""
    silent = {"stderr": subprocess.DEVNULL}
    servers = {
        "revecho": Program("server --quiet --port 0", **silent),
        "socketserver": Program(program=("-c", RECIPE), **silent),
        "asyncio": Program(program=("-c", STREAMS), **silent),
    }
    with contextlib.ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
            stack.callback(server.kill)
        print(f"{'':40}{'lines/s':>12}{'us/line':>10}{'ratio':>8}")
        for cell, (count, batch, fresh) in CELLS.items():
            rows = {name: [] for name in servers}
            for _ in range(rounds):
                for name in random.sample(list(servers), len(servers)):
                    server = servers[name]
                    before = processor_seconds(server.pid)
                    done = drive(at(server), count, batch, fresh, seconds)
                    used = processor_seconds(server.pid) - before
                    rows[name].append((done / seconds, used / done * 1e6))
            print(cell)
            for name, row in rows.items():
                rate = statistics.median(rate for rate, _ in row)
                cost = statistics.median(cost for _, cost in row)
                ratio = statistics.median(
                    one / (own or 1e-9) for (_, one), (_, own) in zip(row, rows["revecho"])
                )
                print(f"    {name:36}{rate:12.0f}{cost:10.2f}{ratio:8.2f}")


# make test


def run_all(at_a_time=4):
    """Run each case in a process of its own, some at a time, as most wait most of the time.

    Returns the exit status.
    """

    def run(case):
        options = [f"-W{option}" for option in sys.warnoptions]
        name = f"test_revecho.{case.__name__}"
        command = [sys.executable, *options, "-m", "unittest", "-b", name]
        result = subprocess.run(command, cwd=HERE, stderr=subprocess.PIPE, text=True, check=False)
        print("." if not result.returncode else result.stderr, end="", flush=True)
        return result

    names = unittest.TestLoader().getTestCaseNames
    cases = [it for it in globals().values() if isinstance(it, type) and issubclass(it, Case)]
    cases.sort(key=lambda case: -len(names(case)))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        results = list(pool.map(run, filter(names, cases)))
    counts = [
        sum(int(found) for result in results for found in re.findall(pattern, result.stderr))
        for pattern in (r"\nRan (\d+) test", r"skipped=(\d+)")
    ]
    verdict = "FAILED" if any(result.returncode for result in results) else "OK"
    took = time.monotonic() - began
    print("\n{}: {} tests, {} skipped, in {:.0f} s".format(verdict, *counts, took))
    return int(verdict != "OK")


if __name__ == "__main__":
    bench() if sys.argv[1:] == ["bench"] else sys.exit(run_all())
