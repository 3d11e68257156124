"""``ray start`` for a second node on this machine that keeps to loopback, as the local stack wants it.

Ray lets a node join a cluster only where it may use the host's outward address, and then puts that address in the
place of 127.0.0.1, wherever it is named: the node would look for the head where it does not listen, and itself listen
beyond the machine. There is no option against it, so the one function that finds the address is told it.
"""

import os


def main() -> None:
    """Ray's command line, with 127.0.0.1 as this machine's address."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"  # nodes may join; read when Ray is imported
    from ray._private import services
    from ray.scripts import scripts

    services.get_node_ip_address = _loopback
    scripts.main()


def _loopback(address: str | None = None) -> str:
    return "127.0.0.1"


if __name__ == "__main__":
    main()
