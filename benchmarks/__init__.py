"""How fast Baton is, beside the limits of the same machine and beside other task queues, in the same run."""
