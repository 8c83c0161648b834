"""What a history must hold; the name of a function is the name of its invariant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.invariants.accepting import (
    accepted_is_durable,
    no_phantom,
    one_key_one_task,
    reads_never_go_back,
    task_and_outbox_together,
)
from tests.chaos.harness.invariants.claiming import (
    ack_after_claim,
    cancelled_never_starts,
    claim_refuses_only_what_does_not_wait,
    idempotency_key_is_stable,
    one_start_per_dispatch,
)
from tests.chaos.harness.invariants.ending import (
    cancel_is_kept,
    dead_letter_has_reason,
    outcome_is_the_expected_one,
)
from tests.chaos.harness.invariants.moving import (
    attempts_bounded,
    dispatch_rises_only_with_a_new_hand_over,
    no_early_start,
    state_machine,
    terminal_stays_terminal,
)
from tests.chaos.harness.invariants.recording import (
    no_stale_write,
    recorded_once,
    result_is_what_the_handler_returned,
)
from tests.chaos.harness.invariants.relaying import (
    no_row_counted_without_return,
    no_row_failed,
    row_leaves_after_confirm,
)
from tests.chaos.harness.invariants.resting import (
    conservation,
    everything_ends,
    exits_are_clean,
    living_processes_make_progress,
    nothing_is_left,
)
from tests.chaos.harness.invariants.working import a_death_is_decided_once, a_loss_is_a_death

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.harness.invariants.timeline import Broken, Timeline

SAFETY: tuple[Callable[[Timeline], Iterator[Broken]], ...] = (
    accepted_is_durable,
    no_phantom,
    one_key_one_task,
    task_and_outbox_together,
    state_machine,
    dispatch_rises_only_with_a_new_hand_over,
    terminal_stays_terminal,
    recorded_once,
    no_stale_write,
    result_is_what_the_handler_returned,
    one_start_per_dispatch,
    attempts_bounded,
    row_leaves_after_confirm,
    no_row_counted_without_return,
    no_row_failed,
    ack_after_claim,
    claim_refuses_only_what_does_not_wait,
    cancelled_never_starts,
    cancel_is_kept,
    no_early_start,
    dead_letter_has_reason,
    outcome_is_the_expected_one,
    reads_never_go_back,
    idempotency_key_is_stable,
    a_death_is_decided_once,
    a_loss_is_a_death,
)

LIVENESS: tuple[Callable[[Timeline], Iterator[Broken]], ...] = (
    everything_ends,
    nothing_is_left,
    conservation,
    living_processes_make_progress,
    exits_are_clean,
)

INVARIANTS = (*SAFETY, *LIVENESS)
