"""What this machine can do at all: the same work with everything of Baton left out but the thing measured."""
