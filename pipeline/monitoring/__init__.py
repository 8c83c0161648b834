"""What a process tells its operators: metrics, and whether it gets on."""

from pipeline.monitoring.health import Health, Progress
from pipeline.monitoring.measured import MeasuredBroker, MeasuredExecute, MeasuredLedger
from pipeline.monitoring.metrics import Metrics

__all__ = ["Health", "MeasuredBroker", "MeasuredExecute", "MeasuredLedger", "Metrics", "Progress"]
