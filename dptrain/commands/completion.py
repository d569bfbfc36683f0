"""`dptrain completion`."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.terminal.words import OneOf, Word

COMPLETION = Command(
    name="completion",
    line="completion of commands and words for bash or zsh",
    run="dptrain.commands.acts.completion:completion",
    about="Print a script that completes commands, their words, settings and recipes.",
    words={"shell": Word(OneOf(("bash", "zsh")), "bash or zsh")},
    bare="shell",
    examples=('eval "$(dptrain completion bash)"', "dptrain completion zsh > ~/.zfunc/_dptrain"),
)
