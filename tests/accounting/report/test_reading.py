"""A report read back is the one that was written; anything else is refused in one line that names the file."""

from pathlib import Path

import pytest

from accounting.report.reading import read_report
from tests.accounting.report.sample import STATED, audit, report


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = report(**STATED, audit=[audit()])
    (tmp_path / "report.json").write_text(made.to_json(), encoding="utf-8")
    assert read_report(tmp_path / "report.json") == made


TEXT = report().to_json()
BROKEN = {
    "nothing": (b"", "is not a report: "),
    "no JSON": (b"epsilon <= 0.1", "is not a report: "),
    "no UTF-8": (b'{"\xff": 1}', "is not a report: "),
    "no object": (b"[]", "one JSON object"),
    "no block": (b"{}", "not a report of this privads: run: Field required"),
    "a value of another kind": (TEXT.replace('"steps": 40', '"steps": "40"').encode(), "mechanism.steps: "),
    "an unknown word": (TEXT.replace('"report_version"', '"note": "", "report_version"').encode(), "note: Extra"),
    "a headline of another run": (TEXT.replace("epsilon <= 2.98", "epsilon <= 0.98").encode(), "the headline says"),
    "figures that disagree": (TEXT.replace('"noise_std": 1.65', '"noise_std": 9.0').encode(), "noise_std is 9.0"),
}


@pytest.mark.parametrize(("content", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_no_report_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=str(file)) as caught:
        read_report(file)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
