"""Tests marked `peer` say what PEFT does; they run where it is the version that they were written about."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# What PEFT does depends on the transformers under it: version 5.24 calls a cache otherwise than older ones.
SEEN = {"peft": "0.21.2", "transformers": "5.24."}


def _others() -> list[str]:
    """Packages that are installed in another version than the one these tests were seen to pass with."""
    found = {}
    for package in SEEN:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return [f"{package} {version}" for package, version in found.items() if not version.startswith(SEEN[package])]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    others = _others()
    reason = f"seen with {' and '.join(' '.join(pair) for pair in SEEN.items())}x, and here is {', '.join(others)}"
    for item in items:
        if item.get_closest_marker("peer"):
            if others:
                item.add_marker(pytest.mark.skip(reason=reason))
            # PEFT calls what transformers is about to drop, and says what it ignores.
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:.*are not supported for parameter efficient tuning"))
