"""A second writer that only asks for the lease, as `score` does first: ``python -m tests.chaos.probe CONFIG``."""

import json
import sys
from pathlib import Path

from infra.errors import UserError
from infra.leases import refuse_if_held
from infra.storage import Storage


def main() -> int:
    try:
        refuse_if_held(Storage(), json.loads(Path(sys.argv[1]).read_text())["tables"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
