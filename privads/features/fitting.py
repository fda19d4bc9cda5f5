"""`Fitting`: features that a job is going to fit, and the file they are kept in from then on."""

import os
from dataclasses import dataclass
from pathlib import Path

from accounting.ledger import Ledger
from privads.config import ConfigError
from privads.features.pipeline import Features, fit_planned
from privads.features.transforms import Pipeline
from privads.new_folder import new_file
from privads.signals.query import Source
from privads.signals.release import Release


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What is to be fitted, and what that releases, None where it is free; nothing was read and nothing charged."""

    pipeline: Pipeline
    release: Release | None
    file: Path | None = None

    def run(self, source: Source, ledger: Ledger | None, *, insecure_seed: int | None = None) -> Features:
        """Returns the fitted features, charged; they are in ``file`` before anything else is done with them."""
        features = fit_planned(self.pipeline, source, self.release, ledger=ledger, insecure_seed=insecure_seed)
        if self.file is not None:
            with new_file(self.file) as draft:
                features.save(draft)
        return features


def check_place(file: Path) -> None:
    """Refuse a file that could not be written, before anything is charged."""
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise ConfigError(f"cannot write {file}: there is no folder {file.parent} that this user may write to")
