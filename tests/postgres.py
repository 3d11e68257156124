"""A real PostgreSQL server on 127.0.0.1, for as long as a block runs."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from infra.errors import UserError
from infra.stack.ports import free_ports
from infra.stack.programs import postgres_program


def missing() -> str | None:
    """Why there can be no server here, or None."""
    try:
        postgres_program("initdb")
    except UserError as error:
        return str(error)
    if os.getuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """An empty database; SQLAlchemy's URL of it."""
    user = _unprivileged() if os.getuid() == 0 else None
    folder = Path(mkdtemp(prefix="facereel-pg-"))  # short: a socket's path lies in it
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    (port,) = free_ports(1)
    data = folder / "data"

    def run(*command: str | Path) -> None:
        as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        log = folder / "command.log"
        with log.open("wb") as output:
            done = subprocess.run([str(part) for part in command], stdout=output, stderr=output, cwd="/", **as_user)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {log.read_text()[-2000:]}")

    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    run(postgres_program("initdb"), "-D", data, "-A", "trust", "-U", "facereel", "-E", "UTF8")
    run(postgres_program("pg_ctl"), "-D", data, "-w", "-l", folder / "server.log", "-o", options, "start")
    try:
        run(postgres_program("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "facereel", "mlflow")
        yield f"postgresql+psycopg2://facereel@127.0.0.1:{port}/mlflow"
    finally:
        run(postgres_program("pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None
