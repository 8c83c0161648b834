"""Schemathesis reads the OpenAPI document and tries to be answered otherwise than it says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.support.gateway import Hands, gateway, listening

TOKEN = "token-0123456789abcdef"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
ROOT = Path(__file__).parents[2]

# The same requests in every run; a longer search is `--seed 2 --max-examples 500`.
OPTIONS = [
    "--seed=1",
    "--generation-deterministic",
    "--max-examples=10",
    "--no-shrink",
    "--continue-on-failure",
    "--no-color",
    "--output-truncate=false",
    # It calls what a DELETE leaves a leak: a cancelled task can still be seen.
    "--exclude-checks=use_after_free",
]


async def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    ledger = Hands()
    async with gateway(ledger) as api:
        for _ in range(20):  # something to replay, to send again, and to look up
            await api.fail(await api.submit())
            await api.give_up(await api.submit())

    async with listening(ledger, api_tokens=(TOKEN,)) as url:
        search = await asyncio.create_subprocess_exec(
            SCHEMATHESIS,
            "run",
            f"{url}/schema/openapi.json",
            f"--header=Authorization: Bearer {TOKEN}",
            *OPTIONS,
            cwd=tmp_path,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await search.communicate()

    assert search.returncode == 0, output.decode()
    assert re.search(r"Selected: (\d+)/\1\s+Tested: \1\b", output.decode())
