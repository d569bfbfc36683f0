"""The ledger's secrets: names for patients and records, the site's signature, the controller's signature.

A folder (mode 0700) holds four files (mode 0600):

- `site.json`: the site's id and the public keys;
- `secret.json`: the HMAC secrets that turn patient ids and pixels into keys, oldest first;
- `site.pem`: the site's Ed25519 key, which signs every entry and head. It stays on the machine;
- `controller.json`: the controller's Ed25519 key, sealed by a passphrase (scrypt, ChaCha20-Poly1305). It may
  live elsewhere: training needs only the first three.

A recovery code, shown once when the keys are made, is the seed of a fourth Ed25519 key. Whoever holds it can
replace a lost site or controller key (docs/ledger.md).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import stat
import struct
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.files import whole_or_nothing
from dptrain.identity import patient_text
from dptrain.plain import Json

if TYPE_CHECKING:
    import numpy as np

SITE, SECRET, SITE_KEY, CONTROLLER = "site.json", "secret.json", "site.pem", "controller.json"
NEXT = "next"
FILES = (SECRET, SITE_KEY, CONTROLLER, SITE)  # site.json last: where it lies staged, all does
LEAST_PASSPHRASE, LEAST_DISTINCT = 12, 6
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**15, 8, 1


def public_hex(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public half as 64 hex digits."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def signed_by(public: str, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over `message` was made by the key `public` (hex). Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Controller:
    """The controller's unlocked key. Keep it as short a time as possible."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = public_hex(key)
        self.algorithm = "ed25519"

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Controller({self.public[:8]}…)"


class Keys:
    """The keys of one site. Make them with :meth:`create`, read them with :meth:`load`.

    Attributes:
        folder: where they are.
        site: the site's id, 32 hex digits.
        site_public, controller_public, recovery_public: Ed25519 public keys, hex.
        recovery_code: only on the object that :meth:`create` or a rotation returned; shown once, never stored.
    """

    def __init__(
        self,
        folder: Path,
        *,
        site: str,
        secret: list[bytes],
        site_key: Ed25519PrivateKey,
        controller_public: str,
        recovery_public: str,
        recovery_code: str | None = None,
    ) -> None:
        self.folder = folder
        self.site = site
        self._secrets = secret
        self._site_key = site_key
        self.site_public = public_hex(site_key)
        self.controller_public = controller_public
        self.recovery_public = recovery_public
        self.recovery_code = recovery_code

    def __repr__(self) -> str:
        return f"Keys(site {self.site[:8]}…, {self.folder})"

    @classmethod
    def create(cls, folder: str | os.PathLike[str], passphrase: str) -> Keys:
        """Make all keys of a new site in a folder that does not exist yet (or is empty).

        Args:
            passphrase: seals the controller's key; at least 12 characters, 6 of them different, and no number.

        Raises:
            ConfigError: the passphrase is too short, or the folder already holds something.
            LedgerRefused: the folder cannot be written.
        """
        folder = Path(folder)
        _check_passphrase(passphrase)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} already holds something; keys are never overwritten.",
                remedy="Name another folder, or use `dptrain ledger rotate` to replace a key of this site.",
            )
        site, code = secrets.token_hex(16), _new_code()
        site_key, controller, recovery = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), _from_code(code)
        keys = cls(
            folder,
            site=site,
            secret=[secrets.token_bytes(32)],
            site_key=site_key,
            controller_public=public_hex(controller),
            recovery_public=public_hex(recovery),
            recovery_code=code,
        )
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
            keys.save()
            _write(folder / CONTROLLER, _seal(controller, passphrase))
        except OSError as error:
            raise LedgerRefused(f"The keys could not be written to {folder}: {error.strerror}.") from None
        return keys

    def forget(self) -> None:
        """Remove the files of :meth:`create` again, where no ledger came to name them."""
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()

    def save(self) -> None:
        """Write site.json, secret.json and site.pem, each whole or not at all."""
        pem = self._site_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(self.folder / SITE_KEY, pem)
        _write(self.folder / SECRET, _json({"secrets": [secret.hex() for secret in self._secrets]}))
        _write(
            self.folder / SITE,
            _json(
                {
                    "schema": "dptrain.keys/1",
                    "site": self.site,
                    "site_public": self.site_public,
                    "controller_public": self.controller_public,
                    "recovery_public": self.recovery_public,
                }
            ),
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, site_key_lost: bool = False, staged: bool = False) -> Keys:
        """Read the keys that training needs (all but the controller's).

        Args:
            staged: read each file from the folder `next` where it lies there.
            site_key_lost: put a fresh site key where the file is missing or not the one that site.json names;
                such keys can do nothing but replace the site's key.

        Raises LedgerRefused where a file is missing, unreadable, open to other accounts, or does not match.
        """
        folder = Path(folder)
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & 0o022:
            raise LedgerRefused(
                f"The keys in {folder} can be replaced by other accounts.", remedy=f"chmod 700 {folder}"
            )

        def place(name: str) -> Path:
            return folder / NEXT / name if staged and (folder / NEXT / name).exists() else folder / name

        site, secret = _read_json(place(SITE)), _read_json(place(SECRET))
        try:
            try:
                loaded = serialization.load_pem_private_key(_read(place(SITE_KEY)), password=None)
            except (LedgerRefused, ValueError):
                if not site_key_lost:
                    raise
                loaded = Ed25519PrivateKey.generate()
            if not isinstance(loaded, Ed25519PrivateKey):
                raise ValueError("not an Ed25519 key")
            if site["schema"] != "dptrain.keys/1":
                raise ValueError("unknown schema")
            keys = cls(
                folder,
                site=str(site["site"]),
                secret=[bytes.fromhex(text) for text in secret["secrets"]],
                site_key=loaded,
                controller_public=str(site["controller_public"]),
                recovery_public=str(site["recovery_public"]),
            )
            one_set = site_key_lost or keys.site_public == site["site_public"]
            if not one_set or not keys._secrets or min(map(len, keys._secrets)) < 32:
                raise ValueError("the parts do not belong together")
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerRefused(
                f"The keys in {folder} are damaged or do not belong together ({error}).",
                remedy="Restore the folder from its backup (docs/ledger.md, Keys).",
            ) from None
        return keys

    def controller(self, passphrase: str) -> Controller:
        """Unlock the controller's key.

        Raises LedgerRefused for a wrong passphrase, or where the key is not in this folder.
        """
        path = self.folder / CONTROLLER
        if not path.exists():
            raise LedgerRefused(
                f"The controller's key is not in {self.folder}: this machine cannot sign budgets or permissions.",
                remedy="Run this command where the controller keeps the key, or bring controller.json here.",
            )
        return unlock(path, passphrase)

    def patient_key(self, issuer: str, patient_id: str) -> bytes:
        """32 bytes that stand for a patient; the id cannot be read back without the secret.

        Args:
            issuer: who gave the id (a hospital's assigning authority). Ids of two issuers never meet.

        The id is taken as :func:`dptrain.identity.patient_text` has it, exactly; the issuer in NFKC, trimmed and
        case-folded. Raises ConfigError where either is empty.
        """
        issuer, patient_id = normal_issuer(issuer), patient_text(str(patient_id))
        if not patient_id:
            raise ConfigError("a record without a patient id cannot be protected.", remedy="Complete the manifest.")
        try:
            return self._tag(b"patient", _prefixed(issuer.encode(), patient_id.encode()))
        except UnicodeEncodeError:  # its own words would show the id
            raise ConfigError("a patient id holds bytes that are no text.", remedy="Save it as UTF-8.") from None

    def record_hash(self, array: np.ndarray) -> bytes:
        """32 bytes that stand for a record's pixels: HMAC over shape and values, in the narrowest type for them.

        The same values give the same hash, whatever file and number type held them. Copies and lossless re-encodings
        are recognised; resized, cropped or lossily compressed ones are not.
        """
        import numpy as np

        array = np.asarray(array)
        if array.dtype.kind not in "biufc":
            raise ConfigError(f"pixels of type {array.dtype} cannot be hashed: numbers are needed.")
        little = _narrowest(array)
        shape = struct.pack(f"<{array.ndim}q", *array.shape)
        return self._tag(b"record", _prefixed(shape, little.dtype.str[1:].encode()), little.tobytes())

    def _tag(self, label: bytes, *parts: bytes) -> bytes:
        """HMAC under the first secret, wrapped by every later one, so that a rotation needs no raw ids."""
        first = hmac.new(self._secrets[0], b"dptrain." + label + b"\0", hashlib.sha256)
        for part in parts:
            first.update(part)
        tag = first.digest()
        for secret in self._secrets[1:]:
            tag = wrap(secret, tag)
        return tag

    @property
    def secret_check(self) -> str:
        """A value that shows, without revealing it, whether this is the ledger's HMAC secret."""
        return self._tag(b"check").hex()

    @property
    def digest_key(self) -> bytes:
        """Key of the table digests (see :mod:`dptrain.ledger.members`)."""
        return self._tag(b"digest")

    def sign(self, message: bytes) -> bytes:
        """The site's Ed25519 signature, 64 bytes."""
        return self._site_key.sign(message)

    def with_new_secret(self) -> tuple[Keys, bytes]:
        """These keys with one more HMAC secret (not saved yet), and that secret."""
        secret = secrets.token_bytes(32)
        return self._changed(secret=[*self._secrets, secret]), secret

    def with_new_site_key(self) -> Keys:
        """These keys with a fresh site key (not saved yet)."""
        return self._changed(site_key=Ed25519PrivateKey.generate())

    def with_controller(self, controller: Controller) -> Keys:
        """These keys with another controller (not saved yet)."""
        return self._changed(controller_public=controller.public)

    def with_new_recovery(self) -> Keys:
        """These keys with a fresh recovery code (not saved yet)."""
        code = _new_code()
        return self._changed(recovery_public=public_hex(_from_code(code)), recovery_code=code)

    def _changed(self, **changes: Any) -> Keys:
        current: dict[str, Any] = {
            "site": self.site,
            "secret": self._secrets,
            "site_key": self._site_key,
            "controller_public": self.controller_public,
            "recovery_public": self.recovery_public,
        }
        return Keys(self.folder, **{**current, **changes})

    def stage(self, controller: bytes | None = None) -> None:
        """Write these keys to the folder `next`, before the ledger names them."""
        self.unstage()
        folder = self.folder / NEXT
        folder.mkdir(mode=0o700)
        Keys(
            folder,
            site=self.site,
            secret=self._secrets,
            site_key=self._site_key,
            controller_public=self.controller_public,
            recovery_public=self.recovery_public,
        ).save()
        if controller is not None:
            _write(folder / CONTROLLER, controller)

    def settle(self) -> None:
        """Put the staged keys in place, once the ledger names them; may be repeated after a crash.

        The old key is overwritten where it lies before the new one takes its name. Killed in between, the staged
        files that are left still belong to the keys (:meth:`staged`), and the next command goes on.
        """
        folder = self.folder / NEXT
        for name in FILES:
            if (folder / name).exists():
                erase(self.folder / name)
                os.replace(folder / name, self.folder / name)
                sync_folder(self.folder)
        self.unstage()

    def unstage(self) -> None:
        """Forget staged keys, if there are any; site.json first, without which nothing counts as staged."""
        folder = self.folder / NEXT
        if not folder.exists():
            return
        (folder / SITE).unlink(missing_ok=True)
        for path in sorted(folder.iterdir()):
            erase(path)
            path.unlink()
        folder.rmdir()
        sync_folder(self.folder)

    @classmethod
    def staged(cls, folder: str | os.PathLike[str]) -> Keys | None:
        """The keys that a rotation staged and did not put in place (it was killed), if any."""
        folder = Path(folder)
        if not (folder / NEXT / SITE).exists():
            return None
        return cls.load(folder, staged=True)

    def new_controller(self, passphrase: str) -> tuple[Controller, bytes]:
        """A fresh controller key and its sealed file content; nothing is written yet."""
        _check_passphrase(passphrase)
        key = Ed25519PrivateKey.generate()
        return Controller(key), _seal(key, passphrase)


def unlock(path: Path, passphrase: str) -> Controller:
    """The key in a sealed file: the controller's, or another approver's.

    Raises LedgerRefused for a wrong passphrase, or a file that is missing, open to others or damaged.
    """
    box = _read_json(path)
    try:
        return Controller(_unseal(box, passphrase))
    except InvalidTag:
        raise LedgerRefused(
            "The passphrase does not open the controller's key.",
            remedy="Check DPTRAIN_PASSPHRASE, or recover the key with the recovery code (docs/ledger.md, Keys).",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerRefused(f"{path} is damaged ({type(error).__name__}).", remedy="Restore its backup.") from None


def new_signer(path: Path, passphrase: str) -> Controller:
    """Make an approver's own key, sealed by a passphrase, in a file that does not exist yet.

    Raises ConfigError for a weak passphrase or a file that is there, LedgerRefused where it cannot be written.
    """
    _check_passphrase(passphrase)
    if path.exists():
        raise ConfigError(f"{path} exists; keys are never overwritten.", remedy="Name another file.")
    key = Ed25519PrivateKey.generate()
    try:
        _write(path, _seal(key, passphrase))
    except OSError as error:
        raise LedgerRefused(f"The key could not be written to {path}: {error.strerror}.") from None
    return Controller(key)


def recovery(code: str) -> Controller:
    """The recovery key of a code. Raises ConfigError for text that is no code."""
    return Controller(_from_code(code))


def wrap(secret: bytes, tag: bytes) -> bytes:
    """A key or hash under a newer secret (rotation): HMAC of the old one."""
    return hmac.digest(secret, b"dptrain.wrap\0" + tag, "sha256")


def _narrowest(array: np.ndarray) -> np.ndarray:
    """The same values in the narrowest type that holds them all exactly: whole numbers unsigned where none is
    negative, others in float32, float64 or wider; little-endian, contiguous, and without negative zeros.
    """
    import numpy as np

    kind = array.dtype.kind
    if array.dtype.str[1:] == "u1" or not array.size:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if kind == "c":
        return np.ascontiguousarray(array + array.dtype.type(0), dtype=array.dtype.newbyteorder("<"))
    if kind == "b":
        return np.ascontiguousarray(array, dtype=np.uint8)
    if kind == "f":
        low, high = float(array.min()), float(array.max())
        integral = low >= -(2.0**53) and high <= 2.0**53 and bool((array == np.rint(array)).all())
        if not integral:
            wide = array.astype(np.float64) if array.dtype.itemsize < 8 else array
            with np.errstate(over="ignore"):
                narrow = wide.astype(np.float32)
            exact = bool(((narrow == wide) | (wide != wide)).all())
            kept = (narrow if exact else wide) + wide.dtype.type(0)
            kept = kept.astype(narrow.dtype if exact else wide.dtype)
            return np.ascontiguousarray(kept, dtype=kept.dtype.newbyteorder("<"))
        array = array.astype(np.int64)
    low, high = int(array.min()), int(array.max())
    for bits in (8, 16, 32, 64):
        if (low >= 0 and high < 2**bits) or (low < 0 and -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)):
            return np.ascontiguousarray(array, dtype=f"<{'u' if low >= 0 else 'i'}{bits // 8}")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def normal_issuer(issuer: str) -> str:
    """The issuer as it enters the hash. Raises ConfigError where it is empty."""
    text = unicodedata.normalize("NFKC", str(issuer or "")).strip().casefold()
    if not text:
        raise ConfigError(
            "the issuer of the patient ids is missing: id 17 of one clinic is not id 17 of another.",
            remedy="Set data.issuer to the assigning authority of the ids.",
        )
    if not text.isprintable() or len(text) > 200:
        raise ConfigError("the issuer is not a printable text of at most 200 letters.")
    return text


def erase(path: Path) -> None:
    """Overwrite a file where it lies, durably; nothing where there is none. It keeps its name and its length.

    A plain disk or file system then holds the old content no more. One that writes elsewhere (flash, snapshots,
    copy on write) or a backup may: what a key could open must be protected there too (docs/ledger.md, Keys).
    """
    try:
        with open(path, "r+b") as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return


def sync_folder(folder: Path) -> None:
    """Make what happened to the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, content: bytes) -> None:
    with whole_or_nothing(path, "wb", private=True) as file:
        file.write(content)


def _prefixed(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise LedgerRefused(
                f"{path} can be read by other accounts.", remedy=f"Close it: chmod 600 {path}, then rotate the key."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise LedgerRefused(
            f"The ledger's keys are incomplete: {path} is missing.",
            remedy="Name the folder with DPTRAIN_KEYS or ledger.keys=…, make keys with `dptrain ledger init`, or "
            "restore the backup (docs/ledger.md, Keys).",
        ) from None
    except OSError as error:
        raise LedgerRefused(f"{path} cannot be read: {error.strerror}.") from None


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(_read(path))
        if not isinstance(value, dict):
            raise ValueError
    except ValueError:
        raise LedgerRefused(f"{path} is damaged.", remedy="Restore the folder from its backup.") from None
    return value


def _check_passphrase(passphrase: str) -> None:
    """Raises ConfigError below the floor: whoever copies controller.json can try as often as they like."""
    if len(passphrase) < LEAST_PASSPHRASE:
        raise ConfigError(
            f"the controller's passphrase is too short: at least {LEAST_PASSPHRASE} characters.",
            remedy="Take four or more words that have nothing to do with each other.",
        )
    if len(set(passphrase.casefold())) < LEAST_DISTINCT or passphrase.isdigit():
        raise ConfigError(
            "the controller's passphrase repeats a few characters, or is a number: it is guessed at once.",
            remedy="Take four or more words that have nothing to do with each other.",
        )


@dataclass(frozen=True)
class _Cost:
    n: int
    r: int
    p: int

    def key(self, passphrase: str, salt: bytes) -> bytes:
        if not (2**14 <= self.n <= 2**20 and self.r == SCRYPT_R and self.p == SCRYPT_P):
            raise ValueError("scrypt cost out of range")
        return Scrypt(salt=salt, length=32, n=self.n, r=self.r, p=self.p).derive(
            unicodedata.normalize("NFKC", passphrase).encode()
        )


def _seal(key: Ed25519PrivateKey, passphrase: str) -> bytes:
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    raw = key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    box = ChaCha20Poly1305(_Cost(SCRYPT_N, SCRYPT_R, SCRYPT_P).key(passphrase, salt)).encrypt(
        nonce, raw, b"dptrain.controller/1"
    )
    return _json(
        {
            "schema": "dptrain.controller/1",
            "kdf": {"name": "scrypt", "n": SCRYPT_N, "r": SCRYPT_R, "p": SCRYPT_P, "salt": salt.hex()},
            "nonce": nonce.hex(),
            "box": box.hex(),
        }
    )


def _unseal(box: Json, passphrase: str) -> Ed25519PrivateKey:
    if box["schema"] != "dptrain.controller/1" or box["kdf"]["name"] != "scrypt":
        raise ValueError("unknown schema")
    kdf = box["kdf"]
    key = _Cost(int(kdf["n"]), int(kdf["r"]), int(kdf["p"])).key(passphrase, bytes.fromhex(kdf["salt"]))
    raw = ChaCha20Poly1305(key).decrypt(
        bytes.fromhex(box["nonce"]), bytes.fromhex(box["box"]), b"dptrain.controller/1"
    )
    return Ed25519PrivateKey.from_private_bytes(raw)


def _new_code() -> str:
    text = base64.b32encode(secrets.token_bytes(20)).decode()
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def _from_code(code: str) -> Ed25519PrivateKey:
    try:
        raw = base64.b32decode("".join(code.split()).replace("-", "").upper())
        if len(raw) != 20:
            raise ValueError
    except ValueError:
        raise ConfigError(
            "this is no recovery code: 32 letters and digits in groups of four are needed.",
            remedy="Copy it from the sheet that was printed when the keys were made.",
        ) from None
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"dptrain.recovery\0" + raw).digest())
