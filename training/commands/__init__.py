"""The commands of `python -m training`, one module each.

A module has `add_parser(commands)`, which adds its subparser and sets `run`, the function that takes the options.
"""
