"""The client of a peer: `python -m benchmarks.peers.apps.client PEER`, told by standard input what to do.

Each line is a number of tasks to enqueue, the answer a line of JSON: when it began, how long it took, and how
much processor time. The first answer comes unasked, when the peer's tables and queues are made.
"""

import asyncio
import importlib
import json
import sys
import time

PAYLOAD = {"to": "user@example.com", "a": 1, "text": "x" * 150}


async def main(peer: str) -> None:
    """Do as told until there is nothing more to read."""
    app = importlib.import_module(f"benchmarks.peers.apps.{peer}_app")
    await app.prepare()
    tell({})
    while line := await asyncio.to_thread(sys.stdin.readline):
        began_at, cpu_before, before = time.time(), time.process_time(), time.perf_counter()
        await app.enqueue(PAYLOAD, int(line))
        tell(
            {
                "began_at": began_at,
                "seconds": time.perf_counter() - before,
                "cpu_seconds": time.process_time() - cpu_before,
            }
        )


def tell(answer: dict[str, float]) -> None:
    """Answer."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
