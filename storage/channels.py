"""The channels of wake-ups, one name for whoever notifies and whoever waits."""

OUTBOX = "baton_outbox"
"""Rows may be due: a relay looks."""

DONE = "baton_done"
"""Tasks may have ended: who waits for one looks."""
