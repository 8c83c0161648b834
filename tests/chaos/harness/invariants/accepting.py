"""What a client was answered holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.model import Status
from tests.chaos.harness.events import Submitted
from tests.chaos.harness.invariants.timeline import grouped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.events import Seen
    from tests.chaos.harness.history import FinalTask
    from tests.chaos.harness.invariants.timeline import Broken, Timeline


def accepted_is_durable(timeline: Timeline) -> Iterator[Broken]:
    """Every id of a 201 is in the database at the end, under the name that was posted."""
    for post in timeline.of(Submitted):
        if post.outcome != "ok":
            continue
        if len(post.ids) != len(post.names):
            yield (
                "run",
                f"a POST of {len(post.names)} tasks ({post.names[0]}, …) was answered {len(post.ids)} ids",
            )
        for task, name in zip(post.ids, post.names, strict=False):
            final = timeline.final.get(task)
            if final is None:
                yield task, f"answered {post.status} as {name}, and is not in the database at the end"
            elif final.name != name:
                yield task, f"answered {post.status} as {name}, and is {final.name} at the end"


def no_phantom(timeline: Timeline) -> Iterator[Broken]:
    """Every task was posted, and not refused; one name is one task."""
    posts = timeline.posts
    for name, tasks in grouped(timeline.final.values(), lambda task: task.name).items():
        if name not in posts:
            yield tasks[0].id, f"nobody posted {name!r}"
        elif all(post.outcome == "refused" for post, _ in posts[name]):
            yield tasks[0].id, f"every POST of {name} was refused"
        if len(tasks) > 1:
            keys = {post.key for post, _ in posts.get(name, ())}
            yield tasks[-1].id, f"{name}, posted with keys {keys}, is {len(tasks)} tasks: {_ids(tasks)}"


def one_key_one_task(timeline: Timeline) -> Iterator[Broken]:
    """All POSTs of one key are one set of tasks, all answers to it name them, and so does its row."""
    tasks = grouped(timeline.final.values(), lambda task: task.name)
    kept = dict(timeline.history.final.keys)
    for key, posts in grouped(timeline.of(Submitted), lambda post: post.key).items():
        if key is None:
            continue
        names = dict.fromkeys(name for post in posts if post.outcome != "refused" for name in post.names)
        made = {task.id for name in names for task in tasks.get(name, ())}
        answers = {tuple(post.ids) for post in posts if post.outcome == "ok"}
        row = kept.get(key, [])
        subject = next(iter([*sorted(made), *row]), "run")
        if len(answers) > 1:
            yield subject, f"key {key} was answered with different tasks: {sorted(answers)}"
        elif made != set(row):
            yield subject, f"key {key} has made {sorted(made)}, its row says {sorted(row)}"
        elif answers and tuple(row) not in answers:
            yield subject, f"key {key} was answered with {sorted(answers)}, its row says {row}"


def task_and_outbox_together(timeline: Timeline) -> Iterator[Broken]:
    """A task, its payload and its outbox row are there together; so are each later dispatch and its row."""
    if timeline.history.final.payloads_without_task:
        yield "run", f"{timeline.history.final.payloads_without_task} payloads have no task"
    for task, changes in timeline.changes.items():
        sent = {row.dispatch for row in timeline.rows.get(task, ()) if row.operation != "DELETE"}
        for change in changes:
            if change.dispatch not in sent and change.dispatch != change.old_dispatch:
                yield task, f"dispatch {change.dispatch} came without an outbox row"
        extra = sent - {change.dispatch for change in changes}
        if extra:
            yield task, f"an outbox row names dispatch {max(extra)}, which the task never had"
    for task in timeline.rows.keys() - timeline.changes.keys():
        yield task, "has an outbox row and was never created"


def reads_never_go_back(timeline: Timeline) -> Iterator[Broken]:
    """Whoever asks again sees the same or a later replay, dispatch and status; an end stays as it was."""
    for task, looks in timeline.seen.items():
        answered = iter(sorted(looks, key=lambda seen: seen.at))
        later = next(answered)
        latest: Seen | None = None
        for seen in sorted(looks, key=lambda seen: seen.began):
            # Only what had been answered before this look began binds it.
            while later.at < seen.began:
                latest = later if latest is None else max(latest, later, key=_place)
                later = next(answered)
            if latest is not None and (_place(seen) < _place(latest) or _differs(seen, latest)):
                yield (
                    task,
                    f"was seen {_told(latest)} at {latest.at:.3f}, then {_told(seen)} at {seen.at:.3f}",
                )


def _place(seen: Seen) -> tuple[int, int, int]:
    status = Status[seen.task_status]
    return seen.replay, seen.dispatch, min(status, Status.COMPLETED)


def _differs(seen: Seen, latest: Seen) -> bool:
    """Tell two different ends of one dispatch."""
    return _place(seen) == _place(latest) and seen.task_status != latest.task_status


def _told(seen: Seen) -> str:
    return f"{seen.task_status} (dispatch {seen.dispatch}, replay {seen.replay})"


def _ids(tasks: list[FinalTask]) -> str:
    return ", ".join(task.id for task in tasks)
