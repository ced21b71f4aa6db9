"""Write the JSON schema of search spaces from the models that validate them, for editors.

python scripts/write_schema.py            # search_spaces/space.schema.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from m2ray.cli.runner import DONE, Parser, run_command
from m2ray.config.space import SHARED, Space
from m2ray.config.trial import TrialConfig

OUT = Path(__file__).parent.parent / "search_spaces" / "space.schema.json"
Schema = dict[str, Any]


class Untitled(GenerateJsonSchema):
    """Schema generator without field titles, which would only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False for every field."""
        return False


def searchable(model: Any, prefix: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Yield what points and axes may set below a model: dotted key, schema, and True for a section of keys."""
    for name, field in model.model_fields.items():
        if not prefix and name in SHARED:
            continue
        parts = (field.annotation, *getattr(field.annotation, "__args__", ()))
        sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        yield f"{prefix}{name}", {"$ref": f"#/$defs/{model.__name__}/properties/{name}"}, bool(sections)
        for section in sections:
            yield from searchable(section, f"{prefix}{name}.")


def space_schema() -> Schema:
    """Return the schema of a space file.

    The models leave `trial` and the dotted keys of points and axes as free mappings and validate the merged
    result. The schema spells them out. In `trial` every key may be left out, since each has a default.
    """
    schema = Space.model_json_schema(schema_generator=Untitled)
    trial = TrialConfig.model_json_schema(schema_generator=Untitled)
    keys = list(searchable(TrialConfig))
    parts = schema["$defs"] | trial.pop("$defs") | {"TrialConfig": trial}
    parts["Key"] = {"enum": [key for key, _, section in keys if not section]}
    properties, named = schema["properties"], {"propertyNames": {"$ref": "#/$defs/Key"}}
    properties["trial"] = {"$ref": "#/$defs/TrialConfig", "description": properties["trial"]["description"]}
    properties["points"]["additionalProperties"] = False
    properties["axes"] |= named
    parts["Axis"]["properties"]["when"] |= named
    parts["Point"]["properties"]["set"] |= {
        "properties": {key: reference for key, reference, _ in keys},
        "additionalProperties": False,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": parts}


def main(argv: Sequence[str]) -> int:
    """Write the file."""
    parser = Parser(prog="scripts/write_schema.py", description="Write search_spaces/space.schema.json.")
    parser.parse_args(argv)
    OUT.write_text(json.dumps(space_schema(), indent=2) + "\n")
    print(OUT)
    return DONE


if __name__ == "__main__":
    run_command(main)
