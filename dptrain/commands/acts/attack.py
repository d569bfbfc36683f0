"""`dptrain attack`: words in, plain sentences out; exit code 6 where the guarantee is broken."""

from __future__ import annotations

import sys

from dptrain.audit.reconstruction import attack_run, attack_settings
from dptrain.commands.acts.sweep import is_sweep
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, EXIT_GUARANTEE_BROKEN, ConfigError
from dptrain.records.attack import Attack, AttackRow
from dptrain.settings import load

LISTS = ("attack.game", "attack.patients_in_message", "attack.epsilons")
NAMES = {"none": "no protection", "clip only": "clip only"}


def attack(call: Call) -> int:
    """Attack a run or a recipe."""
    path, words = call.words["run"], [listed(word) for word in call.settings]
    if path is None and not any(word.startswith(("recipe=", "data.", "name=")) for word in words):
        raise ConfigError("There is nothing to attack.", remedy="Give run=<folder of a run> or recipe=<task>.")
    if is_sweep(words):
        raise ConfigError("Attacks are not swept.", remedy="Leave -m out; attack.epsilons=1,8,1000 takes several.")
    result = attack_settings(load(words)) if path is None else attack_run(path, words)
    tell(result.attack)
    print(f"results (restricted, not covered by epsilon): {result.folder.attack}")
    if result.broken is not None:
        print(result.broken, file=sys.stderr)
        return EXIT_GUARANTEE_BROKEN
    return EXIT_DONE


def listed(word: str) -> str:
    """`attack.game=lineup,message` as the list that it means."""
    name, _, value = word.partition("=")
    return f"{name}=[{value}]" if name in LISTS and not value.startswith("[") else word


def tell(attack: Attack) -> None:
    """The findings in plain sentences, game by game."""
    for row in attack.rows:
        print(sentence(row, attack.unit or "patient"))
    for one in attack.left_out:
        print(f"not played: {one.game} ({one.why})")
    if any(row.game == "message" and row.arm == "epsilon" for row in attack.rows):
        print(
            "Mind the guess: pictures of one kind are alike. One counts as reconstructed only where the right patient"
            " is the nearest of all, and nearer than anybody else's picture comes."
        )


def sentence(row: AttackRow, unit: str) -> str:
    """One row in words."""
    under = NAMES.get(row.arm) or ("no noise" if row.epsilon is None else f"epsilon {row.epsilon:.3g}")
    interval = f"{row.successes} of {row.trials} ({row.low:.1%} to {row.high:.1%})"
    bound = "nothing was promised" if row.bound is None else f"allowed at most {row.bound:.1%}"
    if row.game == "lineup":
        test = "" if row.refutable or row.bound is None else "; so few trainings could not have passed the bound"
        return (
            f"line-up of {row.candidates}, {under}, {row.draws} draws: the right {unit} named in {interval}, "
            f"guessing gives {row.chance:.1%}, {bound}; mean rank {row.mean_rank:.1f}{test}"
        )
    what = (
        f"message of {row.patients_in_message} to an {row.coordinator} coordinator"
        if row.coordinator == "honest"
        else f"message of {row.patients_in_message} to a coordinator with an imprint layer"
        if row.game == "message"
        else f"weights of {row.network}"
    )
    likeness = (
        "a vector of features, not a picture"
        if row.ssim is None
        else f"SSIM {row.ssim:.3f}; nearest other {row.nearest_other:.3f}, guess without the model {row.guess:.3f}"
    )
    return f"{what}, {under}: {interval} reconstructed, {bound}; {likeness}"
