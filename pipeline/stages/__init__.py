"""The stages, each usable and testable alone; `pipeline.roles` wires them."""

from pipeline.stages.beat import Beat
from pipeline.stages.bury import Bury
from pipeline.stages.claim import Claim, Claimed
from pipeline.stages.consume import Consume, Wave
from pipeline.stages.dead_letter import DeadLetter
from pipeline.stages.each import Each
from pipeline.stages.every import Every
from pipeline.stages.execute import Execute, Failed
from pipeline.stages.hand_over import HandOver
from pipeline.stages.poll_outbox import PollOutbox
from pipeline.stages.prune import Prune
from pipeline.stages.publish import Publish, Published
from pipeline.stages.receive import Receive
from pipeline.stages.record import Record
from pipeline.stages.rescue import Rescue
from pipeline.stages.resend import Resend
from pipeline.stages.route_retry import RouteRetry
from pipeline.stages.settle import Settle
from pipeline.stages.survey_outbox import SurveyOutbox
from pipeline.stages.survey_queues import SurveyQueues

__all__ = [
    "Beat",
    "Bury",
    "Claim",
    "Claimed",
    "Consume",
    "DeadLetter",
    "Each",
    "Every",
    "Execute",
    "Failed",
    "HandOver",
    "PollOutbox",
    "Prune",
    "Publish",
    "Published",
    "Receive",
    "Record",
    "Rescue",
    "Resend",
    "RouteRetry",
    "Settle",
    "SurveyOutbox",
    "SurveyQueues",
    "Wave",
]
