"""The one entry point. It finds the command, runs it, and turns errors into plain words and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from dptrain.errors import EXIT_DONE, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE, ConfigError, DptrainError, quiet
from dptrain.shipped import resolved, shipped
from dptrain.terminal.words import suggest

# command -> (module, function, one line for --help). Modules are imported only when their command runs.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "plan": ("dptrain.training.commands", "plan_main", "what a training would promise and cost; touches no data"),
    "check": ("dptrain.training.commands", "check_main", "is this network and pipeline fit for private training?"),
    "train": ("dptrain.training.commands", "train_main", "train under a plan that the ledger has granted"),
    "evaluate": ("dptrain.training.commands", "evaluate_main", "score a run on its test patients"),
    "audit": ("dptrain.audit.commands", "main", "measure the risk that remains, patient by patient"),
    "report": ("dptrain.report.commands", "main", "write the data protection officer's report"),
    "release": ("dptrain.report.release", "release_main", "record the controller's decision and publish"),
    "ledger": ("dptrain.registration", "ledger_main", "budgets, grants, charges, locks"),
    "demo": ("dptrain.demo", "demo_main", "the whole way on real or made-up chest X-rays, in minutes"),
}

EXAMPLES = """\
examples:
  dptrain plan public_size=2215 privacy.expected_batch_size=600 privacy.target_epsilon=3
  dptrain ledger register recipe=chest_xray_pneumonia public_size=2215 owner="Radiology"
  dptrain ledger budget cohort=chest_xray_pneumonia epsilon=8 recipe=chest_xray_pneumonia reason="study"
  dptrain train recipe=chest_xray_pneumonia privacy.target_epsilon=8
  dptrain train -m recipe=chest_xray_pneumonia privacy.target_epsilon=1,2,4
  dptrain audit run=runs/demo
  dptrain report run=runs/demo lang=de

exit codes: 0 done · 2 usage or configuration · 3 refused by the ledger · 4 refused by the check
            5 data unreadable · 6 the guarantee is broken · 1 internal error · 130 interrupted"""


def usage() -> str:
    """The text of `dptrain --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {help_}" for name, (_, _, help_) in COMMANDS.items()]
    return "\n".join(
        [
            "dptrain: differentially private training for medical imaging",
            "",
            "usage: dptrain COMMAND [name=value …]      dptrain COMMAND --help",
            "",
            *lines,
            "",
            EXAMPLES,
            "",
            f"documentation: {shipped('docs')}",
        ]
    )


def find(name: str) -> Callable[[list[str]], int]:
    """The function behind a command. Raises ConfigError with the nearest names for one that does not exist."""
    if name not in COMMANDS:
        raise ConfigError(f"There is no command '{name}'.", remedy=suggest(name, list(COMMANDS)))
    module, function, _ = COMMANDS[name]
    return getattr(importlib.import_module(module), function)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never shows a traceback for a mistake of the user."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return EXIT_DONE if words else EXIT_USAGE
    if words[0] == "--version":
        from dptrain import __version__

        print(f"dptrain {__version__}")
        return EXIT_DONE
    quiet()
    try:
        return find(words[0])(words[1:])
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
