"""`dptrain attack`: results in the agreed schema, modes, resuming, refusals, exit codes, and no pixel elsewhere."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dptrain import cli
from dptrain.audit import rounds
from dptrain.audit.games import lineup, message
from dptrain.audit.games import pictures as drawn_pictures
from dptrain.audit.reconstruction import attack_run, attack_settings
from dptrain.errors import EXIT_GUARANTEE_BROKEN, EXIT_REFUSED_BY_LEDGER, ConfigError, LedgerRefused
from dptrain.records import Attack, RunFolder
from dptrain.training import inputs
from dptrain.training.run import train
from dptrain.training.step import PrivateStep
from tests.audit.test_lineup import less_noise
from tests.training.conftest import PASSPHRASE, Site, make_site

__all__ = ["make_site"]

NETWORK = ["model=linear", "model.network.in_features=64", "model.network.num_classes=1"]
GAMES = ["attack.trials=5", "attack.candidates=8", "attack.side=16", "attack.patients_in_message=[1,4]"]
SMALL = [*NETWORK, *GAMES]


def quiet(_: str) -> None:
    return None


def attacked(site: Site, *words: str) -> Any:
    settings = site.settings(f"training.run={site.folder / 'attack'}", *SMALL, *words)
    return attack_settings(settings, say=quiet)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_command(make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]) -> None:
    site = make_site(8.0)
    words = [*site.words, f"training.run={site.folder / 'attack'}", *SMALL, "attack.epsilons=1000"]
    assert cli.main(["attack", *words]) == 0
    told = capsys.readouterr().out
    assert "line-up of 8" in told
    assert "guess without the model" in told
    folder = RunFolder(site.folder / "attack")
    attack = Attack.of(json.loads(folder.attack_json.read_text()))
    assert {row.game for row in attack.rows} == {"lineup", "message", "weights"}
    for row in attack.rows:
        assert row.low is not None
        assert row.success is not None
        assert row.low <= row.success <= (row.high or 0)
        assert row.above in (None, False)
    assert [row.epsilon for row in attack.rows if row.game == "lineup"] == [1000, pytest.approx(7, abs=1)]
    arms = {(row.arm, row.epsilon is None) for row in attack.rows if row.game == "message"}
    assert arms == {("none", True), ("clip only", True), ("epsilon", False)}
    assert {path.name for path in files(folder.attack)} == {"attack.json", "figure.png"}
    assert stat.S_IMODE(folder.attack.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(folder.attack)} == {0o600}
    assert cli.main(["attack", *words]) == 0
    assert "was finished at" in capsys.readouterr().out


def test_it_charges_nothing_and_is_an_audit_of_the_ledger(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    before = site.ledger.status("tiny").spent_epsilon
    attacked(site, "attack.game=[message]")
    assert site.ledger.status("tiny").spent_epsilon == before
    site.ledger.lock("tiny", reason="closed")
    with pytest.raises(LedgerRefused, match="locked"):
        attacked(site, "attack.game=[message]", "attack.trials=6")


@pytest.mark.parametrize("how", ["public", "permitted"])
def test_pictures_of_a_private_cohort_are_refused(make_site: Callable[..., Site], how: str) -> None:
    site = make_site(8.0)
    words = [*site.words, f"training.run={site.folder / 'attack'}", *SMALL, f"attack.pictures={how}"]
    assert cli.main(["attack", *words]) == EXIT_REFUSED_BY_LEDGER
    assert not (site.folder / "attack" / "restricted").exists()


def test_a_signed_permission_with_a_last_day_lets_pictures_be_drawn(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    controller = site.keys.controller(PASSPHRASE)
    words = ("attack.game=[message]", "attack.pictures=permitted")
    with pytest.raises(ConfigError, match="last day"):
        site.ledger.permit("pictures", "tiny", controller, reason="a talk")
    site.ledger.permit("pictures", "tiny", controller, reason="a talk", last_day="2020-01-01")
    with pytest.raises(LedgerRefused, match="not declared public"):
        attacked(site, *words)
    number = site.ledger.permit("pictures", "tiny", controller, reason="a talk", last_day="2999-01-01")
    result = attacked(site, *words)
    assert result.attack.until == "2999-01-01"
    with Image.open(result.folder.attack / "figure.png") as image:
        assert image.height > 800  # pictures above the panel
    site.ledger.revoke(number, reason="held", controller=controller)
    with pytest.raises(LedgerRefused, match="purpose=pictures"):
        attacked(site, *words, "attack.trials=6")


def test_pictures_of_a_public_cohort_are_in_one_file_and_nowhere_else(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sentinels: no file of the run holds a patient's pixels as numbers, and only the figure is a picture."""
    site = make_site(None, public=True)
    drawn: list[int] = []
    keep = drawn_pictures.draw

    def note(path: Path, rows: Any, columns: Any, text: str) -> None:
        drawn.append(len(columns))
        keep(path, rows, columns, text)

    monkeypatch.setattr(drawn_pictures, "draw", note)
    result = attacked(site, "attack.pictures=public", "privacy.target_epsilon=8", "attack.game=[message,weights]")
    assert drawn[0] >= 6
    everything = files(site.folder / "attack")
    pictures = [path for path in everything if path.suffix in (".png", ".npz", ".npy", ".jpg", ".svg", ".pt")]
    assert pictures == [result.folder.attack / "figure.png"]
    with Image.open(pictures[0]) as image:
        assert image.width > image.height / 2
        assert "Author" not in image.info
    sentinels = []
    for path in (site.folder / "images").glob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        sentinels += [pixels.tobytes(), (pixels / 255).astype(np.float32).tobytes()]
    for path in everything:
        content = path.read_bytes()
        assert not any(sentinel in content for sentinel in sentinels), path
    told = capsys.readouterr().out
    assert "P0" not in told


def test_numbers_alone_draw_no_picture(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(8.0)

    def none(*_: Any) -> None:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr(drawn_pictures, "_picture", none)
    attacked(site, "attack.game=[message]")


def test_who_withdrew_is_never_a_target(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(8.0)
    gone = "P003"
    site.ledger.withdraw(site.keys.patient_key("made-up", gone))
    key = site.keys.patient_key("made-up", gone)
    seen: list[set[bytes]] = []
    honest = rounds.play

    def watched(bench: rounds.Bench, say: Any) -> Any:
        seen.append({bench.cohort.patients[p].key for p in bench.places})
        return honest(bench, say)

    monkeypatch.setattr("dptrain.audit.reconstruction.play", watched)
    attacked(site)
    assert key not in seen[0]
    assert len(seen[0]) == 51


def test_an_interrupted_attack_goes_on(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(8.0)
    honest = lineup.play
    played: list[int] = []

    def breaks(*arguments: Any, **named: Any) -> Any:
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(arguments[2])
        return honest(*arguments, **named)

    monkeypatch.setattr(lineup, "play", breaks)
    with pytest.raises(KeyboardInterrupt):
        attacked(site, "attack.game=[lineup]")
    played.clear()
    played.append(-1)
    result = attacked(site, "attack.game=[lineup]")
    assert len(played) == 3  # the mark and two trainings: three of five were kept
    assert result.attack.rows[0].trials == 5


def test_a_broken_engine_ends_with_6(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(8.0)
    less_noise(monkeypatch, 64)  # an eighth is found in every second of so short line-ups at epsilon 1
    words = [*site.words, f"training.run={site.folder / 'attack'}", *SMALL, "attack.game=lineup", "attack.trials=12"]
    words += ["attack.targets=canaries", "attack.candidates=30", "privacy.target_epsilon=1"]
    assert cli.main(["attack", *words]) == EXIT_GUARANTEE_BROKEN
    assert "twice over" in capsys.readouterr().err


def test_an_attack_on_a_run(make_site: Callable[..., Site]) -> None:
    site = make_site(12.0)
    settings = site.settings(f"training.run={site.folder / 'run'}", *NETWORK)
    folder = train(settings, say=quiet).folder
    result = attack_run(folder.path, [*GAMES, "attack.game=[lineup]", "attack.draws=known"], say=quiet)
    assert result.attack.rows[0].bound_of == "the training with known draws"
    assert result.attack.plan_sha256 == inputs.load_run(folder.path).plan.digest
    with pytest.raises(ConfigError, match="another training"):
        attack_run(folder.path, ["privacy.steps=3"], say=quiet)


def test_a_network_without_closed_form_meets_shadows(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    network = ["model=mlp", *NETWORK[1:], "model.network.hidden=[4]"]
    words = [*network, *GAMES, "attack.game=[weights]", "attack.candidates=16", "attack.shadows=8", "attack.trials=2"]
    result = attack_settings(site.settings(f"training.run={site.folder / 'attack'}", *words), say=quiet)
    networks = [row.network for row in result.attack.rows]
    by_shadow = networks.count("the run's, by shadow models")
    assert by_shadow == 2 or [one.why for one in result.attack.left_out] == [rounds.FEW_ALIKE]


def test_records_that_are_no_pictures_are_said_not_to_be_played(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    settings = site.settings(*SMALL, "data.image_shape=[1,64]", "attack.game=[lineup,message]")
    assert settings.attack.pictures == "none"  # off by default
    bench = rounds.Bench(settings, None, None, None, None, [], None)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "gather", lambda *_: (None, None))
        rows, columns, left_out = rounds.play(bench, quiet)
    assert [one.game for one in left_out] == ["message"]
    assert "two dimensions" in left_out[0].why
    assert not rows
    assert not columns


def test_the_prior_is_named_in_its_row(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    rows = attacked(site, "attack.game=[message]", "attack.prior=public").attack.rows
    assert {row.prior for row in rows} == {"none", "public"}
    with_prior = next(row for row in rows if row.prior == "public")
    assert with_prior.arm == "epsilon"
    assert with_prior.ssim == pytest.approx(with_prior.guess, abs=0.15)


@pytest.mark.parametrize(
    "word", ["attack.game=[linup]", "attack.draws=open", "attack.trials=0", "attack.side=4", "attack.epsilons=[0]"]
)
def test_what_is_wrong_is_refused(make_site: Callable[..., Site], word: str) -> None:
    with pytest.raises(ConfigError, match=r"attack\."):
        make_site(8.0).settings(word)


def test_the_message_seam_is_the_run_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and clip come from PrivateStep, not from the game."""
    called: list[str] = []
    honest = PrivateStep.noisy_mean

    def note(self: Any, total: Any) -> Any:
        called.append("noisy_mean")
        return honest(self, total)

    monkeypatch.setattr(PrivateStep, "noisy_mean", note)
    line = torch.rand(4, 16, 16).numpy()
    from tests.audit.test_message import PLAN

    message.play(PLAN, line, np.array([1]), torch.rand(30, 16, 16).numpy())
    assert called == ["noisy_mean"]
