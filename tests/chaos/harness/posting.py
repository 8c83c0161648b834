"""Clients that post more than is worked off, and do as they are told by 429 and 503."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import uuid4

import httpx
import msgspec

from storage.model import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONNECTIONS = 4
LOST_SECONDS = 1.0
BATCH, SINGLES = 990, 10
"""Of each 1,000 tasks: in one batch, and one by one."""

PAYLOAD = {"order": 17, "address": "ada@example.org", "note": "x" * 100}


class Request(msgspec.Struct, frozen=True):
    """A body with its key, and how many of its tasks have which priority."""

    path: str
    body: bytes
    priorities: Counter[str]
    headers: dict[str, str]

    @classmethod
    def of(cls, priorities: Sequence[str]) -> Request:
        """Hand over one task, or a batch of several."""
        tasks = [{"kind": "echo", "payload": PAYLOAD, "priority": each} for each in priorities]
        path, body = ("/batch", {"tasks": tasks}) if len(tasks) > 1 else ("", tasks[0])
        headers = {"content-type": "application/json", "idempotency-key": str(uuid4())}
        return cls(f"/api/v1/tasks{path}", msgspec.json.encode(body), Counter(priorities), headers)


def mixed(tasks: int) -> Iterator[Request]:
    """Make requests of so many tasks, each batch with all three priorities."""
    priorities = itertools.cycle([each.name for each in Priority])
    while tasks > 0:
        yield Request.of(list(itertools.islice(priorities, min(BATCH, tasks))))
        tasks -= BATCH
        for _ in range(min(SINGLES, max(0, tasks))):
            yield Request.of([next(priorities)])
        tasks -= SINGLES


class Clients:
    """Post, and count what they are told.

    A 503 is repeated with its key when Retry-After says, and so is what found no answer.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.without_retry_after = 0
        self.repeats = 0
        self.milliseconds: list[float] = []
        self.answered_at: list[float] = []

    async def post_all(self, requests: Iterator[Request]) -> None:
        """Post over several connections at once."""

        async def post_some() -> None:
            for request in requests:
                await self.post(request)

        await asyncio.gather(*(post_some() for _ in range(CONNECTIONS)))

    async def post(self, request: Request) -> float | None:
        """Post until the answer is 201 or 429; after which seconds a 429 may be repeated, None for a 201."""
        while True:
            began_at = time.monotonic()
            try:
                response = await self._client.post(
                    request.path, content=request.body, headers=request.headers
                )
            except httpx.TransportError:
                self.repeats += 1
                await asyncio.sleep(LOST_SECONDS)
                continue
            self.answered_at.append(time.monotonic())
            self.milliseconds.append((self.answered_at[-1] - began_at) * 1000)
            if response.status_code == HTTPStatus.CREATED:
                self.accepted.update(request.priorities)
                return None
            self.without_retry_after += "retry-after" not in response.headers
            seconds = float(response.headers.get("retry-after", 1))
            if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                self.refused.update(request.priorities)
                return seconds
            assert response.status_code == HTTPStatus.SERVICE_UNAVAILABLE, response.text
            self.repeats += 1
            await asyncio.sleep(seconds)

    async def post_until_accepted(self, request: Request) -> None:
        """Post, and repeat a 429 when it says."""
        seconds = await self.post(request)
        while seconds is not None:
            await asyncio.sleep(seconds)
            seconds = await self.post(request)
