"""The published schema is that of the classes."""

import json

from accounting.report.schema import FILE, published, schema_json


def test_the_published_schema_is_that_of_the_classes() -> None:
    assert published() == schema_json(), f"write it anew: privads report schema > accounting/report/{FILE}"


def test_the_schema_says_which_dialect_and_which_version_it_is() -> None:
    schema = json.loads(published())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].endswith(f":{schema['properties']['report_version']['const']}")
