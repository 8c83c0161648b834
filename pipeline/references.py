"""The message on the wire: `{"v":1,"tasks":[["<task id>",<dispatch>], …]}`, references and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 - msgspec resolves the annotation at run time

import msgspec

from storage.model import Reference

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1


class Undecodable(Exception):
    """A message that is not ours to read."""


# A dispatch beyond the column's range would fail the whole group it is claimed with.
_Dispatch = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class _Envelope(msgspec.Struct, frozen=True):
    v: int
    tasks: list[tuple[UUID, _Dispatch]]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Envelope)


def encode(references: Iterable[Reference]) -> bytes:
    """Pack references into the body of one message."""
    return _encoder.encode(
        _Envelope(VERSION, [(reference.task_id, reference.dispatch) for reference in references])
    )


def decode(body: bytes) -> list[Reference]:
    """Unpack a message's references; raises Undecodable, naming what is wrong.

    Fields that a later version adds are ignored; another `v` would come by other queues.
    """
    try:
        envelope = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(str(error)) from error
    if envelope.v != VERSION:
        raise Undecodable(f"version {envelope.v}, this worker reads version {VERSION}")
    return [Reference(task_id, dispatch) for task_id, dispatch in envelope.tasks]
