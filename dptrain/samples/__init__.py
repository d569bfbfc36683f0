"""Data for those who have none at hand: the public chest X-rays, fetched and checked, and a made-up cohort."""

from __future__ import annotations

from dptrain.samples.fetch import FetchFailed, download
from dptrain.samples.phantoms import phantom
from dptrain.samples.sources import DemoData, find_demo_data

__all__ = ["DemoData", "FetchFailed", "download", "find_demo_data", "phantom"]
