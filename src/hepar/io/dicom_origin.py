"""Where a DICOM object of ours comes from: the program, the images, what is said of them in all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydicom.dataset import Dataset

from hepar.io.dicom_source import SourceImages


@dataclass(frozen=True)
class Maker:
    """The program that made an object, as DICOM names algorithms and devices.

    Attributes:
        version: of the program.
        serial: what tells this model from others.
        parameters: everything else that determined the result, by name.
        uid: of the device.
    """

    version: str
    serial: str
    parameters: dict[str, str]
    uid: str
    name: str = "hepar"


@dataclass(frozen=True)
class Origin:
    """What objects of one result are made from.

    Attributes:
        source: the images that masks lie on; patient and study are theirs.
        further: other series.
        maker: the program.
        uid: a UID by name; the same result has the same ones.
    """

    source: SourceImages
    further: tuple[SourceImages, ...]
    maker: Maker
    uid: Callable[[str], str]

    def images(self) -> tuple[Dataset, ...]:
        """The headers of all images, each object once, those of `source` first."""
        every = (image for one in (self.source, *self.further) for image in one.images)
        return tuple({str(image.SOPInstanceUID): image for image in every}.values())

    def of_study(self) -> Origin:
        """The same without series of other studies."""
        study = self.source.study_uid
        return replace(self, further=tuple(f for f in self.further if f.study_uid == study))

    def said(
        self, name: str, series_number: int, description: str, number: int = 1
    ) -> dict[str, Any]:
        """Series, instance and equipment of an object, as highdicom's constructors take them.

        Args:
            name: of the kind of object; its UIDs follow from it.
            series_number: SeriesNumber.
            description: SeriesDescription.
            number: InstanceNumber in the series.
        """
        return {
            "series_instance_uid": self.uid(f"{name} series"),
            "series_number": series_number,
            "sop_instance_uid": self.uid(name if number == 1 else f"{name} {number}"),
            "instance_number": number,
            "series_description": description,
            "manufacturer": self.maker.name,
            "manufacturer_model_name": self.maker.name,
            "software_versions": self.maker.version,
            "device_serial_number": self.maker.serial,
        }
