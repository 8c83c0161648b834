"""Other task queues, and the usual outbox of tutorials, measured on the same servers in the same run."""
