"""A Postgres server on loopback, with a password, as a normal user or, started by root, as the user ``postgres``."""

import os
import pwd
import subprocess
from pathlib import Path

import psycopg2

from infra.errors import UserError
from infra.stack.programs import postgres_program
from infra.stack.stack import Stack

DATABASE = USER = "facereel"


def start_postgres(stack: Stack) -> None:
    """Start it; the first time, make its data folder.

    Raises:
        UserError: It is not installed, or root's folders keep its user out.
    """
    user = _user()
    home = stack.folder.data / "postgres"
    data, password = home / "data", home / "password"
    port = stack.state.ports["postgres"]
    home.mkdir(exist_ok=True)
    if (data / "PG_VERSION").exists():  # data of an earlier start keep the password that they were made with
        stack.state.postgres_password = password.read_text()
    else:
        stack.folder.write_secret(password, stack.state.postgres_password)
        if user is not None:
            for path in (home, password):
                os.chown(path, user.pw_uid, user.pw_gid)
            if _run(["test", "-r", password], user).returncode:
                raise UserError(
                    f"{home}: started by root, Postgres runs as the user postgres, who cannot come here: give a --dir "
                    "whose folders all may enter, or start the stack as another user"
                )
        how = ["-U", USER, "-E", "UTF8", "-A", "scram-sha-256", f"--pwfile={password}"]
        done = _run([postgres_program("initdb"), "-D", data, *how], user)
        if done.returncode:
            raise RuntimeError(f"initdb: {done.stderr.strip()[-1000:]}")
    # No socket in the file system: its path might be too long.
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    command = [str(postgres_program("postgres")), "-D", str(data), *options]
    stack.launch("postgres", command, f"database at 127.0.0.1:{port}", user=user)


def make_database(stack: Stack) -> bool:
    """Whether the server answers; then the database exists."""
    port, password = stack.state.ports["postgres"], stack.state.postgres_password
    try:
        connection = psycopg2.connect(
            host="127.0.0.1", port=port, user=USER, password=password, dbname="postgres", connect_timeout=5
        )
    except psycopg2.OperationalError:
        return False
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        connection.close()
    return True


def database_uri(stack: Stack) -> str:
    """SQLAlchemy's URL of the database, with its password."""
    state = stack.state
    return f"postgresql+psycopg2://{USER}:{state.postgres_password}@127.0.0.1:{state.ports['postgres']}/{DATABASE}"


def _user() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        raise UserError("Postgres refuses root, and there is no user postgres: apt-get install postgresql") from None


def _run(command: list[str | Path], user: pwd.struct_passwd | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
    )
