"""The whole service under faults drawn from a seed, its history, and the check of what was promised."""
