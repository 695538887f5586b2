"""Ways to break the bytes of a file or the tree of a JSON text, each drawn from a random.Random."""

import json
import random
import re

NAMES = [
    *("", " ", ".", "..", "/", "../../etc/passwd", "/etc/passwd", "..\\..\\x.jpg", "C:\\x.jpg", "images/../../x.jpg"),
    *("a\nb.jpg", "a\rb.jpg", "a\r\nb.jpg", "a\u2028b.jpg", "a\x85b.jpg", "a\tb.jpg", "a\0b.jpg", "a\0/b.jpg"),
    *("\U0001f600.jpg", "\ud800.jpg", "\udcff.jpg", "\udcff/x.jpg", "\ud800/x.jpg", "e\u0301.jpg", "\ufeff.jpg"),
    *("x" * 300 + ".jpg", "x" * 300 + "/y.jpg", "x/" * 3000 + "y.jpg", "x" * 200_000, "%s.jpg", "{0}.jpg", "-rf"),
    *("a,b;c|d.jpg", '"', '""', "'", "\x1b[31mred.jpg", "<b>&amp;.jpg", "all", "train", "labels", "0.jpg/1.jpg"),
]
NUMBERS = [
    *(b"0", b"-1", b"2", b"-0", b"1.0", b"1e3", b"1e999", b"-1e999", b"nan", b"inf", b"-inf", b"1e-400", b"0x10", b""),
    *(b"2147483648", b"-9223372036854775809", b"18446744073709551616", b"9" * 400, b"9" * 5000, b"1_000", b"\xd9\xa3"),
]
DEPTH = 100_000
XML_TRICKS = [
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "dog"><!ENTITY y "&x;&x;">]>',
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    b"<!DOCTYPE a ["
    + b'<!ENTITY l0 "lol">'
    + b"".join(b'<!ENTITY l%d "%s">' % (i, b"&l%d;" % (i - 1) * 10) for i in range(1, 10))
    + b"]>",
    *(b'<?xml version="1.0" encoding="%s"?>' % name for name in (b"utf-16", b"latin-1", b"rot13", b"idna", b"x")),
    *(b"<!-- ", b"<![CDATA[", b"]]>", b"<?php ", b"&x;", b"&l9;", b"&#0;", b"&#xD800;", b"<object>", b"</object>"),
]


def at_random(rng, data):
    """A place in the bytes, the end included."""
    return rng.randrange(len(data) + 1)


def _span(rng, data, longest=200):
    start = at_random(rng, data)
    return start, min(len(data), start + rng.choice((1, 1, 2, 5, 20, rng.randint(1, longest))))


def flip(rng, data):
    """One bit in one to eight places."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def drop(rng, data):
    """A few bytes gone."""
    start, stop = _span(rng, data)
    return data[:start] + data[stop:]


def insert(rng, data):
    """A few random bytes more."""
    at = at_random(rng, data)
    return data[:at] + rng.randbytes(rng.choice((1, 1, 3, 30))) + data[at:]


def repeat(rng, data):
    """A piece twice."""
    start, stop = _span(rng, data)
    return data[:stop] + data[start:]


def cut(rng, data):
    """The end missing."""
    return data[: at_random(rng, data)]


def blank(rng, data):
    """A stretch of zeros, as a lost block of a disk leaves it."""
    start, stop = _span(rng, data, 2000)
    return data[:start] + bytes(stop - start) + data[stop:]


def lines(rng, data):
    """Two lines swapped, one twice, or a blank one in between."""
    rows = data.split(b"\n")
    i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
    kind = rng.randrange(3)
    if kind == 0:
        rows[i], rows[j] = rows[j], rows[i]
    else:
        rows.insert(j, rows[i] if kind == 1 else b" " * rng.randrange(2))
    return b"\n".join(rows)


def number(rng, data):
    """One number is another, or none."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not found:
        return data
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(NUMBERS) + data[one.end() :]


def encoding(rng, data):
    """Another encoding, or bytes that no text has."""
    text = data.decode("latin-1")
    at = at_random(rng, data)
    return rng.choice(
        [
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-16-le"),
            lambda: text.encode("utf-32"),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: b"\xef\xbb\xbf\xef\xbb\xbf" + data,
            lambda: data[:at] + b"\xe9" + data[at:],
            lambda: data[:at] + b"\xc3\xa9" + data[at:],
            lambda: data[:at] + b"\xed\xa0\x80" + data[at:],
            lambda: data[:at] + b"\0" * rng.choice((1, 1, 50)) + data[at:],
            lambda: data + b"\x1a",
        ]
    )()


def ends(rng, data):
    """Other line ends, everywhere or on one line."""
    new = rng.choice((b"\r\n", b"\r", b"\r\r\n", b"\n\n", b"\x0b", b"\x0c", b"\xe2\x80\xa8", b"\xc2\x85"))
    return data.replace(b"\n", new, rng.choice((-1, -1, 1, 2)))


def long_line(rng, data):
    """A line of 200,000 bytes."""
    at = at_random(rng, data)
    return data[:at] + rng.choice((b"x", b"0", b" ", b",", b";", b'"', b"a;")) * 200_000 + data[at:]


def deep(rng, data):
    """Nesting beyond every stack."""
    at = at_random(rng, data)
    return data[:at] + rng.choice((b"[", b'{"a":', b"<a>", b"(", b"[" * 9 + b"]")) * DEPTH + data[at:]


def quotes(rng, data):
    """A stray character of the format's own."""
    at = at_random(rng, data)
    return (
        data[:at] + rng.choice((b'"', b'""', b",", b";", b"\t", b"|", b"\\", b"{", b"}", b"\n", b":", b"<")) + data[at:]
    )


def entity(rng, data):
    """XML's own tricks."""
    at = 0 if rng.random() < 0.6 else at_random(rng, data)
    out = data[:at] + rng.choice(XML_TRICKS) + data[at:]
    return out.replace(b">dog<", rng.choice((b">&x;<", b">&l9;<", b">&y;<", b">dog<")), 1)


def word(rng, data):
    """A word of the file is a name that breaks things."""
    found = list(re.finditer(rb"[\w.\-/]{3,}", data))
    if not found:
        return data
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(NAMES).encode("utf-8", "surrogatepass") + data[one.end() :]


BYTES = (flip, drop, insert, repeat, cut, blank)
TEXT = (*BYTES, lines, lines, number, number, encoding, ends, long_line, deep, quotes, word, word)


def damage(rng: random.Random, data: bytes, ways=TEXT) -> bytes:
    """One to three kinds of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(ways)(rng, data)
    return data


VALUES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        -1e308,
        2**31,
        2**63,
        -(2**64),
        10**400,
        float("nan"),
        float("inf"),
        "@BIG@",
    ),
    *("", "1", "nan", [], {}, [1], [[]], {"a": 1}, [None], "x" * 100_000, ["a"] * 1000, "@DEEP@", "@DEEPER@", *NAMES),
]


def json_damage(rng: random.Random, tree) -> bytes:
    """JSON of a tree with some values of other types, keys gone, or keys twice."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 2, 4))):
        places, todo = [], [tree]
        while todo:
            node = todo.pop()
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)):
                    todo.append(node[key])
        if not places:
            break
        node, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            node[key] = rng.choice(VALUES)
        elif kind < 0.8:
            del node[key]
        elif kind < 0.9 and isinstance(node, list):
            node.append(node[key])
        elif isinstance(node, dict):
            node[rng.choice([*node, *NAMES])] = node[key]
    text = json.dumps(tree, ensure_ascii=True)
    if rng.random() < 0.15 and (found := list(re.finditer(r'"\w+": ', text))):
        one = rng.choice(found)
        text = text[: one.start()] + one.group() + rng.choice(('"x", ', "1, ", "[], ")) + text[one.start() :]
    text = text.replace('"@BIG@"', "9" * 5000).replace('"@DEEP@"', "[" * 900 + "]" * 900)
    return text.replace('"@DEEPER@"', "[" * DEPTH + "]" * DEPTH).encode()
