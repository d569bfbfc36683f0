"""Lists say what is allowed: every transform on the list is harmless by its signature, everything else is refused."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import monai.transforms
import pytest

from dptrain.data import scan
from dptrain.data.transforms import ALLOWED, build
from dptrain.errors import CheckRefused, ConfigError
from tests.data import made
from tests.data.shared import FakeKeys

EVERY = sorted(
    name
    for name in dir(monai.transforms)
    if name.endswith("d")
    and isinstance(getattr(monai.transforms, name), type)
    and issubclass(getattr(monai.transforms, name), monai.transforms.MapTransform)
)


def node(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"monai.transforms.{name}", "keys": ["image"], **arguments}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_no_transform_on_the_list_can_name_a_file_or_a_function(name: str) -> None:
    parameters = inspect.signature(getattr(monai.transforms, name).__init__).parameters
    for parameter in parameters:
        assert not re.search(r"path|dir$|file|writer|reader|loader|saver|func|callable|transform", parameter)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ALLOWED])
def test_everything_else_of_monai_is_refused(name: str) -> None:
    with pytest.raises((CheckRefused, ConfigError)) as caught:
        build([node(name)], random=True)
    assert caught.value.remedy


def test_a_chain_that_writes_pixels_through_a_saver_writes_nothing(tmp_path: Path) -> None:
    """SaveClassificationd wrote to any folder during the scan, before any grant."""
    rows = made.rows(6, 1)
    made.write(tmp_path / "cohort", rows)
    chain = [
        node("ToMetaTensord"),
        node("FromMetaTensord"),
        {"_target_": "monai.transforms.DeleteItemsd", "keys": ["image_meta_dict.*"], "use_re": True},
        node("SaveClassificationd", output_dir=str(tmp_path / "leak"), filename="pixels.csv"),
    ]
    for transforms in (chain, chain[-1:], chain[:1]):
        with pytest.raises(CheckRefused, match="not on the list"):
            scan(made.settings(tmp_path / "cohort", transforms=transforms), FakeKeys())
    with pytest.raises(CheckRefused):  # handed over ready made, too
        build([monai.transforms.SaveClassificationd("image", output_dir=str(tmp_path / "leak"))], random=True)
    assert not (tmp_path / "leak").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"keys": ["image_meta_dict.filename"]},
        {"roi_size": {"_target_": "os.system", "command": "true"}},
        {"roi_size": "/etc/passwd"},
        {"roi_size": [1, {"a": {"_target_": "torch.load"}}]},
        {"roi_size": "a\nb"},
    ],
    ids=str,
)
def test_arguments_are_numbers_and_plain_words(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build([node("CenterSpatialCropd", **arguments)], random=False)


def test_a_class_of_ones_own_may_be_handed_over_in_python() -> None:
    class Half(monai.transforms.MapTransform):
        def __call__(self, data: Any) -> Any:
            return {**data, "image": data["image"] / 2}

    assert len(build([Half(["image"])], random=False)) == 1
