"""What the driver throws at a listener ends neither the listening nor the leaving."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psqlpy
import pytest
from psqlpy.exceptions import Error

from storage.channels import OUTBOX
from storage.database import Address, Database
from storage.signals import PostgresSignals
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class PanicException(BaseException):
    """As the driver throws it: no Exception."""


class Driver:
    """Pool and listener in one: the first step of a listener is given, the others succeed."""

    def __init__(self, step: Callable[[], Awaitable[None]], parting: BaseException | None = None) -> None:
        self.step = step
        self.parting = parting
        self.opened = 0

    def __call__(self, **_options: Any) -> Driver:
        self.opened += 1
        return self

    def listener(self) -> Driver:
        return self

    async def startup(self) -> None:
        await self.step()

    async def shutdown(self) -> None:
        if self.parting:
            raise self.parting

    def close(self) -> None: ...


def signals(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> PostgresSignals:
    monkeypatch.setattr(psqlpy, "ConnectionPool", driver)
    monkeypatch.setattr("storage.signals.RECONNECT_SECONDS", 0.0)
    address = Address(host="nowhere", port=1, user="u", password="", database="d")
    return PostgresSignals(address, Database(address))


@pytest.mark.parametrize("thrown", [Error, RuntimeError, PanicException, asyncio.CancelledError])
async def test_whatever_the_driver_throws_it_is_listened_again(
    thrown: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def throw() -> None:
        raise thrown("the driver's")

    driver = Driver(throw)

    async with signals(driver, monkeypatch).subscribe(OUTBOX):
        await eventually(lambda: driver.opened > 2, seconds=2.0)


@pytest.mark.parametrize("thrown", [None, Error("lost"), PanicException("lost")])
async def test_who_leaves_is_not_held_up_by_what_the_driver_throws_then(
    thrown: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = asyncio.Event()

    async def listen() -> None:
        listening.set()
        await asyncio.Event().wait()

    driver = Driver(listen, parting=thrown)

    async with asyncio.timeout(2):
        async with signals(driver, monkeypatch).subscribe(OUTBOX):
            await listening.wait()

    assert driver.opened == 1
