"""`dptrain completion`: a script for bash or zsh, made from the declarations and the settings.

What may follow is a list of texts, one list a command: `name=value` where the values are few, else `name=`, behind
which the shell offers files. The script computes nothing and starts nothing, so that it answers at once.
"""

from __future__ import annotations

from dptrain.commands.command import Call, Command, Takes
from dptrain.commands.table import COMMANDS, members, tops
from dptrain.errors import EXIT_DONE
from dptrain.settings.names import GROUPS, setting_names
from dptrain.settings.places import recipe_folders
from dptrain.shipped import shipped
from dptrain.terminal.words import OneOf, Word, yes_or_no

BASH = """\
# Completion of dptrain for bash: eval "$(dptrain completion bash)"
_dptrain() {
  local line="${COMP_LINE:0:COMP_POINT}" current command list
  local -a typed
  read -ra typed <<< "$line"
  [[ "$line" == *[[:space:]] ]] && typed+=("")
  current="${typed[-1]}"
  command="${typed[*]:1:2}"
  (( ${#typed[@]} > 3 )) || command="${typed[*]:1:${#typed[@]}-2}"
  _dptrain_list "$command" || _dptrain_list "${typed[1]}" || list=""
  if [[ "$current" == *=* && "$list" != *" $current"* ]]; then
    COMPREPLY=($(compgen -f -- "${current#*=}"))
    compopt -o filenames
    [[ "$COMP_WORDBREAKS" == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/${current%%=*}=}")
    return
  fi
  COMPREPLY=($(compgen -W "$list" -- "$current"))
  [[ ${#COMPREPLY[@]} -gt 0 || -z "$list" ]] || COMPREPLY=($(compgen -f -- "$current"))
  [[ "${COMPREPLY[*]}" == *= ]] && compopt -o nospace
  if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*=}"}"}")
  fi
}
_dptrain_list() {
  local settings=@SETTINGS@
  case "$1" in
@CASES@
    *) return 1 ;;
  esac
}
complete -F _dptrain dptrain
"""

ZSH = """\
#compdef dptrain
# Completion of dptrain for zsh: eval "$(dptrain completion zsh)", or a file _dptrain in a folder of $fpath
_dptrain() {
  local list
  local -a offered
  if (( CURRENT > 3 )) && _dptrain_list "$words[2] $words[3]"; then :
  elif (( CURRENT > 2 )); then _dptrain_list "$words[2]" || list=""
  else _dptrain_list ""
  fi
  offered=(${=list})
  offered=(${(M)offered:#$PREFIX*})
  if [[ "$PREFIX" == *=* && ${#offered} == 0 ]]; then
    compset -P 1 '*='
    _files
    return
  fi
  compadd -S '' -- ${(M)offered:#*=}
  compadd -- ${offered:#*=}
}
_dptrain_list() {
  local settings=@SETTINGS@
  case "$1" in
@CASES@
    (*) return 1 ;;
  esac
}
if [[ "$funcstack[1]" == _dptrain ]]; then _dptrain "$@"; else compdef _dptrain dptrain; fi
"""


def completion(call: Call) -> int:
    """Print the script."""
    template = {"bash": BASH, "zsh": ZSH}[call.words["shell"]]
    text = template.replace("@SETTINGS@", quoted(" " + " ".join(settings_offered())))
    print(text.replace("@CASES@", "\n".join(cases())), end="")
    return EXIT_DONE


def cases() -> list[str]:
    """What may follow what was typed, one line a command; after nothing, the commands."""
    start = quoted(" " + " ".join([*tops(), "--help", "--version"]))
    lists = {name: quoted(" " + " ".join(offered(command))) for name, command in COMMANDS.items()}
    with_settings = {name for name, command in COMMANDS.items() if command.takes is not Takes.WORDS}
    return [
        f"    ('') list={start} ;;",
        *(
            f"    ({quoted(name)}) list={text}{'$settings' if name in with_settings else ''} ;;"
            for name, text in lists.items()
        ),
    ]


def quoted(text: str) -> str:
    """For either shell, where nothing is expanded."""
    return "'" + text.replace("'", "'\\''") + "'"


def offered(command: Command) -> list[str]:
    """What may follow a command, settings left out: its members, words and flags."""
    below = [member.name.removeprefix(f"{command.name} ") for member in members(command.name)]
    if not command.run:
        return [*below, "--help"]
    words = [text for name, word in command.words.items() for text in with_values(name, word)]
    alone = [text.partition("=")[2] for text in words if command.bare and text.startswith(f"{command.bare}=")]
    return [*below, *filter(None, alone), *words, *command.flags, "--help"]


def with_values(name: str, word: Word) -> list[str]:
    """`name=value` for each value where they are few, else `name=`."""
    if isinstance(word.parse, OneOf):
        return [f"{name}={value}" for value in word.parse.values]
    return [f"{name}=yes", f"{name}=no"] if word.parse is yes_or_no else [f"{name}="]


def settings_offered() -> list[str]:
    """Every setting, and the options of each group; recipes are those that lie where recipes are looked for."""
    options = {group: sorted(file.stem for file in (shipped("conf") / group).glob("*.yaml")) for group in GROUPS}
    options["recipe"] = sorted(recipe_folders())
    names = [name for name in setting_names() if name not in GROUPS]
    return [*(f"{group}={option}" for group in GROUPS for option in options[group]), *(f"{name}=" for name in names)]
