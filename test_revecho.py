"""Tests of revecho: real sockets, real threads, real processes.  Run by `make test`."""

import contextlib
import doctest
import gc
import io
import itertools
import logging
import os
import pathlib
import pty
import queue
import random
import re
import resource
import select
import selectors
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
import tracemalloc
import typing
import unicodedata
import unittest
import warnings
from typing import ClassVar
from unittest import mock

import revecho

HERE = pathlib.Path(__file__).resolve().parent

PROGRAM = ("-W", "error", "revecho.py")
LIMIT = 30  # seconds after which something hangs; no test takes nearly as long
LINUX = sys.platform == "linux"
GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")  # without it the allocator keeps far more


def until(condition):
    """Wait for something that another thread or process does."""
    deadline = time.perf_counter() + LIMIT
    while not (result := condition()):
        if time.perf_counter() > deadline:
            raise AssertionError("waited too long")
        time.sleep(0.002)
    return result


def receive(connection, size=None):
    """Receive exactly *size* bytes, or all there is until the end."""
    data = bytearray()
    while size is None or len(data) < size:
        block = connection.recv(65536 if size is None else size - len(data))
        if not block:
            break
        data += block
    return bytes(data)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def shut(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def readable(connection):
    return bool(select.select([connection], [], [], 0)[0])


@contextlib.contextmanager
def running_process(*options, program=PROGRAM, command=("server", "--port", "0"), **keywords):
    """Run a server in a process of its own; yields that and its address."""
    command = [sys.executable, *program, *command, *options]
    keywords = {"stderr": subprocess.DEVNULL, **keywords}
    with subprocess.Popen(
        command, cwd=HERE, stdout=subprocess.PIPE, text=True, **keywords
    ) as process:
        try:
            line = process.stdout.readline()
            host, _, port = line.removeprefix("listening on ").strip().rpartition(":")
            yield process, (host.strip("[]"), int(port))
        finally:
            process.kill()


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


class Server(revecho.ReverseServer):
    """Looks over its connections at once, so that tests need not wait for it."""

    look_interval = 0.03
    running: ClassVar = set()
    looks = 0

    def serve_forever(self, poll_interval=0.01):
        self.running.add(self)
        try:
            super().serve_forever(poll_interval)
        finally:
            self.running.discard(self)

    def service_actions(self):
        super().service_actions()
        self.looks += 1


class Handler(revecho.ReverseHandler):
    drain_quiet = 0.05


class Clock:
    """Puts time.monotonic() forward.  The server looks over its connections by it."""

    def __init__(self):
        self.ahead = 0

    def advance(self, seconds):
        """Return when every server has looked over its connections twice since."""
        self.ahead += seconds
        for server in list(Server.running):
            looks = server.looks
            until(lambda server=server, looks=looks: server.looks > looks + 2)


@contextlib.contextmanager
def fast_clock():
    clock, monotonic = Clock(), time.monotonic
    with mock.patch.object(time, "monotonic", lambda: monotonic() + clock.ahead):
        yield clock


class Gate:
    """A place at which threads wait until it is opened."""

    def __init__(self):
        self._reached, self._opened = threading.Semaphore(0), threading.Event()
        self.open = self._opened.set

    def wait(self):
        self._reached.release()
        if not self._opened.wait(LIMIT):
            raise AssertionError("the gate was not opened")

    def until_reached(self):
        if not self._reached.acquire(timeout=LIMIT):
            raise AssertionError("the gate was not reached")


class ServerCase(unittest.TestCase):
    def setUp(self):
        self.records = queue.SimpleQueue()  # what has been logged
        handler = logging.Handler()
        handler.emit = self.records.put
        log = logging.getLogger("revecho")
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        self.addCleanup(log.removeHandler, handler)

    def logged(self, level=logging.INFO):
        """All messages since the last call."""
        found = []
        while not self.records.empty():
            record = self.records.get()
            if record.levelno >= level:
                found.append(record.getMessage() + (" Traceback" if record.exc_info else ""))
        return found

    def until_logged(self, pattern):
        """Return all messages up to the first that matches."""
        found = []
        while not found or not re.search(pattern, found[-1]):
            found.append(self.records.get(timeout=LIMIT).getMessage())
        return found

    def stack(self, manager):
        """Enter a context manager until the test ends."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def serve(self, handler=Handler, server_class=Server, **options):
        return self.stack(
            revecho.running_server(
                RequestHandlerClass=handler, server_class=server_class, **options
            )
        )

    def connect(self, server, data=b""):
        address = server.server_address if hasattr(server, "server_address") else server
        connection = self.stack(socket.create_connection(address[:2], LIMIT))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(data)
        return connection

    def exchange(self, server, *parts):
        """Send the parts, end our side, and return everything that comes back."""
        with socket.create_connection(server.server_address[:2], LIMIT) as connection:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            return receive(connection)

    def on_thread(self, function, *arguments):
        """Run it on a thread of its own, which is waited for at the end of the test."""
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        self.addCleanup(self.join, thread)
        return thread

    def join(self, thread):
        thread.join(LIMIT)
        self.assertFalse(thread.is_alive(), thread)

    def flood(self, connection, data=b"hello\n" * 10_000):
        """Send without end, on a thread of its own."""

        def send():
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(data)

        self.on_thread(send)
        self.addCleanup(shut, connection)  # TCP might not tell it for a minute that all is over

    def closing(self, server):
        """Close the server on a thread of its own; return that when it has begun."""
        thread = self.on_thread(server.server_close)
        until(lambda: server.stopping)
        return thread

    def gated(self, base=Handler):
        """Return a handler whose respond() waits at a gate, and the gate."""
        gate = Gate()
        self.addCleanup(gate.open)

        class Gated(base):
            def respond(self, lines):
                gate.wait()
                return super().respond(lines)

        return Gated, gate

    def serve_one_who_does_not_read(self, **options):
        """Return a server that hangs in a send."""

        class Handler(revecho.ReverseHandler):
            def respond(self, _):
                return b"x" * (64 << 20)  # more than fits in any buffers

        server = self.serve(Handler, **options)
        connection = self.connect(server, b"hello\n")
        until(lambda: readable(connection))
        return server

    def assert_threads(self, count):
        until(lambda: threading.active_count() <= count)


def ask_until_the_end(connection):
    with contextlib.suppress(OSError):
        while connection.recv(100):
            connection.sendall(b"hello\n")


def tls_contexts(test):
    """Return one for a server, with a certificate made for it, and one for its clients."""
    try:
        import ssl
    except ImportError:
        test.skipTest("this Python has no ssl")
    if not shutil.which("openssl"):
        test.skipTest("needs openssl to make a certificate")
    folder = test.stack(tempfile.TemporaryDirectory())
    files = [f"{folder}/certificate", f"{folder}/key"]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command = [*command.split(), "-subj", "/CN=localhost", "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*files)
    server_side.options |= 1 << 7  # ssl.OP_IGNORE_UNEXPECTED_EOF, which Python 3.9 has no name for
    client_side = ssl.create_default_context(cafile=files[0])
    client_side.check_hostname = False
    return server_side, client_side


class ReverseTest(unittest.TestCase):
    def test_text(self):
        for text, backwards in (
            ("", ""),
            ("a", "a"),
            ("hello", "olleh"),
            ("añb", "bña"),
            ("日本", "本日"),
        ):
            self.assertEqual(revecho.reverse_text(text), backwards)

    def test_lines(self):
        for lines, answer in (
            (b"", b""),
            (b"\n", b"\n"),
            (b"\r\n", b"\r\n"),
            (b"\n\n\r\n\n", b"\n\n\r\n\n"),
            (b"ab", b"ba"),
            (b"ab\n", b"ba\n"),
            (b"ab\r\n", b"ba\r\n"),
            (b"ab\ncd\r\nef\ngh\r\nij", b"ba\ndc\r\nfe\nhg\r\nji"),
            (b"ab\r", b"\rba"),  # no ending: the CR belongs to the line
            (b"a\rb\n", b"b\ra\n"),
            (b"\ra\n", b"a\r\n"),
            (b"ab\r\r\n", b"\rba\r\n"),
            (b"\r\r\r\n\r", b"\r\r\r\n\r"),
            (b"a\0b\x0bc\x0cd\n", b"d\x0cc\x0bb\0a\n"),
            ("a\u2028b\x85c\u2029d\n".encode(), "d\u2029c\x85b\u2028a\n".encode()),
            ("é\nü\r\n".encode(), "é\nü\r\n".encode()),
            ("aé\nbü\r\n".encode(), "éa\nüb\r\n".encode()),
        ):
            self.assertEqual(revecho.reverse_lines(lines), answer, lines)

    def test_undecodable_bytes_are_characters(self):
        for lines, answer in (
            (b"a\xffb\n", b"b\xffa\n"),
            (b"\xc3\xa9\xff\xe2\x82\n", b"\x82\xe2\xff\xc3\xa9\n"),  # é, a stray byte, a cut €
            (b"\xe2\x82\r\n\xac", b"\x82\xe2\r\n\xac"),  # an ending in the middle of €
            (b"\xed\xb2\x80\n", b"\x80\xb2\xed\n"),  # a surrogate is not UTF-8
            (b"\xf4\x90\x80\x80\n", b"\x80\x80\x90\xf4\n"),  # beyond U+10FFFF
        ):
            self.assertEqual(revecho.reverse_lines(lines), answer, lines)

    def test_any_bytes_keep_their_length_and_endings(self):
        rng = random.Random(1)
        for size in range(300):
            alphabet = rng.choice((b"ab\r\n", b"a\xff\xc3\xa9\n\r", bytes(range(256))))
            lines = bytes(rng.choices(alphabet, k=size))
            answer = revecho.reverse_lines(lines)
            self.assertEqual(len(answer), len(lines))
            self.assertEqual(
                [len(line) for line in answer.split(b"\n")],
                [len(line) for line in lines.split(b"\n")],
            )
            one_by_one = b"".join(map(revecho.reverse_lines, lines.splitlines(keepends=True)))
            if not re.search(b"\r(?!\n)|[\x0b\x0c\x1c-\x1e\x85]", lines):
                self.assertEqual(answer, one_by_one)


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


def clusters(text):
    """Return the grapheme clusters of a text that consists of CLASSES."""
    kinds = [CLASS[char] for char in text]
    found = []
    for i, char in enumerate(text):
        if i and joined(kinds[:i], kinds[i]):
            found[-1] += char
        else:
            found.append(char)
    return found


def seconds(function, argument, times=5):
    """Return the processor time that the fastest of some calls takes."""
    best = LIMIT
    for _ in range(times):
        started = time.thread_time()  # what others on this machine do is no part of it
        function(argument)
        best = min(best, time.thread_time() - started)
    return best


class ClusterTest(unittest.TestCase):
    def test_scripts(self):
        """Each word is written as its clusters, joined by a bar."""
        for script, word in {
            "Latin, composed": "n|é|e",
            "Latin, decomposed": "n|e\u0301|e",
            "Latin, two marks": "a\u0323\u0302|b",
            "Vietnamese": "V|i|ê\u0323|t",
            "Cyrillic": "и\u0306|ж",
            "Greek": "α\u0313\u0301|β",
            "Hebrew": "ש\u05c1\u05b8|ל|ו\u05b9|ם",
            "Arabic": "م\u064f|ح\u064e|م\u0651\u064e|د",
            "Arabic number sign": "\u06001|2",
            "Kaithi number sign": "\U000110bd1|2",
            "Kirat Rai": "\U00016d63\U00016d67|x",
            "Devanagari": "हि|न्दी",
            "Devanagari conjunct": "क्ष|त्रि|य",
            "Devanagari, joiner": "क्\u200dष|a",
            "Devanagari, mark above U+FFFF": "क\U00010a0f्ष|क्\U00010a0fष|a",
            "Devanagari, non-joiner": "क्\u200c|ष",
            "marks from below and above U+FFFF": "a\u0300\u0301\U00010a0f|b\u0300\u0301\u200d|c",
            "Bengali": "বাং|লা",
            "Gujarati": "ગુ|જ|રા|તી",
            "Oriya": "ଓ|ଡ଼ି|ଆ",
            "Telugu": "తె|లు|గు",
            "Malayalam": "മ|ല|യാ|ളം",
            "Tamil": "த|மி|ழ்",
            "Kannada": "ಕ|ನ್|ನ|ಡ",
            "Sinhala": "සිං|හ|ල",
            "Thai": "ไ|ท|ย",
            "Thai sara am": "น้ำ",
            "Lao": "ນ້ຳ",
            "Burmese": "မြ|န်|မ|ာ",
            "Tibetan": "བོ|ད",
            "Hangul": "한|글",
            "Hangul jamo": "\u1112\u1161\u11ab|\u1100\u1173\u11af",
            "Hangul syllable and jamo": "가\u11a8|나",
            "Japanese, half width": "ｶ\uff9e|ﾊ\uff9f",
            "Japanese": "は\u3099|な|カ\u3099",
            "Chinese": "漢|字",
            "Hangul jamo with a mark": "\u1112\u1161\u0301|\u1100\u1161|b\u0301",
            "Hangul jamo of old": "\u1107\u1109\u1161|\u1112\u119e\u11ab|\u1100",
            "Chakma": "𑄌|𑄋𑄴|𑄟|𑄦| |𑄃𑄧",
            "Chakma with an emoji": "𑄋𑄴|👍🏽|a|𑄃𑄧",
            "Adlam": "\U0001e928\U0001e946|\U0001e925\U0001e944|\U0001e922",
            "flags": "🇩🇪|🇫🇷|🇯🇵",
            "odd flags": "🇩🇪|🇫",
            "flag of Wales": "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f|x",
            "skin tone": "👍🏽|👍",
            "family": "👨\u200d👩\u200d👧\u200d👦|x",
            "heart on fire": "❤\ufe0f\u200d🔥",
            "joined, none above U+FFFF": "☺\u200d❤|☺",
            "joined, with other marks before": "☺\u200c\u200d❤|☺\u094d\u200d❤|☺",
            "woman scientist, skin tone": "👩🏽\u200d🔬|x",
            "rainbow flag": "🏳\ufe0f\u200d🌈|🏳\ufe0f",
            "emoji and what stands for it": "\uffff|🇩🇪|\uffff\u0301|👨\u200d👩\u0903",
            "number sign before an emoji": "\u0600👨\u200d👩|\u06001|\u0600\u06002\u0301",
            "keycap": "1\ufe0f\u20e3|2",
            "emoji without joiner": "👨|👩",
            "joiner without emoji": "a\u200d|b",
            "control": "a|\u200b|\u0301|b",
            "control above U+FFFF": "a|\U000e0001|\u0301|b",
            "CR LF": "a|\r\n|b",
            "CR": "a|\r|\r\n|\n|b",
        }.items():
            with self.subTest(script):
                self.assertEqual(
                    revecho.reverse_text(word.replace("|", "")), "".join(reversed(word.split("|")))
                )
                if not re.search("[\r\n]", word):
                    self.assertEqual(
                        revecho.reverse_lines(word.replace("|", "").encode() + b"\n"),
                        "".join(reversed(word.split("|"))).encode() + b"\n",
                    )

    def test_no_question_asked_first_makes_a_difference(self):
        """Text with CR LF is not asked whether it has clusters."""
        for char in map(chr, range(0x10000)):
            text = f"a{char}b{char}{char}"
            backwards = revecho.reverse_text(text)
            self.assertEqual(revecho.reverse_text(f"\r\n{text}"), f"{backwards}\r\n", ascii(char))
            if "\x80" <= char < "\u0800":  # two bytes
                answer = revecho.reverse_lines(text.encode())
                self.assertEqual(answer.decode(), backwards, ascii(char))

    def test_each_question_asked_first_saves_time(self):
        text, accented = "Zoe, " * 20_000, "Zoë, " * 20_000
        asked = seconds(revecho.reverse_text, accented)
        self.assertLess(seconds(revecho.reverse_text, text), asked / 2)
        self.assertLess(seconds(revecho.reverse_lines, accented.encode()), asked)
        self.assertLess(asked, seconds(revecho.reverse_text, f"{accented}\u0301") / 2)

    def test_characters_are_remembered_within_bounds(self):
        with mock.patch.object(sys, "version_info", (3, 14)):
            private = "".join(map(chr, range(0xF0000, 0xF1000)))
            first = seconds(revecho.reverse_text, private, times=1)
            self.assertLess(seconds(revecho.reverse_text, private), first / 2)
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            for char in map(chr, range(0x20000, 0x30000)):
                revecho.reverse_text(char)
            self.assertLess(tracemalloc.get_traced_memory()[0], 2_500_000)  # 5 million for all

    def random_texts(self):
        rng = random.Random(4)
        names = list(CLASSES)
        for size in (2, 3):
            for combination in itertools.product(names, repeat=size):
                yield "".join(rng.choice(CLASSES[name]) for name in combination)
        for _ in range(2000):
            few = rng.sample(names, rng.randint(1, 6))
            yield "".join(rng.choice(CLASSES[rng.choice(few)]) for _ in range(rng.randint(1, 40)))

    def test_properties(self):
        for text in self.random_texts():
            parts = clusters(text)
            self.assertEqual("".join(parts), text)
            self.assertEqual(revecho.reverse_text(text), "".join(reversed(parts)), ascii(text))
            data = text.encode("utf-8", "surrogateescape")
            answer = revecho.reverse_lines(data)
            self.assertEqual(len(answer), len(data))
            self.assertEqual(answer.count(b"\n"), data.count(b"\n"))

    @unittest.skipUnless(hasattr(unicodedata, "iter_graphemes"), "needs Python 3.15")
    def test_agreement_with_unicodedata(self):
        for version in ((3, 14), sys.version_info):
            with mock.patch.object(sys, "version_info", version):
                for text in self.random_texts():
                    if not re.search("[\ud800-\udfff]", text):
                        parts = map(str, unicodedata.iter_graphemes(text))
                        backwards = "".join(reversed([*parts]))
                        self.assertEqual(revecho.reverse_text(text), backwards, ascii(text))

    @unittest.skipUnless(hasattr(unicodedata, "iter_graphemes"), "needs Python 3.15")
    def test_each_character(self):
        """Without the branch for 3.15, each stands with those that show what it is."""
        with mock.patch.object(sys, "version_info", (3, 14)):
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
                backwards = "".join(reversed([*map(str, unicodedata.iter_graphemes(text))]))
                self.assertEqual(revecho.reverse_text(text), backwards, ascii(char))

    def test_undecodable_bytes_join_nothing(self):
        self.assertEqual(revecho.reverse_text("a\udcff\u0301b"), "b\u0301\udcffa")
        line = b"a\xff\xcc\x81b\n"
        self.assertEqual(revecho.reverse_lines(line), b"b\xcc\x81\xffa\n")

    def test_time_is_in_proportion_to_length(self):
        for unit in (
            "\u0301",
            "\U0001f1e9",
            "\u200d",
            "\u094d",
            "\u0915\u094d",
            "\u0915\u094d\U00010a0f",
            "\u094d\U00010a0f",
            "\u0915\u0301",
            "\u0600",
            "\u1100",
            "\u1161",
            "\u11a8",
            "\u1112\u1161",
            "\U00011100",
            "\U00011103\U00011127",
            "\U0001f468\u200d",
            "\U0001f468\u0301",
            "\U000e0041",
            "\r",
            "\u200b",
            "\U0001f468\U000e0041",
            "\U0001f468\u200d\u0301",
            "\U0001f1e9\u0301",
            "\u06001",
            "\uffff\u0301",
            "a\u0301",
            "a\u200d",
            "\uac00",
            "\udcff",
        ):
            for start, end in (
                ("", ""),
                ("\U0001f468", "a"),
                ("\u0915", "\n"),
                ("\u1100", "\u200b"),
            ):
                n = 2000 // len(unit)
                ratio = seconds(revecho.reverse_text, start + unit * 4 * n + end)
                ratio /= seconds(revecho.reverse_text, start + unit * n + end)
                self.assertLess(ratio, 10, ascii(start + unit + end))  # 16 if it were quadratic


class WireTest(ServerCase):
    SESSION = "né\r\nb\n\n€\rc\r\n".encode() + b"\xff\0x\nlast\r"
    ANSWER = "én\r\nb\n\nc\r€\r\n".encode() + b"x\0\xff\n\rtsal"

    def test_every_cut_in_two(self):
        inside = queue.SimpleQueue()

        class Handler(revecho.ReverseHandler):
            def setup(self):
                super().setup()
                inside.put(self.request)

        server = self.serve(Handler)
        for cut in range(len(self.SESSION) + 1):
            with socket.create_connection(server.server_address, LIMIT) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server_side = inside.get(timeout=LIMIT)
                connection.sendall(self.SESSION[:cut])
                until(lambda inside=server_side: not readable(inside))  # it has received that
                connection.sendall(self.SESSION[cut:])
                connection.shutdown(socket.SHUT_WR)
                self.assertEqual(receive(connection), self.ANSWER, cut)

    def test_every_size_of_receive(self):
        for size in range(5, len(self.SESSION) + 1):  # max_line is also the most that is received
            with revecho.running_server(max_line=size) as server:
                self.assertEqual(self.exchange(server, self.SESSION), self.ANSWER, size)

    def test_byte_by_byte(self):
        server = self.serve()
        connection = self.connect(server)
        for byte in self.SESSION:
            connection.sendall(bytes([byte]))
        connection.shutdown(socket.SHUT_WR)
        self.assertEqual(receive(connection), self.ANSWER)

    def test_reply_comes_at_once(self):
        connection = self.connect(self.serve())
        for line in (b"one\n", b"two\r\n", b"\n"):
            connection.sendall(line)
            self.assertEqual(receive(connection, len(line)), revecho.reverse_lines(line))
        connection.sendall(b"pending\nhalf")  # what is whole is answered, what is not waits
        self.assertEqual(receive(connection, 8), b"gnidnep\n")
        connection.sendall(b" a line\n")
        self.assertEqual(receive(connection, 12), b"enil a flah\n")

    def test_empty_connection(self):
        self.assertEqual(self.exchange(self.serve()), b"")

    def test_pipelining_without_end(self):
        server = self.serve()
        lines = b"".join(b"%d %s\n" % (n, b"x" * (n % 97)) for n in range(100_000))
        connection = self.connect(server)
        sender = threading.Thread(target=connection.sendall, args=(lines,))
        sender.start()
        answer = receive(connection, len(lines))
        sender.join()
        self.assertEqual(answer, revecho.reverse_lines(lines))

    def test_random_sessions_in_random_pieces(self):
        server, rng = self.serve(max_line=3000), random.Random(2)
        for _ in range(30):
            session = b"".join(
                bytes(rng.choices(b"ab\r\xc3\xa9\xff", k=rng.choice((0, 1, 5, 900))))
                + rng.choice((b"\n", b"\r\n"))
                for _ in range(50)
            ) + rng.choice((b"", b"end", b"end\r"))
            parts, rest = [], session
            while rest:
                size = rng.choice((1, 2, 100, 5000))
                parts, rest = [*parts, rest[:size]], rest[size:]
            self.assertEqual(self.exchange(server, *parts), revecho.reverse_lines(session))


class HandlerTest(ServerCase):
    """What is overridden, and what fails."""

    def test_respond_can_be_overridden(self):
        seen = []

        class Handler(revecho.ReverseHandler):
            def respond(self, lines):
                self.assert_bytes(lines)
                seen.append(lines)
                return b"%d\n" % len(lines)

            assert_bytes = staticmethod(lambda lines: self.assertIs(type(lines), bytes))

        server = self.serve(Handler)
        self.assertEqual(self.exchange(server, b"one\ntwo\nlast"), b"8\n4\n")
        self.assertEqual(b"".join(seen), b"one\ntwo\nlast")

    def test_handle_can_be_overridden(self):
        class Handler(revecho.ReverseHandler):
            drain_quiet = 0.05

            def handle(self):
                for line in self.rfile:
                    self.wfile.write(line.upper())

        self.assertEqual(self.exchange(self.serve(Handler), b"a\nb\n"), b"A\nB\n")

    def test_the_loop_that_the_documentation_shows(self):
        class Handler(revecho.ReverseHandler):
            def respond(self, lines):
                return b"".join(b"%d " % len(line) + line for line in io.BytesIO(lines))

        server = self.serve(Handler)
        self.assertEqual(self.exchange(server, b"a\rb\x0bc\n\nd"), b"6 a\rb\x0bc\n1 \n1 d")

    def test_respond_that_raises(self):
        class Failing(Handler):
            def respond(self, lines):
                if lines.startswith(b"bad"):
                    raise ConnectionResetError("of something else")
                return super().respond(lines)

        server = self.serve(Failing)
        other = self.connect(server)
        bad = self.connect(server, b"good\n")
        self.assertEqual(receive(bad, 5), b"doog\n")
        bad.sendall(b"bad\n" + b"x" * 100_000)
        self.assertEqual(receive(bad), b"")  # and no reset
        other.sendall(b"still here\n")
        self.assertEqual(receive(other, 11), b"ereh llits\n")
        until(lambda: len(server.connections) == 1)
        (message,) = self.logged(logging.WARNING)
        self.assertRegex(message, r"^127\.0\.0\.1:\d+: the handler failed Traceback$")

    def test_setup_and_finish_that_raise(self):
        """The peer is told by the end at once, though the log keeps the exception."""

        class BadSetup(Handler):
            def setup(self):
                super().setup()
                raise FileNotFoundError("not of the connection")

        class BadFinish(Handler):
            def finish(self):
                raise FileNotFoundError("not of the connection")

        for handler in (BadSetup, BadFinish):
            descriptors = len(os.listdir("/dev/fd"))
            with revecho.running_server(RequestHandlerClass=handler) as server:
                connection = socket.create_connection(server.server_address, LIMIT)
                connection.shutdown(socket.SHUT_WR)
                self.assertEqual(receive(connection), b"")
                connection.close()
            self.assertEqual(len(os.listdir("/dev/fd")), descriptors)
            kept = [self.records.get(timeout=LIMIT) for _ in range(self.records.qsize())]
            (failure,) = [record for record in kept if record.levelno > logging.INFO]
            self.assertRegex(failure.getMessage(), r"^127\.0\.0\.1:\d+: the handler failed$")
            self.assertIs(failure.exc_info[0], FileNotFoundError)

    def test_protocol_error(self):
        """The peer is told, after the answers to the lines before, wherever TCP cut them."""

        class Positive(Handler):
            def respond(self, lines):
                reply = b""
                for line in io.BytesIO(lines):
                    if line.startswith(b"-"):
                        raise revecho.ProtocolError("none below 0\udcff", reply)
                    reply += line
                return reply

        server = self.serve(Positive)
        want = b"1\n2\nerror: none below 0\xff\n"
        self.assertEqual(self.exchange(server, b"1\n2\n-3\n4\n"), want)
        connection = self.connect(server, b"1\n")
        self.assertEqual(receive(connection, 2), b"1\n")
        connection.sendall(b"2\n-3\n" + b"4\n" * 100_000)
        self.assertEqual(receive(connection), want[2:])
        until(lambda: not server.connections)
        self.assertEqual(self.logged(logging.WARNING), [])

    def test_tls(self):
        """By three lines in get_request(), with the limits, the idle rule and the stop as ever."""
        server_side, client_side = tls_contexts(self)

        class TLS(Server):
            def get_request(self):
                connection, address = super().get_request()
                options = {"server_side": True, "do_handshake_on_connect": False}
                return server_side.wrap_socket(connection, **options), address

        def connect(data):
            connection = self.stack(client_side.wrap_socket(self.connect(server)))
            connection.sendall(data)
            return connection

        with fast_clock() as clock, revecho.running_server(
            RequestHandlerClass=Handler, server_class=TLS, max_connections=2, max_line=100_000
        ) as server:
            for round_ in range(4):  # more than have room at a time
                connection = connect(b"hello\n" + b"x" * 100_001)
                want = b"olleh\nerror: line longer than 100000 bytes\n"
                self.assertEqual(receive(connection), want, round_)
                connection.close()
            plain = self.connect(server, b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                receive(plain)
            plain.close()
            until(lambda: not server.connections)
            silent, begun = connect(b"hello\n"), connect(b"hello\nhal")
            self.assertEqual(receive(silent, 6) + receive(begun, 6), b"olleh\n" * 2)
            clock.advance(61)
            self.assertEqual(receive(silent), b"")
            self.assertEqual(receive(begun), b"error: line not finished within 60 seconds\n")
            begun.close()
            until(lambda: not server.connections)
            idle, busy = connect(b"hello\n"), connect(b"hello\n" * 10_000)
            receive(idle, 6)
            receive(busy, 6)
        self.assertEqual((receive(idle), receive(busy)), (b"", b"olleh\n" * 9_999))
        self.assertEqual(self.logged(logging.WARNING), [])

    def test_log_of_a_connection(self):
        server = self.serve(max_line=5)
        for data, end in (
            (b"hello\nyou", r", 9 bytes answered"),
            (b"hello\ntoo long\n", r", 6 bytes answered: line longer than 5 bytes"),
        ):
            self.exchange(server, data)
            first, last = self.until_logged("gone")
            self.assertRegex(first, r"^127\.0\.0\.1:\d+ connected$")
            self.assertRegex(last, r"^127\.0\.0\.1:\d+ gone after \d+\.\d s" + end + "$")
        reset(self.connect(server))
        self.assertRegex(self.until_logged("gone")[-1], "answered: Connection reset by peer$")
        self.connect(server, b"hello\n")
        self.until_logged("connected")
        server.server_close()
        self.assertRegex(self.until_logged("gone")[-1], "answered: stopping$")


class ServerTest(ServerCase):
    def test_many_at_the_same_time(self):
        server = self.serve()
        connections = [self.connect(server) for _ in range(200)]
        until(lambda: len(server.connections) == 200)
        for turn in (b"first %d\n", b"second %d\n"):
            for number, connection in enumerate(connections):
                connection.sendall(turn % number)
            for number, connection in reversed(list(enumerate(connections))):
                line = turn % number
                self.assertEqual(receive(connection, len(line)), revecho.reverse_lines(line))

    def test_fixture_leaves_nothing(self):
        threads = threading.active_count()
        descriptors = len(os.listdir("/dev/fd"))
        with revecho.running_server() as server:
            port = server.server_address[1]
            self.assertEqual(revecho.request("hello", port=port), "olleh")
            idle = self.connect(server, b"hello\n")
            receive(idle, 6)
        self.assertEqual(idle.recv(1), b"")
        idle.close()
        self.assertEqual(threading.active_count(), threads)
        self.assertEqual(len(os.listdir("/dev/fd")), descriptors)
        with self.assertRaises(ConnectionRefusedError):
            revecho.request("hello", port=port)

    def test_fixture_ends_with_an_exception(self):
        threads = threading.active_count()
        with self.assertRaises(KeyError), revecho.running_server() as server:
            raise KeyError
        self.assertEqual(server.socket.fileno(), -1)
        self.assertEqual(threading.active_count(), threads)

    def test_fixture_takes_a_server_class(self):
        class Subclass(revecho.ReverseServer):
            pass

        with revecho.running_server(server_class=Subclass, max_line=5) as server:
            self.assertIs(type(server), Subclass)
            self.assertEqual(server.max_line, 5)

    def test_addresses(self):
        for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "", "::"):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with contextlib.suppress(OSError), self.subTest(host), socket.socket(family) as probe:
                probe.bind(("::1" if ":" in host else "127.0.0.1", 0))  # else this machine has none
                with revecho.running_server((host, 0)) as server:
                    port = server.server_address[1]
                    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
                    self.assertEqual(revecho.request("hello", here, port), "olleh")

    def test_any_address_of_a_client(self):
        """Whatever get_request() calls the client stands in the log."""

        class Naming(Server):
            def get_request(self):
                return super().get_request()[0], addresses[-1]

        addresses = [None]
        server = self.serve(server_class=Naming)
        for address, shown in (
            (("192.0.2.1", 5), "192.0.2.1:5"),
            (("2001:db8::1", 5, 0, 0), "[2001:db8::1]:5"),
            ("/a/path", "/a/path"),
            (b"\0abstract", r"b'\x00abstract'"),
            ("", ""),
            (None, "None"),
        ):
            addresses.append(address)
            self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")
            until(lambda: not server.connections)
            self.assertEqual(self.logged()[0], f"{shown} connected")

    def test_a_reply_does_not_wait_for_an_acknowledgement(self):
        delays = queue.SimpleQueue()

        class Asking(Handler):
            def respond(self, lines):
                delays.put(not self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                return lines

        self.exchange(self.serve(Asking), b"hello\n")
        self.assertFalse(delays.get(timeout=LIMIT))

    def test_default_timeout_of_the_program(self):
        """It is no matter of the connections of the server."""
        self.addCleanup(socket.setdefaulttimeout, None)
        socket.setdefaulttimeout(0.001)
        timeouts = queue.SimpleQueue()

        class Asking(Handler):
            def respond(self, lines):
                timeouts.put(self.request.gettimeout())
                return lines

        server = self.serve(Asking)
        with socket.socket() as connection:
            connection.settimeout(LIMIT)
            connection.connect(server.server_address)
            connection.sendall(b"hello\n")
            self.assertEqual(receive(connection, 6), b"hello\n")
        self.assertIsNone(timeouts.get(timeout=LIMIT))

    def test_bad_arguments(self):
        for limits in (
            {"max_connections": 0},
            {"max_line": 0},
            {"idle_timeout": -1},
            {"grace": -0.1},
            {"idle_timeout": float("nan")},
            {"grace": float("inf")},
        ):
            (name,) = limits
            with self.assertRaisesRegex(ValueError, rf"^{name} must be from [01] to \d+$"):
                revecho.ReverseServer(("127.0.0.1", 0), **limits)
        with self.assertRaises(OverflowError):
            revecho.ReverseServer(("127.0.0.1", 70000))
        with self.serve() as server, self.assertRaises(OSError):
            revecho.ReverseServer(("192.0.2.1", server.server_address[1]))

    def test_port_in_use_leaves_nothing(self):
        server = self.serve()
        threads, descriptors = threading.active_count(), os.listdir("/dev/fd")
        with self.assertRaises(OSError):
            revecho.ReverseServer(server.server_address)
        self.assertEqual(os.listdir("/dev/fd"), descriptors)
        self.assertEqual(threading.active_count(), threads)

    def test_threads_are_reused(self):
        names = set()

        class Naming(Handler):
            def respond(self, lines):
                names.add(threading.current_thread().name)
                return lines

        server = self.serve(Naming, revecho.ReverseServer)
        for _ in range(20):
            self.exchange(server, b"hello\n")
            until(lambda: not server.connections)
        self.assertLess(len(names), 10)

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
        command = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(command, cwd=HERE, capture_output=True, timeout=LIMIT, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_resets_at_any_time(self):
        threads, server = threading.active_count(), self.serve()
        descriptors = len(os.listdir("/dev/fd"))
        other = self.connect(server)
        for number in range(400):
            connection = socket.create_connection(server.server_address, LIMIT)
            connection.sendall((b"", b"half", b"whole\n", b"long\n" * 10_000)[number % 4])
            if number % 8 > 5:
                connection.recv(1)
            reset(connection)
        until(lambda: len(server.connections) == 1)
        other.sendall(b"still here\n")
        self.assertEqual(receive(other, 11), b"ereh llits\n")
        other.close()
        until(lambda: len(os.listdir("/dev/fd")) <= descriptors)
        self.assert_threads(threads + 1)
        messages = self.logged()
        self.assertEqual([m for m in messages if "Traceback" in m or "\n" in m], [])
        self.assertTrue(any("reset" in m for m in messages))


class AcceptTest(ServerCase):
    """What can go wrong before a connection is handed over."""

    def test_verify_request(self):
        class Choosing(Server):
            def verify_request(self, request, _):
                question = request.recv(2)
                if question == b"?\n":
                    raise OSError("the client is gone, say")
                return question == b"y\n"

        server = self.serve(server_class=Choosing)
        for question, answer in ((b"n\n", b""), (b"?\n", b""), (b"y\n", b"olleh\n")):
            connection = self.connect(server, question)
            shut_sending = connection.shutdown
            connection.sendall(b"hello\n" if answer else b"")
            shut_sending(socket.SHUT_WR)
            self.assertEqual(receive(connection), answer)
        (message,) = self.logged(logging.WARNING)
        self.assertRegex(message, r"^127\.0\.0\.1:\d+: the handler failed Traceback$")
        until(lambda: not server.connections)

    def test_a_connection_that_is_gone_before_accept(self):
        """The listener does not wait for another one."""

        class Robbed(Server):
            def get_request(self):
                if not robbed.is_set():
                    self.socket.accept()[0].close()
                    robbed.set()
                return super().get_request()

        robbed = threading.Event()
        server = self.serve(server_class=Robbed)
        self.connect(server)
        self.assertTrue(robbed.wait(LIMIT))
        self.join(self.closing(server))

    def test_a_tls_listener(self):
        """What fails in a handshake there costs its own connection alone."""
        server_side, client_side = tls_contexts(self)
        self.stack(warnings.catch_warnings())
        warnings.simplefilter("ignore", ResourceWarning)  # of SSLSocket.accept() itself
        with Server(("127.0.0.1", 0), Handler) as server:
            server.socket = server_side.wrap_socket(server.socket, server_side=True)
            self.on_thread(server.serve_forever)
            for number in range(20):
                connection = self.connect(server, b"GET / HTTP/1.0\r\n" * (number % 2))
                reset(connection)
            connection = self.stack(client_side.wrap_socket(self.connect(server)))
            connection.sendall(b"hello\n")
            self.assertEqual(receive(connection, 6), b"olleh\n")
        self.assertEqual(self.logged(logging.WARNING), [])

    def test_a_broken_listener(self):
        """It ends serve_forever(), and with that the program."""

        class Telling(Server):
            def serve_forever(self, poll_interval=0.01):
                try:
                    super().serve_forever(poll_interval)
                finally:
                    ended.set()

        for breaking in (lambda listener: listener.shutdown(socket.SHUT_RDWR), socket.socket.close):
            ended = threading.Event()
            with self.assertRaises(OSError), revecho.running_server(
                server_class=Telling
            ) as server:
                self.assertEqual(revecho.request("hello", *server.server_address), "olleh")
                breaking(server.socket)
                self.assertTrue(ended.wait(LIMIT))

    def test_an_interrupt_at_any_step(self):
        """Ctrl-C in a program whose main thread serves leaves no connection behind."""
        for step in ("get_request", "verify_request", "process_request"):

            class Interrupted(Server):
                pass

            def interrupt(server, *arguments, step=step):
                if step != "verify_request":
                    getattr(Server, step)(server, *arguments)
                raise KeyboardInterrupt

            setattr(Interrupted, step, interrupt)
            with self.subTest(step), Interrupted(("127.0.0.1", 0), Handler, grace=LIMIT) as server:
                connection = self.connect(server)
                with warnings.catch_warnings(), self.assertRaises(KeyboardInterrupt):
                    warnings.simplefilter("ignore", ResourceWarning)
                    server.serve_forever()
                gc.collect()
                with contextlib.suppress(ConnectionError):
                    self.assertEqual(receive(connection), b"")
                self.join(self.closing(server))

    def test_shutdown_only_pauses(self):
        with revecho.ReverseServer(("127.0.0.1", 0)) as server:
            for _ in range(2):
                thread = self.on_thread(server.serve_forever, 0.01)
                self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")
                server.shutdown()
                self.join(thread)


class LimitsTest(ServerCase):
    def setUp(self):
        super().setUp()
        self.clock = self.stack(fast_clock())

    def test_longest_line(self):
        for limit in (1, 2, 3, 100, 65536, 150_000):
            server = self.serve(max_line=limit)
            before = b"\n" + b"a\n" * 5
            line = bytes(itertools.islice(itertools.cycle(b"abcdefg"), limit))
            error = b"error: line longer than %d bytes\n" % limit
            for start, ending in itertools.product(
                (line, line[:-1] + b"\r"), (b"\n", b"\r\n", b"")
            ):
                if start.endswith(b"\r") and ending == b"\n":
                    continue  # that is a shorter line
                session = before + start + ending
                longer = before + b"x" + start + ending
                for cut in (len(before), len(before) + limit // 2, len(session) - 1, len(session)):
                    answer = self.exchange(server, session[:cut], session[cut:])
                    self.assertEqual(answer, revecho.reverse_lines(session), (limit, ending, cut))
                    answer = self.exchange(server, longer[:cut], longer[cut:])
                    self.assertEqual(answer, before + error, (limit, ending, cut))
                    if ending:
                        answer = self.exchange(server, longer[:cut], longer[cut:], before)
                        self.assertEqual(answer, before + error, (limit, ending, cut))

    @unittest.skipUnless(LINUX, "needs /proc")
    def test_error_arrives_though_the_client_goes_on_sending(self):
        process, address = self.stack(running_process("--max-line", "1000"))
        connection = self.connect(address)
        memory = resident(process.pid)
        connection.sendall(b"hello\n" * 1000)
        block = b"x" * (1 << 20)
        for _ in range(200):
            connection.sendall(block)
        answer = receive(connection)
        self.assertEqual(answer, b"olleh\n" * 1000 + b"error: line longer than 1000 bytes\n")
        self.assertLess(resident(process.pid) - memory, 20_000)

    @unittest.skipUnless(LINUX and GIL, "needs /proc, and an allocator that gives back")
    def test_no_memory_for_what_has_been_answered(self):
        process, address = self.stack(running_process())
        memory = resident(process.pid)
        crowd = [self.connect(address, b"x" * 60_000 + b"\n") for _ in range(200)]
        for connection in crowd:
            self.assertEqual(len(receive(connection, 60_001)), 60_001)
        self.assertLess((resident(process.pid) - memory) / len(crowd), 180)  # KiB

    @unittest.skipUnless(LINUX and GIL, "needs /proc, and an allocator that gives back")
    def test_no_memory_for_a_line_that_never_ends(self):
        process, address = self.stack(running_process("--max-line", str(1 << 30)))
        connection = self.connect(address)
        memory = resident(process.pid)
        connection.sendall(b"x" * (20 << 20))
        until(lambda: resident(process.pid) - memory > 19_000)  # it is held, and once only
        self.assertLess(resident(process.pid) - memory, 30_000)
        connection.sendall(b"\n")
        self.assertEqual(len(receive(connection, (20 << 20) + 1)), (20 << 20) + 1)

    def test_drain_ends_our_side_first(self):
        """A client that waits for the end before it closes need not wait for anything else."""

        class Patient(Handler):
            drain_quiet = LIMIT

        server = self.serve(Patient, max_line=10, grace=LIMIT)
        with socket.create_connection(server.server_address, LIMIT) as connection:
            connection.sendall(b"x" * 11)
            self.assertEqual(receive(connection), b"error: line longer than 10 bytes\n")

    def test_drain_is_bounded_in_time(self):
        for drip in (b"", b"x"):

            class Draining(Handler):
                drain_quiet = LIMIT if drip else 0.05

            server = self.serve(Draining, max_line=10, grace=0.2 if drip else LIMIT)
            connection = self.connect(server, b"x" * 11)
            self.assertEqual(receive(connection), b"error: line longer than 10 bytes\n")
            with contextlib.suppress(ConnectionError):
                while server.connections:  # though we have not closed
                    connection.sendall(drip)
                    time.sleep(0.002)

    def test_drain_is_bounded_in_amount(self):
        class Draining(Handler):
            drain_limit = 1 << 20

        server = self.serve(Draining, max_line=10, grace=LIMIT)
        connection = self.connect(server, b"x" * 11)
        with self.assertRaises(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"x" * (1 << 20))

    def test_silent_client(self):
        server = self.serve()
        silent, talking = self.connect(server), self.connect(server)
        until(lambda: len(server.connections) == 2)
        self.clock.advance(59)
        self.assertFalse(readable(silent))
        talking.sendall(b"hello\n")
        receive(talking, 6)
        self.clock.advance(2)
        self.assertEqual(silent.recv(1), b"")
        until(lambda: len(server.connections) == 1)
        self.assertRegex(self.logged()[-1], "0 bytes answered: idle$")
        talking.sendall(b"hello\n")
        self.assertEqual(receive(talking, 6), b"olleh\n")

    def test_client_that_gets_a_line_answered_now_and_then(self):
        connection = self.connect(self.serve())
        for _ in range(4):
            connection.sendall(b"hel")
            self.clock.advance(50)
            connection.sendall(b"lo\n")
            self.assertEqual(receive(connection, 6), b"olleh\n")

    def test_client_that_drips(self):
        server = self.serve(idle_timeout=7.5)
        connection = self.connect(server, b"one\n")
        receive(connection, 4)
        while not readable(connection):
            connection.sendall(b"x")
            self.clock.advance(3)
        self.assertEqual(receive(connection), b"error: line not finished within 7.5 seconds\n")
        until(lambda: not server.connections)

    def test_client_that_goes_on_with_a_line_after_its_time(self):
        """The error reaches it, as at the other limit."""

        class Patient(Handler):
            drain_quiet = 0.5

        server = self.serve(Patient)
        connection = self.connect(server, b"half")
        until(lambda: server.connections)
        self.clock.advance(61)
        until(lambda: readable(connection))
        for _ in range(10):
            connection.sendall(b"more")
        self.assertEqual(receive(connection), b"error: line not finished within 60 seconds\n")

    def test_client_that_sends_a_line_without_end(self):
        """It never waits for input, and is told all the same."""
        server = self.serve(max_line=1 << 30)
        connection = self.connect(server)
        self.flood(connection, b"x" * 1000)
        until(lambda: server.connections)
        self.clock.advance(61)
        error = b"error: line not finished within 60 seconds\n"
        self.assertEqual(receive(connection, len(error)), error)

    def test_line_cut_short_while_the_one_before_is_answered(self):
        """It is not answered as if it were whole."""
        handler, gate = self.gated()
        server = self.serve(handler)
        connection = self.connect(server, b"whole\nhalf")
        gate.until_reached()
        self.clock.advance(61)
        gate.open()
        self.assertEqual(receive(connection, 6), b"elohw\n")
        until(lambda: self.clock.advance(61) or readable(connection))
        self.assertEqual(receive(connection), b"error: line not finished within 60 seconds\n")

    def test_respond_that_takes_longer_than_the_idle_timeout(self):
        """The peer did nothing wrong, and goes on."""
        handler, gate = self.gated()
        server = self.serve(handler)
        connection = self.connect(server, b"hello\n")
        gate.until_reached()
        self.clock.advance(100)
        gate.open()
        connection.sendall(b"again\n")
        self.assertEqual(receive(connection, 12), b"olleh\nniaga\n")

    def test_client_that_does_not_read(self):
        server = self.serve_one_who_does_not_read()
        self.clock.advance(61)
        until(lambda: not server.connections)

    def test_no_idle_timeout(self):
        server = self.serve(idle_timeout=0)
        connection = self.connect(server, b"hel")
        until(lambda: server.connections)
        self.clock.advance(1e6)
        connection.sendall(b"lo\n")
        self.assertEqual(receive(connection, 6), b"olleh\n")

    def test_crowd_waits_at_the_limit(self):
        server = self.serve(max_connections=3)
        for _ in range(2):
            crowd = [self.connect(server, b"hello\n") for _ in range(12)]
            until(lambda: len(server.connections) == 3)
            served = 0
            while crowd:
                ready = until(lambda crowd=crowd: select.select(crowd, [], [], 1)[0])
                self.assertLessEqual(len(server.connections), 3)
                for connection in ready:
                    self.assertEqual(receive(connection, 6), b"olleh\n")
                    crowd.remove(connection)
                    connection.close()
                    served += 1
            self.assertEqual(served, 12)
            until(lambda: not server.connections)
            warnings = self.logged(logging.WARNING)
            self.assertEqual(warnings, ["cannot accept, others wait: 3 connections are open"])
            self.clock.advance(2)  # the next crowd is another

    def test_those_who_wait_are_not_accepted(self):
        server = self.serve(max_connections=2)
        first, _, third = (self.connect(server, b"hello\n") for _ in range(3))
        self.clock.advance(2)
        self.assertFalse(readable(third))
        self.assertEqual(len(server.connections), 2)
        first.close()
        self.assertEqual(receive(third, 6), b"olleh\n")

    def test_idle_clients_give_way_at_the_limit(self):
        server = self.serve(max_connections=1)
        silent, waiting = self.connect(server), self.connect(server, b"hello\n")
        until(lambda: server.connections)
        self.clock.advance(61)
        self.assertEqual(silent.recv(1), b"")
        self.assertEqual(receive(waiting, 6), b"olleh\n")

    def test_nothing_stays_behind_after_a_crowd(self):
        threads, server = threading.active_count(), self.serve()
        descriptors = len(os.listdir("/dev/fd"))
        crowd = [self.connect(server, b"hello\n") for _ in range(300)]
        for connection in crowd:
            receive(connection, 6)
        self.assertGreater(threading.active_count(), 300)
        for connection in crowd:
            connection.close()
        until(lambda: len(os.listdir("/dev/fd")) <= descriptors)
        self.assert_threads(threads + 1)


class ExhaustionTest(ServerCase):
    def exhaust(self, message, kind, limit, program=PROGRAM):
        """Run a server short of something; see that it serves everyone and stops on a signal.

        *kind* is the folder in /proc that shows the *limit* of them when no more are to be had.
        """

        def crowd():
            connections = [self.connect(address, b"hello\n") for _ in range(150)]
            until(lambda: len(os.listdir(f"/proc/{process.pid}/{kind}")) == limit)
            return connections

        with tempfile.TemporaryFile("w+") as log:
            with running_process(program=program, stderr=log) as (process, address):
                if kind == "fd":
                    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
                waiting = crowd()
                before = processor_seconds(process.pid)
                time.sleep(0.5)
                self.assertLess(processor_seconds(process.pid) - before, 0.2)  # it does not spin
                while waiting:
                    for connection in until(lambda: select.select(waiting, [], [], 1)[0]):
                        self.assertEqual(receive(connection, 6), b"olleh\n")
                        waiting.remove(connection)
                        connection.close()
                crowd()
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(LIMIT), 0)
            log.seek(0)
            text = log.read()
        self.assertNotIn("Traceback", text)
        self.assertIn(text.count("cannot accept, others wait: " + message), (1, 2, 3), text[-500:])

    @unittest.skipUnless(LINUX, "needs /proc and prlimit")
    def test_descriptors(self):
        self.exhaust("[Errno 24]", "fd", 60)

    @unittest.skipUnless(LINUX and os.getuid() == 0, "needs /proc and an account of its own")
    def test_threads(self):
        script = """if True:
            import contextlib, encodings.idna, io, os, resource, sys
            import revecho
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                revecho.main(["--help"])  # imports what it needs
            os.setgroups([])
            account = 60000 + os.getpid() % 5000  # nobody else's
            os.setgid(account)
            os.setuid(account)
            resource.setrlimit(resource.RLIMIT_NPROC, (30, 30))
            sys.exit(revecho.main())
        """
        self.exhaust("can't start new thread", "task", 30, program=("-c", script))

    def test_threads_of_this_process(self):
        start, room = threading.Thread.start, threading.active_count() + 4

        def start_if_there_is_room(thread):
            if threading.active_count() >= room:
                raise RuntimeError("can't start new thread")
            start(thread)

        server = self.serve()
        with mock.patch.object(threading.Thread, "start", start_if_there_is_room):
            crowd = [self.connect(server, b"hello\n") for _ in range(10)]
            warnings = until(lambda: self.logged(logging.WARNING))
            for connection in crowd:
                self.assertEqual(receive(connection, 6), b"olleh\n")
                connection.close()
        warnings += self.logged(logging.WARNING)
        self.assertEqual(warnings, ["cannot accept, others wait: can't start new thread"])


class StoppingTest(ServerCase):
    def test_received_lines_are_answered(self):
        """Also those that the kernel holds and the handler has not seen."""
        for rest, ended, answer in (
            (b"c\r\n", False, b"c\r\n"),
            (b"half", False, b""),
            (b"", False, b""),
            (b"last", True, b"tsal"),
        ):
            handler, gate = self.gated()
            server = self.serve(handler, grace=LIMIT)
            connection = self.connect(server, b"first\n")
            gate.until_reached()
            lines = b"".join(b"line %d\n" % number for number in range(20_000))
            connection.sendall(lines + rest)
            if ended:
                connection.shutdown(socket.SHUT_WR)
            thread = self.closing(server)
            gate.open()
            want = b"tsrif\n" + revecho.reverse_lines(lines) + answer
            self.assertEqual(receive(connection), want)
            self.join(thread)

    def test_received_lines_are_answered_to_a_client_that_reads_late(self):
        server = self.serve(grace=LIMIT)
        connection = self.connect(server)
        sent = send_until_full(connection, b"hello\n")
        thread = self.closing(server)
        answer = receive(connection)
        self.assertEqual(answer, b"olleh\n" * (sent // 6))
        self.join(thread)

    def test_those_in_the_listen_queue_are_answered(self):
        """Whether serve_forever() has never run, or is busy with another."""
        gate = Gate()
        self.addCleanup(gate.open)

        class Slow(Server):
            def verify_request(self, *_):
                gate.wait()
                return True

        with Server(("127.0.0.1", 0), Handler) as never_served:
            crowd = [self.connect(never_served, b"hello\n") for _ in range(20)]
        self.assertEqual([receive(each) for each in crowd], [b"olleh\n"] * 20)
        server = self.serve(server_class=Slow)
        crowd = [self.connect(server, b"hello\n") for _ in range(20)]
        gate.until_reached()
        thread = self.closing(server)
        gate.open()
        self.assertEqual([receive(each) for each in crowd], [b"olleh\n"] * 20)
        self.join(thread)

    def test_idle_clients_hold_nothing_up(self):
        server = self.serve(grace=10 * LIMIT)
        crowd = [self.connect(server) for _ in range(50)]
        crowd[0].sendall(b"whole\nhalf")
        self.assertEqual(receive(crowd[0], 6), b"elohw\n")
        until(lambda: len(server.connections) == 50)
        self.join(self.closing(server))
        for connection in crowd:
            self.assertEqual(receive(connection), b"")  # nor is a line cut short answered

    def test_between_two_steps_of_an_exchange(self):
        """No handler waits for input that it does not get, whatever it was about to do."""
        for _ in range(10):
            server = self.serve(grace=10 * LIMIT)
            crowd = [self.connect(server, b"hello\n") for _ in range(8)]
            for connection in crowd:
                self.on_thread(ask_until_the_end, connection)
            until(lambda server=server: len(server.connections) == 8)
            self.join(self.closing(server))

    def test_client_that_goes_on_sending(self):
        """What has been taken from it is answered, then comes the end, and nothing is held up."""
        taken = []

        class Slow(Handler):
            def respond(self, lines):
                taken.append(lines)
                time.sleep(0.01)  # so that there is always more
                return super().respond(lines)

        server = self.serve(Slow, grace=0.5)
        connection = self.connect(server)
        received = []
        reader = self.on_thread(lambda: received.append(receive(connection)))
        self.flood(connection)
        until(lambda: taken)
        server.server_close()
        self.join(reader)
        self.assertEqual(received, [revecho.reverse_lines(b"".join(taken))])

    def test_client_that_does_not_read_is_cut(self):
        threads = threading.active_count()
        server = self.serve_one_who_does_not_read(grace=0.1)
        server.server_close()
        self.assert_threads(threads)

    def test_at_the_limit(self):
        server = self.serve(max_connections=1)
        first, second = self.connect(server, b"hello\n"), self.connect(server, b"hello\n")
        receive(first, 6)
        server.server_close()
        self.assertEqual((receive(first), receive(second)), (b"", b"olleh\n"))

    def test_handler_that_hangs_is_left_behind(self):
        """It costs the grace once, however often and by whomever the server is closed."""
        handler, gate = self.gated()
        server = self.serve(handler, grace=0.1)
        self.connect(server, b"hello\n")
        gate.until_reached()
        self.join(self.closing(server))
        started = time.thread_time(), time.monotonic()
        for _ in range(1000):
            server.server_close()  # would take minutes if it waited
        self.assertLess(time.monotonic() - started[1], LIMIT)

    def test_the_port_is_free_at_once(self):
        server = self.serve()
        connection = self.connect(server, b"hello\n")
        receive(connection, 6)
        server.server_close()  # ends the connection first, so that the kernel remembers the port
        self.assertEqual(receive(connection), b"")
        connection.close()
        with revecho.running_server(server.server_address):
            pass

    def test_in_any_order(self):
        with revecho.ReverseServer(("127.0.0.1", 0)) as server:
            pass  # never served
        server.server_close()
        server.serve_forever()  # returns at once
        for _ in range(100):
            with revecho.running_server():
                pass  # perhaps before the accepting thread has begun

    def test_by_two_threads(self):
        """Of a server that never served, that serves, and that does not yet."""
        for serving in (False, True, True):
            server = revecho.ReverseServer(("127.0.0.1", 0))
            threads = [self.on_thread(server.serve_forever)] if serving else []
            threads += [self.on_thread(server.server_close) for _ in range(4)]
            for thread in threads:
                self.join(thread)
            self.assertEqual(server.socket.fileno(), -1)

    def test_by_a_thread_of_its_own(self):
        """It would wait for itself, so it is told."""

        class Closing(Handler):
            def respond(self, lines):
                with test.assertRaises(RuntimeError):
                    self.server.server_close()
                return super().respond(lines)

        class ClosingServer(Server):
            def verify_request(self, *_):
                with test.assertRaises(RuntimeError):
                    self.server_close()
                return True

        test = self
        server = self.serve(Closing, ClosingServer, grace=10 * LIMIT)
        self.assertEqual(self.exchange(server, b"hello\n"), b"olleh\n")

    def test_signals(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with running_process("--grace", "60", stderr=subprocess.PIPE) as (process, address):
                idle = self.connect(address, b"hello\n")
                receive(idle, 6)
                process.send_signal(number)
                self.assertEqual(receive(idle), b"")
                self.assertEqual(process.wait(LIMIT), 0)
                self.assertNotIn("Traceback", process.stderr.read())

    def test_second_signal(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with running_process("--grace", "60") as (process, address):
                self.flood(self.connect(address))
                process.send_signal(number)
                until(lambda address=address: not listening(address))  # it has begun to stop
                self.assertIsNone(process.poll())
                process.send_signal(number)
                self.assertEqual(process.wait(LIMIT), -number)


def send_until_full(connection, line):
    """Send lines without reading until no more fit; return how many bytes were sent."""
    data = line * 1000
    sent = 0
    connection.settimeout(0.3)
    with contextlib.suppress(socket.timeout):
        while True:
            sent += connection.send(data[sent % len(line) :])
    connection.settimeout(LIMIT)
    return sent


def listening(address):
    try:
        socket.create_connection(address, LIMIT).close()
    except ConnectionError:  # refused, or reset by a listener that is just being closed
        return False
    return True


@contextlib.contextmanager
def other_server(serve):
    """A server that does with each connection, one after the other, what *serve* does.

    Yields its address.  Where *serve* returns true the connection is kept open to the end.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError), contextlib.ExitStack() as kept:
                while True:
                    connection = listener.accept()[0]
                    connection.settimeout(LIMIT)
                    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
                        stack.enter_context(connection)
                        if serve(connection):
                            kept.push(stack.pop_all())

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(LIMIT)


def answer_with(reply, stay=False):
    """For other_server(): one answer to whatever comes first, then the end."""

    def serve(connection):
        connection.recv(65536)
        connection.sendall(reply)
        return stay

    return serve


def never_answer(connection):
    return connection.recv(65536) or True


def mirror(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def relay(server, there=bytes, back=bytes):
    """For other_server(): a path to *server* that changes a line and its reply."""

    def serve(connection):
        line = connection.recv(65536)
        with socket.create_connection(server.server_address[:2], LIMIT) as far:
            far.sendall(there(line))
            far.shutdown(socket.SHUT_WR)
            connection.sendall(back(receive(far)))

    return serve


def half_close_ends_both(server):
    """For other_server(): a relay like many, to which the end of one side is the end of all."""

    def serve(connection):
        with socket.create_connection(server.server_address[:2], LIMIT) as far:
            while True:
                for ready in select.select([connection, far], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (far if ready is connection else connection).sendall(data)

    return serve


def by_turns(*serves):
    """For other_server(): what to do with the first connection, the second, and so on."""
    serve = iter(serves)

    def serve_next(connection):
        return next(serve)(connection)

    return serve_next


def flip(data):
    return bytes([data[0] ^ 1]) + data[1:]


def bad_paths(server):
    """What to give to other_server(), a timeout in seconds, and how the client calls the path."""
    left = "bytes left unanswered: "
    return (
        (mirror, LIMIT, r"an echo at byte \d+"),
        (relay(server, there=flip), LIMIT, r"not the reverse at byte \d+"),
        (relay(server, back=flip), LIMIT, "not the reverse at byte 1"),
        (answer_with(b"00000\n"), LIMIT, r"not the reverse at byte \d+: '00000\\n' came"),
        (answer_with(b"00000"), LIMIT, f"the connection ended; {left}.* '00000' came"),
        (answer_with(b"00000", stay=True), 0.3, r"no end of the reply '00000' within 0\.3 s"),
        (relay(server, back=lambda reply: reply[:-2]), LIMIT, f"the connection ended; {left}2"),
        (never_answer, 0.05, r"no reply within 0\.05 s"),
        (lambda _: None, LIMIT, f"the connection (ended|was reset); {left}"),
        (lambda it: it.recv(1) and reset(it), LIMIT, f"the connection was reset; {left}"),
        (lambda it: it.sendall(b"SSH-2.0-x\r\n") or True, LIMIT, r"not the .*'SSH-2\.0-x\\r\\n"),
        (answer_with(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"), LIMIT, "'HTTP/1.1 400 B"),
        (answer_with(b"error: too late\n"), LIMIT, f"error: too late; {left}"),
    )


class ClientTest(ServerCase):
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
            self.assertEqual(revecho.request(text, *server.server_address), reply)
        for text in ("a\n", "a\nb", "\n", "a\r", "a\r\n", "\ud800"):
            with self.assertRaises(ValueError):
                revecho.request(text, *server.server_address)

    def test_request_to_a_service_whose_answers_have_another_length(self):
        class Handler(revecho.ReverseHandler):
            def respond(self, lines):
                return lines[:-1] * 3 + b"\n"

        address = self.serve(Handler).server_address
        self.assertEqual(revecho.request("ab", *address), "ababab")
        self.assertEqual(revecho.request("", *address), "")

    def test_request_refused(self):
        server = self.serve(max_line=10)
        for length in (11, 31, 32, 33, 10_000_000):  # the error has 32 bytes
            with self.assertRaisesRegex(revecho.ReplyError, r"^error: line longer than 10 bytes;"):
                revecho.request("x" * length, *server.server_address)

    def test_request_refused_with_a_reset(self):
        """What the server said before is what counts."""
        address = self.stack(other_server(lambda other: other.sendall(b"error: no\n")))
        with self.assertRaisesRegex(revecho.ReplyError, "error: no"):
            revecho.request("x" * 50_000_000, *address)

    def test_request_without_a_proper_reply(self):
        for reply, message in (
            (b"", "ended; bytes left unanswered: 6$"),
            (b"oll", "ended; bytes left unanswered: 3, only 'oll' came$"),
            (b"ollehh", "ended; bytes left unanswered: 1, only 'ollehh' came$"),
            (b"a\nb\n", r"more than one line came: 'a\\nb\\n'$"),
            (b"olleh\nx", r"more than one line came: 'olleh\\nx'$"),
            (b"x" * 40, "only 'x{40}' came$"),
            (b"x" * 41, r"only 'x{40}'\.\.\. came$"),
            (b"x" * 70_000_000, r"a reply without end: 'x{40}'\.\.\.$"),
        ):
            with (
                other_server(answer_with(reply)) as address,
                self.assertRaisesRegex(revecho.ReplyError, message),
            ):
                revecho.request("hello", *address)

    def test_long_replies_take_time_in_proportion(self):
        """Ten times as much takes ten times as long, not a hundred times."""

        def seconds(size):
            with other_server(answer_with(b"x" * size + b"\n")) as address:
                start = time.thread_time()
                self.assertEqual(len(revecho.request("hello", *address)), size)
                return time.thread_time() - start

        few, many = (min(seconds(size) for _ in range(3)) for size in (2_000_000, 20_000_000))
        self.assertLess(many, 40 * few)

    def test_timeouts_say_which_step(self):
        for exchange in (
            lambda timeout, *address: revecho.request("hello", *address, timeout),
            lambda timeout, *address: self.stream(
                io.BytesIO(b"hello\n"), address, timeout=timeout
            ),
        ):
            for manager, timeout, message in (
                (other_server(never_answer), 0.1, r"^no reply within 0\.1 s$"),
                (other_server(answer_with(b"oll", stay=True)), 0.3, "^no end of the reply 'oll' "),
                (crowded_listener(), 0.1, r"^not connected within 0\.1 s$"),
            ):
                address = self.stack(manager)
                start = time.monotonic()
                with self.assertRaisesRegex(TimeoutError, message):
                    exchange(timeout, *address)
                self.assertGreaterEqual(time.monotonic() - start, timeout)

    def test_connection_refused(self):
        with self.assertRaisesRegex(ConnectionRefusedError, "not connected: "):
            revecho.request("hello", "127.0.0.1", free_port())

    def test_bad_arguments(self):
        inf, nan = float("inf"), float("nan")
        for port, timeout in ((-1, 1), (0, 1), (65536, 1), (1, 0), (1, -1), (1, nan), (1, inf)):
            with self.assertRaises(ValueError):
                revecho.request("hello", "127.0.0.1", port, timeout)
            with self.assertRaises(ValueError):
                self.stream(io.BytesIO(b"hello\n"), ("127.0.0.1", port), timeout=timeout)

    def test_types(self):
        for function in (revecho.request, revecho.stream):
            types = typing.get_type_hints(function)
            self.assertEqual((types["host"], types["port"], types["timeout"]), (str, int, float))
        self.assertIs(typing.get_type_hints(revecho.request)["return"], str)
        self.assertIs(typing.get_type_hints(revecho.stream)["return"], int)

    def stream(self, source, address, **options):
        sink = io.BytesIO()
        count = revecho.stream(source, sink, *address[:2], **options)
        self.assertEqual(count, len(sink.getvalue()))
        return sink.getvalue()

    def test_stream(self):
        server = self.serve()
        for lines in (
            b"",
            b"a",
            b"ab\n",
            b"ab\r\ncd\r",
            b"a\n :rorre\n :rorre",
            os.urandom(1_000_000).replace(b"\n", b"\n\n"),
        ):
            answer = self.stream(io.BytesIO(lines), server.server_address)
            self.assertEqual(answer, revecho.reverse_lines(lines))

    def test_stream_through_a_relay_that_ends_both_sides(self):
        address = self.stack(other_server(half_close_ends_both(self.serve())))
        lines = b"hello\n" * 1_000_000
        self.assertEqual(self.stream(io.BytesIO(lines), address), b"olleh\n" * 1_000_000)

    def test_stream_to_a_server_that_reads_all_before_it_writes(self):
        def serve(connection):
            connection.sendall(revecho.reverse_lines(receive(connection, len(lines))))

        lines = b"hello\n" * 1_000_000
        with other_server(serve) as address:
            self.assertEqual(self.stream(io.BytesIO(lines), address), b"olleh\n" * 1_000_000)

    def test_stream_into_a_sink_that_pauses(self):
        """Longer than the timeout, so long that there is no room to send either."""
        pauses = iter([0.4])
        sink = mock.Mock(write=lambda _: time.sleep(next(pauses, 0)))
        lines = b"hello\n" * 2_000_000
        address = self.serve().server_address
        self.assertEqual(revecho.stream(io.BytesIO(lines), sink, *address, timeout=0.3), len(lines))

    def test_stream_into_a_raw_sink(self):
        """One that takes a part of what is written, and one that takes nothing now."""

        class Sink(io.RawIOBase):
            taken = b""

            def write(self, data):
                self.taken += data[:2]
                return min(len(data), 2)

        class FullSink(io.RawIOBase):
            def write(self, _):
                return None

        address, sink = self.serve().server_address[:2], Sink()
        self.assertEqual(revecho.stream(io.BytesIO(b"hello\nyou"), sink, *address), 9)
        self.assertEqual(sink.taken, b"olleh\nuoy")
        with self.assertRaises(BlockingIOError):
            revecho.stream(io.BytesIO(b"hello\n"), FullSink(), *address)

    def test_stream_of_a_source_that_pauses(self):
        """Longer than the timeout, between lines and within one; what there is goes at once."""
        server = self.serve()
        reading, writing = os.pipe()
        sink = queue.SimpleQueue()
        target = mock.Mock(write=sink.put)
        with open(reading, "rb") as source, open(writing, "wb", 0) as feed:
            thread = threading.Thread(
                target=lambda: sink.put(
                    revecho.stream(source, target, *server.server_address, timeout=0.2)
                )
            )
            thread.start()
            for part, answer in ((b"one\n", b"eno\n"), (b"tw", None), (b"o\nthree", b"owt\n")):
                feed.write(part)
                if answer:
                    self.assertEqual(sink.get(timeout=LIMIT), answer)
                if part != b"o\nthree":
                    time.sleep(0.3)
            feed.close()
            self.assertEqual(sink.get(timeout=LIMIT), b"eerht")
            self.assertEqual(sink.get(timeout=LIMIT), 13)
            thread.join(LIMIT)

    def test_stream_that_the_server_ends(self):
        for reply, message in (
            (b"", "^the connection ended; bytes left unanswered: 6$"),
            (b"oll", "^the connection ended; bytes left unanswered: 3, only 'oll' came$"),
            (b"olleh\nx", r"^more came than the reply: 'olleh\\nx'$"),
            (b"olleh!", r"^the connection ended; bytes left unanswered: 1, only 'olleh!' came$"),
            (b"x" * 100, r"^more came than the reply: 'x{40}'\.\.\.$"),
            (b"a\nb\nc\nd\n", r"^more came than the reply: 'a\\nb"),
            (b"error: no\n", "^error: no; bytes left unanswered: 6$"),
            (b"error: without an ending", "only 'error: without an ending' came$"),
        ):
            address = self.stack(other_server(answer_with(reply)))
            with self.assertRaisesRegex(revecho.ReplyError, message):
                self.stream(io.BytesIO(b"hello\n"), address)
        address = self.stack(other_server(lambda other: other.recv(1) and reset(other)))
        with self.assertRaisesRegex(revecho.ReplyError, "^the connection was reset; bytes left "):
            self.stream(io.BytesIO(b"hello\n" * 1_000_000), address)

    def test_stream_refused(self):
        """By an error shorter than the line, as long, and longer; whether it is finished or not."""
        address = self.serve(max_line=10).server_address
        for line in (b"x" * 11, b"x" * 31, b"x" * 32, b"x" * 33, b"x" * 100_000):
            for ending in (b"", b"\n"):
                # Of a long line a part may not have been sent when it comes.
                left = len(line + ending) if len(line) < 100 else r"\d+"
                with self.assertRaisesRegex(
                    revecho.ReplyError, f"^error: line longer than 10 bytes; .*: {left}$"
                ):
                    self.stream(io.BytesIO(b"hello\nyou\n" + line + ending), address)

    def test_stream_refused_in_pieces(self):
        """The error can come cut in two."""

        def serve(connection):
            receive(connection, 8)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"olleh\nerr")
            got.acquire()
            connection.sendall(b"or: no\n")

        got = threading.Semaphore(0)
        address = self.stack(other_server(serve))
        reading, writing = os.pipe()
        with (
            open(reading, "rb", 0) as source,
            open(writing, "wb", 0) as feed,
            self.assertRaisesRegex(revecho.ReplyError, "^error: no; bytes left unanswered: 2$"),
        ):
            feed.write(b"hello\nyo")
            revecho.stream(source, mock.Mock(write=lambda _: got.release()), *address)

    def test_stream_that_the_server_ends_while_the_source_pauses(self):
        reading, writing = os.pipe()
        address = self.stack(other_server(lambda _: None))
        with (
            open(reading, "rb", 0) as source,
            open(writing, "wb", 0),
            self.assertRaisesRegex(revecho.ReplyError, "^the connection ended before the input "),
        ):
            self.stream(source, address)

    def test_stream_to_a_server_that_does_not_read(self):
        """While a line without end is being sent no reply is owed, but there is a timeout."""

        class Source(io.RawIOBase):
            def read(self, size):
                return b"x" * size

        address = self.stack(other_server(lambda _: True))
        with self.assertRaisesRegex(TimeoutError, r"^no reply within 0\.2 s$"):
            self.stream(Source(), address, timeout=0.2)

    def test_stream_to_a_server_that_only_reads(self):
        """What is under way is bounded."""

        def serve(connection):
            while data := connection.recv(1 << 20):
                received.append(len(data))

        class Source(io.RawIOBase):
            def read(self, size):
                return b"hello\n" * (size // 6)

        received = []
        with (
            other_server(serve) as address,
            self.assertRaisesRegex(TimeoutError, r"^no reply within 0\.2 s$"),
        ):
            self.stream(Source(), address, timeout=0.2)
        self.assertLess(sum(received), 80_000_000)

    def test_stream_of_a_source_that_fails(self):
        address = self.serve(idle_timeout=0).server_address
        for error in (ZeroDivisionError, SystemExit, KeyboardInterrupt):

            class Source(io.BytesIO):
                def read1(self, _, error=error):
                    if data := super().read1(2):
                        return data
                    raise error

            with self.assertRaises(error):
                self.stream(Source(b"hello\nyou"), address)

        class SourceWithoutSize(io.BytesIO):
            def read1(self):
                return b""

        class NonBlockingSource(io.RawIOBase):
            def read(self, _):
                return None

        for source, error in (
            (io.StringIO("hello\n"), TypeError),
            (SourceWithoutSize(), TypeError),
            (object(), AttributeError),
            (NonBlockingSource(), BlockingIOError),
        ):
            with self.assertRaises(error):
                self.stream(source, address)

    def test_stream_into_a_sink_that_fails(self):
        threads, server = threading.active_count(), self.serve()
        for error in (ZeroDivisionError, KeyboardInterrupt):
            with self.assertRaises(error):
                sink = mock.Mock(write=mock.Mock(side_effect=error))
                revecho.stream(io.BytesIO(b"hello\n" * 10_000_000), sink, *server.server_address)
        server.server_close()
        self.assert_threads(threads)

    def test_stream_of_standard_input(self):
        """As the docstring says: the program ends though its input is silent."""
        code = (
            "import io, revecho, sys\n"
            "with open(0, 'rb', 0, closefd=False) as source:\n"
            "    revecho.stream(source, io.BytesIO(), sys.argv[1], int(sys.argv[2]))\n"
        )
        host, port = self.stack(other_server(lambda _: None))
        command = [sys.executable, "-W", "error", "-c", code, host, str(port)]
        with subprocess.Popen(
            command, cwd=HERE, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            self.assertIn(b"ReplyError: the connection ended", process.stderr.read())
            self.assertEqual(process.wait(LIMIT), 1)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def crowded_listener():
    """A listener that has no room for one more to wait; yields its address."""
    if not LINUX:
        raise unittest.SkipTest("elsewhere the listen queue has other limits")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()


class CommandLineCase(ServerCase):
    def run_revecho(self, *arguments, stdin=b"", **keywords):
        return subprocess.run(
            [sys.executable, *PROGRAM, *arguments],
            cwd=HERE,
            input=stdin,
            timeout=LIMIT,
            check=False,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **keywords},
        )

    def run_client(self, *arguments, port, **keywords):
        return self.run_revecho("client", "--port", str(port), *arguments, **keywords)

    def start_client(self, *arguments, port, command="client", **keywords):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, *PROGRAM, command, "--port", str(port), *arguments]
        client = self.stack(subprocess.Popen(command, cwd=HERE, **{**pipes, **keywords}))
        self.addCleanup(client.kill)
        return client

    def main(self, *arguments):
        """Run the command line in this process; return the status, the output and the errors."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = revecho.main([str(argument) for argument in arguments])
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def assert_done(self, done, stdout, status=0, stderr=rb"\A\Z"):
        self.assertRegex(done.stderr, stderr)
        self.assertEqual((done.stdout, done.returncode), (stdout, status))
        self.assertNotIn(b"Traceback", done.stderr)
        if status:
            self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)


class CommandLineTest(CommandLineCase):
    def test_messages(self):
        port = self.serve().server_address[1]
        done = self.run_client("hello", "", "two words", "añ", "--", "-n", port=port)
        self.assert_done(done, "olleh\n\nsdrow owt\nña\nn-\n".encode())
        strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
        done = self.run_client(b"\xff\xc3", "hi", port=port, env=strict)
        self.assert_done(done, b"\xc3\xff\nih\n")

    def test_ask(self):
        """The question goes to where a person sees it."""
        port = self.serve().server_address[1]
        question = b"Do you want to continue (y/n)? "
        clients = [
            (self.start_client("--ask", "ab", "cd", port=port), answers, times, count)
            for answers, times, count in (
                (b"y\nYes\nn\n", 3, 3),
                (b"maybe\n\nyes\nNO\ny\n", 2, 4),
                (b"n\n", 1, 1),
                (b"y\n", 2, 2),
            )
        ]
        for client, answers, times, count in clients:
            out, err = client.communicate(answers, LIMIT)
            self.assertEqual((out, client.returncode), (b"ba\ndc\n" * times, 0), answers)
            self.assertEqual(err.rstrip(b"\n"), question * count, answers)

    def test_filter(self):
        port = self.serve().server_address[1]
        lines = (
            b"".join(b"line %d\r\n \xc3\xa9\xff\n" % number for number in range(50_000)) + b"end"
        )
        self.assert_done(self.run_client(port=port, stdin=lines), revecho.reverse_lines(lines))
        self.assert_done(self.run_client(port=port, stdin=b""), b"")

    @unittest.skipUnless(
        LINUX and GIL and sys.implementation.name == "cpython",
        "needs /proc, and the allocator of CPython",
    )
    def test_filter_holds_what_is_under_way(self):
        """60 MB, checked or not."""
        port = self.serve().server_address[1]
        block = b"0123456789\n" * 100_000
        for options in ((), ("--check",)):
            client = self.start_client(*options, port=port)

            def feed(client=client):
                for _ in range(55):
                    client.stdin.write(block)

            feeder = threading.Thread(target=feed)
            feeder.start()
            count = 0
            while count < 55 * len(block):
                data = client.stdout.read(len(block))
                self.assertEqual(data, b"9876543210\n" * 100_000)
                count += len(data)
            self.assertLess(resident(client.pid), 60_000)
            feeder.join()
            client.stdin.close()
            self.assertEqual(client.wait(LIMIT), 0)

    def test_filter_is_live(self):
        port = self.serve().server_address[1]
        client = self.start_client(port=port)
        for line in (b"one\n", b"two\n"):
            client.stdin.write(line)
            client.stdin.flush()
            self.assertEqual(client.stdout.readline(), revecho.reverse_lines(line))

    @unittest.skipUnless(hasattr(os, "set_blocking"), "needs non-blocking pipes")
    def test_filter_of_input_that_does_not_wait(self):
        port = self.serve().server_address[1]
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with open(reading, "rb") as stdin, open(writing, "wb"):
            client = self.start_client(port=port, stdin=stdin)
            out, err = client.communicate(timeout=LIMIT)
        self.assertEqual((client.returncode, out), (1, b""))
        self.assertRegex(err, rb"\Arevecho: .*: the source has no input now\n\Z")

    def test_standard_output_closed_by_its_reader(self):
        port = self.serve().server_address[1]
        lines = b"hello\n" * 1_000_000
        for command, *arguments in (["client"], ["client", "a", "b", "c"], ["ping"]):
            reading, writing = os.pipe()
            os.close(reading)
            with open(writing, "wb") as stdout:
                done = self.run_revecho(
                    command, "--port", str(port), *arguments, stdin=lines, stdout=stdout
                )
            self.assertEqual((done.returncode, done.stderr), (0, b""), command)
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb") as stdout:  # a server has to say where it listens
            done = self.run_revecho("server", "--quiet", "--port", "0", stdout=stdout)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, rb"\Arevecho: 127\.0\.0\.1:0: Broken pipe\n\Z")

    @unittest.skipUnless(os.name == "posix", "needs a shell")
    def test_standard_streams_closed(self):
        """Whichever is closed there is no traceback, and no message goes astray."""
        port = self.serve().server_address[1]
        question = r"Do you want to continue \(y/n\)\? \n"
        none = r"revecho: 127\.0\.0\.1:\d+: "
        cases = [
            ("client --ask hi <&-", 0, "ih\n", question),
            ("client hi <&-", 0, "ih\n", ""),
            ("client <&-", 1, "", none + "standard input is closed\n"),
            ("client hi <&- 2>&-", 0, "ih\n", ""),
            ("client --ask hi <&- 2>&-", 0, "ih\n", ""),
            ("client --ask hi 2>&-", 0, "ih\n", ""),
            ("client --port 1 hi 2>&-", 1, "", ""),
            ("client --port 1 hi <&- 2>&-", 1, "", ""),
            ("client --port 0 hi 2>&-", 2, "", ""),
            ("client --port 0 hi <&- >&- 2>&-", 2, "", ""),
        ]
        for face in ("client hi", "client --ask hi", "client", "ping", "server --port 0"):
            cases += [(f"{face} >&-", 1, "", none + "standard output is closed\n")]
            cases += [(f"{face} <&- >&- 2>&-", 1, "", "")]
        started = []
        for case in cases:
            command = f'exec "$@" {case[0].partition(" ")[2]}'
            name = case[0].split()[0]
            defaults = [] if "--port" in case[0] else ["--port", str(port)]
            arguments = ["sh", "-c", command, "sh", sys.executable, *PROGRAM, name, *defaults]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen(
                arguments, cwd=HERE, stdin=subprocess.DEVNULL, text=True, **pipes
            )
            started.append((case, self.stack(process)))
        for (command, status, out, err), process in started:
            with self.subTest(command):
                shown = process.communicate(timeout=LIMIT)
                self.assertEqual((process.returncode, shown[0]), (status, out), shown)
                self.assertRegex(shown[1], rf"\A{err}\Z")

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_standard_output_full(self):
        port = self.serve().server_address[1]
        with open("/dev/full", "wb") as full:
            clients = [
                self.start_client(*arguments, port=port, command=command, stdout=full)
                for command, *arguments in (["client"], ["client", "a", "b"], ["ping"])
            ]
            for client in clients:
                _, err = client.communicate(b"hello\n", LIMIT)
                self.assertEqual(client.returncode, 1)
                self.assertRegex(err, rb"\Arevecho: .*: standard output: No space left .*\n\Z")

    def test_failures(self):
        port = free_port()
        for host, named in (
            ("127.0.0.1", r"127\.0\.0\.1"),
            ("::1", r"\[::1\]"),
            ("no.such.host.invalid", r"no\.such\.host\.invalid"),
            ("x" * 64, "x{64}"),
        ):
            status, out, err = self.main("client", "--host", host, "--port", port, "hello")
            self.assertEqual((status, out), (1, ""))
            self.assertRegex(err, rf"\Arevecho: {named}:{port}: not connected: .+\n\Z")
        done = self.run_client(port=port, stdin=b"hello\n")
        self.assert_done(done, b"", 1, b"revecho: 127.0.0.1:%d: not connected: " % port)
        with other_server(answer_with(b"error: no\n")) as (_, port):
            for arguments in (["hello"], []):
                done = self.run_client(*arguments, port=port, stdin=b"hello\n")
                done.stdout = b""
                self.assert_done(done, b"", 1, rb"\Arevecho: 127\.0\.0\.1:%d: error: no;" % port)

    def test_server_that_ends_while_standard_input_pauses(self):
        port = self.stack(other_server(lambda _: None))[1]
        client = self.start_client(port=port)
        self.assertEqual(client.wait(LIMIT), 1)
        self.assertRegex(
            client.stderr.read(), rb"\Arevecho: .*: the connection ended before the input did\n\Z"
        )

    def test_wrong_usage(self):
        """In the words of argparse, with what may be given."""
        whole, seconds = "is not a whole number from", "is not a number from 0 to 1000000"
        timeout = "is not a number from 0.001 to 1000000"
        for arguments, message in (
            ("client --port 65536 a", f"argument --port: '65536' {whole} 1 to 65535"),
            ("client --port 0 a", f"argument --port: '0' {whole} 1 to 65535"),
            ("client --port x a", f"argument --port: 'x' {whole} 1 to 65535"),
            ("client --timeout 0 a", f"argument --timeout: '0' {timeout}"),
            ("client --timeout nan a", f"argument --timeout: 'nan' {timeout}"),
            ("client --timeout inf a", f"argument --timeout: 'inf' {timeout}"),
            ("client --timeout x a", f"argument --timeout: 'x' {timeout}"),
            ("client --ask", "--ask needs a MESSAGE"),
            ("client a\nb", r"argument MESSAGE: 'a\nb': a line ending within the text"),
            ("ping --port 0", f"argument --port: '0' {whole} 1 to 65535"),
            ("ping --count 0", f"argument --count: '0' {whole} 1 to 1000000000"),
            ("ping --count 1.5", f"argument --count: '1.5' {whole} 1 to 1000000000"),
            ("ping --size 1", f"argument --size: '1' {whole} 2 to 1073741824"),
            ("ping --interval -1", f"argument --interval: '-1' {seconds}"),
            ("ping --timeout 1000001", f"argument --timeout: '1000001' {timeout}"),
            ("ping a", "unrecognized arguments: a"),
            ("server --port 65536", f"argument --port: '65536' {whole} 0 to 65535"),
            ("server --port -1", f"argument --port: '-1' {whole} 0 to 65535"),
            ("server --max-connections 0", f"argument --max-connections: '0' {whole} 1 to 1000000"),
            ("server --max-line 0", f"argument --max-line: '0' {whole} 1 to 1073741824"),
            ("server --max-line 99999999999", f"'99999999999' {whole} 1 to 1073741824"),
            ("server --idle-timeout -1", f"argument --idle-timeout: '-1' {seconds}"),
            ("server --grace nan", f"argument --grace: 'nan' {seconds}"),
            ("server --grace inf", f"argument --grace: 'inf' {seconds}"),
            ("server -q -v", "not allowed with argument -q/--quiet"),
            ("server extra", "unrecognized arguments: extra"),
            ("client --no-such-option", "unrecognized arguments: --no-such-option"),
        ):
            with self.subTest(arguments):
                status, out, err = self.main(*arguments.split(" "))
                self.assertEqual((status, out), (2, ""))
                self.assertRegex(err, f"error: .*{re.escape(message)}\n\\Z")
        self.assertEqual(self.run_client("--ask", port=1).returncode, 2)

    def test_the_last_port_and_the_longest_timeout(self):
        port = self.serve().server_address[1]
        status, out, _ = self.main("client", "--port", port, "--timeout", "1000000", "hello")
        self.assertEqual((status, out), (0, "olleh\n"))
        for command in ("client", "ping"):
            status, out, err = self.main(command, "--help")
            self.assertEqual((status, err), (0, ""))
            self.assertRegex(out, r"(?s)--timeout SECONDS.*\(default:\s+10\)")
        self.assertNotEqual(self.main("client", "--port", "65535", "hello")[0], 2)

    def test_interrupt(self):
        for arguments in (["hello"], []):
            received = threading.Event()

            def serve(connection, received=received):
                connection.recv(6)
                received.set()
                return True  # and the client waits for the reply

            port = self.stack(other_server(serve))[1]
            client = self.start_client(*arguments, port=port)
            client.stdin.write(b"hello\n")
            client.stdin.flush()
            received.wait(LIMIT)
            client.send_signal(signal.SIGINT)
            self.assertEqual(client.wait(LIMIT), 130)
            self.assertEqual(client.stderr.read(), b"")

    def test_server_failures(self):
        port = str(self.serve().server_address[1])
        for arguments, status, why in (
            (["--port", port], 1, b"revecho: 127.0.0.1:%s: .*in use" % port.encode()),
            (["--port", "0", "--host", "no.such.host.invalid"], 1, rb"revecho: no\.such\.host"),
        ):
            self.assert_done(self.run_revecho("server", *arguments), b"", status, why)

    def test_version_and_help(self):
        done = self.run_revecho("--version")
        self.assert_done(done, b"revecho %s\n" % revecho.__version__.encode())
        done = self.run_revecho("server", "--help")
        for option in (
            b"--max-connections",
            b"--max-line",
            b"--idle-timeout",
            b"--grace",
            b"--host",
            b"--reuse-port",
            b"--port",
            b"65536",
            b"1000",
            b"2002",
            b"127.0.0.1",
        ):
            self.assertIn(option, done.stdout)

    def test_server_log(self):
        lines = "listening on A", "A connected", "A gone .*6 bytes answered", "stopping", "stopped"
        line = r"\d+-\d\d-\d\d \d\d:\d\d:\S+ INFO %s\n"
        lines = "".join(line % text.replace("A", r"127\.0\.0\.1:\d+") for text in lines)
        for options, expected in (
            ([], rf"\A{lines}\Z"),
            (["--quiet"], r"\A\Z"),
            (["-q"], r"\A\Z"),
            (["-v"], "(?s)Thread-.* started.*connected.*gone"),
        ):
            with running_process(*options, stderr=subprocess.PIPE) as (process, address):
                self.assertEqual(revecho.request("hello", *address), "olleh")
                log = ""
                while "-q" not in "".join(options) and "gone" not in log:
                    log += process.stderr.readline()
                process.terminate()
                self.assertEqual(process.wait(LIMIT), 0)
                self.assertRegex(log + process.stderr.read(), expected)
                self.assertEqual(process.stdout.read(), "")

    def test_server_on_ipv6(self):
        with running_process("--host", "::1") as (_, address):
            if not address[1]:
                self.skipTest("no IPv6 here")
            self.assertEqual(address[0], "::1")
            done = self.run_client("--host", "::1", "hello", port=address[1])
            self.assert_done(done, b"olleh\n")

    def test_server_with_a_broken_listener(self):
        program = """if True:
            import socket, sys
            import revecho
            class Broken(revecho.ReverseServer):
                def server_activate(self):
                    super().server_activate()
                    self.socket.shutdown(socket.SHUT_RDWR)
            revecho.ReverseServer = Broken
            sys.exit(revecho.main(["server", "--port", "0", "-q"]))
        """
        command = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(command, cwd=HERE, capture_output=True, timeout=LIMIT, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, rb"\Arevecho: 127\.0\.0\.1:0: [^\n]+\n\Z")

    @unittest.skipUnless(hasattr(socket, "SO_REUSEPORT") and LINUX, "needs SO_REUSEPORT")
    def test_reuse_port(self):
        with running_process("--reuse-port", stderr=subprocess.PIPE) as (one, address):
            port = str(address[1])
            with running_process("--reuse-port", "--port", port, stderr=subprocess.PIPE) as (
                two,
                _,
            ):
                for _ in range(50):
                    self.assertEqual(revecho.request("hello", *address), "olleh")
                for process in (one, two):
                    process.terminate()
                    self.assertIn("connected", process.stderr.read())


class CheckTest(CommandLineCase):
    """client --check"""

    def test_good_path(self):
        port = self.serve().server_address[1]
        status, out, err = self.main("client", "--check", "--port", port, "\ra", "né", "level")
        self.assertEqual((status, out, err), (0, "a\r\nén\nlevel\n", ""))
        lines = b"".join(b"line %d\r\n \xc3\xa9\xff\n" % number for number in range(20_000))
        endings = (b"", b"end", b" :rorre", b"\r")
        clients = [self.start_client("--check", port=port) for _ in endings]
        for ending, client in zip(endings, clients):
            out, err = client.communicate(lines + ending, LIMIT)
            self.assertEqual((out, err), (revecho.reverse_lines(lines + ending), b""))
            self.assertEqual(client.returncode, 0)

    def test_messages(self):
        for serve, timeout, message in bad_paths(self.serve()):
            port = self.stack(other_server(serve))[1]
            arguments = ("--port", port, "--timeout", timeout, "hello")
            with self.subTest(message):
                status, _, err = self.main("client", "--check", *arguments)
                self.assertEqual(status, 1)
                self.assertRegex(err, rf"\Arevecho: 127\.0\.0\.1:{port}: .*{message}.*\n\Z")

    def test_filter(self):
        """The first line on which the reply differs, and all before it are printed."""
        server = self.serve()

        def wrong(number, change):  # the reply to one line of many
            def back(replies):
                lines = replies.splitlines(True)
                lines[number - 1] = change(lines[number - 1])
                return b"".join(lines)

            return relay(server, back=back)

        lines = b"".join(b"line %d\n" % number for number in range(1, 10))
        cases = []
        for serve, message in (
            (wrong(1, flip), "not the reverse at byte 1, line 1: "),
            (wrong(3, flip), r"not the reverse at byte 15, line 3: '2 enil\\n' came, '3 enil\\n' "),
            (wrong(9, lambda _: b"9 enix\n"), "not the reverse at byte 62, line 9: "),
            (wrong(2, lambda _: b"line 2\n"), "an echo at byte 8, line 2: 'line 2"),
            (wrong(2, lambda _: b"2 eni\nl"), "not the reverse at byte 13, line 2: "),
            (wrong(2, lambda _: b""), "not the reverse at byte 8, line 2: '3 enil"),
            (wrong(9, lambda _: b"error: no\n"), "error: no; bytes left unanswered: 7"),
            (relay(server, there=flip), "not the reverse at byte 6, line 1: "),
            (mirror, "an echo at byte 1, line 1: 'line 1"),
            (answer_with(b"0" * 1000), "more came than the reply: '00000"),
            (answer_with(b"0" * 10), "the connection ended; .*: 53, only '0{10}' came"),
        ):
            port = self.stack(other_server(serve))[1]
            client = self.start_client("--check", "--timeout", "5", port=port)
            cases.append((port, client, message))
        for port, client, message in cases:
            with self.subTest(message):
                _, err = client.communicate(lines, LIMIT)
                self.assertEqual(client.returncode, 1)
                self.assertRegex(
                    err.decode(), rf"\Arevecho: 127\.0\.0\.1:{port}: {message}.*\n\Z"
                )

    def test_filter_counts_from_the_beginning(self):
        def serve(connection):
            connection.sendall(revecho.reverse_lines(receive(connection, 10)))
            mirror(connection)

        port = self.stack(other_server(serve))[1]
        client = self.start_client("--check", port=port)
        client.stdin.write(b"hello\nyou\n")
        client.stdin.flush()
        self.assertEqual(client.stdout.read(10), b"olleh\nuoy\n")
        client.stdin.write(b"again\n")
        client.stdin.flush()
        self.assertEqual(client.wait(LIMIT), 1)
        self.assertRegex(client.stderr.read(), rb": an echo at byte 11, line 3: 'again\\n' came")

    def test_filter_of_a_line_that_is_not_finished(self):
        """What comes back before the line has been sent is no reply."""
        port = self.stack(other_server(mirror))[1]
        client = self.start_client("--check", port=port)
        client.stdin.write(b"hel")
        client.stdin.flush()
        self.assertEqual(client.wait(LIMIT), 1)
        self.assertRegex(client.stderr.read(), rb"more came than the reply: 'hel'\n\Z")
        with other_server(lambda it: receive(it) and it.sendall(b"hello")) as (_, port):
            done = self.run_client("--check", port=port, stdin=b"hello")
        self.assert_done(done, b"hello", 1, b"an echo at byte 1, line 1: 'hello' came, 'olleh' ")
        with other_server(lambda it: receive(it) and it.sendall(b"olleh\n")) as (_, port):
            done = self.run_client("--check", port=port, stdin=b"hello")
        why = rb"not the reverse at byte 6, line 1: 'olleh\\n' came, 'olleh' should"
        self.assert_done(done, b"olleh\n", 1, why)


class PingTest(CommandLineCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))

    def ping(self, port, *options):
        return self.main("ping", "--port", port, "--interval", "0", *options)

    def test_good_path(self):
        port = self.serve().server_address[1]
        for options, size in (((), 64), (("--size", "2"), 2), (("--size", "65536"), 65536)):
            status, out, err = self.ping(port, "--count", "3", *options)
            self.assertEqual((status, err), (0, ""))
            probes = "".join(
                rf"127\.0\.0\.1:{port}: seq={number} {size} bytes reversed, "
                r"connect=\d+\.\d\d ms reply=\d+\.\d\d ms\n"
                for number in (1, 2, 3)
            )
            three = r"\d+\.\d\d/\d+\.\d\d/\d+\.\d\d ms\n"
            self.assertRegex(
                out,
                rf"\A{probes}\n--- 127\.0\.0\.1:{port} ---\n3 sent, 3 reversed, 0 failed\n"
                rf"connect min/median/max = {three}reply min/median/max = {three}\Z",
            )

    def test_each_line_is_another(self):
        lines = []

        class Handler(revecho.ReverseHandler):
            def respond(self, received):
                lines.append(received)
                return super().respond(received)

        port = self.serve(Handler).server_address[1]
        self.assertEqual(self.ping(port, "--count", "50", "--size", "2")[0], 0)
        for line in lines:
            self.assertRegex(line, rb"\A[!-~]{2}\n\Z")
            self.assertNotEqual(line[0], line[1])
        self.assertGreater(len(set(lines)), 25)

    def test_slow_path(self):
        def slow(reply):
            time.sleep(0.1)
            return reply

        port = self.stack(other_server(relay(self.serve(), back=slow)))[1]
        status, out, _ = self.ping(port, "--count", "1")
        connect, reply = map(float, re.search("connect=(.*) ms reply=(.*) ms", out).groups())
        self.assertEqual(status, 0)
        self.assertGreaterEqual(reply, 100)
        self.assertLess(connect, reply)

    def test_bad_paths(self):
        limited = self.serve(max_line=63)
        cases = (
            *bad_paths(self.serve()),
            (relay(limited), LIMIT, "error: line longer than 63 bytes; bytes left unanswered: 65"),
            (relay(self.serve(), back=lambda it: it + b"x"), LIMIT, "more than one line came: "),
        )
        for serve, timeout, message in cases:
            port = self.stack(other_server(serve))[1]
            with self.subTest(message):
                status, out, err = self.ping(port, "--count", "1", "--timeout", timeout)
                self.assertEqual((status, err), (1, ""))
                self.assertRegex(
                    out,
                    rf"\A127\.0\.0\.1:{port}: seq=1 failed: .*{message}.*\n\n---.*\n"
                    r"1 sent, 0 reversed, 1 failed\n\Z",
                )

    def test_nobody_listens(self):
        for options in ((), ("--host", "no.such.host.invalid"), ("--host", "x" * 64)):
            status, out, err = self.ping(free_port(), "--count", "2", *options)
            self.assertEqual((status, err), (1, ""))
            self.assertRegex(out, r"seq=2 failed: not connected: .*\n\n.*\n2 sent, 0 reversed")

    def test_full_server(self):
        server = self.serve(max_connections=1)
        first = self.connect(server, b"hello\n")
        receive(first, 6)
        once = ("--count", "1", "--timeout", "0.05")
        _, out, _ = self.ping(server.server_address[1], *once)
        self.assertIn("seq=1 failed: no reply within 0.05 s\n", out)
        first.close()
        self.assertEqual(self.ping(server.server_address[1], "--count", "1")[0], 0)
        _, out, _ = self.ping(self.stack(crowded_listener())[1], *once)
        self.assertIn("seq=1 failed: not connected within 0.05 s\n", out)

    def test_a_failure_does_not_end_it(self):
        good = relay(self.serve())
        port = self.stack(other_server(by_turns(good, mirror, good, good)))[1]
        status, out, _ = self.ping(port, "--count", "4")
        self.assertEqual(status, 1)
        self.assertEqual(re.findall(r"seq=(\d) (\w+)", out)[1], ("2", "failed"))
        self.assertIn("4 sent, 3 reversed, 1 failed\n", out)

    def test_signals(self):
        """A probe that is under way does not count."""
        for number in (signal.SIGINT, signal.SIGTERM):
            waiting = threading.Event()

            def wait(connection, waiting=waiting):
                return connection.recv(1) and not waiting.set()

            port = self.stack(other_server(by_turns(relay(self.serve()), wait)))[1]
            client = self.start_client("--interval", "0.001", port=port, command="ping")
            self.assertRegex(client.stdout.readline(), rb"seq=1 64 bytes reversed")  # at once
            waiting.wait(LIMIT)
            client.send_signal(number)
            out, err = client.communicate(timeout=LIMIT)
            self.assertRegex(out, rb"\A\n--- .*\n1 sent, 1 reversed, 0 failed\n")
            self.assertEqual((client.returncode, err), (0, b""))

    def test_signal_before_anything_came_back(self):
        waiting = threading.Event()
        port = self.stack(other_server(lambda it: it.recv(1) and not waiting.set()))[1]
        client = self.start_client(port=port, command="ping")
        waiting.wait(LIMIT)
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=LIMIT)
        self.assertRegex(out, rb"\A\n--- .*\n0 sent, 0 reversed, 0 failed\n\Z")
        self.assertEqual((client.returncode, err), (1, b""))

    def test_interval(self):
        port = self.serve().server_address[1]
        start = time.monotonic()
        self.assertEqual(self.ping(port, "--count", "3", "--interval", "0.1")[0], 0)
        self.assertGreaterEqual(time.monotonic() - start, 0.2)


class PromptTest(ServerCase):
    """The client at a terminal."""

    def start(self, *arguments, before=(), **keywords):
        ours, theirs = pty.openpty()
        files = {"stdin": theirs, "stdout": theirs, "stderr": theirs, **keywords}
        client = self.stack(
            subprocess.Popen(
                [*before, sys.executable, *PROGRAM, "client", *arguments],
                cwd=HERE,
                start_new_session=True,
                env={**os.environ, "TERM": "dumb"},
                **files,
            )
        )
        self.addCleanup(client.kill)
        os.close(theirs)
        self.terminal = self.stack(open(ours, "r+b", 0))  # noqa: SIM115
        return client

    def expect(self, text):
        """Read until *text* has come; return what came up to its end."""
        shown = b""
        while text not in shown:
            self.assertTrue(select.select([self.terminal], [], [], LIMIT)[0], shown)
            shown += self.terminal.read(1)
        return shown

    def type(self, line):
        self.terminal.write(line + b"\n")
        self.expect(line + b"\r\n")

    def rest(self):
        shown = b""
        with contextlib.suppress(OSError):  # EIO is the end
            while select.select([self.terminal], [], [], LIMIT)[0]:
                data = self.terminal.read(1000)
                if not data:
                    break
                shown += data
        return shown.replace(b"\r", b"")

    def test_lines(self):
        server = self.serve()
        client = self.start("--port", str(server.server_address[1]))
        for typed, shown in (
            (b"hello", b"olleh\r\n"),
            (b"", b"\r\n"),
            ("añ".encode(), "ña\r\n".encode()),
        ):
            self.expect(b"> ")
            self.type(typed)
            self.expect(shown)
        self.expect(b"> ")
        self.terminal.write(b"\x04")
        self.assertEqual(self.rest(), b"\n")
        self.assertEqual(client.wait(LIMIT), 0)

    def test_a_line_that_fails(self):
        """It is told in one line, and the prompt goes on; with --check it ends."""
        server = self.serve(max_line=10)
        paths = by_turns(lambda _: None, relay(server), relay(server), mirror)
        port = self.stack(other_server(paths))[1]
        client = self.start("--check", "--port", str(port))
        self.expect(b"> ")
        for typed, shown in (
            (b"x" * 11, b"error: line longer than 10 bytes; bytes left unanswered: 12\r\n"),
            (b"hello", b"olleh\r\n"),
        ):
            self.type(typed)
            self.expect(shown)
            self.expect(b"> ")
        self.type(b"hello")
        self.assertRegex(self.rest(), rb"\Ahello\nrevecho: .*: an echo at byte 1: .*\n\Z")
        self.assertEqual(client.wait(LIMIT), 1)

    def test_interrupt(self):
        for arguments in ((), ("--ask", "hello")):
            client = self.start("--port", str(self.serve().server_address[1]), *arguments)
            self.expect(b"? " if arguments else b"> ")
            client.send_signal(signal.SIGINT)
            while not select.select([self.terminal], [], [], 0.5)[0]:
                client.send_signal(signal.SIGINT)  # readline can miss one just after its prompt
            self.assertEqual(self.rest(), b"\n")
            self.assertEqual(client.wait(LIMIT), 130)

    def test_nobody_listens(self):
        port = free_port()
        client = self.start("--port", str(port))
        self.assertRegex(self.rest(), rb"\Arevecho: 127.0.0.1:%d: not connected: .*\n\Z" % port)
        self.assertEqual(client.wait(LIMIT), 1)

    def test_standard_output_in_a_file(self):
        """Then it is a filter, and the question of --ask goes to standard error."""
        port = str(self.serve().server_address[1])
        client = self.start("--port", port, stdout=subprocess.PIPE)
        self.type(b"hello")
        self.assertEqual(client.stdout.readline(), b"olleh\n")
        self.terminal.write(b"\x04")
        self.assertEqual((client.stdout.read(), client.wait(LIMIT)), (b"", 0))
        self.assertEqual(self.rest(), b"")
        client = self.start("--port", port, "--ask", "hello", stdout=subprocess.PIPE)
        self.expect(b"(y/n)? ")
        self.type(b"n")
        self.assertEqual((client.stdout.read(), client.wait(LIMIT)), (b"olleh\n", 0))

    def test_standard_input_of_another_program(self):
        client = self.start("--port", str(self.serve().server_address[1]), stdin=subprocess.PIPE)
        client.stdin.write(b"hello\n")
        client.stdin.close()
        self.assertEqual((self.rest(), client.wait(LIMIT)), (b"olleh\n", 0))

    def test_standard_error_closed(self):
        """A prompt like any other."""
        port = str(self.serve().server_address[1])
        client = self.start("--port", port, before=("sh", "-c", 'exec "$@" 2>&-', "sh"))
        self.expect(b"> ")
        self.type(b"hello")
        self.expect(b"olleh\r\n")
        self.expect(b"> ")
        self.terminal.write(b"\x04")
        self.rest()
        self.assertEqual(client.wait(LIMIT), 0)


def netcat():
    """What the `nc` of this machine says of itself; there are several."""
    with contextlib.suppress(OSError):
        return subprocess.run(["nc", "-h"], capture_output=True, text=True, check=False).stderr
    return ""


class DocumentationTest(ServerCase):
    def test_docstrings(self):
        results = doctest.testmod(revecho)
        self.assertEqual((results.failed, results.attempted > 6), (0, True))

    def test_readme_python(self):
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        examples = "\n".join(re.findall(r"```python\n(>>>.*?)```", readme, re.DOTALL))
        test = doctest.DocTestParser().get_doctest(
            examples, vars(revecho).copy(), "README", None, 0
        )
        runner = doctest.DocTestRunner()
        runner.run(test)
        self.assertEqual(runner.failures, 0)
        self.assertGreater(runner.tries, 4)
        for program in re.findall(r"```python\n([^>].*?)```", readme, re.DOTALL):
            compile(program, "README", "exec")

    def test_readme_commands(self):
        """Every command in the README whose output it shows; the port is one of ours."""
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        port = self.serve().server_address[1]
        count = 0
        blocks = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
        for shown, output in re.findall(
            r"^\$ (.*)\n((?:[^$\n].*\n)*)", "".join(blocks), re.MULTILINE
        ):
            if not output or not re.search("revecho.py client|nc -N", shown):
                continue
            if "nc " in shown and "OpenBSD" not in netcat():
                continue
            command = re.sub(r"revecho\.py client", rf"\g<0> --port {port}", shown)
            command = re.sub(r"\b2002\b", str(port), command)
            done = subprocess.run(
                re.sub(r"\bpython\b", sys.executable, command),
                shell=True,
                cwd=HERE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                encoding="utf-8",
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                timeout=LIMIT,
            )
            self.assertEqual(done.stdout, output, command)
            count += 1
        self.assertGreater(count, 2)

    def test_names(self):
        for name in revecho.__all__:
            self.assertTrue(hasattr(revecho, name))
            if name not in ("HOST", "PORT"):
                self.assertTrue(getattr(revecho, name).__doc__, name)

    def test_one_file_is_enough(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(HERE / "revecho.py", folder)
            code = f"""if True:
                import logging, sys, threading
                sys.path.insert(0, {folder!r})
                import revecho
                assert not logging.getLogger().handlers
                assert not logging.getLogger("revecho").handlers
                assert threading.active_count() == 1
                with revecho.running_server() as server:
                    print(revecho.request("hello", *server.server_address))
            """
            done = subprocess.run(
                [sys.executable, "-I", "-W", "error", "-c", code], capture_output=True, check=False
            )
            self.assertEqual((done.stdout, done.stderr), (b"olleh\n", b""))


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
PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {}
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
        while time.perf_counter() < deadline:
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


def pin(which):
    """Run this process, and those it starts, on the first or the last processor."""
    with contextlib.suppress(AttributeError):  # not every system can
        os.sched_setaffinity(0, {sorted(PROCESSORS)[which]})


def bench(rounds=9, seconds=0.5):
    pin(0)
    programs = {
        "revecho": ("revecho.py", "server", "--quiet", "--port", "0"),
        "socketserver": ("-c", RECIPE),
        "asyncio": ("-c", STREAMS),
    }
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(running_process(program=program, command=()))
            for name, program in programs.items()
        }
        pin(-1)
        print(f"{'':40}{'lines/s':>12}{'us/line':>10}{'ratio':>8}")
        for cell, (count, batch, fresh) in CELLS.items():
            rows = {name: [] for name in servers}
            for _ in range(rounds):
                for name in random.sample(list(servers), len(servers)):
                    process, address = servers[name]
                    before = processor_seconds(process.pid)
                    done = drive(address, count, batch, fresh, seconds)
                    used = processor_seconds(process.pid) - before
                    rows[name].append((done / seconds, used / done * 1e6))
            print(cell)
            for name, row in rows.items():
                rate = statistics.median(rate for rate, _ in row)
                cost = statistics.median(cost for _, cost in row)
                ratio = statistics.median(
                    one / (own or 1e-9) for (_, one), (_, own) in zip(row, rows["revecho"])
                )
                print(f"    {name:36}{rate:12.0f}{cost:10.2f}{ratio:8.2f}")


if __name__ == "__main__":
    bench() if sys.argv[1:] == ["bench"] else unittest.main()
