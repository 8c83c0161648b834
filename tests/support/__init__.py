"""What several test folders share: private servers, and waiting for a condition."""
