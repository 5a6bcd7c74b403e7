"""The registration artifact: where a model is found in MLflow's registry.

Layout::

    registration.json   name, version and address
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.shared.files import write_text

REGISTRATION_NAME = "registration.json"


class Registration(BaseModel):
    """A version of a registered model.

    Attributes:
        name: The registered model.
        version: Its version.
        uri: Address by which MLflow finds the version.
        source: Where its files lie.
        run_id: The MLflow run that registered it.
        digest: SHA-256 of the model file.
        aliases: Aliases that the version was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    name: str
    version: int
    uri: str
    source: str
    run_id: str
    digest: str
    aliases: list[str]


def write_registration(folder: Path, registration: Registration) -> None:
    """Write a registration into its artifact."""
    write_text(folder / REGISTRATION_NAME, registration.model_dump_json(indent=2) + "\n")
