"""A small shop, as a WSGI application to load into a pre-fork server.

/item/N is a page of the catalogue, /search?q=WORD what has that word, /basket?add=N one more.
"""

from __future__ import annotations

import decimal
import email.message
import html
import json
import logging
import random
import sqlite3
import string
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

ITEMS = 4000
WORDS = 600

log = logging.getLogger(__name__)


def catalogue() -> list[dict[str, Any]]:
    dice = random.Random(1)
    words = ["".join(dice.choices(string.ascii_lowercase, k=7)) for _ in range(WORDS)]
    return [
        {
            "number": number,
            "name": " ".join(dice.choices(words, k=3)),
            "text": " ".join(dice.choices(words, k=40)),
            "price": decimal.Decimal(dice.randrange(100, 100_000)) / 100,
            "tags": dice.sample(words, 5),
        }
        for number in range(ITEMS)
    ]


def index(items: list[dict[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for item in items:
        for word in {*item["text"].split(), *item["tags"]}:
            found.setdefault(word, []).append(item["number"])
    return found


def database(items: list[dict[str, Any]]) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.execute("CREATE TABLE item (number INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
    rows = [(item["number"], item["name"], int(item["price"] * 100)) for item in items]
    db.executemany("INSERT INTO item VALUES (?, ?, ?)", rows)
    return db


CATALOGUE = catalogue()
INDEX = index(CATALOGUE)
DATABASE = database(CATALOGUE)
BASKETS: dict[str, list[int]] = {}
print(f"{len(CATALOGUE)} items loaded", flush=True)


@lru_cache(maxsize=200)
def page(number: int) -> str:
    item = CATALOGUE[number]
    root = ElementTree.Element("article", id=str(number))
    ElementTree.SubElement(root, "h1").text = html.escape(item["name"])
    ElementTree.SubElement(root, "p").text = item["text"]
    ElementTree.SubElement(root, "b").text = str(item["price"])
    return ElementTree.tostring(root, encoding="unicode")


def search(word: str) -> str:
    numbers = INDEX.get(word, [])
    cheap = DATABASE.execute("SELECT number, price FROM item ORDER BY price LIMIT 20").fetchall()
    return json.dumps({"word": word, "found": numbers, "cheap": cheap})


def basket(owner: str, number: int) -> str:
    mine = BASKETS.setdefault(owner, [])
    mine.append(number)
    del mine[:-50]
    mail = email.message.EmailMessage()
    mail["Subject"] = f"{len(mine)} in your basket"
    mail.set_content(str(sum(CATALOGUE[one]["price"] for one in mine)))
    return mail.as_string()


def app(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    path = environ["PATH_INFO"]
    if path.startswith("/item/"):
        body = page(int(path.removeprefix("/item/")) % ITEMS)
    elif path == "/search":
        body = search(query.get("q", ""))
    else:
        body = basket(environ["REMOTE_ADDR"], int(query.get("add", "0")) % ITEMS)
    log.debug("%s: %d bytes", path, len(body))
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [body.encode()]
