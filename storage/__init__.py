"""The ledger: PostgreSQL holds every task, and each change of state is one statement."""
