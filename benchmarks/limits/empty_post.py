"""An empty POST: Litestar reads the body, decodes nothing and gives a constant answer.

`python -m benchmarks.limits.empty_post` serves it in a process of its own, with the server class, the
protocol class and the loop of our gateway.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from litestar import Litestar, MediaType, Request, Response, post

from benchmarks import wrk
from benchmarks.costs import Cost, Meter
from benchmarks.programs import running
from benchmarks.workload import TASKS_PATH, body_of
from gateway import examples
from gateway.wire import BoundedHttp
from pipeline.http_server import Server, listen, url_of
from tests.support.ports import HOST
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.scene import Site

START_SECONDS = 30.0

ANSWER = msgspec.json.encode(examples.NEW_TASK)


class Empty(msgspec.Struct, frozen=True):
    """Requests answered a second, and what one costs."""

    per_second: float
    loop: wrk.Loop
    cost: Cost


async def measure(site: Site) -> Empty:
    """POST the same body as to our gateway, over as many connections."""
    folder = site.new_folder()
    command = [sys.executable, "-m", "benchmarks.limits.empty_post"]
    async with running(command, folder / "empty.log") as server:
        url = f"{await eventually(lambda: _told(folder / 'empty.log'), seconds=START_SECONDS)}{TASKS_PATH}"
        await wrk.post(url, body_of(), folder, seconds=wrk.WARM_UP_SECONDS)
        meter = await Meter.start(site.servers, {"gateway": server.pid})
        loop = await wrk.post(url, body_of(), folder)
        return Empty(per_second=loop.per_second, loop=loop, cost=await meter.read(loop.requests))


def _told(log: Path) -> str:
    return log.read_text().partition("\n")[0]


@post(TASKS_PATH)
async def empty(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Read the body, and answer what our gateway would answer to some task."""
    await request.body()
    return Response(ANSWER, media_type=MediaType.JSON)


async def serve() -> None:
    """Serve until killed."""
    app = Litestar([empty], openapi_config=None, logging_config=None)
    with closing(listen(HOST, 0)) as listener:
        server = Server(app, 1.0, http=BoundedHttp, started=lambda: print(url_of(listener), flush=True))  # noqa: T201
        await server.serve(sockets=[listener])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
