"""What clients were answered does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tests.support.breaks.examples import breaks, done, taken
from tests.support.chronicle import bend

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


@breaks("accepted_is_durable")
def answered_and_never_written(run: Chronicle) -> None:
    run.answer_post("a")


@breaks("accepted_is_durable")
def answered_with_the_id_of_another(run: Chronicle) -> None:
    run.whole_life("a")
    run.whole_life("b")
    run.answer_post("a", ids=["id-of-b"])


@breaks("accepted_is_durable")
def batch_answered_in_part(run: Chronicle) -> None:
    run.post("a", "b", outcome="unknown")
    run.answer_post("a", "b", ids=["id-of-a"])
    done(run, "id-of-a")
    done(run, "id-of-b")


@breaks("no_phantom")
def task_that_nobody_posted(run: Chronicle) -> None:
    run.create("id-of-a", "a")
    done(run, "id-of-a")


@breaks("no_phantom")
def task_of_a_refused_post(run: Chronicle) -> None:
    run.answer_post("a", outcome="refused")
    run.create("id-of-a", "a")
    done(run, "id-of-a")


@breaks("no_phantom")
def post_without_answer_written_twice(run: Chronicle) -> None:
    done(run, run.post("a", outcome="unknown"))
    run.create("another", "a")
    done(run, "another")


@breaks("one_key_one_task")
def key_answered_with_two_tasks(run: Chronicle) -> None:
    run.whole_life("a", key="k")
    run.whole_life("b", key="k")
    run.keys["k"] = ["id-of-a", "id-of-b"]


@breaks("one_key_one_task")
def key_that_was_not_kept(run: Chronicle) -> None:
    run.whole_life("a", key="k")
    del run.keys["k"]


@breaks("one_key_one_task")
def key_without_its_tasks(run: Chronicle) -> None:
    run.answer_post("a", key="k", outcome="unknown")
    run.keys["k"] = ["id-of-a"]


@breaks("one_key_one_task")
def key_whose_row_is_in_another_order(run: Chronicle) -> None:
    run.post("a", "b", key="k")
    done(run, "id-of-a")
    done(run, "id-of-b")
    run.keys["k"] = ["id-of-b", "id-of-a"]


@breaks("task_and_outbox_together")
def payload_without_its_task(run: Chronicle) -> None:
    run.left["payloads_without_task"] = 1


@breaks("task_and_outbox_together")
def task_without_its_row(run: Chronicle) -> None:
    task = run.post("a")
    run.rows.clear()
    run.take(task)
    run.complete(task)


@breaks("task_and_outbox_together")
def retry_without_its_row(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task)
    run.rows.pop()
    run.take(task)
    run.complete(task)


@breaks("task_and_outbox_together")
def row_of_a_dispatch_that_never_was(run: Chronicle) -> None:
    task = run.whole_life()
    row = run.row(task, dispatch=7)
    run.poll(task, row)
    bend(run.events, -1, rows=[(row, task, 1, "tasks.medium")])
    run.publish(task, "CONFIRMED")
    run.settle(task, row)


@breaks("task_and_outbox_together")
def row_without_its_task(run: Chronicle) -> None:
    run.whole_life()
    run.rows.append(
        msgspec.structs.replace(run.rows[0], number=99, row=99, task="nobody", operation="INSERT")
    )
    run.left["outbox"] = []


@breaks("reads_never_go_back")
def status_goes_back(run: Chronicle) -> None:
    task = run.whole_life()
    run.see(task)
    run.see(task, task_status="IN_PROGRESS")


@breaks("reads_never_go_back")
def dispatch_goes_back(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task)
    run.see(task)
    run.see(task, dispatch=1)
    done(run, task)


@breaks("reads_never_go_back")
def end_becomes_another(run: Chronicle) -> None:
    task = run.whole_life()
    run.see(task)
    run.see(task, task_status="FAILED")
