"""`dptrain predict`: a model's answers for new images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dptrain.commands.command import Call
from dptrain.errors import EXIT_DATA_UNREADABLE, EXIT_DONE
from dptrain.terminal.output import Output
from dptrain.training.prediction import FLAGGED, OK, REFUSED, bundle_of, files_of, predict_files, write

REASONS = 6  # lines of reasons that are shown


def predict(call: Call) -> int:
    """Predict; exit code 5 where every image was refused."""
    run, source, out_file, column = (call.words[name] for name in ("run", "input", "out", "column"))
    out = Output(as_json=call.as_json)
    files = files_of(Path(source), column)
    rows = predict_files(bundle_of(Path(run)), files)
    target = Path(out_file)
    write(target, rows)
    count = Counter(row.status for row in rows)
    out.give([{"file": row.file.name, "status": row.status, "why": row.why, **row.values} for row in rows])
    out.say(f"{len(rows)} images: {count[OK]} ok, {count[FLAGGED]} flagged, {count[REFUSED]} refused: {target}")
    reasons = Counter(f"{row.status}: {row.why}" for row in rows if row.status != OK)
    for reason, times in reasons.most_common(REASONS):
        out.say(f"  {times} × {reason}")
    if len(reasons) > REASONS:
        out.say(f"  and {len(reasons) - REASONS} other reasons: column 'why'")
    return EXIT_DATA_UNREADABLE if count[REFUSED] == len(rows) else EXIT_DONE
