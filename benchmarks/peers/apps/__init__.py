"""The peers' own code: what their documentation asks an application to write, with their durable settings.

These modules run in an environment of their own, in which the peers are installed and we are not.
"""
