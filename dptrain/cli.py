"""The one entry point. It finds the command, runs it, and turns errors into plain words and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from dptrain import __version__
from dptrain.commands.table import run
from dptrain.errors import EXIT_DONE, EXIT_INTERNAL, EXIT_INTERRUPTED, DptrainError, quiet
from dptrain.shipped import resolved


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never shows a traceback for a mistake of the user."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(f"dptrain {__version__}")
        return EXIT_DONE
    quiet()
    try:
        return run(words)
    except DptrainError as error:
        print(resolved(f"dptrain {words[0]}: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:  # its file name may hold a patient's, so it stays out
        if os.environ.get("DPTRAIN_TRACEBACK") == "1":
            raise
        print(f"dptrain {words[0]}: a file cannot be read or written: {error.strerror}.", file=sys.stderr)
        print("Is there room on the disk, and may this account write there? DPTRAIN_TRACEBACK=1 names the file.",
              file=sys.stderr)  # fmt: skip
        return EXIT_INTERNAL
    except Exception as error:
        print(internal(words[0], error), file=sys.stderr)
        return EXIT_INTERNAL


def internal(command: str, error: Exception) -> str:
    """What to say of an internal error: its kind and place. Its text may hold pixels or ids, so it stays out.

    `DPTRAIN_TRACEBACK=1` prints everything, for those who may see the data.
    """
    if os.environ.get("DPTRAIN_TRACEBACK") == "1":
        return "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}dptrain{os.sep}" in frame.filename] or list(frames)
    place = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno} in {ours[-1].name}" if ours else "unknown place"
    return (
        f"dptrain {command}: internal error: {type(error).__name__} at {place}.\n"
        "The details may hold patient data and are not shown. Set DPTRAIN_TRACEBACK=1 to see them, "
        "where those who look at this terminal may see the data."
    )


def entry() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
