"""The rounds of a reconstruction attack: each game under each degree of protection, one row each.

Here the games (:mod:`.games`) meet a cohort under its grant; what was done is kept, so that an attack that was
interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom, norm

from dptrain import accounting
from dptrain.audit import reference, statistics
from dptrain.audit.games import lineup, message, pictures, weights
from dptrain.audit.games.likeness import Likeness, correlations, likeness, nearest_other, rank_p_value
from dptrain.audit.games.lineup import WRONG, Trial
from dptrain.audit.games.message import HONEST, IMPRINT, Found, Prior
from dptrain.audit.games.pictures import Column, Line
from dptrain.audit.games.population import gather
from dptrain.audit.reference import Material
from dptrain.audit.scores import Array
from dptrain.audit.work import Kept
from dptrain.data import Cohort
from dptrain.leave import Leave
from dptrain.models.network import build_network
from dptrain.plan import Plan
from dptrain.randomness import new_generator
from dptrain.records.attack import AttackRow, LeftOut
from dptrain.settings import AttackConfig, Settings
from dptrain.settings.data import shape_of
from dptrain.terminal.progress import progress
from dptrain.vocabulary import Labels, task_spec

Say = Callable[[str], None]
NONE, CLIP, EPSILON = "none", "clip only", "epsilon"
NO_PICTURES = "message and weights reconstruct pictures of two dimensions, which the records of this cohort are not"
FEW_ALIKE = "too few patients of one label for shadow trainings"


@dataclass(frozen=True)
class Arm:
    """One degree of protection; epsilon None: none."""

    name: str
    epsilon: float | None
    plan: Plan

    @property
    def key(self) -> str:
        """For names of files."""
        return f"{self.name.replace(' ', '-')}-{self.epsilon or 0:g}"


@dataclass(frozen=True)
class Bench:
    """What all games share: settings, arms, the cohort under its grant, and what was done so far."""

    settings: Settings
    plan: Plan
    cohort: Cohort
    grant: Leave
    work: Kept
    places: list[int]
    device: torch.device

    @property
    def config(self) -> AttackConfig:
        """What is asked for."""
        return self.settings.attack


def play(bench: Bench, say: Say) -> tuple[list[AttackRow], list[Column], list[LeftOut]]:
    """Every game that is asked for: rows, columns of pictures, and what could not be played."""
    rows: list[AttackRow] = []
    columns: list[Column] = []
    left_out: list[LeftOut] = []
    games = bench.config.game
    flat = len(shape_of(bench.settings.data)) == 3
    material = None
    if "lineup" in games or ("weights" in games and flat):
        material, _ = gather(
            bench.settings,
            bench.cohort,
            bench.grant,
            bench.plan,
            dataclasses.replace(bench.settings.audit, new_scan=0.0),
        )
    if "lineup" in games and material is not None:
        rows += lineup_rows(bench, material, say)
    left_out += [LeftOut(game=game, why=NO_PICTURES) for game in games if game != "lineup" and not flat]
    if flat and {"message", "weights"} & set(games):
        chosen = choose_pictures(bench)
        line = line_of(bench, chosen)
        if "message" in games:
            say("attacking single messages")
            seen, columns = message_rows(bench, line)
            rows += seen
        if "weights" in games and material is not None:
            say("attacking released weights")
            rows += weights_rows(bench, line)
            more, why = network_rows(bench, line, material, chosen)
            rows += more
            left_out += [LeftOut(game="weights", why=why)] if why else []
    return rows, columns, left_out


def arms_of(plan: Plan, epsilons: Sequence[float]) -> list[Arm]:
    """The plan's promise, and further ones of the training alone, each with the noise that it takes."""
    arms = []
    if plan.private:
        arms.append(Arm(EPSILON, accounting.pld_epsilon(plan.mechanisms, plan.delta), plan))
    for epsilon in epsilons:
        noise = accounting.calibrate_noise(epsilon, plan.delta, plan.sample_rate, plan.steps)
        changed_plan = dataclasses.replace(plan, noise_multiplier=noise, calibration_noise_multiplier=None)
        arms.append(Arm(EPSILON, None if math.isinf(epsilon) else epsilon, changed_plan))
    return sorted(arms, key=lambda arm: math.inf if arm.epsilon is None else arm.epsilon, reverse=True)


def _unprotected(plan: Plan) -> list[Arm]:
    """Without clip and noise, and with the clip alone."""
    return [
        Arm(NONE, None, message.unprotected(plan, clip=False)),
        Arm(CLIP, None, message.unprotected(plan, clip=True)),
    ]


def lineup_rows(bench: Bench, material: Material, say: Say) -> list[AttackRow]:
    """One row an arm. A bound that seems passed is tried once more, with trainings of its own."""
    config = bench.config
    arms = arms_of(bench.plan, config.epsilons) or [Arm(CLIP, None, bench.plan)]
    say(f"line-up: {len(arms) * config.trials} trainings")
    rows = []
    for arm in arms:
        under = dataclasses.replace(material, plan=arm.plan)
        under, candidates = _candidates(bench, under, arm)
        result = lineup.summarise(
            _trials(bench, under, candidates, arm, "lineup"),
            len(candidates),
            arm.plan,
            config.draws,
            config.confidence,
        )
        above = result.above
        if above:
            say("the line-up passes its bound; once more, to be sure")
            again = _trials(bench, under, candidates, arm, "again")
            successes = sum(trial.rank == 1 for trial in again)
            above = bool(binom.sf(successes - 1, len(again), result.bound) < math.sqrt(WRONG))
        rows.append(
            AttackRow(
                game="lineup",
                arm=arm.name,
                epsilon=arm.epsilon,
                returns="who it was",
                draws=config.draws,
                targets=config.targets,
                bound_of="the training" if config.draws == lineup.SECRET else "the training with known draws",
                first=result.success,
                **{**dataclasses.asdict(result), "above": above},
            )
        )
    return rows


def _candidates(bench: Bench, material: Material, arm: Arm) -> tuple[Material, np.ndarray]:
    """Who stands in the line: chosen when the attack began, the same ones after a resume."""
    config = bench.config
    if config.targets == "canaries":
        most = int(material.inputs[0].numel()) // 2
        count = config.candidates or lineup.size_for(arm.plan, most)
        planted, candidates = lineup.plant(material, count)
        own = len(material.inputs)
        made = bench.work.array(f"canaries-{arm.key}", lambda: planted.inputs[own:].numpy())
        labels = bench.work.array(f"canary-labels-{arm.key}", lambda: planted.labels[own:].numpy())
        same = torch.cat([material.inputs, torch.from_numpy(made)])
        return dataclasses.replace(
            planted, inputs=same, labels=torch.cat([material.labels, torch.from_numpy(labels)])
        ), candidates
    count = config.candidates or lineup.size_for(arm.plan, max(2, material.patients // 2))
    name = f"candidates-{arm.key}"
    return material, bench.work.array(name, lambda: lineup.choose(material, min(count, material.patients)))


def _trials(bench: Bench, material: Material, candidates: np.ndarray, arm: Arm, name: str) -> list[Trial]:
    trials = []
    with progress(bench.config.trials, f"line-up of {len(candidates)}, {_protection(arm)}") as bar:
        for number in range(bench.config.trials):

            def one() -> Array:
                target = int(new_generator().integers(len(candidates)))
                trial = lineup.play(material, candidates, target, draws=bench.config.draws, device=bench.device)
                return np.array([trial.rank, trial.taken])

            rank, taken = bench.work.array(f"{name}-{arm.key}-{number:04d}", one).tolist()
            trials.append(Trial(int(rank), int(taken)))
            bar.advance()
    return trials


def _protection(arm: Arm) -> str:
    return arm.name if arm.epsilon is None else f"epsilon {arm.epsilon:.3g}"


@dataclass(frozen=True)
class Chosen:
    """Whose pictures are used: positions in `Bench.places`, the line-up's `size` first, then the others."""

    size: int
    order: np.ndarray


def choose_pictures(bench: Bench) -> Chosen:
    """Drawn when the attack began, the same ones after a resume."""
    size = bench.config.candidates or 100
    size = max(2, min(size, len(bench.places) // 3))
    count = min(len(bench.places), size + bench.config.known)
    order = bench.work.array("pictures", lambda: new_generator().permutation(len(bench.places))[:count])
    return Chosen(size, order)


def line_of(bench: Bench, chosen: Chosen) -> Line:
    """Read the pictures under the grant; what cannot be read is left out of the others, and black in the line."""
    size, order = chosen.size, chosen.order
    shown, labels = pictures.load(
        bench.cohort, [bench.places[i] for i in order.tolist()], bench.grant, bench.config.side
    )
    truth = _two_classes(labels, bench.settings.data.task)
    readable = np.asarray(np.isfinite(shown).all(axis=(1, 2)))
    legible = readable[size:]
    line, others = pictures.scaled(np.nan_to_num(shown[:size]), shown[size:][legible])
    return Line(line, others, truth[:size], truth[size:][legible])


def _two_classes(labels: np.ndarray, task: str) -> np.ndarray:
    """0 or 1 of each record: the class, any finding, any foreground; of several classes, whether it is the first."""
    spec = task_spec(task)
    if spec.labels is not Labels.CLASS:
        return np.asarray((np.nan_to_num(labels.reshape(len(labels), -1)) > 0.5).any(axis=1), dtype=np.int64)
    return np.asarray(labels, dtype=np.int64) if spec.one_logit else np.asarray(labels == 0, dtype=np.int64)


def message_rows(bench: Bench, line: Line) -> tuple[list[AttackRow], list[Column]]:
    """Messages of one patient and of several, to an honest and to a malicious coordinator, under every arm."""
    config, size = bench.config, len(line.pictures)
    arms = [*_unprotected(bench.plan), *arms_of(bench.plan, config.epsilons)]
    prior = Prior.of(line.known[:500]) if config.prior == "public" else None
    counts = [count for count in config.patients_in_message if count < size]
    games = [(coordinator, n) for n in counts for coordinator in ((HONEST,) if n == 1 else (HONEST, IMPRINT))]
    rows: list[AttackRow] = []
    columns = _first_columns(line, config.trials)
    with progress(len(arms) * len(games), "messages") as bar:
        for arm in arms:
            for coordinator, count in games:
                plays = [None, prior] if prior is not None and count == 1 and arm.name == EPSILON else [None]
                for with_prior in plays:
                    seen = list(_messages(line, arm, coordinator, count, config.trials, with_prior))
                    row = _picture_row(arm, [one.likeness for one in seen], config, count)
                    rows.append(
                        dataclasses.replace(
                            row,
                            game="message",
                            coordinator=coordinator,
                            network="the coordinator's, 512 neurons on the picture",
                            patients_in_message=count,
                            prior="public" if with_prior is not None else NONE,
                        )
                    )
                    if count == 1:
                        columns.append(_column(arm, seen, with_prior))
                bar.advance()
    return rows, columns


def _messages(
    line: Line, arm: Arm, coordinator: str, count: int, trials: int, prior: Prior | None
) -> Iterator[Found]:
    """What is found of `trials` patients, `count` a message: the first of the line-up, in their order."""
    size = len(line.pictures)
    for begin in range(0, max(count, min(trials, size)), count):
        targets = np.arange(begin, begin + count) % size
        yield from message.play(arm.plan, line.pictures, targets, line.known, coordinator=coordinator, prior=prior)


def _first_columns(line: Line, trials: int) -> list[Column]:
    """Original, nearest other, guess without the model."""
    shown = min(pictures.SHOWN, trials, len(line.pictures))
    nearest = np.stack([line.pictures[nearest_other(target, line.pictures)] for target in range(shown)])
    guess = np.repeat(line.known.mean(axis=0)[None], shown, axis=0)
    return [
        Column("original", line.pictures[:shown]),
        Column("nearest other\npatient", nearest),
        Column("guess without\nthe model", guess),
    ]


def _column(arm: Arm, seen: Sequence[Found], prior: Prior | None) -> Column:
    promise = "∞" if arm.epsilon is None else f"{arm.epsilon:.3g}" if arm.epsilon < 1000 else f"{arm.epsilon:,.0f}"
    name = {NONE: "no protection", CLIP: "clip only"}.get(arm.name, f"ε = {promise}")
    if prior is not None:
        name += ",\npublic prior"
    return Column(name, np.stack([one.picture for one in seen[: pictures.SHOWN]]))


def _picture_row(arm: Arm, likes: Sequence[Likeness], config: AttackConfig, count: int) -> AttackRow:
    """The aggregates of reconstructions of pictures, with their nulls."""
    successes = sum(like.recovered for like in likes)
    low, high = statistics.clopper_pearson(successes, len(likes), config.confidence)
    ranks, size = np.array([like.rank for like in likes]), likes[0].candidates
    single = count == 1  # of several, the picture was chosen by its likeness: ranks would tell of the choice
    noise = arm.plan.noise_multiplier
    return AttackRow(
        arm=arm.name,
        epsilon=arm.epsilon,
        returns="picture",
        candidates=size,
        trials=len(likes),
        successes=successes,
        success=successes / len(likes),
        low=float(low),
        high=float(high),
        chance=1 / size,
        bound=float(norm.cdf(norm.ppf(1 / size) + 1 / noise)) if noise else None,
        bound_of="one message" if noise else None,
        first=float(np.mean(ranks == 1)) if single else None,
        mean_rank=float(ranks.mean()) if single else None,
        rank_p_value=rank_p_value(ranks, size) if single else None,
        ssim=float(np.mean([like.ssim for like in likes])),
        psnr=float(np.mean([like.psnr for like in likes])),
        nearest_other=float(np.mean([like.nearest_other for like in likes])),
        guess=float(np.mean([like.guess for like in likes])),
        shuffled=float(np.mean([like.shuffled for like in likes])),
    )


def _of_training(row: AttackRow, arm: Arm, network: str) -> AttackRow:
    """A row of the weights game, with the bound of the whole training."""
    size = row.candidates or 1
    return dataclasses.replace(
        row,
        game="weights",
        network=network,
        bound=lineup.bound_of(arm.plan, size, (), lineup.SECRET),
        bound_of="the training" if arm.plan.noise_multiplier else None,
    )


def weights_rows(bench: Bench, line: Line) -> list[AttackRow]:
    """A head on the pixels: converged without protection, and as the run's loop trains it under each promise."""
    config, size = bench.config, len(line.pictures)
    everyone = np.concatenate([line.pictures, line.known]).reshape(size + len(line.known), -1)
    labels = np.concatenate([line.labels, line.known_labels])
    guess = line.known.mean(axis=0)
    arms = [Arm(NONE, None, weights.everybody(bench.plan)), *arms_of(bench.plan, config.epsilons)]
    rows = []
    with progress(len(arms), "heads on pixels") as bar:
        for arm in arms:
            head = _head(bench, arm, everyone, labels)
            likes = []
            for target in range(min(config.trials, size)):
                rest = np.delete(np.arange(len(everyone)), target)
                picture = weights.invert(head, everyone[rest], labels[rest], config.penalty).reshape(guess.shape)
                other = (target + 1) % size
                likes.append(likeness(picture, target, line.pictures, guess=guess, shuffled=other))
            row = _picture_row(arm, likes, config, 1)
            rows.append(_of_training(row, arm, "a head on the pixels, everybody else known"))
            bar.advance()
    return rows


def _head(bench: Bench, arm: Arm, everyone: Array, labels: np.ndarray) -> weights.Head:
    if arm.name == NONE:
        return weights.converge(everyone, labels, bench.config.penalty)
    optimizer, ema = bench.settings.optimizer, bench.settings.training.ema
    return weights.private_head(weights.head_material(everyone, labels, arm.plan, optimizer, ema), bench.device)


def network_rows(bench: Bench, line: Line, material: Material, chosen: Chosen) -> tuple[list[AttackRow], str | None]:
    """The run's own network: a head on cached features returns features; any other meets a shadow reconstructor."""
    frozen = build_network(bench.settings).frozen is not None
    if reference.way_of(material.module, bench.plan, False) == "linear":
        return (feature_rows(bench, material, chosen) if frozen else []), None
    return shadow_rows(bench, line, material, chosen)


def feature_rows(bench: Bench, material: Material, chosen: Chosen) -> list[AttackRow]:
    """The closed form on the features of a frozen trunk: who knows everybody else gets a vector, not a picture."""
    config = bench.config
    size, order = chosen.size, chosen.order
    first = np.array([np.flatnonzero(material.patient.numpy() == patient)[0] for patient in order.tolist()])
    values = material.inputs[torch.from_numpy(first)].flatten(1).double().numpy()
    labels = _two_classes(material.labels[torch.from_numpy(first)].numpy(), material.task)
    good = np.isfinite(values).all(axis=1)
    good[:size] = True
    values, labels = np.nan_to_num(values[good]), labels[good]
    arms = [Arm(NONE, None, weights.everybody(bench.plan)), *arms_of(bench.plan, config.epsilons)]
    rows = []
    for arm in arms:
        head = _head(bench, arm, values, labels)
        near, ranks = [], []
        for target in range(min(config.trials, size)):
            rest = np.delete(np.arange(len(values)), target)
            vector = weights.invert(head, values[rest], labels[rest], config.penalty)
            near.append(np.linalg.norm(vector - values[target]) <= 0.01 * np.linalg.norm(values[target]))
            like = correlations(vector[None], values[:size])[0]
            ranks.append(1 + int(np.sum(np.delete(like, target) >= like[target])))
        low, high = statistics.clopper_pearson(sum(near), len(near), config.confidence)
        row = AttackRow(
            arm=arm.name,
            epsilon=arm.epsilon,
            returns="features",
            candidates=size,
            trials=len(near),
            successes=int(sum(near)),
            success=float(np.mean(near)),
            low=float(low),
            high=float(high),
            chance=1 / size,
            first=float(np.mean(np.array(ranks) == 1)),
            mean_rank=float(np.mean(ranks)),
            rank_p_value=rank_p_value(np.array(ranks), size),
        )
        rows.append(_of_training(row, arm, "the run's head on cached features"))
    return rows


def shadow_rows(bench: Bench, line: Line, material: Material, chosen: Chosen) -> tuple[list[AttackRow], str | None]:
    """A shadow reconstructor of the run's own network: shadows and targets of the line-up's label, all strangers."""
    config = bench.config
    size, order = chosen.size, chosen.order
    label = int(line.labels.mean() >= 0.5)
    alike = np.flatnonzero(line.labels == label)
    count = min(config.trials, len(alike) // 3, 16)
    if count < 1 or len(alike) - count < 8:
        return [], FEW_ALIKE
    targets, taught = alike[:count], alike[count : count + config.shadows]
    strangers = order[np.concatenate([taught, targets])].tolist()
    arms = [Arm(NONE, None, weights.everybody(bench.plan)), *arms_of(bench.plan, config.epsilons)]
    rows = []
    with progress(len(arms) * len(strangers), "shadow trainings") as bar:
        for arm in arms:

            def keep(number: int, make: Callable[[], Array], key: str = arm.key) -> Array:
                bar.advance()
                return bench.work.array(f"shadow-{key}-{number:04d}", make)

            seen = weights.shadows(
                dataclasses.replace(material, plan=arm.plan), strangers, device=bench.device, keep=keep
            )
            taught_pictures = line.pictures[taught]
            reconstruct = weights.learn(seen[: len(taught)], taught_pictures.astype(np.float64))
            likes = [
                likeness(
                    reconstruct(seen[len(taught) + n]),
                    int(target),
                    line.pictures,
                    guess=taught_pictures.mean(axis=0),
                    shuffled=(int(target) + 1) % size,
                )
                for n, target in enumerate(targets)
            ]
            rows.append(_of_training(_picture_row(arm, likes, config, 1), arm, "the run's, by shadow models"))
    return rows, None
