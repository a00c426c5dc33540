"""The embedded server, really started, killed and raced."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from beamrec.io import embedded
from beamrec.schemas.errors import UnavailableError, UsageError

START = "import sys; from beamrec.io.embedded import ensure_running; print(ensure_running(sys.argv[1]).pid)"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder in a path with a blank; whatever runs on it is stopped."""
    path = tmp_path / "a home" / "pg"
    yield path
    embedded.stop_server(path)


def _answers(server: embedded.EmbeddedServer) -> bool:
    connection = psycopg2.connect(server.uri)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        answer = cursor.fetchone()
    connection.close()
    return answer == (1,)


def _kill(server: embedded.EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    while embedded.find_server(server.folder):
        time.sleep(0.01)


def test_it_starts_is_found_again_and_stops(folder: Path) -> None:
    assert embedded.find_server(folder) is None
    assert not embedded.stop_server(folder)
    server = embedded.ensure_running(folder)
    assert _answers(server)
    assert embedded.find_server(folder) == embedded.ensure_running(folder) == server
    assert embedded.stop_server(folder)
    assert embedded.find_server(folder) is None
    again = embedded.ensure_running(folder)
    assert again.uri == server.uri
    assert _answers(again)


def test_it_outlives_the_process_that_started_it(folder: Path) -> None:
    started = subprocess.run([sys.executable, "-c", START, str(folder)], capture_output=True, check=True)
    server = embedded.find_server(folder)
    assert server is not None
    assert server.pid == int(started.stdout)
    assert _answers(server)


def test_processes_that_start_it_at_the_same_time_share_one_server(folder: Path) -> None:
    command = [sys.executable, "-c", START, str(folder)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    pids = {int(racer.communicate(timeout=300)[0]) for racer in racers}
    assert len(pids) == 1
    assert [p.name for p in folder.parent.iterdir() if ".init-" in p.name] == []


def test_threads_that_start_it_at_the_same_time_share_one_server(folder: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        servers = list(threads.map(lambda _: embedded.ensure_running(folder), range(4)))
    assert len(set(servers)) == 1


def test_it_comes_back_after_kill_9_with_its_data(folder: Path) -> None:
    for attempt in range(3):
        server = embedded.ensure_running(folder)
        connection = psycopg2.connect(server.uri)
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS t (n int)")
            cursor.execute("SELECT count(*) FROM t")
            assert cursor.fetchone() == (attempt,)
            cursor.execute("INSERT INTO t VALUES (1)")
        _kill(server)


def test_a_stale_lock_that_names_a_strangers_process_does_not_stop_it(folder: Path) -> None:
    server = embedded.ensure_running(folder)
    _kill(server)
    pid_file = folder / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")  # this very process
    assert embedded.find_server(folder) is None
    again = embedded.ensure_running(folder)
    assert again.pid != os.getpid()
    assert _answers(again)


def test_a_folder_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 60) / ("y" * 60) / "pg"
    try:
        server = embedded.ensure_running(folder)
        assert _answers(server)
        assert embedded.find_server(folder) == server
    finally:
        embedded.stop_server(folder)


def test_an_empty_folder_that_is_there_already_is_used(folder: Path) -> None:
    folder.mkdir(parents=True)  # empty, as it is made by hand or by a mount
    assert _answers(embedded.ensure_running(folder))


def test_uris_and_paths_are_checked(tmp_path: Path) -> None:
    assert embedded.folder_of(embedded.embedded_uri(tmp_path)) == tmp_path / "pg"
    for uri in ("embedded:", "embedded:relative", "postgresql://x"):
        with pytest.raises(UsageError, match="embedded:/absolute/folder"):
            embedded.folder_of(uri)
    with pytest.raises(UsageError, match="will not do"):
        embedded.ensure_running(tmp_path / 'quo"te')


def test_a_suspended_server_is_told_at_once_and_stops_once_it_goes_on(folder: Path) -> None:
    server = embedded.ensure_running(folder)
    os.kill(server.pid, signal.SIGSTOP)
    while psutil.Process(server.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)  # on a busy machine it is stopped when it is next on
    try:
        with pytest.raises(UnavailableError, match=f"process {server.pid} is suspended.*kill -CONT"):
            embedded.stop_server(folder)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert embedded.stop_server(folder)
