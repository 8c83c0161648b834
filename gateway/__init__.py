"""The HTTP API: validates what clients hand over and writes task and outbox row."""
