# Shortcuts for an environment in which `pip install -e '.[test]'` was run.
.PHONY: sweep check test slow format schema spaces

sweep:      ## the default sweep: a few minutes on two cores
	python -m m2ray.sweep

check:      ## style and types
	ruff check
	ruff format --check
	mypy

test:       ## what CI runs after `check`
	pytest

slow:       ## tests that take minutes: nested Ray Train, killed processes, pretrained receivers
	pytest -m slow -n 0

format:     ## fix what ruff can fix
	ruff check --fix
	ruff format

schema:     ## write search_spaces/space.schema.json from the pydantic models
	python scripts/write_schema.py

spaces:     ## copy search_spaces/ into the package, for installed wheels
	cp search_spaces/*.yaml m2ray/config/spaces/
