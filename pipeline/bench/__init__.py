"""Measures a deployment from outside: HTTP to its gateway, SQL to its database, /proc for its processes."""
