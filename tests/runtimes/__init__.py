"""Runtimes without this package that answer for an exported model."""
