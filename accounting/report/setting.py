"""The circumstances of a run, as a report holds them: what for, among whom, who chose the budget and why."""

from datetime import date
from typing import Literal

from accounting.report.fields import Record, Text
from accounting.report.phrase import NOT_STATED


class Product(Record):
    """What comes out and what it is for, with the fields of a public registry of such uses (OpenDP's, tier 1)."""

    name: Text = NOT_STATED
    description: Text = NOT_STATED
    curators: tuple[Text, ...] = ()
    intended_use: Text = NOT_STATED
    type: Text = "Machine learning model"
    region: Text = NOT_STATED
    sector: Text = NOT_STATED
    published: date | None = None


class Actor(Record):
    """Someone who takes part, what they see, and what they are trusted with."""

    who: Text
    sees: Text
    trust: Text


class Setting(Record):
    """Who takes part, and what is shown how often. ``data``: whether rows keep coming in under one promise."""

    model: Literal["central", "local", "shuffle", "federated"]
    actors: tuple[Actor, ...] = ()
    releases: Literal["one", "many"]
    data: Literal["static", "dynamic"] = "static"
    interactive: bool = False


class Security(Record):
    """What protects the rows beside the noise."""

    access: Text = NOT_STATED
    """Who may read the rows and the run's own files."""
    log_retention: Text = NOT_STATED
    side_channels: Text = NOT_STATED


class Justification(Record):
    """Who chose epsilon, and why this one."""

    chosen_by: Text = NOT_STATED
    why: Text = NOT_STATED
