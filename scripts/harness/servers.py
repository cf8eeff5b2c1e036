"""Programs that nobody here wrote, opted in to KSM, with clients that keep them busy a little.

Each is started in a folder of its own, on loopback or a unix socket, and ended afterwards.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib import metadata, util
from pathlib import Path
from typing import Any

import host_ksmd

from ksm_eval.target.proc_tasks import read_stat

HERE = Path(__file__).resolve().parent
CLIENTS = 4
WORKERS = 4
FIRST = 4000  # requests before a program is looked at: until it does not grow any more
LONGEST = 900  # seconds that a client goes on at most
ENOUGH = 120.0  # seconds to start on a busy machine


@dataclass(frozen=True)
class Program:
    name: str
    about: str
    missing: Callable[[], str]  # why it cannot run here, "" if it can
    version: Callable[[], str]
    serving: Callable[[Path, float], Any]
    """Context manager: the pid of the program's first process. It has answered the first
    requests; its clients go on until the end, with so many a second together."""


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def running(
    command: Sequence[str | Path],
    folder: Path,
    *,
    user: str = "root",
    end: signal.Signals = signal.SIGTERM,
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that opted in. It is asked to end, and what is left of it then is killed."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", HERE / "opt_in.py", user, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            **options,
        )
    try:
        yield process
    finally:
        all_of_it = {pid: read_stat(pid) for pid in host_ksmd.tree(process.pid)}
        process.send_signal(end)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for pid, then in all_of_it.items():
            now = read_stat(pid)
            if now is not None and then is not None and now.start_time == then.start_time:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()


def until(true: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until it serves; its log is the error when it ended or takes too long."""
    deadline = time.monotonic() + ENOUGH
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((folder / "log").read_text(errors="replace")[-2000:])
        time.sleep(0.1)


@contextmanager
def clients(
    request: Callable[[int, random.Random], None], rate: float, number: int = CLIENTS
) -> Iterator[None]:
    """Threads that make requests, given their own number: the first ones at once, then `rate` a
    second until the end."""
    pause = number / rate
    ended = threading.Event()
    ready = threading.Barrier(number + 1)

    def work(own: int) -> None:
        dice = random.Random(own)
        with suppress(OSError, HTTPException):  # the server has ended
            for _ in range(FIRST // number):
                request(own, dice)
            ready.wait(ENOUGH)
            ended.wait(pause * own / number)
            deadline = time.monotonic() + LONGEST
            while not ended.wait(pause) and time.monotonic() < deadline:
                request(own, dice)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(number)]
    for thread in threads:
        thread.start()
    try:
        ready.wait(ENOUGH)
        yield
    finally:
        ended.set()
        ready.abort()


# gunicorn


def http_get(port: int, dice: random.Random) -> None:
    item = int(dice.paretovariate(0.5))  # some are more popular than others
    kind = dice.choice(("/item/{}", "/item/{}", "/search?q={}", "/basket?add={}"))
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", kind.format(item))
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"gunicorn answered {answer.status}")


@contextmanager
def gunicorn(folder: Path, rate: float, *options: str) -> Iterator[int]:
    loads = 1 if "--preload" in options else WORKERS
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        command: list[str | Path] = [sys.executable, "-m", "gunicorn", "--workers", str(WORKERS)]
        command += [
            "--bind",
            f"fd://{fd}",
            "--no-control-socket",
            "--chdir",
            HERE,
            *options,
            "wsgi_app:app",
        ]
        with running(command, folder, pass_fds=(fd,)) as process:
            listening.close()

            def served() -> bool:
                loaded = (folder / "log").read_text().count("items loaded")
                return loaded == loads and len(host_ksmd.tree(process.pid)) == 1 + WORKERS

            until(served, process, folder)
            with clients(lambda _, dice: http_get(port, dice), rate):
                yield process.pid


def no_gunicorn() -> str:
    return "" if util.find_spec("gunicorn") else "gunicorn is not installed"


# PostgreSQL

QUERIES = """
SELECT count(*) FROM information_schema.columns;
SELECT c.relname, a.attname, t.typname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    JOIN pg_type t ON t.oid = a.atttypid ORDER BY 3, 2, 1 LIMIT 5;
CREATE TEMP TABLE most AS SELECT aid, abalance, md5(aid::text) FROM pgbench_accounts
    WHERE aid % 20 = 0;
CREATE INDEX ON most (md5);
PREPARE found (int) AS SELECT * FROM pgbench_accounts WHERE aid = $1;
EXECUTE found(1); EXECUTE found(2); EXECUTE found(3);
SELECT bid, count(*), sum(aid), string_agg(left(filler, 3), '' ORDER BY aid DESC)
    FROM pgbench_accounts WHERE aid < 5000 GROUP BY bid;
"""
BOOKED = """
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid};
UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {aid} % 10 + 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
    VALUES ({aid} % 10 + 1, 1, {aid}, {delta}, CURRENT_TIMESTAMP);
COMMIT;
"""


def postgres_folder() -> Path | None:
    """Where Debian puts the programs of the newest version."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in found), key=lambda p: int(p.parent.name), default=None)


def no_postgres() -> str:
    return "" if postgres_folder() else "Debian's PostgreSQL is not installed"


def ask(session: subprocess.Popen[bytes], queries: str) -> None:
    """Returns when psql has the answers."""
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(f"{queries}\n\\echo answered\n".encode())
    session.stdin.flush()
    while (line := session.stdout.readline()) != b"answered\n":
        if not line:
            raise ConnectionError("psql ended")


@contextmanager
def postgres(folder: Path, rate: float) -> Iterator[int]:
    programs = postgres_folder()
    assert programs is not None
    data = folder / "data"
    shutil.chown(folder, "postgres", "postgres")
    as_postgres: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}
    subprocess.run(
        [programs / "initdb", "--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C", "-D", data],
        **as_postgres, cwd=folder, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    command: list[str | Path] = [programs / "postgres", "-D", data, "-k", folder]
    command += ["-c", "listen_addresses=", "-c", "fsync=off"]
    where: tuple[str | Path, ...] = ("-h", folder, "-U", "postgres")
    with ExitStack() as ending:
        # SIGINT: fast shutdown, which removes its shared memory too.
        server = running(command, folder, user="postgres", end=signal.SIGINT)
        process = ending.enter_context(server)

        def served() -> bool:
            ready = [programs / "pg_isready", "-q", *where]
            return subprocess.run(ready, cwd=folder).returncode == 0

        until(served, process, folder)
        subprocess.run(
            [programs / "pgbench", *where, "-i", "-q", "postgres"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        sessions = []
        for _ in range(2 * CLIENTS):
            session = ending.enter_context(
                subprocess.Popen(
                    [programs / "psql", "-X", "-q", "-A", *where, "postgres"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder,
                )
            )  # fmt: skip
            ending.callback(session.kill)
            ask(session, QUERIES)
            sessions.append(session)

        def request(number: int, dice: random.Random) -> None:
            aid = dice.randrange(1, 100_001)
            change = BOOKED if dice.random() < 0.2 else "EXECUTE found({aid});"
            ask(sessions[number], change.format(aid=aid, delta=dice.randrange(-500, 500)))

        with clients(request, rate, len(sessions)):
            yield process.pid


def postgres_version() -> str:
    programs = postgres_folder()
    assert programs is not None
    return output(programs / "postgres", "--version").split()[2]


# Redis


def redis_say(at: Path, *words: str) -> None:
    """One connection, one command."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(at))
        link.sendall((" ".join(words) + "\r\n").encode())
        if link.recv(1 << 16).startswith(b"-"):
            raise RuntimeError(f"redis refused {words[0]}")


def redis_request(at: Path, dice: random.Random) -> None:
    key = dice.randrange(2000)
    if dice.random() < 0.2:
        redis_say(at, "SET", f"note:{key}", f"{key:04}" * 50)
    else:
        redis_say(at, "GET", f"note:{key}")


@contextmanager
def redis(folder: Path, rate: float) -> Iterator[int]:
    at = folder / "redis"
    user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    command: list[str | Path] = [
        "/usr/bin/redis-server",
        "--port",
        "0",
        "--unixsocket",
        at,
        "--save",
        "",
    ]
    with running([*command, "--dir", folder], folder, user="nobody") as process:
        until(at.exists, process, folder)
        fill: list[str | Path] = [
            "redis-benchmark",
            "-s",
            at,
            "-q",
            "-n",
            "6000",
            "-r",
            "3000",
            "-d",
            "1500",
        ]
        subprocess.run(
            [*fill, "-t", "set,lpush,hset,sadd,zadd"], check=True, stdout=subprocess.DEVNULL
        )
        with clients(lambda _, dice: redis_request(at, dice), rate):
            yield process.pid


def no_redis() -> str:
    found = shutil.which("redis-server") and shutil.which("redis-benchmark")
    return "" if found else "Redis is not installed"


PROGRAMS = (
    Program(
        "gunicorn",
        "a pre-fork WSGI server, 4 workers that each load the application",
        no_gunicorn,
        lambda: metadata.version("gunicorn"),
        gunicorn,
    ),
    Program(
        "gunicorn --preload",
        "the same, loaded once and shared by fork",
        no_gunicorn,
        lambda: metadata.version("gunicorn"),
        lambda folder, rate: gunicorn(folder, rate, "--preload"),
    ),
    Program(
        "PostgreSQL",
        "8 connections with temporary tables, prepared statements and transactions",
        no_postgres,
        postgres_version,
        postgres,
    ),
    Program(
        "Redis",
        "one process, 6000 each of set, lpush, hset, sadd and zadd",
        no_redis,
        lambda: output("redis-server", "--version").split("v=")[1].split()[0],
        redis,
    ),
)
