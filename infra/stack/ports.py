"""Free ports on loopback for servers that start within the next minutes."""

import random
import socket

# Above the ports of Ray's workers, below those of Ray Serve and of outgoing connections: what is free here and now is
# still free when its server comes up.
_RANGE = range(20_000, 30_000)


def free_ports(number: int) -> list[int]:
    """So many different ports that nobody listens on.

    Raises:
        RuntimeError: There are not so many.
    """
    found: list[int] = []
    for port in random.sample(_RANGE, len(_RANGE)):
        if len(found) == number:
            return found
        if _is_free(port):
            found.append(port)
    raise RuntimeError(f"fewer than {number} free ports between {_RANGE.start} and {_RANGE.stop}")


def _is_free(port: int) -> bool:
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as one:
            try:
                one.bind((host, port))
            except OSError:
                return False
    return True
