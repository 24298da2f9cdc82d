"""Methods side by side on the paper's experiments: `python -m benchmarks SUITE`."""

__all__: list[str] = []
