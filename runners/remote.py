"""What must hold where workers are other machines: places they reach, secrets they can read, our code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from beamrec.runners.preset import Job
from beamrec.schemas.errors import UsageError
from beamrec.schemas.hosts import is_loopback

__all__ = ["beam_options", "check_credentials", "check_passwords", "check_places", "setup_file"]

_LOCAL = {
    "": "a path of this machine; give an s3:// or gs:// URI",
    "file": "a path of this machine; give an s3:// or gs:// URI",
    "sqlite": "a file of this machine; give a mysql:// or postgresql:// URI",
    "embedded": "a server of this machine; give a postgresql:// URI",
}
_CREDENTIALS = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")


def beam_options(beam_args: Sequence[str]) -> dict[str, Any]:
    """All of Beam's options by name, as `beam_args` set them; `streaming`, `experiments` and so on."""
    from apache_beam.options.pipeline_options import PipelineOptions

    options: dict[str, Any] = PipelineOptions(list(beam_args)).get_all_options()
    return options


def check_places(job: Job, beam_args: Sequence[str]) -> str:
    """Every place can be reached from another machine, as far as its URI tells.

    Raises:
      UsageError: it is a path, an embedded server, or a host that means "this machine".
    """
    for option, uri in job.places.items():
        what = _LOCAL.get(_scheme(uri)) or _on_loopback(uri)
        if what:
            raise UsageError(f"{option}: workers are other machines and cannot reach {what}")
    return f"{len(job.places)} places that other machines can reach" if job.places else "no places given"


def _scheme(uri: str) -> str:
    scheme = uri.partition(":")[0].lower()
    return scheme if ":" in uri and scheme.isalnum() else ""


def _on_loopback(uri: str) -> str | None:
    parts = urlsplit(uri)
    query = dict(parse_qsl(parts.query))
    hosts = [_host(part) for part in parts.netloc.rpartition("@")[2].split(",")]
    hosts += [_host(urlsplit(query.get("endpoint", "")).netloc), query.get("host", "")]
    here = next((host for host in hosts if is_loopback(host) or host.startswith("/")), None)
    return f"{here}, which is this machine there; give its name in the network" if here else None


def _host(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def check_passwords(job: Job, beam_args: Sequence[str]) -> str:
    """Workers have neither this environment nor these files: a password must be in a secret manager.

    Raises:
      UsageError: it is in an environment variable or a file here.
    """
    for option, password in job.passwords.items():
        where = None
        if password.secret:
            kind = password.secret.partition(":")[0]
            where = f"{kind}:" if kind in ("env", "file") else None
        elif password.variable:
            where = f"${password.variable}"
        if where:
            raise UsageError(
                f"{option}: its password is in {where}, which is not there on the workers; put it into a "
                f"secret manager and give {password.remedy}=gcp-secretmanager://projects/P/secrets/S (or "
                "aws-secretsmanager://…)"
            )
    kept = [option for option, password in job.passwords.items() if password.secret]
    return f"{', '.join(kept)} from a secret manager" if kept else "no place asks for a password"


def check_credentials(job: Job, beam_args: Sequence[str]) -> str:
    """No credential is an option: whoever may look at the job sees its options.

    Raises:
      UsageError: one is.
    """
    options = beam_options(beam_args)
    given = [name for name in _CREDENTIALS if options.get(name)]
    if given:
        raise UsageError(
            f"--{given[0]}: a job's options can be read by everybody who may see the job; take it out and "
            "let the workers' own role or service account open the bucket"
        )
    return "no credential among the options"


def setup_file(beam_args: Sequence[str]) -> Path | None:
    """The `--setup_file` that was given.

    Raises:
      UsageError: it is not there, or is not this project's.
    """
    given = beam_options(beam_args).get("setup_file")
    if not given:
        return None
    path = Path(given).absolute()
    if path.name != "setup.py" or not path.is_file():
        raise UsageError(f"--setup_file {given}: expected the path of beamrec's setup.py")
    if 'name="beamrec"' not in path.read_text(encoding="utf-8"):
        raise UsageError(f"--setup_file {given}: this is the setup.py of another project")
    return path
