# SPDX-License-Identifier: 0BSD
"""revecho: a threaded TCP server that answers every line with its reverse, and a client for it."""

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
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable

__all__ = ["HOST", "PORT", "reverse_lines", "reverse_text"]
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
    if sys.version_info >= (3, 15):
        # A surrogate stands for a byte that is not UTF-8, and nothing joins it.
        parts = re.split("([\ud800-\udfff])", text)
        clusters = [str(cluster) for part in parts for cluster in unicodedata.iter_graphemes(part)]
        return "".join(reversed(clusters))
    pairs = _clusters().findall(text)
    return "".join([cluster + others[::-1] for others, cluster in reversed(pairs)])


@functools.cache
def _clusters() -> re.Pattern[str]:
    """Compile a pattern of two groups: characters that join no other, and the cluster after them.

    The rules are those of UAX #29, table 1c; Python 3.15 has them in unicodedata.
    """
    by_category: dict[str, list[str]] = collections.defaultdict(list)
    for char in map(chr, itertools.chain(range(0x20000), range(0xE0000, 0xE1000))):
        by_category[unicodedata.category(char)].append(char)

    def pick(*categories: str, but: str = "\0") -> str:
        chars = "".join(char for category in categories for char in by_category[category])
        return "".join(re.findall(f"[^{but}]", chars))

    def split(chars: str) -> tuple[str, str]:
        """Return those up to U+FFFF, and a pattern for the others, which asks coarsely first."""
        low, above = re.findall("[\0-\uffff]", chars), sorted(re.findall("[^\0-\uffff]", chars))
        runs = itertools.groupby(enumerate(above), lambda pair: pair[0] - ord(pair[1]))
        ranges = [[char for _, char in run] for _, run in runs]
        fine = "".join(f"{run[0]}-{run[-1]}" for run in ranges)
        return "".join(low), f"[{high}](?<=[{fine}])"

    # Above U+FFFF, but for pictograms, mathematical letters and Han, of which there is much text.
    high = "\U00010000-\U0001d3ff\U0001d800-\U0001efff\U0001f3fb-\U0001f3ff\U000e0000-\U0010ffff"
    flag = "\U0001f1e6-\U0001f1ff"
    tags = "".join(map(chr, range(0xE0020, 0xE0080)))
    tones = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
    prepend = "\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e"
    high_prepend = (
        "\U000110bd\U000110cd\U000111c2\U000111c3\U000113d1\U0001193f\U00011941"
        "\U00011a84-\U00011a89\U00011d46\U00011f02"
    )
    not_spacing = (
        "\u102b\u102c\u1038\u1062-\u1064\u1067-\u106d\u1083\u1087-\u108c\u108f\u109a-\u109c\u1a61"
        "\u1a63\u1a64\uaa7b\uaa7d\U00011720\U00011721"
    )
    extending = pick("Mn", "Me") + tags + tones + "\u200c\uff9e\uff9f"
    extend, high_extend = split(extending)
    join, high_join = split(extending + pick("Mc", but=not_spacing) + "\u200d\u0e33\u0eb3")
    control, high_control = split(
        pick("Cc", "Cf", "Cs", "Zl", "Zp", but=f"\u200c\u200d{tags}{prepend}{high_prepend}")
    )
    jamo_l, jamo_t = "\u1100-\u115f\ua960-\ua97c", "\u11a8-\u11ff\ud7cb-\ud7fb"
    jamo_v = "\u1160-\u11a7\ud7b0-\ud7c6"
    vowel = f"[{jamo_v}\U00016d63\U00016d67-\U00016d6a]"  # those above U+FFFF are Kirat Rai
    lv = "".join(map(chr, range(0xAC00, 0xD7A4, 28)))
    linker = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d"
    no_linker = "".join(re.findall(f"[^{linker}]", extend))
    consonant = (
        "[\u0915-\u0939\u0958-\u095f\u0978-\u097f\u0995-\u09b9\u09dc-\u09df\u09f0\u09f1\u0a95-\u0ab9"
        "\u0af9\u0b15-\u0b39\u0b5c-\u0b5f\u0b71\u0c15-\u0c39\u0c58-\u0c5a\u0d15-\u0d3a]"
    )
    pictogram = (
        "[\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u23ff\u24c2\u25a0-\u27ff\u2934\u2935\u2b00-\u2bff"
        "\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001fffd]"
    )
    mark = "".join(re.findall(f"[^{linker}\u200d]", join))
    special = f"\r{jamo_l}{jamo_v}{jamo_t}{prepend}{join}{flag}{high}"
    return re.compile(
        f"((?:[^{special}]+(?![{jamo_v}{jamo_t}{join}{high}]))?)("
        # the common case of what follows, which makes Hindi 1.4 times as fast
        f"[^{special}{control}][{mark}]+(?![{linker}\u200d{high}])|"
        f"[{prepend}{high_prepend}]*(?:"
        f"[{jamo_l}]*(?:{vowel}+|[{lv}]{vowel}*|[\uac00-\ud7a3])[{jamo_t}]*"
        f"|[{jamo_l}]+|[{jamo_t}]+"
        f"|{consonant}(?:[{no_linker}\u200d]*[{linker}][{extend}\u200d]*{consonant})*"
        f"|{pictogram}(?:[{extend}]*(?:{high_extend}[{extend}]*)*\u200d{pictogram})*"
        f"|[{flag}]{{2}}"
        f"|(?![{control}]|{high_control}).)"
        f"[{join}]*(?:{high_join}[{join}]*)*"
        f"|\r\n|.|$)",
        re.DOTALL,
    )


def reverse_lines(lines: bytes) -> bytes:
    r"""Return what the server answers to *lines*: each line reversed, with its own ending.

    A line ends in LF or CRLF; the last may have no ending.  The lines are UTF-8, and a byte that
    is not valid UTF-8 counts as one character.  The answer is as long as *lines*, in bytes.

    >>> reverse_lines(b"one\ntwo\r\nthree")
    b'eno\nowt\r\neerht'
    """
    if b"\r" in lines and b"\r\n" in lines:  # to ask for one byte first is 50 times as fast
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
