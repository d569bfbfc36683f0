"""The report: facts of a run, two editions, several faces. Reads files; computes nothing from patients.

`build(folder, lang, edition)` writes a report; `dptrain.report.facts.read` gives the facts alone. Nothing here
imports torch, and drawing and typesetting are loaded only when a face is made.
"""

from dptrain.report.build import build
from dptrain.report.facts import public, read

__all__ = ["build", "public", "read"]
