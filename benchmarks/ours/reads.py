"""Reads: what clients ask of ten million tasks while others are being drained."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

import msgspec

from benchmarks.calls import OK, get, one_by_one
from benchmarks.observer import NotAsPromised
from benchmarks.percentiles import Milliseconds
from benchmarks.workload import PAYLOAD, preload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.calls import Answer
    from benchmarks.scene import Scene, Site

ROWS, CHUNK = 10_000_000, 250_000
DRAINED = 1_000_000
TIMES, MOST_SECONDS = 200, 10.0
"""How often each is asked, and how long at most: one that reads everything takes seconds."""

DAYS = 6
"""So far back the tasks reach; the retention is seven days."""

RARE, PAGE = 10, 50

# Several kinds, as a service has them. Of the rare ones there are ten each, strewn over all the time.
_FILL = """
WITH made AS (
    INSERT INTO tasks (id, kind, priority, status, max_retries, timeout_seconds, created_at, started_at,
                       finished_at, reason)
    SELECT uuidv7(at - clock_timestamp()),
           CASE WHEN n % $3::bigint = $3::bigint / 3 THEN 'report.yearly' WHEN n % 10 < 6 THEN 'echo'
                WHEN n % 10 < 9 THEN 'email.send' ELSE 'invoice.render' END,
           1 + n % 3, CASE WHEN n % $3::bigint = $3::bigint / 2 THEN 4 ELSE 3 END, 3, 300, at,
           at + interval '20 milliseconds', at + interval '50 milliseconds',
           CASE WHEN n % $3::bigint = $3::bigint / 2 THEN 'error' END
    FROM generate_series($1::bigint, $2::bigint) n,
         LATERAL (SELECT $4::timestamptz + n * make_interval(secs => $5::float8)) made(at)
    RETURNING id, kind, status
), kept AS (
    INSERT INTO payloads (task_id, kind, tags, body)
    SELECT id, kind, CASE WHEN kind = 'report.yearly' THEN '{yearly}' ELSE '{}'::text[] END,
           convert_to($6, 'UTF8') FROM made
), tagged AS (
    INSERT INTO task_tags (tag, task_id) SELECT 'yearly', id FROM made WHERE kind = 'report.yearly'
), stored AS (
    INSERT INTO results (task_id, body) SELECT id, convert_to($6, 'UTF8') FROM made WHERE status = 3
)
SELECT count(*) FROM made
"""
_SOME = "SELECT id FROM tasks TABLESAMPLE SYSTEM (1) ORDER BY random() LIMIT $1"
_LEFT = "SELECT count(*)::int FROM tasks WHERE tenant = '' AND status < 3 AND status <> 3"


class Read(msgspec.Struct, frozen=True):
    """One question, asked again and again: how many it found, and how long the answers took.

    `more` tells whether the page names another one; `failed` counts answers other than 200.
    """

    question: str
    items: int
    more: bool
    failed: int
    took: Milliseconds


class Reads(msgspec.Struct, frozen=True):
    """All questions: those with a promise of their own, and other combinations of filters."""

    rows: int
    left_to_drain: int
    promised: list[Read]
    others: list[Read]


class Question(NamedTuple):
    """A list with filters, and how many tasks it is to find on its first page."""

    name: str
    filters: dict[str, str]
    items: int


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    next: str | None


async def measure(site: Site, rows: int = ROWS, drained: int = DRAINED) -> Reads:
    """Fill the tables, start all roles on what is to be drained, and ask."""
    async with site.scene() as scene:
        history = History(rows, datetime.now(UTC))
        await history.fill(scene)
        await preload(scene.database, drained)
        await scene.start_roles()
        promised = [await _by_id(scene), *[await _ask(scene, each) for each in history.promised()]]
        others = [await _ask(scene, each) for each in history.others()]
        [(left,)] = await scene.fetch(_LEFT)
        if not left:
            raise NotAsPromised("all was drained before all had been asked")
        return Reads(rows=rows, left_to_drain=left, promised=promised, others=others)


class History:
    """Tasks that have ended, at equal distances over the last days."""

    def __init__(self, rows: int, now: datetime) -> None:
        self._rows = rows
        self._apart = timedelta(days=DAYS) / rows
        self._began_at = now - timedelta(days=DAYS) - timedelta(minutes=1)

    async def fill(self, scene: Scene) -> None:
        """Write them straight into the tables."""
        payload = msgspec.json.encode(PAYLOAD).decode()
        rare, apart_seconds = self._rows // RARE, self._apart.total_seconds()
        for start in range(0, self._rows, CHUNK):
            last = min(start + CHUNK, self._rows) - 1
            await scene.fetch(_FILL, start, last, rare, self._began_at, apart_seconds, payload)
        for table in ("tasks", "payloads", "task_tags", "results"):
            await scene.fetch(f"VACUUM ANALYZE {table}")
        await scene.fetch("CHECKPOINT")

    def promised(self) -> Iterator[Question]:
        """List the questions that are to be answered at once, whatever they match."""
        yield Question("no filter", {}, PAGE)
        yield Question("status, ten matches", {"status": "FAILED"}, RARE)
        yield Question("status, none", {"status": "CANCELLED"}, 0)
        yield Question("kind, ten matches", {"kind": "report.yearly"}, RARE)
        yield Question("kind, none", {"kind": "report.monthly"}, 0)
        yield Question("created range, ten matches", self._created(0, RARE), RARE)
        yield Question("created range, none", self._created(0.2, 0.8), 0)

    def others(self) -> Iterator[Question]:
        """List combinations."""
        yield Question("dense status", {"status": "COMPLETED"}, PAGE)
        yield Question("dense kind", {"kind": "email.send"}, PAGE)
        yield Question("priority", {"priority": "HIGH"}, PAGE)
        yield Question("tag, ten matches", {"tag": "yearly"}, RARE)
        yield Question("tag, none", {"tag": "monthly"}, 0)
        yield Question("status and kind, none", {"status": "FAILED", "kind": "report.yearly"}, 0)
        yield Question("status and dense kind, none", {"status": "CANCELLED", "kind": "echo"}, 0)
        yield Question("rare kind and dense status", {"status": "COMPLETED", "kind": "report.yearly"}, RARE)
        yield Question("priority and kind, none", {"priority": "LOW", "kind": "report.monthly"}, 0)
        yield Question(
            "created range and kind, none", {**self._created(0, self._rows / 4), "kind": "none"}, 0
        )

    def _created(self, first: float, behind: float) -> dict[str, str]:
        """Name the time from one task to another, counted from the one in the middle."""
        middle = self._rows // 2
        # Its own moment lies within, whatever the rounding of intervals.
        early, late = (self._began_at + (middle - 0.1 + n) * self._apart for n in (first, behind))
        return {"created_from": _text(early), "created_to": _text(late)}


async def _by_id(scene: Scene) -> Read:
    ids = await scene.fetch(_SOME, TIMES)
    answers = await _exchanged(scene, [f"/tasks/{task_id}" for (task_id,) in ids])
    return _read("one task by its id", answers, items=1, more=False)


async def _ask(scene: Scene, question: Question) -> Read:
    """Ask; raises NotAsPromised for a page that claims to be the last and holds other than it should."""
    path = f"/tasks?{urlencode(question.filters)}" if question.filters else "/tasks"
    answers = await _exchanged(scene, [path] * TIMES)
    pages = [msgspec.json.decode(each.body, type=_Page) for each in answers if each.status == OK]
    for page in pages:
        if page.next is None and len(page.items) != question.items:
            raise NotAsPromised(f"{question.name}: {len(page.items)} tasks instead of {question.items}")
    items = max((len(page.items) for page in pages), default=0)
    return _read(question.name, answers, items=items, more=any(page.next for page in pages))


async def _exchanged(scene: Scene, paths: Sequence[str]) -> list[Answer]:
    until = time.monotonic() + MOST_SECONDS
    requests = (get(scene.url, path) for path in paths if time.monotonic() < until)
    return await one_by_one(scene.url, requests)


def _read(question: str, answers: Sequence[Answer], *, items: int, more: bool) -> Read:
    return Read(
        question=question,
        items=items,
        more=more,
        failed=sum(each.status != OK for each in answers),
        took=Milliseconds.of(each.ended_at - each.sent_at for each in answers),
    )


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
