"""What makes stages and handlers testable without servers: ledger, broker and clock, all in memory."""

from pipeline.broker.memory import MemoryBroker
from pipeline.testing.clock import ManualClock
from pipeline.testing.ledger import MemoryLedger

__all__ = ["ManualClock", "MemoryBroker", "MemoryLedger"]
