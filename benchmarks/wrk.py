"""Debian's `wrk`: a closed loop of POSTs over a fixed number of connections."""

from __future__ import annotations

import resource
from pathlib import Path

import msgspec

from benchmarks.observer import NotAsPromised
from benchmarks.programs import output_of
from tests.support.debian import require

PROGRAM = Path("/usr/bin/wrk")
CONNECTIONS = 32
SECONDS, WARM_UP_SECONDS = 8, 2

SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = file:read("*all")
file:close()
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\\n{{"requests":%d,"seconds":%.6f,"failed":%d,"p50_milliseconds":%.3f,"p99_milliseconds":%.3f}}\\n',
        summary.requests, summary.duration / 1e6,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


class _Printed(msgspec.Struct, frozen=True):
    requests: int
    seconds: float
    failed: int
    p50_milliseconds: float
    p99_milliseconds: float


class Loop(msgspec.Struct, frozen=True):
    """What a closed loop found; the latencies are those of a server that is kept as busy as it can be."""

    requests: int
    per_second: float
    p50_milliseconds: float
    p99_milliseconds: float
    generator_cpu_microseconds: float


async def post(
    url: str, body: bytes, folder: Path, *, connections: int = CONNECTIONS, seconds: int = SECONDS
) -> Loop:
    """Post a body again and again; raises NotAsPromised where one answer was an error."""
    require("wrk", PROGRAM)
    (folder / "body").write_bytes(body)
    script = folder / "post.lua"
    script.write_text(SCRIPT.format(body=folder / "body"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = await output_of(
        *(str(PROGRAM), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url)
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return read(printed, cpu_seconds)


def read(printed: str, cpu_seconds: float) -> Loop:
    """Read what the script prints last."""
    found = msgspec.json.decode(printed.strip().rpartition("\n")[2], type=_Printed)
    if found.failed or not found.requests:
        raise NotAsPromised(f"{found.failed} of {found.requests} requests failed: {printed[-500:]}")
    return Loop(
        requests=found.requests,
        per_second=round(found.requests / found.seconds, 1),
        p50_milliseconds=found.p50_milliseconds,
        p99_milliseconds=found.p99_milliseconds,
        generator_cpu_microseconds=round(1e6 * cpu_seconds / found.requests, 1),
    )
