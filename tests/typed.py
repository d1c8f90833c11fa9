"""Commands as typed, run in this process."""

from pathlib import Path

from click.testing import CliRunner, Result

from sagecache.cli.main import cli


def sagecache(project: Path, *words: str, code: int = 0) -> Result:
    """Run ``sagecache --project PROJECT WORDS…``; errors for the user arrive as SagecacheError."""
    result = CliRunner().invoke(cli, ["--project", str(project), *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result
