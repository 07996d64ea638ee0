"""Tests of revecho: real sockets, real threads, real processes.  Run by `make test`."""

import contextlib
import doctest
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
import tempfile
import threading
import time
import unicodedata
import unittest
from unittest import mock

import revecho

HERE = pathlib.Path(__file__).resolve().parent

LIMIT = 30  # seconds after which something hangs; no test takes nearly as long
LINUX = sys.platform == "linux"


def until(condition):
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + LIMIT
    while not (result := condition()):
        if time.monotonic() > deadline:
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


def readable(connection):
    return bool(select.select([connection], [], [], 0)[0])


@contextlib.contextmanager
def running_process(
    *options, program=("-W", "error", "revecho.py"), command=("server", "--port", "0"), **keywords
):
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
    """Processor time that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """Memory of a process in KiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", status)[1])


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
            self.assertEqual(re.findall(b"\r?\n", answer)[:0], [])
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
    "Control": "\0\x1b\xad\u200b\u2028\u2060\udc80\U000e0001",
    "Extend": "\u0300\u0301\u0489\u05b0\u0e34\u200c\u20dd\ufe0f\U0001f3fd\U000e0041\U00010a0f",
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
    "Consonant": "\u0915\u0937\u0995\u0a95\u0b15\u0c15\u0d15",
    "Linker": "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d",
    "Other": "aé日я\u05d0\u102b\U0001d4d0",
}


def clusters(text):
    """The grapheme clusters of a text, by the pattern for Pythons before 3.15."""
    found = []
    for others, cluster in revecho._clusters().findall(text):
        found += [*others, *([cluster] if cluster else [])]
    return found


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
            "Devanagari": "हि|न्दी",
            "Devanagari conjunct": "क्ष|त्रि|य",
            "Bengali": "বা|ং|লা".replace("|ং", "ং"),
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
            "Burmese": "မြ|န်|မာ".replace("မာ", "မ|ာ"),
            "Tibetan": "བོ|ད",
            "Hangul": "한|글",
            "Hangul jamo": "\u1112\u1161\u11ab|\u1100\u1173\u11af",
            "Hangul syllable and jamo": "가\u11a8|나",
            "Japanese": "は\u3099|な|カ\u3099",
            "Chinese": "漢|字",
            "flags": "🇩🇪|🇫🇷|🇯🇵",
            "odd flags": "🇩🇪|🇫",
            "flag of Wales": "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f|x",
            "skin tone": "👍🏽|👍",
            "family": "👨\u200d👩\u200d👧\u200d👦|x",
            "heart on fire": "❤\ufe0f\u200d🔥",
            "rainbow flag": "🏳\ufe0f\u200d🌈|🏳\ufe0f",
            "keycap": "1\ufe0f\u20e3|2",
            "emoji without joiner": "👨|👩",
            "joiner without emoji": "a\u200d|b",
            "control": "a|\u200b|\u0301|b",
            "CR LF": "a|\r\n|b",
            "CR": "a|\r|\r\n|\n|b",
        }.items():
            with self.subTest(script):
                self.assertEqual(
                    revecho.reverse_text(word.replace("|", "")), "".join(reversed(word.split("|")))
                )
                self.assertEqual(clusters(word.replace("|", "")), word.split("|"))

    def test_all_that_can_join_is_asked_for(self):
        joining = {"Mn", "Me", "Mc"}
        for char in map(chr, range(0x110000)):
            if unicodedata.category(char) in joining:
                self.assertTrue(revecho._JOINING.match(char), hex(ord(char)))
        for name, chars in CLASSES.items():
            if name not in ("Other", "Control", "LF", "Pictogram", "LV", "LVT"):
                for char in chars:
                    self.assertTrue(revecho._JOINING.match(char), hex(ord(char)))
        for text in ("naïve", "Ελληνικά", "Русский", "日本語、カタカナ", "漢字。", "한글", "“…”—€"):
            self.assertFalse(revecho._JOINING.search(text), text)

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
            self.assertNotIn("", parts)
            backwards = revecho.reverse_text(text)
            self.assertEqual(sorted(backwards), sorted(text))
            self.assertEqual(clusters(text), [part for each in parts for part in clusters(each)])
            data = text.encode("utf-8", "surrogateescape")
            answer = revecho.reverse_lines(data)
            self.assertEqual(len(answer), len(data))
            self.assertEqual(answer.count(b"\n"), data.count(b"\n"))

    @unittest.skipUnless(hasattr(unicodedata, "iter_graphemes"), "needs Python 3.15")
    def test_agreement_with_unicodedata(self):
        differ = total = 0
        for text in self.random_texts():
            if not re.search("[\ud800-\udfff]", text):
                total += 1
                differ += clusters(text) != list(map(str, unicodedata.iter_graphemes(text)))
                self.assertEqual(revecho.reverse_text(text), "".join(reversed(clusters(text))))
        self.assertEqual((differ, total > 6000), (0, True))

    def test_undecodable_bytes_join_nothing(self):
        self.assertEqual(revecho.reverse_text("a\udcff\u0301b"), "b\u0301\udcffa")
        line = b"a\xff\xcc\x81b\n"
        self.assertEqual(revecho.reverse_lines(line), b"b\xcc\x81\xffa\n")

    def test_time_is_in_proportion_to_length(self):
        def seconds(text):
            best = LIMIT
            for _ in range(5):
                started = time.perf_counter()
                revecho.reverse_text(text)
                best = min(best, time.perf_counter() - started)
            return best

        for unit in (
            "\u0301",
            "\U0001f1e9",
            "\u200d",
            "\u094d",
            "\u0915\u094d",
            "\u0915\u0301",
            "\u0600",
            "\u1100",
            "\u1161",
            "\U0001f468\u200d",
            "\U0001f468\u0301",
            "\U000e0041",
            "\r",
            "\u200b",
            "\U0001f468\U000e0041",
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
                n = 20_000 // len(unit)
                ratio = seconds(start + unit * 4 * n + end) / seconds(start + unit * n + end)
                self.assertLess(ratio, 10, ascii(start + unit + end))  # 16 if it were quadratic


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
    except ConnectionRefusedError:
        return False
    return True


@contextlib.contextmanager
def other_server(serve):
    """A server of one connection that does what *serve* does with it; yields its address.

    Where *serve* returns true the connection is kept open to the end.
    """
    end = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.settimeout(LIMIT)
                if serve(connection):
                    end.wait(LIMIT)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            end.set()
            thread.join(LIMIT)


def answer_with(reply):
    """For other_server(): one answer to whatever comes first, then the end."""

    def serve(connection):
        connection.recv(65536)
        connection.sendall(reply)

    return serve


def never_answer(connection):
    return connection.recv(65536) or True


def netcat():
    """What the `nc` of this machine says of itself; there are several."""
    with contextlib.suppress(OSError):
        return subprocess.run(["nc", "-h"], capture_output=True, text=True, check=False).stderr
    return ""


if __name__ == "__main__":
    unittest.main()
