"""Adapters: the guard inside of frameworks' own loops.

Nothing is imported here: each module imports its framework, which the package itself does not need.
"""
